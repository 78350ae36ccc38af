use bytes::Bytes;

use crate::buffer::Pool;
use crate::buffer::SendQueue;
use crate::config::CONTROL_RESERVE;
use crate::protocol::CONTROL_PAYLOAD_LEN_MAX;
use crate::protocol::CloseFrame;
use crate::protocol::FrameHeader;
use crate::protocol::Message;
use crate::protocol::Opcode;

use super::Env;
use super::LocalClose;
use super::Phase;
use super::Sink;
use super::State;

/// What a Close frame may take: kept free for it.
const CLOSE_LEN_MAX: usize = 2 + CONTROL_PAYLOAD_LEN_MAX;

/// What became of a message that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendResult {
    /// It leaves in this turn.
    Sent,
    /// It waits behind output that the peer has not taken; so many bytes wait now.
    Queued(usize),
    /// It was refused, and counted.
    Dropped(DropReason),
    /// The connection is closing or gone.
    Gone,
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropReason {
    /// The output limit leaves no room for it. `on_drain` says when there is room again; a
    /// message that is longer than the limit never fits.
    OutputLimit,
}

/// A connection, as a callback gets it.
#[derive(Debug)]
pub struct Output<'a, D> {
    pub(super) state: &'a mut State,
    pub(super) data: &'a mut D,
    pub(super) env: &'a mut Env,
}

impl<D> Output<'_, D> {
    /// The user's data.
    #[inline]
    pub fn data(&mut self) -> &mut D {
        self.data
    }

    /// Bytes of output that wait.
    pub fn queued_len(&self) -> usize {
        self.state.queued_len()
    }

    /// The agreed subprotocol.
    pub fn subprotocol(&self) -> Option<&str> {
        self.state.subprotocol.as_deref()
    }

    /// Whether the queue has to be flushed before there can be room for such a message.
    #[inline]
    pub fn must_flush(&self, payload_len: usize) -> bool {
        self.state.must_flush(frame_len(payload_len), self.env)
    }

    /// Flushes the queue with `flush`, which says whether the kernel would not take all.
    #[cold]
    pub fn flush(&mut self, flush: impl FnOnce(&mut SendQueue, &mut Pool) -> bool) {
        self.state.flush(self.env, flush);
    }

    /// Queues a message.
    #[inline]
    pub fn send(&mut self, message: Message<'_>) -> SendResult {
        self.state.push_data(message, self.env)
    }

    /// Queues a ping; the payload is cut at 125 bytes.
    pub fn ping(&mut self, payload: &[u8]) -> SendResult {
        if self.state.phase != Phase::Open {
            return SendResult::Gone;
        }
        let payload = &payload[..payload.len().min(CONTROL_PAYLOAD_LEN_MAX)];
        let limit = self.env.limits.output_len_max;
        self.state
            .push_frame(Opcode::Ping, payload, limit, self.env)
    }

    /// Begins the closing handshake.
    pub fn close(&mut self, close: &CloseFrame<'_>) {
        self.state.begin_close(close, self.env);
    }

    /// Gives the connection up, with what is queued.
    pub fn terminate(&mut self) {
        if matches!(self.state.phase, Phase::Open | Phase::CloseSent) {
            self.state.phase = Phase::Closed;
        }
    }
}

/// Bytes of a server's frame with so much payload.
#[inline]
fn frame_len(payload_len: usize) -> usize {
    let header_len = match payload_len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    header_len + payload_len
}

