//! Interoperation with libraries that nobody here wrote, in both roles, plain and over TLS:
//! text and binary of many sizes, pings, fragments, a subprotocol, close codes; and plain with
//! permessage-deflate, without context takeover and with it.
//!
//! `tokio-tungstenite` runs in this process. The others (Python `websockets`, Node.js `ws`,
//! `gorilla/websocket`, `coder/websocket`) are programs in the folder `interop`; `.ci/interop
//! FOLDER` sets them up, and `SOCKEYE_INTEROP=FOLDER` says where. What is not there is skipped,
//! and that is said.

#[path = "interop/tungstenite.rs"]
mod tungstenite_peer;

use std::cell::RefCell;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use sockeye::BackendChoice;
use sockeye::CloseCode;
use sockeye::Closed;
use sockeye::Compression;
use sockeye::Connect;
use sockeye::Context;
use sockeye::Engine;
use sockeye::Handle;
use sockeye::Handler;
use sockeye::Limits;
use sockeye::Message;
use sockeye::OwnedMessage;
use sockeye::Server;
use sockeye::client;
use sockeye::client::Error;

use crate::support;
use crate::support::certificates;
use crate::support::certificates::client_tls;

/// Payload lengths in bytes.
pub const SIZES: [usize; 7] = [0, 1, 125, 126, 65_535, 65_536, 1 << 20];
/// Close codes.
pub const CODES: [u16; 5] = [1000, 1001, 1012, 3001, 4999];

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.message_len_max = 1 << 21;
    limits.output_len_max = 1 << 22;
    // A mebibyte of one byte is among what is sent.
    limits.inflate_ratio_max = 0;
    limits
}

/// The number of a "close N" message.
pub fn close_code(message: &Message<'_>) -> Option<u16> {
    message.as_str()?.strip_prefix("close ")?.parse().ok()
}

// Our server.

/// Echoes, and does what it is asked for.
struct Peer;

impl Handler for Peer {
    type Data = ();

    fn on_message(&mut self, conn: &mut Context<'_, ()>, message: Message<'_>) {
        if let Some(code) = close_code(&message) {
            conn.close(CloseCode::new(code).expect("it may be sent"), "bye");
        } else if message.as_str() == Some("ping") {
            conn.ping(b"are you there");
        } else {
            conn.send(message);
        }
    }

    fn on_pong(&mut self, conn: &mut Context<'_, ()>, payload: &[u8], _: Option<Duration>) {
        assert_eq!(payload, b"are you there");
        conn.send("pong");
    }
}

fn our_server(backend: BackendChoice, tls: bool, compression: Compression) -> Handle {
    let builder = Server::builder()
        .handler(|_| Peer)
        .limits(limits())
        .subprotocols(["b"])
        .compression(compression)
        .backend(backend)
        .threads(1);
    let bound = if tls {
        builder.bind_tls("127.0.0.1:0", certificates::server_tls())
    } else {
        builder.bind("127.0.0.1:0")
    };
    bound.expect("a free port").spawn().expect("it starts")
}

/// Compression, and what a foreign program's environment says of it.
const MODES: [(Compression, &str); 3] = [
    (Compression::Off, ""),
    (Compression::Shared, "apart"),
    (
        Compression::Dedicated {
            window_bits: 15,
            mem: 8,
        },
        "takeover",
    ),
];

/// Lets a foreign client run its script against our server, on each backend, plain and over
/// TLS, and plain with compression. It gets the URL, the authority to trust, and what to offer.
fn foreign_client(modes: &[(Compression, &str)], run: impl Fn(&str, Option<&Pem>, &str)) {
    let pem = Pem::new();
    let tls = (true, (Compression::Off, ""));
    for (tls, (compression, offer)) in modes.iter().map(|mode| (false, *mode)).chain([tls]) {
        let case = |backend| {
            let server = our_server(backend, tls, compression);
            let port = server.local_addr().ip().expect("an IP address").port();
            if tls {
                run(&format!("wss://localhost:{port}/"), Some(&pem), offer);
            } else {
                run(&format!("ws://127.0.0.1:{port}/"), None, offer);
            }
            server.shutdown();
            server.join().expect("it ends");
        };
        if support::uring_works() {
            case(BackendChoice::Uring);
        }
        case(BackendChoice::Poll);
    }
}

