//! Between the backend and the connections: what was received, and what is to be sent.

use std::io;
use std::io::IoSlice;
use std::mem;
use std::ops::Range;
use std::slice;
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::conn::Env;
use crate::conn::HEADROOM;
use crate::reactor;
use crate::reactor::Backend;
use crate::reactor::RecvOp;
use crate::reactor::SLICES_MAX;
use crate::reactor::SendOp;
use crate::reactor::Token;
use crate::slab::Key;

use super::Handler;
use super::RECEIVE_BUFFER_LEN;
use super::RECEIVE_SLOT_LEN;
use super::RECV_BATCH_MAX;
use super::SEND_BATCH;
use super::Slot;
use super::TURN_BATCH_MAX;
use super::Worker;

/// How many times as long as other turns one may be that receives nothing but the payload of one
/// frame: that takes less time than a turn's worth of short messages.
const PAYLOAD_TURNS: usize = 4;

/// How often in a row who sends a long payload is received from again before the others are: enough
/// for a megabyte.
const REPEATS_MAX: u32 = 7;

/// No more of them are begun this long after the first receive: where memory is new to the process a
/// megabyte takes four times as long.
const ROW_TIME_MAX: Duration = Duration::from_micros(500);

/// Where calls are made one by one: who has just received more is received from alone, and called while
/// that is in the nearest cache.
const SHORT_LEN_MAX: usize = 2048;

const CACHE_LINE_LEN: usize = 64;

/// Pieces of output that one call sends.
const BATCH_SLICES_MAX: usize = 4 * SEND_BATCH;

/// Receives from one connection in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    repeats: u32,
    /// The end of its time, once there is more than one.
    end: Duration,
}

impl Row {
    /// With one more, if there may be one now.
    fn extended(self, now: Duration) -> Option<Self> {
        let end = match self.repeats {
            0 => now + ROW_TIME_MAX,
            _ => self.end,
        };
        let repeats = self.repeats + 1;
        (repeats <= REPEATS_MAX && now < end).then_some(Self { repeats, end })
    }
}

/// Most bytes of a receive that is one of several.
pub(super) fn slot_room(env: &Env) -> usize {
    env.limits().turn_len_max.min(RECEIVE_SLOT_LEN)
}

impl<B: Backend, H: Handler> Worker<B, H> {
    /// Receives once for every connection that is ready.
    pub(super) fn receive(&mut self) {
        let mut buffer = mem::take(&mut self.buffer);
        let mut remaining = self.ready.len();
        while remaining > 0 {
            remaining -= self.receive_batch(remaining, &mut buffer);
            self.take_mailbox();
            self.flush();
        }
        self.buffer = buffer;
    }

    /// What a receive gets where several are made before their connections are called.
    fn slot_len(&self) -> usize {
        HEADROOM + slot_room(&self.env)
    }

    /// Receives for the first of the `remaining` ready connections; says how many have had their turn.
    fn receive_batch(&mut self, remaining: usize, buffer: &mut [u8]) -> usize {
        if remaining == 1 {
            return self.receive_one(buffer);
        }
        let Some(together) = self.backend.recv_batch() else {
            return self.receive_in_turn(remaining, buffer);
        };
        let mut batch: ArrayVec<(Key, B::Socket), RECV_BATCH_MAX> = ArrayVec::new();
        let mut taken = 0;
        while taken < together.min(RECV_BATCH_MAX).min(remaining) {
            let Some(&key) = self.ready.front() else {
                break;
            };
            let slot = self.conns.get_mut(key);
            if slot.as_ref().is_some_and(|slot| slot.large) {
                // One that sends much gets the whole buffer for itself.
                if taken == 0 {
                    return self.receive_one(buffer);
                }
                break;
            }
            self.ready.pop_front();
            taken += 1;
            match slot.and_then(Slot::begin_receive) {
                Some(socket) => batch.push((key, socket)),
                None => self.skip_parked(key),
            }
        }
        self.note_waited(batch.len());
        let slot_len = self.slot_len();
        let mut results: ArrayVec<io::Result<usize>, RECV_BATCH_MAX> = ArrayVec::new();
        {
            let mut ops: ArrayVec<RecvOp<'_, B::Socket>, RECV_BATCH_MAX> = ArrayVec::new();
            let slots = buffer.chunks_exact_mut(slot_len).zip(&batch);
            ops.extend(slots.map(|(slot, &(_, socket))| RecvOp {
                socket,
                buffer: &mut slot[HEADROOM..],
                result: Ok(0),
            }));
            debug_assert_eq!(ops.len(), batch.len());
            self.backend.recv_many(&mut ops);
            let take = |op: &mut RecvOp<'_, B::Socket>| mem::replace(&mut op.result, Ok(0));
            results.extend(ops.iter_mut().map(take));
        }
        let slots = buffer.chunks_exact_mut(slot_len);
        for ((slot, &(key, _)), result) in slots.zip(&batch).zip(&mut results) {
            self.handle_received(key, mem::replace(result, Ok(0)), slot);
        }
        taken
    }

