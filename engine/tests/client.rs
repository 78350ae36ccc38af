//! The blocking client: reading, writing, deadlines, proxies. What a hostile server does to it is
//! in `client_role.rs`.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use sockeye::CloseCode;
use sockeye::Connect;
use sockeye::Handle;
use sockeye::Limits;
use sockeye::ProtocolError;
use sockeye::Server;
use sockeye::client;
use sockeye::client::Error;
use sockeye::client::WebSocket;
use sockeye::http1::head_len;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Role;

use crate::support;
use crate::support::accept_of;
use crate::support::certificates::client_tls;
use crate::support::certificates::server_tls;
use crate::support::server_frame;

/// An echo server, with TLS or without.
fn serve(tls: bool) -> Handle {
    let builder = Server::builder()
        .on_message(|conn, message| {
            conn.send(message);
        })
        .message_len_max(1 << 20)
        .subprotocols(["b"])
        .threads(1);
    let bound = if tls {
        builder.bind_tls("127.0.0.1:0", server_tls())
    } else {
        builder.bind("127.0.0.1:0")
    };
    bound.expect("a free port").spawn().expect("it starts")
}

fn end(server: Handle) {
    server.shutdown();
    server.join().expect("it ends");
}

fn address(server: &Handle) -> SocketAddr {
    server.local_addr().ip().expect("an IP address")
}

fn connect_to(server: &Handle, tls: bool) -> Connect {
    let scheme = if tls { "wss" } else { "ws" };
    let url = format!("{scheme}://{}/", address(server));
    Connect::new(&url).expect("a URL").tls(client_tls().clone())
}

fn builder(connect: Connect) -> client::Builder {
    let mut limits = Limits::default();
    limits.message_len_max = 1 << 20;
    client::Builder::new(connect).limits(limits)
}

/// Both kinds of stream.
fn plain_and_tls(case: impl Fn(WebSocket<client::Stream>)) {
    for tls in [false, true] {
        let server = serve(tls);
        let connect = connect_to(&server, tls);
        case(builder(connect).connect().expect("it opens"));
        end(server);
    }
}

/// An in-memory stream: what is to be read, and what was written.
#[derive(Debug, Default)]
struct Memory {
    input: io::Cursor<Vec<u8>>,
    /// The most that one read gives, and one write takes.
    step: usize,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Memory {
    fn new(input: Vec<u8>, step: usize) -> Self {
        Self {
            input: io::Cursor::new(input),
            step,
            output: Arc::default(),
        }
    }
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.step);
        self.input.read(&mut buffer[..len])
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.step);
        let mut output = self.output.lock().expect("no panic");
        output.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client over these bytes of a server.
fn over(input: Vec<u8>, step: usize) -> WebSocket<Memory> {
    let memory = Memory::new(input, step);
    WebSocket::from_stream(memory, Role::Client, &[], &Limits::default()).expect("valid limits")
}

/// What was written, unmasked: first bytes and payloads.
fn frames(output: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = output;
    let mut frames = Vec::new();
    while let Some((header, len)) = FrameHeader::decode(rest).expect("legal frames") {
        let (front, back) = rest.split_at(len + header.payload_len as usize);
        let mut payload = front[len..].to_vec();
        sockeye::protocol::mask(&mut payload, header.mask_key.expect("a client masks"));
        frames.push((front[0], payload));
        rest = back;
    }
    assert_eq!(rest, b"", "half a frame");
    frames
}

fn written(ws: WebSocket<Memory>) -> Vec<(u8, Vec<u8>)> {
    let output = Arc::clone(&ws.into_inner().output);
    let output = output.lock().expect("no panic");
    frames(&output)
}

