//! The algorithms, written once over what they need from an instruction set.
//!
//! UTF-8: John Keiser and Daniel Lemire, "Validating UTF-8 In Less Than One Instruction Per
//! Byte" (2021). Three table look-ups classify each pair of neighbouring bytes; a bit that all
//! three agree on is an error. Blocks of ASCII skip all of that.
//!
//! Every function here is `#[inline(always)]`, so that it is compiled with the target features
//! of the kernel that calls it.

use super::MaskKey;
use super::Utf8State;
use super::scalar;

/// A register of bytes.
///
/// # Safety
/// Every method may be called only where the CPU has the instruction set; `load` and `store`
/// only with pointers to `LEN` readable (writable) bytes, of any alignment, and the methods that
/// take a part of a vector only with pointers to so many.
#[allow(clippy::missing_safety_doc, reason = "said once, for the trait")]
pub(super) unsafe trait Vector: Copy {
    const LEN: usize;
    unsafe fn splat(byte: u8) -> Self;
    unsafe fn splat_u32(word: u32) -> Self;
    /// The table in every 16-byte lane.
    unsafe fn table(table: &[u8; 16]) -> Self;
    unsafe fn load(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut u8);
    /// The first `len` of them, more than none and fewer than `LEN`; the others are zero.
    #[inline(always)]
    unsafe fn load_part(from: *const u8, len: usize) -> Self {
        // SAFETY: the CPU has the instruction set, and `len` bytes are readable (contract); the
        // buffer has `VECTOR_LEN_MAX >= LEN` bytes.
        unsafe {
            let mut buffer = [0; VECTOR_LEN_MAX];
            core::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), len);
            Self::load(buffer.as_ptr())
        }
    }
    /// The first `len` of them, more than none and fewer than `LEN`.
    #[inline(always)]
    unsafe fn store_part(self, to: *mut u8, len: usize) {
        // SAFETY: the CPU has the instruction set, and `len` bytes are writable (contract); the
        // buffer has `VECTOR_LEN_MAX >= LEN` bytes.
        unsafe {
            let mut buffer = [0; VECTOR_LEN_MAX];
            self.store(buffer.as_mut_ptr());
            core::ptr::copy_nonoverlapping(buffer.as_ptr(), to, len);
        }
    }
    /// The first `len` bytes, at most `LEN`, and zeros.
    #[inline(always)]
    unsafe fn front(self, len: usize) -> Self {
        // SAFETY: the CPU has the instruction set (contract); `LEN` bytes are read from index
        // `VECTOR_LEN_MAX - len` of `2 * VECTOR_LEN_MAX`.
        unsafe { self.and(Self::load(LEN_MASK[VECTOR_LEN_MAX - len..].as_ptr())) }
    }
    unsafe fn xor(self, other: Self) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    unsafe fn and(self, other: Self) -> Self;
    unsafe fn saturating_sub(self, other: Self) -> Self;
    /// Each byte shifted right by four.
    unsafe fn high_nibbles(self) -> Self;
    /// `table[self[i]]`; each byte of `self` is below 16.
    unsafe fn look_up(self, table: Self) -> Self;
    /// The bytes one, two or three places earlier, in the stream `before ++ self`.
    unsafe fn previous<const N: i32>(self, before: Self) -> Self;
    unsafe fn is_zero(self) -> bool;
    unsafe fn is_ascii(self) -> bool;
    /// XORs fewer than `LEN` bytes with the key.
    #[inline(always)]
    unsafe fn unmask_short(bytes: &mut [u8], key: MaskKey) {
        scalar::unmask(bytes, key);
    }
}

