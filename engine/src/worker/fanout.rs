//! One message for many connections; and what becomes of those that do not take theirs.

use std::mem;

use arrayvec::ArrayVec;

use crate::config::Victims;
use crate::conn::SendOptions;
use crate::pubsub::PubSub;
use crate::pubsub::Publication;
use crate::reactor::Backend;
use crate::slab::Key;

use super::Handler;
use super::SEND_BATCH;
use super::Worker;
use super::thread::Published;

/// Connections that may have output in one turn before it is sent: so that each gets what
/// several topics have for it in one send, and few buffers are in use.
const TOUCHED_MAX: usize = 1024;

impl<B: Backend, H: Handler> Worker<B, H> {
    /// Sends what was published in this turn: to each subscriber, what one topic has for it
    /// together.
    pub(super) fn publish(&mut self) {
        if !self.local.pubsub.has_pending() {
            return;
        }
        let pending = self.local.pubsub.take_pending();
        let runs = PubSub::runs(&pending).count();
        for run in PubSub::runs(&pending) {
            for start in (0..PubSub::end(run)).step_by(SEND_BATCH) {
                self.publish_run(run, start);
                // Sent while it is in the cache, and so that few buffers are in use.
                if runs == 1 || self.touched.len() >= TOUCHED_MAX {
                    self.flush();
                }
            }
        }
        self.local.pubsub.delivered(pending);
    }

    /// Sends what was published to one topic to the subscribers from `start` on.
    fn publish_run(&mut self, run: &[Publication<Published>], start: usize) {
        let positions = start..start + SEND_BATCH;
        let mut batch: ArrayVec<(Key, usize), SEND_BATCH> = ArrayVec::new();
        let subscribers = self.local.pubsub.subscribers(run, positions);
        batch.extend(subscribers.map(|(key, publications)| (key, publications.len())));
        for (key, count) in batch {
            self.deliver(key, |conn, env, sink| {
                for publication in &run[run.len() - count..] {
                    let had = sink.local.pubsub.has_had(key, publication);
                    if publication.except != Some(key) && !had {
                        let Published { message, options } = &publication.message;
                        conn.send_prepared(message, options, env, sink);
                    }
                }
            });
            self.after(key, false);
        }
    }

    /// Sends the messages that wait to every open connection.
    pub(super) fn broadcast(&mut self) {
        if self.broadcasts.is_empty() {
            return;
        }
        let mut messages = mem::take(&mut self.broadcasts);
        for start in (0..self.conns.indexes()).step_by(SEND_BATCH) {
            let end = self.conns.indexes().min(start + SEND_BATCH as u32);
            for index in start..end {
                let key = self.conns.key_at(index);
                let is_open = |key: &Key| self.conns.get(*key).is_some_and(|s| s.conn.is_open());
                if let Some(key) = key.filter(is_open) {
                    let options = SendOptions::new();
                    self.deliver(key, |conn, env, sink| {
                        for message in &messages {
                            conn.send_prepared(message, &options, env, sink);
                        }
                    });
                    self.after(key, false);
                }
            }
            self.flush();
        }
        messages.clear();
        self.broadcasts = messages;
    }

    /// Closes connections that do not take their output until what they hold fits the budget.
    pub(super) fn keep_to_budget(&mut self) {
        if self.blocked.len() > 2 * self.blocked_len_at_sweep {
            self.sweep_blocked();
        }
        // Sends to such connections are refused at the budget; those that hold it make room for
        // the others' before.
        let most = self.env.held_len_max / 8 * 7;
        if self.env.held_len <= most {
            return;
        }
        self.sweep_blocked();
        while self.env.held_len > most {
            let held = |key: &Key| self.conns.get(*key).map_or(0, |s| s.conn.held_len());
            let victim = match self.env.victims {
                Victims::LargestQueue => {
                    let among = self.blocked.iter().enumerate();
                    among.max_by_key(|(_, key)| held(key)).map(|(at, _)| at)
                }
                Victims::LongestBlocked => Some(0).filter(|_| !self.blocked.is_empty()),
            };
            let Some(key) = victim.and_then(|at| self.blocked.remove(at)) else {
                break;
            };
            if let Some(slot) = self.conns.get_mut(key) {
                slot.blocked = false;
            }
            self.env.metrics.evicted.add(1);
            self.deliver(key, |conn, env, _| conn.evict(env));
            self.after(key, false);
        }
    }

    /// Forgets connections that are not blocked any more.
    fn sweep_blocked(&mut self) {
        let conns = &mut self.conns;
        self.blocked.retain(|&key| {
            conns.get_mut(key).is_some_and(|slot| {
                slot.blocked = slot.conn.is_blocked();
                slot.blocked
            })
        });
        self.blocked_len_at_sweep = self.blocked.len().max(TOUCHED_MAX);
    }
}
