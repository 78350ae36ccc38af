//! Frames in, messages and control frames out.

use std::mem;

use crate::buffer::Buffer;
use crate::protocol;
use crate::protocol::Event;
use crate::protocol::Message;
use crate::protocol::Opcode;
use crate::protocol::ProtocolError;

use super::Chunk;
use super::Conn;
use super::Env;
use super::Phase;
use super::Sink;

impl<D> Conn<D> {
    /// Takes received bytes, frame by frame, and keeps the beginning of one that is not
    /// complete.
    pub(super) fn receive_frames(
        &mut self,
        input: &mut [u8],
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        let mut rest = input;
        let limits = *self.state.decoder_limits(env);
        // A callback may end it: then nothing behind the message is looked at.
        while matches!(self.state.phase, Phase::Open | Phase::CloseSent) {
            if self.state.phase == Phase::Open {
                match self.decoder.next_whole(&mut rest, &limits) {
                    Ok(Some(message)) => {
                        env.metrics.count_received(message.opcode() as u8);
                        self.deliver_message(message, env, sink);
                        continue;
                    }
                    // Most often the end of what has been received.
                    Ok(None) if rest.is_empty() && !self.decoder.is_in_message() => break,
                    Ok(None) => {}
                    Err(error) => return self.fail(error, env, sink),
                }
            }
            let event = match self.decoder.next(&mut rest, &limits) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => return self.fail(error, env, sink),
            };
            match (self.state.phase, event) {
                (Phase::Open, Event::Message(message)) => {
                    env.metrics.count_received(message.opcode() as u8);
                    self.deliver_message(message, env, sink);
                }
                (Phase::Open, Event::Chunk(chunk)) => {
                    if chunk.end {
                        let opcode = match chunk.text {
                            true => Opcode::Text,
                            false => Opcode::Binary,
                        };
                        env.metrics.count_received(opcode as u8);
                    }
                    if chunk.rsv1 {
                        if let Err(error) = self.receive_deflated(&chunk, env, sink) {
                            return self.fail(error, env, sink);
                        }
                    } else if env.route(self.state.route).route.streaming {
                        self.stream_chunk(&chunk, env, sink);
                    } else {
                        self.receive_chunk(&chunk, env, sink);
                    }
                }
                (Phase::Open, Event::Ping(payload)) => {
                    env.metrics.count_received(Opcode::Ping as u8);
                    if let Err(error) = self.receive_ping(payload, env, sink) {
                        return self.fail(error, env, sink);
                    }
                }
                (Phase::Open, Event::Pong(payload)) => {
                    env.metrics.count_received(Opcode::Pong as u8);
                    // A pong that we have asked for is not counted, however late it comes.
                    let is_owed = self.state.take_pong();
                    if !is_owed && let Err(error) = self.count_control(env) {
                        return self.fail(error, env, sink);
                    }
                    let round_trip = self.state.round_trip(payload, is_owed, env);
                    if let Some(output) = self.output(env) {
                        sink.pong(output, payload, round_trip);
                    }
                }
                // RFC 6455 §1.4: behind a Close frame nothing is sent, and behind the peer's
                // nothing is of interest.
                (_, Event::Close(close)) => {
                    env.metrics.count_received(Opcode::Close as u8);
                    return self.receive_close(&close, env, sink);
                }
                // We have closed: what the peer sent before it knew is not delivered.
                _ => {}
            }
        }
        if !rest.is_empty() && matches!(self.state.phase, Phase::Open | Phase::CloseSent) {
            self.keep(rest, env);
        }
    }

    /// Delivers a whole message.
    #[inline(always)]
    pub(super) fn deliver_message(
        &mut self,
        message: Message<'_>,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        if !self.state.delivers {
            let chunk = Chunk {
                payload: message.payload(),
                text: message.is_text(),
                first: true,
                last: true,
            };
            self.deliver_chunk(chunk, env, sink);
        } else if let Some(output) = self.output(env) {
            sink.message(output, message);
        }
    }

    /// Keeps a piece of a message that is put together.
    pub(super) fn keep_piece(&mut self, piece: &[u8], env: &mut Env) -> &mut Buffer {
        let partial = self
            .partial
            .get_or_insert_with(|| env.partials.pop().unwrap_or_default());
        if partial.message.capacity() == 0 {
            partial.message = env.pool.take();
        }
        env.pool.extend(&mut partial.message, piece);
        &mut partial.message
    }

    /// Puts a message together.
    pub(super) fn receive_chunk(
        &mut self,
        chunk: &protocol::Chunk<'_>,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        let message = self.keep_piece(chunk.payload, env);
        if chunk.end {
            let payload = mem::take(message);
            self.release_partial(env);
            let message = Message::checked(chunk.text, &payload);
            self.deliver_message(message, env, sink);
            env.pool.put(payload);
        }
    }

    fn receive_ping(
        &mut self,
        payload: &[u8],
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) -> Result<(), ProtocolError> {
        self.count_control(env)?;
        if env.route(self.state.route).route.manual_pong {
            if let Some(output) = self.output(env) {
                sink.ping(output, payload);
            }
            return Ok(());
        }
        // RFC 6455 §5.5.3: the pong carries the payload of the ping. Where there is no room,
        // only the most recent ping is answered, when there is.
        let has_room = self.state.push_control(Opcode::Pong, payload, env);
        if !has_room
            || self
                .partial
                .as_ref()
                .is_some_and(|partial| partial.pong.is_some())
        {
            self.partial(env).pong = (!has_room).then(|| payload.to_vec());
        }
        if let Some(output) = self.output(env) {
            sink.ping(output, payload);
        }
        Ok(())
    }

    /// Answers a ping that had to wait for room.
    pub(super) fn send_late_pong(&mut self, env: &mut Env) {
        let Some(partial) = &mut self.partial else {
            return;
        };
        if let Some(payload) = partial.pong.take() {
            let open = self.state.phase == Phase::Open;
            if open && !self.state.push_control(Opcode::Pong, &payload, env) {
                partial.pong = Some(payload);
            }
            self.release_partial(env);
        }
    }

    /// Counts a control frame.
    fn count_control(&mut self, env: &Env) -> Result<(), ProtocolError> {
        let limits = self.state.limits(env);
        self.state.control.take(env.now_s, limits)
    }
}
