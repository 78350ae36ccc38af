#![forbid(unsafe_code)]
//! One connection's life, as server or as client: handshake → open → closing → lingering →
//! closed.
//!
//! ```text
//!            101                 Close sent, or peer's Close, or failure, or end of stream
//! Handshake ─────▶ Open ──────────────┬──────────────────────────┐
//!     │              │ close()        │ (what was asked for by   │
//!     │              ▼                │  neither side: at once)  ▼
//!     │          CloseSent ───────────┴───────────────────▶ Lingering ─────▶ Closed
//!     └──────── other answers, time-out ───────────────────────▲
//! ```
//!
//! Pure: bytes and the time come in, events go to a [`Sink`], output goes to the send queue.
//! Sockets, readiness and deadlines' storage are the worker's; after each call the worker asks
//! [`Conn::next_step`] and [`Conn::deadline`]. With TLS, ciphertext comes in, and output is
//! encrypted when it is about to be sent ([`Conn::seal`]).
//!
//! **Invariant:** `Sink::open` and `Sink::close` are called once each or not at all, in this
//! order, and nothing else of [`Sink`] but `upgrade` and `http` outside them. User data exists
//! from the upgrade to the end of `Sink::close`. The one exception is a connection that this
//! endpoint wanted and that never opened: it gets `Sink::close` alone.

mod adopt;
mod chunk;
mod closing;
mod connect;
mod control;
mod deflate;
mod extra;
mod handshake;
mod open;
mod outcome;
mod output;
mod owner;
mod pause;
mod prepared;
mod proxy;
mod secure;
mod straight;
mod upgrade;
mod writer;

pub use adopt::Agreed;
pub use chunk::Chunk;
use chunk::Held;
pub use connect::ClientHandshake;
pub use control::AcceptBudget;
pub use control::ControlBudget;
use control::RateBudget;
use deflate::Agreement;
#[cfg(feature = "client")]
pub use deflate::Directions;
use deflate::decoder_index;
use extra::Extra;
use extra::LocalClose;
use extra::Subprotocol;
pub use outcome::CloseCause;
pub use outcome::Closed;
pub use outcome::Initiator;
pub use outcome::OpenError;
pub use outcome::Timeout;
pub use output::DropReason;
pub use output::Dropped;
pub use output::Output;
pub use output::SendOptions;
pub use output::SendResult;
pub use owner::take_owner_panics;
pub use prepared::Prepared;
pub use proxy::counted_address;
pub use upgrade::DeferredAnswer;
pub use upgrade::Opening;
pub use upgrade::Upgrade;
pub use writer::Flush;
pub use writer::MessageWriter;

use std::any::Any;
use std::mem;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use crate::buffer::Buffer;
use crate::buffer::Pool;
use crate::buffer::SendQueue;
use crate::config::COMPRESSION_BUDGET;
use crate::config::Compression;
use crate::config::DEFERRED_MAX;
use crate::config::Limits;
use crate::config::OUTPUT_BUDGET;
use crate::config::Proxies;
use crate::config::Route;
use crate::config::Victims;
use crate::deflate::Codec;
use crate::deflate::Inflater;
use crate::http1::Request;
use crate::http1::Response;
use crate::metrics::Recorder;
use crate::protocol::Decoder;
use crate::protocol::DecoderLimits;
use crate::protocol::Message;
use crate::protocol::Role;
use crate::protocol::TAIL_LEN_MAX;
use crate::protocol::handshake::ExpectedResponse;
use crate::random::Random;
use crate::random::Seed;
use crate::random::TimeMask;
use crate::timer::ticks;
use crate::tls::ServerTls;
use crate::tls::Session;

/// Room that [`Conn::receive`] wants in front of the received bytes, for what was left of the
/// last ones.
pub const HEADROOM: usize = 256;

const _: () = assert!(TAIL_LEN_MAX <= HEADROOM);

