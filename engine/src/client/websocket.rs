//! A WebSocket over a stream.

use std::fmt;
use std::io;
use std::io::Read;
use std::io::Write;
use std::mem;
use std::ops::Range;
use std::time::Duration;
use std::time::Instant;

use crate::config::CompressionSettings;
use crate::config::Limits;
use crate::conn;
use crate::conn::ControlBudget;
use crate::http1;
use crate::protocol;
use crate::protocol::CONTROL_PAYLOAD_LEN_MAX;
use crate::protocol::CloseCode;
use crate::protocol::CloseFrame;
use crate::protocol::Decoder;
use crate::protocol::DecoderLimits;
use crate::protocol::Event;
use crate::protocol::FrameHeader;
use crate::protocol::Message;
use crate::protocol::Opcode;
use crate::protocol::ProtocolError;
use crate::protocol::Role;
use crate::protocol::handshake::DeflateParams;
use crate::random::Random;

use super::Error;
use super::MessageReader;
use super::MessageWriter;
use super::PeerClose;
use super::Timeouts;
use super::deflate::Compressor;
use super::handshake::seed;
use super::stream::LOOKS_MAX;
use super::stream::remaining;
use super::stream::remaining_or_look;

/// What the receive buffer holds at first, and at most.
const INPUT_LEN_MIN: usize = 4 * 1024;
const INPUT_LEN_MAX: usize = 64 * 1024;

/// Buffers of messages that were larger than this are given back.
const BUFFER_LEN_KEPT: usize = 256 * 1024;

/// What a peer may still send while it is awaited that it answers a Close frame.
const DISCARD_LEN_MAX: usize = 16 * 1024 * 1024;

/// A WebSocket over a blocking stream, used from one thread.
///
/// Reading answers pings and the peer's Close frame. A read or write that meets its deadline
/// can be repeated: nothing is lost, neither of what was received nor of what was to be sent.
pub struct WebSocket<S> {
    stream: S,
    role: Role,
    limits: Limits,
    decoder: Decoder,
    decoder_limits: DecoderLimits,
    /// Compression, if it has been agreed.
    pub(super) compressor: Option<Box<Compressor>>,
    /// Received bytes: `input[start..end]` has not been looked at.
    /// Invariant: start <= end <= input.len().
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// A message that did not arrive in one piece.
    pub(super) message: Vec<u8>,
    message_is_text: bool,
    /// The message in `message` was handed out.
    pub(super) message_done: bool,
    /// Bytes to send: `output[sent..]`.
    output: Vec<u8>,
    sent: usize,
    /// The fragment that a writer collects.
    pub(super) fragment: Vec<u8>,
    pub(super) random: Random,
    control: ControlBudget,
    /// Pongs that the server owes us: they are not counted.
    pongs_owed: u64,
    started: Instant,
    phase: Phase,
    /// A reader was dropped before the end of its message.
    pub(super) skipping: bool,
    /// A writer was dropped in the middle of its message.
    pub(super) unfinished: bool,
    peer_close: Option<PeerClose>,
    subprotocol: Option<String>,
    response: Vec<u8>,
    handlers: Handlers,
    read_deadline: Option<Instant>,
    write_deadline: Option<Instant>,
    timeouts: Option<SetTimeouts<S>>,
}

/// How a stream's time-outs are set, where it has any.
struct SetTimeouts<S> {
    read: fn(&S, Option<Duration>) -> io::Result<()>,
    write: fn(&S, Option<Duration>) -> io::Result<()>,
    shutdown: fn(&S) -> io::Result<()>,
    /// A time-out is set that no deadline asks for any more.
    read_set: bool,
    write_set: bool,
    /// Reads that may look for what has arrived after the read deadline.
    looks: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// We have sent a Close frame and wait for the peer's.
    CloseSent,
    /// Close frames have gone both ways, or the connection has failed.
    Closed,
}

