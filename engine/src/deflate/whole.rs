use std::fmt;
use std::mem;

use libdeflater::CompressionLvl;
use libdeflater::Compressor;
use libdeflater::DecompressionError;
use libdeflater::Decompressor;

use crate::protocol::ProtocolError;

use super::Bounds;
use super::Deflater;
use super::Inflater;
use super::TAIL;
use super::seam;
use super::short::PAYLOAD_LEN_MAX;
use super::short::Short;

/// What ends an input in one piece: a last block, stored, of so many bytes.
const MARKER_LEN: usize = 8;

/// The first size of an output, and what is kept of it between messages.
const OUTPUT_LEN_MIN: usize = 64 * 1024 + MARKER_LEN;
const OUTPUT_LEN_KEPT: usize = 256 * 1024 + MARKER_LEN;

/// What a message may have so that libdeflate makes one block of it, at level 1 and at others:
/// there it begins another after so many matches, here where it pays. Where it does all the same,
/// zlib-rs does the work.
const PART_LEN_FASTEST: usize = 32 * 1024 - 1;
const PART_LEN: usize = 10_000 - 1;

/// An empty stored block, in bytes.
const EMPTY_BLOCK_LEN: usize = 5;

/// What has become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// So many bytes.
    Whole(usize),
    /// It has not become shorter.
    TooLong,
    /// Streams that cannot be made one.
    Unclear,
}

/// Inflaters that are kept for messages that come in pieces.
const INFLATERS_MAX: usize = 16;

/// The memory level of what a thread's connections share.
const MEM: u8 = 8;

/// What the connections of one thread share: each message by itself. Made where it is first
/// needed.
pub struct Codec {
    decompressor: Option<Decompressor>,
    /// By level.
    compressors: [Option<Compressor>; 10],
    /// For short payloads, at the fastest level.
    short: Option<Short>,
    /// By window, for messages that are longer than theirs, and by level.
    deflaters: Vec<(u8, u8, Deflater)>,
    #[allow(
        clippy::vec_box,
        reason = "connections hold them boxed: the boxes are what is kept"
    )]
    inflaters: Vec<Box<Inflater>>,
    /// A message, and what makes a whole stream of it.
    input: Vec<u8>,
    output: Vec<u8>,
    deflated: Vec<u8>,
    marker: [u8; MARKER_LEN],
}

impl Codec {
    /// `nonce` is random: nobody must be able to guess it.
    pub fn new(nonce: [u8; 16]) -> Self {
        let mut marker = [0; MARKER_LEN];
        marker.copy_from_slice(&nonce[..MARKER_LEN]);
        Self {
            decompressor: None,
            compressors: Default::default(),
            short: None,
            deflaters: Vec::new(),
            inflaters: Vec::new(),
            input: Vec::new(),
            output: Vec::new(),
            deflated: Vec::new(),
            marker,
        }
    }

    /// Where an inflated message is put: at least one block long. To be given back with
    /// [`put_output`](Self::put_output).
    pub fn take_output(&mut self) -> Vec<u8> {
        let mut output = mem::take(&mut self.output);
        if output.is_empty() {
            output.resize(OUTPUT_LEN_MIN, 0);
        }
        output
    }

    /// Takes it back.
    pub fn put_output(&mut self, output: Vec<u8>) {
        self.output = trimmed(output);
    }

    /// Where a deflated message is put. To be given back with
    /// [`put_deflated`](Self::put_deflated).
    pub fn take_deflated(&mut self) -> Vec<u8> {
        mem::take(&mut self.deflated)
    }

    /// Takes it back.
    pub fn put_deflated(&mut self, deflated: Vec<u8>) {
        self.deflated = trimmed(deflated);
    }

    /// An inflater for one message that comes in pieces.
    pub fn take_inflater(&mut self) -> Box<Inflater> {
        self.inflaters
            .pop()
            .unwrap_or_else(|| Box::new(Inflater::new(15)))
    }

    /// Takes it back.
    pub fn put_inflater(&mut self, mut inflater: Box<Inflater>) {
        if self.inflaters.len() < INFLATERS_MAX {
            inflater.reset();
            self.inflaters.push(inflater);
        }
    }

    /// Inflates a whole message; gives how much of `output` it is, which is made as long as is
    /// necessary.
    ///
    /// # Errors
    /// [`ProtocolError::Deflate`], [`ProtocolError::MessageTooBig`],
    /// [`ProtocolError::InflateRatio`].
    pub fn inflate(
        &mut self,
        payload: &[u8],
        bounds: Bounds,
        output: &mut Vec<u8>,
    ) -> Result<usize, ProtocolError> {
        // A first block that says it is the last: there is an end where libdeflate would not
        // say how much of the input lies behind it.
        if payload.first().is_some_and(|byte| byte & 1 == 1) {
            return self.inflate_streams(payload, bounds, output);
        }
        let [len, _] = (MARKER_LEN as u16).to_le_bytes();
        self.input.clear();
        self.input.extend_from_slice(payload);
        self.input.extend_from_slice(&TAIL);
        self.input.extend_from_slice(&[0x01, len, 0x00, !len, 0xFF]);
        self.input.extend_from_slice(&self.marker);
        let allowed = bounds.allowed(payload.len());
        let most = allowed.saturating_add(MARKER_LEN);
        loop {
            let room = output.len().min(most);
            let decompressor = self.decompressor.get_or_insert_with(Decompressor::new);
            match decompressor.deflate_decompress(&self.input, &mut output[..room]) {
                Ok(len) if output[..len].ends_with(&self.marker) => return Ok(len - MARKER_LEN),
                // A stream has ended before ours.
                Ok(_) => return self.inflate_streams(payload, bounds, output),
                Err(DecompressionError::BadData) => return Err(ProtocolError::Deflate),
                Err(DecompressionError::InsufficientSpace) if room == most => {
                    return Err(bounds.exceeded(payload.len()));
                }
                Err(DecompressionError::InsufficientSpace) => {
                    output.resize(output.len().saturating_mul(4).min(most), 0);
                }
            }
        }
    }

