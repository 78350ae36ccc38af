//! TLS: certificates, what the two ends agree, and attacks on it. What does not depend on TLS
//! itself runs over it in the other files.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use sockeye::BackendChoice;
use sockeye::CloseCause;
use sockeye::Connect;
use sockeye::Handle;
use sockeye::Server;
use sockeye::client;
use sockeye::protocol::Opcode;
use sockeye::tls::ClientTls;
use sockeye::tls::ServerTls;
use sockeye::tls::TlsError;

use crate::support;
use crate::support::Probe;
use crate::support::REQUEST;
use crate::support::Record;
use crate::support::Settings;
use crate::support::Why;
use crate::support::World;
use crate::support::certificates;
use crate::support::certificates::Authority;
use crate::support::certificates::Certified;
use crate::support::certificates::authority;
use crate::support::certificates::client_tls;
use crate::support::certificates::server_tls;
use crate::support::frame;

/// Runs a case on each backend.
fn on_each_backend(case: impl Fn(BackendChoice)) {
    if support::uring_works() {
        case(BackendChoice::Uring);
    }
    case(BackendChoice::Poll);
}

/// An echo server.
fn serve(backend: BackendChoice, tls: Option<&ServerTls>) -> Handle {
    let builder = Server::builder()
        .on_message(|conn, message| {
            conn.send(message);
        })
        .backend(backend)
        .threads(1);
    let bound = match tls {
        Some(tls) => builder.bind_tls("127.0.0.1:0", tls),
        None => builder.bind("127.0.0.1:0"),
    };
    bound.expect("a free port").spawn().expect("it starts")
}

fn address(server: &Handle) -> SocketAddr {
    server.local_addr().ip().expect("an IP address")
}

fn end(server: Handle) {
    server.shutdown();
    server.join().expect("it ends");
}

/// A connection to this server under this name.
fn connect(scheme: &str, name: &str, server: &Handle, tls: &ClientTls) -> Connect {
    let url = format!("{scheme}://{name}:{}/", address(server).port());
    let connect = Connect::new(&url).expect("a URL");
    connect.address(address(server)).tls(tls.clone())
}

/// What the blocking client says, and what the reactor's says, of a connection that must not
/// open.
fn errors(connect: &Connect, backend: BackendChoice) -> [String; 2] {
    let blocking = client::Builder::new(connect.clone()).connect();
    let blocking = blocking.expect_err("it must not open").to_string();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let mut engine = sockeye::Engine::builder()
        .on_open(|_| panic!("it must not open"))
        .on_close(move |_, closed| {
            let CloseCause::NotOpened(error) = &closed.cause else {
                panic!("{closed:?}");
            };
            log.lock().expect("no panic").push(error.to_string());
        })
        .backend(backend)
        .engine()
        .expect("it starts");
    engine.connect(connect, ()).expect("it can be asked for");
    while engine.connections() > 0 {
        engine.turn(Some(Duration::from_secs(1))).expect("it turns");
    }
    let errors = seen.lock().expect("no panic").clone();
    assert_eq!(errors.len(), 1, "one error: {errors:?}");
    [blocking, errors[0].clone()]
}

/// A client that is connected, and must notice nothing.
fn bystander(server: &Handle, scheme: &str) -> client::WebSocket<client::Stream> {
    let connect = connect(scheme, "localhost", server, client_tls());
    let mut ws = client::Builder::new(connect).connect().expect("it opens");
    check_echo(&mut ws);
    ws
}

fn check_echo(ws: &mut client::WebSocket<client::Stream>) {
    ws.write_message("still here").expect("sent");
    let message = ws.read_message().expect("an echo");
    assert_eq!(message.as_str(), Some("still here"));
}

#[test]
fn wrong_host_name_is_one_clear_error() {
    on_each_backend(|backend| {
        let server = serve(backend, Some(server_tls()));
        let mut bystander = bystander(&server, "wss");
        let wrong = connect("wss", "other.example", &server, client_tls());
        for error in errors(&wrong, backend) {
            assert!(error.contains("not valid for name"), "{error}");
            assert!(error.contains("other.example"), "{error}");
        }
        check_echo(&mut bystander);
        drop(bystander);
        end(server);
    });
}

#[test]
fn expired_certificate_is_one_clear_error() {
    on_each_backend(|backend| {
        let expired = authority().issue_expired(&["localhost"]).server();
        let server = serve(backend, Some(&expired));
        let late = connect("wss", "localhost", &server, client_tls());
        for error in errors(&late, backend) {
            assert!(error.contains("expired"), "{error}");
        }
        end(server);
    });
}

