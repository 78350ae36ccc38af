//! A simulated network in virtual time: the same seed gives the same run.
//!
//! Reads and writes are short, readiness comes late, in any order and more often than it must,
//! events of closed sockets arrive after the close, and every call can fail. Time passes only
//! when a backend waits with nothing to report, or when the test says so.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Backend;
use super::Event;
use super::PeerAddr;
use super::RecvOp;
use super::SendOp;
use super::Target;
use super::Token;
use super::Waker;

/// How often things go wrong, each as one in so many; zero for never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A receive or send breaks the connection.
    pub reset: u32,
    /// A registration fails.
    pub register: u32,
    /// Accepting fails, and stops.
    pub accept: u32,
    /// A connection that the server makes is refused.
    pub connect: u32,
    /// A receive or send gives less than it could.
    pub short: u32,
    /// A call would block though it need not.
    pub would_block: u32,
    /// The system has no memory for a receive or send.
    pub exhausted: u32,
    /// An event is reported later.
    pub late: u32,
    /// An event of nothing, or of a closed connection.
    pub spurious: u32,
    /// The process is held up, for up to five minutes, in a wait or a receive.
    pub stall: u32,
    /// A wait reports only a few of the events that there are.
    pub few: u32,
}

impl Faults {
    /// All of them, often.
    pub fn all() -> Self {
        Self {
            reset: 400,
            register: 60,
            accept: 20,
            connect: 20,
            short: 2,
            would_block: 6,
            exhausted: 50,
            late: 4,
            spurious: 6,
            stall: 1_000,
            few: 4,
        }
    }
}

/// Longest time for which the process is held up, in milliseconds.
const STALL_MS_MAX: usize = 300_000;

/// Maximum unread bytes of a simulated socket, as the backend reports it.
const RECEIVE_BUFFER_MAX: usize = 1 << 20;

/// Most events of a wait that reports only a few.
const EVENTS_FEW: usize = 3;

/// A source of repeatable chance (SplitMix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ bits >> 31
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// True once in `n` times; never if `n` is zero.
    pub fn once_in(&mut self, n: u32) -> bool {
        n != 0 && self.bits().is_multiple_of(n.into())
    }
}

/// One connection, both directions.
#[derive(Debug, Default)]
struct Pipe {
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    /// How much `to_client` holds before sends would block.
    capacity: usize,
    client_fin: bool,
    server_fin: bool,
    reset: bool,
    server_closed: bool,
    token: Option<Token>,
    /// Something is to be reported.
    readable: bool,
    /// The last send would have blocked, or took less than all: that there is room is an edge.
    full: bool,
    awaiting_room: bool,
}

#[derive(Debug)]
struct Net {
    chance: Chance,
    faults: Faults,
    /// As a completion backend has it, or none, as one of readiness.
    recv_batch: Option<usize>,
    now: Duration,
    pipes: Vec<Pipe>,
    /// Those that the server has registered and not closed.
    active: Vec<usize>,
    /// Where in that list the next wait begins to report.
    next_report: usize,
    backlog: VecDeque<usize>,
    /// Connections that the server has made, and nobody has taken.
    outgoing: VecDeque<usize>,
    accepting: bool,
    closed_tokens: Vec<Token>,
    woken: Arc<AtomicBool>,
}

/// The world around a simulated server: makes clients, and lets time pass.
#[derive(Clone, Debug)]
pub struct SimNet(Rc<RefCell<Net>>);

/// The far end of a simulated connection.
#[derive(Clone, Debug)]
pub struct SimClient {
    net: Rc<RefCell<Net>>,
    index: usize,
}

/// The simulated backend.
#[derive(Debug)]
pub struct SimBackend(Rc<RefCell<Net>>);

