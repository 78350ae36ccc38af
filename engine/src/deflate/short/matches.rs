//! Finds what a payload repeats: chains of the positions with the same hash of five bytes.

use super::PAYLOAD_LEN_MAX;
use super::tokens::MATCH_LEN_MAX;
use super::tokens::Tokens;

const HASH_BITS: u32 = 12;

/// Shorter ones are not looked for: they hardly gain anything, and there are many.
const MATCH_LEN_MIN: usize = 5;

/// How many candidates are looked at for one position, and for the positions of a payload that
/// is longer than a KiB about as many as for those of one.
const CANDIDATES_MAX: usize = 16;
const CANDIDATES_OF_ALL: usize = CANDIDATES_MAX * 1024;

/// Behind a match of less than so many bytes the next position may have a longer one.
const LAZY_LEN: usize = 32;

/// A match of so many bytes is taken as it is.
const NICE_LEN: usize = 128;

/// What is compared at once.
const BLOCK_LEN: usize = 16;

/// A power of two that is longer than any match, and the longest match in blocks.
const OFFSETS: usize = 512;
const COMPARED_LEN: usize = MATCH_LEN_MAX.next_multiple_of(BLOCK_LEN);

/// A payload, and where it repeats itself.
pub struct Matches {
    /// What follows its end is of no meaning: so no word is cut, and no position is checked.
    payload: Box<[u8; PAYLOAD_LEN_MAX + OFFSETS + BLOCK_LEN]>,
    len: usize,
    /// By hash: the latest position, counted from one.
    latest: Box<[u16; 1 << HASH_BITS]>,
    /// By position: where its hash was before, counted from one.
    before: Box<[u16; PAYLOAD_LEN_MAX]>,
}

#[derive(Clone, Copy)]
struct Match {
    len: usize,
    /// Zero is none.
    distance: usize,
}

impl Matches {
    pub fn new() -> Self {
        Self {
            payload: Box::new([0; _]),
            len: 0,
            latest: Box::new([0; _]),
            before: Box::new([0; _]),
        }
    }

    /// What a payload of at most [`PAYLOAD_LEN_MAX`] bytes consists of.
    pub fn parse(&mut self, payload: &[u8], tokens: &mut Tokens) {
        self.payload[..payload.len()].copy_from_slice(payload);
        self.len = payload.len();
        // The last bytes are too few for a match.
        let end = payload.len().saturating_sub(MATCH_LEN_MIN - 1);
        self.link(end);
        let candidates = CANDIDATES_MAX.min(CANDIDATES_OF_ALL / payload.len().max(1));
        let none = Match {
            len: MATCH_LEN_MIN - 1,
            distance: 0,
        };
        let mut at = 0;
        while at < end {
            let mut found = self.longest(at, none, candidates);
            if found.distance == 0 {
                tokens.push_literal(payload[at]);
                at += 1;
                continue;
            }
            while found.len < LAZY_LEN && at + 1 < end {
                let next = self.longest(at + 1, found, candidates / 2 + 1);
                if next.len == found.len {
                    break;
                }
                tokens.push_literal(payload[at]);
                at += 1;
                found = next;
            }
            tokens.push_match(found.len, found.distance);
            at += found.len;
        }
        for &byte in &payload[at..] {
            tokens.push_literal(byte);
        }
    }

    /// Makes the chains of all positions before any is followed: so there is nothing to be
    /// foretold.
    fn link(&mut self, end: usize) {
        self.latest.fill(0);
        let words = self.payload.windows(8).zip(&mut self.before[..end]);
        for (at, (word, before)) in words.enumerate() {
            let word = u64::from_le_bytes(*word.first_chunk().unwrap_or(&[0; 8]));
            let bytes = word << (64 - 8 * MATCH_LEN_MIN);
            let hash = bytes.wrapping_mul(0x9E37_79B1_85EB_CA87) >> (64 - HASH_BITS);
            let latest = &mut self.latest[hash as usize];
            *before = *latest;
            *latest = at as u16 + 1;
        }
    }

    /// The longest match at `at` that is longer than `found`, of the nearest candidates; or
    /// that.
    #[inline(always)]
    fn longest(&self, at: usize, found: Match, candidates: usize) -> Match {
        match self.before[at % PAYLOAD_LEN_MAX] {
            0 => found,
            candidate => self.longest_of(candidate, at, found, candidates),
        }
    }

    #[inline(never)]
    fn longest_of(&self, first: u16, at: usize, mut found: Match, candidates: usize) -> Match {
        let len_max = MATCH_LEN_MAX.min(self.len - at);
        let nice_len = NICE_LEN.min(len_max);
        let mut candidate = first;
        // It is no longer if these bytes differ.
        let mut wanted = self.word(at, found.len - 3);
        for _ in 0..candidates {
            let position = usize::from(candidate) - 1;
            if self.word(position, found.len - 3) == wanted {
                let len = self.common_len(position, at).min(len_max);
                if len > found.len {
                    let distance = at - position;
                    found = Match { len, distance };
                    if len >= nice_len {
                        break;
                    }
                    wanted = self.word(at, found.len - 3);
                }
            }
            candidate = self.before[position % PAYLOAD_LEN_MAX];
            if candidate == 0 {
                break;
            }
        }
        found
    }

    #[inline(always)]
    fn word(&self, at: usize, offset: usize) -> u32 {
        let start = at % PAYLOAD_LEN_MAX + offset % OFFSETS;
        let word = self.payload[start..].first_chunk();
        u32::from_le_bytes(*word.unwrap_or(&[0; 4]))
    }

    /// How many bytes at two positions are the same, at most about as many as the longest
    /// match has; those behind the end count.
    #[inline(always)]
    fn common_len(&self, one: usize, other: usize) -> usize {
        let one = &self.payload[one % PAYLOAD_LEN_MAX..][..COMPARED_LEN];
        let other = &self.payload[other % PAYLOAD_LEN_MAX..][..COMPARED_LEN];
        let (one, _) = one.as_chunks::<BLOCK_LEN>();
        let (other, _) = other.as_chunks::<BLOCK_LEN>();
        for (index, (one, other)) in one.iter().zip(other).enumerate() {
            let difference = u128::from_le_bytes(*one) ^ u128::from_le_bytes(*other);
            if difference != 0 {
                return BLOCK_LEN * index + difference.trailing_zeros() as usize / 8;
            }
        }
        COMPARED_LEN
    }
}
