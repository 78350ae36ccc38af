//! Compressed messages (permessage-deflate, RFC 7692), in and out.

use std::mem;

use crate::buffer::Buffer;
use crate::config::Compression;
use crate::config::OutputPolicy;
use crate::deflate::Bounds;
use crate::deflate::Codec;
use crate::deflate::Deflater;
use crate::deflate::Inflater;
use crate::protocol;
use crate::protocol::Message;
use crate::protocol::ProtocolError;
use crate::protocol::Role;
use crate::protocol::handshake::DeflateParams;
use crate::protocol::handshake::UpgradeRequest;

use super::Conn;
use super::Env;
use super::Phase;
use super::SendOptions;
use super::SendResult;
use super::Sink;
use super::State;
use super::output::Outgoing;

/// What the two ends have agreed; nothing at first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Agreement {
    /// The window that the peer keeps of what it receives, as a power of two; zero if nothing is
    /// compressed.
    send_bits: u8,
    /// [`SENDS`](Self::SENDS) and [`RECEIVES`](Self::RECEIVES).
    takeover: u8,
}

/// What a connection with context takeover keeps. Made with its first compressed message.
#[derive(Debug)]
pub(super) struct Takeover {
    /// What is counted for it in the thread's [`Env::takeover_len`].
    len: usize,
    receive_bits: u8,
    mem: u8,
    inflater: Option<Box<Inflater>>,
    deflater: Option<Box<Deflater>>,
}

impl Agreement {
    /// Sent messages may refer to earlier ones.
    const SENDS: u8 = 1;
    /// Received messages may refer to earlier ones.
    const RECEIVES: u8 = 2;

    pub(super) fn is_on(self) -> bool {
        self.send_bits > 0
    }

    /// What has been compressed must not be given up: what is sent behind it refers to it.
    pub(super) fn keeps_order(self) -> bool {
        self.sends_takeover()
    }

    fn sends_takeover(self) -> bool {
        self.takeover & Self::SENDS != 0
    }

    fn receives_takeover(self) -> bool {
        self.takeover & Self::RECEIVES != 0
    }
}

/// What has been agreed, by what is sent and what is received.
#[derive(Clone, Copy, Debug)]
pub struct Directions {
    /// Sent messages may refer to earlier ones.
    pub send_takeover: bool,
    /// The peer's window, as a power of two.
    pub send_bits: u8,
    /// Received messages may refer to earlier ones.
    pub receive_takeover: bool,
    /// This end's window.
    pub receive_bits: u8,
}

impl Directions {
    /// For an endpoint of this role, which refers to messages before where it may if `takes_over`.
    pub fn new(params: &DeflateParams, role: Role, takes_over: bool) -> Self {
        let server = (
            !params.server_no_context_takeover,
            params.server_max_window_bits,
        );
        let client = (
            !params.client_no_context_takeover,
            params.client_max_window_bits,
        );
        let (send, receive) = match role {
            Role::Server => (server, client),
            Role::Client => (client, server),
        };
        Self {
            // There is no compressor for a window of 8 bits.
            send_takeover: takes_over && send.0 && send.1 > 8,
            send_bits: send.1,
            receive_takeover: receive.0,
            receive_bits: receive.1,
        }
    }

    /// Bytes that a connection keeps.
    fn memory_len(&self, mem: u8) -> usize {
        let send = match self.send_takeover {
            true => Deflater::memory_len(self.send_bits, mem),
            false => 0,
        };
        let receive = match self.receive_takeover {
            true => Inflater::MEMORY_LEN,
            false => 0,
        };
        send + receive
    }
}

impl Env {
    /// What compresses and inflates where a message stands by itself.
    pub(super) fn codec(&mut self) -> &mut Codec {
        let random = &mut self.random;
        self.codec
            .get_or_insert_with(|| Box::new(Codec::new(random.nonce())))
    }

    /// Whether context takeover may take so much more.
    fn has_takeover_room(&self, len: usize) -> bool {
        self.takeover_len.saturating_add(len) <= self.takeover_len_max
    }

    /// What an outgoing connection offers that wants this.
    pub fn offer_deflate(&self, wanted: Compression) -> Option<DeflateParams> {
        let mut params = self.wanted(0, wanted, Role::Client)?;
        let directions = Directions::new(&params, Role::Client, true);
        if !self.has_takeover_room(directions.memory_len(wanted.mem())) {
            params = Compression::Shared.params()?;
        }
        Some(params)
    }

    /// What an endpoint wants of a route.
    fn wanted(&self, route: u16, mode: Compression, role: Role) -> Option<DeflateParams> {
        let mut params = mode.params()?;
        // Where messages that wait may be given up, none refers to another.
        let policy = self.route(route).route.output_policy;
        let gives_up = matches!(policy, OutputPolicy::DropOldest | OutputPolicy::Conflate(_));
        match role {
            Role::Server => params.server_no_context_takeover |= gives_up,
            Role::Client => params.client_no_context_takeover |= gives_up,
        }
        Some(params)
    }
}