const VECTOR_LEN_MAX: usize = 64;

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn unmask<V: Vector>(bytes: &mut [u8], key: MaskKey) {
    let len = bytes.len();
    if len < V::LEN {
        // SAFETY: the CPU has the instruction set (contract).
        return unsafe { V::unmask_short(bytes, key) };
    }
    let start = bytes.as_mut_ptr();
    // SAFETY: the CPU has the instruction set (contract). `last` is in bounds because
    // `len >= V::LEN`, and every `offset` below satisfies `offset + V::LEN <= len`.
    unsafe {
        // The last vector overlaps the one before it: take its bytes while they are masked.
        let last = start.add(len - V::LEN);
        let last_bytes = V::load(last).xor(V::splat_u32(key.advance(len - V::LEN).0));
        let mask = V::splat_u32(key.0);
        let mut offset = 0;
        while offset + 4 * V::LEN <= len {
            let at = start.add(offset);
            let a = V::load(at).xor(mask);
            let b = V::load(at.add(V::LEN)).xor(mask);
            let c = V::load(at.add(2 * V::LEN)).xor(mask);
            let d = V::load(at.add(3 * V::LEN)).xor(mask);
            a.store(at);
            b.store(at.add(V::LEN));
            c.store(at.add(2 * V::LEN));
            d.store(at.add(3 * V::LEN));
            offset += 4 * V::LEN;
        }
        while offset + V::LEN <= len {
            let at = start.add(offset);
            V::load(at).xor(mask).store(at);
            offset += V::LEN;
        }
        last_bytes.store(last);
    }
}

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn validate<V: Vector>(
    bytes: &[u8],
    state: Utf8State,
) -> Result<Utf8State, usize> {
    let start = bytes.as_ptr().cast_mut();
    // SAFETY: the CPU has the instruction set (contract), the slice is readable for its
    // length, and `scan` writes only where `MASKED`.
    match unsafe { scan::<V, false>(start, bytes.len(), 0, state)? } {
        true => Ok(Utf8State::default()),
        false => state.advance(bytes),
    }
}

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn unmask_validate<V: Vector>(
    bytes: &mut [u8],
    key: MaskKey,
    state: Utf8State,
) -> Result<Utf8State, usize> {
    let start = bytes.as_mut_ptr();
    // SAFETY: the CPU has the instruction set (contract), and the slice is readable and
    // writable for its length.
    match unsafe { scan::<V, true>(start, bytes.len(), key.0, state)? } {
        true => Ok(Utf8State::default()),
        false => state.advance(bytes),
    }
}

/// Says whether it ends at a character boundary. Where it does not, its last byte has yet to be
/// looked at: it may be one that leads nothing.
///
/// # Safety
/// The CPU has the instruction set of `V`; `start` points to `len` readable bytes, writable
/// where `MASKED`.
#[inline(always)]
unsafe fn scan<V: Vector, const MASKED: bool>(
    start: *mut u8,
    len: usize,
    key: u32,
    state: Utf8State,
) -> Result<bool, usize> {
    const { assert!(V::LEN <= VECTOR_LEN_MAX) };
    // SAFETY: the CPU has the instruction set, and the pointer is good for `len` bytes
    // (contract); what `ascii_prefix` has taken is at most that.
    unsafe {
        let mask = V::splat_u32(key);
        let mut offset = 0;
        if state.is_complete() {
            offset = ascii_prefix::<V, MASKED>(start, len, mask);
            if offset == len {
                return Ok(true);
            }
        }
        check_from::<V, MASKED>(start, offset, len, mask, state)
    }
}

/// Takes ASCII off the front, some vectors at a time; says how much of `len` that is. What is
/// behind it is not changed.
///
/// # Safety
/// That of [`scan`].
#[inline(always)]
unsafe fn ascii_prefix<V: Vector, const MASKED: bool>(
    start: *mut u8,
    len: usize,
    mask: V,
) -> usize {
    let mut offset = 0;
    // SAFETY: the CPU has the instruction set (contract). Vectors are loaded and stored only at
    // offsets with `offset + V::LEN <= len`, and a part of one only of what is left.
    unsafe {
        while offset + 4 * V::LEN <= len {
            let at = start.add(offset);
            let mut a = V::load(at);
            let mut b = V::load(at.add(V::LEN));
            let mut c = V::load(at.add(2 * V::LEN));
            let mut d = V::load(at.add(3 * V::LEN));
            if MASKED {
                (a, b, c, d) = (a.xor(mask), b.xor(mask), c.xor(mask), d.xor(mask));
            }
            if !a.or(b).or(c.or(d)).is_ascii() {
                return offset;
            }
            if MASKED {
                a.store(at);
                b.store(at.add(V::LEN));
                c.store(at.add(2 * V::LEN));
                d.store(at.add(3 * V::LEN));
            }
            offset += 4 * V::LEN;
        }
        while offset + V::LEN <= len {
            let at = start.add(offset);
            let mut a = V::load(at);
            if MASKED {
                a = a.xor(mask);
            }
            if !a.is_ascii() {
                return offset;
            }
            if MASKED {
                a.store(at);
            }
            offset += V::LEN;
        }
        if offset < len {
            let (at, rest) = (start.add(offset), len - offset);
            let mut a = V::load_part(at, rest);
            if MASKED {
                a = a.xor(mask).front(rest);
            }
            if !a.is_ascii() {
                return offset;
            }
            if MASKED {
                a.store_part(at, rest);
            }
        }
    }
    len
}

