//! The threads that make the load, and the one that watches them.
//!
//! Each thread has an engine, a share of the connections and a meter; a run goes through steps,
//! which the watching thread decides on. The first thing that is wrong ends the run.

use std::panic;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use hdrhistogram::Histogram;
use sockeye::BackendChoice;
use sockeye::CloseCause;
use sockeye::CloseCode;
use sockeye::Closed;
use sockeye::ConnId;
use sockeye::Connect;
use sockeye::Engine;
use sockeye::Handler;
use sockeye::Limits;
use sockeye::SendResult;

use crate::report::Report;

/// A server that says nothing for so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Connections of a thread that may be on their way at once: fewer than a backlog holds.
const CONNECTING_MAX: usize = 128;

/// Connections for which descriptors will do.
const DESCRIPTORS: usize = 15_000;

/// How often the watching thread looks.
pub const LOOK: Duration = Duration::from_millis(20);

/// Output that may wait for a server: what is under way is the scenario's to bound.
const OUTPUT_LEN_MAX: usize = 64 << 20;

/// Where the load goes, and who makes it.
#[derive(Clone, Debug)]
pub struct Target {
    /// One for each source address; never empty.
    pub connects: Vec<Connect>,
    /// What moves the generator's bytes.
    pub backend: BackendChoice,
    /// Connections of all threads.
    pub connections: usize,
    /// Threads that make the load.
    pub threads: usize,
    /// The longest message that is sent or expected.
    pub message_len_max: usize,
    /// Compressed messages that have come.
    pub compressed: Arc<Compressed>,
}

/// Compressed messages that have come, to all threads.
#[derive(Debug, Default)]
pub struct Compressed {
    messages: AtomicU64,
    wire_bytes: AtomicU64,
    bytes: AtomicU64,
}

/// What a report calls messages that came compressed.
pub const COMPRESSED: &str = "came compressed";
/// And what they were compressed to.
pub const COMPRESSED_TO: &str = "compressed to";

impl Target {
    /// A target for one thread.
    pub fn new(connect: Connect) -> Self {
        Self {
            connects: vec![connect],
            backend: BackendChoice::Auto,
            connections: 0,
            threads: 1,
            message_len_max: 0,
            compressed: Arc::default(),
        }
    }

    /// Says how much of what came was compressed, and to what.
    pub fn amend(&self, report: &mut Report) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let messages = read(&self.compressed.messages);
        if messages > 0.0 {
            let share = read(&self.compressed.wire_bytes) / read(&self.compressed.bytes);
            report.figure(COMPRESSED, messages, "messages");
            report.figure(COMPRESSED_TO, share, "of their length");
        }
    }

    /// Whether there are more connections than descriptors can be counted on.
    fn is_large(&self) -> bool {
        self.connections > DESCRIPTORS
    }

    /// The connection with this number, counted over all threads.
    pub fn connect(&self, number: usize) -> &Connect {
        &self.connects[number % self.connects.len()]
    }
}

/// The steps of a load; scenarios with more of them begin where this ends.
pub const OPENING: usize = 0;
/// The load runs, and is not measured.
pub const WARMING: usize = 1;
/// The load runs.
pub const MEASURING: usize = 2;
/// Nothing new is begun; what is under way comes in.
pub const ENDING: usize = usize::MAX;

/// What the threads of a run share.
#[derive(Debug)]
pub struct Run {
    step: AtomicUsize,
    meters: Box<[Meter]>,
    failure: Mutex<Option<String>>,
    backend: Mutex<String>,
}

/// What one thread has done so far.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Meter {
    /// Connections that have opened.
    pub opened: AtomicU64,
    /// What the scenario counts.
    pub count: AtomicU64,
    /// Steps that the thread has finished.
    pub finished: AtomicUsize,
}

impl Run {
    fn new(threads: usize) -> Self {
        Self {
            step: AtomicUsize::new(OPENING),
            meters: (0..threads).map(|_| Meter::default()).collect(),
            failure: Mutex::new(None),
            backend: Mutex::default(),
        }
    }

    /// What all are to do now.
    pub fn step(&self) -> usize {
        self.step.load(Ordering::Acquire)
    }

