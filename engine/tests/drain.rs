//! The end of a server: spread over a window, with a deadline, handed over to another.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::time::Instant;

use sockeye::BackendChoice;
use sockeye::CloseCode;
use sockeye::Drain;
use sockeye::Server;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Link;
use crate::support::Probe;
use crate::support::REQUEST;
use crate::support::Settings;
use crate::support::World;

cases!(
    drain_closes_all_with_its_code_and_ends,
    drain_spreads_the_closes_over_its_window,
    drain_ends_at_its_deadline_whoever_does_not_answer,
    draining_server_is_not_ready_and_opens_nothing,
    shutdown_cuts_a_drain_short,
);

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";

fn drain_closes_all_with_its_code_and_ends(world: World) {
    let server = world.start(Probe::echo());
    let mut links: Vec<Link> = (0..20).map(|_| server.open()).collect();
    links[3].send_text("before");
    links[3].expect_text("before");
    let drain = Drain::new()
        .window(Duration::from_millis(300))
        .deadline(Duration::from_secs(20))
        .close(CloseCode::SERVICE_RESTART, "deploy");
    server.drain(drain);
    server.pass(Duration::from_secs(1));
    for link in &mut links {
        let close = link.next_frame().expect("a Close frame");
        assert_eq!(close.opcode, Opcode::Close);
        assert_eq!(
            close.payload,
            [&1012_u16.to_be_bytes()[..], b"deploy"].concat()
        );
        // Served until then, and whole: the closing handshake is completed.
        link.send_frame(Opcode::Close, &1012_u16.to_be_bytes());
        assert_eq!(link.next_frame(), None);
        link.shutdown();
    }
    let closes = server.closes(20);
    assert!(
        closes
            .iter()
            .all(|end| end.clean && end.local && end.code == 1012)
    );
    let start = Instant::now();
    while !server.is_finished() {
        server.turn(1);
        assert!(start.elapsed() < Duration::from_secs(10), "it does not end");
    }
}

fn drain_spreads_the_closes_over_its_window(world: World) {
    let server = world.start(Probe::echo());
    let mut links: Vec<Link> = (0..40).map(|_| server.open()).collect();
    let window = Duration::from_secs(2);
    let start = Instant::now();
    server.drain(Drain::new().window(window).close(CloseCode::GOING_AWAY, ""));
    server.turn(2);
    if world.is_sim() {
        // In virtual time, to the connection: a quarter in each quarter of the window.
        for quarter in 1..=4 {
            server.pass(window / 4);
            assert_eq!(server.drained(), 10 * quarter);
        }
    } else {
        let mut times: Vec<(Duration, usize)> = Vec::new();
        for (index, link) in links.iter_mut().enumerate() {
            link.expect_close_answered(1001);
            times.push((start.elapsed(), index));
        }
        // Whatever the order in which they are read, the last is told at the end.
        let last = times.iter().map(|(at, _)| *at).max().unwrap();
        assert!(last > window / 2, "{last:?}");
        return;
    }
    for link in &mut links {
        link.expect_close_answered(1001);
    }
}

fn drain_ends_at_its_deadline_whoever_does_not_answer(world: World) {
    let mut settings = Settings::default();
    settings.limits.close_timeout = Duration::from_secs(60);
    let server = world.start_with(settings, Probe::echo());
    let mut link = server.open();
    let drain = Drain::new()
        .window(Duration::ZERO)
        .deadline(Duration::from_secs(1));
    let start = Instant::now();
    server.drain(drain);
    server.pass(Duration::from_millis(1_500));
    // It is told, does not answer, and is dropped.
    let close = link.next_frame().expect("a Close frame");
    assert_eq!(close.opcode, Opcode::Close);
    assert_eq!(link.read_to_end_or_reset(), b"");
    assert!(!server.ended().clean);
    assert!(start.elapsed() < Duration::from_secs(20));
}

