use alloc::string::String;
use alloc::vec::Vec;

use crate::simd;

use super::Opcode;
use super::ProtocolError;

/// A message: text or binary (RFC 6455 §5.6).
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    payload: Payload<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Payload<'a> {
    Text(&'a str),
    /// Text that was found to be UTF-8 piece by piece.
    CheckedText(&'a [u8]),
    Binary(&'a [u8]),
}

impl<'a> Message<'a> {
    /// A text message.
    #[inline]
    pub fn text(text: &'a str) -> Self {
        Self {
            payload: Payload::Text(text),
        }
    }

    /// A binary message.
    #[inline]
    pub fn binary(bytes: &'a [u8]) -> Self {
        Self {
            payload: Payload::Binary(bytes),
        }
    }

    /// A text message of bytes that have not been checked.
    ///
    /// # Errors
    /// [`ProtocolError::Utf8`].
    pub fn text_of(payload: &'a [u8]) -> Result<Self, ProtocolError> {
        let text = simd::to_str(payload).ok_or(ProtocolError::Utf8)?;
        Ok(Self::text(text))
    }

    /// A message put together from the chunks of a [`Decoder`](super::Decoder), which has
    /// checked them.
    #[inline]
    pub fn checked(text: bool, payload: &'a [u8]) -> Self {
        Self {
            payload: if text {
                Payload::CheckedText(payload)
            } else {
                Payload::Binary(payload)
            },
        }
    }

    /// The bytes: UTF-8 if the message is text.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        match self.payload {
            Payload::Text(text) => text.as_bytes(),
            Payload::CheckedText(bytes) | Payload::Binary(bytes) => bytes,
        }
    }

    /// The text of a text message, `None` if the message is binary. Free where the message
    /// arrived in one piece; a message that was assembled from pieces is checked once more.
    #[inline]
    pub fn as_str(&self) -> Option<&'a str> {
        match self.payload {
            Payload::Text(text) => Some(text),
            Payload::CheckedText(bytes) => simd::to_str(bytes),
            Payload::Binary(_) => None,
        }
    }

    /// Whether the message is text.
    #[inline]
    pub fn is_text(&self) -> bool {
        !matches!(self.payload, Payload::Binary(_))
    }

    /// The value that the payload is as JSON, whether the message is text or binary. What it
    /// borrows it borrows from the message.
    ///
    /// # Errors
    /// It is not JSON, or not such a value.
    #[cfg(feature = "json")]
    pub fn json<T: serde::Deserialize<'a>>(&self) -> serde_json::Result<T> {
        match self.payload {
            Payload::Text(text) => serde_json::from_str(text),
            Payload::CheckedText(bytes) | Payload::Binary(bytes) => serde_json::from_slice(bytes),
        }
    }

    /// A copy that outlives the buffer.
    pub fn to_owned_message(&self) -> OwnedMessage {
        match self.as_str() {
            Some(text) => OwnedMessage::Text(text.into()),
            None => OwnedMessage::Binary(self.payload().into()),
        }
    }

    /// [`Opcode::Text`] or [`Opcode::Binary`].
    #[inline]
    pub fn opcode(&self) -> Opcode {
        if self.is_text() {
            Opcode::Text
        } else {
            Opcode::Binary
        }
    }
}

/// Checks text that comes in pieces (RFC 6455 §5.6).
#[derive(Clone, Copy, Debug, Default)]
pub struct Utf8Check(simd::Utf8State);

impl Utf8Check {
    /// Takes the next piece, which may end inside a character.
    ///
    /// # Errors
    /// [`ProtocolError::Utf8`]; the piece has not been taken.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), ProtocolError> {
        let state = simd::validate(piece, self.0);
        self.0 = state.map_err(|_| ProtocolError::Utf8)?;
        Ok(())
    }

    /// Whether the text may end here.
    pub fn is_complete(&self) -> bool {
        self.0.is_complete()
    }
}

/// A message of its own memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedMessage {
    /// Text.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
}

impl OwnedMessage {
    /// The bytes: UTF-8 if the message is text.
    pub fn payload(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a OwnedMessage> for Message<'a> {
    fn from(message: &'a OwnedMessage) -> Self {
        match message {
            OwnedMessage::Text(text) => Self::text(text),
            OwnedMessage::Binary(bytes) => Self::binary(bytes),
        }
    }
}

impl<'a> From<&'a str> for Message<'a> {
    fn from(text: &'a str) -> Self {
        Self::text(text)
    }
}

impl<'a> From<&'a [u8]> for Message<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::binary(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Message<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::binary(bytes)
    }
}

impl<'a> From<&'a String> for Message<'a> {
    fn from(text: &'a String) -> Self {
        Self::text(text)
    }
}

impl<'a> From<&'a Vec<u8>> for Message<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::binary(bytes)
    }
}

impl<'a> From<&'a bytes::Bytes> for Message<'a> {
    fn from(bytes: &'a bytes::Bytes) -> Self {
        Self::binary(bytes)
    }
}