    /// Goes on to a step.
    pub fn enter(&self, step: usize) {
        self.step.store(step, Ordering::Release);
    }

    /// What moves the bytes of the threads.
    pub fn backend(&self) -> String {
        let backend = self.backend.lock().unwrap_or_else(|lock| lock.into_inner());
        backend.clone()
    }

    /// What the scenario counts, of all threads.
    pub fn count(&self) -> u64 {
        let counts = self.meters.iter().map(|meter| &meter.count);
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Connections that have opened, of all threads.
    pub fn opened(&self) -> u64 {
        let counts = self.meters.iter().map(|meter| &meter.opened);
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Whether every thread has finished this step.
    pub fn has_finished(&self, step: usize) -> bool {
        let finished = self.meters.iter().map(|meter| &meter.finished);
        finished
            .map(|finished| finished.load(Ordering::Acquire))
            .all(|finished| finished > step)
    }

    /// Ends the run, and keeps the first reason.
    pub fn fail(&self, what: String) {
        let mut failure = self.failure.lock().unwrap_or_else(|lock| lock.into_inner());
        failure.get_or_insert(what);
        self.enter(ENDING);
    }

    /// # Errors
    /// Something was wrong.
    pub fn check(&self) -> Result<(), String> {
        let failure = self.failure.lock().unwrap_or_else(|lock| lock.into_inner());
        failure.clone().map_or(Ok(()), Err)
    }

    /// Looks until something is so, and does something meanwhile.
    ///
    /// # Errors
    /// Something was wrong.
    pub fn wait_until(
        &self,
        so: impl Fn(&Self) -> bool,
        mut meanwhile: impl FnMut(&Self),
    ) -> Result<(), String> {
        while !so(self) {
            self.check()?;
            meanwhile(self);
            thread::sleep(LOOK);
        }
        self.check()
    }
}

/// Runs `work` on so many threads while `conduct` conducts them on this one; the run ends when
/// that does.
///
/// # Errors
/// The first thing that was wrong.
pub fn assemble<T: Send, R>(
    threads: usize,
    work: impl Fn(&Run, usize) -> Result<T, String> + Sync,
    conduct: impl FnOnce(&Run) -> Result<R, String>,
) -> Result<(Vec<T>, R), String> {
    let run = Run::new(threads);
    thread::scope(|scope| {
        let start = |index| {
            let (run, work) = (&run, &work);
            scope.spawn(move || {
                let worked = panic::AssertUnwindSafe(|| work(run, index));
                let worked = panic::catch_unwind(worked);
                let worked = worked.unwrap_or_else(|_| Err("the generator panicked".to_owned()));
                worked.map_err(|what| run.fail(what)).ok()
            })
        };
        let workers: Vec<_> = (0..threads).map(start).collect();
        let conducted = conduct(&run);
        run.enter(ENDING);
        let done = workers.into_iter().filter_map(|worker| worker.join().ok()?);
        let done = done.collect();
        // What a thread found is the cause, whatever the conductor says of it.
        run.check()?;
        Ok((done, conducted?))
    })
}

/// What the handlers of all scenarios have.
#[derive(Clone, Debug)]
pub struct Base {
    /// Connections that have opened, in their order.
    pub ids: Vec<ConnId>,
    /// What the scenario counts.
    pub count: u64,
    /// Nanoseconds that something took, while it is measured.
    pub latency: Histogram<u64>,
    /// The step of the run.
    pub step: usize,
    /// The first thing that was wrong.
    pub failure: Option<String>,
}

impl Default for Base {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            count: 0,
            latency: histogram(),
            step: OPENING,
            failure: None,
        }
    }
}

/// Up to a minute, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("valid bounds")
}

impl Base {
    /// Something was wrong.
    #[cold]
    pub fn fail(&mut self, what: String) {
        self.failure.get_or_insert(what);
    }

    /// Whether nothing new is to be begun.
    #[inline]
    pub fn is_ending(&self) -> bool {
        self.step == ENDING
    }

    /// Notes how long something took, if it is measured.
    #[inline]
    pub fn note(&mut self, ns: u64) {
        if self.step == MEASURING {
            self.latency.saturating_record(ns);
        }
    }

