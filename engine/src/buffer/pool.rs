#![forbid(unsafe_code)]

use std::mem;
use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::BytesMut;

use super::SendQueue;

/// A buffer of a connection. Its memory is a piece of a larger block, in whole pages, so that all
/// of it can be given back to the system, whatever becomes of its neighbours.
pub type Buffer = BytesMut;

/// The largest buffer that is kept on the stack.
const CAPACITY_MAX: usize = 16 * 1024;

/// The most bytes that are kept there, of all buffers together.
const RETAINED_MAX: usize = 4 * 1024 * 1024;

/// What a new buffer holds before it has to grow.
const CAPACITY_MIN: usize = 4 * 1024;

/// Length of the blocks that pieces are cut from, and of the largest piece.
const BLOCK_LEN: usize = 2 * 1024 * 1024;
const PIECE_LEN_MAX: usize = 256 * 1024;

/// Pieces begin and end where pages do, or at a part of one where pages are longer.
const PIECE_ALIGN: usize = 4 * 1024;

/// A larger buffer is given for so many times what is needed, and not for less.
const LARGER_MAX: usize = 4;

/// The largest of the larger buffers that are kept, for a while.
const LARGE_CAPACITY_MAX: usize = 4 * 1024 * 1024;

/// The most bytes that they are, together.
const LARGE_RETAINED_MAX: usize = 16 * 1024 * 1024;

/// A buffer of 64 KiB becomes this long, and not twice as long, where that suffices: for the
/// header of a message, or for a short message after it.
const CAPACITY_STEP: usize = 72 * 1024;

/// Bytes that one call of [`Pool::release`] gives back: less than a quarter of a millisecond.
const RELEASE_LEN: usize = 512 * 1024;

/// How long until memory that nobody needs is given back.
pub const RELEASE_INTERVAL: Duration = Duration::from_millis(1);

/// How often what nobody has needed is looked for.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);

/// Gives the pages of memory whose content is dead to the system; they come back when they are
/// written to.
pub(super) type Discard = fn(&mut [MaybeUninit<u8>]);

/// One thread's free buffers, the last one given back on top: it is still in the cache.
///
/// Buffers of more than 16 KiB are kept apart: they are for what has grown to that length, so that
/// no short message holds much, and what is not needed for a second or two is given up
/// ([`trim`](Self::trim)). To get so much memory from the system for each long message would cost
/// more than the message: its pages are mapped one by one.
///
/// Buffers that come back beyond the caps, and trimmed ones, are spare: they are taken before new
/// memory is, and given back a bounded amount at a time ([`release`](Self::release)). Their pages go
/// to the system before they go to the allocator, which keeps memory below anything that lives.
///
/// Buffers are cut from blocks, which return to the allocator with the last of their pieces. A
/// piece that lives keeps the address space of its block, and no memory but its own.
#[derive(Debug)]
pub struct Pool {
    buffers: Vec<Buffer>,
    /// Boxed because connections hold them boxed: the boxes are what is kept.
    #[allow(clippy::vec_box, reason = "the boxes are what is kept")]
    queues: Vec<Box<SendQueue>>,
    retained: usize,
    large: Vec<Buffer>,
    large_retained: usize,
    /// The fewest that there were since the last trim: so many were not needed.
    large_idle: usize,
    in_use: usize,
    /// Rest of the block that pieces are cut from.
    block: Buffer,
    /// Buffers to be given back, of up to 16 KiB each, and of more.
    spare: Vec<Buffer>,
    spare_large: Vec<Buffer>,
    /// Bytes of the last spare buffer whose pages have been given back.
    discarded: usize,
    /// Number of buffers and queues that are kept however long they are unused.
    floor: usize,
    discard: Discard,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            buffers: Vec::new(),
            queues: Vec::new(),
            retained: 0,
            large: Vec::new(),
            large_retained: 0,
            large_idle: 0,
            in_use: 0,
            block: Buffer::new(),
            spare: Vec::new(),
            spare_large: Vec::new(),
            discarded: 0,
            floor: 0,
            discard: |_| {},
        }
    }
}

impl Pool {
    /// Makes sure that so many queues can be taken, and a buffer for each, without allocating; so
    /// many are kept for ever.
    pub fn warm(&mut self, count: usize) {
        self.floor = count;
        for _ in 0..count {
            self.in_use += 1;
            let buffer = self.piece(CAPACITY_MIN);
            self.put(buffer);
            self.put_queue(Box::new(SendQueue::with_room()));
        }
    }

    /// How pages are given to the system; by default they are not.
    pub fn discard_with(&mut self, discard: Discard) {
        self.discard = discard;
    }

