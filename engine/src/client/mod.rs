#![forbid(unsafe_code)]
//! A blocking client: one connection, one thread, the same protocol core as the server.
//!
//! ```no_run
//! use sockeye::CloseCode;
//! use sockeye::client;
//!
//! # fn main() -> Result<(), client::Error> {
//! let mut ws = client::connect("wss://example.com/chat")?;
//! ws.write_message("hello")?;
//! let message = ws.read_message()?;
//! println!("{:?}", message.as_str());
//! ws.close(CloseCode::NORMAL, "")?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Builder`] has the settings; what goes into the request, and TLS, is [`Connect`]'s. A
//! [`WebSocket`] works over any stream: [`Builder::handshake`] makes one over a stream that is
//! connected, [`WebSocket::from_stream`] over one that has been upgraded, as either end.
//!
//! **Invariant:** a call that fails because of a deadline leaves the connection as it was: the
//! same call goes on where it was.

mod deflate;
mod error;
mod handshake;
mod proxy;
mod reader;
mod stream;
mod websocket;
mod writer;

pub use error::Error;
pub use error::PeerClose;
pub use reader::MessageReader;
pub use stream::Stream;
pub use stream::Timeouts;
pub use websocket::WebSocket;
pub use writer::MessageWriter;

use std::io::Read;
use std::io::Write;
use std::time::Instant;

use crate::config::CompressionSettings;
use crate::config::Limits;
use crate::connect::Connect;
use crate::random::Random;

use handshake::seed;
use proxy::Proxy;

/// Connects to a `ws`, `wss` or `ws+unix` URL with the defaults.
///
/// # Errors
/// Whatever keeps the WebSocket from opening; [`Error::Refused`] has the answer of a server
/// that did not upgrade.
pub fn connect(url: &str) -> Result<WebSocket<Stream>, Error> {
    Builder::new(Connect::new(url)?).connect()
}

/// The settings of a blocking client.
///
/// ```no_run
/// use std::time::Duration;
/// use std::time::Instant;
/// use sockeye::Connect;
/// use sockeye::Limits;
/// use sockeye::client;
///
/// # fn main() -> Result<(), client::Error> {
/// let mut limits = Limits::default();
/// limits.message_len_max = 1 << 20;
/// limits.handshake_timeout = Duration::from_secs(3);
/// let connect = Connect::new("wss://example.com/feed")?
///     .header("Authorization", "Bearer abc")
///     .subprotocols(["feed.v1"]);
/// let mut ws = client::Builder::new(connect)
///     .limits(limits)
///     .proxy("http://user:password@127.0.0.1:3128")?
///     .connect()?;
/// ws.set_read_deadline(Some(Instant::now() + Duration::from_secs(60)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    connect: Connect,
    limits: Limits,
    compression: CompressionSettings,
    proxy: Option<Proxy>,
}

impl Builder {
    /// The defaults of [`Limits`]: `message_len_max`, `fragment_count_max`, `head_len_max`,
    /// `header_count_max`, the limits on control frames, `handshake_timeout` (from the first
    /// address to the end of the response head) and `close_timeout` are used here.
    pub fn new(connect: Connect) -> Self {
        Self {
            limits: Limits::default(),
            compression: CompressionSettings {
                mode: connect.compression_wanted(),
                ..CompressionSettings::default()
            },
            proxy: None,
            connect,
        }
    }

    /// Sets the limits and time-outs.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How hard messages are compressed where that is agreed ([`Connect::compression`]), from 1,
    /// the fastest and the default, to 9.
    #[cfg(feature = "deflate")]
    pub fn compression_level(mut self, level: u8) -> Self {
        self.compression.level = level;
        self
    }

    /// The shortest message that is compressed, in bytes: 512 by default, 128 with context
    /// takeover.
    #[cfg(feature = "deflate")]
    pub fn compression_len_min(mut self, len: usize) -> Self {
        self.compression.len_min = Some(len);
        self
    }

    /// Connects through a proxy: `http://[USER:PASSWORD@]HOST[:PORT]` (HTTP CONNECT, RFC 9110
    /// §9.3.6), `socks5://…` (SOCKS5, RFC 1928 and 1929, with addresses that are looked up
    /// here), or `socks5h://…` (with names that the proxy looks up).
    ///
    /// # Errors
    /// [`ConfigError::Proxy`](crate::ConfigError::Proxy).
    pub fn proxy(mut self, url: &str) -> Result<Self, Error> {
        self.proxy = Some(Proxy::parse(url)?);
        Ok(self)
    }

    /// Connects through the proxy that the environment names for this URL: `wss_proxy` or
    /// `https_proxy` for `wss`, `ws_proxy` or `http_proxy` for `ws`, or `all_proxy`, in lower
    /// or in upper case, unless `no_proxy` names the host.
    ///
    /// # Errors
    /// [`ConfigError::Proxy`](crate::ConfigError::Proxy).
    pub fn proxy_from_environment(mut self) -> Result<Self, Error> {
        let variable = |name: &str| {
            let value = std::env::var(name).or_else(|_| std::env::var(name.to_ascii_uppercase()));
            value.ok().filter(|value| !value.is_empty())
        };
        self.proxy = Proxy::from_variables(&self.connect, variable)?;
        Ok(self)
    }

    /// Connects, and waits until the WebSocket is open. The host's addresses are tried in turn.
    ///
    /// # Errors
    /// Whatever keeps it from opening; [`Error::Refused`] has the answer of a server that did
    /// not upgrade.
    pub fn connect(self) -> Result<WebSocket<Stream>, Error> {
        self.validate()?;
        let deadline = Instant::now() + self.limits.handshake_timeout;
        let stream = Stream::connect(&self.connect, self.proxy.as_ref(), deadline)?;
        let mut ws = WebSocket::prepare(stream, &self.limits, Random::new(seed()?));
        ws.use_timeouts();
        ws.open(&self.connect, &self.compression, deadline)?;
        Ok(ws)
    }

    /// Opens a WebSocket over a stream that is connected, TLS included if there is to be any.
    /// Without [`Timeouts`] the handshake takes as long as the stream's reads and writes do.
    ///
    /// # Errors
    /// Whatever keeps it from opening.
    pub fn handshake<S: Read + Write>(self, stream: S) -> Result<WebSocket<S>, Error> {
        self.validate()?;
        let deadline = Instant::now() + self.limits.handshake_timeout;
        let mut ws = WebSocket::prepare(stream, &self.limits, Random::new(seed()?));
        ws.open(&self.connect, &self.compression, deadline)?;
        Ok(ws)
    }

    fn validate(&self) -> Result<(), Error> {
        self.limits.validate()?;
        self.compression.validate()?;
        Ok(())
    }
}
