//! Messages in chunks, in both directions; reading that pauses; pings, timers, values.

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use sockeye::CloseCode;
use sockeye::DropReason;
use sockeye::Limits;
use sockeye::ProtocolError;
use sockeye::Route;
use sockeye::SendResult;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Link;
use crate::support::Probe;
use crate::support::Record;
use crate::support::Settings;
use crate::support::ThreadEvent;
use crate::support::Why;
use crate::support::World;
use crate::support::fragment;
use crate::support::frame;
use crate::support::raw_frame;

cases!(
    chunks_put_together_are_the_messages,
    streamed_message_is_not_held,
    writer_sends_one_message_in_fragments,
    writer_goes_on_in_a_later_callback,
    writer_checks_text,
    pause_holds_messages_and_answers_control_frames,
    pause_stops_reading_when_enough_is_held,
    held_messages_come_before_the_close,
    held_messages_come_before_a_close_that_came_with_the_resume,
    resume_comes_from_another_thread_as_well,
    ping_brings_its_round_trip_time,
    pong_is_the_handlers_where_the_route_says_so,
    timers_come_once_in_order_unless_they_are_cancelled,
    timers_too_far_away_never_come_and_end_with_their_connections,
    timers_count_from_the_call,
    timer_storm_starves_nobody_and_all_come,
    values_reach_their_connection_and_their_thread,
    promote_or_be_closed_authz,
    lifetime_ends_with_1008,
    message_rate_is_limited,
    terminate_from_another_thread_ends_at_once,
);

fn streaming() -> Settings {
    Settings {
        base: Route::default().streaming(true),
        ..Settings::default()
    }
}

fn chunks_put_together_are_the_messages(world: World) {
    let mut stream = Vec::new();
    stream.extend(frame(Opcode::Text, "é€𐍈".as_bytes()));
    stream.extend(fragment(Opcode::Binary, b"one"));
    stream.extend(frame(Opcode::Ping, b"between"));
    stream.extend(raw_frame(0x00, b""));
    stream.extend(raw_frame(0x80, b"two"));
    stream.extend(frame(Opcode::Binary, b""));
    stream.extend(fragment(Opcode::Text, "€".as_bytes().split_at(1).0));
    stream.extend(raw_frame(0x80, "€".as_bytes().split_at(1).1));
    let want: [&[u8]; 4] = ["é€𐍈".as_bytes(), b"onetwo", b"", "€".as_bytes()];
    let mut probe = Probe::echo().on_message(|_, _| {});
    probe.record_messages = true;
    let server = world.start_with(streaming(), probe);
    // Cut at every byte; live ones at some.
    let step = if world.is_sim() { 1 } else { 7 };
    for cut in (0..stream.len()).step_by(step) {
        let mut link = server.open();
        let id = *server.log().ids().last().unwrap();
        link.send(&stream[..cut]);
        server.turn(2);
        link.send(&stream[cut..]);
        link.expect(Opcode::Pong, b"between");
        link.close(1000);
        server.end_of(id);
        let mut messages: Vec<Vec<u8>> = Vec::new();
        let mut open = false;
        for record in server.log().all() {
            match record {
                Record::Chunk(of, payload, first, last) if of == id => {
                    assert_eq!(first, !open);
                    if first {
                        messages.push(Vec::new());
                    }
                    messages.last_mut().unwrap().extend(payload);
                    open = !last;
                }
                Record::Message(of, ..) => assert_ne!(of, id, "it is streamed"),
                _ => {}
            }
        }
        assert!(!open);
        assert_eq!(messages, want, "{cut}");
    }
}