    /// Receives for the first of the `remaining` ready connections one by one, each behind the last
    /// one's bytes, and then calls them all; says for how many.
    fn receive_in_turn(&mut self, remaining: usize, buffer: &mut [u8]) -> usize {
        let slot_len = self.slot_len();
        let mut batch: ArrayVec<(Key, usize, io::Result<usize>), TURN_BATCH_MAX> = ArrayVec::new();
        let (mut taken, mut start) = (0, 0);
        while taken < remaining && !batch.is_full() && start + slot_len <= buffer.len() {
            let Some(&key) = self.ready.front() else {
                break;
            };
            let slot = self.conns.get_mut(key);
            if slot.as_ref().is_some_and(|slot| slot.large) {
                // One that sends much gets the whole buffer for itself.
                if taken == 0 {
                    return self.receive_one(buffer);
                }
                break;
            }
            self.ready.pop_front();
            taken += 1;
            let Some(socket) = slot.and_then(Slot::begin_receive) else {
                self.skip_parked(key);
                continue;
            };
            self.note_waited(1);
            let mut op = RecvOp {
                socket,
                buffer: &mut buffer[start + HEADROOM..start + slot_len],
                result: Ok(0),
            };
            self.backend.recv_many(slice::from_mut(&mut op));
            let result = op.result;
            let len = result.as_ref().map_or(0, |len| *len);
            batch.push((key, start, result));
            start += HEADROOM + len.next_multiple_of(CACHE_LINE_LEN);
        }
        for (key, start, result) in batch {
            self.handle_received(key, result, &mut buffer[start..start + slot_len]);
        }
        taken
    }

    /// Receives for the first of the ready connections, into the whole buffer; says how many (it, or
    /// none) have had their turn.
    #[inline]
    fn receive_one(&mut self, buffer: &mut [u8]) -> usize {
        let row = mem::take(&mut self.row);
        let Some(key) = self.ready.pop_front() else {
            return 1;
        };
        let Some(slot) = self.conns.get_mut(key) else {
            return 1;
        };
        let Some(socket) = slot.begin_receive() else {
            self.skip_parked(key);
            return 1;
        };
        let turn_len = self.env.limits().turn_len_max;
        // The rest of a long payload is copied, and no callback is called before its end.
        let rest_len = slot.conn.payload_remaining(&self.env);
        let len_max = turn_len.max(rest_len.min(turn_len.saturating_mul(PAYLOAD_TURNS)));
        self.note_waited(1);
        let len_max = len_max.min(RECEIVE_BUFFER_LEN);
        let slot = &mut buffer[..HEADROOM + len_max];
        let mut op = RecvOp {
            socket,
            buffer: &mut slot[HEADROOM..],
            result: Ok(0),
        };
        self.backend.recv_many(slice::from_mut(&mut op));
        let result = op.result;
        let filled = matches!(result, Ok(len) if len == len_max);
        self.handle_received(key, result, slot);
        if filled
            && self.is_in_long_payload(key, len_max <= rest_len)
            && let Some(row) = row.extended(self.backend.now())
        {
            self.row = row;
            self.ready.rotate_right(1);
            return 0;
        }
        1
    }

    /// Whether the last of the ready connections is this one, which has just been received from
    /// (nothing but payload of one frame, if `is_payload`), in the middle of a long payload. It goes on
    /// before the others then: what it is put to is still in a cache when it ends, and what waits in
    /// the kernel does not grow old.
    fn is_in_long_payload(&self, key: Key, is_payload: bool) -> bool {
        let rest_len = match self.conns.get(key) {
            Some(slot) if self.ready.back() == Some(&key) => slot.conn.payload_remaining(&self.env),
            _ => return false,
        };
        rest_len >= self.env.limits().turn_len_max || (is_payload && rest_len > 0)
    }

    /// So many ready connections have waited for their turn until now.
    #[inline]
    fn note_waited(&self, count: usize) {
        if self.local.timing.is_on() {
            let waited = self.backend.now().saturating_sub(self.now);
            for _ in 0..count {
                self.env.metrics.ready_time.record(waited);
            }
        }
    }

