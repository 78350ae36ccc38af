//! The only room that makes system calls: readiness in, bytes both ways.
//!
//! # The contract
//!
//! A [`Backend`] is synchronous, batched and non-blocking.
//!
//! 1. [`Backend::wait`] sleeps until something is ready, or for the time given, and appends
//!    [`Event`]s. It is the only call that sleeps.
//! 2. Accepted sockets come as events. The owner answers each with [`Backend::register`] or
//!    [`Backend::close`], and gives it a [`Token`] that the events of that socket carry.
//!    A token may be used again after `close`; an event of the socket before is then marked
//!    by its older generation, which the owner compares.
//!    Sockets that [`Backend::connect`] makes are registered the same way. They are writable
//!    when they are connected, and report what kept them from it when they are used.
//! 3. Readability is edge-like: an event comes when something new has arrived. The owner reads
//!    until a read is short or would block, or remembers that it has not; where the event says
//!    `hangup`, until the end of the stream or an error.
//! 4. [`Backend::recv_many`] and [`Backend::send_many`] never wait. They borrow memory until
//!    they return; nothing that outlives a call points to memory of the caller's, in flight or
//!    queued, whatever fails. Operations that were not carried out have an error as their result.
//! 5. A short send is followed by [`Backend::arm_writable`] and one event when there is room.
//! 6. Accepting ends by itself when the system runs out of something, with
//!    [`Event::AcceptFailed`]; what is in the backlog stays there until
//!    [`Backend::resume_accept`].
//! 7. [`Backend::wait`] fails only when nothing can go on. An error that costs one connection is
//!    the result of the call about that connection.
//!
//! There are three: `uring` (io_uring), `poll` (epoll or kqueue, through the crate `mio`) and
//! `sim` (a simulated network in virtual time).

pub mod connect;
pub mod listen;
#[cfg(feature = "poll")]
pub mod poll;
#[cfg(feature = "testkit")]
pub mod sim;
pub mod spin;
mod sys;
#[cfg(all(feature = "uring", target_os = "linux"))]
pub mod uring;

use std::fmt;
use std::io;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use crate::slab::Key;

pub use connect::Target;
pub use connect::prepare_adopted;
pub use sys::allowed_cpus;
pub use sys::discard;
pub use sys::explain;
pub use sys::explained;

/// The most pieces that one send takes.
pub const SLICES_MAX: usize = 16;

/// A connection's key as backends carry it: 32 bits of index, 28 of generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(u64);

impl Token {
    const GENERATION_BITS: u32 = 28;
    const GENERATION_MASK: u32 = (1 << Self::GENERATION_BITS) - 1;
    /// Bits that are free for a backend's own use, at the top.
    pub const BITS: u32 = 32 + Self::GENERATION_BITS;

    /// The token of a key.
    #[inline]
    pub fn new(key: Key) -> Self {
        let generation = u64::from(key.generation & Self::GENERATION_MASK);
        Self(generation << 32 | u64::from(key.index))
    }

    /// Position in the slab.
    #[inline]
    pub fn index(self) -> u32 {
        self.0 as u32
    }

    /// Whether the token is that of `key`. A token outlives its connection by a few turns;
    /// 2^28 connections do not fit into those.
    #[inline]
    pub fn is_of(self, key: Key) -> bool {
        self == Self::new(key)
    }

    #[cfg_attr(not(any(feature = "poll", feature = "uring")), allow(dead_code))]
    fn to_bits(self) -> u64 {
        self.0
    }

    #[cfg_attr(not(any(feature = "poll", feature = "uring")), allow(dead_code))]
    fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << Self::BITS) - 1))
    }
}

/// An event that a wait reports.
#[derive(Debug)]
pub enum Event<S> {
    /// A connection was accepted.
    Accepted {
        /// The new connection.
        socket: S,
        /// Index of its listener among those of the backend.
        listener: usize,
    },
    /// Accepting has stopped.
    AcceptFailed(io::Error),
    /// Something has arrived, or there is room to send.
    Ready {
        /// Of the connection.
        token: Token,
        /// Bytes, the end of the stream, or an error can be read.
        readable: bool,
        /// Sending may go on.
        writable: bool,
        /// The peer has closed its side, or the connection broke.
        hangup: bool,
        /// The readiness source has ended: register again.
        lapsed: bool,
    },
    /// A [`Waker`] was used.
    Woken,
}

/// A receive of a batch.
#[derive(Debug)]
pub struct RecvOp<'a, S> {
    /// Socket to receive from.
    pub socket: S,
    /// Buffer for the bytes.
    pub buffer: &'a mut [u8],
    /// Bytes received; zero at the end of the stream.
    pub result: io::Result<usize>,
}

/// A send of a batch.
#[derive(Debug)]
pub struct SendOp<'a, S> {
    /// Socket to send to.
    pub socket: S,
    /// Bytes to send, in pieces: at least one, and none of them is empty.
    pub slices: &'a [IoSlice<'a>],
    /// Bytes that the kernel took.
    pub result: io::Result<usize>,
}

