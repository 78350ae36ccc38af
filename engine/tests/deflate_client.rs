//! permessage-deflate (RFC 7692) as a client: the reactor's on each backend and on the simulated
//! network, and the blocking one, plain and over TLS. What the server compresses and inflates goes
//! through zlib, and not through the engine's own code.

use std::io::Read;

use sockeye::Compression;
use sockeye::Connect;
use sockeye::Limits;
use sockeye::ProtocolError;
use sockeye::Server;
use sockeye::client;
use sockeye::client::WebSocket;
use sockeye::protocol::Opcode;
use sockeye::protocol::Role;
use sockeye::protocol::handshake::DeflateParams;

use crate::support;
use crate::support::Deflate;
use crate::support::Link;
use crate::support::Probe;
use crate::support::Running;
use crate::support::Settings;
use crate::support::Why;
use crate::support::World;
use crate::support::deflate::json;
use crate::support::deflate::noise;
use crate::support::server_frame;

client_cases!(
    offers_what_it_wants,
    answers_that_were_not_offered_fail_the_connection,
    messages_go_both_ways_whatever_is_agreed,
    fragments_cut_anywhere,
    bomb,
    deflate_trunc,
);

const DEDICATED: Compression = Compression::Dedicated {
    window_bits: 15,
    mem: 8,
};

fn dial(client: &Running, mode: Compression) -> Link {
    client.dial_with(1 << 20, |connect| connect.compression(mode))
}

fn offers_what_it_wants(world: World) {
    let client = world.start(Probe::echo());
    for (mode, offer) in [
        (Compression::Off, None),
        (
            Compression::Shared,
            Some(
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
                 client_max_window_bits",
            ),
        ),
        (
            DEDICATED,
            Some("permessage-deflate; client_max_window_bits"),
        ),
        (
            Compression::Dedicated {
                window_bits: 10,
                mem: 1,
            },
            Some("permessage-deflate; server_max_window_bits=10; client_max_window_bits=10"),
        ),
    ] {
        let mut link = dial(&client, mode);
        let request = link.accept_upgrade("");
        let mut lines = request.lines();
        let value = lines.find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        assert_eq!(value, offer, "{mode}");
        // The server need not agree: then nothing is compressed, and nothing may be.
        let text = json(2_000, 1);
        link.send_text(&text);
        link.expect_text(&text);
        link.send(&server_frame(0xC1, &[0x00]));
        link.expect_close(1002);
    }
}

fn answers_that_were_not_offered_fail_the_connection(world: World) {
    let ten = Compression::Dedicated {
        window_bits: 10,
        mem: 1,
    };
    for (mode, answer) in [
        (Compression::Off, "permessage-deflate"),
        (Compression::Shared, "permessage-deflate"),
        (DEDICATED, "x-other"),
        (DEDICATED, "permessage-deflate, x-other"),
        (DEDICATED, "permessage-deflate, permessage-deflate"),
        (DEDICATED, "permessage-deflate; unknown"),
        (DEDICATED, "permessage-deflate; server_max_window_bits=16"),
        (DEDICATED, "permessage-deflate; client_max_window_bits"),
        (ten, "permessage-deflate"),
        (ten, "permessage-deflate; server_max_window_bits=11"),
        (DEDICATED, "permessage-deflate; ="),
    ] {
        let client = world.start(Probe::echo());
        let mut link = dial(&client, mode);
        link.accept_upgrade(&format!("Sec-WebSocket-Extensions: {answer}\r\n"));
        let error = match &client.failures {
            Some(failures) => {
                let error = failures.recv_timeout(support::PATIENCE).expect("it ends");
                error.to_string()
            }
            None => {
                let ended = client.ended();
                assert_eq!(ended.why, Why::NotOpened);
                ended.reason
            }
        };
        assert!(error.contains("extension"), "{mode}: {answer}: {error}");
    }
}

/// What was agreed, as a server whose part this is.
fn agreed(link: &mut Link, params: &str, inflates: (u8, bool), deflates: (u8, bool)) {
    link.accept_upgrade(&format!(
        "Sec-WebSocket-Extensions: permessage-deflate{params}\r\n"
    ));
    link.deflate = Some(Deflate::new(inflates, deflates));
}

