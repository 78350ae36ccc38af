//! A deadline ends a peer only on evidence (guarantee 14): peers that do what they owe at once, and a
//! thread that is held up at any moment, for any time.
//!
//! A failure names its seed; `SOCKEYE_SEED=N cargo test --test main evidence` runs that one alone.
//! `SOCKEYE_SEEDS=N` runs a fiftieth of N instead of 2,000.

use std::io::Read;
use std::io::Write;
use std::panic;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use sockeye::CloseCause;
use sockeye::CloseCode;
use sockeye::Closed;
use sockeye::Connect;
use sockeye::Context;
use sockeye::Handler;
use sockeye::Initiator;
use sockeye::Limits;
use sockeye::Message;
use sockeye::Route;
use sockeye::SendResult;
use sockeye::Timeout;
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
use crate::support::Data;
use crate::support::End;
use crate::support::Link;
use crate::support::PATIENCE;
use crate::support::Place;
use crate::support::Probe;
use crate::support::REQUEST;
use crate::support::Record;
use crate::support::Running;
use crate::support::Settings;
use crate::support::Why;
use crate::support::World;
use crate::support::certificates;
use crate::support::frame;
use crate::support::server_frame;

cases!(
    g14_peers_heard_while_the_thread_was_held_up_stay_evidence,
    g14_peer_that_sends_without_end_and_owes_a_close_ends,
    g10_failed_connect_whose_on_close_panics_is_removed,
);

const SEEDS: u64 = 2_000;

/// One run in so many is over TLS.
const TLS_EVERY: u64 = 10;

/// Echoes, promotes at the first message, closes some connections, and notes how they end.
struct Echo {
    chance: Chance,
    outgoing_left: u32,
    tls: bool,
    ended: Vec<String>,
    echoes: u64,
    closes: u64,
}

impl Handler for Echo {
    type Data = ();

    fn on_message(&mut self, conn: &mut Context<'_, ()>, message: Message<'_>) {
        conn.promote();
        conn.send(message);
        self.echoes += 1;
        match self.chance.below(40) {
            0 => conn.close(CloseCode::NORMAL, ""),
            1 if self.outgoing_left > 0 => {
                self.outgoing_left -= 1;
                let scheme = if self.tls { "wss" } else { "ws" };
                let connect = Connect::new(&format!("{scheme}://127.0.0.1/")).expect("a URL");
                let connect = connect.tls(certificates::client_tls().clone());
                conn.connect(connect, ()).expect("it can be asked for");
            }
            _ => {}
        }
    }

    fn on_close(&mut self, _: &mut Context<'_, ()>, closed: &Closed<'_>) {
        self.closes += 1;
        // Peers end connections as they like; the engine may not, and its closes are answered.
        let is_answered = closed.initiator == Initiator::Peer || closed.clean;
        let is_fair = match closed.cause {
            CloseCause::TimedOut(_) | CloseCause::NotOpened(_) => false,
            CloseCause::Closed { code, .. } => code != Some(CloseCode::POLICY_VIOLATION),
            _ => true,
        };
        if !is_answered || !is_fair {
            self.ended.push(format!("{closed:?}"));
        }
    }
}

/// The far end of a connection. It reads all there is and answers it at once.
struct Peer {
    end: SimClient,
    tls: Option<rustls::Connection>,
    is_server: bool,
    is_open: bool,
    has_closed: bool,
    received: Vec<u8>,
}

impl Peer {
    fn client(end: SimClient, tls: bool) -> Self {
        let tls = tls.then(|| certificates::client_session("localhost").into());
        let mut peer = Self::new(end, tls, false);
        peer.send(REQUEST.as_bytes());
        peer
    }

    fn server(end: SimClient, tls: bool) -> Self {
        let tls = tls.then(|| {
            let config = certificates::server_tls().config();
            rustls::ServerConnection::new(config).expect("valid").into()
        });
        Self::new(end, tls, true)
    }

