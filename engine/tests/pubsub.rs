//! Topics: who gets what is published, in which order, and who does not hold the others up.

use std::sync::Arc;
use std::sync::Mutex;

use sockeye::BackendChoice;
use sockeye::ConnId;
use sockeye::Context;
use sockeye::Message;
use sockeye::OutputPolicy;
use sockeye::Prepared;
use sockeye::Route;
use sockeye::SendOptions;
use sockeye::Server;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Data;
use crate::support::Link;
use crate::support::Probe;
use crate::support::Record;
use crate::support::Settings;
use crate::support::World;

cases!(
    subscribers_get_what_is_published_in_order,
    publish_reaches_all_but_the_sender_where_that_is_asked_for,
    unsubscribing_and_closing_inside_a_publish_is_defined_uaf,
    subscriptions_end_with_the_connection,
    subscriber_counts_are_those_of_this_moment,
    remote_publishes_in_order_from_any_thread,
    burst_reaches_each_subscriber_in_one_send,
    subscriber_that_does_not_read_delays_nobody,
    publish_has_a_policy_of_its_own,
    subscriptions_are_limited,
);

/// `+topic`, `-topic`, `topic=text` to all, `topic!text` to all but the sender, `?topic` for the
/// number of subscribers; anything else is echoed.
fn topics(conn: &mut Context<'_, Data>, message: Message<'_>) {
    let text = message.as_str().expect("text");
    if let Some(topic) = text.strip_prefix('+') {
        let reply = conn.subscribe(topic).to_string();
        conn.send(&reply);
    } else if let Some(topic) = text.strip_prefix('-') {
        let reply = conn.unsubscribe(topic).to_string();
        conn.send(&reply);
    } else if let Some(topic) = text.strip_prefix('?') {
        let reply = format!(
            "{} {}",
            conn.subscriber_count(topic),
            conn.remote().subscriber_count(topic)
        );
        conn.send(&reply);
    } else if let Some((topic, text)) = text.split_once('=') {
        conn.publish(topic, text).expect("room");
    } else if let Some((topic, text)) = text.split_once('!') {
        conn.publish_to_others(topic, text).expect("room");
    } else {
        conn.send(message);
    }
}

fn ask(link: &mut Link, text: &str, want: &str) {
    link.send_text(text);
    link.expect_text(want);
}

fn subscribers_get_what_is_published_in_order(world: World) {
    let server = world.start(Probe::echo().on_message(topics));
    let mut links: Vec<Link> = (0..3).map(|_| server.open()).collect();
    ask(&mut links[0], "+a", "true");
    ask(&mut links[0], "+a", "false");
    ask(&mut links[1], "+a", "true");
    ask(&mut links[1], "+b", "true");
    for number in 0..200 {
        let topic = if number % 3 == 0 { "b" } else { "a" };
        links[2].send_text(&format!("{topic}={number}"));
    }
    // Topics that nobody has subscribed to, and long messages, which are shared.
    links[2].send_text("c=nobody");
    let long = "x".repeat(20_000);
    links[2].send_text(&format!("a={long}"));
    ask(&mut links[2], "behind", "behind");
    let mut got: [Vec<u32>; 2] = Default::default();
    for (index, link) in links[..2].iter_mut().enumerate() {
        loop {
            let payload = link.next_frame().expect("it is open").payload;
            if payload == long.as_bytes() {
                break;
            }
            got[index].push(str::from_utf8(&payload).unwrap().parse().unwrap());
        }
    }
    let of_a: Vec<u32> = (0..200).filter(|n| n % 3 != 0).collect();
    assert_eq!(got[0], of_a);
    // Of both topics, in the order published.
    assert_eq!(got[1], (0..200).collect::<Vec<_>>());
    // An outgoing connection is a subscriber like any other; its frames are masked.
    let mut dialled = server.dial_open();
    ask(&mut dialled, "+a", "true");
    links[2].send_text("a=for a server");
    dialled.expect_text("for a server");
}

fn publish_reaches_all_but_the_sender_where_that_is_asked_for(world: World) {
    let server = world.start(Probe::echo().on_message(topics));
    let mut one = server.open();
    let mut other = server.open();
    ask(&mut one, "+a", "true");
    ask(&mut other, "+a", "true");
    one.send_text("a!others");
    one.send_text("a=all");
    other.expect_text("others");
    other.expect_text("all");
    one.expect_text("all");
}