fn messages_go_both_ways_whatever_is_agreed(world: World) {
    let kept = (15, true);
    let apart = (15, false);
    let apart_both = "; server_no_context_takeover; client_no_context_takeover";
    for (mode, params, inflates, deflates) in [
        (Compression::Shared, apart_both, apart, apart),
        // A server that keeps its window, as it may if it has not said otherwise.
        (
            Compression::Shared,
            "; server_no_context_takeover",
            kept,
            apart,
        ),
        (DEDICATED, "", kept, kept),
        (DEDICATED, "; server_no_context_takeover", kept, apart),
        (DEDICATED, "; client_no_context_takeover", apart, kept),
        (DEDICATED, apart_both, apart, apart),
        (DEDICATED, "; client_max_window_bits=9", (9, true), kept),
        (DEDICATED, "; client_max_window_bits=8", (8, true), kept),
        (DEDICATED, "; server_max_window_bits=9", kept, (9, true)),
        (
            Compression::Shared,
            "; server_no_context_takeover; client_max_window_bits=10",
            (10, true),
            apart,
        ),
    ] {
        let mut settings = Settings::default();
        settings.limits.inflate_ratio_max = 0;
        let client = world.start_with(settings, Probe::echo());
        let mut link = dial(&client, mode);
        agreed(&mut link, params, inflates, deflates);
        let text = json(3_000, 2);
        for round in 0..3 {
            for payload in [
                text.clone().into_bytes(),
                Vec::new(),
                json(100, round).into_bytes(),
                noise(2_000, 3),
                "é".repeat(32_000).into_bytes(),
            ] {
                let opcode = match std::str::from_utf8(&payload) {
                    Ok(_) => Opcode::Text,
                    Err(_) => Opcode::Binary,
                };
                link.send_deflated(opcode, &payload);
                link.expect(opcode, &payload);
                // What came plain.
                link.send_frame(opcode, &payload);
                link.expect(opcode, &payload);
            }
        }
        // Long text is compressed, but where there is no compressor for the window.
        let compressed = link.deflated_lens[0].is_some();
        assert_eq!(compressed, inflates.0 > 8, "{mode}{params}");
        link.send_frame(Opcode::Close, &1000_u16.to_be_bytes());
        link.expect_close(1000);
    }
}

fn fragments_cut_anywhere(world: World) {
    for (mode, params) in [
        (
            Compression::Shared,
            "; server_no_context_takeover; client_no_context_takeover",
        ),
        (DEDICATED, ""),
    ] {
        let client = world.start(Probe::echo());
        let mut link = dial(&client, mode);
        let kept = (15, mode == DEDICATED);
        agreed(&mut link, params, kept, kept);
        let text = format!("{}é€😀", json(600, 3));
        let deflate = |link: &mut Link| {
            link.deflate
                .as_mut()
                .expect("agreed")
                .deflate(text.as_bytes())
        };
        let deflated = deflate(&mut link);
        link.dribble(&server_frame(0xC1, &deflated));
        link.expect_text(&text);
        for cut in 0..=deflated.len() {
            let deflated = deflate(&mut link);
            let cut = cut.min(deflated.len());
            let mut stream = server_frame(0x41, &deflated[..cut]);
            stream.extend(server_frame(0x80, &deflated[cut..]));
            let at = cut.min(stream.len());
            link.send(&stream[..at]);
            link.send(&stream[at..]);
            link.expect_text(&text);
        }
    }
}

#[track_caller]
fn fails(client: &Running, link: &mut Link, error: ProtocolError) {
    link.expect_close(error.close_code().get());
    match &client.failures {
        Some(failures) => {
            let got = failures.recv_timeout(support::PATIENCE).expect("it ends");
            assert!(
                matches!(got, client::Error::Protocol(got) if got == error),
                "{got:?} instead of {error:?}"
            );
        }
        None => assert_eq!(client.ended().why, Why::Failed(error)),
    }
}

fn bomb(world: World) {
    let bomb = Deflate::apart().deflate(&vec![0; 16 << 20]);
    for mode in [Compression::Shared, DEDICATED] {
        let client = world.start(Probe::echo());
        let mut link = dial(&client, mode);
        agreed(
            &mut link,
            "; server_no_context_takeover",
            (15, true),
            (15, false),
        );
        link.try_send(&server_frame(0xC2, &bomb));
        fails(&client, &mut link, ProtocolError::MessageTooBig);

        let mut settings = Settings::default();
        settings.limits.message_len_max = 64 << 20;
        let client = world.start_with(settings, Probe::echo());
        let mut link = dial(&client, mode);
        agreed(
            &mut link,
            "; server_no_context_takeover",
            (15, true),
            (15, false),
        );
        link.try_send(&server_frame(0xC2, &bomb));
        fails(&client, &mut link, ProtocolError::InflateRatio);
    }
}

