//! What becomes of output that a peer does not take: limits, policies, budgets.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use sockeye::Context;
use sockeye::DropReason;
use sockeye::Limits;
use sockeye::OutputPolicy;
use sockeye::Prepared;
use sockeye::Route;
use sockeye::SendOptions;
use sockeye::SendResult;
use sockeye::ThreadMetrics;
use sockeye::Victims;
use sockeye::protocol::Opcode;

use crate::support::Data;
use crate::support::Link;
use crate::support::Probe;
use crate::support::REQUEST;
use crate::support::Record;
use crate::support::Running;
use crate::support::Settings;
use crate::support::World;

cases!(
    refuse_leaves_the_message_to_its_caller,
    drop_newest_gives_up_what_has_no_room,
    drop_oldest_keeps_the_latest,
    conflate_keeps_the_latest_of_each_key,
    conflate_as_the_policy_of_a_route_keeps_one,
    close_policy_closes_with_1013_behind_what_waits,
    policy_of_one_send_goes_before_that_of_the_route,
    drain_comes_at_the_low_water_mark,
    prepared_reaches_clients_and_servers_alike,
    output_budget_closes_the_largest_queue_and_nobody_else,
    output_budget_closes_who_has_been_blocked_for_the_longest_time,
    output_budget_refuses_before_it_is_exceeded,
    long_messages_are_whole_and_in_order,
    long_message_that_has_begun_is_not_given_up,
);

const LIMIT: usize = 10_000;

const FILLER: [u8; 1_000] = [b'f'; 1_000];

/// Sends until the kernel takes no more; says how many messages were sent. Less than one of them
/// waits then.
fn fill(conn: &mut Context<'_, Data>) -> usize {
    let refuse = SendOptions::new().policy(OutputPolicy::Refuse);
    let mut count = 0;
    while conn.queued_bytes() == 0 {
        assert_eq!(conn.send_with(&FILLER, &refuse), SendResult::Sent);
        count += 1;
        // Before what can never fit is refused, the kernel is offered what waits.
        let never = conn.send_with(&[0; LIMIT], &refuse);
        assert_eq!(never, SendResult::Dropped(DropReason::OutputLimit));
    }
    count
}

fn start(world: World, policy: OutputPolicy, probe: Probe) -> Running {
    let mut settings = Settings {
        base: Route::default().output_policy(policy),
        ..Settings::default()
    };
    settings.limits.output_len_max = LIMIT;
    settings.limits.output_low_water = 1_000;
    world.start_with(settings, probe)
}

/// Runs `go` in a callback of a connection whose peer does not read; then reads what was sent
/// but the fillers. Gives that, and the numbers of fillers that were sent and that arrived.
fn run(server: &Running, fillers: &AtomicUsize) -> (Vec<Vec<u8>>, usize, usize) {
    let mut link = server.connect_with_room(3_000);
    link.upgrade();
    link.send_text("go");
    server.wait_ran();
    link.send_text("end");
    let mut got = Vec::new();
    let mut filler_count = 0;
    loop {
        let frame = link.next_frame().expect("the end comes");
        match frame.payload.as_slice() {
            b"end" => break,
            payload if payload == FILLER => filler_count += 1,
            _ => got.push(frame.payload),
        }
    }
    (got, fillers.load(Ordering::SeqCst), filler_count)
}

/// A handler that runs `go` behind as many fillers as there is room for, and ends with "end".
fn scripted(
    go: impl Fn(&mut Context<'_, Data>) + Send + Sync + 'static,
) -> (Probe, Arc<AtomicUsize>) {
    let fillers = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&fillers);
    let probe = Probe::echo();
    let log = probe.log.clone();
    let mut probe = probe.on_message(move |conn, message| {
        if message.payload() == b"go" {
            count.fetch_add(fill(conn), Ordering::SeqCst);
            go(conn);
            log.push(Record::Ran(conn.id()));
        } else {
            conn.data().number = 1;
            send_end(conn);
        }
    });
    probe.on_drain = Arc::new(send_end);
    (probe, fillers)
}

/// Ends, as soon as there is room and it has been asked for.
fn send_end(conn: &mut Context<'_, Data>) {
    let refuse = SendOptions::new().policy(OutputPolicy::Refuse);
    if conn.data().number == 1 {
        match conn.send_with("end", &refuse) {
            SendResult::Dropped(_) => {}
            _ => conn.data().number = 2,
        }
    }
}