#[derive(Default)]
struct Handlers {
    ping: Option<PingHandler>,
    pong: Option<PongHandler>,
    close: Option<CloseHandler>,
}

type PingHandler = Box<dyn FnMut(&[u8]) -> bool + Send>;
type PongHandler = Box<dyn FnMut(&[u8]) + Send>;
type CloseHandler = Box<dyn FnMut(&PeerClose) + Send>;

/// A piece of a message, in the receive buffer, or where it has been inflated.
pub(super) struct Piece {
    pub(super) text: bool,
    pub(super) inflated: bool,
    pub(super) range: Range<usize>,
    /// The message ends with it.
    pub(super) end: bool,
}

impl<S> fmt::Debug for WebSocket<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocket")
            .field("role", &self.role)
            .field("phase", &self.phase)
            .field("subprotocol", &self.subprotocol)
            .finish_non_exhaustive()
    }
}

impl<S: Read + Write> WebSocket<S> {
    /// A WebSocket over a stream whose opening handshake is done, as either end. `received` is
    /// what was read behind the handshake.
    ///
    /// # Errors
    /// The limits make no sense, or the system has no random bytes.
    pub fn from_stream(
        stream: S,
        role: Role,
        received: &[u8],
        limits: &Limits,
    ) -> Result<Self, Error> {
        limits.validate()?;
        let mut ws = Self::prepare(stream, limits, Random::new(seed()?));
        ws.role = role;
        ws.decoder_limits.role = role;
        ws.input.resize(received.len().max(INPUT_LEN_MIN), 0);
        ws.input[..received.len()].copy_from_slice(received);
        ws.end = received.len();
        Ok(ws)
    }

    /// As [`from_stream`](Self::from_stream), where the handshake has agreed compression with
    /// these parameters (RFC 7692 §7.1).
    ///
    /// # Errors
    /// As for [`from_stream`](Self::from_stream).
    #[cfg(feature = "deflate")]
    pub fn from_stream_deflated(
        stream: S,
        role: Role,
        received: &[u8],
        limits: &Limits,
        params: &DeflateParams,
    ) -> Result<Self, Error> {
        let mut ws = Self::from_stream(stream, role, received, limits)?;
        ws.set_deflate(params, &CompressionSettings::default());
        Ok(ws)
    }

    /// A client's, before its handshake.
    pub(super) fn prepare(stream: S, limits: &Limits, random: Random) -> Self {
        Self {
            stream,
            role: Role::Client,
            limits: limits.clone(),
            decoder: Decoder::default(),
            decoder_limits: conn::decoder_limits(limits, Role::Client, false),
            compressor: None,
            input: vec![0; INPUT_LEN_MIN],
            start: 0,
            end: 0,
            message: Vec::new(),
            message_is_text: false,
            message_done: false,
            output: Vec::new(),
            sent: 0,
            fragment: Vec::new(),
            random,
            control: ControlBudget::new(0, limits),
            pongs_owed: 0,
            started: Instant::now(),
            phase: Phase::Open,
            skipping: false,
            unfinished: false,
            peer_close: None,
            subprotocol: None,
            response: Vec::new(),
            handlers: Handlers::default(),
            read_deadline: None,
            write_deadline: None,
            timeouts: None,
        }
    }

    /// The opening handshake is done.
    pub(super) fn accept(&mut self, subprotocol: Option<String>, response: Vec<u8>) {
        self.subprotocol = subprotocol;
        self.response = response;
    }

    /// Compression has been agreed.
    pub(super) fn set_deflate(&mut self, params: &DeflateParams, settings: &CompressionSettings) {
        let nonce = self.random.nonce();
        let compressor = Compressor::new(params, self.role, settings, &self.limits, nonce);
        self.compressor = Some(Box::new(compressor));
        self.decoder_limits.rsv1_allowed = true;
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The agreed subprotocol.
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.as_deref()
    }

