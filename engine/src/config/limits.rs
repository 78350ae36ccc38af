use std::time::Duration;

use crate::error::ConfigError;
use crate::http1::HEADER_COUNT_MAX;
use crate::timer::TICK;
use crate::timer::TICKS_AHEAD_MAX;

/// Headers of what 64 KiB of messages hold, at 1 KiB each: what is received at once has so much
/// more than a power of two, for its last message to be whole.
pub(crate) const HEADERS_LEN: usize = 512;

/// What a peer may use of this process. Every field has a default that is safe to deploy.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Longest message in bytes; more is answered with 1009. Default 64 KiB.
    pub message_len_max: usize,
    /// How many times as long as it was on the wire a compressed message may become, above
    /// 64 KiB; more is answered with 1009. Zero is no limit. Default 100.
    pub inflate_ratio_max: u32,
    /// Most frames of one message; more is answered with 1008. Default 1,024.
    pub fragment_count_max: u32,
    /// Longest request head in bytes; more is answered with 431, or with 414 where the request line
    /// alone is longer. Default 16 KiB.
    pub head_len_max: usize,
    /// Most headers of a request; more is answered with 431. Default 64, at most 128.
    pub header_count_max: usize,
    /// Most bytes of output that may wait for one connection. A message that does not fit is
    /// refused whole. Pongs and the Close frame have [`CONTROL_RESERVE`] bytes more. Default
    /// 64 KiB and the longest frame header, so that the longest default message can be echoed.
    pub output_len_max: usize,
    /// Output that was held up counts as drained when no more than this waits. Default 16 KiB.
    pub output_low_water: usize,
    /// Bytes of messages that are held for a connection whose reading is paused; then nothing
    /// more is read of it. Default 64 KiB.
    pub hold_len_max: usize,
    /// Most control frames in a second, in the long run; more is answered with 1008.
    /// Default 10.
    pub control_rate_max: u8,
    /// Most control frames at once. Default 20.
    pub control_burst_max: u8,
    /// Most messages in a second, and as many at once; more is answered with 1008. Zero, the
    /// default, is no limit.
    pub message_rate_max: u32,
    /// Most bytes of messages in a second, and as many at once; more is answered with 1008. Zero,
    /// the default, is no limit. No longer message can be received.
    pub byte_rate_max: u64,
    /// How long a connection may be open, whatever it does; then it is closed with 1008. Zero,
    /// the default, is no limit.
    pub lifetime_max: Duration,
    /// Most topics to which a connection can subscribe; further ones are refused
    /// ([`Context::subscribe`](crate::Context::subscribe)). Default 1,024.
    pub subscriptions_max: u32,
    /// Most bytes taken from one connection before the others have their turn.
    /// Default 64 KiB, and 512 bytes for the headers of the messages that these are. Four times as
    /// many, at most 264 KiB, where all of them are payload of one frame that began before and is
    /// neither compressed nor encrypted nor delivered in chunks: no callback is called before its end,
    /// and they take less time than a turn's worth of short messages.
    pub turn_len_max: usize,
    /// From accept to the end of the request head, all of it. Default 10 s.
    pub handshake_timeout: Duration,
    /// Silence after which a ping is sent; zero never sends one. Default 30 s.
    pub ping_interval: Duration,
    /// How long the peer may take to send anything after that ping. Default 10 s.
    pub pong_timeout: Duration,
    /// Silence after which a connection is closed even if no ping was sent; zero never closes.
    /// Default 120 s.
    pub idle_timeout: Duration,
    /// How long the peer may take to answer a Close frame, and to close its side. Default 5 s.
    pub close_timeout: Duration,
    /// How long output may wait without the peer taking any. Default 30 s.
    pub write_timeout: Duration,
}

/// Output beyond the limit that only Close and Pong frames may use.
pub const CONTROL_RESERVE: usize = 1024;

/// Requests of a thread whose answers may be deferred at once, if nothing else is said: each
/// holds its head, 16 KiB at most.
pub const DEFERRED_MAX: usize = 1024;

/// Memory of a thread for output that peers have not taken, if nothing else is said: 256 MiB,
/// four thousand peers that have stopped reading at the default limit.
pub const OUTPUT_BUDGET: usize = 256 << 20;

/// The longest header of a frame (RFC 6455 §5.2).
const FRAME_HEADER_LEN_MAX: usize = 14;