#[test]
fn unknown_authority_is_one_clear_error() {
    on_each_backend(|backend| {
        let server = serve(backend, Some(server_tls()));
        let mut bystander = bystander(&server, "wss");
        let others = Authority::new("somebody else").pem;
        let others = ClientTls::builder().roots_pem(others.as_bytes()).build();
        let others = others.expect("an authority");
        let connect = connect("wss", "localhost", &server, &others);
        for error in errors(&connect, backend) {
            assert!(error.contains("UnknownIssuer"), "{error}");
        }
        check_echo(&mut bystander);
        drop(bystander);
        end(server);
    });
}

#[test]
fn plain_client_on_a_tls_port_is_told_so() {
    on_each_backend(|backend| {
        let server = serve(backend, Some(server_tls()));
        let mut bystander = bystander(&server, "wss");
        let plain = connect("ws", "localhost", &server, client_tls());
        for error in errors(&plain, backend) {
            assert_eq!(error, "the server answered 400 Bad Request");
        }
        match client::Builder::new(plain).connect() {
            Err(client::Error::Refused(refusal)) => {
                assert_eq!(refusal.body, b"this port speaks TLS\n");
            }
            other => panic!("{other:?}"),
        }
        // Neither TLS nor HTTP.
        let mut stream = TcpStream::connect(address(&server)).expect("it listens");
        stream.write_all(b"\x00\x01\x02\x03\x04").expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an end");
        assert_eq!(answer, b"");
        drop(stream);
        check_echo(&mut bystander);
        drop(bystander);
        end(server);
    });
}

#[test]
fn tls_client_on_a_plain_port_is_one_clear_error() {
    on_each_backend(|backend| {
        let server = serve(backend, None);
        let mut bystander = bystander(&server, "ws");
        let secure = connect("wss", "localhost", &server, client_tls());
        for error in errors(&secure, backend) {
            assert!(error.contains("not a TLS port"), "{error}");
        }
        check_echo(&mut bystander);
        drop(bystander);
        end(server);
    });
}

/// The name that the certificate is for which a client of this name gets.
fn certificate_for(server: &Handle, name: &'static str) -> Vec<u8> {
    let mut tls = certificates::client_session(name);
    let mut stream = TcpStream::connect(address(server)).expect("it listens");
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).expect("TLS");
    }
    tls.peer_certificates().expect("the server's")[0].to_vec()
}

/// A folder for PEM files, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sockeye-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    fn put(&self, name: &str, certified: &Certified) -> (PathBuf, PathBuf) {
        let chain = self.write(&format!("{name}.pem"), &certified.chain);
        (chain, self.write(&format!("{name}.key"), &certified.key))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn der(certified: &Certified) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    let der = rustls::pki_types::CertificateDer::from_pem_slice(certified.chain.as_bytes());
    der.expect("a certificate").to_vec()
}

#[test]
fn certificate_is_chosen_by_name() {
    let folder = Folder::new("sni");
    let default = authority().issue(&["localhost", "nobody.example"]);
    let chat = authority().issue(&["chat.example"]);
    let wild = authority().issue(&["*.wild.example"]);
    let put = |name, certified| folder.put(name, certified);
    let ((a, a_key), (b, b_key), (c, c_key)) =
        (put("a", &default), put("b", &chat), put("c", &wild));
    let tls = ServerTls::builder()
        .certificate(&a, &a_key)
        .certificate_for("chat.example", &b, &b_key)
        .certificate_for("*.wild.example", &c, &c_key)
        .build()
        .expect("three certificates");
    let server = serve(BackendChoice::Poll, Some(&tls));
    assert!(certificate_for(&server, "localhost") == der(&default));
    assert!(certificate_for(&server, "nobody.example") == der(&default));
    assert!(certificate_for(&server, "chat.example") == der(&chat));
    assert!(certificate_for(&server, "any.wild.example") == der(&wild));
    end(server);
    let wrong = ServerTls::builder().certificate_for("other.example", &b, &b_key);
    assert!(matches!(wrong.build(), Err(TlsError::Name(name)) if name == "other.example"));
}

