use std::io;

use crate::error::ConfigError;
use crate::protocol::CloseCode;
use crate::protocol::ProtocolError;
use crate::protocol::handshake::Refusal;
use crate::protocol::handshake::ResponseError;

/// What can go wrong with a client's connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting: the URL, a header, TLS files. Nothing was sent.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The stream. With [`WouldBlock`](io::ErrorKind::WouldBlock) or
    /// [`TimedOut`](io::ErrorKind::TimedOut) the deadline has passed and the connection is as
    /// it was. A failure of TLS is [`InvalidData`](io::ErrorKind::InvalidData), with rustls'
    /// error as its source.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The proxy did not connect.
    #[error("the proxy did not connect: {0}")]
    Proxy(String),
    /// The server answered, and not with 101.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The server answered with 101, and against the rules.
    #[error(transparent)]
    Response(#[from] ResponseError),
    /// The peer broke a rule; it has been sent the rule's close code.
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// The connection has ended with the closing handshake; nothing can be read or written any
    /// more.
    #[error("closed: {0}")]
    Closed(PeerClose),
    /// A Close frame has been sent: no message can follow it (RFC 6455 §5.5.1).
    #[error("a Close frame has been sent")]
    Closing,
    /// A [`MessageWriter`](super::MessageWriter) was dropped in the middle of its message: no
    /// other can follow. The connection can be read, and closed.
    #[error("a message was begun and not finished")]
    Unfinished,
}

/// The peer's Close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerClose {
    /// Its code; none if it had none.
    pub code: Option<CloseCode>,
    /// Its reason.
    pub reason: String,
}

impl PeerClose {
    /// The code as the WebSocket API of browsers reports it: 1005 if there was none
    /// (RFC 6455 §7.1.5).
    pub fn code(&self) -> u16 {
        self.code.map_or(1005, CloseCode::get)
    }
}

impl std::fmt::Display for PeerClose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code(), self.reason)
    }
}

impl Error {
    /// Whether a deadline has passed; the connection is as it was.
    pub fn is_timeout(&self) -> bool {
        let kind = match self {
            Self::Io(error) => error.kind(),
            _ => return false,
        };
        matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
    }
}
