//! SSE2, SSSE3, AVX2 and AVX-512 registers.
//!
//! SSE2 is what every x86-64 CPU has. It lacks the byte shuffle that the UTF-8 tables need, so
//! its look-ups go through memory; ASCII and unmasking do not look anything up.

use core::arch::x86_64::*;

use super::Kernels;
use super::MaskKey;
use super::Utf8State;
use super::vector;
use super::vector::Vector;

/// Kernels of one instruction set: safe wrappers, reachable only through a table that
/// [`Kernels::for_each_available`] hands out after it has asked the CPU.
macro_rules! kernels {
    ($table:ident, $name:literal, $vector:ty, $features:literal) => {
        pub(super) static $table: Kernels = {
            fn unmask(bytes: &mut [u8], key: MaskKey) {
                #[target_feature(enable = $features)]
                fn kernel(bytes: &mut [u8], key: MaskKey) {
                    // SAFETY: the enclosing function has the vector's target features.
                    unsafe { vector::unmask::<$vector>(bytes, key) }
                }
                // SAFETY: this table is handed out only where the CPU has these features.
                unsafe { kernel(bytes, key) }
            }
            fn validate(bytes: &[u8], state: Utf8State) -> Result<Utf8State, usize> {
                #[target_feature(enable = $features)]
                fn kernel(bytes: &[u8], state: Utf8State) -> Result<Utf8State, usize> {
                    // SAFETY: the enclosing function has the vector's target features.
                    unsafe { vector::validate::<$vector>(bytes, state) }
                }
                // SAFETY: this table is handed out only where the CPU has these features.
                unsafe { kernel(bytes, state) }
            }
            fn unmask_validate(
                bytes: &mut [u8],
                key: MaskKey,
                state: Utf8State,
            ) -> Result<Utf8State, usize> {
                #[target_feature(enable = $features)]
                fn kernel(
                    bytes: &mut [u8],
                    key: MaskKey,
                    state: Utf8State,
                ) -> Result<Utf8State, usize> {
                    // SAFETY: the enclosing function has the vector's target features.
                    unsafe { vector::unmask_validate::<$vector>(bytes, key, state) }
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
kernels!(AVX512, "avx512", __m512i, "avx512f,avx512bw");

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
