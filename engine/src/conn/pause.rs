//! Messages that are delivered in chunks, or later.

use std::time::Duration;

use crate::protocol;
use crate::protocol::Message;
use crate::protocol::ProtocolError;

use super::Chunk;
use super::Conn;
use super::Env;
use super::Output;
use super::Phase;
use super::Sink;
use super::State;

impl<D> Output<'_, D> {
    /// Delivers no further messages.
    pub fn pause(&mut self) {
        self.state.paused = true;
        self.state.delivers = false;
    }

    /// Delivers messages again, after this call.
    pub fn resume(&mut self) {
        self.state.paused = false;
        self.state.settle_owed = true;
    }
}

impl State {
    /// A ping is queued: the peer owes a pong.
    pub(super) fn note_ping(&mut self) {
        match self.pongs_owed.checked_add(1) {
            Some(owed) => self.pongs_owed = owed,
            None => {
                let owed = &mut self.extra_mut().pongs_owed;
                *owed = owed.saturating_add(1);
            }
        }
    }

    /// A pong has come: whether it was owed. Nothing but their number is kept of pings, so that
    /// a pong that nobody asked for may take the place of one that is owed, which then counts in
    /// its place: never more than come are free of charge than there were pings.
    pub(super) fn take_pong(&mut self) -> bool {
        if let Some(extra) = &mut self.extra
            && extra.pongs_owed > 0
        {
            extra.pongs_owed -= 1;
            return true;
        }
        let left = self.pongs_owed.checked_sub(1);
        self.pongs_owed = left.unwrap_or(0);
        left.is_some()
    }

    /// A pong has come, which was owed or not: how long after its ping.
    pub(super) fn round_trip(
        &mut self,
        payload: &[u8],
        is_owed: bool,
        env: &Env,
    ) -> Option<Duration> {
        let pinged = self.extra.as_mut().and_then(|e| e.pings.take(payload));
        // The engine's own pings carry the time, so that nothing need be kept.
        let own = || env.time_mask.reveal(payload).filter(|_| is_owed);
        let pinged = pinged.or_else(own)?;
        // The peer may have made it up.
        let round_trip = env.now.checked_sub(pinged)?;
        Some(round_trip).filter(|&time| time <= self.limits(env).pong_timeout)
    }
}

impl<D> Conn<D> {
    /// Whether bytes can be taken from the socket.
    #[inline]
    pub fn is_parked(&self) -> bool {
        self.state.parked
    }

    /// Returns `true` if the handler takes no messages now: some may be held.
    pub fn is_paused(&self) -> bool {
        self.state.paused || self.partial.as_ref().is_some_and(|p| !p.held.is_empty())
    }

    /// Delivers a part of a message on a route that asks for it.
    pub(super) fn stream_chunk(
        &mut self,
        chunk: &protocol::Chunk<'_>,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        let first = !self.state.chunk_begun;
        // Nothing is said by a part that neither holds, begins nor ends anything.
        if chunk.payload.is_empty() && !first && !chunk.end {
            return;
        }
        self.state.chunk_begun = !chunk.end;
        let chunk = Chunk {
            payload: chunk.payload,
            text: chunk.text,
            first,
            last: chunk.end,
        };
        self.deliver_chunk(chunk, env, sink);
    }

    /// Delivers a message or a part of one where that is not to go straight to the handler.
    #[cold]
    pub(super) fn deliver_chunk(
        &mut self,
        chunk: Chunk<'_>,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        if let Err(error) = self.count_message(chunk, env) {
            return self.fail(error, env, sink);
        }
        let waits = self.partial.as_ref().is_some_and(|p| !p.held.is_empty());
        if self.state.paused || waits {
            let hold_len_max = self.state.limits(env).hold_len_max;
            let partial = self.partial(env);
            partial.held.push(chunk);
            self.state.parked = partial.held.len() + partial.message.len() >= hold_len_max;
            return;
        }
        let streaming = env.route(self.state.route).route.streaming;
        if let Some(output) = self.output(env) {
            if streaming {
                sink.chunk(output, chunk);
            } else {
                sink.message(output, Message::checked(chunk.text, chunk.payload));
            }
        }
    }

    /// Delivers what was held, until the handler pauses again.
    pub(super) fn deliver_held(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        let streaming = env.route(self.state.route).route.streaming;
        while !self.state.paused && self.state.phase == Phase::Open {
            let Some(part) = self.partial.as_mut().and_then(|p| p.held.pop()) else {
                break;
            };
            if let Some(output) = self.output(env) {
                if streaming {
                    sink.chunk(output, part.chunk());
                } else {
                    sink.message(output, part.message());
                }
            }
        }
        let waits = self.partial.as_ref().is_some_and(|p| !p.held.is_empty());
        let open = self.state.phase == Phase::Open;
        self.state.parked &= waits && open;
        self.state.delivers = self.delivers_straight(env) && !waits && !self.state.paused;
        self.release_partial(env);
    }

    /// Whether the messages of its route go to the handler whole and uncounted.
    pub(super) fn delivers_straight(&self, env: &Env) -> bool {
        let route = &env.route(self.state.route).route;
        !route.streaming && !route.limits.has_rate()
    }

    /// Counts a message, or a part of one, if there is a limit for them.
    fn count_message(&mut self, chunk: Chunk<'_>, env: &Env) -> Result<(), ProtocolError> {
        let limits = self.state.limits(env);
        if !limits.has_rate() {
            return Ok(());
        }
        let rate = &mut self.state.extra_mut().rate;
        rate.refill(env.now, limits);
        rate.take(u64::from(chunk.first), chunk.payload.len() as u64, limits)
    }

    /// What was held comes before the end.
    pub(super) fn end_pause(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        // Also where it has been resumed, and has not come to deliver it.
        while self.state.phase == Phase::Open
            && self.partial.as_ref().is_some_and(|p| !p.held.is_empty())
        {
            self.state.paused = false;
            self.deliver_held(env, sink);
        }
    }
}
