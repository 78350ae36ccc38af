use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::Duration;

use crate::buffer::FrameSpan;
use crate::buffer::Pool;
use crate::buffer::Replacement;
use crate::buffer::SendQueue;
use crate::config::CONTROL_RESERVE;
use crate::config::OutputPolicy;
use crate::protocol;
use crate::protocol::CONTROL_PAYLOAD_LEN_MAX;
use crate::protocol::CloseCode;
use crate::protocol::CloseFrame;
use crate::protocol::FrameHeader;
use crate::protocol::Message;
use crate::protocol::Opcode;
use crate::protocol::Role;

use super::Env;
use super::LocalClose;
use super::Phase;
use super::Prepared;
use super::Sink;
use super::Standing;
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
    /// It was refused or given up, as the route's policy wants it, and counted.
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
    /// The thread's budget for output that peers have not taken leaves no room for it.
    OutputBudget,
    /// A message of a [`MessageWriter`](crate::MessageWriter) has not been finished: until it is
    /// no other message can be sent (RFC 6455 §5.4).
    MessageBegun,
}

/// What one message is sent with, in place of what its route says.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendOptions {
    policy: Option<OutputPolicy>,
    compress: Option<bool>,
}

impl SendOptions {
    /// As the route says.
    pub fn new() -> Self {
        Self::default()
    }

    /// What becomes of the message if the output limit leaves no room for it.
    #[must_use]
    pub fn policy(mut self, policy: OutputPolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Whether the message is compressed, whatever its length; only where compression has been
    /// agreed, and where it becomes shorter by it.
    #[cfg(feature = "deflate")]
    #[must_use]
    pub fn compress(mut self, compress: bool) -> Self {
        self.compress = Some(compress);
        self
    }

    pub(super) fn compresses(&self) -> Option<bool> {
        self.compress
    }
}

/// Messages of a connection that were given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// So many.
    pub messages: u32,
    /// Their bytes, headers included.
    pub bytes: u64,
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

    /// Queues a message where nothing stands in the way, and there is memory for it: says whether.
    /// [`send`](Self::send) would do the same.
    #[inline]
    pub fn send_straight(&mut self, message: Message<'_>) -> bool {
        self.state.push_straight(message, self.env)
    }

    /// Whether a message is so long that it is better sent from where it lies.
    pub fn is_sent_directly(&self, payload_len: usize) -> bool {
        payload_len >= super::straight::DIRECT_LEN_MIN
    }

