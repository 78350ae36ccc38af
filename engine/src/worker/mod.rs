#![forbid(unsafe_code)]
//! One thread: a backend, its connections, their deadlines, the user's handler, the loop.
//!
//! A turn: wait once; receive for every ready connection, within its budget; expire deadlines;
//! take the mailbox; one send per connection that has output. Callbacks run while a connection
//! is taken apart into the parts they may touch; what they ask of others goes through the
//! mailbox.
//!
//! **Invariant:** a connection is removed only between callbacks, and `on_close` has been
//! called for every connection for which `on_open` was, when its slot is given back.

mod arrival;
mod delivery;
mod door;
mod drain;
mod expiry;
mod fanout;
mod gate;
mod handler;
mod mailbox;
mod opening;
mod shared;
mod thread;
mod transfer;

/// Atomics of the gate; its model uses those of `loom`.
mod sync {
    pub(super) use std::sync::atomic::AtomicBool;
    pub(super) use std::sync::atomic::AtomicUsize;
    pub(super) use std::sync::atomic::Ordering;
    pub(super) use std::sync::atomic::fence;
    pub(super) use std::thread::yield_now;
}

pub(crate) use door::discard as discard_user_value;
pub(crate) use door::enter as call_user;
pub use drain::Drain;
pub use handler::Callback;
pub use handler::ConnId;
pub use handler::Context;
pub use handler::Handler;
pub use handler::SlowCallback;
pub(crate) use handler::upgrade_required;
pub use mailbox::ConnectError;
#[cfg(feature = "testkit")]
pub use mailbox::MAILBOX_LEN_MAX;
pub use mailbox::PostError;
pub use mailbox::Remote;
pub use opening::Deferred;
pub use opening::OpeningHandshake;
pub use shared::Shared;
use thread::Alarm;
use thread::Local;
use thread::Published;
pub use thread::Thread;
pub use thread::TimerId;

use std::any::Any;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::mem;
#[cfg(any(feature = "uring", feature = "poll"))]
use std::os::fd::BorrowedFd;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use crate::buffer::RELEASE_INTERVAL;
use crate::config::HEADERS_LEN;
use crate::conn;
use crate::conn::AcceptBudget;
use crate::conn::Conn;
use crate::conn::Deadline;
use crate::conn::Env;
use crate::conn::HEADROOM;
use crate::conn::Prepared;
use crate::conn::Step;
use crate::protocol::CloseFrame;
use crate::pubsub::Subscriptions;
use crate::reactor;
use crate::reactor::Backend;
use crate::reactor::Event;
use crate::reactor::Token;
use crate::reactor::Waker;
use crate::reactor::spin::Spin;
use crate::slab::Key;
use crate::slab::Slab;
use crate::timer::Deadlines;

use delivery::Delivery;
use delivery::SocketWire;
use drain::Draining;
use drain::End;
use expiry::Overdue;
use expiry::Stalled;
use mailbox::Command;

/// A slot of the thread's receive buffer, where several receives are made at once: the length of
/// many messages and of the longest TLS record, and what is around them. Cut by a few bytes, each
/// would have to be put together.
const RECEIVE_SLOT_LEN: usize = 16 * 1024 + HEADERS_LEN;

/// The longest header of a client's message, and of a TLS record with what seals it (RFC 6455
/// §5.2, RFC 8446 §5.2).
const _: () = assert!(HEADERS_LEN >= 14 && HEADERS_LEN >= 5 + 256);

const RECV_BATCH_MAX: usize = 16;

/// Connections that are received from before they are called, where calls are made one by one: each
/// finds the kernel's code, and the handler's, in the cache.
const TURN_BATCH_MAX: usize = 32;

const _: () = assert!(RECV_BATCH_MAX <= TURN_BATCH_MAX);

/// The thread's receive buffer.
const RECEIVE_BUFFER_LEN: usize = RECV_BATCH_MAX * RECEIVE_SLOT_LEN;

/// Connections that are sent to in one call.
const SEND_BATCH: usize = 32;

