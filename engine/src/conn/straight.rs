//! Messages that leave as they are: the common one, copied behind what waits, and the long one, sent
//! from where it lies.

use std::io::IoSlice;

use arrayvec::ArrayVec;

use crate::protocol::FrameHeader;
use crate::protocol::Message;
use crate::protocol::Role;

use super::Env;
use super::Phase;
use super::SendResult;
use super::State;
use super::output::Frame;
use super::output::frame_len;

/// A message of this length is sent from where it lies: a copy of it would cost more than the
/// call.
pub(super) const DIRECT_LEN_MIN: usize = 64 * 1024;

/// Pieces that are sent together with it.
const SLICES_MAX: usize = 16;

impl State {
    #[inline]
    pub(super) fn push_straight(&mut self, message: Message<'_>, env: &mut Env) -> bool {
        if !self.sends_directly() {
            return false;
        }
        let (opcode, payload) = (message.opcode(), message.payload());
        let Some((header, len)) = FrameHeader::encode_common(opcode, payload.len()) else {
            return false;
        };
        let limit = self.limits(env).output_len_max;
        let pushed = match &mut self.queue {
            Some(queue) => queue.try_push(header, len, payload, limit),
            None if header.len() + payload.len() <= limit => {
                let queue = self.queue.insert(env.pool.take_queue());
                queue.push_first(header, len, payload, &mut env.pool);
                true
            }
            None => false,
        };
        if pushed {
            env.metrics.count_sent(opcode as u8);
        }
        pushed
    }

    /// Whether frames go out as they are, and nothing holds them up.
    #[inline]
    fn sends_directly(&self) -> bool {
        let is_plain = self.role == Role::Server && self.tls.is_none();
        self.phase == Phase::Open && self.sends_straight && !self.blocked && is_plain
    }

    pub(super) fn push_directly(
        &mut self,
        message: Message<'_>,
        env: &mut Env,
        send: impl FnOnce(&[IoSlice<'_>]) -> Option<usize>,
    ) -> Option<SendResult> {
        let (opcode, payload) = (message.opcode(), message.payload());
        // What the kernel leaves of it has to find room.
        let limit = self.limits(env).output_len_max;
        if !self.sends_directly() || frame_len(payload.len(), self.role) > limit {
            return None;
        }
        let header = Frame::whole(opcode, payload).header(None).encode();
        let header = header.as_bytes();
        let mut slices: ArrayVec<IoSlice<'_>, SLICES_MAX> = ArrayVec::new();
        let waiting = self.queue.as_ref().map_or(0, |queue| queue.len());
        if let Some(queue) = &self.queue {
            slices.extend(queue.slices().take(SLICES_MAX - 2));
        }
        if slices.iter().map(|slice| slice.len()).sum::<usize>() < waiting {
            return None;
        }
        slices.push(IoSlice::new(header));
        slices.push(IoSlice::new(payload));
        let sent = send(&slices)?;
        drop(slices);

        env.metrics.bytes_sent.add(sent as u64);
        if let Some(queue) = &mut self.queue {
            queue.consume(sent.min(waiting), &mut env.pool);
        }
        let taken = sent.saturating_sub(waiting);
        let is_rest = taken > 0 && taken < header.len() + payload.len();
        if is_rest {
            let header_taken = taken.min(header.len());
            let (front, back) = (&header[header_taken..], &payload[taken - header_taken..]);
            let queue = self.queue.get_or_insert_with(|| env.pool.take_queue());
            queue.push_rest(front, back, &mut env.pool);
        }
        if is_rest || taken == 0 {
            self.blocked = true;
            self.drain_owed = true;
            env.metrics.backpressure.add(1);
            self.account(env);
        }
        self.release_queue(env);
        // Nothing of it has left: it is a message like any other.
        (taken > 0).then(|| self.pushed(opcode, env))
    }
}
