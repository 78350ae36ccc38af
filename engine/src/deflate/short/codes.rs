//! Huffman codes (RFC 1951 §3.2.2) for what occurs in one block.

/// The longest code of literals, lengths and distances, and of code lengths.
pub const CODE_LEN_MAX: usize = 15;
pub const LENGTH_CODE_LEN_MAX: usize = 7;

/// Deeper than any code before it is limited: a symbol at depth 32 would need as many others as
/// the 32nd Fibonacci number.
const DEPTHS: usize = 32;

/// Counts from here on are sorted by comparison; there are few.
const BUCKETS: usize = 64;

/// Symbols that occur, with how often they do: `count << 9 | symbol`.
#[derive(Clone, Copy)]
struct Entry(u32);

impl Entry {
    fn count(self) -> u32 {
        self.0 >> 9
    }

    fn symbol(self) -> usize {
        (self.0 & 511) as usize
    }
}

struct Symbols<const N: usize> {
    list: [Entry; N],
    len: usize,
}

impl<const N: usize> Symbols<N> {
    /// In their order.
    fn new(counts: &[u16; N]) -> Self {
        let mut list = [Entry(0); N];
        let mut len = 0;
        for (part, first) in counts.as_chunks::<32>().0.iter().zip((0..).step_by(32)) {
            if part.iter().fold(0, |any, count| any | count) == 0 {
                continue;
            }
            for (&count, symbol) in part.iter().zip(first..) {
                // Where it does not occur the next one takes its place.
                list[len] = Entry(u32::from(count) << 9 | symbol);
                len += usize::from(count > 0);
            }
        }
        Self { list, len }
    }

    /// Rarest first.
    fn by_count(&self) -> Self {
        let bucket = |entry: Entry| (entry.count() as usize).min(BUCKETS - 1);
        let mut starts = [0_u16; BUCKETS + 1];
        for &entry in self.as_slice() {
            starts[bucket(entry) + 1] += 1;
        }
        for index in 1..BUCKETS {
            starts[index] += starts[index - 1];
        }
        let often = usize::from(starts[BUCKETS - 1]);
        let mut list = [Entry(0); N];
        for &entry in self.as_slice() {
            let start = &mut starts[bucket(entry)];
            list[usize::from(*start)] = entry;
            *start += 1;
        }
        list[often..self.len].sort_unstable_by_key(|entry| entry.0);
        Self {
            list,
            len: self.len,
        }
    }

    fn as_slice(&self) -> &[Entry] {
        &self.list[..self.len]
    }
}

/// A code for an alphabet of N symbols.
pub struct Code<const N: usize> {
    symbols: Symbols<N>,
    /// By symbol; zero where it does not occur.
    lengths: [u8; N],
}

impl<const N: usize> Code<N> {
    /// The best code for symbols that occur so often, none longer than this.
    pub fn new(counts: &[u16; N], len_max: usize) -> Self {
        let symbols = Symbols::new(counts);
        let mut lengths = [0; N];
        match *symbols.as_slice() {
            [] => {}
            [only] => lengths[only.symbol()] = 1,
            _ => {
                let sorted = symbols.by_count();
                let numbers = code_length_counts::<N>(sorted.as_slice(), len_max);
                let mut rest = sorted.as_slice();
                // The rarest have the longest.
                for len in (1..=len_max).rev() {
                    let (own, after) = rest.split_at(usize::from(numbers[len]));
                    for entry in own {
                        lengths[entry.symbol()] = len as u8;
                    }
                    rest = after;
                }
            }
        }
        Self { symbols, lengths }
    }

    /// The code in which all symbols have given lengths.
    pub fn fixed(lengths: [u8; N]) -> Self {
        let symbols = Symbols::new(&[1; N]);
        Self { symbols, lengths }
    }

    /// By symbol: how many bits its code has, zero where it does not occur.
    pub fn lengths(&self) -> &[u8; N] {
        &self.lengths
    }

    /// Symbols that occur, in their order.
    pub fn used(&self) -> impl Iterator<Item = usize> {
        self.symbols.as_slice().iter().map(|entry| entry.symbol())
    }

    /// How many symbols there are up to the last that occurs.
    pub fn symbols_len(&self) -> usize {
        let last = self.symbols.as_slice().last();
        last.map_or(0, |entry| entry.symbol() + 1)
    }

