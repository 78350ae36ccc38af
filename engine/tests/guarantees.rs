//! The guarantees of `docs/ARCHITECTURE.md`, each under its number, on each backend and on the
//! simulated network.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sockeye::CONTROL_RESERVE;
use sockeye::CloseCode;
use sockeye::Context;
use sockeye::DropReason;
use sockeye::Limits;
use sockeye::ProtocolError;
use sockeye::SendResult;
use sockeye::Timeout;
use sockeye::Upgrade;
use sockeye::protocol::Opcode;
use sockeye::testkit::Faults;
use sockeye::testkit::SimSettings;

use crate::support;
use crate::support::Data;
use crate::support::Probe;
use crate::support::REQUEST;
use crate::support::Record;
use crate::support::Running;
use crate::support::Settings;
use crate::support::Why;
use crate::support::World;
use crate::support::certificates;
use crate::support::fragment;
use crate::support::frame;
use crate::support::raw_frame;

cases!(
    g01_open_and_close_match_one_to_one,
    g02_messages_arrive_in_order_once_and_whole,
    g03_callbacks_only_queue,
    g04_conn_id_names_one_connection_for_ever,
    g05_user_data_lives_to_the_end_of_on_close,
    g06_memory_grows_with_bytes_received_prealloc,
    g07_output_never_exceeds_its_limit_by_a_byte,
    g08_every_failure_ends_in_close_frame_fin_and_lingering_read,
    g09_no_peer_makes_another_wait_more_than_a_turn,
    g10_panic_closes_its_own_connection_only,
    g11_nothing_that_a_peer_sends_panics_or_spins,
    g12_too_many_connections_cost_no_message,
);

fn g01_open_and_close_match_one_to_one(world: World) {
    let mut settings = Settings::default();
    settings.limits.close_timeout = Duration::from_secs(1);
    let mut server = world.start_with(
        settings,
        Probe::echo().on_message(|conn, message| {
            match message.payload() {
                b"close" => conn.close(CloseCode::NORMAL, ""),
                b"terminate" => conn.terminate(),
                b"panic" => panic!("as asked"),
                _ => {}
            };
        }),
    );
    // Neither for requests that are no WebSocket.
    for request in ["GET /page HTTP/1.1\r\nHost: a\r\n\r\n", "nonsense\r\n\r\n"] {
        let mut link = server.connect();
        link.send(request.as_bytes());
        link.read_to_end();
    }
    drop(server.connect());
    assert_eq!(server.log().all(), []);

    let mut opened = 0;
    let mut open = || {
        opened += 1;
        server.open()
    };
    open().close(1000);
    for text in ["close", "terminate", "panic"] {
        let mut link = open();
        link.send_text(text);
        // The one that is asked to close does not answer.
        server.pass(Duration::from_secs(4));
        link.read_to_end();
    }
    let mut link = open();
    link.send(&[0xFF]);
    link.read_to_end();
    open().shutdown();
    open().reset();
    drop(open());
    // Ended by the server's end.
    let mut last = open();
    last.send_text("close");
    let idle = open();
    let _closes = server.closes(opened - 2);
    server.stop();
    drop((last, idle));

    let records = server.log().all();
    let mut open = Vec::new();
    let mut closed = 0;
    for record in records {
        match record {
            Record::Open(id) => open.push(id),
            Record::Message(id, ..) | Record::Drain(id) => assert!(open.contains(&id)),
            Record::Close(id, _) => {
                let place = open.iter().position(|&other| other == id);
                open.swap_remove(place.expect("open before it is closed, and once"));
                closed += 1;
            }
            _ => {}
        }
    }
    assert_eq!((open.len(), closed), (0, opened));
}

