//! Literals and matches, in the alphabets of RFC 1951 §3.2.5.

use super::PAYLOAD_LEN_MAX;

/// Literals, the end of the block and lengths, with two symbols that never occur.
pub const LITERALS: usize = 288;
/// Distances, with two symbols that never occur.
pub const DISTANCES: usize = 32;

/// The symbol that ends a block, and the first of the lengths.
pub const END_OF_BLOCK: usize = 256;
const FIRST_LENGTH: usize = 257;

/// A literal has this distance, which takes no bits.
pub const NO_DISTANCE: usize = 30;

/// RFC 1951 §3.2.5.
pub const MATCH_LEN_MAX: usize = 258;

/// The shortest length that each symbol stands for.
const LENGTH_BASES: [usize; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
];

/// By symbol: how many bits follow its code.
pub const LITERAL_EXTRA: [u8; LITERALS] = {
    let mut extra = [0; LITERALS];
    // From 265 on one more for each four, but for 258 bytes.
    let mut symbol = 265;
    while symbol < 285 {
        extra[symbol] = ((symbol - 261) / 4) as u8;
        symbol += 1;
    }
    extra
};

/// The same of distances.
pub const DISTANCE_EXTRA: [u8; DISTANCES] = {
    let mut extra = [0; DISTANCES];
    let mut symbol = 4;
    while symbol < 30 {
        extra[symbol] = (symbol / 2 - 1) as u8;
        symbol += 1;
    }
    extra
};

/// By length less three: the part of a token that stands for it.
static LENGTHS: [u32; 256] = {
    let mut tokens = [0; 256];
    let mut index = 0;
    while index < LENGTH_BASES.len() {
        let mut len = LENGTH_BASES[index];
        let end = match index {
            28 => MATCH_LEN_MAX + 1,
            _ => LENGTH_BASES[index + 1],
        };
        while len < end {
            let extra = len - LENGTH_BASES[index];
            tokens[len - 3] = ((FIRST_LENGTH + index) | (extra << 9)) as u32;
            len += 1;
        }
        index += 1;
    }
    tokens
};

/// A literal, or a length and a distance: `symbol | length's extra bits << 9 |
/// distance's symbol << 14 | distance's extra bits << 19`.
#[derive(Clone, Copy)]
pub struct Token(u32);

impl Token {
    pub fn symbol(self) -> usize {
        (self.0 & 511) as usize
    }

    pub fn length_extra(self) -> u32 {
        self.0 >> 9 & 31
    }

    pub fn distance_symbol(self) -> usize {
        (self.0 >> 14 & 31) as usize
    }

    pub fn distance_extra(self) -> u32 {
        self.0 >> 19
    }
}

/// What a payload consists of, and how often each symbol occurs in it.
pub struct Tokens {
    list: Box<[Token; PAYLOAD_LEN_MAX]>,
    len: usize,
    pub literals: [u16; LITERALS],
    pub distances: [u16; DISTANCES],
}

impl Tokens {
    pub fn new() -> Self {
        Self {
            list: Box::new([Token(0); PAYLOAD_LEN_MAX]),
            len: 0,
            literals: [0; LITERALS],
            distances: [0; DISTANCES],
        }
    }

    /// None, but for the end.
    pub fn clear(&mut self) {
        self.len = 0;
        self.literals.fill(0);
        self.literals[END_OF_BLOCK] = 1;
        self.distances.fill(0);
    }

    pub fn as_slice(&self) -> &[Token] {
        &self.list[..self.len]
    }

    #[inline]
    fn push(&mut self, token: u32) {
        // There are no more tokens than bytes.
        if let Some(place) = self.list.get_mut(self.len) {
            *place = Token(token);
            self.len += 1;
        }
    }

    #[inline]
    pub fn push_literal(&mut self, byte: u8) {
        self.literals[usize::from(byte)] += 1;
        self.push(u32::from(byte) | (NO_DISTANCE as u32) << 14);
    }

    /// `len` is 3 to 258, `distance` 1 to 32,768.
    #[inline]
    pub fn push_match(&mut self, len: usize, distance: usize) {
        let length = LENGTHS[(len - 3) & 255];
        // Two symbols for each power of two; the bits below the first two are extra.
        let less_one = distance as u32 - 1;
        let extra_bits = 30_u32.saturating_sub((less_one | 1).leading_zeros());
        let symbol = 2 * extra_bits + (less_one >> extra_bits);
        let extra = less_one & ((1 << extra_bits) - 1);
        self.literals[(length & 511) as usize] += 1;
        self.distances[(symbol & 31) as usize] += 1;
        self.push(length | symbol << 14 | extra << 19);
    }
}
