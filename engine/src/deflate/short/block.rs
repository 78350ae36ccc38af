//! Writes a block (RFC 1951 §3.2.3).

use super::codes::CODE_LEN_MAX;
use super::codes::Code;
use super::codes::LENGTH_CODE_LEN_MAX;
use super::codes::Word;
use super::tokens::DISTANCE_EXTRA;
use super::tokens::DISTANCES;
use super::tokens::END_OF_BLOCK;
use super::tokens::LITERAL_EXTRA;
use super::tokens::LITERALS;
use super::tokens::NO_DISTANCE;
use super::tokens::Tokens;

/// What the writer may write behind the end.
pub const SLACK: usize = 8;

/// Code lengths, and how they are repeated, with symbols that never occur.
const LENGTHS: usize = 32;

/// RFC 1951 §3.2.7: the order in which the lengths of the code lengths' codes come.
pub const LENGTHS_ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

/// Extra bits of what repeats code lengths.
const LENGTHS_EXTRA: [u8; LENGTHS] = {
    let mut extra = [0; LENGTHS];
    extra[16] = 2;
    extra[17] = 3;
    extra[18] = 7;
    extra
};

/// The kinds of blocks, behind a bit that says that it is not the last.
const FIXED: u64 = 0b010;
const DYNAMIC: u64 = 0b100;
const KIND_BITS: usize = 3;

/// RFC 1951 §3.2.6.
const FIXED_LITERALS: [u8; LITERALS] = {
    let mut lengths = [8; LITERALS];
    let mut symbol = 144;
    while symbol < 280 {
        lengths[symbol] = if symbol < 256 { 9 } else { 7 };
        symbol += 1;
    }
    lengths
};
const FIXED_DISTANCES: [u8; DISTANCES] = [5; DISTANCES];

/// Writes a block, and the beginning of an empty one behind it, as a message ends (RFC 7692
/// §7.2.1); gives the length. None if that is not less than `limit`, of which there is that much
/// and [`SLACK`].
pub fn write(tokens: &Tokens, output: &mut [u8], limit: usize) -> Option<usize> {
    let literals = Code::new(&tokens.literals, CODE_LEN_MAX);
    let distances = Code::new(&tokens.distances, CODE_LEN_MAX);
    let description = Description::new(&literals, &distances);
    let lengths = Code::new(&description.counts, LENGTH_CODE_LEN_MAX);
    let lengths_len = LENGTHS_ORDER
        .iter()
        .rposition(|&symbol| lengths.lengths()[symbol] > 0)
        .map_or(4, |last| (last + 1).max(4));

    let dynamic = 14
        + 3 * lengths_len
        + lengths.cost(lengths.lengths(), &LENGTHS_EXTRA)
        + literals.cost(literals.lengths(), &LITERAL_EXTRA)
        + distances.cost(distances.lengths(), &DISTANCE_EXTRA);
    let fixed = literals.cost(&FIXED_LITERALS, &LITERAL_EXTRA)
        + distances.cost(&FIXED_DISTANCES, &DISTANCE_EXTRA);
    let len = (KIND_BITS + dynamic.min(fixed) + KIND_BITS).div_ceil(8);
    if len >= limit {
        return None;
    }
    let mut bits = Bits::new(output);
    if fixed <= dynamic {
        bits.put(FIXED, KIND_BITS as u32);
        let literals = Code::fixed(FIXED_LITERALS).words(&LITERAL_EXTRA);
        let distances = Code::fixed(FIXED_DISTANCES).words(&DISTANCE_EXTRA);
        write_tokens(tokens, &literals, distances, &mut bits);
    } else {
        bits.put(DYNAMIC, KIND_BITS as u32);
        bits.put(literals.symbols_len() as u64 - 257, 5);
        bits.put(distances.symbols_len().max(1) as u64 - 1, 5);
        bits.put(lengths_len as u64 - 4, 4);
        bits.flush();
        for some in LENGTHS_ORDER[..lengths_len].chunks(16) {
            for &symbol in some {
                bits.put(u64::from(lengths.lengths()[symbol]), 3);
            }
            bits.flush();
        }
        let words = lengths.words(&LENGTHS_EXTRA);
        for &(symbol, extra) in description.as_slice() {
            bits.put_word(words[usize::from(symbol) % LENGTHS], u32::from(extra));
            bits.flush();
        }
        let literals = literals.words(&LITERAL_EXTRA);
        let distances = distances.words(&DISTANCE_EXTRA);
        write_tokens(tokens, &literals, distances, &mut bits);
    }
    // The kind of a stored block, and zeros up to the next byte.
    bits.put(0, KIND_BITS as u32 + 7);
    bits.flush();
    Some(len)
}

