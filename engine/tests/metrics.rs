//! What a server says of itself: counters, gauges, times, slow callbacks, and the page that
//! Prometheus reads.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use prometheus_parse::Scrape;
use prometheus_parse::Value;
use sockeye::Callback;
use sockeye::CloseCode;
use sockeye::OutputPolicy;
use sockeye::Route;
use sockeye::SendOptions;
use sockeye::SendResult;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Link;
use crate::support::Probe;
use crate::support::REQUEST;
use crate::support::Record;
use crate::support::Settings;
use crate::support::World;
use crate::support::fragment;
use crate::support::frame;
use crate::support::raw_frame;

cases!(
    metrics_count_frames_bytes_and_connections,
    metrics_count_closes_by_code_and_initiator,
    metrics_count_what_was_not_queued,
    metrics_count_what_was_refused,
    metrics_count_panics,
    metrics_have_gauges,
    metrics_are_of_each_thread,
    times_are_recorded_where_they_are_asked_for,
    round_trip_times_are_always_recorded,
    slow_callback_is_reported,
    metrics_are_read_while_a_callback_holds_the_thread,
    metrics_path_is_what_prometheus_reads,
);

/// Closes, and ends the stream.
fn end(link: &mut Link, code: u16) {
    link.close(code);
    link.finish();
}

/// A page of the server, whole.
fn get(server: &support::Running, path: &str) -> (u16, String) {
    let mut link = server.connect();
    link.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    let head = link.read_head();
    let status = head[9..12].parse().unwrap();
    let body = String::from_utf8(link.read_to_end()).unwrap();
    (status, body)
}

fn metrics_count_frames_bytes_and_connections(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.open();
    let sent = [
        frame(Opcode::Text, b"text"),
        frame(Opcode::Binary, b"binary"),
        fragment(Opcode::Text, b"in "),
        frame(Opcode::Ping, b"ping"),
        raw_frame(0x80, b"two"),
        frame(Opcode::Pong, b""),
    ]
    .concat();
    link.send(&sent);
    link.expect_text("text");
    link.expect(Opcode::Binary, b"binary");
    link.expect(Opcode::Pong, b"ping");
    link.expect_text("in two");
    end(&mut link, 1000);
    let total = server.wait_metrics(|total| total.connections == 0 && total.opened == 1);
    let received = total.received;
    assert_eq!((received.text, received.binary), (2, 1));
    assert_eq!(received.messages(), 3);
    assert_eq!((received.ping, received.pong, received.close), (1, 1, 1));
    let replies = total.sent;
    assert_eq!((replies.text, replies.binary, replies.pong), (2, 1, 1));
    assert_eq!((replies.close, replies.ping), (1, 0));
    assert_eq!((total.accepted, total.refused), (1, 0));
    let least = REQUEST.len() + sent.len() + frame(Opcode::Close, b"xx").len();
    if world.is_tls() {
        assert!(total.bytes_received > least as u64);
    } else {
        assert_eq!(total.bytes_received, least as u64);
    }
    let replied = (2 + 4) + (2 + 6) + (2 + 4) + (2 + 6) + (2 + 2);
    assert!(total.bytes_sent > replied, "the head comes before");
    assert!(total.turns > 0);
}

fn metrics_count_closes_by_code_and_initiator(world: World) {
    let server = world.start(Probe::echo().on_message(|conn, message| {
        let code = message.as_str().unwrap().parse().unwrap();
        conn.close(CloseCode::new(code).unwrap(), "");
    }));
    for code in [1000, 1001, 4001, 4999] {
        end(&mut server.open(), code);
    }
    for code in [1000, 3000] {
        let mut link = server.open();
        link.send_text(&code.to_string());
        link.expect_close_answered(code);
        link.finish();
    }
    let mut link = server.open();
    link.send(&raw_frame(0xF1, b""));
    link.expect_close(1002);
    link.finish();
    server.open().reset();
    server.closes(8);
    let total = server.wait_metrics(|total| total.connections == 0);
    assert_eq!(total.opened, 8);
    for (local, code, count) in [
        (false, 1000, 1),
        (false, 1001, 1),
        // What peers choose freely is counted together.
        (false, 4000, 2),
        (true, 1000, 1),
        (true, 3000, 1),
        (true, 1002, 1),
        (false, 1006, 1),
        (true, 1006, 0),
    ] {
        assert_eq!(total.closed(local, code), count, "{local} {code}");
    }
    assert_eq!(total.closes.iter().map(|close| close.count).sum::<u64>(), 8);
}

