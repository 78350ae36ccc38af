//! SSE2, SSSE3, AVX2 and AVX-512 registers.
//!
//! SSE2 is what every x86-64 CPU has. It lacks the byte shuffle that the UTF-8 tables need, so
//! its look-ups go through memory; ASCII and unmasking do not look anything up.

use core::arch::x86_64::*;

use super::Kernels;
use super::MaskKey;
use super::Outcome;
use super::Utf8State;
use super::vector;
use super::vector::Vector;

/// Kernels of one instruction set: safe wrappers, reachable only through a table that
/// [`Kernels::for_each_available`] hands out after it has asked the CPU.
///
/// What stores uses `$stored`: see [`AVX512`].
macro_rules! kernels {
    ($table:ident, $name:literal, $vector:ty, $features:literal) => {
        kernels!($table, $name, $vector, $vector, $features);
    };
    ($table:ident, $name:literal, $vector:ty, $stored:ty, $features:literal) => {
        pub(super) static $table: Kernels = {
            fn unmask(bytes: &mut [u8], key: MaskKey) {
                #[target_feature(enable = $features)]
                fn kernel(bytes: &mut [u8], key: MaskKey) {
                    // SAFETY: the enclosing function has the vector's target features.
                    unsafe { vector::unmask::<$stored>(bytes, key) }
                }
                // SAFETY: this table is handed out only where the CPU has these features.
                unsafe { kernel(bytes, key) }
            }
            fn validate(bytes: &[u8], state: Utf8State) -> Outcome {
                #[target_feature(enable = $features)]
                fn kernel(bytes: &[u8], state: Utf8State) -> Outcome {
                    // SAFETY: the enclosing function has the vector's target features.
                    let offset = unsafe { vector::ascii_len::<$vector>(bytes, state) };
                    if offset == bytes.len() && state.is_complete() {
                        return Outcome::valid(state);
                    }
                    rest(bytes, offset, state)
                }
                // A function of its own, that the common case does without its registers.
                #[inline(never)]
                #[target_feature(enable = $features)]
                fn rest(bytes: &[u8], offset: usize, state: Utf8State) -> Outcome {
                    // SAFETY: the enclosing function has the vector's target features, and
                    // `offset` is what `ascii_len` gave.
                    unsafe { vector::validate_from::<$vector>(bytes, offset, state) }
                }
                // SAFETY: this table is handed out only where the CPU has these features.
                unsafe { kernel(bytes, state) }
            }
            fn unmask_validate(bytes: &mut [u8], key: MaskKey, state: Utf8State) -> Outcome {
                #[target_feature(enable = $features)]
                fn kernel(bytes: &mut [u8], key: MaskKey, state: Utf8State) -> Outcome {
                    // SAFETY: the enclosing function has the vector's target features.
                    let offset = unsafe { vector::unmask_ascii::<$stored>(bytes, key, state) };
                    if offset == bytes.len() && state.is_complete() {
                        return Outcome::valid(state);
                    }
                    rest(bytes, offset, key, state)
                }
                #[inline(never)]
                #[target_feature(enable = $features)]
                fn rest(
                    bytes: &mut [u8],
                    offset: usize,
                    key: MaskKey,
                    state: Utf8State,
                ) -> Outcome {
                    // SAFETY: the enclosing function has the vector's target features, and
                    // `offset` is what `unmask_ascii` gave.
                    unsafe {
                        if <$stored>::LEN < <$vector>::LEN && bytes.len() < WIDE_STORE_LEN_MIN {
                            vector::unmask_validate_from::<$stored>(bytes, offset, key, state)
                        } else {
                            vector::unmask_validate_from::<$vector>(bytes, offset, key, state)
                        }
                    }
                }
                // SAFETY: this table is handed out only where the CPU has these features.
                unsafe { kernel(bytes, key, state) }
            }
            Kernels {
                name: $name,
                unmask,
                validate,
                unmask_validate,
            }
        };
    };
}

