//! What a server is for, on each backend and on the simulated network.

use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;

use sockeye::BackendChoice;
use sockeye::CloseCode;
use sockeye::Route;
use sockeye::Server;
use sockeye::Upgrade;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Data;
use crate::support::Link;
use crate::support::Probe;
use crate::support::REQUEST;
use crate::support::Settings;
use crate::support::Why;
use crate::support::World;
use crate::support::fragment;
use crate::support::frame;
use crate::support::raw_frame;
use crate::support::request_with;

cases!(
    echo_byte_by_byte,
    pipelined_frames_in_one_write,
    frames_together_with_the_handshake,
    ten_megabyte_messages,
    killed_clients,
    half_closed_client_gets_its_replies,
    plain_http,
    rejected_upgrade,
    remote_sends_and_closes,
    broadcast_reaches_everyone,
    shutdown_says_going_away,
    peer_address,
    output_is_drained_in_order_through_a_narrow_pipe,
    long_payload_is_received_in_four_times_the_turn,
    long_payload_holds_others_up_for_a_while_only,
);

fn echo_byte_by_byte(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.connect();
    link.dribble(REQUEST.as_bytes());
    assert_eq!(link.read_status(), 101);
    link.dribble(&frame(Opcode::Text, "byte by byte: é€😀".as_bytes()));
    link.expect_text("byte by byte: é€😀");
    link.dribble(&frame(Opcode::Binary, &[1; 300]));
    link.expect(Opcode::Binary, &[1; 300]);
    link.dribble(&frame(Opcode::Ping, &[2; 125]));
    link.expect(Opcode::Pong, &[2; 125]);
    link.dribble(&frame(Opcode::Close, &[3, 232, b'b', b'y', b'e']));
    link.expect_close(1000);
}

fn pipelined_frames_in_one_write(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.open();
    for round in 0..20 {
        let texts: Vec<String> = (0..60).map(|n| format!("{round}/{n}")).collect();
        let frames = texts
            .iter()
            .map(|text| frame(Opcode::Text, text.as_bytes()));
        link.send(&frames.collect::<Vec<_>>().concat());
        for text in &texts {
            link.expect_text(text);
        }
    }
}

fn frames_together_with_the_handshake(world: World) {
    let server = world.start(Probe::echo());
    let mut bytes = REQUEST.as_bytes().to_vec();
    bytes.extend(frame(Opcode::Text, b"one"));
    bytes.extend(fragment(Opcode::Text, b"t"));
    bytes.extend(raw_frame(0x80, b"wo"));
    let close = frame(Opcode::Close, &1000_u16.to_be_bytes());
    bytes.extend(&close);
    // Cut at every byte.
    for cut in 1..bytes.len() {
        let mut link = server.connect();
        link.send(&bytes[..cut]);
        link.send(&bytes[cut..]);
        assert_eq!(link.read_status(), 101);
        link.expect_text("one");
        link.expect_text("two");
        link.expect_close(1000);
    }
}

fn ten_megabyte_messages(world: World) {
    let len = if world.is_sim() { 1 << 20 } else { 10_000_000 };
    let mut settings = Settings::default();
    settings.limits.message_len_max = len;
    settings.limits.output_len_max = 2 * len + 100;
    let server = world.start_with(settings, Probe::echo());
    let payload: Vec<u8> = (0..len).map(|index| (index / 7) as u8 & 0x7F).collect();
    let mut link = server.open();
    for opcode in [Opcode::Text, Opcode::Binary] {
        link.send_frame(opcode, &payload);
        link.expect(opcode, &payload);
        // In fragments of an odd length, with pings between.
        let mut bytes = fragment(opcode, &payload[..len / 3]);
        bytes.extend(frame(Opcode::Ping, b""));
        bytes.extend(raw_frame(0x80, &payload[len / 3..]));
        link.send(&bytes);
        link.expect(Opcode::Pong, b"");
        link.expect(opcode, &payload);
    }
    let mut link = server.open();
    link.try_send(&frame(Opcode::Binary, &vec![0; len + 1])[..100]);
    link.expect_close(1009);
}

fn killed_clients(world: World) {
    let server = world.start(Probe::echo());
    let mut survivor = server.open();
    for round in 0..60 {
        let mut link = server.connect();
        if round % 4 > 0 {
            link.upgrade();
        }
        match round % 3 {
            0 => link.send(&frame(Opcode::Binary, &[1; 60_000])[..30_000]),
            1 => link.send(&frame(Opcode::Binary, &[1; 60_000])),
            _ => {}
        }
        link.reset();
    }
    survivor.send_text("alive");
    survivor.expect_text("alive");
    let closes = server.closes(45);
    assert!(
        closes
            .iter()
            .all(|ended| ended.why == Why::Lost && !ended.clean)
    );
}