/// The longest time-out on silence that can be set: a day.
const SILENCE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest other time-out: what a deadline can hold.
const TIMEOUT_MAX: Duration = Duration::from_secs(TICKS_AHEAD_MAX as u64);

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_len_max: 64 * 1024,
            inflate_ratio_max: 100,
            fragment_count_max: 1024,
            head_len_max: 16 * 1024,
            header_count_max: 64,
            output_len_max: 64 * 1024 + FRAME_HEADER_LEN_MAX,
            output_low_water: 16 * 1024,
            hold_len_max: 64 * 1024,
            control_rate_max: 10,
            control_burst_max: 20,
            message_rate_max: 0,
            byte_rate_max: 0,
            lifetime_max: Duration::ZERO,
            subscriptions_max: 1024,
            turn_len_max: 64 * 1024 + HEADERS_LEN,
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(30),
            pong_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            close_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// Whether messages are counted.
    pub(crate) fn has_rate(&self) -> bool {
        self.message_rate_max > 0 || self.byte_rate_max > 0
    }

    /// # Errors
    /// The first value that makes no sense, and why.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |good: bool, what| {
            if good {
                Ok(())
            } else {
                Err(ConfigError::Limit(what))
            }
        };
        check(self.message_len_max > 0, "message_len_max is zero")?;
        let fits = self.message_len_max <= u32::MAX as usize;
        check(fits, "message_len_max is over 4 GiB")?;
        check(self.fragment_count_max > 0, "fragment_count_max is zero")?;
        check(self.head_len_max >= 256, "head_len_max is below 256")?;
        check(self.head_len_max <= 1 << 20, "head_len_max is over 1 MiB")?;
        check(self.header_count_max > 0, "header_count_max is zero")?;
        let fits = self.header_count_max <= HEADER_COUNT_MAX;
        check(fits, "header_count_max is over 128")?;
        check(self.output_len_max >= 128, "output_len_max is below 128")?;
        let fits = self.output_low_water < self.output_len_max;
        check(fits, "output_low_water is not below output_len_max")?;
        check(self.control_rate_max > 0, "control_rate_max is zero")?;
        check(self.control_burst_max > 0, "control_burst_max is zero")?;
        check(self.turn_len_max >= 1024, "turn_len_max is below 1 KiB")?;
        for (timeout, may_be_off, what) in [
            (self.handshake_timeout, false, "handshake_timeout"),
            (self.ping_interval, true, "ping_interval"),
            (self.pong_timeout, false, "pong_timeout"),
            (self.idle_timeout, true, "idle_timeout"),
            (self.close_timeout, false, "close_timeout"),
            (self.write_timeout, false, "write_timeout"),
        ] {
            let off = may_be_off && timeout.is_zero();
            let most = if may_be_off { SILENCE_MAX } else { TIMEOUT_MAX };
            if !off && !(TICK..=most).contains(&timeout) {
                return Err(ConfigError::Timeout(what));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_bad_values_are_named() {
        Limits::default().validate().expect("the defaults");
        let check = |change: fn(&mut Limits), want: &str| {
            let mut limits = Limits::default();
            change(&mut limits);
            let error = limits.validate().expect_err(want);
            assert!(error.to_string().contains(want), "{error}");
        };
        check(|l| l.message_len_max = 0, "message_len_max");
        check(|l| l.message_len_max = 5 << 30, "message_len_max");
        check(|l| l.fragment_count_max = 0, "fragment_count_max");
        check(|l| l.head_len_max = 255, "head_len_max");
        check(|l| l.head_len_max = (1 << 20) + 1, "head_len_max");
        check(|l| l.header_count_max = 0, "header_count_max");
        check(|l| l.header_count_max = 129, "header_count_max");
        check(|l| l.output_len_max = 127, "output_len_max");
        check(
            |l| l.output_low_water = l.output_len_max,
            "output_low_water",
        );
        check(|l| l.control_rate_max = 0, "control_rate_max");
        check(|l| l.control_burst_max = 0, "control_burst_max");
        check(|l| l.turn_len_max = 1023, "turn_len_max");
        check(
            |l| l.handshake_timeout = Duration::ZERO,
            "handshake_timeout",
        );
        check(
            |l| l.ping_interval = Duration::from_millis(1),
            "ping_interval",
        );
        check(|l| l.pong_timeout = Duration::ZERO, "pong_timeout");
        check(
            |l| l.idle_timeout = Duration::from_secs(90_000),
            "idle_timeout",
        );
        check(|l| l.close_timeout = Duration::ZERO, "close_timeout");
        check(|l| l.write_timeout = Duration::ZERO, "write_timeout");
        check(
            |l| l.write_timeout = Duration::from_secs(251),
            "write_timeout",
        );
    }
}
