//! The only way into a worker from another thread.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use bytes::BytesMut;
use crossbeam_queue::SegQueue;

use crate::connect::Connect;
use crate::error::ConfigError;
use crate::protocol::CloseCode;
use crate::protocol::FrameHeader;
use crate::protocol::Message;
use crate::reactor::Waker;
use crate::slab::Key;

use super::ConnId;

/// The most commands that wait for one worker.
pub const MAILBOX_LEN_MAX: usize = 64 * 1024;

/// What another thread, or a callback, asks of a worker.
#[derive(Debug)]
pub(super) enum Command {
    /// A frame for one connection.
    Send(Key, Bytes),
    /// A frame for every open connection.
    Broadcast(Bytes),
    /// The closing handshake with one connection.
    Close(Key, CloseCode, Box<str>),
    /// A new connection.
    Connect(Box<Connect>),
    /// The closing handshake with all, and the end of the worker.
    Shutdown,
}

/// One worker's queue of commands, in the order of each sender.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    commands: SegQueue<Command>,
    len: AtomicUsize,
    /// The worker sleeps, or is about to: it must be woken.
    sleeping: AtomicBool,
    stopped: AtomicBool,
    waker: OnceLock<Waker>,
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
        if self.stopped.load(Ordering::Acquire) {
            return Err(PostError::Stopped);
        }
        if self.len.fetch_add(1, Ordering::AcqRel) >= len_max {
            self.len.fetch_sub(1, Ordering::AcqRel);
            return Err(PostError::Full);
        }
        self.commands.push(command);
        // Ordered against `sleep`: either this sees the flag, or that sees the command.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed)
            && self.sleeping.swap(false, Ordering::AcqRel)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
        Ok(())
    }

    /// The worker has started.
    pub(super) fn start(&self, waker: Waker) {
        let set = self.waker.set(waker);
        assert!(set.is_ok(), "a mailbox has one worker");
    }

    /// The worker has stopped: what waits is thrown away.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        while self.take().is_some() {}
    }

    /// Takes the next command.
    #[inline]
    pub(super) fn take(&self) -> Option<Command> {
        if self.is_empty() {
            return None;
        }
        let command = self.commands.pop()?;
        self.len.fetch_sub(1, Ordering::AcqRel);
        Some(command)
    }

    /// Whether nothing waits.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    /// Says that the worker is going to sleep; false if it must not, because something waits.
    pub(super) fn sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.is_empty() {
            return true;
        }
        self.awake();
        false
    }

    /// The worker is awake.
    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

/// Reaches the connections of a server from any thread, and from callbacks. What one thread
/// asks of one connection happens in the order asked.
#[derive(Clone, Debug)]
pub struct Remote {
    mailboxes: Arc<[Mailbox]>,
    /// Whose turn it is to connect.
    turn: Arc<AtomicUsize>,
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
            turn: Arc::default(),
        }
    }

    pub(super) fn mailbox(&self, worker: u16) -> &Mailbox {
        &self.mailboxes[usize::from(worker)]
    }

    /// How many workers it reaches.
    pub(crate) fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    fn post(&self, id: ConnId, command: Command) -> Result<(), PostError> {
        let mailbox = self.mailboxes.get(usize::from(id.worker));
        let mailbox = mailbox.ok_or(PostError::Stopped)?;
        mailbox.post(command, MAILBOX_LEN_MAX)
    }

    /// Sends a message to one connection. If it is gone, or its output limit leaves no room,
    /// the message is dropped.
    ///
    /// # Errors
    /// The message was not taken.
    pub fn send<'a>(&self, id: ConnId, message: impl Into<Message<'a>>) -> Result<(), PostError> {
        self.post(id, Command::Send(id.key, encode(message.into())))
    }

    /// Sends a message to every open connection of the server: one copy, whatever their
    /// number. A connection whose output limit leaves no room is left out.
    ///
    /// # Errors
    /// At least one worker did not take it.
    pub fn broadcast<'a>(&self, message: impl Into<Message<'a>>) -> Result<(), PostError> {
        let frame = encode(message.into());
        let post =
            |mailbox: &Mailbox| mailbox.post(Command::Broadcast(frame.clone()), MAILBOX_LEN_MAX);
        let results: Vec<_> = self.mailboxes.iter().map(post).collect();
        results.into_iter().collect()
    }

    /// Begins the closing handshake with one connection. If it is gone nothing happens.
    ///
    /// # Errors
    /// The command was not taken.
    pub fn close(&self, id: ConnId, code: CloseCode, reason: &str) -> Result<(), PostError> {
        self.post(id, Command::Close(id.key, code, reason.into()))
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

    /// Asks every worker to end.
    pub(crate) fn shutdown(&self) {
        for mailbox in self.mailboxes.iter() {
            // Also into a full mailbox; a worker that has stopped needs no asking.
            let _ = mailbox.post(Command::Shutdown, usize::MAX);
        }
    }
}

/// A server's frame: header and payload in one piece.
fn encode(message: Message<'_>) -> Bytes {
    let payload = message.payload();
    let header = FrameHeader {
        fin: true,
        rsv1: false,
        opcode: message.opcode(),
        payload_len: payload.len() as u64,
        mask_key: None,
    };
    let header = header.encode();
    let mut frame = BytesMut::with_capacity(header.as_bytes().len() + payload.len());
    frame.extend_from_slice(header.as_bytes());
    frame.extend_from_slice(payload);
    frame.freeze()
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
        remote.mailbox(0).stop();
        assert_eq!(remote.send(id(0), "x"), Err(PostError::Stopped));
        assert_eq!(remote.send(id(1), "x"), Err(PostError::Stopped));
    }

    #[test]
    fn worker_is_woken_only_when_it_sleeps() {
        let remote = Remote::new(1);
        let mailbox = remote.mailbox(0);
        let wakes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&wakes);
        mailbox.start(Waker::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        remote.send(id(0), "awake").expect("room");
        assert!(!mailbox.sleep(), "something waits");
        mailbox.take().expect("one");
        assert!(mailbox.sleep());
        remote.send(id(0), "one").expect("room");
        remote.send(id(0), "two").expect("room");
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
    }
}