fn write_tokens(
    tokens: &Tokens,
    literals: &[Word; LITERALS],
    mut distances: [Word; DISTANCES],
    bits: &mut Bits<'_>,
) {
    distances[NO_DISTANCE] = Word::NONE;
    for token in tokens.as_slice() {
        // As if each had a distance: nobody can foretell which has one.
        let length = literals[token.symbol().min(LITERALS - 1)];
        let distance = distances[token.distance_symbol()];
        bits.put_word(length, token.length_extra());
        bits.put_word(distance, token.distance_extra());
        bits.flush();
    }
    bits.put_word(literals[END_OF_BLOCK], 0);
    bits.flush();
}

/// How the codes of a block are described (RFC 1951 §3.2.7): the lengths of all, one after
/// another, those that repeat in short.
struct Description {
    /// Symbols and their extra bits.
    list: [(u8, u8); LITERALS + DISTANCES],
    len: usize,
    counts: [u16; LENGTHS],
}

impl Description {
    fn new(literals: &Code<LITERALS>, distances: &Code<DISTANCES>) -> Self {
        let mut description = Self {
            list: [(0, 0); LITERALS + DISTANCES],
            len: 0,
            counts: [0; LENGTHS],
        };
        let literals_len = literals.symbols_len();
        let lengths = literals
            .used()
            .map(|symbol| (symbol, literals.lengths()[symbol]));
        let behind = distances
            .used()
            .map(|symbol| (literals_len + symbol, distances.lengths()[symbol]));
        let (mut value, mut run, mut next) = (0, 0, 0);
        for (place, len) in lengths.chain(behind) {
            for (own, count) in [(0, place - next), (len, 1)] {
                if own != value && count > 0 {
                    description.push_run(value, run);
                    (value, run) = (own, 0);
                }
                run += count;
            }
            next = place + 1;
        }
        // There is at least one distance.
        let end = literals_len + distances.symbols_len().max(1);
        if value != 0 && next < end {
            description.push_run(value, run);
            (value, run) = (0, 0);
        }
        description.push_run(value, run + end - next);
        description
    }

    #[inline]
    fn push_run(&mut self, value: u8, mut run: usize) {
        if value == 0 {
            while run >= 11 {
                let part = run.min(138);
                self.push(18, part - 11);
                run -= part;
            }
            if run >= 3 {
                self.push(17, run - 3);
                run = 0;
            }
        } else if run >= 4 {
            self.push(value, 0);
            run -= 1;
            while run >= 3 {
                let part = run.min(6);
                self.push(16, part - 3);
                run -= part;
            }
        }
        for _ in 0..run {
            self.push(value, 0);
        }
    }

    #[inline]
    fn push(&mut self, symbol: u8, extra: usize) {
        if let Some(place) = self.list.get_mut(self.len) {
            *place = (symbol, extra as u8);
            self.len += 1;
        }
        self.counts[usize::from(symbol) % LENGTHS] += 1;
    }

    fn as_slice(&self) -> &[(u8, u8)] {
        &self.list[..self.len]
    }
}

/// Bits as DEFLATE packs them: the first is the least significant.
struct Bits<'a> {
    output: &'a mut [u8],
    len: usize,
    /// What is not a whole byte yet.
    open: u64,
    open_len: u32,
}

impl<'a> Bits<'a> {
    fn new(output: &'a mut [u8]) -> Self {
        Self {
            output,
            len: 0,
            open: 0,
            open_len: 0,
        }
    }

    /// At most 56 between two flushes.
    #[inline]
    fn put(&mut self, bits: u64, count: u32) {
        self.open |= bits << (self.open_len & 63);
        self.open_len += count;
    }

    #[inline]
    fn put_word(&mut self, word: Word, extra: u32) {
        let (bits, count) = word.with(extra);
        self.put(bits, count);
    }

    #[inline]
    fn flush(&mut self) {
        if let Some(room) = self.output.get_mut(self.len..self.len + 8) {
            room.copy_from_slice(&self.open.to_le_bytes());
        }
        self.len += (self.open_len / 8) as usize;
        self.open >>= self.open_len & 56;
        self.open_len &= 7;
    }
}
