//! Attacks on permessage-deflate that broke other implementations; `docs/PITFALLS.md` lists them.
//! Every case runs on each backend and on the simulated network.

use sockeye::Compression;
use sockeye::Limits;
use sockeye::ProtocolError;
use sockeye::Route;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Deflate;
use crate::support::Link;
use crate::support::Probe;
use crate::support::Running;
use crate::support::Settings;
use crate::support::Why;
use crate::support::World;
use crate::support::deflate::json;
use crate::support::raw_frame;
use crate::support::request_with;

cases!(bomb, bomb_ctx, deflate_trunc, window, ext_redos);

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits";

const MODES: [Compression; 2] = [
    Compression::Shared,
    Compression::Dedicated {
        window_bits: 15,
        mem: 8,
    },
];

fn start(world: World, mode: Compression, limits: Limits) -> Running {
    let settings = Settings {
        base: Route::default().compression(mode),
        limits,
        ..Settings::default()
    };
    world.start_with(settings, Probe::echo())
}

fn open(server: &Running, mode: Compression) -> Link {
    let mut link = server.connect();
    link.send(request_with(OFFER).as_bytes());
    let head = link.read_head();
    assert!(head.contains("permessage-deflate"), "{head}");
    link.deflate = Some(match mode {
        Compression::Shared => Deflate::apart(),
        _ => Deflate::takeover(),
    });
    link
}

/// 64 MiB of zeros, which are 64 KiB.
fn bomb_payload() -> Vec<u8> {
    Deflate::apart().deflate(&vec![0; 64 << 20])
}

#[track_caller]
fn fails(server: &Running, link: &mut Link, error: ProtocolError) {
    let id = *server.log().ids().last().expect("it is open");
    link.expect_close(error.close_code().get());
    assert_eq!(server.end_of(id).why, Why::Failed(error));
}

fn bomb(world: World) {
    let bomb = bomb_payload();
    for mode in MODES {
        for ratio_max in [0, 100] {
            let mut limits = Limits::default();
            limits.inflate_ratio_max = ratio_max;
            let server = start(world, mode, limits.clone());
            let mut other = open(&server, mode);
            // Many at once, of which each would be a thousand times as much.
            let mut links: Vec<Link> = (0..20).map(|_| open(&server, mode)).collect();
            let before = server.memory.begin();
            for link in &mut links {
                // In two fragments, so that none has been finished when the last begins.
                link.send(&raw_frame(0x42, &bomb[..1_000]));
            }
            for link in &mut links {
                link.try_send(&raw_frame(0x80, &bomb[1_000..]));
                link.expect_close(1009);
            }
            let grown = server.memory.most() - before;
            // The pool keeps 4 MiB for the next ones.
            assert!(grown < 6 << 20, "{world:?} {mode}: {grown} bytes more");
            for ended in server.closes(20) {
                let too_big = ProtocolError::MessageTooBig;
                assert_eq!(ended.why, Why::Failed(too_big), "{mode}");
            }
            // The limit is exact, and nothing of another connection is lost.
            let limit = limits.message_len_max;
            for (len, fits) in [(limit - 1, true), (limit, true), (limit + 1, false)] {
                let payload = json(len, 1);
                let mut link = open(&server, mode);
                link.send_deflated(Opcode::Text, payload.as_bytes());
                match fits {
                    true => link.expect_text(&payload),
                    false => fails(&server, &mut link, ProtocolError::MessageTooBig),
                }
                other.send_deflated(Opcode::Text, b"as before");
                other.expect_text("as before");
            }
        }
        // What would fit, but has grown too much.
        let mut limits = Limits::default();
        limits.message_len_max = 128 << 20;
        let server = start(world, mode, limits);
        let mut link = open(&server, mode);
        link.try_send(&raw_frame(0xC2, &bomb));
        fails(&server, &mut link, ProtocolError::InflateRatio);
    }
}

