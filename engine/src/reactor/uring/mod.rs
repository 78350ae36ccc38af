//! io_uring: multishot accepts and polls, and batches that finish inside one enter.
//!
//! Receives and sends are submitted with `MSG_DONTWAIT`, so each completes while it is
//! submitted, and the call that submits it takes its completion: **no request in flight points
//! to memory**. What stays in flight (accepts, polls, the wake-up) has no pointers, so nothing
//! has to be waited for when a connection, or the ring, is closed.
//!
//! Sockets are regular descriptors, or *direct* ones: entries of a table that belongs to the
//! ring and not to the process. A table can hold as many as `RLIMIT_NOFILE` says, but each
//! ring has one of its own: where more connections are wanted than one table holds, rings are
//! added. The first ring is the one that waits; the others wake it through an eventfd each.

mod accept;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::io::IoSlice;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::IntoRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::squeue::Flags;
use io_uring::types::Fd;
use io_uring::types::Fixed;

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

use accept::AcceptState;
use accept::Acceptor;
use accept::slots_spare;
use ring::Ring;

// What a completion is about: the four bits above a token.
const READABLE: u64 = 0 << Token::BITS;
const WRITABLE: u64 = 1 << Token::BITS;
const ACCEPT: u64 = 2 << Token::BITS;
const WAKE: u64 = 3 << Token::BITS;
const RECV: u64 = 4 << Token::BITS;
const SEND: u64 = 5 << Token::BITS;
const DONE: u64 = 6 << Token::BITS;
const RING: u64 = 7 << Token::BITS;
const INSTALL: u64 = 8 << Token::BITS;
const UPDATE: u64 = 9 << Token::BITS;
const KIND: u64 = 0xF << Token::BITS;

/// The most descriptors that a ring's table can have (the kernel's limit).
const TABLE_MAX: usize = 1 << 20;

/// `IORING_FILE_INDEX_ALLOC` (io_uring.h).
const ALLOCATE_SLOT: i32 = -1;

/// Descriptors left for other things when the process's limit decides.
const DESCRIPTORS_SPARE: usize = 256;

/// A socket: a descriptor, or a slot of a ring's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringSocket {
    index: u32,
    /// `NO_RING`: a descriptor of the process.
    ring: u16,
}

const NO_RING: u16 = u16::MAX;

impl UringSocket {
    fn is_direct(self) -> bool {
        self.ring != NO_RING
    }

    fn fd(self) -> RawFd {
        debug_assert!(!self.is_direct());
        self.index as RawFd
    }

    /// The ring that serves it.
    fn ring(self) -> usize {
        if self.is_direct() {
            self.ring.into()
        } else {
            0
        }
    }
}

/// Builds an entry for either kind of socket.
macro_rules! entry {
    ($socket:expr, $fd:ident => $entry:expr) => {
        if $socket.is_direct() {
            let $fd = Fixed($socket.index);
            $entry
        } else {
            let $fd = Fd($socket.fd());
            $entry
        }
    };
}

struct RingState {
    ring: Ring,
    /// Slots of its table, and how many are taken.
    slots: usize,
    slots_used: usize,
    /// Its eventfd says that completions may be there.
    signalled: bool,
    /// Operations of the batch that is under way.
    in_batch: usize,
    /// Signals the first ring; none for the first.
    eventfd: Option<OwnedFd>,
}

/// The io_uring backend.
pub struct UringBackend {
    rings: Vec<RingState>,
    acceptors: Vec<Acceptor>,
    accepting: bool,
    /// Connections in flight are kept in tables of so many slots, in so many rings.
    direct: Option<Direct>,
    /// The ring whose table accepts.
    accept_ring: usize,
    /// Events that came while something else was waited for.
    stash: Vec<Event<UringSocket>>,
    /// Tokens whose writability is awaited.
    awaiting_room: HashSet<u64>,
    /// Headers of the sends of a batch that have several pieces.
    messages: Vec<libc::msghdr>,
    eventfd: Arc<OwnedFd>,
    /// For an owner that waits for other things as well.
    outer: Option<Outer>,
    start: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Direct {
    slots: usize,
    rings_max: usize,
}

impl std::fmt::Debug for UringBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringBackend")
            .field("rings", &self.rings.len())
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}

/// How many connections one process can have on regular descriptors.
pub fn regular_connections_max() -> usize {
    sys::descriptor_limit().saturating_sub(DESCRIPTORS_SPARE)
}