#[test]
fn certificates_are_reloaded_while_connections_go_on() {
    on_each_backend(|backend| {
        let folder = Folder::new(&format!("reload-{backend}"));
        let first = authority().issue(&["localhost"]);
        let (chain, key) = folder.put("server", &first);
        let tls = ServerTls::from_pem_files(&chain, &key).expect("a certificate");
        let server = serve(backend, Some(&tls));
        let mut old = bystander(&server, "wss");
        assert!(certificate_for(&server, "localhost") == der(&first));

        let second = authority().issue(&["localhost"]);
        folder.put("server", &second);
        assert!(
            certificate_for(&server, "localhost") == der(&first),
            "not yet"
        );
        tls.reload().expect("a certificate");
        assert!(certificate_for(&server, "localhost") == der(&second));
        check_echo(&mut old);

        // A key that is another's, no certificate, no file: nothing changes.
        folder.write("server.key", &first.key);
        assert!(matches!(tls.reload(), Err(TlsError::Rustls(_))));
        folder.put("server", &second);
        folder.write("server.pem", "nothing");
        assert!(matches!(tls.reload(), Err(TlsError::NoCertificate(_))));
        std::fs::remove_file(&chain).expect("it is there");
        assert!(matches!(tls.reload(), Err(TlsError::Read { .. })));
        assert!(certificate_for(&server, "localhost") == der(&second));
        check_echo(&mut old);
        drop(old);
        end(server);
    });
}

#[test]
fn client_certificates_are_asked_for_and_shown_to_the_handler() {
    on_each_backend(|backend| {
        let clients = Authority::new("clients");
        let own = authority().issue(&["localhost"]);
        for required in [true, false] {
            let tls = ServerTls::builder()
                .certificate_pem(own.chain.as_bytes(), own.key.as_bytes())
                .client_certificates_pem(clients.pem.as_bytes(), required)
                .build()
                .expect("certificates");
            let server = Server::builder()
                .on_open(|conn| {
                    let tls = conn.tls().expect("there is TLS");
                    let certificate = tls.peer_certificates().map(|chain| chain[0].to_vec());
                    conn.send(&certificate.unwrap_or_default());
                })
                .backend(backend)
                .threads(1)
                .bind_tls("127.0.0.1:0", &tls)
                .expect("a free port")
                .spawn()
                .expect("it starts");
            let with = |certified: Option<&Certified>| {
                let mut builder = ClientTls::builder().roots_pem(authority().pem.as_bytes());
                if let Some(c) = certified {
                    builder = builder.certificate_pem(c.chain.as_bytes(), c.key.as_bytes());
                }
                let tls = builder.build().expect("certificates");
                let connect = connect("wss", "localhost", &server, &tls);
                // A server that refuses says so when the client has begun to speak.
                let mut ws = client::Builder::new(connect).connect()?;
                Ok::<_, client::Error>(ws.read_message()?.payload().to_vec())
            };
            let good = clients.issue(&["a client"]);
            assert!(with(Some(&good)).expect("it opens") == der(&good));
            let foreign = authority().issue(&["somebody else"]);
            with(Some(&foreign)).expect_err("another authority's");
            match with(None) {
                Ok(none) => assert!(!required && none.is_empty()),
                Err(error) => assert!(required, "{error}"),
            }
            end(server);
        }
    });
}

#[test]
fn only_http_1_1_is_agreed() {
    on_each_backend(|backend| {
        let server = serve(backend, Some(server_tls()));
        let agree = |offered: &[&[u8]]| {
            let mut config = (*client_tls().config()).clone();
            config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
            let mut tls = certificates::client_session_of(Arc::new(config), "localhost");
            let mut stream = TcpStream::connect(address(&server)).expect("it listens");
            while tls.is_handshaking() {
                tls.complete_io(&mut stream)?;
            }
            Ok::<_, std::io::Error>(tls.alpn_protocol().map(<[u8]>::to_vec))
        };
        assert_eq!(agree(&[]).expect("TLS"), None);
        let want = Some(b"http/1.1".to_vec());
        assert_eq!(agree(&[b"h2", b"http/1.1"]).expect("TLS"), want);
        let error = agree(&[b"h2"]).expect_err("nothing in common");
        assert!(
            error.to_string().contains("NoApplicationProtocol"),
            "{error}"
        );
        end(server);
    });
}

#[test]
fn sessions_are_resumed() {
    // Tickets in one record, and in many.
    for max_fragment_size in [None, Some(64)] {
        let mut config = (*server_tls().config()).clone();
        config.max_fragment_size = max_fragment_size;
        let server_tls = ServerTls::from_config(Arc::new(config)).expect("it can be used");
        on_each_backend(|backend| resumes(backend, &server_tls));
    }
}

