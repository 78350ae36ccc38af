use std::io;
use std::io::Read;
use std::io::Write;

use crate::protocol::Opcode;
use crate::simd;
use crate::simd::Utf8State;

use super::Error;
use super::WebSocket;
use super::reader::to_io;

/// The payload of a fragment.
const FRAGMENT_LEN: usize = 16 * 1024;

/// One message, sent while it is written, in fragments of 16 KiB (RFC 6455 §5.4).
///
/// [`finish`](Self::finish) ends the message. A writer that is dropped before that has lost
/// it: if nothing has left, nothing is sent; if something has, no other message can follow
/// ([`Error::Unfinished`]), for the peer must not take half a message for a whole one.
#[derive(Debug)]
pub struct MessageWriter<'a, S: Read + Write> {
    ws: &'a mut WebSocket<S>,
    /// The opcode of the next fragment.
    opcode: Opcode,
    text: bool,
    utf8: Utf8State,
    finished: bool,
}

impl<'a, S: Read + Write> MessageWriter<'a, S> {
    pub(super) fn new(ws: &'a mut WebSocket<S>, text: bool) -> Self {
        ws.fragment.clear();
        Self {
            ws,
            opcode: if text { Opcode::Text } else { Opcode::Binary },
            text,
            utf8: Utf8State::default(),
            finished: false,
        }
    }

    /// Ends the message, and waits until the stream has taken it.
    ///
    /// # Errors
    /// [`Error::Io`]: also if text ends inside a character.
    pub fn finish(mut self) -> Result<(), Error> {
        if !self.utf8.is_complete() {
            return Err(not_utf8().into());
        }
        self.push(true)?;
        self.finished = true;
        self.ws.flush()
    }

    fn push(&mut self, fin: bool) -> Result<(), Error> {
        self.ws.check_writable()?;
        let fragment = std::mem::take(&mut self.ws.fragment);
        self.ws.push_frame(fin, self.opcode, &fragment);
        self.ws.fragment = fragment;
        self.ws.fragment.clear();
        self.opcode = Opcode::Continuation;
        Ok(())
    }
}

impl<S: Read + Write> Write for MessageWriter<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.ws.fragment.len() >= FRAGMENT_LEN {
            if self.opcode == Opcode::Continuation {
                // The fragment before has to leave first: no more than two wait.
                self.ws.flush().map_err(to_io)?;
            }
            self.push(false).map_err(to_io)?;
        }
        let len = bytes.len().min(FRAGMENT_LEN - self.ws.fragment.len());
        if self.text {
            // RFC 6455 §5.6: text is UTF-8, taken as a whole.
            let state = simd::validate(&bytes[..len], self.utf8);
            self.utf8 = state.map_err(|_| not_utf8())?;
        }
        self.ws.fragment.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    /// Sends what has been written, as a fragment of its own.
    fn flush(&mut self) -> io::Result<()> {
        if !self.ws.fragment.is_empty() {
            self.push(false).map_err(to_io)?;
        }
        self.ws.flush().map_err(to_io)
    }
}

impl<S: Read + Write> Drop for MessageWriter<'_, S> {
    fn drop(&mut self) {
        if !self.finished && self.opcode == Opcode::Continuation {
            self.ws.unfinished = true;
        }
    }
}

fn not_utf8() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a text message has to be UTF-8")
}
