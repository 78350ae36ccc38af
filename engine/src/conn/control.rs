use std::time::Duration;

use crate::config::Limits;
use crate::protocol::ProtocolError;

/// Number of control frames that a peer may send now: a bucket that fills with time, one for each
/// connection.
#[derive(Clone, Copy, Debug)]
pub struct ControlBudget {
    tokens: u8,
    /// When tokens were last added: a `u32` that needs no alignment.
    filled_s: [u8; 4],
}

const _: () = assert!(size_of::<ControlBudget>() == 5);

impl ControlBudget {
    /// A full bucket.
    pub fn new(now_s: u32, limits: &Limits) -> Self {
        Self {
            tokens: limits.control_burst_max,
            filled_s: now_s.to_ne_bytes(),
        }
    }

    /// Takes a token for a control frame.
    ///
    /// # Errors
    /// [`ProtocolError::ControlTooOften`].
    pub fn take(&mut self, now_s: u32, limits: &Limits) -> Result<(), ProtocolError> {
        let elapsed = now_s.saturating_sub(u32::from_ne_bytes(self.filled_s));
        if elapsed > 0 {
            let earned = elapsed.saturating_mul(limits.control_rate_max.into());
            let tokens = u32::from(self.tokens).saturating_add(earned);
            self.tokens = tokens.min(limits.control_burst_max.into()) as u8;
            self.filled_s = now_s.to_ne_bytes();
        }
        let left = self.tokens.checked_sub(1);
        self.tokens = left.ok_or(ProtocolError::ControlTooOften)?;
        Ok(())
    }
}

/// How many messages and bytes a peer may send now, each a bucket that holds one second's worth
/// and fills with time. In millionths: what is earned in a microsecond is a whole number.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateBudget {
    messages: u64,
    bytes: u64,
    /// When they were last filled; never, at the beginning.
    filled: Option<Duration>,
}

const MILLION: u64 = 1_000_000;

impl RateBudget {
    /// Adds what has been earned.
    pub fn refill(&mut self, now: Duration, limits: &Limits) {
        let elapsed = self.filled.map_or(MILLION, |filled| {
            let elapsed = now.saturating_sub(filled);
            u64::try_from(elapsed.as_micros()).map_or(MILLION, |micros| micros.min(MILLION))
        });
        let fill = |left: u64, rate: u64| {
            let most = rate.saturating_mul(MILLION);
            left.saturating_add(rate.saturating_mul(elapsed)).min(most)
        };
        self.messages = fill(self.messages, limits.message_rate_max.into());
        self.bytes = fill(self.bytes, limits.byte_rate_max);
        self.filled = Some(now);
    }

    /// Takes what a message is.
    ///
    /// # Errors
    /// [`ProtocolError::MessageTooOften`].
    pub fn take(
        &mut self,
        messages: u64,
        bytes: u64,
        limits: &Limits,
    ) -> Result<(), ProtocolError> {
        for (left, taken, limited) in [
            (&mut self.messages, messages, limits.message_rate_max > 0),
            (&mut self.bytes, bytes, limits.byte_rate_max > 0),
        ] {
            if limited {
                let rest = left.checked_sub(taken.saturating_mul(MILLION));
                *left = rest.ok_or(ProtocolError::MessageTooOften)?;
            }
        }
        Ok(())
    }
}

/// How many connections may be accepted now: a bucket that holds one second's worth and fills
/// with time.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcceptBudget {
    /// In a second; zero is no limit.
    rate: u32,
    /// In millionths.
    left: u64,
    filled: Duration,
}

impl AcceptBudget {
    /// A full bucket.
    pub fn new(rate: u32) -> Self {
        Self {
            rate,
            left: u64::from(rate) * MILLION,
            filled: Duration::ZERO,
        }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Duration) -> bool {
        if self.rate == 0 {
            return true;
        }
        let rate = u64::from(self.rate);
        let elapsed = now.saturating_sub(self.filled).as_micros();
        let elapsed = u64::try_from(elapsed).map_or(MILLION, |micros| micros.min(MILLION));
        self.left = (self.left + rate * elapsed).min(rate * MILLION);
        self.filled = now;
        let left = self.left.checked_sub(MILLION);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_budget_fills_after_any_silence() {
        let limits = Limits::default();
        for silence in [2, 255, 256, 257, 511, 512, 65_536, 1 << 24, u32::MAX] {
            let mut budget = ControlBudget::new(0, &limits);
            let burst = limits.control_burst_max;
            (0..burst).for_each(|_| budget.take(0, &limits).expect("the burst"));
            assert_eq!(budget.take(0, &limits), Err(ProtocolError::ControlTooOften));
            let earned = (2 * limits.control_rate_max).min(burst);
            for _ in 0..earned {
                assert_eq!(budget.take(silence, &limits), Ok(()), "{silence} s");
            }
        }
    }
}
