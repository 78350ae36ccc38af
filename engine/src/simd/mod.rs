//! Unmasking (RFC 6455 §5.3) and UTF-8 validation (RFC 3629) kernels.
//!
//! One algorithm in `vector.rs`, instantiated once per instruction set in a thin file each,
//! with `scalar.rs` as the truth that every kernel is tested against. The best kernels that
//! the CPU has are chosen once per process.
//!
//! This room knows nothing of frames: a caller passes the masking key rotated to the phase at
//! which the bytes begin, and the UTF-8 state that the bytes before left behind.
//!
//! **Invariant:** whatever the cut points, feeding a stream in pieces gives the same bytes,
//! the same final state and the same first bad byte as feeding it whole.

#[cfg_attr(not(feature = "std"), allow(dead_code))]
mod scalar;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "runs of intrinsics")]
mod vector;

#[cfg(target_arch = "aarch64")]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "runs of intrinsics")]
mod neon;
// Without an operating system to ask, only the baseline is used.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(feature = "std"), allow(dead_code))]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "runs of intrinsics")]
mod x86;

#[cfg(test)]
mod tests;

/// A masking key at a phase: the next payload byte is XORed with the first byte of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaskKey(u32);

impl MaskKey {
    /// The key as it stands in the frame header, at the first payload byte.
    #[inline]
    pub fn new(key: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(key))
    }

    /// The four bytes that the next four payload bytes are XORed with.
    #[inline]
    pub fn to_bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// The key after `len` payload bytes.
    #[inline]
    #[must_use]
    pub fn advance(self, len: usize) -> Self {
        let bits = 8 * (len % 4) as u32;
        Self(if cfg!(target_endian = "little") {
            self.0.rotate_right(bits)
        } else {
            self.0.rotate_left(bits)
        })
    }
}

/// Where a UTF-8 stream stands between two pieces: the bytes of an unfinished sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Utf8State {
    /// The last zero to three bytes of the stream, the latest in the low byte; zero at a
    /// character boundary.
    pending: u32,
}

impl Utf8State {
    /// Whether the stream may end here.
    #[inline]
    pub fn is_complete(self) -> bool {
        self.pending == 0
    }

    /// The state after valid bytes that end in `last` (the latest byte in the low byte).
    #[inline]
    fn after(last: u32) -> Self {
        let pending = if last & 0xFF >= 0xC0 {
            last & 0xFF
        } else if (last >> 8) & 0xFF >= 0xE0 {
            last & 0xFFFF
        } else if (last >> 16) & 0xFF >= 0xF0 {
            last & 0x00FF_FFFF
        } else {
            0
        };
        Self { pending }
    }

    /// The state after `bytes` that followed this state and were found valid, but for a last
    /// byte that nothing has followed yet: then their length, if that byte leads nothing.
    #[inline]
    fn advance(self, bytes: &[u8]) -> Outcome {
        if matches!(bytes.last(), Some(0xC0 | 0xC1 | 0xF5..)) {
            return Outcome::bad_within(bytes.len());
        }
        let tail = &bytes[bytes.len().saturating_sub(3)..];
        let last = tail
            .iter()
            .fold(self.pending, |last, &byte| last << 8 | u32::from(byte));
        Outcome::valid(Self::after(last))
    }
}

/// The stream is not UTF-8 from this byte of the piece on (RFC 6455 §8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utf8Error {
    /// Index in the piece of the first byte that no valid stream could have here.
    pub offset: usize,
}

/// XORs `bytes` with the key.
#[inline]
pub fn unmask(bytes: &mut [u8], key: MaskKey) {
    Kernels::best().unmask(bytes, key);
}

/// Checks that `bytes` go on as UTF-8 after `state`.
///
/// # Errors
/// The first byte that cannot be part of a UTF-8 stream.
#[inline]
pub fn validate(bytes: &[u8], state: Utf8State) -> Result<Utf8State, Utf8Error> {
    Kernels::best().validate(bytes, state)
}

/// XORs `bytes` with the key and checks the result, in one pass over memory.
///
/// # Errors
/// The first byte that cannot be part of a UTF-8 stream; `bytes` then hold a mixture of
/// masked and unmasked payload and are of no more use.
#[inline]
pub fn unmask_validate(
    bytes: &mut [u8],
    key: MaskKey,
    state: Utf8State,
) -> Result<Utf8State, Utf8Error> {
    Kernels::best().unmask_validate(bytes, key, state)
}