fn g02_messages_arrive_in_order_once_and_whole(world: World) {
    let server = world.start(Probe::echo());
    // A stream of every kind of frame, cut at every byte.
    let mut stream = Vec::new();
    stream.extend(frame(Opcode::Text, "é".as_bytes()));
    stream.extend(frame(Opcode::Binary, b""));
    stream.extend(fragment(Opcode::Text, b"fr\xE2"));
    stream.extend(frame(Opcode::Ping, b"between"));
    stream.extend(raw_frame(0x00, b"\x82"));
    stream.extend(raw_frame(0x00, b""));
    stream.extend(raw_frame(0x80, b"\xACend"));
    stream.extend(frame(Opcode::Binary, &[0xAB; 130]));
    stream.extend(frame(Opcode::Text, b"last"));
    let check = |link: &mut support::Link| {
        link.expect_text("é");
        link.expect(Opcode::Binary, b"");
        link.expect(Opcode::Pong, b"between");
        link.expect_text("fr€end");
        link.expect(Opcode::Binary, &[0xAB; 130]);
        link.expect_text("last");
    };
    for cut in 0..=stream.len() {
        let mut link = server.open();
        link.send(&stream[..cut]);
        link.send(&stream[cut..]);
        check(&mut link);
    }
    let mut link = server.open();
    link.dribble(&stream);
    check(&mut link);

    // Many, of all sizes around the buffers' edges.
    let mut link = server.open();
    let lens = [
        0, 1, 125, 126, 127, 4_095, 16_384, 16_400, 65_500, 65_535, 65_536,
    ];
    for round in 0..3_u8 {
        for len in lens {
            let payload = vec![round; len];
            link.send_frame(Opcode::Binary, &payload);
            link.expect(Opcode::Binary, &payload);
        }
    }
}

fn g03_callbacks_only_queue(world: World) {
    let depth = Arc::new(AtomicUsize::new(0));
    let enter = {
        let depth = Arc::clone(&depth);
        move || {
            assert_eq!(
                depth.fetch_add(1, Ordering::SeqCst),
                0,
                "a callback in a callback"
            )
        }
    };
    let leave = move || assert_eq!(depth.fetch_sub(1, Ordering::SeqCst), 1);
    let mut probe = Probe::echo();
    let callback: support::OnConn = {
        let (enter, leave) = (enter.clone(), leave.clone());
        Arc::new(move |conn| {
            enter();
            let id = conn.id();
            conn.send("from a callback");
            conn.remote().send(id, "posted").expect("room");
            conn.remote().broadcast("to all").expect("room");
            if conn.data().number > 0 {
                conn.close(CloseCode::NORMAL, "");
            }
            leave();
        })
    };
    probe.on_open = callback.clone();
    probe.on_ping = callback.clone();
    probe.on_close = callback.clone();
    probe.on_message = Arc::new(move |conn, _| {
        conn.data().number = 1;
        callback(conn);
        // The connection that the callback runs on has closed, and is still here.
        assert_eq!(conn.data().number, 1);
        assert_eq!(conn.send("behind"), SendResult::Gone);
    });
    let server = world.start(probe);
    let mut link = server.open();
    for text in ["from a callback", "posted", "to all"] {
        link.expect_text(text);
    }
    link.send_text("go on");
    link.expect_text("from a callback");
    let close = link.next_frame().expect("a Close frame");
    assert_eq!(close.opcode, Opcode::Close);
    link.send_frame(Opcode::Close, b"");
    assert_eq!(link.next_frame(), None);
    assert!(server.ended().clean);
}

fn g04_conn_id_names_one_connection_for_ever(world: World) {
    let server = world.start(Probe::echo());
    let remote = server.remote();
    let mut first = server.open();
    let first_id = server.log().ids()[0];
    first.close(1000);
    drop(first);
    server.wait_empty();
    // The next one gets the slot, and nothing that was meant for the first.
    let mut second = server.open();
    let second_id = server.log().ids()[1];
    assert_ne!(first_id, second_id);
    remote.send(first_id, "for the first").expect("room");
    remote.close(first_id, CloseCode::NORMAL, "").expect("room");
    remote.send(second_id, "for the second").expect("room");
    second.expect_text("for the second");
    second.send_text("alive");
    second.expect_text("alive");
}

