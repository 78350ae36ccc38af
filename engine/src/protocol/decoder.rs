use core::mem;

use crate::simd;
use crate::simd::MaskKey;
use crate::simd::Utf8State;

use super::CONTROL_PAYLOAD_LEN_MAX;
use super::CloseFrame;
use super::FrameHeader;
use super::HEADER_LEN_MAX;
use super::Message;
use super::Opcode;
use super::ProtocolError;
use super::Role;

/// The longest tail that [`Decoder::next`] leaves in its input: one byte less than a control
/// frame.
pub const TAIL_LEN_MAX: usize = HEADER_LEN_MAX + CONTROL_PAYLOAD_LEN_MAX - 1;

/// What a peer may do; the same for every connection of a route.
#[derive(Clone, Copy, Debug)]
pub struct DecoderLimits {
    /// Which end of the connection decodes.
    pub role: Role,
    /// The longest message in bytes.
    pub message_len_max: u64,
    /// The most frames that a message may have.
    pub fragment_count_max: u32,
    /// Messages may be compressed: RSV1 says so (RFC 7692 §6). They come as
    /// [`Event::Chunk`]s, and are not checked.
    pub rsv1_allowed: bool,
}

impl DecoderLimits {
    /// The longest compressed message: the longest message may become longer by being compressed,
    /// by one bit in eight where the codes are fixed (RFC 1951 §3.2.6), or by the headers of its
    /// blocks. What it inflates to is the inflater's to limit.
    fn deflated_len_max(&self) -> u64 {
        self.message_len_max
            .saturating_add(self.message_len_max / 8)
            .saturating_add(1024)
    }
}

/// The receiving half of a connection: turns bytes into messages and control frames.
///
/// Payloads are unmasked, and text checked, as they arrive and where they lie. A message that
/// lies whole in the input comes as [`Event::Message`]; any other comes as [`Event::Chunk`]s,
/// which the caller puts together or passes on.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes of the current frame's payload that have not arrived.
    payload_remaining: u64,
    /// Payload bytes of the current message, as far as headers have announced them.
    message_len: u64,
    mask_key: MaskKey,
    utf8: Utf8State,
    /// Frames of the current message; zero between messages.
    fragment_count: u32,
    /// In the payload of a data frame.
    in_frame: bool,
    /// The current frame ends its message.
    fin: bool,
    text: bool,
    rsv1: bool,
}

const _: () = assert!(size_of::<Decoder>() <= 32);

