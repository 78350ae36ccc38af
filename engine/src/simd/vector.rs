//! The algorithms, written once over what they need from an instruction set.
//!
//! UTF-8: John Keiser and Daniel Lemire, "Validating UTF-8 In Less Than One Instruction Per
//! Byte" (2021). Three table look-ups classify each pair of neighbouring bytes; a bit that all
//! three agree on is an error. Blocks of ASCII skip all of that.
//!
//! Every function here is `#[inline(always)]`, so that it is compiled with the target features
//! of the kernel that calls it.

use super::MaskKey;
use super::Outcome;
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
    /// A register of half the length, for what is short; itself where there is none.
    type Half: Vector;
    const HAS_HALF: bool = Self::Half::LEN < Self::LEN;
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
}

const VECTOR_LEN_MAX: usize = 64;

/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn unmask<V: Vector>(bytes: &mut [u8], key: MaskKey) {
    let len = bytes.len();
    if len < V::LEN {
        if !V::HAS_HALF {
            return scalar::unmask(bytes, key);
        }
        // SAFETY: a CPU that has the longer registers has the shorter ones (contract).
        return unsafe { unmask::<V::Half>(bytes, key) };
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

/// How much of the front of `bytes`, which follow `state`, is ASCII: some vectors, or all of it.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn ascii_len<V: Vector>(bytes: &[u8], state: Utf8State) -> usize {
    if !state.is_complete() {
        return 0;
    }
    let start = bytes.as_ptr().cast_mut();
    // SAFETY: the CPU has the instruction set (contract), the slice is readable for its
    // length, and nothing is written unless `MASKED`.
    unsafe { ascii_prefix::<V, false>(start, bytes.len(), MaskKey::default()) }
}

/// As [`ascii_len`] of masked bytes, of which so many are unmasked.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn unmask_ascii<V: Vector>(
    bytes: &mut [u8],
    key: MaskKey,
    state: Utf8State,
) -> usize {
    if !state.is_complete() {
        return 0;
    }
    // SAFETY: the CPU has the instruction set (contract), and the slice is readable and
    // writable for its length.
    unsafe { ascii_prefix::<V, true>(bytes.as_mut_ptr(), bytes.len(), key) }
}

/// Checks `bytes`, which follow `state`, and of which the first `offset` are known to be ASCII.
///
/// # Safety
/// The CPU has the instruction set of `V`; `offset <= bytes.len()`, and zero unless `state` is
/// complete.
#[inline(always)]
pub(super) unsafe fn validate_from<V: Vector>(
    bytes: &[u8],
    offset: usize,
    state: Utf8State,
) -> Outcome {
    let start = bytes.as_ptr().cast_mut();
    // SAFETY: the CPU has the instruction set, and `offset` is in bounds (contract); the slice is
    // readable for its length, and nothing is written unless `MASKED`.
    match unsafe { check_from::<V, false>(start, offset, bytes.len(), MaskKey::default(), state) } {
        Ok(true) => Outcome::valid(Utf8State::default()),
        Ok(false) => state.advance(bytes),
        Err(len) => Outcome::bad_within(len),
    }
}

/// As [`validate_from`] of masked bytes, of which the first `offset` are unmasked.
///
/// # Safety
/// That of [`validate_from`].
#[inline(always)]
pub(super) unsafe fn unmask_validate_from<V: Vector>(
    bytes: &mut [u8],
    offset: usize,
    key: MaskKey,
    state: Utf8State,
) -> Outcome {
    let start = bytes.as_mut_ptr();
    // SAFETY: the CPU has the instruction set, and `offset` is in bounds (contract); the slice is
    // readable and writable for its length.
    match unsafe { check_from::<V, true>(start, offset, bytes.len(), key, state) } {
        Ok(true) => Outcome::valid(Utf8State::default()),
        Ok(false) => state.advance(bytes),
        Err(len) => Outcome::bad_within(len),
    }
}