fn number(payload: &[u8]) -> usize {
    str::from_utf8(&payload[..4]).unwrap().parse().unwrap()
}

/// A message of 500 bytes.
fn numbered(number: usize) -> Vec<u8> {
    let mut payload = format!("{number:04}").into_bytes();
    payload.resize(500, b'.');
    payload
}

fn dropped(server: &Running) -> usize {
    let records = server.log().all();
    let count = records.iter().map(|record| match record {
        Record::Dropped(_, dropped) => dropped.messages as usize,
        _ => 0,
    });
    count.sum()
}

fn refuse_leaves_the_message_to_its_caller(world: World) {
    let accepted = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&accepted);
    let (probe, fillers) = scripted(move |conn| {
        let refused = SendResult::Dropped(DropReason::OutputLimit);
        for index in 0..40 {
            if conn.send(&numbered(index)) == refused {
                count.store(index, Ordering::SeqCst);
                // It stays so, for a message that was encoded before as well.
                assert_eq!(conn.send(&numbered(index)), refused);
                assert_eq!(conn.send_prepared(&numbered(index).into()), refused);
                return;
            }
        }
        panic!("never full");
    });
    let server = start(world, OutputPolicy::Refuse, probe);
    let (got, sent, arrived) = run(&server, &fillers);
    assert_eq!(sent, arrived);
    let want: Vec<usize> = (0..accepted.load(Ordering::SeqCst)).collect();
    assert_eq!(got.iter().map(|p| number(p)).collect::<Vec<_>>(), want);
    // The caller was told: nobody else is.
    assert_eq!(dropped(&server), 0);
}

fn drop_newest_gives_up_what_has_no_room(world: World) {
    let (probe, fillers) = scripted(|conn| {
        let results = (0..40).map(|index| conn.send(&numbered(index)));
        let results: Vec<_> = results.collect();
        let is_drop = |result: &SendResult| matches!(result, SendResult::Dropped(_));
        let first = results.iter().position(is_drop).expect("never full");
        assert!(results[first..].iter().all(is_drop));
        assert!(conn.queued_bytes() <= LIMIT);
    });
    let server = start(world, OutputPolicy::DropNewest, probe);
    let (got, sent, arrived) = run(&server, &fillers);
    assert_eq!(sent, arrived);
    let want: Vec<usize> = (0..got.len()).collect();
    assert_eq!(got.iter().map(|p| number(p)).collect::<Vec<_>>(), want);
    assert_eq!(dropped(&server), 40 - got.len());
    assert!(got.len() < 40);
}

fn drop_oldest_keeps_the_latest(world: World) {
    let (probe, fillers) = scripted(|conn| {
        for index in 0..100 {
            let message = numbered(index);
            // Encoded here or before, in one piece or in two.
            let result = match index % 3 {
                0 => conn.send(&message),
                1 => conn.send_prepared(&Prepared::new(&message)),
                _ => conn.send_prepared(&Prepared::binary([&message[..], &[b'.'; 20]].concat())),
            };
            assert!(
                matches!(result, SendResult::Queued(_)),
                "{index}: {result:?}"
            );
            assert!(conn.queued_bytes() <= LIMIT);
        }
        // One that can never fit costs the others nothing.
        let before = conn.queued_bytes();
        let result = conn.send(&[0; LIMIT]);
        assert_eq!(result, SendResult::Dropped(DropReason::OutputLimit));
        assert_eq!(conn.queued_bytes(), before);
    });
    let server = start(world, OutputPolicy::DropOldest, probe);
    let (got, sent, arrived) = run(&server, &fillers);
    let got: Vec<usize> = got.iter().map(|p| number(p)).collect();
    assert_eq!(sent + 101, arrived + got.len() + dropped(&server));
    let want: Vec<usize> = (100 - got.len()..100).collect();
    assert_eq!(got, want, "the latest, without a gap");
    // What is encrypted is not given up.
    let least = if world.is_tls() { 1 } else { 15 };
    assert!((least..100).contains(&got.len()), "{}", got.len());
}

