use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem;
use std::ptr;

use bytes::Bytes;

use super::Buffer;
use super::Pool;

/// Shared bytes up to this length are copied instead: cheaper than a segment of their own.
pub const SHARED_LEN_MIN: usize = 512;

/// Less memory than this is not worth a copy.
const COMPACT_MIN: usize = 8 * 1024;

/// Segments that an empty queue may keep room for.
const SEGMENTS_KEPT: usize = 64;

/// A segment of copied bytes is begun anew from this length on.
const SEGMENT_LEN: usize = 64 * 1024;

/// Output that waits for the kernel, in order.
///
/// ```text
///  segments:  [ copied ........ ][ shared ][ copied .... ]
///                  ^ start                             ^ push appends
/// ```
///
/// What is pushed at once is a frame, or belongs to the one pushed before
/// ([`push_tail`](Self::push_tail)); so a segment begins with a frame, unless it is a tail, and
/// frames that wait can be found again ([`remove_oldest`](Self::remove_oldest)).
#[derive(Debug, Default)]
pub struct SendQueue {
    segments: VecDeque<Segment>,
    /// Bytes waiting, of all segments.
    len: usize,
    /// Memory of the copied segments before the last segment.
    held_before: usize,
}

#[derive(Debug)]
struct Segment {
    bytes: Piece,
    kind: Kind,
    /// What lies before has been taken by the kernel, or given up.
    /// Invariant: less than the length.
    start: usize,
    /// Where a frame begins, and no later than the first that the kernel has not begun to take.
    /// Invariant: what lies behind is as it was pushed.
    boundary: usize,
}

#[derive(Debug)]
enum Piece {
    Copied(Buffer),
    Shared(Bytes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Frames; more can be appended if they are copied ones.
    Frames,
    /// One frame, of the message that has this key.
    Keyed(u64),
    /// What belongs to the frame before, or is no frame.
    Tail,
}

impl Segment {
    fn new(bytes: Piece, kind: Kind) -> Self {
        Self {
            bytes,
            kind,
            start: 0,
            boundary: 0,
        }
    }

    fn all(&self) -> &[u8] {
        match &self.bytes {
            Piece::Copied(bytes) => bytes,
            Piece::Shared(bytes) => bytes,
        }
    }

    fn len(&self) -> usize {
        self.all().len() - self.start
    }

    /// Its memory, in use or not, unless others hold it as well.
    #[inline]
    fn held(&self) -> usize {
        match &self.bytes {
            Piece::Copied(bytes) => bytes.capacity(),
            Piece::Shared(_) => 0,
        }
    }
}

/// A frame, as the owner of a queue finds it at the beginning of some bytes.
#[derive(Clone, Copy, Debug)]
pub struct FrameSpan {
    /// Its length, header included.
    pub len: usize,
    /// It is a message, and can be given up without harm to others.
    pub is_message: bool,
}

/// What has been given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// So many messages.
    pub messages: u32,
    /// So many bytes, headers included.
    pub bytes: usize,
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

    /// Bytes of memory that are held for this queue alone, in use or not.
    pub fn held_len(&self) -> usize {
        let last = self.segments.back().map_or(0, Segment::held);
        self.held_before + last + self.segments.capacity() * size_of::<Segment>()
    }

    /// Gives back what only many segments have needed: the queue is empty.
    pub(super) fn trim(&mut self) {
        if self.segments.capacity() > SEGMENTS_KEPT {
            self.segments = VecDeque::new();
        }
    }

    fn push_segment(&mut self, bytes: Piece, kind: Kind) {
        self.held_before += self.segments.back().map_or(0, Segment::held);
        self.segments.push_back(Segment::new(bytes, kind));
    }

    /// Takes the first segment off the front; gives its memory back.
    #[inline]
    fn pop_segment(&mut self, pool: &mut Pool) {
        let segment = self.segments.pop_front();
        if !self.segments.is_empty() {
            self.held_before -= segment.as_ref().map_or(0, Segment::held);
        }
        recycle(segment, pool);
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
        pool.reserve(bytes, len);
        bytes.reserve(len);
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(back);
        self.len += len;
        self.last_bytes(back.len())
    }

