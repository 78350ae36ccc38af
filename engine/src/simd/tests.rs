//! Every kernel against its scalar twin, and the twin against the standard library.

use std::vec::Vec;

use super::Kernels;
use super::MaskKey;
use super::Utf8Error;
use super::Utf8State;
use super::scalar;

const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

fn each_kernel(mut test: impl FnMut(&Kernels)) {
    let mut count = 0;
    Kernels::for_each_available(|kernels| {
        count += 1;
        test(kernels);
    });
    assert!(count > 0);
    #[cfg(any(target_arch = "aarch64", target_feature = "ssse3"))]
    assert!(count > 1, "no vector kernel was tested");
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    test(&wide::KERNELS);
}

/// Registers of 64 bytes made of arrays, whatever the CPU has: so the algorithms are tested in every
/// length.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "said once, for the module"
)]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "as in the kernels")]
mod wide {
    // SAFETY, of all that is unsafe here: arrays need no instruction set, and callers keep the
    // contract of `Vector` for pointers.

    use core::array;

    use super::super::Kernels;
    use super::super::MaskKey;
    use super::super::Outcome;
    use super::super::Utf8State;
    use super::super::vector;
    use super::super::vector::Vector;

    pub(super) static KERNELS: Kernels = Kernels {
        name: "arrays",
        unmask,
        validate,
        unmask_validate,
    };

    fn unmask(bytes: &mut [u8], key: MaskKey) {
        unsafe { vector::unmask::<Bytes<64>>(bytes, key) }
    }

    fn validate(bytes: &[u8], state: Utf8State) -> Outcome {
        unsafe {
            let offset = vector::ascii_len::<Bytes<64>>(bytes, state);
            vector::validate_from::<Bytes<64>>(bytes, offset, state)
        }
    }

    fn unmask_validate(bytes: &mut [u8], key: MaskKey, state: Utf8State) -> Outcome {
        unsafe {
            let offset = vector::unmask_ascii::<Bytes<64>>(bytes, key, state);
            vector::unmask_validate_from::<Bytes<64>>(bytes, offset, key, state)
        }
    }

    #[derive(Clone, Copy)]
    struct Bytes<const LEN: usize>([u8; LEN]);

    impl<const LEN: usize> Bytes<LEN> {
        fn zip(self, other: Self, f: impl Fn(u8, u8) -> u8) -> Self {
            Self(array::from_fn(|index| f(self.0[index], other.0[index])))
        }
    }

    macro_rules! vector {
        ($($len:literal, $half:literal;)*) => {
            $(unsafe impl Vector for Bytes<$len> {
                const LEN: usize = $len;
                type Half = Bytes<$half>;
                unsafe fn splat(byte: u8) -> Self {
                    Self([byte; $len])
                }
                unsafe fn splat_u32(word: u32) -> Self {
                    Self(array::from_fn(|index| word.to_ne_bytes()[index % 4]))
                }
                unsafe fn table(table: &[u8; 16]) -> Self {
                    Self(array::from_fn(|index| table[index % 16]))
                }
                unsafe fn load(from: *const u8) -> Self {
                    Self(unsafe { from.cast::<[u8; $len]>().read_unaligned() })
                }
                unsafe fn store(self, to: *mut u8) {
                    unsafe { to.cast::<[u8; $len]>().write_unaligned(self.0) }
                }
                unsafe fn xor(self, other: Self) -> Self {
                    self.zip(other, |a, b| a ^ b)
                }
                unsafe fn or(self, other: Self) -> Self {
                    self.zip(other, |a, b| a | b)
                }
                unsafe fn and(self, other: Self) -> Self {
                    self.zip(other, |a, b| a & b)
                }
                unsafe fn saturating_sub(self, other: Self) -> Self {
                    self.zip(other, u8::saturating_sub)
                }
                unsafe fn high_nibbles(self) -> Self {
                    Self(self.0.map(|byte| byte >> 4))
                }
                unsafe fn look_up(self, table: Self) -> Self {
                    Self(self.0.map(|index| table.0[usize::from(index)]))
                }
                unsafe fn previous<const N: i32>(self, before: Self) -> Self {
                    let stream = [before.0, self.0].concat();
                    Self(array::from_fn(|index| stream[$len + index - N as usize]))
                }
                unsafe fn is_zero(self) -> bool {
                    self.0.iter().all(|&byte| byte == 0)
                }
                unsafe fn is_ascii(self) -> bool {
                    self.0.is_ascii()
                }
            })*
        };
    }

    vector!(64, 32; 32, 16; 16, 16;);
}

