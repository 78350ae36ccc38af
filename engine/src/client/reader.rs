use std::io;
use std::io::Read;
use std::io::Write;

use super::Error;
use super::WebSocket;
use super::websocket::Piece;

/// One message, read as it arrives. What is not read when it is dropped is skipped by the next
/// read. Text is checked as far as it has been read (RFC 6455 §8.1).
#[derive(Debug)]
pub struct MessageReader<'a, S> {
    ws: &'a mut WebSocket<S>,
    text: bool,
    /// What has arrived and has not been read, in the WebSocket's buffer.
    start: usize,
    end: usize,
    inflated: bool,
    last: bool,
    /// How much has been read of what the WebSocket had put together before.
    held: usize,
}

impl<'a, S: Read + Write> MessageReader<'a, S> {
    pub(super) fn new(ws: &'a mut WebSocket<S>, piece: Piece) -> Self {
        ws.skipping = !piece.end;
        // It is this reader's, and nobody's after it.
        ws.message_done = true;
        Self {
            ws,
            text: piece.text,
            start: piece.range.start,
            end: piece.range.end,
            inflated: piece.inflated,
            last: piece.end,
            held: 0,
        }
    }

    /// Whether the message is text.
    pub fn is_text(&self) -> bool {
        self.text
    }
}

impl<S: Read + Write> Read for MessageReader<'_, S> {
    /// Reads what has arrived, or waits for more; zero at the end of the message. A WebSocket's
    /// error is the source of the I/O error, but for those that are I/O errors themselves.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.held < self.ws.message.len() {
            let mut held = &self.ws.message[self.held..];
            let len = held.read(buffer)?;
            self.held += len;
            return Ok(len);
        }
        while self.start == self.end && !self.last && !buffer.is_empty() {
            let piece = self.ws.next_piece().map_err(to_io)?;
            self.ws.skipping = !piece.end;
            self.last = piece.end;
            (self.start, self.end) = (piece.range.start, piece.range.end);
            self.inflated = piece.inflated;
        }
        let len = buffer.len().min(self.end - self.start);
        let arrived = self.ws.arrived(self.inflated, self.start..self.start + len);
        buffer[..len].copy_from_slice(arrived);
        self.start += len;
        Ok(len)
    }
}

/// An error of the stream as it is, others as the source of one.
pub(super) fn to_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::Protocol(_) => io::Error::new(io::ErrorKind::InvalidData, error),
        _ => io::Error::other(error),
    }
}