impl SimNet {
    /// An empty network. With an even seed several receives are one call, as on io_uring, with an odd
    /// one each is a call of its own, as on epoll.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self(Rc::new(RefCell::new(Net {
            chance: Chance::new(seed),
            faults,
            recv_batch: seed.is_multiple_of(2).then_some(4),
            now: Duration::ZERO,
            pipes: Vec::new(),
            active: Vec::new(),
            next_report: 0,
            backlog: VecDeque::new(),
            outgoing: VecDeque::new(),
            accepting: true,
            closed_tokens: Vec::new(),
            woken: Arc::new(AtomicBool::new(false)),
        })))
    }

    /// The server's side.
    pub fn backend(&self) -> SimBackend {
        SimBackend(Rc::clone(&self.0))
    }

    /// A client whose connection waits to be accepted. The network holds `capacity` bytes that
    /// it has not read before the server's sends would block.
    pub fn connect(&self, capacity: usize) -> SimClient {
        let mut net = self.0.borrow_mut();
        let index = net.pipes.len();
        net.pipes.push(Pipe {
            capacity,
            ..Pipe::default()
        });
        net.backlog.push_back(index);
        SimClient {
            net: Rc::clone(&self.0),
            index,
        }
    }

    /// The far end of the next connection that the server has made; `capacity` is as for
    /// [`connect`](Self::connect).
    pub fn accept(&self, capacity: usize) -> Option<SimClient> {
        let mut net = self.0.borrow_mut();
        let index = net.outgoing.pop_front()?;
        net.pipes[index].capacity = capacity;
        Some(SimClient {
            net: Rc::clone(&self.0),
            index,
        })
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.0.borrow_mut().now += time;
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }
}

impl SimClient {
    /// Sends bytes.
    pub fn send(&self, bytes: &[u8]) {
        let pipe = &mut self.net.borrow_mut().pipes[self.index];
        if !pipe.client_fin && !pipe.reset {
            pipe.to_server.extend(bytes);
            pipe.readable = true;
        }
    }

    /// Takes at most `len` bytes of what has arrived.
    pub fn receive(&self, len: usize) -> Vec<u8> {
        let pipe = &mut self.net.borrow_mut().pipes[self.index];
        let len = len.min(pipe.to_client.len());
        pipe.to_client.drain(..len).collect()
    }

    /// Sends a FIN.
    pub fn shutdown(&self) {
        let pipe = &mut self.net.borrow_mut().pipes[self.index];
        pipe.client_fin = true;
        pipe.readable = true;
    }

    /// Breaks the connection.
    pub fn reset(&self) {
        let pipe = &mut self.net.borrow_mut().pipes[self.index];
        pipe.reset = true;
        pipe.to_server.clear();
        pipe.readable = true;
    }

    /// Whether the server has sent a FIN, or closed, and everything before it was taken.
    pub fn is_finished(&self) -> bool {
        let pipe = &self.net.borrow().pipes[self.index];
        pipe.to_client.is_empty() && (pipe.server_fin || pipe.server_closed)
    }

    /// Whether the server has closed its socket.
    pub fn is_closed_by_server(&self) -> bool {
        self.net.borrow().pipes[self.index].server_closed
    }

    /// Bytes that the server has not taken.
    pub fn unread_len(&self) -> usize {
        self.net.borrow().pipes[self.index].to_server.len()
    }
}

impl Net {
    fn reset(&mut self, index: usize) -> io::Error {
        self.pipes[index].reset = true;
        io::ErrorKind::ConnectionReset.into()
    }

    /// Lets time pass in which the process does nothing.
    fn stall(&mut self) {
        if self.chance.once_in(self.faults.stall) {
            self.now += Duration::from_millis(self.chance.below(STALL_MS_MAX) as u64);
        }
    }

