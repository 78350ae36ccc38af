//! What the tests share: one way to run a server, on every backend and on the simulated
//! network, and a client that sends whatever bytes it is told to.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod certificates;
pub mod deflate;

use std::any::Any;
use std::cell::RefCell;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use sockeye::BackendChoice;
use sockeye::Chunk;
use sockeye::CloseCause;
use sockeye::Closed;
use sockeye::ConnId;
use sockeye::Connect;
use sockeye::Context;
use sockeye::Drain;
use sockeye::Dropped;
use sockeye::Handle;
use sockeye::Handler;
use sockeye::Initiator;
use sockeye::Limits;
use sockeye::Message;
use sockeye::Metrics;
use sockeye::OpeningHandshake;
use sockeye::Proxies;
use sockeye::Remote;
use sockeye::Request;
use sockeye::Response;
use sockeye::Route;
use sockeye::Server;
use sockeye::SlowCallback;
use sockeye::Thread;
use sockeye::ThreadMetrics;
use sockeye::Timeout;
use sockeye::Upgrade;
use sockeye::Victims;
use sockeye::client;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;
use sockeye::testkit::Faults;
use sockeye::testkit::SimClient;
use sockeye::testkit::SimServer;
use sockeye::testkit::SimSettings;

pub use deflate::Deflate;

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

