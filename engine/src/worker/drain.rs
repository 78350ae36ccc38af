//! The end of a worker: at once, or spread over a window.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use crate::conn::Conn;
use crate::conn::HEADROOM;
use crate::protocol::CloseCode;
use crate::protocol::CloseFrame;
use crate::protocol::Role;
use crate::reactor::Backend;
use crate::reactor::RecvOp;
use crate::slab::Key;

use super::Handler;
use super::Slot;
use super::Worker;

/// How long connections have to send their request that were accepted before a hand-over and have
/// sent nothing: they may have been made for this server in the moment of the hand-over.
const HAND_OVER_GRACE: Duration = Duration::from_secs(1);

/// The most that is read of a connection whose opening handshake is ended: a request, and then
/// some.
const LAST_RECEIVE_LEN: usize = 4096;

/// How often some connections are closed while a worker drains.
pub(super) const STEP: Duration = Duration::from_millis(10);

/// How a server ends without all its clients coming back at once: no more connections are
/// accepted, and those that there are get their Close frames spread over a window, in an order
/// drawn by lot.
///
/// ```
/// use std::time::Duration;
/// use sockeye::{CloseCode, Drain};
///
/// let drain = Drain::new()
///     .window(Duration::from_secs(20))
///     .deadline(Duration::from_secs(30))
///     .close(CloseCode::SERVICE_RESTART, "deploy");
/// # let _ = drain;
/// ```
#[derive(Clone, Debug)]
pub struct Drain {
    window: Duration,
    deadline: Duration,
    code: CloseCode,
    reason: Box<str>,
    hand_over: bool,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            code: CloseCode::GOING_AWAY,
            reason: "".into(),
            hand_over: false,
        }
    }
}

impl Drain {
    /// Close frames (1001) over 10 s, and the end after 30 s at the latest.
    pub fn new() -> Self {
        Self::default()
    }

    /// Over how long the Close frames are spread.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// After how long every connection is dropped that has not ended by itself. A window that is
    /// longer ends with it.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// What the Close frames say.
    #[must_use]
    pub fn close(mut self, code: CloseCode, reason: &str) -> Self {
        self.code = code;
        self.reason = reason.into();
        self
    }

    /// Accepts nothing at all from here on, because another process has the listening sockets.
    /// Without this, a server that has a health path goes on accepting, answers there that it is
    /// not ready, and rejects WebSockets with 503.
    #[must_use]
    pub fn hand_over(mut self) -> Self {
        self.hand_over = true;
        self
    }
}

/// How a worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Spread over a window.
    Drain,
    /// At once.
    Shutdown,
}

/// A drain that goes on.
#[derive(Debug)]
pub(super) struct Draining {
    drain: Arc<Drain>,
    start: Duration,
    /// Indexes below this one.
    count: u32,
    /// So many of them have been dealt with.
    done: u32,
    /// The next index is this much further, modulo `count`, which it has no divisor with: so
    /// each index comes once.
    step: u32,
    index: u32,
}

impl Draining {
    fn new(drain: Arc<Drain>, start: Duration, count: u32, chance: u64) -> Self {
        let count = count.max(1);
        let mut step = (chance >> 32) as u32 % count;
        while greatest_divisor(step, count) != 1 {
            step = (step + 1) % count.max(2);
        }
        Self {
            drain,
            start,
            count,
            done: 0,
            step,
            index: chance as u32 % count,
        }
    }

    /// How many indexes should have been dealt with by now.
    fn due(&self, now: Duration) -> u32 {
        let window = self.drain.window.min(self.drain.deadline);
        let elapsed = now.saturating_sub(self.start);
        if elapsed >= window {
            return self.count;
        }
        let share = elapsed.as_nanos() * u128::from(self.count) / window.as_nanos();
        share as u32
    }

    /// The next index, if one is due.
    fn next(&mut self, now: Duration) -> Option<u32> {
        if self.done >= self.due(now) {
            return None;
        }
        self.done += 1;
        let index = self.index;
        let next = u64::from(index) + u64::from(self.step);
        self.index = (next % u64::from(self.count)) as u32;
        Some(index)
    }
}