/// Checks what lies from `offset` on, where `state` has been left; as [`scan`].
///
/// # Safety
/// That of [`scan`]; `offset < len` or both are zero.
#[inline(always)]
unsafe fn check_from<V: Vector, const MASKED: bool>(
    start: *mut u8,
    mut offset: usize,
    len: usize,
    mask: V,
    state: Utf8State,
) -> Result<bool, usize> {
    // SAFETY: as in `ascii_prefix`.
    unsafe {
        let mut checker = Checker::<V>::new(state);
        while offset + 4 * V::LEN <= len {
            let at = start.add(offset);
            let mut a = V::load(at);
            let mut b = V::load(at.add(V::LEN));
            let mut c = V::load(at.add(2 * V::LEN));
            let mut d = V::load(at.add(3 * V::LEN));
            if MASKED {
                (a, b, c, d) = (a.xor(mask), b.xor(mask), c.xor(mask), d.xor(mask));
                a.store(at);
                b.store(at.add(V::LEN));
                c.store(at.add(2 * V::LEN));
                d.store(at.add(3 * V::LEN));
            }
            offset += 4 * V::LEN;
            if a.or(b).or(c.or(d)).is_ascii() {
                checker.ascii();
            } else {
                checker.check(a);
                checker.check(b);
                checker.check(c);
                checker.check(d);
            }
            if !checker.error.is_zero() {
                return Err(offset);
            }
        }
        while offset + V::LEN <= len {
            let at = start.add(offset);
            let mut a = V::load(at);
            if MASKED {
                a = a.xor(mask);
                a.store(at);
            }
            offset += V::LEN;
            checker.check_or_ascii(a);
        }
        if offset < len {
            let (at, rest) = (start.add(offset), len - offset);
            let mut a = V::load_part(at, rest);
            if MASKED {
                a = a.xor(mask).front(rest);
                a.store_part(at, rest);
            }
            checker.check_tail(a, rest);
        }
        if checker.error.is_zero() {
            Ok(checker.incomplete.is_zero())
        } else {
            Err(len)
        }
    }
}

/// The state of the look-up algorithm between two vectors.
struct Checker<V> {
    /// Any bit set: an error.
    error: V,
    /// The vector before; zeros count as ASCII.
    before: V,
    /// Nonzero where `before` ends inside a sequence.
    incomplete: V,
    lead_high: V,
    lead_low: V,
    next_high: V,
    sequence_end: V,
}

impl<V: Vector> Checker<V> {
    /// # Safety
    /// That of [`Vector`].
    #[inline(always)]
    unsafe fn new(state: Utf8State) -> Self {
        // SAFETY: the CPU has the instruction set (contract); the table has `V::LEN` bytes from
        // where it is read.
        unsafe {
            // Of what is before only the last three bytes are looked at.
            let before = V::splat_u32(state.pending.to_be());
            let sequence_end = V::load(SEQUENCE_END[VECTOR_LEN_MAX - V::LEN..].as_ptr());
            Self {
                error: V::splat(0),
                before,
                incomplete: before.saturating_sub(sequence_end),
                lead_high: V::table(&LEAD_HIGH),
                lead_low: V::table(&LEAD_LOW),
                next_high: V::table(&NEXT_HIGH),
                sequence_end,
            }
        }
    }

    /// ASCII follows: an error only where a sequence was left unfinished.
    ///
    /// # Safety
    /// That of [`Vector`].
    #[inline(always)]
    unsafe fn ascii(&mut self) {
        // SAFETY: the CPU has the instruction set (contract).
        unsafe {
            self.error = self.error.or(self.incomplete);
            self.before = V::splat(0);
            self.incomplete = V::splat(0);
        }
    }

    /// # Safety
    /// That of [`Vector`].
    #[inline(always)]
    unsafe fn check_or_ascii(&mut self, bytes: V) {
        // SAFETY: the CPU has the instruction set (contract).
        unsafe {
            if bytes.is_ascii() {
                self.ascii();
            } else {
                self.check(bytes);
            }
        }
    }

    /// # Safety
    /// That of [`Vector`].
    #[inline(always)]
    unsafe fn check(&mut self, bytes: V) {
        // SAFETY: the CPU has the instruction set (contract).
        unsafe {
            self.error = self.error.or(self.errors(bytes));
            self.before = bytes;
            self.incomplete = bytes.saturating_sub(self.sequence_end);
        }
    }

    /// Checks the first `len` bytes of the last vector; the others are zero.
    ///
    /// # Safety
    /// That of [`Vector`]; `0 < len < V::LEN`.
    #[inline(always)]
    unsafe fn check_tail(&mut self, bytes: V, len: usize) {
        // SAFETY: the CPU has the instruction set (contract), and `len < V::LEN`.
        unsafe {
            if bytes.is_ascii() {
                return self.ascii();
            }
            // An unfinished sequence before the zeros is no error: the stream may go on.
            let errors = self.errors(bytes);
            self.error = self.error.or(errors.front(len));
            self.incomplete = errors;
        }
    }

