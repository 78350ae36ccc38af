use alloc::vec::Vec;
use core::time::Duration;

use crate::slab::Key;
use crate::slab::Slab;

/// No alarm, no owner.
const NONE: u32 = u32::MAX;

/// Room that an empty heap keeps.
const ROOM_MIN: usize = 64;

/// Points in time, each with a value, in a heap that knows where each of them is: a cancelled
/// alarm leaves at once. An alarm may have an owner, a small number, and is released with it.
///
/// **Invariant:** an alarm is reported once, not before its time, unless it is cancelled or
/// released.
#[derive(Debug)]
pub struct Alarms<T> {
    /// A binary heap; the earliest is first.
    heap: Vec<Entry>,
    alarms: Slab<Alarm<T>>,
    /// By owner: the index of its first alarm.
    owners: Vec<u32>,
    /// Of the same time, the first set is due first.
    count: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Microseconds; a time that is further away than they can say is never reached.
    at: u64,
    count: u64,
    index: u32,
}

#[derive(Debug)]
struct Alarm<T> {
    value: T,
    /// Position in the heap.
    position: u32,
    owner: u32,
    /// The neighbours of the same owner.
    previous: u32,
    next: u32,
}

impl<T> Default for Alarms<T> {
    fn default() -> Self {
        Self {
            heap: Vec::new(),
            alarms: Slab::default(),
            owners: Vec::new(),
            count: 0,
        }
    }
}

impl<T> Alarms<T> {
    /// Sets an alarm.
    pub fn set(&mut self, at: Duration, owner: Option<u32>, value: T) -> Key {
        let owner = owner.unwrap_or(NONE);
        let next = self.first_of(owner);
        let key = self.alarms.insert(Alarm {
            value,
            position: self.heap.len() as u32,
            owner,
            previous: NONE,
            next,
        });
        if owner != NONE {
            let owner = owner as usize;
            if owner >= self.owners.len() {
                self.owners.resize(owner + 1, NONE);
            }
            self.owners[owner] = key.index;
            if let Some(next) = self.at_mut(next) {
                next.previous = key.index;
            }
        }
        self.count += 1;
        self.heap.push(Entry {
            at: micros(at),
            count: self.count,
            index: key.index,
        });
        self.rise(self.heap.len() - 1);
        key
    }

    /// Cancels an alarm; returns its value if it has not been reported.
    pub fn cancel(&mut self, key: Key) -> Option<T> {
        self.alarms.get(key)?;
        self.remove(key.index)
    }

    /// Cancels all alarms of an owner.
    pub fn release(&mut self, owner: u32) {
        let mut first = self.first_of(owner);
        while first != NONE {
            self.remove(first);
            first = self.first_of(owner);
        }
    }

    /// Takes an alarm that is due, among those that had been set when [`count`](Self::count) was
    /// `count`.
    pub fn take_due(&mut self, now: Duration, count: u64) -> Option<T> {
        let first = self.heap.first()?;
        if first.at > micros_passed(now) || first.count > count {
            return None;
        }
        self.remove(first.index)
    }

    /// Alarms that have ever been set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// When the next alarm is due.
    #[inline]
    pub fn next(&self) -> Option<Duration> {
        let first = self.heap.first()?;
        Some(Duration::from_micros(first.at))
    }

    /// Alarms that are set.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Gives back memory that only a peak has needed, at most half of it in one call.
    pub fn trim(&mut self) {
        let half = self.heap.capacity() / 2;
        if self.heap.len() < half / 2 && half >= ROOM_MIN {
            self.heap.shrink_to(half);
        }
        if self.heap.is_empty() {
            self.owners = Vec::new();
        }
        self.alarms.trim();
    }

    fn first_of(&self, owner: u32) -> u32 {
        self.owners.get(owner as usize).copied().unwrap_or(NONE)
    }

    fn at_mut(&mut self, index: u32) -> Option<&mut Alarm<T>> {
        let key = self.alarms.key_at(index)?;
        self.alarms.get_mut(key)
    }

    /// Takes an alarm out of the heap and of its owner's list.
    fn remove(&mut self, index: u32) -> Option<T> {
        let key = self.alarms.key_at(index)?;
        let alarm = self.alarms.remove(key)?;
        if let Some(next) = self.at_mut(alarm.next) {
            next.previous = alarm.previous;
        }
        match self.at_mut(alarm.previous) {
            Some(previous) => previous.next = alarm.next,
            None => {
                if let Some(first) = self.owners.get_mut(alarm.owner as usize) {
                    *first = alarm.next;
                }
            }
        }
        let position = alarm.position as usize;
        self.heap.swap_remove(position);
        if position < self.heap.len() {
            self.rise(position);
            self.sink(position);
        }
        Some(alarm.value)
    }

    /// Moves an entry towards the front, to its place.
    fn rise(&mut self, mut position: usize) {
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.heap[parent].order() <= self.heap[position].order() {
                break;
            }
            self.heap.swap(parent, position);
            self.note(position);
            position = parent;
        }
        self.note(position);
    }

    /// Moves an entry towards the back, to its place.
    fn sink(&mut self, mut position: usize) {
        loop {
            let left = 2 * position + 1;
            let children = left..(left + 2).min(self.heap.len());
            let Some(child) = children.min_by_key(|&child| self.heap[child].order()) else {
                break;
            };
            if self.heap[position].order() <= self.heap[child].order() {
                break;
            }
            self.heap.swap(position, child);
            self.note(position);
            position = child;
        }
        self.note(position);
    }

    /// Tells the alarm at this position of the heap where it is.
    fn note(&mut self, position: usize) {
        let index = self.heap[position].index;
        if let Some(alarm) = self.at_mut(index) {
            alarm.position = position as u32;
        }
    }
}