/// What was received.
#[derive(Debug)]
pub enum Event<'a> {
    /// A whole message that came in one frame and lies in the input.
    Message(Message<'a>),
    /// A piece of a message.
    Chunk(Chunk<'a>),
    /// RFC 6455 §5.5.2.
    Ping(&'a [u8]),
    /// RFC 6455 §5.5.3.
    Pong(&'a [u8]),
    /// RFC 6455 §5.5.1. Nothing behind it is looked at.
    Close(CloseFrame<'a>),
}

/// A piece of a message, unmasked and, if it is text, checked as far as it goes.
#[derive(Debug)]
pub struct Chunk<'a> {
    /// The message is text.
    pub text: bool,
    /// RSV1 of the message's first frame: its payload is compressed.
    pub rsv1: bool,
    /// The bytes; may be empty.
    pub payload: &'a [u8],
    /// How many more bytes of the message are known to come: the rest of the current frame.
    pub remaining: u64,
    /// The message ends with this piece.
    pub end: bool,
}

impl Decoder {
    /// Takes the next message off the front of `input` if it comes in one frame and lies there
    /// whole; `None` if it does not, or something else is there: [`next`](Self::next) takes that,
    /// and would take this. What most frames are, in as few steps as it can be done.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    #[inline(always)]
    pub fn next_whole<'b>(
        &mut self,
        input: &mut &'b mut [u8],
        limits: &DecoderLimits,
    ) -> Result<Option<Message<'b>>, ProtocolError> {
        if self.is_in_message() {
            return Ok(None);
        }
        let Some(header) = FrameHeader::decode_common(input, limits.role) else {
            return Ok(None);
        };
        let len = header.len + header.payload_len;
        if len > input.len() || header.payload_len as u64 > limits.message_len_max {
            return Ok(None);
        }
        let payload = &mut take(input, len)[header.len..];
        let key = MaskKey::new(header.mask_key);
        Self::whole(payload, key, header.text, limits.role).map(Some)
    }

    /// A message whose payload has arrived.
    #[inline]
    fn whole(
        payload: &mut [u8],
        key: MaskKey,
        text: bool,
        role: Role,
    ) -> Result<Message<'_>, ProtocolError> {
        if text {
            // RFC 6455 §8.1: a text message that is not UTF-8 fails the connection.
            let text = simd::unmask_text(payload, key).map_err(|_| ProtocolError::Utf8)?;
            return Ok(Message::text(text));
        }
        if role == Role::Server {
            simd::unmask(payload, key);
        }
        Ok(Message::binary(payload))
    }

    /// Takes the next event off the front of `input`; `None` when what is left there is the
    /// beginning of a header or of a control frame, or nothing.
    ///
    /// # Errors
    /// What the peer did wrong. The decoder is then of no more use.
    #[inline]
    pub fn next<'b>(
        &mut self,
        input: &mut &'b mut [u8],
        limits: &DecoderLimits,
    ) -> Result<Option<Event<'b>>, ProtocolError> {
        loop {
            if self.in_frame {
                return self.take_chunk(input);
            }
            let Some((header, header_len)) = FrameHeader::decode(input)? else {
                return Ok(None);
            };
            header.check_mask(limits.role)?;
            let key = MaskKey::new(header.mask_key.unwrap_or_default());
            if header.opcode.is_control() {
                return Self::take_control(input, &header, header_len, key);
            }
            self.begin(&header, limits)?;

            let whole = header.fin && header.opcode != Opcode::Continuation && !header.rsv1;
            let available = (input.len() - header_len) as u64;
            if whole && header.payload_len <= available {
                // The common case: a message in one frame, all there.
                self.message_len = 0;
                self.fragment_count = 0;
                let frame = take(input, header_len + header.payload_len as usize);
                let payload = &mut frame[header_len..];
                let text = header.opcode == Opcode::Text;
                let message = Self::whole(payload, key, text, limits.role)?;
                return Ok(Some(Event::Message(message)));
            }
            take(input, header_len);
            self.in_frame = true;
            self.fin = header.fin;
            self.mask_key = key;
            self.payload_remaining = header.payload_len;
            if header.payload_len == 0 && !header.fin {
                // An empty fragment says nothing; it has been counted.
                self.in_frame = false;
            }
        }
    }

    /// Whether a message has begun and not ended.
    #[inline]
    pub fn is_in_message(&self) -> bool {
        self.fragment_count > 0
    }

    /// What is still to come of the payload of a data frame that has begun and is not compressed.
    #[inline]
    pub fn plain_remaining(&self) -> u64 {
        match self.in_frame && !self.rsv1 {
            true => self.payload_remaining,
            false => 0,
        }
    }

    /// Applies the rules on how data frames make up messages (RFC 6455 §5.4).
    #[inline]
    fn begin(&mut self, header: &FrameHeader, limits: &DecoderLimits) -> Result<(), ProtocolError> {
        if header.opcode == Opcode::Continuation {
            // RFC 6455 §5.4: a continuation has something to continue.
            if self.fragment_count == 0 {
                return Err(ProtocolError::ContinuationUnexpected);
            }
            // RFC 7692 §6.1: only the first fragment is marked.
            if header.rsv1 {
                return Err(ProtocolError::ReservedBit);
            }
        } else {
            // RFC 6455 §5.4: the fragments of two messages are not interleaved.
            if self.fragment_count > 0 {
                return Err(ProtocolError::MessageInterrupted);
            }
            if header.rsv1 && !limits.rsv1_allowed {
                return Err(ProtocolError::ReservedBit);
            }
            self.text = header.opcode == Opcode::Text;
            self.rsv1 = header.rsv1;
            self.utf8 = Utf8State::default();
            self.message_len = 0;
        }
        self.message_len = self.message_len.saturating_add(header.payload_len);
        if self.message_len > limits.message_len_max {
            self.check_deflated_len(limits)?;
        }
        self.fragment_count += 1;
        if self.fragment_count > limits.fragment_count_max {
            return Err(ProtocolError::FragmentsTooMany);
        }
        Ok(())
    }

    /// A message that is longer than the limit is compressed, and not too long for that.
    #[cold]
    fn check_deflated_len(&self, limits: &DecoderLimits) -> Result<(), ProtocolError> {
        if self.rsv1 && self.message_len <= limits.deflated_len_max() {
            return Ok(());
        }
        Err(ProtocolError::MessageTooBig)
    }

    /// Takes what is there of the current data frame's payload.
    fn take_chunk<'b>(
        &mut self,
        input: &mut &'b mut [u8],
    ) -> Result<Option<Event<'b>>, ProtocolError> {
        if input.is_empty() && self.payload_remaining > 0 {
            return Ok(None);
        }
        let len = self.payload_remaining.min(input.len() as u64) as usize;
        let payload = take(input, len);
        if self.text && !self.rsv1 {
            // RFC 6455 §8.1, and the sooner the better: at the first bad byte.
            self.utf8 = simd::unmask_validate(payload, self.mask_key, self.utf8)
                .map_err(|_| ProtocolError::Utf8)?;
        } else {
            simd::unmask(payload, self.mask_key);
        }
        self.mask_key = self.mask_key.advance(len);
        self.payload_remaining -= len as u64;
        self.in_frame = self.payload_remaining > 0;
        let end = self.fin && !self.in_frame;
        if end {
            self.fragment_count = 0;
            self.message_len = 0;
            if !self.utf8.is_complete() {
                return Err(ProtocolError::Utf8);
            }
        }
        Ok(Some(Event::Chunk(Chunk {
            text: self.text,
            rsv1: self.rsv1,
            payload,
            remaining: self.payload_remaining,
            end,
        })))
    }

    /// Takes a control frame, once all of it is there.
    fn take_control<'b>(
        input: &mut &'b mut [u8],
        header: &FrameHeader,
        header_len: usize,
        key: MaskKey,
    ) -> Result<Option<Event<'b>>, ProtocolError> {
        // At most 125: `FrameHeader::decode` has seen to that.
        let len = header_len + header.payload_len as usize;
        if input.len() < len {
            return Ok(None);
        }
        let payload = &mut take(input, len)[header_len..];
        simd::unmask(payload, key);
        Ok(Some(match header.opcode {
            Opcode::Ping => Event::Ping(payload),
            Opcode::Pong => Event::Pong(payload),
            _ => Event::Close(CloseFrame::parse(payload)?),
        }))
    }
}

