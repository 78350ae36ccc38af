//! Connections that the reactor makes: where from, where to, and what becomes of them. What a
//! hostile server does to them is in `client_role.rs`.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use sockeye::BackendChoice;
use sockeye::CloseCause;
use sockeye::CloseCode;
use sockeye::Closed;
use sockeye::ConfigError;
use sockeye::ConnId;
use sockeye::Connect;
use sockeye::Context;
use sockeye::Engine;
use sockeye::Handle;
use sockeye::Handler;
use sockeye::Message;
use sockeye::OpenError;
use sockeye::SendResult;
use sockeye::Server;
use sockeye::protocol::Role;

use crate::support;

/// Runs a case on each backend, io_uring with regular and with direct descriptors.
fn on_each_backend(case: impl Fn(BackendChoice, bool)) {
    if support::uring_works() {
        case(BackendChoice::Uring, false);
        case(BackendChoice::Uring, true);
    }
    case(BackendChoice::Poll, false);
}

/// What the handler has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Open(ConnId, u64),
    Message(u64, String),
    Closed(u64, u16, bool),
    Refused(u64, ErrorKind),
    NotOpened(u64, String),
}

/// Says hello, and closes when it has heard something.
#[derive(Clone, Default)]
struct Hello(Rc<RefCell<Vec<Seen>>>);

impl Handler for Hello {
    type Data = u64;

    fn on_open(&mut self, conn: &mut Context<'_, u64>) {
        assert_eq!(conn.role(), Role::Client);
        let number = *conn.data();
        self.0.borrow_mut().push(Seen::Open(conn.id(), number));
        conn.send(&format!("hello {number}"));
    }

    fn on_message(&mut self, conn: &mut Context<'_, u64>, message: Message<'_>) {
        let text = message.as_str().unwrap_or_default().to_owned();
        self.0.borrow_mut().push(Seen::Message(*conn.data(), text));
        conn.close(CloseCode::NORMAL, "");
    }

    fn on_close(&mut self, conn: &mut Context<'_, u64>, closed: &Closed<'_>) {
        let number = *conn.data();
        self.0.borrow_mut().push(match &closed.cause {
            CloseCause::NotOpened(OpenError::Io(error)) => Seen::Refused(number, error.kind()),
            CloseCause::NotOpened(error) => Seen::NotOpened(number, error.to_string()),
            cause => Seen::Closed(number, cause.code(), closed.clean),
        });
    }
}

fn engine(backend: BackendChoice, direct: bool) -> (Engine<Hello>, Hello) {
    let mut engine = Engine::builder()
        .handler(|_| Hello::default())
        .backend(backend)
        .direct_descriptors(direct)
        .engine()
        .expect("it starts");
    let hello = engine.handler().clone();
    (engine, hello)
}

fn turn_until_empty(engine: &mut Engine<Hello>) {
    while engine.connections() > 0 {
        engine.turn(Some(Duration::from_secs(1))).expect("it turns");
    }
}

/// A server that answers with the address that a connection comes from.
fn who_am_i() -> Handle {
    Server::builder()
        .on_message(|conn, _| {
            let peer = conn.peer_addr().expect("it is there").to_string();
            conn.send(&peer);
        })
        .threads(1)
        .bind("127.0.0.1:0")
        .expect("a free port")
        .spawn()
        .expect("it starts")
}

fn url(server: &Handle) -> String {
    format!("ws://{}/", server.local_addr())
}

fn end(server: Handle) {
    server.shutdown();
    server.join().expect("it ends");
}

