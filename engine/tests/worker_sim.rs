//! The whole engine over a simulated network, with everything going wrong: 100,000 seeds. It
//! accepts connections and makes some; every fifteenth run is over TLS.
//!
//! A failure names its seed; `SOCKEYE_SEED=N cargo test --test main worker_sim` runs that one alone.
//! `SOCKEYE_SEEDS=N` runs so many instead of 100,000.

use std::any::Any;
use std::collections::HashMap;
use std::io::Read;
use std::io::Write;
use std::panic;
use std::time::Duration;

use sockeye::CONTROL_RESERVE;
use sockeye::Chunk;
use sockeye::CloseCause;
use sockeye::CloseCode;
use sockeye::Closed;
use sockeye::ConnId;
use sockeye::Connect;
use sockeye::Context;
use sockeye::Deferred;
use sockeye::Drain;
use sockeye::Dropped;
use sockeye::Handler;
use sockeye::Limits;
use sockeye::Message;
use sockeye::OpeningHandshake;
use sockeye::OutputPolicy;
use sockeye::Prepared;
use sockeye::Response;
use sockeye::Route;
use sockeye::SendOptions;
use sockeye::SendResult;
use sockeye::SlowCallback;
use sockeye::Thread;
use sockeye::Upgrade;
use sockeye::http1;
use sockeye::protocol;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;
use sockeye::testkit::Chance;
use sockeye::testkit::Faults;
use sockeye::testkit::SimClient;
use sockeye::testkit::SimServer;
use sockeye::testkit::SimSettings;

use crate::support;
use crate::support::certificates;

const SEEDS: u64 = 100_000;

/// One run in so many is over TLS: a handshake takes longer than the rest of a run.
const TLS_EVERY: u64 = 15;

/// The seeds are dealt out to so many tests, which run side by side.
const SHARES: u64 = 4;

#[test]
fn seeds_share_0() {
    run_share(0);
}

#[test]
fn seeds_share_1() {
    run_share(1);
}

#[test]
fn seeds_share_2() {
    run_share(2);
}

#[test]
fn seeds_share_3() {
    run_share(3);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run_share(share: u64) {
    quiet_panics();
    if let Some(seed) = number("SOCKEYE_SEED") {
        if share == 0 {
            run(seed);
        }
        return;
    }
    let mut seen = Seen::default();
    for seed in (share..number("SOCKEYE_SEEDS").unwrap_or(SEEDS)).step_by(SHARES as usize) {
        match panic::catch_unwind(|| run(seed)) {
            Ok(run) => seen.add(&run),
            Err(cause) => {
                eprintln!("seed {seed} failed: SOCKEYE_SEED={seed} repeats it");
                panic::resume_unwind(cause);
            }
        }
    }
    // The runs must have met what they are for.
    if number("SOCKEYE_SEEDS").is_none() {
        seen.check();
    }
}

/// What happened, to see that the seeds reach everything.
#[derive(Debug, Default)]
struct Seen {
    messages: u64,
    echoes: u64,
    dropped: u64,
    drains: u64,
    panics: u64,
    refused: u64,
    accept_rests: u64,
    clean: u64,
    failed: u64,
    lost: u64,
    timed_out: u64,
    tls_messages: u64,
    outgoing: u64,
    not_opened: u64,
    written: u64,
    deferred: u64,
    chunked: u64,
    given_up: u64,
    timers: u64,
    evicted: u64,
    exhausted: u64,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.echoes += other.echoes;
        self.dropped += other.dropped;
        self.drains += other.drains;
        self.panics += other.panics;
        self.refused += other.refused;
        self.accept_rests += other.accept_rests;
        self.clean += other.clean;
        self.failed += other.failed;
        self.lost += other.lost;
        self.timed_out += other.timed_out;
        self.tls_messages += other.tls_messages;
        self.outgoing += other.outgoing;
        self.not_opened += other.not_opened;
        self.written += other.written;
        self.deferred += other.deferred;
        self.chunked += other.chunked;
        self.given_up += other.given_up;
        self.timers += other.timers;
        self.evicted += other.evicted;
        self.exhausted += other.exhausted;
    }

    fn check(&self) {
        for (name, count) in [
            ("messages", self.messages),
            ("echoes", self.echoes),
            ("dropped", self.dropped),
            ("drains", self.drains),
            ("panics", self.panics),
            ("refused", self.refused),
            ("accept rests", self.accept_rests),
            ("clean closes", self.clean),
            ("failures", self.failed),
            ("losses", self.lost),
            ("time-outs", self.timed_out),
            ("messages over TLS", self.tls_messages),
            ("outgoing connections", self.outgoing),
            ("outgoing connections that did not open", self.not_opened),
            ("messages written in fragments", self.written),
            ("answers that came later", self.deferred),
            ("messages in chunks", self.chunked),
            ("messages given up", self.given_up),
            ("timers", self.timers),
            ("connections closed for the budget", self.evicted),
            ("calls that failed for want of memory", self.exhausted),
        ] {
            assert!(count > 10, "hardly any {name}: {self:?}");
        }
    }
}