fn conflate_keeps_the_latest_of_each_key(world: World) {
    let (probe, fillers) = scripted(|conn| {
        for index in 0..200 {
            let key = SendOptions::new().policy(OutputPolicy::Conflate(index as u64 % 4));
            let payload = format!("{index:04}{}", "x".repeat(index % 7));
            let result = match index % 2 {
                0 => conn.send_with(payload.as_bytes(), &key),
                _ => conn.send_prepared_with(&Prepared::binary(payload), &key),
            };
            assert!(!matches!(result, SendResult::Gone));
        }
        conn.send(&numbered(9999));
    });
    let server = start(world, OutputPolicy::DropOldest, probe);
    let (got, sent, arrived) = run(&server, &fillers);
    let got: Vec<usize> = got.iter().map(|p| number(p)).collect();
    assert_eq!(sent + 201, arrived + got.len() + dropped(&server));
    // Each in the place of the first of its key.
    assert_eq!(got, [196, 197, 198, 199, 9999]);
}

fn conflate_as_the_policy_of_a_route_keeps_one(world: World) {
    let (probe, fillers) = scripted(|conn| {
        for index in 0..50 {
            conn.send(&numbered(index));
        }
    });
    // What was refused to the fillers shows that the policy of a send goes before.
    let server = start(world, OutputPolicy::Conflate(0), probe);
    let (got, sent, arrived) = run(&server, &fillers);
    assert_eq!(sent, arrived);
    let got: Vec<usize> = got.iter().map(|p| number(p)).collect();
    assert_eq!(got, [49]);
    assert_eq!(dropped(&server), 49);
}

