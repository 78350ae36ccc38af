//! permessage-deflate (RFC 7692) as a server: on each backend and on the simulated network. What
//! the peer compresses and inflates goes through zlib, and not through the engine's own code.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use sockeye::Compression;
use sockeye::DropReason;
use sockeye::Limits;
use sockeye::OutputPolicy;
use sockeye::Prepared;
use sockeye::ProtocolError;
use sockeye::Route;
use sockeye::SendOptions;
use sockeye::SendResult;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Deflate;
use crate::support::Link;
use crate::support::Probe;
use crate::support::Record;
use crate::support::Running;
use crate::support::Settings;
use crate::support::Why;
use crate::support::World;
use crate::support::deflate::json;
use crate::support::deflate::noise;
use crate::support::fragment;
use crate::support::masked;
use crate::support::raw_frame;
use crate::support::request_with;

cases!(
    messages_below_the_threshold_are_sent_as_they_are,
    message_by_itself_refers_to_nothing,
    takeover_refers_to_messages_before,
    offers_are_answered_in_order_of_preference,
    message_is_inflated_wherever_it_is_cut,
    fragments_of_a_compressed_message_may_have_a_ping_between,
    empty_messages_one_after_another,
    one_mebibyte_of_one_byte,
    message_that_does_not_become_shorter_is_sent_as_it_is,
    smaller_windows_are_kept_to,
    takeover_is_granted_from_a_budget,
    one_message_may_decide_for_itself,
    clients_that_inflate_badly_are_served_uncompressed,
    routes_have_compression_of_their_own,
    prepared_message_reaches_every_window,
    publishing_reaches_compressed_and_plain_alike,
    policies_that_give_up_messages_break_no_context,
    chunks_of_a_compressed_message_are_streamed,
    pause_holds_what_has_been_inflated,
    metrics_count_what_compression_saves,
    writer_sends_its_message_uncompressed,
    both_directions_at_once,
);

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits";

fn dedicated() -> Compression {
    Compression::Dedicated {
        window_bits: 15,
        mem: 8,
    }
}

fn start(world: World, compression: Compression, probe: Probe) -> Running {
    start_with(world, Route::default().compression(compression), probe)
}

fn start_with(world: World, base: Route, probe: Probe) -> Running {
    let mut limits = Limits::default();
    limits.message_len_max = 1 << 20;
    limits.output_len_max = limits.message_len_max + 16;
    let settings = Settings {
        limits,
        base,
        ..Settings::default()
    };
    world.start_with(settings, probe)
}

/// Opens a WebSocket with such an offer; gives the answer's extensions.
fn negotiate(link: &mut Link, header: &str) -> Option<String> {
    link.send(request_with(header).as_bytes());
    let head = link.read_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut lines = head.lines();
    let value = lines.find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
    value.map(str::to_owned)
}

const APART: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// A connection on which each message stands by itself.
fn open_apart(server: &Running) -> Link {
    let mut link = server.connect();
    assert_eq!(negotiate(&mut link, OFFER).as_deref(), Some(APART));
    link.deflate = Some(Deflate::apart());
    link
}

/// A connection with context takeover both ways.
fn open_takeover(server: &Running) -> Link {
    let mut link = server.connect();
    let agreed = negotiate(&mut link, OFFER);
    assert_eq!(agreed.as_deref(), Some("permessage-deflate"));
    link.deflate = Some(Deflate::takeover());
    link
}

#[track_caller]
fn echo(link: &mut Link, opcode: Opcode, payload: &[u8]) -> Option<usize> {
    link.send_deflated(opcode, payload);
    link.expect(opcode, payload);
    *link.deflated_lens.last().expect("one came")
}