/// Panics that callbacks are told to make are not printed.
fn quiet_panics() {
    use std::sync::Once;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<&str>() != Some(&"as asked") {
                hook(info);
            }
        }));
    });
}

#[derive(Default)]
struct Data {
    next: u32,
    opened: bool,
    outgoing: bool,
    /// A message that comes in chunks, so far.
    chunks: Vec<u8>,
    paused: bool,
    /// It has published: what comes of that may close it before it sends what it is about to.
    published: bool,
    bomb: Bomb,
}

/// Panics when it is dropped, if it is armed.
#[derive(Default)]
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        // A second panic while the first is unwinding would end the process.
        if self.0 && !std::thread::panicking() {
            panic!("as asked");
        }
    }
}

/// Does anything at any time, and checks what it is told.
struct Chaos {
    chance: Chance,
    open: Vec<ConnId>,
    deferred: Vec<Deferred>,
    defers: bool,
    violations: Vec<String>,
    seen: Seen,
    outgoing_left: u32,
    tls: bool,
}

impl Chaos {
    fn act(&mut self, conn: &mut Context<'_, Data>) {
        match self.chance.below(60) {
            0 => conn.close(CloseCode::NORMAL, "chance"),
            1 => conn.terminate(),
            2 => {
                conn.ping(b"chance");
            }
            3 => {
                let _ = conn.remote().broadcast("b");
            }
            4 | 5 if !self.open.is_empty() => {
                let other = self.open[self.chance.below(self.open.len())];
                let _ = conn.remote().send(other, "b");
            }
            6 if !self.open.is_empty() => {
                let other = self.open[self.chance.below(self.open.len())];
                let _ = conn.remote().close(other, CloseCode::GOING_AWAY, "");
            }
            7 => panic!("as asked"),
            8 | 9 if self.outgoing_left > 0 => {
                self.outgoing_left -= 1;
                let scheme = if self.tls { "wss" } else { "ws" };
                let connect = Connect::new(&format!("{scheme}://127.0.0.1/")).expect("a URL");
                let data = Data {
                    outgoing: true,
                    ..Data::default()
                };
                let connect = connect.tls(certificates::client_tls().clone());
                conn.connect(connect, data).expect("it can be asked for");
            }
            _ => self.act_more(conn),
        }
    }

    /// What is beyond closing and sending.
    fn act_more(&mut self, conn: &mut Context<'_, Data>) {
        let topic = self.chance.below(3).to_string();
        let policy = [
            OutputPolicy::DropNewest,
            OutputPolicy::DropOldest,
            OutputPolicy::Conflate(1),
            OutputPolicy::Close,
        ][self.chance.below(4)];
        let options = SendOptions::new().policy(policy);
        match self.chance.below(40) {
            0..6 => {
                conn.subscribe(&topic);
            }
            6 => {
                conn.unsubscribe(&topic);
            }
            7 | 8 => {
                conn.data().published = true;
                conn.publish(&topic, "b").expect("room");
            }
            9 => conn.publish_to_others(&topic, "b").expect("room"),
            10 => {
                conn.data().published = true;
                conn.publish_with(&topic, "b", &options).expect("room");
            }
            11 => {
                conn.send_with("b", &options);
            }
            12 => {
                let large = Prepared::binary(vec![b'w'; 700]);
                conn.send_prepared_with(&large, &options);
            }
            13 => {
                conn.pause();
                conn.data().paused = true;
                conn.set_timer(Duration::from_millis(self.chance.below(500) as u64), 1);
            }
            14 => {
                conn.set_timer(Duration::from_millis(self.chance.below(5_000) as u64), 0);
            }
            15 | 16 => self.write(conn),
            17 if !self.open.is_empty() => {
                let other = self.open[self.chance.below(self.open.len())];
                let bomb = Bomb(self.chance.once_in(10));
                let _ = match self.chance.below(6) {
                    0 => conn.remote().terminate(other),
                    1 => conn.remote().post_to(other, bomb),
                    4 | 5 => conn.remote().post(0, bomb),
                    2 => conn.remote().resume(other),
                    _ => conn.remote().publish(&topic, "b"),
                };
            }
            18 => conn.promote(),
            19 if !self.deferred.is_empty() => {
                let place = self.chance.below(self.deferred.len());
                let deferred = self.deferred.swap_remove(place);
                match self.chance.below(4) {
                    0 => deferred.reject(Response::text(401)),
                    1 => drop(deferred),
                    _ => deferred.accept(()),
                }
            }
            _ => {}
        }
    }