fn close_policy_closes_with_1013_behind_what_waits(world: World) {
    let (probe, _) = scripted(|conn| {
        for index in 0..40 {
            match conn.send(&numbered(index)) {
                SendResult::Queued(_) => {}
                SendResult::Dropped(DropReason::OutputLimit) => {
                    assert_eq!(conn.send("more"), SendResult::Gone);
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("never full");
    });
    let server = start(world, OutputPolicy::Close, probe);
    let mut link = server.connect_with_room(3_000);
    link.upgrade();
    link.send_text("go");
    server.wait_ran();
    let mut next = 0;
    loop {
        let frame = link.next_frame().expect("a Close frame comes");
        match frame.opcode {
            Opcode::Binary if frame.payload == FILLER => {}
            Opcode::Binary => {
                assert_eq!(number(&frame.payload), next);
                next += 1;
            }
            Opcode::Close => {
                assert_eq!(frame.payload[..2], 1013_u16.to_be_bytes());
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    link.send_frame(Opcode::Close, &1013_u16.to_be_bytes());
    let ended = server.ended();
    assert_eq!((ended.code, ended.local, ended.clean), (1013, true, true));
}

fn policy_of_one_send_goes_before_that_of_the_route(world: World) {
    let (probe, fillers) = scripted(|conn| {
        let newest = SendOptions::new().policy(OutputPolicy::DropNewest);
        let oldest = SendOptions::new().policy(OutputPolicy::DropOldest);
        for index in 0..40 {
            conn.send_with(&numbered(index), &newest);
        }
        let result = conn.send_with(&numbered(40), &oldest);
        assert!(matches!(result, SendResult::Queued(_)), "{result:?}");
    });
    let server = start(world, OutputPolicy::Close, probe);
    let (got, sent, arrived) = run(&server, &fillers);
    assert_eq!(number(got.last().unwrap()), 40);
    assert_eq!(sent + 41, arrived + got.len() + dropped(&server));
}

fn drain_comes_at_the_low_water_mark(world: World) {
    let (mut probe, _) = scripted(|_| {});
    probe.on_drain = Arc::new(|conn| {
        assert!(conn.queued_bytes() <= 1_000, "{}", conn.queued_bytes());
        conn.data().number = 1;
        send_end(conn);
    });
    let server = start(world, OutputPolicy::Refuse, probe);
    let mut link = server.connect_with_room(3_000);
    link.upgrade();
    link.send_text("go");
    server.wait_ran();
    while link.next_frame().expect("the end comes").payload != b"end" {}
}

fn prepared_reaches_clients_and_servers_alike(world: World) {
    let large: Vec<u8> = (0..40_000_u32).map(|n| n as u8).collect();
    let messages = [
        Prepared::new("text"),
        Prepared::text("x".repeat(600)),
        Prepared::binary(large.clone()),
        Prepared::binary(Vec::new()),
    ];
    let sent = messages.clone();
    let server = world.start(Probe::echo().on_message(move |conn, _| {
        for message in &sent {
            conn.send_prepared(message);
        }
    }));
    let check = |mut link: Link| {
        link.send_text("go");
        link.expect_text("text");
        link.expect_text(&"x".repeat(600));
        link.expect(Opcode::Binary, &large);
        link.expect(Opcode::Binary, b"");
    };
    check(server.open());
    // A client's frames are masked, each with a key of its own.
    check(server.dial_open());
    assert_eq!(messages[1].payload().len(), 600);
}

/// A client on a route, that makes the server fill its output up to the route's limit.
fn blocked(server: &Running, path: &str, number: usize) -> Link {
    let mut link = server.connect_with_room(3_000);
    link.send(
        REQUEST
            .replacen("GET / ", &format!("GET {path} "), 1)
            .as_bytes(),
    );
    assert_eq!(link.read_status(), 101);
    link.send_text("go");
    // The order is that of the log.
    server.wait(|records| {
        let messages = records.iter().filter(|r| matches!(r, Record::Message(..)));
        messages.count() > number
    });
    link
}

/// A server with a budget for output, and routes whose connections have these limits. A client
/// that sends "go" gets more than it may; why the first message was refused is counted.
fn budget(
    world: World,
    victims: Victims,
    most: usize,
    limits: [(&'static str, usize); 3],
) -> (Running, Reasons) {
    let route = |(path, limit)| {
        let mut limits = Limits::default();
        limits.output_len_max = limit;
        (path, Route::default().limits(limits))
    };
    let settings = Settings {
        output_budget: Some((most, victims)),
        routes: limits.map(route).to_vec(),
        ..Settings::default()
    };
    let reasons = Reasons::default();
    let told = Arc::clone(&reasons);
    let probe = Probe::echo().on_message(move |conn, message| {
        if message.payload() != b"go" {
            conn.send(message);
            return;
        }
        let mut results = (0..100_000).map(|_| conn.send(&FILLER));
        let refused = results.find_map(|result| match result {
            SendResult::Dropped(reason) => Some(reason),
            _ => None,
        });
        told.lock().unwrap().push(refused.expect("never full"));
    });
    (world.start_with(settings, probe), reasons)
}

type Reasons = Arc<Mutex<Vec<DropReason>>>;

/// Memory is counted, and not the bytes in it; with TLS, ciphertext as well.
const BUDGET: usize = 500 * 1024;

fn output_budget_closes_the_largest_queue_and_nobody_else(world: World) {
    let routes = [("/40", 40 << 10), ("/300", 300 << 10), ("/60", 60 << 10)];
    let (server, reasons) = budget(world, Victims::LargestQueue, BUDGET, routes);
    let mut small = blocked(&server, "/40", 0);
    let mut victim = blocked(&server, "/300", 1);
    let mut medium = blocked(&server, "/60", 2);
    let ids = server.log().ids();
    server.wait(|records| records.iter().any(|r| matches!(r, Record::Dropped(..))));
    // What had begun to leave is whole, and a Close frame comes behind it.
    let mut code = None;
    while let Some(frame) = victim.next_frame() {
        if frame.opcode == Opcode::Close {
            code = frame
                .payload
                .first_chunk()
                .map(|code| u16::from_be_bytes(*code));
            victim.send_frame(Opcode::Close, &1013_u16.to_be_bytes());
        } else {
            assert_eq!(frame.payload, FILLER);
        }
    }
    assert_eq!(code, Some(1013));
    let ended = server.end_of(ids[1]);
    assert_eq!((ended.code, ended.local, ended.clean), (1013, true, true));
    for link in [&mut small, &mut medium] {
        // The pong comes behind what waits, and has room where a message may have none.
        link.send_frame(Opcode::Ping, b"");
        while link.next_frame().expect("it is open").opcode != Opcode::Pong {}
        link.send_text("still there");
        link.expect_text("still there");
    }
    assert_eq!(server.log().closes().len(), 1);
    assert_eq!(reasons.lock().unwrap()[0], DropReason::OutputLimit);
}

fn output_budget_closes_who_has_been_blocked_for_the_longest_time(world: World) {
    let routes = [("/40", 40 << 10), ("/300", 300 << 10), ("/60", 60 << 10)];
    let (server, _) = budget(world, Victims::LongestBlocked, BUDGET, routes);
    let first = blocked(&server, "/40", 0);
    let second = blocked(&server, "/300", 1);
    let third = blocked(&server, "/60", 2);
    let ids = server.log().ids();
    server.wait(|records| records.iter().any(|r| matches!(r, Record::Dropped(..))));
    let dropped = server
        .log()
        .all()
        .into_iter()
        .find_map(|record| match record {
            Record::Dropped(id, _) => Some(id),
            _ => None,
        });
    assert_eq!(dropped, Some(ids[0]));
    drop((first, second, third));
}

fn output_budget_refuses_before_it_is_exceeded(world: World) {
    let routes = [("/150", 150 << 10), ("/160", 160 << 10), ("/20", 20 << 10)];
    let (server, reasons) = budget(world, Victims::LargestQueue, 360 << 10, routes);
    let _first = blocked(&server, "/150", 0);
    let second = blocked(&server, "/160", 1);
    // Whose queue is the largest goes, so that the other has room again.
    server.wait(|records| records.iter().any(|r| matches!(r, Record::Dropped(..))));
    let reasons = reasons.lock().unwrap().clone();
    assert_eq!(reasons, [DropReason::OutputLimit, DropReason::OutputBudget]);
    drop(second);
}

/// A message of 64 KiB and more goes out from where it lies; what the kernel leaves of it waits.
fn long_messages_are_whole_and_in_order(world: World) {
    const LONG: usize = 200_000;
    let probe = Probe::echo().on_message(|conn, message| {
        let number = message.payload()[0];
        for len in [1, LONG + usize::from(number), 2] {
            let sent = conn.send(&vec![number; len][..]);
            assert!(!matches!(sent, SendResult::Dropped(_)), "{sent:?}");
        }
    });
    let mut settings = Settings::default();
    settings.limits.output_len_max = 8 * LONG;
    let server = world.start_with(settings, probe);
    let mut last = 0;
    for room in [3_000, 100_000] {
        let mut link = server.connect_with_room(room);
        link.upgrade();
        // The answer to the request is counted when it has been sent.
        let answered = server.wait_metrics(|total| total.bytes_sent > last);
        let before = answered.bytes_sent;
        for number in 0..4 {
            link.send_frame(Opcode::Binary, &[number]);
        }
        let mut wire_len = 0;
        for number in 0..4 {
            for (header_len, len) in [(2, 1), (10, LONG + usize::from(number)), (2, 2)] {
                let frame = link.next_frame().expect("a frame");
                assert_eq!(frame.opcode, Opcode::Binary);
                assert!(frame.payload == vec![number; len], "{number}, {len}");
                wire_len += (header_len + len) as u64;
            }
        }
        let sent = |total: &ThreadMetrics| total.bytes_sent - before >= wire_len;
        let total = server.wait_metrics(sent);
        if !world.is_tls() {
            assert_eq!(total.bytes_sent - before, wire_len);
        }
        drop(link);
        server.wait_empty();
        last = server.metrics().total().bytes_sent;
    }
}

fn long_message_that_has_begun_is_not_given_up(world: World) {
    const LONG: usize = 4_000_000;
    let probe = Probe::echo().on_message(|conn, message| {
        if message.payload() == b"go" {
            for number in 0..6 {
                conn.send(&vec![number; LONG][..]);
            }
        } else {
            conn.data().number = 1;
            send_end(conn);
        }
    });
    let mut probe = probe;
    probe.on_drain = Arc::new(send_end);
    let mut settings = Settings {
        base: Route::default().output_policy(OutputPolicy::DropOldest),
        ..Settings::default()
    };
    settings.limits.output_len_max = 3 * LONG;
    let server = world.start_with(settings, probe);
    let mut link = server.connect_with_room(3_000);
    link.upgrade();
    link.send_text("go");
    server.wait(|records| records.iter().any(|r| matches!(r, Record::Message(..))));
    link.send_text("end");
    let mut got = Vec::new();
    loop {
        let frame = link.next_frame().expect("the end comes");
        if frame.payload == b"end" {
            break;
        }
        let number = frame.payload[0];
        assert!(frame.payload == vec![number; LONG]);
        got.push(number);
    }
    // The first has begun, whatever the kernel has taken of it; the last is the latest.
    assert_eq!((got.first(), got.last()), (Some(&0), Some(&5)), "{got:?}");
    assert_eq!(got.len() + dropped(&server), 6, "{got:?}");
    assert!(got.is_sorted(), "{got:?}");
}