/// Of many cases one in so many: arrays take a hundred times as long.
fn stride(kernels: &Kernels) -> usize {
    if kernels.name() == "arrays" { 31 } else { 1 }
}

fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let next = |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    };
    (0..len).map(next).collect()
}

/// Text whose characters have one to four bytes, in runs of each, `len` bytes long.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in noise(len + 1, seed) {
        let character = match byte {
            0..=99 => "a",
            100..=149 => "é",
            150..=199 => "€",
            200..=229 => "😀",
            _ => "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        };
        if text.len() + character.len() <= len {
            text.extend_from_slice(character.as_bytes());
        }
    }
    text.resize(len, b'.');
    text
}

#[test]
fn unmask_equals_its_twin_for_all_lengths_alignments_and_phases() {
    let len_max = if cfg!(miri) { 80 } else { 600 };
    let source = noise(len_max + 64, 1);
    each_kernel(|kernels| {
        for len in 0..=len_max {
            for start in [0, 1, 2, 3, 5, 8, 13, 31, 63] {
                for phase in 0..4 {
                    let key = MaskKey::new(KEY).advance(phase);
                    let mut want = source[start..start + len].to_vec();
                    for (index, byte) in want.iter_mut().enumerate() {
                        *byte ^= KEY[(index + phase) % 4];
                    }
                    let mut got = source.clone();
                    kernels.unmask(&mut got[start..start + len], key);
                    assert_eq!(got[start..start + len], want, "{kernels:?} {len} {start}");
                    assert_eq!(got[..start], source[..start], "{kernels:?} wrote before");
                    assert_eq!(got[start + len..], source[start + len..], "wrote behind");
                }
            }
        }
    });
}

#[test]
fn mask_key_advances_by_any_length() {
    for len in 0..9 {
        let got = MaskKey::new(KEY).advance(len).to_bytes();
        let want: Vec<u8> = (0..4).map(|index| KEY[(index + len) % 4]).collect();
        assert_eq!(got[..], want);
    }
}

/// What the standard library says, as this room says it.
fn by_std(bytes: &[u8]) -> Result<bool, Utf8Error> {
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(true),
        Err(error) => match error.error_len() {
            None => Ok(false),
            // `error_len` bytes are a valid beginning that the next byte spoils, but for a
            // lead byte that is no lead byte.
            Some(len) => {
                let start = error.valid_up_to();
                let lead_is_bad = matches!(bytes[start], 0x80..=0xC1 | 0xF5..);
                let offset = if lead_is_bad { start } else { start + len };
                Err(Utf8Error { offset })
            }
        },
    }
}

/// Whole, masked, and cut in two at every place.
fn check(kernels: &Kernels, bytes: &[u8]) {
    let want = by_std(bytes);
    let complete = |state: Utf8State| state.is_complete();
    let got = kernels.validate(bytes, Utf8State::default());
    assert_eq!(got.map(complete), want, "{kernels:?} {bytes:02X?}");

    let key = MaskKey::new(KEY);
    let mut masked = bytes.to_vec();
    scalar::unmask(&mut masked, key);
    let mut whole = masked.clone();
    let got = kernels.unmask_validate(&mut whole, key, Utf8State::default());
    assert_eq!(got.map(complete), want, "{kernels:?} {bytes:02X?}");
    if got.is_ok() {
        assert_eq!(whole, bytes);
    }

    for cut in 0..=bytes.len() {
        let mut pieces = masked.clone();
        let (first, second) = pieces.split_at_mut(cut);
        let got = kernels
            .unmask_validate(first, key, Utf8State::default())
            .and_then(|state| {
                kernels
                    .unmask_validate(second, key.advance(cut), state)
                    .map_err(|error| Utf8Error {
                        offset: cut + error.offset,
                    })
            });
        assert_eq!(
            got.map(complete),
            want,
            "{kernels:?} cut {cut} {bytes:02X?}"
        );
    }
}

#[test]
fn utf8_equals_std_for_every_sequence_of_two_bytes() {
    each_kernel(|kernels| {
        for pair in 0..=u16::MAX {
            if cfg!(miri) && pair % 251 != 0 {
                continue;
            }
            let bytes = pair.to_be_bytes();
            let got = kernels.validate(&bytes, Utf8State::default());
            assert_eq!(
                got.map(Utf8State::is_complete),
                by_std(&bytes),
                "{bytes:02X?}"
            );
        }
    });
}

/// The edges of every range in RFC 3629 §4, and their neighbours.
const EDGES: [u8; 24] = [
    0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC,
    0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5,
];