    /// As [`inflate`](Self::inflate), where a stream ends inside the message.
    fn inflate_streams(
        &mut self,
        mut payload: &[u8],
        bounds: Bounds,
        output: &mut Vec<u8>,
    ) -> Result<usize, ProtocolError> {
        let mut inflater = self.take_inflater();
        inflater.announce(payload.len(), false);
        let mut len = 0;
        let result = loop {
            let room = &mut output[len..];
            match inflater.inflate(&mut payload, true, bounds, room) {
                Ok((made, done)) => {
                    len += made;
                    if done {
                        break Ok(len);
                    }
                    if len == output.len() {
                        output.resize(len.saturating_mul(2), 0);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        self.put_inflater(inflater);
        result
    }

    /// Deflates a message by itself, for a peer whose window is two to this power, 8 to 15;
    /// gives how much of `output` that is, or none if it has not become shorter. `output` is
    /// made as long as is necessary.
    pub fn deflate(
        &mut self,
        payload: &[u8],
        level: u8,
        window_bits: u8,
        output: &mut Vec<u8>,
    ) -> Option<usize> {
        if level == 1 && payload.len() <= PAYLOAD_LEN_MAX.min(1 << window_bits) {
            let short = self.short.get_or_insert_with(Short::new);
            return short.deflate(payload, output);
        }
        // No part is longer than the window; at the fastest level several are still faster, and
        // hardly longer, than one stream of zlib-rs.
        let (part_len, several) = match level {
            1 => (PART_LEN_FASTEST, window_bits == 15),
            _ => (PART_LEN, false),
        };
        if several || payload.len() <= part_len.min(1 << window_bits) {
            match self.deflate_parts(payload, level, part_len, output) {
                Parts::Whole(len) => return (len < payload.len()).then_some(len),
                Parts::TooLong => return None,
                Parts::Unclear => {}
            }
        }
        self.deflate_apart(payload, level, window_bits, output)
    }

    /// Through libdeflate, in parts of which each is one block.
    pub(super) fn deflate_parts(
        &mut self,
        payload: &[u8],
        level: u8,
        part_len: usize,
        output: &mut Vec<u8>,
    ) -> Parts {
        if output.len() < payload.len() + EMPTY_BLOCK_LEN {
            output.resize(payload.len() + EMPTY_BLOCK_LEN, 0);
        }
        let compressor = self.compressors[usize::from(level)].get_or_insert_with(|| {
            let level = CompressionLvl::new(level.into()).unwrap_or_default();
            Compressor::new(level)
        });
        let mut len = 0;
        for part in payload.chunks(part_len) {
            // Where there is no room it has not become shorter.
            let Some(room) = output.get_mut(len..payload.len()) else {
                return Parts::TooLong;
            };
            let Ok(deflated_len) = compressor.deflate_compress(part, room) else {
                return Parts::TooLong;
            };
            let Some(padding) = seam::reopen(&mut room[..deflated_len]) else {
                return Parts::Unclear;
            };
            len += deflated_len;
            // The header of an empty block: it ends the byte, or takes another.
            if padding < 3 {
                output[len] = 0x00;
                len += 1;
            }
            output[len..len + TAIL.len()].copy_from_slice(&TAIL);
            len += TAIL.len();
        }
        // The rest of the last empty block is not sent (RFC 7692 §7.2.1).
        Parts::Whole(len.saturating_sub(TAIL.len()))
    }

    /// As [`deflate`](Self::deflate), through zlib-rs.
    pub(super) fn deflate_apart(
        &mut self,
        payload: &[u8],
        level: u8,
        window_bits: u8,
        output: &mut Vec<u8>,
    ) -> Option<usize> {
        // In a window that is no shorter than the message all are alike.
        let window_bits = match payload.len() > 1 << window_bits {
            true => window_bits,
            false => 15,
        };
        if window_bits < 9 {
            return None;
        }
        let wanted = (level, window_bits);
        let is_same = |made: &(u8, u8, Deflater)| (made.0, made.1) == wanted;
        let deflater = match self.deflaters.iter().position(is_same) {
            Some(index) => &mut self.deflaters[index].2,
            None => {
                let deflater = Deflater::new(level, window_bits, MEM);
                self.deflaters.push((level, window_bits, deflater));
                &mut self.deflaters.last_mut()?.2
            }
        };
        deflater.forget();
        deflater.deflate(payload, output)
    }
}

/// No more memory than is kept between messages.
fn trimmed(mut buffer: Vec<u8>) -> Vec<u8> {
    if buffer.len() > OUTPUT_LEN_KEPT {
        buffer.truncate(OUTPUT_LEN_KEPT);
        buffer.shrink_to_fit();
    }
    buffer
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec")
            .field("deflaters", &self.deflaters)
            .field("inflaters", &self.inflaters.len())
            .finish_non_exhaustive()
    }
}
