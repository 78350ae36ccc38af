//! From the request to its answer, as a client.

use crate::config::Compression;
use crate::http1::HEADER_COUNT_MAX;
use crate::http1::ResponseHead;
use crate::protocol::Role;
use crate::protocol::handshake::ExpectedResponse;
use crate::protocol::handshake::Refusal;
use crate::protocol::handshake::ResponseError;
use crate::tls::Session;

use super::Conn;
use super::Env;
use super::OpenError;
use super::Phase;
use super::Sink;
use super::handshake::Collected;

/// A client's side of an opening handshake.
#[derive(Debug)]
pub struct ClientHandshake {
    /// The request head.
    pub head: Vec<u8>,
    /// What its answer has to hold.
    pub expected: ExpectedResponse,
    /// What was wanted of compression.
    pub compression: Compression,
}

impl<D> Conn<D> {
    /// A connection that is being made: its request waits until it is.
    pub fn connect(
        handshake: ClientHandshake,
        data: D,
        tls: Option<Session>,
        env: &mut Env,
    ) -> Self {
        let mut conn = Self::new(Role::Client, tls, env);
        conn.push_head(&handshake.head, env);
        conn.partial(env).expected = Some((handshake.expected, handshake.compression));
        conn.data = Some(data);
        conn.state.owes_close = true;
        // Until the socket is connected, which it says by being writable.
        conn.state.blocked = true;
        conn
    }

    /// A connection that cannot be made: its data is for the `on_close` that says so.
    pub fn not_connected(data: D, env: &Env) -> Self {
        let mut conn = Self::new(Role::Client, None, env);
        conn.data = Some(data);
        conn.state.owes_close = true;
        conn
    }

    /// Takes bytes of the response head, and of frames that came along with it.
    pub(super) fn receive_response(
        &mut self,
        input: &mut [u8],
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        match self.collect_head(input, env) {
            Collected::Here(head, rest) => self.take_response(head, rest, env, sink),
            Collected::Kept(head, len, rest) => {
                self.take_response(&head[..len], rest, env, sink);
                env.pool.put(head);
            }
            Collected::TooLong(head) => {
                env.pool.put(head);
                let error = OpenError::Response(ResponseError::TooLong);
                self.fail_open(error, env, sink);
            }
            Collected::Malformed(head) => {
                let error = OpenError::Response(ResponseError::not_a_head(&head));
                env.pool.put(head);
                self.fail_open(error, env, sink);
            }
            Collected::Incomplete => {}
        }
    }

    fn take_response(
        &mut self,
        head: &[u8],
        rest: &mut [u8],
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        let mut storage = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
        let storage = &mut storage[..env.limits().header_count_max];
        let Some(response) = ResponseHead::parse(head, storage) else {
            let error = OpenError::Response(ResponseError::not_a_head(head));
            return self.fail_open(error, env, sink);
        };
        // RFC 9110 §15.2: interim responses come before the final one.
        if matches!(response.status, 100 | 102..200) {
            return self.receive_response(rest, env, sink);
        }
        let expected = self.partial.as_mut().and_then(|p| p.expected.take());
        self.release_partial(env);
        let checked = match &expected {
            Some((expected, _)) => expected.check(&response),
            None => Err(ResponseError::Malformed),
        };
        match checked {
            Ok(subprotocol) => {
                self.state.set_subprotocol(subprotocol, env);
                if let Some((expected, compression)) = expected
                    && let Ok(Some(params)) = expected.check_deflate(&response)
                {
                    self.state.set_deflate(&params, compression, env);
                }
                self.open(env, sink);
                self.receive_early(rest, env, sink);
            }
            Err(ResponseError::Status(status)) => {
                let refusal = Refusal {
                    status,
                    head: head.to_vec(),
                    body: rest[..rest.len().min(Refusal::BODY_LEN_MAX)].to_vec(),
                };
                self.fail_open(OpenError::Refused(Box::new(refusal)), env, sink);
            }
            Err(error) => self.fail_open(OpenError::Response(error), env, sink),
        }
        debug_assert_ne!(self.state.phase, Phase::Handshake);
    }
}
