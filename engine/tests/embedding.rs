//! An engine inside somebody else's loop, and connections that somebody else has opened.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use sockeye::Agreed;
use sockeye::BackendChoice;
use sockeye::Context;
use sockeye::Engine;
use sockeye::Handler;
use sockeye::Message;
use sockeye::OriginPolicy;
use sockeye::OutputPolicy;
use sockeye::Route;
use sockeye::Server;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::frame;

/// What there is to run on, and whether with direct descriptors.
fn backends() -> Vec<(BackendChoice, bool)> {
    let mut backends = vec![(BackendChoice::Poll, false)];
    if support::uring_works() {
        backends.extend([(BackendChoice::Uring, false), (BackendChoice::Uring, true)]);
    }
    backends
}

struct Echo;

impl Handler for Echo {
    type Data = Option<String>;

    fn on_adopt(&mut self, agreed: &Agreed) -> Option<String> {
        agreed.requested_path().map(str::to_owned)
    }

    fn on_open(&mut self, conn: &mut Context<'_, Option<String>>) {
        let path = conn.data().clone();
        let seen = format!("{path:?} {:?} {:?}", conn.route(), conn.subprotocol());
        conn.send(&seen);
    }

    fn on_message(&mut self, conn: &mut Context<'_, Option<String>>, message: Message<'_>) {
        conn.send(message);
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_read_timeout(Some(support::PATIENCE)).unwrap();
    (near, listener.accept().unwrap().0)
}

/// A server's frame.
fn read_frame(stream: &mut impl Read) -> (u8, Vec<u8>) {
    let mut header = [0; 2];
    stream.read_exact(&mut header).unwrap();
    assert!(header[1] < 126);
    let mut payload = vec![0; header[1].into()];
    stream.read_exact(&mut payload).unwrap();
    (header[0], payload)
}

fn expect(stream: &mut impl Read, text: &str) {
    let (first, payload) = read_frame(stream);
    assert_eq!(
        (first, String::from_utf8(payload).unwrap()),
        (0x81, text.to_owned())
    );
}

#[test]
fn adopted_connection_is_like_any_other() {
    for (backend, direct) in backends() {
        let server = Server::builder()
            .handler(|_| Echo)
            .subprotocols(["listed"])
            .route("/rooms/{room}", |route| {
                route.output_policy(OutputPolicy::DropOldest)
            })
            .threads(2)
            .backend(backend)
            .direct_descriptors(direct)
            .bind("127.0.0.1:0")
            .unwrap()
            .spawn()
            .unwrap();
        let remote = server.remote();
        // What had been read behind the request is delivered first; it may end inside a frame.
        let early = [frame(Opcode::Text, b"one"), frame(Opcode::Text, b"two")].concat();
        for cut in 0..=early.len() {
            let (mut near, far) = pair();
            let agreed = Agreed::new().path("/rooms/7").subprotocol("listed");
            remote.adopt(far, &early[..cut], agreed).unwrap();
            near.write_all(&early[cut..]).unwrap();
            let seen = r#"Some("/rooms/7") Some("/rooms/{room}") Some("listed")"#;
            expect(&mut near, seen);
            expect(&mut near, "one");
            expect(&mut near, "two");
            near.write_all(&frame(Opcode::Close, &1000_u16.to_be_bytes()))
                .unwrap();
            assert_eq!(
                read_frame(&mut near),
                (0x88, 1000_u16.to_be_bytes().to_vec())
            );
        }
        // A Unix socket, a path of no route, a subprotocol of nobody's list.
        let (mut near, far) = UnixStream::pair().unwrap();
        let agreed = Agreed::new().path("/elsewhere").subprotocol("own");
        remote.adopt(far, Vec::new(), agreed).unwrap();
        expect(&mut near, r#"Some("/elsewhere") None Some("own")"#);
        near.write_all(&frame(Opcode::Text, b"three")).unwrap();
        expect(&mut near, "three");
        drop(near);
        // What is broken at once is closed with the right code.
        let (mut near, far) = pair();
        remote.adopt(far, [0xFF], Agreed::new()).unwrap();
        expect(&mut near, "None None None");
        let (first, payload) = read_frame(&mut near);
        assert_eq!((first, &payload[..2]), (0x88, &1002_u16.to_be_bytes()[..]));
        drop(near);
        server.shutdown();
        server.join().unwrap();
    }
}

#[test]
fn what_cannot_be_adopted_is_refused() {
    for (backend, direct) in backends() {
        let mut engine = Engine::builder()
            .handler(|_| Echo)
            .connections_max(1)
            .backend(backend)
            .direct_descriptors(direct)
            .engine()
            .unwrap();
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        assert!(engine.adopt(file, [], &Agreed::new(), None).is_err());
        let datagram: OwnedFd = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into();
        assert!(engine.adopt(datagram, [], &Agreed::new(), None).is_err());
        assert_eq!(engine.connections(), 0);
        let (_near, far) = pair();
        engine.adopt(far, [], &Agreed::new(), None).unwrap();
        let (mut one_too_many, far) = pair();
        assert!(engine.adopt(far, [], &Agreed::new(), None).is_err());
        assert_eq!(one_too_many.read(&mut [0]).unwrap(), 0, "it is closed");
        assert_eq!(engine.connections(), 1);
        engine.shut_down();
        let start = Instant::now();
        drop(_near);
        while !engine.is_finished() {
            engine.turn(Some(Duration::from_millis(10))).unwrap();
            assert!(start.elapsed() < support::PATIENCE);
        }
        let (_near, far) = pair();
        assert!(engine.adopt(far, [], &Agreed::new(), None).is_err());
    }
}

/// Waits for the descriptor alone: whatever there is to do has to make it readable, or to be
/// announced by the time to wait.
#[test]
fn descriptor_is_readable_whenever_there_is_something_to_do() {
    for (backend, direct) in backends() {
        let mut engine = Engine::builder()
            .on_message(|conn, message| {
                conn.send(message);
            })
            .listen("127.0.0.1:0")
            .backend(backend)
            .direct_descriptors(direct)
            .engine()
            .unwrap();
        let descriptor = engine.descriptor().unwrap();
        let address = engine.local_addrs()[0].clone();
        let remote = engine.remote().clone();
        let (done, is_done) = mpsc::channel();
        let client = thread::spawn(move || {
            let mut clients: Vec<_> = (0..5)
                .map(|_| sockeye::client::connect(&format!("ws://{address}/")).unwrap())
                .collect();
            for number in 0..200 {
                for client in &mut clients {
                    let text = number.to_string();
                    client.write_message(&text).unwrap();
                    assert_eq!(client.read_message().unwrap().payload(), text.as_bytes());
                }
                // A command of another thread wakes it as well.
                remote.broadcast("to all").unwrap();
                for client in &mut clients {
                    assert_eq!(client.read_message().unwrap().payload(), b"to all");
                }
            }
            done.send(()).unwrap();
        });
        let mut waits_in_vain = 0;
        let start = Instant::now();
        while is_done.try_recv().is_err() {
            let wait = engine.prepare_wait().min(Duration::from_millis(500));
            let wait = Timespec::try_from(wait).unwrap();
            let before = Instant::now();
            let ready = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&wait));
            let in_vain = ready.unwrap() == 0 && before.elapsed() > Duration::from_millis(100);
            waits_in_vain += u32::from(in_vain);
            engine.turn(Some(Duration::ZERO)).unwrap();
            assert!(
                start.elapsed() < support::PATIENCE,
                "{backend:?} {direct}: it sleeps"
            );
        }
        client.join().unwrap();
        // The clients are never idle. Were it not readable for one kind of event, a half of 400
        // round trips would wait for the next sweep of the deadlines.
        assert!(
            waits_in_vain < 10,
            "{backend:?} {direct}: {waits_in_vain} waits"
        );
    }
}

