#![forbid(unsafe_code)]
//! Topics and their subscribers, of one thread.
//!
//! Publishing only queues: the worker takes what is pending once a turn and delivers it. A topic
//! holds its subscribers in one array, which is passed through from the front; a subscriber
//! knows where it stands in the arrays of its topics, so it leaves each in one step. While
//! something is pending for a topic nobody in its array moves: who leaves leaves a hole, who
//! comes stands behind those to whom it was published.
//!
//! ```text
//!  topic "a":  [ key 3 ][ key 7 ][ hole ][ key 1 ]│[ key 9 ]
//!                                                 └ end: where it was published
//!  key 7:  list ─▶ (topic "a", position 1) ─▶ (topic "b", position 4)
//! ```
//!
//! This room knows nothing of connections, messages or other threads, but for the counts of
//! subscribers, which it keeps where all threads see them.
//!
//! **Invariant:** a message reaches those who had subscribed when it was published, and have not
//! unsubscribed since, once each.

mod counts;

pub use counts::TopicCounts;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::slab::Key;

/// No subscription.
const NONE: u32 = u32::MAX;

/// The topics of a thread; `M` is what is published.
#[derive(Debug)]
pub struct PubSub<M> {
    names: HashMap<Arc<str>, u32>,
    topics: ::slab::Slab<Topic>,
    subscriptions: ::slab::Slab<Subscription>,
    pending: Vec<Publication<M>>,
    /// What is being delivered, given back empty.
    spare: Vec<Publication<M>>,
    /// Subscribers that have had some of what is pending before the others, and how many
    /// publications, of all topics.
    ahead: HashMap<Key, usize>,
    /// Pending publications are being delivered.
    delivering: bool,
    counts: Arc<TopicCounts>,
}

#[derive(Debug)]
struct Topic {
    name: Arc<str>,
    subscribers: Vec<Subscriber>,
    holes: usize,
    /// Publications that have not been delivered.
    pending: usize,
    /// Subscribers of all threads.
    count: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug)]
struct Subscriber {
    key: Key,
    /// [`NONE`]: a hole.
    subscription: u32,
}

#[derive(Debug)]
struct Subscription {
    topic: u32,
    position: u32,
    /// The next one of the same subscriber.
    next: u32,
}

/// The subscriptions of one subscriber.
#[derive(Debug)]
pub struct Subscriptions {
    first: u32,
    count: u32,
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self {
            first: NONE,
            count: 0,
        }
    }
}

impl Subscriptions {
    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count as usize
    }
}

/// Something published and not yet delivered.
#[derive(Debug)]
pub struct Publication<M> {
    /// What.
    pub message: M,
    /// To everybody but this one.
    pub except: Option<Key>,
    topic: u32,
    /// It is for subscribers before this position.
    end: usize,
    /// Its place among those that were taken together.
    index: usize,
}

impl<M> PubSub<M> {
    /// No topics; subscribers are counted in `counts` as well.
    pub fn new(counts: Arc<TopicCounts>) -> Self {
        Self {
            names: HashMap::new(),
            topics: ::slab::Slab::new(),
            subscriptions: ::slab::Slab::new(),
            pending: Vec::new(),
            spare: Vec::new(),
            ahead: HashMap::new(),
            delivering: false,
            counts,
        }
    }

    /// Adds a subscriber to a topic, if it is not there; says whether it was not.
    pub fn subscribe(&mut self, key: Key, list: &mut Subscriptions, name: &str) -> bool {
        let topic = match self.names.get(name) {
            Some(&topic) => topic,
            None => self.add_topic(name),
        };
        if self.find(list, topic).is_some() {
            return false;
        }
        let entry = &mut self.topics[topic as usize];
        let subscription = self.subscriptions.insert(Subscription {
            topic,
            position: entry.subscribers.len() as u32,
            next: list.first,
        }) as u32;
        entry.subscribers.push(Subscriber { key, subscription });
        counts::add(&entry.count);
        list.first = subscription;
        list.count += 1;
        true
    }