fn unsubscribing_and_closing_inside_a_publish_is_defined_uaf(world: World) {
    // Each message makes its connection leave, come again, and publish, in one callback; every
    // fourth ends it as well.
    let server = world.start(Probe::echo().on_message(|conn, message| {
        match message.payload() {
            b"join" => {
                conn.subscribe("a");
                conn.send("joined");
            }
            b"terminate" => {
                conn.publish("a", "gone").expect("room");
                conn.terminate();
                // It is over, and may be asked anything.
                assert!(!conn.subscribe("b"));
                conn.publish("a", "also gone").expect("room");
            }
            b"close" => {
                conn.publish("a", "closing").expect("room");
                conn.close(sockeye::CloseCode::NORMAL, "");
                conn.publish("a", "closed").expect("room");
            }
            _ => {
                conn.publish("a", "before").expect("room");
                conn.unsubscribe("a");
                conn.publish("a", "without").expect("room");
                conn.subscribe("a");
                conn.publish("a", "again").expect("room");
            }
        }
    }));
    let mut links: Vec<Link> = (0..5).map(|_| server.open()).collect();
    for link in &mut links {
        ask(link, "join", "joined");
    }
    links[0].send_text("leave");
    // What was published while it was away does not reach it, nor what had been before.
    links[0].expect_text("again");
    for link in &mut links[1..] {
        for text in ["before", "without", "again"] {
            link.expect_text(text);
        }
    }
    links[1].send_text("terminate");
    assert_eq!(links[1].next_frame(), None);
    links[2].expect_text("gone");
    links[2].expect_text("also gone");
    links[2].send_text("close");
    // In the order asked: what it has published before its Close frame, and nothing after that.
    links[2].expect_text("closing");
    links[2].expect_close_answered(1000);
    for index in [0, 3, 4] {
        for text in ["gone", "also gone", "closing", "closed"] {
            links[index].expect_text(text);
        }
    }
}

fn subscriptions_end_with_the_connection(world: World) {
    let server = world.start(Probe::echo().on_message(topics));
    let mut watcher = server.open();
    for _ in 0..3 {
        let mut link = server.open();
        ask(&mut link, "+a", "true");
        ask(&mut link, "+b", "true");
        ask(&mut watcher, "?a", "1 1");
        link.close(1000);
        server.end_of(*server.log().ids().last().unwrap());
        ask(&mut watcher, "?a", "0 0");
        ask(&mut watcher, "?b", "0 0");
    }
}

fn subscriber_counts_are_those_of_this_moment(world: World) {
    let server = world.start(Probe::echo().on_message(topics));
    let mut links: Vec<Link> = (0..3).map(|_| server.open()).collect();
    ask(&mut links[0], "?a", "0 0");
    for (number, link) in links.iter_mut().enumerate() {
        ask(link, "+a", "true");
        let count = number + 1;
        ask(link, "?a", &format!("{count} {count}"));
    }
    ask(&mut links[1], "-a", "true");
    ask(&mut links[1], "-a", "false");
    ask(&mut links[1], "?a", "2 2");
    assert_eq!(server.remote().subscriber_count("a"), 2);
}

fn remote_publishes_in_order_from_any_thread(world: World) {
    let server = world.start(Probe::echo().on_message(topics));
    let mut link = server.open();
    ask(&mut link, "+a", "true");
    let remote = server.remote();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..500 {
                remote.publish("a", number.to_string()).expect("room");
            }
            remote.publish("nobody", "lost").expect("room");
        });
    });
    for number in 0..500 {
        link.expect_text(&number.to_string());
    }
}

fn burst_reaches_each_subscriber_in_one_send(world: World) {
    let server = world.start(Probe::echo().on_message(|conn, message| {
        if message.payload() == b"join" {
            conn.subscribe("a");
            conn.send("joined");
            return;
        }
        for number in 0..32 {
            conn.publish("a", format!("{number:0100}")).expect("room");
        }
    }));
    let mut links: Vec<Link> = (0..40).map(|_| server.open()).collect();
    for link in &mut links {
        ask(link, "join", "joined");
        link.record_lens.clear();
    }
    links[0].send_text("burst");
    for link in &mut links {
        for number in 0..32 {
            link.expect_text(&format!("{number:0100}"));
        }
        if world.is_tls() {
            // One send is one record where it fits into one.
            assert_eq!(link.record_lens.len(), 1, "{:?}", link.record_lens);
        }
    }
}

