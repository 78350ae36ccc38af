//! Whether to look again before going to sleep.
//!
//! To look costs the CPU that would otherwise rest, and where many peers are served it wins
//! nothing: while the thread sleeps more of them become ready, and are served together. It wins
//! where a few peers answer each other's messages: then the next event is that of a connection
//! which has just been served, it comes soon, and a sleep and a wake-up would be most of the time
//! that it takes. So the gaps between events decide, and whose events they are, and a bound caps
//! what is spent.

use std::time::Duration;

use super::Event;

/// How long one wait may look before it sleeps.
pub const SPIN_MAX: Duration = Duration::from_micros(20);

/// Gaps longer than this are not worth spinning for.
const GAP_MAX_NS: u64 = 50_000;

/// Weight of the past: 7/8.
const SMOOTHING: u64 = 8;

/// So many connections are few.
const FEW: usize = 4;

/// Events in a row of the same few connections from which on it is worth it, and the most that
/// count.
const FAMILIAR_MIN: u32 = 8;
const FAMILIAR_MAX: u32 = 16;

/// A moving average of the gaps between events, and of whom they were.
#[derive(Debug)]
pub struct Spin {
    enabled: bool,
    gap_ns: u64,
    /// Tokens of the latest connections, in the order in which they came for the first time.
    recent: [u64; FEW],
    oldest: usize,
    familiar: u32,
}

impl Spin {
    /// Spins only if there is a CPU for each thread.
    pub fn new(threads: usize, cpus: usize) -> Self {
        Self {
            enabled: threads <= cpus,
            gap_ns: 2 * GAP_MAX_NS,
            recent: [u64::MAX; FEW],
            oldest: 0,
            familiar: 0,
        }
    }

    /// How long to look before sleeping: zero for not at all.
    pub fn budget(&self) -> Duration {
        if self.enabled && self.gap_ns < GAP_MAX_NS && self.familiar >= FAMILIAR_MIN {
            SPIN_MAX
        } else {
            Duration::ZERO
        }
    }

    /// Events came this long after the wait for them began.
    pub fn note<S>(&mut self, gap: Duration, events: &[Event<S>]) {
        let gap_ns = gap.as_nanos().min(10 * u128::from(GAP_MAX_NS)) as u64;
        self.gap_ns = (self.gap_ns * (SMOOTHING - 1) + gap_ns) / SMOOTHING;
        if events.len() > FEW {
            self.familiar = 0;
            return;
        }
        for event in events {
            if let Event::Ready { token, .. } = event {
                self.note_ready(token.to_bits());
            }
        }
    }

    fn note_ready(&mut self, token: u64) {
        if self.recent.contains(&token) {
            self.familiar = FAMILIAR_MAX.min(self.familiar + 1);
            return;
        }
        self.familiar /= 2;
        self.recent[self.oldest] = token;
        self.oldest = (self.oldest + 1) % FEW;
    }
}

#[cfg(test)]
mod tests {
    use crate::slab::Key;

    use super::super::Token;
    use super::*;

    fn ready(index: u32) -> Event<()> {
        Event::Ready {
            token: Token::new(Key {
                index,
                generation: 1,
            }),
            readable: true,
            writable: false,
            hangup: false,
            lapsed: false,
        }
    }

    fn spin_after(spin: &mut Spin, gap: Duration, connections: u32, waits: u32) -> Duration {
        for wait in 0..waits {
            spin.note(gap, &[ready(wait % connections)]);
        }
        spin.budget()
    }

    #[test]
    fn spins_after_short_gaps_only_and_never_without_a_cpu_for_each_thread() {
        let short = Duration::from_micros(5);
        let mut spin = Spin::new(2, 2);
        assert_eq!(spin.budget(), Duration::ZERO);
        assert_eq!(spin_after(&mut spin, short, 1, 50), SPIN_MAX);
        let long = Duration::from_secs(1);
        assert_eq!(spin_after(&mut spin, long, 1, 5), Duration::ZERO);

        let mut spin = Spin::new(3, 2);
        assert_eq!(spin_after(&mut spin, short, 1, 50), Duration::ZERO);
    }

    #[test]
    fn spins_for_a_few_connections_and_not_for_many() {
        let short = Duration::from_micros(5);
        for (connections, want) in [(1, SPIN_MAX), (4, SPIN_MAX), (5, Duration::ZERO)] {
            let mut spin = Spin::new(1, 1);
            let got = spin_after(&mut spin, short, connections, 100);
            assert_eq!(got, want, "{connections}");
        }
        // One more now and then does no harm; many at once end it.
        let mut spin = Spin::new(1, 1);
        assert_eq!(spin_after(&mut spin, short, 2, 100), SPIN_MAX);
        spin.note(short, &[ready(77)]);
        assert_eq!(spin.budget(), SPIN_MAX);
        spin.note(short, &[0, 1, 2, 3, 4].map(ready));
        assert_eq!(spin.budget(), Duration::ZERO);
    }
}