/// Room that the lists of connections have from the start.
const LISTS_LEN: usize = 1024;

/// A list that has room for so many times what it holds gives some of it back.
const TRIM_FACTOR: usize = 4;

/// Commands taken from the mailbox in one turn.
const COMMANDS_MAX: usize = 4096;

/// Pause of accepting when the system has run out of something.
const ACCEPT_REST: Duration = Duration::from_millis(250);

/// The longest sleep: a bound on what a missed wake-up could cost.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Maximum time that one turn adds to the clock of the deadlines. A thread that was held up for
/// longer, by a callback or because the process was stopped, could not hear its peers: the rest does
/// not count against them.
const ATTENDED_MAX: Duration = Duration::from_secs(1);

struct Slot<S, D> {
    socket: S,
    conn: Conn<D>,
    /// In the list of ready connections.
    ready: bool,
    /// The peer has closed its side, or the connection broke: reads go on until they say so.
    hangup: bool,
    /// The last read filled its slot, or was too long to be one of many: the next one gets the whole
    /// buffer, alone.
    large: bool,
    /// A deadline that the peer has not met. Acted upon when a look at the socket brings nothing.
    overdue: Overdue,
    /// In the list of connections to send to.
    touched: bool,
    writable_armed: bool,
    /// Ready, but its connection takes nothing now.
    parked: bool,
    /// In the list of blocked connections.
    blocked: bool,
    subscriptions: Subscriptions,
}

/// One thread's engine.
pub struct Worker<B: Backend, H: Handler> {
    backend: B,
    handler: H,
    env: Env,
    conns: Slab<Slot<B::Socket, H::Data>>,
    /// Deadlines of what the peer owes: bytes, a pong, a Close frame.
    silence: Deadlines,
    /// Deadlines of output that the peer does not take.
    stall: Deadlines,
    ready: VecDeque<Key>,
    /// Of the first of them, if it is in the middle of a long payload.
    row: transfer::Row,
    touched: Vec<Key>,
    events: Vec<Event<B::Socket>>,
    /// Indexes whose deadlines a sweep has found.
    swept: Vec<u32>,
    /// Connections whose peers have missed a deadline, to be looked at before it is acted upon.
    overdue: VecDeque<Key>,
    /// Connections whose peers do not take their output, to be looked at.
    stalled: VecDeque<Key>,
    /// Result of the last look at each of them.
    stalls: HashMap<Key, Stalled>,
    /// Looks at one socket for one deadline.
    looks_max: u16,
    broadcasts: Vec<Prepared>,
    /// What callbacks ask for.
    local: Local<H::Data>,
    blocked: fanout::Blocked,
    buffer: Box<[u8]>,
    number: u16,
    remote: Remote,
    /// Kept for the mailbox, which has a weak one.
    _waker: Waker,
    shared: Arc<Shared>,
    spin: Spin,
    now: Duration,
    /// Time for which this thread has attended to its sockets: the clock of the deadlines.
    attended: Duration,
    /// Spare memory is given back then, and not before.
    release_at: Duration,
    /// Connections that may be accepted now.
    accepts: AcceptBudget,
    /// Accepting rests until then.
    accept_at: Option<Duration>,
    /// The worker is to end, at the latest then.
    stop_at: Option<Duration>,
    /// How, if it is.
    end: Option<End>,
    /// Connections are being closed, some at a time.
    draining: Option<Draining>,
}