    /// A message was sent, or not: what the generator drops is not the server's loss.
    #[inline]
    pub fn sent(&mut self, result: SendResult) {
        if matches!(result, SendResult::Dropped(_)) {
            self.fail("the server does not take what is sent to it".to_owned());
        }
    }

    /// A connection is over, which it may be once the run is.
    pub fn closed(&mut self, closed: &Closed<'_>) {
        match &closed.cause {
            CloseCause::NotOpened(error) => self.fail(format!("a connection: {error}")),
            cause if !self.is_ending() => self.fail(format!("a connection ended: {cause:?}")),
            cause if !closed.clean => {
                self.fail(format!(
                    "a connection ended without the closing handshake: {cause:?}"
                ));
            }
            _ => {}
        }
    }
}

/// A scenario's handler.
pub trait Load: Handler {
    /// What it has in common with the others.
    fn base(&mut self) -> &mut Base;
}

/// One thread at work.
pub struct Seat<'a, H: Load> {
    /// The thread's engine.
    pub engine: Engine<H>,
    /// What all threads share.
    pub run: &'a Run,
    /// The thread's number, of how many.
    pub index: usize,
    meter: &'a Meter,
    compressed: Arc<Compressed>,
    patience: Patience,
}

impl<'a, H: Load> Seat<'a, H> {
    /// Starts an engine on this thread.
    ///
    /// # Errors
    /// It does not start.
    pub fn new(run: &'a Run, index: usize, target: &Target, handler: H) -> Result<Self, String>
    where
        H: Clone + Send + Sync + 'static,
    {
        let mut limits = Limits::default();
        limits.message_len_max = target.message_len_max.max(limits.message_len_max);
        limits.output_len_max = OUTPUT_LEN_MAX.max(2 * limits.message_len_max);
        // The templates repeat themselves: a server that compresses well is no bomb.
        limits.inflate_ratio_max = 0;
        limits.ping_interval = Duration::ZERO;
        limits.idle_timeout = Duration::ZERO;
        limits.handshake_timeout = PATIENCE;
        let mut builder = Engine::builder()
            .handler(move |_| handler.clone())
            .limits(limits)
            .backend(target.backend);
        if target.is_large() {
            // In tables of the rings' own, which no limit on descriptors counts.
            let own = target.connections.div_ceil(target.threads) + CONNECTING_MAX;
            builder = builder.direct_descriptors(true).connections_max(own);
        }
        let engine = builder.engine().map_err(|error| error.to_string())?;
        let mut backend = run.backend.lock().unwrap_or_else(|lock| lock.into_inner());
        engine.backend().clone_into(&mut backend);
        Ok(Self {
            engine,
            run,
            index,
            meter: &run.meters[index],
            compressed: Arc::clone(&target.compressed),
            patience: Patience::default(),
        })
    }

    /// What this thread has to do with `count` of something: its share of it.
    pub fn share(&self, count: usize) -> usize {
        let threads = self.run.meters.len();
        count / threads + usize::from(self.index < count % threads)
    }

    /// The number, counted over all threads, of this thread's connection.
    pub fn number(&self, own: usize) -> usize {
        own * self.run.meters.len() + self.index
    }

    /// One turn of the engine; says how much the scenario has counted.
    ///
    /// # Errors
    /// The first thing that was wrong, here or elsewhere.
    pub fn turn(&mut self, timeout: Duration) -> Result<u64, String> {
        let step = self.run.step();
        self.engine.handler().base().step = step;
        let turned = self.engine.turn(Some(timeout));
        turned.map_err(|error| error.to_string())?;
        let base = self.engine.handler().base();
        if let Some(failure) = base.failure.take() {
            return Err(failure);
        }
        let (opened, count) = (base.ids.len() as u64, base.count);
        self.meter.opened.store(opened, Ordering::Relaxed);
        self.meter.count.store(count, Ordering::Relaxed);
        if step == ENDING {
            self.run.check()?;
        }
        Ok(count)
    }

    /// Opens connections until this thread has `count`, not too many at once.
    ///
    /// # Errors
    /// The first thing that was wrong: one of them could not be made.
    pub fn open(
        &mut self,
        target: &Target,
        count: usize,
        data: impl Fn(usize) -> H::Data,
    ) -> Result<(), String> {
        let mut asked = self.engine.handler().base().ids.len();
        self.patience = Patience::default();
        loop {
            let opened = self.engine.handler().base().ids.len();
            while asked < count && asked - opened < CONNECTING_MAX {
                let number = self.number(asked);
                let made = self.engine.connect(target.connect(number), data(number));
                made.map_err(|error| error.to_string())?;
                asked += 1;
            }
            if opened >= count {
                return Ok(());
            }
            self.turn(LOOK)?;
            self.patience.check(opened as u64)?;
        }
    }

    /// Says that this thread has finished a step, and turns until the run goes on.
    ///
    /// # Errors
    /// The first thing that was wrong.
    pub fn finish(&mut self, step: usize) -> Result<usize, String> {
        self.meter.finished.store(step + 1, Ordering::Release);
        loop {
            let now = self.run.step();
            if now != step {
                return Ok(now);
            }
            self.turn(LOOK)?;
        }
    }

    /// Turns until the run ends, and fails if nothing is counted for too long.
    ///
    /// # Errors
    /// The first thing that was wrong.
    pub fn turn_until_ending(&mut self) -> Result<(), String> {
        self.patience = Patience::default();
        while self.run.step() != ENDING {
            let count = self.turn(LOOK)?;
            self.patience.check(count)?;
        }
        Ok(())
    }

    /// Begins the closing handshake on every connection of whose data this holds.
    pub fn close_where(&mut self, so: impl Fn(&H::Data) -> bool) {
        for id in self.engine.handler().base().ids.clone() {
            self.engine.with(id, |_, conn| {
                if so(conn.data()) {
                    conn.close(CloseCode::NORMAL, "");
                }
            });
        }
    }

    /// Turns until every connection is over.
    ///
    /// # Errors
    /// The first thing that was wrong.
    pub fn turn_until_closed(&mut self) -> Result<(), String> {
        self.patience = Patience::default();
        while self.engine.connections() > 0 {
            let count = self.turn(LOOK)?;
            self.patience.check(count)?;
        }
        // The last counts.
        self.turn(Duration::ZERO)?;
        Ok(())
    }

    /// Turns until something is so, and fails if nothing is counted for too long.
    ///
    /// # Errors
    /// The first thing that was wrong.
    pub fn turn_until(&mut self, mut so: impl FnMut(&mut H) -> bool) -> Result<(), String> {
        self.patience = Patience::default();
        while !so(self.engine.handler()) {
            let count = self.turn(LOOK)?;
            self.patience.check(count)?;
        }
        Ok(())
    }
}

impl<H: Load> Drop for Seat<'_, H> {
    fn drop(&mut self) {
        let own = self.engine.metrics().total();
        for (counter, count) in [
            (&self.compressed.messages, own.messages_inflated),
            (&self.compressed.wire_bytes, own.bytes_before_inflate),
            (&self.compressed.bytes, own.bytes_inflated),
        ] {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Fails when nothing has happened for too long. Time in which this process was held up does not count:
/// what came meanwhile has yet to be received.
#[derive(Debug)]
pub struct Patience {
    seen: u64,
    waited: Duration,
    checked: Instant,
}

/// Maximum time that one check adds.
const CHECK_MAX: Duration = Duration::from_secs(1);

impl Default for Patience {
    fn default() -> Self {
        Self {
            seen: 0,
            waited: Duration::ZERO,
            checked: Instant::now(),
        }
    }
}

impl Patience {
    /// Notes what has come so far.
    ///
    /// # Errors
    /// `count` has not changed for too long.
    pub fn check(&mut self, count: u64) -> Result<(), String> {
        self.waited += self.checked.elapsed().min(CHECK_MAX);
        self.checked = Instant::now();
        if count != self.seen {
            self.seen = count;
            self.waited = Duration::ZERO;
        }
        if self.waited > PATIENCE {
            return Err(format!("nothing came for {PATIENCE:?}, after {count}"));
        }
        Ok(())
    }
}

/// One histogram of several.
pub fn merge(histograms: &[Histogram<u64>]) -> Histogram<u64> {
    let mut sum = histogram();
    for one in histograms {
        sum.add(one).expect("the same bounds");
    }
    sum
}
