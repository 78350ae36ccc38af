use std::net::SocketAddr;

use crate::protocol::Role;

use super::Conn;
use super::Env;
use super::Phase;
use super::Sink;

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
}

impl Agreed {
    /// No subprotocol, and the builder's limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// The subprotocol that the answer has named.
    #[must_use]
    pub fn subprotocol(mut self, name: &str) -> Self {
        self.subprotocol = Some(name.into());
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

impl<D> Conn<D> {
    /// A connection whose opening handshake has been made, as a server;
    /// [`begin`](Self::begin) opens it.
    pub fn adopt(agreed: &Agreed, data: D, env: &Env) -> Self {
        let mut conn = Self::new(Role::Server, None, env);
        let route = agreed.path.as_ref().and_then(|path| env.find_route(path));
        conn.state.route = route.unwrap_or(0);
        conn.state
            .set_subprotocol(agreed.subprotocol.as_deref(), env);
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
