#![forbid(unsafe_code)]
//! Masking keys and nonces (RFC 6455 §10.3): a cryptographically strong generator that is told
//! its seed; pure. The keystream comes in blocks of 256 bytes, so that a key is a load most of
//! the time.
//!
//! **Invariant:** no part of the keystream is handed out twice.

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
