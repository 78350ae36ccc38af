//! Attacks that broke other implementations; `docs/PITFALLS.md` lists them. Every case runs on
//! each backend and on the simulated network.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use sockeye::CloseCode;
use sockeye::DropReason;
use sockeye::Limits;
use sockeye::ProtocolError;
use sockeye::Route;
use sockeye::SendResult;
use sockeye::Timeout;
use sockeye::Upgrade;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Data;
use crate::support::KEY;
use crate::support::Link;
use crate::support::Probe;
use crate::support::REQUEST;
use crate::support::Record;
use crate::support::Running;
use crate::support::Settings;
use crate::support::Why;
use crate::support::World;
use crate::support::fragment;
use crate::support::frame;
use crate::support::masked;
use crate::support::raw_frame;
use crate::support::request_with;

cases!(
    len63,
    frag_agg,
    frag_count,
    frag_quad,
    hdr_grow,
    hdr_count,
    hdr_upgrade,
    slowloris_head,
    slowloris_frame,
    slowread,
    pingflood,
    pong_owed,
    ctrl_drop,
    closemem,
    closecode,
    mask,
    rsv,
    origin,
    smuggle,
    zero_length,
    zero_length_absolute_form,
    head_gets_no_body,
    bare_lf,
    answers_have_a_date,
    split,
    subproto,
    utf8,
    uaf,
    stale,
);

/// Sends `bytes` to an open connection, whole and byte by byte: each time the connection fails
/// with `error`, the peer gets its code, and another connection is not concerned.
#[track_caller]
fn fails(server: &Running, bytes: &[u8], error: ProtocolError) {
    for dribble in [false, true] {
        let mut link = server.open();
        let id = *server.log().ids().last().expect("it is open");
        if dribble {
            for byte in bytes {
                // The server may fail the connection before the last byte.
                if !link.try_send(&[*byte]) {
                    break;
                }
            }
        } else {
            link.send(bytes);
        }
        link.expect_close(error.close_code().get());
        let ended = server.end_of(id);
        assert_eq!(ended.why, Why::Failed(error), "{bytes:02X?}");
        assert_eq!((ended.local, ended.clean), (true, false));
    }
}

fn len63(world: World) {
    let server = world.start(Probe::echo());
    let mut other = server.open();
    let header = |len: u64, first: u8| {
        let mut bytes = vec![first, 0x80 | 127];
        bytes.extend(len.to_be_bytes());
        bytes.extend(KEY);
        bytes
    };
    fails(
        &server,
        &header(1 << 63, 0x82),
        ProtocolError::LengthTooLarge,
    );
    fails(
        &server,
        &header(u64::MAX, 0x82),
        ProtocolError::LengthTooLarge,
    );
    let max = (1 << 63) - 1;
    fails(&server, &header(max, 0x82), ProtocolError::MessageTooBig);
    let mut second = fragment(Opcode::Binary, b"x");
    second.extend(header(max, 0x80));
    fails(&server, &second, ProtocolError::MessageTooBig);
    // Not in the shortest form.
    fails(&server, &header(125, 0x82), ProtocolError::LengthNotMinimal);
    fails(
        &server,
        &header(0xFFFF, 0x82),
        ProtocolError::LengthNotMinimal,
    );
    let short = [0x82, 0x80 | 126, 0, 125, 1, 2, 3, 4];
    fails(&server, &short, ProtocolError::LengthNotMinimal);
    other.send_text("still here");
    other.expect_text("still here");
}

fn frag_agg(world: World) {
    let mut settings = Settings::default();
    settings.limits.message_len_max = 1000;
    let server = world.start_with(settings, Probe::echo());
    let mut bytes = fragment(Opcode::Binary, &[1; 600]);
    bytes.extend(raw_frame(0x80, &[2; 401]));
    fails(&server, &bytes, ProtocolError::MessageTooBig);
    fails(
        &server,
        &frame(Opcode::Text, &[b'a'; 1001]),
        ProtocolError::MessageTooBig,
    );

    // The limit itself is accepted, in one piece and in several.
    let mut link = server.open();
    link.send(&frame(Opcode::Binary, &[7; 1000]));
    link.expect(Opcode::Binary, &[7; 1000]);
    link.send(&fragment(Opcode::Binary, &[8; 600]));
    link.send(&raw_frame(0x80, &[8; 400]));
    link.expect(Opcode::Binary, &[8; 1000]);
}

fn frag_count(world: World) {
    let server = world.start(Probe::echo());
    let max = Limits::default().fragment_count_max as usize;
    for payload in [&b"x"[..], b""] {
        // So many that the last is one too many.
        let mut bytes = fragment(Opcode::Text, payload);
        for _ in 0..max {
            bytes.extend(fragment(Opcode::Continuation, payload));
        }
        let mut link = server.open();
        link.send(&bytes);
        link.expect_close(1008);

        // One fewer is a message.
        let mut bytes = fragment(Opcode::Text, payload);
        for _ in 0..max - 2 {
            bytes.extend(fragment(Opcode::Continuation, payload));
        }
        bytes.extend(raw_frame(0x80, payload));
        let mut link = server.open();
        link.send(&bytes);
        link.expect(Opcode::Text, &payload.repeat(max));
    }
    let failed = Why::Failed(ProtocolError::FragmentsTooMany);
    let is_failed = |ended: &&support::Ended| ended.why == failed;
    assert_eq!(server.log().closes().iter().filter(is_failed).count(), 2);
}