/// 1 GiB where the kernel moves the bytes, 64 MiB where the simulation does.
fn streamed_message_is_not_held(world: World) {
    let len: u64 = match world {
        World::Uring | World::Poll => 1 << 30,
        _ => 64 << 20,
    };
    let mut settings = streaming();
    settings.limits.message_len_max = 2 << 30;
    let received = Arc::<AtomicUsize>::default();
    let longest = Arc::<AtomicUsize>::default();
    let (count, max) = (Arc::clone(&received), Arc::clone(&longest));
    let mut probe = Probe::echo().on_message(move |conn, message| {
        max.fetch_max(message.payload().len(), Ordering::SeqCst);
        let all = count.fetch_add(message.payload().len(), Ordering::SeqCst);
        if (all + message.payload().len()) as u64 == len {
            conn.send("all of it");
        }
    });
    probe.record_messages = false;
    let server = world.start_with(settings, probe);
    let mut link = server.open();
    let before = server.memory.begin();
    let header = FrameHeader {
        fin: true,
        rsv1: false,
        opcode: Opcode::Binary,
        payload_len: len,
        mask_key: Some([0; 4]),
    };
    link.send(header.encode().as_bytes());
    let piece = vec![0; 64 << 10];
    for _ in 0..len >> 16 {
        link.send(&piece);
        server.turn(4);
    }
    link.expect_text("all of it");
    assert_eq!(received.load(Ordering::SeqCst) as u64, len);
    assert!(longest.load(Ordering::SeqCst) <= 256 << 10);
    let grown = server.memory.most() - before;
    assert!(grown < 2 << 20, "{world:?}: {grown} bytes more at a time");
}

/// What a fragmented message consists of: opcodes and payload.
fn read_fragments(link: &mut Link) -> (Vec<Opcode>, Vec<u8>) {
    let (mut opcodes, mut payload) = (Vec::new(), Vec::new());
    loop {
        let (fin, frame) = link.next_fragment().expect("the message goes on");
        opcodes.push(frame.opcode);
        payload.extend(frame.payload);
        if fin {
            return (opcodes, payload);
        }
    }
}

fn writer_sends_one_message_in_fragments(world: World) {
    let server = world.start(Probe::echo().on_message(|conn, message| {
        let text = message.is_text();
        let mut writer = conn.writer(text).expect("it is open");
        match message.payload() {
            b"nothing" => {}
            b"long" => {
                for number in 0..5_000_u32 {
                    write!(writer, "{number:08}").expect("room");
                }
            }
            payload => writer.write_all(payload).expect("room"),
        }
        writer.finish().expect("complete");
        assert_eq!(conn.send("behind"), SendResult::Sent);
    }));
    let check = |mut link: Link| {
        link.send_text("short");
        // A message that fits one fragment is one frame.
        assert_eq!(
            read_fragments(&mut link),
            (vec![Opcode::Text], b"short".to_vec())
        );
        link.expect_text("behind");
        link.send_frame(Opcode::Binary, b"nothing");
        assert_eq!(
            read_fragments(&mut link),
            (vec![Opcode::Binary], Vec::new())
        );
        link.expect_text("behind");
        link.send_text("long");
        let (opcodes, payload) = read_fragments(&mut link);
        let want: String = (0..5_000).map(|n| format!("{n:08}")).collect();
        assert!(payload == want.as_bytes());
        let continuation = Opcode::Continuation;
        assert_eq!(opcodes, [Opcode::Text, continuation, continuation]);
        link.expect_text("behind");
    };
    check(server.open());
    check(server.dial_open());
}