kernels!(SSE2, "sse2", Sse2, "sse2");
kernels!(SSSE3, "ssse3", __m128i, "ssse3");
kernels!(AVX2, "avx2", __m256i, "avx2");
// 64 bytes that were stored across two cache lines cannot be loaded again before they are in the
// cache (Zen 4), and payloads lie anywhere: what is short is stored 32 bytes at a time.
kernels!(AVX512, "avx512", __m512i, __m256i, "avx512f,avx512bw");

/// From this length on the check gains more by registers of 64 bytes than their stores cost.
const WIDE_STORE_LEN_MIN: usize = 768;

/// One method: its body is intrinsics of the instruction set.
macro_rules! method {
    ($(fn $name:ident $(<const $n:ident>)? ($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {
        $(
            #[inline(always)]
            #[allow(clippy::needless_arbitrary_self_type, reason = "what the pattern can match")]
            unsafe fn $name $(<const $n: i32>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller has made sure that the CPU has the instruction set, and
                // that pointers are good for one vector (the contract of `Vector`).
                unsafe { $body }
            }
        )*
    };
}

/// A 16-byte register of a CPU without SSSE3.
#[derive(Clone, Copy)]
struct Sse2(__m128i);

// SAFETY: every method is an operation on 16 bytes that SSE2 has; those of `__m128i` that are
// used here are made of SSE2 intrinsics only.
unsafe impl Vector for Sse2 {
    const LEN: usize = 16;
    type Half = Self;
    method! {
        fn splat(byte: u8) -> Self { Self(__m128i::splat(byte)) }
        fn splat_u32(word: u32) -> Self { Self(__m128i::splat_u32(word)) }
        fn table(table: &[u8; 16]) -> Self { Self(__m128i::table(table)) }
        fn load(from: *const u8) -> Self { Self(__m128i::load(from)) }
        fn xor(self: Self, other: Self) -> Self { Self(self.0.xor(other.0)) }
        fn or(self: Self, other: Self) -> Self { Self(self.0.or(other.0)) }
        fn and(self: Self, other: Self) -> Self { Self(self.0.and(other.0)) }
        fn saturating_sub(self: Self, other: Self) -> Self { Self(self.0.saturating_sub(other.0)) }
        fn high_nibbles(self: Self) -> Self { Self(self.0.high_nibbles()) }
        fn look_up(self: Self, table: Self) -> Self {
            {
                let (mut bytes, mut entries) = ([0_u8; 16], [0_u8; 16]);
                self.store(bytes.as_mut_ptr());
                table.store(entries.as_mut_ptr());
                Self::load(bytes.map(|index| entries[usize::from(index & 0x0F)]).as_ptr())
            }
        }
        fn is_zero(self: Self) -> bool { self.0.is_zero() }
        fn is_ascii(self: Self) -> bool { self.0.is_ascii() }
        fn store(self: Self, to: *mut u8) { self.0.store(to) }
        fn load_part(from: *const u8, len: usize) -> Self { Self(__m128i::load_part(from, len)) }
        fn store_part(self: Self, to: *mut u8, len: usize) { self.0.store_part(to, len) }
        fn previous<const N>(self: Self, before: Self) -> Self {
            Self(match N {
                1 => _mm_or_si128(_mm_slli_si128(self.0, 1), _mm_srli_si128(before.0, 15)),
                2 => _mm_or_si128(_mm_slli_si128(self.0, 2), _mm_srli_si128(before.0, 14)),
                _ => _mm_or_si128(_mm_slli_si128(self.0, 3), _mm_srli_si128(before.0, 13)),
            })
        }
    }
}

// SAFETY: every method is the named intrinsic operation on 16 bytes.
unsafe impl Vector for __m128i {
    const LEN: usize = 16;
    type Half = Self;
    method! {
        fn splat(byte: u8) -> Self { _mm_set1_epi8(byte as i8) }
        fn splat_u32(word: u32) -> Self { _mm_set1_epi32(word as i32) }
        fn table(table: &[u8; 16]) -> Self { _mm_loadu_si128(table.as_ptr().cast()) }
        fn load(from: *const u8) -> Self { _mm_loadu_si128(from.cast()) }
        fn xor(self: Self, other: Self) -> Self { _mm_xor_si128(self, other) }
        fn or(self: Self, other: Self) -> Self { _mm_or_si128(self, other) }
        fn and(self: Self, other: Self) -> Self { _mm_and_si128(self, other) }
        fn saturating_sub(self: Self, other: Self) -> Self { _mm_subs_epu8(self, other) }
        fn high_nibbles(self: Self) -> Self { _mm_and_si128(_mm_srli_epi16(self, 4), _mm_set1_epi8(0x0F)) }
        fn look_up(self: Self, table: Self) -> Self { _mm_shuffle_epi8(table, self) }
        fn is_zero(self: Self) -> bool { _mm_movemask_epi8(_mm_cmpeq_epi8(self, _mm_setzero_si128())) == 0xFFFF }
        fn is_ascii(self: Self) -> bool { _mm_movemask_epi8(self) == 0 }
        fn store(self: Self, to: *mut u8) { _mm_storeu_si128(to.cast(), self) }
        fn load_part(from: *const u8, len: usize) -> Self {
            {
                let [low, high] = load_short(from, len);
                _mm_set_epi64x(high as i64, low as i64)
            }
        }
        fn store_part(self: Self, to: *mut u8, len: usize) {
            {
                let low = _mm_cvtsi128_si64(self) as u64;
                let high = _mm_cvtsi128_si64(_mm_unpackhi_epi64(self, self)) as u64;
                store_short([low, high], to, len);
            }
        }
        fn previous<const N>(self: Self, before: Self) -> Self {
            match N {
                1 => _mm_alignr_epi8(self, before, 15),
                2 => _mm_alignr_epi8(self, before, 14),
                _ => _mm_alignr_epi8(self, before, 13),
            }
        }
    }
}

// SAFETY: every method is the named intrinsic operation on 32 bytes.
unsafe impl Vector for __m256i {
    const LEN: usize = 32;
    type Half = __m128i;
    method! {
        fn splat(byte: u8) -> Self { _mm256_set1_epi8(byte as i8) }
        fn splat_u32(word: u32) -> Self { _mm256_set1_epi32(word as i32) }
        fn table(table: &[u8; 16]) -> Self { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) }
        fn load(from: *const u8) -> Self { _mm256_loadu_si256(from.cast()) }
        fn xor(self: Self, other: Self) -> Self { _mm256_xor_si256(self, other) }
        fn or(self: Self, other: Self) -> Self { _mm256_or_si256(self, other) }
        fn and(self: Self, other: Self) -> Self { _mm256_and_si256(self, other) }
        fn saturating_sub(self: Self, other: Self) -> Self { _mm256_subs_epu8(self, other) }
        fn high_nibbles(self: Self) -> Self { _mm256_and_si256(_mm256_srli_epi16(self, 4), _mm256_set1_epi8(0x0F)) }
        fn look_up(self: Self, table: Self) -> Self { _mm256_shuffle_epi8(table, self) }
        fn is_zero(self: Self) -> bool { _mm256_testz_si256(self, self) == 1 }
        fn is_ascii(self: Self) -> bool { _mm256_movemask_epi8(self) == 0 }
        fn store(self: Self, to: *mut u8) { _mm256_storeu_si256(to.cast(), self) }
        fn previous<const N>(self: Self, before: Self) -> Self {
            {
                // The upper half of `before` and the lower half of `a`: what each 16-byte
                // lane of `a` follows.
                let lanes_before = _mm256_permute2x128_si256(before, self, 0x21);
                match N {
                    1 => _mm256_alignr_epi8(self, lanes_before, 15),
                    2 => _mm256_alignr_epi8(self, lanes_before, 14),
                    _ => _mm256_alignr_epi8(self, lanes_before, 13),
                }
            }
        }
    }
}

// SAFETY: every method is the named intrinsic operation on 64 bytes.
unsafe impl Vector for __m512i {
    const LEN: usize = 64;
    type Half = __m256i;
    method! {
        fn splat(byte: u8) -> Self { _mm512_set1_epi8(byte as i8) }
        fn splat_u32(word: u32) -> Self { _mm512_set1_epi32(word as i32) }
        fn table(table: &[u8; 16]) -> Self { _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())) }
        fn load(from: *const u8) -> Self { _mm512_loadu_si512(from.cast()) }
        fn xor(self: Self, other: Self) -> Self { _mm512_xor_si512(self, other) }
        fn or(self: Self, other: Self) -> Self { _mm512_or_si512(self, other) }
        fn and(self: Self, other: Self) -> Self { _mm512_and_si512(self, other) }
        fn saturating_sub(self: Self, other: Self) -> Self { _mm512_subs_epu8(self, other) }
        fn high_nibbles(self: Self) -> Self { _mm512_and_si512(_mm512_srli_epi16(self, 4), _mm512_set1_epi8(0x0F)) }
        fn look_up(self: Self, table: Self) -> Self { _mm512_shuffle_epi8(table, self) }
        fn is_zero(self: Self) -> bool { _mm512_test_epi8_mask(self, self) == 0 }
        fn is_ascii(self: Self) -> bool { _mm512_movepi8_mask(self) == 0 }
        fn store(self: Self, to: *mut u8) { _mm512_storeu_si512(to.cast(), self) }
        fn previous<const N>(self: Self, before: Self) -> Self {
            {
                // Every 16-byte lane replaced by the one before it.
                let lanes_before = _mm512_alignr_epi32(self, before, 12);
                match N {
                    1 => _mm512_alignr_epi8(self, lanes_before, 15),
                    2 => _mm512_alignr_epi8(self, lanes_before, 14),
                    _ => _mm512_alignr_epi8(self, lanes_before, 13),
                }
            }
        }
    }
}