    /// Buffers that have been taken and not put back.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// An empty buffer.
    #[inline]
    pub fn take(&mut self) -> Buffer {
        self.in_use += 1;
        match self.buffers.pop() {
            Some(buffer) => {
                self.retained -= buffer.capacity();
                buffer
            }
            None => self.take_spare(),
        }
    }

    /// A buffer that was to be given back, or a new one.
    #[cold]
    fn take_spare(&mut self) -> Buffer {
        if self.spare_large.is_empty() {
            self.discarded = 0;
        }
        match self.spare.pop() {
            Some(spare) => spare,
            None => self.piece(CAPACITY_MIN),
        }
    }

    /// New memory.
    fn piece(&mut self, capacity: usize) -> Buffer {
        if capacity > PIECE_LEN_MAX {
            return Buffer::with_capacity(capacity);
        }
        let len = capacity.next_multiple_of(PIECE_ALIGN);
        if self.block.capacity() < len {
            let mut block = Buffer::with_capacity(BLOCK_LEN + PIECE_ALIGN);
            let start = block
                .spare_capacity_mut()
                .as_ptr()
                .align_offset(PIECE_ALIGN);
            self.block = block.split_off(start.min(PIECE_ALIGN));
        }
        let rest = self.block.split_off(len);
        mem::replace(&mut self.block, rest)
    }

    /// Takes a buffer back; one without capacity is none.
    #[inline]
    pub fn put(&mut self, mut buffer: Buffer) {
        let capacity = buffer.capacity();
        if capacity == 0 {
            return;
        }
        debug_assert!(self.in_use > 0, "more is put back than was taken");
        self.in_use = self.in_use.saturating_sub(1);
        buffer.clear();
        if capacity > CAPACITY_MAX {
            return self.put_large(buffer);
        }
        if self.retained + capacity > RETAINED_MAX {
            return self.put_spare(buffer);
        }
        self.retained += capacity;
        self.buffers.push(buffer);
    }

    #[cold]
    fn put_spare(&mut self, buffer: Buffer) {
        if self.spare_large.is_empty() {
            self.discarded = 0;
        }
        self.spare.push(buffer);
    }

    /// Appends to a buffer that was taken, which grows by doubling: with what is there, and not
    /// with what was announced.
    #[inline]
    pub fn extend(&mut self, buffer: &mut Buffer, bytes: &[u8]) {
        self.reserve(buffer, bytes.len());
        buffer.extend_from_slice(bytes);
    }

    /// Room for so many bytes more in a buffer that was taken.
    #[inline]
    pub fn reserve(&mut self, buffer: &mut Buffer, len: usize) {
        if len > buffer.capacity() - buffer.len() {
            self.grow(buffer, len);
        }
    }

    /// Exchanges a buffer for a larger one.
    #[inline(never)]
    fn grow(&mut self, buffer: &mut Buffer, len: usize) {
        let len = buffer.len().saturating_add(len);
        let mut larger = match self.take_large(len) {
            Some(larger) => larger,
            None => self.piece(capacity_for(len)),
        };
        self.in_use += 1;
        larger.extend_from_slice(buffer);
        let mut smaller = mem::replace(buffer, larger);
        if smaller.capacity() <= CAPACITY_MAX {
            return self.put(smaller);
        }
        // The next to grow takes the larger one at once.
        smaller.clear();
        self.in_use -= 1;
        self.discarded = 0;
        self.spare_large.push(smaller);
    }

    /// A buffer that holds so much, if it is much, and one is there.
    fn take_large(&mut self, len: usize) -> Option<Buffer> {
        if len <= CAPACITY_MAX {
            return None;
        }
        let most = len.saturating_mul(LARGER_MAX);
        let holds = |buffer: &Buffer| (len..=most).contains(&buffer.capacity());
        if let Some(index) = self.large.iter().rposition(holds) {
            let larger = self.large.swap_remove(index);
            self.large_retained -= larger.capacity();
            self.large_idle = self.large_idle.min(self.large.len());
            return Some(larger);
        }
        let index = self.spare_large.iter().rposition(holds)?;
        self.discarded = 0;
        Some(self.spare_large.swap_remove(index))
    }

    #[cold]
    fn put_large(&mut self, buffer: Buffer) {
        let capacity = buffer.capacity();
        let is_kept = capacity <= LARGE_CAPACITY_MAX;
        if is_kept && self.large_retained + capacity <= LARGE_RETAINED_MAX {
            self.large_retained += capacity;
            self.large.push(buffer);
        } else {
            self.discarded = 0;
            self.spare_large.push(buffer);
        }
    }

