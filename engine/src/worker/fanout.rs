//! One message for many connections; and what becomes of those that do not take theirs.

use std::collections::BinaryHeap;
use std::collections::VecDeque;
use std::mem;

use arrayvec::ArrayVec;

use crate::config::Victims;
use crate::conn::SendOptions;
use crate::pubsub::PubSub;
use crate::pubsub::Publication;
use crate::reactor::Backend;
use crate::slab::Key;
use crate::slab::Slab;

use super::Handler;
use super::SEND_BATCH;
use super::Slot;
use super::Worker;
use super::thread::Published;
use super::trim_deque;

/// Blocked connections that are looked at in one turn.
const LOOK_MAX: usize = 1024;

/// Connections that are closed in one turn because blocked peers hold too much; and what they
/// hold, from which on no more are closed: all of it is gone through.
const EVICT_MAX: usize = 64;
const EVICT_LEN_MAX: usize = 512 * 1024;

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

    /// Closes connections that do not take their output until what they hold fits the budget:
    /// some of them in one turn, and the others in the next ones.
    pub(super) fn keep_to_budget(&mut self) {
        // Sends to such connections are refused at the budget; those that hold it make room for
        // the others' before.
        let most = self.env.held_len_max / 8 * 7;
        if self.env.held_len > most {
            return self.evict(most);
        }
        if self.blocked.notes_sizes() {
            // They are of this time only: the next one may find others that hold more.
            self.blocked.forget_sizes();
        }
        if self.blocked.is_sweep_due() {
            self.look_at_blocked(false);
        }
    }

    /// Whether there may be more to close than one turn has done.
    pub(super) fn is_evicting(&self) -> bool {
        let most = self.env.held_len_max / 8 * 7;
        self.env.held_len > most && self.blocked.len() > 0
    }

    fn evict(&mut self, most: usize) {
        let largest = self.env.victims == Victims::LargestQueue;
        if largest && !self.blocked.has_sizes() && !self.look_at_blocked(true) {
            return;
        }
        let held_before = self.env.held_len;
        for _ in 0..EVICT_MAX {
            let freed = held_before.saturating_sub(self.env.held_len);
            if self.env.held_len <= most || freed >= EVICT_LEN_MAX {
                break;
            }
            let conns = &mut self.conns;
            let victim = match largest {
                true => self.blocked.take_largest(|key| {
                    let slot = conns.get(key).filter(|slot| slot.blocked)?;
                    slot.conn.is_blocked().then(|| slot.conn.held_len())
                }),
                false => self
                    .blocked
                    .take_longest(|key| blocked_held(conns, key).is_some()),
            };
            let Some(key) = victim else {
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

    /// Looks at the next of the blocked connections, and forgets those that are not blocked any
    /// more; says whether all have been looked at.
    fn look_at_blocked(&mut self, with_sizes: bool) -> bool {
        let conns = &mut self.conns;
        self.blocked
            .look(with_sizes, |key| blocked_held(conns, key))
    }
}

/// Returns the bytes that a blocked connection holds; `None` if it is no longer blocked.
fn blocked_held<S, D>(conns: &mut Slab<Slot<S, D>>, key: Key) -> Option<usize> {
    let slot = conns.get_mut(key).filter(|slot| slot.blocked)?;
    slot.blocked = slot.conn.is_blocked();
    slot.blocked.then(|| slot.conn.held_len())
}

/// Connections whose peers do not take their output, and some that were, the longest blocked first.
///
/// They are looked at some at a time. Whose queue is the largest is found in a heap that such a
/// pass fills, and which is corrected where it is read: a queue that has become shorter goes back
/// to its place. So a victim costs the logarithm of their number, and a pass as much as there are.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    /// In front of the others: those that this pass has looked at.
    seen: VecDeque<Key>,
    unseen: VecDeque<Key>,
    /// Number of them that this pass has still to look at.
    remaining: usize,
    /// This pass notes sizes.
    with_sizes: bool,
    sizes: BinaryHeap<(usize, Key)>,
    /// Number of them after the last pass, or a little more.
    len_at_sweep: usize,
}

impl Blocked {
    pub(super) fn push(&mut self, key: Key) {
        self.unseen.push_back(key);
        if self.has_sizes() {
            // Its size is looked up where it is read.
            self.sizes.push((usize::MAX, key));
        }
    }

    fn len(&self) -> usize {
        self.seen.len() + self.unseen.len()
    }

    /// Gives up memory that only a peak has needed.
    pub(super) fn trim(&mut self) {
        trim_deque(&mut self.seen);
        trim_deque(&mut self.unseen);
        if self.sizes.is_empty() {
            self.sizes = BinaryHeap::new();
        }
    }

    /// Whether most of them may not be blocked any more, or a pass has begun.
    #[inline]
    fn is_sweep_due(&self) -> bool {
        self.remaining > 0 || self.len() > 2 * self.len_at_sweep.max(TOUCHED_MAX)
    }

    fn has_sizes(&self) -> bool {
        self.remaining == 0 && !self.sizes.is_empty()
    }

    /// Whether sizes were noted that may be out of date once less is held.
    #[inline]
    fn notes_sizes(&self) -> bool {
        self.with_sizes
    }

    fn forget_sizes(&mut self) {
        self.sizes = BinaryHeap::new();
        self.with_sizes = false;
        self.remaining = 0;
    }

    /// Goes on with a pass, or begins one; says whether it has ended. `held` says how much one
    /// holds, or nothing if it is to be forgotten.
    fn look(&mut self, with_sizes: bool, mut held: impl FnMut(Key) -> Option<usize>) -> bool {
        if self.remaining == 0 || with_sizes != self.with_sizes {
            self.begin(with_sizes);
        }
        for _ in 0..self.remaining.min(LOOK_MAX) {
            self.remaining -= 1;
            let Some(key) = self.unseen.pop_front() else {
                break;
            };
            if let Some(held) = held(key) {
                self.seen.push_back(key);
                if with_sizes {
                    self.sizes.push((held, key));
                }
            }
        }
        if self.remaining == 0 {
            self.len_at_sweep = self.len();
        }
        self.remaining == 0
    }

    /// Begins a pass: whoever comes from here on is not part of it.
    fn begin(&mut self, with_sizes: bool) {
        self.seen.append(&mut self.unseen);
        mem::swap(&mut self.seen, &mut self.unseen);
        self.remaining = self.unseen.len();
        self.with_sizes = with_sizes;
        self.sizes.clear();
    }

    /// Takes the one that holds the most of those that the last pass has seen.
    fn take_largest(&mut self, held: impl Fn(Key) -> Option<usize>) -> Option<Key> {
        for _ in 0..LOOK_MAX {
            let (noted, key) = self.sizes.pop()?;
            match held(key) {
                Some(held) if held >= noted => return Some(key),
                Some(held) => self.sizes.push((held, key)),
                None => {}
            }
        }
        None
    }

    /// Takes the first that is still blocked.
    fn take_longest(&mut self, mut is_blocked: impl FnMut(Key) -> bool) -> Option<Key> {
        for _ in 0..LOOK_MAX {
            let key = match self.seen.pop_front() {
                Some(key) => key,
                None => {
                    self.remaining = self.remaining.saturating_sub(1);
                    self.unseen.pop_front()?
                }
            };
            if is_blocked(key) {
                return Some(key);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::Cell;
    use std::cell::RefCell;

    fn key(index: u32) -> Key {
        Key {
            index,
            generation: 0,
        }
    }

    /// Returns the number of looks that it takes to find `victims`, and the victims.
    fn looks(count: u32, victims: usize) -> (usize, Vec<u32>) {
        let mut blocked = Blocked::default();
        (0..count).for_each(|index| blocked.push(key(index)));
        let looks = Cell::new(0);
        let taken = RefCell::new(vec![false; count as usize]);
        // Neither sorted nor all different.
        let held = |key: Key| {
            looks.set(looks.get() + 1);
            let size = key.index.wrapping_mul(2_654_435_761) % 10_000;
            (!taken.borrow()[key.index as usize]).then_some(size as usize)
        };
        let mut found = Vec::new();
        let mut turns = 0;
        while found.len() < victims {
            let before = looks.get();
            if blocked.has_sizes() || blocked.look(true, held) {
                let victim = blocked.take_largest(held).expect("there are enough");
                taken.borrow_mut()[victim.index as usize] = true;
                found.push(victim.index);
            }
            turns += 1;
            assert!(looks.get() - before <= 2 * LOOK_MAX, "turn {turns}");
        }
        (looks.get(), found)
    }

    #[test]
    fn evict_finds_the_largest_of_100_000_in_linear_time_and_bounded_turns() {
        let (count, victims) = (100_000, 50_000);
        let (looks, found) = looks(count, victims);
        assert!(looks <= count as usize + 2 * victims, "{looks}");
        let size = |index: &u32| index.wrapping_mul(2_654_435_761) % 10_000;
        assert!(found.is_sorted_by_key(|index| u32::MAX - size(index)));
        let smallest = size(&found[victims - 1]);
        let larger = (0..count).filter(|index| size(index) > smallest).count();
        assert!(larger <= victims, "{larger}");
    }

    /// A peer that blocks after sizes were noted is not spared by that.
    #[test]
    fn evict_finds_the_largest_among_those_that_came_later() {
        let held = |key: Key| Some(if key.index == 10 { 1_000_000 } else { 1_000 });
        let mut blocked = Blocked::default();
        (0..10).for_each(|index| blocked.push(key(index)));
        assert!(blocked.look(true, held));
        assert_ne!(blocked.take_largest(held), Some(key(10)));
        blocked.push(key(10));
        assert_eq!(blocked.take_largest(held), Some(key(10)));
        // Once the budget is kept, sizes are noted anew.
        blocked.forget_sizes();
        assert!(!blocked.has_sizes());
        blocked.push(key(11));
        assert!(blocked.look(true, held));
        assert!(blocked.take_largest(held).is_some());
    }

    #[test]
    fn longest_blocked_come_first_and_passes_keep_their_order() {
        let mut blocked = Blocked::default();
        (0..3_000).for_each(|index| blocked.push(key(index)));
        // In the middle of a pass, some come and half of those that it sees go.
        let odd = |key: Key| (key.index % 2 == 1).then_some(1);
        assert!(!blocked.look(false, odd));
        (3_000..3_010).for_each(|index| blocked.push(key(index)));
        while !blocked.look(false, odd) {}
        let order = std::iter::from_fn(|| blocked.take_longest(|_| true));
        let order: Vec<u32> = order.map(|key| key.index).collect();
        let want: Vec<u32> = (0..3_000)
            .filter(|i| i % 2 == 1)
            .chain(3_000..3_010)
            .collect();
        assert_eq!(order, want);
    }
}