    /// Nonzero in each place where `bytes` cannot follow what is before.
    ///
    /// # Safety
    /// That of [`Vector`].
    #[inline(always)]
    unsafe fn errors(&self, bytes: V) -> V {
        // SAFETY: the CPU has the instruction set (contract).
        unsafe {
            let one_before = bytes.previous::<1>(self.before);
            let pairs = one_before
                .high_nibbles()
                .look_up(self.lead_high)
                .and(one_before.and(V::splat(0x0F)).look_up(self.lead_low))
                .and(bytes.high_nibbles().look_up(self.next_high));
            // The third byte of a sequence of three and the third and fourth of one of four
            // must be continuations: then, and only then, "two continuations" is no error.
            let third = bytes
                .previous::<2>(self.before)
                .saturating_sub(V::splat(0xE0 - 0x80));
            let fourth = bytes
                .previous::<3>(self.before)
                .saturating_sub(V::splat(0xF0 - 0x80));
            third.or(fourth).and(V::splat(0x80)).xor(pairs)
        }
    }
}

// What can be wrong with two neighbouring bytes, one bit each.
const TOO_SHORT: u8 = 1 << 0; // lead or 11______ not followed by a continuation
const TOO_LONG: u8 = 1 << 1; // ASCII followed by a continuation
const OVERLONG_3: u8 = 1 << 2; // 11100000 100_____
const SURROGATE: u8 = 1 << 4; // 11101101 101_____
const OVERLONG_2: u8 = 1 << 5; // 1100000_ 10______
const TOO_LARGE: u8 = 1 << 3; // 11110100 1001____ and above
const TOO_LARGE_1000: u8 = 1 << 6; // 11110101 1000____ and above
const OVERLONG_4: u8 = 1 << 6; // 11110000 1000____
const TWO_CONTINUATIONS: u8 = 1 << 7; // 10______ 10______
/// What the low nibble of the first byte does not decide.
const CARRY: u8 = TOO_SHORT | TOO_LONG | TWO_CONTINUATIONS;

/// By the high nibble of the first byte.
const LEAD_HIGH: [u8; 16] = [
    TOO_LONG,
    TOO_LONG,
    TOO_LONG,
    TOO_LONG,
    TOO_LONG,
    TOO_LONG,
    TOO_LONG,
    TOO_LONG,
    TWO_CONTINUATIONS,
    TWO_CONTINUATIONS,
    TWO_CONTINUATIONS,
    TWO_CONTINUATIONS,
    TOO_SHORT | OVERLONG_2,
    TOO_SHORT,
    TOO_SHORT | OVERLONG_3 | SURROGATE,
    TOO_SHORT | TOO_LARGE | TOO_LARGE_1000 | OVERLONG_4,
];

/// By the low nibble of the first byte.
const LEAD_LOW: [u8; 16] = {
    let large = CARRY | TOO_LARGE | TOO_LARGE_1000;
    let mut table = [large; 16];
    table[0x0] = CARRY | OVERLONG_3 | OVERLONG_2 | OVERLONG_4;
    table[0x1] = CARRY | OVERLONG_2;
    table[0x2] = CARRY;
    table[0x3] = CARRY;
    table[0x4] = CARRY | TOO_LARGE;
    table[0xD] = large | SURROGATE;
    table
};

/// By the high nibble of the second byte.
const NEXT_HIGH: [u8; 16] = {
    let continuation = TOO_LONG | OVERLONG_2 | TWO_CONTINUATIONS;
    let mut table = [TOO_SHORT; 16];
    table[0x8] = continuation | OVERLONG_3 | TOO_LARGE_1000 | OVERLONG_4;
    table[0x9] = continuation | OVERLONG_3 | TOO_LARGE;
    table[0xA] = continuation | SURROGATE | TOO_LARGE;
    table[0xB] = continuation | SURROGATE | TOO_LARGE;
    table
};

/// The largest byte that leaves no sequence unfinished, by its place before the end.
static SEQUENCE_END: [u8; VECTOR_LEN_MAX] = {
    let mut table = [0xFF; VECTOR_LEN_MAX];
    table[VECTOR_LEN_MAX - 3] = 0xF0 - 1;
    table[VECTOR_LEN_MAX - 2] = 0xE0 - 1;
    table[VECTOR_LEN_MAX - 1] = 0xC0 - 1;
    table
};

/// Read from index `VECTOR_LEN_MAX - len`: `len` times 0xFF, then zeros.
static LEN_MASK: [u8; 2 * VECTOR_LEN_MAX] = {
    let mut mask = [0; 2 * VECTOR_LEN_MAX];
    let mut index = 0;
    while index < VECTOR_LEN_MAX {
        mask[index] = 0xFF;
        index += 1;
    }
    mask
};