fn resumes(backend: BackendChoice, server_tls: &ServerTls) {
    let resumed = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&resumed);
    let server = Server::builder()
        .on_open(move |conn| {
            let tls = conn.tls().expect("there is TLS");
            seen.lock().expect("no panic").push(tls.is_resumed());
        })
        .on_message(|conn, message| {
            conn.send(message);
        })
        .backend(backend)
        .threads(1)
        .bind_tls("127.0.0.1:0", server_tls)
        .expect("a free port")
        .spawn()
        .expect("it starts");
    let tls = ClientTls::builder().roots_pem(authority().pem.as_bytes());
    let tls = tls.build().expect("an authority");
    for _ in 0..3 {
        let connect = connect("wss", "localhost", &server, &tls);
        let mut ws = client::Builder::new(connect).connect().expect("it opens");
        // The tickets come with the first bytes that are read.
        check_echo(&mut ws);
    }
    // The reactor's client has a trust of its own, so no tickets yet.
    let tls = ClientTls::builder().roots_pem(authority().pem.as_bytes());
    let tls = tls.build().expect("an authority");
    let mut engine = sockeye::Engine::builder()
        .on_open(|conn| {
            conn.send("hello");
        })
        .on_message(|conn, _| conn.close(sockeye::CloseCode::NORMAL, ""))
        .backend(backend)
        .engine()
        .expect("it starts");
    for _ in 0..3 {
        let connect = connect("wss", "localhost", &server, &tls);
        engine.connect(&connect, ()).expect("it can be asked for");
        while engine.connections() > 0 {
            engine.turn(Some(Duration::from_secs(1))).expect("it turns");
        }
    }
    end(server);
    let want = [false, true, true].repeat(2);
    assert_eq!(*resumed.lock().expect("no panic"), want);
}

cases_over_tls!(
    close_notify_comes_before_the_fin,
    stream_without_close_notify_is_lost,
    few_records_in_a_turn,
    tls_close_notify_in_the_handshake,
    tls_fragmented_client_hello,
    tls_dribbled_handshake,
    tls_silence_in_the_handshake,
    tls_garbage,
    tls_altered_record,
    tls_key_updates,
    tls_key_update_flood,
    tls_records_out_of_place,
);

fn close_notify_comes_before_the_fin(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.open();
    link.close(1000);
    let tls = link.tls.as_mut().expect("there is TLS");
    let state = tls.process_new_packets().expect("valid records");
    assert!(state.peer_has_closed(), "no close_notify");
}

fn stream_without_close_notify_is_lost(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.open();
    // The FIN alone, which anybody on the way can send.
    link.tls = None;
    link.shutdown();
    let ended = server.ended();
    assert_eq!((ended.why, ended.clean), (Why::Lost, false));
}

/// What a turn has to send is encrypted together.
fn few_records_in_a_turn(world: World) {
    let settings = Settings::default();
    let server = world.start_with(
        settings,
        Probe::echo().on_message(|conn, message| {
            for _ in 0..300 {
                conn.send(message);
            }
        }),
    );
    let mut link = server.open();
    link.send_frame(Opcode::Binary, &[7; 100]);
    link.record_lens.clear();
    for _ in 0..300 {
        link.expect(Opcode::Binary, &[7; 100]);
    }
    // 30,600 bytes of frames fit into two records.
    assert_eq!(link.record_lens.len(), 2);
}

/// CVE-2024-32650: a close_notify in the middle of the handshake.
fn tls_close_notify_in_the_handshake(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.connect_raw();
    let hello = hello();
    link.try_send_raw(&hello);
    link.try_send_raw(&[21, 3, 3, 0, 2, 1, 0]);
    link.read_to_end();
    let mut link = server.connect_raw();
    link.try_send_raw(&[21, 3, 3, 0, 2, 1, 0]);
    link.read_to_end();
    serves_others(&server);
}

/// The first message of a client.
fn hello() -> Vec<u8> {
    let mut tls = certificates::client_session("localhost");
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).expect("memory");
    hello
}

fn serves_others(server: &support::Running) {
    let mut link = server.open();
    link.send_text("served");
    link.expect_text("served");
}