#[test]
fn messages_of_every_size() {
    plain_and_tls(|mut ws| {
        for len in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
            let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
            ws.write_message(&payload).expect("sent");
            let echo = ws.read_message().expect("an echo");
            assert!(!echo.is_text() && echo.payload() == payload);
            let text = "ä".repeat(len / 2);
            ws.write_message(&text).expect("sent");
            let echo = ws.read_message().expect("an echo").to_owned_message();
            assert!(echo == sockeye::OwnedMessage::Text(text));
            ws.write_message(&echo).expect("sent");
            let mut again = Vec::new();
            assert!(ws.read_into(&mut again).expect("an echo"));
            assert!(again == echo.payload());
        }
        ws.close(CloseCode::NORMAL, "done")
            .expect("the closing handshake");
        let after = ws.write_message("behind").expect_err("it is closed");
        assert!(matches!(after, Error::Closed(close) if close.code() == 1000));
    });
}

#[test]
fn several_messages_leave_together() {
    let mut ws = over(Vec::new(), usize::MAX);
    ws.feed("one").expect("queued");
    ws.feed(&b"two"[..]).expect("queued");
    assert!(ws.get_ref().output.lock().expect("no panic").is_empty());
    ws.flush().expect("written");
    let want = [(0x81, b"one".to_vec()), (0x82, b"two".to_vec())];
    assert_eq!(written(ws), want);
}

/// Messages however they are cut, by the peer's frames and by the stream's reads.
#[test]
fn a_stream_cut_anywhere_gives_the_same_messages() {
    let mut input = server_frame(0x81, "whole: é".as_bytes());
    input.extend(server_frame(0x02, b"fra"));
    input.extend(server_frame(0x89, b"ping"));
    input.extend(server_frame(0x00, b""));
    input.extend(server_frame(0x80, b"gments"));
    input.extend(server_frame(0x81, b""));
    input.extend(server_frame(0x82, &[7; 300]));
    input.extend(server_frame(0x88, &[3, 232]));
    for step in 1..input.len() {
        let mut ws = over(input.clone(), step);
        let mut next = || ws.read_message().map(|message| message.to_owned_message());
        assert_eq!(next().expect("one").payload(), "whole: é".as_bytes());
        assert_eq!(next().expect("two").payload(), b"fragments");
        assert_eq!(next().expect("three").payload(), b"");
        assert_eq!(next().expect("four").payload(), [7; 300]);
        assert!(matches!(next(), Err(Error::Closed(close)) if close.code() == 1000));
        let want = [(0x8A, b"ping".to_vec()), (0x88, vec![3, 232])];
        assert_eq!(written(ws), want, "{step}");
    }
}

#[test]
fn reader_gives_a_message_in_pieces_and_skips_what_is_not_read() {
    let mut input = server_frame(0x01, b"hel");
    input.extend(server_frame(0x89, b"between"));
    input.extend(server_frame(0x80, b"lo"));
    input.extend(server_frame(0x02, &[1; 500]));
    input.extend(server_frame(0x80, &[2; 500]));
    input.extend(server_frame(0x81, b"last"));
    for step in 1..40 {
        let mut ws = over(input.clone(), step);
        let mut reader = ws.next_reader().expect("a message");
        assert!(reader.is_text());
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("UTF-8");
        assert_eq!(text, "hello");
        assert_eq!(reader.read(&mut [0; 4]).expect("the end"), 0);

        let mut reader = ws.next_reader().expect("a message");
        assert!(!reader.is_text());
        let mut some = [0; 10];
        reader.read_exact(&mut some).expect("ten bytes");
        assert_eq!(some, [1; 10]);
        // The other 990 bytes are skipped.
        let last = ws.read_message().expect("the next message");
        assert_eq!(last.as_str(), Some("last"));
    }
}

#[test]
fn reader_reports_text_that_is_not_utf8() {
    let mut input = server_frame(0x01, "ok é".as_bytes());
    input.extend(server_frame(0x80, b"\xFF"));
    let mut ws = over(input, usize::MAX);
    let mut reader = ws.next_reader().expect("a message");
    let error = reader.read_to_end(&mut Vec::new()).expect_err("not UTF-8");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let close = written(ws).pop().expect("a Close frame");
    assert_eq!(
        (close.0, &close.1[..2]),
        (0x88, &1007_u16.to_be_bytes()[..])
    );
}