/// Resident bytes of this process.
pub fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages = statm.split(' ').nth(1).unwrap();
    pages.parse::<usize>().unwrap() * 4096
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
    Dropped(ConnId, Dropped),
    Chunk(ConnId, Vec<u8>, bool, bool),
    Slow(SlowCallback),
    /// A callback of the test's own has done what it is there for.
    Ran(ConnId),
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
    NotOpened,
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
            CloseCause::NotOpened(error) => {
                reason_text = error.to_string();
                Why::NotOpened
            }
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
pub type OnPong = Arc<dyn Fn(&mut Context<'_, Data>, Option<Duration>) + Send + Sync>;
pub type OnTimer = Arc<dyn Fn(&mut Context<'_, Data>, u64) + Send + Sync>;
pub type OnPost = Arc<dyn Fn(&mut Context<'_, Data>, Box<dyn Any + Send>) + Send + Sync>;
pub type OnThread = Arc<dyn Fn(&mut Thread<'_, Data>, ThreadEvent) + Send + Sync>;
pub type OnDeferred =
    Arc<dyn Fn(&mut OpeningHandshake<'_>, Box<dyn Any + Send>) -> Upgrade<Data> + Send + Sync>;
pub type OnUpgrade = Arc<dyn Fn(&mut OpeningHandshake<'_>) -> Upgrade<Data> + Send + Sync>;

/// What a thread's callbacks get.
pub enum ThreadEvent {
    Start,
    Value(Box<dyn Any + Send>),
    Timer(u64),
}

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
    pub on_pong: OnPong,
    pub on_timer: OnTimer,
    pub on_post: OnPost,
    pub on_thread: OnThread,
    pub on_upgrade: OnUpgrade,
    pub on_deferred: OnDeferred,
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
            on_pong: Arc::new(|_, _| {}),
            on_timer: Arc::new(|_, _| {}),
            on_post: Arc::new(|_, _| {}),
            on_thread: Arc::new(|_, _| {}),
            on_upgrade: Arc::new(|_| Upgrade::accept(Data::default())),
            on_deferred: Arc::new(|_, _| Upgrade::accept(Data::default())),
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

    fn on_upgrade(&mut self, request: &mut OpeningHandshake<'_>) -> Upgrade<Data> {
        self.log.push(Record::Upgrade);
        (self.on_upgrade)(request)
    }

    fn on_deferred(
        &mut self,
        request: &mut OpeningHandshake<'_>,
        value: Box<dyn Any + Send>,
    ) -> Upgrade<Data> {
        (self.on_deferred)(request, value)
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

    fn on_pong(
        &mut self,
        conn: &mut Context<'_, Data>,
        payload: &[u8],
        round_trip: Option<Duration>,
    ) {
        self.log.push(Record::Pong(conn.id(), payload.to_vec()));
        (self.on_pong)(conn, round_trip);
    }

    fn on_chunk(&mut self, conn: &mut Context<'_, Data>, chunk: Chunk<'_>) {
        let payload = chunk.payload.to_vec();
        let record = Record::Chunk(conn.id(), payload, chunk.first, chunk.last);
        if self.record_messages {
            self.log.push(record);
        }
        (self.on_message)(conn, Message::binary(chunk.payload));
    }

    fn on_dropped(&mut self, conn: &mut Context<'_, Data>, dropped: Dropped) {
        self.log.push(Record::Dropped(conn.id(), dropped));
    }

    fn on_timer(&mut self, conn: &mut Context<'_, Data>, token: u64) {
        (self.on_timer)(conn, token);
    }

    fn on_post(&mut self, conn: &mut Context<'_, Data>, value: Box<dyn Any + Send>) {
        (self.on_post)(conn, value);
    }

    fn on_start(&mut self, thread: &mut Thread<'_, Data>) {
        (self.on_thread)(thread, ThreadEvent::Start);
    }

    fn on_remote(&mut self, thread: &mut Thread<'_, Data>, value: Box<dyn Any + Send>) {
        (self.on_thread)(thread, ThreadEvent::Value(value));
    }

    fn on_thread_timer(&mut self, thread: &mut Thread<'_, Data>, token: u64) {
        (self.on_thread)(thread, ThreadEvent::Timer(token));
    }

    fn on_drain(&mut self, conn: &mut Context<'_, Data>) {
        self.log.push(Record::Drain(conn.id()));
        (self.on_drain)(conn);
    }

    fn on_slow_callback(&mut self, slow: &SlowCallback) {
        self.log.push(Record::Slow(*slow));
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
    UringTls,
    PollTls,
    SimTls,
    /// The blocking client, which only dials.
    Blocking,
    BlockingTls,
}

#[derive(Clone, Default)]
pub struct Settings {
    pub limits: Limits,
    /// With the limits above in place of its own.
    pub base: Route,
    pub routes: Vec<(&'static str, Route)>,
    pub connections_max: Option<usize>,
    pub threads: Option<usize>,
    pub output_budget: Option<(usize, Victims)>,
    pub compression_budget: Option<usize>,
    pub proxies: Option<Proxies>,
    pub deferred_max: Option<usize>,
    pub per_address_max: Option<u32>,
    pub accept_rate_max: u32,
    pub health_path: Option<&'static str>,
    pub metrics_path: Option<&'static str>,
    pub slow_callback: Option<Duration>,
    /// TLS of its own, where there is TLS.
    pub tls: Option<sockeye::tls::ServerTls>,
}

pub struct Running {
    pub place: Place,
    log: Log,
    tls: bool,
    /// How blocking clients ended.
    pub failures: Option<mpsc::Receiver<client::Error>>,
    /// Where the connections arrive that are made here.
    listener: Option<TcpListener>,
}

pub enum Place {
    Blocking(Box<Settings>, mpsc::Sender<client::Error>),
    Live(Option<Handle>),
    Sim(Rc<RefCell<SimServer<Probe>>>),
}

impl Running {
    /// A server on the simulated network.
    pub fn simulated(settings: SimSettings, probe: Probe) -> Self {
        let (log, tls) = (probe.log.clone(), settings.tls.is_some());
        let server = SimServer::new(settings, probe);
        Self {
            place: Place::Sim(Rc::new(RefCell::new(server))),
            log,
            tls,
            failures: None,
            listener: None,
        }
    }
}

impl World {
    pub fn is_sim(self) -> bool {
        matches!(self, Self::Sim | Self::SimTls)
    }

    pub fn is_tls(self) -> bool {
        matches!(
            self,
            Self::UringTls | Self::PollTls | Self::SimTls | Self::BlockingTls
        )
    }

    pub fn start(self, probe: Probe) -> Running {
        self.start_with(Settings::default(), probe)
    }

    pub fn start_with(self, settings: Settings, probe: Probe) -> Running {
        let log = probe.log.clone();
        if self.is_blocking() {
            let (failed, failures) = mpsc::channel();
            return Running {
                place: Place::Blocking(Box::new(settings), failed),
                log,
                tls: self.is_tls(),
                failures: Some(failures),
                listener: None,
            };
        }
        let own_tls = settings.tls.clone();
        let tls = self
            .is_tls()
            .then(|| own_tls.as_ref().unwrap_or(certificates::server_tls()));
        if self.is_sim() {
            let (output_budget, victims) = settings
                .output_budget
                .unwrap_or((usize::MAX, Victims::default()));
            let settings = SimSettings {
                proxies: settings.proxies,
                health_path: settings.health_path.map(Into::into),
                metrics_path: settings.metrics_path.map(Into::into),
                slow_callback: settings.slow_callback,
                deferred_max: settings.deferred_max.unwrap_or(1024),
                per_address_max: settings.per_address_max,
                accept_rate_max: settings.accept_rate_max,
                output_budget,
                compression_budget: settings.compression_budget.unwrap_or(usize::MAX),
                victims,
                tls: tls.cloned(),
                base: settings.base.limits(settings.limits),
                routes: settings.routes,
                connections_max: settings.connections_max.unwrap_or(usize::MAX),
                seed: 42,
                faults: Faults {
                    reset: 0,
                    register: 0,
                    accept: 0,
                    connect: 0,
                    ..Faults::all()
                },
            };
            return Running::simulated(settings, probe);
        }
        let mut builder = Server::builder()
            .handler(move |_| probe.clone())
            .defaults(settings.base.limits(settings.limits))
            .threads(settings.threads.unwrap_or(1))
            .direct_descriptors(self == Self::UringDirect)
            .backend(match self {
                Self::Poll | Self::PollTls => BackendChoice::Poll,
                _ => BackendChoice::Uring,
            });
        if let Some((bytes, victims)) = settings.output_budget {
            builder = builder.output_budget(bytes, victims);
        }
        if let Some(bytes) = settings.compression_budget {
            builder = builder.compression_budget(bytes);
        }
        if let Some(proxies) = settings.proxies {
            builder = builder.proxies(proxies);
        }
        if let Some(requests) = settings.deferred_max {
            builder = builder.deferred_max(requests);
        }
        if let Some(connections) = settings.per_address_max {
            builder = builder.connections_per_address_max(connections);
        }
        if let Some(path) = settings.health_path {
            builder = builder.health_path(path);
        }
        if let Some(path) = settings.metrics_path {
            builder = builder.metrics_path(path);
        }
        if let Some(allowed) = settings.slow_callback {
            builder = builder.slow_callback(allowed);
        }
        builder = builder.accept_rate_max(settings.accept_rate_max);
        for (pattern, route) in settings.routes {
            builder = builder.route(pattern, |_| route);
        }
        if let Some(connections) = settings.connections_max {
            builder = builder.connections_max(connections);
        }
        let server = match tls {
            Some(tls) => builder.bind_tls("127.0.0.1:0", tls),
            None => builder.bind("127.0.0.1:0"),
        };
        Running {
            place: Place::Live(Some(server.unwrap().spawn().unwrap())),
            log,
            tls: self.is_tls(),
            failures: None,
            listener: Some(TcpListener::bind("127.0.0.1:0").unwrap()),
        }
    }

    pub fn is_blocking(self) -> bool {
        matches!(self, Self::Blocking | Self::BlockingTls)
    }
}

impl Running {
    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn handle(&self) -> &Handle {
        match &self.place {
            Place::Live(handle) => handle.as_ref().unwrap(),
            _ => panic!("no handle"),
        }
    }

    pub fn remote(&self) -> Remote {
        match &self.place {
            Place::Blocking(..) => panic!("no remote"),
            Place::Live(handle) => handle.as_ref().unwrap().remote().clone(),
            Place::Sim(server) => server.borrow().remote().clone(),
        }
    }

    /// Asks the server to end, and does not wait.
    pub fn begin_stop(&self) {
        match &self.place {
            Place::Blocking(..) => {}
            Place::Live(handle) => handle.as_ref().unwrap().shutdown(),
            Place::Sim(server) => server.borrow_mut().shut_down(),
        }
    }

    /// Ends the server, spread over a window.
    pub fn drain(&self, drain: Drain) {
        match &self.place {
            Place::Blocking(..) => {}
            Place::Live(handle) => handle.as_ref().unwrap().drain(drain),
            Place::Sim(server) => server.borrow_mut().drain(drain),
        }
    }

    /// Connections that a drain has told to go.
    pub fn drained(&self) -> usize {
        match &self.place {
            Place::Blocking(..) => 0,
            Place::Live(handle) => handle.as_ref().unwrap().drained(),
            Place::Sim(server) => server.borrow().drained(),
        }
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        match &self.place {
            Place::Blocking(..) => true,
            Place::Live(handle) => handle.as_ref().unwrap().is_finished(),
            Place::Sim(server) => server.borrow().is_finished(),
        }
    }

    /// A connection with nothing sent yet, but for TLS.
    pub fn connect(&self) -> Link {
        self.connect_with_room(1 << 20)
    }

    /// A connection with nothing sent yet, and no TLS whether the server wants it or not.
    pub fn connect_raw(&self) -> Link {
        self.connect_as(1 << 20, false)
    }

    /// A connection whose every byte is received alone, those of TLS included.
    pub fn connect_dribbling(&self) -> Link {
        let raw = self.connect_raw();
        let tls = certificates::client_session("localhost").into();
        Link::new_as(raw.into_end(), Some(tls), false, true)
    }

    /// A connection that begins with these bytes, in two pieces, TLS behind them.
    pub fn connect_behind(&self, first: &[u8], rest: &[u8]) -> Link {
        let mut raw = self.connect_raw();
        raw.send(first);
        self.turn(2);
        raw.send(rest);
        Link::new_as(raw.into_end(), self.client_session(), false, false)
    }

    fn client_session(&self) -> Option<rustls::Connection> {
        let session = || rustls::Connection::from(certificates::client_session("localhost"));
        self.tls.then(session)
    }

    /// On the simulated network: one that holds so many bytes that the client has not read.
    pub fn connect_with_room(&self, room: usize) -> Link {
        self.connect_as(room, self.tls)
    }

    fn connect_as(&self, room: usize, tls: bool) -> Link {
        match &self.place {
            Place::Blocking(..) => panic!("a client does not listen"),
            Place::Live(handle) => {
                let address = handle.as_ref().unwrap().local_addr().ip().unwrap();
                let stream = TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                Link::new(End::Live(stream), tls)
            }
            Place::Sim(server) => {
                let client = server.borrow().net().connect(room);
                Link::new(End::Sim(client, Rc::clone(server)), tls)
            }
        }
    }

    /// Makes a connection, as a client that echoes, and accepts it: the server's end, TLS
    /// included, with the request to be read.
    pub fn dial(&self) -> Link {
        self.dial_with(1 << 20, |connect| connect)
    }

    /// As [`dial`](Self::dial), with a request of another kind, and so much room on a simulated
    /// network.
    pub fn dial_with(&self, room: usize, change: impl FnOnce(Connect) -> Connect) -> Link {
        let scheme = if self.tls { "wss" } else { "ws" };
        let connect = |port: u16| {
            let connect = Connect::new(&format!("{scheme}://localhost:{port}/")).unwrap();
            let connect = connect.address(([127, 0, 0, 1], port).into());
            change(connect.tls(certificates::client_tls().clone()))
        };
        let end = match &self.place {
            Place::Sim(server) => {
                let connect = connect(80);
                server
                    .borrow_mut()
                    .connect(&connect, Data::default())
                    .unwrap();
                server.borrow_mut().turn().unwrap();
                let far = server.borrow().net().accept(room).unwrap();
                End::Sim(far, Rc::clone(server))
            }
            Place::Live(handle) => {
                let listener = self.listener.as_ref().unwrap();
                let connect = connect(listener.local_addr().unwrap().port());
                handle.as_ref().unwrap().remote().connect(connect).unwrap();
                End::Live(accept(listener))
            }
            Place::Blocking(settings, failed) => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let connect = connect(listener.local_addr().unwrap().port());
                let builder = client::Builder::new(connect).limits(settings.limits.clone());
                let failed = failed.clone();
                std::thread::spawn(move || failed.send(echo_blocking(builder)));
                End::Live(accept(&listener))
            }
        };
        let tls = self.tls.then(|| {
            let config = certificates::server_tls().config();
            rustls::Connection::from(rustls::ServerConnection::new(config).unwrap())
        });
        Link::new_as(end, tls, true, false)
    }

    /// As [`dial`](Self::dial), with the opening handshake done.
    pub fn dial_open(&self) -> Link {
        let mut link = self.dial();
        link.accept_upgrade("");
        link
    }

    /// An open WebSocket.
    pub fn open(&self) -> Link {
        let mut link = self.connect();
        link.upgrade();
        link
    }

    /// Waits until the log fulfils a condition.
    pub fn wait(&self, done: impl Fn(&[Record]) -> bool) {
        let waited = match &self.place {
            Place::Blocking(..) => panic!("no handler"),
            Place::Live(_) => self.log.wait(&done),
            Place::Sim(server) => (0..20_000).any(|_| {
                server.borrow_mut().turn().unwrap();
                done(&self.log.all())
            }),
        };
        assert!(waited, "waited in vain; the log: {:?}", self.log().all());
    }

    /// Waits until a callback says that it [`Ran`](Record::Ran): a message is recorded before its
    /// callback, and who reads while that fills the output makes room for ever.
    pub fn wait_ran(&self) {
        self.wait(|records| records.iter().any(|r| matches!(r, Record::Ran(..))));
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

    /// What the server has seen so far.
    pub fn metrics(&self) -> Metrics {
        match &self.place {
            Place::Blocking(..) => panic!("no server"),
            Place::Live(handle) => handle.as_ref().unwrap().metrics(),
            Place::Sim(server) => server.borrow().metrics(),
        }
    }

    /// Waits until the server has seen this; gives what it has seen, of all threads.
    pub fn wait_metrics(&self, done: impl Fn(&ThreadMetrics) -> bool) -> ThreadMetrics {
        let start = Instant::now();
        for attempt in 0_u64.. {
            let total = self.metrics().total();
            if done(&total) {
                return total;
            }
            let in_vain = attempt > 1_000 && (self.is_sim() || start.elapsed() > PATIENCE);
            assert!(!in_vain, "waited in vain: {total:?}");
            match attempt {
                0..100 => self.turn(1),
                _ => self.pass(Duration::from_millis(250)),
            }
            std::thread::yield_now();
        }
        unreachable!("there is no end of attempts")
    }

    /// Waits until no connection is left.
    pub fn wait_empty(&self) {
        match &self.place {
            Place::Blocking(..) => {}
            Place::Live(handle) => {
                let start = Instant::now();
                while handle.as_ref().unwrap().connections() > 0 {
                    assert!(start.elapsed() < PATIENCE, "connections are left");
                    std::thread::yield_now();
                }
            }
            Place::Sim(server) => {
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
        if let Place::Sim(server) = &self.place {
            server.borrow_mut().pass(time).unwrap();
        }
    }

    pub fn is_sim(&self) -> bool {
        matches!(self.place, Place::Sim(..))
    }

    /// Turns of a simulated server; a live one turns by itself.
    pub fn turn(&self, count: usize) {
        if let Place::Sim(server) = &self.place {
            for _ in 0..count {
                server.borrow_mut().turn().unwrap();
            }
        }
    }

    /// Shuts the server down; the live one must end in time.
    pub fn stop(&mut self) {
        match &mut self.place {
            Place::Blocking(..) => {}
            Place::Live(handle) => {
                if let Some(handle) = handle.take() {
                    handle.shutdown();
                    handle.join().unwrap();
                }
            }
            Place::Sim(server) => {
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

/// The answer to a client's request.
pub fn accept_of(request: &str, headers: &str) -> String {
    let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap();
    let key = key.split("\r\n").next().unwrap();
    let accept = sockeye::protocol::handshake::accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{headers}\r\n",
        str::from_utf8(&accept).unwrap()
    )
}

fn accept(listener: &TcpListener) -> TcpStream {
    let stream = listener.accept().unwrap().0;
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Echoes until the connection ends, and says how.
fn echo_blocking(builder: client::Builder) -> client::Error {
    let mut ws = match builder.connect() {
        Ok(ws) => ws,
        Err(error) => return error,
    };
    let mut payload = Vec::new();
    loop {
        payload.clear();
        let written = match ws.read_into(&mut payload) {
            Ok(true) => ws.write_message(str::from_utf8(&payload).unwrap()),
            Ok(false) => ws.write_message(&payload),
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            // Wait for the server to end the stream, as a client does.
            let mut stream = ws.into_inner();
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            return error;
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
    pub tls: Option<Box<rustls::Connection>>,
    received: Vec<u8>,
    /// It is the server's end: it gets masked frames and sends unmasked ones.
    is_server: bool,
    /// Masking keys that it got.
    pub mask_keys: Vec<[u8; 4]>,
    /// The lengths of the TLS records that it got.
    pub record_lens: Vec<usize>,
    /// The beginning of the next record.
    record: Vec<u8>,
    dribbles: bool,
    /// Compression that has been agreed.
    pub deflate: Option<Deflate>,
    /// Whether each message that it got was compressed, and to how many bytes.
    pub deflated_lens: Vec<Option<usize>>,
    /// Its stream is another link's.
    handed_over: bool,
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
    fn new(end: End, tls: bool) -> Self {
        let tls = tls.then(|| rustls::Connection::from(certificates::client_session("localhost")));
        Self::new_as(end, tls, false, false)
    }

    fn new_as(end: End, tls: Option<rustls::Connection>, is_server: bool, dribbles: bool) -> Self {
        let mut link = Self {
            end,
            tls: tls.map(Box::new),
            received: Vec::new(),
            is_server,
            mask_keys: Vec::new(),
            record_lens: Vec::new(),
            record: Vec::new(),
            dribbles,
            deflate: None,
            deflated_lens: Vec::new(),
            handed_over: false,
        };
        while link.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            let flight = link.take_sealed();
            assert!(link.try_send_raw(&flight), "the server took no handshake");
            if link.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
                assert!(link.fill(), "the server ended the TLS handshake");
            }
        }
        let flight = link.take_sealed();
        link.try_send_raw(&flight);
        link
    }

    fn into_end(mut self) -> End {
        // Its drop would end a simulated stream.
        self.handed_over = true;
        match &self.end {
            End::Live(stream) => End::Live(stream.try_clone().unwrap()),
            End::Sim(client, server) => End::Sim(client.clone(), Rc::clone(server)),
        }
    }

    /// What TLS has to send.
    fn take_sealed(&mut self) -> Vec<u8> {
        let mut sealed = Vec::new();
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut sealed).unwrap();
            }
        }
        sealed
    }

    /// The bytes on the wire.
    pub fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        match &mut self.tls {
            None => bytes.to_vec(),
            Some(tls) => {
                tls.set_buffer_limit(None);
                tls.writer().write_all(bytes).unwrap();
                self.take_sealed()
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let wire = self.seal(bytes);
        match &mut self.end {
            End::Live(stream) => stream.write_all(&wire).unwrap(),
            End::Sim(..) => {
                self.try_send_raw(&wire);
            }
        }
    }

    /// Sends though the server may have closed.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        let wire = self.seal(bytes);
        self.try_send_raw(&wire)
    }

    /// Sends these bytes, whether there is TLS or not.
    pub fn try_send_raw(&mut self, wire: &[u8]) -> bool {
        if self.dribbles && wire.len() > 1 {
            return wire.iter().all(|byte| self.try_send_raw(&[*byte]));
        }
        match &mut self.end {
            End::Live(stream) => stream.write_all(wire).is_ok(),
            End::Sim(client, server) => {
                client.send(wire);
                server.borrow_mut().turn().unwrap();
                true
            }
        }
    }

    /// Sends so that each byte is received alone.
    pub fn dribble(&mut self, bytes: &[u8]) {
        for byte in bytes {
            for byte in self.seal(&[*byte]) {
                self.try_send_raw(&[byte]);
            }
        }
    }

    /// Takes bytes off the wire.
    fn take(&mut self, wire: &[u8]) {
        let Some(tls) = &mut self.tls else {
            return self.received.extend_from_slice(wire);
        };
        self.record.extend_from_slice(wire);
        while let Some(len) = self.record.get(3..5) {
            let len = 5 + usize::from(u16::from_be_bytes([len[0], len[1]]));
            if self.record.len() < len {
                break;
            }
            self.record.drain(..len);
            self.record_lens.push(len);
        }
        let mut rest = wire;
        while !rest.is_empty() {
            tls.read_tls(&mut rest).unwrap();
            tls.process_new_packets().unwrap();
            // The end of the stream is not there yet.
            let _ = tls.reader().read_to_end(&mut self.received);
        }
    }

    /// Reads more; false at the end of the stream.
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match &mut self.end {
            End::Live(stream) => match stream.read(&mut buffer) {
                Ok(0) => false,
                Ok(len) => {
                    self.take(&buffer[..len]);
                    true
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    panic!("reset by the server: what it had sent may be lost")
                }
                Err(error) => panic!("nothing came: {error}"),
            },
            End::Sim(client, server) => {
                for _ in 0..20_000 {
                    let bytes = client.receive(usize::MAX);
                    if !bytes.is_empty() {
                        self.take(&bytes);
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

    /// What comes next, or nothing at the end of the stream.
    pub fn read_some(&mut self) -> Vec<u8> {
        self.fill();
        std::mem::take(&mut self.received)
    }

    /// Everything up to the end of the stream.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.received)
    }

    /// Everything up to the end of a stream that the server may break off.
    pub fn read_to_end_or_reset(&mut self) -> Vec<u8> {
        if let End::Live(stream) = &mut self.end {
            let mut bytes = Vec::new();
            match stream.read_to_end(&mut bytes) {
                Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                    panic!("nothing came: {error}")
                }
                _ => return bytes,
            }
        }
        self.read_to_end()
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

    /// The server's side of the opening handshake; `headers` are lines that the answer has
    /// besides. Gives the request.
    pub fn accept_upgrade(&mut self, headers: &str) -> String {
        let request = self.read_head();
        let answer = accept_of(&request, headers);
        self.send(answer.as_bytes());
        request
    }

    /// The next frame, none at the end of the stream.
    pub fn next_frame(&mut self) -> Option<Received> {
        let (fin, frame) = self.next_fragment()?;
        assert!(fin, "a server fragmented");
        Some(frame)
    }

    /// The next frame, and whether its message ends with it.
    pub fn next_fragment(&mut self) -> Option<(bool, Received)> {
        loop {
            let decoded = FrameHeader::decode(&self.received).expect("a legal frame");
            if let Some((header, header_len)) = decoded {
                assert_eq!(header.mask_key.is_some(), self.is_server, "masked or not");
                let deflates = self.deflate.is_some();
                assert!(!header.rsv1 || deflates, "compressed without being asked");
                let len = header_len + header.payload_len as usize;
                if self.received.len() >= len {
                    let mut frame: Vec<u8> = self.received.drain(..len).collect();
                    if let Some(key) = header.mask_key {
                        self.mask_keys.push(key);
                        sockeye::protocol::mask(&mut frame[header_len..], key);
                    }
                    let mut payload = frame[header_len..].to_vec();
                    if matches!(header.opcode, Opcode::Text | Opcode::Binary) {
                        let len = header.rsv1.then_some(payload.len());
                        self.deflated_lens.push(len);
                    }
                    if let Some(deflate) = self.deflate.as_mut().filter(|_| header.rsv1) {
                        assert!(header.fin, "compressed fragments are not expected here");
                        payload = deflate.inflate(&payload);
                    }
                    let received = Received {
                        opcode: header.opcode,
                        payload,
                    };
                    return Some((header.fin, received));
                }
            }
            if !self.fill() {
                assert!(self.received.is_empty(), "the stream ended inside a frame");
                return None;
            }
        }
    }

    pub fn send_frame(&mut self, opcode: Opcode, payload: &[u8]) {
        let frame = if self.is_server {
            server_frame(0x80 | opcode as u8, payload)
        } else {
            frame(opcode, payload)
        };
        self.send(&frame);
    }

    /// A compressed message, in one frame.
    pub fn send_deflated(&mut self, opcode: Opcode, payload: &[u8]) {
        let deflate = self.deflate.as_mut().expect("it has been agreed");
        let deflated = deflate.deflate(payload);
        self.send_rsv1(opcode, &deflated);
    }

    /// A frame that says it is compressed.
    pub fn send_rsv1(&mut self, opcode: Opcode, payload: &[u8]) {
        let first = 0xC0 | opcode as u8;
        let frame = match self.is_server {
            true => server_frame(first, payload),
            false => raw_frame(first, payload),
        };
        self.send(&frame);
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

    /// A ping of the engine's own, which carries the time.
    #[track_caller]
    pub fn expect_own_ping(&mut self) -> Vec<u8> {
        let got = self.next_frame().expect("a ping");
        assert_eq!((got.opcode, got.payload.len()), (Opcode::Ping, 8));
        got.payload
    }

    #[track_caller]
    pub fn expect_text(&mut self, text: &str) {
        self.expect(Opcode::Text, text.as_bytes());
    }

    /// A Close frame with this code, then a FIN, which a client sends behind the server's.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) {
        let got = self.next_frame().expect("a Close frame");
        assert_eq!(got.opcode, Opcode::Close, "{got:?}");
        let got_code = got
            .payload
            .first_chunk::<2>()
            .map_or(1005, |code| u16::from_be_bytes(*code));
        assert_eq!(got_code, code, "{got:?}");
        if self.is_server {
            self.shutdown();
        }
        assert_eq!(self.next_frame(), None, "behind a Close frame");
    }

    /// A Close frame with this code, which is answered, then a FIN.
    #[track_caller]
    pub fn expect_close_answered(&mut self, code: u16) {
        let got = self.next_frame().expect("a Close frame");
        assert_eq!(got.opcode, Opcode::Close, "{got:?}");
        assert_eq!(got.payload[..2], code.to_be_bytes(), "{got:?}");
        self.send_frame(Opcode::Close, &code.to_be_bytes());
        assert_eq!(self.next_frame(), None, "behind a Close frame");
    }

    /// The closing handshake, begun here.
    pub fn close(&mut self, code: u16) {
        self.send_frame(Opcode::Close, &code.to_be_bytes());
        self.expect_close(code);
    }

    pub fn shutdown(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let wire = self.take_sealed();
            self.try_send_raw(&wire);
        }
        match &mut self.end {
            End::Live(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            End::Sim(client, server) => {
                client.shutdown();
                server.borrow_mut().turn().unwrap();
            }
        }
    }

    /// Ends the server's end of a connection after its Close frame.
    pub fn finish(&mut self) {
        self.shutdown();
        assert_eq!(self.next_frame(), None);
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
        if let End::Sim(client, _) = &self.end
            && !self.handed_over
        {
            client.shutdown();
        }
    }
}

/// A server's frame whose first byte is given.
pub fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        fin: true,
        rsv1: false,
        opcode: Opcode::Binary,
        payload_len: payload.len() as u64,
        mask_key: None,
    };
    let mut frame = header.encode().as_bytes().to_vec();
    frame[0] = first;
    frame.extend_from_slice(payload);
    frame
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

/// Declares cases that are about TLS: each runs on every backend and on the simulated network.
#[macro_export]
macro_rules! cases_over_tls {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[test] fn $name() {
                if $crate::support::uring_works() {
                    super::$name($crate::support::World::UringTls);
                }
            })*
        }
        mod poll {
            $(#[test] fn $name() { super::$name($crate::support::World::PollTls); })*
        }
        mod sim {
            $(#[test] fn $name() { super::$name($crate::support::World::SimTls); })*
        }
    };
}

/// Declares cases of the client role: each also runs with the blocking client.
#[macro_export]
macro_rules! client_cases {
    ($($name:ident),* $(,)?) => {
        $crate::cases!($($name),*);
        mod blocking {
            $(#[test] fn $name() { super::$name($crate::support::World::Blocking); })*
        }
        mod blocking_tls {
            $(#[test] fn $name() { super::$name($crate::support::World::BlockingTls); })*
        }
    };
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
        mod uring_tls {
            $(#[test] fn $name() {
                if $crate::support::uring_works() {
                    super::$name($crate::support::World::UringTls);
                }
            })*
        }
        mod poll_tls {
            $(#[test] fn $name() { super::$name($crate::support::World::PollTls); })*
        }
        mod sim_tls {
            $(#[test] fn $name() { super::$name($crate::support::World::SimTls); })*
        }
    };
}
