#![forbid(unsafe_code)]

use std::mem;

use super::SendQueue;

/// The largest buffer that is kept.
const CAPACITY_MAX: usize = 128 * 1024;

/// The most bytes that are kept, of all buffers together.
const RETAINED_MAX: usize = 4 * 1024 * 1024;

/// What a new buffer holds before it has to grow.
const CAPACITY_MIN: usize = 4 * 1024;

/// The largest of the larger buffers that are kept, for a while.
const LARGE_CAPACITY_MAX: usize = 4 * 1024 * 1024;

/// The most bytes that they are, together.
const LARGE_RETAINED_MAX: usize = 16 * 1024 * 1024;

/// One thread's free buffers, the last one given back on top: it is still in the cache.
///
/// Buffers of more than 128 KiB are kept apart: they are for what has grown to that length, and
/// what is not needed for a second or two is given up ([`trim`](Self::trim)). To get so much
/// memory from the system for each long message would cost more than the message: its pages are
/// mapped one by one.
#[derive(Debug, Default)]
pub struct Pool {
    buffers: Vec<Vec<u8>>,
    /// Boxed because connections hold them boxed: the boxes are what is kept.
    #[allow(clippy::vec_box, reason = "the boxes are what is kept")]
    queues: Vec<Box<SendQueue>>,
    retained: usize,
    large: Vec<Vec<u8>>,
    large_retained: usize,
    /// The fewest that there were since the last trim: so many were not needed.
    large_idle: usize,
    in_use: usize,
}

impl Pool {
    /// Makes sure that so many queues can be taken, and a buffer for each, without allocating.
    pub fn warm(&mut self, count: usize) {
        for _ in 0..count {
            self.in_use += 1;
            self.put(Vec::with_capacity(CAPACITY_MIN));
            self.put_queue(Box::new(SendQueue::with_room()));
        }
    }

    /// Buffers that have been taken and not put back.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// An empty buffer.
    #[inline]
    pub fn take(&mut self) -> Vec<u8> {
        self.in_use += 1;
        match self.buffers.pop() {
            Some(buffer) => {
                self.retained -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(CAPACITY_MIN),
        }
    }

    /// Takes a buffer back; one without capacity is none.
    #[inline]
    pub fn put(&mut self, mut buffer: Vec<u8>) {
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
            return;
        }
        self.retained += capacity;
        self.buffers.push(buffer);
    }

    /// Appends to a buffer that was taken, which grows by doubling: with what is there, and not
    /// with what was announced.
    #[inline]
    pub fn extend(&mut self, buffer: &mut Vec<u8>, bytes: &[u8]) {
        self.reserve(buffer, bytes.len());
        buffer.extend_from_slice(bytes);
    }

    /// Room for so many bytes more in a buffer that was taken.
    #[inline]
    pub fn reserve(&mut self, buffer: &mut Vec<u8>, len: usize) {
        let len = buffer.len().saturating_add(len);
        if len > buffer.capacity() && len > CAPACITY_MAX {
            self.grow(buffer, len);
        }
    }

    /// Exchanges a buffer for a large one.
    #[cold]
    fn grow(&mut self, buffer: &mut Vec<u8>, len: usize) {
        let Some(index) = self.large.iter().rposition(|l| l.capacity() >= len) else {
            return;
        };
        let mut larger = self.large.swap_remove(index);
        self.large_retained -= larger.capacity();
        self.large_idle = self.large_idle.min(self.large.len());
        self.in_use += 1;
        larger.extend_from_slice(buffer);
        self.put(mem::replace(buffer, larger));
    }

    #[cold]
    fn put_large(&mut self, buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        let is_kept = capacity <= LARGE_CAPACITY_MAX;
        if is_kept && self.large_retained + capacity <= LARGE_RETAINED_MAX {
            self.large_retained += capacity;
            self.large.push(buffer);
        }
    }

    /// Gives up large buffers that have not been needed since it was last called.
    pub fn trim(&mut self) {
        for buffer in self.large.drain(..self.large_idle) {
            self.large_retained -= buffer.capacity();
        }
        self.large_idle = self.large.len();
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

        let mut taken: Vec<Vec<u8>> = (0..20_000).map(|_| pool.take()).collect();
        assert_eq!(pool.in_use(), 20_001);
        taken[0].reserve(CAPACITY_MAX + 1);
        for buffer in taken {
            pool.put(buffer);
            pool.put_queue(Box::default());
        }
        // What has no memory is no buffer.
        pool.put(Vec::new());
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
}
