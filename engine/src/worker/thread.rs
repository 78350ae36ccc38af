use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::conn::Env;
use crate::conn::Prepared;
use crate::conn::SendOptions;
use crate::connect::Connect;
use crate::error::ConfigError;
use crate::metrics::Recorder;
use crate::pubsub::PubSub;
use crate::pubsub::TopicCounts;
use crate::reactor::Backend;
use crate::slab::Key;
use crate::timer::Alarms;

use super::Callback;
use super::ConnId;
use super::LISTS_LEN;
use super::PostError;
use super::Remote;
use super::SlowCallback;
use super::TRIM_FACTOR;
use super::trim_deque;

/// What the callbacks of a thread can ask for, besides what they ask of their connection. It
/// happens later in the turn.
#[derive(Debug)]
pub(super) struct Local<D> {
    /// Connections that are to be made.
    pub(super) connects: VecDeque<(Connect, D)>,
    pub(super) pubsub: PubSub<Published>,
    pub(super) alarms: Alarms<Alarm>,
    /// Time for which the thread has attended to its sockets.
    pub(super) attended: Duration,
    pub(super) metrics: Arc<Recorder>,
    /// Where they can be read.
    pub(super) metrics_path: Option<Box<str>>,
    pub(super) timing: Timing,
}

/// What is timed.
#[derive(Debug, Default)]
pub(super) struct Timing {
    /// How long callbacks may take; none if nothing is timed.
    pub(super) slow_callback: Option<Duration>,
    /// When the connections came that are not open yet, by index.
    openings: HashMap<u32, Duration>,
}

impl Timing {
    pub(super) fn new(slow_callback: Option<Duration>) -> Self {
        Self {
            slow_callback,
            openings: HashMap::new(),
        }
    }

    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.slow_callback.is_some()
    }

    /// An opening handshake begins.
    pub(super) fn begin_opening(&mut self, key: Key, now: Duration) {
        if self.is_on() {
            self.openings.insert(key.index, now);
        }
    }

    /// It has ended, in whatever way: says when it had begun.
    pub(super) fn end_opening(&mut self, key: Key) -> Option<Duration> {
        if self.is_on() {
            self.openings.remove(&key.index)
        } else {
            None
        }
    }
}

/// What waits for its subscribers.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) message: Prepared,
    pub(super) options: SendOptions,
}

/// What an alarm is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Alarm {
    /// A timer of a connection, with the handler's token.
    Timer(Key, u64),
    /// A timer of the thread, with the handler's token.
    ThreadTimer(u64),
    /// A connection has to have been promoted when the thread has attended for so long.
    Promote(Key, Duration),
    /// A connection has been open for as long as it may.
    Lifetime(Key),
}

/// Names a timer, until it has come or is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId(Key);

impl<D> Local<D> {
    pub(super) fn new(counts: Arc<TopicCounts>, env: &Env) -> Self {
        Self {
            connects: VecDeque::new(),
            pubsub: PubSub::new(counts),
            alarms: Alarms::default(),
            attended: Duration::ZERO,
            metrics: Arc::clone(&env.metrics),
            metrics_path: env.metrics_path.clone(),
            timing: Timing::new(env.slow_callback),
        }
    }

    /// Gives up memory that only a peak has needed.
    pub(super) fn trim(&mut self) {
        self.alarms.trim();
        let openings = &mut self.timing.openings;
        if openings.capacity() > TRIM_FACTOR * openings.len().max(LISTS_LEN) {
            openings.shrink_to(openings.capacity() / 2);
        }
        trim_deque(&mut self.connects);
    }

    /// Records how long a callback took; says if that was too long.
    pub(super) fn note_callback(
        &self,
        callback: Callback,
        conn: Option<ConnId>,
        elapsed: Duration,
    ) -> Option<SlowCallback> {
        self.metrics.callback_time.record(elapsed);
        let slow = self.timing.slow_callback.filter(|most| elapsed > *most)?;
        self.metrics.slow_callbacks.add(1);
        Some(SlowCallback {
            callback,
            conn,
            elapsed,
            allowed: slow,
        })
    }