    /// Finds what nobody needs any more: large buffers that have not been needed since it was
    /// last called, and a quarter of the others above the floor, from the bottom of the stack,
    /// where they have lain for the longest time. Called once a second.
    pub fn trim(&mut self) {
        for buffer in self.large.drain(..self.large_idle) {
            self.large_retained -= buffer.capacity();
            self.discarded = 0;
            self.spare_large.push(buffer);
        }
        self.large_idle = self.large.len();
        let count = self.surplus().div_ceil(4);
        for buffer in self.buffers.drain(..count) {
            self.retained -= buffer.capacity();
            if self.spare_large.is_empty() {
                self.discarded = 0;
            }
            self.spare.push(buffer);
        }
        let queues = self.queues.len().saturating_sub(self.floor).div_ceil(4);
        self.queues.drain(..queues);
        self.queues.iter_mut().for_each(|queue| queue.trim());
        if self.buffers.capacity() / 4 > self.buffers.len().max(self.floor) {
            self.buffers.shrink_to(self.buffers.capacity() / 2);
        }
        if self.queues.capacity() / 4 > self.queues.len().max(self.floor) {
            self.queues.shrink_to(self.queues.capacity() / 2);
        }
    }

    /// Buffers that may go: those above the floor, and some below it if they have grown.
    fn surplus(&self) -> usize {
        let above = self.buffers.len().saturating_sub(self.floor);
        let grown = self.retained > 4 * CAPACITY_MIN * self.floor;
        above.max(if grown { self.buffers.len() } else { 0 })
    }

    /// Whether memory is to be given back now.
    #[inline]
    pub fn has_spare(&self) -> bool {
        !self.spare.is_empty() || !self.spare_large.is_empty()
    }

    /// How long until memory is to be given back, if any is.
    pub fn until_release(&self) -> Option<Duration> {
        let shrinks = self.surplus() > 0 || self.queues.len() > self.floor;
        if self.has_spare() {
            Some(RELEASE_INTERVAL)
        } else if shrinks || !self.large.is_empty() {
            Some(TRIM_INTERVAL)
        } else {
            None
        }
    }

    /// Gives spare memory back, a bounded amount of it.
    #[cold]
    pub fn release(&mut self) {
        let mut budget = RELEASE_LEN;
        while budget > 0 {
            let spare = match self.spare_large.is_empty() {
                true => &mut self.spare,
                false => &mut self.spare_large,
            };
            let Some(buffer) = spare.last_mut() else {
                // The lists themselves.
                self.spare = Vec::new();
                self.spare_large = Vec::new();
                break;
            };
            let capacity = buffer.capacity();
            let end = capacity.min(self.discarded + budget);
            (self.discard)(&mut buffer.spare_capacity_mut()[self.discarded..end]);
            budget -= end - self.discarded;
            self.discarded = end;
            if end < capacity {
                break;
            }
            self.discarded = 0;
            spare.pop();
        }
    }

    /// An empty queue.
    #[inline]
    pub fn take_queue(&mut self) -> Box<SendQueue> {
        self.queues.pop().unwrap_or_default()
    }

    /// Takes an empty queue back.
    #[inline]
    pub fn put_queue(&mut self, queue: Box<SendQueue>) {
        assert!(queue.is_empty(), "a queue in use was given back");
        // As many as there can be smallest buffers: a queue in use holds at least one.
        if self.queues.len() < RETAINED_MAX / CAPACITY_MIN {
            self.queues.push(queue);
        }
    }
}