/// The first `len` bytes and zeros, in the order of memory: from the least significant byte on.
///
/// # Safety
/// `from` points to `len` readable bytes, more than none and fewer than 16.
#[inline(always)]
unsafe fn load_short(from: *const u8, len: usize) -> [u64; 2] {
    // SAFETY: whatever is read lies within `len` bytes (each branch has as many).
    unsafe {
        if len >= 8 {
            let low = from.cast::<u64>().read_unaligned();
            let last = from.add(len - 8).cast::<u64>().read_unaligned();
            // What `last` has besides is in `low`; all of it if there are only eight bytes.
            let bits = 4 * (16 - len as u32);
            [low, last >> bits >> bits]
        } else if len >= 4 {
            let first = from.cast::<u32>().read_unaligned();
            let last = from.add(len - 4).cast::<u32>().read_unaligned();
            [u64::from(first) | u64::from(last) << (8 * (len - 4)), 0]
        } else {
            let (first, middle, last) = (*from, *from.add(len / 2), *from.add(len - 1));
            let middle = u64::from(middle) << (8 * (len / 2));
            [
                u64::from(first) | middle | u64::from(last) << (8 * (len - 1)),
                0,
            ]
        }
    }
}

/// Stores the first `len` bytes, as [`load_short`] gives them.
///
/// # Safety
/// `to` points to `len` writable bytes, more than none and fewer than 16.
#[inline(always)]
unsafe fn store_short([low, high]: [u64; 2], to: *mut u8, len: usize) {
    // SAFETY: whatever is written lies within `len` bytes (each branch has as many).
    unsafe {
        if len >= 8 {
            let both = u128::from(low) | u128::from(high) << 64;
            let last = (both >> (8 * (len - 8))) as u64;
            to.cast::<u64>().write_unaligned(low);
            to.add(len - 8).cast::<u64>().write_unaligned(last);
        } else if len >= 4 {
            to.cast::<u32>().write_unaligned(low as u32);
            let last = (low >> (8 * (len - 4))) as u32;
            to.add(len - 4).cast::<u32>().write_unaligned(last);
        } else {
            let byte = |index: usize| (low >> (8 * index)) as u8;
            *to = byte(0);
            *to.add(len / 2) = byte(len / 2);
            *to.add(len - 1) = byte(len - 1);
        }
    }
}
