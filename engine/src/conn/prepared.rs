use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;

use bytes::Bytes;
use bytes::BytesMut;

use crate::buffer::Pool;
use crate::buffer::SHARED_LEN_MIN;
use crate::buffer::SendQueue;
use crate::deflate::Codec;
use crate::protocol::FrameHeader;
use crate::protocol::Message;
use crate::protocol::Opcode;
use crate::protocol::OwnedMessage;

use super::owner::guarded;

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
    /// The payload is compressed.
    rsv1: bool,
    /// The same message compressed, by the window that a peer keeps.
    deflated: OnceLock<Box<Variants>>,
}

/// For windows of 9 to 15 bits; none inside where it does not become shorter. There is no
/// compressor for a window of 8.
type Variants = [OnceLock<Option<Prepared>>; 7];

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
        Self::framed(opcode, guarded(payload), false)
    }

    /// A message whose header and payload are apart.
    fn framed(opcode: Opcode, payload: Bytes, rsv1: bool) -> Self {
        let header = header(opcode, payload.len(), rsv1).encode();
        Self(Arc::new(Inner {
            opcode,
            frame: Bytes::copy_from_slice(header.as_bytes()),
            header_len: header.as_bytes().len(),
            payload: Some(payload),
            rsv1,
            deflated: OnceLock::new(),
        }))
    }

    fn copied(opcode: Opcode, payload: &[u8]) -> Self {
        Self::joined(opcode, payload, false)
    }

    /// A message whose header and payload are in one piece.
    fn joined(opcode: Opcode, payload: &[u8], rsv1: bool) -> Self {
        let header = header(opcode, payload.len(), rsv1).encode();
        let header = header.as_bytes();
        let mut frame = BytesMut::with_capacity(header.len() + payload.len());
        frame.extend_from_slice(header);
        frame.extend_from_slice(payload);
        Self(Arc::new(Inner {
            opcode,
            frame: frame.freeze(),
            header_len: header.len(),
            payload: None,
            rsv1,
            deflated: OnceLock::new(),
        }))
    }

    /// The same message compressed, for peers that keep a window of this size; made when it is
    /// first needed. None if it does not become shorter.
    pub(super) fn deflated(&self, level: u8, window_bits: u8, codec: &mut Codec) -> Option<&Self> {
        // In a window that is no shorter than the message all are alike.
        let is_inside = self.payload().len() <= 1 << window_bits;
        let window_bits = if is_inside { 15 } else { window_bits };
        let index = usize::from(window_bits).checked_sub(9)?;
        let variants = self.0.deflated.get_or_init(Box::default);
        let variant = variants[index].get_or_init(|| {
            let mut output = codec.take_deflated();
            let len = codec.deflate(self.payload(), level, window_bits, &mut output);
            let deflated = len.map(|len| Self::joined(self.opcode(), &output[..len], true));
            codec.put_deflated(output);
            deflated
        });
        variant.as_ref()
    }

    pub(super) fn is_deflated(&self) -> bool {
        self.0.rsv1
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
fn header(opcode: Opcode, payload_len: usize, rsv1: bool) -> FrameHeader {
    FrameHeader {
        fin: true,
        rsv1,
        opcode,
        payload_len: payload_len as u64,
        mask_key: None,
    }
}