fn deflate_trunc(world: World) {
    for mode in [Compression::Shared, DEDICATED] {
        for (bytes, error) in [
            (&[][..], ProtocolError::Deflate),
            (&[0xF2, 0x48, 0xCD][..], ProtocolError::Deflate),
            (b"\xFF\xFF\xFF\xFF", ProtocolError::Deflate),
            // A stored block of text that is none.
            (b"\x00\x01\x00\xFE\xFF\xFF\x00", ProtocolError::Utf8),
        ] {
            let client = world.start(Probe::echo());
            let mut link = dial(&client, mode);
            agreed(
                &mut link,
                "; server_no_context_takeover",
                (15, true),
                (15, false),
            );
            link.send(&server_frame(0xC1, bytes));
            fails(&client, &mut link, error);
        }
    }
}

/// The engine at both ends, with what each of them may want.
#[test]
fn both_ends_of_ours_understand_each_other() {
    let modes = [
        "off",
        "shared",
        "dedicated",
        "dedicated:9:1",
        "dedicated:12:4",
    ];
    for served in modes {
        let server = Server::builder()
            .on_message(|conn, message| {
                conn.send(message);
            })
            .compression(served.parse().expect("a mode"))
            .threads(1)
            .bind("127.0.0.1:0")
            .and_then(|server| server.spawn())
            .expect("it starts");
        for wanted in modes {
            let url = format!("ws://{}/", server.local_addr());
            let connect = Connect::new(&url).expect("a URL");
            let connect = connect.compression(wanted.parse().expect("a mode"));
            let mut ws = client::Builder::new(connect)
                .compression_level(6)
                .compression_len_min(64)
                .connect()
                .expect("it opens");
            let both = served != "off" && wanted != "off";
            assert_eq!(ws.is_compressed(), both, "{served} {wanted}");
            for seed in 0..20 {
                let text = json(40 + 700 * seed as usize, seed);
                ws.set_write_compression([None, Some(true), Some(false)][seed as usize % 3]);
                ws.write_message(&text).expect("it is open");
                let message = ws.read_message().expect("an echo");
                assert_eq!(message.as_str(), Some(&text[..]), "{served} {wanted}");
            }
            ws.close(sockeye::CloseCode::NORMAL, "").expect("it closes");
        }
        server.shutdown();
        server.join().expect("it ends");
    }
}

/// A message that is read piece by piece, and one that is not read to its end.
#[test]
fn reader_reads_what_is_inflated() {
    let server = Server::builder()
        .on_message(|conn, message| {
            conn.send(message);
        })
        .compression(DEDICATED)
        .message_len_max(1 << 20)
        .threads(1)
        .bind("127.0.0.1:0")
        .and_then(|server| server.spawn())
        .expect("it starts");
    let url = format!("ws://{}/", server.local_addr());
    let connect = Connect::new(&url).expect("a URL").compression(DEDICATED);
    let mut limits = Limits::default();
    limits.message_len_max = 1 << 20;
    let mut ws = client::Builder::new(connect)
        .limits(limits)
        .connect()
        .expect("it opens");
    let text = json(500_000, 5);
    for _ in 0..3 {
        for _ in 0..2 {
            ws.feed(&text).expect("it is open");
        }
        ws.flush().expect("it is taken");
        let mut reader = ws.next_reader().expect("a message");
        assert!(reader.is_text());
        let mut read = String::new();
        reader.read_to_string(&mut read).expect("it is text");
        assert!(read == text);
        let mut reader = ws.next_reader().expect("a message");
        let mut begin = [0; 10];
        reader.read_exact(&mut begin).expect("there is more");
        assert_eq!(begin, text.as_bytes()[..10]);
    }
    ws.close(sockeye::CloseCode::NORMAL, "").expect("it closes");
    server.shutdown();
    server.join().expect("it ends");
}

/// A handshake that was made elsewhere.
#[test]
fn stream_with_agreed_compression_is_taken_over() {
    let (near, far) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let params = DeflateParams::default();
    let limits = Limits::default();
    let take = |stream, role| WebSocket::from_stream_deflated(stream, role, &[], &limits, &params);
    let mut client = take(near, Role::Client).expect("valid limits");
    let mut server = take(far, Role::Server).expect("valid limits");
    let text = json(5_000, 6);
    for _ in 0..3 {
        client.write_message(&text).expect("it is open");
        let got = server.read_message().expect("a message").to_owned_message();
        server.write_message(&got).expect("it is open");
        let message = client.read_message().expect("an echo");
        assert_eq!(message.as_str(), Some(&text[..]));
    }
}
