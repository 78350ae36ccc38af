use super::CloseCode;

/// What the peer did wrong. `Copy` and allocation-free: a hostile peer chooses how often this
/// happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// RFC 6455 §7.4: a Close frame with a code that no endpoint may send.
    #[error("close code that must not be sent")]
    CloseCode,
    /// RFC 6455 §5.5.1: a Close frame with one byte of payload, half a code.
    #[error("close payload of one byte")]
    ClosePayload,
    /// RFC 6455 §5.4: a continuation without a message to continue.
    #[error("continuation of no message")]
    ContinuationUnexpected,
    /// RFC 6455 §5.5: a control frame in fragments.
    #[error("fragmented control frame")]
    ControlFragmented,
    /// RFC 6455 §5.5: a control frame with more than 125 bytes.
    #[error("control frame longer than 125 bytes")]
    ControlTooLong,
    /// More control frames in a second than the limit.
    #[error("too many control frames")]
    ControlTooOften,
    /// RFC 7692 §7.2.2: a compressed message that is not DEFLATE, or ends inside a block.
    #[error("malformed compressed message")]
    Deflate,
    /// More frames in one message than the limit.
    #[error("too many fragments")]
    FragmentsTooMany,
    /// A compressed message that becomes more times as long as the limit allows.
    #[error("compressed message inflates too much")]
    InflateRatio,
    /// RFC 6455 §5.2: a length in more bytes than it needs.
    #[error("length not in its shortest form")]
    LengthNotMinimal,
    /// RFC 6455 §5.2: a 64-bit length with its most significant bit set.
    #[error("length over 2^63")]
    LengthTooLarge,
    /// RFC 6455 §5.1: a server frame that was masked.
    #[error("masked frame from a server")]
    Masked,
    /// RFC 6455 §5.4: a new message before the last one has ended.
    #[error("message inside a fragmented message")]
    MessageInterrupted,
    /// A message longer than the limit.
    #[error("message too big")]
    MessageTooBig,
    /// More messages, or bytes of them, in a second than the limit.
    #[error("too many messages")]
    MessageTooOften,
    /// RFC 6455 §5.2: an opcode that means nothing yet.
    #[error("reserved opcode")]
    OpcodeReserved,
    /// RFC 6455 §5.2: a reserved bit that no agreed extension has given a meaning.
    #[error("reserved bit set")]
    ReservedBit,
    /// RFC 6455 §5.1: a client frame that was not masked.
    #[error("unmasked frame from a client")]
    Unmasked,
    /// RFC 6455 §8.1: text, or the reason of a Close frame, that is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
}

impl ProtocolError {
    /// The only place where a mistake becomes a number on the wire (RFC 6455 §7.4.1).
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::CloseCode
            | Self::ClosePayload
            | Self::ContinuationUnexpected
            | Self::ControlFragmented
            | Self::ControlTooLong
            | Self::LengthNotMinimal
            | Self::LengthTooLarge
            | Self::Masked
            | Self::MessageInterrupted
            | Self::OpcodeReserved
            | Self::ReservedBit
            | Self::Unmasked => CloseCode::PROTOCOL_ERROR,
            Self::Deflate | Self::Utf8 => CloseCode::INVALID_PAYLOAD,
            Self::ControlTooOften | Self::FragmentsTooMany | Self::MessageTooOften => {
                CloseCode::POLICY_VIOLATION
            }
            Self::InflateRatio | Self::MessageTooBig => CloseCode::MESSAGE_TOO_BIG,
        }
    }
}