fn g05_user_data_lives_to_the_end_of_on_close(world: World) {
    let mut probe = Probe::echo();
    let log = probe.log.clone();
    probe.on_upgrade = Arc::new(move |request| {
        let path = request.request().path();
        Upgrade::accept(Data {
            number: path[1..].parse().unwrap_or(0),
            log: Some(log.clone()),
            at: None,
        })
    });
    probe.on_close = Arc::new(|conn| {
        // It is still what it was.
        assert!(conn.data().number > 0);
        conn.data().number += 100;
    });
    let server = world.start(probe);
    for number in 1..4 {
        let mut link = server.connect();
        link.send(
            REQUEST
                .replace("GET /", &format!("GET /{number}"))
                .as_bytes(),
        );
        assert_eq!(link.read_status(), 101);
        match number {
            1 => link.close(1000),
            2 => {
                link.send(&[0xFF]);
                link.expect_close(1002);
            }
            _ => link.reset(),
        }
        let dropped = Record::DataDropped(number + 100);
        server.wait(|records| records.contains(&dropped));
        let records = server.log().all();
        let place = |wanted: &dyn Fn(&Record) -> bool| records.iter().rposition(wanted);
        let closed = place(&|record| matches!(record, Record::Close(..)));
        assert!(
            closed < place(&|record| *record == dropped),
            "dropped before on_close"
        );
    }
}

/// What peers announce and do not send costs nothing.
fn g06_memory_grows_with_bytes_received_prealloc(world: World) {
    let mut settings = Settings::default();
    settings.limits.message_len_max = 1 << 30;
    settings.limits.output_len_max = (1 << 30) + 16;
    let server = world.start_with(settings, Probe::echo());
    let count = if world.is_sim() { 10_000 } else { 200 };
    let before = server.memory.begin();
    let mut links = Vec::new();
    for _ in 0..count {
        let mut link = server.open();
        // A gigabyte is announced, a byte is sent.
        let mut bytes = vec![0x82, 0x80 | 127];
        bytes.extend((1_u64 << 30).to_be_bytes());
        bytes.extend(support::KEY);
        bytes.push(b'x');
        link.send(&bytes);
        links.push(link);
    }
    server.turn(20);
    let mut probe = server.open();
    probe.send_text("served");
    probe.expect_text("served");
    let grown = server.memory.most() - before;
    // A simulated network has the clients as well.
    let each = if world.is_sim() { 32 << 10 } else { 8 << 10 };
    assert!(grown < count * each, "{world:?}: {grown} bytes more");
}

/// Fills the queue to the byte with messages of `k`, and counts them in `accepted`; those that
/// have to be refused are of `x`. The kernel may take something in between, which makes room:
/// then the answer is no.
fn fill_to_the_byte(conn: &mut Context<'_, Data>, limit: usize, accepted: &AtomicUsize) -> bool {
    let mut accepts = |payload: &[u8]| {
        let result = conn.send(payload);
        let queued = conn.queued_bytes();
        assert!(queued <= limit, "{queued}");
        let is_refused = result == SendResult::Dropped(DropReason::OutputLimit);
        accepted.fetch_add(usize::from(!is_refused), Ordering::Relaxed);
        (!is_refused, limit - queued)
    };
    let mut room = loop {
        let (is_accepted, room) = accepts(&[b'k'; 5_000]);
        if !is_accepted {
            break room;
        }
    };
    // No frame has 128 or 129 bytes: the header grows with the payload of 126.
    if matches!(room, 128 | 129) {
        room = accepts(b"").1;
    }
    let header_len = if room < 130 { 2 } else { 4 };
    // A single byte is less than any frame.
    if let Some(payload_len) = room.checked_sub(header_len) {
        if accepts(&vec![b'x'; payload_len + 1]) != (false, room)
            || accepts(&vec![b'k'; payload_len]) != (true, 0)
        {
            return false;
        }
        room = 0;
    }
    accepts(b"") == (false, room)
}

