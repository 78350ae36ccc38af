//! Deadlines that have passed: found in sweeps, proved by a look, acted upon, some per turn.
//!
//! A deadline ends a peer only on evidence. The thread may have been held up, and what the peer has
//! sent in time may lie in its socket, unreported: a wait reports only some of what is ready. So a
//! deadline that a sweep has found makes the worker look at that socket: a receive, or for output
//! that is not taken, a poll. The look comes after the clock was read. Only if it brings nothing is
//! the deadline acted upon.

use std::mem;
use std::time::Duration;

use crate::protocol::CloseCode;
use crate::protocol::CloseFrame;
use crate::reactor::Backend;
use crate::slab::Key;
use crate::timer::ticks;

use super::Alarm;
use super::Callback;
use super::Handler;
use super::Worker;

/// Deadlines of each kind that are dealt with in one turn. Of a million idle connections some
/// ten thousand are due in one moment: the others do not wait for all their pings.
const EXPIRE_MAX: usize = 16;

/// More alarms are dealt with in one turn, as long as the turn has spent no more than this on
/// them: thousands may be due in one moment, and an alarm that is late is of less use.
const ALARM_TIME_MAX: Duration = Duration::from_micros(500);

/// Maximum looks at a socket for one deadline, one per turn. They read what may have waited there
/// when the deadline passed: 8 MiB with the default turn, more than Linux's largest receive buffer
/// (`tcp_rmem`, 6 MiB). A peer that goes on sending, and does not send what it owes, ends then.
const LOOKS_MAX: u8 = 128;

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
    looks: u8,
}

impl Overdue {
    /// Whether a receive that brings nothing ends something.
    fn awaits_bytes(self) -> bool {
        self.deadline || self.promotion
    }
}

impl<B: Backend, H: Handler> Worker<B, H> {
    pub(super) fn set_stall(&mut self, key: Key) {
        if let Some(slot) = self.conns.get(key) {
            let timeout = slot.conn.limits(&self.env).write_timeout;
            self.stall.set(key.index, ticks(timeout));
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
            let has_looked_enough = slot.overdue.looks > LOOKS_MAX;
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
        if overdue.deadline {
            self.deliver(key, |conn, env, sink| conn.handle_deadline(env, sink));
            self.after(key, true);
        }
        if overdue.promotion {
            self.deliver(key, |conn, env, _| conn.handle_promote_deadline(env));
            self.after(key, false);
        }
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

    /// Ends a connection whose peer has taken no output for the write time-out, unless there is room
    /// that no wait has reported yet.
    fn expire_stall(&mut self, key: Key) {
        let Some(slot) = self.conns.get_mut(key) else {
            return;
        };
        if !slot.conn.is_blocked() || self.stall.is_set(key.index) {
            return;
        }
        match self.backend.is_writable(slot.socket) {
            Ok(false) => {
                self.deliver(key, |conn, env, sink| conn.handle_stall(env, sink));
                self.after(key, false);
            }
            Ok(true) => {
                slot.writable_armed = false;
                slot.conn.handle_writable();
                if !mem::replace(&mut slot.touched, true) {
                    self.touched.push(key);
                }
                self.set_stall(key);
            }
            // Nothing is known: another look after another time-out.
            Err(_) => self.set_stall(key),
        }
    }

    /// Deals with the alarms that are due, as many as their time allows. Those that are set
    /// meanwhile wait for the next turn: an alarm that sets itself again holds nobody up.
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
