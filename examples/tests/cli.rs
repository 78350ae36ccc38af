//! The examples as programs: what they print, and what they say of bad input.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

const EXAMPLES: [&str; 7] = [
    "echo",
    "broadcast",
    "autobahn",
    "chat",
    "drain",
    "axum",
    "in_tokio",
];

/// `cargo test` builds the examples beside the tests.
fn program(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().expect("this program");
    path.pop();
    path.pop();
    path.join("examples").join(name)
}

#[test]
fn bad_input_gives_one_line_and_exit_code_2() {
    for example in EXAMPLES {
        for bad in [
            &["--bind", "nonsense"][..],
            &["--bind", "127.0.0.1:99999"],
            &["--bind", "unix:"],
            &["--bind"],
            &["--threads", "0"],
            &["--threads", "1025"],
            &["--threads", "many"],
            &["--backend", "kqueue"],
            &["--max-message", "0"],
            &["--max-message", "-1"],
            &["--connections", "0"],
            &["--no-such-flag"],
            &["surplus"],
        ] {
            let output = Command::new(program(example))
                .args(bad)
                .output()
                .expect("it runs");
            assert_eq!(output.status.code(), Some(2), "{example} {bad:?}");
            assert!(output.stdout.is_empty(), "{example} {bad:?}");
            let text = String::from_utf8(output.stderr).expect("text");
            assert_eq!(text.lines().count(), 1, "{example} {bad:?}: {text}");
            assert!(text.starts_with("error: "), "{example} {bad:?}: {text}");
        }
    }
}

/// A running example. Killed when it is dropped.
struct Running {
    process: Child,
    line: String,
}

impl Running {
    fn start(example: &str, flags: &[&str]) -> Self {
        Self::start_command(Command::new(program(example)), flags)
    }

    fn start_command(mut command: Command, flags: &[&str]) -> Self {
        if !flags.contains(&"--bind") {
            command.args(["--bind", "127.0.0.1:0"]);
        }
        let mut process = command
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let output = process.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("a line");
        Self { process, line }
    }

    fn address(&self) -> &str {
        self.line.split([' ', ',']).nth(2).expect("an address")
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).expect("it listens");
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).expect("a socket");
        stream
    }

    fn upgrade(&self, path: &str) -> TcpStream {
        let mut stream = self.connect();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("an answer");
            head.extend(byte);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
        stream
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Short text, masked with zeros.
fn say(stream: &mut TcpStream, text: &str) {
    let len = u8::try_from(text.len()).expect("short");
    assert!(len < 126);
    let mut frame = vec![0x81, 0x80 | len, 0, 0, 0, 0];
    frame.extend(text.as_bytes());
    stream.write_all(&frame).expect("sent");
}

fn hear(stream: &mut TcpStream, text: &str) {
    let mut frame = vec![0; 2 + text.len()];
    stream.read_exact(&mut frame).expect("a frame");
    assert_eq!(frame[0], 0x81);
    assert_eq!(String::from_utf8_lossy(&frame[2..]), text);
}

/// Whether io_uring works here; containers often forbid it.
fn uring_works() -> bool {
    let works = !Running::start("echo", &["--backend", "uring"])
        .line
        .is_empty();
    if !works {
        println!("SKIPPED: io_uring does not work here");
    }
    works
}

#[test]
fn echo_says_once_what_runs_and_echoes() {
    for (backend, runs) in [
        ("uring", "io_uring, regular descriptors"),
        ("poll", "epoll"),
    ] {
        if backend == "uring" && !uring_works() {
            continue;
        }
        let flags = [
            "--backend",
            backend,
            "--threads",
            "2",
            "--connections",
            "100",
        ];
        let server = Running::start("echo", &flags);
        let line = &server.line;
        assert!(line.starts_with("listening on 127.0.0.1:"), "{line}");
        assert!(line.ends_with(&format!(", {runs}, threads: 2\n")), "{line}");
        let mut stream = server.upgrade("/");
        say(&mut stream, "hello");
        hear(&mut stream, "hello");
    }
}

#[test]
fn max_message_is_the_longest_message() {
    let server = Running::start("echo", &["--max-message", "5"]);
    let mut stream = server.upgrade("/");
    say(&mut stream, "12345");
    hear(&mut stream, "12345");
    say(&mut stream, "123456");
    let mut close = [0; 4];
    stream.read_exact(&mut close).expect("a Close frame");
    assert_eq!(close[0], 0x88);
    assert_eq!(close[2..], 1009_u16.to_be_bytes());
}

#[test]
fn broadcast_goes_to_everyone() {
    let server = Running::start("broadcast", &["--threads", "2"]);
    let mut streams: Vec<TcpStream> = (0..10).map(|_| server.upgrade("/")).collect();
    say(&mut streams[3], "to all");
    for stream in &mut streams {
        hear(stream, "to all");
    }
}

#[test]
fn chat_serves_a_page_and_tells_everyone() {
    let server = Running::start("chat", &["--threads", "2"]);
    let mut stream = server.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .expect("sent");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("a page");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("new WebSocket"));
    let mut ann = server.upgrade("/chat");
    let mut bob = server.upgrade("/chat");
    say(&mut ann, "Ann");
    hear(&mut ann, "* Ann is here");
    hear(&mut bob, "* Ann is here");
    say(&mut ann, "hello");
    hear(&mut bob, "Ann: hello");
    drop(ann);
    hear(&mut bob, "* Ann has left");
}