    /// Writes a part of a message, and ends it or not.
    fn write(&mut self, conn: &mut Context<'_, Data>) {
        let len = self.chance.below(3_000);
        let finishes = self.chance.once_in(2);
        let Ok(mut writer) = conn.writer(false) else {
            return;
        };
        // What there is no room for is not written.
        let _ = writer.write(&vec![b'w'; len]);
        if finishes {
            writer.finish().expect("binary messages end anywhere");
            self.seen.written += 1;
        }
    }

    /// For callbacks that do nothing else.
    fn may_panic(&mut self) {
        if self.chance.once_in(50) {
            panic!("as asked");
        }
    }

    fn check(&mut self, holds: bool, what: &str) {
        if !holds {
            self.violations.push(what.to_owned());
        }
    }
}

impl Handler for Chaos {
    type Data = Data;

    fn on_open(&mut self, conn: &mut Context<'_, Data>) {
        let id = conn.id();
        self.check(!self.open.contains(&id), "opened twice");
        self.check(!conn.data().opened, "data of another connection");
        let is_client = conn.role() == protocol::Role::Client;
        self.check(
            conn.data().outgoing == is_client,
            "data of another connection",
        );
        self.seen.outgoing += u64::from(is_client);
        conn.data().opened = true;
        conn.data().bomb = Bomb(self.chance.once_in(100));
        self.open.push(id);
        self.act(conn);
    }

    fn on_message(&mut self, conn: &mut Context<'_, Data>, message: Message<'_>) {
        self.check(self.open.contains(&conn.id()), "a message outside");
        self.seen.messages += 1;
        let next = conn.data().next;
        conn.data().next += 1;
        self.check(
            is_message(message.payload(), next),
            "not the next message, or altered",
        );
        match conn.send(message) {
            SendResult::Sent | SendResult::Queued(_) => self.seen.echoes += 1,
            SendResult::Dropped(_) => {}
            SendResult::Gone => {
                self.check(conn.data().published, "gone in its own callback");
            }
        }
        self.act(conn);
    }

    fn on_deferred(
        &mut self,
        _: &mut OpeningHandshake<'_>,
        value: Box<dyn Any + Send>,
    ) -> Upgrade<Data> {
        self.may_panic();
        drop(value);
        Upgrade::accept(Data::default())
    }

    fn on_http(&mut self, _: &http1::Request<'_>) -> Response {
        self.may_panic();
        Response::text(404)
    }

    fn on_connect(&mut self, _: &Connect) -> Data {
        self.may_panic();
        Data {
            outgoing: true,
            ..Data::default()
        }
    }

    fn on_start(&mut self, _: &mut Thread<'_, Data>) {
        self.may_panic();
    }

    fn on_remote(&mut self, thread: &mut Thread<'_, Data>, value: Box<dyn Any + Send>) {
        let after = Duration::from_millis(self.chance.below(500) as u64);
        thread.set_timer(after, 0);
        self.may_panic();
        drop(value);
    }

    fn on_thread_timer(&mut self, thread: &mut Thread<'_, Data>, _: u64) {
        let _ = thread.publish("0", "b");
        self.may_panic();
    }

    fn on_slow_callback(&mut self, _: &SlowCallback) {
        self.may_panic();
    }

    fn on_pong(&mut self, conn: &mut Context<'_, Data>, _: &[u8], _: Option<Duration>) {
        self.check(self.open.contains(&conn.id()), "a pong outside");
        self.may_panic();
    }

