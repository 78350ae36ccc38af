//! Frame headers, whole frames, and the opening handshake.
//!
//!     cargo bench -p sockeye-bench --bench frames
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::io;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use sockeye::Limits;
use sockeye::client::WebSocket;
use sockeye::protocol::Decoder;
use sockeye::protocol::DecoderLimits;
use sockeye::protocol::Event;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;
use sockeye::protocol::Role;
use sockeye::protocol::handshake;

fn header(len: u64) -> FrameHeader {
    FrameHeader {
        fin: true,
        rsv1: false,
        opcode: Opcode::Binary,
        payload_len: len,
        // A key of zeros leaves the payload as it is, for the next round.
        mask_key: Some([0; 4]),
    }
}

fn headers(criterion: &mut Criterion) {
    for len in [64, 1_000, 100_000] {
        let encoded = header(len).encode();
        let decoded = FrameHeader::decode(encoded.as_bytes());
        assert_eq!(decoded, Ok(Some((header(len), encoded.as_bytes().len()))));
        criterion.bench_function(&format!("decode a header/{len}"), |bencher| {
            bencher.iter(|| FrameHeader::decode(black_box(encoded.as_bytes())));
        });
        criterion.bench_function(&format!("encode a header/{len}"), |bencher| {
            bencher.iter(|| black_box(header(black_box(len))).encode());
        });
    }
}

/// Takes everything and has nothing.
struct Null;

impl io::Read for Null {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}

impl io::Write for Null {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(black_box(bytes).len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a masking key and masking cost: a client's messages beside a server's.
fn writes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("write a message");
    for len in [64, 1024, 16 * 1024] {
        let payload = vec![b'x'; len];
        group.throughput(Throughput::Bytes(len as u64));
        for role in [Role::Client, Role::Server] {
            let ws = WebSocket::from_stream(Null, role, &[], &Limits::default());
            let mut ws = ws.expect("valid limits");
            let name = BenchmarkId::new(format!("{role:?}"), len);
            group.bench_function(name, |bencher| {
                bencher.iter(|| ws.write_message(black_box(&payload)).expect("written"));
            });
        }
    }
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let limits = DecoderLimits {
        role: Role::Server,
        message_len_max: 1 << 20,
        fragment_count_max: 1024,
        rsv1_allowed: false,
    };
    let mut group = criterion.benchmark_group("decode 16 frames");
    for len in [64, 1024, 16 * 1024] {
        let frame = [header(len).encode().as_bytes(), &vec![b'x'; len as usize]].concat();
        let mut input = frame.repeat(16);
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |bencher| {
            bencher.iter(|| {
                let mut decoder = Decoder::default();
                let mut rest = black_box(&mut input[..]);
                let mut bytes = 0;
                while let Ok(Some(Event::Message(message))) = decoder.next(&mut rest, &limits) {
                    bytes += message.payload().len();
                }
                assert_eq!(bytes, 16 * len as usize);
            });
        });
    }
    group.finish();
}

fn handshakes(criterion: &mut Criterion) {
    criterion.bench_function("accept key", |bencher| {
        bencher.iter(|| handshake::accept_key(black_box(b"dGhlIHNhbXBsZSBub25jZQ==")));
    });
}

criterion_group!(benches, headers, frames, writes, handshakes);
criterion_main!(benches);