#[test]
fn owner_does_between_turns_what_a_callback_could() {
    on_each_backend(|backend, direct| {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        let server = Server::builder()
            .on_message(move |conn, message| {
                let text = message.as_str().unwrap_or_default().to_owned();
                hears.lock().expect("no panic").push(text);
                conn.send(message);
            })
            .threads(1)
            .bind("127.0.0.1:0")
            .and_then(Server::spawn)
            .expect("it starts");
        let (mut engine, hello) = engine(backend, direct);
        let connect = Connect::new(&url(&server)).expect("a URL");
        let id = engine.connect(&connect, 0).expect("valid");
        assert_eq!(engine.with(id, |_, _| ()), None, "it is not open");
        while !hello.0.borrow().contains(&Seen::Open(id, 0)) {
            engine.turn(Some(Duration::from_secs(1))).expect("it turns");
        }
        let sent = engine.with(id, |hello, conn| {
            hello.0.borrow_mut().clear();
            *conn.data() += 1;
            conn.send("of its own accord")
        });
        assert_eq!(sent, Some(SendResult::Sent));
        turn_until_empty(&mut engine);
        // The server echoes only what it is sent, and the first echo closes.
        let first = hello.0.borrow()[0].clone();
        assert_eq!(first, Seen::Message(1, "hello 0".to_owned()));
        assert_eq!(
            *heard.lock().expect("no panic"),
            ["hello 0", "of its own accord"]
        );
        assert_eq!(engine.with(id, |_, _| ()), None, "it is over");

        let id = engine.connect(&connect, 5).expect("valid");
        hello.0.borrow_mut().clear();
        while hello.0.borrow().is_empty() {
            engine.turn(Some(Duration::from_secs(1))).expect("it turns");
        }
        engine.with(id, |_, conn| conn.terminate());
        let ended = hello.0.borrow().last().cloned();
        assert_eq!(ended, Some(Seen::Closed(5, 1006, false)));
        engine.turn(Some(Duration::ZERO)).expect("it turns");
        assert_eq!(engine.connections(), 0);
        end(server);
    });
}

#[test]
fn connection_opens_talks_and_closes() {
    on_each_backend(|backend, direct| {
        let server = who_am_i();
        let (mut engine, hello) = engine(backend, direct);
        let connect = Connect::new(&url(&server)).expect("a URL");
        let id = engine.connect(&connect, 7).expect("it can be asked for");
        turn_until_empty(&mut engine);
        let seen = hello.0.take();
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(seen[0], Seen::Open(id, 7));
        assert!(matches!(&seen[1], Seen::Message(7, peer) if peer.starts_with("127.0.0.1:")));
        assert_eq!(seen[2], Seen::Closed(7, 1000, true));
        end(server);
    });
}

#[test]
fn refused_and_unreachable_are_told_to_on_close() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = closed.local_addr().expect("bound");
    drop(closed);
    on_each_backend(|backend, direct| {
        let (mut engine, hello) = engine(backend, direct);
        let connect = Connect::new(&format!("ws://{address}/")).expect("a URL");
        engine.connect(&connect, 1).expect("it can be asked for");
        // An address that is not of this machine.
        let foreign = connect.source([192, 0, 2, 1].into());
        engine.connect(&foreign, 2).expect("it can be asked for");
        let socket = Connect::new("ws+unix:///nonexistent/socket").expect("a URL");
        engine.connect(&socket, 3).expect("it can be asked for");
        turn_until_empty(&mut engine);
        let mut seen = hello.0.take();
        seen.sort_by_key(|seen| match seen {
            Seen::Refused(number, _) => *number,
            _ => 0,
        });
        let want = [
            Seen::Refused(1, ErrorKind::ConnectionRefused),
            Seen::Refused(2, ErrorKind::AddrNotAvailable),
            Seen::Refused(3, ErrorKind::NotFound),
        ];
        assert_eq!(seen, want);
    });
}

#[test]
fn settings_that_make_no_sense_are_errors_at_once() {
    let (mut engine, hello) = engine(BackendChoice::Poll, false);
    let mut error = |connect: Connect| engine.connect(&connect, 0).expect_err("no sense");
    let named = Connect::new("ws://host.invalid/").expect("a URL");
    assert!(
        matches!(error(named.clone()), ConfigError::Unresolved(host) if host == "host.invalid")
    );
    assert!(matches!(named.resolve(), Err(ConfigError::Unresolved(_))));
    let local = Connect::new("ws://127.0.0.1:1/").expect("a URL");
    assert!(matches!(
        error(local.clone().header("a b", "c")),
        ConfigError::Header(_)
    ));
    assert!(matches!(
        error(local.subprotocols(["a b"])),
        ConfigError::Subprotocol(_)
    ));
    assert_eq!(engine.connections(), 0);
    assert_eq!(*hello.0.borrow(), []);
}

#[test]
fn source_address_and_ports_are_as_asked_for() {
    on_each_backend(|backend, direct| {
        let server = who_am_i();
        let (mut engine, hello) = engine(backend, direct);
        let connect = Connect::new(&url(&server)).expect("a URL");
        let connect = connect
            .source([127, 0, 0, 77].into())
            .source_ports(42_000, 42_099);
        for number in 0..20 {
            engine
                .connect(&connect, number)
                .expect("it can be asked for");
        }
        turn_until_empty(&mut engine);
        let mut peers = Vec::new();
        for seen in hello.0.take() {
            if let Seen::Message(_, peer) = seen {
                let peer: SocketAddr = peer.parse().expect("an address");
                assert_eq!(peer.ip().to_string(), "127.0.0.77");
                assert!((42_000..=42_099).contains(&peer.port()), "{peer}");
                peers.push(peer);
            }
        }
        assert_eq!(peers.len(), 20);
        end(server);
    });
}

