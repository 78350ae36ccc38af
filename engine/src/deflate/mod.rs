#![forbid(unsafe_code)]
#![cfg_attr(not(feature = "deflate"), allow(dead_code))]
//! The payloads of compressed messages (RFC 7692 §7.2): DEFLATE (RFC 1951) without the four
//! bytes that would end each message.
//!
//! Where a message is compressed by itself, one [`Codec`] serves all connections of a thread,
//! and whole messages go through `libdeflater`: [`Codec::inflate`], [`Codec::deflate`]; short ones
//! are deflated by code of our own (`short/`). With context takeover each connection has an
//! [`Inflater`] and a [`Deflater`] of its own, over `zlib-rs`; an inflater also takes messages that
//! are delivered in chunks.
//!
//! Pure: the marker that finds out where a stream ends is an argument.
//!
//! **Invariant:** what an inflater has made of a message is never longer than [`Bounds`] says,
//! but by one byte, of which nobody gets to know.

#[cfg(not(feature = "deflate"))]
mod absent;
#[cfg(feature = "deflate")]
mod deflater;
#[cfg(feature = "deflate")]
mod inflater;
#[cfg(feature = "deflate")]
mod seam;
#[cfg(feature = "deflate")]
mod short;
#[cfg(feature = "deflate")]
mod whole;

#[cfg(not(feature = "deflate"))]
pub use absent::Codec;
#[cfg(not(feature = "deflate"))]
pub use absent::Deflater;
#[cfg(not(feature = "deflate"))]
pub use absent::Inflater;
#[cfg(feature = "deflate")]
pub use deflater::Deflater;
#[cfg(feature = "deflate")]
pub use inflater::Inflater;
#[cfg(feature = "deflate")]
pub use whole::Codec;

use crate::config::Limits;
use crate::protocol::ProtocolError;

/// What a message may become up to which its ratio is of no interest.
const RATIO_FREE_LEN: usize = 64 * 1024;

/// The end of a message, which is not sent (RFC 7692 §7.2.1).
#[cfg(feature = "deflate")]
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// How long a message may become.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Its length.
    pub len_max: usize,
    /// How many times as long as it was, above 64 KiB; zero is no limit.
    pub ratio_max: u32,
}

impl Bounds {
    /// Of these limits.
    pub fn new(limits: &Limits) -> Self {
        Self {
            len_max: limits.message_len_max,
            ratio_max: limits.inflate_ratio_max,
        }
    }

    /// How long a message may be of which so many compressed bytes have come.
    fn allowed(self, taken: usize) -> usize {
        if self.ratio_max == 0 {
            return self.len_max;
        }
        let by_ratio = taken.saturating_mul(self.ratio_max as usize);
        self.len_max.min(by_ratio.max(RATIO_FREE_LEN))
    }

    /// What is wrong with a message that is longer than that.
    fn exceeded(self, taken: usize) -> ProtocolError {
        if self.allowed(taken) < self.len_max {
            ProtocolError::InflateRatio
        } else {
            ProtocolError::MessageTooBig
        }
    }
}

#[cfg(all(test, feature = "deflate"))]
mod tests;