fn messages_below_the_threshold_are_sent_as_they_are(world: World) {
    let check = |mode, len_min: usize, base: Route| {
        let server = start_with(world, base.compression(mode), Probe::echo());
        let mut link = match mode {
            Compression::Shared => open_apart(&server),
            _ => open_takeover(&server),
        };
        for len in [0, 1, 2, len_min - 1, len_min, len_min + 1, 5_000, 65_536] {
            let text = json(len, 1);
            let deflated = echo(&mut link, Opcode::Text, text.as_bytes());
            assert_eq!(deflated.is_some(), len >= len_min, "{mode}: {len}");
            assert!(
                deflated.is_none_or(|deflated| deflated < len),
                "{mode}: {len}"
            );
        }
        // What the peer has not compressed is compressed as well.
        let text = json(2_000, 2);
        link.send_text(&text);
        link.expect_text(&text);
        assert!(link.deflated_lens.last().is_some_and(Option::is_some));
        link.close(1000);
    };
    check(Compression::Shared, 512, Route::default());
    check(dedicated(), 128, Route::default());
    check(
        Compression::Shared,
        60,
        Route::default().compression_len_min(60),
    );
    check(dedicated(), 600, Route::default().compression_len_min(600));
}

fn message_by_itself_refers_to_nothing(world: World) {
    for level in 1..=9 {
        let route = Route::default()
            .compression(Compression::Shared)
            .compression_level(level);
        let server = start_with(world, route, Probe::echo());
        let mut link = open_apart(&server);
        let text = json(3_000, level.into());
        let lens: Vec<_> = (0..3)
            .map(|_| echo(&mut link, Opcode::Text, text.as_bytes()))
            .collect();
        assert!(lens[0].is_some_and(|len| len < 1_000), "{lens:?}");
        assert_eq!(lens, [lens[0]; 3]);
        // A peer that does refer to what it must not is failed.
        link.deflate.as_mut().expect("agreed").deflate_takeover = true;
        link.send_deflated(Opcode::Text, text.as_bytes());
        link.expect_close(1007);
        assert_eq!(server.ended().why, Why::Failed(ProtocolError::Deflate));
    }
}

fn takeover_refers_to_messages_before(world: World) {
    for level in [1, 6, 9] {
        let route = Route::default()
            .compression(dedicated())
            .compression_level(level);
        let server = start_with(world, route, Probe::echo());
        let mut link = open_takeover(&server);
        let text = json(3_000, level.into());
        let lens: Vec<_> = (0..3)
            .map(|_| echo(&mut link, Opcode::Text, text.as_bytes()).expect("compressed"))
            .collect();
        assert!(
            lens[0] < 1_200 && lens[1] < 100 && lens[2] < 100,
            "{lens:?}"
        );
        // Messages of about 100 bytes, which only become shorter by what came before.
        for seed in 0..300 {
            let text = json(130, seed);
            echo(&mut link, Opcode::Text, text.as_bytes());
        }
        let short = link.deflated_lens.iter().rev().take(100).flatten();
        assert!(short.sum::<usize>() < 100 * 90);
        link.close(1000);
    }
}

fn offers_are_answered_in_order_of_preference(world: World) {
    let check = |compression, offers: &[(&str, Option<&str>)]| {
        let server = start(world, compression, Probe::echo());
        for (offer, answer) in offers {
            let mut link = server.connect();
            let agreed = negotiate(&mut link, &format!("Sec-WebSocket-Extensions: {offer}"));
            assert_eq!(agreed.as_deref(), *answer, "{compression}: {offer}");
            // Whatever has been agreed, plain messages go.
            link.send_text("plain");
            link.expect_text("plain");
            if agreed.is_none() {
                link.send(&raw_frame(0xC1, &[0]));
                link.expect_close(1002);
            } else {
                link.close(1000);
            }
        }
    };
    check(Compression::Off, &[("permessage-deflate", None)]);
    let small = "permessage-deflate; server_max_window_bits=8";
    check(
        Compression::Shared,
        &[
            ("permessage-deflate", Some(APART)),
            ("x-webkit-deflate-frame", None),
            ("x-other, permessage-deflate", Some(APART)),
            ("permessage-deflate; unknown", None),
            (
                "permessage-deflate; unknown, permessage-deflate",
                Some(APART),
            ),
            (
                "permessage-deflate; server_max_window_bits=10, permessage-deflate",
                Some(
                    "permessage-deflate; server_no_context_takeover; \
                     client_no_context_takeover; server_max_window_bits=10",
                ),
            ),
            (
                small,
                Some(
                    "permessage-deflate; server_no_context_takeover; \
                     client_no_context_takeover; server_max_window_bits=8",
                ),
            ),
        ],
    );
    check(
        Compression::Dedicated {
            window_bits: 11,
            mem: 1,
        },
        &[
            (
                "permessage-deflate",
                Some("permessage-deflate; server_max_window_bits=11"),
            ),
            (
                "permessage-deflate; client_max_window_bits",
                Some("permessage-deflate; server_max_window_bits=11; client_max_window_bits=11"),
            ),
            (
                "permessage-deflate; client_max_window_bits=9; server_max_window_bits=10",
                Some("permessage-deflate; server_max_window_bits=10; client_max_window_bits=9"),
            ),
            (
                "permessage-deflate; server_no_context_takeover",
                Some("permessage-deflate; server_no_context_takeover; server_max_window_bits=11"),
            ),
            (
                "permessage-deflate; client_no_context_takeover",
                Some("permessage-deflate; client_no_context_takeover; server_max_window_bits=11"),
            ),
            (small, Some(small)),
        ],
    );
}