    fn on_upgrade(&mut self, request: &mut OpeningHandshake<'_>) -> Upgrade<Data> {
        self.may_panic();
        if !self.defers || self.chance.once_in(2) {
            return Upgrade::accept(Data::default());
        }
        let (upgrade, deferred) = request.defer();
        self.deferred.push(deferred);
        self.seen.deferred += 1;
        upgrade
    }

    fn on_chunk(&mut self, conn: &mut Context<'_, Data>, chunk: Chunk<'_>) {
        let begun = !conn.data().chunks.is_empty();
        self.check(!(begun && chunk.first), "a message inside a message");
        conn.data().chunks.extend_from_slice(chunk.payload);
        if chunk.last {
            self.seen.chunked += 1;
            let whole = std::mem::take(&mut conn.data().chunks);
            self.on_message(conn, Message::binary(&whole));
        }
    }

    fn on_dropped(&mut self, conn: &mut Context<'_, Data>, dropped: Dropped) {
        self.check(self.open.contains(&conn.id()), "drops told outside");
        self.check(dropped.messages > 0, "nothing was dropped");
        self.seen.given_up += u64::from(dropped.messages);
        self.act(conn);
    }

    fn on_timer(&mut self, conn: &mut Context<'_, Data>, token: u64) {
        self.check(self.open.contains(&conn.id()), "a timer outside");
        self.seen.timers += 1;
        if token == 1 {
            conn.data().paused = false;
            conn.resume();
        }
        self.act(conn);
    }

    fn on_post(&mut self, conn: &mut Context<'_, Data>, _: Box<dyn Any + Send>) {
        self.check(self.open.contains(&conn.id()), "a value outside");
        self.act(conn);
    }

    fn on_ping(&mut self, conn: &mut Context<'_, Data>, _payload: &[u8]) {
        self.check(self.open.contains(&conn.id()), "a ping outside");
        self.act(conn);
    }

    fn on_drain(&mut self, conn: &mut Context<'_, Data>) {
        self.check(self.open.contains(&conn.id()), "a drain outside");
        self.seen.drains += 1;
        conn.send("b");
        self.may_panic();
    }

    fn on_close(&mut self, conn: &mut Context<'_, Data>, closed: &Closed<'_>) {
        let id = conn.id();
        let place = self.open.iter().position(|&other| other == id);
        if conn.data().opened {
            self.check(place.is_some(), "closed twice");
        } else {
            // It was asked for and did not open: this is its only callback.
            self.check(conn.data().outgoing, "closed and never opened");
            self.check(place.is_none(), "data of another connection");
            let cause = &closed.cause;
            let fits = matches!(cause, CloseCause::NotOpened(_) | CloseCause::Terminated);
            self.check(fits, "it was not open");
            self.seen.not_opened += 1;
        }
        if let Some(place) = place {
            self.open.swap_remove(place);
        }
        self.check(
            conn.send("behind") == SendResult::Gone,
            "sent behind the close",
        );
        self.seen.clean += u64::from(closed.clean);
        match closed.cause {
            CloseCause::Failed(_) => self.seen.failed += 1,
            CloseCause::Lost(_) => self.seen.lost += 1,
            CloseCause::TimedOut(_) => self.seen.timed_out += 1,
            _ => {}
        }
        if self.chance.below(100) == 0 {
            panic!("as asked");
        }
    }
}

/// The messages of a client: a number, and as many bytes as it says.
fn message(number: u32) -> Vec<u8> {
    let len = [0, 1, 100, 130, 700, 3_000][number as usize % 6];
    let mut payload = format!("{number}:").into_bytes();
    payload.resize(payload.len() + len, b'm');
    payload
}

fn is_message(payload: &[u8], number: u32) -> bool {
    payload == message(number)
}

/// The far end of a connection.
struct Client {
    end: SimClient,
    /// The far end is the server, and has yet to answer the request.
    unanswered: bool,
    is_server: bool,
    tls: Option<rustls::Connection>,
    /// Ciphertext that TLS has made and the network has not got.
    wire: Vec<u8>,
    to_send: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    reads: bool,
    closes_at_end: bool,
    done: bool,
}

fn client(end: SimClient, tls: bool, chance: &mut Chance) -> Client {
    let mut bytes = b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_vec();
    push_frames(&mut bytes, true, chance);
    let tls = tls.then(|| certificates::client_session("localhost").into());
    far_end(end, tls, bytes, chance)
}