/// Whether io_uring does all that this backend needs: by doing it.
///
/// # Errors
/// What failed: not supported, not permitted (seccomp, `kernel.io_uring_disabled`), or out of
/// locked memory.
pub fn probe() -> io::Result<()> {
    let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    let mut backend = UringBackend::new(Vec::new(), None)?;
    let socket = |stream: &std::os::unix::net::UnixStream| UringSocket {
        index: stream.as_raw_fd() as u32,
        ring: NO_RING,
    };
    let token = Token::from_bits(1);
    backend.register(socket(&near), token)?;

    let slices = [io::IoSlice::new(b"probe")];
    let mut sends = [0, 1].map(|_| SendOp {
        socket: socket(&far),
        slices: &slices,
        result: Ok(0),
    });
    sends[1].socket = socket(&near);
    backend.send_many(&mut sends);
    let mut events = Vec::new();
    backend.wait(Some(Duration::from_secs(1)), &mut events)?;
    let is_ready = |event: &Event<_>| matches!(event, Event::Ready { readable: true, .. });
    if !events.iter().any(is_ready) {
        return Err(unsupported());
    }
    let mut buffers = [[0; 8]; 2];
    let [first, second] = &mut buffers;
    let mut receives = [(first, &near), (second, &far)].map(|(buffer, stream)| RecvOp {
        socket: socket(stream),
        buffer,
        result: Ok(0),
    });
    backend.recv_many(&mut receives);
    for op in receives {
        if op.result? != 5 {
            return Err(unsupported());
        }
    }
    Ok(())
}

/// A descriptor that is readable when a ring may have something. A ring's own descriptor does not
/// say when the kernel has put work off (`DEFER_TASKRUN`), and an eventfd that a ring signals
/// because another eventfd was written comes late: so all of them are in one epoll.
struct Outer {
    epoll: OwnedFd,
    /// Signalled by the first ring.
    eventfd: OwnedFd,
}

impl Outer {
    fn new() -> io::Result<Self> {
        // SAFETY: a call without pointers; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let outer = Self {
            // SAFETY: the descriptor is new and nobody else's.
            epoll: unsafe { OwnedFd::from_raw_fd(fd) },
            eventfd: new_eventfd()?,
        };
        outer.add(&outer.eventfd)?;
        Ok(outer)
    }

    /// Reports each signal of an eventfd once.
    fn add(&self, eventfd: &OwnedFd) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: 0,
        };
        let (epoll, fd) = (self.epoll.as_raw_fd(), eventfd.as_raw_fd());
        // SAFETY: the event is readable until the call returns.
        let result = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Forgets the signals so far; what comes from here on signals again.
    fn reset(&self) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        let (pointer, len) = (events.as_mut_ptr(), events.len() as i32);
        // SAFETY: so many events are writable until the call returns. Where there are more, or it
        // fails, the descriptor stays readable for another turn.
        unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), pointer, len, 0) };
    }
}

fn new_eventfd() -> io::Result<OwnedFd> {
    // SAFETY: a call without pointers; the result is checked.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn reset_eventfd(fd: RawFd) {
    let mut count = 0_u64;
    // SAFETY: eight bytes are writable at `count` until the call returns. It fails only if the
    // eventfd has been reset before.
    unsafe { libc::read(fd, (&raw mut count).cast(), 8) };
}