#[test]
fn writer_sends_fragments_and_only_whole_messages_count() {
    let mut ws = over(Vec::new(), usize::MAX);
    let mut writer = ws.next_writer(true).expect("open");
    let text = "é".repeat(20_000);
    for piece in text.as_bytes().chunks(7) {
        writer.write_all(piece).expect("UTF-8, cut anywhere");
    }
    writer.finish().expect("written");
    let mut writer = ws.next_writer(false).expect("open");
    writer.write_all(b"a").expect("memory");
    writer.flush().expect("a fragment of its own");
    writer.write_all(b"b").expect("memory");
    writer.finish().expect("written");
    ws.next_writer(false)
        .expect("open")
        .finish()
        .expect("an empty message");
    // Dropped before anything left: nothing has happened.
    ws.next_writer(true)
        .expect("open")
        .write_all(b"never")
        .expect("memory");
    ws.write_message("next").expect("sent");
    let got = written(ws);
    let firsts: Vec<u8> = got.iter().map(|(first, _)| *first).collect();
    assert_eq!(firsts, [0x01, 0x00, 0x80, 0x02, 0x80, 0x82, 0x81]);
    let sent: Vec<u8> = got[..3]
        .iter()
        .flat_map(|(_, payload)| payload.clone())
        .collect();
    assert!(sent == text.as_bytes());
    assert_eq!(got[6].1, b"next");

    // Dropped in the middle: the peer must not take half a message for a whole one.
    let mut ws = over(server_frame(0x88, &[3, 232]), usize::MAX);
    let mut writer = ws.next_writer(false).expect("open");
    writer.write_all(&[0; 40_000]).expect("memory");
    drop(writer);
    assert!(matches!(ws.write_message("next"), Err(Error::Unfinished)));
    assert!(matches!(ws.next_writer(true), Err(Error::Unfinished)));
    ws.close(CloseCode::NORMAL, "").expect("it can be closed");

    let mut ws = over(Vec::new(), usize::MAX);
    let mut writer = ws.next_writer(true).expect("open");
    writer.write_all(b"\xFF").expect_err("not UTF-8");
    drop(writer);
    let mut writer = ws.next_writer(true).expect("open");
    writer
        .write_all(b"\xC3")
        .expect("the first half of a character");
    writer.finish().expect_err("only half a character");
}

#[test]
fn control_frames_come_to_their_handlers() {
    let mut input = server_frame(0x89, b"answered");
    input.extend(server_frame(0x89, b"ignored"));
    input.extend(server_frame(0x8A, b"a pong"));
    input.extend(server_frame(0x88, &[0x13, 0x87, b'b', b'y', b'e']));
    let mut ws = over(input, 3);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = |name: &'static str| {
        let seen = Arc::clone(&seen);
        move |text: &[u8]| {
            let text = String::from_utf8_lossy(text).into_owned();
            seen.lock()
                .expect("no panic")
                .push(format!("{name} {text}"));
        }
    };
    let ping = log("ping");
    ws.on_ping(move |payload| {
        ping(payload);
        payload != b"ignored"
    });
    ws.on_pong(log("pong"));
    let close = log("close");
    ws.on_close(move |frame| close(format!("{} {}", frame.code(), frame.reason).as_bytes()));
    ws.ping(&[b'x'; 200]).expect("sent");
    let error = ws.read_message().expect_err("it closes");
    assert!(matches!(error, Error::Closed(close) if close.code() == 4999));
    assert!(matches!(ws.ping(b""), Err(Error::Closed(_))));
    let want = [
        "ping answered",
        "ping ignored",
        "pong a pong",
        "close 4999 bye",
    ];
    assert_eq!(*seen.lock().expect("no panic"), want);
    let want = [
        (0x89, vec![b'x'; 125]),
        (0x8A, b"answered".to_vec()),
        (0x88, 4999_u16.to_be_bytes().to_vec()),
    ];
    assert_eq!(written(ws), want);
}

