//! Hostile servers: the cases of `security.rs` for the client role, for the reactor's client on
//! each backend and on the simulated network, and for the blocking client, plain and over TLS.

use std::collections::HashSet;
use std::time::Duration;

use sockeye::DropReason;
use sockeye::Limits;
use sockeye::ProtocolError;
use sockeye::SendResult;
use sockeye::Timeout;
use sockeye::client;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Probe;
use crate::support::Record;
use crate::support::Running;
use crate::support::Settings;
use crate::support::Why;
use crate::support::World;
use crate::support::accept_of;
use crate::support::frame;
use crate::support::server_frame;

client_cases!(
    echo_in_every_size,
    len63,
    frag_agg,
    frag_count,
    hdr_grow,
    hdr_count,
    hdr_upgrade,
    greeting_that_is_no_http_ends_the_handshake,
    refused_upgrade_says_status_and_head,
    interim_responses_are_skipped,
    frames_together_with_the_handshake,
    slowloris_head,
    pingflood,
    pong_owed,
    closecode,
    mask,
    maskkey,
    rsv,
    subproto,
    utf8,
    lost_in_the_handshake,
    lost_when_open,
    prealloc,
    server_ends_the_stream_first,
    slowread,
    ctrl_drop,
    closemem,
);

/// Waits for the only connection to fail, and checks how.
#[track_caller]
fn failed(client: &Running, error: ProtocolError) {
    if let Some(failures) = &client.failures {
        let got = failures.recv_timeout(support::PATIENCE).expect("it ends");
        assert!(
            matches!(got, client::Error::Protocol(got) if got == error),
            "{got:?} instead of {error:?}"
        );
        return;
    }
    let ids = client.log().ids();
    let ended = client.end_of(*ids.last().expect("it was open"));
    assert_eq!(ended.why, Why::Failed(error));
    assert_eq!((ended.local, ended.clean), (true, false));
}

/// Waits for the only connection not to open; gives the error's text.
fn not_opened(client: &Running) -> String {
    if let Some(failures) = &client.failures {
        let got = failures.recv_timeout(support::PATIENCE).expect("it ends");
        return got.to_string();
    }
    let seen = client.log().closes().len();
    let closes = client.closes(seen.max(1));
    let ended = closes.last().expect("one");
    assert_eq!(ended.why, Why::NotOpened);
    assert_eq!((ended.code, ended.clean), (1006, false));
    assert_eq!(client.log().ids(), [], "it never opened");
    ended.reason.clone()
}

/// A server sends `bytes` to an open client, which fails with `error`.
#[track_caller]
fn fails(client: &Running, bytes: &[u8], error: ProtocolError) {
    for dribble in [false, true] {
        let mut link = client.dial_open();
        link.send_text("first");
        link.expect_text("first");
        if dribble {
            for byte in bytes {
                if !link.try_send(&[*byte]) {
                    break;
                }
            }
        } else {
            link.send(bytes);
        }
        link.expect_close(error.close_code().get());
        failed(client, error);
    }
}

fn echo_in_every_size(world: World) {
    let mut settings = Settings::default();
    settings.limits.message_len_max = 1 << 20;
    settings.limits.output_len_max = 2 << 20;
    let client = world.start_with(settings, Probe::echo());
    let mut link = client.dial_open();
    for len in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        let payload = vec![b'x'; len];
        for opcode in [Opcode::Text, Opcode::Binary] {
            link.send_frame(opcode, &payload);
            link.expect(opcode, &payload);
        }
    }
    // In fragments, cut anywhere.
    let text = "é€😀".as_bytes();
    let mut bytes = server_frame(0x01, &text[..4]);
    bytes.extend(server_frame(0x89, b"between"));
    bytes.extend(server_frame(0x80, &text[4..]));
    for cut in 0..bytes.len() {
        if cut > 18 {
            // The budget for pings is used up.
            break;
        }
        link.send(&bytes[..cut]);
        link.send(&bytes[cut..]);
        link.expect(Opcode::Pong, b"between");
        link.expect(Opcode::Text, text);
    }
    link.send_frame(Opcode::Close, &1001_u16.to_be_bytes());
    link.expect_close(1001);
}