    /// Appends a copy of `front[..front_len]` and `back`, if the last segment has memory for it and
    /// no more than `len_max` bytes wait then; says whether. It may say no where there is room for
    /// less than four bytes more.
    #[inline]
    pub fn try_push(
        &mut self,
        front: [u8; 4],
        front_len: usize,
        back: &[u8],
        len_max: usize,
    ) -> bool {
        let Some(Segment {
            bytes: Piece::Copied(bytes),
            kind: Kind::Frames,
            ..
        }) = self.segments.back_mut()
        else {
            return false;
        };
        let len_most = front.len() + back.len();
        let has_memory = bytes.len() < SEGMENT_LEN && bytes.capacity() - bytes.len() >= len_most;
        if !has_memory || self.len + len_most > len_max {
            return false;
        }
        append(bytes, front, front_len, back);
        self.len += front_len + back.len();
        true
    }

    /// As [`push`](Self::push) of `front[..front_len]` and `back`, where the queue is empty.
    #[inline]
    pub fn push_first(&mut self, front: [u8; 4], front_len: usize, back: &[u8], pool: &mut Pool) {
        debug_assert!(self.is_empty());
        let mut bytes = pool.take();
        pool.reserve(&mut bytes, front.len() + back.len());
        append(&mut bytes, front, front_len, back);
        self.len += bytes.len();
        if bytes.is_empty() {
            return pool.put(bytes);
        }
        let segment = Segment::new(Piece::Copied(bytes), Kind::Frames);
        self.segments.push_back(segment);
    }

    /// As [`push`](Self::push), as a frame that [`replace`](Self::replace) finds by `key`.
    pub fn push_keyed(
        &mut self,
        key: u64,
        front: &[u8],
        back: &[u8],
        pool: &mut Pool,
    ) -> &mut [u8] {
        let bytes = copy(front, back, pool);
        self.len += bytes.len();
        self.push_segment(Piece::Copied(bytes), Kind::Keyed(key));
        self.last_bytes(back.len())
    }

    /// The last bytes of a last segment that was copied.
    #[inline]
    fn last_bytes(&mut self, len: usize) -> &mut [u8] {
        match self.segments.back_mut() {
            Some(Segment {
                bytes: Piece::Copied(bytes),
                ..
            }) => {
                let start = bytes.len() - len;
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
        pool.reserve(bytes, len_max);
        bytes.resize(start + len_max, 0);
        let written = write(&mut bytes[start..]);
        let len = *written.as_ref().unwrap_or(&0);
        bytes.truncate(start + len);
        self.len += len;
        if start + len == 0 {
            // Nothing is in it: a queue has no empty segments.
            recycle(self.segments.pop_back(), pool);
            self.held_before -= self.segments.back().map_or(0, Segment::held);
        }
        written.map(|_| ())
    }

    /// The last segment, if bytes can be added to it, or a new one.
    #[inline]
    fn open_segment(&mut self, pool: &mut Pool) -> &mut Buffer {
        // A queue that is never quite empty must not keep what has long been sent.
        let has_room = |segment: &Segment| {
            let short = matches!(&segment.bytes, Piece::Copied(b) if b.len() < SEGMENT_LEN);
            short && segment.kind == Kind::Frames
        };
        if !self.segments.back().is_some_and(has_room) {
            self.push_segment(Piece::Copied(pool.take()), Kind::Frames);
        }
        match self.segments.back_mut() {
            Some(Segment {
                bytes: Piece::Copied(bytes),
                ..
            }) => bytes,
            _ => unreachable!("the last segment is one of copied bytes"),
        }
    }

    /// Appends a frame that others hold as well.
    #[inline]
    pub fn push_shared(&mut self, frame: &Bytes, pool: &mut Pool) {
        if frame.len() < SHARED_LEN_MIN {
            self.push(frame, &[], pool);
        } else {
            self.push_piece(frame.clone(), Kind::Frames);
        }
    }

    /// Appends a copy of what is no frame.
    pub fn push_head(&mut self, head: &[u8], pool: &mut Pool) {
        self.push_rest(head, &[], pool);
    }

    /// Appends a copy of what is left of a frame that the kernel has begun to take.
    pub fn push_rest(&mut self, front: &[u8], back: &[u8], pool: &mut Pool) {
        let rest = copy(front, back, pool);
        self.len += rest.len();
        self.push_segment(Piece::Copied(rest), Kind::Tail);
    }

    /// As [`push_shared`](Self::push_shared), as a frame that [`replace`](Self::replace) finds
    /// by `key`.
    pub fn push_shared_keyed(&mut self, key: u64, frame: Bytes) {
        self.push_piece(frame, Kind::Keyed(key));
    }

    /// Appends bytes, held by others as well, that belong to what was pushed before, or are no
    /// frame.
    pub fn push_tail(&mut self, bytes: Bytes) {
        self.push_piece(bytes, Kind::Tail);
    }

    fn push_piece(&mut self, bytes: Bytes, kind: Kind) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.push_segment(Piece::Shared(bytes), kind);
        }
    }