fn metrics_count_what_was_not_queued(world: World) {
    let mut settings = Settings::default();
    settings.limits.output_len_max = 10_000;
    settings.limits.output_low_water = 1_000;
    let counts = Arc::new(Mutex::new((0, 0)));
    let told = Arc::clone(&counts);
    let server = world.start_with(
        settings,
        Probe::echo().on_message(move |conn, message| {
            if message.payload() != b"go" {
                return;
            }
            let newest = SendOptions::new().policy(OutputPolicy::DropNewest);
            while !matches!(conn.send(&[0; 1_000]), SendResult::Dropped(_)) {}
            for _ in 0..5 {
                let result = conn.send_with(&[0; 10_000], &newest);
                assert!(matches!(result, SendResult::Dropped(_)));
            }
            *told.lock().unwrap() = (1, 5);
        }),
    );
    let mut link = server.connect_with_room(3_000);
    link.upgrade();
    link.send_text("go");
    let total = server.wait_metrics(|total| total.messages_dropped > 0 && total.output_held > 0);
    let want = *counts.lock().unwrap();
    assert_eq!((total.messages_refused, total.messages_dropped), want);
    assert!(total.backpressure > 0);
    assert!(total.buffers_in_use > 0);
    // What waits is held no longer once it is read.
    for _ in 0..total.sent.binary {
        link.expect(Opcode::Binary, &[0; 1_000]);
    }
    server.wait_metrics(|total| total.output_held == 0);
    end(&mut link, 1000);
}

fn metrics_count_what_was_refused(world: World) {
    let mut settings = Settings {
        connections_max: Some(1),
        ..Settings::default()
    };
    settings.limits.handshake_timeout = Duration::from_secs(1);
    let server = world.start_with(settings, Probe::echo());
    let mut link = server.connect();
    // Half a request.
    link.send(&REQUEST.as_bytes()[..20]);
    server.wait_metrics(|total| total.connections == 1);
    let mut refused = server.connect_raw();
    server.wait_metrics(|total| total.refused == 1);
    refused.read_to_end_or_reset();
    server.pass(Duration::from_secs(2));
    link.read_to_end();
    let total = server.wait_metrics(|total| total.connections == 0);
    assert_eq!((total.handshake_timeouts, total.opened), (1, 0));
    assert_eq!(get(&server, "/page").0, 200);
    let total = server.wait_metrics(|total| total.http_responses > 0);
    assert_eq!((total.http_responses, total.opened), (1, 0));
    assert!(total.closes.is_empty(), "{:?}", total.closes);
}

fn metrics_count_panics(world: World) {
    let server = world.start(Probe::echo().on_message(|_, _| panic!("as asked")));
    let mut link = server.open();
    link.send_text("x");
    link.expect_close(1011);
    link.finish();
    let total = server.wait_metrics(|total| total.panics > 0 && total.connections == 0);
    assert_eq!((total.panics, total.closed(true, 1011)), (1, 1));
}

fn metrics_have_gauges(world: World) {
    let server = world.start(Probe::echo().on_message(|conn, message| {
        conn.subscribe(message.as_str().unwrap());
        conn.set_timer(Duration::from_secs(1_000), 0);
        conn.send(message);
    }));
    let mut links = [server.open(), server.open()];
    for (link, topics) in links.iter_mut().zip([&["a", "b"], &["b", "c"]]) {
        for topic in topics {
            link.send_text(topic);
            link.expect_text(topic);
        }
    }
    // Each is written for itself: who reads meanwhile has some of before.
    server.wait_metrics(|total| {
        let gauges = (total.timers, total.topics, total.subscriptions);
        gauges == (4, 3, 4) && total.connections == 2
    });
    for link in &mut links {
        end(link, 1000);
    }
    server.wait_metrics(|total| {
        let gauges = (total.connections, total.topics, total.subscriptions);
        gauges == (0, 0, 0)
    });
}