/// The server that the engine has connected to.
fn server(end: SimClient, tls: bool, chance: &mut Chance) -> Client {
    let tls = tls.then(|| {
        let config = certificates::server_tls().config();
        rustls::Connection::from(rustls::ServerConnection::new(config).expect("it can begin"))
    });
    let mut server = far_end(end, tls, Vec::new(), chance);
    (server.is_server, server.unanswered) = (true, true);
    server
}

/// Any messages, and any end.
fn push_frames(bytes: &mut Vec<u8>, masked: bool, chance: &mut Chance) {
    let push_frame =
        |bytes: &mut Vec<u8>, first, payload: &[u8]| push_frame(bytes, first, payload, masked);
    for number in 0..chance.below(12) as u32 {
        if chance.once_in(8) {
            push_frame(bytes, 0x89, b"ping");
        }
        let payload = message(number);
        let opcode = if number.is_multiple_of(2) { 0x1 } else { 0x2 };
        if chance.once_in(3) {
            let cut = chance.below(payload.len() + 1);
            push_frame(bytes, opcode, &payload[..cut]);
            if chance.once_in(3) {
                push_frame(bytes, 0x8A, b"");
            }
            push_frame(bytes, 0x80, &payload[cut..]);
        } else {
            push_frame(bytes, 0x80 | opcode, &payload);
        }
    }
    match chance.below(5) {
        0 => push_frame(bytes, 0x88, &1000_u16.to_be_bytes()),
        // Something illegal.
        1 => push_frame(bytes, 0x80 | chance.below(128) as u8 | 0x10, b"x"),
        // Something that never ends.
        2 => bytes.extend([0x82, if masked { 0xFE } else { 0x7E }, 0x10]),
        _ => {}
    }
}

fn far_end(
    end: SimClient,
    tls: Option<rustls::Connection>,
    bytes: Vec<u8>,
    chance: &mut Chance,
) -> Client {
    Client {
        end,
        unanswered: false,
        is_server: false,
        tls,
        wire: Vec::new(),
        to_send: bytes,
        sent: 0,
        received: Vec::new(),
        reads: !chance.once_in(6),
        closes_at_end: !chance.once_in(4),
        done: false,
    }
}

fn push_frame(bytes: &mut Vec<u8>, first: u8, payload: &[u8], masked: bool) {
    let key = [7, 0xE1, 0, 0x55];
    let header = FrameHeader {
        fin: true,
        rsv1: false,
        opcode: Opcode::Binary,
        payload_len: payload.len() as u64,
        mask_key: masked.then_some(key),
    };
    let start = bytes.len();
    bytes.extend_from_slice(header.encode().as_bytes());
    bytes[start] = first;
    let payload_start = bytes.len();
    bytes.extend_from_slice(payload);
    if masked {
        protocol::mask(&mut bytes[payload_start..], key);
    }
}

impl Client {
    fn step(&mut self, chance: &mut Chance) {
        if self.done {
            return;
        }
        let rest = &self.to_send[self.sent..];
        if rest.is_empty() {
            if self.closes_at_end && self.reads && chance.once_in(8) {
                self.end.shutdown();
                self.done = !self.end.is_finished();
            }
        } else if chance.once_in(2) {
            let len = match chance.below(3) {
                0 => 1,
                1 => 1 + chance.below(rest.len().min(50)),
                _ => 1 + chance.below(rest.len()),
            };
            match &mut self.tls {
                None => self.end.send(&rest[..len]),
                // Before the handshake is done it keeps what is written.
                Some(tls) => tls.writer().write_all(&rest[..len]).expect("memory"),
            }
            self.sent += len;
        } else if chance.once_in(150) {
            self.end.reset();
            self.done = true;
        }
        self.read(chance);
        self.answer(chance);
    }