impl<B: Backend, H: Handler> Worker<B, H> {
    /// A worker without connections.
    pub fn new(
        backend: B,
        handler: H,
        mut env: Env,
        number: u16,
        remote: Remote,
        shared: Arc<Shared>,
        spin: Spin,
    ) -> Self {
        let timed = env.slow_callback.is_some();
        let waker = backend.waker();
        remote.mailbox(number).start(&waker, timed);
        env.metrics = Arc::clone(remote.recorder(number));
        // What one batch of receives can be answered with.
        env.pool.warm(TURN_BATCH_MAX);
        env.pool.discard_with(reactor::discard);
        let accepts = AcceptBudget::new(env.accept_rate_max);
        let looks_max = expiry::looks_max(backend.receive_buffer_max(), &env);
        let mut worker = Self {
            now: backend.now(),
            attended: Duration::ZERO,
            release_at: Duration::ZERO,
            backend,
            handler,
            conns: Slab::default(),
            silence: Deadlines::default(),
            stall: Deadlines::default(),
            ready: VecDeque::with_capacity(LISTS_LEN),
            row: transfer::Row::default(),
            touched: Vec::with_capacity(LISTS_LEN),
            events: Vec::with_capacity(LISTS_LEN),
            swept: Vec::new(),
            overdue: VecDeque::new(),
            stalled: VecDeque::new(),
            stalls: HashMap::new(),
            looks_max,
            broadcasts: Vec::new(),
            local: Local::new(Arc::clone(remote.topic_counts()), &env),
            env,
            blocked: fanout::Blocked::default(),
            buffer: vec![0; RECEIVE_BUFFER_LEN + RECV_BATCH_MAX * HEADROOM].into(),
            number,
            remote,
            _waker: waker,
            shared,
            spin,
            accepts,
            accept_at: None,
            stop_at: None,
            end: None,
            draining: None,
        };
        worker.start();
        worker
    }

