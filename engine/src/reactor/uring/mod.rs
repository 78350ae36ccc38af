//! io_uring: multishot accepts and polls, and batches that finish inside one enter.
//!
//! Receives and sends are submitted with `MSG_DONTWAIT`, so each completes while it is
//! submitted, and the call that submits it takes its completion: **no request in flight points
//! to memory**, and none in a queue either (`batch.rs`, which has the facts that the `SAFETY`
//! comments name). What stays in flight (accepts, polls, the wake-up) has no pointers, so
//! nothing has to be waited for when a connection, or the ring, is closed.
//!
//! Sockets are regular descriptors, or *direct* ones: entries of a table that belongs to the
//! ring and not to the process. A table can hold as many as `RLIMIT_NOFILE` says, but each
//! ring has one of its own: where more connections are wanted than one table holds, rings are
//! added. The first ring is the one that waits; the others wake it through an eventfd each.

mod accept;
mod batch;
mod descriptor;
#[cfg(test)]
mod faults;
mod ring;
mod setup;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::IntoRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::thread;
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
use super::listen::KILLED_RING_STEP;
use super::listen::Listener;
use super::sys;

use accept::AcceptState;
use accept::Acceptor;
use accept::slots_spare;
use batch::Batch;
use batch::Failed;
use batch::NUMBER_MAX;
use batch::Operations;
use batch::Receives;
use batch::Sends;
use batch::SpreadOperations;
use batch::is_of_batch;
use descriptor::Outer;
use descriptor::new_eventfd;
use descriptor::reset_eventfd;
use ring::REFUSED_PAUSE;
use ring::Ring;

// What a completion is about: the four bits above a token.
const READABLE: u64 = 0 << Token::BITS;
const WRITABLE: u64 = 1 << Token::BITS;
const ACCEPT: u64 = 2 << Token::BITS;
const WAKE: u64 = 3 << Token::BITS;
const BATCH: u64 = 4 << Token::BITS;
const DONE: u64 = 5 << Token::BITS;
const RING: u64 = 6 << Token::BITS;
const KIND: u64 = 0xF << Token::BITS;

/// The most descriptors that a ring's table can have (the kernel's limit).
const TABLE_MAX: usize = 1 << 20;

/// The fewest slots of a table: enough for trying a backend out.
const SLOTS_MIN: usize = 16;

/// How long a start waits for locked memory. The rings of a killed process hold theirs for a
/// moment, and the limit is one for all processes of a user, so nothing tells whether some of it
/// will come back.
const LOCKED_MEMORY_WAIT_MAX: Duration = Duration::from_secs(1);

/// Descriptors left for other things when the process's limit decides.
const DESCRIPTORS_SPARE: usize = 256;

/// Rounds in which a backend that is dropped takes its completions, each up to a whole queue.
const DROP_ROUNDS_MAX: u32 = 64;

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
use entry;

struct RingState {
    ring: Ring,
    /// Slots of its table, and how many are taken.
    slots: usize,
    slots_used: usize,
    /// Its eventfd says that completions may be there.
    signalled: bool,
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
    /// Number of the latest batch.
    batch: u32,
    /// Completions of other operations that came during a batch.
    aside: Vec<cqueue::Entry>,
    /// Completions that belong to no batch under way: discarded.
    strays: u64,
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

impl Direct {
    fn new(connections: usize, listeners: usize) -> Self {
        let table_max = sys::descriptor_limit().clamp(1, TABLE_MAX);
        let wanted = connections.saturating_add(slots_spare(listeners));
        let slots = wanted.max(SLOTS_MIN).min(table_max);
        Self {
            slots,
            // A socket names its ring in 16 bits.
            rings_max: wanted.div_ceil(slots).min(NO_RING.into()),
        }
    }
}

impl std::fmt::Debug for UringBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let refusals: u64 = self.rings.iter().map(|ring| ring.ring.refusals()).sum();
        f.debug_struct("UringBackend")
            .field("rings", &self.rings.len())
            .field("direct", &self.direct)
            .field("strays", &self.strays)
            .field("refusals", &refusals)
            .finish_non_exhaustive()
    }
}

