//! Unmasking and UTF-8 validation, from a byte to out of cache, beside `memcpy`,
//! `fastwebsockets`, `simdutf8` and the standard library.
//!
//!     cargo bench -p sockeye-bench --bench kernels
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use sockeye::simd::Kernels;
use sockeye::simd::MaskKey;
use sockeye::simd::Utf8State;

const LENS: [usize; 9] = [1, 16, 64, 100, 256, 1024, 16 * 1024, 256 * 1024, 64 << 20];

const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

fn ascii(len: usize) -> Vec<u8> {
    (0..len).map(|index| b'a' + (index % 26) as u8).collect()
}

/// Text with characters of one to four bytes, cut at a character.
fn mixed(len: usize) -> Vec<u8> {
    let mut text = "Grüße, 世界! Ça va? 😀 ".repeat(len / 20 + 2);
    let mut end = len;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.into_bytes()
}

fn each_kernel(mut f: impl FnMut(&Kernels)) {
    Kernels::for_each_available(|kernels| f(kernels));
}

fn unmask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unmask");
    for len in LENS {
        group.throughput(Throughput::Bytes(len as u64));
        let source = ascii(len);
        let mut bytes = source.clone();
        group.bench_function(BenchmarkId::new("memcpy", len), |bencher| {
            bencher.iter(|| black_box(&mut bytes[..]).copy_from_slice(black_box(&source)));
        });
        group.bench_function(BenchmarkId::new("fastwebsockets", len), |bencher| {
            bencher.iter(|| fastwebsockets::unmask(black_box(&mut bytes), KEY));
        });
        bytes.copy_from_slice(&source);
        each_kernel(|kernels| {
            // Twice is the identity: a wrong kernel would be seen.
            kernels.unmask(&mut bytes, MaskKey::new(KEY));
            kernels.unmask(&mut bytes, MaskKey::new(KEY));
            assert_eq!(bytes, source);
            group.bench_function(BenchmarkId::new(kernels.name(), len), |bencher| {
                bencher.iter(|| kernels.unmask(black_box(&mut bytes), MaskKey::new(KEY)));
            });
            bytes.copy_from_slice(&source);
        });
    }
    group.finish();
}

fn validate(criterion: &mut Criterion) {
    for (name, make) in [("ascii", ascii as fn(usize) -> Vec<u8>), ("mixed", mixed)] {
        let mut group = criterion.benchmark_group(format!("utf8/{name}"));
        for len in LENS {
            let bytes = make(len);
            group.throughput(Throughput::Bytes(bytes.len() as u64));
            group.bench_function(BenchmarkId::new("simdutf8", len), |bencher| {
                bencher.iter(|| simdutf8::basic::from_utf8(black_box(&bytes)).is_ok());
            });
            group.bench_function(BenchmarkId::new("std", len), |bencher| {
                bencher.iter(|| str::from_utf8(black_box(&bytes)).is_ok());
            });
            each_kernel(|kernels| {
                assert!(kernels.validate(&bytes, Utf8State::default()).is_ok());
                group.bench_function(BenchmarkId::new(kernels.name(), len), |bencher| {
                    bencher.iter(|| kernels.validate(black_box(&bytes), Utf8State::default()));
                });
            });
        }
        group.finish();
    }
}

fn fused(criterion: &mut Criterion) {
    for (name, make) in [("ascii", ascii as fn(usize) -> Vec<u8>), ("mixed", mixed)] {
        let mut group = criterion.benchmark_group(format!("unmask_utf8/{name}"));
        for len in LENS {
            let mut bytes = make(len);
            group.throughput(Throughput::Bytes(bytes.len() as u64));
            // A key of zeros leaves the text as it is, for the next round.
            let key = MaskKey::new([0; 4]);
            let best = *Kernels::best();
            group.bench_function(BenchmarkId::new("two passes", len), |bencher| {
                bencher.iter(|| {
                    best.unmask(black_box(&mut bytes), key);
                    simdutf8::basic::from_utf8(black_box(&bytes)).is_ok()
                });
            });
            each_kernel(|kernels| {
                let checked = kernels.unmask_validate(&mut bytes, key, Utf8State::default());
                assert!(checked.is_ok());
                group.bench_function(BenchmarkId::new(kernels.name(), len), |bencher| {
                    bencher.iter(|| {
                        kernels.unmask_validate(black_box(&mut bytes), key, Utf8State::default())
                    });
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, unmask, validate, fused);
criterion_main!(benches);
