#![forbid(unsafe_code)]
//! Coarse deadlines, one byte per connection; and [`Alarms`], fine ones, for what few have.
//!
//! A deadline is the tick at which it is due, modulo 254; setting it is one store.
//! A tick is one second, and a quarter of the table is swept each quarter of a second with a
//! vectorised search for the byte that is due. The room has no clock: it is told the time.
//!
//! **Invariant:** a deadline set `n` ticks ahead is reported once, between `n` and `n + 2`
//! ticks later (and as much later as the caller is late), unless it is set again or cleared.

mod alarms;

pub use alarms::Alarms;

use alloc::vec::Vec;
use core::time::Duration;

/// How long a tick is.
pub const TICK: Duration = Duration::from_secs(1);

/// The furthest that a deadline can be ahead, in ticks.
pub const TICKS_AHEAD_MAX: u8 = 250;

/// A time-out in ticks, or as much of it as a deadline can hold.
pub fn ticks(wait: Duration) -> u8 {
    wait.as_secs().min(TICKS_AHEAD_MAX.into()) as u8
}

/// How many ticks there are before the bytes repeat.
const TICK_CYCLE: u64 = 254;

/// Parts of the table, swept in turn, each once per tick.
const SLICE_COUNT: u64 = 4;

/// How many neighbours belong to one slice.
const CHUNK_LEN: usize = 4096;

/// The byte that means no deadline.
const OFF: u8 = 0;

const _: () = assert!((TICKS_AHEAD_MAX as u64) < TICK_CYCLE - 1);
const _: () = assert!(TICK_CYCLE <= 255);

/// One deadline, or none, for each index.
#[derive(Debug, Default)]
pub struct Deadlines {
    due: Vec<u8>,
    /// Slices swept so far: `SLICE_COUNT` per tick.
    position: u64,
}

impl Deadlines {
    /// Sets the deadline of `index`, `ticks` ahead (at most [`TICKS_AHEAD_MAX`]).
    #[inline]
    pub fn set(&mut self, index: u32, ticks: u8) {
        debug_assert!(ticks <= TICKS_AHEAD_MAX);
        let index = index as usize;
        if index >= self.due.len() {
            self.due.resize(index + 1, OFF);
        }
        // One more tick: the current one has partly gone by.
        let tick = self.position / SLICE_COUNT + u64::from(ticks) + 1;
        self.due[index] = byte(tick);
    }

    /// Removes the deadline of `index`.
    #[inline]
    pub fn clear(&mut self, index: u32) {
        if let Some(due) = self.due.get_mut(index as usize) {
            *due = OFF;
        }
    }

    /// Whether `index` has a deadline.
    pub fn is_set(&self, index: u32) -> bool {
        self.due.get(index as usize).is_some_and(|&due| due != OFF)
    }

    /// Goes on to the time `now` since the start and adds the indexes whose deadlines are due.
    pub fn advance(&mut self, now: Duration, expired: &mut Vec<u32>) {
        let slice_ms = TICK.as_millis() as u64 / SLICE_COUNT;
        let now = now.as_millis() as u64 / slice_ms;
        // After a cycle everything has been due once.
        let skipped = now.saturating_sub(self.position + SLICE_COUNT * TICK_CYCLE);
        if skipped > 0 {
            self.expire_all(expired);
            self.position = now;
        }
        while self.position < now {
            self.position += 1;
            let due = byte(self.position / SLICE_COUNT);
            self.sweep((self.position % SLICE_COUNT) as usize, due, expired);
        }
    }

    /// How long after `now` the next slice is to be swept.
    pub fn next_sweep(now: Duration) -> Duration {
        let slice_ms = TICK.as_millis() as u64 / SLICE_COUNT;
        Duration::from_millis(slice_ms - now.as_millis() as u64 % slice_ms)
    }

    fn sweep(&mut self, slice: usize, due: u8, expired: &mut Vec<u32>) {
        let chunks = self.due.chunks_mut(CHUNK_LEN).enumerate();
        for (number, chunk) in chunks.skip(slice).step_by(SLICE_COUNT as usize) {
            let mut start = 0;
            while let Some(found) = memchr::memchr(due, &chunk[start..]) {
                let index = start + found;
                chunk[index] = OFF;
                expired.push((number * CHUNK_LEN + index) as u32);
                start = index + 1;
            }
        }
    }

    fn expire_all(&mut self, expired: &mut Vec<u32>) {
        for (index, due) in self.due.iter_mut().enumerate() {
            if *due != OFF {
                *due = OFF;
                expired.push(index as u32);
            }
        }
    }
}

fn byte(tick: u64) -> u8 {
    (tick % TICK_CYCLE) as u8 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn deadline_expires_once_and_between_its_ticks_and_one_more() {
        for index in [0, 1, 4095, 4096, 20_000] {
            for ticks in [0, 1, 10, TICKS_AHEAD_MAX] {
                for start in [0, 1, 249, 250, 999, 1_000, 123_456] {
                    let mut deadlines = Deadlines::default();
                    let mut expired = Vec::new();
                    deadlines.advance(ms(start), &mut expired);
                    deadlines.set(index, ticks);
                    let mut now = start;
                    while expired.is_empty() {
                        now += 50;
                        deadlines.advance(ms(now), &mut expired);
                    }
                    assert_eq!(expired, [index]);
                    let took = now - start;
                    let least = u64::from(ticks) * 1_000;
                    assert!(took >= least, "{index} {ticks} {start}: {took}");
                    assert!(took <= least + 2_050, "{index} {ticks} {start}: {took}");
                    deadlines.advance(ms(now + 600_000), &mut expired);
                    assert_eq!(expired.len(), 1);
                }
            }
        }
    }

    #[test]
    fn cleared_and_renewed_deadlines_do_not_expire() {
        let mut deadlines = Deadlines::default();
        let mut expired = Vec::new();
        deadlines.set(1, 3);
        deadlines.set(2, 3);
        deadlines.clear(1);
        for second in 0..100 {
            deadlines.set(2, 3);
            deadlines.advance(ms(1_000 * second), &mut expired);
        }
        assert!(expired.is_empty());
        assert!(deadlines.is_set(2));
        assert!(!deadlines.is_set(1));
    }

    #[test]
    fn a_late_caller_loses_no_deadline() {
        for late in [3_000, 253_000, 254_000, 255_000, 10_000_000] {
            let mut deadlines = Deadlines::default();
            let mut expired = Vec::new();
            deadlines.set(0, 1);
            deadlines.set(5_000, 1);
            deadlines.advance(ms(late), &mut expired);
            expired.sort_unstable();
            assert_eq!(expired, [0, 5_000], "{late}");
        }
    }
}
