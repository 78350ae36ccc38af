//! The handler that records what it sees, and does what it is told.

use std::any::Any;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use sockeye::Chunk;
use sockeye::CloseCause;
use sockeye::Closed;
use sockeye::ConnId;
use sockeye::Context;
use sockeye::Drain;
use sockeye::Dropped;
use sockeye::Handler;
use sockeye::Initiator;
use sockeye::Message;
use sockeye::OpeningHandshake;
use sockeye::Request;
use sockeye::Response;
use sockeye::SlowCallback;
use sockeye::Thread;
use sockeye::Timeout;
use sockeye::Upgrade;

use super::Memory;
use super::PATIENCE;

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

    pub(super) fn wait(&self, done: impl Fn(&[Record]) -> bool) -> bool {
        let records = self.0.0.lock().unwrap();
        let waiting = |records: &mut Vec<Record>| !done(records);
        let waited = self.0.1.wait_timeout_while(records, PATIENCE, waiting);
        !waited.unwrap().1.timed_out()
    }
}

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
    /// When the handler did what a test times.
    pub at: Option<Instant>,
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
    /// What the threads allocate that it is called on.
    pub memory: &'static Memory,
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
            memory: Memory::new(),
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
        self.memory.count_this_thread();
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
