use std::collections::VecDeque;

use crate::protocol::Message;

/// A part of a message that is delivered as it arrives. Text has been checked to be UTF-8 so
/// far; a part may end inside a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The bytes; none at the end of a message whose last fragment is empty.
    pub payload: &'a [u8],
    /// The message is text.
    pub text: bool,
    /// The message begins here.
    pub first: bool,
    /// The message ends here.
    pub last: bool,
}

/// What has arrived while the connection was paused.
#[derive(Debug, Default)]
pub(super) struct Held {
    parts: VecDeque<Part>,
    len: usize,
}

#[derive(Debug)]
pub(super) struct Part {
    payload: Vec<u8>,
    text: bool,
    first: bool,
    last: bool,
}

impl Part {
    pub(super) fn message(&self) -> Message<'_> {
        Message::checked(self.text, &self.payload)
    }

    pub(super) fn chunk(&self) -> Chunk<'_> {
        Chunk {
            payload: &self.payload,
            text: self.text,
            first: self.first,
            last: self.last,
        }
    }
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes held, and what it takes to hold them.
    pub(super) fn len(&self) -> usize {
        self.len + self.parts.len() * size_of::<Part>()
    }

    pub(super) fn push(&mut self, chunk: Chunk<'_>) {
        self.len += chunk.payload.len();
        match self.parts.back_mut() {
            // Parts of one message come together.
            Some(part) if !part.last => {
                part.payload.extend_from_slice(chunk.payload);
                part.last = chunk.last;
            }
            _ => self.parts.push_back(Part {
                payload: chunk.payload.to_vec(),
                text: chunk.text,
                first: chunk.first,
                last: chunk.last,
            }),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Part> {
        let part = self.parts.pop_front()?;
        self.len -= part.payload.len();
        Some(part)
    }
}
