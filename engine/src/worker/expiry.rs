//! Deadlines that have passed: found in sweeps, proved by a look, acted upon, some per turn.
//!
//! A deadline ends a peer only on evidence. The thread may have been held up, and what the peer has
//! sent in time may lie in its socket, unreported: a wait reports only some of what is ready. So a
//! deadline that a sweep has found makes the worker look at that socket: a receive, or for output
//! that is not taken, how much of it is unacknowledged. The look comes after the clock was read. Only if it brings nothing is
//! the deadline acted upon.

use std::mem;
use std::time::Duration;

use crate::conn::Env;
use crate::protocol::CloseCode;
use crate::protocol::CloseFrame;
use crate::reactor::Backend;
use crate::slab::Key;
use crate::timer::TICK;
use crate::timer::ticks;

use super::Alarm;
use super::Callback;
use super::Handler;
use super::Worker;
use super::transfer;

/// Deadlines of each kind that are dealt with in one turn. Of a million idle connections some
/// ten thousand are due in one moment: the others do not wait for all their pings.
const EXPIRE_MAX: usize = 16;

/// More alarms are dealt with in one turn, as long as the turn has spent no more than this on
/// them: thousands may be due in one moment, and an alarm that is late is of less use.
const ALARM_TIME_MAX: Duration = Duration::from_micros(500);

/// Looks for progress in one write time-out, after the first one: a peer that takes something ends at
/// most a quarter of the time-out late once it takes nothing more.
const STALL_LOOKS: u32 = 4;

/// How late a look may come: deadlines are coarse, and wait for their turn.
const STALL_SLACK: Duration = Duration::from_secs(5);

/// How long to wait before it is looked again whether a connection that reads nothing now has to have
/// been promoted.
const PROMOTION_DELAY: Duration = Duration::from_secs(1);

/// Deadlines that a peer has missed, not yet acted upon.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Overdue {
    /// Bytes, a pong, the request, a Close frame.
    pub(super) deadline: bool,
    /// To say who it is (`promote_within`).
    promotion: bool,
    /// In the list of connections to be looked at.
    queued: bool,
    /// Looks at the socket so far.
    looks: u16,
}

/// The progress of a peer that does not take its output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stalled {
    /// Bytes that it has not acknowledged.
    unacknowledged: usize,
    /// The attended time of the first look that found so many.
    since: Duration,
    /// The attended time of the last look.
    at: Duration,
}

impl Overdue {
    /// Whether a receive that brings nothing ends something.
    fn awaits_bytes(self) -> bool {
        self.deadline || self.promotion
    }

    /// There was no memory for the receive: it was no look.
    pub(super) fn uncount_look(&mut self) {
        self.looks = self.looks.saturating_sub(1);
    }
}

/// Returns how many looks read all that may have waited in a socket when a deadline passed. A peer that
/// goes on sending, and does not send what it owes, ends then.
pub(super) fn looks_max(receive_buffer_max: usize, env: &Env) -> u16 {
    let looks = receive_buffer_max / transfer::slot_room(env) + 2;
    u16::try_from(looks).unwrap_or(u16::MAX)
}

impl<B: Backend, H: Handler> Worker<B, H> {
    /// A peer does not take its output: looks at it soon.
    pub(super) fn set_stall(&mut self, key: Key) {
        self.forget_stall(key);
        self.stall.set(key.index, ticks(TICK));
    }

    /// Forgets the progress of a peer that has made some, or has gone.
    #[inline]
    pub(super) fn forget_stall(&mut self, key: Key) {
        if !self.stalls.is_empty() {
            self.stalls.remove(&key);
        }
    }

    /// Finds the connections whose deadlines have passed.
    pub(super) fn sweep(&mut self) {
        let mut swept = mem::take(&mut self.swept);
        self.silence.advance(self.attended, &mut swept);
        for index in swept.drain(..) {
            if let Some(key) = self.conns.key_at(index) {
                self.note_overdue(key, |overdue| overdue.deadline = true);
            }
        }
        self.stall.advance(self.attended, &mut swept);
        let keys = swept.drain(..).filter_map(|index| self.conns.key_at(index));
        self.stalled.extend(keys);
        self.swept = swept;
    }

    fn note_overdue(&mut self, key: Key, note: impl FnOnce(&mut Overdue)) {
        if let Some(slot) = self.conns.get_mut(key) {
            note(&mut slot.overdue);
            slot.overdue.looks = 0;
            if !mem::replace(&mut slot.overdue.queued, true) {
                self.overdue.push_back(key);
            }
        }
    }

    /// Looks at the sockets of some peers that have missed a deadline: they are received from in this
    /// turn. Bytes may renew the deadline; if there are none, [`found_nothing`](Self::found_nothing)
    /// acts upon it; else there is another look in the next turn.
    pub(super) fn look_for_overdue(&mut self) {
        for _ in 0..self.overdue.len().min(EXPIRE_MAX) {
            let Some(key) = self.overdue.pop_front() else {
                break;
            };
            let Some(slot) = self.conns.get_mut(key) else {
                continue;
            };
            slot.overdue.queued = false;
            if !slot.overdue.awaits_bytes() {
                continue;
            }
            slot.overdue.looks = slot.overdue.looks.saturating_add(1);
            let has_looked_enough = slot.overdue.looks > self.looks_max;
            // A deferred answer is awaited from the mailbox, not from the socket.
            let has_commands = !self.remote.mailbox(self.number).is_empty();
            let is_deaf = slot.conn.is_parked() && !has_commands;
            if has_looked_enough || is_deaf {
                self.act_upon_deadline(key);
                continue;
            }
            if !mem::replace(&mut slot.ready, true) {
                self.ready.push_back(key);
            }
            slot.overdue.queued = true;
            self.overdue.push_back(key);
        }
    }