fn header(len: u64, first: u8) -> Vec<u8> {
    let mut bytes = vec![first, 127];
    bytes.extend(len.to_be_bytes());
    bytes
}

fn len63(world: World) {
    let client = world.start(Probe::echo());
    fails(
        &client,
        &header(1 << 63, 0x82),
        ProtocolError::LengthTooLarge,
    );
    fails(
        &client,
        &header(u64::MAX, 0x82),
        ProtocolError::LengthTooLarge,
    );
    let max = (1 << 63) - 1;
    fails(&client, &header(max, 0x82), ProtocolError::MessageTooBig);
    let mut second = server_frame(0x02, b"x");
    second.extend(header(max, 0x80));
    fails(&client, &second, ProtocolError::MessageTooBig);
    fails(&client, &header(125, 0x82), ProtocolError::LengthNotMinimal);
    let short = [0x82, 126, 0, 125];
    fails(&client, &short, ProtocolError::LengthNotMinimal);
}

fn frag_agg(world: World) {
    let mut settings = Settings::default();
    settings.limits.message_len_max = 1000;
    let client = world.start_with(settings, Probe::echo());
    let mut bytes = server_frame(0x02, &[1; 600]);
    bytes.extend(server_frame(0x80, &[2; 401]));
    fails(&client, &bytes, ProtocolError::MessageTooBig);
    let mut link = client.dial_open();
    link.send(&server_frame(0x02, &[8; 600]));
    link.send(&server_frame(0x80, &[8; 400]));
    link.expect(Opcode::Binary, &[8; 1000]);
}

fn frag_count(world: World) {
    let client = world.start(Probe::echo());
    let max = Limits::default().fragment_count_max as usize;
    for payload in [&b"x"[..], b""] {
        let mut bytes = server_frame(0x01, payload);
        for _ in 0..max {
            bytes.extend(server_frame(0x00, payload));
        }
        let mut link = client.dial_open();
        link.send(&bytes);
        link.expect_close(1008);
        failed(&client, ProtocolError::FragmentsTooMany);
    }
}

fn hdr_grow(world: World) {
    let client = world.start(Probe::echo());
    let mut link = client.dial();
    link.read_head();
    let mut head = b"HTTP/1.1 101 Switching Protocols\r\nX: ".to_vec();
    head.resize(Limits::default().head_len_max + 1, b'x');
    for bytes in head.chunks(16) {
        if !link.try_send(bytes) {
            break;
        }
    }
    assert!(not_opened(&client).contains("too long"));
}

fn hdr_count(world: World) {
    for (count, opens) in [(61, true), (62, false)] {
        let client = world.start(Probe::echo());
        let mut link = client.dial();
        let many: String = (0..count).map(|n| format!("X{n}: y\r\n")).collect();
        link.accept_upgrade(&many);
        if opens {
            link.send_text("open");
            link.expect_text("open");
        } else {
            assert!(not_opened(&client).contains("malformed"));
        }
    }
}

fn hdr_upgrade(world: World) {
    let good = |request: &str| accept_of(request, "");
    let check = |change: &dyn Fn(String) -> String, want: &str| {
        let client = world.start(Probe::echo());
        let mut link = client.dial();
        let request = link.read_head();
        let answer = change(good(&request));
        link.send(answer.as_bytes());
        link.try_send(&server_frame(0x81, b"never seen"));
        let got = not_opened(&client);
        assert!(got.contains(want), "{answer}: {got}");
    };
    check(&|a| a.replace("Upgrade: websocket\r\n", ""), "Upgrade");
    check(
        &|a| a.replace("Upgrade: websocket", "Upgrade: h2c"),
        "Upgrade",
    );
    check(&|a| a.replace("Connection: Upgrade\r\n", ""), "Connection");
    let other = |a: String| a.replace("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x");
    check(&other, "Accept");
    let twice = |a: String| {
        let line = a
            .lines()
            .find(|line| line.starts_with("Sec-"))
            .expect("it is there");
        a.replace(line, &format!("{line}\r\n{line}"))
    };
    check(&twice, "Accept");
    let extended = |a: String| a.replacen("\r\n", "\r\nSec-WebSocket-Extensions: a\r\n", 1);
    check(&extended, "extension");
    check(&|_| "HTTP/1.1 101\u{1}\r\n\r\n".to_owned(), "malformed");
    check(&|_| "SSH-2.0-OpenSSH\r\n\r\n".to_owned(), "not an HTTP");
}