/// What the example `client` prints when it is given these lines, and whether it ends well.
fn client(flags: &[&str], lines: &str) -> (String, bool) {
    let mut process = Command::new(program("client"))
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut input = process.stdin.take().expect("it is piped");
    // It may have ended without reading.
    let _ = input.write_all(lines.as_bytes());
    drop(input);
    let output = process.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    (
        String::from_utf8(text).expect("text"),
        output.status.success(),
    )
}

/// A certificate for 127.0.0.1 in files, which is its own authority.
struct Certificate(PathBuf);

impl Certificate {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("sockeye-examples-{}", std::process::id()));
        let output = Command::new(program("certificate"))
            .arg("--out")
            .args([&folder, &PathBuf::from("127.0.0.1")])
            .output()
            .expect("it runs");
        assert!(output.status.success());
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn client_talks_over_tls_and_through_a_relay() {
    let certificate = Certificate::new();
    let (chain, key) = (certificate.path("chain.pem"), certificate.path("key.pem"));
    let server = Running::start("echo", &["--tls-cert", &chain, "--tls-key", &key]);
    let url = format!("wss://{}/", server.address());
    let spoken = client(&["--authorities", &chain, &url], "one\ntwo\n");
    assert_eq!(spoken, ("one\ntwo\n".to_owned(), true));
    let (text, good) = client(&[&url], "one\n");
    assert!(
        !good && text.starts_with("error: ") && text.contains("UnknownIssuer"),
        "{text}"
    );

    // The relay trusts what the environment says that the system trusts.
    let mut relay = Command::new(program("relay"));
    relay.env("SSL_CERT_FILE", &chain);
    let relay = Running::start_command(relay, &["--to", &url]);
    let near = format!("ws://{}/", relay.address());
    let spoken = client(&[&near], "three\nfour\n");
    assert_eq!(spoken, ("three\nfour\n".to_owned(), true));
    // Nobody is behind it any more.
    drop(server);
    let (text, good) = client(&[&near], "five\n");
    assert!(good && text.starts_with("closed: 1014"), "{text}");
}

#[test]
fn files_that_are_no_certificates_are_one_line() {
    for flags in [
        &["--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"][..],
        &["--tls-cert", "/dev/null", "--tls-key", "/dev/null"],
        &["--tls-cert", "/dev/null"],
    ] {
        let output = Command::new(program("echo")).args(flags).output();
        let output = output.expect("it runs");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.starts_with("error: ") && text.lines().count() == 1,
            "{text}"
        );
    }
}

/// A killed server can be started again at once, on the same port, whatever it held.
#[test]
fn killed_server_starts_again_on_its_port() {
    for backend in ["uring", "poll"] {
        if backend == "uring" && !uring_works() {
            continue;
        }
        let mut server = Running::start("echo", &["--backend", backend]);
        let address = server.address().to_owned();
        for _ in 0..5 {
            let _stream = server.upgrade("/");
            drop(server);
            server = Running::start("echo", &["--backend", backend, "--bind", &address]);
            assert!(server.line.contains(&address), "{}", server.line);
            let mut stream = server.upgrade("/");
            say(&mut stream, "again");
            hear(&mut stream, "again");
        }
    }
}

/// The examples install a logger, and the engine says at debug level why it refuses a handshake.
#[test]
fn refused_handshakes_are_logged() {
    let mut command = Command::new(program("drain"));
    command
        .env("RUST_LOG", "sockeye=debug")
        .stderr(Stdio::piped());
    let mut running = Running::start_command(command, &[]);
    for (header, want) in [
        ("Origin: http://evil.test\r\n", "403"),
        // A character that turns the direction of writing round.
        ("Origin: http://\u{202e}.test\r\n", "403"),
        ("Content-Length: 5\r\n", "400"),
    ] {
        assert_eq!(status(&running, "/", header), want, "{header}");
    }
    running.process.kill().expect("it runs");
    let mut log = String::new();
    let mut errors = running.process.stderr.take().expect("it is piped");
    errors.read_to_string(&mut log).expect("text");
    let origin =
        "refusing a handshake with 403: origin not allowed; Origin: http://evil.test; Host: h";
    assert!(log.contains(origin), "{log}");
    let length = "refusing a handshake with 400: upgrade with a body; Content-Length: 5";
    assert!(log.contains(length), "{log}");
    assert!(!log.contains('\u{202e}'), "{log}");
}

