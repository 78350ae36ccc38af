//! Payloads that say which they are: number, Adler-32 of the rest, and the rest.
//!
//! ```text
//!  binary                       text (ASCII, or characters of one to four bytes)
//!  0        8      12           0                 16          24
//!  | number | sum  | filler …   | number, in hex  | sum, hex  | filler …
//! ```
//!
//! The filler is one of some templates, whose sums are computed once, so that a message costs
//! its sender nothing but its number. Whoever checks it computes the sum of what came.

use rand::Rng;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use simd_adler32::adler32;
use sockeye::Message;

use crate::sizes::Sizes;

/// Memory for templates, in bytes: what a core's cache holds.
const TEMPLATES_LEN: usize = 1 << 20;

/// Fewest and most templates.
const TEMPLATES_MIN: usize = 4;
const TEMPLATES_MAX: usize = 512;

/// What messages consist of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Binary messages of random bytes.
    #[default]
    Binary,
    /// Text messages of ASCII characters.
    Text,
    /// Text messages of characters of one to four bytes.
    Mixed,
    /// Text messages that are as easily compressed as JSON is.
    Json,
}

impl Kind {
    /// Bytes of number and checksum: the shortest payload.
    pub fn header_len(self) -> usize {
        match self {
            Self::Binary => 8 + 4,
            Self::Text | Self::Mixed | Self::Json => 16 + 8,
        }
    }

    fn fill(self, filler: &mut [u8], random: &mut StdRng) {
        match self {
            Self::Binary => random.fill_bytes(filler),
            Self::Text => {
                for byte in filler {
                    *byte = random.random_range(b' '..=b'~');
                }
            }
            Self::Json => fill_json(filler, random),
            Self::Mixed => {
                let mut rest = filler;
                while !rest.is_empty() {
                    let character = ['a', 'é', '世', '😀'][random.random_range(0..4)];
                    let character = if character.len_utf8() > rest.len() {
                        '.'
                    } else {
                        character
                    };
                    let len = character.encode_utf8(rest).len();
                    rest = &mut rest[len..];
                }
            }
        }
    }
}

/// Records of some fields each, one after another, the last one cut.
fn fill_json(mut rest: &mut [u8], random: &mut StdRng) {
    let names = [
        "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi",
    ];
    while !rest.is_empty() {
        let record = format!(
            "{{\"id\":{},\"name\":\"{}\",\"active\":{},\"score\":{:.2},\"tags\":[\"{}\",\"{}\"]}},",
            random.random_range(1_000_000..10_000_000),
            names[random.random_range(0..names.len())],
            random.random_bool(0.5),
            random.random_range(0.0..100.0),
            names[random.random_range(0..names.len())],
            names[random.random_range(0..names.len())],
        );
        let len = record.len().min(rest.len());
        let (front, back) = rest.split_at_mut(len);
        front.copy_from_slice(&record.as_bytes()[..len]);
        rest = back;
    }
}

/// Makes messages by number, and checks them.
#[derive(Clone, Debug)]
pub struct Payloads {
    kind: Kind,
    /// Whole payloads, whose numbers are overwritten, and the sums of their fillers.
    templates: Vec<(Vec<u8>, u32)>,
}

/// Number and checksum as they are sent.
struct Header([u8; 24], usize);