    /// The length of the frame of this key, if it waits whole.
    pub fn keyed_len(&self, key: u64) -> Option<usize> {
        self.find_keyed(key)
            .map(|index| self.segments[index].all().len())
    }

    /// Puts a frame in the place of the one of this key that waits whole: there has to be one.
    /// Gives its bytes if they are a copy, `len` of them to be masked.
    pub fn replace(&mut self, key: u64, frame: Replacement<'_>, pool: &mut Pool) -> &mut [u8] {
        let index = self.find_keyed(key).expect("`keyed_len` has found it");
        let segment = &mut self.segments[index];
        self.len -= segment.all().len();
        let (piece, payload_len) = match frame {
            Replacement::Copied(front, back) => {
                (Piece::Copied(copy(front, back, pool)), back.len())
            }
            Replacement::Shared(bytes) => (Piece::Shared(bytes), 0),
        };
        let old = mem::replace(&mut segment.bytes, piece);
        if let Piece::Copied(bytes) = old {
            pool.put(bytes);
        }
        self.len += segment.all().len();
        self.count_held();
        match &mut self.segments[index].bytes {
            Piece::Copied(bytes) => {
                let start = bytes.len() - payload_len;
                &mut bytes[start..]
            }
            Piece::Shared(_) => &mut [],
        }
    }

    fn find_keyed(&self, key: u64) -> Option<usize> {
        let waits = |s: &Segment| s.kind == Kind::Keyed(key) && s.start == 0;
        self.segments.iter().position(waits)
    }

    /// Gives up whole messages that wait, the oldest first, until `wanted` bytes are free or
    /// there are no more. `span` measures the frame at the beginning of some bytes; what of it
    /// the kernel has taken a part of stays.
    pub fn remove_oldest(
        &mut self,
        wanted: usize,
        span: impl Fn(&[u8]) -> FrameSpan,
        pool: &mut Pool,
    ) -> Removed {
        let mut removed = Removed::default();
        let mut index = 0;
        while index < self.segments.len() && removed.bytes < wanted {
            let segment = &mut self.segments[index];
            if segment.kind == Kind::Tail {
                index += 1;
                continue;
            }
            let len = segment.len();
            let spilled = segment.remove(wanted, &span, &mut removed);
            if let (Some(at), Piece::Copied(bytes)) = (spilled, &mut segment.bytes) {
                bytes.truncate(at);
            }
            let freed = len - segment.len();
            let is_empty = segment.len() == 0;
            self.len -= freed;
            if spilled.is_some()
                && let Some(tail) = self.segments.remove(index + 1)
            {
                self.len -= tail.len();
            }
            if is_empty {
                recycle(self.segments.remove(index), pool);
            } else {
                index += 1;
            }
        }
        self.count_held();
        removed
    }

    /// Moves what waits into less memory, where most of what is held is not in use.
    pub fn compact(&mut self, pool: &mut Pool) {
        for segment in &mut self.segments {
            // One that is replaced under its key has to lie whole.
            let may_move = segment.kind == Kind::Frames || segment.kind == Kind::Tail;
            let (start, len) = (segment.start, segment.len());
            if let Piece::Copied(bytes) = &mut segment.bytes
                && may_move
                && bytes.capacity() > COMPACT_MIN
                && bytes.capacity() / 2 >= len
            {
                let smaller = copy(&bytes[start..], &[], pool);
                pool.put(mem::replace(bytes, smaller));
                segment.start = 0;
                segment.boundary = segment.boundary.saturating_sub(start);
            }
        }
        self.count_held();
    }