impl Entry {
    fn order(&self) -> (u64, u64) {
        (self.at, self.count)
    }
}

/// Rounded up: nothing is reported before its time.
fn micros(at: Duration) -> u64 {
    u64::try_from(at.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX)
}

/// Rounded down, and before the time that is never reached.
fn micros_passed(now: Duration) -> u64 {
    u64::try_from(now.as_micros()).map_or(u64::MAX - 1, |now| now.min(u64::MAX - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    fn due(alarms: &mut Alarms<u32>, now: u64) -> Vec<u32> {
        let (now, count) = (Duration::from_micros(now), alarms.count());
        core::iter::from_fn(|| alarms.take_due(now, count)).collect()
    }

    #[test]
    fn alarms_come_in_order_once_and_not_too_early() {
        let mut alarms = Alarms::default();
        for (at, value) in [(30, 3), (10, 1), (20, 2), (10, 4)] {
            alarms.set(Duration::from_micros(at), None, value);
        }
        alarms.set(Duration::from_nanos(10_001), None, 5);
        assert_eq!(alarms.next(), Some(Duration::from_micros(10)));
        assert!(due(&mut alarms, 9).is_empty());
        assert_eq!(due(&mut alarms, 10), [1, 4]);
        assert_eq!(due(&mut alarms, 11), [5]);
        assert_eq!(due(&mut alarms, 100), [2, 3]);
        assert_eq!((alarms.next(), alarms.is_empty()), (None, true));
    }

    #[test]
    fn alarms_that_are_too_far_away_are_never_due() {
        let mut alarms = Alarms::default();
        for at in [
            Duration::MAX,
            Duration::from_micros(u64::MAX),
            Duration::from_secs(u64::MAX / 1_000_000 + 1),
            Duration::from_secs(1 << 50),
        ] {
            alarms.set(at, None, 1);
        }
        assert!(due(&mut alarms, u64::MAX / 2).is_empty());
        assert_eq!(alarms.take_due(Duration::MAX, u64::MAX), None);
        assert_eq!(alarms.len(), 4);
    }

    #[test]
    fn alarms_set_after_the_count_wait_for_the_next_look() {
        let mut alarms = Alarms::default();
        alarms.set(Duration::ZERO, None, 0);
        let count = alarms.count();
        let mut reported = 0;
        while alarms.take_due(Duration::ZERO, count).is_some() {
            reported += 1;
            alarms.set(Duration::ZERO, None, reported);
        }
        assert_eq!((reported, alarms.len()), (1, 1));
    }

    #[test]
    fn cancelled_and_released_alarms_do_not_come_and_do_not_pile_up() {
        let mut alarms = Alarms::default();
        let kept = alarms.set(Duration::from_secs(9), None, 9);
        for value in 0..100_000 {
            let key = alarms.set(Duration::from_secs(5), Some(value % 100), value);
            alarms.set(Duration::from_secs(4), Some(value % 100), value);
            assert_eq!(alarms.cancel(key), Some(value));
            assert_eq!(alarms.cancel(key), None);
            if value % 100 == 99 {
                (0..100).for_each(|owner| alarms.release(owner));
                assert_eq!((alarms.len(), alarms.heap.len()), (1, 1));
            }
        }
        assert_eq!(due(&mut alarms, 10_000_000), [9]);
        assert_eq!(alarms.cancel(kept), None);
        (0..32).for_each(|_| alarms.trim());
        assert!(alarms.heap.capacity() <= 2 * ROOM_MIN);
        assert_eq!(alarms.owners.capacity(), 0);
    }

    /// Against a map, with numbers that a simple generator draws.
    #[test]
    fn alarms_agree_with_a_sorted_map() {
        let mut state = 1_u64;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut alarms: Alarms<u32> = Alarms::default();
        let mut map: BTreeMap<(u64, u32), (u32, Key)> = BTreeMap::new();
        let mut now = 0;
        for value in 0..20_000_u32 {
            let owner = draw(20) as u32;
            match draw(8) {
                0..=3 => {
                    let at = now + draw(500);
                    let key = alarms.set(Duration::from_micros(at), Some(owner), value);
                    map.insert((at, value), (owner, key));
                }
                4 => {
                    let chosen = map.iter().nth(draw(1 + map.len() as u64) as usize);
                    if let Some((&name, &(_, key))) = chosen {
                        assert_eq!(alarms.cancel(key), Some(name.1));
                        map.remove(&name);
                    }
                }
                5 => {
                    alarms.release(owner);
                    map.retain(|_, (of, _)| *of != owner);
                }
                _ => {
                    now += draw(50);
                    let later = map.split_off(&(now + 1, 0));
                    let want: Vec<u32> = map.keys().map(|&(_, value)| value).collect();
                    map = later;
                    assert_eq!(due(&mut alarms, now), want);
                }
            }
            assert_eq!(alarms.len(), map.len());
            assert_eq!(alarms.alarms.len(), map.len());
        }
    }
}