/// Other protocols greet first, and then wait for the client.
fn greeting_that_is_no_http_ends_the_handshake(world: World) {
    let lf = "HTTP/1.1 101 Switching Protocols\nUpgrade: websocket\n\n";
    for (greeting, want) in [
        ("SSH-2.0-OpenSSH_9.6\r\n", "not an HTTP"),
        ("220 mail.example ESMTP\r\n", "not an HTTP"),
        ("HTTP/2.0 200\r\n\r\n", "not an HTTP"),
        ("\u{5}\u{0}", "not an HTTP"),
        (lf, "malformed"),
    ] {
        for cut in 0..=1 {
            let client = world.start(Probe::echo());
            let mut link = client.dial();
            link.read_head();
            link.send(&greeting.as_bytes()[..cut]);
            link.try_send(&greeting.as_bytes()[cut..]);
            let got = not_opened(&client);
            assert!(got.contains(want), "{greeting:?}: {got}");
        }
    }
    // An upgrade is one of HTTP/1.1 (RFC 9110 §7.8); a refusal may be older.
    for (version, status, want) in [
        ("HTTP/1.0", "101 Switching Protocols", "HTTP version"),
        ("HTTP/1.0", "403 Forbidden", "403"),
    ] {
        let client = world.start(Probe::echo());
        let mut link = client.dial();
        let answer = accept_of(&link.read_head(), "Content-Length: 0\r\n");
        let answer = answer.replace("HTTP/1.1", version);
        link.send(answer.replace("101 Switching Protocols", status).as_bytes());
        let got = not_opened(&client);
        assert!(got.contains(want), "{version} {status}: {got}");
    }
}

fn refused_upgrade_says_status_and_head(world: World) {
    for (status, phrase) in [
        (401, "Unauthorized"),
        (302, "Found"),
        (200, "OK"),
        (503, ""),
    ] {
        let client = world.start(Probe::echo());
        let mut link = client.dial();
        link.read_head();
        link.send(
            format!(
                "HTTP/1.1 {status} {phrase}\r\nX-Reason: because\r\n\
                 Content-Length: 4\r\n\r\nwhy?"
            )
            .as_bytes(),
        );
        if let Some(failures) = &client.failures {
            let error = failures.recv_timeout(support::PATIENCE).expect("it ends");
            let client::Error::Refused(refusal) = error else {
                panic!("{error:?}");
            };
            assert_eq!(refusal.status, status);
            assert_eq!(refusal.header("x-reason").as_deref(), Some("because"));
            assert_eq!(refusal.body, b"why?");
        } else {
            let text = not_opened(&client);
            assert!(text.contains(&status.to_string()), "{text}");
        }
    }
}

fn interim_responses_are_skipped(world: World) {
    let client = world.start(Probe::echo());
    let mut link = client.dial();
    let request = link.read_head();
    link.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    link.send(b"HTTP/1.1 100 Continue\r\n\r\n");
    link.send(accept_of(&request, "").as_bytes());
    link.send_text("open");
    link.expect_text("open");
}

fn frames_together_with_the_handshake(world: World) {
    let client = world.start(Probe::echo());
    let len = accept_of("Sec-WebSocket-Key: \r\n", "").len();
    let step = if world.is_sim() { 1 } else { 13 };
    for cut in (0..len + 8).step_by(step) {
        let mut link = client.dial();
        let request = link.read_head();
        let mut bytes = accept_of(&request, "").into_bytes();
        bytes.extend(server_frame(0x81, b"one"));
        bytes.extend(server_frame(0x81, b"two"));
        link.send(&bytes[..cut]);
        link.send(&bytes[cut..]);
        link.expect_text("one");
        link.expect_text("two");
        link.send_frame(Opcode::Close, &1000_u16.to_be_bytes());
        link.expect_close(1000);
    }
}

