use alloc::collections::BinaryHeap;
use core::cmp::Reverse;
use core::time::Duration;

use crate::slab::Key;
use crate::slab::Slab;

/// Cancelled alarms that are kept before they are cleared out.
const STALE_MAX: usize = 64;

/// Points in time, each with a value, in a heap.
///
/// **Invariant:** an alarm is reported once, not before its time, unless it is cancelled.
#[derive(Debug)]
pub struct Alarms<T> {
    /// Microseconds; those that are cancelled stay until they are due, or too many.
    heap: BinaryHeap<Reverse<(u64, u64, Key)>>,
    values: Slab<T>,
    /// Of the same time, the first set is due first.
    count: u64,
}

impl<T> Default for Alarms<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            values: Slab::default(),
            count: 0,
        }
    }
}

impl<T> Alarms<T> {
    /// Sets an alarm.
    pub fn set(&mut self, at: Duration, value: T) -> Key {
        if self.heap.len() > 2 * self.values.len() + STALE_MAX {
            self.heap
                .retain(|Reverse((_, _, key))| self.values.get(*key).is_some());
        }
        let key = self.values.insert(value);
        self.count += 1;
        self.heap.push(Reverse((micros(at), self.count, key)));
        key
    }

    /// Cancels an alarm; gives its value if it has not been reported.
    pub fn cancel(&mut self, key: Key) -> Option<T> {
        self.values.remove(key)
    }

    /// Takes an alarm that is due.
    pub fn take_due(&mut self, now: Duration) -> Option<T> {
        while let Some(&Reverse((at, _, key))) = self.heap.peek() {
            if at > now.as_micros() as u64 {
                return None;
            }
            self.heap.pop();
            if let Some(value) = self.values.remove(key) {
                return Some(value);
            }
        }
        None
    }

    /// When the next alarm is due, or one that was cancelled.
    #[inline]
    pub fn next(&self) -> Option<Duration> {
        let Reverse((at, _, _)) = self.heap.peek()?;
        Some(Duration::from_micros(*at))
    }

    /// Alarms that are set.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// Rounded up: nothing is reported before its time.
fn micros(at: Duration) -> u64 {
    at.as_nanos().div_ceil(1_000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn due(alarms: &mut Alarms<u32>, now: u64) -> Vec<u32> {
        let now = Duration::from_micros(now);
        core::iter::from_fn(|| alarms.take_due(now)).collect()
    }

    #[test]
    fn alarms_come_in_order_once_and_not_too_early() {
        let mut alarms = Alarms::default();
        for (at, value) in [(30, 3), (10, 1), (20, 2), (10, 4)] {
            alarms.set(Duration::from_micros(at), value);
        }
        alarms.set(Duration::from_nanos(10_001), 5);
        assert_eq!(alarms.next(), Some(Duration::from_micros(10)));
        assert!(due(&mut alarms, 9).is_empty());
        assert_eq!(due(&mut alarms, 10), [1, 4]);
        assert_eq!(due(&mut alarms, 11), [5]);
        assert_eq!(due(&mut alarms, 100), [2, 3]);
        assert_eq!((alarms.next(), alarms.is_empty()), (None, true));
    }

    #[test]
    fn cancelled_alarms_do_not_come_and_do_not_pile_up() {
        let mut alarms = Alarms::default();
        let kept = alarms.set(Duration::from_secs(9), 9);
        for value in 0..100_000 {
            let key = alarms.set(Duration::from_secs(5), value);
            assert_eq!(alarms.cancel(key), Some(value));
            assert_eq!(alarms.cancel(key), None);
            assert!(alarms.heap.len() <= STALE_MAX + 4);
        }
        assert_eq!(due(&mut alarms, 10_000_000), [9]);
        assert_eq!(alarms.cancel(kept), None);
    }
}