impl State {
    /// Agrees to what a client offers, as its route says; gives the value of the answer's
    /// `Sec-WebSocket-Extensions`.
    pub(super) fn accept_deflate(
        &mut self,
        request: &UpgradeRequest<'_>,
        env: &mut Env,
    ) -> Option<String> {
        let settings = &env.route(self.route).route.compression;
        settings.params_for(request.request())?;
        let mode = settings.mode;
        let wanted = env.wanted(self.route, mode, Role::Server)?;
        let (mut agreed, mut answer) = wanted.accept(request.extensions())?;
        let needed = Directions::new(&agreed, Role::Server, true).memory_len(mode.mem());
        if needed > 0 && !env.has_takeover_room(needed) {
            let shared = Compression::Shared.params()?;
            (agreed, answer) = shared.accept(request.extensions())?;
        }
        self.set_deflate(&agreed, mode, env);
        Some(answer)
    }

    /// Compression has been agreed.
    pub(super) fn set_deflate(&mut self, params: &DeflateParams, mode: Compression, env: &mut Env) {
        let wanted = env.wanted(self.route, mode, self.role);
        let takes_over = match self.role {
            Role::Server => true,
            Role::Client => wanted.is_some_and(|wanted| !wanted.client_no_context_takeover),
        };
        let mut directions = Directions::new(params, self.role, takes_over);
        let mem = mode.mem();
        if self.role == Role::Client && !env.has_takeover_room(directions.memory_len(mem)) {
            // Others have opened since it was offered. A client need not use what it may.
            directions.send_takeover = false;
        }
        self.deflate = Agreement {
            send_bits: directions.send_bits,
            takeover: u8::from(directions.send_takeover) * Agreement::SENDS
                + u8::from(directions.receive_takeover) * Agreement::RECEIVES,
        };
        self.decoder_index = decoder_index(self.role, true);
        let len = directions.memory_len(mem);
        if len > 0 {
            env.takeover_len += len;
            self.extra_mut().takeover = Some(Box::new(Takeover {
                len,
                receive_bits: directions.receive_bits,
                mem,
                inflater: None,
                deflater: None,
            }));
        }
    }

    /// Lets go of what is kept for context takeover.
    pub(super) fn release_deflate(&mut self, env: &mut Env) {
        let extra = self.extra.as_mut();
        if let Some(takeover) = extra.and_then(|extra| extra.takeover.take()) {
            env.takeover_len -= takeover.len;
        }
    }

    fn takeover(&mut self) -> Option<&mut Takeover> {
        self.extra.as_mut()?.takeover.as_deref_mut()
    }

    /// Whether a message of this length is to be compressed.
    pub(super) fn wants_deflated(&self, len: usize, options: &SendOptions, env: &Env) -> bool {
        let settings = &env.route(self.route).route.compression;
        options
            .compresses()
            .unwrap_or(len >= settings.len_min(self.deflate.sends_takeover()))
    }

    /// Queues a message compressed, if it becomes shorter by it.
    #[inline(never)]
    pub(super) fn push_deflated(
        &mut self,
        outgoing: Outgoing<'_>,
        policy: OutputPolicy,
        told: bool,
        env: &mut Env,
    ) -> SendResult {
        if self.deflate.sends_takeover() {
            // What has been compressed has to be sent, and to stay.
            let keyed = matches!(policy, OutputPolicy::Conflate(_));
            if keyed || !self.has_room(outgoing.frame_len(self.role), env) {
                return self.push_as(outgoing, policy, told, env);
            }
        }
        let level = env.route(self.route).route.compression.level;
        let bits = self.deflate.send_bits;
        if let Outgoing::Shared(prepared) = outgoing {
            let Some(deflated) = prepared.deflated(level, bits, env.codec()) else {
                return self.push_as(outgoing, policy, told, env);
            };
            // The peer keeps something else than this end's window.
            if let Some(deflater) = self.takeover().and_then(|t| t.deflater.as_mut()) {
                deflater.forget();
            }
            env.count_deflated(prepared.payload().len(), deflated.payload().len());
            return self.push_as(Outgoing::Shared(deflated), policy, told, env);
        }
        let (opcode, payload) = outgoing.message();
        let mut output = env.codec().take_deflated();
        let send_takeover = self.deflate.sends_takeover();
        let deflated_len = match self.takeover().filter(|_| send_takeover) {
            None => env.codec().deflate(payload, level, bits, &mut output),
            Some(takeover) => {
                let mem = takeover.mem;
                let deflater = takeover
                    .deflater
                    .get_or_insert_with(|| Box::new(Deflater::new(level, bits, mem)));
                deflater.deflate(payload, &mut output)
            }
        };
        let result = match deflated_len {
            Some(len) => {
                env.count_deflated(payload.len(), len);
                let deflated = Outgoing::Deflated(opcode, &output[..len]);
                self.push_as(deflated, policy, told, env)
            }
            None => self.push_as(outgoing, policy, told, env),
        };
        env.codec().put_deflated(output);
        result
    }
}

