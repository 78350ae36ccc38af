use std::fmt;

use zlib_rs::Inflate;
use zlib_rs::InflateFlush;
use zlib_rs::Status;

use crate::protocol::ProtocolError;
use crate::protocol::Utf8Check;

use super::Bounds;
use super::TAIL;

/// The most DEFLATE streams in one message: as many as it may have fragments, each of which a
/// sender may have ended.
const STREAMS_MAX: u32 = 1024;

/// An empty block, and a byte of the next: a decoder that is between two blocks uses just the
/// first and makes nothing of it; one that is inside a block takes it for something else.
const PROBE: [u8; 6] = [0x00, 0x00, 0x00, 0xFF, 0xFF, 0x00];

/// Inflates messages that come in pieces, with the window that earlier messages have left or
/// without.
pub struct Inflater {
    stream: Inflate,
    window_bits: u8,
    /// Compressed bytes of the current message.
    taken: usize,
    /// What has become of them.
    made: usize,
    /// DEFLATE streams that have ended in the current message.
    streams: u32,
    /// The latest has ended with the latest byte.
    at_end: bool,
    /// The current message has not begun.
    is_new: bool,
    is_text: bool,
    utf8: Utf8Check,
}

impl Inflater {
    /// Bytes of memory that one takes.
    pub const MEMORY_LEN: usize = 48 * 1024;

    /// For a peer whose window is two to this power, 8 to 15.
    pub fn new(window_bits: u8) -> Self {
        // A compressor that is asked for 8 may make 9 of it (zlib's do).
        let window_bits = window_bits.max(9);
        Self {
            stream: Inflate::new(false, window_bits),
            window_bits,
            taken: 0,
            made: 0,
            streams: 0,
            at_end: false,
            is_new: true,
            is_text: false,
            utf8: Utf8Check::default(),
        }
    }

    /// Forgets the window, and the message.
    pub fn reset(&mut self) {
        self.reset_stream();
        self.is_new = true;
    }

    /// The length of the message so far.
    pub fn message_len(&self) -> usize {
        self.made
    }

    fn reset_stream(&mut self) {
        if self.window_bits == 15 {
            self.stream.reset(false);
        } else {
            self.stream = Inflate::new(false, self.window_bits);
        }
    }

    fn begin(&mut self) {
        self.taken = 0;
        self.made = 0;
        self.streams = 0;
        self.at_end = false;
        self.is_new = false;
        self.utf8 = Utf8Check::default();
    }

    /// So many compressed bytes more have come of the message, which is text or not: text is
    /// checked to be UTF-8.
    pub fn announce(&mut self, len: usize, is_text: bool) {
        if self.is_new {
            self.begin();
        }
        self.taken = self.taken.saturating_add(len);
        self.is_text = is_text;
    }

    /// Inflates what has been announced, or the rest of it, until it is used up or `output` is
    /// full; gives how much of `output` that is, and whether all is done. `is_last` where the
    /// message ends with it.
    ///
    /// # Errors
    /// [`ProtocolError::Deflate`]: it is not DEFLATE, or a message ends inside a block;
    /// [`ProtocolError::Utf8`];
    /// [`ProtocolError::MessageTooBig`], [`ProtocolError::InflateRatio`].
    pub fn inflate(
        &mut self,
        input: &mut &[u8],
        is_last: bool,
        bounds: Bounds,
        output: &mut [u8],
    ) -> Result<(usize, bool), ProtocolError> {
        // One byte more than is allowed shows that there is too much.
        let room = bounds.allowed(self.taken).saturating_sub(self.made);
        let room = output.len().min(room.saturating_add(1));
        let mut filled = 0;
        // What is left inside the decoder comes out before the room is full.
        let mut flushed = false;
        while filled < room && !(input.is_empty() && flushed) {
            let (used, made, status) =
                self.decompress(input, &mut output[filled..room], InflateFlush::NoFlush)?;
            *input = &input[used..];
            filled += made;
            if used > 0 {
                self.at_end = false;
            }
            match status {
                Status::StreamEnd => self.next_stream()?,
                // Neither more nor less than is there.
                _ if used == 0 && made == 0 && !input.is_empty() => {
                    return Err(ProtocolError::Deflate);
                }
                _ => {}
            }
            flushed = input.is_empty() && filled < room;
        }
        self.made += filled;
        if self.made > bounds.allowed(self.taken) {
            return Err(bounds.exceeded(self.taken));
        }
        if self.is_text {
            self.utf8.push(&output[..filled])?;
        }
        let done = input.is_empty() && flushed;
        if done && is_last {
            self.end()?;
        }
        Ok((filled, done))
    }

    /// RFC 7692 §7.2.3.4: a stream may end inside a message; what follows is another.
    fn next_stream(&mut self) -> Result<(), ProtocolError> {
        self.streams += 1;
        if self.streams > STREAMS_MAX {
            return Err(ProtocolError::Deflate);
        }
        self.reset_stream();
        self.at_end = true;
        Ok(())
    }

    /// RFC 7692 §7.2.2: the message ends with an empty block, the last four bytes of which were
    /// not sent. Anything else has been cut.
    fn end(&mut self) -> Result<(), ProtocolError> {
        self.is_new = true;
        if self.is_text && !self.utf8.is_complete() {
            return Err(ProtocolError::Utf8);
        }
        if self.at_end {
            return Ok(());
        }
        let mut nothing = [0; 1];
        let (used, made, status) = self.decompress(&TAIL, &mut nothing, InflateFlush::NoFlush)?;
        let is_whole = used == TAIL.len() && made == 0 && status != Status::StreamEnd;
        if !is_whole {
            return Err(ProtocolError::Deflate);
        }
        let (used, made, status) = self.decompress(&PROBE, &mut nothing, InflateFlush::Block)?;
        let is_between = used == PROBE.len() - 1 && made == 0 && status != Status::StreamEnd;
        is_between.then_some(()).ok_or(ProtocolError::Deflate)
    }

    /// Gives what was used of `input`, and what was made.
    fn decompress(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        flush: InflateFlush,
    ) -> Result<(usize, usize, Status), ProtocolError> {
        let before = (self.stream.total_in(), self.stream.total_out());
        let status = self.stream.decompress(input, output, flush);
        let status = status.map_err(|_| ProtocolError::Deflate)?;
        let used = (self.stream.total_in() - before.0) as usize;
        let made = (self.stream.total_out() - before.1) as usize;
        Ok((used, made, status))
    }
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater")
            .field("window_bits", &self.window_bits)
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}
