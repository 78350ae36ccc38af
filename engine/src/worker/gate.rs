//! The atomics of a mailbox: how a sender and the worker agree on what was accepted, on who wakes
//! whom, and on the end.
//!
//! One word counts the commands that were accepted and not taken, those whose sender is still
//! between counting and queueing included; its top bit says that the mailbox is closed. So a
//! sender whose command was accepted before the close is waited for, and one that comes later is
//! refused: nothing is left in a closed queue.
//!
//! `engine/tests/mailbox_model.rs` compiles this file against `loom` and tries every interleaving.

use super::sync::AtomicBool;
use super::sync::AtomicUsize;
use super::sync::Ordering;
use super::sync::fence;
use super::sync::yield_now;

/// The bit of the count that says that nothing more is accepted.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// A queue that many push to and one takes from.
pub(super) trait Queue {
    /// What it holds.
    type Item;

    /// Adds an item at the end.
    fn push(&self, item: Self::Item);

    /// Takes the first item.
    fn pop(&self) -> Option<Self::Item>;
}

/// Why an item was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// As many items wait as may.
    Full,
    /// The gate is closed.
    Closed,
}

/// A queue with a bound, a sleeping owner and an end.
#[derive(Debug, Default)]
pub(super) struct Gate<Q> {
    queue: Q,
    /// Items accepted and not taken, and [`CLOSED`].
    state: AtomicUsize,
    /// The owner sleeps, or is about to: it must be woken.
    sleeping: AtomicBool,
}

impl<Q: Queue> Gate<Q> {
    /// Accepts an item, which is made only if there is room. Returns whether the owner has to be
    /// woken.
    #[inline]
    pub(super) fn post(
        &self,
        len_max: usize,
        make: impl FnOnce() -> Q::Item,
    ) -> Result<bool, Refused> {
        // Senders that come after the close count nothing: it does not have to wait for them.
        if self.state.load(Ordering::Relaxed) & CLOSED != 0 {
            return Err(Refused::Closed);
        }
        let before = self.state.fetch_add(1, Ordering::AcqRel);
        if before & CLOSED != 0 || before >= len_max {
            self.state.fetch_sub(1, Ordering::AcqRel);
            let closed = before & CLOSED != 0;
            return Err(if closed {
                Refused::Closed
            } else {
                Refused::Full
            });
        }
        self.queue.push(make());
        // Ordered against `sleep`: either this sees the flag, or that sees the count.
        fence(Ordering::SeqCst);
        Ok(self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel))
    }

    /// Takes the next item.
    #[inline]
    pub(super) fn take(&self) -> Option<Q::Item> {
        if self.len() == 0 {
            return None;
        }
        let item = self.queue.pop()?;
        self.state.fetch_sub(1, Ordering::AcqRel);
        Some(item)
    }

    /// Accepts nothing from here on, and gives `rest` every item that was accepted before, those
    /// included whose senders have not queued them yet.
    pub(super) fn close(&self, mut rest: impl FnMut(Q::Item)) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        while self.len() > 0 {
            match self.take() {
                Some(item) => rest(item),
                // A sender is about to queue its item, or to find the gate closed.
                None => yield_now(),
            }
        }
    }

    /// Items that were accepted and not taken.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.state.load(Ordering::Acquire) & !CLOSED
    }

    /// Says that the owner is going to sleep. Returns `false` if it must not, because something
    /// waits.
    pub(super) fn sleep(&self) -> bool {
        // An exchange, so that it comes after that of a sender which answers the last sleep.
        self.sleeping.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if self.len() == 0 {
            return true;
        }
        self.awake();
        false
    }

    /// The owner is awake.
    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}