fn metrics_are_of_each_thread(world: World) {
    let threads = if world.is_sim() { 1 } else { 2 };
    let server = world.start_with(
        Settings {
            threads: Some(threads),
            ..Settings::default()
        },
        Probe::echo(),
    );
    let mut links: Vec<_> = (0..16).map(|_| server.open()).collect();
    for link in &mut links {
        link.send_text("x");
        link.expect_text("x");
    }
    server.wait_metrics(|total| total.connections == 16);
    let metrics = server.metrics();
    assert_eq!(metrics.threads().len(), threads);
    assert_eq!(metrics.mailbox_lens(), vec![0; threads]);
    let opened: Vec<u64> = metrics.threads().iter().map(|t| t.opened).collect();
    assert_eq!(opened.iter().sum::<u64>(), 16);
    let total = metrics.total();
    assert_eq!((total.received.text, total.sent.text), (16, 16));
    for thread in metrics.threads() {
        assert_eq!(thread.connections, thread.opened);
        assert_eq!(thread.received.text, thread.opened);
    }
    for mut link in links {
        end(&mut link, 1000);
    }
}

fn times_are_recorded_where_they_are_asked_for(world: World) {
    for timed in [true, false] {
        let server = world.start_with(
            Settings {
                slow_callback: timed.then_some(Duration::MAX),
                ..Settings::default()
            },
            Probe::echo(),
        );
        let mut link = server.open();
        for _ in 0..10 {
            link.send_text("x");
            link.expect_text("x");
        }
        let id = server.log().ids()[0];
        server.remote().send(id, "from elsewhere").expect("room");
        link.expect_text("from elsewhere");
        end(&mut link, 1000);
        let total = server.wait_metrics(|total| total.connections == 0 && total.opened == 1);
        let on = u64::from(timed);
        // Upgrade, open, ten messages, close; and the start of the thread.
        let is_drain = |record: &&Record| matches!(record, Record::Drain(_));
        let drains = server.log().all().iter().filter(is_drain).count() as u64;
        assert_eq!(total.callback_time.count(), (14 + drains) * on);
        assert_eq!(total.handshake_time.count(), on);
        assert_eq!(total.turn_time.count(), total.turns * on);
        assert_eq!(total.mailbox_time.count(), total.commands * on);
        assert!(total.ready_time.count() >= 10 * on);
        assert_eq!(total.ready_time.count() > 0, timed);
        assert_eq!(total.slow_callbacks, 0);
        let max = total.callback_time.max();
        assert_eq!(max.is_some(), timed);
        if timed && !world.is_sim() {
            // It cannot have been shorter than what it consists of.
            assert!(total.handshake_time.max() > Some(Duration::ZERO));
            assert!(total.turn_time.sum() >= total.callback_time.quantile(0.5).unwrap());
        }
    }
}

fn round_trip_times_are_always_recorded(world: World) {
    let server = world.start(Probe::echo().on_message(|conn, message| {
        conn.ping(message.payload());
    }));
    let mut link = server.open();
    link.send_text("one");
    link.expect(Opcode::Ping, b"one");
    server.pass(Duration::from_secs(1));
    link.send_frame(Opcode::Pong, b"one");
    // Nobody has asked for this one.
    link.send_frame(Opcode::Pong, b"two");
    end(&mut link, 1000);
    let total = server.wait_metrics(|total| total.connections == 0 && total.opened == 1);
    assert_eq!((total.received.pong, total.round_trip.count()), (2, 1));
    if world.is_sim() {
        let second = Duration::from_secs(1);
        let max = total.round_trip.max().unwrap();
        assert!(max >= second && max <= second * 2, "{max:?}");
    }
}

fn slow_callback_is_reported(world: World) {
    let allowed = Duration::from_millis(20);
    let server = world.start_with(
        Settings {
            // Time that is virtual stands still in a callback.
            slow_callback: Some(if world.is_sim() {
                Duration::MAX
            } else {
                allowed
            }),
            ..Settings::default()
        },
        Probe::echo().on_message(move |conn, message| {
            if message.payload() == b"slow" {
                let start = Instant::now();
                while start.elapsed() <= allowed {
                    std::hint::spin_loop();
                }
            }
            conn.send(message);
        }),
    );
    let mut link = server.open();
    let id = server.log().ids()[0];
    link.send_text("slow");
    link.expect_text("slow");
    end(&mut link, 1000);
    let total = server.wait_metrics(|total| total.connections == 0 && total.opened == 1);
    let slow: Vec<_> = server
        .log()
        .all()
        .into_iter()
        .filter_map(|record| match record {
            Record::Slow(slow) => Some(slow),
            _ => None,
        })
        .collect();
    assert_eq!(total.slow_callbacks, slow.len() as u64);
    if world.is_sim() {
        assert_eq!(slow, []);
        return;
    }
    // On a busy machine others may have been held up as well.
    let of_it: Vec<_> = slow
        .iter()
        .filter(|slow| slow.callback == Callback::Message)
        .collect();
    assert_eq!(of_it.len(), 1);
    assert_eq!((of_it[0].conn, of_it[0].allowed), (Some(id), allowed));
    assert!(of_it[0].elapsed > allowed);
    assert!(of_it[0].to_string().contains("callback Message took"));
    assert!(total.callback_time.max() > Some(allowed));
}

