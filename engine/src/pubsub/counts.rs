use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

/// How many subscribers each topic has, of all threads. A thread takes the lock for its first
/// and last subscriber of a topic.
#[derive(Debug, Default)]
pub struct TopicCounts {
    topics: Mutex<HashMap<Arc<str>, Arc<AtomicUsize>>>,
}

impl TopicCounts {
    /// Subscribers of a topic.
    pub fn get(&self, name: &str) -> usize {
        let topics = self.lock();
        topics
            .get(name)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// A topic's name and count, shared by all threads.
    pub(super) fn topic(&self, name: &str) -> (Arc<str>, Arc<AtomicUsize>) {
        let mut topics = self.lock();
        if let Some((name, count)) = topics.get_key_value(name) {
            return (Arc::clone(name), Arc::clone(count));
        }
        let (name, count) = (Arc::<str>::from(name), Arc::<AtomicUsize>::default());
        topics.insert(Arc::clone(&name), Arc::clone(&count));
        (name, count)
    }

    /// A thread has no subscribers of a topic any more, and gives its `count` up.
    pub(super) fn forget(&self, name: &Arc<str>, count: &Arc<AtomicUsize>) {
        let mut topics = self.lock();
        // Another thread takes it only under the lock: the map's and this one.
        if Arc::strong_count(count) == 2 {
            topics.remove(name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<AtomicUsize>>> {
        // Nothing panics while it is held.
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn add(count: &AtomicUsize) {
    count.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn subtract(count: &AtomicUsize) {
    count.fetch_sub(1, Ordering::Relaxed);
}