/// Many on one thread, which also serves them.
#[test]
fn thousands_of_connections_on_one_thread() {
    on_each_backend(|backend, direct| {
        const COUNT: u64 = 3_000;
        let server = who_am_i();
        let (mut engine, hello) = engine(backend, direct);
        let connect = Connect::new(&url(&server)).expect("a URL");
        for number in 0..COUNT {
            engine
                .connect(&connect, number)
                .expect("it can be asked for");
            // Connections that wait in the server's backlog are few.
            if number % 200 == 199 {
                engine.turn(Some(Duration::ZERO)).expect("it turns");
            }
        }
        turn_until_empty(&mut engine);
        let seen = hello.0.take();
        let clean = |seen: &&Seen| matches!(seen, Seen::Closed(_, 1000, true));
        assert_eq!(seen.iter().filter(clean).count() as u64, COUNT);
        assert_eq!(seen.len() as u64, 3 * COUNT);
        end(server);
    });
}

/// A relay: for each connection that it accepts it makes one, from inside a callback.
#[derive(Clone)]
struct Relay {
    upstream: Connect,
}

#[derive(Default)]
struct Peer {
    other: Option<ConnId>,
    /// What came before the other end was there.
    waiting: Vec<String>,
}

impl Handler for Relay {
    type Data = Peer;

    fn on_open(&mut self, conn: &mut Context<'_, Peer>) {
        match conn.role() {
            Role::Server => {
                let upstream = Peer {
                    other: Some(conn.id()),
                    ..Peer::default()
                };
                let connect = self.upstream.clone();
                conn.connect(connect, upstream)
                    .expect("it can be asked for");
            }
            Role::Client => {
                let near = conn.data().other.expect("it was made for one");
                conn.remote().send(near, "connected").expect("room");
            }
        }
    }

    fn on_message(&mut self, conn: &mut Context<'_, Peer>, message: Message<'_>) {
        if let Some(other) = conn.data().other {
            conn.remote().send(other, message).expect("room");
        } else {
            let text = message.as_str().unwrap_or_default().to_owned();
            conn.data().waiting.push(text);
        }
    }

    fn on_close(&mut self, conn: &mut Context<'_, Peer>, closed: &Closed<'_>) {
        if let Some(other) = conn.data().other {
            let code = match closed.cause {
                CloseCause::NotOpened(_) => CloseCode::BAD_GATEWAY,
                _ => CloseCode::NORMAL,
            };
            let _ = conn.remote().close(other, code, "");
        }
    }
}

#[test]
fn connections_are_made_from_inside_callbacks() {
    on_each_backend(|backend, _| {
        let upstream = who_am_i();
        let relay = |upstream: &str| {
            let upstream = Connect::new(upstream).expect("a URL");
            Server::builder()
                .handler(move |_| Relay {
                    upstream: upstream.clone(),
                })
                .backend(backend)
                .threads(2)
                .bind("127.0.0.1:0")
                .expect("a free port")
                .spawn()
                .expect("it starts")
        };
        let server = relay(&url(&upstream));
        let mut ws = sockeye::client::connect(&url(&server)).expect("it opens");
        assert_eq!(
            ws.read_message().expect("a word").as_str(),
            Some("connected")
        );
        ws.close(CloseCode::NORMAL, "").expect("closed");
        end(server);

        // Nobody is there: the near end is told.
        let closed = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let nobody = format!("ws://{}/", closed.local_addr().expect("bound"));
        drop(closed);
        let server = relay(&nobody);
        let mut ws = sockeye::client::connect(&url(&server)).expect("it opens");
        match ws.read_message() {
            Err(sockeye::client::Error::Closed(close)) => assert_eq!(close.code(), 1014),
            other => panic!("{other:?}"),
        }
        drop(ws);
        end(server);
        end(upstream);
    });
}