    fn add_topic(&mut self, name: &str) -> u32 {
        let (name, count) = self.counts.topic(name);
        let topic = self.topics.insert(Topic {
            name: Arc::clone(&name),
            subscribers: Vec::new(),
            holes: 0,
            pending: 0,
            count,
        }) as u32;
        self.names.insert(name, topic);
        topic
    }

    /// Takes a subscriber out of a topic; says whether it was there.
    pub fn unsubscribe(&mut self, list: &mut Subscriptions, name: &str) -> bool {
        let Some(&topic) = self.names.get(name) else {
            return false;
        };
        let Some((before, subscription)) = self.find(list, topic) else {
            return false;
        };
        let next = self.subscriptions[subscription as usize].next;
        if before == NONE {
            list.first = next;
        } else {
            self.subscriptions[before as usize].next = next;
        }
        list.count -= 1;
        self.leave(subscription);
        true
    }

    /// Takes a subscriber out of all topics.
    pub fn unsubscribe_all(&mut self, list: &mut Subscriptions) {
        while list.first != NONE {
            let subscription = list.first;
            list.first = self.subscriptions[subscription as usize].next;
            self.leave(subscription);
        }
        list.count = 0;
    }

    /// The subscription to a topic, and the one before it in the list.
    fn find(&self, list: &Subscriptions, topic: u32) -> Option<(u32, u32)> {
        let (mut before, mut at) = (NONE, list.first);
        while at != NONE {
            let subscription = &self.subscriptions[at as usize];
            if subscription.topic == topic {
                return Some((before, at));
            }
            (before, at) = (at, subscription.next);
        }
        None
    }

    /// Ends a subscription that is in no list.
    fn leave(&mut self, subscription: u32) {
        let Subscription {
            topic, position, ..
        } = self.subscriptions.remove(subscription as usize);
        let entry = &mut self.topics[topic as usize];
        counts::subtract(&entry.count);
        if entry.pending > 0 {
            entry.subscribers[position as usize].subscription = NONE;
            entry.holes += 1;
            return;
        }
        entry.subscribers.swap_remove(position as usize);
        if let Some(moved) = entry.subscribers.get(position as usize) {
            self.subscriptions[moved.subscription as usize].position = position;
        }
        self.remove_if_empty(topic);
    }

    fn remove_if_empty(&mut self, topic: u32) {
        let entry = &self.topics[topic as usize];
        if entry.subscribers.is_empty() && entry.pending == 0 {
            let entry = self.topics.remove(topic as usize);
            self.names.remove(&entry.name);
            self.counts.forget(&entry.name, &entry.count);
        }
    }

    /// Queues a message for those who have subscribed; says how many those are.
    pub fn publish(&mut self, name: &str, message: M, except: Option<Key>) -> usize {
        let Some(&topic) = self.names.get(name) else {
            return 0;
        };
        let entry = &mut self.topics[topic as usize];
        entry.pending += 1;
        self.pending.push(Publication {
            message,
            except,
            topic,
            end: entry.subscribers.len(),
            index: self.pending.len(),
        });
        entry.subscribers.len() - entry.holes
    }

    /// A subscriber has published: whatever it sends next comes after what is pending for it, which
    /// [`catch_up`](Self::catch_up) gives. Returns `false` if it does not subscribe to this topic,
    /// or while a delivery is under way: what is pending comes after that.
    pub fn expect_catch_up(&mut self, key: Key, list: &Subscriptions, name: &str) -> bool {
        let topic = self.names.get(name);
        let subscribes = topic.is_some_and(|&topic| self.find(list, topic).is_some());
        if subscribes && !self.delivering {
            self.ahead.entry(key).or_insert(0);
        }
        subscribes && !self.delivering
    }

