use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::TAIL;
use super::codes::CODE_LEN_MAX;
use super::codes::Code;
use super::codes::LENGTH_CODE_LEN_MAX;
use super::tokens::LITERALS;
use super::*;

/// What another implementation makes of the payload, which must not keep to more than this window
/// and must go on behind it.
#[track_caller]
fn inflated(deflated: &[u8], len: usize, window_bits: u8) -> Vec<u8> {
    let mut inflate = zlib_rs::Inflate::new(false, window_bits);
    let mut payload = vec![0; len + 1];
    let input = [deflated, &TAIL].concat();
    let status = inflate.decompress(&input, &mut payload, zlib_rs::InflateFlush::NoFlush);
    assert_eq!(status, Ok(zlib_rs::Status::Ok), "it goes on behind it");
    assert_eq!(inflate.total_in(), input.len() as u64);
    payload.truncate(inflate.total_out() as usize);
    payload
}

/// Deflates it, and inflates it again; gives its length, or none where it does not become shorter.
#[track_caller]
fn check(short: &mut Short, payload: &[u8]) -> Option<usize> {
    let mut output = Vec::new();
    let len = short.deflate(payload, &mut output)?;
    assert!(len < payload.len());
    let again = inflated(&output[..len], payload.len(), 15);
    assert!(again == payload, "{payload:02X?}");
    Some(len)
}

/// Records as services send them.
fn records(random: &mut StdRng, len: usize) -> Vec<u8> {
    let names = ["alice", "bob", "carol", "dave", "erin", "frank"];
    let mut text = Vec::new();
    while text.len() < len {
        let id = random.random_range(1_000_000..10_000_000);
        let name = names[random.random_range(0..names.len())];
        let score = random.random_range(0..10_000);
        let record = format!("{{\"id\":{id},\"name\":\"{name}\",\"score\":{score}}},");
        text.extend_from_slice(record.as_bytes());
    }
    text.truncate(len);
    text
}

#[test]
fn payloads_of_every_length_are_inflated_again() {
    let mut short = Short::new();
    let mut random = StdRng::seed_from_u64(11);
    let text = records(&mut random, PAYLOAD_LEN_MAX);
    assert_eq!(check(&mut short, &[]), None);
    for len in (1..700).chain(PAYLOAD_LEN_MAX - 3..=PAYLOAD_LEN_MAX) {
        let deflated = check(&mut short, &text[..len]);
        assert!(deflated.is_some() || len < 100, "{len}");
        // A match goes to the end, or nearly.
        let same = vec![b'a'; len];
        let deflated = check(&mut short, &same);
        assert_eq!(deflated.is_some(), len > 5, "{len}: {deflated:?}");
    }
}

/// Of alphabets of every size, repeated from every distance, with and without noise.
#[test]
fn payloads_of_every_kind_are_inflated_again() {
    let mut short = Short::new();
    let mut random = StdRng::seed_from_u64(12);
    let mut shorter = 0;
    for round in 0..20_000 {
        let len_max = [30, 200, PAYLOAD_LEN_MAX][round % 3];
        let len = random.random_range(1..=len_max);
        let letters = random.random_range(1..=256);
        let first: u8 = random.random();
        let mut payload = Vec::new();
        while payload.len() < len {
            if payload.is_empty() || random.random_bool(0.4) {
                for _ in 0..random.random_range(1..20) {
                    // Some are rarer than others.
                    let letter = random.random_range(0..letters) * random.random_range(0..letters);
                    payload.push(first.wrapping_add((letter / letters) as u8));
                }
            } else {
                let distance = random.random_range(1..=payload.len());
                for _ in 0..random.random_range(1..300) {
                    payload.push(payload[payload.len() - distance]);
                }
            }
        }
        payload.truncate(len);
        shorter += usize::from(check(&mut short, &payload).is_some());
    }
    assert!(shorter > 10_000, "{shorter}");
}

#[test]
fn noise_does_not_become_shorter() {
    let mut short = Short::new();
    let mut random = StdRng::seed_from_u64(13);
    for len in [1, 10, 100, 1_000, PAYLOAD_LEN_MAX] {
        let noise: Vec<u8> = (0..len).map(|_| random.random()).collect();
        assert_eq!(check(&mut short, &noise), None, "{len}");
    }
}