#[test]
fn pong_owed_is_not_counted_and_others_are() {
    let mut input = Vec::new();
    input.extend(server_frame(0x89, b"").repeat(20));
    input.extend(server_frame(0x8A, b"rtt").repeat(300));
    input.extend(server_frame(0x81, b"served"));
    input.extend(server_frame(0x8A, b"rtt").repeat(21));
    let mut ws = over(input, 1_000);
    for _ in 0..300 {
        ws.ping(b"rtt").expect("sent");
    }
    let message = ws.read_message().expect("all were owed");
    assert_eq!(message.payload(), b"served");
    let error = ws.read_message().expect_err("none is owed");
    assert!(
        matches!(error, Error::Protocol(ProtocolError::ControlTooOften)),
        "{error:?}"
    );
}

/// A server that answers the handshake and leaves the rest to the test.
fn accept_one(after: impl FnOnce(TcpStream) + Send + 'static) -> (Connect, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("ws://{}/", listener.local_addr().expect("bound"));
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream
            .set_read_timeout(Some(support::PATIENCE))
            .expect("set");
        let request = read_head(&mut stream);
        stream
            .write_all(accept_of(&request, "").as_bytes())
            .expect("sent");
        after(stream);
    });
    (Connect::new(&url).expect("a URL"), thread)
}

fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while head_len(&head, 0).is_none() {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("ASCII")
}

#[test]
fn read_deadline_leaves_the_connection_as_it_was() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (connect, server) = accept_one(move |mut stream| {
        stream
            .write_all(&server_frame(0x01, b"first "))
            .expect("sent");
        stream
            .write_all(&server_frame(0x80, b"second")[..4])
            .expect("sent");
        wait.recv().expect("the client's deadline has passed");
        stream
            .write_all(&server_frame(0x80, b"second")[4..])
            .expect("sent");
        stream
            .write_all(&server_frame(0x82, b"third"))
            .expect("sent");
        let _ = io::copy(&mut stream, &mut io::sink());
    });
    let mut ws = client::Builder::new(connect).connect().expect("it opens");
    let soon = Instant::now() + Duration::from_millis(50);
    ws.set_read_deadline(Some(soon));
    assert!(
        ws.read_message()
            .expect_err("nothing more comes")
            .is_timeout()
    );
    assert!(Instant::now() >= soon);
    // A deadline that has passed is met at once.
    assert!(ws.read_message().expect_err("it has passed").is_timeout());
    go.send(()).expect("the server waits");
    ws.set_read_deadline(None);
    assert_eq!(
        ws.read_message().expect("whole").as_str(),
        Some("first second")
    );
    assert_eq!(ws.read_message().expect("the next").payload(), b"third");
    drop(ws);
    server.join().expect("no panic");
}

/// Bytes that have arrived are taken though the deadline has passed meanwhile: the process may have been
/// stopped. Plain and over TLS.
#[test]
fn g14_read_deadline_that_has_passed_takes_what_has_arrived_evidence() {
    for tls in [false, true] {
        let message = "x".repeat(50_000);
        let text = message.clone();
        let builder = Server::builder().threads(1).on_open(move |conn| {
            conn.send(&text);
        });
        let server = match tls {
            true => builder.bind_tls("127.0.0.1:0", server_tls()),
            false => builder.bind("127.0.0.1:0"),
        };
        let server = server.expect("a free port").spawn().expect("it starts");
        let scheme = if tls { "wss" } else { "ws" };
        let port = server.local_addr().ip().expect("TCP").port();
        let connect = Connect::new(&format!("{scheme}://localhost:{port}/")).expect("a URL");
        let connect = connect.address(([127, 0, 0, 1], port).into());
        let connect = connect.tls(client_tls().clone());
        let mut ws = client::Builder::new(connect).connect().expect("it opens");
        let start = Instant::now();
        ws.set_read_deadline(Some(start));
        let got = loop {
            match ws.read_message() {
                Ok(got) => break got.as_str().map(str::to_owned),
                // It is on its way.
                Err(error) => assert!(error.is_timeout(), "{error}"),
            }
            assert!(start.elapsed() < support::PATIENCE, "nothing is taken");
            ws.set_read_deadline(Some(start));
        };
        assert_eq!(got.as_deref(), Some(&message[..]), "{tls}");
        assert!(ws.read_message().expect_err("nothing more").is_timeout());
        end(server);
    }
}