/// How many connections one process can have on regular descriptors.
pub fn regular_connections_max() -> usize {
    sys::descriptor_limit().saturating_sub(DESCRIPTORS_SPARE)
}

/// Returns an error if io_uring does not work here.
#[cfg(test)]
fn probe() -> io::Result<()> {
    UringBackend::prepare(0, None, 1).map(drop)
}

impl UringBackend {
    /// Makes a backend for this thread only, with everything that serving needs, and tries it
    /// out. With `direct_connections`, sockets are direct descriptors, and as many can be held.
    /// It accepts from `listeners` sockets, which [`listen`](Self::listen) hands over. `threads`
    /// threads of this process make a backend each.
    ///
    /// # Errors
    /// Something is not supported, not permitted, or beyond a limit: the error names the call
    /// and the limit. Nothing is left behind.
    pub fn prepare(
        listeners: usize,
        direct_connections: Option<usize>,
        threads: usize,
    ) -> io::Result<Self> {
        let direct = direct_connections.map(|connections| Direct::new(connections, listeners));
        let start = Instant::now();
        loop {
            let made = Self::build(direct).and_then(|mut backend| {
                backend.try_out()?;
                Ok(backend)
            });
            match made {
                Err(error)
                    if error.kind() == io::ErrorKind::OutOfMemory
                        && setup::may_find_memory(sys::locked_memory_limit(), threads)
                        && start.elapsed() < LOCKED_MEMORY_WAIT_MAX =>
                {
                    thread::sleep(KILLED_RING_STEP);
                }
                made => return made,
            }
        }
    }

    /// A backend that accepts from these listeners and has not been tried out.
    #[cfg(test)]
    fn new(listeners: Vec<Listener>, direct_connections: Option<usize>) -> io::Result<Self> {
        let count = listeners.len();
        let direct = direct_connections.map(|connections| Direct::new(connections, count));
        let mut backend = Self::build(direct)?;
        backend.listen(listeners);
        Ok(backend)
    }

    fn build(direct: Option<Direct>) -> io::Result<Self> {
        let eventfd = Arc::new(new_eventfd()?);
        let mut backend = Self {
            rings: Vec::new(),
            acceptors: Vec::new(),
            accepting: true,
            direct,
            accept_ring: 0,
            stash: Vec::new(),
            awaiting_room: HashSet::new(),
            messages: Vec::new(),
            batch: 0,
            aside: Vec::new(),
            strays: 0,
            eventfd,
            outer: None,
            start: Instant::now(),
        };
        backend.add_ring()?;
        backend.arm_wake();
        Ok(backend)
    }

    /// Begins to accept from these listeners.
    pub fn listen(&mut self, listeners: Vec<Listener>) {
        self.accept_from(listeners);
        self.arm_accepts();
    }

