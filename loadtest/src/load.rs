//! What all scenarios share: where the load goes, how it ends, and what it has cost.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use sockeye::BackendChoice;
use sockeye::CloseCause;
use sockeye::Closed;
use sockeye::Connect;
use sockeye::Engine;
use sockeye::Handler;
use sockeye::Limits;

use crate::process;

/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections that may be on their way at once: fewer than a listening backlog holds.
const CONNECTING_MAX: usize = 256;

/// Where the load goes.
#[derive(Clone, Debug)]
pub struct Target {
    pub connect: Connect,
    pub backend: BackendChoice,
    /// The longest message that is sent or expected.
    pub message_len_max: usize,
}

/// What was done; every reply was right.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Messages, or what else the scenario counts.
    pub count: u64,
    pub elapsed: Duration,
    /// CPU time of this process over that time.
    pub own_cpu: Duration,
}

/// What a scenario's connections have in common. It fails once: the first thing that was wrong.
#[derive(Debug, Default)]
pub struct Shared {
    pub opened: usize,
    pub count: u64,
    /// Messages that each connection has been given from outside.
    pub primed: u64,
    pub failure: Option<String>,
    /// Nothing new is to be begun.
    pub ending: bool,
}

pub type SharedRef = Rc<RefCell<Shared>>;

impl Shared {
    pub fn fail(&mut self, what: String) {
        self.failure.get_or_insert(what);
    }

    /// A connection is over, which it may be once the scenario is.
    pub fn closed(&mut self, closed: &Closed<'_>) {
        match &closed.cause {
            CloseCause::NotOpened(error) => self.fail(format!("a connection: {error}")),
            cause if !self.ending || !closed.clean => {
                self.fail(format!("a connection ended: {cause:?}"));
            }
            _ => {}
        }
    }
}

/// An engine for a scenario's handler.
///
/// # Errors
/// It does not start.
pub fn engine<H: Handler>(
    target: &Target,
    handler: impl Fn() -> H + Send + Sync + 'static,
) -> Result<Engine<H>, String> {
    let mut limits = Limits::default();
    limits.message_len_max = target.message_len_max.max(limits.message_len_max);
    // What is under way is the scenario's to bound.
    limits.output_len_max = 64 << 20;
    limits.ping_interval = Duration::ZERO;
    limits.idle_timeout = Duration::ZERO;
    Engine::builder()
        .handler(move |_| handler())
        .limits(limits)
        .backend(target.backend)
        .engine()
        .map_err(|error| error.to_string())
}

/// Opens so many connections, not too many at once.
///
/// # Errors
/// One of them could not be made.
pub fn open<H: Handler>(
    engine: &mut Engine<H>,
    target: &Target,
    shared: &SharedRef,
    count: usize,
    data: impl Fn() -> H::Data,
) -> Result<(), String> {
    let mut asked = 0;
    let mut patience = Patience::new();
    loop {
        let opened = shared.borrow().opened;
        while asked < count && asked - opened < CONNECTING_MAX {
            let made = engine.connect(&target.connect, data());
            made.map_err(|error| error.to_string())?;
            asked += 1;
        }
        if opened == count {
            return Ok(());
        }
        turn(engine, shared)?;
        patience.check(opened as u64)?;
    }
}

/// One turn of the engine.
///
/// # Errors
/// The first thing that was wrong.
fn turn<H: Handler>(engine: &mut Engine<H>, shared: &SharedRef) -> Result<(), String> {
    let turned = engine.turn(Some(Duration::from_millis(50)));
    turned.map_err(|error| error.to_string())?;
    match shared.borrow_mut().failure.take() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Turns for so long, then until what is under way has come and every connection is over.
///
/// # Errors
/// The first thing that was wrong.
pub fn run<H: Handler>(
    engine: &mut Engine<H>,
    shared: &SharedRef,
    watch: &Watch,
    duration: Duration,
) -> Result<Outcome, String> {
    let mut patience = Patience::new();
    while watch.elapsed() < duration {
        turn(engine, shared)?;
        patience.check(shared.borrow().count)?;
    }
    shared.borrow_mut().ending = true;
    while engine.connections() > 0 {
        turn(engine, shared)?;
        patience.check(shared.borrow().count)?;
    }
    let count = shared.borrow().count;
    Ok(watch.stop(count))
}

/// Fails when nothing has happened for too long.
struct Patience {
    seen: u64,
    since: Instant,
}

impl Patience {
    fn new() -> Self {
        Self {
            seen: 0,
            since: Instant::now(),
        }
    }

    /// # Errors
    /// `count` has not changed for ten seconds.
    fn check(&mut self, count: u64) -> Result<(), String> {
        if count != self.seen {
            self.seen = count;
            self.since = Instant::now();
        }
        if self.since.elapsed() > PATIENCE {
            return Err(format!("nothing came for {PATIENCE:?}, after {count}"));
        }
        Ok(())
    }
}

/// Times a part of a scenario.
pub struct Watch {
    start: Instant,
    cpu: Duration,
}

impl Watch {
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            cpu: process::cpu_time(std::process::id()).unwrap_or_default(),
        }
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn stop(&self, count: u64) -> Outcome {
        let cpu = process::cpu_time(std::process::id()).unwrap_or_default();
        Outcome {
            count,
            elapsed: self.start.elapsed(),
            own_cpu: cpu.saturating_sub(self.cpu),
        }
    }
}