fn message_is_inflated_wherever_it_is_cut(world: World) {
    for mode in [Compression::Shared, dedicated()] {
        let server = start(world, mode, Probe::echo());
        let mut link = match mode {
            Compression::Shared => open_apart(&server),
            _ => open_takeover(&server),
        };
        let text = format!("{}é€😀", json(700, 3));
        // Byte by byte, all of it.
        let deflated = link
            .deflate
            .as_mut()
            .expect("agreed")
            .deflate(text.as_bytes());
        link.dribble(&raw_frame(0xC1, &deflated));
        link.expect_text(&text);
        // As two fragments and as two segments, cut at every byte.
        for cut in 0..=deflated.len() + 14 {
            let deflated = link
                .deflate
                .as_mut()
                .expect("agreed")
                .deflate(text.as_bytes());
            let at = cut.min(deflated.len());
            let mut first = raw_frame(0x41, &deflated[..at]);
            first.extend(raw_frame(0x80, &deflated[at..]));
            let at = cut.min(first.len());
            link.send(&first[..at]);
            server.turn(1);
            link.send(&first[at..]);
            link.expect_text(&text);
        }
        link.close(1000);
    }
}

fn fragments_of_a_compressed_message_may_have_a_ping_between(world: World) {
    for mode in [Compression::Shared, dedicated()] {
        let server = start(world, mode, Probe::echo());
        let mut link = match mode {
            Compression::Shared => open_apart(&server),
            _ => open_takeover(&server),
        };
        let text = json(2_000, 3);
        let deflated = link
            .deflate
            .as_mut()
            .expect("agreed")
            .deflate(text.as_bytes());
        let mut stream = raw_frame(0x41, &deflated[..100]);
        stream.extend(raw_frame(0x89, b"between"));
        stream.extend(raw_frame(0x00, &[]));
        stream.extend(raw_frame(0x00, &deflated[100..200]));
        stream.extend(raw_frame(0x80, &deflated[200..]));
        link.send(&stream);
        link.expect(Opcode::Pong, b"between");
        link.expect_text(&text);
        // A plain message in fragments is still one.
        link.send(&fragment(Opcode::Text, b"pla"));
        link.send(&raw_frame(0x80, b"in"));
        link.expect_text("plain");
        // RFC 7692 §6.1: only the first frame of a message has RSV1.
        link.send(&raw_frame(0x41, &deflated[..100]));
        link.send(&raw_frame(0xC0, &deflated[100..]));
        link.expect_close(1002);
    }
}