/// The time for a text of one-byte fragments grows with its length, not with its square.
fn frag_quad(world: World) {
    let mut settings = Settings::default();
    settings.limits.fragment_count_max = u32::MAX;
    let server = world.start_with(settings, Probe::echo());
    let time = |len: usize| {
        let mut bytes = fragment(Opcode::Text, b"a");
        for _ in 1..len - 1 {
            bytes.extend(fragment(Opcode::Continuation, b"a"));
        }
        bytes.extend(raw_frame(0x80, b"a"));
        let mut link = server.open();
        let start = Instant::now();
        link.send(&bytes);
        link.expect(Opcode::Text, &vec![b'a'; len]);
        start.elapsed()
    };
    // The best of several: other programs may run.
    let best = |len| (0..5).map(|_| time(len)).min().expect("five");
    let (small, large) = (best(4 * 1024), best(64 * 1024));
    let floor = Duration::from_micros(500);
    // 16 times as much takes 16 times as long; with a quadratic step it took 256 times.
    assert!(large < 100 * small.max(floor), "{small:?}, {large:?}");
}

fn hdr_grow(world: World) {
    let server = world.start(Probe::echo());
    // A head that never ends, byte by byte: refused at the limit.
    let mut head = b"GET / HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
    head.resize(64 * 1024, b'x');
    let mut link = server.connect();
    let len_max = Limits::default().head_len_max;
    for bytes in head[..len_max].chunks(if world.is_sim() { 1 } else { 16 }) {
        link.send(bytes);
    }
    assert_eq!(link.read_status(), 431);

    // The same in the request line alone.
    let mut link = server.connect();
    link.send(format!("GET /{}", "a".repeat(len_max)).as_bytes());
    assert_eq!(link.read_status(), 414);

    // Clients send tokens of some KiB in the target, in cookies, in subprotocols.
    let token = "t".repeat(9 * 1024);
    for request in [
        REQUEST.replace("GET /", &format!("GET /?token={token}")),
        request_with(&format!("Cookie: a={token}")),
        request_with(&format!("Sec-WebSocket-Protocol: chat, bearer.{token}")),
    ] {
        let mut link = server.connect();
        link.send(request.as_bytes());
        assert_eq!(link.read_status(), 101);
    }

    // Exactly at the limit, in two pieces wherever it is cut.
    let filler = len_max - request_with("X: ").len();
    let request = request_with(&format!("X: {}", "x".repeat(filler)));
    assert_eq!(request.len(), len_max);
    for cut in [1, 4, 15, 16, 17, 4096]
        .into_iter()
        .chain(len_max - 4..len_max)
    {
        let mut link = server.connect();
        link.send(&request.as_bytes()[..cut]);
        link.send(&request.as_bytes()[cut..]);
        assert_eq!(link.read_status(), 101, "{cut}");
    }
    let mut link = server.connect();
    link.send(request_with(&format!("X: {}", "x".repeat(filler + 1))).as_bytes());
    assert_eq!(link.read_status(), 431);
}

fn hdr_count(world: World) {
    let server = world.start(Probe::echo());
    // Five headers are in the request.
    for (count, status) in [(59, 101), (60, 431), (100, 431), (1000, 431)] {
        let mut link = server.connect();
        // The handshake's own come last.
        let many: String = (0..count).map(|n| format!("X{n}: y\r\n")).collect();
        link.send(
            REQUEST
                .replacen("Host", &format!("{many}Host"), 1)
                .as_bytes(),
        );
        assert_eq!(link.read_status(), status, "{count}");
    }
}