#[test]
fn write_deadline_is_met_and_the_rest_follows() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let len = 32 << 20;
    let (connect, server) = accept_one(move |mut stream| {
        wait.recv().expect("the client's deadline has passed");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("an end");
        let got = frames(&received);
        assert_eq!(got.len(), 2);
        assert!(got[0].1 == vec![5; len]);
        assert_eq!(got[1].1, b"behind it");
    });
    let mut ws = client::Builder::new(connect).connect().expect("it opens");
    ws.set_write_deadline(Some(Instant::now() + Duration::from_millis(100)));
    let error = ws.write_message(&vec![5; len]).expect_err("nobody reads");
    assert!(error.is_timeout(), "{error}");
    go.send(()).expect("the server waits");
    ws.set_write_deadline(None);
    ws.flush().expect("the rest");
    ws.write_message(b"behind it").expect("sent");
    drop(ws);
    server.join().expect("no panic");
}

/// A server that never answers the Close frame costs the close time-out and no more.
#[test]
fn close_is_bounded() {
    let (connect, server) = accept_one(|mut stream| {
        let _ = io::copy(&mut stream, &mut io::sink());
    });
    let mut limits = Limits::default();
    limits.close_timeout = Duration::from_secs(1);
    let mut ws = client::Builder::new(connect)
        .limits(limits)
        .connect()
        .expect("it opens");
    let start = Instant::now();
    let error = ws.close(CloseCode::NORMAL, "").expect_err("nobody answers");
    assert!(error.is_timeout(), "{error}");
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert!(matches!(ws.write_message("x"), Err(Error::Closing)));
    drop(ws);
    server.join().expect("no panic");

    // One that goes on sending is not listened to for ever, whatever the stream.
    let mut ws = over(server_frame(0x82, &[0; 60_000]).repeat(400), usize::MAX);
    assert!(
        ws.close(CloseCode::NORMAL, "")
            .expect_err("no end")
            .is_timeout()
    );
}