fn empty_messages_one_after_another(world: World) {
    for mode in [Compression::Shared, dedicated()] {
        let all = Route::default().compression(mode).compression_len_min(0);
        let server = start_with(world, all, Probe::echo());
        let mut link = match mode {
            Compression::Shared => open_apart(&server),
            _ => open_takeover(&server),
        };
        let text = json(1_000, 4);
        for _ in 0..3 {
            echo(&mut link, Opcode::Text, text.as_bytes());
            for _ in 0..3 {
                link.send_rsv1(Opcode::Text, &[0x00]);
                link.expect_text("");
                link.send_rsv1(Opcode::Binary, &[0x02, 0x00]);
                link.expect(Opcode::Binary, b"");
                link.send_text("");
                link.expect_text("");
            }
        }
        link.close(1000);
    }
}

fn one_mebibyte_of_one_byte(world: World) {
    let payload = vec![b'a'; 1 << 20];
    for mode in [Compression::Shared, dedicated()] {
        let mut settings = Settings {
            base: Route::default().compression(mode),
            ..Settings::default()
        };
        settings.limits.message_len_max = payload.len();
        settings.limits.output_len_max = payload.len() + 16;
        settings.limits.inflate_ratio_max = 0;
        let server = world.start_with(settings.clone(), Probe::echo());
        let mut link = match mode {
            Compression::Shared => open_apart(&server),
            _ => open_takeover(&server),
        };
        for _ in 0..2 {
            let len = echo(&mut link, Opcode::Text, &payload).expect("compressed");
            assert!(len < 11_000, "{len}");
        }
        link.close(1000);
        // More than a hundred times as long is a bomb, if nothing else is said.
        settings.limits.inflate_ratio_max = Limits::default().inflate_ratio_max;
        let server = world.start_with(settings, Probe::echo());
        let mut link = server.connect();
        negotiate(&mut link, OFFER);
        link.deflate = Some(Deflate::apart());
        link.send_deflated(Opcode::Text, &payload);
        link.expect_close(1009);
        assert_eq!(server.ended().why, Why::Failed(ProtocolError::InflateRatio));
    }
}

fn message_that_does_not_become_shorter_is_sent_as_it_is(world: World) {
    for mode in [Compression::Shared, dedicated()] {
        let server = start(world, mode, Probe::echo());
        let mut link = match mode {
            Compression::Shared => open_apart(&server),
            _ => open_takeover(&server),
        };
        let text = json(1_000, 5);
        for len in [512, 1_000, 20_000, 65_000] {
            // Twice: with takeover the second refers to the first, in as far as both ends have it.
            let noise = noise(len, len as u32);
            let deflated = echo(&mut link, Opcode::Binary, &noise);
            assert_eq!(deflated, None, "{mode}: {len}");
            assert!(echo(&mut link, Opcode::Text, text.as_bytes()).is_some());
            echo(&mut link, Opcode::Binary, &noise);
            assert!(echo(&mut link, Opcode::Text, text.as_bytes()).is_some());
        }
        link.close(1000);
    }
}

fn smaller_windows_are_kept_to(world: World) {
    for bits in 8..=15 {
        for mode in [Compression::Shared, dedicated()] {
            let server = start(world, mode, Probe::echo());
            let mut link = server.connect();
            let offer = format!(
                "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits={bits}; \
                 client_max_window_bits={bits}"
            );
            let agreed = negotiate(&mut link, &offer).expect("it is acceptable");
            assert!(
                agreed.contains(&format!("server_max_window_bits={bits}")),
                "{agreed}"
            );
            let takeover = mode != Compression::Shared;
            // zlib's inflate takes 8, its deflate makes 9 of it: what such a peer sends is taken.
            let own = (bits, takeover);
            link.deflate = Some(Deflate::new(own, (bits.max(9), takeover)));
            for (seed, len) in [600, 256, 257, 3_000, 40_000, 600, 40_000]
                .into_iter()
                .enumerate()
            {
                let text = json(len, seed as u32);
                let deflated = echo(&mut link, Opcode::Text, text.as_bytes());
                // There is no compressor for 8 bits.
                if len >= 600 {
                    assert_eq!(deflated.is_some(), bits > 8, "{mode}: {bits} {len}");
                }
            }
            link.close(1000);
        }
    }
}

