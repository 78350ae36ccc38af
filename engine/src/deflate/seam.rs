//! Makes a stream that ends go on: what is behind it may be a part of it.
//!
//! libdeflate writes whole streams: their last block says so (BFINAL), and zeros fill its last
//! byte. RFC 7692 §7.2.3.4 allows to send that, and there are clients which then misread the next
//! message. If there is but one block its first bit says that it is the last, and can be cleared.
//! What follows in the last byte is then the header of the next block: that of an empty stored
//! one, all zeros, if there are three bits for it. So it has to be known how many there are; they
//! begin behind the last code, which is that of the end of the block.

use super::short::END_OF_BLOCK;
use super::short::LENGTHS_ORDER;
use super::short::LITERAL_EXTRA;

/// Symbols from here on never occur (RFC 1951 §3.2.5).
const SYMBOLS_END: usize = 286;

/// Clears the mark of the last block of a stream that has one block only; gives how many bits of
/// its last byte are behind that. None, and nothing is changed, if the stream has several blocks,
/// or it cannot be told.
pub(super) fn reopen(stream: &mut [u8]) -> Option<usize> {
    let bits = Bits(stream);
    let (is_last, kind) = (bits.at(0, 1), bits.at(1, 2));
    if is_last == 0 {
        return None;
    }
    let padding = match kind {
        1 => padding_of_fixed(bits)?,
        2 => padding_of_dynamic(bits)?,
        // RFC 1951 §3.2.4: a stored block ends with a byte.
        0 if stream.len() == 5 + bits.at(8, 16) as usize => 0,
        _ => return None,
    };
    stream[0] &= !1;
    Some(padding)
}

/// Bits as DEFLATE counts them: from the least significant of the first byte on.
#[derive(Clone, Copy)]
struct Bits<'a>(&'a [u8]);

impl Bits<'_> {
    fn len(self) -> usize {
        8 * self.0.len()
    }

    /// At most 32 bits; zeros behind the end.
    fn at(self, position: usize, count: usize) -> u32 {
        let rest = self.0.get(position / 8..).unwrap_or_default();
        let word = match rest.first_chunk() {
            Some(word) => u64::from_le_bytes(*word),
            None => {
                let mut word = [0; 8];
                word[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(word)
            }
        };
        ((word >> (position % 8)) & ((1 << count) - 1)) as u32
    }

    /// The same, first bit first: as Huffman codes are packed (RFC 1951 §3.1.1).
    fn code_at(self, position: usize, count: usize) -> u32 {
        match count {
            0 => 0,
            _ => self.at(position, count).reverse_bits() >> (32 - count),
        }
    }
}

/// With fixed codes (RFC 1951 §3.2.6) the end is seven zeros, like what follows: each code is
/// looked at.
fn padding_of_fixed(bits: Bits<'_>) -> Option<usize> {
    let mut position = 3;
    while position < bits.len() {
        let seven = bits.code_at(position, 7) as usize;
        let symbol = match seven {
            // 256 to 279.
            0..24 => {
                position += 7;
                seven + 256
            }
            // 280 to 287.
            96..100 => {
                let eight = bits.code_at(position, 8) as usize;
                position += 8;
                eight - 192 + 280
            }
            // 144 to 255, of nine bits; 0 to 143, of eight.
            100.. => {
                position += 9;
                0
            }
            _ => {
                position += 8;
                0
            }
        };
        if symbol == END_OF_BLOCK {
            return bits.len().checked_sub(position).filter(|&left| left < 8);
        }
        if symbol > END_OF_BLOCK {
            position += usize::from(*LITERAL_EXTRA[..SYMBOLS_END].get(symbol)?);
            let distance = bits.code_at(position, 5) as usize;
            position += 5 + (distance / 2).saturating_sub(1);
        }
    }
    None
}

/// With codes of its own (RFC 1951 §3.2.7) the code of the end is found out, and looked for
/// before the zeros. None if it could be at several places.
fn padding_of_dynamic(bits: Bits<'_>) -> Option<usize> {
    let (code, len, header_len) = end_code(bits)?;
    let mut found = None;
    for padding in 0..8 {
        let end = bits.len() - padding;
        if bits.at(end, padding) != 0 || end < header_len + len {
            break;
        }
        if bits.code_at(end - len, len) == code && found.replace(padding).is_some() {
            return None;
        }
    }
    found
}

