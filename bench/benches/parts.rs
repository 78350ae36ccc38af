//! What else a connection is made of, beside crates that do the same: the slab, fan-out, and
//! the deflate libraries that compression can stand on.
//!
//!     cargo bench -p sockeye-bench --bench parts
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::io::Read;
use std::io::Write;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use sockeye::slab::Slab;
use sockeye::testkit::SimClient;
use sockeye::testkit::SimServer;
use sockeye::testkit::SimSettings;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::Data;
use tungstenite::protocol::frame::coding::OpCode;

/// A slot of about the size of a connection's.
type Entry = [u64; 12];

const ENTRIES: usize = 100_000;

/// Places in no order that a prefetcher knows.
fn scattered() -> impl Iterator<Item = usize> {
    (0..).map(|number: usize| number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20)
}

fn slabs(criterion: &mut Criterion) {
    let mut ours = Slab::default();
    let our_keys: Vec<_> = (0..ENTRIES as u64)
        .map(|entry| ours.insert([entry; 12]))
        .collect();
    let mut theirs: slab::Slab<Entry> = slab::Slab::new();
    let their_keys: Vec<_> = (0..ENTRIES as u64)
        .map(|entry| theirs.insert([entry; 12]))
        .collect();
    let mut map: slotmap::SlotMap<slotmap::DefaultKey, Entry> = slotmap::SlotMap::new();
    let map_keys: Vec<_> = (0..ENTRIES as u64)
        .map(|entry| map.insert([entry; 12]))
        .collect();
    let at = 77_777;
    assert_eq!(ours.get(our_keys[at]), theirs.get(their_keys[at]));
    assert_eq!(ours.get(our_keys[at]), map.get(map_keys[at]));

    let mut group = criterion.benchmark_group("look one of 100,000 connections up");
    let mut places = scattered();
    group.bench_function("sockeye", |bencher| {
        bencher.iter(|| {
            let place = places.next().unwrap_or(0) % ENTRIES;
            ours.get(black_box(our_keys[place])).map(|entry| entry[0])
        });
    });
    group.bench_function("slab (no generation)", |bencher| {
        bencher.iter(|| {
            let place = places.next().unwrap_or(0) % ENTRIES;
            theirs
                .get(black_box(their_keys[place]))
                .map(|entry| entry[0])
        });
    });
    group.bench_function("slotmap", |bencher| {
        bencher.iter(|| {
            let place = places.next().unwrap_or(0) % ENTRIES;
            map.get(black_box(map_keys[place])).map(|entry| entry[0])
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("insert and remove a connection");
    group.bench_function("sockeye", |bencher| {
        bencher.iter(|| {
            let key = ours.insert(black_box([1; 12]));
            ours.remove(key)
        });
    });
    group.bench_function("slab (no generation)", |bencher| {
        bencher.iter(|| {
            let key = theirs.insert(black_box([1; 12]));
            theirs.remove(key)
        });
    });
    group.bench_function("slotmap", |bencher| {
        bencher.iter(|| {
            let key = map.insert(black_box([1; 12]));
            map.remove(key)
        });
    });
    group.finish();
}

/// Nothing of its own.
struct Quiet;

impl sockeye::Handler for Quiet {
    type Data = ();
}

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn drain(clients: &[SimClient]) -> usize {
    clients
        .iter()
        .map(|client| client.receive(usize::MAX).len())
        .sum()
}

/// A message to a thousand connections, on a network that is memory; beside encoding it once
/// for each, as servers do that have no shared frames.
fn fan_out(criterion: &mut Criterion) {
    const RECEIVERS: usize = 1_000;
    let mut group = criterion.benchmark_group("fan out to 1,000 connections");
    group.throughput(Throughput::Elements(RECEIVERS as u64));
    for len in [64, 1024, 16 * 1024] {
        let payload = vec![b'x'; len];
        let mut server = SimServer::new(SimSettings::default(), Quiet);
        let clients: Vec<SimClient> = (0..RECEIVERS)
            .map(|_| {
                let client = server.net().connect(1 << 20);
                client.send(REQUEST);
                client
            })
            .collect();
        for _ in 0..100 {
            server.turn().expect("it turns");
        }
        assert!(drain(&clients) > 100 * RECEIVERS, "all were upgraded");
        group.bench_function(BenchmarkId::new("sockeye, delivered", len), |bencher| {
            bencher.iter(|| {
                server.remote().broadcast(&payload).expect("room");
                let mut received = 0;
                while received < RECEIVERS * len {
                    server.turn().expect("it turns");
                    received += drain(&clients);
                }
            });
        });
        let mut outputs: Vec<Vec<u8>> = vec![Vec::new(); RECEIVERS];
        group.bench_function(
            BenchmarkId::new("tungstenite, encoded only", len),
            |bencher| {
                bencher.iter(|| {
                    for output in &mut outputs {
                        output.clear();
                        let payload = payload.clone();
                        let frame = Frame::message(payload, OpCode::Data(Data::Binary), true);
                        frame.format(output).expect("memory takes it");
                    }
                });
            },
        );
    }
    group.finish();
}

/// Telemetry as JSON, which compresses as such things do.
fn text(len: usize) -> Vec<u8> {
    let mut text = String::new();
    let mut places = scattered();
    while text.len() < len {
        let (id, value) = (
            places.next().unwrap_or(0) % 1000,
            places.next().unwrap_or(0) % 9973,
        );
        text += &format!("{{\"sensor\":{id},\"value\":{value},\"unit\":\"celsius\"}},");
    }
    text.truncate(len);
    text.into_bytes()
}

fn deflates(criterion: &mut Criterion) {
    let level = 6;
    for len in [64, 512, 4 * 1024, 64 * 1024] {
        let plain = text(len);
        let mut whole = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut deflated = vec![0; whole.deflate_compress_bound(len)];
        let deflated_len = whole
            .deflate_compress(&plain, &mut deflated)
            .expect("the bound holds");
        deflated.truncate(deflated_len);

        let mut group = criterion.benchmark_group("deflate");
        group.throughput(Throughput::Bytes(len as u64));
        let mut output = vec![0; 2 * len + 64];
        group.bench_function(BenchmarkId::new("libdeflater", len), |bencher| {
            bencher.iter(|| whole.deflate_compress(black_box(&plain), &mut output));
        });
        let level = flate2::Compression::new(level);
        group.bench_function(BenchmarkId::new("flate2, zlib-rs", len), |bencher| {
            let mut stream = flate2::Compress::new(level, false);
            bencher.iter(|| {
                stream.reset();
                let flush = flate2::FlushCompress::Finish;
                stream.compress(black_box(&plain), &mut output, flush)
            });
        });
        group.bench_function(BenchmarkId::new("miniz_oxide", len), |bencher| {
            bencher.iter(|| miniz_oxide::deflate::compress_to_vec(black_box(&plain), 6));
        });
        group.finish();

        let mut group = criterion.benchmark_group("inflate");
        group.throughput(Throughput::Bytes(len as u64));
        let mut decompressor = libdeflater::Decompressor::new();
        let mut output = vec![0; len];
        group.bench_function(BenchmarkId::new("libdeflater", len), |bencher| {
            bencher.iter(|| decompressor.deflate_decompress(black_box(&deflated), &mut output));
        });
        assert_eq!(output, plain);
        output.fill(0);
        group.bench_function(BenchmarkId::new("flate2, zlib-rs", len), |bencher| {
            let mut stream = flate2::Decompress::new(false);
            bencher.iter(|| {
                stream.reset(false);
                let flush = flate2::FlushDecompress::Finish;
                stream.decompress(black_box(&deflated), &mut output, flush)
            });
        });
        assert_eq!(output, plain);
        group.bench_function(BenchmarkId::new("miniz_oxide", len), |bencher| {
            bencher.iter(|| miniz_oxide::inflate::decompress_to_vec(black_box(&deflated)));
        });
        group.finish();
        let mut back = Vec::new();
        let mut decoder = flate2::write::DeflateDecoder::new(&mut back);
        decoder.write_all(&deflated).expect("memory takes it");
        decoder.finish().expect("it is whole");
        assert_eq!(back, plain);
        let mut back = Vec::new();
        let mut decoder = flate2::read::DeflateDecoder::new(&deflated[..]);
        decoder.read_to_end(&mut back).expect("it is whole");
        assert_eq!(back, plain);
    }
}

criterion_group!(benches, slabs, fan_out, deflates);
criterion_main!(benches);
