//! The only way into a worker from another thread.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crossbeam_queue::SegQueue;

use crate::conn::Agreed;
use crate::conn::DeferredAnswer;
use crate::conn::Prepared;
use crate::conn::SendOptions;
use crate::connect::Connect;
use crate::error::ConfigError;
use crate::metrics::Metrics;
use crate::metrics::Recorder;
use crate::protocol::CloseCode;
use crate::pubsub::TopicCounts;
use crate::reactor::Waker;
use crate::reactor::WeakWaker;
use crate::slab::Key;

use super::ConnId;
use super::Drain;
use super::door;
use super::gate::Gate;
use super::gate::Queue;
use super::gate::Refused;
use super::shared::OneByOne;

/// The most commands that wait for one worker.
pub const MAILBOX_LEN_MAX: usize = 64 * 1024;

/// A value for a handler, of any type.
pub type Value = Box<dyn Any + Send>;

/// What another thread, or a callback, asks of a worker.
#[derive(Debug)]
pub(super) enum Command {
    /// A message for one connection.
    Send(Key, Prepared, SendOptions),
    /// A message for every open connection.
    Broadcast(Prepared),
    /// A message for the subscribers of a topic.
    Publish(Arc<str>, Prepared, SendOptions),
    /// A value for the handler, about one connection.
    PostTo(Key, Value),
    /// A value for the handler.
    Post(Value),
    /// The answer to a request.
    Deferred(Key, DeferredAnswer),
    /// Pauses the reading of one connection, or resumes it.
    Pause(Key, bool),
    /// The end of one connection, without a Close frame.
    Terminate(Key),
    /// The closing handshake with one connection.
    Close(Key, CloseCode, Box<str>),
    /// A new connection.
    Connect(Box<Connect>),
    /// A connection that was opened elsewhere, and what had been received of it.
    Adopt(OwnedFd, Vec<u8>, Box<Agreed>),
    /// The end of the worker, spread over a window.
    Drain(Arc<Drain>),
    /// The closing handshake with all, and the end of the worker.
    Shutdown,
    /// Another worker has failed: a shutdown, unless an end is under way.
    Fail,
}

type Posted = (Command, Option<Instant>);

impl Queue for SegQueue<Posted> {
    type Item = Posted;

    fn push(&self, item: Posted) {
        SegQueue::push(self, item);
    }

    fn pop(&self) -> Option<Posted> {
        SegQueue::pop(self)
    }
}

/// One worker's queue of commands, in the order of each sender.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    gate: Gate<SegQueue<Posted>>,
    /// Commands are stamped with the time at which they came.
    timed: AtomicBool,
    /// Wakes the worker while there is one: a [`Remote`] keeps no descriptor open after the end.
    waker: OnceLock<WeakWaker>,
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// Too many commands wait: the worker cannot keep up.
    #[error("the worker's mailbox is full")]
    Full,
    /// The server has stopped.
    #[error("the server has stopped")]
    Stopped,
}

impl Mailbox {
    fn post(&self, command: Command, len_max: usize) -> Result<(), PostError> {
        let timed = self.timed.load(Ordering::Relaxed);
        let posted = self
            .gate
            .post(len_max, || (command, timed.then(Instant::now)));
        match posted {
            Ok(false) => Ok(()),
            Ok(true) => {
                if let Some(waker) = self.waker.get() {
                    waker.wake();
                }
                Ok(())
            }
            Err(Refused::Full) => Err(PostError::Full),
            Err(Refused::Closed) => Err(PostError::Stopped),
        }
    }

    /// The worker has started.
    pub(super) fn start(&self, waker: &Waker, timed: bool) {
        self.timed.store(timed, Ordering::Relaxed);
        let set = self.waker.set(waker.downgrade());
        assert!(set.is_ok(), "a mailbox has one worker");
    }

    /// The worker has stopped: nothing more is accepted, and `rest` gets every command that was.
    pub(super) fn stop(&self, mut rest: impl FnMut(Command)) {
        self.gate.close(|(command, _)| rest(command));
    }