/// The code that ends the block, its length, and where the block's header ends.
fn end_code(bits: Bits<'_>) -> Option<(u32, usize, usize)> {
    let symbols = bits.at(3, 5) as usize + 257;
    let length_codes = bits.at(13, 4) as usize + 4;
    let all = u64::from(bits.at(17, 30)) | u64::from(bits.at(47, 27)) << 30;
    let mut lengths = [0_u8; 19];
    for (index, &symbol) in LENGTHS_ORDER[..length_codes].iter().enumerate() {
        lengths[symbol] = (all >> (3 * index)) as u8 & 7;
    }
    let table = runs(&lengths);
    let mut reader = LengthReader {
        bits,
        position: 17 + 3 * length_codes,
        symbol: 0,
        last: 0,
        counts: [0; 16],
    };
    // How many symbols have the end's length and come before it: it may be inside a run, which
    // has been counted whole.
    while reader.symbol <= END_OF_BLOCK {
        reader.read(&table)?;
    }
    let end_len = reader.last as usize;
    let behind = (reader.symbol - END_OF_BLOCK) as u32;
    let end_rank = reader.counts[end_len] - behind;
    while reader.symbol < symbols {
        reader.read(&table)?;
    }
    // What is repeated may go on in the distances' lengths.
    reader.counts[reader.last as usize] -= (reader.symbol - symbols) as u32;
    if end_len == 0 {
        return None;
    }
    // RFC 1951 §3.2.2.
    let shorter = &reader.counts[1..end_len];
    let first = 2 * shorter.iter().fold(0, |code, count| 2 * code + count);
    Some((first + end_rank, end_len, reader.position))
}

/// What a code of at most seven bits stands for: so many symbols have a code length. In one word,
/// as 128 of them are written for each block; zero where there is no such code.
#[derive(Clone, Copy, Default)]
struct Run(u32);

impl Run {
    /// The code's length; the least number, and how many bits behind the code say how many more;
    /// the code length, or none if it is what the last symbol had.
    fn new(code_len: u8, len: u32, extra: u32, value: Option<u32>) -> Self {
        let value = value.unwrap_or(LAST);
        Self(u32::from(code_len) | extra << 8 | len << 16 | value << 24)
    }

    fn code_len(self) -> u32 {
        self.0 & 255
    }

    fn extra(self) -> u32 {
        self.0 >> 8 & 255
    }

    fn len(self) -> u32 {
        self.0 >> 16 & 255
    }

    fn value(self) -> u32 {
        self.0 >> 24
    }
}

/// No code length: the last symbol's.
const LAST: u32 = 16;

/// RFC 1951 §3.2.7: by the bits that it begins with.
fn runs(lengths: &[u8; 19]) -> [Run; 128] {
    let mut counts = [0_usize; 8];
    for &len in lengths {
        counts[usize::from(len)] += 1;
    }
    let mut next = [0_usize; 8];
    for len in 2..8 {
        next[len] = 2 * (next[len - 1] + counts[len - 1]);
    }
    let mut table = [Run::default(); 128];
    for (symbol, &len) in lengths.iter().enumerate().filter(|(_, len)| **len > 0) {
        let code = &mut next[usize::from(len)];
        // As the bits come: the code's first is the least significant.
        let first = code.reverse_bits() >> (usize::BITS - u32::from(len));
        *code += 1;
        let run = match symbol {
            16 => Run::new(len, 3, 2, None),
            17 => Run::new(len, 3, 3, Some(0)),
            18 => Run::new(len, 11, 7, Some(0)),
            value => Run::new(len, 1, 0, Some(value as u32)),
        };
        for index in (first..128).step_by(1 << len) {
            table[index] = run;
        }
    }
    table
}

/// Reads the code lengths of a block's symbols, one run after another.
struct LengthReader<'a> {
    bits: Bits<'a>,
    position: usize,
    /// The next, and the length that the one before it has.
    symbol: usize,
    last: u32,
    /// How many have each length.
    counts: [u32; 16],
}

impl LengthReader<'_> {
    /// None if there is no such code.
    #[inline]
    fn read(&mut self, table: &[Run; 128]) -> Option<()> {
        let bits = self.bits.at(self.position, 14);
        let run = table[bits as usize & 127];
        let more = (bits >> run.code_len()) & ((1 << run.extra()) - 1);
        let len = run.len() + more;
        self.position += (run.code_len() + run.extra()) as usize;
        if run.value() != LAST {
            self.last = run.value();
        }
        self.counts[self.last as usize & 15] += len;
        self.symbol += len as usize;
        (run.0 != 0).then_some(())
    }
}
