//! What the tests share: one way to run a server, on every backend and on the simulated
//! network, and a client that sends whatever bytes it is told to.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::RefCell;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use sockeye::BackendChoice;
use sockeye::CloseCause;
use sockeye::Closed;
use sockeye::ConnId;
use sockeye::Context;
use sockeye::Handle;
use sockeye::Handler;
use sockeye::Initiator;
use sockeye::Limits;
use sockeye::Message;
use sockeye::OriginPolicy;
use sockeye::Remote;
use sockeye::Request;
use sockeye::Response;
use sockeye::Server;
use sockeye::Timeout;
use sockeye::Upgrade;
use sockeye::UpgradeRequest;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;
use sockeye::testkit::Faults;
use sockeye::testkit::SimClient;
use sockeye::testkit::SimServer;
use sockeye::testkit::SimSettings;

/// How long anything may take that does not depend on a time-out. Only a failure takes it.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// Whether io_uring works here. Containers often forbid it: then its tests are skipped, and say
/// so; the conformance run of `.ci/run` fails without it.
pub fn uring_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    let works = *WORKS.get_or_init(|| {
        let server = Server::builder()
            .backend(BackendChoice::Uring)
            .threads(1)
            .bind("127.0.0.1:0")
            .unwrap();
        match server.spawn() {
            Ok(server) => {
                server.shutdown();
                server.join().is_ok()
            }
            Err(error) => {
                eprintln!("no io_uring: {error}");
                false
            }
        }
    });
    if !works {
        println!("SKIPPED: io_uring does not work here");
    }
    works
}

// What the handler has seen.

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Upgrade,
    Open(ConnId),
    Message(ConnId, bool, Vec<u8>),
    Ping(ConnId, Vec<u8>),
    Pong(ConnId, Vec<u8>),
    Drain(ConnId),
    Close(ConnId, Ended),
    DataDropped(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub why: Why,
    pub code: u16,
    pub reason: String,
    pub local: bool,
    pub clean: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Closed,
    Failed(sockeye::ProtocolError),
    Lost,
    TimedOut(Timeout),
    Panicked,
    Terminated,
}

