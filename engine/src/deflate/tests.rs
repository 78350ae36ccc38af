use std::io::Read;
use std::io::Write;

use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use rand::Rng;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::protocol::ProtocolError;

use super::whole::Parts;
use super::*;

const BOUNDS: Bounds = Bounds {
    len_max: 1 << 20,
    ratio_max: 0,
};

fn codec() -> Codec {
    Codec::new(*b"0123456789abcdef")
}

/// Text that becomes about a quarter as long.
fn text(len: usize) -> Vec<u8> {
    let words = [
        "price", "volume", "{\"id\":", "},", "ACME", "0.25", "\n", "é",
    ];
    let mut random = StdRng::seed_from_u64(7);
    let mut text = Vec::new();
    while text.len() < len {
        text.extend_from_slice(words[random.random_range(0..words.len())].as_bytes());
    }
    text.truncate(len);
    text
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(len as u64).fill_bytes(&mut bytes);
    bytes
}

/// As another implementation deflates it, without the last four bytes.
fn deflated(payload: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(payload).expect("memory takes it");
    encoder.flush().expect("memory takes it");
    // Not finished, which would end the stream.
    let mut deflated = encoder.get_ref().clone();
    assert!(deflated.ends_with(&TAIL));
    deflated.truncate(deflated.len() - TAIL.len());
    deflated
}