fn slowloris_head(world: World) {
    let mut settings = Settings::default();
    settings.limits.handshake_timeout = Duration::from_secs(1);
    let client = world.start_with(settings, Probe::echo());
    let mut link = client.dial();
    link.read_head();
    // Bytes do not renew the deadline.
    for byte in b"HTTP/1.1" {
        link.try_send(&[*byte]);
        client.pass(Duration::from_millis(500));
    }
    let text = not_opened(&client);
    let timed_out = text.contains("timed out") || text.contains("temporarily unavailable");
    assert!(timed_out, "{text}");
}

fn pingflood(world: World) {
    let client = world.start(Probe::echo());
    let mut link = client.dial_open();
    link.send(&server_frame(0x89, &[b'p'; 125]).repeat(21));
    for _ in 0..20 {
        link.expect(Opcode::Pong, &[b'p'; 125]);
    }
    link.expect_close(1008);
    failed(&client, ProtocolError::ControlTooOften);
    let mut link = client.dial_open();
    link.send(&server_frame(0x8A, b"").repeat(21));
    link.expect_close(1008);
}

/// The blocking client's are in `client.rs`.
fn pong_owed(world: World) {
    if world.is_blocking() {
        return;
    }
    let client = world.start(Probe::echo().on_message(|conn, message| {
        let count = if message.payload() == b"rtt" { 300 } else { 0 };
        for _ in 0..count {
            conn.ping(message.payload());
        }
        conn.send(message);
    }));
    let mut link = client.dial_open();
    link.send_text("rtt");
    for _ in 0..300 {
        link.expect(Opcode::Ping, b"rtt");
    }
    link.expect_text("rtt");
    let answers = server_frame(0x8A, b"rtt").repeat(300);
    let burst = server_frame(0x89, b"").repeat(20);
    link.send(&[burst, answers].concat());
    for _ in 0..20 {
        link.expect(Opcode::Pong, b"");
    }
    link.send_text("served");
    link.expect_text("served");
    link.send(&server_frame(0x8A, b"rtt").repeat(21));
    link.expect_close(1008);
    failed(&client, ProtocolError::ControlTooOften);
}

fn closecode(world: World) {
    let client = world.start(Probe::echo());
    let edges = [
        0, 1, 999, 1000, 1001, 1003, 1004, 1005, 1006, 1007, 1011, 1012, 1014, 1015, 1016, 2999,
        3000, 3001, 4999, 5000, 65535,
    ];
    let codes: Vec<u16> = if world == World::Sim {
        (0..=65535).collect()
    } else {
        edges.into()
    };
    for code in codes {
        let may_be_sent = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        let mut link = client.dial_open();
        link.send_frame(Opcode::Close, &code.to_be_bytes());
        link.expect_close(if may_be_sent { code } else { 1002 });
        if let Some(failures) = &client.failures {
            let error = failures.recv_timeout(support::PATIENCE).expect("it ends");
            match error {
                client::Error::Closed(close) => assert_eq!(close.code(), code),
                error => assert!(!may_be_sent, "{error:?}"),
            }
        }
    }
    let mut link = client.dial_open();
    link.send_frame(Opcode::Close, b"");
    link.expect_close(1005);
    if let Some(failures) = &client.failures {
        failures.recv_timeout(support::PATIENCE).expect("it ends");
    }
    fails(
        &client,
        &server_frame(0x88, &[3]),
        ProtocolError::ClosePayload,
    );
    let bad_reason = [3, 232, 0xC3, 0x28];
    fails(
        &client,
        &server_frame(0x88, &bad_reason),
        ProtocolError::Utf8,
    );
}

/// A server's frames are not masked (RFC 6455 §5.1).
fn mask(world: World) {
    let client = world.start(Probe::echo());
    for opcode in [
        Opcode::Text,
        Opcode::Binary,
        Opcode::Close,
        Opcode::Ping,
        Opcode::Pong,
    ] {
        fails(&client, &frame(opcode, b""), ProtocolError::Masked);
    }
}

