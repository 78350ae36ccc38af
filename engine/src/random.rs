#![forbid(unsafe_code)]
//! Masking keys and nonces (RFC 6455 §10.3): a cryptographically strong generator that is told
//! its seed; pure. The keystream comes in blocks of 256 bytes, so that a key is a load most of
//! the time.
//!
//! **Invariant:** no part of the keystream is handed out twice.

use std::time::Duration;

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Bytes that a generator starts from.
pub type Seed = [u8; 32];

/// One thread's, or one connection's, source of masking keys.
#[derive(Debug)]
pub struct Random(StdRng);

impl Random {
    /// The generator of this seed, which nobody must be able to guess.
    pub fn new(seed: Seed) -> Self {
        Self(StdRng::from_seed(seed))
    }

    /// The masking key of one frame.
    #[inline]
    pub fn mask_key(&mut self) -> [u8; 4] {
        self.0.next_u32().to_ne_bytes()
    }

    /// Bits for a draw by lot.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// The nonce of one opening handshake (RFC 6455 §4.1).
    pub fn nonce(&mut self) -> [u8; 16] {
        let mut nonce = [0; 16];
        self.0.fill_bytes(&mut nonce);
        nonce
    }
}

/// Bytes of a hidden time.
pub const HIDDEN_TIME_LEN: usize = 16;

/// Hides points in time in bytes that mean nothing to others, and finds them again:
/// a number that is used once, and the microseconds under a mask that follows from it and from a
/// secret.
#[derive(Debug)]
pub struct TimeMask(Seed);

impl TimeMask {
    /// The mask of this seed, which nobody must be able to guess.
    pub fn new(seed: Seed) -> Self {
        // Not the keystream of `Random`.
        let mut secret = [0; 32];
        StdRng::from_seed(seed.map(|byte| !byte)).fill_bytes(&mut secret);
        Self(secret)
    }

    /// Hides a time; `once` must not be used again.
    pub fn hide(&self, time: Duration, once: u64) -> [u8; HIDDEN_TIME_LEN] {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut hidden = [0; HIDDEN_TIME_LEN];
        hidden[..8].copy_from_slice(&once.to_be_bytes());
        hidden[8..].copy_from_slice(&(micros ^ self.mask(once)).to_be_bytes());
        hidden
    }

    /// The hidden time; any time if the bytes were not made here.
    pub fn reveal(&self, hidden: &[u8]) -> Option<Duration> {
        let hidden: &[u8; HIDDEN_TIME_LEN] = hidden.try_into().ok()?;
        let (once, masked) = hidden.split_at(8);
        let once = u64::from_be_bytes(once.try_into().ok()?);
        let masked = u64::from_be_bytes(masked.try_into().ok()?);
        Some(Duration::from_micros(masked ^ self.mask(once)))
    }

    /// The first bits of the keystream whose key is the secret and `once`.
    fn mask(&self, once: u64) -> u64 {
        let mut key = self.0;
        for (byte, once) in key.iter_mut().zip(once.to_be_bytes()) {
            *byte = once;
        }
        StdRng::from_seed(key).next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_found_again_and_means_nothing_to_others() {
        let (mask, other) = (TimeMask::new([1; 32]), TimeMask::new([2; 32]));
        let time = Duration::from_micros(123_456_789);
        let hidden: Vec<_> = (0..100).map(|once| mask.hide(time, once)).collect();
        for bytes in &hidden {
            assert_eq!(mask.reveal(bytes), Some(time));
            assert_ne!(other.reveal(bytes), Some(time));
            assert!(bytes.windows(8).all(|w| w != 123_456_789_u64.to_be_bytes()));
        }
        let differ = |i: usize, j: usize| hidden[i][8..] != hidden[j][8..];
        assert!((0..100).all(|i| (0..i).all(|j| differ(i, j))));
        assert_eq!(mask.reveal(&[0; 8]), None);
    }
}