/// Takes `len` bytes off the front.
#[inline]
fn take<'b>(input: &mut &'b mut [u8], len: usize) -> &'b mut [u8] {
    let (front, rest) = mem::take(input).split_at_mut(len);
    *input = rest;
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is to come behind the first three bytes of a payload of a thousand.
    fn check(frames: &[&[u8]], want: u64) {
        let limits = DecoderLimits {
            role: Role::Client,
            message_len_max: 1 << 20,
            fragment_count_max: 8,
            rsv1_allowed: true,
        };
        let mut bytes = frames.concat();
        let mut input = &mut bytes[..];
        let mut decoder = Decoder::default();
        while !input.is_empty() {
            decoder.next(&mut input, &limits).expect("legal");
        }
        assert_eq!(decoder.plain_remaining(), want, "{frames:02X?}");
    }

    #[test]
    fn plain_payload_remains_until_its_end() {
        let begin = [&[0x02, 126, 3, 232][..], b"abc"].concat();
        check(&[], 0);
        check(&[&begin], 997);
        check(&[&begin, &[0; 996]], 1);
        check(&[&begin, &[0; 997]], 0);
        check(&[&begin, &[0; 997], &[0x00, 126, 3, 232, b'd']], 999);
        // Compressed, also behind its first frame.
        check(&[&[0x42, 126, 3, 232], b"abc"], 0);
        check(&[&[0x42, 1, 0], &[0x00, 126, 3, 232], b"abc"], 0);
        // In a message, between its frames.
        check(&[&[0x02, 1, b'a'], &[0x89, 0]], 0);
    }
}