/// Takes ASCII off the front, some vectors at a time; says how much of `len` that is. What is
/// behind it is not changed.
///
/// # Safety
/// The CPU has the instruction set of `V`; `start` points to `len` readable bytes, writable
/// where `MASKED`.
#[inline(always)]
unsafe fn ascii_prefix<V: Vector, const MASKED: bool>(
    start: *mut u8,
    len: usize,
    key: MaskKey,
) -> usize {
    if len < V::LEN {
        // SAFETY: that of this function; a CPU that has the longer registers has the shorter ones.
        return unsafe {
            match V::HAS_HALF {
                true => ascii_prefix::<V::Half, MASKED>(start, len, key),
                false => ascii_short::<MASKED>(start, len, key),
            }
        };
    }
    let mut offset = 0;
    // SAFETY: the CPU has the instruction set (contract). Vectors are loaded and stored only at
    // offsets with `offset + V::LEN <= len`: of two at each end there are more than two.
    unsafe {
        let mask = V::splat_u32(key.0);
        // As in `unmask`, the last vector overlaps the one before it.
        let end = start.add(len - V::LEN);
        let last = load_at::<V, MASKED>(start, len - V::LEN, 0, key);
        if len <= 4 * V::LEN {
            // What is short has no loop: two vectors, or two at each end.
            let a = load_at::<V, MASKED>(start, 0, 0, key);
            if len <= 2 * V::LEN {
                if !a.or(last).is_ascii() {
                    return 0;
                }
            } else {
                let b = load_at::<V, MASKED>(start, V::LEN, 0, key);
                let c = load_at::<V, MASKED>(start, len - 2 * V::LEN, 0, key);
                if !a.or(b).or(c.or(last)).is_ascii() {
                    return 0;
                }
                if MASKED {
                    b.store(start.add(V::LEN));
                    c.store(start.add(len - 2 * V::LEN));
                }
            }
            if MASKED {
                a.store(start);
                last.store(end);
            }
            return len;
        }
        // To look at a vector takes the place of a store: eight are looked at together.
        while offset + 8 * V::LEN <= len {
            let at = start.add(offset);
            let mut vectors = [V::splat(0); 8];
            let mut all = V::splat(0);
            for (index, vector) in vectors.iter_mut().enumerate() {
                *vector = V::load(at.add(index * V::LEN));
                if MASKED {
                    *vector = vector.xor(mask);
                }
                all = all.or(*vector);
            }
            if !all.is_ascii() {
                return offset;
            }
            if MASKED {
                for (index, vector) in vectors.into_iter().enumerate() {
                    vector.store(at.add(index * V::LEN));
                }
            }
            offset += 8 * V::LEN;
        }
        if offset + 4 * V::LEN <= len {
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
        if offset + 2 * V::LEN <= len {
            let at = start.add(offset);
            let mut a = V::load(at);
            let mut b = V::load(at.add(V::LEN));
            if MASKED {
                (a, b) = (a.xor(mask), b.xor(mask));
            }
            if !a.or(b).is_ascii() {
                return offset;
            }
            if MASKED {
                a.store(at);
                b.store(at.add(V::LEN));
            }
            offset += 2 * V::LEN;
        }
        if offset + V::LEN <= len {
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
            if !last.is_ascii() {
                return offset;
            }
            if MASKED {
                last.store(end);
            }
        }
    }
    len
}

/// [`ascii_prefix`] of fewer than 16 bytes: all of them or none.
///
/// # Safety
/// `start` points to `len < 16` readable bytes, writable where `MASKED`.
#[inline(always)]
unsafe fn ascii_short<const MASKED: bool>(start: *mut u8, len: usize, key: MaskKey) -> usize {
    // SAFETY: whatever is read or written lies within `len` bytes (each branch has as many).
    unsafe {
        if len >= 8 {
            let end = start.add(len - 8);
            let wide = |key: MaskKey| u64::from(key.0) | u64::from(key.0) << 32;
            let first = start.cast::<u64>().read_unaligned() ^ wide(key);
            let last = end.cast::<u64>().read_unaligned() ^ wide(key.advance(len - 8));
            if (first | last) & 0x8080_8080_8080_8080 != 0 {
                return 0;
            }
            if MASKED {
                start.cast::<u64>().write_unaligned(first);
                end.cast::<u64>().write_unaligned(last);
            }
        } else if len >= 4 {
            let end = start.add(len - 4);
            let first = start.cast::<u32>().read_unaligned() ^ key.0;
            let last = end.cast::<u32>().read_unaligned() ^ key.advance(len - 4).0;
            if (first | last) & 0x8080_8080 != 0 {
                return 0;
            }
            if MASKED {
                start.cast::<u32>().write_unaligned(first);
                end.cast::<u32>().write_unaligned(last);
            }
        } else if len > 0 {
            let (middle, end) = (len / 2, len - 1);
            let key = key.to_bytes();
            let bytes = [
                *start ^ key[0],
                *start.add(middle) ^ key[middle],
                *start.add(end) ^ key[end],
            ];
            if (bytes[0] | bytes[1] | bytes[2]) & 0x80 != 0 {
                return 0;
            }
            if MASKED {
                *start = bytes[0];
                *start.add(middle) = bytes[1];
                *start.add(end) = bytes[2];
            }
        }
    }
    len
}

/// Checks what lies from `offset` on, where `state` has been left. Says whether it ends at a
/// character boundary: where it does not, its last byte has yet to be looked at, for it may be one
/// that leads nothing. On failure a length such that the first bad byte lies in that much; so much
/// is unmasked.
///
/// # Safety
/// That of [`ascii_prefix`]; `offset <= len`, and where `MASKED` the first `offset` bytes are
/// unmasked.
#[inline(always)]
unsafe fn check_from<V: Vector, const MASKED: bool>(
    start: *mut u8,
    mut offset: usize,
    len: usize,
    key: MaskKey,
    state: Utf8State,
) -> Result<bool, usize> {
    if V::HAS_HALF && len < 2 * V::LEN {
        // SAFETY: that of this function; a CPU that has the longer registers has the shorter ones.
        return unsafe { check_from::<V::Half, MASKED>(start, offset, len, key, state) };
    }
    // SAFETY: the CPU has the instruction set (contract). Vectors are loaded and stored only at
    // offsets with `offset + V::LEN <= len`, a part of one only of what is left, and the two at the
    // end only where there are two.
    unsafe {
        let mask = V::splat_u32(key.0);
        let mut checker = Checker::<V>::new(state);
        if len == 2 * V::LEN && offset == 0 {
            // What is short has no loop.
            let (mut a, mut b) = (V::load(start), V::load(start.add(V::LEN)));
            if MASKED {
                (a, b) = (a.xor(mask), b.xor(mask));
                a.store(start);
                b.store(start.add(V::LEN));
            }
            checker.check(a);
            checker.check(b);
            return checker.result(len);
        }
        // The last vector overlaps the one before it, and is checked behind what it follows; both
        // are taken while they are masked.
        let has_two = len >= 2 * V::LEN;
        let (mut last_before, mut last) = (checker.before, checker.before);
        let tail_len = (len - offset) % V::LEN;
        if has_two && tail_len > 0 {
            last_before = load_at::<V, MASKED>(start, len - 2 * V::LEN, offset, key);
            last = load_at::<V, MASKED>(start, len - V::LEN, offset, key);
        }
        while offset + 2 * V::LEN <= len {
            let at = start.add(offset);
            let mut a = V::load(at);
            let mut b = V::load(at.add(V::LEN));
            if MASKED {
                (a, b) = (a.xor(mask), b.xor(mask));
                a.store(at);
                b.store(at.add(V::LEN));
            }
            offset += 2 * V::LEN;
            if a.or(b).is_ascii() {
                checker.ascii();
            } else {
                checker.check(a);
                checker.check(b);
            }
        }
        if offset + V::LEN <= len {
            let at = start.add(offset);
            let mut a = V::load(at);
            if MASKED {
                a = a.xor(mask);
                a.store(at);
            }
            offset += V::LEN;
            if a.is_ascii() {
                checker.ascii();
            } else {
                checker.check(a);
            }
        }
        if offset < len {
            if has_two {
                if MASKED {
                    last.store(start.add(len - V::LEN));
                }
                checker.before = last_before;
                checker.check(last);
            } else {
                let (at, rest) = (start.add(offset), len - offset);
                let mut a = V::load_part(at, rest);
                if MASKED {
                    a = a.xor(mask).front(rest);
                    a.store_part(at, rest);
                }
                checker.check_tail(a, rest);
            }
        }
        checker.result(len)
    }
}

/// The vector at `place`, unmasked: what lies before `offset` is so already.
///
/// # Safety
/// The CPU has the instruction set of `V`; `place + V::LEN` bytes are readable.
#[inline(always)]
unsafe fn load_at<V: Vector, const MASKED: bool>(
    start: *mut u8,
    place: usize,
    offset: usize,
    key: MaskKey,
) -> V {
    // SAFETY: the CPU has the instruction set, and the vector is readable (contract); `V::LEN`
    // bytes are read from index `VECTOR_LEN_MAX - unmasked` of `2 * VECTOR_LEN_MAX`.
    unsafe {
        let bytes = V::load(start.add(place));
        if !MASKED {
            return bytes;
        }
        let mut mask = V::splat_u32(key.advance(place).0);
        if offset > place {
            let unmasked = (offset - place).min(V::LEN);
            mask = mask.and(V::load(REST_MASK[VECTOR_LEN_MAX - unmasked..].as_ptr()));
        }
        bytes.xor(mask)
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

    /// What [`check_from`] says of `len` bytes.
    ///
    /// # Safety
    /// That of [`Vector`].
    #[inline(always)]
    unsafe fn result(&self, len: usize) -> Result<bool, usize> {
        // SAFETY: the CPU has the instruction set (contract).
        unsafe {
            if self.error.or(self.incomplete).is_zero() {
                Ok(true)
            } else if self.error.is_zero() {
                Ok(false)
            } else {
                Err(len)
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

/// Read from index `VECTOR_LEN_MAX - len`: `len` zeros, then 0xFF.
static REST_MASK: [u8; 2 * VECTOR_LEN_MAX] = {
    let mut mask = [0xFF; 2 * VECTOR_LEN_MAX];
    let mut index = 0;
    while index < VECTOR_LEN_MAX {
        mask[index] = 0;
        index += 1;
    }
    mask
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