/// Each frame has a key of its own, that nobody could guess (RFC 6455 §10.3).
fn maskkey(world: World) {
    let client = world.start(Probe::echo());
    let mut keys = Vec::new();
    for _ in 0..4 {
        let mut link = client.dial_open();
        for _ in 0..500 {
            link.send_text("same");
            link.expect_text("same");
        }
        link.send_frame(Opcode::Close, &1000_u16.to_be_bytes());
        link.expect_close(1000);
        keys.append(&mut link.mask_keys);
    }
    assert_eq!(keys.len(), 4 * 501);
    // Two of 2,004 are the same by chance once in 2,000 runs; three pairs never.
    let different: HashSet<&[u8; 4]> = keys.iter().collect();
    assert!(different.len() >= keys.len() - 2, "keys are used again");
    // About half of the bits of all keys are set, in every position.
    for bit in 0..32 {
        let is_set = |key: &&[u8; 4]| u32::from_be_bytes(**key) >> bit & 1 == 1;
        let set = keys.iter().filter(is_set).count();
        // Six standard deviations from the middle.
        assert!(
            (868..=1136).contains(&set),
            "bit {bit} is set in {set} keys"
        );
    }
}

fn rsv(world: World) {
    let client = world.start(Probe::echo());
    for bits in [0x10, 0x20, 0x40] {
        for opcode in [0x1, 0x2, 0x8, 0x9, 0xA] {
            let bytes = server_frame(0x80 | bits | opcode, b"");
            fails(&client, &bytes, ProtocolError::ReservedBit);
        }
    }
    for opcode in [0x3, 0x7, 0xB, 0xF] {
        let bytes = server_frame(0x80 | opcode, b"");
        fails(&client, &bytes, ProtocolError::OpcodeReserved);
    }
    fails(
        &client,
        &server_frame(0x09, b""),
        ProtocolError::ControlFragmented,
    );
    fails(
        &client,
        &server_frame(0x80, b""),
        ProtocolError::ContinuationUnexpected,
    );
    let mut interrupted = server_frame(0x01, b"a");
    interrupted.extend(server_frame(0x81, b"b"));
    fails(&client, &interrupted, ProtocolError::MessageInterrupted);
}

fn subproto(world: World) {
    for (chosen, opens) in [
        ("Sec-WebSocket-Protocol: b\r\n", true),
        ("", true),
        ("Sec-WebSocket-Protocol: c\r\n", false),
        ("Sec-WebSocket-Protocol: a, b\r\n", false),
        (
            "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: a\r\n",
            false,
        ),
        ("Sec-WebSocket-Protocol: B\r\n", false),
    ] {
        let client = world.start(Probe::echo());
        let mut link = client.dial_with(1 << 20, |connect| connect.subprotocols(["a", "b"]));
        let request = link.accept_upgrade(chosen);
        assert!(request.contains("Sec-WebSocket-Protocol: a, b\r\n"));
        if opens {
            link.send_text("open");
            link.expect_text("open");
        } else {
            assert!(not_opened(&client).contains("subprotocol"), "{chosen}");
        }
    }
}

fn utf8(world: World) {
    let client = world.start(Probe::echo());
    for bad in [
        &b"\xC0\xAF"[..],
        b"\xED\xA0\x80",
        b"\xF4\x90\x80\x80",
        b"\xFF",
        b"abc\xE2\x82",
    ] {
        fails(&client, &server_frame(0x81, bad), ProtocolError::Utf8);
        let mut split = server_frame(0x01, &bad[..1]);
        split.extend(server_frame(0x80, &bad[1..]));
        fails(&client, &split, ProtocolError::Utf8);
    }
}

/// RFC 6455 §7.1.1: a client waits for the server's FIN, and for the close time-out at most.
fn server_ends_the_stream_first(world: World) {
    let mut settings = Settings::default();
    settings.limits.close_timeout = Duration::from_secs(1);
    let client = world.start_with(settings, Probe::echo());
    for server_ends in [true, false] {
        let mut link = client.dial_open();
        link.send_frame(Opcode::Close, &1000_u16.to_be_bytes());
        link.expect(Opcode::Close, &1000_u16.to_be_bytes());
        if let support::End::Sim(far, _) = &link.end {
            let far = far.clone();
            client.turn(100);
            assert!(!far.is_finished(), "the client has not waited");
        }
        if server_ends {
            link.finish();
        } else if !world.is_blocking() {
            client.pass(Duration::from_secs(4));
            assert_eq!(link.next_frame(), None);
        }
    }
}

