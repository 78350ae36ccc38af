use core::fmt;

use arrayvec::ArrayVec;

use super::CONTROL_PAYLOAD_LEN_MAX;
use super::ProtocolError;

/// A code that may be sent in a Close frame (RFC 6455 §7.4 and the IANA registry).
///
/// 1004 to 1006, 1015 and the unassigned numbers cannot be made: they never travel. An absent
/// code (1005) is a [`CloseFrame`] without one; an abnormal end (1006) is not a Close frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: the purpose of the connection has been fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the endpoint goes away.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: a type of data that the endpoint cannot accept.
    pub const UNSUPPORTED_DATA: Self = Self(1003);
    /// 1007: a message whose payload is not what its type says.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// 1008: a message that violates the endpoint's policy.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: a message that is too big.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1010: the server did not agree an extension that the client needs.
    pub const MANDATORY_EXTENSION: Self = Self(1010);
    /// 1011: the endpoint met an unexpected condition.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1012: the service restarts.
    pub const SERVICE_RESTART: Self = Self(1012);
    /// 1013: try again later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);
    /// 1014: a gateway got an invalid response.
    pub const BAD_GATEWAY: Self = Self(1014);

    /// The code, if it is one that may travel: 1000–1003, 1007–1014, 3000–4999.
    pub const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloseCode({})", self.0)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The payload of a Close frame (RFC 6455 §5.5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloseFrame<'a> {
    /// Why; none if the frame was empty.
    pub code: Option<CloseCode>,
    /// Text for a person, at most 123 bytes.
    pub reason: &'a str,
}

impl<'a> CloseFrame<'a> {
    /// The longest reason in bytes: what a control frame leaves behind the code.
    pub const REASON_LEN_MAX: usize = CONTROL_PAYLOAD_LEN_MAX - 2;

    /// A frame with this code and reason. A reason longer than
    /// [`REASON_LEN_MAX`](Self::REASON_LEN_MAX) is cut at a character.
    pub fn new(code: CloseCode, reason: &'a str) -> Self {
        let mut len = reason.len().min(Self::REASON_LEN_MAX);
        while !reason.is_char_boundary(len) {
            len -= 1;
        }
        Self {
            code: Some(code),
            reason: &reason[..len],
        }
    }

    /// Reads an unmasked payload.
    ///
    /// # Errors
    /// [`ProtocolError::ClosePayload`], [`ProtocolError::CloseCode`], [`ProtocolError::Utf8`].
    pub fn parse(payload: &'a [u8]) -> Result<Self, ProtocolError> {
        let Some((code, reason)) = payload.split_first_chunk::<2>() else {
            // RFC 6455 §5.5.1: if there is a body, its first two bytes are the code.
            return if payload.is_empty() {
                Ok(Self::default())
            } else {
                Err(ProtocolError::ClosePayload)
            };
        };
        // RFC 6455 §7.4.1, §7.4.2: codes that are reserved for local use or undefined.
        let code = CloseCode::new(u16::from_be_bytes(*code)).ok_or(ProtocolError::CloseCode)?;
        // RFC 6455 §5.5.1: the reason is UTF-8.
        let reason = core::str::from_utf8(reason).map_err(|_| ProtocolError::Utf8)?;
        Ok(Self {
            code: Some(code),
            reason,
        })
    }

    /// The payload on the wire: these bytes and no others.
    pub fn encode(&self) -> ArrayVec<u8, CONTROL_PAYLOAD_LEN_MAX> {
        let mut payload = ArrayVec::new();
        if let Some(code) = self.code {
            payload.extend(code.get().to_be_bytes());
            payload.extend(self.reason.bytes().take(Self::REASON_LEN_MAX));
        }
        payload
    }
}
