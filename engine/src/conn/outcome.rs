use std::io;

use crate::protocol::CloseCode;
use crate::protocol::ProtocolError;

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
            Self::Lost(_) | Self::TimedOut(_) | Self::Terminated => 1006,
        }
    }
}
