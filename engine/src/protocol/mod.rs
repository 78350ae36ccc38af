#![forbid(unsafe_code)]
//! RFC 6455 without sockets, clocks or randomness: frames, messages, closing, and the opening
//! handshake of both roles. For those who bring their own I/O, and for every room above.
//!
//! Bytes are pulled: [`Decoder::next`] takes one event off the front of what was received,
//! and unmasks and checks it where it lies. [`FrameHeader::encode`] and [`handshake`] make the
//! bytes of the other direction. Masking keys and nonces are arguments.
//!
//! What to keep of a stream between two reads is the caller's: the tail that the decoder left
//! (at most [`TAIL_LEN_MAX`] bytes), and the chunks of an unfinished message.
//!
//! **Invariant:** a [`FrameHeader`] that exists is legal for some peer, and a decoder that has
//! returned an error is never asked again.

mod close;
mod decoder;
mod error;
mod header;
mod message;

pub mod handshake;

pub use close::CloseCode;
pub use close::CloseFrame;
pub use decoder::Chunk;
pub use decoder::Decoder;
pub use decoder::DecoderLimits;
pub use decoder::Event;
pub use decoder::TAIL_LEN_MAX;
pub use error::ProtocolError;
pub use header::CONTROL_PAYLOAD_LEN_MAX;
pub use header::EncodedHeader;
pub use header::FrameHeader;
pub use header::HEADER_LEN_MAX;
pub use header::Opcode;
pub use message::Message;
pub use message::OwnedMessage;
pub use message::Utf8Check;

use crate::simd;
use crate::simd::MaskKey;

/// Which end of a connection this endpoint is (RFC 6455 §1.2, §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends masked frames, receives unmasked ones.
    Client,
    /// Sends unmasked frames, receives masked ones.
    Server,
}

/// XORs a payload with the masking key of its frame (RFC 6455 §5.3). A client calls it on each
/// payload that it sends.
#[inline]
pub fn mask(payload: &mut [u8], mask_key: [u8; 4]) {
    simd::unmask(payload, MaskKey::new(mask_key));
}
