use bytes::Bytes;

use crate::buffer::Pool;
use crate::buffer::SendQueue;
use crate::config::CONTROL_RESERVE;
use crate::protocol;
use crate::protocol::CONTROL_PAYLOAD_LEN_MAX;
use crate::protocol::CloseFrame;
use crate::protocol::FrameHeader;
use crate::protocol::Message;
use crate::protocol::Opcode;
use crate::protocol::Role;

use super::Env;
use super::LocalClose;
use super::Phase;
use super::Sink;
use super::State;

/// What a Close frame may take: kept free for it.
const CLOSE_LEN_MAX: usize = 2 + MASK_KEY_LEN + CONTROL_PAYLOAD_LEN_MAX;

/// What a client's frame has besides (RFC 6455 §5.2).
const MASK_KEY_LEN: usize = 4;

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

    /// Which end of the connection this is.
    pub fn role(&self) -> Role {
        self.state.role
    }

    /// What the two ends of a TLS connection have agreed.
    #[cfg(feature = "tls")]
    pub fn tls(&self) -> Option<crate::tls::TlsInfo<'_>> {
        self.state.tls.as_ref().map(|tls| tls.info())
    }

    /// The agreed subprotocol.
    pub fn subprotocol(&self) -> Option<&str> {
        self.state.subprotocol(self.env)
    }

    /// Whether the queue has to be flushed before there can be room for such a message.
    #[inline]
    pub fn must_flush(&self, payload_len: usize) -> bool {
        let frame_len = frame_len(payload_len, self.state.role);
        self.state.must_flush(frame_len, self.env)
    }

    /// Flushes the queue with `flush`, which says whether the kernel would not take all.
    #[cold]
    pub fn flush(&mut self, flush: impl FnMut(&mut SendQueue, &mut Pool) -> bool) {
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
        let limit = self.state.limits(self.env).output_len_max;
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

/// Bytes of a frame with so much payload.
#[inline]
fn frame_len(payload_len: usize, role: Role) -> usize {
    let header_len = match payload_len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    let mask_key_len = match role {
        Role::Server => 0,
        Role::Client => MASK_KEY_LEN,
    };
    header_len + mask_key_len + payload_len
}

impl State {
    /// Bytes of output that wait, as they were queued: what TLS adds is not counted.
    pub(super) fn queued_len(&self) -> usize {
        let plain = self.queue.as_ref().map_or(0, |queue| queue.len());
        match &self.tls {
            None => plain,
            Some(tls) => plain + tls.queued_len(),
        }
    }

    #[inline]
    fn must_flush(&self, frame_len: usize, env: &Env) -> bool {
        let may_help = !self.blocked && (self.queue.is_some() || self.tls.is_some());
        may_help && self.queued_len() + frame_len > self.limits(env).output_len_max
    }

    fn flush(&mut self, env: &mut Env, mut flush: impl FnMut(&mut SendQueue, &mut Pool) -> bool) {
        if self.tls.is_some() {
            return self.flush_sealed(env, flush);
        }
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
        let limit = self.limits(env).output_len_max;
        let result = self.push_frame(message.opcode(), message.payload(), limit, env);
        self.note(result, env)
    }

    /// Queues a whole frame that others hold as well.
    pub(super) fn push_shared(&mut self, frame: Bytes, env: &mut Env) -> SendResult {
        if self.phase != Phase::Open {
            return SendResult::Gone;
        }
        if self.role == Role::Client {
            // What a client sends is masked, so it cannot be shared.
            let Ok(Some((header, len))) = FrameHeader::decode(&frame) else {
                return SendResult::Gone;
            };
            let limit = self.limits(env).output_len_max;
            let result = self.push_frame(header.opcode, &frame[len..], limit, env);
            return self.note(result, env);
        }
        let result = if self.queued_len() + frame.len() > self.limits(env).output_len_max {
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
        let limit = self.limits(env).output_len_max + CONTROL_RESERVE - CLOSE_LEN_MAX;
        self.push_frame(opcode, payload, limit, env) != SendResult::Dropped(DropReason::OutputLimit)
    }

    /// Queues a Close frame. There is always room for one.
    pub(super) fn push_close(&mut self, close: &CloseFrame<'_>, env: &mut Env) {
        let limit = self.limits(env).output_len_max + CONTROL_RESERVE;
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
            self.extra_mut().close = Some(LocalClose {
                code: close.code,
                reason: close.reason.into(),
            });
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
        if self.queued_len() + frame_len(payload.len(), self.role) > limit {
            return SendResult::Dropped(DropReason::OutputLimit);
        }
        // RFC 6455 §5.3: each frame of a client has a new key from a strong source.
        let mask_key = match self.role {
            Role::Server => None,
            Role::Client => Some(env.random.mask_key()),
        };
        let header = FrameHeader {
            fin: true,
            rsv1: false,
            opcode,
            payload_len: payload.len() as u64,
            mask_key,
        };
        let queue = self.queue.get_or_insert_with(|| env.pool.take_queue());
        let payload = queue.push(header.encode().as_bytes(), payload, &mut env.pool);
        if let Some(key) = mask_key {
            protocol::mask(payload, key);
        }
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
        let masked_len = match self.state.role {
            Role::Server => frame.len(),
            Role::Client => frame.len() + MASK_KEY_LEN,
        };
        if self.state.must_flush(masked_len, env) {
            self.state.flush(env, |queue, pool| sink.flush(queue, pool));
        }
        self.state.push_shared(frame, env)
    }
}