/// CVE-2024-11738: a ClientHello in many records, of one byte each.
fn tls_fragmented_client_hello(world: World) {
    let server = world.start(Probe::echo());
    let hello = hello();
    let mut records = Vec::new();
    for byte in &hello[5..] {
        records.extend([22, 3, 1, 0, 1, *byte]);
    }
    let mut link = server.connect_raw();
    link.try_send_raw(&records);
    // It is answered like any other, or refused; nobody else notices.
    assert!(!link.read_some().is_empty());
    // One that never ends.
    let mut link = server.connect_raw();
    let mut endless = vec![22, 3, 1, 0, 4, 1, 0xFF, 0xFF, 0xFF];
    for _ in 0..100_000 / 1_000 {
        endless.extend([22, 3, 1, 0x03, 0xE8]);
        endless.extend([0; 1_000]);
    }
    link.try_send_raw(&endless);
    link.shutdown();
    link.read_to_end();
    serves_others(&server);
}

/// Each byte of the handshake and of the first message comes alone.
fn tls_dribbled_handshake(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.connect_dribbling();
    link.dribble(REQUEST.as_bytes());
    assert_eq!(link.read_status(), 101);
    link.dribble(&frame(Opcode::Text, b"slowly"));
    link.expect_text("slowly");
}

/// T-slowloris with TLS: the time-out is on the whole handshake.
fn tls_silence_in_the_handshake(world: World) {
    let mut settings = Settings::default();
    settings.limits.handshake_timeout = Duration::from_secs(1);
    let server = world.start_with(settings, Probe::echo());
    let mut silent = server.connect_raw();
    let mut hello_only = server.connect_raw();
    hello_only.try_send_raw(&hello());
    let mut tls_only = server.connect();
    server.pass(Duration::from_secs(4));
    assert_eq!(silent.read_to_end(), b"");
    hello_only.read_to_end();
    assert_eq!(tls_only.read_to_end(), b"");
    let closed = |record: &Record| matches!(record, Record::Close(..));
    assert!(!server.log().all().iter().any(closed), "none was open");
    serves_others(&server);
}

fn tls_garbage(world: World) {
    let server = world.start(Probe::echo());
    let mut chance = sockeye::testkit::Chance::new(11);
    for round in 0..if world.is_sim() { 500 } else { 50 } {
        let mut link = server.connect_raw();
        let mut bytes = hello();
        if round % 2 == 0 {
            for _ in 0..1 + chance.below(4) {
                let place = chance.below(bytes.len());
                bytes[place] = chance.bits() as u8;
            }
        } else {
            // A record of any type and length.
            bytes = (0..chance.below(20_000))
                .map(|_| chance.bits() as u8)
                .collect();
            if let [kind, major, ..] = &mut bytes[..] {
                (*kind, *major) = (20 + chance.below(5) as u8, 3);
            }
        }
        link.try_send_raw(&bytes);
        link.shutdown();
    }
    serves_others(&server);
}

/// A byte that was changed on the way is found, and nothing of its record is delivered.
fn tls_altered_record(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.open();
    link.send_text("good");
    link.expect_text("good");
    let mut sealed = link.seal(&frame(Opcode::Text, b"altered"));
    let last = sealed.len() - 1;
    sealed[last] ^= 1;
    link.try_send_raw(&sealed);
    let ended = server.ended();
    assert_eq!((ended.why, ended.clean), (Why::Lost, false));
    assert_eq!(server.log().messages(), [b"good".to_vec()]);
    serves_others(&server);
}

/// The length of a key update's record: header, message, type, tag.
const KEY_UPDATE_LEN: usize = 5 + 5 + 1 + 16;

/// Either end changes its keys, and asks the other to.
fn tls_key_updates(world: World) {
    let running = world.start(Probe::echo());
    for mut link in [running.open(), running.dial_open()] {
        link.record_lens.clear();
        for round in 0..40 {
            let text = format!("round {round}");
            let tls = link.tls.as_mut().expect("there is TLS");
            tls.refresh_traffic_keys().expect("TLS 1.3");
            link.send_text(&text);
            link.expect_text(&text);
        }
        // Each was answered, before the next message.
        let is_update = |len: &&usize| **len == KEY_UPDATE_LEN;
        let updates = link.record_lens.iter().filter(is_update).count();
        assert_eq!((updates, link.record_lens.len()), (40, 80));
        if !world.is_sim() {
            link.send_frame(Opcode::Binary, &[1; 60_000]);
            link.expect(Opcode::Binary, &[1; 60_000]);
        }
        link.send_frame(Opcode::Close, &1000_u16.to_be_bytes());
        link.expect_close(1000);
    }
}

