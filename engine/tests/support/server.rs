//! One way to run a server, on every backend and on the simulated network.

use std::cell::RefCell;
use std::net::TcpListener;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use sockeye::BackendChoice;
use sockeye::ConnId;
use sockeye::Connect;
use sockeye::Drain;
use sockeye::Handle;
use sockeye::Limits;
use sockeye::Metrics;
use sockeye::Proxies;
use sockeye::Remote;
use sockeye::Route;
use sockeye::Server;
use sockeye::ThreadMetrics;
use sockeye::Upgrade;
use sockeye::Victims;
use sockeye::client;
use sockeye::testkit::Faults;
use sockeye::testkit::SimServer;
use sockeye::testkit::SimSettings;

use super::Data;
use super::End;
use super::Ended;
use super::Link;
use super::Log;
use super::Memory;
use super::PATIENCE;
use super::Probe;
use super::Record;
use super::certificates;

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
    /// Nothing goes wrong on the simulated network.
    pub calm: bool,
}

pub struct Running {
    pub place: Place,
    log: Log,
    /// What its threads allocate; on a simulated network, what the test allocates as well.
    pub memory: &'static Memory,
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

/// The limits of a live server, with time-outs that a busy machine does not reach in place of those
/// that a test has left at their defaults.
fn patient(mut limits: Limits) -> Limits {
    let long = Duration::from_secs(240);
    let default = Limits::default();
    for (field, default, long) in [
        (
            &mut limits.handshake_timeout,
            default.handshake_timeout,
            long,
        ),
        (&mut limits.pong_timeout, default.pong_timeout, long),
        (&mut limits.ping_interval, default.ping_interval, long),
        (&mut limits.idle_timeout, default.idle_timeout, long),
        (&mut limits.write_timeout, default.write_timeout, long),
        // The end of a server waits for peers that do not answer.
        (&mut limits.close_timeout, default.close_timeout, PATIENCE),
    ] {
        if *field == default {
            *field = long;
        }
    }
    limits
}

impl Running {
    /// A server on the simulated network.
    pub fn simulated(settings: SimSettings, probe: Probe) -> Self {
        let (log, memory) = (probe.log.clone(), probe.memory);
        let tls = settings.tls.is_some();
        let server = SimServer::new(settings, probe);
        Self {
            place: Place::Sim(Rc::new(RefCell::new(server))),
            log,
            memory,
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
        let (log, memory) = (probe.log.clone(), probe.memory);
        if self.is_blocking() {
            let (failed, failures) = mpsc::channel();
            return Running {
                place: Place::Blocking(Box::new(settings), failed),
                log,
                memory,
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
                faults: match settings.calm {
                    true => Faults::default(),
                    false => Faults {
                        reset: 0,
                        register: 0,
                        accept: 0,
                        connect: 0,
                        stall: 0,
                        few: 0,
                        ..Faults::all()
                    },
                },
            };
            return Running::simulated(settings, probe);
        }
        let mut builder = Server::builder()
            .handler(move |_| probe.clone())
            .defaults(settings.base.limits(patient(settings.limits)))
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
            memory,
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
                let memory = self.memory;
                std::thread::spawn(move || {
                    memory.count_this_thread();
                    failed.send(echo_blocking(builder))
                });
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