/// XORs a whole text with the key and checks it.
///
/// # Errors
/// The first byte that cannot be part of a UTF-8 text; the length, if the text ends inside a
/// character.
#[inline]
pub fn unmask_text(bytes: &mut [u8], key: MaskKey) -> Result<&str, Utf8Error> {
    let state = unmask_validate(bytes, key, Utf8State::default())?;
    if !state.is_complete() {
        let offset = bytes.len();
        return Err(Utf8Error { offset });
    }
    // SAFETY: `unmask_validate` has found no error in these bytes from a character boundary
    // on, and they end at one.
    Ok(unsafe { core::str::from_utf8_unchecked(bytes) })
}

/// The bytes as text, if they are UTF-8.
pub fn to_str(bytes: &[u8]) -> Option<&str> {
    let state = validate(bytes, Utf8State::default()).ok()?;
    // SAFETY: `validate` has found no error in these bytes from a character boundary on, and
    // they end at one.
    state
        .is_complete()
        .then(|| unsafe { core::str::from_utf8_unchecked(bytes) })
}

/// What a kernel found, as two registers return it.
#[derive(Clone, Copy)]
struct Outcome {
    /// Zero, or a length such that the first bad byte lies in that much of the piece.
    bad_within: usize,
    state: Utf8State,
}

impl Outcome {
    #[inline]
    fn valid(state: Utf8State) -> Self {
        Self {
            bad_within: 0,
            state,
        }
    }

    #[inline]
    fn bad_within(len: usize) -> Self {
        Self {
            bad_within: len,
            state: Utf8State::default(),
        }
    }

    /// Finds the first bad byte of a piece that followed `before`.
    #[inline]
    fn locate(self, bytes: &[u8], before: Utf8State) -> Result<Utf8State, Utf8Error> {
        match self.bad_within {
            0 => Ok(self.state),
            len => Err(locate(&bytes[..len], before)),
        }
    }
}

/// One instruction set's kernels.
#[derive(Clone, Copy)]
pub struct Kernels {
    name: &'static str,
    unmask: fn(&mut [u8], MaskKey),
    validate: fn(&[u8], Utf8State) -> Outcome,
    /// As `validate`; as much of the piece as the bad byte lies in is unmasked.
    unmask_validate: fn(&mut [u8], MaskKey, Utf8State) -> Outcome,
}

impl core::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name)
    }
}

impl Kernels {
    /// The kernels that this process uses.
    #[inline]
    pub fn best() -> &'static Self {
        #[cfg(feature = "std")]
        {
            static BEST: std::sync::OnceLock<Kernels> = std::sync::OnceLock::new();
            BEST.get_or_init(Self::detect)
        }
        // Without an operating system to ask, what the target promises decides.
        #[cfg(not(feature = "std"))]
        {
            #[cfg(target_arch = "aarch64")]
            let best = &neon::KERNELS;
            #[cfg(target_arch = "x86_64")]
            let best = &x86::SSE2;
            #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
            let best = &scalar::KERNELS;
            best
        }
    }

    #[cfg(feature = "std")]
    fn detect() -> Self {
        let mut best = scalar::KERNELS;
        Self::for_each_available(|kernels| best = *kernels);
        best
    }

    /// Calls `f` with the kernels of every instruction set that this CPU has, the scalar
    /// ones first, the widest last.
    #[cfg(feature = "std")]
    pub fn for_each_available(mut f: impl FnMut(&Self)) {
        f(&scalar::KERNELS);
        #[cfg(target_arch = "x86_64")]
        {
            f(&x86::SSE2);
            if is_x86_feature_detected!("ssse3") {
                f(&x86::SSSE3);
            }
            if is_x86_feature_detected!("avx2") {
                f(&x86::AVX2);
            }
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512f") {
                f(&x86::AVX512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        f(&neon::KERNELS);
    }

    /// The instruction set.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// See [`unmask`].
    #[inline]
    pub fn unmask(&self, bytes: &mut [u8], key: MaskKey) {
        (self.unmask)(bytes, key);
    }

    /// See [`validate`].
    ///
    /// # Errors
    /// The first bad byte.
    #[inline]
    pub fn validate(&self, bytes: &[u8], state: Utf8State) -> Result<Utf8State, Utf8Error> {
        (self.validate)(bytes, state).locate(bytes, state)
    }

    /// See [`unmask_validate`].
    ///
    /// # Errors
    /// The first bad byte.
    #[inline]
    pub fn unmask_validate(
        &self,
        bytes: &mut [u8],
        key: MaskKey,
        state: Utf8State,
    ) -> Result<Utf8State, Utf8Error> {
        (self.unmask_validate)(bytes, key, state).locate(bytes, state)
    }
}

/// Finds the first bad byte in bytes that a vector kernel found to have one.
#[cold]
fn locate(bytes: &[u8], state: Utf8State) -> Utf8Error {
    let offset = scalar::first_bad(bytes, state);
    Utf8Error {
        offset: offset.expect("kernel and twin agree that there is a bad byte"),
    }
}
