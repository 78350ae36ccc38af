#![forbid(unsafe_code)]

use super::SendQueue;

/// The largest buffer that is kept.
const CAPACITY_MAX: usize = 128 * 1024;

/// The most bytes that are kept, of all buffers together.
const RETAINED_MAX: usize = 4 * 1024 * 1024;

/// What a new buffer holds before it has to grow.
const CAPACITY_MIN: usize = 4 * 1024;

/// One thread's free buffers, the last one given back on top: it is still in the cache.
#[derive(Debug, Default)]
pub struct Pool {
    buffers: Vec<Vec<u8>>,
    /// Boxed because connections hold them boxed: the boxes are what is kept.
    #[allow(clippy::vec_box, reason = "the boxes are what is kept")]
    queues: Vec<Box<SendQueue>>,
    retained: usize,
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
        if capacity > CAPACITY_MAX || self.retained + capacity > RETAINED_MAX {
            return;
        }
        buffer.clear();
        self.retained += capacity;
        self.buffers.push(buffer);
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
}