/// Which of a route's limits on what is received are those of a connection.
pub(super) fn decoder_index(role: Role, deflate: bool) -> u8 {
    2 * role as u8 + u8::from(deflate)
}

impl Env {
    fn count_deflated(&mut self, from: usize, to: usize) {
        self.metrics.messages_deflated.add(1);
        self.metrics.bytes_before_deflate.add(from as u64);
        self.metrics.bytes_deflated.add(to as u64);
    }

    fn count_inflated(&mut self, to: usize) {
        self.metrics.messages_inflated.add(1);
        self.metrics.bytes_inflated.add(to as u64);
    }
}

impl<D> Conn<D> {
    fn bounds(&self, env: &Env) -> Bounds {
        Bounds::new(self.state.limits(env))
    }

    /// Takes a piece of a compressed message. Not inlined: the loop that calls it is that of plain
    /// messages.
    #[inline(never)]
    pub(super) fn receive_deflated(
        &mut self,
        chunk: &protocol::Chunk<'_>,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) -> Result<(), ProtocolError> {
        let len = chunk.payload.len() as u64;
        env.metrics.bytes_before_inflate.add(len);
        let streaming = env.route(self.state.route).route.streaming;
        if self.state.deflate.receives_takeover() || streaming {
            self.inflate_piece(chunk, streaming, env, sink)
        } else if chunk.end {
            self.inflate_whole(chunk, env, sink)
        } else {
            // By itself a message is inflated at once, when all of it is there.
            self.keep_piece(chunk.payload, env);
            Ok(())
        }
    }

    fn inflate_whole(
        &mut self,
        chunk: &protocol::Chunk<'_>,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) -> Result<(), ProtocolError> {
        let bounds = self.bounds(env);
        let mut kept = match &mut self.partial {
            Some(partial) => mem::take(&mut partial.message),
            None => Buffer::new(),
        };
        self.release_partial(env);
        let mut output = env.codec().take_output();
        let result = if kept.is_empty() {
            env.codec().inflate(chunk.payload, bounds, &mut output)
        } else {
            env.pool.extend(&mut kept, chunk.payload);
            env.codec().inflate(&kept, bounds, &mut output)
        };
        env.pool.put(kept);
        let result = result.and_then(|len| {
            env.count_inflated(len);
            let payload = &output[..len];
            let message = match chunk.text {
                true => Message::text_of(payload)?,
                false => Message::binary(payload),
            };
            self.deliver_message(message, env, sink);
            Ok(())
        });
        env.codec().put_output(output);
        result
    }

    /// Inflates what has arrived, with the window of the messages before or as it is wanted.
    fn inflate_piece(
        &mut self,
        chunk: &protocol::Chunk<'_>,
        streaming: bool,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) -> Result<(), ProtocolError> {
        let bounds = self.bounds(env);
        let mut inflater = self.take_inflater(env);
        let mut output = env.codec().take_output();
        let mut input = chunk.payload;
        inflater.announce(input.len(), chunk.text);
        let result = loop {
            let (len, done) = match inflater.inflate(&mut input, chunk.end, bounds, &mut output) {
                Ok(inflated) => inflated,
                Err(error) => break Err(error),
            };
            let last = chunk.end && done;
            let piece = protocol::Chunk {
                text: chunk.text,
                rsv1: false,
                payload: &output[..len],
                remaining: 0,
                end: last,
            };
            if last {
                env.count_inflated(inflater.message_len());
            }
            let kept = self.partial.as_ref().is_some_and(|p| !p.message.is_empty());
            if streaming {
                self.stream_chunk(&piece, env, sink);
            } else if last && !kept {
                let message = Message::checked(piece.text, piece.payload);
                self.deliver_message(message, env, sink);
            } else {
                self.receive_chunk(&piece, env, sink);
            }
            // A callback may end it.
            if done || self.state.phase != Phase::Open {
                break Ok(());
            }
        };
        env.codec().put_output(output);
        self.put_inflater(inflater, chunk.end, env);
        result
    }

    fn take_inflater(&mut self, env: &mut Env) -> Box<Inflater> {
        if self.state.deflate.receives_takeover()
            && let Some(takeover) = self.state.takeover()
        {
            let bits = takeover.receive_bits;
            let kept = takeover.inflater.take();
            return kept.unwrap_or_else(|| Box::new(Inflater::new(bits)));
        }
        let kept = self.partial.as_mut().and_then(|p| p.inflater.take());
        kept.unwrap_or_else(|| env.codec().take_inflater())
    }

    fn put_inflater(&mut self, inflater: Box<Inflater>, end: bool, env: &mut Env) {
        if self.state.deflate.receives_takeover()
            && let Some(takeover) = self.state.takeover()
        {
            takeover.inflater = Some(inflater);
        } else if end {
            env.codec().put_inflater(inflater);
            self.release_partial(env);
        } else {
            self.partial(env).inflater = Some(inflater);
        }
    }
}
