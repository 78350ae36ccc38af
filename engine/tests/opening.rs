//! The opening handshake: routes, origins, answers that come later, proxies, limits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use sockeye::BackendChoice;
use sockeye::ConfigError;
use sockeye::Deferred;
use sockeye::Error;
use sockeye::OriginPolicy;
use sockeye::Proxies;
use sockeye::Response;
use sockeye::Route;
use sockeye::Server;
use sockeye::Upgrade;
use sockeye::protocol::Opcode;

use crate::support;
use crate::support::Data;
use crate::support::Link;
use crate::support::Probe;
use crate::support::REQUEST;
use crate::support::Record;
use crate::support::Running;
use crate::support::Settings;
use crate::support::World;
use crate::support::frame;
use crate::support::request_with;

cases!(
    routes_take_their_paths_and_parameters,
    routes_have_limits_and_subprotocols_of_their_own,
    origins_are_allowed_by_list,
    origins_are_allowed_by_function,
    deferred_answer_comes_from_another_thread,
    deferred_answers_are_limited_in_number,
    deferred_answers_are_limited_in_time,
    deferred_answer_to_a_client_that_has_gone_is_nobodys,
    cookies_go_both_ways,
    proxy_protocol_names_the_client,
    proxy_header_of_anybody_else_is_refused,
    proxy_that_sends_no_header_is_closed,
    proxy_headers_are_believed_from_the_right,
    connections_per_address_are_limited,
    refused_connections_cost_no_tls_session,
);

fn get(path: &str) -> String {
    REQUEST.replacen("GET / ", &format!("GET {path} "), 1)
}

/// What an upgrade of this path answers.
fn status(server: &Running, path: &str) -> u16 {
    let mut link = server.connect();
    link.send(get(path).as_bytes());
    link.read_status()
}