#[test]
fn handshake_is_bounded() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut limits = Limits::default();
    limits.handshake_timeout = Duration::from_secs(1);
    for scheme in ["ws", "wss"] {
        let connect = Connect::new(&format!("{scheme}://{address}/")).expect("a URL");
        let connect = connect.tls(client_tls().clone());
        let start = Instant::now();
        let builder = client::Builder::new(connect).limits(limits.clone());
        let error = builder.connect().expect_err("nobody answers");
        assert!(error.is_timeout(), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn messages_before_the_peers_close_frame_are_read() {
    let (connect, server) = accept_one(|mut stream| {
        let mut close = [0; 8];
        stream.read_exact(&mut close).expect("a Close frame");
        assert_eq!(close[0], 0x88);
        stream
            .write_all(&server_frame(0x81, b"on its way"))
            .expect("sent");
        stream
            .write_all(&server_frame(0x88, &[3, 233]))
            .expect("sent");
    });
    let mut ws = client::Builder::new(connect).connect().expect("it opens");
    ws.send_close(CloseCode::GOING_AWAY, "").expect("sent");
    assert!(matches!(ws.write_message("x"), Err(Error::Closing)));
    assert_eq!(ws.read_message().expect("one").as_str(), Some("on its way"));
    assert!(matches!(ws.read_message(), Err(Error::Closed(close)) if close.code() == 1001));
    server.join().expect("no panic");
}

/// Both ends over one pair of sockets, without a handshake.
#[test]
fn websocket_wraps_any_stream_as_either_end() {
    let (near, far) = UnixStream::pair().expect("descriptors");
    let limits = Limits::default();
    let received = [&[0x81, 0x85, 1, 2, 3, 4][..], &masked(b"early")].concat();
    let server = thread::spawn(move || {
        let server = WebSocket::from_stream(far, Role::Server, &received, &Limits::default());
        let mut server = server.expect("valid limits");
        assert_eq!(
            server.read_message().expect("early").as_str(),
            Some("early")
        );
        let message = server.read_message().expect("a message").to_owned_message();
        server.write_message(&message).expect("sent");
        assert!(matches!(server.read_message(), Err(Error::Closed(_))));
    });
    let mut client = WebSocket::from_stream(near, Role::Client, &[], &limits).expect("valid");
    client.write_message("to the server").expect("sent");
    assert_eq!(
        client.read_message().expect("an echo").as_str(),
        Some("to the server")
    );
    client.close(CloseCode::NORMAL, "").expect("closed");
    server.join().expect("no panic");
    let (stream, unread) = client.into_parts();
    assert_eq!(unread, b"");
    drop(stream);
}

fn masked(payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    sockeye::protocol::mask(&mut payload, [1, 2, 3, 4]);
    payload
}

#[test]
fn request_and_answer_can_be_seen() {
    let server = Server::builder()
        .handler(|_| support::Probe {
            on_upgrade: Arc::new(|request| {
                let request = request.request();
                let header = |name| request.header(name).unwrap_or_default();
                let seen = [header("X-A"), header("Cookie"), header("Origin")].concat();
                let seen = String::from_utf8(seen).expect("ASCII");
                let upgrade = sockeye::Upgrade::accept(support::Data::default());
                upgrade.header("X-Seen", &seen).expect("valid")
            }),
            ..support::Probe::echo()
        })
        .subprotocols(["b"])
        .origins(sockeye::OriginPolicy::Any)
        .threads(1)
        .bind("127.0.0.1:0")
        .expect("a free port")
        .spawn()
        .expect("it starts");
    let connect = connect_to(&server, false)
        .header("X-A", "1;")
        .cookie("c", "2")
        .cookie("d", "3")
        .origin("http://o")
        .subprotocols(["a", "b"]);
    let ws = client::Builder::new(connect).connect().expect("it opens");
    assert_eq!(ws.subprotocol(), Some("b"));
    let seen = ws.response_header("x-seen");
    assert_eq!(seen.as_deref(), Some("1;c=2; d=3http://o"));
    drop(ws);
    end(server);
}

/// It can be handed to another thread.
#[test]
fn websocket_is_send() {
    fn is_send<T: Send>() {}
    is_send::<WebSocket<client::Stream>>();
    is_send::<client::Builder>();
    is_send::<Connect>();
    is_send::<Error>();
}

/// A deadline is for the whole read, however slowly its bytes come.
#[test]
fn read_deadline_holds_over_tls_that_comes_byte_by_byte() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("wss://{}/", listener.local_addr().expect("bound"));
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let server = thread::spawn(move || {
        let (mut tcp, _) = listener.accept().expect("a client");
        let config = server_tls().config();
        let mut tls = rustls::ServerConnection::new(config).expect("it can begin");
        let mut request = Vec::new();
        while head_len(&request, 0).is_none() {
            tls.complete_io(&mut tcp).expect("TLS");
            let _ = tls.reader().read_to_end(&mut request);
        }
        let request = String::from_utf8(request).expect("ASCII");
        let answer = accept_of(&request, "");
        tls.writer().write_all(answer.as_bytes()).expect("memory");
        while tls.wants_write() {
            tls.write_tls(&mut tcp).expect("sent");
        }
        let message = server_frame(0x82, &[1; 10_000]);
        tls.writer().write_all(&message).expect("memory");
        let mut wire = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut wire).expect("memory");
        }
        for byte in wire {
            if tcp.write_all(&[byte]).is_err() {
                return;
            }
            let pause = Duration::from_millis(5);
            if stopped.recv_timeout(pause) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                return;
            }
        }
    });
    let connect = Connect::new(&url).expect("a URL").tls(client_tls().clone());
    let mut ws = client::Builder::new(connect).connect().expect("it opens");
    let start = Instant::now();
    ws.set_read_deadline(Some(start + Duration::from_millis(300)));
    assert!(ws.read_message().expect_err("it takes 50 s").is_timeout());
    assert!(start.elapsed() < Duration::from_secs(10));
    drop(stop);
    server.join().expect("no panic");
}

