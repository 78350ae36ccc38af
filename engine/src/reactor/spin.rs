//! Whether to look again before going to sleep.
//!
//! A sleep and a wake-up cost more CPU than some tens of empty looks, so where events follow
//! each other closely it is cheaper, and faster for the peer, to look for a while. The gaps
//! between events decide, and a bound caps what is spent.

use std::time::Duration;

/// How long one wait may look before it sleeps.
pub const SPIN_MAX: Duration = Duration::from_micros(20);

/// Gaps longer than this are not worth spinning for.
const GAP_MAX_NS: u64 = 50_000;

/// Weight of the past: 7/8.
const SMOOTHING: u64 = 8;

/// A moving average of the gaps between events.
#[derive(Debug)]
pub struct Spin {
    enabled: bool,
    gap_ns: u64,
}

impl Spin {
    /// Spins only if there is a CPU for each thread.
    pub fn new(threads: usize, cpus: usize) -> Self {
        Self {
            enabled: threads <= cpus,
            gap_ns: 2 * GAP_MAX_NS,
        }
    }

    /// How long to look before sleeping: zero for not at all.
    pub fn budget(&self) -> Duration {
        if self.enabled && self.gap_ns < GAP_MAX_NS {
            SPIN_MAX
        } else {
            Duration::ZERO
        }
    }

    /// Events came this long after the wait for them began.
    pub fn note_gap(&mut self, gap: Duration) {
        let gap_ns = (gap.as_nanos() as u64).min(10 * GAP_MAX_NS);
        self.gap_ns = (self.gap_ns * (SMOOTHING - 1) + gap_ns) / SMOOTHING;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spins_after_short_gaps_only_and_never_without_a_cpu_for_each_thread() {
        let mut spin = Spin::new(2, 2);
        assert_eq!(spin.budget(), Duration::ZERO);
        for _ in 0..50 {
            spin.note_gap(Duration::from_micros(5));
        }
        assert_eq!(spin.budget(), SPIN_MAX);
        for _ in 0..5 {
            spin.note_gap(Duration::from_secs(1));
        }
        assert_eq!(spin.budget(), Duration::ZERO);

        let mut spin = Spin::new(3, 2);
        for _ in 0..50 {
            spin.note_gap(Duration::ZERO);
        }
        assert_eq!(spin.budget(), Duration::ZERO);
    }
}