/// New keys cost more than the record that asks for them.
fn tls_key_update_flood(world: World) {
    let server = world.start(Probe::echo());
    let mut link = server.open();
    for _ in 0..40 {
        let tls = link.tls.as_mut().expect("there is TLS");
        tls.refresh_traffic_keys().expect("TLS 1.3");
        // It is sent with the next write: here of nothing.
        let record = link.seal(b"");
        link.try_send_raw(&record);
    }
    let ended = server.ended();
    assert_eq!((ended.why, ended.clean), (Why::Lost, false));
    serves_others(&server);
}

/// What no record may be once the handshake is done.
fn tls_records_out_of_place(world: World) {
    let server = world.start(Probe::echo());
    for record in [
        // Not encrypted: a change of cipher, an alert, a handshake message, data.
        &[20, 3, 3, 0, 1, 1][..],
        &[21, 3, 3, 0, 2, 1, 0],
        &[22, 3, 3, 0, 4, 0, 0, 0, 0],
        &[23, 3, 3, 0, 5, b'h', b'e', b'l', b'l', b'o'],
        &[23, 3, 3, 0, 0],
        // Longer than a record may be: refused with its header.
        &[23, 3, 3, 0x41, 0x01],
        &[23, 3, 3, 0xFF, 0xFF],
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut link = server.open();
        let id = *server.log().ids().last().expect("it is open");
        link.try_send_raw(record);
        let ended = server.end_of(id);
        assert_eq!((ended.why, ended.clean), (Why::Lost, false), "{record:?}");
    }
    serves_others(&server);
}

/// A server's configuration with these suites and versions, and the tests' certificate.
fn server_config(
    suites: Vec<rustls::SupportedCipherSuite>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> rustls::ServerConfig {
    let provider = rustls::crypto::CryptoProvider {
        cipher_suites: suites,
        ..rustls::crypto::ring::default_provider()
    };
    rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .expect("they fit")
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&server_tls().config().cert_resolver))
}

fn exchanges(config: rustls::ServerConfig, count: usize) -> Option<rustls::CipherSuite> {
    let suite = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&suite);
    let tls = ServerTls::from_config(Arc::new(config)).expect("it can be used");
    let server = Server::builder()
        .on_message(move |conn, message| {
            let tls = conn.tls().expect("there is TLS");
            *seen.lock().expect("no panic") = tls.cipher_suite();
            conn.send(message);
        })
        .threads(1)
        .bind_tls("127.0.0.1:0", &tls)
        .expect("a free port")
        .spawn()
        .expect("it starts");
    let connect = connect("wss", "localhost", &server, client_tls());
    let mut ws = client::Builder::new(connect).connect().expect("it opens");
    let payload: Vec<u8> = (0..60_000).map(|n| n as u8).collect();
    for _ in 0..count {
        ws.write_message(&payload).expect("sent");
        assert!(ws.read_message().expect("an echo").payload() == payload);
    }
    ws.close(sockeye::CloseCode::NORMAL, "").expect("closed");
    end(server);
    let suite = suite.lock().expect("no panic");
    *suite
}

/// Every suite, with sessions that take the keys and with sessions that leave them to rustls.
#[test]
fn every_version_and_suite() {
    for suite in rustls::crypto::ring::ALL_CIPHER_SUITES {
        let versions = [suite.version()];
        for extract in [false, true] {
            let mut config = server_config(vec![*suite], &versions);
            config.enable_secret_extraction = extract;
            // The certificate's key is one for ECDSA.
            if format!("{suite:?}").contains("_RSA_") {
                continue;
            }
            assert_eq!(exchanges(config, 3), Some(suite.suite()));
        }
    }
}