fn takeover_is_granted_from_a_budget(world: World) {
    let settings = Settings {
        base: Route::default().compression(dedicated()),
        // For two.
        compression_budget: Some(1_000_000),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    let text = json(2_000, 6);
    let first = open_takeover(&server);
    let mut second = open_takeover(&server);
    let mut third = open_apart(&server);
    assert!(echo(&mut third, Opcode::Text, text.as_bytes()).is_some());
    // Without takeover nothing is needed.
    let mut link = server.connect();
    let offer = format!("{OFFER}; server_no_context_takeover; client_no_context_takeover");
    assert_eq!(negotiate(&mut link, &offer).as_deref(), Some(APART));
    let granted = server.wait_metrics(|m| m.opened == 4).takeover;
    assert!((850_000..1_000_000).contains(&granted), "{granted}");
    // What a connection has had another can have.
    let id = server.log().ids()[0];
    let mut first = first;
    first.close(1000);
    server.end_of(id);
    drop(first);
    server.wait_metrics(|m| m.takeover < granted);
    let mut fourth = open_takeover(&server);
    for link in [&mut second, &mut fourth] {
        assert!(echo(link, Opcode::Text, text.as_bytes()).is_some());
        assert!(echo(link, Opcode::Text, text.as_bytes()).is_some_and(|len| len < 50));
    }
}

fn one_message_may_decide_for_itself(world: World) {
    for mode in [Compression::Shared, dedicated()] {
        let probe = Probe::echo().on_message(|conn, message| {
            let never = SendOptions::new().compress(false);
            let always = SendOptions::new().compress(true);
            assert_eq!(conn.send_with(message, &never), SendResult::Sent);
            assert_eq!(conn.send_with(message, &always), SendResult::Sent);
            assert_eq!(conn.send(message), SendResult::Sent);
        });
        let server = start(world, mode, probe);
        let mut link = match mode {
            Compression::Shared => open_apart(&server),
            _ => open_takeover(&server),
        };
        for (text, by_length) in [("a".repeat(100), false), ("a".repeat(1_000), true)] {
            link.send_text(&text);
            for compressed in [false, true, by_length] {
                link.expect_text(&text);
                let last = link.deflated_lens.last().expect("one came");
                assert_eq!(last.is_some(), compressed, "{mode}: {}", text.len());
            }
        }
        // Where nothing has been agreed nothing is compressed.
        let mut link = server.open();
        link.send_text(&"a".repeat(1_000));
        for _ in 0..3 {
            link.expect_text(&"a".repeat(1_000));
        }
    }
}

fn clients_that_inflate_badly_are_served_uncompressed(world: World) {
    let route = Route::default()
        .compression(Compression::Shared)
        .compression_check(|request| {
            let agent = request.header("User-Agent").unwrap_or_default();
            !agent.windows(9).any(|part| part == b"Broken/1.")
        });
    let server = start_with(world, route, Probe::echo());
    for (agent, answer) in [("Broken/1.5", None), ("Mended/2.0", Some(APART))] {
        let mut link = server.connect();
        let headers = format!("User-Agent: {agent}\r\n{OFFER}");
        assert_eq!(negotiate(&mut link, &headers).as_deref(), answer);
        link.deflate = answer.map(|_| Deflate::apart());
        let text = json(1_000, 7);
        link.send_text(&text);
        link.expect_text(&text);
    }
}

fn routes_have_compression_of_their_own(world: World) {
    let settings = Settings {
        routes: vec![
            ("/plain", Route::default()),
            ("/shared", Route::default().compression(Compression::Shared)),
            ("/dedicated", Route::default().compression(dedicated())),
        ],
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    for (path, answer) in [
        ("/plain", None),
        ("/shared", Some(APART)),
        ("/dedicated", Some("permessage-deflate")),
    ] {
        let mut link = server.connect();
        let request = request_with(OFFER).replacen("GET / ", &format!("GET {path} "), 1);
        link.send(request.as_bytes());
        let head = link.read_head();
        let value = head
            .lines()
            .find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        assert_eq!(value, answer, "{path}");
        link.send_text("text");
        link.expect_text("text");
    }
}

/// Connections of every kind, each with the length that its window makes of a message.
fn all_kinds(server: &Running, takeover: bool) -> Vec<Link> {
    let mut links = vec![server.open()];
    for bits in 8..=15 {
        let mut link = server.connect();
        let offer =
            format!("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits={bits}");
        negotiate(&mut link, &offer).expect("it is acceptable");
        link.deflate = Some(Deflate::new((bits, takeover), (15, takeover)));
        links.push(link);
    }
    links
}

fn prepared_message_reaches_every_window(world: World) {
    for mode in [Compression::Shared, dedicated()] {
        let takeover = mode != Compression::Shared;
        let long = Prepared::text(json(30_000, 8));
        let short = Prepared::text(json(600, 9));
        let noise = Prepared::binary(noise(5_000, 10));
        let all = [long, short, noise];
        let sent = all.clone();
        let probe = Probe::echo().on_message(move |conn, message| {
            for prepared in &sent {
                assert_eq!(conn.send_prepared(prepared), SendResult::Sent);
            }
            conn.send(message);
        });
        let server = start(world, mode, probe);
        for mut link in all_kinds(&server, takeover) {
            let text = json(700, 11);
            for _ in 0..2 {
                link.send_text(&text);
                for prepared in &all {
                    link.expect(prepared.opcode(), prepared.payload());
                }
                // The connection's own window is not broken by it.
                link.expect_text(&text);
            }
            link.close(1000);
        }
    }
}

fn publishing_reaches_compressed_and_plain_alike(world: World) {
    for mode in [Compression::Shared, dedicated()] {
        let probe = Probe::echo()
            .on_open(|conn| {
                conn.subscribe("prices");
            })
            .on_message(|conn, message| {
                conn.publish("prices", message).expect("there is room");
                conn.remote()
                    .broadcast(Prepared::new("to all"))
                    .expect("there is room");
            });
        let server = start(world, mode, probe);
        let mut links = all_kinds(&server, mode != Compression::Shared);
        for seed in 0..3 {
            let text = json(4_000, seed);
            links[0].send_text(&text);
            for (index, link) in links.iter_mut().enumerate() {
                // Which comes first is not said.
                let got: Vec<_> = (0..2).filter_map(|_| link.next_frame()).collect();
                let has = |text: &str| got.iter().any(|frame| frame.payload == text.as_bytes());
                assert!(has("to all") && has(&text), "{mode}: {index}");
            }
        }
        for mut link in links {
            link.close(1000);
        }
    }
}

/// Text that becomes half as long.
fn hex(len: usize, seed: u32) -> String {
    let noise = noise(len / 2, seed);
    noise.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn policies_that_give_up_messages_break_no_context(world: World) {
    // A route whose messages may be given up has no context to break.
    for policy in [OutputPolicy::DropOldest, OutputPolicy::Conflate(1)] {
        let route = Route::default()
            .compression(dedicated())
            .output_policy(policy);
        let server = start_with(world, route, Probe::echo());
        let mut link = server.connect();
        let agreed = negotiate(&mut link, OFFER);
        let answer = "permessage-deflate; server_no_context_takeover";
        assert_eq!(agreed.as_deref(), Some(answer));
        link.deflate = Some(Deflate::new((15, false), (15, true)));
        let text = json(1_000, 12);
        for _ in 0..3 {
            assert!(echo(&mut link, Opcode::Text, text.as_bytes()).is_some());
        }
    }
    // With a policy of its own a message does not push out what others refer to.
    let log: Arc<Mutex<Vec<SendResult>>> = Arc::default();
    let results = Arc::clone(&log);
    let done = Probe::echo();
    let records = done.log.clone();
    let probe = done.on_message(move |conn, _| {
        let oldest = SendOptions::new().policy(OutputPolicy::DropOldest);
        let latest = SendOptions::new().policy(OutputPolicy::Conflate(7));
        let mut seed = 0;
        // Until the kernel takes no more and the limit is met.
        loop {
            seed += 1;
            let result = conn.send(&hex(8_000, seed));
            if matches!(result, SendResult::Dropped(_)) {
                break;
            }
        }
        let mut results = results.lock().expect("no panic");
        for seed in 0..50 {
            results.push(conn.send_with(&hex(4_000, seed), &oldest));
            results.push(conn.send_with(&hex(900, seed), &latest));
        }
        records.push(Record::Ran(conn.id()));
    });
    let server = {
        let mut settings = Settings {
            base: Route::default().compression(dedicated()),
            ..Settings::default()
        };
        settings.limits.output_len_max = 20_000;
        settings.limits.output_low_water = 1_000;
        world.start_with(settings, probe)
    };
    let mut link = server.connect_with_room(3_000);
    negotiate(&mut link, OFFER);
    link.deflate = Some(Deflate::takeover());
    link.send_text("go");
    // Read before it has met the limit it would never meet it.
    server.wait_ran();
    let id = server.log().ids()[0];
    server
        .remote()
        .close(id, sockeye::CloseCode::NORMAL, "")
        .expect("there is room");
    // Everything that comes can be inflated, to the last.
    let mut count = 0;
    loop {
        let got = link.next_frame().expect("a Close frame at last");
        if got.opcode == Opcode::Close {
            break;
        }
        assert!(got.payload.iter().all(u8::is_ascii_hexdigit));
        count += 1;
    }
    assert!(count > 3, "{count}");
    link.send_frame(Opcode::Close, &1000_u16.to_be_bytes());
    server.end_of(id);
    let results = log.lock().expect("no panic");
    assert!(results.contains(&SendResult::Dropped(DropReason::OutputLimit)));
}

fn chunks_of_a_compressed_message_are_streamed(world: World) {
    for mode in [Compression::Shared, dedicated()] {
        let mut settings = Settings {
            base: Route::default().compression(mode).streaming(true),
            ..Settings::default()
        };
        settings.limits.message_len_max = 10 << 20;
        settings.limits.inflate_ratio_max = 0;
        let server = world.start_with(settings, Probe::echo().on_message(|_, _| {}));
        let mut link = match mode {
            Compression::Shared => open_apart(&server),
            _ => open_takeover(&server),
        };
        let id = *server.log().ids().last().expect("it is open");
        let messages = [
            json(300_000, 13).into_bytes(),
            Vec::new(),
            vec![b'x'; 3 << 20],
            json(50, 14).into_bytes(),
        ];
        for message in &messages {
            let deflated = link.deflate.as_mut().expect("agreed").deflate(message);
            let half = deflated.len() / 2;
            link.send(&raw_frame(0x41, &deflated[..half]));
            link.send(&raw_frame(0x80, &deflated[half..]));
        }
        let ends = |records: &[Record]| {
            let is_end = |record: &&Record| matches!(record, Record::Chunk(_, _, _, true));
            records.iter().filter(is_end).count()
        };
        server.wait(|records| ends(records) == messages.len());
        let mut streamed: Vec<Vec<u8>> = Vec::new();
        let mut inside = false;
        for record in server.log().all() {
            if let Record::Chunk(of, payload, first, last) = record
                && of == id
            {
                assert_eq!(first, !inside);
                inside = !last;
                if first {
                    streamed.push(Vec::new());
                }
                // No part is longer than a block.
                assert!(payload.len() <= 256 * 1024 + 8, "{}", payload.len());
                streamed.last_mut().expect("it has begun").extend(payload);
            }
        }
        assert!(streamed == messages);
        // A character in two halves is one; half a character is none.
        let deflated = link.deflate.as_mut().expect("agreed").deflate(b"a\xE2\x82");
        link.send_rsv1(Opcode::Text, &deflated);
        link.expect_close(1007);
        assert_eq!(server.end_of(id).why, Why::Failed(ProtocolError::Utf8));
    }
}

fn pause_holds_what_has_been_inflated(world: World) {
    for mode in [Compression::Shared, dedicated()] {
        let probe = Probe::echo().on_message(|conn, message| {
            if message.payload() == b"pause" {
                conn.pause();
            } else {
                conn.send(message);
            }
        });
        let server = start(world, mode, probe);
        let mut link = match mode {
            Compression::Shared => open_apart(&server),
            _ => open_takeover(&server),
        };
        let id = server.log().ids()[0];
        let texts: Vec<String> = (0..5).map(|seed| json(2_000, seed)).collect();
        link.send_text("pause");
        for text in &texts {
            link.send_deflated(Opcode::Text, text.as_bytes());
        }
        server.wait(|records| records.iter().any(|r| matches!(r, Record::Message(..))));
        server.remote().resume(id).expect("there is room");
        for text in &texts {
            link.expect_text(text);
        }
        link.close(1000);
    }
}

fn metrics_count_what_compression_saves(world: World) {
    let server = start(world, Compression::Shared, Probe::echo());
    let mut link = open_apart(&server);
    let text = json(2_000, 15);
    let mut lens = 0;
    for _ in 0..3 {
        lens += echo(&mut link, Opcode::Text, text.as_bytes()).expect("compressed") as u64;
    }
    link.send_text("short");
    link.expect_text("short");
    let metrics = server.wait_metrics(|m| m.sent.text == 4);
    assert_eq!(
        (metrics.messages_inflated, metrics.messages_deflated),
        (3, 3)
    );
    assert_eq!(
        (metrics.bytes_inflated, metrics.bytes_before_deflate),
        (6_000, 6_000)
    );
    assert_eq!(metrics.bytes_deflated, lens);
    assert!((100..3_000).contains(&metrics.bytes_before_inflate));
    assert_eq!(metrics.takeover, 0);
}

fn writer_sends_its_message_uncompressed(world: World) {
    let probe = Probe::echo().on_message(|conn, message| {
        use std::io::Write;
        let mut writer = conn.writer(true).expect("it is open");
        writer.write_all(message.payload()).expect("there is room");
        writer.finish().expect("it is text");
        conn.send(message);
    });
    let server = start(world, dedicated(), probe);
    let mut link = open_takeover(&server);
    let text = json(1_000, 16);
    for _ in 0..2 {
        link.send_deflated(Opcode::Text, text.as_bytes());
        link.expect_text(&text);
        assert_eq!(link.deflated_lens.last(), Some(&None));
        link.expect_text(&text);
        assert!(link.deflated_lens.last().is_some_and(Option::is_some));
    }
}

/// Many messages under way, of every kind and in one segment.
fn both_directions_at_once(world: World) {
    for mode in [Compression::Shared, dedicated()] {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let mut probe = Probe::echo().on_message(move |conn, message| {
            counted.fetch_add(1, Ordering::Relaxed);
            conn.send(message);
        });
        probe.record_messages = false;
        let server = start(world, mode, probe);
        let mut link = match mode {
            Compression::Shared => open_apart(&server),
            _ => open_takeover(&server),
        };
        for round in 0..20 {
            let texts: Vec<String> = (0..16)
                .map(|seed| json(97 * (1 + seed as usize * (round % 5)), seed))
                .collect();
            let mut stream = Vec::new();
            for (index, text) in texts.iter().enumerate() {
                if index % 3 == 0 {
                    stream.extend(raw_frame(0x81, text.as_bytes()));
                } else {
                    let deflate = link.deflate.as_mut().expect("agreed");
                    stream.extend(raw_frame(0xC1, &deflate.deflate(text.as_bytes())));
                }
            }
            link.send(&stream);
            for text in &texts {
                link.expect_text(text);
            }
        }
        assert_eq!(count.load(Ordering::Relaxed), 320);
        // RSV2 and RSV3 mean nothing still, nor does RSV1 of a control frame.
        for first in [0xA1, 0x91, 0xC9] {
            let mut link = server.connect();
            negotiate(&mut link, OFFER);
            let mut frame = vec![first, 0x81];
            frame.extend(support::KEY);
            frame.extend(masked(b"x"));
            link.send(&frame);
            link.expect_close(1002);
        }
    }
}