fn greatest_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl<B: Backend, H: Handler> Worker<B, H> {
    /// Ends because another worker has failed, unless it is ending anyway.
    pub(super) fn end_with_others(&mut self) {
        if self.end.is_none() {
            log::error!("thread {} ends: another thread has failed", self.number);
            self.shut_down();
        }
    }

    /// Begins the closing handshake with all, now. Cuts a drain short, and never puts its deadline
    /// off.
    pub(super) fn shut_down(&mut self) {
        if self.end == Some(End::Shutdown) {
            return;
        }
        self.end = Some(End::Shutdown);
        self.draining = None;
        self.env.draining = true;
        self.stop_accepting();
        // A second more than the connections' own deadlines, which are coarse.
        let stop_at = self.now + self.env.limits().close_timeout + Duration::from_secs(2);
        self.stop_at = Some(self.stop_at.map_or(stop_at, |at| at.min(stop_at)));
        let frame = CloseFrame::new(CloseCode::GOING_AWAY, "");
        let keys: Vec<Key> = self.conns.keys().collect();
        for key in keys {
            if self.is_opening(key) {
                self.end_handshake(key);
            } else {
                self.deliver(key, |conn, env, _| conn.begin_close(&frame, false, env));
                self.after(key, false);
            }
        }
    }

    fn stop_accepting(&mut self) {
        self.env.health_path = None;
        self.backend.pause_accept();
        self.accept_at = None;
    }

    /// Begins to close connections, some at a time.
    pub(super) fn begin_drain(&mut self, drain: Arc<Drain>) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(End::Drain);
        // Nobody else can serve a connection that this process has accepted before a hand-over.
        self.env.draining = !drain.hand_over;
        if drain.hand_over || self.env.health_path.is_none() {
            self.stop_accepting();
        }
        self.stop_at = Some(self.now.saturating_add(drain.deadline));
        // Where it is asked whether the server is ready, who has just come may be about to ask.
        if self.env.health_path.is_some() {
            self.end_handshakes(|conn| conn.is_deferred());
        } else if !drain.hand_over {
            self.end_handshakes(|conn| conn.role() == Role::Server);
        }
        let chance = self.env.random.bits();
        let count = self.conns.indexes();
        self.draining = Some(Draining::new(drain, self.now, count, chance));
    }

    /// Whether connections are accepted.
    pub(super) fn is_accepting(&self) -> bool {
        let for_health = self.env.draining && self.env.health_path.is_some();
        self.stop_at.is_none() || for_health
    }

    /// Whether a connection that has just been accepted is ended at once: the kernel had done so
    /// before it was told to accept no more.
    pub(super) fn comes_too_late(&self) -> bool {
        // Those that ask for the server's health are served as long as the window is open.
        let is_over = self.end.is_some() && self.draining.is_none();
        self.env.draining && (is_over || !self.is_accepting())
    }

    /// Closes the connections whose turn has come.
    pub(super) fn drain_some(&mut self) {
        let Some(mut draining) = self.draining.take() else {
            return;
        };
        // Nobody is left to be told, on any thread.
        if self.shared.connections() == 0 {
            // One that the kernel has accepted already is ended at once.
            self.env.draining = true;
            return;
        }
        let drain = Arc::clone(&draining.drain);
        let frame = CloseFrame::new(drain.code, &drain.reason);
        while let Some(index) = draining.next(self.now) {
            self.close_at(index, &frame);
        }
        if draining.done < draining.count {
            self.draining = Some(draining);
            return;
        }
        let grace_end = draining.start + HAND_OVER_GRACE;
        if drain.hand_over && self.now < grace_end && self.has_opening() {
            self.draining = Some(draining);
            return;
        }
        self.env.draining = true;
        self.end_handshakes(|_| true);
        // Some may have been opened where the drain had been before.
        for index in 0..self.conns.indexes() {
            self.close_at(index, &frame);
        }
    }

    fn is_opening(&self, key: Key) -> bool {
        let slot = self.conns.get(key);
        slot.is_some_and(|slot| slot.conn.is_opening())
    }

    fn has_opening(&self) -> bool {
        self.conns.keys().any(|key| self.is_opening(key))
    }

    /// Ends those opening handshakes of which `which` says so.
    fn end_handshakes(&mut self, which: impl Fn(&Conn<H::Data>) -> bool) {
        let keys: Vec<Key> = self.conns.keys().collect();
        for key in keys {
            let slot = self.conns.get(key);
            let conn = slot.map(|slot| &slot.conn);
            if conn.is_some_and(|conn| conn.is_opening() && which(conn)) {
                self.end_handshake(key);
            }
        }
    }

    /// Ends one opening handshake. A request that waits to be read is answered: to close a socket
    /// with something unread would reset the connection.
    pub(super) fn end_handshake(&mut self, key: Key) {
        let slot = self.conns.get(key);
        let reads = |slot: &&Slot<B::Socket, H::Data>| {
            slot.conn.role() == Role::Server && !slot.conn.is_deferred()
        };
        if let Some(slot) = slot.filter(reads) {
            let mut buffer = [0; HEADROOM + LAST_RECEIVE_LEN];
            let mut op = RecvOp {
                socket: slot.socket,
                buffer: &mut buffer[HEADROOM..],
                result: Ok(0),
            };
            self.backend.recv_many(slice::from_mut(&mut op));
            let result = op.result;
            self.handle_received(key, result, &mut buffer);
        }
        self.deliver(key, |conn, env, _| conn.end_handshake(env));
        self.after(key, false);
    }

    /// Begins the closing handshake with the connection at an index, if one is open there.
    fn close_at(&mut self, index: u32, frame: &CloseFrame<'_>) {
        let key = self.conns.key_at(index);
        let is_open = |key: &Key| self.conns.get(*key).is_some_and(|s| s.conn.is_open());
        if let Some(key) = key.filter(is_open) {
            self.deliver(key, |conn, env, _| conn.begin_close(frame, false, env));
            self.after(key, false);
            self.shared.count_drained();
        }
    }

    /// Ends every connection now.
    pub(super) fn abandon_all(&mut self) {
        let keys: Vec<Key> = self.conns.keys().collect();
        for key in keys {
            self.deliver(key, |conn, env, sink| conn.abandon(env, sink));
            self.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_comes_to_each_index_once_and_evenly() {
        for count in [0, 1, 2, 3, 4, 30, 97, 1_000] {
            for chance in [0, 1, 7 << 32 | 3, u64::MAX, 30 << 32, 0x1234_5678_9ABC_DEF0] {
                let drain = Arc::new(Drain::new().window(Duration::from_secs(10)));
                let start = Duration::from_secs(100);
                let mut draining = Draining::new(drain, start, count, chance);
                let mut seen = Vec::new();
                for tick in 0..=100 {
                    let now = start + Duration::from_millis(tick * 100);
                    seen.extend(std::iter::from_fn(|| draining.next(now)));
                    let want = u64::from(count.max(1)) * tick / 100;
                    assert_eq!(seen.len() as u64, want, "{count} {chance} {tick}");
                }
                seen.sort_unstable();
                assert_eq!(seen, (0..count.max(1)).collect::<Vec<_>>());
            }
        }
    }
}
