//! Deadlines that have passed: found in sweeps, dealt with some a turn.

use std::mem;

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
        self.silence.advance(self.now, &mut swept);
        for index in swept.drain(..) {
            let key = self.conns.key_at(index);
            if let Some((key, slot)) = key.and_then(|key| Some((key, self.conns.get_mut(key)?))) {
                slot.silent = true;
                self.silent.push_back(key);
            }
        }
        self.stall.advance(self.now, &mut swept);
        let keys = swept.drain(..).filter_map(|index| self.conns.key_at(index));
        self.stalled.extend(keys);
        self.swept = swept;
    }

    /// Ends what has waited too long, unless what it waited for has come meanwhile: then its
    /// deadline has been set again. The thread may have been held up, and not the peer.
    pub(super) fn expire(&mut self) {
        for _ in 0..EXPIRE_MAX {
            let Some(key) = self.silent.pop_front() else {
                break;
            };
            let slot = self.conns.get_mut(key);
            if slot.is_some_and(|slot| mem::take(&mut slot.silent)) {
                self.deliver(key, |conn, env, sink| conn.handle_deadline(env, sink));
                self.after(key, true);
            }
        }
        for _ in 0..EXPIRE_MAX {
            let Some(key) = self.stalled.pop_front() else {
                break;
            };
            let slot = self.conns.get(key);
            let is_blocked = slot.is_some_and(|slot| slot.conn.is_blocked());
            if is_blocked && !self.stall.is_set(key.index) {
                self.deliver(key, |conn, env, sink| conn.handle_stall(env, sink));
                self.after(key, false);
            }
        }
        for _ in 0..EXPIRE_MAX {
            let Some(alarm) = self.local.alarms.take_due(self.now) else {
                break;
            };
            self.handle_alarm(alarm);
        }
        if self.stop_at.is_some_and(|end| self.now >= end) {
            self.abandon_all();
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
            Alarm::Promote(key) => {
                self.deliver(key, |conn, env, _| conn.handle_promote_deadline(env));
                self.after(key, false);
            }
            Alarm::Lifetime(key) => {
                let frame = CloseFrame::new(CloseCode::POLICY_VIOLATION, "lifetime");
                self.deliver(key, |conn, env, _| conn.begin_close(&frame, false, env));
                self.after(key, false);
            }
        }
    }
}
