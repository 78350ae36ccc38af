use std::io;

use crate::protocol::CloseCode;
use crate::protocol::ProtocolError;
use crate::protocol::handshake::Refusal;
use crate::protocol::handshake::ResponseError;

/// How a connection ended.
#[derive(Debug)]
pub struct Closed<'a> {
    /// Why.
    pub cause: CloseCause<'a>,
    /// Who began to end it.
    pub initiator: Initiator,
    /// Close frames have gone both ways (RFC 6455 §7.1.4).
    pub clean: bool,
}

/// Who began to end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// This endpoint: the handler, a time-out, a limit, or a rule that the peer broke.
    Local,
    /// The peer, or the network.
    Peer,
}

/// Why a connection ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseCause<'a> {
    /// With a Close frame: the first one, of either side.
    Closed {
        /// Its code; none if it had none.
        code: Option<CloseCode>,
        /// Its reason.
        reason: &'a str,
    },
    /// The peer broke a rule, and was sent the rule's close code.
    Failed(ProtocolError),
    /// The stream ended without a Close frame, or broke.
    Lost(io::Error),
    /// The peer took too long.
    TimedOut(Timeout),
    /// A callback panicked; the peer was sent 1011.
    Panicked,
    /// The handler gave the connection up with `terminate`.
    Terminated,
    /// A connection that this endpoint has asked for, and that never opened: `on_close` is the
    /// only callback that it gets.
    NotOpened(OpenError),
}

/// Why a connection that was asked for did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The connection could not be made, or broke: refused, unreachable, an ended stream. A
    /// failure of TLS is [`InvalidData`](io::ErrorKind::InvalidData), with rustls' error as
    /// its source.
    #[error("{0}")]
    Io(io::Error),
    /// It took longer than the handshake time-out, TCP and TLS included.
    #[error("the handshake timed out")]
    TimedOut,
    /// The server answered, and not with 101.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The server answered with 101, and against the rules.
    #[error("{0}")]
    Response(ResponseError),
}

impl OpenError {
    /// Who ended it.
    pub(super) fn initiator(&self) -> Initiator {
        match self {
            Self::Io(_) | Self::Refused(_) => Initiator::Peer,
            Self::TimedOut | Self::Response(_) => Initiator::Local,
        }
    }
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Timeout {
    /// Nothing arrived after a ping.
    Pong,
    /// Nothing arrived at all.
    Idle,
    /// The peer did not take the output.
    Write,
}

impl CloseCause<'_> {
    /// The code as the WebSocket API of browsers reports it: 1005 for a Close frame without a
    /// code, 1006 for no Close frame (RFC 6455 §7.1.5).
    pub fn code(&self) -> u16 {
        match self {
            Self::Closed { code, .. } => code.map_or(1005, CloseCode::get),
            Self::Failed(error) => error.close_code().get(),
            Self::Panicked => CloseCode::INTERNAL_ERROR.get(),
            Self::Lost(_) | Self::TimedOut(_) | Self::Terminated | Self::NotOpened(_) => 1006,
        }
    }
}
