//! Guarantees 15, 22 and 23: the door to user code, the order of what one sender asks, and the end
//! of a server.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use sockeye::BackendChoice;
use sockeye::CloseCode;
use sockeye::ConnId;
use sockeye::Deferred;
use sockeye::Drain;
use sockeye::Engine;
use sockeye::PostError;
use sockeye::Remote;
use sockeye::Server;
use sockeye::Upgrade;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Data;
use crate::support::Link;
use crate::support::PATIENCE;
use crate::support::Probe;
use crate::support::REQUEST;
use crate::support::Record;
use crate::support::Running;
use crate::support::Settings;
use crate::support::ThreadEvent;
use crate::support::World;

cases!(
    g22_commands_of_one_sender_take_effect_in_order,
    g22_callbacks_ask_in_order,
    g22_publish_is_delivered_before_the_end,
    g23_drain_means_the_same_to_all_threads,
    g23_deadline_of_zero_ends_at_once,
    g23_shutdown_that_concerns_nobody_ends_at_once,
    g23_ends_in_any_order_mean_the_first_of_a_kind,
    g23_deferred_client_that_has_gone_frees_its_room,
    g23_opening_handshakes_are_answered_at_the_end,
    g23_silent_connection_holds_no_drain,
    g23_drain_ends_when_all_have_gone,
);

/// Waits for the end of a server that was told to end.
fn wait_finished(server: &Running, allowed: Duration) {
    let start = Instant::now();
    let mut passed = Duration::ZERO;
    while !server.is_finished() {
        assert!(start.elapsed() < allowed, "it does not end");
        if server.is_sim() {
            server.turn(2);
            if start.elapsed() > Duration::from_secs(1) {
                assert!(passed < allowed, "it does not end");
                passed += Duration::from_millis(250);
                server.pass(Duration::from_millis(250));
            }
        } else {
            std::thread::yield_now();
        }
    }
}

/// Subscribes to `t` when a connection opens.
fn subscriber() -> Probe {
    Probe::echo().on_open(|conn| {
        conn.subscribe("t");
        conn.send("open");
    })
}

fn open(server: &Running) -> (Link, ConnId) {
    let mut link = server.open();
    link.expect_text("open");
    let id = *server.log().ids().last().expect("it is open");
    (link, id)
}

fn expect_closed(link: &mut Link, code: u16) {
    let close = link.next_frame().expect("a Close frame");
    assert_eq!(close.opcode, Opcode::Close, "{close:?}");
    assert_eq!(close.payload[..2], code.to_be_bytes());
}

fn g22_commands_of_one_sender_take_effect_in_order(world: World) {
    let server = world.start(subscriber());
    let remote = server.remote();
    for round in 0..10 {
        let (mut link, id) = open(&server);
        remote.publish("t", "one").expect("room");
        remote.publish("t", "two").expect("room");
        remote.send(id, "three").expect("room");
        remote.broadcast("four").expect("room");
        remote.publish("t", "five").expect("room");
        remote.broadcast("six").expect("room");
        remote.publish("t", "seven").expect("room");
        match round % 2 {
            0 => remote.close(id, CloseCode::NORMAL, "").expect("room"),
            _ => remote.send(id, "eight").expect("room"),
        }
        for text in ["one", "two", "three", "four", "five", "six", "seven"] {
            link.expect_text(text);
        }
        match round % 2 {
            0 => expect_closed(&mut link, 1000),
            _ => link.expect_text("eight"),
        }
    }
}

