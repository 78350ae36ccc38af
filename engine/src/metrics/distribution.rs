use std::fmt;
use std::iter;
use std::time::Duration;

use histogram::AtomicHistogram;
use histogram::Config;
use histogram::Histogram;

use super::recorder::Counter;

/// Each power of two has 2⁴ buckets: a value is known to one part in 16.
const GROUPING_POWER: u8 = 4;

/// Up to 2³⁷ ns, about 137 s; what is longer counts as that.
const MAX_VALUE_POWER: u8 = 37;

const MAX_NS: u64 = (1 << MAX_VALUE_POWER) - 1;

fn config() -> Config {
    Config::new(GROUPING_POWER, MAX_VALUE_POWER).expect("the powers are legal")
}

/// Durations as they are recorded, by one thread.
#[derive(Debug)]
pub struct Recording {
    buckets: AtomicHistogram,
    sum_ns: Counter,
}

impl Default for Recording {
    fn default() -> Self {
        Self {
            buckets: AtomicHistogram::with_config(&config()),
            sum_ns: Counter::default(),
        }
    }
}

impl Recording {
    /// Records one.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).map_or(MAX_NS, |ns| ns.min(MAX_NS));
        let recorded = self.buckets.increment(ns);
        debug_assert!(recorded.is_ok(), "it is within the range");
        self.sum_ns.add(ns);
    }

    /// What has been recorded so far.
    pub fn read(&self) -> Distribution {
        Distribution {
            buckets: self.buckets.load(),
            sum_ns: self.sum_ns.get(),
        }
    }
}

/// How durations are distributed: a histogram of 16 buckets to each power of two, up to 137 s.
/// Longer ones count as that.
#[derive(Clone, PartialEq)]
pub struct Distribution {
    buckets: Histogram,
    sum_ns: u64,
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            buckets: Histogram::with_config(&config()),
            sum_ns: 0,
        }
    }
}

impl Distribution {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.as_slice().iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// Their mean; none if there are none.
    pub fn mean(&self) -> Option<Duration> {
        let mean_ns = self.sum_ns.checked_div(self.count())?;
        Some(Duration::from_nanos(mean_ns))
    }

    /// What a share of them (0.0 to 1.0) does not exceed, at most a sixteenth too large; none if
    /// there are none, or the share is no share.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let bucket = self.buckets.quantile_bucket(share).ok()??;
        Some(Duration::from_nanos(bucket.end()))
    }

    /// The longest, at most a sixteenth too large; none if there are none.
    pub fn max(&self) -> Option<Duration> {
        self.quantile(1.0)
    }

    /// How many are shorter than this, which is exact at powers of two of nanoseconds (and
    /// otherwise leaves out those that are less than a sixteenth below).
    pub fn count_up_to(&self, bound: Duration) -> u64 {
        let mut counts = self.counts_up_to(iter::once(bound));
        counts.next().unwrap_or_default()
    }

    /// The same for each of several bounds, which ascend: the buckets are gone through once.
    pub(super) fn counts_up_to(
        &self,
        bounds: impl Iterator<Item = Duration>,
    ) -> impl Iterator<Item = u64> {
        let mut buckets = self.buckets.iter().peekable();
        let mut count = 0;
        bounds.map(move |bound| {
            let bound_ns = bound.as_nanos();
            while let Some(bucket) = buckets.next_if(|b| u128::from(b.end()) <= bound_ns) {
                count += bucket.count();
            }
            count
        })
    }

    /// Adds those of another, for the distribution of both.
    pub fn add(&mut self, other: &Self) {
        let added = self.buckets.checked_add_assign(&other.buckets);
        debug_assert!(added.is_ok(), "both have the same buckets");
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }
}

impl fmt::Debug for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distribution")
            .field("count", &self.count())
            .field("mean", &self.mean())
            .field("median", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distribution_knows_values_to_one_part_in_sixteen() {
        let recording = Recording::default();
        for micros in 1..=1_000 {
            recording.record(Duration::from_micros(micros));
        }
        let read = recording.read();
        assert_eq!(read.count(), 1_000);
        assert_eq!(read.sum(), Duration::from_micros(500_500));
        assert_eq!(read.mean(), Some(Duration::from_nanos(500_500)));
        for (share, micros) in [(0.5, 500), (0.99, 990), (1.0, 1_000)] {
            let exact = Duration::from_micros(micros);
            let got = read.quantile(share).expect("it is not empty");
            assert!(got >= exact && got <= exact * 17 / 16, "{share}: {got:?}");
        }
        assert_eq!(read.max(), read.quantile(1.0));
        assert_eq!(read.quantile(1.5), None);
        // 131,072 ns: up to 131 µs.
        assert_eq!(read.count_up_to(Duration::from_nanos(1 << 17)), 131);

        let mut both = read.clone();
        both.add(&read);
        assert_eq!((both.count(), both.sum()), (2_000, read.sum() * 2));
    }

    #[test]
    fn distribution_takes_the_shortest_and_the_longest() {
        let recording = Recording::default();
        assert_eq!(recording.read().max(), None);
        assert_eq!(recording.read().mean(), None);
        recording.record(Duration::ZERO);
        recording.record(Duration::MAX);
        let read = recording.read();
        assert_eq!(read.count(), 2);
        assert_eq!(read.quantile(0.0), Some(Duration::ZERO));
        assert_eq!(read.max(), Some(Duration::from_nanos(MAX_NS)));
    }
}