impl Header {
    fn new(kind: Kind, number: u64, sum: u32) -> Self {
        let mut binary = [0; 12];
        binary[..8].copy_from_slice(&number.to_be_bytes());
        binary[8..].copy_from_slice(&sum.to_be_bytes());
        let mut header = [0; 24];
        if kind == Kind::Binary {
            header[..12].copy_from_slice(&binary);
        } else {
            for (byte, digits) in binary.iter().zip(header.chunks_exact_mut(2)) {
                digits[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
                digits[1] = b"0123456789abcdef"[usize::from(byte & 15)];
            }
        }
        Self(header, kind.header_len())
    }

    fn as_bytes(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

/// The number that a payload says it has.
fn number_of(kind: Kind, payload: &[u8]) -> Option<u64> {
    if kind == Kind::Binary {
        return payload.first_chunk().copied().map(u64::from_be_bytes);
    }
    let digits = str::from_utf8(payload.get(..16)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

impl Payloads {
    /// Messages of these sizes.
    ///
    /// # Errors
    /// The shortest is too short for a number and a checksum.
    pub fn new(kind: Kind, sizes: &Sizes) -> Result<Self, String> {
        if sizes.min() < kind.header_len() {
            let least = kind.header_len();
            return Err(format!(
                "number and checksum take {least} bytes: {sizes} is too short"
            ));
        }
        // The same for each run.
        let mut random = StdRng::seed_from_u64(1);
        let count = if sizes.is_fixed() {
            TEMPLATES_LEN / 4 / sizes.max()
        } else {
            TEMPLATES_LEN / sizes.max()
        };
        let templates = (0..count.clamp(TEMPLATES_MIN, TEMPLATES_MAX))
            .map(|_| {
                let mut payload = vec![0; sizes.draw(&mut random)];
                let filler = &mut payload[kind.header_len()..];
                kind.fill(filler, &mut random);
                debug_assert!(kind == Kind::Binary || str::from_utf8(filler).is_ok());
                let sum = adler32(&&*filler);
                (payload, sum)
            })
            .collect();
        Ok(Self { kind, templates })
    }

    fn index(&self, number: u64) -> usize {
        // Connections count in the upper half: those that are as far as each other do not send the
        // same.
        (number.wrapping_add(number >> 32) % self.templates.len() as u64) as usize
    }

    /// Message `number`.
    #[inline]
    pub fn message(&mut self, number: u64) -> Message<'_> {
        let (kind, index) = (self.kind, self.index(number));
        let (payload, sum) = &mut self.templates[index];
        let header = Header::new(kind, number, *sum);
        payload[..kind.header_len()].copy_from_slice(header.as_bytes());
        // Text is made of whole characters: templates are checked when they are made.
        Message::checked(kind != Kind::Binary, payload)
    }

    /// Bytes of message `number`.
    pub fn len(&self, number: u64) -> usize {
        self.templates[self.index(number)].0.len()
    }

    /// Checks that `message` is message `number`, unaltered.
    ///
    /// # Errors
    /// What it is instead.
    #[inline]
    pub fn check(&self, number: u64, message: &Message<'_>) -> Result<(), String> {
        let (payload, sum) = &self.templates[self.index(number)];
        let got = message.payload();
        let header = Header::new(self.kind, number, *sum);
        let is_right = got.len() == payload.len()
            && message.is_text() == (self.kind != Kind::Binary)
            && got.starts_with(header.as_bytes())
            && adler32(&&got[self.kind.header_len()..]) == *sum;
        if is_right {
            return Ok(());
        }
        Err(self.describe(number, message))
    }

    #[cold]
    fn describe(&self, number: u64, message: &Message<'_>) -> String {
        let got = message.payload();
        match number_of(self.kind, got) {
            Some(other) if other != number => {
                format!("message {other:#x} came where {number:#x} was due")
            }
            _ if got.len() != self.len(number) => {
                let want = self.len(number);
                format!("message {number:#x} has {} bytes, not {want}", got.len())
            }
            _ if message.is_text() != (self.kind != Kind::Binary) => {
                format!("message {number:#x} has the wrong opcode")
            }
            _ => format!("message {number:#x} was altered"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 4] = [Kind::Binary, Kind::Text, Kind::Mixed, Kind::Json];

    #[test]
    fn every_change_is_found() {
        for kind in KINDS {
            for len in [kind.header_len(), 25, 64, 1000] {
                let mut payloads = Payloads::new(kind, &Sizes::fixed(len)).expect("long enough");
                let right = payloads.message(7).payload().to_vec();
                let text = kind != Kind::Binary;
                let check = |number, payload: &[u8], text| {
                    payloads.check(number, &Message::checked(text, payload))
                };
                assert_eq!(right.len(), len);
                assert_eq!(check(7, &right, text), Ok(()));
                assert!(check(8, &right, text).is_err());
                assert!(check(7, &right, !text).is_err());
                assert!(check(7, &right[..len - 1], text).is_err());
                for place in 0..len {
                    let mut wrong = right.clone();
                    wrong[place] ^= 0x10;
                    assert!(check(7, &wrong, text).is_err(), "{kind:?} {len} {place}");
                }
            }
            assert!(Payloads::new(kind, &Sizes::fixed(kind.header_len() - 1)).is_err());
        }
    }

    #[test]
    fn sizes_vary_and_text_is_text() {
        let sizes: Sizes = "100-5000".parse().expect("sizes");
        for kind in KINDS {
            let mut payloads = Payloads::new(kind, &sizes).expect("long enough");
            let lens: Vec<usize> = (0..100).map(|number| payloads.len(number)).collect();
            assert!(lens.iter().min() < lens.iter().max());
            for number in 0..100 {
                let payload = payloads.message(number).payload().to_vec();
                assert_eq!(payload.len(), lens[number as usize]);
                let is_utf8 = str::from_utf8(&payload).is_ok();
                assert!(is_utf8 || kind == Kind::Binary);
                assert!(kind != Kind::Mixed || !payload.is_ascii());
            }
        }
    }
}