fn g07_output_never_exceeds_its_limit_by_a_byte(world: World) {
    let limit = 10_000;
    let mut settings = Settings::default();
    settings.limits.output_len_max = limit;
    settings.limits.output_low_water = 1_000;
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    let mut probe = Probe::echo().on_message(move |conn, message| {
        if message.payload() != b"fill" {
            conn.send(message);
            return;
        }
        let is_full = (0..1_000).any(|_| fill_to_the_byte(conn, limit, &counted));
        assert!(is_full, "never full");
        let refused = SendResult::Dropped(DropReason::OutputLimit);
        assert_eq!(conn.ping(b""), refused);
    });
    probe.record_messages = false;
    probe.on_ping = Arc::new(move |conn| {
        // The pong is in the reserve, unless the peer's side has taken some meanwhile.
        assert!(conn.queued_bytes() <= limit + CONTROL_RESERVE);
    });
    let server = world.start_with(settings, probe);
    let mut link = server.connect_with_room(3_000);
    link.upgrade();
    link.send_text("fill");
    link.send_frame(Opcode::Ping, b"reserve");
    // Nothing is read until the pong is queued: reading makes room.
    server.wait(|records| {
        let is_ping = |record: &Record| matches!(record, Record::Ping(..));
        records.iter().any(is_ping)
    });
    // All that was taken arrives, and what was refused does not.
    let mut arrived = 0;
    loop {
        let frame = link.next_frame().expect("a pong comes");
        if frame.opcode == Opcode::Pong {
            break;
        }
        assert_ne!(frame.payload.first(), Some(&b'x'));
        arrived += 1;
    }
    assert_eq!(arrived, accepted.load(Ordering::Relaxed));
    // There is room again, and the handler was told.
    server.wait(|records| {
        let is_drain = |record: &Record| matches!(record, Record::Drain(_));
        records.iter().any(is_drain)
    });
    link.send_text("again");
    link.expect_text("again");
    const { assert!(CONTROL_RESERVE >= 1024) };
}

