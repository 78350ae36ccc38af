//! A peer's compression, made of zlib-rs's two halves and nothing of the engine.

use zlib_rs::DeflateConfig;
use zlib_rs::DeflateFlush;
use zlib_rs::Inflate;
use zlib_rs::InflateFlush;
use zlib_rs::Status;

const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// One end of a connection with permessage-deflate.
pub struct Deflate {
    inflate: Inflate,
    inflate_bits: u8,
    pub inflate_takeover: bool,
    deflate: zlib_rs::Deflate,
    pub deflate_takeover: bool,
}

impl Deflate {
    /// Windows to receive and to send, and whether each is kept.
    pub fn new((inflate_bits, inflates): (u8, bool), (deflate_bits, deflates): (u8, bool)) -> Self {
        Self {
            inflate: Inflate::new(false, inflate_bits),
            inflate_bits,
            inflate_takeover: inflates,
            deflate: zlib_rs::Deflate::new_with_config(DeflateConfig {
                window_bits: -i32::from(deflate_bits),
                ..DeflateConfig::default()
            }),
            deflate_takeover: deflates,
        }
    }

    /// The largest windows, neither kept.
    pub fn apart() -> Self {
        Self::new((15, false), (15, false))
    }

    /// The largest windows, both kept.
    pub fn takeover() -> Self {
        Self::new((15, true), (15, true))
    }

    pub fn inflate(&mut self, payload: &[u8]) -> Vec<u8> {
        if !self.inflate_takeover {
            self.inflate = Inflate::new(false, self.inflate_bits);
        }
        let input = [payload, &TAIL].concat();
        let mut inflated = Vec::new();
        let mut block = vec![0; 64 * 1024];
        let mut used = 0;
        loop {
            let before = (self.inflate.total_in(), self.inflate.total_out());
            let status =
                self.inflate
                    .decompress(&input[used..], &mut block, InflateFlush::SyncFlush);
            let status = status.expect("the engine made DEFLATE");
            used += (self.inflate.total_in() - before.0) as usize;
            let made = (self.inflate.total_out() - before.1) as usize;
            inflated.extend_from_slice(&block[..made]);
            // It may (RFC 7692 §7.2.3.4), and there are peers which that is too much for.
            assert!(
                status != Status::StreamEnd,
                "a stream ended with its message"
            );
            if used == input.len() && made < block.len() {
                return inflated;
            }
        }
    }

    pub fn deflate(&mut self, payload: &[u8]) -> Vec<u8> {
        if payload.is_empty() {
            // RFC 7692 §7.2.3.6. zlib makes nothing at all of a second flush.
            return vec![0];
        }
        if !self.deflate_takeover {
            self.deflate.reset();
        }
        let mut deflated = vec![0; 2 * payload.len() + 64];
        let before = self.deflate.total_out();
        let status = self
            .deflate
            .compress(payload, &mut deflated, DeflateFlush::SyncFlush);
        assert_eq!(status, Ok(Status::Ok));
        deflated.truncate((self.deflate.total_out() - before) as usize);
        assert!(deflated.ends_with(&TAIL));
        deflated.truncate(deflated.len() - TAIL.len());
        deflated
    }
}

/// Text that compresses as JSON does.
pub fn json(len: usize, seed: u32) -> String {
    let mut text = String::from("[");
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    while text.len() < len {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let symbol = ["ACME", "GLOBEX", "INITECH"][state as usize % 3];
        text += &format!("{{\"symbol\":\"{symbol}\",\"price\":{}}},", state % 10_000);
    }
    text.truncate(len);
    text
}

/// Bytes that do not compress.
pub fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed) | 1 << 40;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.push((state >> 24) as u8);
    }
    bytes
}