    fn arm_wake(&mut self) {
        let wake = opcode::PollAdd::new(Fd(self.eventfd.as_raw_fd()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(WAKE);
        self.queue(0, &wake);
    }

    fn signal_poll(fd: RawFd, ring: usize) -> squeue::Entry {
        opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(RING | ring as u64)
    }

    /// Another ring has completions.
    fn handle_signal(&mut self, ring: usize, more: bool) {
        let Some(state) = self.rings.get_mut(ring) else {
            return;
        };
        state.signalled = true;
        let Some(fd) = state.eventfd.as_ref().map(AsRawFd::as_raw_fd) else {
            return;
        };
        if !more {
            // The kernel ends a multishot poll that one of its own rings has woken. Reset
            // first, or the new poll would report the old signal; what comes from here on
            // signals again, and the ring is looked at after this.
            reset_eventfd(fd);
            self.queue(0, &Self::signal_poll(fd, ring));
        }
    }

    /// Queues an entry that points to no memory.
    ///
    /// # Errors
    /// The ring is broken: the next wait reports it.
    fn push(&mut self, ring: usize, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: polls, accepts, cancels, closes and shutdowns point to no memory.
        unsafe { self.rings[ring].ring.push(entry) }
    }

    /// Queues an entry that points to no memory. A ring that does not take it is broken, and the
    /// next wait reports that.
    fn queue(&mut self, ring: usize, entry: &squeue::Entry) {
        let _ = self.push(ring, entry);
    }

    /// Queues an entry that points to no memory and whose failure is of no interest.
    fn queue_quietly(&mut self, ring: usize, entry: squeue::Entry) {
        let entry = entry.flags(Flags::SKIP_SUCCESS).user_data(DONE);
        self.queue(ring, &entry);
    }

    /// Takes a completion that is not of the batch under way.
    fn handle(&mut self, ring: usize, entry: &cqueue::Entry) {
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
            ACCEPT => self.handle_accept(ring, user_data as u32 as usize, result, more),
            WAKE => {
                self.stash.push(Event::Woken);
                if !more {
                    self.arm_wake();
                }
            }
            RING => self.handle_signal((user_data & !KIND) as usize, more),
            _ if is_of_batch(entry) => self.strays += 1,
            // A cancel or a close that had nothing left to do.
            _ => {}
        }
    }

    /// Takes all completions that are there.
    fn reap(&mut self, ring: usize) {
        while let Some(entry) = self.rings[ring].ring.complete() {
            self.handle(ring, &entry);
        }
    }

    /// Takes the completions of the rings after the first. Returns the longest time that the first
    /// may wait; `None` if the others set no limit.
    ///
    /// # Errors
    /// A ring is broken.
    fn look_at_others(&mut self) -> io::Result<Option<Duration>> {
        let mut longest = None;
        for ring in 1..self.rings.len() {
            let state = &mut self.rings[ring];
            if mem::take(&mut state.signalled) || state.ring.is_pending() {
                state.ring.enter(0, None)?;
                self.reap(ring);
                let ring = &self.rings[ring].ring;
                if ring.is_refused() {
                    // Nothing signals when the kernel has memory again.
                    longest = longest.or(Some(REFUSED_PAUSE));
                } else if ring.is_pending() {
                    longest = Some(Duration::ZERO);
                }
            }
        }
        Ok(longest)
    }

    /// Drops events that nobody takes, and closes the sockets that were accepted.
    fn discard_stash(&mut self) {
        for event in mem::take(&mut self.stash) {
            if let Event::Accepted { socket, .. } = event {
                self.close(socket, None);
            }
        }
    }

    /// Carries operations on one ring out. Nothing of them is left when it returns.
    #[inline]
    fn run_batch<O: Operations>(&mut self, ring: usize, operations: &mut O) -> Result<(), Failed> {
        self.batch = self.batch.wrapping_add(1) & NUMBER_MAX;
        let batch = Batch {
            ring: &mut self.rings[ring].ring,
            operations,
            number: self.batch,
            aside: &mut self.aside,
        };
        let result = batch.run();
        if !self.aside.is_empty() {
            self.handle_aside(ring);
        }
        result
    }

    /// Carries operations out, one ring after the other.
    #[inline]
    fn run_spread<'o, O: SpreadOperations<'o> + 'o>(&mut self, operations: &mut O) {
        loop {
            let ring = operations.spread().ring();
            if let Err(failed) = self.run_batch(ring, operations) {
                operations.spread().fail(failed);
            }
            if !operations.spread().advance() {
                return;
            }
        }
    }

    /// Handles what came during a batch, which has ended.
    #[cold]
    fn handle_aside(&mut self, ring: usize) {
        let mut aside = mem::take(&mut self.aside);
        for entry in aside.drain(..) {
            self.handle(ring, &entry);
        }
        self.aside = aside;
    }
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
        // Errors are those of a broken ring: nothing can go on. A refused call is not an error.
        let has_others = self.rings.len() > 1;
        let mut timeout = timeout;
        if has_others && let Some(longest) = self.look_at_others()? {
            timeout = Some(timeout.map_or(longest, |timeout| timeout.min(longest)));
        }
        let poll_only = timeout == Some(Duration::ZERO) || !self.stash.is_empty();
        if poll_only {
            self.rings[0].ring.enter(0, None)?;
        } else {
            self.rings[0].ring.enter(1, timeout)?;
        }
        self.reap(0);
        if has_others {
            self.look_at_others()?;
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

    fn has_accepts(&self) -> bool {
        let is_cancelled = |acceptor: &Acceptor| acceptor.state == AcceptState::Cancelled;
        let is_accepted = |event: &Event<_>| matches!(event, Event::Accepted { .. });
        self.acceptors.iter().any(is_cancelled) || self.stash.iter().any(is_accepted)
    }

    fn resume_accept(&mut self) {
        self.accepting = true;
        self.arm_accepts();
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
            self.queue(socket.ring(), &entry.user_data(WRITABLE | token.to_bits()));
        }
    }