fn routes_take_their_paths_and_parameters(world: World) {
    let mut probe = Probe::echo().on_message(|conn, _| {
        let route = conn.route().map(str::to_owned);
        conn.send(&format!("{route:?}"));
    });
    probe.on_upgrade = Arc::new(|request| {
        let seen = format!(
            "{}|{}|{}",
            request.route().expect("there are routes"),
            request.param("room").unwrap_or_default(),
            request.param("rest").unwrap_or_default(),
        );
        let upgrade = Upgrade::accept(Data::default());
        upgrade.header("X-Seen", &seen).expect("ASCII")
    });
    let settings = Settings {
        routes: vec![
            ("/rooms/{room}", Route::default()),
            ("/rooms/{room}/files/{*rest}", Route::default()),
            ("/lobby", Route::default()),
        ],
        ..Settings::default()
    };
    let server = world.start_with(settings, probe);
    for (path, want) in [
        ("/lobby?a=b", "/lobby||"),
        ("/rooms/a%20b", "/rooms/{room}|a b|"),
        ("/rooms/7/files/a/b?c", "/rooms/{room}/files/{*rest}|7|a/b"),
        // Not UTF-8: no parameter.
        ("/rooms/%ff", "/rooms/{room}||"),
    ] {
        let mut link = server.connect();
        link.send(get(path).as_bytes());
        let head = link.read_head();
        assert!(
            head.contains(&format!("X-Seen: {want}\r\n")),
            "{path}: {head}"
        );
        link.send_text("route");
        link.expect_text(&format!("{:?}", Some(want.split('|').next().unwrap())));
    }
    for path in ["/", "/rooms", "/rooms/", "/lobby/", "/rooms/7/files", "*"] {
        assert_eq!(status(&server, path), 404, "{path}");
    }
    // Plain HTTP has no routes.
    let mut link = server.connect();
    link.send(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(link.read_status(), 200);
}

fn routes_have_limits_and_subprotocols_of_their_own(world: World) {
    let short = Route::default().message_len_max(10).subprotocols(["short"]);
    let long = Route::default().message_len_max(1 << 20);
    let settings = Settings {
        routes: vec![("/short", short), ("/long", long)],
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    let open = |path: &str| {
        let mut link = server.connect();
        let request =
            get(path).replacen("\r\n\r\n", "\r\nSec-WebSocket-Protocol: short\r\n\r\n", 1);
        link.send(request.as_bytes());
        let head = link.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "));
        (link, head.contains("Sec-WebSocket-Protocol: short\r\n"))
    };
    let (mut link, agreed) = open("/short");
    assert!(agreed);
    link.send_text("0123456789");
    link.expect_text("0123456789");
    link.send_text("0123456789a");
    link.expect_close(1009);
    let (mut link, agreed) = open("/long");
    assert!(!agreed);
    let text = "x".repeat(500_000);
    link.send_text(&text);
    link.expect_text(&text);
}

fn origin_status(server: &Running, origin: Option<&str>) -> u16 {
    let mut link = server.connect();
    match origin {
        Some(origin) => link.send(request_with(&format!("Origin: {origin}")).as_bytes()),
        None => link.send(REQUEST.as_bytes()),
    }
    link.read_status()
}

fn origins_are_allowed_by_list(world: World) {
    let policy = OriginPolicy::list(["https://app.test", "*.widgets.test", "http://dev.test:3000"]);
    let settings = Settings {
        base: Route::default().origins(policy),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    for (origin, want) in [
        (None, 101),
        (Some("https://app.test"), 101),
        (Some("http://example.com"), 101),
        (Some("http://a.b.widgets.test"), 101),
        (Some("http://dev.test:3000"), 101),
        (Some("http://app.test"), 403),
        (Some("https://widgets.test"), 403),
        (Some("http://dev.test"), 403),
        (Some("https://app.test.evil.test"), 403),
        (Some("null"), 403),
    ] {
        assert_eq!(origin_status(&server, origin), want, "{origin:?}");
    }
}

fn origins_are_allowed_by_function(world: World) {
    let policy = OriginPolicy::check(|request| {
        // It may look at anything, and decides about requests without an origin as well.
        request.header("Origin") == Some(b"https://the.one") && request.path() == "/"
    });
    let settings = Settings {
        base: Route::default().origins(policy),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    assert_eq!(origin_status(&server, Some("https://the.one")), 101);
    assert_eq!(origin_status(&server, Some("http://example.com")), 403);
    assert_eq!(origin_status(&server, None), 403);
}

type Answers = Arc<Mutex<Asked>>;

#[derive(Default)]
struct Asked {
    /// So many in all.
    asked: usize,
    waiting: VecDeque<Deferred>,
}

/// The answer that was put off first.
fn first(answers: &Answers) -> Deferred {
    answers
        .lock()
        .unwrap()
        .waiting
        .pop_front()
        .expect("one has asked")
}

/// Puts every answer off.
fn deferring() -> (Probe, Answers) {
    let answers = Answers::default();
    let asked = Arc::clone(&answers);
    let mut probe = Probe::echo();
    probe.on_upgrade = Arc::new(move |request| {
        let (upgrade, deferred) = request.defer();
        let mut asked = asked.lock().unwrap();
        asked.asked += 1;
        asked.waiting.push_back(deferred);
        upgrade
    });
    probe.on_deferred = Arc::new(|request, value| {
        let number: Box<u32> = value.downcast().expect("a number");
        let data = Data {
            number: *number,
            log: None,
            at: None,
        };
        assert_eq!(request.request().path(), "/");
        let upgrade = Upgrade::accept(data).header("X-Value", &number.to_string());
        upgrade.expect("a number")
    });
    (probe, answers)
}

/// Waits until so many requests in all have been put off.
fn wait_deferred(server: &Running, answers: &Answers, count: usize) {
    let start = Instant::now();
    while answers.lock().unwrap().asked < count {
        server.turn(1);
        thread::yield_now();
        assert!(start.elapsed() < support::PATIENCE, "nobody has asked");
    }
}

fn deferred_answer_comes_from_another_thread(world: World) {
    let (mut probe, answers) = deferring();
    probe.on_message = Arc::new(|conn, message| {
        let number = conn.data().number;
        conn.send(&format!("{number}: {}", message.as_str().expect("text")));
    });
    let server = world.start_with(Settings::default(), probe);

    // What comes along with the request is kept, and what comes before the answer as well.
    let mut link = server.connect();
    let early = frame(Opcode::Text, b"early");
    link.send(&[REQUEST.as_bytes(), &early[..4]].concat());
    wait_deferred(&server, &answers, 1);
    link.send(&early[4..]);
    link.send_text("and more");
    server.turn(5);
    assert_eq!(server.log().all(), [Record::Upgrade]);
    thread::scope(|scope| _ = scope.spawn(|| first(&answers).accept(7_u32)));
    let head = link.read_head();
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("X-Value: 7\r\n"),
        "{head}"
    );
    link.expect_text("7: early");
    link.expect_text("7: and more");
    link.close(1000);

    let mut link = server.connect();
    link.send(REQUEST.as_bytes());
    wait_deferred(&server, &answers, 2);
    thread::scope(|scope| _ = scope.spawn(|| first(&answers).reject(Response::text(401))));
    assert_eq!(link.read_status(), 401);
    link.read_to_end();

    // One that is forgotten is answered as well.
    let mut link = server.connect();
    link.send(REQUEST.as_bytes());
    wait_deferred(&server, &answers, 3);
    drop(first(&answers));
    assert_eq!(link.read_status(), 503);
}

fn deferred_answers_are_limited_in_number(world: World) {
    let (probe, answers) = deferring();
    let settings = Settings {
        deferred_max: Some(2),
        ..Settings::default()
    };
    let server = world.start_with(settings, probe);
    let mut links: Vec<Link> = (0..3).map(|_| server.connect()).collect();
    for (number, link) in links.iter_mut().enumerate() {
        link.send(REQUEST.as_bytes());
        wait_deferred(&server, &answers, number + 1);
    }
    assert_eq!(links[2].read_status(), 503);
    // One that is answered makes room for another.
    first(&answers).accept(1_u32);
    assert_eq!(links[0].read_status(), 101);
    let mut link = server.connect();
    link.send(REQUEST.as_bytes());
    wait_deferred(&server, &answers, 4);
    let last = answers.lock().unwrap().waiting.pop_back();
    last.expect("it has asked").accept(2_u32);
    assert_eq!(link.read_status(), 101);
}

fn deferred_answers_are_limited_in_time(world: World) {
    let (probe, answers) = deferring();
    let mut settings = Settings::default();
    settings.limits.handshake_timeout = Duration::from_secs(1);
    let server = world.start_with(settings, probe);
    let mut link = server.connect();
    link.send(REQUEST.as_bytes());
    wait_deferred(&server, &answers, 1);
    server.pass(Duration::from_secs(4));
    assert_eq!(link.read_status(), 503);
    // What comes too late is nobody's.
    first(&answers).accept(1_u32);
    assert_eq!(link.read_to_end().len(), "503 Service Unavailable\n".len());
    assert_eq!(server.log().ids(), []);
}

fn deferred_answer_to_a_client_that_has_gone_is_nobodys(world: World) {
    let (probe, answers) = deferring();
    let mut settings = Settings::default();
    settings.limits.close_timeout = Duration::from_secs(1);
    let mut server = world.start_with(settings, probe);
    let mut link = server.connect();
    link.send(REQUEST.as_bytes());
    wait_deferred(&server, &answers, 1);
    link.reset();
    server.turn(5);
    first(&answers).accept(1_u32);
    server.wait_empty();
    // What was opened for it was closed as well.
    let records = server.log().all();
    let opens = records.iter().filter(|r| matches!(r, Record::Open(_)));
    let closes = records.iter().filter(|r| matches!(r, Record::Close(..)));
    assert_eq!(opens.count(), closes.count());
    // One that is still waiting when the server ends does not keep it.
    let mut link = server.connect();
    link.send(REQUEST.as_bytes());
    wait_deferred(&server, &answers, 2);
    server.stop();
    drop(answers);
    drop(link);
}

fn cookies_go_both_ways(world: World) {
    let mut probe = Probe::echo();
    probe.on_upgrade = Arc::new(|request| {
        assert_eq!(request.cookie("session"), Some("abc=="));
        assert_eq!(request.cookie("theme"), Some("dark"));
        assert_eq!(request.cookie("none"), None);
        let upgrade = Upgrade::accept(Data::default());
        let upgrade = upgrade.cookie("session", "def", "Path=/; HttpOnly");
        let upgrade = upgrade.and_then(|upgrade| upgrade.cookie("seen", "1", ""));
        upgrade.expect("both are valid")
    });
    let server = world.start(probe);
    let mut link = server.connect();
    let cookies = "Cookie: a=b; session=abc==;x\r\nCookie: theme=dark; theme=light";
    link.send(request_with(cookies).as_bytes());
    let head = link.read_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.contains("\r\nSet-Cookie: session=def; Path=/; HttpOnly\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nSet-Cookie: seen=1\r\n"), "{head}");
}

/// Says in a header, and in each reply, for whom the connection is.
fn who() -> Probe {
    let mut probe = Probe::echo().on_message(|conn, _| {
        let client = conn.client_addr().expect("it is open").to_string();
        conn.send(&client);
        assert!(
            conn.peer_addr()
                .expect("it is open")
                .to_string()
                .starts_with("127.0.0.1:")
        );
    });
    probe.on_upgrade = Arc::new(|request| {
        let client = request.client_addr().expect("it is there").to_string();
        let upgrade = Upgrade::accept(Data::default()).header("X-Client", &client);
        upgrade.expect("an address")
    });
    probe
}

fn behind(networks: &[&str], change: impl FnOnce(Proxies) -> Proxies) -> Settings {
    let proxies = Proxies::new(networks.iter().copied()).unwrap();
    Settings {
        proxies: Some(change(proxies)),
        ..Settings::default()
    }
}

fn proxy_protocol_names_the_client(world: World) {
    let server = world.start_with(behind(&["127.0.0.0/8"], |p| p), who());
    let v1 = b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 80\r\n".to_vec();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x10".to_vec();
    v2.extend([192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 0, 80, 4, 0, 1, 0]);
    let mut local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00".to_vec();
    local.shrink_to_fit();
    for (header, want) in [
        (v1, "192.0.2.1:4660"),
        (v2, "192.0.2.1:4660"),
        (local, "127.0.0.1:"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1:"),
    ] {
        // Cut at every byte; live ones at some.
        let step = if world.is_sim() { 1 } else { 5 };
        for cut in (0..=header.len()).step_by(step) {
            let mut link = server.connect_behind(&header[..cut], &header[cut..]);
            link.send(REQUEST.as_bytes());
            let head = link.read_head();
            assert!(head.contains(&format!("X-Client: {want}")), "{cut}: {head}");
            link.send_text("who?");
            let reply = link.next_frame().expect("it is open").payload;
            assert!(reply.starts_with(want.as_bytes()), "{reply:?}");
        }
    }
    // In one piece with what comes behind, where that is not encrypted.
    if !world.is_tls() {
        let mut link = server.connect_raw();
        let header = "PROXY TCP6 2001:db8::1 ::1 9 80\r\n";
        link.send(
            &[
                header.as_bytes(),
                REQUEST.as_bytes(),
                &frame(Opcode::Text, b"?"),
            ]
            .concat(),
        );
        assert!(link.read_head().contains("X-Client: [2001:db8::1]:9\r\n"));
        link.expect_text("[2001:db8::1]:9");
    }
}

fn proxy_header_of_anybody_else_is_refused(world: World) {
    let server = world.start_with(behind(&["192.0.2.0/24", "2001:db8::/32"], |p| p), who());
    // Without one it is a client like any other.
    let mut link = server.connect();
    link.send(REQUEST.as_bytes());
    assert!(link.read_head().contains("X-Client: 127.0.0.1:"));
    if !world.is_tls() {
        for header in [
            "PROXY TCP4 192.0.2.1 10.0.0.1 4660 80\r\n",
            "\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00",
        ] {
            let mut link = server.connect();
            link.send(&[header.as_bytes(), REQUEST.as_bytes()].concat());
            assert_eq!(link.read_status(), 400, "{header:?}");
            link.read_to_end();
        }
    }
}

fn proxy_that_sends_no_header_is_closed(world: World) {
    let server = world.start_with(behind(&["127.0.0.1"], |p| p), who());
    for begin in [
        REQUEST.as_bytes(),
        b"PROXY TCP4 nonsense\r\n",
        b"PROXY TCP4 1111111111111111111111111111111111111111111111111111111111111111111111111\
          111111111111111111111111111111111111111111111111111",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xFF\xFF",
        b"\r\n\r\n\0\r\nQUIT\n\x51\x11\x00\x0C............",
    ] {
        let mut link = server.connect_raw();
        link.send(begin);
        assert_eq!(link.read_to_end_or_reset(), b"", "{begin:?}");
    }
    assert_eq!(server.log().all(), []);
}

fn proxy_headers_are_believed_from_the_right(world: World) {
    let networks = ["127.0.0.0/8", "10.0.0.0/8"];
    let cases: [(&str, &str); 6] = [
        ("192.0.2.1", "192.0.2.1:0"),
        // What the client wrote itself stands before what the proxies add.
        ("203.0.113.9, 192.0.2.1, 10.0.0.3", "192.0.2.1:0"),
        ("2001:db8::1", "[2001:db8::1]:0"),
        ("nonsense, 10.0.0.3", "10.0.0.3:0"),
        ("nonsense", "127.0.0.1:"),
        ("", "127.0.0.1:"),
    ];
    let check = |server: &Running, header: &str, want: &str| {
        let mut link = server.connect();
        link.send(request_with(header).as_bytes());
        let head = link.read_head();
        assert!(
            head.contains(&format!("X-Client: {want}")),
            "{header}: {head}"
        );
    };
    let server = world.start_with(behind(&networks, Proxies::x_forwarded_for), who());
    for (value, want) in cases {
        check(&server, &format!("X-Forwarded-For: {value}"), want);
    }
    check(
        &server,
        "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 10.0.0.9",
        "192.0.2.1:0",
    );
    check(&server, "Forwarded: for=192.0.2.1", "127.0.0.1:");
    let server = world.start_with(behind(&networks, Proxies::forwarded), who());
    let two = "Forwarded: for=203.0.113.9;by=x, For=\"[2001:db8::1]:47\", for=10.0.0.3";
    check(&server, two, "[2001:db8::1]:47");
    check(&server, "X-Forwarded-For: 192.0.2.1", "127.0.0.1:");
    // Nobody else is believed.
    let server = world.start_with(behind(&["10.0.0.0/8"], Proxies::x_forwarded_for), who());
    check(&server, "X-Forwarded-For: 192.0.2.1", "127.0.0.1:");
}

fn connections_per_address_are_limited(world: World) {
    let settings = Settings {
        per_address_max: Some(2),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    let mut first = server.open();
    let mut second = server.open();
    for _ in 0..3 {
        assert_eq!(server.connect_raw().read_to_end_or_reset(), b"");
    }
    second.send_text("served");
    second.expect_text("served");
    first.close(1000);
    server.end_of(server.log().ids()[0]);
    first.shutdown();
    // As soon as the socket is closed as well.
    let mut tries = 0;
    loop {
        let mut third = server.connect_raw();
        third.try_send(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n");
        if world.is_tls() || !third.read_to_end_or_reset().is_empty() {
            break;
        }
        tries += 1;
        assert!(tries < 10_000, "never again");
    }
    // Proxies stand for many.
    let settings = Settings {
        per_address_max: Some(1),
        ..behind(&["127.0.0.1"], Proxies::x_forwarded_for)
    };
    let server = world.start_with(settings, Probe::echo());
    let _all: Vec<Link> = (0..3).map(|_| server.open()).collect();
}

/// Without TLS: with it, a client cannot tell who was refused from who is slow.
#[test]
fn accept_rate_is_limited() {
    for world in [World::Poll, World::Uring, World::UringDirect, World::Sim] {
        if !world.is_sim() && world != World::Poll && !support::uring_works() {
            continue;
        }
        let settings = Settings {
            accept_rate_max: 3,
            ..Settings::default()
        };
        let server = world.start_with(settings, Probe::echo());
        let mut links: Vec<Link> = (0..20).map(|_| server.connect()).collect();
        let is_served = |link: &mut Link| {
            link.try_send(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n");
            !link.read_to_end_or_reset().is_empty()
        };
        let served = links.iter_mut().map(is_served).filter(|&served| served);
        let served = served.count();
        // As many more as seconds have passed meanwhile, times three.
        assert!((3..20).contains(&served), "{served}");
        server.pass(Duration::from_secs(1));
        if world.is_sim() {
            assert_eq!(served, 3);
            server.open();
        }
    }
}

/// `[::]` is IPv6 alone unless it is asked to be both; then IPv4 clients are IPv4 clients, to
/// trusted networks and limits per address as well.
#[test]
fn dual_stack_takes_both_and_is_off_by_default() {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
    for backend in [BackendChoice::Poll, BackendChoice::Uring] {
        if backend == BackendChoice::Uring && !support::uring_works() {
            continue;
        }
        for dual_stack in [false, true] {
            let server = Server::builder()
                .on_message(|conn, _| {
                    let peer = conn.peer_addr().expect("it is open").to_string();
                    conn.send(&peer);
                })
                .backend(backend)
                .threads(2)
                .connections_per_address_max(1)
                .dual_stack(dual_stack)
                .bind("[::]:0");
            let Ok(server) = server else {
                println!("SKIPPED: no IPv6 here");
                return;
            };
            let server = server.spawn().expect("it starts");
            let port = server.local_addr().ip().expect("TCP").port();
            let v6 = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).expect("IPv6 is served");
            let v4 = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
            assert_eq!(v4.is_ok(), dual_stack, "{backend:?}");
            let mut open = Vec::new();
            for (stream, prefix) in [(Some(v6), "[::1]:"), (v4.ok(), "127.0.0.1:")] {
                let Some(stream) = stream else { continue };
                let connect = sockeye::Connect::new("ws://localhost/").expect("a URL");
                let client = sockeye::client::Builder::new(connect);
                let mut ws = client.handshake(stream).expect("it opens");
                ws.write_message("who am I?").expect("it is open");
                let peer = ws.read_message().expect("an answer");
                let peer = peer.as_str().expect("text");
                assert!(peer.starts_with(prefix), "{backend:?} {peer}");
                open.push(ws);
            }
            if dual_stack {
                // The limit per address is that of the IPv4 address.
                let mut third = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("listening");
                let mut byte = [0];
                let read = std::io::Read::read(&mut third, &mut byte);
                assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
            }
            server.shutdown();
            server.join().expect("it ends");
        }
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let check = |result: sockeye::Result<()>, want: &str| match result {
        Err(Error::Config(error)) => assert!(error.to_string().contains(want), "{error}"),
        other => panic!("{want}: {other:?}"),
    };
    let bind = |route: &str| {
        let server = Server::builder().route(route, |r| r).bind("127.0.0.1:0");
        server.map(|_| ())
    };
    check(bind("rooms"), "does not begin with /");
    check(bind("/{a}{b}"), "not a route");
    check(bind("/{"), "not a route");
    let twice = Server::builder().route("/{a}", |r| r).route("/{b}", |r| r);
    check(twice.bind("127.0.0.1:0").map(|_| ()), "not a route");
    let origin = Server::builder().origins(OriginPolicy::list(["https://a/b"]));
    check(
        origin.bind("127.0.0.1:0").map(|_| ()),
        "not a pattern of origins",
    );
    let budget = Server::builder().output_budget(1_000, sockeye::Victims::LargestQueue);
    check(budget.bind("127.0.0.1:0").map(|_| ()), "output_budget");
    let promote = Server::builder().promote_within(Duration::ZERO);
    check(promote.bind("127.0.0.1:0").map(|_| ()), "promote_within");
    for text in ["10.0.0.0/33", "a", "10.0.0", ""] {
        let error = Proxies::new([text]).unwrap_err();
        assert!(matches!(error, ConfigError::Network(bad) if bad == text));
    }
}

/// Limits come first: who is refused by one costs no more over TLS than without it.
fn refused_connections_cost_no_tls_session(world: World) {
    const COUNT: usize = 50;
    let settings = Settings {
        connections_max: Some(1),
        ..Settings::default()
    };
    let server = world.start_with(settings, Probe::echo());
    let mut first = server.open();
    first.send_text("echo");
    first.expect_text("echo");
    // On a simulated network the test's own allocations are counted.
    let counted = !world.is_sim();
    let before = server.memory.calls();
    for _ in 0..COUNT {
        server.connect_raw().read_to_end_or_reset();
    }
    server.wait_metrics(|metrics| metrics.refused == COUNT as u64);
    let calls = server.memory.calls() - before;
    assert!(!counted || calls < COUNT, "{calls}");
    first.send_text("still there");
    first.expect_text("still there");
}