    /// Takes the next command, and how long it has waited if that is timed.
    #[inline]
    pub(super) fn take(&self) -> Option<(Command, Option<Duration>)> {
        let (command, came) = self.gate.take()?;
        Some((command, came.map(|came| came.elapsed())))
    }

    /// Whether nothing waits.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn len(&self) -> usize {
        self.gate.len()
    }

    /// Says that the worker is going to sleep. Returns `false` if it must not, because something
    /// waits.
    pub(super) fn sleep(&self) -> bool {
        self.gate.sleep()
    }

    /// The worker is awake.
    pub(super) fn awake(&self) {
        self.gate.awake();
    }
}

/// Reaches the connections of a server from any thread, and from callbacks. What one thread
/// asks of one connection happens in the order asked.
#[derive(Clone, Debug)]
pub struct Remote {
    mailboxes: Arc<[Mailbox]>,
    recorders: Arc<[Arc<Recorder>]>,
    /// Whose turn it is to connect.
    turn: Arc<AtomicUsize>,
    /// All workers are told of one end before the next: each sees several in the same order.
    ends: Arc<OneByOne>,
    topics: Arc<TopicCounts>,
}

/// Why a connection is not made.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// What is asked for.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server.
    #[error(transparent)]
    Post(#[from] PostError),
}