    #[inline]
    pub(super) fn handle_received(
        &mut self,
        key: Key,
        result: io::Result<usize>,
        buffer: &mut [u8],
    ) {
        match result {
            Ok(0) => self.deliver(key, |conn, env, sink| conn.handle_end_of_stream(env, sink)),
            Ok(len) => {
                self.env.metrics.bytes_received.add(len as u64);
                self.deliver(key, |conn, env, sink| conn.receive(buffer, len, env, sink));
                if let Some(slot) = self.conns.get_mut(key) {
                    let filled = len == buffer.len() - HEADROOM;
                    let alone = len > SHORT_LEN_MAX && self.backend.recv_batch().is_none();
                    slot.large = filled || alone;
                    let more = filled || slot.hangup;
                    if more && !mem::replace(&mut slot.ready, true) {
                        self.ready.push_back(key);
                    }
                }
            }
            Err(error) if reactor::would_block(&error) => return self.found_nothing(key),
            Err(error) if reactor::is_exhausted(&error) => return self.receive_again(key),
            Err(error) => return self.lose(key, error),
        }
        self.after(key, true);
    }

    /// A connection that takes nothing now. If its request waits for an answer and its client has
    /// gone, so has the need for one.
    #[cold]
    fn skip_parked(&mut self, key: Key) {
        let has_gone = |slot: &Slot<_, _>| slot.hangup && slot.conn.is_deferred();
        if self.conns.get(key).is_some_and(has_gone) {
            self.deliver(key, |conn, env, sink| conn.handle_end_of_stream(env, sink));
            self.after(key, false);
        }
    }

    /// There was no memory to receive with: nothing is lost, and the next turn tries again.
    #[cold]
    fn receive_again(&mut self, key: Key) {
        self.env.metrics.exhausted.add(1);
        if let Some(slot) = self.conns.get_mut(key) {
            slot.overdue.uncount_look();
            if !mem::replace(&mut slot.ready, true) {
                self.ready.push_back(key);
            }
        }
    }

    /// There was no memory to send with. That there is again nobody announces: the next turn
    /// tries.
    #[cold]
    fn send_again(&mut self, key: Key) {
        self.env.metrics.exhausted.add(1);
        if let Some(slot) = self.conns.get_mut(key)
            && !mem::replace(&mut slot.touched, true)
        {
            self.touched.push(key);
        }
    }

    /// Sends what waits for each connection that was touched: once each.
    #[inline]
    pub(super) fn flush(&mut self) {
        match self.touched[..] {
            [] => {}
            [key] => {
                self.touched.clear();
                self.flush_one(key);
            }
            _ => self.flush_all(),
        }
    }

    fn flush_all(&mut self) {
        let mut touched = mem::take(&mut self.touched);
        if self.backend.recv_batch().is_some() {
            for keys in touched.chunks(SEND_BATCH) {
                self.flush_batch(keys);
            }
        } else {
            for &key in &touched {
                self.flush_one(key);
            }
        }
        // What came meanwhile waits for the next flush.
        touched.clear();
        touched.append(&mut self.touched);
        self.touched = touched;
    }