#[test]
fn unix_socket() {
    let path = std::env::temp_dir().join(format!("sockeye-client-{}", std::process::id()));
    let server = Server::builder()
        .on_message(|conn, message| {
            conn.send(message);
        })
        .threads(1)
        .bind(&format!("unix:{}", path.display())[..])
        .expect("a free path")
        .spawn()
        .expect("it starts");
    let url = format!("ws+unix://{}:/chat", path.display());
    let mut ws = client::connect(&url).expect("it opens");
    ws.write_message("hello").expect("sent");
    assert_eq!(ws.read_message().expect("an echo").as_str(), Some("hello"));
    ws.close(CloseCode::NORMAL, "").expect("closed");
    end(server);
}

#[test]
fn what_cannot_be_connected_to_is_a_clear_error() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = closed.local_addr().expect("bound");
    drop(closed);
    let refused = client::connect(&format!("ws://{address}/")).expect_err("nobody listens");
    let Error::Io(error) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    for (url, want) in [
        ("http://127.0.0.1/", "scheme"),
        ("ws://", "URL"),
        ("ws://host.invalid/", "no address for host"),
        ("ws+unix:///nonexistent/socket", "No such file"),
    ] {
        let error = client::connect(url).expect_err(url).to_string();
        assert!(error.contains(want), "{url}: {error}");
    }
}

// Proxies.

/// Copies both ways until both directions have ended.
fn relay(near: TcpStream, far: TcpStream) {
    let (mut near_in, mut far_out) = (near.try_clone().expect("fd"), far.try_clone().expect("fd"));
    let (mut far_in, mut near_out) = (far, near);
    let back = thread::spawn(move || {
        let _ = io::copy(&mut far_in, &mut near_out);
        let _ = near_out.shutdown(std::net::Shutdown::Write);
    });
    let _ = io::copy(&mut near_in, &mut far_out);
    let _ = far_out.shutdown(std::net::Shutdown::Write);
    back.join().expect("no panic");
}

/// A proxy for one connection.
fn proxy(serve: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        stream
            .set_read_timeout(Some(support::PATIENCE))
            .expect("set");
        serve(stream);
    });
    (address, thread)
}

fn echoes(ws: &mut WebSocket<client::Stream>) {
    ws.write_message("through the proxy").expect("sent");
    let echo = ws.read_message().expect("an echo");
    assert_eq!(echo.as_str(), Some("through the proxy"));
    ws.close(CloseCode::NORMAL, "").expect("closed");
}

#[test]
fn http_proxy_with_credentials() {
    for tls in [false, true] {
        let server = serve(tls);
        let target = address(&server);
        let (address, thread) = proxy(move |mut stream| {
            let head = read_head(&mut stream);
            assert!(
                head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\n")),
                "{head}"
            );
            assert!(head.contains(&format!("Host: {target}\r\n")), "{head}");
            // user:pass word
            let credentials = "Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n";
            assert!(head.contains(credentials), "{head}");
            stream
                .write_all(b"HTTP/1.1 200 Connected\r\n\r\n")
                .expect("sent");
            relay(stream, TcpStream::connect(target).expect("it listens"));
        });
        let builder = builder(connect_to(&server, tls));
        let builder = builder.proxy(&format!("http://user:pass%20word@{address}"));
        echoes(&mut builder.expect("a proxy").connect().expect("it opens"));
        thread.join().expect("no panic");
        end(server);
    }
}