    /// A receive of this turn has found nothing to read.
    #[inline]
    pub(super) fn found_nothing(&mut self, key: Key) {
        let slot = self.conns.get(key);
        if slot.is_some_and(|slot| slot.overdue.awaits_bytes()) {
            self.act_upon_deadline(key);
        }
    }

    /// Does what follows from a deadline that the peer has missed.
    #[cold]
    fn act_upon_deadline(&mut self, key: Key) {
        let Some(slot) = self.conns.get_mut(key) else {
            return;
        };
        let overdue = slot.overdue;
        slot.overdue.deadline = false;
        slot.overdue.promotion = false;
        let is_paused = slot.conn.is_paused();
        if overdue.deadline {
            self.deliver(key, |conn, env, sink| conn.handle_deadline(env, sink));
            self.after(key, true);
        }
        if overdue.promotion {
            self.act_upon_promotion(key, is_paused, overdue.looks);
        }
    }

    /// Closes a connection that was not promoted in time, unless what promotes it may wait in a list:
    /// messages of a paused connection, or a value in the mailbox.
    fn act_upon_promotion(&mut self, key: Key, is_paused: bool, looks: u16) {
        let has_commands = !self.remote.mailbox(self.number).is_empty();
        if is_paused || (has_commands && looks <= self.looks_max) {
            let due = self.attended.saturating_add(PROMOTION_DELAY);
            let alarm = Alarm::Promote(key, due);
            self.local.set_timer(self.now, PROMOTION_DELAY, alarm);
            return;
        }
        self.deliver(key, |conn, env, _| conn.handle_promote_deadline(env));
        self.after(key, false);
    }

    /// Acts upon write time-outs and alarms.
    pub(super) fn expire(&mut self) {
        for _ in 0..self.stalled.len().min(EXPIRE_MAX) {
            let Some(key) = self.stalled.pop_front() else {
                break;
            };
            self.expire_stall(key);
        }
        if !self.local.alarms.is_empty() {
            self.handle_alarms();
        }
        if self.stop_at.is_some_and(|end| self.now >= end) {
            self.abandon_all();
        }
    }

    /// Ends a connection whose peer has taken no output for the write time-out. That it has taken some
    /// shows in the number of bytes that it has not acknowledged; that there is room again is reported
    /// only when a good part of the kernel's buffer is free.
    fn expire_stall(&mut self, key: Key) {
        let Some(slot) = self.conns.get_mut(key) else {
            return;
        };
        if !slot.conn.is_blocked() || self.stall.is_set(key.index) {
            return;
        }
        let timeout = slot.conn.limits(&self.env).write_timeout;
        let interval = (timeout / STALL_LOOKS).max(TICK);
        let Ok(unacknowledged) = self.backend.unacknowledged(slot.socket) else {
            // Nothing is known: another look later.
            self.env.metrics.exhausted.add(1);
            return self.stall.set(key.index, ticks(interval));
        };
        let at = self.attended;
        let mut found = Stalled {
            unacknowledged,
            since: at,
            at,
        };
        // One that was found long ago is of another stall.
        let is_recent = |last: &&Stalled| at - last.at <= interval + STALL_SLACK;
        match self.stalls.get(&key).filter(is_recent) {
            Some(last) if last.unacknowledged == unacknowledged => found.since = last.since,
            // It takes something: there may be room that no wait has reported.
            Some(_) => {
                slot.writable_armed = false;
                slot.conn.handle_writable();
                if !mem::replace(&mut slot.touched, true) {
                    self.touched.push(key);
                }
            }
            None => {}
        }
        let rest = timeout.saturating_sub(at - found.since);
        if rest.is_zero() {
            self.forget_stall(key);
            self.deliver(key, |conn, env, sink| conn.handle_stall(env, sink));
            return self.after(key, false);
        }
        self.stalls.insert(key, found);
        // Rounded up: no look comes just before the time is over.
        let next = rest.min(interval) + Duration::from_millis(999);
        self.stall.set(key.index, ticks(next));
    }

    fn handle_alarms(&mut self) {
        let count = self.local.alarms.count();
        let mut end = None;
        loop {
            for _ in 0..EXPIRE_MAX {
                let Some(alarm) = self.local.alarms.take_due(self.now, count) else {
                    return;
                };
                self.handle_alarm(alarm);
            }
            let now = self.backend.now();
            if now >= *end.get_or_insert(now.saturating_add(ALARM_TIME_MAX)) {
                return;
            }
        }
    }

    fn handle_alarm(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Timer(key, token) => {
                self.call(key, Callback::Timer, |handler, conn| {
                    handler.on_timer(conn, token);
                });
            }
            Alarm::ThreadTimer(token) => {
                self.call_thread(Callback::ThreadTimer, |handler, thread| {
                    handler.on_thread_timer(thread, token)
                });
            }
            Alarm::Promote(key, due) => {
                let lacking = due.saturating_sub(self.attended);
                if lacking.is_zero() {
                    self.note_overdue(key, |overdue| overdue.promotion = true);
                } else {
                    // The thread was held up meanwhile: that time is not the peer's.
                    let alarm = Alarm::Promote(key, due);
                    self.local.set_timer(self.now, lacking, alarm);
                }
            }
            Alarm::Lifetime(key) => {
                let frame = CloseFrame::new(CloseCode::POLICY_VIOLATION, "lifetime");
                self.deliver(key, |conn, env, _| conn.begin_close(&frame, false, env));
                self.after(key, false);
            }
        }
    }
}