/// The chat lets its guests go as `drain` does.
#[test]
fn chat_drains_on_sigterm() {
    let mut running = Running::start("chat", &[]);
    let mut stream = running.upgrade("/chat");
    say(&mut stream, "guest");
    hear(&mut stream, "* guest is here");
    let id = running.process.id().to_string();
    let kill = Command::new("kill").args(["-TERM", &id]).status();
    assert!(kill.expect("a shell tool").success());
    let mut frame = [0; 14];
    stream.read_exact(&mut frame).expect("a Close frame");
    assert_eq!(frame[..4], [0x88, 12, 3, 0xF4]);
    stream
        .write_all(&[0x88, 0x82, 0, 0, 0, 0, 3, 0xF4])
        .expect("sent");
    drop(stream);
    let status = running.process.wait().expect("it ends");
    assert!(status.success(), "{status}");
}

/// SIGTERM: no more WebSockets are opened, those there are get a Close frame, and the process
/// ends by itself.
#[test]
fn drain_ends_on_sigterm_when_its_clients_have_gone() {
    let mut running = Running::start("drain", &["--window", "0", "--deadline", "20"]);
    let mut streams: Vec<TcpStream> = (0..3).map(|_| running.upgrade("/")).collect();
    say(&mut streams[0], "here");
    hear(&mut streams[0], "here");
    let mut health = running.connect();
    let request = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n";
    health.write_all(request).expect("sent");
    let mut answer = String::new();
    health.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    drop(health);

    let id = running.process.id().to_string();
    let kill = Command::new("kill").args(["-TERM", &id]).status();
    assert!(kill.expect("a shell tool").success());
    for stream in &mut streams {
        let mut frame = [0; 14];
        stream.read_exact(&mut frame).expect("a Close frame");
        assert_eq!(frame[..4], [0x88, 12, 3, 0xF4]);
        stream
            .write_all(&[0x88, 0x82, 0, 0, 0, 0, 3, 0xF4])
            .expect("sent");
    }
    drop(streams);
    let status = running.process.wait().expect("it ends");
    assert!(status.success(), "{status}");
}

/// The status of the answer to a request for a WebSocket, with one more header line.
fn status(server: &Running, path: &str, header: &str) -> String {
    let mut stream = server.connect();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{header}\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let mut line = String::new();
    let read = BufReader::new(stream).read_line(&mut line);
    read.expect("an answer");
    line.split(' ').nth(1).expect("a status").to_owned()
}

/// Upgrades, whatever headers the answer has.
fn enter(server: &Running, path: &str) -> TcpStream {
    let mut stream = server.connect();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="));
    stream
}

#[test]
fn axum_hands_connections_over() {
    let mut backends = vec!["poll"];
    if uring_works() {
        backends.push("uring");
    }
    for backend in backends {
        let server = Running::start("axum", &["--backend", backend]);
        assert_eq!(status(&server, "/rooms/a", ""), "401");
        let room = "/rooms/a?token=secret";
        assert_eq!(
            status(&server, room, "Origin: http://evil.example\r\n"),
            "403"
        );
        assert_eq!(status(&server, room, "Content-Length: 0\r\n"), "101");
        assert_eq!(status(&server, room, "Content-Length: 5\r\n"), "400");
        assert_eq!(status(&server, "/nowhere", ""), "404");
        let mut ann = enter(&server, room);
        say(&mut ann, "I am here");
        hear(&mut ann, "I am here");
        let mut bob = enter(&server, room);
        let mut eve = enter(&server, "/rooms/b?token=secret");
        say(&mut bob, "hello");
        hear(&mut bob, "hello");
        hear(&mut ann, "hello");
        say(&mut eve, "nobody hears me");
        hear(&mut eve, "nobody hears me");
        say(&mut ann, "still here?");
        hear(&mut bob, "still here?");
        hear(&mut ann, "still here?");
    }
}

#[test]
fn engine_and_tasks_share_a_thread_of_tokio() {
    let mut backends = vec!["poll"];
    if uring_works() {
        backends.push("uring");
    }
    for backend in backends {
        let server = Running::start("in_tokio", &["--backend", backend]);
        let mut stream = enter(&server, "/");
        // What comes is an echo, or the time of tokio's task: both come.
        let (mut echoes, mut times) = (0, 0);
        say(&mut stream, "echo");
        while echoes < 100 || times < 2 {
            let mut header = [0; 2];
            stream.read_exact(&mut header).expect("a frame");
            let mut payload = vec![0; header[1].into()];
            stream.read_exact(&mut payload).expect("a frame");
            if payload == b"echo" {
                echoes += 1;
                say(&mut stream, "echo");
            } else {
                let seconds = String::from_utf8(payload).expect("text");
                assert!(seconds.parse::<u64>().is_ok(), "{seconds}");
                times += 1;
            }
        }
    }
}