fn bomb_ctx(world: World) {
    let limits = Limits::default();
    let mode = MODES[1];
    let server = start(world, mode, limits.clone());
    let mut link = open(&server, mode);
    // The limit is that of each message: many that are just within it come through.
    let payload = json(limits.message_len_max, 2);
    for _ in 0..50 {
        link.send_deflated(Opcode::Text, payload.as_bytes());
        link.expect_text(&payload);
    }
    let deflated = |link: &mut Link, payload: &str| {
        let deflate = link.deflate.as_mut().expect("agreed");
        deflate.deflate(payload.as_bytes())
    };
    // With the window of those before, a few bytes are all of it, and one more is too many.
    let over = deflated(&mut link, &format!("{payload}x"));
    link.send_rsv1(Opcode::Text, &over);
    fails(&server, &mut link, ProtocolError::MessageTooBig);
    // Nothing of it is left for the next connection, which may have its place and its memory.
    for _ in 0..5 {
        let mut first = open(&server, mode);
        let text = json(1_000, 3);
        first.send_deflated(Opcode::Text, text.as_bytes());
        first.expect_text(&text);
        let again = deflated(&mut first, &text);
        let mut second = open(&server, mode);
        second.send_rsv1(Opcode::Text, &again);
        fails(&server, &mut second, ProtocolError::Deflate);
        first.close(1000);
    }
    drop(link);
    server.wait_metrics(|m| m.takeover == 0);
}

fn deflate_trunc(world: World) {
    for mode in MODES {
        let server = start(world, mode, Limits::default());
        let hello = [0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
        let stored = [
            0x00, 0x05, 0x00, 0xFA, 0xFF, b'H', b'e', b'l', b'l', b'o', 0x00,
        ];
        let last = [0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00];
        let two = [
            0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00,
        ];
        // The examples of RFC 7692 §7.2.3, in one frame and in two.
        for good in [&hello[..], &stored, &last, &two] {
            let mut link = open(&server, mode);
            for cut in 0..=good.len() {
                link.send_rsv1(Opcode::Text, good);
                link.expect_text("Hello");
                link.send(&raw_frame(0x41, &good[..cut]));
                link.send(&raw_frame(0x80, &good[cut..]));
                link.expect_text("Hello");
            }
        }
        let mut link = open(&server, mode);
        link.send_rsv1(Opcode::Text, &[0x00]);
        link.expect_text("");
        let stop = |bytes: &[u8], len: usize| bytes[..len].to_vec();
        let bad = [
            // Nothing, which is not an empty message.
            vec![],
            // Cut short.
            stop(&hello, 6),
            stop(&hello, 3),
            stop(&hello, 1),
            stop(&stored, 8),
            stop(&stored, 3),
            stop(&two, 8),
            // Rubbish behind the end.
            [&last[..], b"rubbish"].concat(),
            // A reserved kind of block, a length that is wrong, a reference to before the
            // beginning.
            vec![0x06],
            vec![0x00, 0x05, 0x00, 0x00, 0x00],
            vec![0x02, 0x41, 0x00],
            vec![0xFF; 100],
        ];
        for bytes in bad {
            for cut in [0, bytes.len() / 2, bytes.len()] {
                let mut link = open(&server, mode);
                link.send(&raw_frame(0x41, &bytes[..cut]));
                link.send(&raw_frame(0x80, &bytes[cut..]));
                fails(&server, &mut link, ProtocolError::Deflate);
            }
        }
    }
}

fn window(world: World) {
    for mode in MODES {
        let server = start(world, mode, Limits::default());
        // Declined, which is no error: or no list of extensions at all.
        for (params, status) in [
            ("server_max_window_bits=7", 101),
            ("server_max_window_bits=16", 101),
            ("server_max_window_bits=08", 101),
            ("server_max_window_bits=\"\"", 101),
            ("server_max_window_bits", 101),
            ("server_max_window_bits=9; server_max_window_bits=9", 101),
            ("server_max_window_bits=99999999999999999999", 101),
            ("server_max_window_bits=-9", 101),
            ("client_max_window_bits=7", 101),
            ("client_max_window_bits=16", 101),
            ("client_max_window_bits=", 400),
            ("client_max_window_bits; client_max_window_bits", 101),
            ("server_no_context_takeover=1", 101),
            ("client_no_context_takeover=true", 101),
            (
                "server_no_context_takeover; server_no_context_takeover",
                101,
            ),
            ("unknown", 101),
            ("unknown=\"a;b\"", 101),
            ("__proto__", 101),
            ("constructor; toString", 101),
        ] {
            let mut link = server.connect();
            let header = format!("Sec-WebSocket-Extensions: permessage-deflate; {params}");
            link.send(request_with(&header).as_bytes());
            let head = link.read_head();
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")),
                "{params}: {head}"
            );
            assert!(!head.contains("permessage-deflate"), "{params}: {head}");
            if status == 101 {
                link.send_text("plain");
                link.expect_text("plain");
                link.send_rsv1(Opcode::Text, &[0x00]);
                link.expect_close(1002);
            }
        }
        // A quoted value is the same value (RFC 6455 §9.1).
        let mut link = server.connect();
        let header = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=\"10\"";
        link.send(request_with(header).as_bytes());
        let head = link.read_head();
        assert!(head.contains("server_max_window_bits=10"), "{head}");
        // zlib makes 9 bits of 8 (madler/zlib#171): what such a client sends is understood.
        let mut link = server.connect();
        let header = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=8";
        link.send(request_with(header).as_bytes());
        link.read_head();
        let takeover = mode != Compression::Shared;
        link.deflate = Some(Deflate::new((15, takeover), (9, takeover)));
        for seed in 0..10 {
            let text = json(450, seed);
            link.send_deflated(Opcode::Text, text.as_bytes());
            link.expect_text(&text);
        }
    }
}