    /// Sends what waits, and a message from where it lies, with `send`, which says how much the
    /// kernel has taken; the rest waits. None if the message has to be queued whole.
    pub fn send_directly(
        &mut self,
        message: Message<'_>,
        send: impl FnOnce(&[IoSlice<'_>]) -> Option<usize>,
    ) -> Option<SendResult> {
        self.state.push_directly(message, self.env, send)
    }

    /// Queues a message.
    #[inline]
    pub fn send(&mut self, message: Message<'_>) -> SendResult {
        self.state.push_data(message, self.env)
    }

    /// Takes the thread's memory to encode a message in, for [`put_scratch`](Self::put_scratch).
    #[cfg(feature = "json")]
    pub fn take_scratch(&mut self) -> Vec<u8> {
        self.env.take_scratch()
    }

    /// Takes it back.
    #[cfg(feature = "json")]
    pub fn put_scratch(&mut self, scratch: Vec<u8>) {
        self.env.scratch = scratch;
    }

    /// Queues a message with a policy of its own.
    pub fn send_with(&mut self, message: Message<'_>, options: &SendOptions) -> SendResult {
        let outgoing = Outgoing::Copied(message.opcode(), message.payload());
        self.state.push_with(outgoing, options, true, self.env)
    }

    /// Queues a message that others may get as well.
    pub fn send_prepared(&mut self, prepared: &Prepared, options: &SendOptions) -> SendResult {
        let outgoing = Outgoing::Shared(prepared);
        self.state.push_with(outgoing, options, true, self.env)
    }

    /// The next message is not queued as it comes: something has to come before it.
    pub fn hold_straight(&mut self) {
        self.state.sends_straight = false;
    }

    /// Nothing has to come before the next message any more.
    pub fn renew_straight(&mut self) {
        self.state.set_sends_straight(self.env);
    }

    /// Queues a message that was published: what is given up of it is reported by `on_dropped`.
    pub fn send_published(&mut self, prepared: &Prepared, options: &SendOptions) -> SendResult {
        let outgoing = Outgoing::Shared(prepared);
        self.state.push_with(outgoing, options, false, self.env)
    }

    /// Queues a ping; the payload is cut at 125 bytes.
    pub fn ping(&mut self, payload: &[u8]) -> SendResult {
        if self.state.phase != Phase::Open {
            return SendResult::Gone;
        }
        let payload = &payload[..payload.len().min(CONTROL_PAYLOAD_LEN_MAX)];
        let limit = self.state.limits(self.env).output_len_max;
        let result = self
            .state
            .push_frame(Frame::whole(Opcode::Ping, payload), limit, self.env);
        if matches!(result, SendResult::Dropped(_)) {
            self.env.metrics.messages_refused.add(1);
            self.state.drain_owed = true;
        } else {
            let now = self.env.now;
            self.state.note_ping();
            self.state.extra_mut().pings.push(payload, now);
        }
        result
    }

    /// Topics to which it can subscribe.
    pub fn subscriptions_max(&self) -> usize {
        self.state.limits(self.env).subscriptions_max as usize
    }

    /// Whether messages could ever be sent.
    pub fn was_open(&self) -> bool {
        self.state.was_open
    }

    /// Whether messages can be sent.
    pub fn is_open(&self) -> bool {
        self.state.phase == Phase::Open
    }

    /// For whom a proxy has made it.
    pub fn client(&self) -> Option<SocketAddr> {
        self.state.extra.as_ref().and_then(|extra| extra.client)
    }

    /// The pattern of its route.
    pub fn route(&self) -> Option<&str> {
        self.env.route(self.state.route).route.pattern()
    }

    /// How long it may be open before it has proven who it is, and whatever it does.
    pub fn deadlines(&self) -> [Option<Duration>; 2] {
        let route = &self.env.route(self.state.route).route;
        let lifetime = Some(route.limits.lifetime_max).filter(|max| !max.is_zero());
        // Servers do not prove anything.
        let promote = route
            .promote_timeout
            .filter(|_| self.state.role == Role::Server);
        [promote, lifetime]
    }

    /// It has proven who it is.
    pub fn promote(&mut self) {
        self.state.standing = Standing::Promoted;
    }

    /// Queues a pong; the payload is cut at 125 bytes.
    pub fn pong(&mut self, payload: &[u8]) -> SendResult {
        if self.state.phase != Phase::Open {
            return SendResult::Gone;
        }
        let payload = &payload[..payload.len().min(CONTROL_PAYLOAD_LEN_MAX)];
        let limit = self.state.limits(self.env).output_len_max + CONTROL_RESERVE - CLOSE_LEN_MAX;
        self.state
            .push_frame(Frame::whole(Opcode::Pong, payload), limit, self.env)
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
pub(super) fn frame_len(payload_len: usize, role: Role) -> usize {
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

    pub(super) fn flush(
        &mut self,
        env: &mut Env,
        mut flush: impl FnMut(&mut SendQueue, &mut Pool) -> bool,
    ) {
        if self.tls.is_some() {
            self.flush_sealed(env, flush);
        } else if let Some(queue) = &mut self.queue {
            self.blocked = env.count_flush(queue, &mut flush);
            self.drain_owed |= self.blocked;
        }
        if self.blocked || self.held_len > 0 {
            self.account(env);
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

    #[inline(never)]
    pub(super) fn push_data(&mut self, message: Message<'_>, env: &mut Env) -> SendResult {
        let (opcode, payload) = (message.opcode(), message.payload());
        if self.phase != Phase::Open || !self.sends_straight {
            let options = SendOptions::new();
            return self.push_with(Outgoing::Copied(opcode, payload), &options, true, env);
        }
        let limit = self.limits(env).output_len_max;
        let result = self.push_frame(Frame::whole(opcode, payload), limit, env);
        if matches!(result, SendResult::Dropped(_)) {
            let policy = env.route(self.route).route.output_policy;
            return self.overflow(Outgoing::Copied(opcode, payload), policy, true, env);
        }
        result
    }

    /// Queues a message with options of its own; `told` if somebody hears of the result.
    #[inline(never)]
    pub(super) fn push_with(
        &mut self,
        outgoing: Outgoing<'_>,
        options: &SendOptions,
        told: bool,
        env: &mut Env,
    ) -> SendResult {
        if self.phase != Phase::Open {
            return SendResult::Gone;
        }
        if self.message_begun() {
            if told {
                env.metrics.messages_refused.add(1);
            } else {
                self.note_drop(1, outgoing.frame_len(self.role), env);
            }
            return SendResult::Dropped(DropReason::MessageBegun);
        }
        let route = &env.route(self.route).route;
        let policy = options.policy.unwrap_or(route.output_policy);
        let len = outgoing.message().1.len();
        if self.deflate.is_on() && self.wants_deflated(len, options, env) {
            return self.push_deflated(outgoing, policy, told, env);
        }
        self.push_as(outgoing, policy, told, env)
    }

    /// Queues a message as it is.
    pub(super) fn push_as(
        &mut self,
        outgoing: Outgoing<'_>,
        policy: OutputPolicy,
        told: bool,
        env: &mut Env,
    ) -> SendResult {
        let key = match policy {
            OutputPolicy::Conflate(key) => Some(key),
            _ => None,
        };
        if let Some(key) = key
            && let Some(result) = self.replace(outgoing, key, env)
        {
            return result;
        }
        let limit = self.limits(env).output_len_max;
        let result = self.push_outgoing(outgoing, key, limit, env);
        if matches!(result, SendResult::Dropped(_)) {
            return self.overflow(outgoing, policy, told, env);
        }
        result
    }

    /// Puts a message in the place of the one that waits under the same key.
    fn replace(&mut self, outgoing: Outgoing<'_>, key: u64, env: &mut Env) -> Option<SendResult> {
        let old_len = self.queue.as_ref()?.keyed_len(key)?;
        let new_len = outgoing.frame_len(self.role);
        let limit = self.limits(env).output_len_max;
        if self.queued_len() - old_len + new_len > limit {
            return None;
        }
        let mask_key = self.mask_key(env);
        let queue = self.queue.as_mut()?;
        match outgoing {
            Outgoing::Shared(prepared) if mask_key.is_none() => {
                queue.replace(key, Replacement::Shared(prepared.to_frame()), &mut env.pool);
            }
            _ => {
                let frame = outgoing.frame();
                let header = frame.header(mask_key).encode();
                let frame = Replacement::Copied(header.as_bytes(), frame.payload);
                let payload = queue.replace(key, frame, &mut env.pool);
                if let Some(mask_key) = mask_key {
                    protocol::mask(payload, mask_key);
                }
            }
        }
        self.note_drop(1, old_len, env);
        Some(self.pushed(outgoing.message().0, env))
    }

    fn push_outgoing(
        &mut self,
        outgoing: Outgoing<'_>,
        key: Option<u64>,
        limit: usize,
        env: &mut Env,
    ) -> SendResult {
        let prepared = match outgoing {
            Outgoing::Shared(prepared) if self.role == Role::Server => prepared,
            // What a client sends is masked, so it cannot be shared.
            _ => {
                let frame = outgoing.frame();
                return match key {
                    Some(key) => self.push_keyed(key, frame, limit, env),
                    None => self.push_frame(frame, limit, env),
                };
            }
        };
        if let Some(reason) = self.no_room(prepared.frame_len(), limit, env) {
            return SendResult::Dropped(reason);
        }
        let queue = self.queue.get_or_insert_with(|| env.pool.take_queue());
        match key {
            Some(key) => queue.push_shared_keyed(key, prepared.to_frame()),
            None => prepared.push_to(queue, &mut env.pool),
        }
        self.pushed(prepared.opcode(), env)
    }

    fn push_keyed(
        &mut self,
        key: u64,
        frame: Frame<'_>,
        limit: usize,
        env: &mut Env,
    ) -> SendResult {
        let len = frame_len(frame.payload.len(), self.role);
        if let Some(reason) = self.no_room(len, limit, env) {
            return SendResult::Dropped(reason);
        }
        self.append(frame, Some(key), env)
    }

    /// What the policy wants done with a message that has no room.
    #[cold]
    fn overflow(
        &mut self,
        outgoing: Outgoing<'_>,
        policy: OutputPolicy,
        told: bool,
        env: &mut Env,
    ) -> SendResult {
        let len = outgoing.frame_len(self.role);
        let limit = self.limits(env).output_len_max;
        if policy == OutputPolicy::DropOldest && len <= limit {
            let over = (self.queued_len() + len).saturating_sub(limit);
            // Where it is the thread that has no room, at least its own length.
            let keeps_deflated = self.deflate.keeps_order();
            self.remove_oldest(if over == 0 { len } else { over }, keeps_deflated, env);
            let result = self.push_outgoing(outgoing, None, limit, env);
            if !matches!(result, SendResult::Dropped(_)) {
                return result;
            }
        }
        let reason = self
            .no_room(len, limit, env)
            .unwrap_or(DropReason::OutputLimit);
        self.drain_owed = true;
        if policy == OutputPolicy::Refuse && told {
            env.metrics.messages_refused.add(1);
        } else {
            self.note_drop(1, len, env);
        }
        if policy == OutputPolicy::Close {
            let frame = CloseFrame::new(CloseCode::TRY_AGAIN_LATER, "output limit");
            self.begin_close(&frame, env);
        }
        SendResult::Dropped(reason)
    }

    /// Gives up whole messages that wait, the oldest first, compressed ones or not.
    fn remove_oldest(&mut self, wanted: usize, keeps_deflated: bool, env: &mut Env) {
        if let Some(queue) = &mut self.queue {
            let span = |bytes: &[u8]| span(bytes, keeps_deflated);
            let removed = queue.remove_oldest(wanted, span, &mut env.pool);
            self.note_drop(removed.messages, removed.bytes, env);
            self.release_queue(env);
            self.account(env);
        }
    }

    /// Gives up what waits for the sake of the others: the connection is closed (1013). One that is
    /// closing, and has nothing more to give up, ends at once.
    pub(super) fn evict(&mut self, env: &mut Env) {
        let queued_len = self.queued_len();
        if matches!(self.phase, Phase::Open | Phase::CloseSent) {
            // Nothing that would refer to what is given up is sent behind it.
            self.remove_oldest(usize::MAX, false, env);
        }
        if self.phase != Phase::Open && self.queued_len() == queued_len {
            // Neither are answers that their clients do not read.
            self.phase = Phase::Closed;
            return;
        }
        if let Some(queue) = &mut self.queue {
            queue.compact(&mut env.pool);
        }
        if let Some(tls) = &mut self.tls {
            tls.compact(&mut env.pool);
        }
        let frame = CloseFrame::new(CloseCode::TRY_AGAIN_LATER, "out of memory for output");
        self.begin_close(&frame, env);
        self.account(env);
    }

    /// Counts messages that were given up, for `on_dropped`.
    fn note_drop(&mut self, messages: u32, bytes: usize, env: &mut Env) {
        if messages > 0 {
            env.metrics.messages_dropped.add(messages.into());
            self.settle_owed = true;
            let dropped = &mut self.extra_mut().dropped;
            dropped.messages = dropped.messages.saturating_add(messages);
            dropped.bytes += bytes as u64;
        }
    }

    /// Queues a ping or a pong, which may use the reserve but for a Close frame's part; says
    /// whether there was room.
    pub(super) fn push_control(&mut self, opcode: Opcode, payload: &[u8], env: &mut Env) -> bool {
        let limit = self.limits(env).output_len_max + CONTROL_RESERVE - CLOSE_LEN_MAX;
        !matches!(
            self.push_frame(Frame::whole(opcode, payload), limit, env),
            SendResult::Dropped(_)
        )
    }

    /// Queues a Close frame. There is always room for one.
    pub(super) fn push_close(&mut self, close: &CloseFrame<'_>, env: &mut Env) {
        let limit = self.limits(env).output_len_max + CONTROL_RESERVE;
        let payload = close.encode();
        let result = self.push_frame(Frame::whole(Opcode::Close, &payload), limit, env);
        let dropped = matches!(result, SendResult::Dropped(_));
        debug_assert!(!dropped, "the reserve holds a Close frame");
    }

    /// Sends a Close frame and waits for the peer's, unless that has been done.
    pub(super) fn begin_close(&mut self, close: &CloseFrame<'_>, env: &mut Env) {
        if self.phase == Phase::Open {
            self.push_close(close, env);
            self.phase = Phase::CloseSent;
            // The peer's answer has to be read.
            self.parked = false;
            self.extra_mut().close = Some(LocalClose {
                code: close.code,
                reason: close.reason.into(),
            });
        }
    }

    #[inline]
    fn push_frame(&mut self, frame: Frame<'_>, limit: usize, env: &mut Env) -> SendResult {
        let len = frame_len(frame.payload.len(), self.role);
        if let Some(reason) = self.no_room(len, limit, env) {
            return SendResult::Dropped(reason);
        }
        self.append(frame, None, env)
    }

    /// Queues a fragment, for which the caller has made sure that there is room.
    pub(super) fn push_fragment(
        &mut self,
        fin: bool,
        opcode: Opcode,
        payload: &[u8],
        env: &mut Env,
    ) {
        let frame = Frame {
            fin,
            ..Frame::whole(opcode, payload)
        };
        self.append(frame, None, env);
    }

    /// Queues a frame, under a key if it may be replaced.
    #[inline]
    fn append(&mut self, frame: Frame<'_>, key: Option<u64>, env: &mut Env) -> SendResult {
        let mask_key = self.mask_key(env);
        let header = frame.header(mask_key).encode();
        let payload = frame.payload;
        let queue = self.queue.get_or_insert_with(|| env.pool.take_queue());
        let payload = match key {
            Some(key) => queue.push_keyed(key, header.as_bytes(), payload, &mut env.pool),
            None => queue.push(header.as_bytes(), payload, &mut env.pool),
        };
        if let Some(mask_key) = mask_key {
            protocol::mask(payload, mask_key);
        }
        self.pushed(frame.opcode, env)
    }

    /// Whether there is room for a frame of so many bytes.
    pub(super) fn has_room(&self, len: usize, env: &Env) -> bool {
        let limit = self.limits(env).output_len_max;
        self.no_room(len, limit, env).is_none()
    }

    /// Why there is no room for so many more bytes, if there is none.
    #[inline]
    fn no_room(&self, len: usize, limit: usize, env: &Env) -> Option<DropReason> {
        if self.queued_len() + len > limit {
            return Some(DropReason::OutputLimit);
        }
        // Control frames have a reserve, as for the connection's own limit.
        let is_control = limit > self.limits(env).output_len_max;
        if self.blocked && env.held_len + len > env.held_len_max && !is_control {
            return Some(DropReason::OutputBudget);
        }
        None
    }

    /// RFC 6455 §5.3: each frame of a client has a new key from a strong source.
    #[inline]
    fn mask_key(&self, env: &mut Env) -> Option<[u8; 4]> {
        match self.role {
            Role::Server => None,
            Role::Client => Some(env.random.mask_key()),
        }
    }

    #[inline]
    pub(super) fn pushed(&mut self, opcode: Opcode, env: &mut Env) -> SendResult {
        env.metrics.count_sent(opcode as u8);
        if self.blocked {
            self.account(env);
            SendResult::Queued(self.queued_len())
        } else {
            SendResult::Sent
        }
    }

    /// Counts what a blocked connection holds, of the thread's budget.
    #[cold]
    pub(super) fn account(&mut self, env: &mut Env) {
        let held = if self.blocked {
            let sealed = self.tls.as_ref().map_or(0, |tls| tls.held_len());
            sealed + self.queue.as_ref().map_or(0, |queue| queue.held_len())
        } else {
            0
        };
        env.held_len = env.held_len - self.held_len as usize + held;
        self.held_len = u32::try_from(held).unwrap_or(u32::MAX);
    }
}

/// A frame on its way out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    fin: bool,
    rsv1: bool,
    opcode: Opcode,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// A message that is not compressed, or a control frame.
    #[inline]
    pub(super) fn whole(opcode: Opcode, payload: &'a [u8]) -> Self {
        Self {
            fin: true,
            rsv1: false,
            opcode,
            payload,
        }
    }

    #[inline]
    pub(super) fn header(&self, mask_key: Option<[u8; 4]>) -> FrameHeader {
        FrameHeader {
            fin: self.fin,
            rsv1: self.rsv1,
            opcode: self.opcode,
            payload_len: self.payload.len() as u64,
            mask_key,
        }
    }
}

/// The frame at the beginning of some output; no message that can be given up if it is
/// compressed and those are kept.
fn span(bytes: &[u8], keeps_deflated: bool) -> FrameSpan {
    match FrameHeader::decode(bytes) {
        Ok(Some((header, len))) => FrameSpan {
            len: len + header.payload_len as usize,
            is_message: header.fin
                && matches!(header.opcode, Opcode::Text | Opcode::Binary)
                && !(header.rsv1 && keeps_deflated),
        },
        _ => unreachable!("output is frames that were encoded here"),
    }
}

/// A message on its way out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outgoing<'a> {
    Copied(Opcode, &'a [u8]),
    /// Its payload is compressed.
    Deflated(Opcode, &'a [u8]),
    Shared(&'a Prepared),
}

impl<'a> Outgoing<'a> {
    pub(super) fn message(&self) -> (Opcode, &'a [u8]) {
        match *self {
            Self::Copied(opcode, payload) | Self::Deflated(opcode, payload) => (opcode, payload),
            Self::Shared(prepared) => (prepared.opcode(), prepared.payload()),
        }
    }

    fn frame(&self) -> Frame<'a> {
        let (opcode, payload) = self.message();
        let rsv1 = match *self {
            Self::Copied(..) => false,
            Self::Deflated(..) => true,
            Self::Shared(prepared) => prepared.is_deflated(),
        };
        Frame {
            rsv1,
            ..Frame::whole(opcode, payload)
        }
    }

    pub(super) fn frame_len(&self, role: Role) -> usize {
        frame_len(self.message().1.len(), role)
    }
}

impl<D> super::Conn<D> {
    /// Queues a message from outside a callback, of whose result nobody hears.
    pub fn send_prepared(
        &mut self,
        prepared: &Prepared,
        options: &SendOptions,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) -> SendResult {
        let outgoing = Outgoing::Shared(prepared);
        if self
            .state
            .must_flush(outgoing.frame_len(self.state.role), env)
        {
            self.state.flush(env, |queue, pool| sink.flush(queue, pool));
        }
        self.state.push_with(outgoing, options, false, env)
    }

    /// Gives up what waits for the sake of the others.
    pub fn evict(&mut self, env: &mut Env) {
        self.state.evict(env);
    }

    /// Memory that is held for output which the peer has not taken.
    pub fn held_len(&self) -> usize {
        self.state.held_len as usize
    }
}
