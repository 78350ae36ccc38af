//! A plain echo costs no allocation once the connection is warm, and no lock.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;

use sockeye::BackendChoice;
use sockeye::Server;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Memory;

/// An open WebSocket.
fn open(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(support::REQUEST.as_bytes()).expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    stream
}

/// A text message, masked with zeros.
fn masked_text(len: usize) -> Vec<u8> {
    let header = FrameHeader {
        fin: true,
        rsv1: false,
        opcode: Opcode::Text,
        payload_len: len as u64,
        mask_key: Some([0; 4]),
    };
    [header.encode().as_bytes(), &vec![b'e'; len]].concat()
}

fn echo_costs_no_allocation(backend: BackendChoice, direct: bool, len: usize) {
    if backend == BackendChoice::Uring && !support::uring_works() {
        return;
    }
    let memory = Memory::new();
    let server = Server::builder()
        .on_open(|_| {
            memory.count_this_thread();
            // One that must be seen, or the count is worth nothing.
            drop(std::hint::black_box(Box::new([0_u8; 64])));
        })
        .on_message(|conn, message| {
            conn.send(message);
        })
        .threads(1)
        .backend(backend)
        .direct_descriptors(direct)
        .bind("127.0.0.1:0")
        .expect("a free port")
        .spawn()
        .expect("it starts");
    let address = server.local_addr().ip().expect("an IP address");
    let mut streams: Vec<TcpStream> = (0..3).map(|_| open(address)).collect();
    let request = masked_text(len);
    let mut reply = vec![0; request.len() - 4];
    let mut echo = |count: usize| {
        for _ in 0..count {
            for stream in &mut streams {
                stream.write_all(&request).expect("sent");
            }
            for stream in &mut streams {
                stream.read_exact(&mut reply).expect("an echo");
                assert!(reply.ends_with(&request[request.len() - len..]));
            }
        }
    };
    echo(200);
    let before = memory.calls();
    assert!(before > 0, "the server's thread is not counted");
    echo(2_000);
    let after = memory.calls();
    assert_eq!(after - before, 0, "allocations for 6,000 echoes");
    server.shutdown();
    drop(streams);
    server.join().expect("it ends");
}

#[test]
fn echo_costs_no_allocation_on_uring() {
    echo_costs_no_allocation(BackendChoice::Uring, false, 64);
    echo_costs_no_allocation(BackendChoice::Uring, false, 4_000);
}

#[test]
fn echo_costs_no_allocation_on_uring_with_direct_descriptors() {
    echo_costs_no_allocation(BackendChoice::Uring, true, 64);
}

#[test]
fn echo_costs_no_allocation_on_poll() {
    echo_costs_no_allocation(BackendChoice::Poll, false, 64);
    echo_costs_no_allocation(BackendChoice::Poll, false, 4_000);
}

/// A publish costs as much memory for 200 subscribers as for one: its one encoding.
fn publish_costs_no_allocation_per_subscriber(backend: BackendChoice, len: usize) {
    if backend == BackendChoice::Uring && !support::uring_works() {
        return;
    }
    let memory = Memory::new();
    let server = Server::builder()
        .on_open(|conn| {
            memory.count_this_thread();
            conn.subscribe("all");
        })
        .on_message(|conn, message| {
            conn.publish("all", message).expect("room");
        })
        .threads(1)
        .backend(backend)
        .bind("127.0.0.1:0")
        .expect("a free port")
        .spawn()
        .expect("it starts");
    let address = server.local_addr().ip().expect("an IP address");
    let mut streams: Vec<TcpStream> = (0..200).map(|_| open(address)).collect();
    let request = masked_text(len);
    let mut reply = vec![0; request.len() - 4];
    let mut publish = |count: usize| {
        for _ in 0..count {
            streams[0].write_all(&request).expect("sent");
            for stream in &mut streams {
                stream.read_exact(&mut reply).expect("a message");
                assert!(reply.ends_with(&request[request.len() - len..]));
            }
        }
    };
    publish(20);
    let before = memory.calls();
    publish(100);
    let after = memory.calls();
    let each = (after - before) as f64 / 100.0;
    assert!(each > 0.0, "the one encoding has to be somewhere");
    assert!(each <= 8.0, "{each} allocations and releases for a publish");
    server.shutdown();
    drop(streams);
    server.join().expect("it ends");
}

#[test]
fn publish_costs_no_allocation_per_subscriber_on_uring() {
    publish_costs_no_allocation_per_subscriber(BackendChoice::Uring, 256);
    publish_costs_no_allocation_per_subscriber(BackendChoice::Uring, 4_000);
}

#[test]
fn publish_costs_no_allocation_per_subscriber_on_poll() {
    publish_costs_no_allocation_per_subscriber(BackendChoice::Poll, 256);
    publish_costs_no_allocation_per_subscriber(BackendChoice::Poll, 4_000);
}

/// There is no lock in the engine, so a message can take none. The channel that starts threads
/// is not in the rooms of a message's path.
#[test]
fn the_path_of_a_message_has_no_lock() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = 0;
    for room in ["buffer", "conn", "protocol", "reactor", "simd", "worker"] {
        visit(&source.join(room), &mut |path, text| {
            files += 1;
            // As connections come and go, they may be counted by their addresses.
            if path.ends_with("worker/shared.rs") {
                return;
            }
            for lock in ["Mutex", "RwLock", "Condvar", "mpsc", "parking_lot"] {
                assert!(!text.contains(lock), "{lock} in {}", path.display());
            }
        });
    }
    assert!(files > 20);
}

fn visit(path: &Path, check: &mut dyn FnMut(&Path, &str)) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("the source folder is readable") {
            visit(&entry.expect("the entry is readable").path(), check);
        }
    } else {
        check(path, &fs::read_to_string(path).expect("source is UTF-8"));
    }
}