#[test]
fn proxy_that_refuses_is_a_clear_error() {
    let connect = || Connect::new("ws://host.example:81/").expect("a URL");
    let text = |scheme: &str, answer: &'static [u8]| {
        let (address, thread) = proxy(move |mut stream| {
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(answer).expect("sent");
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        let builder = client::Builder::new(connect());
        let builder = builder
            .proxy(&format!("{scheme}://{address}"))
            .expect("a proxy");
        let error = builder.connect().expect_err("it refuses");
        assert!(matches!(error, Error::Proxy(_)), "{error:?}");
        thread.join().expect("no panic");
        error.to_string()
    };
    let http = text(
        "http",
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
    );
    assert!(http.contains("407"), "{http}");
    assert!(text("http", b"SSH-2.0\r\n\r\n").contains("not HTTP"));
    assert!(text("socks5h", b"\x05\xFF").contains("credentials"));
    assert!(text("socks5h", b"\x05\x00\x05\x05\x00\x01").contains("connection refused"));
    assert!(text("socks5h", b"\x05\x00\x05\x00\x00\x09").contains("not SOCKS5"));
}

#[test]
fn socks5_proxy_with_names_and_credentials() {
    let server = serve(true);
    let target = address(&server);
    let (address, thread) = proxy(move |mut stream| {
        let mut read = |len: usize| {
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).expect("a request");
            bytes
        };
        assert_eq!(read(4), [5, 2, 0, 2]);
        let mut replies = stream.try_clone().expect("fd");
        replies.write_all(&[5, 2]).expect("sent");
        let mut read = |len: usize| {
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).expect("a request");
            bytes
        };
        assert_eq!(read(11), b"\x01\x04user\x04p:ss");
        replies.write_all(&[1, 0]).expect("sent");
        assert_eq!(read(4), [5, 1, 0, 3]);
        assert_eq!(read(10), b"\x09localhost");
        assert_eq!(read(2), target.port().to_be_bytes());
        replies
            .write_all(b"\x05\x00\x00\x03\x01x\x00\x00")
            .expect("sent");
        relay(stream, TcpStream::connect(target).expect("it listens"));
    });
    let url = format!("wss://localhost:{}/", target.port());
    let connect = Connect::new(&url).expect("a URL").tls(client_tls().clone());
    let proxy = builder(connect).proxy(&format!("socks5h://user:p%3Ass@{address}"));
    echoes(&mut proxy.expect("a proxy").connect().expect("it opens"));
    thread.join().expect("no panic");
    end(server);
}

/// A proxy that knows its clients by their addresses chooses no authentication, whatever the
/// client could offer.
#[test]
fn socks5_proxy_that_wants_no_credentials_gets_none() {
    let server = serve(false);
    let target = address(&server);
    let (address, thread) = proxy(move |mut stream| {
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(greeting, [5, 2, 0, 2]);
        stream.write_all(&[5, 0]).expect("sent");
        let mut request = [0; 10];
        stream.read_exact(&mut request).expect("a request");
        assert_eq!(request[..8], [5, 1, 0, 1, 127, 0, 0, 1]);
        stream
            .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
            .expect("sent");
        relay(stream, TcpStream::connect(target).expect("it listens"));
    });
    let url = format!("ws://127.0.0.1:{}/", target.port());
    let proxy = builder(Connect::new(&url).expect("a URL"));
    let proxy = proxy.proxy(&format!("socks5://user:secret@{address}"));
    echoes(&mut proxy.expect("a proxy").connect().expect("it opens"));
    thread.join().expect("no panic");
    end(server);
}

#[test]
fn socks5_proxy_with_an_address_that_was_looked_up_here() {
    let server = serve(false);
    let target = address(&server);
    let (address, thread) = proxy(move |mut stream| {
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(greeting, [5, 1, 0]);
        stream.write_all(&[5, 0]).expect("sent");
        let mut request = [0; 10];
        stream.read_exact(&mut request).expect("a request");
        assert_eq!(request[..8], [5, 1, 0, 1, 127, 0, 0, 1]);
        stream
            .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
            .expect("sent");
        relay(stream, TcpStream::connect(target).expect("it listens"));
    });
    let url = format!("ws://localhost:{}/", target.port());
    let proxy = builder(Connect::new(&url).expect("a URL")).proxy(&format!("socks5://{address}"));
    echoes(&mut proxy.expect("a proxy").connect().expect("it opens"));
    thread.join().expect("no panic");
    end(server);
}