fn writer_goes_on_in_a_later_callback(world: World) {
    const LEN: usize = 3 << 20;
    fn go_on(conn: &mut sockeye::Context<'_, support::Data>) {
        let mut at = conn.data().number as usize;
        if at == 0 || at > LEN {
            return;
        }
        let mut writer = conn.writer(false).expect("it is open");
        while at < LEN {
            match writer.write(&vec![at as u8; (LEN - at).min(1_000)]) {
                Ok(len) => at += len,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        if at == LEN {
            writer.finish().expect("complete");
            conn.send("behind");
            conn.data().number = LEN as u32 + 1;
            return;
        }
        drop(writer);
        conn.data().number = at as u32;
        // Half a message is under way: no other can begin.
        let begun = SendResult::Dropped(DropReason::MessageBegun);
        assert_eq!(conn.send("no"), begun);
        assert_eq!(conn.send_prepared(&"no".into()), begun);
        assert_eq!(
            conn.writer(true).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert!(conn.queued_bytes() <= 64 * 1024 + 14);
    }
    let mut probe = Probe::echo().on_message(|conn, _| {
        conn.data().number = 1;
        go_on(conn);
    });
    probe.on_drain = Arc::new(go_on);
    let server = world.start(probe);
    let mut link = server.connect_with_room(3_000);
    link.upgrade();
    link.send_text("go");
    // A ping in the middle is answered in the middle; where the kernel takes the message as
    // fast as it is written, behind it.
    link.send_frame(Opcode::Ping, b"meanwhile");
    let (mut len, mut pongs) = (0, 0);
    loop {
        let (fin, frame) = link.next_fragment().expect("the message goes on");
        match frame.opcode {
            Opcode::Pong => pongs += 1,
            _ => len += frame.payload.len(),
        }
        if fin && frame.opcode != Opcode::Pong {
            break;
        }
    }
    assert_eq!(len, LEN - 1);
    let mut behind = vec![link.next_frame().expect("it is open").payload];
    if pongs == 0 {
        assert!(!world.is_sim());
        behind.push(link.next_frame().expect("it is open").payload);
    }
    assert!(behind.contains(&b"behind".to_vec()), "{behind:?}");
}

fn writer_checks_text(world: World) {
    let server = world.start(Probe::echo().on_message(|conn, _| {
        let mut writer = conn.writer(true).expect("it is open");
        let euro = "€".as_bytes();
        writer.write_all(&euro[..1]).expect("so far");
        let invalid = writer.write(b"x").unwrap_err();
        assert_eq!(invalid.kind(), io::ErrorKind::InvalidData);
        assert_eq!(
            writer.finish().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        // It can still be completed.
        let mut writer = conn.writer(true).expect("it is open");
        writer.write_all(&euro[1..]).expect("complete");
        writer.finish().expect("complete");
        conn.close(sockeye::CloseCode::NORMAL, "");
        assert!(conn.writer(true).is_err());
    }));
    let mut link = server.open();
    link.send_text("go");
    assert_eq!(read_fragments(&mut link).1, "€".as_bytes());
    link.expect_close_answered(1000);
}

/// "pause" pauses, a timer resumes; everything is echoed.
fn pausing() -> Probe {
    let mut probe = Probe::echo().on_message(|conn, message| {
        // Where it is streamed it may come in parts: with the last of them.
        if message.payload().ends_with(b"e") {
            conn.pause();
        }
        conn.send(message);
    });
    probe.on_ping = Arc::new(|conn| {
        if conn.data().number == 7 {
            conn.resume();
        }
        conn.data().number = 7;
    });
    probe
}

/// Reads what may come in parts.
#[track_caller]
fn expect_parts(link: &mut Link, opcode: Opcode, want: &[u8]) {
    let mut got = Vec::new();
    while got.len() < want.len() {
        let part = link.next_frame().expect("it is open");
        assert_eq!(part.opcode, opcode);
        got.extend(part.payload);
    }
    assert_eq!(got, want);
}

fn pause_holds_messages_and_answers_control_frames(world: World) {
    for settings in [Settings::default(), streaming()] {
        let is_streamed = format!("{:?}", settings.base).contains("streaming: true");
        let server = world.start_with(settings, pausing());
        let mut link = server.open();
        link.send_text("pause");
        let of_text = if is_streamed {
            Opcode::Binary
        } else {
            Opcode::Text
        };
        expect_parts(&mut link, of_text, b"pause");
        let behind: Vec<u8> = (0..20)
            .flat_map(|n| frame(Opcode::Text, format!("{n}").as_bytes()))
            .chain(fragment(Opcode::Text, b"in "))
            .chain(raw_frame(0x80, b"shards"))
            .collect();
        link.send(&behind);
        link.send_frame(Opcode::Ping, b"alive");
        link.expect(Opcode::Pong, b"alive");
        let seen = server.log().all().into_iter();
        let seen = seen.filter_map(|record| match record {
            Record::Message(_, _, payload) | Record::Chunk(_, payload, ..) => Some(payload),
            _ => None,
        });
        assert_eq!(seen.collect::<Vec<_>>().concat(), b"pause");
        // The second ping resumes.
        link.send_frame(Opcode::Ping, b"now");
        link.expect(Opcode::Pong, b"now");
        for number in 0..20 {
            expect_parts(&mut link, of_text, number.to_string().as_bytes());
        }
        if is_streamed {
            let mut rest = Vec::new();
            while rest != b"in shards" {
                rest.extend(link.next_frame().expect("open").payload);
            }
        } else {
            link.expect_text("in shards");
        }
        link.send_text("on");
        expect_parts(&mut link, of_text, b"on");
    }
}

fn pause_stops_reading_when_enough_is_held(world: World) {
    let mut settings = Settings::default();
    settings.limits.hold_len_max = 20_000;
    // Nothing is heard of a peer that is not read: it is not taken for dead.
    settings.limits.ping_interval = Duration::from_secs(1);
    settings.limits.pong_timeout = Duration::from_secs(1);
    let mut probe = Probe::echo().on_message(|conn, message| {
        if message.payload() == b"pause" {
            conn.pause();
            conn.set_timer(Duration::from_secs(4), 0);
        } else {
            let number: u32 = message.as_str().unwrap()[..6].parse().unwrap();
            let expected = conn.data().number;
            assert_eq!(number, expected);
            conn.data().number += 1;
            if number == 3_999 {
                conn.send("all of them");
            }
        }
    });
    probe.record_messages = false;
    probe.on_timer = Arc::new(|conn, _| conn.resume());
    let server = world.start_with(settings, probe);
    let mut link = server.connect();
    link.upgrade();
    link.send_text("pause");
    let filler = "x".repeat(1_000);
    for number in 0..4_000 {
        let text = format!("{number:06}{filler}");
        link.send_text(&text);
    }
    server.pass(Duration::from_secs(5));
    link.expect_text("all of them");
}

fn held_messages_come_before_the_close(world: World) {
    let ends: [(&[u8], Why); 3] = [
        (&frame(Opcode::Close, &1000_u16.to_be_bytes()), Why::Closed),
        (&[0xFF], Why::Failed(ProtocolError::ReservedBit)),
        (b"", Why::Lost),
    ];
    let server = world.start(pausing());
    for (end, why) in ends {
        let mut link = server.open();
        let id = *server.log().ids().last().unwrap();
        link.send_text("pause");
        link.expect_text("pause");
        link.send(&[&frame(Opcode::Text, b"held")[..], end].concat());
        if end.is_empty() {
            link.shutdown();
        }
        let ended = server.end_of(id);
        assert_eq!(ended.why, why);
        let of_it = |record: &Record| matches!(record, Record::Message(of, _, p) if *of == id && p == b"held");
        let records = server.log().all();
        let held = records.iter().position(of_it).expect("it was delivered");
        let close = records
            .iter()
            .position(|r| matches!(r, Record::Close(of, _) if *of == id));
        assert!(held < close.unwrap());
        link.read_to_end();
    }
}

fn held_messages_come_before_a_close_that_came_with_the_resume(world: World) {
    let server = world.start(pausing());
    let mut link = server.open();
    link.send_text("pause");
    link.expect_text("pause");
    // The second ping resumes; all of it is one read, wherever the kernel does not cut it.
    let rest = [
        frame(Opcode::Text, b"held"),
        frame(Opcode::Ping, b"one"),
        frame(Opcode::Ping, b"two"),
        frame(Opcode::Close, &1000_u16.to_be_bytes()),
    ];
    link.send(&rest.concat());
    assert!(server.ended().clean);
    assert_eq!(
        server.log().messages(),
        [b"pause".to_vec(), b"held".to_vec()]
    );
    link.read_to_end();
}

fn resume_comes_from_another_thread_as_well(world: World) {
    let server = world.start(pausing());
    let mut link = server.open();
    let id = server.log().ids()[0];
    // What comes from another thread comes in order: once the text is there, it is paused.
    server.remote().pause(id).expect("room");
    server.remote().send(id, "paused").expect("room");
    link.expect_text("paused");
    link.send_text("held");
    link.send_frame(Opcode::Ping, b"here");
    link.expect(Opcode::Pong, b"here");
    assert_eq!(server.log().messages(), Vec::<Vec<u8>>::new());
    server.remote().resume(id).expect("room");
    link.expect_text("held");
}

fn ping_brings_its_round_trip_time(world: World) {
    let seen = Arc::<Mutex<Vec<Option<Duration>>>>::default();
    let times = Arc::clone(&seen);
    let mut probe = Probe::echo().on_message(|conn, message| {
        conn.ping(message.payload());
    });
    probe.on_pong = Arc::new(move |conn, round_trip| {
        times.lock().unwrap().push(round_trip);
        conn.send("pong");
    });
    let server = world.start(probe);
    let mut link = server.open();
    for payload in [b"one", b"two", b"six"] {
        link.send_text(str::from_utf8(payload).unwrap());
        link.expect(Opcode::Ping, payload);
    }
    server.pass(Duration::from_secs(2));
    // The answer to the second answers the first as well (RFC 6455 §5.5.3).
    for pong in ["two", "one", "six", "unasked", "8 bytes!"] {
        link.send_frame(Opcode::Pong, pong.as_bytes());
        link.expect_text("pong");
    }
    let seen = seen.lock().unwrap().clone();
    let is_some: Vec<bool> = seen.iter().map(Option::is_some).collect();
    assert_eq!(is_some, [true, false, true, false, false]);
    if world.is_sim() {
        let two = seen[0].unwrap();
        assert!((2_000..3_000).contains(&two.as_millis()), "{two:?}");
    }
}

fn pong_is_the_handlers_where_the_route_says_so(world: World) {
    let settings = Settings {
        base: Route::default().auto_pong(false),
        ..Settings::default()
    };
    let mut probe = Probe::echo();
    probe.on_ping = Arc::new(|conn| {
        conn.data().number += 1;
        if conn.data().number == 2 {
            conn.pong(b"the handler's");
        }
    });
    let server = world.start_with(settings, probe);
    let mut link = server.open();
    link.send_frame(Opcode::Ping, b"one");
    link.send_frame(Opcode::Ping, b"two");
    link.expect(Opcode::Pong, b"the handler's");
    link.send_text("and no other");
    link.expect_text("and no other");
}

fn timers_come_once_in_order_unless_they_are_cancelled(world: World) {
    let mut probe = Probe::echo().on_message(|conn, message| {
        let millis = Duration::from_millis;
        conn.set_timer(millis(40), 4);
        let cancelled = conn.set_timer(millis(20), 9);
        conn.set_timer(millis(10), 1);
        conn.set_timer(millis(10), 2);
        conn.set_timer(Duration::ZERO, 0);
        assert!(conn.cancel_timer(cancelled));
        assert!(!conn.cancel_timer(cancelled));
        conn.send(message);
    });
    probe.on_timer = Arc::new(|conn, token| {
        conn.send(&token.to_string());
        if token == 2 {
            conn.set_timer(Duration::from_millis(10), 3);
        }
    });
    let server = world.start(probe);
    let mut link = server.open();
    // Those of one that has ended do not come.
    let mut gone = server.open();
    gone.send_text("go");
    gone.expect_text("go");
    gone.reset();
    link.send_text("go");
    link.expect_text("go");
    for token in 0..5 {
        // Virtual time passes in steps.
        server.pass(Duration::from_millis(250));
        link.expect_text(&token.to_string());
        if world.is_sim() && token == 2 {
            // All that were due have come in one step.
            link.expect_text("4");
            link.expect_text("3");
            break;
        }
    }
}

fn timers_too_far_away_never_come_and_end_with_their_connections(world: World) {
    let mut settings = Settings {
        base: Route::default().promote_within(Duration::from_secs(3_600)),
        ..Settings::default()
    };
    settings.limits.lifetime_max = Duration::MAX;
    let mut probe = Probe::echo().on_message(|conn, message| {
        for after in [
            Duration::MAX,
            Duration::from_micros(u64::MAX),
            Duration::from_secs(u64::MAX / 1_000_000 + 1),
            Duration::from_secs(1 << 50),
            Duration::from_secs(3_600),
        ] {
            conn.set_timer(after, 0);
        }
        match message.payload() {
            b"close" => conn.close(CloseCode::NORMAL, ""),
            b"terminate" => conn.terminate(),
            _ => _ = conn.send(message),
        }
    });
    probe.on_timer = Arc::new(|conn, _| _ = conn.send("too early"));
    let server = world.start_with(settings, probe);
    let mut link = server.open();
    for text in ["one", "two"] {
        link.send_text(text);
        server.turn(3);
        link.expect_text(text);
    }
    // Those of the messages, and two of the route's.
    server.wait_metrics(|metrics| metrics.timers == 12);
    let mut terminated = server.open();
    terminated.send_text("terminate");
    terminated.read_to_end_or_reset();
    let mut closed = server.open();
    closed.send_text("close");
    closed.expect_close_answered(1000);
    let gone = server.open();
    server.wait_metrics(|metrics| metrics.timers == 14);
    gone.reset();
    link.reset();
    server.wait_metrics(|metrics| metrics.timers == 0);
}

fn timers_count_from_the_call(world: World) {
    let mut probe = Probe::echo().on_message(|conn, _| {
        // In virtual time nothing takes time.
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(30) {}
        conn.data().at = Some(Instant::now());
        conn.set_timer(Duration::from_millis(20), 0);
        conn.send("set");
    });
    probe.on_timer = Arc::new(|conn, _| {
        let elapsed = conn.data().at.map(|at| at.elapsed());
        conn.send(&format!("{}", elapsed.unwrap().as_micros()));
    });
    let server = world.start(probe);
    let mut link = server.open();
    for _ in 0..3 {
        link.send_text("go");
        link.expect_text("set");
        server.pass(Duration::from_millis(250));
        let micros = String::from_utf8(link.next_frame().expect("it comes").payload).unwrap();
        let least = if world.is_sim() { 0 } else { 20_000 };
        assert!(micros.parse::<u64>().unwrap() >= least, "{micros}");
    }
}

fn timer_storm_starves_nobody_and_all_come(world: World) {
    const COUNT: u64 = 20_000;
    let mut probe = Probe::echo().on_message(|conn, message| match message.payload() {
        b"storm" => (0..1_000).for_each(|_| _ = conn.set_timer(Duration::ZERO, 1)),
        b"many" => {
            (0..COUNT).for_each(|_| _ = conn.set_timer(Duration::from_millis(1), 2));
            conn.send("set");
        }
        _ => _ = conn.send(message),
    });
    probe.on_timer = Arc::new(|conn, token| match token {
        1 => _ = conn.set_timer(Duration::ZERO, 1),
        _ => {
            conn.data().number += 1;
            if conn.data().number as u64 == COUNT {
                conn.send("all");
            }
        }
    });
    let server = world.start(probe);
    let mut storm = server.open();
    storm.send_text("storm");
    let mut link = server.open();
    for _ in 0..50 {
        link.send_text("served");
        link.expect_text("served");
    }
    link.send_text("many");
    link.expect_text("set");
    server.pass(Duration::from_millis(250));
    link.expect_text("all");
    storm.reset();
    server.wait_metrics(|metrics| metrics.timers == 0);
}

fn values_reach_their_connection_and_their_thread(world: World) {
    let mut probe = Probe::echo();
    probe.on_post = Arc::new(|conn, value| {
        let value: Box<String> = value.downcast().expect("a text");
        conn.send(value.as_str());
    });
    probe.on_open = Arc::new(|conn| {
        conn.subscribe("thread");
    });
    probe.on_thread = Arc::new(|thread, event| match event {
        ThreadEvent::Start => assert_eq!((thread.number(), thread.connections()), (0, 0)),
        ThreadEvent::Value(value) => {
            let number: Box<u64> = value.downcast().expect("a number");
            assert_eq!(thread.subscriber_count("thread"), 1);
            let cancelled = thread.set_timer(Duration::from_secs(1), 5);
            thread.set_timer(Duration::from_millis(1), *number);
            assert!(thread.cancel_timer(cancelled));
        }
        ThreadEvent::Timer(token) => {
            assert_eq!(thread.connections(), 1);
            thread.publish("thread", token.to_string()).expect("room");
        }
    });
    let server = world.start(probe);
    let mut link = server.open();
    let id = server.log().ids()[0];
    let remote = server.remote();
    remote.post_to(id, "for you".to_owned()).expect("room");
    link.expect_text("for you");
    remote.post(0, 42_u64).expect("room");
    server.turn(1);
    server.pass(Duration::from_millis(250));
    link.expect_text("42");
    assert!(remote.post(1, 42_u64).is_err(), "there is one thread");
}

fn promote_or_be_closed_authz(world: World) {
    let settings = Settings {
        base: Route::default().promote_within(Duration::from_millis(300)),
        ..Settings::default()
    };
    let server = world.start_with(
        settings,
        Probe::echo().on_message(|conn, message| {
            if message.payload() == b"secret" {
                conn.promote();
            }
            conn.send(message);
        }),
    );
    let mut known = server.open();
    known.send_text("secret");
    known.expect_text("secret");
    let mut unknown = server.open();
    // Talking does not help.
    unknown.send_text("hello");
    unknown.expect_text("hello");
    server.pass(Duration::from_millis(500));
    unknown.expect_close_answered(1008);
    let id = server.log().ids()[1];
    let ended = server.end_of(id);
    assert_eq!(
        (ended.why, ended.code, ended.local),
        (Why::Closed, 1008, true)
    );
    known.send_text("still here");
    known.expect_text("still here");
}

fn lifetime_ends_with_1008(world: World) {
    let mut limits = Limits::default();
    limits.lifetime_max = Duration::from_secs(1);
    let settings = Settings {
        limits,
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    let mut link = server.open();
    link.send_text("lively");
    link.expect_text("lively");
    server.pass(Duration::from_millis(1_500));
    link.expect_close_answered(1008);
    assert_eq!(server.ended().code, 1008);
}

fn message_rate_is_limited(world: World) {
    let mut per_message = Limits::default();
    per_message.message_rate_max = 10;
    let mut per_byte = Limits::default();
    per_byte.byte_rate_max = 1_000;
    for (limits, len) in [(per_message, 1), (per_byte, 100)] {
        let settings = Settings {
            limits,
            ..Settings::default()
        };
        let server = world.start_with(settings, Probe::echo());
        let mut link = server.open();
        let message = "x".repeat(len);
        // A second's worth at once, all of them in one piece so that no time passes.
        let ten: Vec<u8> = (0..10)
            .flat_map(|_| frame(Opcode::Text, message.as_bytes()))
            .collect();
        link.send(&ten);
        for _ in 0..10 {
            link.expect_text(&message);
        }
        link.send(&[&ten[..], &ten].concat());
        let mut echoed = 0;
        let last = loop {
            let frame = link.next_frame().expect("a Close frame");
            if frame.opcode == Opcode::Close {
                break frame.payload;
            }
            echoed += 1;
        };
        assert_eq!(last[..2], 1008_u16.to_be_bytes());
        assert!(echoed < 20);
        assert_eq!(
            server.ended().why,
            Why::Failed(ProtocolError::MessageTooOften)
        );
    }
}

fn terminate_from_another_thread_ends_at_once(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.open();
    let id = server.log().ids()[0];
    server.remote().terminate(id).expect("room");
    assert_eq!(server.end_of(id).why, Why::Terminated);
    assert_eq!(link.next_frame(), None);
}