/// The same as a stream of its own, which ends.
fn ended(payload: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(payload).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// Inflates a message that comes cut at these places, into blocks of this length.
fn inflate_cut(
    inflater: &mut Inflater,
    payload: &[u8],
    cuts: &[usize],
    block_len: usize,
    bounds: Bounds,
) -> Result<Vec<u8>, ProtocolError> {
    let mut inflated = Vec::new();
    let mut start = 0;
    for (index, end) in cuts.iter().copied().chain([payload.len()]).enumerate() {
        let mut piece = &payload[start..end];
        start = end;
        inflater.announce(piece.len(), false);
        loop {
            let mut block = vec![0; block_len];
            let last = index == cuts.len();
            let (len, done) = inflater.inflate(&mut piece, last, bounds, &mut block)?;
            inflated.extend_from_slice(&block[..len]);
            assert!(inflated.len() <= bounds.len_max, "more than is allowed");
            if done {
                break;
            }
        }
    }
    Ok(inflated)
}

fn inflate_whole(payload: &[u8], bounds: Bounds) -> Result<Vec<u8>, ProtocolError> {
    let mut codec = codec();
    let mut output = codec.take_output();
    let len = codec.inflate(payload, bounds, &mut output)?;
    Ok(output[..len].to_vec())
}

/// Both ways give the same.
#[track_caller]
fn check(payload: &[u8], want: Result<&[u8], ProtocolError>) {
    let want = want.map(<[u8]>::to_vec);
    let whole = inflate_whole(payload, BOUNDS);
    let len = whole.as_ref().map(Vec::len);
    assert!(whole == want, "whole: {len:?} of {payload:02X?}");
    let mut inflater = Inflater::new(15);
    let cut = inflate_cut(&mut inflater, payload, &[], 1 << 16, BOUNDS);
    let len = cut.as_ref().map(Vec::len);
    assert!(cut == want, "in pieces: {len:?} of {payload:02X?}");
}

#[test]
fn what_is_deflated_is_inflated_whatever_window_and_level() {
    let mut codec = codec();
    let mut output = Vec::new();
    for len in [0, 1, 100, 256, 257, 600, 5_000, 70_000] {
        let text = text(len);
        for level in 1..=9 {
            for bits in 8..=15 {
                let whole = codec.deflate(&text, level, bits, &mut output);
                // There is no compressor for a window of 8 bits: only what fits into it.
                let can = len > 1 && (bits > 8 || len <= 256);
                assert_eq!(whole.is_some(), can, "{len} {bits}");
                if let Some(whole) = whole {
                    assert!(whole < len);
                    let mut strict = zlib_rs::Inflate::new(false, bits.max(9));
                    let mut again = vec![0; len + 1];
                    let input = [&output[..whole], &TAIL].concat();
                    strict
                        .decompress(&input, &mut again, zlib_rs::InflateFlush::NoFlush)
                        .expect("it keeps to the window");
                    assert!(again[..len] == text, "{len} {level} {bits}");
                    check(&output[..whole], Ok(&text));
                }
                let apart = codec.deflate_apart(&text, level, bits, &mut output);
                if let Some(apart) = apart {
                    let input = [&output[..apart], &TAIL].concat();
                    let mut other = flate2::Decompress::new(false);
                    let mut again = Vec::with_capacity(len + 1);
                    let status =
                        other.decompress_vec(&input, &mut again, flate2::FlushDecompress::None);
                    let goes_on = matches!(status, Ok(flate2::Status::Ok));
                    assert!(goes_on, "it goes on behind it");
                    assert!(again == text, "{len} {level} {bits}");
                }
            }
        }
    }
}

/// libdeflate's streams are made to go on behind a message, whatever kind of block they are and
/// wherever in a byte they end.
#[test]
fn stream_is_reopened() {
    let mut codec = codec();
    let mut output = Vec::new();
    let mut random = StdRng::seed_from_u64(3);
    let (mut whole, mut unclear) = (0, 0);
    for round in 0..6_000 {
        let len = random.random_range(1..[40, 300, 3_000, 9_999][round % 4]);
        let mut source = text(len + 100)[random.random_range(0..100)..][..len].to_vec();
        // From what is all text to what is half noise.
        for _ in 0..random.random_range(0..=len / 2) {
            source[random.random_range(0..len)] = random.next_u32() as u8;
        }
        let level = random.random_range(1..=9);
        match codec.deflate_parts(&source, level, 9_999, &mut output) {
            Parts::Whole(len) => {
                whole += 1;
                check(&output[..len], Ok(&source));
                // Another message behind it, in the same stream.
                let hello = [0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
                let both = [&output[..len], &TAIL, &hello].concat();
                check(&both, Ok(&[&source[..], b"Hello"].concat()));
            }
            Parts::TooLong => {}
            Parts::Unclear => unclear += 1,
        }
    }
    assert!(whole > 3_000, "{whole}");
    assert!(unclear * 50 < whole, "{unclear} of {whole}");
    // Several parts.
    for len in [32_767, 32_768, 65_534, 65_535, 200_000] {
        let source = text(len);
        let parts = codec.deflate_parts(&source, 1, 32_767, &mut output);
        let Parts::Whole(len) = parts else {
            panic!("{parts:?}");
        };
        check(&output[..len], Ok(&source));
    }
}

#[test]
fn what_does_not_become_shorter_is_left_as_it_is() {
    let mut codec = codec();
    let mut output = Vec::new();
    for len in [0, 1, 2, 16, 1_000, 40_000] {
        let noise = noise(len);
        for level in 1..=9 {
            for bits in 8..=15 {
                assert_eq!(codec.deflate(&noise, level, bits, &mut output), None);
                assert_eq!(codec.deflate_apart(&noise, level, bits, &mut output), None);
            }
            // The window goes on from what the peer has.
            let mut deflater = Deflater::new(level, 15, 8);
            let mut inflater = Inflater::new(15);
            let text = text(3_000);
            for message in [&text, &noise, &text, &text] {
                if let Some(len) = deflater.deflate(message, &mut output) {
                    let got = inflate_cut(&mut inflater, &output[..len], &[], 4_096, BOUNDS);
                    assert!(got.as_ref() == Ok(message), "{level}");
                }
            }
        }
    }
}

#[test]
fn message_is_inflated_wherever_it_is_cut() {
    let text = text(900);
    let payload = deflated(&text, 6);
    for cut in 0..=payload.len() {
        for block_len in [1, 7, 899, 900, 901, 4_096] {
            let mut inflater = Inflater::new(15);
            let got = inflate_cut(&mut inflater, &payload, &[cut], block_len, BOUNDS);
            assert!(got.as_ref() == Ok(&text), "{cut} {block_len}");
        }
    }
    let everywhere: Vec<usize> = (1..payload.len()).collect();
    let mut inflater = Inflater::new(15);
    // Several messages through one inflater, each with the window of those before.
    for _ in 0..3 {
        let got = inflate_cut(&mut inflater, &payload, &everywhere, 5, BOUNDS);
        assert!(got.as_ref() == Ok(&text));
    }
}

#[test]
fn takeover_refers_to_what_came_before_and_keeps_to_its_window() {
    for bits in 9..=15 {
        let mut deflater = Deflater::new(6, bits, 8);
        let mut inflater = Inflater::new(bits);
        let mut output = Vec::new();
        let long = noise(400);
        let mut lens = Vec::new();
        for _ in 0..3 {
            // Noise by itself does not become shorter: it does where it has been sent before.
            let message = [&text(400)[..], &long].concat();
            let len = deflater.deflate(&message, &mut output).expect("shorter");
            lens.push(len);
            let got = inflate_cut(&mut inflater, &output[..len], &[], 4_096, BOUNDS);
            assert!(got.as_ref() == Ok(&message), "{bits}");
        }
        // 800 bytes are out of a window of 512, and of what zlib uses of one of 1,024.
        assert_eq!(lens[1] < lens[0] / 4, bits > 10, "{bits} {lens:?}");
    }
    // Without the window it is bad data.
    let mut deflater = Deflater::new(6, 15, 8);
    let mut output = Vec::new();
    let message = text(1_000);
    deflater.deflate(&message, &mut output).expect("shorter");
    let len = deflater.deflate(&message, &mut output).expect("shorter");
    check(&output[..len], Err(ProtocolError::Deflate));
    // Forgotten, it stands by itself again.
    deflater.forget();
    let len = deflater.deflate(&message, &mut output).expect("shorter");
    check(&output[..len], Ok(&message));
}

#[test]
fn message_that_is_cut_short_is_an_error() {
    for level in [1, 6] {
        let text = text(700);
        let payload = deflated(&text, level);
        for len in 0..payload.len() {
            check(&payload[..len], Err(ProtocolError::Deflate));
        }
    }
    let stored = [0x00, 0x02, 0x00, 0xFD, 0xFF, b'h', b'i', 0x00];
    for len in 2..stored.len() {
        check(&stored[..len], Err(ProtocolError::Deflate));
    }
    // So is one of no bytes at all: an empty message is one byte (RFC 7692 §7.2.3.6).
    check(&[], Err(ProtocolError::Deflate));
    check(&[0x00], Ok(b""));
}

#[test]
fn blocks_of_every_kind_are_taken() {
    // Examples of RFC 7692 §7.2.3.
    check(&[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00], Ok(b"Hello"));
    let stored = [
        0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00,
    ];
    check(&stored, Ok(b"Hello"));
    check(
        &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00],
        Ok(b"Hello"),
    );
    let two = [
        0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00,
    ];
    check(&two, Ok(b"Hello"));
    // Empty blocks before, between and behind.
    let empty = [0x00, 0x00, 0x00, 0xFF, 0xFF];
    check(&[&empty[..], &stored].concat(), Ok(b"Hello"));
    check(&[&empty[..], &empty, &[0x00]].concat(), Ok(b""));
    for level in 1..=9 {
        check(&deflated(&noise(10_000), level), Ok(&noise(10_000)));
        check(&deflated(&text(50_000), level), Ok(&text(50_000)));
    }
    for (bad, why) in [
        (&[0x06, 0x00][..], "a reserved kind of block"),
        (
            &[0x00, 0x05, 0x00, 0x00, 0x00, 0x00],
            "a stored length that is wrong",
        ),
        (&[0xFF, 0xFF, 0xFF, 0xFF], "noise"),
    ] {
        assert_eq!(
            inflate_whole(bad, BOUNDS),
            Err(ProtocolError::Deflate),
            "{why}"
        );
        let cut = inflate_cut(&mut Inflater::new(15), bad, &[], 64, BOUNDS);
        assert_eq!(cut, Err(ProtocolError::Deflate), "{why}");
    }
}

/// RFC 7692 §7.2.3.4: BFINAL may be set.
#[test]
fn stream_that_ends_inside_a_message_goes_on_behind_it() {
    let text = text(2_000);
    let end = ended(&text);
    // As the RFC has it, and without the byte behind it.
    check(&[&end[..], &[0x00]].concat(), Ok(&text));
    check(&end, Ok(&text));
    let twice = [&text[..], &text].concat();
    // Two streams; a stream, and blocks that do not end.
    check(&[&end[..], &end, &[0x00]].concat(), Ok(&twice));
    check(&[&end[..], &deflated(&text, 6)].concat(), Ok(&twice));
    check(
        &[&deflated(&text, 6)[..], &TAIL, &end, &[0x00]].concat(),
        Ok(&twice),
    );
    // What is behind it is looked at.
    check(
        &[&end[..], &[0x00, 0x00]].concat(),
        Err(ProtocolError::Deflate),
    );
    check(
        &[&end[..], b"rubbish"].concat(),
        Err(ProtocolError::Deflate),
    );
    check(&end[..end.len() - 1], Err(ProtocolError::Deflate));
    // Also by itself a block that says it is the last does not hide another.
    let hidden = [
        &deflated(&text, 6)[..],
        &TAIL,
        &[0x03, 0x00],
        &deflated(b"hidden", 6),
    ]
    .concat();
    check(&hidden, Ok(&[&text[..], b"hidden"].concat()));
}

#[test]
fn streams_in_a_message_are_limited() {
    let empty = [0x03, 0x00];
    check(&[&empty.repeat(1_024)[..], &[0x00]].concat(), Ok(b""));
    let many = [&empty.repeat(1_025)[..], &[0x00]].concat();
    check(&many, Err(ProtocolError::Deflate));
}

#[test]
fn limit_is_exact() {
    let text = text(100_000);
    for payload in [deflated(&text, 6), [&ended(&text)[..], &[0x00]].concat()] {
        for over in [0, 1, 50_000, 99_999] {
            let bounds = Bounds {
                len_max: text.len() - over,
                ratio_max: 0,
            };
            let want = match over {
                0 => Ok(text.clone()),
                _ => Err(ProtocolError::MessageTooBig),
            };
            assert!(inflate_whole(&payload, bounds) == want, "{over}");
            for block_len in [1_000, 1 << 17] {
                let mut inflater = Inflater::new(15);
                let got = inflate_cut(&mut inflater, &payload, &[1, 100], block_len, bounds);
                assert!(got == want, "{over}");
            }
        }
    }
}

#[test]
fn bomb_is_stopped_within_one_block_of_the_limit() {
    let bomb = deflated(&vec![0; 64 << 20], 9);
    let bounds = Bounds {
        len_max: 200_000,
        ratio_max: 0,
    };
    let mut codec = codec();
    let mut output = codec.take_output();
    let result = codec.inflate(&bomb, bounds, &mut output);
    assert_eq!(result, Err(ProtocolError::MessageTooBig));
    assert!(output.len() <= 200_000 + 8, "{}", output.len());
    let mut inflater = Inflater::new(15);
    let got = inflate_cut(&mut inflater, &bomb, &[], 16_384, bounds);
    assert_eq!(got, Err(ProtocolError::MessageTooBig));
    assert_eq!(inflater.message_len(), 200_001);
}

#[test]
fn ratio_is_of_no_interest_up_to_64_kib() {
    let bounds = Bounds {
        len_max: 1 << 20,
        ratio_max: 100,
    };
    let check = |payload: &[u8], want: Result<usize, ProtocolError>| {
        let len = |inflated: Vec<u8>| inflated.len();
        assert_eq!(inflate_whole(payload, bounds).map(len), want);
        let cut = inflate_cut(&mut Inflater::new(15), payload, &[], 4_096, bounds);
        assert_eq!(cut.map(len), want);
    };
    check(&deflated(&[0; 65_536], 9), Ok(65_536));
    check(&deflated(&[0; 65_537], 9), Err(ProtocolError::InflateRatio));
    check(&deflated(&text(200_000), 9), Ok(200_000));
    // Just within 100 times, and just not.
    let long = deflated(&[0; 400_000], 9);
    let pad = |len: usize| [&deflated(&noise(len), 0)[..], &TAIL, &long].concat();
    let padded = (1..8_000).find(|&len| pad(len).len() * 100 >= 400_000 + len);
    let padded = padded.expect("it is found");
    check(&pad(padded), Ok(400_000 + padded));
    check(&pad(padded - 1), Err(ProtocolError::InflateRatio));
    // The size of a message comes before its ratio.
    let tight = Bounds {
        len_max: 50_000,
        ..bounds
    };
    let result = inflate_whole(&deflated(&[0; 65_537], 9), tight);
    assert_eq!(result, Err(ProtocolError::MessageTooBig));
}

#[test]
fn text_is_checked_as_it_is_inflated() {
    let good = "aé€😀".repeat(300);
    let bad = [good.as_bytes(), b"\xC3", good.as_bytes()].concat();
    let open = [good.as_bytes(), b"\xE2\x82"].concat();
    let inflate = |payload: &[u8], cut: usize| {
        let payload = deflated(payload, 6);
        let mut inflater = Inflater::new(15);
        let cut = cut.min(payload.len());
        for (last, mut piece) in [(false, &payload[..cut]), (true, &payload[cut..])] {
            inflater.announce(piece.len(), true);
            while !inflater.inflate(&mut piece, last, BOUNDS, &mut [0; 100])?.1 {}
        }
        Ok(inflater.message_len())
    };
    for cut in 0..60 {
        assert_eq!(inflate(good.as_bytes(), cut), Ok(good.len()));
        assert_eq!(inflate(&bad, cut), Err(ProtocolError::Utf8));
        assert_eq!(inflate(&open, cut), Err(ProtocolError::Utf8));
    }
}

/// Streams that were changed somewhere give what flate2 makes of them, or an error where it finds
/// one. libdeflate alone takes a few that the others refuse: it has a meaning for symbols that
/// "will never actually occur" (RFC 1951 §3.2.6).
#[test]
fn changed_streams_give_what_flate2_gives() {
    let mut random = StdRng::seed_from_u64(1);
    let mut codec = codec();
    let mut output = codec.take_output();
    let (mut good, mut bad, mut lenient) = (0, 0, 0);
    for round in 0..20_000 {
        let len = random.random_range(0..600);
        let source = if round % 4 == 0 {
            noise(len)
        } else {
            text(len)
        };
        let mut payload = deflated(&source, random.random_range(0..10));
        for _ in 0..random.random_range(0..3) {
            let at = random.random_range(0..payload.len());
            payload[at] ^= 1 << random.random_range(0..8);
        }
        let whole = codec.inflate(&payload, BOUNDS, &mut output);
        let whole = whole.map(|len| &output[..len]);
        let cuts = [random.random_range(0..=payload.len())];
        let block_len = random.random_range(1..200);
        let cut = inflate_cut(&mut Inflater::new(15), &payload, &cuts, block_len, BOUNDS);
        match (&whole, &cut) {
            (Ok(whole), Ok(cut)) => assert!(*whole == cut, "{payload:02X?} {cuts:?}"),
            (Err(error), Ok(_)) => panic!("{error}: {payload:02X?} {cuts:?}"),
            (Ok(_), Err(_)) => lenient += 1,
            (Err(_), Err(_)) => bad += 1,
        }
        // What it is with one end and with another: a message that is cut short may by chance
        // go on in an end, but not in both.
        let ends = [&[][..], &[0x00, 0x00, 0x00, 0xFF, 0xFF]].map(|empty| {
            let input = [&payload[..], &TAIL, empty, &[0x01, 0x00, 0x00, 0xFF, 0xFF]].concat();
            let mut decoder = DeflateDecoder::new(&input[..]);
            let mut inflated = Vec::new();
            let read = decoder.read_to_end(&mut inflated).ok();
            // It takes no notice of what is behind the end of a stream.
            let is_all = decoder.total_in() as usize == input.len();
            read.map(|_| (inflated, is_all))
        });
        // Nor may anything be made of the end: it would be that of another message.
        let mut without = Vec::new();
        let _ = DeflateDecoder::new(&payload[..]).read_to_end(&mut without);
        match (ends, cut) {
            ([Some((want, true)), Some((_, true))], cut) if want == without => {
                good += 1;
                assert!(cut == Ok(want), "{payload:02X?}");
            }
            ([None, None], Ok(_)) => panic!("flate2 finds an error: {payload:02X?}"),
            _ => {}
        }
    }
    assert!(good > 5_000 && bad > 5_000, "{good} {bad}");
    assert!(lenient < 100, "{lenient}");
}