/// The tests' certificates in files.
pub struct Pem {
    folder: PathBuf,
}

impl Pem {
    fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("sockeye-interop-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let certified = certificates::authority().issue(&["localhost", "127.0.0.1"]);
        let write = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).expect("written");
        };
        write("authority", &certificates::authority().pem);
        write("chain", &certified.chain);
        write("key", &certified.key);
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

impl Drop for Pem {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

// Our clients.

/// Lets both of our clients run their scripts against a foreign server. `start` starts it, with
/// the certificate to use, and gives its port and what keeps it running.
fn foreign_server<K>(
    modes: &[(Compression, &str)],
    fragments: &str,
    start: impl Fn(Option<&Pem>, &str) -> (u16, K),
) {
    let pem = Pem::new();
    let tls = (true, (Compression::Off, ""));
    for (tls, (compression, offer)) in modes.iter().map(|mode| (false, *mode)).chain([tls]) {
        let (port, _running) = start(tls.then_some(&pem), offer);
        let scheme = if tls { "wss" } else { "ws" };
        let connect = Connect::new(&format!("{scheme}://localhost:{port}/")).expect("a URL");
        let connect = connect
            .address(([127, 0, 0, 1], port).into())
            .tls(client_tls().clone())
            .compression(compression)
            .subprotocols(["a", "b"]);
        blocking_script(&connect, compression, fragments);
        if support::uring_works() {
            reactor_script(&connect, fragments, BackendChoice::Uring);
        }
        reactor_script(&connect, fragments, BackendChoice::Poll);
    }
}

fn blocking_script(connect: &Connect, compression: Compression, fragments: &str) {
    let open = || {
        let builder = client::Builder::new(connect.clone()).limits(limits());
        let mut ws = builder.connect().expect("it opens");
        ws.set_read_deadline(Some(std::time::Instant::now() + support::PATIENCE));
        ws
    };
    let mut ws = open();
    assert_eq!(ws.subprotocol(), Some("b"));
    assert_eq!(ws.is_compressed(), compression != Compression::Off);
    for number in 0..20 {
        let text = support::deflate::json(3_000, number);
        ws.write_message(&text).expect("sent");
        let echo = ws.read_message().expect("an echo");
        assert_eq!(echo.as_str(), Some(&text[..]));
    }
    for size in SIZES {
        for text in [true, false] {
            let payload = vec![b'x'; size];
            let sent = Message::checked(text, &payload);
            ws.write_message(sent).expect("sent");
            let echo = ws.read_message().expect("an echo");
            assert_eq!(echo.is_text(), text);
            assert!(echo.payload() == payload, "{size}");
        }
    }
    let pongs = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&pongs);
    ws.on_pong(move |payload| seen.lock().expect("no panic").push(payload.to_vec()));
    ws.ping(b"hello").expect("sent");
    let text = "é".repeat(50_000);
    let mut writer = ws.next_writer(true).expect("open");
    for part in text.as_bytes().chunks(777) {
        writer.write_all(part).expect("UTF-8");
    }
    writer.finish().expect("sent");
    assert!(ws.read_message().expect("an echo").as_str() == Some(&text));
    assert_eq!(*pongs.lock().expect("no panic"), [b"hello".to_vec()]);
    for (ask, answer) in [("ping", "pong"), ("fragments", fragments)] {
        ws.write_message(ask).expect("sent");
        let got = ws.read_message().expect("an answer");
        assert_eq!(got.as_str(), Some(answer));
    }
    drop(ws);
    for code in CODES {
        let close = CloseCode::new(code).expect("it may be sent");
        open().close(close, "bye").expect("the closing handshake");
        let mut ws = open();
        ws.write_message(&format!("close {code}")).expect("sent");
        match ws.read_message() {
            Err(Error::Closed(close)) => {
                assert_eq!((close.code(), &close.reason[..]), (code, "bye"));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What one connection of the reactor's client does.
#[derive(Clone, Default)]
struct Script {
    /// Messages to send, each with its answer.
    exchanges: Vec<(OwnedMessage, OwnedMessage)>,
    next: usize,
    /// The code to close with, at the end.
    close: Option<u16>,
    /// The code that the peer is to close with.
    closed: Option<u16>,
}

/// Runs scripts, and counts those that came to their end.
#[derive(Clone, Default)]
struct Runner(Rc<RefCell<usize>>);

impl Runner {
    fn go_on(conn: &mut Context<'_, Script>) {
        let script = conn.data();
        match (script.exchanges.get(script.next).cloned(), script.close) {
            (Some((message, _)), _) => {
                conn.send(&message);
            }
            (None, Some(code)) => conn.close(CloseCode::new(code).expect("it may be sent"), "bye"),
            // Its pong is answered with the end.
            (None, None) => {
                conn.ping(b"hello");
            }
        }
    }
}

impl Handler for Runner {
    type Data = Script;

    fn on_open(&mut self, conn: &mut Context<'_, Script>) {
        assert_eq!(conn.subprotocol(), Some("b"));
        match conn.data().closed {
            Some(code) => {
                conn.send(&format!("close {code}"));
            }
            None => Self::go_on(conn),
        }
    }

    fn on_message(&mut self, conn: &mut Context<'_, Script>, message: Message<'_>) {
        let script = conn.data();
        let want = Message::from(&script.exchanges[script.next].1);
        assert_eq!(message.is_text(), want.is_text());
        assert!(message.payload() == want.payload(), "{}", script.next);
        script.next += 1;
        Self::go_on(conn);
    }

    fn on_pong(&mut self, conn: &mut Context<'_, Script>, payload: &[u8], _: Option<Duration>) {
        assert_eq!(payload, b"hello");
        conn.data().close = Some(1000);
        Self::go_on(conn);
    }

    fn on_close(&mut self, conn: &mut Context<'_, Script>, closed: &Closed<'_>) {
        let script = conn.data().clone();
        assert!(closed.clean, "{closed:?}");
        assert_eq!(
            closed.cause.code(),
            script.closed.or(script.close).unwrap_or(0)
        );
        assert_eq!(script.next, script.exchanges.len());
        *self.0.borrow_mut() += 1;
    }
}

fn reactor_script(connect: &Connect, fragments: &str, backend: BackendChoice) {
    let mut engine = Engine::builder()
        .handler(|_| Runner::default())
        .limits(limits())
        .backend(backend)
        .engine()
        .expect("it starts");
    let ended = Rc::clone(&engine.handler().0);
    let text = |text: &str| OwnedMessage::Text(text.to_owned());
    let mut exchanges = vec![
        (text("ping"), text("pong")),
        (text("fragments"), text(fragments)),
    ];
    for number in 0..20 {
        let records = text(&support::deflate::json(3_000, number));
        exchanges.push((records.clone(), records));
    }
    for size in SIZES {
        for message in [
            OwnedMessage::Text("x".repeat(size)),
            OwnedMessage::Binary(vec![7; size]),
        ] {
            exchanges.push((message.clone(), message));
        }
    }
    let mut scripts = vec![Script {
        exchanges,
        ..Script::default()
    }];
    for code in CODES {
        let close = Some(code);
        scripts.push(Script {
            close,
            ..Script::default()
        });
        scripts.push(Script {
            closed: close,
            ..Script::default()
        });
    }
    let count = scripts.len();
    for script in scripts {
        engine
            .connect(connect, script)
            .expect("it can be asked for");
    }
    let start = std::time::Instant::now();
    while engine.connections() > 0 {
        engine.turn(Some(Duration::from_secs(1))).expect("it turns");
        assert!(
            start.elapsed() < support::PATIENCE,
            "{} ended",
            ended.borrow()
        );
    }
    assert_eq!(*ended.borrow(), count);
}

// Foreign programs.

/// How a foreign library's program is called; none if it is not there.
fn program(library: &str) -> Option<Command> {
    let there = std::env::var_os("SOCKEYE_INTEROP")
        .map(PathBuf::from)
        .and_then(|folder| {
            let sources = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
            let (mut command, needed) = match library {
                "websockets" => {
                    let python = folder.join("python/bin/python");
                    let mut command = Command::new(&python);
                    command.arg(sources.join("peer.py"));
                    (command, python)
                }
                "ws" => {
                    let modules = folder.join("node/node_modules");
                    let mut command = Command::new("node");
                    command
                        .arg(sources.join("peer.mjs"))
                        .env("SOCKEYE_NODE_MODULES", &modules);
                    (command, modules.join("ws"))
                }
                _ => {
                    let peer = folder.join("go-peer");
                    let mut command = Command::new(&peer);
                    command.arg(library);
                    (command, peer)
                }
            };
            command.stdin(Stdio::null());
            needed.exists().then_some(command)
        });
    if there.is_none() {
        println!("SKIPPED: {library} is not set up: see .ci/interop");
    }
    there
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn foreign_program_as_client(library: &str) {
    if program(library).is_none() {
        return;
    }
    foreign_client(&MODES, |url, pem, offer| {
        let mut command = program(library).expect("it is there");
        command.args(["client", url]).env("SOCKEYE_DEFLATE", offer);
        if let Some(pem) = pem {
            command.arg(pem.path("authority"));
        }
        let output = command.output().expect("it runs");
        assert!(
            output.status.success(),
            "{library} at {url}: {}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    });
}

fn foreign_program_as_server(library: &str, fragments: &str) {
    if program(library).is_none() {
        return;
    }
    foreign_server(&MODES, fragments, |pem, offer| {
        let mut command = program(library).expect("it is there");
        command.arg("server").env("SOCKEYE_DEFLATE", offer);
        if let Some(pem) = pem {
            command.args([pem.path("chain"), pem.path("key")]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it runs");
        let output = child.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output).lines();
        let port = lines.find_map(|line| line.ok()?.strip_prefix("listening ")?.parse().ok());
        (port.expect("it says where it listens"), Running(child))
    });
}

#[test]
fn python_websockets_client() {
    foreign_program_as_client("websockets");
}

#[test]
fn python_websockets_server() {
    foreign_program_as_server("websockets", "one two three");
}

#[test]
fn node_ws_client() {
    foreign_program_as_client("ws");
}

#[test]
fn node_ws_server() {
    foreign_program_as_server("ws", "one two three");
}

#[test]
fn gorilla_websocket_client() {
    foreign_program_as_client("gorilla");
}

#[test]
fn gorilla_websocket_server() {
    foreign_program_as_server("gorilla", &"fragment ".repeat(2000));
}

#[test]
fn coder_websocket_client() {
    foreign_program_as_client("coder");
}

#[test]
fn coder_websocket_server() {
    foreign_program_as_server("coder", "one two three");
}

#[test]
fn tokio_tungstenite_client() {
    // It has no compression.
    foreign_client(&MODES[..1], |url, pem, _| {
        tungstenite_peer::run_client(url, pem.is_some());
    });
}

#[test]
fn tokio_tungstenite_server() {
    foreign_server(&MODES[..1], "one two three", |pem, _| {
        tungstenite_peer::start_server(pem.is_some())
    });
}