    /// How many bits what occurs takes with codes of these lengths and so many bits besides.
    pub fn cost(&self, lengths: &[u8; N], extra: &[u8; N]) -> usize {
        let bits = |entry: &Entry| {
            let symbol = entry.symbol();
            entry.count() * u32::from(lengths[symbol] + extra[symbol])
        };
        self.symbols.as_slice().iter().map(bits).sum::<u32>() as usize
    }

    /// What is written, by symbol; `extra` bits follow it.
    pub fn words(&self, extra: &[u8; N]) -> [Word; N] {
        let mut counts = [0_u16; CODE_LEN_MAX + 1];
        for symbol in self.used() {
            counts[usize::from(self.lengths[symbol] & 15)] += 1;
        }
        let mut next = [0_u16; CODE_LEN_MAX + 1];
        for len in 2..=CODE_LEN_MAX {
            next[len] = (next[len - 1] + counts[len - 1]) << 1;
        }
        let mut words = [Word(0); N];
        for symbol in self.used() {
            let len = self.lengths[symbol] & 15;
            let code = &mut next[usize::from(len)];
            // Packed with its first bit as the least significant (RFC 1951 §3.1.1).
            let packed = u32::from(code.reverse_bits()) >> (16 - len);
            *code += 1;
            words[symbol] =
                Word(packed | u32::from(len) << 16 | u32::from(len + extra[symbol]) << 24);
        }
        words
    }
}

/// A code as it is packed, its length, and that with the extra bits:
/// `code | length << 16 | (length + extra) << 24`.
#[derive(Clone, Copy)]
pub struct Word(u32);

impl Word {
    /// No bits.
    pub const NONE: Self = Self(0);

    /// It and its extra bits, and how many that are.
    #[inline]
    pub fn with(self, extra: u32) -> (u64, u32) {
        let code = u64::from(self.0 & 0xFFFF);
        (code | u64::from(extra) << (self.0 >> 16 & 31), self.0 >> 24)
    }
}

/// How many codes of each length the best code has, none longer than `len_max`; of two symbols
/// or more, rarest first (Huffman's algorithm with two queues).
fn code_length_counts<const N: usize>(sorted: &[Entry], len_max: usize) -> [u16; DEPTHS] {
    let inner_len = sorted.len() - 1;
    // Of the inner nodes; those that are not made yet weigh more than any.
    let mut weights = [u32::MAX; N];
    let mut parents = [0_u16; N];
    let (mut inner, mut leaf) = (0, 0);
    for next in 0..inner_len {
        let mut weight = 0;
        for _ in 0..2 {
            let own = sorted.get(leaf).map_or(u32::MAX, |entry| entry.count());
            let other = weights[inner];
            // Nobody can foretell which: so both are dealt with. What is written here is
            // written again until it is this node's turn.
            parents[inner] = next as u16;
            let is_leaf = own <= other;
            weight += own.min(other);
            leaf += usize::from(is_leaf);
            inner += usize::from(!is_leaf);
        }
        weights[next] = weight;
    }
    // The depth of each inner node, from the root on; leaves are what is left of each level.
    let mut depths = [0_u8; N];
    let mut inner_counts = [0_u16; DEPTHS];
    inner_counts[0] = 1;
    for node in (0..inner_len - 1).rev() {
        let depth = depths[usize::from(parents[node])] + 1;
        depths[node] = depth;
        inner_counts[usize::from(depth) % DEPTHS] += 1;
    }
    let mut counts = [0; DEPTHS];
    for depth in 1..DEPTHS {
        counts[depth] = 2 * inner_counts[depth - 1] - inner_counts[depth];
    }
    limit(&mut counts, len_max);
    counts
}

/// Makes codes that are too long as short as they may be, and others longer for it.
fn limit(counts: &mut [u16; DEPTHS], len_max: usize) {
    let over: u16 = counts[len_max + 1..].iter().sum();
    if over == 0 {
        return;
    }
    counts[len_max] += over;
    let parts = |(len, &count): (usize, &u16)| usize::from(count) << (len_max - len);
    let lengths = counts[..=len_max].iter().enumerate().skip(1);
    let taken: usize = lengths.map(parts).sum();
    // Each step frees one of the places that there are at the greatest depth.
    for _ in 1 << len_max..taken {
        let shorter = (1..len_max).rev().find(|&len| counts[len] > 0);
        let shorter = shorter.unwrap_or(1);
        counts[len_max] -= 1;
        counts[shorter] -= 1;
        counts[shorter + 1] += 2;
    }
}