    fn read(&mut self, chance: &mut Chance) {
        if self.reads {
            let bytes = self.end.receive(1 + chance.below(2_000));
            match &mut self.tls {
                None => self.received.extend(bytes),
                Some(tls) => {
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        tls.read_tls(&mut rest).expect("memory");
                        tls.process_new_packets().expect("valid records");
                        // The end of the stream has not come, or has.
                        let _ = tls.reader().read_to_end(&mut self.received);
                    }
                }
            }
        }
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.wire).expect("memory");
            }
            if !self.wire.is_empty() {
                let len = 1 + chance.below(self.wire.len());
                self.end.send(&self.wire[..len]);
                self.wire.drain(..len);
            }
        }
    }

    /// As a server, answers the request when it is there.
    fn answer(&mut self, chance: &mut Chance) {
        if !self.unanswered || http1::head_len(&self.received, 0).is_none() {
            return;
        }
        self.unanswered = false;
        let head = String::from_utf8_lossy(&self.received).into_owned();
        self.to_send = match chance.below(10) {
            0 => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec(),
            1 => b"HTTP/1.1 101 Switching".to_vec(),
            2 => (0..50).map(|_| chance.bits() as u8).collect(),
            _ => support::accept_of(&head, "").into_bytes(),
        };
        push_frames(&mut self.to_send, false, chance);
    }

    /// Everything that was received is whole frames, in order, nothing altered.
    fn check(&self) {
        let Some(head_len) = http1::head_len(&self.received, 0) else {
            return;
        };
        let head = &self.received[..head_len];
        let begin = if self.is_server {
            &b"GET / HTTP/1.1\r\n"[..]
        } else {
            b"HTTP/1.1 "
        };
        assert!(
            head.starts_with(begin),
            "{:?}",
            String::from_utf8_lossy(head)
        );
        if !self.is_server && !head.starts_with(b"HTTP/1.1 101 ") {
            return;
        }
        let mut rest = &self.received[head_len..];
        let mut next = 0;
        let mut closed = false;
        let mut in_message = false;
        while let Some((header, header_len)) = FrameHeader::decode(rest).expect("a legal frame") {
            let len = header_len + header.payload_len as usize;
            if rest.len() < len {
                break;
            }
            assert!(
                !closed,
                "a frame behind the Close frame: {header:?} {:?}",
                &rest[..len.min(40)]
            );
            // RFC 6455 §5.1: a client masks, a server does not.
            assert_eq!(header.mask_key.is_some(), self.is_server);
            let mut payload = rest[header_len..len].to_vec();
            protocol::mask(&mut payload, header.mask_key.unwrap_or_default());
            let payload = &payload[..];
            match header.opcode {
                Opcode::Close => closed = true,
                Opcode::Ping => {}
                Opcode::Pong => assert_eq!(payload, b"ping"),
                opcode => {
                    // RFC 6455 §5.4: nothing begins inside a message.
                    assert_eq!(opcode == Opcode::Continuation, in_message);
                    in_message = !header.fin;
                }
            }
            match header.opcode {
                Opcode::Close | Opcode::Ping | Opcode::Pong => {}
                _ if payload == b"b" || payload.iter().all(|&byte| byte == b'w') => {}
                _ => {
                    // Some may have been dropped; none is doubled, altered or out of order.
                    let found = (next..next + 20).find(|&number| is_message(payload, number));
                    next = 1 + found.expect("an echo, in order");
                }
            }
            rest = &rest[len..];
        }
    }
}

