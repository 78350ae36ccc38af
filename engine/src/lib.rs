//! sockeye: a WebSocket server engine.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

#[allow(
    unsafe_code,
    reason = "vector intrinsics; every kernel has a safe scalar twin"
)]
pub mod simd;