impl<S> SendOp<'_, S> {
    /// Bytes to send.
    pub fn len(&self) -> usize {
        self.slices.iter().map(|slice| slice.len()).sum()
    }
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerAddr {
    /// TCP over IPv4 or IPv6.
    Ip(SocketAddr),
    /// A Unix socket; peers of those have no name.
    Unix,
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// Ends a backend's wait, from any thread.
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    #[cfg_attr(
        not(any(feature = "poll", feature = "uring", feature = "testkit")),
        allow(dead_code)
    )]
    pub(crate) fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(wake))
    }

    /// Wakes as long as this one is kept.
    pub fn downgrade(&self) -> WeakWaker {
        WeakWaker(Arc::downgrade(&self.0))
    }
}

/// A [`Waker`] that keeps nothing alive.
#[derive(Clone)]
pub struct WeakWaker(Weak<dyn Fn() + Send + Sync>);

impl WeakWaker {
    /// Ends the wait that is under way, or the next one. Nothing if the [`Waker`] is gone.
    pub fn wake(&self) {
        if let Some(wake) = self.0.upgrade() {
            wake();
        }
    }
}

impl fmt::Debug for WeakWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakWaker")
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

/// A mechanism of the operating system; see the room's first lines for the contract.
pub trait Backend {
    /// A connected socket.
    type Socket: Copy + fmt::Debug;

    /// Stands for a socket that could not be made: calls on it fail, or do nothing.
    const NO_SOCKET: Self::Socket;

    /// How many receives one system call makes; `None` if each receive and each send is a call of
    /// its own.
    fn recv_batch(&self) -> Option<usize>;

    /// Time since the backend was made.
    fn now(&self) -> Duration;

    /// Waits for events: without limit if there is no time-out, not at all if it is zero.
    ///
    /// # Errors
    /// The mechanism itself failed: nothing can go on.
    fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event<Self::Socket>>,
    ) -> io::Result<()>;

    /// Accepts no more until told to.
    fn pause_accept(&mut self);

    /// Whether connections may still come that the kernel has accepted, or accepts, after it was
    /// told to accept no more. The wait in which that ends reports an event.
    fn has_accepts(&self) -> bool {
        false
    }

    /// Accepts again.
    fn resume_accept(&mut self);

    /// Begins to connect.
    ///
    /// # Errors
    /// It cannot even be begun: an address that is not of this machine, no free port, out of
    /// descriptors.
    fn connect(&mut self, target: &Target) -> io::Result<Self::Socket>;

    /// Takes a connected stream socket that was made elsewhere; it has been set to be
    /// non-blocking.
    ///
    /// # Errors
    /// Out of descriptors; or a backend that has no use for real sockets.
    fn adopt(&mut self, socket: OwnedFd) -> io::Result<Self::Socket> {
        drop(socket);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Reports what becomes ready on this socket from now on.
    ///
    /// # Errors
    /// The system has run out of something. The socket can be closed, or registered again.
    fn register(&mut self, socket: Self::Socket, token: Token) -> io::Result<()>;

    /// Reports once when there is room to send.
    fn arm_writable(&mut self, socket: Self::Socket, token: Token);

    /// Returns how many bytes that were sent the peer has not acknowledged: they change if it takes
    /// anything.
    ///
    /// # Errors
    /// Out of descriptors: it cannot be known now.
    fn unacknowledged(&mut self, socket: Self::Socket) -> io::Result<usize>;

    /// Returns the most bytes that may wait unread in a socket.
    fn receive_buffer_max(&self) -> usize {
        sys::receive_buffer_max()
    }

    /// Receives for each, and puts the results into the operations.
    fn recv_many(&mut self, ops: &mut [RecvOp<'_, Self::Socket>]);

    /// Sends for each, and puts the results into the operations. At most one operation may be
    /// for the same socket.
    fn send_many(&mut self, ops: &mut [SendOp<'_, Self::Socket>]);

    /// Sends a FIN behind what has been sent.
    fn shutdown_write(&mut self, socket: Self::Socket);

    /// Closes a socket, and forgets its token if it was registered.
    fn close(&mut self, socket: Self::Socket, token: Option<Token>);

    /// Hands the kernel what the next wait would: for owners that may not wait for long.
    fn submit(&mut self) {}

    /// The other end of a connection.
    ///
    /// # Errors
    /// The connection is gone.
    fn peer_addr(&mut self, socket: Self::Socket) -> io::Result<PeerAddr>;

    /// Wakes this backend.
    fn waker(&self) -> Waker;

    /// Makes [`descriptor`](Self::descriptor) say what it is to say, from here on.
    ///
    /// # Errors
    /// Out of descriptors.
    fn prepare_descriptor(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Whether a wait would report something that it knows already.
    fn has_events(&mut self) -> bool {
        false
    }

    /// A descriptor that is readable when a wait would not sleep.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Whether a call is to be repeated when the socket is ready.
#[inline]
pub fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Whether a call failed because the system has run out of something that may come back:
/// descriptors, buffers, memory.
pub fn is_exhausted(error: &io::Error) -> bool {
    sys::is_exhausted(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_token_is_not_of_the_next_connection_in_its_slot() {
        let key = |index, generation| Key { index, generation };
        let token = Token::new(key(7, 3));
        assert_eq!(token.index(), 7);
        assert!(token.is_of(key(7, 3)));
        assert!(!token.is_of(key(7, 4)));
        assert!(!token.is_of(key(8, 3)));
        assert_eq!(
            Token::from_bits(token.to_bits() | 0xF << Token::BITS),
            token
        );
        let large = Token::new(key(u32::MAX, u32::MAX));
        assert_eq!(large.to_bits() >> Token::BITS, 0);
    }
}