/// How long a buffer becomes that has to hold `len` bytes: half as long again, or a third, so that
/// little of it stays unused.
fn capacity_for(len: usize) -> usize {
    let double = len.checked_next_power_of_two().unwrap_or(len);
    match len {
        0..=CAPACITY_MIN => CAPACITY_MIN,
        0x1_0001..=CAPACITY_STEP => CAPACITY_STEP,
        _ if len > 4 * CAPACITY_MIN && len <= double / 4 * 3 => double / 4 * 3,
        _ => double,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_hands_out_empty_buffers_and_keeps_no_more_than_its_cap() {
        let mut pool = Pool::default();
        let mut buffer = pool.take();
        buffer.extend_from_slice(b"secret");
        pool.put(buffer);
        assert!(pool.take().is_empty());

        let mut taken: Vec<Buffer> = (0..20_000).map(|_| pool.take()).collect();
        assert_eq!(pool.in_use(), 20_001);
        taken[0].reserve(CAPACITY_MAX + 1);
        for buffer in taken {
            pool.put(buffer);
            pool.put_queue(Box::default());
        }
        // What has no memory is no buffer.
        pool.put(Buffer::new());
        assert_eq!(pool.in_use(), 1);
        assert!(pool.retained <= RETAINED_MAX);
        assert!(pool.queues.len() <= RETAINED_MAX / CAPACITY_MIN);
    }

    #[test]
    fn large_buffers_are_kept_as_long_as_they_are_needed() {
        let mut pool = Pool::default();
        let grown = |pool: &mut Pool, len: usize| {
            let mut buffer = pool.take();
            let piece = vec![1; 60_000];
            while buffer.len() < len {
                pool.extend(&mut buffer, &piece);
            }
            assert!(buffer.iter().all(|&byte| byte == 1));
            buffer
        };
        let first = grown(&mut pool, 1 << 20);
        let (capacity, pointer) = (first.capacity(), first.as_ptr());
        pool.put(first);
        assert_eq!(pool.large_retained, capacity);
        // Nothing small gets it.
        assert!(pool.take().capacity() <= CAPACITY_MAX);
        for _ in 0..3 {
            pool.trim();
            let again = grown(&mut pool, 1 << 20);
            assert_eq!((again.capacity(), again.as_ptr()), (capacity, pointer));
            assert_eq!(pool.large_retained, 0);
            pool.put(again);
        }
        assert_eq!(pool.in_use(), 1);
        pool.trim();
        assert_eq!(pool.large.len(), 1);
        pool.trim();
        assert_eq!((pool.large.len(), pool.large_retained), (0, 0));

        // The cap is that of all of them.
        let many: Vec<_> = (0..40).map(|_| grown(&mut pool, 1 << 20)).collect();
        many.into_iter().for_each(|buffer| pool.put(buffer));
        assert!(pool.large_retained <= LARGE_RETAINED_MAX);
        let too_large = grown(&mut pool, LARGE_CAPACITY_MAX + 1);
        let before = pool.large_retained;
        pool.put(too_large);
        assert_eq!(pool.large_retained, before);
    }

    use std::cell::Cell;

    thread_local! {
        static DISCARDED: Cell<usize> = const { Cell::new(0) };
    }

    fn count_discarded(memory: &mut [MaybeUninit<u8>]) {
        DISCARDED.set(DISCARDED.get() + memory.len());
    }

    #[test]
    fn peak_is_given_back_in_bounded_steps_and_whole() {
        let mut pool = Pool::default();
        pool.discard_with(count_discarded);
        pool.warm(8);
        let mut taken = Vec::new();
        for len in [100, 5_000, 50_000, 70_000, 200_000, 6_000_000] {
            for _ in 0..100 {
                let mut buffer = pool.take();
                pool.reserve(&mut buffer, len);
                assert!(buffer.capacity() >= len);
                // Room for what is there, and for little else.
                assert!(buffer.capacity() <= (2 * len).max(CAPACITY_MIN));
                taken.push(buffer);
            }
        }
        for buffer in taken {
            pool.put(buffer);
        }
        let held = |pool: &Pool| {
            let lists = [&pool.buffers, &pool.large, &pool.spare, &pool.spare_large];
            let all = lists.into_iter().flatten().map(Buffer::capacity);
            all.sum::<usize>()
        };
        let peak = held(&pool);
        let mut seconds = 0;
        while let Some(wait) = pool.until_release() {
            if wait == TRIM_INTERVAL {
                pool.trim();
                seconds += 1;
            }
            while pool.has_spare() {
                let (before, discarded) = (held(&pool), DISCARDED.get());
                pool.release();
                assert!(DISCARDED.get() - discarded <= RELEASE_LEN);
                // A buffer is freed in the step that discards its end.
                assert!(before - held(&pool) <= RELEASE_LEN + (8 << 20));
            }
        }
        assert!(seconds <= 25, "{seconds} s");
        assert!(held(&pool) <= 8 * 4 * CAPACITY_MIN, "{}", held(&pool));
        assert!(DISCARDED.get() >= peak / 10 * 9 - (1 << 20));
        assert_eq!(pool.until_release(), None);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn spare_buffers_are_taken_before_new_ones() {
        let mut pool = Pool::default();
        let grown = |pool: &mut Pool| {
            let mut buffer = pool.take();
            pool.reserve(&mut buffer, 12_000);
            buffer
        };
        let many: Vec<_> = (0..400).map(|_| grown(&mut pool)).collect();
        many.into_iter().for_each(|buffer| pool.put(buffer));
        let spare = pool.spare.len();
        assert!(spare > 0 && pool.retained <= RETAINED_MAX);
        let kept = pool.buffers.len();
        let again: Vec<_> = (0..kept + spare).map(|_| pool.take()).collect();
        assert!(!pool.has_spare());
        assert!(again.iter().filter(|b| b.capacity() >= 12_000).count() == 400);
    }
}