impl UringBackend {
    /// A backend that accepts from these listeners, to be used on this thread only. With
    /// `direct_connections`, sockets are direct descriptors, and so many can be held.
    ///
    /// # Errors
    /// What the kernel does not support, permit, or have room for.
    pub fn new(listeners: Vec<Listener>, direct_connections: Option<usize>) -> io::Result<Self> {
        let eventfd = Arc::new(new_eventfd()?);
        let direct = direct_connections.map(|connections| {
            let table_max = sys::descriptor_limit().min(TABLE_MAX);
            let wanted = connections.saturating_add(slots_spare(listeners.len()));
            let slots = wanted.min(table_max);
            Direct {
                slots,
                rings_max: wanted.div_ceil(slots),
            }
        });
        let acceptor = |listener| Acceptor {
            listener,
            state: AcceptState::Idle,
        };
        let mut backend = Self {
            rings: Vec::new(),
            acceptors: listeners.into_iter().map(acceptor).collect(),
            accepting: true,
            direct,
            accept_ring: 0,
            stash: Vec::new(),
            awaiting_room: HashSet::new(),
            messages: Vec::new(),
            eventfd,
            outer: None,
            start: Instant::now(),
        };
        backend.add_ring()?;
        let wake = opcode::PollAdd::new(Fd(backend.eventfd.as_raw_fd()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(WAKE);
        backend.push(0, &wake)?;
        backend.arm_accepts()?;
        Ok(backend)
    }

    fn add_ring(&mut self) -> io::Result<()> {
        let ring = Ring::new()?;
        let slots = self.direct.map_or(0, |direct| direct.slots);
        if slots > 0 {
            ring.submitter().register_files_sparse(slots as u32)?;
        }
        let number = self.rings.len();
        let eventfd = if number == 0 {
            None
        } else {
            let eventfd = new_eventfd()?;
            let fd = eventfd.as_raw_fd();
            ring.submitter().register_eventfd(fd)?;
            if let Some(outer) = &self.outer {
                outer.add(&eventfd)?;
            }
            self.push(0, &Self::signal_poll(fd, number))?;
            Some(eventfd)
        };
        self.rings.push(RingState {
            ring,
            slots,
            slots_used: 0,
            signalled: true,
            in_batch: 0,
            eventfd,
        });
        Ok(())
    }

    fn signal_poll(fd: RawFd, ring: usize) -> squeue::Entry {
        opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(RING | ring as u64)
    }

    /// Another ring has something for us.
    fn handle_signal(&mut self, ring: usize, more: bool) -> io::Result<()> {
        self.rings[ring].signalled = true;
        let Some(fd) = self.rings[ring].eventfd.as_ref().map(AsRawFd::as_raw_fd) else {
            return Ok(());
        };
        if !more {
            // The kernel ends a multishot poll that one of its own rings has woken. Reset
            // first, or the new poll would report the old signal; what comes from here on
            // signals again, and the ring is looked at after this.
            reset_eventfd(fd);
            self.push(0, &Self::signal_poll(fd, ring))?;
        }
        Ok(())
    }

    /// Queues an entry that points to nothing.
    fn push(&mut self, ring: usize, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: polls, accepts, cancels and closes point to no memory.
        unsafe { self.rings[ring].ring.push(entry) }
    }

    /// Queues an entry that points to nothing and whose failure is of no interest.
    fn push_quietly(&mut self, ring: usize, entry: squeue::Entry) {
        let entry = entry.flags(Flags::SKIP_SUCCESS).user_data(DONE);
        // It fails only when the ring is unusable; the next wait reports that.
        let _ = self.push(ring, &entry);
    }

    /// Takes a completion that is not of the batch under way.
    fn handle(&mut self, ring: usize, entry: &cqueue::Entry) -> io::Result<()> {
        let user_data = entry.user_data();
        let result = entry.result();
        let more = cqueue::more(entry.flags());
        match user_data & KIND {
            READABLE
                // Cancelled: the socket has been closed.
                if result != -libc::ECANCELED => {
                    let mask = if result < 0 {
                        libc::POLLERR.into()
                    } else {
                        result
                    };
                    let hangup = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
                    self.stash.push(Event::Ready {
                        token: Token::from_bits(user_data),
                        readable: true,
                        writable: false,
                        hangup: mask & i32::from(hangup) != 0,
                        lapsed: !more,
                    });
                }
            WRITABLE
                if self.awaiting_room.remove(&(user_data & !KIND)) => {
                    self.stash.push(Event::Ready {
                        token: Token::from_bits(user_data),
                        readable: false,
                        writable: true,
                        hangup: false,
                        lapsed: false,
                    });
                }
            ACCEPT => self.handle_accept(ring, user_data as u32 as usize, result, more)?,
            WAKE => {
                self.stash.push(Event::Woken);
                if !more {
                    let fd = Fd(self.eventfd.as_raw_fd());
                    let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32)
                        .multi(true)
                        .build();
                    self.push(0, &poll.user_data(WAKE))?;
                }
            }
            RING => self.handle_signal((user_data & !KIND) as usize, more)?,
            // A cancel or a close that had nothing left to do.
            _ => {}
        }
        Ok(())
    }

    /// Takes all completions that are there.
    fn reap(&mut self, ring: usize) -> io::Result<()> {
        while let Some(entry) = self.rings[ring].ring.complete() {
            self.handle(ring, &entry)?;
        }
        Ok(())
    }

    /// Submits the batch and calls `done` with each of its completions: operation, result.
    /// Goes on until `missing` completions have come and everything is submitted.
    fn run_batch(
        &mut self,
        ring: usize,
        mut missing: usize,
        mut done: impl FnMut(u64, i32),
    ) -> io::Result<()> {
        loop {
            let want = u32::from(missing > 0 && !self.rings[ring].ring.has_submissions());
            self.rings[ring].ring.enter(want, None)?;
            while let Some(entry) = self.rings[ring].ring.complete() {
                let user_data = entry.user_data();
                match user_data & KIND {
                    RECV | SEND | INSTALL | UPDATE => {
                        missing = missing.saturating_sub(1);
                        done(user_data & !KIND, entry.result());
                    }
                    _ => self.handle(ring, &entry)?,
                }
            }
            if missing == 0 && !self.rings[ring].ring.has_submissions() {
                return Ok(());
            }
        }
    }

    /// A descriptor of the process for a direct one.
    fn install(&mut self, socket: UringSocket) -> io::Result<OwnedFd> {
        let ring = socket.ring();
        let entry = opcode::FixedFdInstall::new(Fixed(socket.index), 0).build();
        self.push(ring, &entry.user_data(INSTALL))?;
        let mut result = -libc::EIO;
        self.run_batch(ring, 1, |_, installed| result = installed)?;
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        // SAFETY: the kernel has made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(result) })
    }
}

impl UringBackend {
    /// A slot of a ring's table for a socket; its descriptor is closed by the caller.
    fn move_to_table(&mut self, socket: &OwnedFd) -> io::Result<UringSocket> {
        let ring = self.ring_with_room()?;
        let mut fd = socket.as_raw_fd();
        // The kernel chooses a free slot and writes its number over the descriptor.
        let entry = opcode::FilesUpdate::new(&raw mut fd, 1)
            .offset(ALLOCATE_SLOT)
            .build()
            .user_data(UPDATE);
        // SAFETY: `fd` is writable until the loop below has seen the update complete.
        unsafe { self.rings[ring].ring.push(&entry)? };
        let mut result = -libc::EIO;
        let run = self.run_batch(ring, 1, |_, updated| result = updated);
        // The kernel refuses the ring itself: it may still hold our pointer.
        run.expect("a ring that has worked goes on working");
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        self.rings[ring].slots_used += 1;
        Ok(UringSocket {
            index: fd as u32,
            ring: ring as u16,
        })
    }
}

/// A message header that points to `slices`.
fn message_of(slices: &[IoSlice<'_>]) -> libc::msghdr {
    // SAFETY: all zeros is a valid `msghdr`: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    // `IoSlice` has the layout of `iovec` on Unix.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    message
}

impl Backend for UringBackend {
    type Socket = UringSocket;

    const NO_SOCKET: UringSocket = UringSocket {
        index: u32::MAX,
        ring: NO_RING,
    };

    #[inline]
    fn recv_batch(&self) -> Option<usize> {
        Some(16)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event<UringSocket>>,
    ) -> io::Result<()> {
        if let Some(outer) = &self.outer {
            outer.reset();
        }
        for ring in 1..self.rings.len() {
            if self.rings[ring].signalled || self.rings[ring].ring.has_submissions() {
                self.rings[ring].signalled = false;
                self.rings[ring].ring.enter(0, None)?;
                self.reap(ring)?;
            }
        }
        let poll_only = timeout == Some(Duration::ZERO) || !self.stash.is_empty();
        if poll_only {
            self.rings[0].ring.enter(0, None)?;
        } else {
            self.rings[0].ring.enter(1, timeout)?;
        }
        self.reap(0)?;
        for ring in 1..self.rings.len() {
            if self.rings[ring].signalled {
                self.rings[ring].signalled = false;
                self.rings[ring].ring.enter(0, None)?;
                self.reap(ring)?;
            }
        }
        events.append(&mut self.stash);
        Ok(())
    }

    fn pause_accept(&mut self) {
        self.accepting = false;
        for index in 0..self.acceptors.len() {
            self.cancel_accept(index);
        }
    }

    fn resume_accept(&mut self) {
        self.accepting = true;
        // It fails only when the ring is unusable; the next wait reports that.
        let _ = self.arm_accepts();
    }

    fn connect(&mut self, target: &Target) -> io::Result<UringSocket> {
        self.adopt(connect::begin(target)?.into())
    }

    fn adopt(&mut self, socket: OwnedFd) -> io::Result<UringSocket> {
        if self.direct.is_some() {
            return self.move_to_table(&socket);
        }
        Ok(UringSocket {
            index: socket.into_raw_fd() as u32,
            ring: NO_RING,
        })
    }

    fn register(&mut self, socket: UringSocket, token: Token) -> io::Result<()> {
        let mask = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let entry = entry!(socket, fd => opcode::PollAdd::new(fd, mask).multi(true).build());
        self.push(socket.ring(), &entry.user_data(READABLE | token.to_bits()))
    }

    fn arm_writable(&mut self, socket: UringSocket, token: Token) {
        if self.awaiting_room.insert(token.to_bits()) {
            let mask = libc::POLLOUT as u32;
            let entry = entry!(socket, fd => opcode::PollAdd::new(fd, mask).build());
            // It fails only when the ring is unusable; the next wait reports that.
            let _ = self.push(socket.ring(), &entry.user_data(WRITABLE | token.to_bits()));
        }
    }

    fn recv_many(&mut self, ops: &mut [RecvOp<'_, UringSocket>]) {
        if let [op] = ops
            && !op.socket.is_direct()
        {
            // Never a batch of one: a ring's call costs more than the plain one.
            op.result = sys::recv(op.socket.fd(), op.buffer);
            return;
        }
        for (index, op) in ops.iter_mut().enumerate() {
            let (pointer, len) = (op.buffer.as_mut_ptr(), op.buffer.len() as u32);
            let entry = entry!(op.socket, fd => opcode::Recv::new(fd, pointer, len)
                .flags(libc::MSG_DONTWAIT)
                .build());
            let ring = &mut self.rings[op.socket.ring()];
            // SAFETY: the buffer is borrowed until this function returns, and the loop below
            // does not end before the receive has completed.
            let pushed = unsafe { ring.ring.push(&entry.user_data(RECV | index as u64)) };
            op.result = pushed.map(|()| 0);
            ring.in_batch += usize::from(op.result.is_ok());
        }
        for ring in 0..self.rings.len() {
            let missing = mem::take(&mut self.rings[ring].in_batch);
            if missing > 0 {
                let run = self.run_batch(ring, missing, |index, result| {
                    ops[index as usize].result = to_result(result);
                });
                // The kernel refuses the ring itself: it may still hold our pointers.
                run.expect("a ring that has worked goes on working");
            }
        }
    }

    fn send_many(&mut self, ops: &mut [SendOp<'_, UringSocket>]) {
        if let [op] = ops
            && !op.socket.is_direct()
        {
            op.result = sys::send(op.socket.fd(), op.slices);
            return;
        }
        self.messages.clear();
        // The entries point into it: it must not grow.
        self.messages.reserve(ops.len());
        let flags = sys::SEND_FLAGS.bits() as i32 | libc::MSG_WAITALL;
        for (index, op) in ops.iter_mut().enumerate() {
            let entry = if let [slice] = op.slices {
                entry!(op.socket, fd => opcode::Send::new(fd, slice.as_ptr(), slice.len() as u32)
                    .flags(flags)
                    .build())
            } else {
                self.messages.push(message_of(op.slices));
                let message = &raw const self.messages[self.messages.len() - 1];
                entry!(op.socket, fd => opcode::SendMsg::new(fd, message)
                    .flags(flags as u32)
                    .build())
            };
            // A send that takes everything says nothing.
            let entry = entry.flags(Flags::SKIP_SUCCESS);
            let ring = &mut self.rings[op.socket.ring()];
            // SAFETY: the pieces are borrowed, and `messages` is not touched, until the loop
            // below has submitted the send, which completes while it is submitted.
            let pushed = unsafe { ring.ring.push(&entry.user_data(SEND | index as u64)) };
            op.result = pushed.map(|()| op.len());
            ring.in_batch += 1;
        }
        for ring in 0..self.rings.len() {
            if mem::take(&mut self.rings[ring].in_batch) > 0 {
                let run = self.run_batch(ring, 0, |index, result| {
                    ops[index as usize].result = to_result(result);
                });
                run.expect("a ring that has worked goes on working");
            }
        }
    }

    fn shutdown_write(&mut self, socket: UringSocket) {
        if !socket.is_direct() {
            return sys::shutdown_write(socket.fd());
        }
        // The ring's own shutdown runs on a kernel thread, which costs more.
        match self.install(socket) {
            Ok(fd) => sys::shutdown_write(fd.as_raw_fd()),
            Err(_) => {
                let entry = opcode::Shutdown::new(Fixed(socket.index), libc::SHUT_WR).build();
                self.push_quietly(socket.ring(), entry);
            }
        }
    }

    fn close(&mut self, socket: UringSocket, token: Option<Token>) {
        if socket == Self::NO_SOCKET {
            return;
        }
        let ring = socket.ring();
        if let Some(token) = token {
            // A poll holds the socket open: it goes first. A cancel also takes one that has been
            // woken and not been looked at, which the kernel's own removal of a poll does not.
            let poll = opcode::AsyncCancel::new(READABLE | token.to_bits()).build();
            self.push_quietly(ring, poll);
            if self.awaiting_room.remove(&token.to_bits()) {
                let poll = opcode::AsyncCancel::new(WRITABLE | token.to_bits()).build();
                self.push_quietly(ring, poll);
            }
        }
        let close = entry!(socket, fd => opcode::Close::new(fd).build());
        self.push_quietly(ring, close);
        if socket.is_direct() {
            self.rings[ring].slots_used -= 1;
            if self.accepting {
                // There may be room now. An error is the next wait's to report.
                let _ = self.arm_accepts();
            }
        }
    }

    fn submit(&mut self) {
        for ring in &mut self.rings {
            if ring.ring.has_submissions() {
                // It fails only when the ring is unusable; the next wait reports that.
                let _ = ring.ring.enter(0, None);
            }
        }
    }

    fn peer_addr(&mut self, socket: UringSocket) -> io::Result<PeerAddr> {
        if socket == Self::NO_SOCKET {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if socket.is_direct() {
            let fd = self.install(socket)?;
            sys::peer_addr(fd.as_raw_fd())
        } else {
            sys::peer_addr(socket.fd())
        }
    }

    fn prepare_descriptor(&mut self) -> io::Result<()> {
        if self.outer.is_none() {
            let outer = Outer::new()?;
            let first = &self.rings[0].ring;
            first
                .submitter()
                .register_eventfd(outer.eventfd.as_raw_fd())?;
            outer.add(&self.eventfd)?;
            for eventfd in self.rings.iter().filter_map(|ring| ring.eventfd.as_ref()) {
                outer.add(eventfd)?;
            }
            self.outer = Some(outer);
            // What came before has signalled nobody.
            self.rings[0].ring.enter(0, None)?;
            self.reap(0)?;
        }
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.outer.as_ref().map(|outer| outer.epoll.as_fd())
    }

    fn has_events(&mut self) -> bool {
        // What the last calls have completed signals nobody any more; taking it may queue polls
        // anew, and submitting those may complete something.
        loop {
            for ring in 0..self.rings.len() {
                // It fails only when the ring is unusable; the next wait reports that.
                let _ = self.reap(ring);
            }
            let mut rings = self.rings.iter_mut();
            if !self.stash.is_empty() || !rings.any(|ring| ring.ring.has_submissions()) {
                return !self.stash.is_empty();
            }
            self.submit();
        }
    }

    fn waker(&self) -> Waker {
        let eventfd = Arc::clone(&self.eventfd);
        Waker::new(move || {
            let one = 1_u64;
            // SAFETY: eight bytes are readable at `one` until the call returns. It fails only
            // when the counter is full, and then the sleeper has been woken before.
            unsafe { libc::write(eventfd.as_raw_fd(), (&raw const one).cast(), 8) };
        })
    }
}

impl Drop for UringBackend {
    fn drop(&mut self) {
        // Regular descriptors belong to the process: those that were accepted and never handed
        // out are closed here, and so is what has been queued. An error has no consequence that
        // the end of the ring does not have.
        self.pause_accept();
        for _ in 0..2 {
            for ring in 0..self.rings.len() {
                let _ = self.rings[ring].ring.enter(0, None);
                let _ = self.reap(ring);
            }
            for event in mem::take(&mut self.stash) {
                if let Event::Accepted { socket, .. } = event {
                    self.close(socket, None);
                }
            }
        }
    }
}

fn to_result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