/// RFC 8446 §5.5: keys are changed before too much has been encrypted with them.
#[test]
fn keys_change_before_their_limit() {
    /// rustls wants suites for ever: here they stay.
    static SUITES: Mutex<Vec<&rustls::Tls13CipherSuite>> = Mutex::new(Vec::new());
    const LIMIT: u64 = 10;
    const MESSAGES: usize = 100;
    for suite in rustls::crypto::ring::ALL_CIPHER_SUITES {
        let rustls::SupportedCipherSuite::Tls13(suite) = suite else {
            continue;
        };
        let soon: &'static rustls::Tls13CipherSuite =
            Box::leak(Box::new(rustls::Tls13CipherSuite {
                common: rustls::crypto::CipherSuiteCommon {
                    suite: suite.common.suite,
                    hash_provider: suite.common.hash_provider,
                    confidentiality_limit: LIMIT,
                },
                hkdf_provider: suite.hkdf_provider,
                aead_alg: suite.aead_alg,
                quic: None,
            }));
        SUITES.lock().expect("no panic").push(soon);
        let suites = vec![rustls::SupportedCipherSuite::Tls13(soon)];
        let mut config = server_config(suites, &[&rustls::version::TLS13]);
        config.enable_secret_extraction = true;
        let tls = ServerTls::from_config(Arc::new(config)).expect("it can be used");
        let settings = Settings {
            tls: Some(tls),
            ..Settings::default()
        };
        let server = World::PollTls.start_with(settings, Probe::echo());
        let mut link = server.open();
        link.record_lens.clear();
        for _ in 0..MESSAGES {
            link.send_frame(Opcode::Binary, &[7; 100]);
            link.expect(Opcode::Binary, &[7; 100]);
        }
        // Before every ninth record at the latest, and nothing but those and the messages.
        let is_update = |len: &&usize| **len == KEY_UPDATE_LEN;
        let updates = link.record_lens.iter().filter(is_update).count();
        assert_eq!(link.record_lens.len(), MESSAGES + updates);
        assert!(
            (MESSAGES / 9..=MESSAGES / 5).contains(&updates),
            "{updates}"
        );
        link.close(1000);
    }
}

/// Early data could be sent once more by whoever has recorded it.
#[test]
fn tls_early_data_is_off_and_stays_off() {
    assert_eq!(server_tls().config().max_early_data_size, 0);
    assert!(!client_tls().config().enable_early_data);
    let mut config = (*server_tls().config()).clone();
    config.max_early_data_size = 1_000;
    let config = Arc::new(config);
    let refused = ServerTls::from_config(Arc::clone(&config));
    assert!(matches!(refused, Err(TlsError::EarlyData)));
    let own = authority().issue(&["localhost"]).server();
    assert!(matches!(own.replace(config), Err(TlsError::EarlyData)));
}

#[test]
fn settings_that_make_no_sense_are_clear_errors() {
    let text = |error: TlsError| error.to_string();
    let missing = ServerTls::from_pem_files("/nonexistent.pem", "/nonexistent.key");
    assert!(text(missing.expect_err("no file")).starts_with("/nonexistent.pem: "));
    assert!(text(ServerTls::builder().build().expect_err("none")).contains("no certificate"));
    let own = authority().issue(&["localhost"]);
    let no_key = ServerTls::builder().certificate_pem(own.chain.as_bytes(), b"nothing");
    assert!(text(no_key.build().expect_err("no key")).contains("no private key"));
    let key_alone = ServerTls::builder().certificate_pem(own.key.as_bytes(), own.key.as_bytes());
    let key_alone = text(key_alone.build().expect_err("no certificate"));
    assert!(key_alone.contains("no certificate"), "{key_alone}");
    assert!(key_alone.contains("PRIVATE KEY"), "{key_alone}");
    let text_alone = ClientTls::builder().roots_pem(b"nothing").build();
    let text_alone = text(text_alone.expect_err("no certificate"));
    assert!(text_alone.contains("it is not PEM text"), "{text_alone}");
    // An encrypted key, as PKCS #8 and as OpenSSL had it before.
    for encrypted in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n\
         AAAA\n-----END RSA PRIVATE KEY-----\n",
    ] {
        let tls = ServerTls::builder().certificate_pem(own.chain.as_bytes(), encrypted.as_bytes());
        let error = text(tls.build().expect_err("it is encrypted"));
        assert!(error.contains("is encrypted"), "{error}");
    }
    let given = ServerTls::from_config(server_tls().config()).expect("it can be used");
    assert!(matches!(given.reload(), Err(TlsError::NotReloadable)));
    let roots = ClientTls::from_roots_file("/nonexistent.pem");
    assert!(text(roots.expect_err("no file")).starts_with("/nonexistent.pem: "));
    // A key is in no message and in no log.
    let debug = format!(
        "{:?}",
        ServerTls::builder().certificate_pem(b"secret", b"secret")
    );
    assert!(
        !debug.contains("115, 101") && !debug.contains("secret"),
        "{debug}"
    );
}