impl Ended {
    fn new(closed: &Closed<'_>) -> Self {
        let mut reason_text = String::new();
        let why = match &closed.cause {
            CloseCause::Closed { reason, .. } => {
                reason_text = (*reason).to_owned();
                Why::Closed
            }
            CloseCause::Failed(error) => Why::Failed(*error),
            CloseCause::Lost(_) => Why::Lost,
            CloseCause::TimedOut(timeout) => Why::TimedOut(*timeout),
            CloseCause::Panicked => Why::Panicked,
            CloseCause::Terminated => Why::Terminated,
            other => panic!("unknown cause {other:?}"),
        };
        Self {
            why,
            code: closed.cause.code(),
            reason: reason_text,
            local: closed.initiator == Initiator::Local,
            clean: closed.clean,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Log(Arc<(Mutex<Vec<Record>>, Condvar)>);

impl Log {
    pub fn push(&self, record: Record) {
        self.0.0.lock().unwrap().push(record);
        self.0.1.notify_all();
    }

    pub fn all(&self) -> Vec<Record> {
        self.0.0.lock().unwrap().clone()
    }

    pub fn closes(&self) -> Vec<Ended> {
        let close = |record| match record {
            Record::Close(_, ended) => Some(ended),
            _ => None,
        };
        self.all().into_iter().filter_map(close).collect()
    }

    pub fn messages(&self) -> Vec<Vec<u8>> {
        let message = |record| match record {
            Record::Message(_, _, payload) => Some(payload),
            _ => None,
        };
        self.all().into_iter().filter_map(message).collect()
    }

    pub fn ids(&self) -> Vec<ConnId> {
        let id = |record| match record {
            Record::Open(id) => Some(id),
            _ => None,
        };
        self.all().into_iter().filter_map(id).collect()
    }

    fn wait(&self, done: impl Fn(&[Record]) -> bool) -> bool {
        let records = self.0.0.lock().unwrap();
        let waiting = |records: &mut Vec<Record>| !done(records);
        let waited = self.0.1.wait_timeout_while(records, PATIENCE, waiting);
        !waited.unwrap().1.timed_out()
    }
}

// The handler.

pub type OnMessage = Arc<dyn Fn(&mut Context<'_, Data>, Message<'_>) + Send + Sync>;
pub type OnConn = Arc<dyn Fn(&mut Context<'_, Data>) + Send + Sync>;
pub type OnUpgrade = Arc<dyn Fn(&UpgradeRequest<'_>) -> Upgrade<Data> + Send + Sync>;

/// Per-connection data that says when it is dropped.
#[derive(Default)]
pub struct Data {
    pub number: u32,
    pub log: Option<Log>,
}

impl Drop for Data {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.push(Record::DataDropped(self.number));
        }
    }
}

/// A handler that records everything, and does what it is told.
#[derive(Clone)]
pub struct Probe {
    pub log: Log,
    pub on_message: OnMessage,
    pub on_open: OnConn,
    pub on_drain: OnConn,
    pub on_ping: OnConn,
    pub on_close: OnConn,
    pub on_upgrade: OnUpgrade,
    /// Records messages as well; off where they are many.
    pub record_messages: bool,
}

impl Probe {
    /// Echoes.
    pub fn echo() -> Self {
        let nothing: OnConn = Arc::new(|_| {});
        Self {
            log: Log::default(),
            on_message: Arc::new(|conn, message| {
                conn.send(message);
            }),
            on_open: nothing.clone(),
            on_drain: nothing.clone(),
            on_ping: nothing.clone(),
            on_close: nothing,
            on_upgrade: Arc::new(|_| Upgrade::accept(Data::default())),
            record_messages: true,
        }
    }

    pub fn on_message(
        mut self,
        f: impl Fn(&mut Context<'_, Data>, Message<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.on_message = Arc::new(f);
        self
    }

    pub fn on_open(mut self, f: impl Fn(&mut Context<'_, Data>) + Send + Sync + 'static) -> Self {
        self.on_open = Arc::new(f);
        self
    }
}

impl Handler for Probe {
    type Data = Data;

    fn on_upgrade(&mut self, request: &UpgradeRequest<'_>) -> Upgrade<Data> {
        self.log.push(Record::Upgrade);
        (self.on_upgrade)(request)
    }

    fn on_http(&mut self, request: &Request<'_>) -> Response {
        match request.path() {
            "/page" => Response::new(200).body("text/plain", "a page"),
            "/large" => Response::new(200).body("text/plain", vec![b'x'; 300_000]),
            "/panic" => panic!("as asked"),
            _ => Response::text(404),
        }
    }

    fn on_open(&mut self, conn: &mut Context<'_, Data>) {
        self.log.push(Record::Open(conn.id()));
        (self.on_open)(conn);
    }

    fn on_message(&mut self, conn: &mut Context<'_, Data>, message: Message<'_>) {
        if self.record_messages {
            let payload = message.payload().to_vec();
            assert_eq!(message.as_str().is_some(), message.is_text());
            self.log
                .push(Record::Message(conn.id(), message.is_text(), payload));
        }
        (self.on_message)(conn, message);
    }

    fn on_ping(&mut self, conn: &mut Context<'_, Data>, payload: &[u8]) {
        self.log.push(Record::Ping(conn.id(), payload.to_vec()));
        (self.on_ping)(conn);
    }

    fn on_pong(&mut self, conn: &mut Context<'_, Data>, payload: &[u8]) {
        self.log.push(Record::Pong(conn.id(), payload.to_vec()));
    }

    fn on_drain(&mut self, conn: &mut Context<'_, Data>) {
        self.log.push(Record::Drain(conn.id()));
        (self.on_drain)(conn);
    }

    fn on_close(&mut self, conn: &mut Context<'_, Data>, closed: &Closed<'_>) {
        self.log.push(Record::Close(conn.id(), Ended::new(closed)));
        (self.on_close)(conn);
    }
}

// The server.

/// Where a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    Uring,
    UringDirect,
    Poll,
    /// With short reads and writes, late and spurious readiness.
    Sim,
}

#[derive(Clone, Default)]
pub struct Settings {
    pub limits: Limits,
    pub subprotocols: Vec<String>,
    pub origins: OriginPolicy,
    pub connections_max: Option<usize>,
    pub threads: Option<usize>,
}

pub enum Running {
    Live(Option<Handle>, Log),
    Sim(Rc<RefCell<SimServer<Probe>>>, Log),
}

impl World {
    pub fn is_sim(self) -> bool {
        self == Self::Sim
    }

    pub fn start(self, probe: Probe) -> Running {
        self.start_with(Settings::default(), probe)
    }

    pub fn start_with(self, settings: Settings, probe: Probe) -> Running {
        let log = probe.log.clone();
        if self == Self::Sim {
            let settings = SimSettings {
                limits: settings.limits,
                subprotocols: settings.subprotocols,
                origins: settings.origins,
                connections_max: settings.connections_max.unwrap_or(usize::MAX),
                seed: 42,
                faults: Faults {
                    reset: 0,
                    register: 0,
                    accept: 0,
                    ..Faults::all()
                },
            };
            let server = SimServer::new(settings, probe);
            return Running::Sim(Rc::new(RefCell::new(server)), log);
        }
        let mut builder = Server::builder()
            .handler(move |_| probe.clone())
            .limits(settings.limits)
            .subprotocols(settings.subprotocols)
            .origins(settings.origins)
            .threads(settings.threads.unwrap_or(1))
            .direct_descriptors(self == Self::UringDirect)
            .backend(match self {
                Self::Poll => BackendChoice::Poll,
                _ => BackendChoice::Uring,
            });
        if let Some(connections) = settings.connections_max {
            builder = builder.connections_max(connections);
        }
        let server = builder.bind("127.0.0.1:0").unwrap().spawn().unwrap();
        Running::Live(Some(server), log)
    }
}

impl Running {
    pub fn log(&self) -> &Log {
        match self {
            Self::Live(_, log) | Self::Sim(_, log) => log,
        }
    }

    pub fn handle(&self) -> &Handle {
        match self {
            Self::Live(handle, _) => handle.as_ref().unwrap(),
            Self::Sim(..) => panic!("a simulated server has no handle"),
        }
    }

    pub fn remote(&self) -> Remote {
        match self {
            Self::Live(handle, _) => handle.as_ref().unwrap().remote().clone(),
            Self::Sim(server, _) => server.borrow().remote().clone(),
        }
    }

    /// A connection with nothing sent yet.
    pub fn connect(&self) -> Link {
        self.connect_with_room(1 << 20)
    }

    /// On the simulated network: one that holds so many bytes that the client has not read.
    pub fn connect_with_room(&self, room: usize) -> Link {
        match self {
            Self::Live(handle, _) => {
                let address = handle.as_ref().unwrap().local_addr().ip().unwrap();
                let stream = TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                Link {
                    end: End::Live(stream),
                    received: Vec::new(),
                }
            }
            Self::Sim(server, _) => {
                let client = server.borrow().net().connect(room);
                Link {
                    end: End::Sim(client, Rc::clone(server)),
                    received: Vec::new(),
                }
            }
        }
    }

    /// An open WebSocket.
    pub fn open(&self) -> Link {
        let mut link = self.connect();
        link.upgrade();
        link
    }

    /// Waits until the log fulfils a condition.
    pub fn wait(&self, done: impl Fn(&[Record]) -> bool) {
        let waited = match self {
            Self::Live(_, log) => log.wait(&done),
            Self::Sim(server, log) => (0..20_000).any(|_| {
                server.borrow_mut().turn().unwrap();
                done(&log.all())
            }),
        };
        assert!(waited, "waited in vain; the log: {:?}", self.log().all());
    }

    /// Waits until `count` connections are closed, and says how.
    pub fn closes(&self, count: usize) -> Vec<Ended> {
        let is_close = |record: &&Record| matches!(record, Record::Close(..));
        self.wait(|records| records.iter().filter(is_close).count() >= count);
        self.log().closes()
    }

    /// Waits until this connection is closed, and says how.
    pub fn end_of(&self, id: ConnId) -> Ended {
        let end = |record: &Record| match record {
            Record::Close(closed, ended) if *closed == id => Some(ended.clone()),
            _ => None,
        };
        self.wait(|records| records.iter().rev().any(|record| end(record).is_some()));
        let records = self.log().all();
        records.iter().rev().find_map(end).unwrap()
    }

    /// The only connection's end.
    pub fn ended(&self) -> Ended {
        let closes = self.closes(1);
        assert_eq!(closes.len(), 1);
        closes[0].clone()
    }

    /// Waits until no connection is left.
    pub fn wait_empty(&self) {
        match self {
            Self::Live(handle, _) => {
                let start = Instant::now();
                while handle.as_ref().unwrap().connections() > 0 {
                    assert!(start.elapsed() < PATIENCE, "connections are left");
                    std::thread::yield_now();
                }
            }
            Self::Sim(server, _) => {
                for _ in 0..2_000 {
                    if server.borrow().connections() == 0 {
                        return;
                    }
                    server
                        .borrow_mut()
                        .pass(Duration::from_millis(250))
                        .unwrap();
                }
                panic!("connections are left");
            }
        }
    }

    /// Lets time pass: virtual time only. On a live server time passes by itself, while the
    /// client waits for what comes of it.
    pub fn pass(&self, time: Duration) {
        if let Self::Sim(server, _) = self {
            server.borrow_mut().pass(time).unwrap();
        }
    }

    pub fn is_sim(&self) -> bool {
        matches!(self, Self::Sim(..))
    }

    /// Turns of a simulated server; a live one turns by itself.
    pub fn turn(&self, count: usize) {
        if let Self::Sim(server, _) = self {
            for _ in 0..count {
                server.borrow_mut().turn().unwrap();
            }
        }
    }

    /// Shuts the server down; the live one must end in time.
    pub fn stop(&mut self) {
        match self {
            Self::Live(handle, _) => {
                if let Some(handle) = handle.take() {
                    handle.shutdown();
                    handle.join().unwrap();
                }
            }
            Self::Sim(server, _) => {
                server.borrow_mut().shut_down();
                for _ in 0..200 {
                    if server.borrow().is_finished() {
                        break;
                    }
                    server
                        .borrow_mut()
                        .pass(Duration::from_millis(250))
                        .unwrap();
                }
                assert!(server.borrow().is_finished());
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

// The client.

pub enum End {
    Live(TcpStream),
    Sim(SimClient, Rc<RefCell<SimServer<Probe>>>),
}

/// A client's end: sends any bytes, and reads frames.
pub struct Link {
    pub end: End,
    received: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub opcode: Opcode,
    pub payload: Vec<u8>,
}

pub const REQUEST: &str = "GET / HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\n\
     Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// The request with another header.
pub fn request_with(header: &str) -> String {
    REQUEST.replacen("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"), 1)
}

impl Link {
    pub fn send(&mut self, bytes: &[u8]) {
        match &mut self.end {
            End::Live(stream) => stream.write_all(bytes).unwrap(),
            End::Sim(client, server) => {
                client.send(bytes);
                server.borrow_mut().turn().unwrap();
            }
        }
    }

    /// Sends though the server may have closed.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        match &mut self.end {
            End::Live(stream) => stream.write_all(bytes).is_ok(),
            End::Sim(..) => {
                self.send(bytes);
                true
            }
        }
    }

    /// Sends so that each byte is received alone.
    pub fn dribble(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.send(&[*byte]);
        }
    }

    /// Reads more; false at the end of the stream.
    fn fill(&mut self) -> bool {
        match &mut self.end {
            End::Live(stream) => {
                let mut buffer = [0; 16 * 1024];
                match stream.read(&mut buffer) {
                    Ok(0) => false,
                    Ok(len) => {
                        self.received.extend_from_slice(&buffer[..len]);
                        true
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                        panic!("reset by the server: what it had sent may be lost")
                    }
                    Err(error) => panic!("nothing came: {error}"),
                }
            }
            End::Sim(client, server) => {
                for _ in 0..20_000 {
                    let bytes = client.receive(usize::MAX);
                    if !bytes.is_empty() {
                        self.received.extend_from_slice(&bytes);
                        return true;
                    }
                    if client.is_finished() {
                        return false;
                    }
                    server.borrow_mut().turn().unwrap();
                }
                panic!("nothing came");
            }
        }
    }

    /// Everything up to the end of the stream.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.received)
    }

    /// A response head.
    pub fn read_head(&mut self) -> String {
        loop {
            if let Some(len) = sockeye::http1::head_len(&self.received, 0) {
                let head: Vec<u8> = self.received.drain(..len).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.fill(), "the stream ended inside a head");
        }
    }

    /// The status of the answer.
    pub fn read_status(&mut self) -> u16 {
        self.read_head()[9..12].parse().unwrap()
    }

    pub fn upgrade(&mut self) {
        self.send(REQUEST.as_bytes());
        let head = self.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        assert!(head.contains(accept), "{head}");
    }

    /// The next frame, none at the end of the stream.
    pub fn next_frame(&mut self) -> Option<Received> {
        loop {
            let decoded = FrameHeader::decode(&self.received).expect("a legal frame");
            if let Some((header, header_len)) = decoded {
                assert_eq!(header.mask_key, None, "a server masked");
                assert!(!header.rsv1, "a server compressed without being asked");
                assert!(header.fin, "a server fragmented");
                let len = header_len + header.payload_len as usize;
                if self.received.len() >= len {
                    let frame: Vec<u8> = self.received.drain(..len).collect();
                    return Some(Received {
                        opcode: header.opcode,
                        payload: frame[header_len..].to_vec(),
                    });
                }
            }
            if !self.fill() {
                assert_eq!(self.received, [], "the stream ended inside a frame");
                return None;
            }
        }
    }

    pub fn send_frame(&mut self, opcode: Opcode, payload: &[u8]) {
        self.send(&frame(opcode, payload));
    }

    pub fn send_text(&mut self, text: &str) {
        self.send_frame(Opcode::Text, text.as_bytes());
    }

    #[track_caller]
    pub fn expect(&mut self, opcode: Opcode, payload: &[u8]) {
        let got = self.next_frame().expect("a frame");
        assert_eq!(got.opcode, opcode, "{got:?}");
        assert!(got.payload == payload, "got {} bytes", got.payload.len());
    }

    #[track_caller]
    pub fn expect_text(&mut self, text: &str) {
        self.expect(Opcode::Text, text.as_bytes());
    }

    /// A Close frame with this code, then a FIN.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) {
        let got = self.next_frame().expect("a Close frame");
        assert_eq!(got.opcode, Opcode::Close, "{got:?}");
        let got_code = got
            .payload
            .first_chunk::<2>()
            .map_or(1005, |code| u16::from_be_bytes(*code));
        assert_eq!(got_code, code, "{got:?}");
        assert_eq!(self.next_frame(), None, "behind a Close frame");
    }

    /// The closing handshake, begun here.
    pub fn close(&mut self, code: u16) {
        self.send_frame(Opcode::Close, &code.to_be_bytes());
        self.expect_close(code);
    }

    pub fn shutdown(&mut self) {
        match &mut self.end {
            End::Live(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            End::Sim(client, server) => {
                client.shutdown();
                server.borrow_mut().turn().unwrap();
            }
        }
    }

    /// Breaks the connection.
    pub fn reset(mut self) {
        match &mut self.end {
            End::Live(stream) => {
                let socket = socket2::SockRef::from(&*stream);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
            End::Sim(client, _) => client.reset(),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // As the kernel does for a live one.
        if let End::Sim(client, _) = &self.end {
            client.shutdown();
        }
    }
}

/// A masked frame, FIN set.
pub fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    raw_frame(0x80 | opcode as u8, payload)
}

/// A masked frame whose first byte is given.
pub fn raw_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        fin: true,
        rsv1: false,
        opcode: Opcode::Binary,
        payload_len: payload.len() as u64,
        mask_key: Some(KEY),
    };
    let mut frame = header.encode().as_bytes().to_vec();
    frame[0] = first;
    frame.extend(masked(payload));
    frame
}

pub fn masked(payload: &[u8]) -> impl Iterator<Item = u8> + '_ {
    payload
        .iter()
        .zip(KEY.iter().cycle())
        .map(|(byte, key)| byte ^ key)
}

/// A fragment: FIN clear.
pub fn fragment(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    raw_frame(opcode as u8, payload)
}

/// Declares cases: each runs on every backend and on the simulated network.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[test] fn $name() {
                if $crate::support::uring_works() {
                    super::$name($crate::support::World::Uring);
                }
            })*
        }
        mod uring_direct {
            $(#[test] fn $name() {
                if $crate::support::uring_works() {
                    super::$name($crate::support::World::UringDirect);
                }
            })*
        }
        mod poll {
            $(#[test] fn $name() { super::$name($crate::support::World::Poll); })*
        }
        mod sim {
            $(#[test] fn $name() { super::$name($crate::support::World::Sim); })*
        }
    };
}
