//! epoll on Linux, kqueue elsewhere, through the crate `mio`.
//!
//! A socket is registered once, for both directions and edge-triggered: no call changes that
//! before it is closed. Batches are loops of `recv` and `send`.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::IntoRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use mio::Events;
use mio::Interest;
use mio::Poll;
use mio::Token as MioToken;
use mio::unix::SourceFd;

use super::Backend;
use super::Event;
use super::PeerAddr;
use super::RecvOp;
use super::SendOp;
use super::Target;
use super::Token;
use super::Waker;
use super::connect;
use super::listen::Listener;
use super::sys;

const EVENTS_MAX: usize = 1024;

/// Connections accepted in one wait from one listener, for the others to have their turn.
const ACCEPT_MAX: usize = 64;

const LISTENER: usize = 1 << Token::BITS;
const WAKER: usize = 2 << Token::BITS;
const KIND: usize = !((1 << Token::BITS) - 1);

const _: () = assert!(size_of::<usize>() == 8, "tokens are 64 bits");

/// The readiness backend.
#[derive(Debug)]
pub struct PollBackend {
    poll: Poll,
    ready: Events,
    waker: Waker,
    listeners: Vec<Acceptor>,
    accepting: bool,
    start: Instant,
}

#[derive(Debug)]
struct Acceptor {
    listener: Listener,
    /// There may be connections in the backlog.
    ready: bool,
}

impl PollBackend {
    /// A backend that accepts from these listeners.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new(listeners: Vec<Listener>) -> io::Result<Self> {
        // Errors here are those of a start: what has been made is dropped.
        let poll = Poll::new()?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), MioToken(WAKER))?);
        let mut acceptors = Vec::new();
        for (index, listener) in listeners.into_iter().enumerate() {
            let token = MioToken(LISTENER | index);
            let mut source = SourceFd(&listener.fd());
            poll.registry()
                .register(&mut source, token, Interest::READABLE)?;
            acceptors.push(Acceptor {
                listener,
                ready: true,
            });
        }
        Ok(Self {
            poll,
            ready: Events::with_capacity(EVENTS_MAX),
            waker: Waker::new(move || {
                // It fails only when the descriptor is gone, and with it the sleeper.
                let _ = waker.wake();
            }),
            listeners: acceptors,
            accepting: true,
            start: Instant::now(),
        })
    }

    fn accept(&mut self, events: &mut Vec<Event<RawFd>>) {
        for (listener, acceptor) in self.listeners.iter_mut().enumerate() {
            let mut room = ACCEPT_MAX;
            while acceptor.ready && self.accepting && room > 0 {
                room -= 1;
                match sys_accept(acceptor.listener.fd()) {
                    Ok(socket) => events.push(Event::Accepted { socket, listener }),
                    Err(error) if super::would_block(&error) => acceptor.ready = false,
                    Err(error) if sys::is_exhausted(&error) => {
                        self.accepting = false;
                        events.push(Event::AcceptFailed(error));
                    }
                    // A connection that broke in the backlog: on to the next.
                    Err(_) => {}
                }
            }
        }
    }

    fn may_accept(&self) -> bool {
        self.accepting && self.listeners.iter().any(|acceptor| acceptor.ready)
    }
}

fn sys_accept(fd: RawFd) -> io::Result<RawFd> {
    // SAFETY: the listener that owns the descriptor is alive.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let (socket, _) = socket2::SockRef::from(&fd).accept()?;
    Ok(socket.into_raw_fd())
}

impl Backend for PollBackend {
    type Socket = RawFd;

    const NO_SOCKET: RawFd = -1;

    #[inline]
    fn recv_batch(&self) -> Option<usize> {
        None
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event<RawFd>>,
    ) -> io::Result<()> {
        let timeout = if self.may_accept() {
            Some(Duration::ZERO)
        } else {
            timeout
        };
        match self.poll.poll(&mut self.ready, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // epoll_wait(2) has no other errors than EBADF, EFAULT and EINVAL: an invalid
            // descriptor or buffer. Both belong to the poll and are valid. An error would end the
            // thread.
            result => result?,
        }
        for ready in &self.ready {
            let token = ready.token().0;
            match token & KIND {
                LISTENER => self.listeners[token & !KIND].ready = true,
                WAKER => events.push(Event::Woken),
                _ => events.push(Event::Ready {
                    token: Token::from_bits(token as u64),
                    readable: ready.is_readable() || ready.is_read_closed() || ready.is_error(),
                    writable: ready.is_writable(),
                    hangup: ready.is_read_closed() || ready.is_error(),
                    lapsed: false,
                }),
            }
        }
        self.accept(events);
        Ok(())
    }

    fn pause_accept(&mut self) {
        self.accepting = false;
    }

    fn resume_accept(&mut self) {
        self.accepting = true;
        for acceptor in &mut self.listeners {
            // Edges may have gone by.
            acceptor.ready = true;
        }
    }

    fn connect(&mut self, target: &Target) -> io::Result<RawFd> {
        connect::begin(target).map(IntoRawFd::into_raw_fd)
    }

    fn adopt(&mut self, socket: OwnedFd) -> io::Result<RawFd> {
        Ok(socket.into_raw_fd())
    }

    fn register(&mut self, socket: RawFd, token: Token) -> io::Result<()> {
        let token = MioToken(token.to_bits() as usize);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut SourceFd(&socket), token, interest)
    }

    fn arm_writable(&mut self, _socket: RawFd, _token: Token) {
        // Writability has been registered for good: its next edge is reported.
    }

    fn unacknowledged(&mut self, socket: RawFd) -> io::Result<usize> {
        sys::unacknowledged(socket)
    }

    fn recv_many(&mut self, ops: &mut [RecvOp<'_, RawFd>]) {
        for op in ops {
            op.result = sys::recv(op.socket, op.buffer);
        }
    }

    fn send_many(&mut self, ops: &mut [SendOp<'_, RawFd>]) {
        for op in ops {
            op.result = sys::send(op.socket, op.slices);
        }
    }

    fn shutdown_write(&mut self, socket: RawFd) {
        sys::shutdown_write(socket);
    }

    fn close(&mut self, socket: RawFd, _token: Option<Token>) {
        // The last descriptor of a socket takes its registration with it.
        if socket != Self::NO_SOCKET {
            sys::close(socket);
        }
    }

    fn peer_addr(&mut self, socket: RawFd) -> io::Result<PeerAddr> {
        if socket == Self::NO_SOCKET {
            return Err(io::ErrorKind::NotConnected.into());
        }
        sys::peer_addr(socket)
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn has_events(&mut self) -> bool {
        self.may_accept()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the poll that owns the descriptor lives as long as `self`.
        Some(unsafe { BorrowedFd::borrow_raw(self.poll.as_raw_fd()) })
    }
}