impl State {
    pub(super) fn queued_len(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.len())
    }

    #[inline]
    fn must_flush(&self, frame_len: usize, env: &Env) -> bool {
        let has_queue = !self.blocked && self.queue.is_some();
        has_queue && self.queued_len() + frame_len > env.limits.output_len_max
    }

    fn flush(&mut self, env: &mut Env, flush: impl FnOnce(&mut SendQueue, &mut Pool) -> bool) {
        if let Some(queue) = &mut self.queue {
            self.blocked = flush(queue, &mut env.pool);
            self.drain_owed |= self.blocked;
        }
        self.release_queue(env);
    }

    /// Lets go of an empty queue.
    #[inline]
    pub(super) fn release_queue(&mut self, env: &mut Env) {
        if let Some(queue) = self.queue.take_if(|queue| queue.is_empty()) {
            env.pool.put_queue(queue);
        }
    }

    #[inline]
    pub(super) fn push_data(&mut self, message: Message<'_>, env: &mut Env) -> SendResult {
        if self.phase != Phase::Open {
            return SendResult::Gone;
        }
        let limit = env.limits.output_len_max;
        let result = self.push_frame(message.opcode(), message.payload(), limit, env);
        self.note(result, env)
    }

    /// Queues a whole frame that others hold as well.
    pub(super) fn push_shared(&mut self, frame: Bytes, env: &mut Env) -> SendResult {
        if self.phase != Phase::Open {
            return SendResult::Gone;
        }
        let result = if self.queued_len() + frame.len() > env.limits.output_len_max {
            SendResult::Dropped(DropReason::OutputLimit)
        } else {
            let queue = self.queue.get_or_insert_with(|| env.pool.take_queue());
            queue.push_shared(frame, &mut env.pool);
            self.pushed()
        };
        self.note(result, env)
    }

    /// Queues a ping or a pong, which may use the reserve but for a Close frame's part; says
    /// whether there was room.
    pub(super) fn push_control(&mut self, opcode: Opcode, payload: &[u8], env: &mut Env) -> bool {
        let limit = env.limits.output_len_max + CONTROL_RESERVE - CLOSE_LEN_MAX;
        self.push_frame(opcode, payload, limit, env) != SendResult::Dropped(DropReason::OutputLimit)
    }

    /// Queues a Close frame. There is always room for one.
    pub(super) fn push_close(&mut self, close: &CloseFrame<'_>, env: &mut Env) {
        let limit = env.limits.output_len_max + CONTROL_RESERVE;
        let result = self.push_frame(Opcode::Close, &close.encode(), limit, env);
        debug_assert_ne!(
            result,
            SendResult::Dropped(DropReason::OutputLimit),
            "the reserve holds a Close frame"
        );
    }

    /// Sends a Close frame and waits for the peer's, unless that has been done.
    pub(super) fn begin_close(&mut self, close: &CloseFrame<'_>, env: &mut Env) {
        if self.phase == Phase::Open {
            self.push_close(close, env);
            self.phase = Phase::CloseSent;
            self.close = Some(Box::new(LocalClose {
                code: close.code,
                reason: close.reason.into(),
            }));
        }
    }

    #[inline]
    fn push_frame(
        &mut self,
        opcode: Opcode,
        payload: &[u8],
        limit: usize,
        env: &mut Env,
    ) -> SendResult {
        if self.queued_len() + frame_len(payload.len()) > limit {
            return SendResult::Dropped(DropReason::OutputLimit);
        }
        let header = FrameHeader {
            fin: true,
            rsv1: false,
            opcode,
            payload_len: payload.len() as u64,
            mask_key: None,
        };
        let queue = self.queue.get_or_insert_with(|| env.pool.take_queue());
        queue.push(header.encode().as_bytes(), payload, &mut env.pool);
        self.pushed()
    }

    #[inline]
    fn pushed(&self) -> SendResult {
        if self.blocked {
            SendResult::Queued(self.queued_len())
        } else {
            SendResult::Sent
        }
    }

    /// Counts a message that was refused, and owes the handler a word when there is room.
    #[inline]
    fn note(&mut self, result: SendResult, env: &mut Env) -> SendResult {
        if result == SendResult::Dropped(DropReason::OutputLimit) {
            env.dropped += 1;
            self.drain_owed = true;
        }
        result
    }
}

impl<D> super::Conn<D> {
    /// Queues a message from outside a callback, as a frame that others may hold as well.
    pub fn send_shared(
        &mut self,
        frame: Bytes,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) -> SendResult {
        if self.state.must_flush(frame.len(), env) {
            self.state.flush(env, |queue, pool| sink.flush(queue, pool));
        }
        self.state.push_shared(frame, env)
    }
}
