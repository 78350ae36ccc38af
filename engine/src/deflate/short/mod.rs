//! Deflates short payloads, each by itself, in less time than a compressor that is made for long
//! ones, which first clears tables of more than a hundred KiB.
//!
//! [`matches`] makes tokens of a payload, [`codes`] Huffman codes for what occurs among them,
//! [`block`] writes both as one block of DEFLATE, which is not the last of its stream: so nothing
//! has to be changed behind it, as [`seam`](super::seam) does.
//!
//! **Invariant:** positions, lengths and counts are less than two to the 16th, for
//! [`PAYLOAD_LEN_MAX`] is.

mod block;
mod codes;
mod matches;
#[cfg(test)]
mod tests;
mod tokens;

pub(super) use block::LENGTHS_ORDER;
use matches::Matches;
pub(super) use tokens::END_OF_BLOCK;
pub(super) use tokens::LITERAL_EXTRA;
use tokens::Tokens;

/// The longest payload: for longer ones libdeflate takes less time.
pub(super) const PAYLOAD_LEN_MAX: usize = 2048;

/// What one thread needs: 23 KiB.
pub(super) struct Short {
    matches: Matches,
    tokens: Tokens,
}

impl Short {
    pub fn new() -> Self {
        Self {
            matches: Matches::new(),
            tokens: Tokens::new(),
        }
    }

    /// Deflates a payload of at most [`PAYLOAD_LEN_MAX`] bytes, as a message ends (RFC 7692
    /// §7.2.1). Gives how much of `output` that is, or none if it has not become shorter. `output`
    /// is made as long as is necessary.
    ///
    /// No distance is longer than the payload: a window of its length is enough.
    pub fn deflate(&mut self, payload: &[u8], output: &mut Vec<u8>) -> Option<usize> {
        debug_assert!(payload.len() <= PAYLOAD_LEN_MAX);
        self.tokens.clear();
        self.matches.parse(payload, &mut self.tokens);
        let room = payload.len() + block::SLACK;
        if output.len() < room {
            output.resize(room, 0);
        }
        block::write(&self.tokens, output, payload.len())
    }
}