fn g22_callbacks_ask_in_order(world: World) {
    let mut probe = subscriber();
    probe.on_message = Arc::new(|conn, message| {
        let id = conn.id();
        conn.publish("t", "published").expect("room");
        match message.payload() {
            b"send" => {
                conn.send("after");
            }
            b"twice" => {
                conn.publish_to_others("t", "not for itself").expect("room");
                conn.publish("t", "again").expect("room");
                conn.send("after");
            }
            b"remote" => conn.remote().send(id, "after").expect("room"),
            b"broadcast" => conn.remote().broadcast("after").expect("room"),
            b"close" => conn.close(CloseCode::NORMAL, ""),
            _ => {
                let remote = conn.remote();
                remote.close(id, CloseCode::NORMAL, "").expect("room");
            }
        }
    });
    probe.on_thread = Arc::new(|thread, event| {
        if let ThreadEvent::Value(value) = event {
            let id = *value.downcast::<ConnId>().expect("a name");
            thread.publish("t", "published").expect("room");
            thread.remote().send(id, "after").expect("room");
        }
    });
    let server = world.start(probe);
    let (mut link, id) = open(&server);
    // Another one, for whom nothing is out of order and nothing doubled.
    let (mut other, _) = open(&server);
    for ask in ["send", "twice", "remote", "broadcast"] {
        link.send_text(ask);
        link.expect_text("published");
        other.expect_text("published");
        if ask == "twice" {
            other.expect_text("not for itself");
            link.expect_text("again");
            other.expect_text("again");
        }
        link.expect_text("after");
        if ask == "broadcast" {
            other.expect_text("after");
        }
    }
    server.remote().post(0, id).expect("room");
    link.expect_text("published");
    other.expect_text("published");
    link.expect_text("after");
    link.send_text("close");
    link.expect_text("published");
    other.expect_text("published");
    expect_closed(&mut link, 1000);
    let (mut link, _) = open(&server);
    link.send_text("close from elsewhere");
    link.expect_text("published");
    other.expect_text("published");
    expect_closed(&mut link, 1000);
}

fn g22_publish_is_delivered_before_the_end(world: World) {
    for drains in [false, true] {
        for _ in 0..5 {
            let server = world.start(subscriber());
            let (mut link, _) = open(&server);
            server.remote().publish("t", "news").expect("room");
            if drains {
                server.drain(Drain::new().window(Duration::ZERO));
            } else {
                server.begin_stop();
            }
            link.expect_text("news");
            link.expect_close_answered(1001);
        }
    }
}