    fn unacknowledged(&mut self, socket: UringSocket) -> io::Result<usize> {
        if socket.is_direct() {
            let fd = self.install(socket)?;
            sys::unacknowledged(fd.as_raw_fd())
        } else {
            sys::unacknowledged(socket.fd())
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
        if !ops.is_empty() {
            self.run_spread(&mut Receives::new(ops));
        }
    }

    fn send_many(&mut self, ops: &mut [SendOp<'_, UringSocket>]) {
        if let [op] = ops
            && !op.socket.is_direct()
        {
            op.result = sys::send(op.socket.fd(), op.slices);
            return;
        }
        if !ops.is_empty() {
            let mut messages = mem::take(&mut self.messages);
            self.run_spread(&mut Sends::new(ops, &mut messages));
            self.messages = messages;
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
                self.queue_quietly(socket.ring(), entry);
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
            self.queue_quietly(ring, poll);
            if self.awaiting_room.remove(&token.to_bits()) {
                let poll = opcode::AsyncCancel::new(WRITABLE | token.to_bits()).build();
                self.queue_quietly(ring, poll);
            }
        }
        let close = entry!(socket, fd => opcode::Close::new(fd).build());
        if socket.is_direct() {
            self.queue_quietly(ring, close);
            self.rings[ring].slots_used -= 1;
            if self.accepting {
                // There may be room now.
                self.arm_accepts();
            }
        } else {
            let close = close.flags(Flags::SKIP_SUCCESS).user_data(DONE);
            // SAFETY: the entry closes this descriptor, whose owner gives it up, and points to no
            // memory.
            unsafe { self.rings[ring].ring.push_close(&close, socket.fd()) };
        }
    }

    fn submit(&mut self) {
        for ring in &mut self.rings {
            if ring.ring.is_pending() {
                // It fails only when the ring is broken; the next wait reports that.
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
            outer.add(&self.eventfd)?;
            for eventfd in self.rings.iter().filter_map(|ring| ring.eventfd.as_ref()) {
                outer.add(eventfd)?;
            }
            // Last, for it is not taken back when `outer` is dropped.
            let first = &self.rings[0].ring;
            first
                .submitter()
                .register_eventfd(outer.eventfd.as_raw_fd())
                .map_err(setup::failed("io_uring_register (eventfd)"))?;
            self.outer = Some(outer);
            // Completions from before the registration have not signalled the descriptor: they
            // are taken here. An error means that the ring is broken.
            self.rings[0].ring.enter(0, None)?;
            self.reap(0);
        }
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.outer.as_ref().map(|outer| outer.epoll.as_fd())
    }

    fn has_events(&mut self) -> bool {
        // The last calls may have completed something without a signal. Taking it may queue polls
        // again, and submitting those may complete something.
        loop {
            for ring in 0..self.rings.len() {
                self.reap(ring);
            }
            // A wait reports that a ring is broken. It submits what was refused: no descriptor
            // becomes readable when the kernel has memory again.
            let is_due = |ring: &RingState| ring.ring.is_broken() || ring.ring.is_refused();
            if self.rings.iter().any(is_due) || !self.stash.is_empty() {
                return true;
            }
            if !self.rings.iter().any(|ring| ring.ring.is_pending()) {
                return false;
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
        // Regular descriptors belong to the process. Those that were accepted and never handed out
        // are closed here; a ring closes those that are queued, also if it is broken or refused.
        self.pause_accept();
        for ring in 0..self.rings.len() {
            for round in 0..DROP_ROUNDS_MAX {
                // It fails if the ring is broken, which is not entered.
                let entered = self.rings[ring].ring.enter(0, None);
                self.reap(ring);
                self.discard_stash();
                // The second round submits the closes of the first.
                let is_done = round > 0 && !self.rings[ring].ring.is_pending();
                if is_done || entered.is_err() {
                    break;
                }
            }
        }
    }
}