/// Where a connection delivers: the user's handler, through the worker.
pub trait Sink<D> {
    /// A valid request for a WebSocket.
    fn upgrade(&mut self, opening: &Opening<'_>) -> Upgrade<D>;
    /// The request whose answer was deferred, and the value that came for it.
    fn deferred(&mut self, opening: &Opening<'_>, value: Box<dyn Any + Send>) -> Upgrade<D>;
    /// Any other request.
    fn http(&mut self, request: &Request<'_>) -> Response;
    /// The connection is open.
    fn open(&mut self, output: Output<'_, D>);
    /// A message.
    fn message(&mut self, output: Output<'_, D>, message: Message<'_>);
    /// A ping, which has been answered.
    fn ping(&mut self, output: Output<'_, D>, payload: &[u8]);
    /// A part of a message.
    fn chunk(&mut self, output: Output<'_, D>, chunk: Chunk<'_>);
    /// A pong, and the round-trip time if it answers a ping.
    fn pong(&mut self, output: Output<'_, D>, payload: &[u8], round_trip: Option<Duration>);
    /// Output that was held up has drained.
    fn drain(&mut self, output: Output<'_, D>);
    /// Messages were given up.
    fn dropped(&mut self, output: Output<'_, D>, dropped: Dropped);
    /// The connection is over: nothing can be sent.
    fn close(&mut self, output: Output<'_, D>, closed: &Closed<'_>);
    /// Drops the data of a connection, whose destructor is the user's.
    fn discard(&mut self, data: D) {
        drop(data);
    }
    /// Sends as much of the connection's queue as the kernel takes now; says whether it would
    /// not take all, and will say when it does.
    fn flush(&mut self, queue: &mut SendQueue, pool: &mut Pool) -> bool;
}

/// What all connections of a thread share.
#[derive(Debug)]
pub struct Env {
    /// The first is that of all paths if there is no other, and of outgoing connections.
    routes: Vec<RouteEnv>,
    router: matchit::Router<u16>,
    /// TLS, by listener; none where plain HTTP is spoken.
    pub tls: Vec<Option<ServerTls>>,
    /// Free buffers.
    pub pool: Pool,
    /// Masking keys and nonces.
    pub random: Random,
    /// Hides the time in the payloads of pings.
    time_mask: TimeMask,
    /// Time since the start, at the beginning of the turn.
    pub now: Duration,
    /// The same in seconds.
    pub now_s: u32,
    /// Time of day, for `Date`. Default: `now` after the Unix epoch, so that a simulated run is
    /// the same each time.
    pub wall_clock: Option<fn() -> SystemTime>,
    /// What has happened to all connections.
    pub metrics: Arc<Recorder>,
    /// Memory held for output that peers have not taken.
    pub held_len: usize,
    /// The most of it.
    pub held_len_max: usize,
    /// Memory that connections keep for context takeover.
    pub takeover_len: usize,
    /// The most of it.
    pub takeover_len_max: usize,
    /// Whose connections are closed when that for output is used up.
    pub victims: Victims,
    /// Proxies in front of the server.
    pub proxies: Option<Proxies>,
    /// Where it says whether the server is ready for connections.
    pub health_path: Option<Box<str>>,
    /// Where it says what it has seen.
    pub metrics_path: Option<Box<str>>,
    /// How long callbacks may take; none if nothing is timed.
    pub slow_callback: Option<Duration>,
    /// No more WebSockets are opened.
    pub draining: bool,
    /// Requests whose answers are deferred.
    pub deferred: usize,
    /// The most of them.
    pub deferred_max: usize,
    /// Connections that may be accepted in a second; zero is no limit.
    pub accept_rate_max: u32,
    #[allow(clippy::vec_box, reason = "the boxes are what is kept")]
    partials: Vec<Box<Partial>>,
    /// Made with the first compressed message.
    codec: Option<Box<Codec>>,
    /// What was decrypted of one receive.
    plain: Vec<u8>,
    /// Pieces of output that become one record.
    scratch: Vec<u8>,
}

/// What the peer of an endpoint in this role may do.
pub fn decoder_limits(limits: &Limits, role: Role, deflate: bool) -> DecoderLimits {
    DecoderLimits {
        role,
        message_len_max: limits.message_len_max as u64,
        fragment_count_max: limits.fragment_count_max,
        rsv1_allowed: deflate,
    }
}

/// The most boxes for incomplete things that are kept.
const PARTIALS_MAX: usize = 256;

impl Env {
    /// What the connections of a server with these routes share; the first is that of all
    /// paths if there is no other, and of outgoing connections.
    pub fn new(routes: Vec<Route>, seed: Seed) -> Self {
        let mut router = matchit::Router::new();
        for (index, route) in routes.iter().enumerate() {
            if let Some(pattern) = &route.pattern {
                let inserted = router.insert(pattern.as_ref(), index as u16);
                debug_assert!(inserted.is_ok(), "patterns have been validated");
            }
        }
        assert!(!routes.is_empty(), "there is a route for all other paths");
        Self {
            routes: routes.into_iter().map(RouteEnv::new).collect(),
            router,
            tls: Vec::new(),
            pool: Pool::default(),
            time_mask: TimeMask::new(seed),
            random: Random::new(seed),
            now: Duration::ZERO,
            now_s: 0,
            wall_clock: None,
            metrics: Arc::default(),
            held_len: 0,
            held_len_max: OUTPUT_BUDGET,
            takeover_len: 0,
            takeover_len_max: COMPRESSION_BUDGET,
            victims: Victims::default(),
            proxies: None,
            health_path: None,
            metrics_path: None,
            slow_callback: None,
            draining: false,
            deferred: 0,
            deferred_max: DEFERRED_MAX,
            accept_rate_max: 0,
            partials: Vec::new(),
            codec: None,
            plain: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The value of `Date` (RFC 9110 §6.6.1).
    fn date(&self) -> String {
        let simulated = || SystemTime::UNIX_EPOCH + self.now;
        let now = self.wall_clock.map_or_else(simulated, |clock| clock());
        // A clock that is set before 1970 has no such value.
        httpdate::fmt_http_date(now.max(SystemTime::UNIX_EPOCH))
    }

    /// The limits of what happens before a path is known, and of the thread.
    #[inline]
    pub fn limits(&self) -> &Limits {
        &self.routes[0].route.limits
    }

    /// The route of a path; none if there are routes, and none of them is its.
    fn find_route(&self, path: &str) -> Option<u16> {
        if self.routes.len() == 1 {
            return Some(0);
        }
        self.router.at(path).ok().map(|found| *found.value)
    }

    /// Offers a queue to the kernel, and counts what it took; says whether it would not take all.
    fn count_flush(
        &mut self,
        queue: &mut SendQueue,
        flush: &mut impl FnMut(&mut SendQueue, &mut Pool) -> bool,
    ) -> bool {
        let before = queue.len();
        let blocked = flush(queue, &mut self.pool);
        self.metrics.bytes_sent.add((before - queue.len()) as u64);
        self.metrics.backpressure.add(blocked.into());
        blocked
    }

    /// An empty buffer, which is to be put back.
    fn take_scratch(&mut self) -> Vec<u8> {
        let mut scratch = mem::take(&mut self.scratch);
        scratch.clear();
        scratch
    }

    #[inline]
    fn route(&self, index: u16) -> &RouteEnv {
        &self.routes[usize::from(index)]
    }
}

/// A route, and what follows from it.
#[derive(Debug)]
struct RouteEnv {
    route: Route,
    /// By [`decoder_index`].
    decoder_limits: [DecoderLimits; 4],
    /// The deadline of an open connection that has just received something, in ticks.
    open_span: Option<u8>,
}

impl RouteEnv {
    fn new(route: Route) -> Self {
        let limits = &route.limits;
        let kinds = [
            (Role::Client, false),
            (Role::Client, true),
            (Role::Server, false),
            (Role::Server, true),
        ];
        let spans = [limits.ping_interval, limits.idle_timeout];
        let open_wait = spans.into_iter().filter(|span| !span.is_zero()).min();
        Self {
            decoder_limits: kinds.map(|(role, deflate)| decoder_limits(limits, role, deflate)),
            open_span: open_wait.map(ticks),
            route,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The request head has not been answered, by us or by the peer.
    Handshake,
    /// Messages flow.
    Open,
    /// We have sent a Close frame and wait for the peer's.
    CloseSent,
    /// It is over for the handler. What is queued goes out, then a FIN; what comes in is
    /// thrown away until the peer's FIN, so that no reset destroys what the peer has not read.
    Lingering,
    /// To be removed.
    Closed,
}

/// A connection.
#[derive(Debug)]
pub struct Conn<D> {
    decoder: Decoder,
    partial: Option<Box<Partial>>,
    state: State,
    data: Option<D>,
}

const _: () = assert!(size_of::<Conn<()>>() <= 112);

/// What has arrived of something that is not complete.
#[derive(Debug, Default)]
struct Partial {
    /// The head, before the upgrade; then the tail that the decoder left.
    tail: Buffer,
    /// The chunks of a message.
    message: Buffer,
    /// The payload of the latest ping, if there was no room for its pong.
    pong: Option<Vec<u8>>,
    /// What the answer to a client's request has to hold.
    expected: Option<(ExpectedResponse, Compression)>,
    /// In the middle of a compressed message that is delivered in chunks.
    inflater: Option<Box<Inflater>>,
    /// What has arrived while the connection was paused.
    held: Held,
}

impl Partial {
    fn is_empty(&self) -> bool {
        let nothing_received = self.tail.is_empty() && self.message.is_empty();
        let nothing_owed = self.pong.is_none() && self.expected.is_none();
        nothing_received && nothing_owed && self.held.is_empty() && self.inflater.is_none()
    }
}

/// The peer's address, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// A proxy's header has to come first.
    ProxyHeaderOwed,
    /// Nothing.
    Unproven,
    /// The handler has said who it is.
    Promoted,
}

/// The part of a connection that a callback can change.
#[derive(Debug)]
pub(crate) struct State {
    /// Output; plaintext if there is TLS.
    queue: Option<Box<SendQueue>>,
    tls: Option<Box<Session>>,
    /// What few connections have.
    extra: Option<Box<Extra>>,
    /// Its route, once the path is known.
    route: u16,
    /// Which subprotocol was agreed.
    subprotocol: Subprotocol,
    role: Role,
    /// Which of its route's limits on what is received.
    decoder_index: u8,
    /// What has been agreed of compression.
    deflate: Agreement,
    phase: Phase,
    /// The phase whose deadline runs.
    deadline_phase: Phase,
    /// The kernel has refused output: nothing is sent until the socket is writable.
    blocked: bool,
    /// `on_drain` is owed when the queue is short again.
    drain_owed: bool,
    /// Something is to be done after a call, for [`Conn::settle`].
    settle_owed: bool,
    /// Messages go to the handler as they come, whole: neither streaming nor paused.
    delivers: bool,
    /// No messages are delivered.
    paused: bool,
    /// Nothing is read: enough is held.
    parked: bool,
    /// Chunks have been delivered of a message that has not ended.
    chunk_begun: bool,
    /// Messages are queued as they come: no other has been begun, none replaces another, and
    /// none is compressed.
    sends_straight: bool,
    /// Both ends have sent a Close frame.
    closing_done: bool,
    /// The peer's FIN has arrived.
    end_of_stream: bool,
    /// We have nothing more to send, and the peer knows or is about to tell us the same.
    output_ended: bool,
    ping_sent: bool,
    /// Pongs that the peer owes us; those beyond 255 are counted in [`Extra`].
    pongs_owed: u8,
    standing: Standing,
    /// The request has been taken, and its answer deferred.
    deferred: bool,
    /// It was open: it ends with Close frames.
    was_open: bool,
    /// The handler is owed the end: it has been told that the connection is open, or it has
    /// asked for it.
    owes_close: bool,
    control: ControlBudget,
    /// Length of the deadline that runs, in ticks.
    span: u8,
    /// Seconds without a byte from the peer, up to the deadline that runs.
    silence_s: u32,
    /// What is counted in the thread's [`Env::held_len`].
    held_len: u32,
}

/// What the worker is to do with a connection after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Continue,
    /// Shut down the sending direction.
    ShutdownWrite,
    /// Nothing more will be sent; the peer is to shut down first.
    AwaitEnd,
    /// Close the socket and forget the connection.
    Remove,
}

impl<D> Conn<D> {
    /// A connection that has just been accepted.
    pub fn accept(tls: Option<Session>, env: &Env) -> Self {
        Self::new(Role::Server, tls, env)
    }

    fn new(role: Role, tls: Option<Session>, env: &Env) -> Self {
        Self {
            decoder: Decoder::default(),
            partial: None,
            state: State {
                queue: None,
                tls: tls.map(Box::new),
                extra: None,
                route: 0,
                subprotocol: Subprotocol::NONE,
                role,
                decoder_index: decoder_index(role, false),
                deflate: Agreement::default(),
                phase: Phase::Handshake,
                deadline_phase: Phase::Closed,
                blocked: false,
                drain_owed: false,
                settle_owed: false,
                delivers: true,
                paused: false,
                parked: false,
                chunk_begun: false,
                sends_straight: true,
                closing_done: false,
                end_of_stream: false,
                output_ended: false,
                ping_sent: false,
                pongs_owed: 0,
                standing: Standing::Unproven,
                deferred: false,
                was_open: false,
                owes_close: false,
                control: ControlBudget::new(env.now_s, env.limits()),
                span: 0,
                silence_s: 0,
                held_len: 0,
            },
            data: None,
        }
    }

    /// Takes bytes that were received: `slot[HEADROOM..HEADROOM + len]`. What lies before them
    /// is scratch.
    pub fn receive(&mut self, slot: &mut [u8], len: usize, env: &mut Env, sink: &mut impl Sink<D>) {
        self.state.silence_s = 0;
        self.state.ping_sent = false;
        let end = HEADROOM + len;
        if self.state.standing == Standing::ProxyHeaderOwed {
            self.receive_proxy_header(slot, len, env, sink);
        } else if self.state.tls.is_some() {
            self.receive_tls(&mut slot[HEADROOM..end], env, sink);
        } else {
            self.receive_plain(&mut slot[..end], env, sink);
        }
    }

    /// Takes `slot[HEADROOM..]`, which is not encrypted, or not any more.
    #[inline]
    fn receive_plain(&mut self, slot: &mut [u8], env: &mut Env, sink: &mut impl Sink<D>) {
        match self.state.phase {
            Phase::Handshake => self.receive_head(&mut slot[HEADROOM..], env, sink),
            Phase::Open | Phase::CloseSent => {
                let mut start = HEADROOM;
                if let Some(partial) = &mut self.partial {
                    start -= partial.tail.len();
                    slot[start..HEADROOM].copy_from_slice(&partial.tail);
                    partial.tail.clear();
                    self.release_partial(env);
                }
                self.receive_frames(&mut slot[start..], env, sink);
            }
            Phase::Lingering | Phase::Closed => {}
        }
    }

    /// What is still to come of the payload of one frame, where nothing is done with it but to put
    /// it to what has come.
    #[inline]
    pub fn payload_remaining(&self, env: &Env) -> usize {
        let remaining = self.decoder.plain_remaining();
        let plain = self.state.phase == Phase::Open && self.state.tls.is_none();
        if remaining == 0 || !plain || env.route(self.state.route).route.streaming {
            return 0;
        }
        usize::try_from(remaining).unwrap_or(usize::MAX)
    }

    /// The kernel took `sent` bytes. If that is all there was, of an open connection which has
    /// nothing else to do, it is dealt with; else nothing is done, and it says so.
    #[inline]
    pub fn handle_all_sent(&mut self, sent: usize, env: &mut Env) -> bool {
        let state = &mut self.state;
        let rests = state.phase == Phase::Open && state.deadline_phase == Phase::Open;
        let owes = state.drain_owed || state.settle_owed || self.partial.is_some();
        let plain = !state.blocked && state.held_len == 0 && state.tls.is_none();
        if !rests || owes || !plain {
            return false;
        }
        let Some(mut queue) = state.queue.take_if(|queue| queue.len() == sent) else {
            return false;
        };
        queue.clear(&mut env.pool);
        env.pool.put_queue(queue);
        true
    }

    /// The kernel took `sent` bytes; `blocked` if it would not take more.
    #[inline]
    pub fn handle_sent(
        &mut self,
        sent: usize,
        blocked: bool,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        match (&mut self.state.tls, &mut self.state.queue) {
            (Some(tls), _) => tls.consume(sent, &mut env.pool),
            (None, Some(queue)) => queue.consume(sent, &mut env.pool),
            (None, None) => {}
        }
        self.state.blocked = blocked;
        self.state.drain_owed |= blocked;
        if blocked || self.state.held_len > 0 {
            self.state.account(env);
        }
        if self.partial.is_some() {
            self.send_late_pong(env);
        }
        if self.state.drain_owed {
            self.check_drained(env, sink);
        }
        self.state.release_queue(env);
        if self.state.phase == Phase::CloseSent && !self.state.has_unsent() {
            // The Close frame has been sent: from here on the peer has the closing time-out.
            self.state.deadline_phase = Phase::Open;
        }
    }

    /// The socket is writable again.
    pub fn handle_writable(&mut self) {
        self.state.blocked = false;
    }

    /// Whether output is held up by the peer.
    pub fn is_blocked(&self) -> bool {
        self.state.blocked
    }

    /// The limits of its route.
    pub fn limits<'e>(&self, env: &'e Env) -> &'e Limits {
        self.state.limits(env)
    }

    /// Bytes of output that wait.
    pub fn queued_len(&self) -> usize {
        self.state.queued_len()
    }

    /// Whether messages can be sent.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.state.phase == Phase::Open
    }

    /// Whether the handler has yet to be told of the end.
    pub fn owes_close(&self) -> bool {
        self.state.owes_close
    }

    /// What is to be done now.
    #[inline]
    pub fn next_step(&self) -> Step {
        match self.state.phase {
            Phase::Handshake | Phase::Open | Phase::CloseSent => Step::Continue,
            Phase::Lingering if self.state.has_unsent() => Step::Continue,
            Phase::Lingering if self.state.end_of_stream => Step::Remove,
            Phase::Lingering if self.state.may_end_at_once() => Step::Remove,
            Phase::Lingering if self.state.output_ended => Step::Continue,
            Phase::Lingering if self.state.awaits_peer() => Step::AwaitEnd,
            Phase::Lingering => Step::ShutdownWrite,
            Phase::Closed => Step::Remove,
        }
    }

    /// The sending direction has been shut down, or nothing more will be sent.
    pub fn handle_output_end(&mut self) {
        self.state.output_ended = true;
        // From here on the peer has the closing time-out to close its side.
        self.state.deadline_phase = Phase::Closed;
    }

    /// The user's data, if there still is some: to be dropped where its destructor may panic.
    pub fn take_data(&mut self) -> Option<D> {
        self.data.take()
    }

    /// Whether its opening handshake is not over.
    pub fn is_opening(&self) -> bool {
        self.state.phase == Phase::Handshake
    }

    /// Whether the answer to its request is deferred.
    pub fn is_deferred(&self) -> bool {
        self.state.deferred
    }

    /// Which end of the connection this is.
    pub fn role(&self) -> Role {
        self.state.role
    }

    /// Takes the connection apart: buffers go back.
    pub fn release(mut self, env: &mut Env) {
        env.held_len -= self.state.held_len as usize;
        env.deferred -= usize::from(self.state.deferred);
        self.state.release_deflate(env);
        if let Some(mut queue) = self.state.queue.take() {
            queue.clear(&mut env.pool);
            env.pool.put_queue(queue);
        }
        if let Some(tls) = self.state.tls.take() {
            tls.release(&mut env.pool);
        }
        self.clear_partial(env);
    }

    /// Where something incomplete is kept.
    fn partial(&mut self, env: &mut Env) -> &mut Partial {
        self.partial
            .get_or_insert_with(|| env.partials.pop().unwrap_or_default())
    }

    /// Keeps bytes of a head or a frame that has not ended; gives all that is kept of it.
    fn keep(&mut self, bytes: &[u8], env: &mut Env) -> &mut Buffer {
        let partial = self
            .partial
            .get_or_insert_with(|| env.partials.pop().unwrap_or_default());
        if partial.tail.capacity() == 0 {
            partial.tail = env.pool.take();
        }
        env.pool.extend(&mut partial.tail, bytes);
        &mut partial.tail
    }

    /// Lets go of the box for incomplete things, if there are none.
    fn release_partial(&mut self, env: &mut Env) {
        if let Some(mut partial) = self.partial.take_if(|partial| partial.is_empty()) {
            env.pool.put(mem::take(&mut partial.tail));
            env.pool.put(mem::take(&mut partial.message));
            partial.held = Held::default();
            if env.partials.len() < PARTIALS_MAX {
                env.partials.push(partial);
            }
        }
    }

    /// Throws away everything incomplete.
    fn clear_partial(&mut self, env: &mut Env) {
        if let Some(partial) = &mut self.partial {
            partial.tail.clear();
            partial.message.clear();
            partial.pong = None;
            partial.expected = None;
            partial.inflater = None;
            partial.held = Held::default();
            self.release_partial(env);
        }
    }

    fn check_drained(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        let drained = self.queued_len() <= self.state.limits(env).output_low_water;
        if drained && !self.state.blocked {
            self.state.drain_owed = false;
            if self.is_open()
                && let Some(output) = self.output(env)
            {
                sink.drain(output);
            }
        }
    }

    /// The handle that callbacks get.
    #[inline]
    fn output<'a>(&'a mut self, env: &'a mut Env) -> Option<Output<'a, D>> {
        let state = &mut self.state;
        let data = self.data.as_mut()?;
        Some(Output { state, data, env })
    }

    /// The same between callbacks, while messages can be sent.
    pub fn open_output<'a>(&'a mut self, env: &'a mut Env) -> Option<Output<'a, D>> {
        if self.is_open() {
            self.output(env)
        } else {
            None
        }
    }

    /// What is to become of the connection's deadline after a call; `renew` if bytes were
    /// received or the deadline has expired.
    #[inline]
    pub fn deadline(&mut self, renew: bool, env: &Env) -> Deadline {
        let state = &mut self.state;
        let hears = state.silence_s == 0 && !state.ping_sent && !state.parked;
        if state.phase == Phase::Open && renew && hears {
            // The common case: the peer has been heard.
            state.deadline_phase = Phase::Open;
            return match env.route(state.route).open_span {
                Some(span) => {
                    state.span = span;
                    Deadline::Set(span)
                }
                None => Deadline::Clear,
            };
        }
        let open = state.phase == Phase::Open;
        if state.phase == state.deadline_phase && !(open && renew) {
            return Deadline::Keep;
        }
        state.deadline_phase = state.phase;
        match state.wait(state.limits(env)) {
            Some(wait) => {
                state.span = ticks(wait);
                Deadline::Set(state.span)
            }
            None => Deadline::Clear,
        }
    }
}

/// A change of a connection's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// None.
    Keep,
    /// So many ticks from now.
    Set(u8),
    /// No deadline.
    Clear,
}

impl State {
    #[inline]
    fn limits<'e>(&self, env: &'e Env) -> &'e Limits {
        &env.route(self.route).route.limits
    }

    #[inline]
    fn decoder_limits<'e>(&self, env: &'e Env) -> &'e DecoderLimits {
        &env.route(self.route).decoder_limits[usize::from(self.decoder_index & 3)]
    }

    /// How long the peer may stay silent in this phase, from now on.
    fn wait(&self, limits: &Limits) -> Option<Duration> {
        match self.phase {
            Phase::Handshake => Some(limits.handshake_timeout),
            // It cannot be heard.
            Phase::Open if self.parked => None,
            Phase::Open if self.ping_sent => Some(limits.pong_timeout),
            Phase::Open => {
                let silence = Duration::from_secs(self.silence_s.into());
                [limits.ping_interval, limits.idle_timeout]
                    .into_iter()
                    .filter(|wait| !wait.is_zero())
                    .map(|wait| wait.saturating_sub(silence))
                    .min()
            }
            // The rest of the output may take as long as stalled output may.
            Phase::Lingering if !self.output_ended => Some(limits.write_timeout),
            // The peer cannot answer a Close frame that it has not been sent.
            Phase::CloseSent if self.has_unsent() => Some(limits.write_timeout),
            Phase::CloseSent | Phase::Lingering => Some(limits.close_timeout),
            Phase::Closed => None,
        }
    }
}
