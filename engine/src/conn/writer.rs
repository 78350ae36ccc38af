use std::fmt;
use std::io;
use std::io::IoSlice;
use std::io::Write;
use std::mem;

use crate::buffer::Buffer;
use crate::buffer::Pool;
use crate::buffer::SendQueue;
use crate::config::OutputPolicy;
use crate::protocol::Opcode;
use crate::protocol::Utf8Check;

use super::Env;
use super::Output;
use super::Phase;
use super::State;

/// The payload of a fragment.
const FRAGMENT_LEN: usize = 16 * 1024;

/// The longest header of a frame (RFC 6455 §5.2).
const HEADER_LEN_MAX: usize = 14;

/// Sends what a connection has queued.
pub trait Flush {
    /// Sends as much of the queue as the kernel takes now; says whether it would not take all.
    fn flush(&mut self, queue: &mut SendQueue, pool: &mut Pool) -> bool;

    /// Sends as much of these pieces as the kernel takes now, and says how much that is; none if
    /// it failed, which it will again.
    fn send(&mut self, slices: &[IoSlice<'_>]) -> Option<usize>;
}

/// A message that has been begun and not finished.
#[derive(Debug, Default)]
pub(super) struct Begun {
    text: bool,
    utf8: Utf8Check,
    /// A fragment has been queued.
    has_left: bool,
}

/// A message that is sent while it is written, in fragments of 16 KiB (RFC 6455 §5.4).
///
/// [`finish`](Self::finish) ends the message. A writer that is dropped before leaves it begun:
/// [`Context::writer`](crate::Context::writer) goes on with it, in this callback or a later one,
/// and until it is finished no other message can be sent
/// ([`DropReason::MessageBegun`](crate::DropReason::MessageBegun)); control frames can.
///
/// [`write`](Write::write) takes no more than the output limit leaves room for, and returns
/// [`WouldBlock`](io::ErrorKind::WouldBlock) where it leaves none: `on_drain` says when to go
/// on.
///
/// ```
/// use std::io::{self, Write};
/// use sockeye::Context;
///
/// fn greet<D>(conn: &mut Context<'_, D>) -> io::Result<()> {
///     let mut message = conn.writer(true)?;
///     write!(message, "you are {}", 7)?;
///     message.finish()
/// }
/// ```
pub struct MessageWriter<'a> {
    state: &'a mut State,
    env: &'a mut Env,
    wire: &'a mut dyn Flush,
    fragment: Buffer,
    finished: bool,
}

impl State {
    /// Whether fragments have been sent of a message that is not finished.
    pub(super) fn message_begun(&self) -> bool {
        let extra = self.extra.as_ref();
        extra.is_some_and(|extra| extra.begun.is_some())
    }

    pub(super) fn set_sends_straight(&mut self, env: &Env) {
        let policy = env.route(self.route).route.output_policy;
        let conflates = matches!(policy, OutputPolicy::Conflate(_));
        self.sends_straight = !conflates && !self.message_begun() && !self.deflate.is_on();
    }
}

impl<'a> MessageWriter<'a> {
    /// Begins a message, or goes on with the one that has been begun.
    ///
    /// # Errors
    /// The connection is not open; or what has been begun is of the other type.
    pub fn new<D>(
        output: &'a mut Output<'_, D>,
        wire: &'a mut dyn Flush,
        text: bool,
    ) -> io::Result<Self> {
        let Output { state, env, .. } = output;
        if state.phase != Phase::Open {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let begun = state.extra_mut().begun.get_or_insert_with(|| Begun {
            text,
            ..Begun::default()
        });
        if begun.text != text {
            let text = "a message of the other type has been begun";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self {
            fragment: env.pool.take(),
            state,
            env,
            wire,
            finished: false,
        })
    }

    fn begun(&mut self) -> &mut Begun {
        self.state.extra_mut().begun.get_or_insert_default()
    }

    /// Ends the message.
    ///
    /// # Errors
    /// Text that ends inside a character ([`InvalidData`](io::ErrorKind::InvalidData)): the
    /// message stays begun.
    pub fn finish(mut self) -> io::Result<()> {
        if !self.begun().utf8.is_complete() {
            return Err(not_utf8());
        }
        self.finished = true;
        self.push(true);
        Ok(())
    }

    /// How many bytes more there is room for; the headers of this fragment and of the last are
    /// not among them.
    fn room(&self) -> usize {
        let limit = self.state.limits(self.env).output_len_max;
        let used = self.state.queued_len() + self.fragment.len() + 2 * HEADER_LEN_MAX;
        let mut room = limit.saturating_sub(used);
        if self.state.blocked {
            let used = self.env.held_len + self.fragment.len();
            room = room.min(self.env.held_len_max.saturating_sub(used));
        }
        room
    }

    fn flush_wire(&mut self) {
        let wire = &mut self.wire;
        if !self.state.blocked {
            self.state
                .flush(self.env, |queue, pool| wire.flush(queue, pool));
        }
    }

    fn push(&mut self, fin: bool) {
        let begun = self.begun();
        let opcode = match (begun.has_left, begun.text) {
            (true, _) => Opcode::Continuation,
            (false, true) => Opcode::Text,
            (false, false) => Opcode::Binary,
        };
        begun.has_left = true;
        let fragment = mem::take(&mut self.fragment);
        self.state.push_fragment(fin, opcode, &fragment, self.env);
        self.fragment = fragment;
        self.fragment.clear();
    }
}

impl Write for MessageWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.fragment.len() >= FRAGMENT_LEN {
            self.push(false);
        }
        if self.room() == 0 {
            self.flush_wire();
        }
        let room = self.room().min(FRAGMENT_LEN - self.fragment.len());
        if room == 0 {
            self.state.drain_owed = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = &bytes[..bytes.len().min(room)];
        let begun = self.begun();
        if begun.text {
            // RFC 6455 §5.6: text is UTF-8, taken as a whole.
            begun.utf8.push(bytes).map_err(|_| not_utf8())?;
        }
        self.env.pool.extend(&mut self.fragment, bytes);
        Ok(bytes.len())
    }

    /// Queues what has been written, as a fragment of its own, and sends what the kernel takes.
    fn flush(&mut self) -> io::Result<()> {
        if !self.fragment.is_empty() {
            self.push(false);
        }
        self.flush_wire();
        Ok(())
    }
}

impl Drop for MessageWriter<'_> {
    fn drop(&mut self) {
        if !self.finished && !self.fragment.is_empty() {
            // There is room: `write` has taken no more.
            self.push(false);
        }
        self.env.pool.put(mem::take(&mut self.fragment));
        let has_left = self.begun().has_left;
        if self.finished || !has_left {
            self.state.extra_mut().begun = None;
        }
        self.state.set_sends_straight(self.env);
    }
}

impl fmt::Debug for MessageWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageWriter")
            .field("fragment_len", &self.fragment.len())
            .finish_non_exhaustive()
    }
}

fn not_utf8() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a text message has to be UTF-8")
}
