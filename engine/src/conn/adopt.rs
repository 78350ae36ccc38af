use std::net::SocketAddr;

use crate::config::Compression;
use crate::config::Route;
use crate::http1::Request;
use crate::http1::Response;
use crate::protocol::Role;
use crate::protocol::handshake::DeflateParams;
use crate::protocol::handshake::UpgradeRequest;

use super::Conn;
use super::Env;
use super::Phase;
use super::Sink;
use super::handshake::choose_subprotocol;
use super::handshake::is_origin_allowed;
use super::handshake::refusal;

/// What was agreed about a connection whose opening handshake somebody else has made: another
/// HTTP server in this process, or a process before this one.
///
/// ```
/// use sockeye::Agreed;
///
/// let agreed = Agreed::new().subprotocol("chat").path("/rooms/7");
/// # let _ = agreed;
/// ```
#[derive(Clone, Debug, Default)]
pub struct Agreed {
    subprotocol: Option<Box<str>>,
    path: Option<Box<str>>,
    client: Option<SocketAddr>,
    deflate: Option<DeflateParams>,
}

impl Agreed {
    /// No subprotocol, and the builder's limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks the request for a WebSocket that another HTTP server has received (RFC 6455 §4.2.1),
    /// and makes the answer that accepts it. The origin and the subprotocol are as `route` says:
    /// pages of other hosts are refused by default. The path is kept, for the route that applies
    /// here ([`path`](Self::path)).
    ///
    /// # Errors
    /// The answer to a request that is refused.
    #[allow(
        clippy::result_large_err,
        reason = "both are responses, made once a connection"
    )]
    pub fn answer<B>(
        request: &http::Request<B>,
        route: &Route,
    ) -> Result<(http::Response<()>, Self), http::Response<String>> {
        let is_http_1_1 = request.version() == http::Version::HTTP_11;
        let named = request.headers().iter();
        let headers: Vec<httparse::Header<'_>> = named
            .map(|(name, value)| httparse::Header {
                name: name.as_str(),
                value: value.as_bytes(),
            })
            .collect();
        let uri = request.uri();
        // A target in absolute form: its host counts.
        let absolute = uri.authority().map(|_| uri.to_string());
        let target = absolute.as_deref();
        let target = target.or_else(|| Some(uri.path_and_query()?.as_str()));
        let head = Request::from_parts(
            request.method().as_str(),
            target.unwrap_or("/"),
            is_http_1_1.into(),
            &headers,
        );
        let head = head.map_err(|_| to_http(&Response::text(400)))?;
        let checked = UpgradeRequest::check(head).map_err(|error| to_http(&refusal(error)))?;
        if !is_origin_allowed(&head, &route.origins) {
            return Err(to_http(&Response::text(403)));
        }
        let chosen = choose_subprotocol(&checked, &route.subprotocols);
        let accept_key = checked.accept_key();
        let mut answer = http::Response::builder()
            .status(101)
            .header("Upgrade", "websocket")
            .header("Connection", "Upgrade")
            .header("Sec-WebSocket-Accept", &accept_key[..]);
        if let Some(name) = chosen {
            answer = answer.header("Sec-WebSocket-Protocol", name);
        }
        let deflate = route.compression.params_for(&head).and_then(|_| {
            // What a thread has left for context takeover is not known here.
            let shared = Compression::Shared.params()?;
            shared.accept(checked.extensions())
        });
        let (deflate, extension) = deflate.unzip();
        if let Some(extension) = &extension {
            answer = answer.header("Sec-WebSocket-Extensions", extension);
        }
        let agreed = Self {
            deflate,
            subprotocol: chosen.map(Into::into),
            path: Some(request.uri().path().into()),
            client: None,
        };
        match answer.body(()) {
            Ok(answer) => Ok((answer, agreed)),
            // A subprotocol of the route that is no token: it cannot be offered either.
            Err(_) => Err(to_http(&Response::text(500))),
        }
    }

    /// The subprotocol that the answer has named.
    #[must_use]
    pub fn subprotocol(mut self, name: &str) -> Self {
        self.subprotocol = Some(name.into());
        self
    }

    /// Compression that the answer has agreed to (RFC 7692 §7.1). What context takeover takes is
    /// not refused, but counted.
    #[cfg(feature = "deflate")]
    #[must_use]
    pub fn deflate(mut self, params: DeflateParams) -> Self {
        self.deflate = Some(params);
        self
    }

    /// The path that was asked for: its route's limits and policies apply. The builder's do if
    /// there is no such route.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        self.path = Some(path.into());
        self
    }

    /// For whom a proxy has made the connection.
    #[must_use]
    pub fn client_addr(mut self, client: SocketAddr) -> Self {
        self.client = Some(client);
        self
    }

    /// The path that was asked for.
    pub fn requested_path(&self) -> Option<&str> {
        self.path.as_deref()
    }
}

/// A response of ours as one of the crate `http`; the server that sends it frames the body.
fn to_http(response: &Response) -> http::Response<String> {
    let mut builder = http::Response::builder().status(response.status());
    for (name, value) in response.header_lines() {
        builder = builder.header(name, value);
    }
    let body = String::from_utf8_lossy(response.body_bytes()).into_owned();
    builder.body(body).expect("its headers have been checked")
}

impl<D> Conn<D> {
    /// A connection whose opening handshake has been made, as a server;
    /// [`begin`](Self::begin) opens it.
    pub fn adopt(agreed: &Agreed, data: D, env: &mut Env) -> Self {
        let mut conn = Self::new(Role::Server, None, env);
        let route = agreed.path.as_ref().and_then(|path| env.find_route(path));
        conn.state.route = route.unwrap_or(0);
        conn.state
            .set_subprotocol(agreed.subprotocol.as_deref(), env);
        if let Some(params) = &agreed.deflate {
            let mode = env.route(conn.state.route).route.compression.mode;
            conn.state.set_deflate(params, mode, env);
        }
        if let Some(client) = agreed.client {
            conn.state.extra_mut().client = Some(client);
        }
        conn.data = Some(data);
        conn
    }

    /// Opens it, and takes what had been received behind the handshake.
    pub fn begin(&mut self, received: &mut [u8], env: &mut Env, sink: &mut impl Sink<D>) {
        debug_assert_eq!(self.state.phase, Phase::Handshake);
        self.open(env, sink);
        self.receive_early(received, env, sink);
    }
}