/// The requests that `Agreed::answer` takes and refuses, as the engine's own handshake does.
#[test]
fn answer_is_that_of_the_engines_own_handshake() {
    let route = Route::default().subprotocols(["chat", "log"]);
    let request = |change: &dyn Fn(http::request::Builder) -> http::request::Builder| {
        let builder = http::Request::get("/rooms/7?a=b")
            .header("Host", "example.com")
            .header("Upgrade", "websocket")
            .header("Connection", "keep-alive, Upgrade")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        change(builder).body(()).unwrap()
    };
    let plain = request(&|builder| builder);
    let (answer, agreed) = Agreed::answer(&plain, &route).expect("it is legal");
    assert_eq!(answer.status(), 101);
    let header = |name: &str| {
        answer
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap())
    };
    assert_eq!(
        header("Sec-WebSocket-Accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(header("Sec-WebSocket-Protocol"), None);
    assert_eq!(agreed.requested_path(), Some("/rooms/7"));

    let offers = request(&|builder| builder.header("Sec-WebSocket-Protocol", "x, log, chat"));
    let (answer, _) = Agreed::answer(&offers, &route).expect("it is legal");
    assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "chat");

    let refused = |change: &dyn Fn(http::request::Builder) -> http::request::Builder| {
        Agreed::answer(&request(change), &route).expect_err("it is refused")
    };
    assert_eq!(
        refused(&|b| b.header("Origin", "http://evil.example")).status(),
        403
    );
    assert_eq!(refused(&|b| b.method("POST")).status(), 405);
    assert_eq!(
        refused(&|b| b.version(http::Version::HTTP_10)).status(),
        400
    );
    assert_eq!(refused(&|b| b.header("Content-Length", "1")).status(), 400);
    assert_eq!(
        refused(&|b| b.header("Sec-WebSocket-Key", "x")).status(),
        400
    );
    let version = refused(&|b| b.header("Sec-WebSocket-Version", "8"));
    assert_eq!(version.status(), 426);
    assert_eq!(version.headers()["Sec-WebSocket-Version"], "13");
    let any = Route::default().origins(OriginPolicy::Any);
    let foreign = request(&|b| b.header("Origin", "http://evil.example"));
    assert!(Agreed::answer(&foreign, &any).is_ok());
}

#[test]
fn server_without_a_listener_says_what_is_wrong_with_one() {
    let builder = || Server::builder().handler(|_| Echo).threads(1);
    let surplus = builder().listen("127.0.0.1:0").without_listener();
    let text = surplus.err().expect("it has an address").to_string();
    assert!(text.contains("listen nowhere"), "{text}");
    let text = builder()
        .bind_inherited()
        .err()
        .expect("no address")
        .to_string();
    assert!(text.contains("no address"), "{text}");

    let server = builder().without_listener().unwrap().spawn().unwrap();
    assert_eq!(server.local_addrs(), []);
    let (mut client, far) = UnixStream::pair().unwrap();
    server
        .remote()
        .adopt(far, [], Agreed::new().path("/a"))
        .unwrap();
    let mut greeting = [0; 2];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting[0], 0x81);
    drop(client);
    server.shutdown();
    server.join().unwrap();
}