    fn recv(&mut self, index: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let faults = self.faults;
        self.stall();
        let pipe = &mut self.pipes[index];
        assert!(!pipe.server_closed, "received on a closed socket");
        if pipe.reset || self.chance.once_in(faults.reset) {
            return Err(self.reset(index));
        }
        if self.chance.once_in(faults.would_block) {
            pipe.readable = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.chance.once_in(faults.exhausted) {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        let mut len = pipe.to_server.len().min(buffer.len());
        if len == 0 {
            return if pipe.client_fin {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        if self.chance.once_in(faults.short) {
            len = 1 + self.chance.below(len);
            // The owner takes a short read for the last one.
            pipe.readable = true;
        }
        for (to, from) in buffer.iter_mut().zip(pipe.to_server.drain(..len)) {
            *to = from;
        }
        if pipe.client_fin {
            pipe.readable = true;
        }
        Ok(len)
    }

    fn send<'a>(&mut self, index: usize, bytes: impl Iterator<Item = &'a u8>) -> io::Result<usize> {
        let faults = self.faults;
        let pipe = &mut self.pipes[index];
        assert!(!pipe.server_closed, "sent on a closed socket");
        assert!(!pipe.server_fin, "sent behind a FIN");
        if pipe.reset || self.chance.once_in(faults.reset) {
            return Err(self.reset(index));
        }
        let mut room = pipe.capacity.saturating_sub(pipe.to_client.len());
        if room == 0 || self.chance.once_in(faults.would_block) {
            pipe.full = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.chance.once_in(faults.exhausted) {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        if self.chance.once_in(faults.short) {
            room = 1 + self.chance.below(room);
        }
        let before = pipe.to_client.len();
        let mut bytes = bytes.peekable();
        pipe.to_client.extend(bytes.by_ref().take(room));
        pipe.full = bytes.peek().is_some();
        Ok(pipe.to_client.len() - before)
    }

    fn report(&mut self, events: &mut Vec<Event<usize>>) {
        let faults = self.faults;
        let events_max = match self.chance.once_in(faults.few) {
            true => 1 + self.chance.below(EVENTS_FEW),
            false => usize::MAX,
        };
        if self.woken.swap(false, Ordering::SeqCst) {
            events.push(Event::Woken);
        }
        while self.accepting && !self.backlog.is_empty() && events.len() < events_max {
            if self.chance.once_in(faults.accept) {
                self.accepting = false;
                // EMFILE.
                events.push(Event::AcceptFailed(io::Error::from_raw_os_error(24)));
                break;
            }
            let index = self.backlog.pop_front().expect("it is not empty");
            events.push(Event::Accepted {
                socket: index,
                listener: 0,
            });
        }
        // Those that a wait has left out come first in the next one.
        let (back, front) = self
            .active
            .split_at(self.next_report.min(self.active.len()));
        self.next_report = 0;
        for &index in front.iter().chain(back) {
            if events.len() >= events_max {
                let is_this = |&active: &usize| active == index;
                self.next_report = self.active.iter().position(is_this).unwrap_or(0);
                break;
            }
            let pipe = &mut self.pipes[index];
            let Some(token) = pipe.token else {
                continue;
            };
            let has_room = pipe.to_client.len() < pipe.capacity || pipe.reset;
            let writable = pipe.awaiting_room && has_room;
            let spurious = self.chance.once_in(faults.spurious);
            if !(pipe.readable || writable || spurious) || self.chance.once_in(faults.late) {
                continue;
            }
            pipe.awaiting_room &= !writable;
            events.push(Event::Ready {
                token,
                readable: pipe.readable || spurious,
                writable: writable || spurious,
                hangup: pipe.client_fin || pipe.reset,
                lapsed: self.chance.once_in(faults.spurious),
            });
            pipe.readable = false;
        }
        if self.chance.once_in(faults.spurious) && !self.closed_tokens.is_empty() {
            let stale = self.chance.below(self.closed_tokens.len());
            events.push(Event::Ready {
                token: self.closed_tokens[stale],
                readable: true,
                writable: true,
                hangup: true,
                lapsed: true,
            });
        }
        for index in (1..events.len()).rev() {
            events.swap(index, self.chance.below(index + 1));
        }
    }

    /// Whether something will be reported, late as it may be.
    fn is_pending(&self) -> bool {
        let is_ready = |&index: &usize| {
            let pipe = &self.pipes[index];
            let has_room = pipe.to_client.len() < pipe.capacity;
            pipe.readable || pipe.awaiting_room && (has_room || pipe.reset)
        };
        self.accepting && !self.backlog.is_empty() || self.active.iter().any(is_ready)
    }
}

impl Backend for SimBackend {
    type Socket = usize;

    const NO_SOCKET: usize = usize::MAX;

    fn recv_batch(&self) -> Option<usize> {
        self.0.borrow().recv_batch
    }

    fn now(&self) -> Duration {
        self.0.borrow().now
    }

    fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event<usize>>,
    ) -> io::Result<()> {
        let mut net = self.0.borrow_mut();
        net.stall();
        net.report(events);
        if events.is_empty() && !net.is_pending() {
            net.now += timeout.unwrap_or_default();
        }
        // Between the look at the sockets and the clock.
        net.stall();
        Ok(())
    }

    fn pause_accept(&mut self) {
        self.0.borrow_mut().accepting = false;
    }

    fn resume_accept(&mut self) {
        self.0.borrow_mut().accepting = true;
    }

    fn connect(&mut self, _target: &Target) -> io::Result<usize> {
        let mut net = self.0.borrow_mut();
        let index = net.pipes.len();
        // Until it is accepted the network takes nothing.
        net.pipes.push(Pipe {
            full: true,
            ..Pipe::default()
        });
        let fault = net.faults.connect;
        if net.chance.once_in(fault) {
            net.pipes[index].reset = true;
        } else {
            net.outgoing.push_back(index);
        }
        Ok(index)
    }

    fn register(&mut self, socket: usize, token: Token) -> io::Result<()> {
        let mut net = self.0.borrow_mut();
        let fault = net.faults.register;
        if net.pipes[socket].token.is_none() && net.chance.once_in(fault) {
            // ENOMEM.
            return Err(io::Error::from_raw_os_error(12));
        }
        let pipe = &mut net.pipes[socket];
        assert!(!pipe.server_closed, "registered a closed socket");
        let new = pipe.token.replace(token).is_none();
        pipe.readable |= !pipe.to_server.is_empty() || pipe.client_fin || pipe.reset;
        if new {
            net.active.push(socket);
        }
        Ok(())
    }

    fn arm_writable(&mut self, socket: usize, _token: Token) {
        let pipe = &mut self.0.borrow_mut().pipes[socket];
        // As where readiness is edge-triggered: there is no edge if nothing was full.
        pipe.awaiting_room = pipe.full;
    }

    fn unacknowledged(&mut self, socket: usize) -> io::Result<usize> {
        Ok(self.0.borrow().pipes[socket].to_client.len())
    }

    fn receive_buffer_max(&self) -> usize {
        RECEIVE_BUFFER_MAX
    }

    fn recv_many(&mut self, ops: &mut [RecvOp<'_, usize>]) {
        let mut net = self.0.borrow_mut();
        for op in ops {
            assert_ne!(op.socket, Self::NO_SOCKET, "received on no socket");
            op.result = net.recv(op.socket, op.buffer);
        }
    }

    fn send_many(&mut self, ops: &mut [SendOp<'_, usize>]) {
        let mut net = self.0.borrow_mut();
        for op in ops {
            let bytes = op.slices.iter().flat_map(|slice| slice.iter());
            assert_ne!(op.socket, Self::NO_SOCKET, "sent on no socket");
            op.result = net.send(op.socket, bytes);
        }
    }

    fn shutdown_write(&mut self, socket: usize) {
        let mut net = self.0.borrow_mut();
        assert!(!net.pipes[socket].server_fin, "a second FIN");
        net.pipes[socket].server_fin = true;
    }

    fn close(&mut self, socket: usize, token: Option<Token>) {
        if socket == Self::NO_SOCKET {
            return;
        }
        let mut net = self.0.borrow_mut();
        let pipe = &mut net.pipes[socket];
        assert!(!pipe.server_closed, "closed twice");
        pipe.server_closed = true;
        net.active.retain(|&active| active != socket);
        net.closed_tokens.extend(token);
    }

    fn peer_addr(&mut self, _socket: usize) -> io::Result<PeerAddr> {
        Ok(PeerAddr::Ip(([127, 0, 0, 1], 1).into()))
    }

    fn waker(&self) -> Waker {
        let woken = Arc::clone(&self.0.borrow().woken);
        Waker::new(move || woken.store(true, Ordering::SeqCst))
    }
}