    fn flush_batch(&mut self, keys: &[Key]) {
        if let &[key] = keys {
            return self.flush_one(key);
        }
        for &key in keys {
            self.prepare_send(key);
        }
        let mut batch: ArrayVec<(Key, B::Socket, Range<usize>), SEND_BATCH> = ArrayVec::new();
        let mut results: ArrayVec<(usize, io::Result<usize>), SEND_BATCH> = ArrayVec::new();
        {
            let mut slices: ArrayVec<IoSlice<'_>, BATCH_SLICES_MAX> = ArrayVec::new();
            for (index, &key) in keys.iter().enumerate() {
                let Some(slot) = self.conns.get(key) else {
                    continue;
                };
                if let Some(queue) = slot.conn.sendable() {
                    // At least one is left for each of the others.
                    let room = slices.remaining_capacity() - (keys.len() - index - 1);
                    let start = slices.len();
                    slices.extend(queue.slices().take(SLICES_MAX.min(room)));
                    batch.push((key, slot.socket, start..slices.len()));
                }
            }
            let mut ops: ArrayVec<SendOp<'_, B::Socket>, SEND_BATCH> = ArrayVec::new();
            ops.extend(batch.iter().map(|(_, socket, range)| SendOp {
                socket: *socket,
                slices: &slices[range.clone()],
                result: Ok(0),
            }));
            self.backend.send_many(&mut ops);
            let take = |op: &mut SendOp<'_, B::Socket>| {
                let result = mem::replace(&mut op.result, Ok(0));
                (op.len(), result)
            };
            results.extend(ops.iter_mut().map(take));
        }
        for (&(key, ..), (len, result)) in batch.iter().zip(&mut results) {
            self.handle_sent(key, *len, mem::replace(result, Ok(0)));
        }
    }

    /// Sends what waits for one connection.
    #[inline]
    fn flush_one(&mut self, key: Key) {
        let Some(slot) = self.conns.get_mut(key) else {
            return;
        };
        let Some(bytes) = slot.conn.only_output() else {
            return self.flush_pieces(key);
        };
        slot.touched = false;
        let len = bytes.len();
        let slices = [IoSlice::new(bytes)];
        let mut op = SendOp {
            socket: slot.socket,
            slices: &slices,
            result: Ok(0),
        };
        self.backend.send_many(slice::from_mut(&mut op));
        let result = op.result;
        if slot.handle_all_sent(&result, &mut self.env) {
            return self.stall.clear(key.index);
        }
        self.handle_sent(key, len, result);
    }

    /// Sends what waits for one connection, in however many pieces.
    fn flush_pieces(&mut self, key: Key) {
        self.prepare_send(key);
        let Some(slot) = self.conns.get(key) else {
            return;
        };
        let (len, result) = {
            let Some(queue) = slot.conn.sendable() else {
                return;
            };
            let mut slices: ArrayVec<IoSlice<'_>, SLICES_MAX> = ArrayVec::new();
            slices.extend(queue.slices().take(SLICES_MAX));
            let mut op = SendOp {
                socket: slot.socket,
                slices: &slices,
                result: Ok(0),
            };
            self.backend.send_many(slice::from_mut(&mut op));
            (op.len(), op.result)
        };
        self.handle_sent(key, len, result);
    }

    /// Makes what waits ready to be sent.
    #[inline]
    fn prepare_send(&mut self, key: Key) {
        if let Some(slot) = self.conns.get_mut(key) {
            slot.touched = false;
            if let Err(error) = slot.conn.seal(&mut self.env) {
                self.lose(key, error);
            }
        }
    }

    #[inline]
    fn handle_sent(&mut self, key: Key, len: usize, result: io::Result<usize>) {
        if let Some(slot) = self.conns.get_mut(key)
            && slot.handle_all_sent(&result, &mut self.env)
        {
            return self.stall.clear(key.index);
        }
        let sent = match result {
            Ok(sent) => sent,
            Err(error) if reactor::would_block(&error) => 0,
            Err(error) if reactor::is_exhausted(&error) => return self.send_again(key),
            Err(error) => return self.lose(key, error),
        };
        let blocked = sent < len;
        self.env.metrics.bytes_sent.add(sent as u64);
        self.env.metrics.backpressure.add(blocked.into());
        self.deliver(key, |conn, env, sink| {
            conn.handle_sent(sent, blocked, env, sink)
        });
        if let Some(slot) = self.conns.get_mut(key) {
            if blocked {
                let armed = mem::replace(&mut slot.writable_armed, true);
                let socket = slot.socket;
                if !mem::replace(&mut slot.blocked, true) {
                    self.blocked.push(key);
                }
                if !armed {
                    self.backend.arm_writable(socket, Token::new(key));
                }
                // Renewed with each byte that the peer takes.
                if sent > 0 || !self.stall.is_set(key.index) {
                    self.set_stall(key);
                }
            } else {
                self.stall.clear(key.index);
            }
        }
        self.after(key, false);
    }
}

impl<S: Copy, D> Slot<S, D> {
    /// What to receive from, if anything may be received now.
    #[inline]
    fn begin_receive(&mut self) -> Option<S> {
        self.ready = false;
        self.parked = self.conn.is_parked();
        (!self.parked).then_some(self.socket)
    }

    /// The common case of a send: the kernel took all there was, and nothing else is to be done.
    #[inline]
    fn handle_all_sent(&mut self, result: &io::Result<usize>, env: &mut Env) -> bool {
        match *result {
            Ok(sent) if !self.parked && self.conn.handle_all_sent(sent, env) => {
                env.metrics.bytes_sent.add(sent as u64);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many more receives there are, each of which takes so long.
    fn repeats(each: Duration) -> usize {
        let mut now = Duration::from_secs(7);
        let mut row = Some(Row::default());
        let mut count = 0;
        while let Some(next) = row.and_then(|row: Row| row.extended(now)) {
            (row, now, count) = (Some(next), now + each, count + 1);
        }
        count
    }

    #[test]
    fn row_ends_by_count_or_time() {
        assert_eq!(repeats(Duration::ZERO), 7);
        assert_eq!(repeats(Duration::from_micros(60)), 7);
        assert_eq!(repeats(Duration::from_micros(249)), 3);
        assert_eq!(repeats(Duration::from_micros(250)), 2);
        assert_eq!(repeats(Duration::from_secs(1)), 1);
    }
}
