use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use super::Pool;

/// Shared bytes up to this length are copied instead: cheaper than a segment of their own.
const SHARED_LEN_MIN: usize = 512;

/// A segment of copied bytes is begun anew from this length on.
const SEGMENT_LEN: usize = 64 * 1024;

/// Output that waits for the kernel, in order.
///
/// ```text
///  segments:  [ copied ........ ][ shared ][ copied .... ]
///                  ^ sent                              ^ push appends
/// ```
#[derive(Debug, Default)]
pub struct SendQueue {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that the kernel has taken.
    /// Invariant: less than its length.
    sent: usize,
    /// Bytes waiting, of all segments.
    len: usize,
}

#[derive(Debug)]
enum Segment {
    Copied(Vec<u8>),
    Shared(Bytes),
}

impl Segment {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Copied(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl SendQueue {
    /// An empty queue that has room for some segments.
    pub fn with_room() -> Self {
        Self {
            segments: VecDeque::with_capacity(4),
            ..Self::default()
        }
    }

    /// Bytes waiting.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a copy of both parts; gives the copy of `back`, to be masked where it lies.
    #[inline]
    pub fn push(&mut self, front: &[u8], back: &[u8], pool: &mut Pool) -> &mut [u8] {
        let len = front.len() + back.len();
        if len == 0 {
            return &mut [];
        }
        let bytes = self.open_segment(pool);
        bytes.reserve(len);
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(back);
        self.len += len;
        match self.segments.back_mut() {
            Some(Segment::Copied(bytes)) => {
                let start = bytes.len() - back.len();
                &mut bytes[start..]
            }
            _ => &mut [],
        }
    }

    /// Appends what `write` puts into a slice of `len_max` bytes; it says how much that is.
    ///
    /// # Errors
    /// What `write` returns; nothing is appended then.
    pub fn push_with<E>(
        &mut self,
        len_max: usize,
        pool: &mut Pool,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let bytes = self.open_segment(pool);
        let start = bytes.len();
        bytes.resize(start + len_max, 0);
        let written = write(&mut bytes[start..]);
        let len = *written.as_ref().unwrap_or(&0);
        bytes.truncate(start + len);
        self.len += len;
        if start + len == 0 {
            // Nothing is in it: a queue has no empty segments.
            if let Some(Segment::Copied(bytes)) = self.segments.pop_back() {
                pool.put(bytes);
            }
        }
        written.map(|_| ())
    }

    /// The last segment, if bytes can be added to it, or a new one.
    #[inline]
    fn open_segment(&mut self, pool: &mut Pool) -> &mut Vec<u8> {
        // A queue that is never quite empty must not keep what has long been sent.
        let has_room =
            |segment: &Segment| matches!(segment, Segment::Copied(b) if b.len() < SEGMENT_LEN);
        if !self.segments.back().is_some_and(has_room) {
            self.segments.push_back(Segment::Copied(pool.take()));
        }
        match self.segments.back_mut() {
            Some(Segment::Copied(bytes)) => bytes,
            _ => unreachable!("the last segment is one of copied bytes"),
        }
    }

    /// Appends bytes that others hold as well.
    pub fn push_shared(&mut self, bytes: Bytes, pool: &mut Pool) {
        if bytes.len() < SHARED_LEN_MIN {
            self.push(&bytes, &[], pool);
            return;
        }
        self.len += bytes.len();
        self.segments.push_back(Segment::Shared(bytes));
    }

    /// What waits, from the front, in as many pieces as there are.
    #[inline]
    pub fn slices(&self) -> impl Iterator<Item = IoSlice<'_>> {
        let mut sent = self.sent;
        self.segments.iter().map(move |segment| {
            let bytes = &segment.as_bytes()[sent..];
            sent = 0;
            IoSlice::new(bytes)
        })
    }

    /// The kernel has taken `len` bytes off the front.
    #[inline]
    pub fn consume(&mut self, len: usize, pool: &mut Pool) {
        assert!(len <= self.len, "the kernel took more than there was");
        self.len -= len;
        self.sent += len;
        while let Some(segment) = self.segments.front() {
            let segment_len = segment.as_bytes().len();
            if self.sent < segment_len {
                return;
            }
            self.sent -= segment_len;
            if let Some(Segment::Copied(bytes)) = self.segments.pop_front() {
                pool.put(bytes);
            }
        }
        debug_assert_eq!((self.len, self.sent), (0, 0));
    }

    /// Gives everything up.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.consume(self.len, pool);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(queue: &SendQueue) -> Vec<u8> {
        queue.slices().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn queue_gives_its_bytes_in_order_however_they_are_taken() {
        for step in 1..40 {
            let mut pool = Pool::default();
            let mut queue = SendQueue::default();
            let mut want = Vec::new();
            for round in 0..20_u8 {
                queue.push(&[round], b"small", &mut pool);
                let large = vec![round; SHARED_LEN_MIN + usize::from(round)];
                want.extend_from_slice(&[round]);
                want.extend_from_slice(b"small");
                want.extend_from_slice(&large);
                queue.push_shared(Bytes::from(large), &mut pool);
                queue.push_shared(Bytes::from_static(b"tiny"), &mut pool);
                want.extend_from_slice(b"tiny");
            }
            while !queue.is_empty() {
                assert_eq!(queue.len(), want.len());
                assert_eq!(content(&queue), want);
                let len = (step * step).min(queue.len());
                queue.consume(len, &mut pool);
                want.drain(..len);
            }
            assert_eq!(content(&queue), b"");
        }
    }
}