fn ext_redos(world: World) {
    // Room for what is otherwise refused for its length.
    let mut limits = Limits::default();
    limits.head_len_max = 1 << 20;
    let server = start(world, MODES[0], limits);
    let mut other = open(&server, MODES[0]);
    let spaces = " ".repeat(64 * 1024);
    let pairs = "\\a".repeat(32 * 1024);
    let commas = ",".repeat(64 * 1024);
    let offers = "permessage-deflate; unknown, ".repeat(2_000);
    let params = format!("permessage-deflate{}", "; a=b".repeat(12_000));
    for (value, status) in [
        (spaces.clone(), 101),
        (format!("permessage-deflate;{spaces}"), 400),
        (format!("permessage-deflate{spaces};{spaces}a"), 101),
        (format!("permessage-deflate; a=\"{pairs}"), 400),
        (format!("permessage-deflate; a=\"{pairs}\""), 101),
        (format!("permessage-deflate; a=\"{spaces}"), 400),
        (commas, 101),
        (offers, 101),
        (params, 101),
        ("a".repeat(64 * 1024), 101),
    ] {
        let begin = std::time::Instant::now();
        for name in ["Extensions", "Protocol"] {
            let mut link = server.connect();
            link.try_send(request_with(&format!("Sec-WebSocket-{name}: {value}")).as_bytes());
            let head = link.read_head();
            let shown = &value[..value.len().min(30)];
            if name == "Extensions" {
                assert!(
                    head.starts_with(&format!("HTTP/1.1 {status} ")),
                    "{shown}: {head}"
                );
            } else {
                assert!(head.starts_with("HTTP/1.1 101 ") || head.starts_with("HTTP/1.1 400 "));
            }
        }
        // What takes quadratic time takes minutes.
        assert!(begin.elapsed() < support::PATIENCE / 3);
    }
    other.send_text("as before");
    other.expect_text("as before");
}
