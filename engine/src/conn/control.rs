use crate::config::Limits;
use crate::protocol::ProtocolError;

/// How many control frames a peer may send now: a bucket that fills with time.
#[derive(Clone, Copy, Debug)]
pub struct ControlBudget {
    tokens: u8,
    /// When tokens were last added, modulo 256.
    filled_s: u8,
}

impl ControlBudget {
    /// A full bucket.
    pub fn new(now_s: u32, limits: &Limits) -> Self {
        Self {
            tokens: limits.control_burst_max,
            filled_s: now_s as u8,
        }
    }

    /// Takes a token for a control frame.
    ///
    /// # Errors
    /// [`ProtocolError::ControlTooOften`].
    pub fn take(&mut self, now_s: u32, limits: &Limits) -> Result<(), ProtocolError> {
        let elapsed = (now_s as u8).wrapping_sub(self.filled_s);
        if elapsed > 0 {
            let earned = elapsed.saturating_mul(limits.control_rate_max);
            let tokens = self.tokens.saturating_add(earned);
            self.tokens = tokens.min(limits.control_burst_max);
            self.filled_s = now_s as u8;
        }
        let left = self.tokens.checked_sub(1);
        self.tokens = left.ok_or(ProtocolError::ControlTooOften)?;
        Ok(())
    }
}