fn hdr_upgrade(world: World) {
    let server = world.start(Probe::echo());
    let check = |request: String, want: u16| {
        let mut link = server.connect();
        link.send(request.as_bytes());
        let head = link.read_head();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {want} ")),
            "{request}\n{head}"
        );
        if want == 426 {
            assert!(head.contains("Sec-WebSocket-Version: 13\r\n"), "{head}");
            let offer = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
            assert!(head.contains(offer), "{head}");
        }
        if want != 101 {
            assert!(head.contains("Connection: close\r\n"), "{head}");
            link.read_to_end();
        }
    };
    let replaced = |from: &str, to: &str| {
        assert!(REQUEST.contains(from));
        REQUEST.replacen(from, to, 1)
    };
    let upgrade = "Upgrade: websocket\r\n";
    check(replaced(upgrade, ""), 426);
    check(replaced(upgrade, "Upgrade:\r\n"), 426);
    check(replaced(upgrade, "Upgrade: h2c\r\n"), 426);
    check(replaced(upgrade, "Upgrade: websocket, x\r\n"), 426);
    check(replaced(upgrade, "Upgrade: websocketx\r\n"), 426);
    check(replaced(upgrade, &upgrade.repeat(2)), 426);
    check(
        replaced("websocket\r\n", &format!("{}\r\n", "w".repeat(7000))),
        426,
    );
    check(replaced(upgrade, "uPGRADE: WebSocket\r\n"), 101);

    check(replaced("Connection: Upgrade\r\n", ""), 400);
    check(replaced("Connection: Upgrade", "Connection: close"), 400);
    check(
        replaced("Connection: Upgrade", "Connection: keep-alive, upgrade"),
        101,
    );

    check(replaced("Version: 13", "Version: 12"), 426);
    check(replaced("Version: 13", "Version: 8, 13"), 426);
    check(replaced("Version: 13", "Version: "), 426);
    check(request_with("Sec-WebSocket-Version: 13"), 426);

    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    check(replaced(key, ""), 400);
    check(replaced(key, &key.repeat(2)), 400);
    check(replaced("dGhlIHNhbXBsZSBub25jZQ==", ""), 400);
    check(replaced("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400);
    check(
        replaced("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZSE="),
        400,
    );
    check(
        replaced("dGhlIHNhbXBsZSBub25jZQ==", "!!!!IHNhbXBsZSBub25jZQ=="),
        400,
    );
    check(replaced("dGhlIHNhbXBsZSBub25jZQ==", &"A".repeat(5000)), 400);

    check(replaced("Host: example.com\r\n", ""), 400);
    check(replaced("Host: example.com", "Host: a\r\nHost: b"), 400);
    check(replaced("GET", "POST"), 405);
    check(replaced("HTTP/1.1", "HTTP/1.0"), 400);
    check(replaced("HTTP/1.1", "HTTP/2.0"), 400);
    check(replaced("GET / ", "GET "), 400);
    check("\r\n\r\n".to_owned(), 400);
    check("\u{16}\u{3}\u{1}".to_owned(), 400);
    check("GET / HTTP/1.1\nHost: a\n\r\n\r\n".to_owned(), 400);

    check(
        request_with("Sec-WebSocket-Extensions: permessage-deflate"),
        101,
    );
    check(request_with("Sec-WebSocket-Extensions: a; b=\"c"), 400);
    check(request_with("Sec-WebSocket-Extensions: a b"), 400);
    check(request_with("Sec-WebSocket-Protocol: a b"), 400);
}

/// One time-out of one second, to wait for on a live server.
fn with_timeout(set: impl Fn(&mut Limits)) -> Settings {
    let mut settings = Settings::default();
    set(&mut settings.limits);
    settings
}

fn slowloris_head(world: World) {
    let second = Duration::from_secs(1);
    let server = world.start_with(
        with_timeout(|l| l.handshake_timeout = second),
        Probe::echo(),
    );
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.send(b"GET / HTTP/1.1\r\n");
    let mut served = server.open();
    // Bytes do not renew the deadline.
    for byte in b"Host: a" {
        slow.try_send(&[*byte]);
        server.pass(Duration::from_millis(500));
    }
    assert_eq!(silent.read_to_end(), b"");
    assert_eq!(slow.read_to_end(), b"");
    served.send_text("served");
    served.expect_text("served");
    // Neither was a WebSocket.
    assert_eq!(server.log().closes(), []);
}

fn slowloris_frame(world: World) {
    let second = Duration::from_secs(1);
    let settings = with_timeout(|l| {
        (l.ping_interval, l.pong_timeout, l.close_timeout) = (second, second, second);
    });
    let server = world.start_with(settings, Probe::echo());
    let mut link = server.open();
    link.send(&[0x82]);
    server.pass(Duration::from_secs(3));
    link.expect_own_ping();
    server.pass(Duration::from_secs(3));
    link.expect_close(1001);
    let ended = server.ended();
    assert_eq!(ended.why, Why::TimedOut(Timeout::Pong));
    // The peer does not close its side either.
    server.pass(Duration::from_secs(5));
    server.wait_empty();
}

/// Sends until the output limit refuses, to a peer that does not read.
fn fill_output(probe: Probe) -> Probe {
    probe.on_message(|conn, message| {
        let payload = vec![b'x'; 10_000];
        while conn.send(&payload) != SendResult::Dropped(DropReason::OutputLimit) {}
        assert!(conn.queued_bytes() <= Limits::default().output_len_max);
        conn.send(message);
    })
}

fn slowread(world: World) {
    let second = Duration::from_secs(1);
    let settings = with_timeout(|l| l.write_timeout = second);
    let server = world.start_with(settings, fill_output(Probe::echo()));
    let mut link = server.connect_with_room(5_000);
    link.upgrade();
    link.send_text("fill");
    let mut other = server.open();
    server.pass(Duration::from_secs(4));
    let ended = server.ended();
    assert_eq!(ended.why, Why::TimedOut(Timeout::Write));
    other.send_frame(Opcode::Ping, b"alive");
    other.expect(Opcode::Pong, b"alive");
}

fn pong_owed(world: World) {
    const PINGS: usize = 600;
    let mut settings = with_timeout(|l| l.ping_interval = Duration::from_secs(1));
    settings.limits.output_low_water = 100;
    let probe = Probe::echo().on_message(|conn, message| {
        if message.payload() == b"ping" {
            for number in 0..PINGS {
                // Of the same payload and of different ones.
                let payload = match number % 2 {
                    0 => "rtt".to_owned(),
                    _ => number.to_string(),
                };
                assert_eq!(conn.ping(payload.as_bytes()), SendResult::Sent);
            }
        }
        conn.send(message);
    });
    let server = world.start_with(settings, probe);
    let mut link = server.open();
    link.send_text("ping");
    let mut answers = Vec::new();
    while let Some(got) = link.next_frame().filter(|got| got.opcode == Opcode::Ping) {
        answers.extend(frame(Opcode::Pong, &got.payload));
    }
    // All at once, after what anybody may send, and it may be sent again.
    let burst = frame(Opcode::Ping, b"").repeat(20);
    link.send(&[&burst[..], &answers].concat());
    for _ in 0..20 {
        link.expect(Opcode::Pong, b"");
    }
    link.send_text("served");
    link.expect_text("served");
    // An answered ping is no longer owed.
    link.send(&answers);
    link.expect_close(1008);
    let ended = server.ended();
    assert_eq!(ended.why, Why::Failed(ProtocolError::ControlTooOften));

    // The engine's own: virtual time only. The peer lives, and its pongs are late.
    if !world.is_sim() {
        return;
    }
    let mut link = server.open();
    let mut answers = Vec::new();
    for _ in 0..300 {
        server.pass(Duration::from_secs(3));
        let payload = link.expect_own_ping();
        answers.extend(frame(Opcode::Pong, &payload));
        link.send_text("alive");
        link.expect_text("alive");
    }
    link.send(&burst);
    link.send(&answers);
    link.send_text("served");
    for _ in 0..20 {
        link.expect(Opcode::Pong, b"");
    }
    link.expect_text("served");
    link.send(&answers);
    link.expect_close(1008);
}

fn pingflood(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.connect_with_room(1_000);
    link.upgrade();
    // The burst is answered, one more is not.
    let ping = frame(Opcode::Ping, &[b'p'; 125]);
    link.send(&ping.repeat(21));
    for _ in 0..20 {
        link.expect(Opcode::Pong, &[b'p'; 125]);
    }
    link.expect_close(1008);
    assert_eq!(
        server.ended().why,
        Why::Failed(ProtocolError::ControlTooOften)
    );

    // Pongs count as well.
    let mut link = server.open();
    link.send(&frame(Opcode::Pong, b"").repeat(21));
    link.expect_close(1008);

    // In the long run as many as the rate says: virtual time only.
    if world.is_sim() {
        let mut link = server.open();
        for _ in 0..20 {
            server.pass(Duration::from_secs(1));
            link.send(&frame(Opcode::Ping, b"x").repeat(10));
            for _ in 0..10 {
                link.expect(Opcode::Pong, b"x");
            }
        }
    }
}

fn ctrl_drop(world: World) {
    let server = world.start(fill_output(Probe::echo()));
    let mut link = server.connect_with_room(5_000);
    link.upgrade();
    link.send_text("fill");
    // The output is at its limit: pings are still answered, at the least the last one.
    for number in 0..18_u8 {
        link.send_frame(Opcode::Ping, &[number; 125]);
    }
    link.send_frame(Opcode::Ping, b"the last one");
    let pings = |records: &[Record]| {
        let is_ping = |record: &&Record| matches!(record, Record::Ping(..));
        records.iter().filter(is_ping).count() == 19
    };
    server.wait(pings);
    let mut pongs = Vec::new();
    while pongs
        .last()
        .is_none_or(|pong: &Vec<u8>| pong != b"the last one")
    {
        let frame = link.next_frame().expect("a pong of the last ping comes");
        match frame.opcode {
            Opcode::Pong => pongs.push(frame.payload),
            opcode => assert!(matches!(opcode, Opcode::Binary | Opcode::Text)),
        }
    }
    assert!(
        pongs.is_sorted_by_key(|pong| pong[0]),
        "in the order of the pings"
    );

    // And so is a Close frame.
    let mut link = server.connect_with_room(5_000);
    link.upgrade();
    link.send_text("fill");
    link.send_frame(Opcode::Close, &1000_u16.to_be_bytes());
    loop {
        let frame = link.next_frame().expect("a Close frame comes");
        if frame.opcode == Opcode::Close {
            assert_eq!(frame.payload, 1000_u16.to_be_bytes());
            break;
        }
    }
    assert_eq!(link.next_frame(), None);
    assert_eq!(
        server.log().closes().last().map(|ended| ended.clean),
        Some(true)
    );
}

fn closemem(world: World) {
    let reason = "r".repeat(123);
    let sent = reason.clone();
    let server = world.start(Probe::echo().on_message(move |conn, message| {
        match message.payload() {
            b"long" => conn.close(CloseCode::NORMAL, &sent),
            b"too long" => conn.close(CloseCode::NORMAL, &format!("{sent}more")),
            b"cut" => conn.close(CloseCode::NORMAL, &format!("{}é", &sent[..122])),
            b"secret" => {
                conn.ping(b"ping");
                conn.close(CloseCode::new(4000).expect("an application's"), "");
            }
            _ => {}
        };
    }));
    let closes = |text: &str, want: &[u8]| {
        let mut link = server.open();
        // Bytes that may lie around in buffers.
        link.send_frame(Opcode::Binary, &[b'S'; 500]);
        link.send_text(text);
        if text == "secret" {
            link.expect(Opcode::Ping, b"ping");
        }
        link.expect(Opcode::Close, want);
        link.send_frame(Opcode::Close, &1000_u16.to_be_bytes());
        assert_eq!(link.next_frame(), None);
    };
    let payload = |reason: &str| [&1000_u16.to_be_bytes()[..], reason.as_bytes()].concat();
    closes("long", &payload(&reason));
    closes("too long", &payload(&reason));
    closes("cut", &payload(&reason[..122]));
    closes("secret", &4000_u16.to_be_bytes());
    // The peer's reason is not sent back, nor is any byte behind its code.
    let mut link = server.open();
    link.send_frame(Opcode::Close, &payload("because"));
    link.expect(Opcode::Close, &1000_u16.to_be_bytes());
    assert_eq!(link.next_frame(), None);
    assert_eq!(server.closes(5)[4].reason, "because");
}

fn closecode(world: World) {
    let server = world.start(Probe::echo());
    // Every code, on the simulated network; the edges of every range on a live server.
    let edges = [
        0, 1, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1011, 1012, 1013, 1014, 1015,
        1016, 1100, 1999, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65535,
    ];
    let codes: Vec<u16> = if world.is_sim() {
        (0..=65535).collect()
    } else {
        edges.into()
    };
    for code in codes {
        let may_be_sent = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        let mut link = server.open();
        link.send_frame(Opcode::Close, &code.to_be_bytes());
        link.expect_close(if may_be_sent { code } else { 1002 });
    }
    let mut link = server.open();
    let id = *server.log().ids().last().expect("it is open");
    link.send_frame(Opcode::Close, b"");
    link.expect_close(1005);
    let ended = server.end_of(id);
    assert_eq!((ended.code, ended.clean, ended.local), (1005, true, false));

    fails(
        &server,
        &frame(Opcode::Close, &[3]),
        ProtocolError::ClosePayload,
    );
    let bad_reason = [3, 232, 0xC3, 0x28];
    fails(
        &server,
        &frame(Opcode::Close, &bad_reason),
        ProtocolError::Utf8,
    );
    let unfinished = [3, 232, b'a', 0xE2, 0x82];
    fails(
        &server,
        &frame(Opcode::Close, &unfinished),
        ProtocolError::Utf8,
    );
    let mut long = vec![0x88, 0x80 | 126, 0, 126];
    long.extend(KEY);
    long.extend(masked(&[b'r'; 126]));
    fails(&server, &long, ProtocolError::ControlTooLong);
    let mut link = server.open();
    let reason_123 = [&[3, 232][..], &[b'r'; 123]].concat();
    link.send_frame(Opcode::Close, &reason_123);
    link.expect_close(1000);
}

fn mask(world: World) {
    let server = world.start(Probe::echo());
    for opcode in [0x0, 0x1, 0x2, 0x8, 0x9, 0xA] {
        fails(
            &server,
            &[0x80 | opcode, 2, b'h', b'i'],
            ProtocolError::Unmasked,
        );
        fails(&server, &[0x80 | opcode, 0], ProtocolError::Unmasked);
    }
    // A key of zeros is a key.
    let mut link = server.open();
    link.send(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
    link.expect_text("hi");
    // A frame cut anywhere: in its length, in its key, in its payload.
    for len in [0, 1, 5, 126, 200] {
        let payload = vec![b'm'; len];
        let bytes = frame(Opcode::Text, &payload);
        for cut in 1..bytes.len() {
            link.send(&bytes[..cut]);
            link.send(&bytes[cut..]);
            link.expect(Opcode::Text, &payload);
        }
    }
}

fn rsv(world: World) {
    let server = world.start(Probe::echo());
    for bits in [0x10, 0x20, 0x40, 0x30, 0x50, 0x60, 0x70] {
        for opcode in [0x0, 0x1, 0x2, 0x8, 0x9, 0xA] {
            if opcode == 0 {
                let mut bytes = fragment(Opcode::Text, b"a");
                bytes.extend(raw_frame(0x80 | bits, b"b"));
                fails(&server, &bytes, ProtocolError::ReservedBit);
            } else {
                let bytes = raw_frame(0x80 | bits | opcode, b"");
                fails(&server, &bytes, ProtocolError::ReservedBit);
            }
        }
    }
    for opcode in [0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF] {
        fails(
            &server,
            &raw_frame(0x80 | opcode, b""),
            ProtocolError::OpcodeReserved,
        );
    }
    for opcode in [Opcode::Close, Opcode::Ping, Opcode::Pong] {
        fails(
            &server,
            &fragment(opcode, b""),
            ProtocolError::ControlFragmented,
        );
    }
    let orphan = frame(Opcode::Continuation, b"a");
    fails(&server, &orphan, ProtocolError::ContinuationUnexpected);
    let mut inside = fragment(Opcode::Text, b"a");
    inside.extend(frame(Opcode::Text, b"b"));
    fails(&server, &inside, ProtocolError::MessageInterrupted);
}

fn origin(world: World) {
    let server = world.start(Probe::echo());
    let check = |server: &Running, header: &str, want| {
        let mut link = server.connect();
        link.send(request_with(header).as_bytes());
        assert_eq!(link.read_status(), want, "{header}");
    };
    // The request names the host example.com.
    check(&server, "X: no origin", 101);
    check(&server, "Origin: http://example.com", 101);
    check(&server, "Origin: https://EXAMPLE.com", 101);
    for bad in [
        "http://evil.com",
        "https://example.com.evil.com",
        "http://example.com:8080",
        "http://example.com.",
        "http://example.com@evil.com",
        "http://a:b",
        "http://",
        "null",
        "",
        "example.com",
        "file://",
        "http://[::1",
        "http://example.com\u{e9}",
    ] {
        check(&server, &format!("Origin: {bad}"), 403);
    }
    check(
        &server,
        "Origin: http://example.com\r\nOrigin: http://evil.com",
        403,
    );
    // Nothing was opened for those.
    assert_eq!(server.log().ids().len(), 3);

    let settings = Settings {
        base: Route::default().origins(sockeye::OriginPolicy::Any),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    check(&server, "Origin: http://evil.com", 101);

    // Origins without a site: apps, extensions, devices, local files.
    let origins = [
        "null",
        "file://",
        "capacitor://localhost",
        "chrome-extension://fmkadmapgofadopljbjfkapdkoienihi",
        "ws://device.local",
    ];
    let settings = Settings {
        base: Route::default().origins(sockeye::OriginPolicy::list(origins)),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    for origin in origins {
        check(&server, &format!("Origin: {origin}"), 101);
    }
    for bad in [
        "file://a",
        "capacitor://a",
        "chrome-extension://a",
        "ws://a",
        "NULL",
    ] {
        check(&server, &format!("Origin: {bad}"), 403);
    }
}

fn smuggle(world: World) {
    let server = world.start(Probe::echo());
    // What follows a rejected upgrade is not looked at.
    let bad = REQUEST.replace("Version: 13", "Version: 7");
    let mut link = server.connect();
    link.send(format!("{bad}GET /page HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    let answer = String::from_utf8(link.read_to_end()).expect("ASCII");
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    // Nor is what follows a page.
    let mut link = server.connect();
    let get = "GET /page HTTP/1.1\r\nHost: a\r\n\r\n";
    link.send(format!("{get}{REQUEST}").as_bytes());
    let answer = String::from_utf8(link.read_to_end()).expect("ASCII");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with("\r\n\r\na page"), "{answer}");

    for body in [
        "Content-Length: 5",
        "Content-Length:",
        "Content-Length: +0",
        "Content-Length: 0x0",
        "Content-Length: 0, 0",
        "Content-Length: 0\r\nContent-Length: 0",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked",
    ] {
        let mut link = server.connect();
        link.send(request_with(body).as_bytes());
        assert_eq!(link.read_status(), 400, "{body}");
        let mut link = server.connect();
        link.send(format!("GET /page HTTP/1.1\r\nHost: a\r\n{body}\r\n\r\n12345").as_bytes());
        assert_eq!(link.read_status(), 400, "{body}");
    }
    // An upgrade to something else is no upgrade.
    let mut link = server.connect();
    let h2c = "GET /page HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
               Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    link.send(h2c.as_bytes());
    assert_eq!(link.read_status(), 200);

    // Frames that came with the request are kept.
    let mut link = server.connect();
    let mut bytes = REQUEST.as_bytes().to_vec();
    bytes.extend(frame(Opcode::Text, b"early"));
    bytes.extend(frame(Opcode::Text, b"bird"));
    link.send(&bytes);
    assert_eq!(link.read_status(), 101);
    link.expect_text("early");
    link.expect_text("bird");
}

/// An explicit length of zero is no body (RFC 9110 §8.6): clients and proxies send it with every
/// request.
fn zero_length(world: World) {
    let server = world.start(Probe::echo());
    for length in [
        "Content-Length: 0",
        "content-length:0",
        "Content-Length: 00 ",
    ] {
        let request = request_with(length);
        let early = frame(Opcode::Text, b"early");
        let bytes = [request.as_bytes(), &early].concat();
        let step = if world.is_sim() { 1 } else { 40 };
        for cut in (0..bytes.len()).step_by(step) {
            let mut link = server.connect();
            link.send(&bytes[..cut]);
            link.send(&bytes[cut..]);
            assert_eq!(link.read_status(), 101, "{length} {cut}");
            link.expect_text("early");
        }
    }
    let mut link = server.connect();
    link.send(b"GET /page HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(link.read_status(), 200);
}

/// A target in absolute form is that of its path, and its host is the one that counts, for the
/// origin as well (RFC 9112 §3.2.2).
fn zero_length_absolute_form(world: World) {
    let settings = Settings {
        routes: vec![("/chat/{room}", Route::default())],
        health_path: Some("/health"),
        metrics_path: Some("/metrics"),
        ..Settings::default()
    };
    let mut probe = Probe::echo();
    probe.on_upgrade = Arc::new(|request| {
        assert_eq!(request.param("room").as_deref(), Some("7"));
        assert_eq!(request.request().path(), "/chat/7");
        assert_eq!(request.request().query(), Some("a=b"));
        Upgrade::accept(Data::default())
    });
    let server = world.start_with(settings, probe);
    let status = |request: &str| {
        let mut link = server.connect();
        link.send(request.as_bytes());
        link.read_status()
    };
    for (target, want) in [
        ("http://a/health", 200),
        ("https://a:8443/health?x", 200),
        ("HTTP://a/metrics", 200),
        ("http://u@a/health", 400),
        ("http://a:+80/health", 400),
        ("http://[a]/health", 400),
        ("ftp://a/health", 400),
        ("/h\u{e9}alth", 400),
    ] {
        let got = status(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(got, want, "{target}");
    }
    // Host must be there once all the same (RFC 9112 §3.2).
    assert_eq!(status("GET http://a/health HTTP/1.1\r\n\r\n"), 400);
    for bad in ["", "a b", "a:x", "a:+80", "[]", "[a]", "u@a"] {
        let host = match bad {
            "" => "Host: a\r\nHost: a".to_owned(),
            _ => format!("Host: {bad}"),
        };
        let got = status(&format!("GET /health HTTP/1.1\r\n{host}\r\n\r\n"));
        assert_eq!(got, 400, "{host}");
        let upgrade = REQUEST.replace("Host: example.com", &host);
        let got = status(&upgrade.replace("GET /", "GET /chat/7?a=b"));
        assert_eq!(got, 400, "{host}");
    }

    let upgrade = |target: &str, origin: &str| {
        let request = request_with(&format!("Origin: {origin}"));
        status(&request.replace("GET /", &format!("GET {target}")))
    };
    let own = "http://example.com";
    assert_eq!(upgrade("http://example.com/chat/7?a=b", own), 101);
    assert_eq!(upgrade("ws://example.com/chat/7?a=b", own), 101);
    assert_eq!(upgrade("http://example.com/none", own), 404);
    // The request's Host is example.com.
    assert_eq!(upgrade("http://a.test/chat/7?a=b", own), 403);
    assert_eq!(upgrade("http://a.test/chat/7?a=b", "http://a.test"), 101);
    assert_eq!(upgrade("http://a.test:81/chat/7?a=b", "http://a.test"), 403);
}

/// HEAD is answered as GET would be, without the body (RFC 9110 §9.3.2), whatever the answer.
fn head_gets_no_body(world: World) {
    let settings = Settings {
        health_path: Some("/health"),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    let upgrade = REQUEST.replace("GET ", "HEAD ");
    let long = "x".repeat(64 * 1024);
    let host = "HTTP/1.1\r\nHost: a\r\n";
    for (request, want) in [
        (format!("HEAD /page {host}\r\n"), 200),
        (format!("\r\nHEAD /page {host}\r\n"), 200),
        (format!("HEAD /health {host}\r\n"), 200),
        (upgrade.clone(), 405),
        (upgrade.replace("Version: 13", "Version: 7"), 405),
        (format!("HEAD /page {host}Content-Length: 5\r\n\r\n"), 400),
        ("HEAD /page HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("HEAD /page HTTP/2.0\r\n\r\n".to_owned(), 400),
        ("HEAD /page HTTP/1.1\nHost: a\n\n".to_owned(), 400),
        (
            format!("HEAD /page {host}{}\r\n", "X: y\r\n".repeat(65)),
            431,
        ),
        (format!("HEAD /page {host}X: {long}"), 431),
        (format!("HEAD /{long}"), 414),
    ] {
        let begin = &request[..request.len().min(60)];
        let mut link = server.connect();
        link.try_send(request.as_bytes());
        let head = link.read_head();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {want} ")),
            "{begin:?}: {head}"
        );
        assert!(head.contains("\r\nContent-Length: "), "{begin:?}: {head}");
        assert_eq!(link.read_to_end(), b"", "{begin:?}");
    }
    // A client without TLS on a port that has it.
    if world.is_tls() {
        let mut link = server.connect_raw();
        link.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = String::from_utf8(link.read_to_end_or_reset()).expect("ASCII");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
}

/// A line that ends with LF alone is refused as soon as it is there: the head never ends for this
/// endpoint, and nobody should wait for that.
fn bare_lf(world: World) {
    let server = world.start(Probe::echo());
    let lf = REQUEST.replace("\r\n", "\n");
    let mixed = REQUEST.replacen("\r\nUpgrade", "\nUpgrade", 1);
    for request in [&lf[..], &mixed[..mixed.len() - 4], "GET / HTTP/1.1\n"] {
        let step = if world.is_sim() { 1 } else { 20 };
        for cut in (0..request.len()).step_by(step) {
            let mut link = server.connect();
            link.send(&request.as_bytes()[..cut]);
            // It may have been refused before.
            link.try_send(&request.as_bytes()[cut..]);
            assert_eq!(link.read_status(), 400, "{request:?} {cut}");
        }
    }
    assert_eq!(server.log().all(), []);
}

/// RFC 9110 §6.6.1: every answer says when it was made.
fn answers_have_a_date(world: World) {
    let server = world.start(Probe::echo());
    let page = "GET /page HTTP/1.1\r\nHost: a\r\n\r\n".to_owned();
    let bad = REQUEST.replace("Version: 13", "Version: 7");
    for request in [REQUEST.to_owned(), page, bad, "nonsense\r\n\r\n".to_owned()] {
        let mut link = server.connect();
        link.send(request.as_bytes());
        let head = link.read_head();
        let dates: Vec<&str> = head.lines().filter(|l| l.starts_with("Date: ")).collect();
        let [date] = dates[..] else {
            panic!("{head}");
        };
        // Sun, 06 Nov 1994 08:49:37 GMT (RFC 9110 §5.6.7).
        assert_eq!(date.len(), "Date: ".len() + 29, "{date}");
        let year = if world.is_sim() { " 1970 " } else { " 20" };
        assert!(date.contains(year) && date.ends_with(" GMT"), "{date}");
    }
}

fn split(world: World) {
    let mut probe = Probe::echo();
    probe.on_upgrade = Arc::new(|request| {
        let accept = || Upgrade::accept(Data::default());
        let value = request.request().header("X-Wanted").unwrap_or_default();
        let value = String::from_utf8_lossy(value).replace("%0d%0a", "\r\n");
        // Whatever a request asks for, no value can end its line.
        match accept().header("X-Wanted", &value) {
            Ok(upgrade) => upgrade.subprotocol(&value),
            Err(_) => accept().subprotocol(&value),
        }
    });
    let server = world.start_with(Settings::default(), probe);
    let head = |value: &str| {
        let mut link = server.connect();
        link.send(request_with(&format!("X-Wanted: {value}")).as_bytes());
        link.read_head()
    };
    assert!(head("plain").contains("X-Wanted: plain\r\n"));
    let answer = head("a%0d%0aSet-Cookie: b");
    assert!(!answer.contains("Set-Cookie"), "{answer}");
    assert!(!answer.contains("X-Wanted"), "{answer}");
    assert!(!answer.contains("Sec-WebSocket-Protocol"), "{answer}");
}

fn subproto(world: World) {
    let settings = Settings {
        base: Route::default().subprotocols(["c", "b"]),
        ..Settings::default()
    };
    let server = world.start_with(
        settings,
        Probe::echo().on_message(|conn, _| {
            let name = conn.subprotocol().unwrap_or("none").to_owned();
            conn.send(&name);
        }),
    );
    let check = |header: &str, want: Option<&str>| {
        let mut link = server.connect();
        link.send(request_with(header).as_bytes());
        let head = link.read_head();
        let lines: Vec<_> = head
            .lines()
            .filter(|line| line.contains("-Protocol"))
            .collect();
        let want_line = want.map(|name| format!("Sec-WebSocket-Protocol: {name}"));
        assert_eq!(lines, want_line.iter().collect::<Vec<_>>(), "{header}");
        link.send_text("which?");
        link.expect_text(want.unwrap_or("none"));
    };
    check("Sec-WebSocket-Protocol: a, b", Some("b"));
    check("Sec-WebSocket-Protocol: b, c", Some("c"));
    check(
        "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b",
        Some("b"),
    );
    check("Sec-WebSocket-Protocol: b, b, b", Some("b"));
    check("Sec-WebSocket-Protocol: a, B", None);
    check("Sec-WebSocket-Protocol: ", None);
    check("X: none", None);
    let mut link = server.connect();
    let list = "a,".repeat(32 * 1024);
    link.try_send(request_with(&format!("Sec-WebSocket-Protocol: {list}")).as_bytes());
    assert_eq!(link.read_status(), 431);
}

fn utf8(world: World) {
    let server = world.start(Probe::echo());
    let bad: [&[u8]; 12] = [
        b"\xC0\x80",
        b"\xC1\xBF",
        b"\xE0\x80\x80",
        b"\xE0\x9F\xBF",
        b"\xED\xA0\x80",
        b"\xED\xBF\xBF",
        b"\xF0\x80\x80\x80",
        b"\xF4\x90\x80\x80",
        b"\xF5\x80\x80\x80",
        b"\xFF",
        b"\x80",
        b"a\xC3\xA9\xE2\x82",
    ];
    for bytes in bad {
        fails(&server, &frame(Opcode::Text, bytes), ProtocolError::Utf8);
        // In two fragments, cut at every place.
        for cut in 0..=bytes.len() {
            let mut stream = fragment(Opcode::Text, &bytes[..cut]);
            stream.extend(raw_frame(0x80, &bytes[cut..]));
            fails(&server, &stream, ProtocolError::Utf8);
        }
        // As binary it is nobody's business.
        let mut link = server.open();
        link.send_frame(Opcode::Binary, bytes);
        link.expect(Opcode::Binary, bytes);
    }
    // At the first bad byte, though most of the frame is still to come.
    let mut link = server.open();
    let mut stream = vec![0x81, 0x80 | 126, 0x10, 0];
    stream.extend(KEY);
    stream.extend(masked(&[&[b'a'; 100][..], b"\xF8"].concat()));
    link.send(&stream);
    link.expect_close(1007);

    let good = "aé€😀\u{10FFFF}\u{D7FF}\u{E000}";
    let mut link = server.open();
    for cut in 0..=good.len() {
        let mut stream = fragment(Opcode::Text, &good.as_bytes()[..cut]);
        stream.extend(raw_frame(0x80, &good.as_bytes()[cut..]));
        link.send(&stream);
        link.expect_text(good);
    }
}

/// Everything closed from everywhere.
fn uaf(world: World) {
    let mut probe = Probe::echo();
    // Close from each callback, twice, and send behind it.
    let close: support::OnConn = Arc::new(|conn| {
        conn.close(CloseCode::NORMAL, "once");
        conn.close(CloseCode::NORMAL, "twice");
        assert_eq!(conn.send("behind"), SendResult::Gone);
        assert_eq!(conn.ping(b""), SendResult::Gone);
        let id = conn.id();
        conn.remote().send(id, "behind").expect("room");
        conn.remote()
            .close(id, CloseCode::NORMAL, "")
            .expect("room");
    });
    probe.on_ping = close.clone();
    probe.on_close = close.clone();
    let on_open = close.clone();
    let on_message = close;
    probe.on_message = Arc::new(move |conn, message| match message.payload() {
        b"terminate" => {
            conn.terminate();
            conn.terminate();
            assert_eq!(conn.send("behind"), SendResult::Gone);
        }
        b"close" => on_message(conn),
        b"others" => {
            // Everybody, this one included, from inside a callback.
            conn.remote().broadcast("bye").expect("room");
        }
        _ => {}
    });
    let server = world.start_with(Settings::default(), probe.clone());
    let mut link = server.open();
    link.send_text("close");
    link.expect_close_and_answer();
    let mut link = server.open();
    link.send_frame(Opcode::Ping, b"x");
    link.expect(Opcode::Pong, b"x");
    link.expect_close_and_answer();
    let mut link = server.open();
    link.close(1000);
    let mut link = server.open();
    // What follows in the same read is not delivered.
    link.send(
        &[
            frame(Opcode::Text, b"terminate"),
            frame(Opcode::Text, b"no"),
        ]
        .concat(),
    );
    assert_eq!(link.next_frame(), None);
    // Not even a Close frame, or something illegal.
    for behind in [frame(Opcode::Close, b""), vec![0xFF]] {
        let mut link = server.open();
        link.send(&[frame(Opcode::Text, b"terminate"), behind].concat());
        assert_eq!(link.next_frame(), None);
    }
    let ends: Vec<Why> = server
        .closes(6)
        .into_iter()
        .map(|ended| ended.why)
        .collect();
    assert_eq!(ends[..3], [Why::Closed; 3]);
    assert_eq!(ends[3..], [Why::Terminated; 3]);
    let messages = [&b"close"[..], b"terminate", b"terminate", b"terminate"];
    assert_eq!(server.log().messages(), messages);

    // Close in on_open, before the head of the answer has left.
    let mut probe = Probe::echo();
    probe.on_open = on_open;
    let server = world.start_with(Settings::default(), probe);
    let mut link = server.open();
    link.expect_close_and_answer();
    assert!(server.ended().clean);

    // One connection closes all others, while they are ready in the same turn.
    let ids: Arc<std::sync::Mutex<Vec<sockeye::ConnId>>> = Arc::default();
    let known = Arc::clone(&ids);
    let server = world.start(
        Probe::echo()
            .on_open(move |conn| ids.lock().expect("no panic").push(conn.id()))
            .on_message(move |conn, _| {
                for &id in known.lock().expect("no panic").iter() {
                    conn.remote()
                        .close(id, CloseCode::NORMAL, "")
                        .expect("room");
                }
            }),
    );
    let mut links: Vec<Link> = (0..8).map(|_| server.open()).collect();
    for link in &mut links {
        link.try_send(&frame(Opcode::Text, b"close all"));
    }
    for link in &mut links {
        link.expect_close_and_answer();
    }
    assert!(server.closes(8).iter().all(|ended| ended.clean));
}

/// A name of a connection that is gone never reaches another, though its slot is used again.
fn stale(world: World) {
    let server = world.start(Probe::echo());
    let remote = server.remote();
    let mut old = Vec::new();
    for round in 0..20 {
        let mut link = server.open();
        for &id in &old {
            remote.send(id, "for another").expect("room");
            remote
                .close(id, CloseCode::NORMAL, "another")
                .expect("room");
        }
        let text = format!("round {round}");
        link.send_text(&text);
        link.expect_text(&text);
        old.push(*server.log().ids().last().expect("it is open"));
        link.close(1000);
        drop(link);
        server.wait_empty();
    }
    let mut names = old.clone();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 20, "every connection has a name of its own");
}

impl Link {
    /// A Close frame with 1000, answered; then the end of the stream.
    #[track_caller]
    fn expect_close_and_answer(&mut self) {
        let got = self.next_frame().expect("a Close frame");
        assert_eq!(got.opcode, Opcode::Close, "{got:?}");
        self.send_frame(Opcode::Close, &1000_u16.to_be_bytes());
        assert_eq!(self.next_frame(), None);
    }
}