fn draining_server_is_not_ready_and_opens_nothing(world: World) {
    let settings = Settings {
        health_path: Some("/health"),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    let status = |request: &str| {
        let mut link = server.connect();
        link.send(request.as_bytes());
        link.read_status()
    };
    let mut link = server.open();
    assert_eq!(status(HEALTH), 200);
    server.drain(
        Drain::new()
            .window(Duration::from_secs(60))
            .deadline(Duration::from_secs(60)),
    );
    // The drain has begun when the health path says so.
    let start = Instant::now();
    while status(HEALTH) != 503 {
        assert!(start.elapsed() < support::PATIENCE);
    }
    assert_eq!(status(REQUEST), 503);
    assert_eq!(status("GET /page HTTP/1.1\r\nHost: a\r\n\r\n"), 200);
    // Who is there is served.
    link.send_text("still");
    let frame = link.next_frame().expect("it is open");
    assert!(frame.payload == b"still" || frame.opcode == Opcode::Close);
}

fn shutdown_cuts_a_drain_short(world: World) {
    let mut server = world.start(Probe::echo());
    let links: Vec<Link> = (0..5).map(|_| server.open()).collect();
    server.drain(
        Drain::new()
            .window(Duration::from_secs(3_000))
            .deadline(Duration::from_secs(3_000)),
    );
    server.turn(3);
    drop(links);
    server.stop();
}

fn echo(
    backend: BackendChoice,
    listeners: Vec<std::os::fd::OwnedFd>,
    threads: usize,
) -> sockeye::Handle {
    let mut builder = Server::builder()
        .on_message(|conn, message| {
            conn.send(message);
        })
        .threads(threads)
        .backend(backend);
    for listener in listeners {
        builder = builder.listen_on(listener);
    }
    builder.bind_inherited().unwrap().spawn().unwrap()
}

/// A connection that has been made and not accepted, or accepted and not answered, is served by
/// one process or the other.
#[test]
fn listeners_are_handed_over_without_losing_a_connection() {
    for backend in [BackendChoice::Poll, BackendChoice::Uring] {
        if backend == BackendChoice::Uring && !support::uring_works() {
            continue;
        }
        let old = Server::builder()
            .threads(3)
            .backend(backend)
            .bind("127.0.0.1:0")
            .unwrap()
            .spawn()
            .unwrap();
        let address = old.local_addr().ip().unwrap();
        let listeners = old.listeners().unwrap();
        assert_eq!(listeners.len(), 3);
        // With more threads than there are sockets, and fewer.
        let successor = echo(
            backend,
            listeners,
            if backend == BackendChoice::Poll { 5 } else { 2 },
        );
        assert_eq!(successor.local_addr().ip(), Some(address));
        old.drain(Drain::new().hand_over().window(Duration::ZERO));
        old.join().unwrap();
        // The old one has gone: all of these are the successor's.
        for _ in 0..50 {
            let mut client = sockeye::client::connect(&format!("ws://{address}/")).unwrap();
            client.write_message("served").unwrap();
            assert_eq!(client.read_message().unwrap().payload(), b"served");
        }
        successor.shutdown();
        successor.join().unwrap();
        assert!(TcpStream::connect(address).is_err(), "the port is closed");
    }
}

/// What systemd does: the socket listens before the server is there.
#[test]
fn inherited_sockets_are_listened_on() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let path = std::env::temp_dir().join(format!("sockeye-inherited-{}", std::process::id()));
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut early = TcpStream::connect(address).unwrap();
    early.write_all(REQUEST.as_bytes()).unwrap();
    let server = echo(BackendChoice::Auto, vec![tcp.into(), unix.into()], 2);
    assert_eq!(server.local_addrs().len(), 2);
    let mut over_unix = UnixStream::connect(&path).unwrap();
    over_unix.write_all(REQUEST.as_bytes()).unwrap();
    let streams: [&mut dyn Read; 2] = [&mut early, &mut over_unix];
    for stream in streams {
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 101");
    }
    drop((early, over_unix));
    server.shutdown();
    server.join().unwrap();
    assert!(!path.exists());
}

#[test]
fn nothing_to_listen_on_is_an_error() {
    let result = Server::builder().bind_inherited();
    assert!(result.unwrap_err().to_string().contains("no address"));
    let (socket, _other) = UnixStream::pair().unwrap();
    let result = Server::builder().listen_on(socket).bind_inherited();
    assert!(result.unwrap_err().to_string().contains("inherited"));
}