fn subscriber_that_does_not_read_delays_nobody(world: World) {
    let mut settings = Settings {
        base: Route::default().output_policy(OutputPolicy::DropOldest),
        ..Settings::default()
    };
    settings.limits.output_len_max = 20_000;
    let mut probe = Probe::echo().on_message(topics);
    probe.record_messages = false;
    let server = world.start_with(settings, probe);
    let mut silent: Vec<Link> = (0..3).map(|_| server.connect_with_room(3_000)).collect();
    for link in &mut silent {
        link.upgrade();
        ask(link, "+a", "true");
    }
    let mut reader = server.open();
    ask(&mut reader, "+a", "true");
    let mut sender = server.open();
    let filler = "x".repeat(10_000);
    // More than the kernel holds for those who do not read.
    for number in 0..1_000 {
        sender.send_text(&format!("a={number:04}{filler}"));
        let frame = reader.next_frame().expect("it is open");
        assert_eq!(frame.payload[..4], *format!("{number:04}").as_bytes());
    }
    // Pongs reach who reads, and closes.
    reader.send_frame(Opcode::Ping, b"still");
    reader.expect(Opcode::Pong, b"still");
    // The latest is what the others find when they read again.
    for link in &mut silent {
        let mut last = Vec::new();
        while last != b"0999" {
            last = link.next_frame().expect("it is open").payload;
            last.truncate(4);
        }
    }
    let is_drop = |record: &Record| matches!(record, Record::Dropped(..));
    server.wait(|records| records.iter().any(is_drop));
    reader.close(1000);
}

fn publish_has_a_policy_of_its_own(world: World) {
    let mut settings = Settings::default();
    settings.limits.output_len_max = 4_000;
    settings.limits.output_low_water = 1_000;
    let server = world.start_with(
        settings,
        Probe::echo().on_message(|conn, message| {
            if message.payload() == b"join" {
                conn.subscribe("a");
                conn.send("joined");
                return;
            }
            let latest = SendOptions::new().policy(OutputPolicy::Conflate(1));
            for number in 0..100 {
                let message = Prepared::new(&format!("{number:0700}"));
                conn.publish_with("a", &message, &latest).expect("room");
            }
        }),
    );
    let mut link = server.open();
    ask(&mut link, "join", "joined");
    link.send_text("go");
    link.expect_text(&format!("{:0700}", 99));
}

/// Subscribers on several threads: one publish reaches all of them, in order.
#[test]
fn publish_reaches_the_subscribers_of_all_threads() {
    for backend in [BackendChoice::Poll, BackendChoice::Uring] {
        if backend == BackendChoice::Uring && !support::uring_works() {
            continue;
        }
        let ids = Arc::<Mutex<Vec<ConnId>>>::default();
        let seen = Arc::clone(&ids);
        let server = Server::builder()
            .on_open(move |conn| {
                conn.subscribe("all");
                seen.lock().unwrap().push(conn.id());
            })
            .on_message(|conn, message| {
                let text = message.as_str().expect("text").to_owned();
                conn.publish("all", text).expect("room");
            })
            .threads(3)
            .backend(backend)
            .bind("127.0.0.1:0")
            .unwrap()
            .spawn()
            .unwrap();
        let url = format!("ws://{}/", server.local_addr());
        let connect = || sockeye::client::connect(&url).unwrap();
        let mut clients: Vec<_> = (0..30).map(|_| connect()).collect();
        for number in 0..50 {
            clients[0]
                .write_message(format!("{number}").as_str())
                .unwrap();
        }
        for client in &mut clients {
            for number in 0..50 {
                let message = client.read_message().unwrap();
                assert_eq!(message.payload(), number.to_string().as_bytes());
            }
        }
        assert_eq!(server.remote().subscriber_count("all"), 30);
        assert_eq!(server.remote().threads(), 3);
        drop(clients);
        server.shutdown();
        server.join().unwrap();
        assert_eq!(ids.lock().unwrap().len(), 30);
    }
}

fn subscriptions_are_limited(world: World) {
    let mut settings = Settings::default();
    settings.limits.subscriptions_max = 2;
    let server = world.start_with(settings, Probe::echo().on_message(topics));
    let (mut link, mut other) = (server.open(), server.open());
    ask(&mut link, "+a", "true");
    ask(&mut link, "+b", "true");
    ask(&mut link, "+c", "false");
    ask(&mut link, "?c", "0 0");
    // It is each connection's own, and room comes back.
    ask(&mut other, "+c", "true");
    ask(&mut link, "-a", "true");
    ask(&mut link, "+c", "true");
    link.send_text("c=news");
    link.expect_text("news");
    other.expect_text("news");
}