    /// Counts anew what is held before the last segment.
    fn count_held(&mut self) {
        let before = self.segments.len().saturating_sub(1);
        let held = self.segments.iter().take(before).map(Segment::held);
        self.held_before = held.sum();
    }

    /// What waits, from the front, in as many pieces as there are.
    #[inline]
    pub fn slices(&self) -> impl Iterator<Item = IoSlice<'_>> {
        self.segments
            .iter()
            .map(|segment| IoSlice::new(&segment.all()[segment.start..]))
    }

    /// What waits, if it is one piece.
    #[inline]
    pub fn only_piece(&self) -> Option<&[u8]> {
        match self.segments.as_slices() {
            ([segment], []) => Some(&segment.all()[segment.start..]),
            _ => None,
        }
    }

    /// The kernel has taken `len` bytes off the front.
    #[inline]
    pub fn consume(&mut self, mut len: usize, pool: &mut Pool) {
        assert!(len <= self.len, "the kernel took more than there was");
        self.len -= len;
        while let Some(segment) = self.segments.front_mut() {
            let taken = len.min(segment.len());
            if taken < segment.len() {
                segment.start += taken;
                return;
            }
            len -= taken;
            self.pop_segment(pool);
        }
        debug_assert_eq!((self.len, self.held_before, len), (0, 0, 0));
    }

    /// Gives everything up.
    #[inline]
    pub fn clear(&mut self, pool: &mut Pool) {
        while let Some(segment) = self.segments.pop_back() {
            recycle(Some(segment), pool);
        }
        self.len = 0;
        self.held_before = 0;
    }
}

impl Segment {
    /// Gives up messages of this segment, the oldest first, until `wanted` bytes are free in all;
    /// says where a message begins that is to go as well, and goes on in the next segment.
    fn remove(
        &mut self,
        wanted: usize,
        span: &impl Fn(&[u8]) -> FrameSpan,
        removed: &mut Removed,
    ) -> Option<usize> {
        let len = self.all().len();
        while self.boundary < self.start {
            // Taken, or begun.
            self.boundary += span(&self.all()[self.boundary..]).len;
        }
        let mut at = self.boundary;
        while at < len && removed.bytes < wanted {
            let frame = span(&self.all()[at..]);
            if frame.is_message {
                removed.messages += 1;
                removed.bytes += frame.len;
                if at + frame.len > len {
                    return Some(at);
                }
                if let Piece::Copied(bytes) = &mut self.bytes {
                    // What lies before moves up: there is little of it.
                    bytes.copy_within(self.start..at, self.start + frame.len);
                }
                self.start += frame.len;
                self.boundary += frame.len;
            }
            at += frame.len;
        }
        None
    }
}

/// Appends `front[..front_len]` and `back`, in as few steps as it can be done.
#[inline(always)]
fn append(bytes: &mut Buffer, front: [u8; 4], front_len: usize, back: &[u8]) {
    assert!(front_len <= front.len());
    assert!(bytes.capacity() - bytes.len() >= front.len() + back.len());
    let end = bytes.spare_capacity_mut().as_mut_ptr().cast::<u8>();
    // SAFETY: there is room for `front` and `back`, as asserted above; neither lies there.
    unsafe { ptr::copy_nonoverlapping(front.as_ptr(), end, front.len()) };
    // SAFETY: `front_len` is at most the length of `front`.
    let end = unsafe { end.add(front_len) };
    // SAFETY: as above; what is written over of `front` is not wanted.
    unsafe { ptr::copy_nonoverlapping(back.as_ptr(), end, back.len()) };
    let len = bytes.len() + front_len + back.len();
    // SAFETY: so many bytes have been written, within the capacity.
    unsafe { bytes.set_len(len) };
}

/// A buffer that holds both parts.
fn copy(front: &[u8], back: &[u8], pool: &mut Pool) -> Buffer {
    let mut bytes = pool.take();
    pool.reserve(&mut bytes, front.len() + back.len());
    bytes.extend_from_slice(front);
    bytes.extend_from_slice(back);
    bytes
}

/// Gives the memory of a segment back.
#[inline]
fn recycle(segment: Option<Segment>, pool: &mut Pool) {
    if let Some(Segment {
        bytes: Piece::Copied(bytes),
        ..
    }) = segment
    {
        pool.put(bytes);
    }
}