fn g08_every_failure_ends_in_close_frame_fin_and_lingering_read(world: World) {
    let mut settings = Settings::default();
    settings.limits.close_timeout = Duration::from_secs(2);
    let server = world.start_with(settings, Probe::echo());
    let cases: [(&[u8], ProtocolError); 5] = [
        (&[0xFF], ProtocolError::ReservedBit),
        (&[0x83], ProtocolError::OpcodeReserved),
        (&[0x81, 0x01], ProtocolError::Unmasked),
        (&[0x81, 0x81, 0, 0, 0, 0, 0xFF], ProtocolError::Utf8),
        (
            &[0x82, 0xFF, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            ProtocolError::MessageTooBig,
        ),
    ];
    for (bytes, error) in cases {
        let mut link = server.open();
        let id = *server.log().ids().last().expect("it is open");
        // What was asked before is answered; what comes behind is swallowed, so that no reset
        // destroys the answer before the peer has read it.
        link.send(&[&frame(Opcode::Text, b"before")[..], bytes].concat());
        link.try_send(&[b'x'; 50_000]);
        link.expect_text("before");
        link.expect_close(error.close_code().get());
        if let support::End::Sim(client, _) = &link.end {
            // A FIN has come, and the server still reads.
            assert!(!client.is_closed_by_server());
            server.turn(200);
            assert_eq!(client.unread_len(), 0);
        }
        let ended = server.end_of(id);
        assert_eq!(
            (ended.why, ended.code),
            (Why::Failed(error), error.close_code().get())
        );
        assert_eq!((ended.local, ended.clean), (true, false));
        link.try_send(&[b'x'; 50_000]);
        drop(link);
        server.wait_empty();
    }
    // A peer that never closes its side is not waited for longer than the time-out.
    let mut link = server.open();
    link.send(&[0xFF]);
    link.expect_close(1002);
    server.pass(Duration::from_secs(5));
    server.wait_empty();
    // Both sides' handshakes, and who began.
    let mut link = server.open();
    let id = *server.log().ids().last().expect("it is open");
    link.close(3000);
    let ended = server.end_of(id);
    assert_eq!((ended.local, ended.clean, ended.code), (false, true, 3000));
    // Where both have sent a Close frame the server waits for nothing.
    let mut link = server.open();
    link.send_frame(Opcode::Close, &3000_u16.to_be_bytes());
    if let support::End::Sim(client, _) = &link.end
        && !world.is_tls()
    {
        server.turn(200);
        assert!(client.is_closed_by_server());
    }
    link.expect_close(3000);
    drop(link);
    server.wait_empty();
    let mut link = server.open();
    let id = *server.log().ids().last().expect("it is open");
    let code = CloseCode::new(4001).expect("an application's");
    server.remote().close(id, code, "why").expect("room");
    let got = link.next_frame().expect("a Close frame");
    assert_eq!(got.payload, [&4001_u16.to_be_bytes()[..], b"why"].concat());
    link.send_frame(Opcode::Close, &4001_u16.to_be_bytes());
    assert_eq!(link.next_frame(), None);
    let ended = server.end_of(id);
    assert_eq!((ended.local, ended.clean, ended.code), (true, true, 4001));
    assert_eq!(ended.reason, "why");
    // A peer that does not answer is left after the time-out.
    let mut link = server.open();
    let id = *server.log().ids().last().expect("it is open");
    server.remote().close(id, code, "").expect("room");
    assert_eq!(
        link.next_frame().expect("a Close frame").opcode,
        Opcode::Close
    );
    server.pass(Duration::from_secs(5));
    let ended = server.end_of(id);
    assert_eq!(
        (ended.why, ended.local, ended.clean),
        (Why::Closed, true, false)
    );
}

/// One peer sends as fast as it can; another's message is served between its turns.
fn g09_no_peer_makes_another_wait_more_than_a_turn(world: World) {
    let mut settings = Settings::default();
    settings.limits.turn_len_max = 2_048;
    settings.limits.output_len_max = 1 << 20;
    let server = world.start_with(
        settings,
        Probe::echo().on_message(|conn, message| {
            if message.payload() == b"polite" {
                conn.send(message);
            }
        }),
    );
    let mut polite = server.open();
    let mut flood = server.open();
    let (flooder, flood_len) = (server.log().ids()[1], 400_000);
    let flood_bytes = frame(Opcode::Binary, b"f").repeat(flood_len / 7);
    // A record is decrypted whole.
    let budget = if world.is_tls() {
        2_048 + 16_384
    } else {
        2_048
    };
    match &flood.end {
        support::End::Sim(..) => {
            flood.send(&flood_bytes);
            // No turn takes more of it than its budget.
            for _ in 0..20 {
                let before = server.log().messages().len();
                server.turn(1);
                assert!(server.log().messages().len() - before <= budget / 7 + 1);
            }
            assert!(server.log().messages().len() > 2_048 / 7);
        }
        support::End::Live(stream) => {
            let mut stream = stream.try_clone().expect("a descriptor");
            let flood_bytes = flood.seal(&flood_bytes);
            std::thread::spawn(move || std::io::Write::write_all(&mut stream, &flood_bytes));
            server.wait(|records| {
                let of_flood =
                    |record: &Record| matches!(record, Record::Message(id, ..) if *id == flooder);
                records.iter().any(of_flood)
            });
        }
    }
    let earlier = server.log().messages().len();
    polite.send_text("polite");
    polite.expect_text("polite");
    // In the simulation the whole flood was there before the polite message was.
    if world.is_sim() {
        let records = server.log().all();
        let of_flood =
            |record: &&Record| matches!(record, Record::Message(id, ..) if *id == flooder);
        let polite_at = records
            .iter()
            .position(|record| matches!(record, Record::Message(id, ..) if *id != flooder))
            .expect("it was served");
        let before = records[..polite_at].iter().filter(of_flood).count() - earlier;
        // A few turns of it, for the faults delay what they can.
        assert!(
            before < 10 * budget / 7,
            "{before} messages of the flood came first"
        );
    }
}

fn g10_panic_closes_its_own_connection_only(world: World) {
    let mut probe = Probe::echo().on_message(|conn, message| {
        match message.payload() {
            b"message" => panic!("as asked"),
            b"both" => {
                conn.data().number = 7;
                panic!("as asked")
            }
            _ => {
                conn.send(message);
            }
        };
    });
    probe.on_close = Arc::new(|conn| assert_ne!(conn.data().number, 7, "as asked"));
    probe.on_ping = Arc::new(|_| panic!("as asked"));
    let opened = AtomicUsize::new(0);
    probe.on_open = Arc::new(move |_| {
        // The fifth.
        assert_ne!(opened.fetch_add(1, Ordering::SeqCst), 4, "as asked");
    });
    let server = world.start(probe);
    let mut other = server.open();
    for text in ["message", "both"] {
        let mut link = server.open();
        link.send(
            &[
                frame(Opcode::Text, b"before"),
                frame(Opcode::Text, text.as_bytes()),
            ]
            .concat(),
        );
        link.expect_text("before");
        link.expect_close(1011);
    }
    let mut link = server.open();
    link.send_frame(Opcode::Ping, b"");
    link.expect(Opcode::Pong, b"");
    link.expect_close(1011);
    let mut link = server.open();
    link.expect_close(1011);
    let mut link = server.connect();
    link.send(b"GET /panic HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(link.read_status(), 500);
    let ends = server.closes(4);
    assert!(
        ends.iter()
            .all(|ended| ended.why == Why::Panicked && ended.code == 1011)
    );
    other.send_text("still served");
    other.expect_text("still served");
}

/// Valid streams with bytes altered, and noise.
fn g11_nothing_that_a_peer_sends_panics_or_spins(world: World) {
    let server = world.start(Probe::echo());
    let mut chance = sockeye::testkit::Chance::new(11);
    let valid = [
        frame(Opcode::Text, "text é".as_bytes()),
        fragment(Opcode::Binary, &[1; 200]),
        frame(Opcode::Ping, b"ping"),
        raw_frame(0x80, &[2; 70]),
        frame(Opcode::Close, &1000_u16.to_be_bytes()),
    ]
    .concat();
    for round in 0..if world.is_sim() { 2_000 } else { 150 } {
        let mut link = server.connect();
        let mut request = REQUEST.as_bytes().to_vec();
        let mut frames = valid.clone();
        match round % 3 {
            0 => {
                let place = chance.below(request.len());
                request[place] = chance.bits() as u8;
            }
            1 => {
                for _ in 0..1 + chance.below(3) {
                    let place = chance.below(frames.len());
                    frames[place] = chance.bits() as u8;
                }
            }
            _ => {
                frames = (0..chance.below(3_000))
                    .map(|_| chance.bits() as u8)
                    .collect()
            }
        }
        link.try_send(&request);
        link.try_send(&frames);
        if let support::End::Live(stream) = &link.end {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut sink = Vec::new();
            let _ = std::io::Read::read_to_end(&mut &*stream, &mut sink);
        }
    }
    let mut link = server.open();
    link.send_text("alive");
    link.expect_text("alive");
    let panicked = |ended: &support::Ended| ended.why == Why::Panicked;
    assert!(!server.log().closes().iter().any(panicked));
}

/// Where every other receive and send finds no memory, on the simulated network.
#[test]
fn g12_lack_of_memory_loses_no_message() {
    for tls in [None, Some(certificates::server_tls().clone())] {
        let settings = SimSettings {
            faults: Faults {
                exhausted: 2,
                ..Faults::default()
            },
            tls: tls.clone(),
            ..SimSettings::default()
        };
        let probe = Probe::echo();
        let server = Running::simulated(settings, probe);
        let mut link = server.open();
        for number in 0..200 {
            link.send_text(&number.to_string());
            link.expect_text(&number.to_string());
        }
        // More than the output limit: it is sent while it is queued.
        let long = "x".repeat(60_000);
        for _ in 0..10 {
            link.send_text(&long);
        }
        for _ in 0..10 {
            link.expect_text(&long);
        }
        let total = server.metrics().total();
        assert!(total.exhausted > 100, "{total:?}");
        assert_eq!((total.messages_refused, total.closes.len()), (0, 0));
    }
}

fn g12_too_many_connections_cost_no_message(world: World) {
    let settings = Settings {
        connections_max: Some(10),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    let mut links: Vec<_> = (0..10).map(|_| server.open()).collect();
    // Refused, and counted; nobody else is concerned.
    for _ in 0..5 {
        let mut refused = server.connect_raw();
        refused.try_send(REQUEST.as_bytes());
        match &mut refused.end {
            support::End::Live(stream) => {
                let got = std::io::Read::read(stream, &mut [0; 100]);
                // A FIN, or a reset if the request was there first.
                assert!(got.is_err() || got.is_ok_and(|len| len == 0));
            }
            support::End::Sim(..) => assert_eq!(refused.read_to_end(), b""),
        }
    }
    for (number, link) in links.iter_mut().enumerate() {
        link.send_text(&number.to_string());
        link.expect_text(&number.to_string());
    }
    links.clear();
    server.wait_empty();
    let mut link = server.open();
    link.send_text("room again");
    link.expect_text("room again");
}

/// The same script gives the same transcript everywhere: bytes and callbacks.
#[test]
fn g13_backends_behave_alike_case_by_case() {
    /// The time of an answer is not the backend's.
    fn without_date(answer: &[u8]) -> Vec<u8> {
        let lines = answer.split_inclusive(|&byte| byte == b'\n');
        let others = lines.filter(|line| !line.starts_with(b"Date: "));
        others.flatten().copied().collect()
    }

    let transcript = |world: World| {
        let server = world.start(Probe::echo());
        let mut bytes = Vec::new();
        let scripts: [Vec<u8>; 6] = [
            frame(Opcode::Close, &1000_u16.to_be_bytes()),
            [frame(Opcode::Text, b"a"), vec![0xFF]].concat(),
            [frame(Opcode::Ping, b"p"), frame(Opcode::Close, b"")].concat(),
            [
                fragment(Opcode::Text, b"a"),
                raw_frame(0x80, b"b"),
                vec![0x83],
            ]
            .concat(),
            frame(Opcode::Text, &[0xFF]),
            [
                frame(Opcode::Binary, &[9; 60_000]),
                frame(Opcode::Close, &[0]),
            ]
            .concat(),
        ];
        for script in scripts {
            let mut link = server.open();
            let id = *server.log().ids().last().expect("it is open");
            link.send(&script);
            bytes.push(link.read_to_end());
            server.end_of(id);
            drop(link);
            server.wait_empty();
        }
        for request in ["GET /page HTTP/1.1\r\nHost: a\r\n\r\n", "x\r\n\r\n"] {
            let mut link = server.connect();
            link.send(request.as_bytes());
            bytes.push(without_date(&link.read_to_end()));
        }
        let mut log = server.log().all();
        // Whether the network takes all of it at once is no matter of the backend's.
        log.retain(|record| !matches!(record, Record::Drain(_)));
        (bytes, log)
    };
    let want = transcript(World::Poll);
    assert!(want.1.len() > 15, "{:?}", want.1);
    for world in [World::Uring, World::UringDirect, World::Sim] {
        if world != World::Sim && !support::uring_works() {
            continue;
        }
        assert_eq!(transcript(world), want, "{world:?}");
    }
}

/// Pings, pongs and idle connections, in virtual time and with the default limits.
#[test]
fn silent_peers_are_pinged_and_then_closed() {
    let server = World::Sim.start(Probe::echo());
    let seconds = Duration::from_secs;
    let mut silent = server.open();
    let mut lively = server.open();
    for _ in 0..10 {
        server.pass(seconds(29));
        lively.send_text("here");
        lively.expect_text("here");
    }
    silent.expect_own_ping();
    silent.expect_close(1001);
    let ended = server.ended();
    assert_eq!(ended.why, Why::TimedOut(Timeout::Pong));

    // One that answers pings stays for as long as it likes.
    drop(lively);
    server.closes(2);
    let mut quiet = server.open();
    for _ in 0..40 {
        server.pass(seconds(32));
        quiet.expect_own_ping();
        quiet.send_frame(Opcode::Pong, b"");
    }
    assert_eq!(server.log().closes().len(), 2);
}

/// Time-outs beyond what a deadline can hold, and without pings.
#[test]
fn idle_time_out_counts_on_beyond_one_deadline() {
    let mut settings = Settings::default();
    settings.limits.ping_interval = Duration::ZERO;
    settings.limits.idle_timeout = Duration::from_secs(1_000);
    let server = World::Sim.start_with(settings.clone(), Probe::echo());
    let mut link = server.open();
    server.pass(Duration::from_secs(900));
    link.send_text("not idle");
    link.expect_text("not idle");
    server.pass(Duration::from_secs(995));
    assert_eq!(server.log().closes(), []);
    server.pass(Duration::from_secs(20));
    link.expect_close(1001);
    assert_eq!(server.ended().why, Why::TimedOut(Timeout::Idle));

    settings.limits.idle_timeout = Duration::ZERO;
    let server = World::Sim.start_with(settings, Probe::echo());
    let mut link = server.open();
    server.pass(Duration::from_secs(5_000));
    link.send_text("never idle");
    link.expect_text("never idle");
    assert_eq!(Limits::default().idle_timeout, Duration::from_secs(120));
}