    fn new(end: SimClient, tls: Option<rustls::Connection>, is_server: bool) -> Self {
        Self {
            end,
            tls,
            is_server,
            is_open: false,
            has_closed: false,
            received: Vec::new(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            None => self.end.send(bytes),
            Some(tls) => tls.writer().write_all(bytes).expect("memory"),
        }
    }

    fn send_frame(&mut self, opcode: Opcode, payload: &[u8]) {
        let frame = match self.is_server {
            true => server_frame(0x80 | opcode as u8, payload),
            false => frame(opcode, payload),
        };
        self.send(&frame);
    }

    fn step(&mut self, chance: &mut Chance) {
        let bytes = self.end.receive(usize::MAX);
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
        self.answer(chance);
        if let Some(tls) = &mut self.tls {
            let mut wire = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut wire).expect("memory");
            }
            self.end.send(&wire);
        }
        // RFC 6455 §7.1.1: the server closes first, a client may after a while.
        if self.has_closed {
            self.end.shutdown();
        }
    }

    fn answer(&mut self, chance: &mut Chance) {
        if !self.is_open {
            let Some(len) = http1::head_len(&self.received, 0) else {
                return;
            };
            let head: Vec<u8> = self.received.drain(..len).collect();
            let head = String::from_utf8(head).expect("a head is text");
            if self.is_server {
                let answer = support::accept_of(&head, "");
                self.send(answer.as_bytes());
            } else {
                assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            }
            self.is_open = true;
            self.send_frame(Opcode::Binary, b"first");
        }
        while let Some((header, header_len)) = FrameHeader::decode(&self.received).expect("legal") {
            let len = header_len + header.payload_len as usize;
            if self.received.len() < len {
                break;
            }
            let frame: Vec<u8> = self.received.drain(..len).collect();
            let mut payload = frame[header_len..].to_vec();
            protocol::mask(&mut payload, header.mask_key.unwrap_or_default());
            match header.opcode {
                Opcode::Ping => self.send_frame(Opcode::Pong, &payload),
                Opcode::Close => {
                    self.send_frame(Opcode::Close, &payload);
                    self.has_closed = true;
                }
                _ => {}
            }
        }
        if self.is_open && !self.has_closed && chance.once_in(4) {
            let payload = vec![b'm'; [1, 200, 4_000][chance.below(3)]];
            self.send_frame(Opcode::Binary, &payload);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Nobody is ended by a deadline, whatever holds the thread up, and whatever little a wait reports.
#[test]
fn g14_no_deadline_ends_a_peer_that_answers_at_once_evidence() {
    let seeds = match number("SOCKEYE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SOCKEYE_SEEDS").map_or(SEEDS, |seeds| seeds / 50),
    };
    let (mut echoes, mut closes, mut pings) = (0, 0, 0);
    for seed in seeds {
        match panic::catch_unwind(|| run(seed)) {
            Ok(seen) => {
                echoes += seen.0;
                closes += seen.1;
                pings += seen.2;
            }
            Err(cause) => {
                eprintln!("seed {seed} failed: SOCKEYE_SEED={seed} repeats it");
                panic::resume_unwind(cause);
            }
        }
    }
    // The runs have met what they are for.
    if number("SOCKEYE_SEED").is_none() && number("SOCKEYE_SEEDS").is_none() {
        assert!(echoes > 1_000 && closes > 100 && pings > 1_000);
    }
}

fn run(seed: u64) -> (u64, u64, u64) {
    let mut chance = Chance::new(seed);
    let tls = seed.is_multiple_of(TLS_EVERY);
    let seconds = Duration::from_secs;
    let mut limits = Limits::default();
    limits.ping_interval = seconds(5);
    limits.pong_timeout = seconds(20);
    limits.idle_timeout = [Duration::ZERO, seconds(60)][chance.below(2)];
    limits.handshake_timeout = seconds(20);
    limits.close_timeout = seconds(20);
    limits.write_timeout = seconds(20);
    // Pongs are not what this is about.
    limits.control_burst_max = u8::MAX;
    let base = Route::default().limits(limits).promote_within(seconds(20));
    let settings = SimSettings {
        base,
        seed: chance.bits(),
        faults: Faults {
            short: 3,
            exhausted: 40,
            late: [0, 4][chance.below(2)],
            spurious: 6,
            stall: [10, 100][chance.below(2)],
            few: [1, 4][chance.below(2)],
            // A kernel that breaks connections, or that hides bytes it has, gives other evidence.
            ..Faults::default()
        },
        tls: tls.then(|| certificates::server_tls().clone()),
        ..SimSettings::default()
    };
    let handler = Echo {
        chance: Chance::new(chance.bits()),
        outgoing_left: 3,
        tls,
        ended: Vec::new(),
        echoes: 0,
        closes: 0,
    };
    let mut server = SimServer::new(settings, handler);
    let mut peers: Vec<Peer> = Vec::new();
    let wanted = 1 + chance.below(8);
    for _ in 0..150 {
        peers.retain(|peer| !peer.end.is_closed_by_server());
        while peers.len() < wanted {
            let end = server.net().connect([20_000, 100_000][chance.below(2)]);
            peers.push(Peer::client(end, tls));
        }
        while let Some(end) = server.net().accept(100_000) {
            peers.push(Peer::server(end, tls));
        }
        for peer in &mut peers {
            peer.step(&mut chance);
        }
        if !chance.once_in(3) {
            server.net().advance(Duration::from_millis(250));
        }
        server.turn().expect("a simulated backend does not fail");
        assert_eq!(server.handler_mut().ended, Vec::<String>::new());
    }
    let metrics = server.metrics().total();
    assert_eq!(metrics.handshake_timeouts, 0);
    let handler = server.handler_mut();
    (handler.echoes, handler.closes, metrics.sent.ping)
}

/// Keeps a callback from returning: until it is told to go on, and for a while after that.
#[derive(Default)]
struct Hold {
    goes_on: Mutex<bool>,
    changed: Condvar,
}

impl Hold {
    fn hold(&self, time: Duration) {
        let began = Instant::now();
        let mut goes_on = self.goes_on.lock().expect("nobody panics");
        while !*goes_on {
            goes_on = self.changed.wait(goes_on).expect("nobody panics");
        }
        drop(goes_on);
        thread::sleep(time.saturating_sub(began.elapsed()));
    }

    fn go_on(&self) {
        *self.goes_on.lock().expect("nobody panics") = true;
        self.changed.notify_all();
    }
}

/// While a callback holds the thread for longer than every time-out, open connections send a message
/// and others their requests. All are served.
fn g14_peers_heard_while_the_thread_was_held_up_stay_evidence(world: World) {
    // A machine so busy that the peers time out before the thread is held up proves nothing.
    for _ in 0..20 {
        if held_up(world) {
            return;
        }
    }
    panic!("no peer was ready in time");
}

/// Whether the peers were ready before they timed out.
fn held_up(world: World) -> bool {
    const HELD: Duration = Duration::from_secs(5);
    const COUNT: usize = 100;

    let mut settings = Settings {
        // A network that hides bytes it has gives other evidence.
        calm: true,
        ..Settings::default()
    };
    settings.limits.ping_interval = Duration::ZERO;
    settings.limits.idle_timeout = Duration::from_secs(2);
    settings.limits.handshake_timeout = Duration::from_secs(2);
    settings.base = Route::default().promote_within(Duration::from_secs(2));
    let hold = Arc::new(Hold::default());
    let held = Arc::clone(&hold);
    let is_sim = world.is_sim();
    let server = world.start_with(
        settings,
        Probe::echo().on_message(move |conn, message| match message.payload() {
            b"hold" if is_sim => {}
            b"hold" => held.hold(HELD),
            _ => {
                conn.promote();
                conn.send(message);
            }
        }),
    );
    let mut open: Vec<_> = (0..COUNT).map(|_| server.open()).collect();
    let mut opening: Vec<_> = (0..COUNT).map(|_| server.connect()).collect();
    let mut holder = server.open();
    server.wait_metrics(|seen| seen.connections == 2 * COUNT as u64 + 1);
    holder.send_text("hold");
    let is_hold = |record: &Record| matches!(record, Record::Message(_, _, p) if p == b"hold");
    server.wait(|records| records.iter().any(is_hold));
    if server.metrics().total().connections != 2 * COUNT as u64 + 1 {
        hold.go_on();
        return false;
    }
    let text = frame(Opcode::Text, b"in time");
    if let Place::Sim(server) = &server.place {
        // Without a turn, as while the thread is held up.
        let raw = |link: &mut Link, bytes: &[u8]| {
            let wire = link.seal(bytes);
            if let End::Sim(client, _) = &link.end {
                client.send(&wire);
            }
        };
        open.iter_mut().for_each(|link| raw(link, &text));
        opening
            .iter_mut()
            .for_each(|link| raw(link, REQUEST.as_bytes()));
        server.borrow().net().advance(100 * HELD);
    } else {
        open.iter_mut().for_each(|link| link.send(&text));
        opening
            .iter_mut()
            .for_each(|link| link.send(REQUEST.as_bytes()));
        hold.go_on();
    }
    for link in &mut open {
        link.expect_text("in time");
    }
    for link in &mut opening {
        assert_eq!(link.read_status(), 101);
    }
    assert_eq!(server.log().closes(), []);
    assert_eq!(server.metrics().total().handshake_timeouts, 0);
    true
}

/// Looks at the socket are bounded: it is not enough to send, where a Close frame is owed.
fn g14_peer_that_sends_without_end_and_owes_a_close_ends(world: World) {
    let mut settings = Settings::default();
    settings.limits.close_timeout = Duration::from_secs(1);
    let server = world.start_with(
        settings,
        Probe::echo().on_message(|conn, _| conn.close(CloseCode::NORMAL, "")),
    );
    let mut link = server.open();
    link.send_text("close");
    let close = link.next_frame().expect("a Close frame");
    assert_eq!(close.opcode, Opcode::Close);
    let flood = frame(Opcode::Binary, &[7; 60_000]);
    let began = Instant::now();
    while server.log().closes().is_empty() {
        assert!(began.elapsed() < PATIENCE, "the connection does not end");
        // It may have ended.
        link.try_send(&flood);
        server.pass(Duration::from_millis(50));
    }
    let ended = server.ended();
    assert_eq!((ended.why, ended.clean), (Why::Closed, false));
}

/// A connection that could not be begun has no socket to look at: it is removed at once.
fn g10_failed_connect_whose_on_close_panics_is_removed(world: World) {
    let mut settings = Settings {
        connections_max: Some(1),
        ..Settings::default()
    };
    settings.limits.ping_interval = Duration::ZERO;
    settings.limits.idle_timeout = Duration::ZERO;
    let mut probe = Probe::echo();
    probe.on_close = Arc::new(|_| panic!("as asked"));
    let server = world.start_with(settings, probe);
    let mut link = server.open();
    let connect = Connect::new("ws://127.0.0.1:1/").expect("a URL");
    match &server.place {
        Place::Sim(server) => {
            let data = Data::default();
            server.borrow_mut().connect(&connect, data).expect("valid");
        }
        _ => server.remote().connect(connect).expect("room"),
    }
    server.wait_metrics(|seen| seen.panics == 1 && seen.connections == 1);
    server.pass(Duration::from_secs(60));
    link.send_text("served");
    link.expect_text("served");
}

/// A simulated server with every time-out at three seconds, and no network but what the test does.
fn three_seconds() -> Running {
    let three = Duration::from_secs(3);
    let mut settings = Settings {
        base: Route::default().promote_within(three),
        calm: true,
        ..Settings::default()
    };
    settings.limits.ping_interval = three;
    settings.limits.pong_timeout = three;
    settings.limits.idle_timeout = Duration::ZERO;
    settings.limits.handshake_timeout = three;
    settings.limits.close_timeout = three;
    settings.limits.write_timeout = three;
    World::Sim.start_with(
        settings,
        Probe::echo().on_message(|conn, message| match message.payload() {
            b"close" => conn.close(CloseCode::NORMAL, ""),
            b"fill" => while let SendResult::Sent = conn.send(&[7; 1_000][..]) {},
            _ => {
                conn.promote();
                conn.send(message);
            }
        }),
    )
}

/// From here on no wait reports anything.
fn report_nothing(server: &Running) {
    if let Place::Sim(server) = &server.place {
        let faults = Faults {
            late: 1,
            ..Faults::default()
        };
        server.borrow().net().set_faults(faults);
    }
}

/// Sends without a turn.
fn arrive(link: &Link, bytes: &[u8]) {
    if let End::Sim(client, _) = &link.end {
        client.send(bytes);
    }
}

/// Bytes that no wait has reported are found before a deadline is acted upon, each kind of deadline.
#[test]
fn g14_look_finds_what_no_wait_has_reported_evidence() {
    let ten = Duration::from_secs(10);
    let text = frame(Opcode::Text, b"here");

    // The request.
    let server = three_seconds();
    let mut link = server.connect();
    server.turn(2);
    report_nothing(&server);
    arrive(&link, REQUEST.as_bytes());
    server.pass(ten);
    assert_eq!(link.read_status(), 101);
    assert_eq!(server.metrics().total().handshake_timeouts, 0);

    // A message, where the peer has to say who it is.
    let server = three_seconds();
    let mut link = server.open();
    report_nothing(&server);
    arrive(&link, &text);
    server.pass(Duration::from_millis(3_500));
    link.expect_text("here");
    assert_eq!(server.log().closes(), []);

    // A pong.
    let server = three_seconds();
    let mut link = server.open();
    link.send_text("here");
    link.expect_text("here");
    server.pass(Duration::from_secs(5));
    let ping = link.expect_own_ping();
    report_nothing(&server);
    arrive(&link, &frame(Opcode::Pong, &ping));
    server.pass(Duration::from_secs(4));
    assert_eq!(server.log().closes(), []);
    let pong = |record: &Record| matches!(record, Record::Pong(_, payload) if *payload == ping);
    assert!(server.log().all().iter().any(pong));

    // A Close frame.
    let server = three_seconds();
    let mut link = server.open();
    link.send_text("close");
    assert_eq!(link.next_frame().expect("a frame").opcode, Opcode::Close);
    report_nothing(&server);
    arrive(&link, &frame(Opcode::Close, &1000_u16.to_be_bytes()));
    server.pass(ten);
    let ended = server.ended();
    assert_eq!((ended.why, ended.clean), (Why::Closed, true));
}

/// Room that no wait has reported is found before a stalled connection is given up.
#[test]
fn g14_look_finds_room_that_no_wait_has_reported_evidence() {
    let server = three_seconds();
    let mut link = server.connect_with_room(10_000);
    link.upgrade();
    link.send_text("here");
    link.expect_text("here");
    link.send_text("fill");
    let sent = server.metrics().total().bytes_sent;
    report_nothing(&server);
    for _ in 0..10 {
        // The peer reads, and says that it is there.
        if let End::Sim(client, _) = &link.end {
            client.receive(1_000);
        }
        arrive(&link, &frame(Opcode::Pong, b""));
        server.pass(Duration::from_secs(2));
        assert_eq!(server.log().closes(), []);
    }
    assert!(server.metrics().total().bytes_sent >= sent + 5_000);
    // It reads no more.
    server.pass(Duration::from_secs(10));
    assert_eq!(server.ended().why, Why::TimedOut(Timeout::Write));
}

/// Looks are bounded: bytes without end do not put off the end of a peer that owes a Close frame.
#[test]
fn g14_looks_at_one_socket_are_bounded_evidence() {
    const FLOOD_LEN: usize = 20 << 20;

    let server = three_seconds();
    let mut link = server.open();
    link.send_text("close");
    assert_eq!(link.next_frame().expect("a frame").opcode, Opcode::Close);
    report_nothing(&server);
    let flood = frame(Opcode::Binary, &[7; 60_000]);
    arrive(&link, &flood.repeat(FLOOD_LEN / flood.len()));
    server.pass(Duration::from_secs(60));
    let ended = server.ended();
    assert_eq!((ended.why, ended.clean), (Why::Closed, false));
    let End::Sim(client, _) = &link.end else {
        unreachable!("the world is simulated");
    };
    // More than a simulated socket holds has been read, and not all.
    let read = FLOOD_LEN - client.unread_len();
    assert!((1 << 20..FLOOD_LEN / 2).contains(&read), "{read}");
}

/// A receive for which there is no memory is no look.
#[test]
fn g14_lack_of_memory_is_no_evidence() {
    let server = three_seconds();
    let mut link = server.connect();
    server.turn(2);
    let set_faults = |faults| {
        if let Place::Sim(server) = &server.place {
            server.borrow().net().set_faults(faults);
        }
    };
    set_faults(Faults {
        exhausted: 1,
        late: 1,
        ..Faults::default()
    });
    arrive(&link, REQUEST.as_bytes());
    server.pass(Duration::from_secs(10));
    server.turn(1_000);
    set_faults(Faults::default());
    server.turn(2);
    assert_eq!(link.read_status(), 101);
    assert_eq!(server.metrics().total().handshake_timeouts, 0);
}

/// The message that promotes a connection may be held, because the handler has paused it, or wait in the mailbox.
#[test]
fn g14_promotion_is_awaited_where_messages_are_held_evidence() {
    let mut settings = Settings {
        base: Route::default().promote_within(Duration::from_secs(3)),
        calm: true,
        ..Settings::default()
    };
    settings.limits.ping_interval = Duration::ZERO;
    settings.limits.idle_timeout = Duration::ZERO;
    let probe = Probe::echo().on_message(|conn, _| conn.promote());
    let probe = probe.on_open(|conn| conn.pause());
    let server = World::Sim.start_with(settings, probe);
    let mut link = server.open();
    link.send_text("who I am");
    server.pass(Duration::from_secs(20));
    assert_eq!(server.log().closes(), []);
    let id = server.log().ids()[0];
    server.remote().resume(id).expect("room");
    server.pass(Duration::from_secs(20));
    assert_eq!(server.log().closes(), []);

    // Not for ever: one that has nothing to say, and is not paused, ends.
    let mut silent = server.open();
    let id = *server.log().ids().last().expect("it is open");
    server.remote().resume(id).expect("room");
    server.pass(Duration::from_secs(5));
    silent.expect_close_answered(1008);
    assert_eq!(server.end_of(id).code, 1008);
}
