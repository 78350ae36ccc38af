//! The user's side: callbacks, and what they get.

use std::collections::VecDeque;
use std::fmt;
use std::io;

use crate::buffer::Pool;
use crate::buffer::SendQueue;
use crate::conn::Closed;
use crate::conn::Output;
use crate::conn::SendResult;
use crate::conn::Upgrade;
use crate::connect::Connect;
use crate::error::ConfigError;
use crate::http1::Request;
use crate::http1::Response;
use crate::protocol::CloseCode;
use crate::protocol::CloseFrame;
use crate::protocol::Message;
use crate::protocol::Role;
use crate::protocol::handshake::UpgradeRequest;
use crate::reactor::PeerAddr;
use crate::slab::Key;

use super::Remote;

/// Names one connection for ever: after its close every use is a defined "gone".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    pub(super) worker: u16,
    pub(super) key: Key,
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({self})")
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { index, generation } = self.key;
        write!(f, "{}.{index}.{generation}", self.worker)
    }
}

/// What happens to connections. Each thread has a handler of its own, so a handler needs
/// neither locks nor `Send`. A callback must not block: its thread serves nobody meanwhile.
///
/// Every method has a default: accept every upgrade, answer plain HTTP with 426, ignore the
/// rest.
pub trait Handler {
    /// Per-connection state, kept from the upgrade to the end of `on_close`.
    type Data: Default;

    /// A valid request for a WebSocket, of an allowed origin.
    fn on_upgrade(&mut self, request: &UpgradeRequest<'_>) -> Upgrade<Self::Data> {
        let _ = request;
        Upgrade::accept(Self::Data::default())
    }

    /// A GET or HEAD request that asks for no WebSocket.
    fn on_http(&mut self, request: &Request<'_>) -> Response {
        let _ = request;
        upgrade_required()
    }

    /// The data of a connection that [`Remote::connect`] asks for.
    fn on_connect(&mut self, connect: &Connect) -> Self::Data {
        let _ = connect;
        Self::Data::default()
    }

    /// The connection is open: the first callback of it.
    fn on_open(&mut self, conn: &mut Context<'_, Self::Data>) {
        let _ = conn;
    }

    /// A message.
    fn on_message(&mut self, conn: &mut Context<'_, Self::Data>, message: Message<'_>) {
        let _ = (conn, message);
    }

    /// A ping, which the engine has answered.
    fn on_ping(&mut self, conn: &mut Context<'_, Self::Data>, payload: &[u8]) {
        let _ = (conn, payload);
    }

    /// A pong.
    fn on_pong(&mut self, conn: &mut Context<'_, Self::Data>, payload: &[u8]) {
        let _ = (conn, payload);
    }

    /// Output that was held up, or refused, has fallen below the low-water mark.
    fn on_drain(&mut self, conn: &mut Context<'_, Self::Data>) {
        let _ = conn;
    }

    /// The connection is over: the last callback of it. Nothing can be sent. For a connection
    /// that this endpoint has asked for and that did not open it is the only one
    /// ([`CloseCause::NotOpened`](crate::CloseCause::NotOpened)).
    fn on_close(&mut self, conn: &mut Context<'_, Self::Data>, closed: &Closed<'_>) {
        let _ = (conn, closed);
    }
}

/// The answer to plain HTTP where nothing else is served.
pub(crate) fn upgrade_required() -> Response {
    Response::text(426).offer_upgrade()
}

/// What a callback needs of the socket, whatever the backend.
pub(super) trait Wire {
    fn flush(&mut self, queue: &mut SendQueue, pool: &mut Pool) -> bool;
    fn peer_addr(&mut self) -> io::Result<PeerAddr>;
}

/// A connection, in a callback. Whatever is asked of it happens after the callback: nothing
/// calls back from here.
pub struct Context<'a, D> {
    pub(super) output: Output<'a, D>,
    pub(super) wire: &'a mut dyn Wire,
    pub(super) remote: &'a Remote,
    pub(super) connects: &'a mut VecDeque<(Connect, D)>,
    pub(super) id: ConnId,
}

impl<D> Context<'_, D> {
    /// Sends a message. What was queued leaves at the end of the turn, in one send.
    #[inline]
    pub fn send<'m>(&mut self, message: impl Into<Message<'m>>) -> SendResult {
        let message = message.into();
        if self.output.must_flush(message.payload().len()) {
            self.flush();
        }
        self.output.send(message)
    }

    #[cold]
    fn flush(&mut self) {
        let wire = &mut self.wire;
        self.output.flush(|queue, pool| wire.flush(queue, pool));
    }

    /// Sends a ping; the payload is cut at 125 bytes (RFC 6455 §5.5).
    pub fn ping(&mut self, payload: &[u8]) -> SendResult {
        self.output.ping(payload)
    }

    /// Begins the closing handshake: no message is delivered from here on, and `on_close`
    /// comes when the peer has answered, or has not for the close time-out. A reason longer
    /// than 123 bytes is cut at a character.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        self.output.close(&CloseFrame::new(code, reason));
    }

    /// Gives the connection up at once, with what is queued, and without a Close frame.
    pub fn terminate(&mut self) {
        self.output.terminate();
    }

    /// The user's data.
    #[inline]
    pub fn data(&mut self) -> &mut D {
        self.output.data()
    }

    /// Bytes of output that wait.
    pub fn queued_bytes(&self) -> usize {
        self.output.queued_len()
    }

    /// The agreed subprotocol.
    pub fn subprotocol(&self) -> Option<&str> {
        self.output.subprotocol()
    }

    /// The connection's name, for [`Remote`].
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Reaches all connections of the server, this one included.
    pub fn remote(&self) -> &Remote {
        self.remote
    }

    /// Makes a connection on this thread, after this callback: the same callbacks, limits and
    /// time-outs as of accepted ones, and masked frames. `data` is the connection's until the
    /// end of its `on_close`, which also says if it did not open.
    ///
    /// # Errors
    /// What is asked for makes no sense: a host that has not been looked up
    /// ([`Connect::resolve`]), a header that cannot be sent, TLS settings. `on_close` is not
    /// called.
    pub fn connect(&mut self, connect: Connect, data: D) -> Result<(), ConfigError> {
        connect.validate()?;
        self.connects.push_back((connect, data));
        Ok(())
    }

    /// Which end of the connection this is: a client where it was made by [`Context::connect`],
    /// `Engine::connect` or [`Remote::connect`].
    pub fn role(&self) -> Role {
        self.output.role()
    }

    /// What the two ends of a TLS connection have agreed, and the client's certificate if it
    /// was asked for one; none without TLS.
    #[cfg(feature = "tls")]
    pub fn tls(&self) -> Option<crate::tls::TlsInfo<'_>> {
        self.output.tls()
    }

    /// The other end, as the kernel has it: a proxy, if there is one. Takes a system call.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn peer_addr(&mut self) -> io::Result<PeerAddr> {
        self.wire.peer_addr()
    }
}

impl<D: fmt::Debug> fmt::Debug for Context<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.id)
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}
