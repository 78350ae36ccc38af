use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use bytes::BytesMut;

use crate::buffer::Pool;
use crate::buffer::SHARED_LEN_MIN;
use crate::buffer::SendQueue;
use crate::protocol::FrameHeader;
use crate::protocol::Message;
use crate::protocol::Opcode;
use crate::protocol::OwnedMessage;

/// A message that is encoded once and sent to any number of connections, of any thread: what
/// waits for each of them is a reference. Cloning it copies nothing.
///
/// ```
/// use sockeye::Prepared;
///
/// let greeting = Prepared::new("hello");
/// // Large payloads that are at hand as bytes are not copied at all.
/// let picture = Prepared::binary(vec![0; 1 << 20]);
/// # assert_eq!(greeting.payload(), b"hello");
/// # assert_eq!(picture.payload().len(), 1 << 20);
/// ```
#[derive(Clone)]
pub struct Prepared(Arc<Inner>);

struct Inner {
    opcode: Opcode,
    /// The header alone; with the payload behind it if there is no `payload`.
    frame: Bytes,
    header_len: usize,
    payload: Option<Bytes>,
}

impl Prepared {
    /// A copy of a message.
    pub fn new<'a>(message: impl Into<Message<'a>>) -> Self {
        let message = message.into();
        Self::copied(message.opcode(), message.payload())
    }

    /// A text message.
    pub fn text(text: impl Into<String>) -> Self {
        Self::owned(Opcode::Text, text.into().into())
    }

    /// A text message: a value as JSON.
    ///
    /// # Errors
    /// The value cannot be written as JSON: a map whose keys are no strings, say.
    #[cfg(feature = "json")]
    pub fn json(value: &(impl serde::Serialize + ?Sized)) -> serde_json::Result<Self> {
        serde_json::to_string(value).map(Self::text)
    }

    /// A binary message.
    pub fn binary(payload: impl Into<Bytes>) -> Self {
        Self::owned(Opcode::Binary, payload.into())
    }

    fn owned(opcode: Opcode, payload: Bytes) -> Self {
        if payload.len() < SHARED_LEN_MIN {
            return Self::copied(opcode, &payload);
        }
        let header = header(opcode, payload.len()).encode();
        Self(Arc::new(Inner {
            opcode,
            frame: Bytes::copy_from_slice(header.as_bytes()),
            header_len: header.as_bytes().len(),
            payload: Some(payload),
        }))
    }

    fn copied(opcode: Opcode, payload: &[u8]) -> Self {
        let header = header(opcode, payload.len()).encode();
        let header = header.as_bytes();
        let mut frame = BytesMut::with_capacity(header.len() + payload.len());
        frame.extend_from_slice(header);
        frame.extend_from_slice(payload);
        Self(Arc::new(Inner {
            opcode,
            frame: frame.freeze(),
            header_len: header.len(),
            payload: None,
        }))
    }

    /// [`Opcode::Text`] or [`Opcode::Binary`].
    pub fn opcode(&self) -> Opcode {
        self.0.opcode
    }

    /// The bytes: UTF-8 if the message is text.
    pub fn payload(&self) -> &[u8] {
        match &self.0.payload {
            Some(payload) => payload,
            None => &self.0.frame[self.0.header_len..],
        }
    }

    /// Bytes of a server's frame.
    pub(super) fn frame_len(&self) -> usize {
        self.0.frame.len() + self.0.payload.as_ref().map_or(0, Bytes::len)
    }

    /// A server's frame in one piece; copied if it is in two.
    pub(super) fn to_frame(&self) -> Bytes {
        match &self.0.payload {
            None => self.0.frame.clone(),
            Some(payload) => [&self.0.frame[..], payload].concat().into(),
        }
    }

    /// Appends a server's frame.
    #[inline]
    pub(super) fn push_to(&self, queue: &mut SendQueue, pool: &mut Pool) {
        match &self.0.payload {
            None => queue.push_shared(&self.0.frame, pool),
            Some(payload) => {
                queue.push(&self.0.frame, &[], pool);
                queue.push_tail(payload.clone());
            }
        }
    }
}

impl From<&Prepared> for Prepared {
    fn from(prepared: &Prepared) -> Self {
        prepared.clone()
    }
}

impl<'a> From<Message<'a>> for Prepared {
    fn from(message: Message<'a>) -> Self {
        Self::new(message)
    }
}

impl From<&str> for Prepared {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<&String> for Prepared {
    fn from(text: &String) -> Self {
        Self::new(text)
    }
}

impl From<String> for Prepared {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl From<&[u8]> for Prepared {
    fn from(bytes: &[u8]) -> Self {
        Self::new(bytes)
    }
}

impl<const N: usize> From<&[u8; N]> for Prepared {
    fn from(bytes: &[u8; N]) -> Self {
        Self::new(bytes)
    }
}

impl From<&Vec<u8>> for Prepared {
    fn from(bytes: &Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl From<Vec<u8>> for Prepared {
    fn from(bytes: Vec<u8>) -> Self {
        Self::binary(bytes)
    }
}

impl From<Bytes> for Prepared {
    fn from(bytes: Bytes) -> Self {
        Self::binary(bytes)
    }
}

impl From<&OwnedMessage> for Prepared {
    fn from(message: &OwnedMessage) -> Self {
        Self::new(message)
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("opcode", &self.opcode())
            .field("payload_len", &self.payload().len())
            .finish()
    }
}

/// A server's frame.
fn header(opcode: Opcode, payload_len: usize) -> FrameHeader {
    FrameHeader {
        fin: true,
        rsv1: false,
        opcode,
        payload_len: payload_len as u64,
        mask_key: None,
    }
}
