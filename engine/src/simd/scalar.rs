//! The truth: what every vector kernel must equal. Safe code, eight bytes at a time.

use super::Kernels;
use super::MaskKey;
use super::Outcome;
use super::Utf8State;

pub(super) static KERNELS: Kernels = Kernels {
    name: "scalar",
    unmask,
    validate,
    unmask_validate,
};

#[inline]
pub(super) fn unmask(bytes: &mut [u8], key: MaskKey) {
    // The last word overlaps the one before it: its bytes are taken while they are masked.
    let last_key = key.advance(bytes.len());
    if let Some(last) = bytes.last_chunk() {
        let last = u64::from_ne_bytes(*last) ^ wide(last_key);
        for word in bytes.chunks_exact_mut(8) {
            let bits = u64::from_ne_bytes((&*word).try_into().expect("exactly 8 bytes"));
            word.copy_from_slice(&(bits ^ wide(key)).to_ne_bytes());
        }
        let end = bytes.len() - 8;
        bytes[end..].copy_from_slice(&last.to_ne_bytes());
    } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let first = u32::from_ne_bytes(*first) ^ key.0;
        let last = u32::from_ne_bytes(*last) ^ last_key.0;
        let end = bytes.len() - 4;
        bytes[..4].copy_from_slice(&first.to_ne_bytes());
        bytes[end..].copy_from_slice(&last.to_ne_bytes());
    } else {
        for (byte, mask) in bytes.iter_mut().zip(key.to_bytes()) {
            *byte ^= mask;
        }
    }
}

/// The key twice.
fn wide(key: MaskKey) -> u64 {
    u64::from(key.0) | u64::from(key.0) << 32
}

fn validate(bytes: &[u8], state: Utf8State) -> Outcome {
    match first_bad(bytes, state) {
        Some(offset) => Outcome::bad_within(offset + 1),
        None => state.advance(bytes),
    }
}

fn unmask_validate(bytes: &mut [u8], key: MaskKey, state: Utf8State) -> Outcome {
    unmask(bytes, key);
    validate(bytes, state)
}

/// Index of the first byte that cannot stand where it stands.
pub(super) fn first_bad(bytes: &[u8], state: Utf8State) -> Option<usize> {
    let mut rest = Sequence::after(state);
    let mut index = 0;
    while index < bytes.len() {
        if rest.missing == 0 {
            index += ascii_prefix(&bytes[index..]);
            let &lead = bytes.get(index)?;
            match Sequence::of(lead) {
                Some(sequence) => rest = sequence,
                None => return Some(index),
            }
        } else if !rest.take(bytes[index]) {
            return Some(index);
        }
        index += 1;
    }
    None
}

/// What may follow: RFC 3629 §4, the table of well-formed sequences.
#[derive(Clone, Copy)]
struct Sequence {
    /// Continuation bytes that are missing.
    missing: u8,
    /// The next byte lies in `low..=high`.
    low: u8,
    high: u8,
}

impl Sequence {
    /// What follows `lead`, which is not ASCII.
    fn of(lead: u8) -> Option<Self> {
        let (missing, low, high) = match lead {
            0xC2..=0xDF => (1, 0x80, 0xBF),
            0xE0 => (2, 0xA0, 0xBF),
            0xED => (2, 0x80, 0x9F),
            0xE1..=0xEF => (2, 0x80, 0xBF),
            0xF0 => (3, 0x90, 0xBF),
            0xF1..=0xF3 => (3, 0x80, 0xBF),
            0xF4 => (3, 0x80, 0x8F),
            _ => return None,
        };
        Some(Self { missing, low, high })
    }

    /// What follows the pending bytes, which are the start of a valid sequence.
    fn after(state: Utf8State) -> Self {
        let pending = state.pending.to_be_bytes();
        let mut bytes = pending.into_iter().skip_while(|&byte| byte == 0);
        let mut sequence = bytes.next().and_then(Self::of).unwrap_or(Self {
            missing: 0,
            low: 0,
            high: 0,
        });
        for byte in bytes {
            sequence.take(byte);
        }
        sequence
    }

    fn take(&mut self, byte: u8) -> bool {
        let fits = (self.low..=self.high).contains(&byte);
        (self.missing, self.low, self.high) = (self.missing - 1, 0x80, 0xBF);
        fits
    }
}

fn ascii_prefix(bytes: &[u8]) -> usize {
    let is_ascii = |word: &&[u8]| {
        let bits = u64::from_ne_bytes((**word).try_into().expect("exactly 8 bytes"));
        bits & 0x8080_8080_8080_8080 == 0
    };
    let mut len = 8 * bytes.chunks_exact(8).take_while(is_ascii).count();
    while bytes.get(len).is_some_and(u8::is_ascii) {
        len += 1;
    }
    len
}