fn half_closed_client_gets_its_replies(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.open();
    link.send(&frame(Opcode::Text, b"question").repeat(3));
    link.shutdown();
    for _ in 0..3 {
        link.expect_text("question");
    }
    assert_eq!(link.next_frame(), None);
    assert_eq!(server.ended().why, Why::Lost);
}

fn plain_http(world: World) {
    let server = world.start(Probe::echo());
    let ask = |request: &str| {
        let mut link = server.connect();
        link.send(request.as_bytes());
        String::from_utf8(link.read_to_end()).expect("text")
    };
    let page = ask("GET /page?x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(page.contains("Content-Length: 6\r\n"), "{page}");
    assert!(page.ends_with("\r\n\r\na page"), "{page}");
    let head = ask("HEAD /page HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(head, page.replace("a page", ""));
    let old = ask("GET /page HTTP/1.0\r\n\r\n");
    assert_eq!(old, page);
    let large = ask("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(large.ends_with(&"x".repeat(300_000)), "{}", large.len());
    for (request, status) in [
        ("GET /none HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
        ("GET /page HTTP/1.1\r\n\r\n", "400"),
        ("POST /page HTTP/1.1\r\nHost: a\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = ask(request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    assert_eq!(server.log().all(), []);
}

fn rejected_upgrade(world: World) {
    let mut probe = Probe::echo();
    probe.on_upgrade = Arc::new(|request| {
        if request.request().header("Authorization") == Some(b"Bearer good") {
            let upgrade = Upgrade::accept(Data::default());
            return upgrade.header("Set-Cookie", "a=b").expect("valid");
        }
        let answer = sockeye::Response::text(401).header("WWW-Authenticate", "Bearer");
        Upgrade::reject(answer.expect("valid"))
    });
    let server = world.start(probe);
    let mut link = server.connect();
    link.send(&[REQUEST.as_bytes(), &frame(Opcode::Text, b"in vain")].concat());
    let head = link.read_head();
    assert!(head.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{head}");
    assert!(head.contains("WWW-Authenticate: Bearer\r\n"), "{head}");
    assert_eq!(link.read_to_end(), b"401 Unauthorized\n");
    let mut link = server.connect();
    link.send(request_with("Authorization: Bearer good").as_bytes());
    let head = link.read_head();
    assert!(head.contains("Set-Cookie: a=b\r\n"), "{head}");
    link.send_text("hello");
    link.expect_text("hello");
    assert_eq!(server.log().ids().len(), 1);
}

fn remote_sends_and_closes(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.open();
    let id = server.log().ids()[0];
    let remote = server.remote();
    // In the order asked, also from another thread.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..500 {
                remote.send(id, number.to_string()).expect("room");
            }
            remote.send(id, &[7_u8; 60_000]).expect("room");
            remote
                .close(id, CloseCode::SERVICE_RESTART, "soon")
                .expect("room");
        });
    });
    for number in 0..500 {
        link.expect_text(&number.to_string());
    }
    link.expect(Opcode::Binary, &[7; 60_000]);
    let close = link.next_frame().expect("a Close frame");
    assert_eq!(
        close.payload,
        [&1012_u16.to_be_bytes()[..], b"soon"].concat()
    );
    link.send_frame(Opcode::Close, &1012_u16.to_be_bytes());
    assert_eq!(link.next_frame(), None);
    let ended = server.ended();
    assert_eq!((ended.code, ended.local, ended.clean), (1012, true, true));
}

fn broadcast_reaches_everyone(world: World) {
    let settings = Settings {
        threads: Some(2),
        ..Settings::default()
    };
    let server = world.start_with(
        settings,
        Probe::echo().on_message(|conn, message| {
            conn.remote().broadcast(message).expect("room");
        }),
    );
    let mut links: Vec<Link> = (0..70).map(|_| server.open()).collect();
    // Somebody in the handshake gets nothing.
    let _unopened = server.connect();
    let large = vec![9; 3_000];
    for round in 0..5_usize {
        let sender = &mut links[round * 13];
        sender.send_text(&format!("round {round}"));
        sender.send_frame(Opcode::Binary, &large);
        for link in &mut links {
            link.expect_text(&format!("round {round}"));
            link.expect(Opcode::Binary, &large);
        }
    }
}

fn shutdown_says_going_away(world: World) {
    let mut server = world.start(Probe::echo());
    let mut links: Vec<Link> = (0..20).map(|_| server.open()).collect();
    let unopened = server.connect();
    server.begin_stop();
    for link in &mut links {
        let close = link.next_frame().expect("a Close frame");
        assert_eq!(
            (close.opcode, &close.payload[..]),
            (Opcode::Close, &[3, 233][..])
        );
        link.send_frame(Opcode::Close, &1001_u16.to_be_bytes());
        assert_eq!(link.next_frame(), None);
    }
    drop((links, unopened));
    server.stop();
    let closes = server.log().closes();
    assert_eq!(closes.len(), 20);
    assert!(
        closes
            .iter()
            .all(|ended| ended.clean && ended.local && ended.code == 1001)
    );
}

fn peer_address(world: World) {
    let server = world.start(Probe::echo().on_message(|conn, _| {
        let address = conn.peer_addr().expect("it is there").to_string();
        conn.send(&address);
    }));
    let mut link = server.open();
    link.send_text("who am I?");
    let want = match &link.end {
        support::End::Live(stream) => stream.local_addr().expect("it is there").to_string(),
        support::End::Sim(..) => "127.0.0.1:1".to_owned(),
    };
    link.expect_text(&want);
}

/// More output than the peer's side holds: the rest follows, in order, and nothing else does.
fn output_is_drained_in_order_through_a_narrow_pipe(world: World) {
    let count = if world.is_sim() { 100 } else { 2_000 };
    let mut settings = Settings::default();
    settings.limits.output_len_max = 64 << 20;
    let server = world.start_with(
        settings,
        Probe::echo().on_message(move |conn, _| {
            for number in 0..count {
                conn.send(&[number as u8; 10_000]);
            }
        }),
    );
    let mut link = server.connect_with_room(700);
    link.upgrade();
    link.send_text("all of it");
    for number in 0..count {
        link.expect(Opcode::Binary, &[number as u8; 10_000]);
    }
}

/// Unix sockets and IPv6, on each backend.
#[test]
fn unix_and_ipv6_listeners() {
    for (name, backend) in [
        ("uring", BackendChoice::Uring),
        ("poll", BackendChoice::Poll),
    ] {
        if backend == BackendChoice::Uring && !support::uring_works() {
            continue;
        }
        let path = std::env::temp_dir().join(format!("sockeye-{}-{name}", std::process::id()));
        let peers = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&peers);
        let server = Server::builder()
            .on_open(move |conn| {
                let peer = conn.peer_addr().expect("it is there");
                seen.lock().expect("no panic").push(peer.to_string());
            })
            .on_message(|conn, message| {
                conn.send(message);
            })
            .backend(backend)
            .threads(2)
            .listen("[::1]:0")
            .bind(&format!("unix:{}", path.display())[..])
            .expect("both can be listened on")
            .spawn()
            .expect("it starts");
        let exchange = |stream: &mut dyn ReadWrite| {
            stream.write_all(REQUEST.as_bytes()).expect("sent");
            stream
                .write_all(&frame(Opcode::Text, b"hello"))
                .expect("sent");
            let mut got = Vec::new();
            while !got.ends_with(b"\x81\x05hello") {
                let mut buffer = [0; 1024];
                let len = stream.read(&mut buffer).expect("an answer");
                assert!(len > 0, "the stream ended");
                got.extend_from_slice(&buffer[..len]);
            }
        };
        let v6 = server.local_addrs()[0].ip().expect("an IP address");
        assert!(v6.is_ipv6());
        exchange(&mut std::net::TcpStream::connect(v6).expect("connected"));
        for _ in 0..4 {
            exchange(&mut std::os::unix::net::UnixStream::connect(&path).expect("connected"));
        }
        server.shutdown();
        server.join().expect("it ends");
        assert!(!path.exists(), "the socket is removed");
        let peers = peers.lock().expect("no panic");
        assert_eq!(peers.iter().filter(|peer| *peer == "unix").count(), 4);
        assert_eq!(
            peers
                .iter()
                .filter(|peer| peer.starts_with("[::1]:"))
                .count(),
            1
        );
    }
}

trait ReadWrite: Read + Write {}
impl<S: Read + Write> ReadWrite for S {}

#[test]
fn bad_settings_are_errors_before_anything_starts() {
    let error = |result: sockeye::Result<_>| match result {
        Ok(_) => panic!("it was bound"),
        Err(error) => {
            let _: &sockeye::Error = &error;
            error.to_string()
        }
    };
    let bind = |address: &str| error(Server::builder().bind(address).map(drop));
    assert!(bind("nonsense").contains("not an address"));
    assert!(bind("unix:").contains("not an address"));
    assert!(bind("192.0.2.1:1").starts_with("bind 192.0.2.1:1: "));
    assert!(bind("127.0.0.1:+80").contains("not an address"));
    let path = "unix:/nonexistent/socket";
    assert!(bind(path).starts_with(&format!("bind {path}: ")));
    let first = Server::builder().bind("127.0.0.1:0").expect("a free port");
    let address = first.local_addr().to_string();
    assert!(bind(&address).starts_with(&format!("bind {address}: ")));
    let text = error(Server::builder().threads(0).bind("127.0.0.1:0").map(drop));
    assert!(text.contains("threads"), "{text}");
    let names = Server::builder().subprotocols(["a b"]);
    assert!(error(names.bind("127.0.0.1:0").map(drop)).contains("subprotocol"));
    let mut limits = sockeye::Limits::default();
    limits.message_len_max = 0;
    let text = error(
        Server::builder()
            .limits(limits)
            .bind("127.0.0.1:0")
            .map(drop),
    );
    assert!(text.contains("message_len_max"), "{text}");
}

fn long_messages(base: Route, turn_len_max: usize) -> Settings {
    let mut settings = Settings {
        base,
        calm: true,
        ..Settings::default()
    };
    settings.limits.turn_len_max = turn_len_max;
    settings.limits.message_len_max = 1 << 20;
    settings.limits.output_len_max = 1 << 21;
    settings
}

/// Who sends a long payload is received from eight times in a row, and the others in the same turn.
fn long_payload_holds_others_up_for_a_while_only(world: World) {
    const TURN_LEN: usize = 2_048;
    let settings = long_messages(Route::default(), TURN_LEN);
    let server = world.start_with(settings, Probe::echo());
    let mut long = server.open();
    let mut short = server.open();
    let payload = vec![b'x'; 300_000];
    long.send(&frame(Opcode::Binary, &payload));
    if world.is_sim() && !world.is_tls() {
        // With what is sent a turn passes.
        let text = frame(Opcode::Text, b"short");
        let before = server.metrics().total().bytes_received;
        short.send(&text);
        let received = server.metrics().total().bytes_received - before;
        assert_eq!(received as usize, 8 * 4 * TURN_LEN + text.len());
        short.expect_text("short");
    }
    short.send_text("again");
    short.expect_text("again");
    long.expect(Opcode::Binary, &payload);
}

/// Where nothing else is done with it but to put it together.
fn long_payload_is_received_in_four_times_the_turn(world: World) {
    const TURN_LEN: usize = 2_048;
    for streams in [false, true] {
        let settings = long_messages(Route::default().streaming(streams), TURN_LEN);
        let server = world.start_with(settings, Probe::echo());
        let mut link = server.open();
        let payload = vec![b'x'; 300_000];
        link.send(&frame(Opcode::Binary, &payload));
        if world.is_sim() {
            let mut most = 0;
            for _ in 0..500 {
                let before = server.metrics().total().bytes_received;
                server.turn(1);
                most = most.max(server.metrics().total().bytes_received - before);
            }
            let most = most as usize;
            match (world.is_tls(), streams) {
                // A record is decrypted whole.
                (true, _) => assert!(most <= TURN_LEN + 16_384 + 512, "{most}"),
                (false, true) => assert_eq!(most, TURN_LEN),
                // Eight times in a row.
                (false, false) => assert_eq!(most, 8 * 4 * TURN_LEN),
            }
        }
        // Where it is delivered in chunks each of them is answered.
        let mut received = 0;
        while received < payload.len() {
            received += link.next_frame().expect("a reply").payload.len();
        }
        link.close(1000);
    }
    // There is no longer turn than the receive buffer's.
    let settings = long_messages(Route::default(), usize::MAX);
    let server = world.start_with(settings, Probe::echo());
    let mut link = server.open();
    let payload = vec![b'y'; 900_000];
    link.send(&frame(Opcode::Binary, &payload));
    link.expect(Opcode::Binary, &payload);
    link.close(1000);
}