#[test]
fn utf8_equals_std_for_every_sequence_of_edge_bytes_at_every_place() {
    let places: &[usize] = if cfg!(miri) {
        &[0, 15]
    } else {
        &[0, 13, 14, 15, 16, 30, 61, 62, 63]
    };
    let step = if cfg!(miri) { 97 } else { 1 };
    each_kernel(|kernels| {
        let step = step * stride(kernels);
        for &place in places {
            let mut bytes = [b'.'; 70];
            for number in (0..EDGES.len().pow(4)).step_by(step) {
                let mut rest = number;
                for byte in &mut bytes[place..place + 4] {
                    *byte = EDGES[rest % EDGES.len()];
                    rest /= EDGES.len();
                }
                for len in [place + 4, 70] {
                    let got = kernels.validate(&bytes[..len], Utf8State::default());
                    let want = by_std(&bytes[..len]);
                    assert_eq!(got.map(Utf8State::is_complete), want, "{kernels:?}");
                }
            }
        }
    });
}

#[test]
fn utf8_equals_std_for_all_lengths_and_cut_points() {
    let len_max = if cfg!(miri) { 40 } else { 300 };
    each_kernel(|kernels| {
        // Longer ones are stored in longer registers.
        for len in (0..=len_max).chain((2 * len_max..4 * len_max).step_by(67)) {
            check(kernels, &text(len, len as u64));
        }
    });
}

#[test]
fn utf8_equals_std_with_one_byte_altered_anywhere() {
    let len = if cfg!(miri) { 20 } else { 300 };
    let base = text(len, 77);
    each_kernel(|kernels| {
        for place in (0..len).step_by(stride(kernels)) {
            for byte in [0x00, 0x80, 0xBF, 0xC0, 0xC3, 0xE0, 0xED, 0xF0, 0xF4, 0xFF] {
                let mut bytes = base.clone();
                bytes[place] = byte;
                check(kernels, &bytes);
            }
        }
    });
}

/// What comes before the first character that is not ASCII is unmasked when it is looked at.
#[test]
fn utf8_equals_std_with_one_character_anywhere_in_ascii() {
    let len_max = if cfg!(miri) { 40 } else { 300 };
    let key = MaskKey::new(KEY);
    each_kernel(|kernels| {
        let lens = (4..=len_max).chain((len_max..4 * len_max).step_by(67));
        for len in lens {
            for place in (0..=len - 4).step_by(stride(kernels)) {
                for (character, is_valid) in [("😀".as_bytes(), true), (b"\xF0\x9F\x98.", false)]
                {
                    let mut bytes = vec![b'.'; len];
                    bytes[place..place + 4].copy_from_slice(character);
                    let mut masked = bytes.clone();
                    scalar::unmask(&mut masked, key);
                    let got = kernels.unmask_validate(&mut masked, key, Utf8State::default());
                    let offset = place + 3;
                    let want = is_valid.then_some(true).ok_or(Utf8Error { offset });
                    assert_eq!(
                        got.map(Utf8State::is_complete),
                        want,
                        "{kernels:?} {len} {place}"
                    );
                    assert!(!is_valid || masked == bytes, "{kernels:?} {len} {place}");
                    let got = kernels.validate(&bytes, Utf8State::default());
                    assert_eq!(
                        got.map(Utf8State::is_complete),
                        want,
                        "{kernels:?} {len} {place}"
                    );
                }
            }
        }
    });
}

#[test]
fn utf8_equals_std_when_cut_truncated_and_started_anywhere() {
    let len = if cfg!(miri) { 20 } else { 140 };
    let base = text(len, 5);
    each_kernel(|kernels| {
        for start in 0..8 {
            for end in start..len {
                let got = kernels.validate(&base[start..end], Utf8State::default());
                let want = by_std(&base[start..end]);
                assert_eq!(got.map(Utf8State::is_complete), want, "{kernels:?}");
            }
        }
    });
}

#[test]
fn utf8_byte_by_byte_equals_whole() {
    each_kernel(|kernels| {
        for seed in 0..if cfg!(miri) { 2 } else { 200 } {
            let mut bytes = text(60, seed);
            if seed % 2 == 1 {
                let place = seed as usize % bytes.len();
                bytes[place] ^= 0xA5;
            }
            let mut state = Utf8State::default();
            let mut got = Ok(true);
            for (offset, byte) in bytes.iter().enumerate() {
                match kernels.validate(&[*byte], state) {
                    Ok(next) => state = next,
                    Err(_) => {
                        got = Err(Utf8Error { offset });
                        break;
                    }
                }
            }
            let got = got.map(|_| state.is_complete());
            assert_eq!(got, by_std(&bytes), "{kernels:?} seed {seed}");
        }
    });
}