/// From another thread; the handler gives the data.
#[test]
fn remote_connects_with_data_of_the_handler() {
    struct Tagged(Arc<Mutex<Vec<u64>>>);
    impl Handler for Tagged {
        type Data = u64;

        fn on_connect(&mut self, connect: &Connect) -> u64 {
            connect.tag_value()
        }

        fn on_message(&mut self, conn: &mut Context<'_, u64>, _: Message<'_>) {
            conn.close(CloseCode::NORMAL, "");
        }

        fn on_open(&mut self, conn: &mut Context<'_, u64>) {
            conn.send("hello");
        }

        fn on_close(&mut self, conn: &mut Context<'_, u64>, closed: &Closed<'_>) {
            assert!(closed.clean);
            self.0.lock().expect("no panic").push(*conn.data());
        }
    }
    on_each_backend(|backend, direct| {
        let upstream = who_am_i();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let server = Server::builder()
            .handler(move |_| Tagged(Arc::clone(&log)))
            .backend(backend)
            .direct_descriptors(direct)
            .threads(2)
            .bind("127.0.0.1:0")
            .expect("a free port")
            .spawn()
            .expect("it starts");
        for tag in 1..=10 {
            let connect = Connect::new(&url(&upstream)).expect("a URL").tag(tag);
            server.remote().connect(connect).expect("room");
        }
        let unresolved = Connect::new("ws://host.invalid/").expect("a URL");
        server.remote().connect(unresolved).expect_err("no address");
        while seen.lock().expect("no panic").len() < 10 {
            std::thread::yield_now();
        }
        let mut tags = seen.lock().expect("no panic").clone();
        tags.sort_unstable();
        assert_eq!(tags, (1..=10).collect::<Vec<u64>>());
        end(server);
        end(upstream);
    });
}

#[test]
fn as_many_as_there_may_be() {
    let server = who_am_i();
    let mut engine = Engine::builder()
        .handler(|_| Hello::default())
        .connections_max(5)
        .engine()
        .expect("it starts");
    let hello = engine.handler().clone();
    let connect = Connect::new(&url(&server)).expect("a URL");
    for number in 0..7 {
        engine
            .connect(&connect, number)
            .expect("it can be asked for");
    }
    turn_until_empty(&mut engine);
    let seen = hello.0.take();
    let refused = |seen: &&Seen| matches!(seen, Seen::Refused(5 | 6, ErrorKind::Other));
    assert_eq!(seen.iter().filter(refused).count(), 2);
    let clean = |seen: &&Seen| matches!(seen, Seen::Closed(_, 1000, true));
    assert_eq!(seen.iter().filter(clean).count(), 5);
    end(server);
}

/// Whoever asks again and again for what fails at once keeps nobody else waiting.
#[test]
fn asking_again_at_once_starves_nobody() {
    struct Stubborn;
    impl Handler for Stubborn {
        type Data = u32;

        fn on_message(&mut self, conn: &mut Context<'_, u32>, message: Message<'_>) {
            assert_eq!(conn.role(), Role::Server);
            conn.send(message);
        }

        fn on_close(&mut self, conn: &mut Context<'_, u32>, closed: &Closed<'_>) {
            if matches!(closed.cause, CloseCause::NotOpened(_)) {
                let again = Connect::new("ws+unix:///nonexistent/socket").expect("a URL");
                let attempts = *conn.data() + 1;
                conn.connect(again, attempts).expect("it can be asked for");
            }
        }
    }
    on_each_backend(|backend, direct| {
        let server = Server::builder()
            .handler(|_| Stubborn)
            .backend(backend)
            .direct_descriptors(direct)
            .threads(1)
            .bind("127.0.0.1:0")
            .expect("a free port")
            .spawn()
            .expect("it starts");
        let nowhere = Connect::new("ws+unix:///nonexistent/socket").expect("a URL");
        server.remote().connect(nowhere).expect("room");
        let mut ws = sockeye::client::connect(&url(&server)).expect("it opens");
        ws.write_message("served").expect("sent");
        assert_eq!(ws.read_message().expect("an echo").as_str(), Some("served"));
        ws.close(CloseCode::NORMAL, "").expect("closed");
        end(server);
    });
}

/// An id reaches a connection that is still being made, and its engine ends with it.
#[test]
fn connection_that_is_being_made_is_abandoned_at_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    on_each_backend(|backend, direct| {
        let (mut engine, hello) = engine(backend, direct);
        let connect = Connect::new(&format!("ws://{address}/")).expect("a URL");
        engine.connect(&connect, 1).expect("it can be asked for");
        engine.turn(Some(Duration::ZERO)).expect("it turns");
        engine.shut_down();
        engine.run().expect("it ends");
        assert_eq!(*hello.0.borrow(), [Seen::Closed(1, 1006, false)]);
        let late = engine.connect(&connect, 2);
        late.expect("it can be asked for");
        assert_eq!(hello.0.borrow()[1..], [Seen::Refused(2, ErrorKind::Other)]);
    });
}
