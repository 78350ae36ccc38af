use alloc::string::String;
use alloc::vec::Vec;

use crate::http1::Request;
use crate::http1::is_token;
use crate::http1::list_items;

use super::ExtensionOffers;
use super::accept_key;
use super::is_key;

/// A request head that asks for a WebSocket as RFC 6455 §4.2.1 says.
#[derive(Clone, Copy, Debug)]
pub struct UpgradeRequest<'a> {
    request: Request<'a>,
    key: &'a [u8],
}

/// Why a request is not upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// A body: a `Transfer-Encoding`, or a `Content-Length` other than one zero. Another server
    /// might take the bytes after the head for it.
    #[error("upgrade with a body")]
    Body,
    /// No `Connection: Upgrade`.
    #[error("no Connection: Upgrade")]
    Connection,
    /// `Sec-WebSocket-Extensions` is malformed.
    #[error("malformed Sec-WebSocket-Extensions")]
    Extensions,
    /// No `Host`, several, or one that is not `host[:port]`.
    #[error("not one valid Host")]
    Host,
    /// No `Sec-WebSocket-Key`, several, or one that is not 16 bytes in base64.
    #[error("bad Sec-WebSocket-Key")]
    Key,
    /// The method is not GET.
    #[error("method is not GET")]
    Method,
    /// The policy does not accept the `Origin`.
    #[error("origin not allowed")]
    Origin,
    /// `Sec-WebSocket-Protocol` is malformed.
    #[error("malformed Sec-WebSocket-Protocol")]
    Subprotocol,
    /// `Upgrade` is not just `websocket`.
    #[error("bad Upgrade")]
    Upgrade,
    /// `Sec-WebSocket-Version` is not 13.
    #[error("unsupported Sec-WebSocket-Version")]
    Version,
    /// Older than HTTP/1.1.
    #[error("HTTP version before 1.1")]
    HttpVersion,
}

impl HandshakeError {
    /// The status that answers it.
    pub fn status(self) -> u16 {
        match self {
            Self::Body
            | Self::Connection
            | Self::Extensions
            | Self::Host
            | Self::HttpVersion
            | Self::Key
            | Self::Subprotocol => 400,
            Self::Origin => 403,
            Self::Method => 405,
            // RFC 6455 §4.2.2: with the version that the server speaks.
            Self::Upgrade | Self::Version => 426,
        }
    }
}

/// Whether a request means to open a WebSocket, well or badly. Any other is plain HTTP.
pub fn is_upgrade_attempt(request: &Request<'_>) -> bool {
    request.has_token("Upgrade", "websocket")
        || request.header("Sec-WebSocket-Key").is_some()
        || request.header("Sec-WebSocket-Version").is_some()
}

impl<'a> UpgradeRequest<'a> {
    /// Checks everything but the origin.
    ///
    /// # Errors
    /// The first rule of RFC 6455 §4.2.1 that the request breaks.
    pub fn check(request: Request<'a>) -> Result<Self, HandshakeError> {
        // RFC 6455 §4.2.1, 1: HTTP/1.1 or higher, GET.
        if request.method() != "GET" {
            return Err(HandshakeError::Method);
        }
        if request.minor_version() < 1 {
            return Err(HandshakeError::HttpVersion);
        }
        // RFC 6455 §4.2.1, 2 and RFC 9112 §3.2: one Host.
        if request.host().is_none() {
            return Err(HandshakeError::Host);
        }
        // A GET that upgrades has no use for a body, and an attacker has one.
        if request.has_body() {
            return Err(HandshakeError::Body);
        }
        // RFC 6455 §4.2.1, 3: `websocket`, and nothing else that we might have chosen.
        let upgrade = request.only_header("Upgrade").unwrap_or_default();
        if !upgrade.eq_ignore_ascii_case(b"websocket") {
            return Err(HandshakeError::Upgrade);
        }
        // RFC 6455 §4.2.1, 4.
        if !request.has_token("Connection", "upgrade") {
            return Err(HandshakeError::Connection);
        }
        // RFC 6455 §4.2.1, 6, before the key: an older version has none.
        if request.only_header("Sec-WebSocket-Version") != Some(b"13") {
            return Err(HandshakeError::Version);
        }
        // RFC 6455 §4.2.1, 5.
        let key = match request.only_header("Sec-WebSocket-Key") {
            Some(key) if is_key(key) => key,
            _ => return Err(HandshakeError::Key),
        };
        // RFC 6455 §4.2.1, 8 and 9.
        let mut subprotocols = request.header_values("Sec-WebSocket-Protocol");
        if !subprotocols.all(|value| list_items(value).all(is_token)) {
            return Err(HandshakeError::Subprotocol);
        }
        let mut extensions = request.header_values("Sec-WebSocket-Extensions");
        if !extensions.all(|value| ExtensionOffers::parse(value).is_some()) {
            return Err(HandshakeError::Extensions);
        }
        Ok(Self { request, key })
    }

    /// The head.
    pub fn request(&self) -> &Request<'a> {
        &self.request
    }

    /// The subprotocols that the client offers, in its order of preference.
    pub fn subprotocols(&self) -> impl Iterator<Item = &'a str> {
        self.request
            .header_values("Sec-WebSocket-Protocol")
            .flat_map(list_items)
            .filter_map(|item| core::str::from_utf8(item).ok())
    }

    /// The extensions that the client offers, in its order of preference.
    pub fn extensions(&self) -> impl Iterator<Item = super::ExtensionOffer<'a>> {
        self.request
            .header_values("Sec-WebSocket-Extensions")
            .filter_map(ExtensionOffers::parse)
            .flatten()
    }

    /// The value of `Sec-WebSocket-Accept`.
    pub fn accept_key(&self) -> [u8; 28] {
        accept_key(self.key)
    }
}

/// Appends the head that accepts an upgrade (RFC 6455 §4.2.2). `headers` are whole lines.
pub fn write_accept(
    output: &mut Vec<u8>,
    accept_key: &[u8; 28],
    subprotocol: Option<&str>,
    extensions: Option<&str>,
    headers: &str,
) {
    output.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    output.extend_from_slice(accept_key);
    output.extend_from_slice(b"\r\n");
    let mut line = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            let mut lines = String::new();
            let pushed = crate::http1::push_header(&mut lines, name, value);
            debug_assert!(pushed.is_ok(), "{name} was checked when it was chosen");
            output.extend_from_slice(lines.as_bytes());
        }
    };
    line("Sec-WebSocket-Protocol", subprotocol);
    line("Sec-WebSocket-Extensions", extensions);
    output.extend_from_slice(headers.as_bytes());
    output.extend_from_slice(b"\r\n");
}