    /// Takes the publications that are pending for a subscriber that has published itself. They count
    /// as delivered from here on.
    pub fn catch_up(&mut self, key: Key, list: &Subscriptions) -> Vec<M>
    where
        M: Clone,
    {
        if self.ahead.is_empty() || self.delivering {
            return Vec::new();
        }
        let Some(had) = self.ahead.get_mut(&key) else {
            return Vec::new();
        };
        let start = std::mem::replace(had, self.pending.len());
        let is_for = |publication: &&Publication<M>| {
            let found = self.find(list, publication.topic);
            publication.except != Some(key)
                && found.is_some_and(|(_, subscription)| {
                    let position = self.subscriptions[subscription as usize].position;
                    (position as usize) < publication.end
                })
        };
        let owed = self.pending[start..].iter().filter(is_for);
        owed.map(|publication| publication.message.clone())
            .collect()
    }

    /// Whether a subscriber has had a publication before the others.
    #[inline]
    pub fn has_had(&self, key: Key, publication: &Publication<M>) -> bool {
        let had = |ahead: &HashMap<Key, usize>| ahead.get(&key).copied().unwrap_or(0);
        !self.ahead.is_empty() && publication.index < had(&self.ahead)
    }

    /// Topics that have subscribers.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// Subscriptions, to all topics.
    pub fn subscription_count(&self) -> usize {
        self.subscriptions.len()
    }

    /// Subscribers of a topic.
    pub fn subscriber_count(&self, name: &str) -> usize {
        let count = |&topic: &u32| {
            let entry = &self.topics[topic as usize];
            entry.subscribers.len() - entry.holes
        };
        self.names.get(name).map_or(0, count)
    }

    /// Whether something is to be delivered.
    #[inline]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes what is to be delivered, in order; to be given back to
    /// [`delivered`](Self::delivered).
    pub fn take_pending(&mut self) -> Vec<Publication<M>> {
        self.delivering = true;
        std::mem::replace(&mut self.pending, std::mem::take(&mut self.spare))
    }

    /// Parts of what was taken: those for one topic that follow each other.
    pub fn runs(publications: &[Publication<M>]) -> impl Iterator<Item = &[Publication<M>]> {
        publications.chunk_by(|one, next| one.topic == next.topic)
    }

    /// The subscribers of a run at some positions: with the number of publications, counted from
    /// the last, that are for each. Nothing beyond the last position.
    pub fn subscribers<'s>(
        &'s self,
        run: &'s [Publication<M>],
        positions: Range<usize>,
    ) -> impl Iterator<Item = (Key, &'s [Publication<M>])> {
        let last = &run[run.len() - 1];
        let entry = &self.topics[last.topic as usize];
        let end = positions.end.min(last.end);
        let start = positions.start.min(end);
        let among = entry.subscribers[start..end].iter().zip(start..);
        among.filter_map(move |(subscriber, position)| {
            // Later ones are for whoever has come meanwhile as well.
            let missed = run.partition_point(|publication| publication.end <= position);
            let is_hole = subscriber.subscription == NONE;
            (!is_hole).then_some((subscriber.key, &run[missed..]))
        })
    }

    /// How many positions a run is for.
    pub fn end(run: &[Publication<M>]) -> usize {
        run.last().map_or(0, |publication| publication.end)
    }

    /// What was taken has been delivered.
    pub fn delivered(&mut self, mut publications: Vec<Publication<M>>) {
        for publication in publications.drain(..) {
            let topic = publication.topic;
            let entry = &mut self.topics[topic as usize];
            entry.pending -= 1;
            if entry.pending == 0 {
                self.close_holes(topic);
                self.remove_if_empty(topic);
            }
        }
        self.spare = publications;
        self.ahead.clear();
        self.delivering = false;
    }

    fn close_holes(&mut self, topic: u32) {
        let entry = &mut self.topics[topic as usize];
        if entry.holes == 0 {
            return;
        }
        entry.holes = 0;
        entry
            .subscribers
            .retain(|subscriber| subscriber.subscription != NONE);
        for (position, subscriber) in entry.subscribers.iter().enumerate() {
            self.subscriptions[subscriber.subscription as usize].position = position as u32;
        }
    }
}

#[cfg(test)]
mod tests;