/// A value that counts its drops, and reaches the server.
struct Value(Arc<AtomicUsize>, #[allow(dead_code)] Remote);

impl Drop for Value {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What there is to run on.
fn backends() -> Vec<BackendChoice> {
    let mut backends = vec![BackendChoice::Poll];
    if support::uring_works() {
        backends.push(BackendChoice::Uring);
    }
    backends
}

/// Values and sockets that are posted while the server ends are handed over or dropped.
#[test]
fn g22_nothing_stays_in_a_closed_mailbox() {
    for backend in backends() {
        let (mut made, dropped) = (0, Arc::new(AtomicUsize::new(0)));
        for _ in 0..20 {
            let server = Server::builder().threads(2).backend(backend);
            let server = server.bind("127.0.0.1:0").unwrap().spawn().unwrap();
            let posters: Vec<_> = (0..4)
                .map(|number| {
                    let (remote, dropped) = (server.remote().clone(), Arc::clone(&dropped));
                    std::thread::spawn(move || {
                        let mut made = 0;
                        let mut ends = Vec::new();
                        loop {
                            made += 1;
                            let value = Value(Arc::clone(&dropped), remote.clone());
                            let posted = remote.post(number % 2, value);
                            if posted == Err(PostError::Stopped) {
                                return (made, ends);
                            }
                            if made % 64 == 0 && ends.len() < 50 {
                                let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
                                let agreed = sockeye::Agreed::new();
                                let _ = remote.adopt(near, Vec::new(), agreed);
                                ends.push(far);
                            }
                        }
                    })
                })
                .collect();
            std::thread::yield_now();
            let now = Duration::ZERO;
            server.drain(Drain::new().window(now).deadline(now));
            for mut end in posters.into_iter().flat_map(|poster| {
                let (count, ends) = poster.join().unwrap();
                made += count;
                ends
            }) {
                // Whatever became of it, it was closed.
                end.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut byte = [0; 64];
                while matches!(std::io::Read::read(&mut end, &mut byte), Ok(1..)) {}
            }
            server.join().unwrap();
        }
        assert_eq!(dropped.load(Ordering::SeqCst), made, "{backend}");
    }
}

/// Where a thread has no connection it ends first, and touches no other.
fn g23_drain_means_the_same_to_all_threads(world: World) {
    let settings = || Settings {
        threads: Some(3),
        ..Settings::default()
    };
    for _ in 0..5 {
        let server = world.start_with(settings(), Probe::echo());
        let mut links = [server.open(), server.open()];
        let drain = Drain::new()
            .window(Duration::from_millis(200))
            .deadline(Duration::from_secs(20))
            .close(CloseCode::SERVICE_RESTART, "deploy");
        server.drain(drain);
        server.pass(Duration::from_secs(1));
        for link in &mut links {
            link.expect_close_answered(1012);
            link.shutdown();
        }
        wait_finished(&server, PATIENCE);
    }
}

fn g23_deadline_of_zero_ends_at_once(world: World) {
    let mut settings = Settings {
        threads: Some(2),
        ..Settings::default()
    };
    // What a shutdown would take, if one came of it.
    settings.limits.close_timeout = Duration::from_secs(100);
    let server = world.start_with(settings, Probe::echo());
    let mut link = server.open();
    let drain = Drain::new().window(Duration::ZERO);
    server.drain(drain.deadline(Duration::ZERO));
    wait_finished(&server, PATIENCE);
    link.read_to_end_or_reset();
}

/// Also of a thread that looks for events without sleeping, as it does where messages follow each
/// other closely.
fn g23_shutdown_that_concerns_nobody_ends_at_once(world: World) {
    let mut settings = Settings::default();
    settings.limits.close_timeout = Duration::from_secs(100);
    for _ in 0..3 {
        let server = world.start_with(settings.clone(), Probe::echo());
        let mut link = server.open();
        for _ in 0..500 {
            link.send_text("same");
            link.expect_text("same");
        }
        link.close(1000);
        link.shutdown();
        drop(link);
        server.wait_empty();
        server.begin_stop();
        wait_finished(&server, PATIENCE);
    }
}

fn g23_ends_in_any_order_mean_the_first_of_a_kind(world: World) {
    let settings = || {
        let mut settings = Settings {
            threads: Some(2),
            ..Settings::default()
        };
        settings.limits.close_timeout = Duration::from_secs(1);
        settings
    };
    let long = || {
        let drain = Drain::new().window(Duration::from_secs(1_000));
        drain
            .deadline(Duration::from_secs(1_000))
            .close(CloseCode::SERVICE_RESTART, "")
    };
    // A drain of a server that shuts down, and a second shutdown, change nothing.
    let server = world.start_with(settings(), Probe::echo());
    let mut link = server.open();
    server.begin_stop();
    server.drain(long());
    server.begin_stop();
    link.expect_close_answered(1001);
    link.shutdown();
    wait_finished(&server, PATIENCE);
    // A second drain changes nothing; a shutdown cuts the first short.
    let server = world.start_with(settings(), Probe::echo());
    let mut link = server.open();
    server.drain(long());
    server.drain(Drain::new().deadline(Duration::ZERO));
    server.turn(5);
    link.send_text("served");
    link.expect_text("served");
    server.begin_stop();
    link.expect_close_answered(1001);
    link.shutdown();
    wait_finished(&server, PATIENCE);
    // A shutdown does not put the deadline of a drain off.
    let mut settings = settings();
    settings.limits.close_timeout = Duration::from_secs(100);
    let server = world.start_with(settings, Probe::echo());
    let mut link = server.open();
    server.drain(long().deadline(Duration::from_secs(1)));
    server.begin_stop();
    expect_closed(&mut link, 1001);
    server.pass(Duration::from_secs(2));
    wait_finished(&server, PATIENCE);
}

/// Defers every answer.
fn deferring() -> (Probe, Arc<Mutex<Vec<Deferred>>>) {
    let (mut probe, kept) = (Probe::echo(), Arc::<Mutex<Vec<Deferred>>>::default());
    let keep = Arc::clone(&kept);
    probe.on_upgrade = Arc::new(move |request| {
        if request.request().path() == "/now" {
            return Upgrade::accept(Data::default());
        }
        let (upgrade, deferred) = request.defer();
        keep.lock().unwrap().push(deferred);
        upgrade
    });
    (probe, kept)
}

fn g23_deferred_client_that_has_gone_frees_its_room(world: World) {
    let (probe, kept) = deferring();
    let mut settings = Settings {
        deferred_max: Some(2),
        ..Settings::default()
    };
    settings.limits.handshake_timeout = Duration::from_secs(100);
    let server = world.start_with(settings, probe);
    for round in 0..3 {
        let mut links: Vec<Link> = (0..2).map(|_| server.connect()).collect();
        for link in &mut links {
            link.send(REQUEST.as_bytes());
        }
        server.wait_metrics(|total| total.deferred == 2);
        for mut link in links {
            match round {
                0 => link.reset(),
                1 => link.shutdown(),
                _ => drop(link),
            }
        }
        server.wait_metrics(|total| total.deferred == 0);
        // Nobody is there to be opened.
        for deferred in kept.lock().unwrap().drain(..) {
            deferred.accept(());
        }
        server.turn(5);
    }
    let mut link = server.connect();
    link.send(REQUEST.as_bytes());
    server.wait_metrics(|total| total.deferred == 1);
    for deferred in kept.lock().unwrap().drain(..) {
        deferred.accept(());
    }
    assert_eq!(link.read_status(), 101);
    let opened = |record: &&Record| matches!(record, Record::Open(_));
    assert_eq!(server.log().all().iter().filter(opened).count(), 1);
}

fn g23_opening_handshakes_are_answered_at_the_end(world: World) {
    for drains in [false, true] {
        let (probe, _kept) = deferring();
        let server = world.start(probe);
        let mut deferred = server.connect();
        deferred.send(REQUEST.as_bytes());
        server.wait_metrics(|total| total.deferred == 1);
        let mut begun = server.connect();
        let head = REQUEST.as_bytes();
        let (first, _) = head.split_at(head.len() - 2);
        let before = server.metrics().total().bytes_received;
        begun.send(first);
        server.wait_metrics(|total| total.bytes_received >= before + first.len() as u64);
        if drains {
            server.drain(Drain::new().window(Duration::from_secs(5)));
        } else {
            server.begin_stop();
        }
        server.turn(5);
        assert_eq!(deferred.read_status(), 503);
        assert_eq!(begun.read_status(), 503);
    }
}

fn g23_silent_connection_holds_no_drain(world: World) {
    let mut settings = Settings::default();
    settings.limits.handshake_timeout = Duration::from_secs(100);
    let server = world.start_with(settings, Probe::echo());
    let mut silent = server.connect_raw();
    server.wait_metrics(|total| total.connections == 1);
    let long = Duration::from_secs(1_000);
    server.drain(Drain::new().window(Duration::ZERO).deadline(long));
    server.turn(5);
    assert_eq!(silent.read_to_end(), b"");
    wait_finished(&server, PATIENCE);
}

fn g23_drain_ends_when_all_have_gone(world: World) {
    let settings = Settings {
        threads: Some(2),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    let link = server.open();
    let long = Duration::from_secs(1_000);
    server.drain(Drain::new().window(long).deadline(long));
    drop(link);
    wait_finished(&server, PATIENCE);
}

/// One thread has failed: an end that is under way goes on, and otherwise all end.
#[test]
fn g23_failure_of_a_thread_ends_all_and_overwrites_no_end() {
    let fail = |server: &Running| match &server.place {
        support::Place::Sim(server) => server.borrow_mut().fail(),
        _ => unreachable!("it is simulated"),
    };
    let server = World::Sim.start(Probe::echo());
    let mut link = server.open();
    fail(&server);
    server.turn(2);
    link.expect_close_answered(1001);
    link.shutdown();
    wait_finished(&server, PATIENCE);
    let server = World::Sim.start(Probe::echo());
    let mut link = server.open();
    let drain = Drain::new().window(Duration::from_secs(1));
    server.drain(drain.close(CloseCode::SERVICE_RESTART, ""));
    fail(&server);
    server.pass(Duration::from_secs(2));
    link.expect_close_answered(1012);
}

#[test]
fn g23_gauges_are_zero_after_an_engine() {
    for backend in backends() {
        let mut engine = Engine::builder()
            .on_open(|conn| {
                conn.subscribe("t");
                conn.set_timer(Duration::from_secs(100), 1);
                conn.send("open");
            })
            .listen("127.0.0.1:0")
            .backend(backend)
            .engine()
            .unwrap();
        let address = engine.local_addrs()[0].ip().unwrap();
        let client = std::thread::spawn(move || {
            let mut client = sockeye::client::connect(&format!("ws://{address}/")).unwrap();
            client.read_message().unwrap();
            client
        });
        while !client.is_finished() {
            engine.turn(Some(Duration::from_millis(10))).unwrap();
        }
        let _client = client.join().unwrap();
        let remote = engine.remote().clone();
        let before = remote.metrics().total();
        assert_eq!(
            (before.connections, before.topics, before.timers),
            (1, 1, 1)
        );
        drop(engine);
        let total = remote.metrics().total();
        let left = [
            total.connections,
            total.output_held,
            total.takeover,
            total.buffers_in_use,
            total.deferred,
            total.topics,
            total.subscriptions,
            total.timers,
        ];
        assert_eq!(left, [0; 8], "{backend}");
        assert_eq!(remote.metrics().mailbox_lens(), [0]);
    }
}