    /// The first header of this name in the server's answer, without case. Bytes that are not
    /// UTF-8 are replaced.
    pub fn response_header(&self, name: &str) -> Option<String> {
        http1::response_header(&self.response, name)
    }

    /// Calls `handler` with the payload of each ping, instead of only answering it; it says
    /// whether it is to be answered with a pong (RFC 6455 §5.5.2).
    pub fn on_ping(&mut self, handler: impl FnMut(&[u8]) -> bool + Send + 'static) {
        self.handlers.ping = Some(Box::new(handler));
    }

    /// Calls `handler` with the payload of each pong.
    pub fn on_pong(&mut self, handler: impl FnMut(&[u8]) + Send + 'static) {
        self.handlers.pong = Some(Box::new(handler));
    }

    /// Calls `handler` with the peer's Close frame, before it is answered.
    pub fn on_close(&mut self, handler: impl FnMut(&PeerClose) + Send + 'static) {
        self.handlers.close = Some(Box::new(handler));
    }

    // Reading.

    /// Waits for the next message. It lies in this WebSocket's own buffer: what is to be kept,
    /// or sent back, is copied, with [`Message::to_owned_message`] or by
    /// [`read_into`](Self::read_into).
    ///
    /// # Errors
    /// [`Error::Closed`] when the peer has closed; [`Error::Protocol`] when it broke a rule;
    /// [`Error::Io`]. After a deadline the call can be repeated.
    pub fn read_message(&mut self) -> Result<Message<'_>, Error> {
        self.forget_message();
        self.skip_rest()?;
        loop {
            let piece = self.next_piece()?;
            if piece.end && self.message.is_empty() {
                let payload = self.arrived(piece.inflated, piece.range);
                return Ok(Message::checked(piece.text, payload));
            }
            let mut message = mem::take(&mut self.message);
            message.extend_from_slice(self.arrived(piece.inflated, piece.range));
            self.message = message;
            self.message_is_text = piece.text;
            if piece.end {
                self.message_done = true;
                return Ok(Message::checked(piece.text, &self.message));
            }
        }
    }

    /// Waits for the next message and appends its payload to `payload`; says whether it is
    /// text, which then is UTF-8.
    ///
    /// # Errors
    /// As for [`read_message`](Self::read_message).
    pub fn read_into(&mut self, payload: &mut Vec<u8>) -> Result<bool, Error> {
        let message = self.read_message()?;
        payload.extend_from_slice(message.payload());
        Ok(message.is_text())
    }

    /// Waits for the next message and reads it piece by piece: nothing of it is held. What the
    /// reader has not read when it is dropped is skipped.
    ///
    /// # Errors
    /// As for [`read_message`](Self::read_message).
    pub fn next_reader(&mut self) -> Result<MessageReader<'_, S>, Error> {
        self.forget_message();
        self.skip_rest()?;
        if self.message.is_empty() {
            let piece = self.next_piece()?;
            return Ok(MessageReader::new(self, piece));
        }
        // The beginning of a message that was read up to a deadline.
        let piece = Piece {
            text: self.message_is_text,
            inflated: false,
            range: 0..0,
            end: false,
        };
        Ok(MessageReader::new(self, piece))
    }

    /// Lets go of a message that has been handed out.
    fn forget_message(&mut self) {
        if mem::take(&mut self.message_done) {
            self.message.clear();
            shrink(&mut self.message);
        }
    }

    /// Reads to the end of a message that nobody wants.
    fn skip_rest(&mut self) -> Result<(), Error> {
        while self.skipping {
            let piece = self.next_piece()?;
            self.skipping = !piece.end;
        }
        Ok(())
    }

    /// Waits for the next piece of a message; deals with control frames.
    pub(super) fn next_piece(&mut self) -> Result<Piece, Error> {
        loop {
            if self.phase == Phase::Closed {
                return Err(self.closed());
            }
            let mut rest = &mut self.input[self.start..self.end];
            let event = self.decoder.next(&mut rest, &self.decoder_limits);
            let rest_len = rest.len();
            let event = match event {
                Ok(event) => event,
                Err(error) => return Err(self.fail(error)),
            };
            // What an event borrows lies in front of the rest.
            let end = self.end - rest_len;
            match event {
                None => {
                    self.start = end;
                    self.fill()?;
                }
                Some(Event::Message(message)) => {
                    self.start = end;
                    return Ok(Piece {
                        text: message.is_text(),
                        inflated: false,
                        range: end - message.payload().len()..end,
                        end: true,
                    });
                }
                Some(Event::Chunk(chunk)) => {
                    self.start = end;
                    let (text, end_of_message) = (chunk.text, chunk.end);
                    let mut range = end - chunk.payload.len()..end;
                    let compressor = self.compressor.as_mut().filter(|_| chunk.rsv1);
                    let inflated = compressor.is_some();
                    if let Some(compressor) = compressor {
                        match compressor.inflate(chunk.payload, text, chunk.end) {
                            Ok(made) => range = made,
                            Err(error) => return Err(self.fail(error)),
                        }
                    }
                    return Ok(Piece {
                        text,
                        inflated,
                        range,
                        end: end_of_message,
                    });
                }
                Some(Event::Ping(payload)) => {
                    let range = end - payload.len()..end;
                    self.start = end;
                    self.receive_ping(range)?;
                }
                Some(Event::Pong(payload)) => {
                    if let Some(handler) = &mut self.handlers.pong {
                        handler(payload);
                    }
                    self.start = end;
                    match self.pongs_owed.checked_sub(1) {
                        Some(left) => self.pongs_owed = left,
                        None => self.count_control()?,
                    }
                }
                Some(Event::Close(close)) => {
                    let close = PeerClose {
                        code: close.code,
                        reason: close.reason.to_owned(),
                    };
                    self.start = end;
                    return Err(self.receive_close(close));
                }
            }
        }
    }

    fn count_control(&mut self) -> Result<(), Error> {
        let now_s = self.started.elapsed().as_secs() as u32;
        let counted = self.control.take(now_s, &self.limits);
        counted.map_err(|error| self.fail(error))
    }

    fn receive_ping(&mut self, range: Range<usize>) -> Result<(), Error> {
        self.count_control()?;
        let answer = match &mut self.handlers.ping {
            Some(handler) => handler(&self.input[range.clone()]),
            None => true,
        };
        if answer && self.phase == Phase::Open {
            // RFC 6455 §5.5.3: the pong carries the payload of the ping.
            let mut payload = [0; CONTROL_PAYLOAD_LEN_MAX];
            let payload = &mut payload[..range.len()];
            payload.copy_from_slice(&self.input[range]);
            self.push_frame(true, Opcode::Pong, payload);
            self.flush()?;
        }
        Ok(())
    }

    /// Answers the peer's Close frame, if it is not the answer to ours.
    fn receive_close(&mut self, close: PeerClose) -> Error {
        if let Some(handler) = &mut self.handlers.close {
            handler(&close);
        }
        if self.phase == Phase::Open {
            // RFC 6455 §5.5.1: the answer typically echoes the code.
            let code = close.code;
            let payload = CloseFrame { code, reason: "" }.encode();
            self.push_frame(true, Opcode::Close, &payload);
            // The peer may be gone: then nobody waits for it.
            let _ = self.flush();
        }
        self.phase = Phase::Closed;
        self.peer_close = Some(close);
        self.closed()
    }

    /// The peer broke a rule: it is told which.
    fn fail(&mut self, error: ProtocolError) -> Error {
        if self.phase == Phase::Open {
            let reason = error.to_string();
            let payload = CloseFrame::new(error.close_code(), &reason).encode();
            self.push_frame(true, Opcode::Close, &payload);
            // The peer may be gone: then nobody waits for it.
            let _ = self.flush();
        }
        self.phase = Phase::Closed;
        error.into()
    }

    fn closed(&self) -> Error {
        match &self.peer_close {
            Some(close) => Error::Closed(close.clone()),
            None => Error::Io(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Bytes that have been received and not looked at.
    pub(super) fn unread(&self) -> &[u8] {
        &self.input[self.start..self.end]
    }

    /// Takes bytes off the front of [`unread`](Self::unread).
    pub(super) fn skip(&mut self, len: usize) {
        assert!(len <= self.end - self.start, "more was taken than there is");
        self.start += len;
    }

    /// What has arrived of a message, inflated or not.
    pub(super) fn arrived(&self, inflated: bool, range: Range<usize>) -> &[u8] {
        match &self.compressor {
            Some(compressor) if inflated => compressor.inflated(range),
            _ => &self.input[range],
        }
    }

    /// Reads once.
    pub(super) fn fill(&mut self) -> Result<(), Error> {
        self.input.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.input.len() {
            // A head that is longer than the buffer: its limit is the caller's business.
            self.input.resize(2 * self.input.len(), 0);
        }
        self.apply_read_deadline()?;
        loop {
            match self.stream.read(&mut self.input[self.end..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(len) => {
                    self.end += len;
                    if self.end == self.input.len() && self.end < INPUT_LEN_MAX {
                        self.input.resize(2 * self.end, 0);
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    // Writing.

    /// Sends a message, and waits until the stream has taken it.
    ///
    /// # Errors
    /// [`Error::Closing`], [`Error::Closed`], [`Error::Unfinished`], [`Error::Io`]. After a
    /// deadline [`flush`](Self::flush) goes on.
    pub fn write_message<'m>(&mut self, message: impl Into<Message<'m>>) -> Result<(), Error> {
        self.feed(message)?;
        self.flush()
    }

    /// Sends a value as JSON, in a text message. [`Message::json`] reads one.
    ///
    /// # Errors
    /// As [`write_message`](Self::write_message); [`Error::Io`] with
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the value cannot be written as JSON:
    /// nothing was sent.
    #[cfg(feature = "json")]
    pub fn write_json(&mut self, value: &(impl serde::Serialize + ?Sized)) -> Result<(), Error> {
        let text = serde_json::to_string(value)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.write_message(&text)
    }

    /// Queues a message, which [`flush`](Self::flush) or the next write sends: several leave
    /// together.
    ///
    /// # Errors
    /// [`Error::Closing`], [`Error::Closed`], [`Error::Unfinished`].
    pub fn feed<'m>(&mut self, message: impl Into<Message<'m>>) -> Result<(), Error> {
        self.check_writable()?;
        let message = message.into();
        let (opcode, payload) = (message.opcode(), message.payload());
        let mut compressor = self.compressor.take();
        match compressor.as_mut().and_then(|c| c.deflate(payload)) {
            Some(deflated) => self.push_frame_with(true, true, opcode, deflated),
            None => self.push_frame(true, opcode, payload),
        }
        self.compressor = compressor;
        Ok(())
    }

    /// Whether messages that are sent from here on are compressed, whatever their length; none:
    /// by their length, as at first. Only where compression has been agreed, and where they
    /// become shorter by it.
    #[cfg(feature = "deflate")]
    pub fn set_write_compression(&mut self, compress: Option<bool>) {
        if let Some(compressor) = &mut self.compressor {
            compressor.wanted = compress;
        }
    }

    /// Whether compression has been agreed.
    #[cfg(feature = "deflate")]
    pub fn is_compressed(&self) -> bool {
        self.compressor.is_some()
    }

    /// A message that is written piece by piece, as text or as binary: it leaves in fragments,
    /// and nobody has to know how long it becomes. [`MessageWriter::finish`] ends it.
    ///
    /// # Errors
    /// [`Error::Closing`], [`Error::Closed`], [`Error::Unfinished`].
    pub fn next_writer(&mut self, text: bool) -> Result<MessageWriter<'_, S>, Error> {
        self.check_writable()?;
        Ok(MessageWriter::new(self, text))
    }

    /// Sends a ping; the payload is cut at 125 bytes (RFC 6455 §5.5). Its pong comes while
    /// messages are read, to [`on_pong`](Self::on_pong).
    ///
    /// # Errors
    /// [`Error::Closing`], [`Error::Closed`], [`Error::Io`].
    pub fn ping(&mut self, payload: &[u8]) -> Result<(), Error> {
        self.check_open()?;
        let payload = &payload[..payload.len().min(CONTROL_PAYLOAD_LEN_MAX)];
        self.push_frame(true, Opcode::Ping, payload);
        self.pongs_owed += 1;
        self.flush()
    }

    /// Waits until the stream has taken everything that is to be sent.
    ///
    /// # Errors
    /// [`Error::Io`]; after a deadline the call can be repeated.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.sent == self.output.len() {
            return Ok(());
        }
        self.apply_write_deadline()?;
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.output.clear();
        self.sent = 0;
        shrink(&mut self.output);
        self.stream.flush()?;
        Ok(())
    }

    fn check_open(&self) -> Result<(), Error> {
        match self.phase {
            Phase::Open => Ok(()),
            Phase::CloseSent => Err(Error::Closing),
            Phase::Closed => Err(self.closed()),
        }
    }

    pub(super) fn check_writable(&self) -> Result<(), Error> {
        self.check_open()?;
        if self.unfinished {
            return Err(Error::Unfinished);
        }
        Ok(())
    }

    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Queues a frame, masked if we are the client.
    pub(super) fn push_frame(&mut self, fin: bool, opcode: Opcode, payload: &[u8]) {
        self.push_frame_with(fin, false, opcode, payload);
    }

    fn push_frame_with(&mut self, fin: bool, rsv1: bool, opcode: Opcode, payload: &[u8]) {
        let mask_key = match self.role {
            Role::Client => Some(self.random.mask_key()),
            Role::Server => None,
        };
        let header = FrameHeader {
            fin,
            rsv1,
            opcode,
            payload_len: payload.len() as u64,
            mask_key,
        };
        self.output.extend_from_slice(header.encode().as_bytes());
        let start = self.output.len();
        self.output.extend_from_slice(payload);
        if let Some(key) = mask_key {
            protocol::mask(&mut self.output[start..], key);
        }
    }

    // Closing.

    /// Sends a Close frame and goes on: what the peer sends before its own is read as usual,
    /// and then [`Error::Closed`] comes. A reason longer than 123 bytes is cut at a character.
    ///
    /// # Errors
    /// [`Error::Closing`], [`Error::Closed`], [`Error::Io`].
    pub fn send_close(&mut self, code: CloseCode, reason: &str) -> Result<(), Error> {
        self.check_open()?;
        let payload = CloseFrame::new(code, reason).encode();
        self.push_frame(true, Opcode::Close, &payload);
        self.phase = Phase::CloseSent;
        self.flush()
    }

    /// Closes: sends a Close frame, throws away what the peer sends before its own, and waits
    /// for that, and for the end of the stream, at most as long as
    /// [`Limits::close_timeout`] says; a stream without [`Timeouts`] is waited for until it
    /// has sent 16 MiB. A connection that is closed already stays so.
    ///
    /// # Errors
    /// [`Error::Io`]: the peer did not answer, or the stream broke before that;
    /// [`Error::Protocol`]: its answer broke a rule.
    pub fn close(&mut self, code: CloseCode, reason: &str) -> Result<(), Error> {
        self.bound(Instant::now() + self.limits.close_timeout);
        let result = self.finish_close(code, reason);
        self.unbound();
        result
    }

    fn finish_close(&mut self, code: CloseCode, reason: &str) -> Result<(), Error> {
        if self.phase == Phase::Open {
            self.send_close(code, reason)?;
        }
        let mut discarded = 0;
        while self.phase != Phase::Closed {
            match self.next_piece() {
                Ok(piece) => discarded += piece.range.len() + 2,
                Err(Error::Closed(_)) => break,
                Err(error) => return Err(error),
            }
            if discarded > DISCARD_LEN_MAX {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
        }
        // RFC 6455 §7.1.1: the server ends the stream first. If it does not, that is its loss.
        if self.role == Role::Client && self.timeouts.is_some() {
            while discarded < DISCARD_LEN_MAX && self.fill().is_ok() {
                discarded += self.end - self.start;
                self.start = self.end;
            }
        }
        if let Some(timeouts) = &self.timeouts {
            // It may have ended by itself.
            let _ = (timeouts.shutdown)(&self.stream);
        }
        Ok(())
    }

    /// The stream, and what was received and not read.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        let unread = self.unread().to_vec();
        (self.stream, unread)
    }

    /// The stream. What was received and not read is lost.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// The stream.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream. Whoever reads from it or writes to it breaks the connection.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    // Deadlines.

    /// Bounds what follows.
    pub(super) fn bound(&mut self, deadline: Instant) {
        let earlier = |set: Option<Instant>| Some(set.map_or(deadline, |set| set.min(deadline)));
        self.change_read_deadline(earlier(self.read_deadline));
        self.write_deadline = earlier(self.write_deadline);
    }

    pub(super) fn unbound(&mut self) {
        self.read_deadline = None;
        self.write_deadline = None;
    }

    fn change_read_deadline(&mut self, deadline: Option<Instant>) {
        self.read_deadline = deadline;
        if let Some(timeouts) = &mut self.timeouts {
            timeouts.looks = LOOKS_MAX;
        }
    }

    fn apply_read_deadline(&mut self) -> Result<(), Error> {
        let Some(timeouts) = &mut self.timeouts else {
            return Ok(());
        };
        let looks = &mut timeouts.looks;
        let remaining = |deadline| remaining_or_look(deadline, looks);
        if let Some(timeout) = change(self.read_deadline, &mut timeouts.read_set, remaining)? {
            (timeouts.read)(&self.stream, timeout)?;
        }
        Ok(())
    }

    fn apply_write_deadline(&mut self) -> Result<(), Error> {
        if let Some(timeouts) = &mut self.timeouts
            && let Some(timeout) = change(self.write_deadline, &mut timeouts.write_set, remaining)?
        {
            (timeouts.write)(&self.stream, timeout)?;
        }
        Ok(())
    }
}

/// Returns the time-out that a stream needs for this deadline, if it has to be changed.
fn change(
    deadline: Option<Instant>,
    set: &mut bool,
    remaining: impl FnOnce(Instant) -> io::Result<Duration>,
) -> io::Result<Option<Option<Duration>>> {
    match deadline {
        Some(deadline) => {
            let remaining = remaining(deadline)?;
            *set = true;
            Ok(Some(Some(remaining)))
        }
        None => Ok(mem::take(set).then_some(None)),
    }
}

fn shrink(buffer: &mut Vec<u8>) {
    if buffer.capacity() > BUFFER_LEN_KEPT {
        *buffer = Vec::new();
    }
}

impl<S: Read + Write + Timeouts> WebSocket<S> {
    /// Reads wait until then and no longer; none for ever. After the deadline a read still takes what
    /// has already arrived.
    pub fn set_read_deadline(&mut self, deadline: Option<Instant>) {
        self.use_timeouts();
        self.change_read_deadline(deadline);
    }

    /// Writes wait until then and no longer; none for ever.
    pub fn set_write_deadline(&mut self, deadline: Option<Instant>) {
        self.use_timeouts();
        self.write_deadline = deadline;
    }

    pub(super) fn use_timeouts(&mut self) {
        self.timeouts.get_or_insert(SetTimeouts {
            read: S::set_read_timeout,
            write: S::set_write_timeout,
            shutdown: S::shutdown,
            read_set: false,
            write_set: false,
            looks: LOOKS_MAX,
        });
    }
}
