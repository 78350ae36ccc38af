//! NEON registers, which every AArch64 CPU has.

use core::arch::aarch64::*;

use super::Kernels;
use super::MaskKey;
use super::Outcome;
use super::Utf8State;
use super::vector;
use super::vector::Vector;

pub(super) static KERNELS: Kernels = Kernels {
    name: "neon",
    unmask,
    validate,
    unmask_validate,
};

fn unmask(bytes: &mut [u8], key: MaskKey) {
    // SAFETY: NEON is part of the AArch64 baseline.
    unsafe { vector::unmask::<uint8x16_t>(bytes, key) }
}

fn validate(bytes: &[u8], state: Utf8State) -> Outcome {
    // SAFETY: NEON is part of the AArch64 baseline; `offset` is a length of a part of `bytes`.
    unsafe {
        let offset = vector::ascii_len::<uint8x16_t>(bytes, state);
        if offset == bytes.len() && state.is_complete() {
            return Outcome::valid(state);
        }
        vector::validate_from::<uint8x16_t>(bytes, offset, state)
    }
}

fn unmask_validate(bytes: &mut [u8], key: MaskKey, state: Utf8State) -> Outcome {
    // SAFETY: as in `validate`.
    unsafe {
        let offset = vector::unmask_ascii::<uint8x16_t>(bytes, key, state);
        if offset == bytes.len() && state.is_complete() {
            return Outcome::valid(state);
        }
        vector::unmask_validate_from::<uint8x16_t>(bytes, offset, key, state)
    }
}

/// One method: its body is intrinsics of the instruction set.
macro_rules! method {
    ($(fn $name:ident $(<const $n:ident>)? ($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {
        $(
            #[inline(always)]
            #[allow(clippy::needless_arbitrary_self_type, reason = "what the pattern can match")]
            #[allow(unused_unsafe, reason = "which intrinsics are safe depends on the compiler")]
            unsafe fn $name $(<const $n: i32>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: NEON is part of the baseline, and pointers are good for one vector
                // (the contract of `Vector`).
                unsafe { $body }
            }
        )*
    };
}

// SAFETY: every method is the named intrinsic operation on 16 bytes.
unsafe impl Vector for uint8x16_t {
    const LEN: usize = 16;
    type Half = Self;
    method! {
        fn splat(byte: u8) -> Self { vdupq_n_u8(byte) }
        fn splat_u32(word: u32) -> Self { vreinterpretq_u8_u32(vdupq_n_u32(word)) }
        fn table(table: &[u8; 16]) -> Self { vld1q_u8(table.as_ptr()) }
        fn load(from: *const u8) -> Self { vld1q_u8(from) }
        fn xor(self: Self, other: Self) -> Self { veorq_u8(self, other) }
        fn or(self: Self, other: Self) -> Self { vorrq_u8(self, other) }
        fn and(self: Self, other: Self) -> Self { vandq_u8(self, other) }
        fn saturating_sub(self: Self, other: Self) -> Self { vqsubq_u8(self, other) }
        fn high_nibbles(self: Self) -> Self { vshrq_n_u8(self, 4) }
        fn look_up(self: Self, table: Self) -> Self { vqtbl1q_u8(table, self) }
        fn is_zero(self: Self) -> bool { vmaxvq_u8(self) == 0 }
        fn is_ascii(self: Self) -> bool { vmaxvq_u8(self) < 0x80 }
        fn store(self: Self, to: *mut u8) { vst1q_u8(to, self) }
        fn previous<const N>(self: Self, before: Self) -> Self {
            match N {
                1 => vextq_u8(before, self, 15),
                2 => vextq_u8(before, self, 14),
                _ => vextq_u8(before, self, 13),
            }
        }
    }
}