    /// Sets an alarm, `after` the time `now`; those of a connection are released with it.
    pub(super) fn set_timer(&mut self, now: Duration, after: Duration, alarm: Alarm) -> TimerId {
        let owner = match alarm {
            Alarm::Timer(key, _) | Alarm::Promote(key, _) | Alarm::Lifetime(key) => Some(key.index),
            Alarm::ThreadTimer(_) => None,
        };
        TimerId(self.alarms.set(now.saturating_add(after), owner, alarm))
    }

    /// A connection has ended: its timers will not come.
    #[inline]
    pub(super) fn release_timers(&mut self, key: Key) {
        if !self.alarms.is_empty() {
            self.alarms.release(key.index);
        }
    }

    pub(super) fn cancel_timer(&mut self, timer: TimerId) -> bool {
        self.alarms.cancel(timer.0).is_some()
    }

    /// Queues a message for the subscribers of this thread, and sends it to the others.
    pub(super) fn publish(
        &mut self,
        (remote, number): (&Remote, u16),
        topic: &str,
        message: Prepared,
        options: &SendOptions,
        except: Option<Key>,
    ) -> Result<(), PostError> {
        let result = remote.publish_but(Some(number), topic, &message, options);
        let published = Published {
            message,
            options: *options,
        };
        self.pubsub.publish(topic, published, except);
        result
    }
}

/// A thread of the server, in a callback that is about no connection.
pub struct Thread<'a, D> {
    pub(super) local: &'a mut Local<D>,
    pub(super) remote: &'a Remote,
    pub(super) clock: &'a dyn Clock,
    pub(super) number: u16,
    pub(super) connections: usize,
}

/// The time of the thread's backend.
pub(super) trait Clock {
    fn now(&self) -> Duration;
}

impl<B: Backend> Clock for B {
    fn now(&self) -> Duration {
        Backend::now(self)
    }
}

impl<D> Thread<'_, D> {
    /// Its number, from zero.
    pub fn number(&self) -> usize {
        self.number.into()
    }

    /// Connections of this thread, in whatever phase.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Reaches all connections of the server.
    pub fn remote(&self) -> &Remote {
        self.remote
    }

    /// Sends a message to the subscribers of a topic, of all threads
    /// ([`Remote::publish`]).
    ///
    /// # Errors
    /// At least one other thread did not take it.
    pub fn publish(&mut self, topic: &str, message: impl Into<Prepared>) -> Result<(), PostError> {
        let (options, thread) = (SendOptions::new(), (self.remote, self.number));
        self.local
            .publish(thread, topic, message.into(), &options, None)
    }

    /// Subscribers of a topic on this thread; [`Remote::subscriber_count`] has those of all.
    pub fn subscriber_count(&self, topic: &str) -> usize {
        self.local.pubsub.subscriber_count(topic)
    }

    /// Calls [`Handler::on_thread_timer`](crate::Handler::on_thread_timer) with `token`, once,
    /// not before `after` has passed since this call. A time that is too far away never comes.
    pub fn set_timer(&mut self, after: Duration, token: u64) -> TimerId {
        let now = self.clock.now();
        self.local.set_timer(now, after, Alarm::ThreadTimer(token))
    }

    /// Cancels a timer; says whether it had not come yet.
    pub fn cancel_timer(&mut self, timer: TimerId) -> bool {
        self.local.cancel_timer(timer)
    }

    /// Makes a connection on this thread, after this callback
    /// ([`Context::connect`](crate::Context::connect)).
    ///
    /// # Errors
    /// What is asked for makes no sense. `on_close` is not called.
    pub fn connect(&mut self, connect: Connect, data: D) -> Result<(), ConfigError> {
        connect.validate()?;
        self.local.connects.push_back((connect, data));
        Ok(())
    }
}

impl<D> fmt::Debug for Thread<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread")
            .field("number", &self.number)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}