    /// Turns until the worker has been told to end and its connections are closed.
    ///
    /// # Errors
    /// The backend failed.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.is_finished() {
            self.turn(None)?;
        }
        Ok(())
    }

    /// Whether the worker was told to end and has.
    pub fn is_finished(&self) -> bool {
        let is_over = self.conns.is_empty() && self.draining.is_none();
        // A connection that the kernel is about to hand over would be lost with the backend.
        let is_over = is_over && !self.backend.has_accepts();
        self.stop_at.is_some_and(|end| is_over || self.now >= end)
    }

    /// One pass of the loop; sleeps at most `timeout` if nothing is to be done.
    ///
    /// # Errors
    /// The backend failed.
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let now = self.wait(timeout)?;
        self.attended += (now - self.now).min(ATTENDED_MAX);
        self.now = now;
        self.env.now = now;
        let now_s = self.now.as_secs() as u32;
        if mem::replace(&mut self.env.now_s, now_s) != now_s {
            self.trim();
            self.count_owner_panics();
        }
        self.local.attended = self.attended;
        // Before anything sets a deadline, which counts from where the sweep has come to.
        self.sweep();
        self.handle_events();
        self.look_for_overdue();
        self.receive();
        self.expire();
        self.drain_some();
        self.take_mailbox();
        self.make_connections();
        self.publish();
        self.flush();
        self.keep_to_budget();
        if self.env.pool.has_spare() && self.now >= self.release_at {
            // Not in every turn of a busy thread.
            self.release_at = self.now + RELEASE_INTERVAL;
            self.env.pool.release();
        }
        self.record_turn();
        Ok(())
    }

    /// Gives up what only a peak has needed, once a second: lists by half, so that no turn has
    /// much to give back.
    #[cold]
    fn trim(&mut self) {
        self.env.pool.trim();
        self.conns.trim();
        self.local.trim();
        self.blocked.trim();
        trim_list(&mut self.touched);
        trim_list(&mut self.events);
        trim_list(&mut self.swept);
        trim_deque(&mut self.ready);
        trim_deque(&mut self.overdue);
        trim_deque(&mut self.stalled);
    }

    /// What can be seen from outside, at the end of a turn.
    fn record_turn(&self) {
        let metrics = &self.env.metrics;
        metrics.turns.add(1);
        metrics.connections.set(self.conns.len() as u64);
        metrics.output_held.set(self.env.held_len as u64);
        metrics.takeover.set(self.env.takeover_len as u64);
        metrics.buffers_in_use.set(self.env.pool.in_use() as u64);
        metrics.deferred.set(self.env.deferred as u64);
        metrics.topics.set(self.local.pubsub.topic_count() as u64);
        let subscriptions = self.local.pubsub.subscription_count();
        metrics.subscriptions.set(subscriptions as u64);
        metrics.timers.set(self.local.alarms.len() as u64);
        if self.local.timing.is_on() {
            let elapsed = self.backend.now().saturating_sub(self.now);
            metrics.turn_time.record(elapsed);
        }
    }

    /// Hands the kernel what the last turn has left for the next one: closes among them.
    #[cfg(any(feature = "uring", feature = "poll"))]
    pub fn submit(&mut self) {
        self.backend.submit();
    }

    /// The worker has ended: nothing is held any more.
    fn clear_gauges(&self) {
        let metrics = &self.env.metrics;
        for gauge in metrics.gauges() {
            gauge.set(0);
        }
    }

    /// Counts panics of the destructors of payloads' owners, which may come wherever output is
    /// sent.
    fn count_owner_panics(&self) {
        self.env.metrics.panics.add(conn::take_owner_panics());
    }

    /// Drops a value of a user's.
    fn discard<T>(&self, what: &str, value: T) {
        door::discard(&self.env.metrics, what, value);
    }

    /// Connections that a drain has sent a Close frame.
    #[cfg(feature = "testkit")]
    pub fn drained(&self) -> usize {
        self.shared.drained()
    }

    /// Connections, in whatever phase.
    #[cfg(feature = "testkit")]
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// The largest output that waits for any connection.
    #[cfg(feature = "testkit")]
    pub fn queued_len_max(&self) -> usize {
        let queued = |key| self.conns.get(key).map_or(0, |slot| slot.conn.queued_len());
        self.conns.keys().map(queued).max().unwrap_or(0)
    }

    /// The user's handler.
    pub fn handler_mut(&mut self) -> &mut H {
        &mut self.handler
    }

    /// Calls with the handler and an open connection, as a callback would be; nothing if the
    /// connection is not open. What is sent leaves in the next turn.
    #[cfg(any(feature = "uring", feature = "poll"))]
    pub fn with<R>(
        &mut self,
        id: ConnId,
        call: impl FnOnce(&mut H, &mut Context<'_, H::Data>) -> R,
    ) -> Option<R> {
        if id.worker != self.number {
            return None;
        }
        let (conn, env, mut delivery) = self.take_apart(id.key)?;
        let result = delivery.call(Callback::With, conn.open_output(env)?, call);
        // It may have been terminated.
        self.deliver(id.key, |_, _, _| {});
        self.after(id.key, false);
        Some(result)
    }

    /// A callback of an open connection that nothing of the connection's own has caused.
    fn call(
        &mut self,
        key: Key,
        callback: Callback,
        call: impl FnOnce(&mut H, &mut Context<'_, H::Data>),
    ) {
        self.deliver(key, |conn, env, sink| {
            if let Some(output) = conn.open_output(env) {
                sink.call(callback, output, call);
            }
        });
        self.after(key, false);
    }

    /// A callback that is about no connection. If it panics nothing else is harmed.
    fn call_thread(
        &mut self,
        callback: Callback,
        call: impl FnOnce(&mut H, &mut Thread<'_, H::Data>),
    ) {
        let began = self.local.timing.is_on().then(|| self.backend.now());
        let mut thread = Thread {
            local: &mut self.local,
            remote: &self.remote,
            clock: &self.backend,
            number: self.number,
            connections: self.conns.len(),
        };
        let what = format_args!("callback {callback:?} of thread {}", self.number);
        let (handler, metrics) = (&mut self.handler, &self.env.metrics);
        let called = door::enter(metrics, what, || call(handler, &mut thread));
        self.end_thread_call(callback, began, called.is_some());
    }

    /// Records how long a callback took that is about no connection, and reports it if that was
    /// too long.
    fn end_thread_call(&mut self, callback: Callback, began: Option<Duration>, returned: bool) {
        let Some(began) = began.filter(|_| returned) else {
            return;
        };
        let elapsed = self.backend.now().saturating_sub(began);
        if let Some(slow) = self.local.note_callback(callback, None, elapsed) {
            let handler = &mut self.handler;
            let report = || handler.on_slow_callback(&slow);
            door::enter(&self.env.metrics, "callback SlowCallback", report);
        }
    }

    /// A callback that makes the data of a connection. `None` if it panicked.
    fn call_for_data(
        &mut self,
        callback: Callback,
        call: impl FnOnce(&mut H) -> H::Data,
    ) -> Option<H::Data> {
        let began = self.local.timing.is_on().then(|| self.backend.now());
        let what = format_args!("callback {callback:?} of thread {}", self.number);
        let handler = &mut self.handler;
        let data = door::enter(&self.env.metrics, what, || call(handler));
        self.end_thread_call(callback, began, data.is_some());
        data
    }

    /// Tells the handler that the thread begins to serve.
    fn start(&mut self) {
        self.call_thread(Callback::Start, |handler, thread| handler.on_start(thread));
    }

    /// How long the owner may wait for [`descriptor`](Self::descriptor) before the next turn; no
    /// wake-up is lost meanwhile.
    #[cfg(any(feature = "uring", feature = "poll"))]
    pub fn prepare_wait(&mut self) -> Duration {
        let now = self.backend.now();
        let has_events = self.backend.has_events();
        if has_events || self.is_busy() || !self.remote.mailbox(self.number).sleep() {
            return Duration::ZERO;
        }
        self.until_due(now)
    }

    /// Makes the descriptor say what it is to say.
    #[cfg(any(feature = "uring", feature = "poll"))]
    pub fn prepare_descriptor(&mut self) -> io::Result<()> {
        self.backend.prepare_descriptor()
    }

    /// The owner has waited.
    #[cfg(any(feature = "uring", feature = "poll"))]
    pub fn end_wait(&mut self) {
        self.remote.mailbox(self.number).awake();
    }

    /// Readable when there is something to do.
    #[cfg(any(feature = "uring", feature = "poll"))]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.backend.descriptor()
    }

    /// Whether something is to be done that no event will announce.
    fn is_busy(&self) -> bool {
        let begun = !self.ready.is_empty() || !self.touched.is_empty();
        let due = !self.overdue.is_empty() || !self.stalled.is_empty() || self.is_evicting();
        let asked = !self.local.connects.is_empty() || self.local.pubsub.has_pending();
        begun || due || asked || !self.remote.mailbox(self.number).is_empty()
    }

    /// Waits for events; gives the time at which it ended.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Duration> {
        let mailbox = self.remote.mailbox(self.number);
        if self.is_busy() || timeout == Some(Duration::ZERO) {
            self.backend.wait(Some(Duration::ZERO), &mut self.events)?;
            return Ok(self.backend.now());
        }
        let start = self.backend.now();
        let mut now = start;
        let budget = self.spin.budget();
        if !budget.is_zero() {
            loop {
                self.backend.wait(Some(Duration::ZERO), &mut self.events)?;
                now = self.backend.now();
                let gap = now - start;
                if !self.events.is_empty() {
                    self.spin.note(gap, &self.events);
                    return Ok(now);
                }
                if gap > budget || !mailbox.is_empty() {
                    break;
                }
            }
        }
        let timeout = timeout.unwrap_or(SLEEP_MAX).min(self.until_due(start));
        if mailbox.sleep() {
            self.backend.wait(Some(timeout), &mut self.events)?;
            mailbox.awake();
            now = self.backend.now();
            self.spin.note(now - start, &self.events);
        }
        Ok(now)
    }

    /// How long until something has to be done that no event announces.
    fn until_due(&self, now: Duration) -> Duration {
        let mut due = SLEEP_MAX;
        if !self.conns.is_empty() {
            let elapsed = now.saturating_sub(self.now);
            let sweep = Deadlines::next_sweep(self.attended);
            due = due.min(sweep.saturating_sub(elapsed));
        }
        let alarm = self.local.alarms.next();
        let drain = self.draining.as_ref().map(|_| now + drain::STEP);
        let release = self.env.pool.until_release().map(|wait| now + wait);
        let points = [self.accept_at, self.stop_at, alarm, drain, release];
        for at in points.into_iter().flatten() {
            due = due.min(at.saturating_sub(now));
        }
        due
    }

    fn handle_events(&mut self) {
        let mut events = mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                Event::Accepted { socket, listener } => self.accept(socket, listener),
                Event::AcceptFailed(error) => {
                    self.env.metrics.exhausted.add(1);
                    log::warn!("pausing accept: {}", reactor::explain(&error));
                    self.rest_accepting();
                }
                Event::Ready {
                    token,
                    readable,
                    writable,
                    hangup,
                    lapsed,
                } => {
                    // The event may be of a connection that was here before.
                    let key = self.conns.key_at(token.index());
                    let Some(key) = key.filter(|&key| token.is_of(key)) else {
                        continue;
                    };
                    let Some(slot) = self.conns.get_mut(key) else {
                        continue;
                    };
                    slot.hangup |= hangup;
                    if readable && !mem::replace(&mut slot.ready, true) {
                        self.ready.push_back(key);
                    }
                    if writable && slot.conn.is_blocked() {
                        slot.writable_armed = false;
                        slot.conn.handle_writable();
                        if !mem::replace(&mut slot.touched, true) {
                            self.touched.push(key);
                        }
                    }
                    if lapsed {
                        let socket = slot.socket;
                        if let Err(error) = self.backend.register(socket, token) {
                            self.lose(key, error);
                        }
                    }
                }
                Event::Woken => {}
            }
        }
        self.events = events;
        if self.accept_at.is_some_and(|at| self.now >= at) {
            self.resume_accepting();
        }
    }

    /// The connection broke.
    fn lose(&mut self, key: Key, error: io::Error) {
        self.deliver(key, |conn, env, sink| conn.handle_error(error, env, sink));
        self.after(key, false);
    }

    /// A connection, what all share, and where the connection delivers.
    #[inline]
    #[allow(clippy::type_complexity, reason = "three borrows of one value")]
    fn take_apart(
        &mut self,
        key: Key,
    ) -> Option<(&mut Conn<H::Data>, &mut Env, Delivery<'_, B, H>)> {
        let slot = self.conns.get_mut(key)?;
        let delivery = Delivery {
            handler: &mut self.handler,
            wire: SocketWire {
                backend: &mut self.backend,
                socket: slot.socket,
            },
            remote: &self.remote,
            local: &mut self.local,
            subscriptions: &mut slot.subscriptions,
            id: ConnId {
                worker: self.number,
                key,
            },
        };
        Some((&mut slot.conn, &mut self.env, delivery))
    }

    /// Calls into a connection, whose callbacks may panic.
    #[inline]
    fn deliver(
        &mut self,
        key: Key,
        call: impl FnOnce(&mut Conn<H::Data>, &mut Env, &mut Delivery<'_, B, H>),
    ) {
        let Some((conn, env, mut delivery)) = self.take_apart(key) else {
            // It may hold a user's value, about a connection that is gone.
            return self.discard("a value about a connection that is gone", call);
        };
        // What a panic leaves behind is this connection's, which is closed, and the handler's
        // own, which answers for it.
        let call = AssertUnwindSafe(|| {
            call(conn, env, &mut delivery);
            conn.settle(env, &mut delivery);
        });
        if let Err(payload) = panic::catch_unwind(call) {
            self.handle_panic(key, payload);
        }
    }

    /// Closes a connection whose callback has panicked.
    #[cold]
    fn handle_panic(&mut self, key: Key, payload: Box<dyn Any + Send>) {
        let metrics = Arc::clone(&self.env.metrics);
        let what = format_args!("a callback of connection {}", self.id(key));
        door::note_panic(&metrics, what, payload);
        let Some((conn, env, mut delivery)) = self.take_apart(key) else {
            return;
        };
        // `on_close` has a door of its own; what is left is what the connection held of a user's.
        door::enter(&metrics, "the end of a connection", || {
            conn.handle_panic(env, &mut delivery);
        });
    }

    /// Does what a call has left to be done; `renew` if the peer was heard or its deadline
    /// has expired.
    #[inline]
    fn after(&mut self, key: Key, renew: bool) {
        let Some(slot) = self.conns.get_mut(key) else {
            return;
        };
        match slot.conn.deadline(renew, &self.env) {
            Deadline::Keep => {}
            Deadline::Set(ticks) => {
                slot.overdue.deadline = false;
                self.silence.set(key.index, ticks);
            }
            Deadline::Clear => {
                slot.overdue.deadline = false;
                self.silence.clear(key.index);
            }
        }
        if slot.parked && !slot.conn.is_parked() {
            return self.unpark(key);
        }
        if slot.conn.has_output() {
            if !mem::replace(&mut slot.touched, true) {
                self.touched.push(key);
            }
            return;
        }
        if slot.conn.is_blocked() && !mem::replace(&mut slot.writable_armed, true) {
            // Blocked by a flush inside a callback.
            self.backend.arm_writable(slot.socket, Token::new(key));
            if !mem::replace(&mut slot.blocked, true) {
                self.blocked.push(key);
            }
            self.set_stall(key);
        }
        self.take_step(key);
    }

    /// Goes on reading where that had been put off.
    #[cold]
    fn unpark(&mut self, key: Key) {
        if let Some(slot) = self.conns.get_mut(key) {
            slot.parked = false;
            if !mem::replace(&mut slot.ready, true) {
                self.ready.push_back(key);
            }
            // Its peer can be heard again.
            self.after(key, true);
        }
    }

    fn take_step(&mut self, key: Key) {
        let Some(slot) = self.conns.get_mut(key) else {
            return;
        };
        match slot.conn.next_step() {
            Step::Continue => {}
            step @ (Step::ShutdownWrite | Step::AwaitEnd) => {
                if step == Step::ShutdownWrite {
                    self.backend.shutdown_write(slot.socket);
                }
                slot.conn.handle_output_end();
                if let Deadline::Set(ticks) = slot.conn.deadline(false, &self.env) {
                    slot.overdue.deadline = false;
                    self.silence.set(key.index, ticks);
                }
            }
            Step::Remove => self.remove(key),
        }
    }

    fn remove(&mut self, key: Key) {
        let Some(mut slot) = self.conns.remove(key) else {
            return;
        };
        debug_assert!(!slot.conn.owes_close(), "on_close was not called");
        if !slot.subscriptions.is_empty() {
            let pubsub = &mut self.local.pubsub;
            pubsub.unsubscribe_all(&mut slot.subscriptions);
        }
        if self.shared.counts_addresses()
            && let Some(peer) = slot.conn.peer()
            && let Some(address) = conn::counted_address(peer, self.env.proxies.as_ref())
        {
            self.shared.release_address(address);
        }
        self.discard("the data of a connection", slot.conn.take_data());
        slot.conn.release(&mut self.env);
        self.backend.close(slot.socket, Some(Token::new(key)));
        self.silence.clear(key.index);
        self.stall.clear(key.index);
        self.forget_stall(key);
        self.local.timing.end_opening(key);
        self.local.release_timers(key);
        self.shared.release();
        // What accepting waited for may be there again.
        if self.accept_at.is_some() {
            self.accept_at = Some(self.now);
        }
    }

    /// Pauses the reading of a connection, or resumes it, as its callbacks would.
    fn pause(&mut self, key: Key, pause: bool) {
        self.deliver(key, |conn, env, _| {
            if let Some(mut output) = conn.open_output(env) {
                match pause {
                    true => output.pause(),
                    false => output.resume(),
                }
            }
        });
        self.after(key, false);
    }

    #[inline]
    fn take_mailbox(&mut self) {
        if !self.remote.mailbox(self.number).is_empty() {
            self.take_commands();
        }
    }

    fn take_commands(&mut self) {
        for _ in 0..COMMANDS_MAX {
            let Some((command, waited)) = self.remote.mailbox(self.number).take() else {
                break;
            };
            self.env.metrics.commands.add(1);
            if let Some(waited) = waited {
                self.env.metrics.mailbox_time.record(waited);
            }
            // One sender's commands take effect in their order. Publishes that follow each other are
            // delivered together, and so are broadcasts.
            match command {
                Command::Publish(topic, message, options) => {
                    self.broadcast();
                    let published = Published { message, options };
                    self.local.pubsub.publish(&topic, published, None);
                    continue;
                }
                Command::Broadcast(message) => {
                    self.publish();
                    self.broadcasts.push(message);
                    continue;
                }
                _ => {
                    self.broadcast();
                    self.publish();
                }
            }
            match command {
                Command::Send(key, message, options) => {
                    self.deliver(key, |conn, env, sink| {
                        conn.send_prepared(&message, &options, env, sink);
                    });
                    self.after(key, false);
                }
                Command::PostTo(key, value) => {
                    self.call(key, Callback::Post, |handler, conn| {
                        handler.on_post(conn, value);
                    });
                }
                Command::Post(value) => {
                    self.call_thread(Callback::Remote, |handler, thread| {
                        handler.on_remote(thread, value);
                    });
                }
                Command::Deferred(key, answer) => {
                    self.deliver(key, |conn, env, sink| {
                        conn.answer_deferred(answer, env, sink);
                    });
                    self.after(key, false);
                }
                Command::Pause(key, pause) => self.pause(key, pause),
                Command::Terminate(key) => {
                    self.deliver(key, |conn, _, _| conn.terminate());
                    self.after(key, false);
                }
                Command::Close(key, code, reason) => {
                    let frame = CloseFrame::new(code, &reason);
                    self.deliver(key, |conn, env, _| conn.begin_close(&frame, false, env));
                    self.after(key, false);
                }
                Command::Connect(connect) => {
                    let make = |handler: &mut H| handler.on_connect(&connect);
                    if let Some(data) = self.call_for_data(Callback::Connect, make) {
                        self.local.connects.push_back((*connect, data));
                    }
                }
                Command::Adopt(socket, received, agreed) => {
                    let make = |handler: &mut H| handler.on_adopt(&agreed);
                    let Some(data) = self.call_for_data(Callback::Adopt, make) else {
                        continue;
                    };
                    if let Err(error) = self.adopt(socket, received, &agreed, data) {
                        log::warn!("a connection is not adopted: {error}");
                        self.env.metrics.refused.add(1);
                    }
                }
                Command::Drain(drain) => self.begin_drain(drain),
                Command::Shutdown => self.shut_down(),
                Command::Fail => self.end_with_others(),
                Command::Broadcast(_) | Command::Publish(..) => {}
            }
        }
        self.broadcast();
    }
}

/// Gives up half of what a list has grown to, if that is far more than it needs now.
fn trim_list<T>(list: &mut Vec<T>) {
    if list.capacity() > TRIM_FACTOR * list.len().max(LISTS_LEN) {
        list.shrink_to(list.capacity() / 2);
    }
}

/// As [`trim_list`].
fn trim_deque<T>(list: &mut VecDeque<T>) {
    if list.capacity() > TRIM_FACTOR * list.len().max(LISTS_LEN) {
        list.shrink_to(list.capacity() / 2);
    }
}

/// Rounds in which connections are refused that `on_close` asks for while the worker ends.
const LAST_ROUNDS: usize = 16;

impl<B: Backend, H: Handler> Drop for Worker<B, H> {
    fn drop(&mut self) {
        self.remote.stop(self.number);
        self.stop_at = Some(self.now);
        self.abandon_all();
        // Handlers that asked for a connection are told that it was not made.
        for _ in 0..LAST_ROUNDS {
            self.make_connections();
            self.abandon_all();
        }
        let connects = mem::take(&mut self.local.connects);
        for (_, data) in connects {
            self.discard("the data of a connection", data);
        }
        self.count_owner_panics();
        self.clear_gauges();
    }
}