fn metrics_are_read_while_a_callback_holds_the_thread(world: World) {
    if world.is_sim() {
        // There is one thread, which is this one.
        return;
    }
    let (begin, begun) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let server = world.start(Probe::echo().on_message(move |_, _| {
        begin.send(()).unwrap();
        released.lock().unwrap().recv().unwrap();
    }));
    let mut link = server.open();
    link.send_text("x");
    begun.recv().unwrap();
    let total = server.metrics().total();
    assert_eq!((total.received.text, total.opened), (1, 1));
    release.send(()).unwrap();
    end(&mut link, 1000);
}

fn metrics_path_is_what_prometheus_reads(world: World) {
    let server = world.start_with(
        Settings {
            metrics_path: Some("/metrics"),
            slow_callback: Some(Duration::MAX),
            routes: vec![("/ws", Route::default())],
            ..Settings::default()
        },
        Probe::echo(),
    );
    let mut link = server.connect();
    link.send(REQUEST.replacen("GET / ", "GET /ws ", 1).as_bytes());
    assert_eq!(link.read_status(), 101);
    link.send_text("x");
    link.expect_text("x");
    end(&mut link, 4000);
    let total = server.wait_metrics(|total| total.connections == 0 && total.opened == 1);
    let (status, text) = get(&server, "/metrics");
    assert_eq!(status, 200);
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    let scrape = Scrape::parse(lines).expect("it is Prometheus's format");
    let value = |name: &str, labels: &[(&str, &str)]| {
        let has = |sample: &&prometheus_parse::Sample| {
            let same = |(key, value): &(&str, &str)| sample.labels.get(key) == Some(value);
            sample.metric == name && labels.iter().all(same)
        };
        let found = scrape.samples.iter().find(has);
        found
            .unwrap_or_else(|| panic!("no {name} {labels:?} in {text}"))
            .value
            .clone()
    };
    let thread = ("thread", "0");
    let counter = |name: &str, labels: &[(&str, &str)]| match value(name, labels) {
        Value::Counter(value) => value,
        other => panic!("{name} is {other:?}"),
    };
    assert_eq!(counter("sockeye_websockets_opened_total", &[thread]), 1.0);
    let text_frames = [thread, ("opcode", "text")];
    assert_eq!(counter("sockeye_frames_received_total", &text_frames), 1.0);
    assert_eq!(counter("sockeye_frames_sent_total", &text_frames), 1.0);
    let closed = [thread, ("initiator", "peer"), ("code", "4xxx")];
    assert_eq!(counter("sockeye_websockets_closed_total", &closed), 1.0);
    assert_eq!(counter("sockeye_messages_dropped_total", &[thread]), 0.0);
    assert!(matches!(
        value("sockeye_connections", &[thread]),
        Value::Gauge(_)
    ));
    match value("sockeye_callback_seconds", &[thread]) {
        Value::Histogram(buckets) => {
            let counts: Vec<f64> = buckets.iter().map(|bucket| bucket.count).collect();
            assert!(counts.is_sorted());
            assert!(buckets.last().unwrap().less_than.is_infinite());
            assert!(*counts.last().unwrap() >= total.callback_time.count() as f64);
        }
        other => panic!("{other:?}"),
    }
    // Each name is explained once, and nothing is there twice.
    let names = text.lines().filter(|line| line.starts_with("# TYPE"));
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    let mut series: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap().0)
        .collect();
    series.sort_unstable();
    let count = series.len();
    series.dedup();
    assert_eq!(series.len(), count);
    // Others get what they got before.
    assert_eq!(get(&server, "/page").0, 200);
}