fn run(seed: u64) -> Seen {
    let mut chance = Chance::new(seed);
    let tls = seed.is_multiple_of(TLS_EVERY);
    let mut limits = Limits::default();
    limits.output_len_max = [300, 4_000, 70_000][chance.below(3)];
    limits.output_low_water = 100;
    limits.turn_len_max = [1_024, 5_000, 70_000][chance.below(3)];
    limits.message_len_max = [2_000, 64 * 1024][usize::from(!chance.once_in(4))];
    limits.hold_len_max = [200, 70_000][chance.below(2)];
    let mut base = Route::default()
        .limits(limits.clone())
        .streaming(chance.once_in(5))
        .output_policy(
            [
                OutputPolicy::Refuse,
                OutputPolicy::Refuse,
                OutputPolicy::DropNewest,
                OutputPolicy::DropOldest,
                OutputPolicy::Conflate(0),
                OutputPolicy::Close,
            ][chance.below(6)],
        );
    if chance.once_in(5) {
        base = base.promote_within(Duration::from_secs(2));
    }
    let bound = limits.output_len_max + CONTROL_RESERVE;
    let settings = SimSettings {
        base,
        output_budget: [1_000, 10_000, usize::MAX][chance.below(3)],
        deferred_max: 2,
        connections_max: if chance.once_in(4) { 2 } else { 100 },
        seed: chance.bits(),
        faults: if chance.once_in(4) {
            Faults::default()
        } else {
            Faults::all()
        },
        tls: tls.then(|| certificates::server_tls().clone()),
        slow_callback: chance.once_in(2).then_some(Duration::MAX),
        ..SimSettings::default()
    };
    let handler = Chaos {
        chance: Chance::new(chance.bits()),
        open: Vec::new(),
        deferred: Vec::new(),
        defers: chance.once_in(3),
        violations: Vec::new(),
        seen: Seen::default(),
        outgoing_left: 3,
        tls,
    };
    let mut engine = SimServer::new(settings, handler);
    let mut clients = Vec::new();
    let wanted = 1 + chance.below(6);
    for step in 0..400 {
        if clients.len() < wanted && chance.once_in(4) {
            let capacity = [60, 500, 5_000, 100_000][chance.below(4)];
            let end = engine.net().connect(capacity);
            clients.push(client(end, tls, &mut chance));
        }
        while let Some(end) = engine.net().accept([60, 5_000, 100_000][chance.below(3)]) {
            clients.push(server(end, tls, &mut chance));
        }
        for client in &mut clients {
            client.step(&mut chance);
        }
        engine.turn().expect("a simulated backend does not fail");
        // The head of the handshake's answer is no message.
        assert!(
            engine.queued_len_max() <= bound + 200,
            "output over its limit"
        );
        if chance.once_in(20) {
            engine
                .net()
                .advance(Duration::from_millis(chance.below(3_000) as u64));
        }
        let sent = |client: &Client| {
            let idle = client.sent == client.to_send.len() && client.wire.is_empty();
            client.done || idle && !client.unanswered
        };
        if step > 60 && clients.len() >= wanted && clients.iter().all(sent) {
            break;
        }
    }
    // Time passes: deadlines end what peers have left open.
    for _ in 0..12 {
        engine
            .pass(Duration::from_secs(5))
            .expect("it does not fail");
        for client in &mut clients {
            client.read(&mut chance);
        }
    }
    if chance.once_in(2) {
        engine.drain(Drain::new().deadline(Duration::from_secs(20)));
    } else {
        engine.shut_down();
    }
    for _ in 0..200 {
        if engine.is_finished() {
            break;
        }
        engine
            .pass(Duration::from_secs(1))
            .expect("it does not fail");
        for client in &mut clients {
            client.read(&mut chance);
        }
    }
    assert!(engine.is_finished(), "the server does not end");
    for client in &mut clients {
        while client.reads && !client.end.is_finished() {
            let before = client.received.len();
            client.read(&mut chance);
            if client.received.len() == before {
                break;
            }
        }
        client.check();
    }
    let metrics = engine.metrics().total();
    let handler = engine.handler_mut();
    assert_eq!(handler.violations, Vec::<String>::new());
    let mut seen = std::mem::take(&mut handler.seen);
    if tls {
        seen.tls_messages = seen.messages;
    }
    seen.panics = metrics.panics;
    seen.refused = metrics.refused;
    seen.accept_rests = metrics.accept_pauses;
    seen.evicted = metrics.evicted;
    seen.exhausted = metrics.exhausted;
    seen.dropped = metrics.messages_dropped + metrics.messages_refused;
    let closed: u64 = metrics.closes.iter().map(|close| close.count).sum();
    assert!(closed <= metrics.opened, "closed more than opened");
    if engine.connections() == 0 {
        assert_eq!(engine.handler_mut().open, [], "on_close was not called");
        assert_eq!(closed, metrics.opened);
        assert_eq!((metrics.connections, metrics.subscriptions), (0, 0));
        assert_eq!((metrics.output_held, metrics.deferred), (0, 0));
        // A callback that panics takes a message with it, and the head that came before that.
        let left = metrics.buffers_in_use;
        assert!(
            left <= 2 * metrics.panics,
            "{left} buffers were not given back"
        );
    }
    seen
}

/// The same seed gives the same run, or a failure could not be repeated.
#[test]
fn runs_are_repeatable() {
    quiet_panics();
    let mut runs = HashMap::new();
    for seed in [1, 2, 3, 1, 2, 3] {
        let seen = format!("{:?}", run(seed));
        let first = runs.entry(seed).or_insert_with(|| seen.clone());
        assert_eq!(*first, seen, "seed {seed}");
    }
}