impl Remote {
    /// Reaches so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            mailboxes: (0..workers).map(|_| Mailbox::default()).collect(),
            recorders: (0..workers).map(|_| Arc::default()).collect(),
            turn: Arc::default(),
            ends: Arc::default(),
            topics: Arc::default(),
        }
    }

    /// What one worker records.
    pub(crate) fn recorder(&self, worker: u16) -> &Arc<Recorder> {
        &self.recorders[usize::from(worker)]
    }

    /// What the threads have seen so far; no thread is asked for it, or held up.
    pub fn metrics(&self) -> Metrics {
        let threads = self.recorders.iter().map(|recorder| recorder.read());
        let lens = self.mailboxes.iter().map(Mailbox::len);
        Metrics::new(threads.collect(), lens.collect())
    }

    /// Subscribers of all threads.
    pub(super) fn topic_counts(&self) -> &Arc<TopicCounts> {
        &self.topics
    }

    pub(super) fn mailbox(&self, worker: u16) -> &Mailbox {
        &self.mailboxes[usize::from(worker)]
    }

    /// How many threads it reaches.
    pub fn threads(&self) -> usize {
        self.mailboxes.len()
    }

    fn post_command(&self, id: ConnId, command: Command) -> Result<(), PostError> {
        let mailbox = self.mailboxes.get(usize::from(id.worker));
        let mailbox = mailbox.ok_or(PostError::Stopped)?;
        mailbox.post(command, MAILBOX_LEN_MAX)
    }

    /// Sends a message to one connection. If it is gone the message is dropped; if its output
    /// limit leaves no room, what its route's policy says is done.
    ///
    /// # Errors
    /// The message was not taken.
    pub fn send(&self, id: ConnId, message: impl Into<Prepared>) -> Result<(), PostError> {
        self.send_with(id, message, &SendOptions::new())
    }

    /// As [`send`](Self::send), with a policy of its own.
    ///
    /// # Errors
    /// The message was not taken.
    pub fn send_with(
        &self,
        id: ConnId,
        message: impl Into<Prepared>,
        options: &SendOptions,
    ) -> Result<(), PostError> {
        self.post_command(id, Command::Send(id.key, message.into(), *options))
    }

    /// Sends a message to every open connection of the server: one copy, whatever their
    /// number. Where an output limit leaves no room, what the route's policy says is done.
    ///
    /// # Errors
    /// At least one thread did not take it.
    pub fn broadcast(&self, message: impl Into<Prepared>) -> Result<(), PostError> {
        let message = message.into();
        self.post_all(None, || Command::Broadcast(message.clone()))
    }

    /// Sends a message to the subscribers of a topic, of all threads: one copy, whatever their
    /// number. Messages that one thread publishes to one topic reach each subscriber in the
    /// order published. A subscriber that cannot keep up is dealt with as its route's policy
    /// says, and delays nobody.
    ///
    /// # Errors
    /// At least one thread did not take it.
    pub fn publish(&self, topic: &str, message: impl Into<Prepared>) -> Result<(), PostError> {
        self.publish_with(topic, message, &SendOptions::new())
    }

    /// As [`publish`](Self::publish), with a policy of its own.
    ///
    /// # Errors
    /// At least one thread did not take it.
    pub fn publish_with(
        &self,
        topic: &str,
        message: impl Into<Prepared>,
        options: &SendOptions,
    ) -> Result<(), PostError> {
        self.publish_but(None, topic, &message.into(), options)
    }

    /// Publishes on every thread but one.
    pub(super) fn publish_but(
        &self,
        but: Option<u16>,
        topic: &str,
        message: &Prepared,
        options: &SendOptions,
    ) -> Result<(), PostError> {
        if but.is_some() && self.threads() == 1 {
            return Ok(());
        }
        let topic = Arc::<str>::from(topic);
        self.post_all(but, || {
            Command::Publish(Arc::clone(&topic), message.clone(), *options)
        })
    }

    fn post_all(&self, but: Option<u16>, command: impl Fn() -> Command) -> Result<(), PostError> {
        let mut result = Ok(());
        for (number, mailbox) in self.mailboxes.iter().enumerate() {
            if but != Some(number as u16) {
                result = result.and(mailbox.post(command(), MAILBOX_LEN_MAX));
            }
        }
        result
    }

    /// Gives a deferred answer; there is at most one for each connection, so there is room.
    pub(super) fn answer_deferred(&self, id: ConnId, answer: DeferredAnswer) {
        if let Some(mailbox) = self.mailboxes.get(usize::from(id.worker)) {
            // A server that has stopped answers nobody.
            let _ = mailbox.post(Command::Deferred(id.key, answer), usize::MAX);
        }
    }

    /// Subscribers of a topic, of all threads, at this moment.
    pub fn subscriber_count(&self, topic: &str) -> usize {
        self.topics.get(topic)
    }

    /// Gives the handler of one thread a value
    /// ([`Handler::on_remote`](crate::Handler::on_remote)). Threads are numbered from zero.
    ///
    /// # Errors
    /// The value was not taken; there is no such thread ([`PostError::Stopped`]).
    pub fn post(&self, thread: usize, value: impl Any + Send) -> Result<(), PostError> {
        let mailbox = self.mailboxes.get(thread).ok_or(PostError::Stopped)?;
        mailbox.post(Command::Post(Box::new(value)), MAILBOX_LEN_MAX)
    }

    /// Gives the handler a value that is about one connection
    /// ([`Handler::on_post`](crate::Handler::on_post)). If it is gone the value is dropped.
    ///
    /// # Errors
    /// The value was not taken.
    pub fn post_to(&self, id: ConnId, value: impl Any + Send) -> Result<(), PostError> {
        self.post_command(id, Command::PostTo(id.key, Box::new(value)))
    }

    /// Delivers no messages of one connection until it is resumed
    /// ([`Context::pause`](crate::Context::pause)).
    ///
    /// # Errors
    /// The command was not taken.
    pub fn pause(&self, id: ConnId) -> Result<(), PostError> {
        self.post_command(id, Command::Pause(id.key, true))
    }

    /// Delivers the messages of one connection again.
    ///
    /// # Errors
    /// The command was not taken.
    pub fn resume(&self, id: ConnId) -> Result<(), PostError> {
        self.post_command(id, Command::Pause(id.key, false))
    }

    /// Gives one connection up at once, with what is queued, and without a Close frame.
    ///
    /// # Errors
    /// The command was not taken.
    pub fn terminate(&self, id: ConnId) -> Result<(), PostError> {
        self.post_command(id, Command::Terminate(id.key))
    }

    /// Begins the closing handshake with one connection. If it is gone nothing happens.
    ///
    /// # Errors
    /// The command was not taken.
    pub fn close(&self, id: ConnId, code: CloseCode, reason: &str) -> Result<(), PostError> {
        self.post_command(id, Command::Close(id.key, code, reason.into()))
    }

    /// Makes a connection on one of the server's threads, in turn; the handler gives it its
    /// data in [`Handler::on_connect`](crate::Handler::on_connect), and its `on_close` also
    /// says if it did not open.
    ///
    /// # Errors
    /// What is asked for makes no sense, or was not taken.
    pub fn connect(&self, connect: Connect) -> Result<(), ConnectError> {
        connect.validate()?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mailbox = &self.mailboxes[turn % self.mailboxes.len()];
        mailbox.post(Command::Connect(Box::new(connect)), MAILBOX_LEN_MAX)?;
        Ok(())
    }

    /// Hands a connection to one of the server's threads, in turn, whose opening handshake has
    /// been made elsewhere: by another HTTP server in this process, say, that has routed and
    /// authenticated the request. `received` is what had been read of it behind the request. The
    /// handler gives it its data in [`Handler::on_adopt`](crate::Handler::on_adopt); then comes
    /// `on_open`. The stream is not encrypted: TLS would have to be ended by whoever began it.
    ///
    /// # Errors
    /// The command was not taken; the socket is closed.
    pub fn adopt(
        &self,
        socket: impl Into<OwnedFd>,
        received: impl Into<Vec<u8>>,
        agreed: Agreed,
    ) -> Result<(), PostError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mailbox = &self.mailboxes[turn % self.mailboxes.len()];
        let command = Command::Adopt(socket.into(), received.into(), Box::new(agreed));
        mailbox.post(command, MAILBOX_LEN_MAX)
    }

    /// Asks every worker to end, spread over a window.
    pub(crate) fn drain(&self, drain: Drain) {
        let drain = Arc::new(drain);
        self.end_all(|| Command::Drain(Arc::clone(&drain)));
    }

    /// Asks every worker to end.
    pub(crate) fn shutdown(&self) {
        self.end_all(|| Command::Shutdown);
    }

    /// Ends every worker because one of them has failed. An end that is under way goes on.
    pub(crate) fn fail(&self) {
        self.end_all(|| Command::Fail);
    }

    fn end_all(&self, command: impl Fn() -> Command) {
        self.ends.run(|| {
            for mailbox in self.mailboxes.iter() {
                // Also into a full mailbox; a worker that has stopped needs no asking.
                let _ = mailbox.post(command(), usize::MAX);
            }
        });
    }

    /// Closes the mailbox of a worker that has not been made, or has ended.
    pub(crate) fn stop(&self, worker: u16) {
        let recorder = self.recorder(worker);
        self.mailbox(worker)
            .stop(|command| door::discard(recorder, "a value in a mailbox", command));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(worker: u16) -> ConnId {
        let key = Key {
            index: 0,
            generation: 0,
        };
        ConnId { worker, key }
    }

    #[test]
    fn mailbox_is_bounded_and_says_so() {
        let remote = Remote::new(1);
        for _ in 0..MAILBOX_LEN_MAX {
            remote.send(id(0), "x").expect("there is room");
        }
        assert_eq!(remote.send(id(0), "x"), Err(PostError::Full));
        assert_eq!(remote.broadcast("x"), Err(PostError::Full));
        remote.mailbox(0).take().expect("there is one");
        remote.send(id(0), "x").expect("there is room for one");
        remote.stop(0);
        assert_eq!(remote.send(id(0), "x"), Err(PostError::Stopped));
        assert_eq!(remote.send(id(1), "x"), Err(PostError::Stopped));
    }

    #[test]
    fn worker_is_woken_only_when_it_sleeps() {
        let remote = Remote::new(1);
        let mailbox = remote.mailbox(0);
        let wakes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&wakes);
        let waker = Waker::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        mailbox.start(&waker, false);
        remote.send(id(0), "awake").expect("room");
        assert!(!mailbox.sleep(), "something waits");
        mailbox.take().expect("one");
        assert!(mailbox.sleep());
        remote.send(id(0), "one").expect("room");
        remote.send(id(0), "two").expect("room");
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
    }
}