#[test]
fn distance_is_never_longer_than_the_payload() {
    let mut short = Short::new();
    let mut output = Vec::new();
    let text = records(&mut StdRng::seed_from_u64(14), 1 << 11);
    for bits in 9..=11 {
        let payload = &text[..1 << bits];
        let len = short.deflate(payload, &mut output).expect("it is text");
        assert!(inflated(&output[..len], payload.len(), bits) == payload);
    }
}

/// As short as libdeflate makes it at the level that others use, and shorter than at its fastest.
#[test]
fn result_is_as_short_as_that_of_libdeflate_at_level_6() {
    let mut random = StdRng::seed_from_u64(15);
    let mut short = Short::new();
    let mut output = vec![0; 2 * PAYLOAD_LEN_MAX];
    let mut by_level = |level: i32, payloads: &[Vec<u8>]| -> usize {
        let level = libdeflater::CompressionLvl::new(level).expect("there is one");
        let mut compressor = libdeflater::Compressor::new(level);
        let lens = payloads.iter().map(|payload| {
            let len = compressor.deflate_compress(payload, &mut output);
            len.expect("there is room")
        });
        lens.sum()
    };
    for len in [256, 512, 1_024, 1_536, PAYLOAD_LEN_MAX] {
        let payloads: Vec<_> = (0..50).map(|_| records(&mut random, len)).collect();
        let own: usize = payloads
            .iter()
            .map(|payload| check(&mut short, payload).expect("it is text"))
            .sum();
        let (first, sixth) = (by_level(1, &payloads), by_level(6, &payloads));
        assert!(own < first, "{len}: {own}, {first}");
        let percent = if len <= 1_024 { 101 } else { 104 };
        assert!(100 * own < percent * sixth, "{len}: {own}, {sixth}");
    }
}

/// How many bits symbols that occur so often take with the best code (Huffman's, with a heap).
fn best_cost(counts: &[u16]) -> u32 {
    let counts = counts.iter().filter(|count| **count > 0);
    let mut weights: BinaryHeap<_> = counts.map(|count| Reverse(u32::from(*count))).collect();
    let mut cost = 0;
    while let Some(Reverse(one)) = weights.pop() {
        let Some(Reverse(other)) = weights.pop() else {
            break;
        };
        cost += one + other;
        weights.push(Reverse(one + other));
    }
    cost
}

#[test]
fn codes_are_complete_and_the_best() {
    let mut random = StdRng::seed_from_u64(16);
    for round in 0..5_000 {
        let mut counts = [0_u16; LITERALS];
        for _ in 0..random.random_range(2..[4, 40, 400][round % 3]) {
            let symbol = random.random_range(0..LITERALS);
            counts[symbol] += random.random_range(1..[2, 20, 200][round / 3 % 3]);
        }
        let symbols = counts.iter().filter(|count| **count > 0).count();
        if symbols < 2 {
            continue;
        }
        for len_max in [CODE_LEN_MAX, 9] {
            let code = Code::new(&counts, len_max);
            let used = || code.lengths().iter().filter(|len| **len > 0);
            assert_eq!(used().count(), symbols);
            assert!(used().all(|len| usize::from(*len) <= len_max));
            let taken: u32 = used()
                .map(|len| 1 << (CODE_LEN_MAX - usize::from(*len)))
                .sum();
            assert_eq!(taken, 1 << CODE_LEN_MAX, "Kraft's sum is one");
            let cost = code.cost(code.lengths(), &[0; LITERALS]) as u32;
            let best = best_cost(&counts);
            match len_max {
                CODE_LEN_MAX => assert_eq!(cost, best),
                _ => assert!(cost >= best && 100 * cost <= 105 * best, "{cost}, {best}"),
            }
        }
    }
}

/// Counts that are Fibonacci's numbers make the longest codes there can be.
#[test]
fn codes_are_not_longer_than_they_may_be() {
    let mut counts = [0_u16; LITERALS];
    let (mut one, mut next) = (1, 1);
    for count in &mut counts[..20] {
        *count = one;
        (one, next) = (next, one + next);
    }
    for len_max in [LENGTH_CODE_LEN_MAX, CODE_LEN_MAX, 19] {
        let code = Code::new(&counts, len_max);
        let used = || code.lengths()[..20].iter();
        assert_eq!(used().max().copied(), Some(len_max as u8));
        let taken: u32 = used().map(|len| 1 << (19 - len)).sum();
        assert_eq!(taken, 1 << 19);
        assert!(used().is_sorted_by(|one, other| one >= other));
    }
    assert_eq!(best_cost(&counts) as usize, {
        let code = Code::new(&counts, 19);
        code.cost(code.lengths(), &[0; LITERALS])
    });
}