/// What a server announces and does not send costs nothing.
fn prealloc(world: World) {
    let mut settings = Settings::default();
    settings.limits.message_len_max = 1 << 30;
    settings.limits.output_len_max = (1 << 30) + 16;
    let client = world.start_with(settings, Probe::echo());
    let before = client.memory.begin();
    let count = if world == World::Sim { 2_000 } else { 30 };
    let mut links = Vec::new();
    for _ in 0..count {
        let mut link = client.dial_open();
        // A gigabyte is announced, a byte is sent.
        let mut bytes = header(1 << 30, 0x82);
        bytes.push(b'x');
        link.send(&bytes);
        links.push(link);
    }
    client.turn(20);
    let mut link = client.dial_open();
    link.send_text("alive");
    link.expect_text("alive");
    let grown = client.memory.most() - before;
    assert!(grown < count * (32 << 10), "{world:?}: {grown} bytes more");
}

/// Sends until the output limit refuses, to a server that does not read.
fn fill_output() -> Probe {
    Probe::echo().on_message(|conn, message| {
        if message.payload() == b"fill" {
            let payload = vec![b'x'; 10_000];
            while conn.send(&payload) != SendResult::Dropped(DropReason::OutputLimit) {}
            assert!(conn.queued_bytes() <= Limits::default().output_len_max);
        }
    })
}

fn slowread(world: World) {
    if world.is_blocking() {
        // It has no queue: a write waits for its deadline (`client.rs`).
        return;
    }
    let mut settings = Settings::default();
    settings.limits.write_timeout = Duration::from_secs(1);
    let client = world.start_with(settings, fill_output());
    let mut link = client.dial_with(5_000, |connect| connect);
    link.accept_upgrade("");
    link.send_text("fill");
    client.pass(Duration::from_secs(4));
    let ended = client.ended();
    assert_eq!(ended.why, Why::TimedOut(Timeout::Write));
}

fn ctrl_drop(world: World) {
    if world.is_blocking() {
        return;
    }
    let client = world.start(fill_output());
    let mut link = client.dial_with(5_000, |connect| connect);
    link.accept_upgrade("");
    link.send_text("fill");
    link.send_frame(Opcode::Ping, b"a ping");
    link.send_frame(Opcode::Close, &1000_u16.to_be_bytes());
    // Nothing is read before the output is full: reading makes room.
    client.wait(|records| records.iter().any(|r| matches!(r, Record::Ping(..))));
    let mut opcodes = Vec::new();
    while opcodes.last() != Some(&Opcode::Close) {
        opcodes.push(link.next_frame().expect("a Close frame comes").opcode);
    }
    assert!(opcodes.contains(&Opcode::Pong), "the ping was not answered");
    link.finish();
    assert!(client.ended().clean);
}

/// The answer to a Close frame has its code and no byte more.
fn closemem(world: World) {
    let client = world.start(Probe::echo());
    let mut link = client.dial_open();
    link.send_frame(Opcode::Binary, &[b'S'; 500]);
    link.expect(Opcode::Binary, &[b'S'; 500]);
    link.send_frame(Opcode::Close, b"\x03\xE8because");
    link.expect(Opcode::Close, &1000_u16.to_be_bytes());
    link.finish();
}

fn lost_in_the_handshake(world: World) {
    let client = world.start(Probe::echo());
    let mut link = client.dial();
    link.read_head();
    link.send(b"HTTP/1.1 101 Swi");
    link.shutdown();
    let text = not_opened(&client);
    assert!(text.contains("unexpected end"), "{text}");
}

fn lost_when_open(world: World) {
    let client = world.start(Probe::echo());
    let mut link = client.dial_open();
    link.send_text("open");
    link.expect_text("open");
    link.send(&server_frame(0x81, b"half a frame")[..5]);
    link.shutdown();
    if let Some(failures) = &client.failures {
        let error = failures.recv_timeout(support::PATIENCE).expect("it ends");
        assert!(matches!(error, client::Error::Io(_)), "{error:?}");
    } else {
        let ended = client.ended();
        assert_eq!((ended.why, ended.code), (Why::Lost, 1006));
        assert_eq!((ended.local, ended.clean), (false, false));
    }
}