/// What takes the place of another frame.
#[derive(Debug)]
pub enum Replacement<'a> {
    /// A copy of both parts.
    Copied(&'a [u8], &'a [u8]),
    /// A frame that others hold as well.
    Shared(Bytes),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of the tests: a length byte, a kind, and so many bytes.
    fn frame(len: u8, kind: u8) -> Vec<u8> {
        let mut frame = vec![kind; usize::from(len)];
        frame[0] = len;
        frame
    }

    fn span(bytes: &[u8]) -> FrameSpan {
        FrameSpan {
            len: bytes[0].into(),
            // Capital letters are control frames.
            is_message: bytes.get(1).is_some_and(u8::is_ascii_lowercase),
        }
    }

    fn content(queue: &SendQueue) -> Vec<u8> {
        queue.slices().flat_map(|slice| slice.to_vec()).collect()
    }

    fn check(queue: &SendQueue) {
        assert_eq!(content(queue).len(), queue.len());
        let held: usize = queue.segments.iter().map(Segment::held).sum();
        let lists = queue.segments.capacity() * size_of::<Segment>();
        assert_eq!(queue.held_len(), held + lists);
        assert!(queue.segments.iter().all(|s| s.len() > 0));
        let only = (queue.segments.len() == 1).then(|| content(queue));
        assert_eq!(queue.only_piece(), only.as_deref());
    }

    #[test]
    fn frame_is_tried_where_there_is_memory_and_room() {
        let mut pool = Pool::default();
        let mut queue = SendQueue::default();
        let front = *b"ABCD";
        assert!(!queue.try_push(front, 2, b"none", 100), "no segment");
        queue.push(b"first", b"", &mut pool);
        for (front_len, back) in [(2, &b"x"[..]), (4, b"yz"), (0, b""), (3, b"12345")] {
            assert!(queue.try_push(front, front_len, back, 100));
            check(&queue);
        }
        assert_eq!(content(&queue), b"firstABxABCDyzABC12345");
        let mut first = SendQueue::default();
        first.push_first(front, 0, b"", &mut pool);
        check(&first);
        first.push_first(front, 2, &[9; 5000], &mut pool);
        check(&first);
        assert_eq!(content(&first), [&b"AB"[..], &[9; 5000]].concat());
        first.clear(&mut pool);
        assert_eq!(pool.in_use(), 1);
        // The limit is that of all that waits, and four bytes of the front.
        let len = queue.len();
        assert!(!queue.try_push(front, 4, b"123", len + 6));
        assert!(queue.try_push(front, 4, b"123", len + 7));
        assert_eq!(queue.len(), len + 7);
        // What is behind the capacity is not written to.
        let large = vec![7; 64 * 1024];
        assert!(!queue.try_push(front, 4, &large, usize::MAX));
        // Nor is what others hold, or what may be replaced.
        queue.push_shared(&Bytes::from(large), &mut pool);
        assert!(!queue.try_push(front, 2, b"", usize::MAX));
        queue.push_keyed(1, b"key", b"ed", &mut pool);
        assert!(!queue.try_push(front, 2, b"", usize::MAX));
        check(&queue);
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
                queue.push_shared(&Bytes::from(large), &mut pool);
                queue.push_shared(&Bytes::from_static(b"tiny"), &mut pool);
                queue.push_tail(Bytes::from_static(b"tail"));
                want.extend_from_slice(b"tinytail");
            }
            while !queue.is_empty() {
                assert_eq!(queue.len(), want.len());
                assert_eq!(content(&queue), want);
                check(&queue);
                let len = (step * step).min(queue.len());
                queue.consume(len, &mut pool);
                want.drain(..len);
            }
            assert_eq!(content(&queue), b"");
            assert_eq!(pool.in_use(), 0);
        }
    }

    #[test]
    fn cleared_queue_gives_its_memory_back_however_much_was_taken() {
        for taken in 0..1_300 {
            let mut pool = Pool::default();
            let mut queue = SendQueue::default();
            for kind in 0..2 {
                queue.push(&[kind; 5], &[kind; 20], &mut pool);
                queue.push_shared(&Bytes::from(vec![kind; SHARED_LEN_MIN]), &mut pool);
                queue.push_keyed(kind.into(), b"key", b"ed", &mut pool);
            }
            queue.consume(taken.min(queue.len()), &mut pool);
            queue.clear(&mut pool);
            assert!(queue.is_empty());
            check(&queue);
            assert_eq!(pool.in_use(), 0);
        }
    }

    #[test]
    fn oldest_messages_go_and_what_was_begun_stays() {
        // However much has been taken, and however much is wanted, in one go or in several.
        for taken in 0..60 {
            for wanted in 1..40 {
                let mut pool = Pool::default();
                let mut queue = SendQueue::default();
                let mut frames: Vec<Vec<u8>> = Vec::new();
                for number in 0..12_u8 {
                    let kind = if number % 4 == 2 { b'A' } else { b'a' } + number;
                    let frame = frame(2 + number % 5, kind);
                    match number % 3 {
                        0 => queue.push_piece(frame.clone().into(), Kind::Frames),
                        1 => {
                            queue.push(&frame[..2], &[], &mut pool);
                            queue.push_tail(frame[2..].to_vec().into());
                        }
                        _ => _ = queue.push(&frame[..1], &frame[1..], &mut pool),
                    }
                    frames.push(frame);
                }
                let total = queue.len();
                queue.consume(taken.min(total), &mut pool);
                for _ in 0..3 {
                    let removed = queue.remove_oldest(wanted, span, &mut pool);
                    check(&queue);
                    queue.compact(&mut pool);
                    check(&queue);
                    // The same, on whole frames.
                    let mut at = 0;
                    let mut want = Removed::default();
                    frames.retain(|frame| {
                        let begun = at < taken.min(total);
                        at += frame.len();
                        let goes = !begun && frame[1].is_ascii_lowercase() && want.bytes < wanted;
                        if goes {
                            want.messages += 1;
                            want.bytes += frame.len();
                        }
                        !goes
                    });
                    assert_eq!(removed, want, "{taken} {wanted}");
                    let left = frames.concat();
                    assert_eq!(
                        content(&queue),
                        left[taken.min(total)..],
                        "{taken} {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn keyed_frame_is_replaced_where_it_waits_and_not_once_it_has_begun() {
        let mut pool = Pool::default();
        let mut queue = SendQueue::default();
        queue.push(b"1", b"", &mut pool);
        queue.push_keyed(7, b"old", b"er", &mut pool);
        queue.push(b"2", b"", &mut pool);
        queue.push_shared_keyed(8, Bytes::from_static(b"eight"));
        assert_eq!((queue.keyed_len(7), queue.keyed_len(9)), (Some(5), None));
        let payload = queue.replace(7, Replacement::Copied(b"new", b"est"), &mut pool);
        assert_eq!(payload, b"est");
        queue.replace(8, Replacement::Shared(b"acht".as_slice().into()), &mut pool);
        assert_eq!(content(&queue), b"1newest2acht");
        check(&queue);
        queue.consume(2, &mut pool);
        assert_eq!(queue.keyed_len(7), None);
        queue.replace(8, Replacement::Copied(b"", b"otto"), &mut pool);
        assert_eq!(content(&queue), b"ewest2otto");
        check(&queue);
        queue.clear(&mut pool);
        check(&queue);
    }

    #[test]
    fn compact_queue_holds_little_more_than_what_waits() {
        let mut pool = Pool::default();
        let mut queue = SendQueue::default();
        let frames: Vec<Vec<u8>> = (0..1_000)
            .map(|n| frame(100, b'a' + (n % 20) as u8))
            .collect();
        for frame in &frames {
            queue.push(frame, &[], &mut pool);
        }
        let held = queue.held_len();
        assert!((100_000..160_000).contains(&held), "{held}");
        queue.consume(150, &mut pool);
        queue.remove_oldest(95_000, span, &mut pool);
        check(&queue);
        queue.compact(&mut pool);
        check(&queue);
        let left = [&frames[1][50..], &frames[952..].concat()].concat();
        assert_eq!(content(&queue), left);
        assert!(queue.held_len() <= 40_000, "{}", queue.held_len());
        let removed = queue.remove_oldest(usize::MAX, span, &mut pool);
        assert_eq!((removed.messages, queue.len()), (48, 50));
        queue.clear(&mut pool);
        assert_eq!((queue.held_before, pool.in_use()), (0, 0));
    }
}
