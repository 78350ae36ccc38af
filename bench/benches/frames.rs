//! Frame headers, whole frames, and the opening handshake, beside `tungstenite` and `httparse`.
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
use sockeye::Request;
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

fn their_header(bytes: &[u8]) -> (tungstenite::protocol::frame::FrameHeader, u64) {
    let mut cursor = io::Cursor::new(bytes);
    let parsed = tungstenite::protocol::frame::FrameHeader::parse(&mut cursor);
    parsed.expect("valid").expect("whole")
}

fn headers(criterion: &mut Criterion) {
    for len in [64, 1_000, 100_000] {
        let encoded = header(len).encode();
        let decoded = FrameHeader::decode(encoded.as_bytes());
        assert_eq!(decoded, Ok(Some((header(len), encoded.as_bytes().len()))));
        let (theirs, their_len) = their_header(encoded.as_bytes());
        assert_eq!((theirs.mask, their_len), (Some([0; 4]), len));
        let mut group = criterion.benchmark_group("decode a header");
        group.bench_function(BenchmarkId::new("sockeye", len), |bencher| {
            bencher.iter(|| FrameHeader::decode(black_box(encoded.as_bytes())));
        });
        group.bench_function(BenchmarkId::new("tungstenite", len), |bencher| {
            bencher.iter(|| their_header(black_box(encoded.as_bytes())));
        });
        group.finish();
        let mut group = criterion.benchmark_group("encode a header");
        group.bench_function(BenchmarkId::new("sockeye", len), |bencher| {
            bencher.iter(|| black_box(header(black_box(len))).encode());
        });
        let mut output = Vec::with_capacity(14);
        group.bench_function(BenchmarkId::new("tungstenite", len), |bencher| {
            bencher.iter(|| {
                output.clear();
                theirs
                    .format(black_box(len), &mut output)
                    .expect("memory takes it");
            });
        });
        assert_eq!(output, encoded.as_bytes());
        group.finish();
    }
}

/// The same bytes again and again.
struct Endless {
    bytes: Vec<u8>,
    at: usize,
}

impl io::Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.bytes[self.at..];
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.at = (self.at + len) % self.bytes.len();
        Ok(len)
    }
}

impl io::Write for Endless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
        for role in [
            tungstenite::protocol::Role::Client,
            tungstenite::protocol::Role::Server,
        ] {
            let mut ws = tungstenite::WebSocket::from_raw_socket(Null, role, None);
            let bytes = tungstenite::Bytes::from(payload.clone());
            let name = BenchmarkId::new(format!("tungstenite, {role:?}"), len);
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    let message = tungstenite::Message::Binary(black_box(&bytes).clone());
                    ws.send(message).expect("written");
                });
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
        let stream = Endless {
            bytes: input.clone(),
            at: 0,
        };
        let role = tungstenite::protocol::Role::Server;
        let mut ws = tungstenite::WebSocket::from_raw_socket(stream, role, None);
        group.bench_function(BenchmarkId::new("tungstenite", len), |bencher| {
            bencher.iter(|| {
                let mut bytes = 0;
                for _ in 0..16 {
                    bytes += ws.read().expect("a message").len();
                }
                assert_eq!(bytes, 16 * len as usize);
            });
        });
        group.bench_function(BenchmarkId::new("sockeye", len), |bencher| {
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

/// A browser's request.
const REQUEST: &[u8] = b"GET /chat?room=1 HTTP/1.1\r\nHost: server.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0\r\n\
    Accept: */*\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\n\
    Sec-WebSocket-Version: 13\r\nOrigin: http://server.example.com\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nConnection: keep-alive, Upgrade\r\n\
    Cookie: session=0123456789abcdef\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\
    Upgrade: websocket\r\n\r\n";

/// The request once, and nothing behind it.
struct Once {
    request: io::Cursor<&'static [u8]>,
    response: Vec<u8>,
}

impl io::Read for Once {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.request.read(buffer)
    }
}

impl io::Write for Once {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.response.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From the request's bytes to the response's.
fn upgrade(response: &mut Vec<u8>) {
    let mut storage = [httparse::EMPTY_HEADER; 64];
    let request = Request::parse(black_box(REQUEST), &mut storage).expect("valid");
    let request = handshake::UpgradeRequest::check(request).expect("an upgrade");
    response.clear();
    handshake::write_accept(response, &request.accept_key(), None, None, "");
}

fn handshakes(criterion: &mut Criterion) {
    criterion.bench_function("accept key", |bencher| {
        bencher.iter(|| handshake::accept_key(black_box(b"dGhlIHNhbXBsZSBub25jZQ==")));
    });
    let mut response = Vec::new();
    let accepted = || {
        let once = Once {
            request: io::Cursor::new(REQUEST),
            response: Vec::with_capacity(256),
        };
        let accepted = tungstenite::accept(once);
        accepted
            .map_err(|_| "not accepted")
            .expect("valid")
            .get_ref()
            .response
            .clone()
    };
    upgrade(&mut response);
    let key = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    let has_key = |bytes: &[u8]| bytes.windows(key.len()).any(|part| part == key);
    assert!(has_key(&response));
    assert!(has_key(&accepted()));
    let mut group = criterion.benchmark_group("answer an opening handshake");
    group.bench_function("sockeye", |bencher| bencher.iter(|| upgrade(&mut response)));
    group.bench_function("tungstenite", |bencher| bencher.iter(accepted));
    group.bench_function("httparse, which only parses", |bencher| {
        bencher.iter(|| {
            let mut storage = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut storage);
            request.parse(black_box(REQUEST)).is_ok()
        });
    });
    group.finish();
}

criterion_group!(benches, headers, frames, writes, handshakes);
criterion_main!(benches);
