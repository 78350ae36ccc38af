//! A server in a process of its own: what an idle connection costs, and what happens when
//! descriptors run out. The server is this test program, started again.

mod support;

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use socket2::Domain;
use socket2::Socket;
use socket2::Type;
use sockeye::BackendChoice;
use sockeye::Connect;
use sockeye::Server;
use sockeye::client;
use sockeye::tls::ServerTls;

use support::certificates;

/// One test at a time: they open as many connections as a process may have.
static TURN: Mutex<()> = Mutex::new(());

/// The most bytes of user-space memory that an idle connection may cost.
const IDLE_BYTES_MAX: usize = 200;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Not a test: the server, when this program is started as one.
#[test]
#[ignore = "the server of the other tests"]
fn child_server() {
    let Ok(backend) = std::env::var("SOCKEYE_CHILD") else {
        return;
    };
    let mut builder = Server::builder()
        .on_message(|conn, message| {
            conn.send(message);
        })
        .threads(1)
        .backend(backend.parse::<BackendChoice>().expect("a backend"));
    if let Ok(connections) = std::env::var("SOCKEYE_CHILD_CONNECTIONS") {
        builder = builder.connections_max(connections.parse().expect("a number"));
    }
    let bound = match std::env::var("SOCKEYE_CHILD_TLS") {
        Ok(folder) => {
            let folder = std::path::Path::new(&folder);
            let tls = ServerTls::from_pem_files(folder.join("chain"), folder.join("key"));
            builder.bind_tls("127.0.0.1:0", &tls.expect("a certificate"))
        }
        Err(_) => builder.bind("127.0.0.1:0"),
    };
    let server = bound.expect("a free port");
    let address = server.local_addr().clone();
    let server = server.spawn().expect("it starts");
    println!("\nlistening {address} {}", server.backend());
    // Until the parent goes away.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

struct ChildServer {
    process: Child,
    /// Kept open: the child's test harness may have something to say.
    _output: std::io::Lines<BufReader<std::process::ChildStdout>>,
    address: SocketAddr,
    backend: String,
}

impl ChildServer {
    /// `descriptors`: the child's limit, if not this process's.
    fn start(backend: &str, connections: Option<usize>, descriptors: Option<usize>) -> Self {
        Self::start_with(backend, connections, descriptors, None)
    }

    /// `tls`: a folder with `chain` and `key`.
    fn start_with(
        backend: &str,
        connections: Option<usize>,
        descriptors: Option<usize>,
        tls: Option<&Path>,
    ) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new("sh");
        let limit = descriptors.map_or(String::new(), |count| format!("ulimit -n {count}; "));
        command
            .arg("-c")
            .arg(format!("{limit}exec \"$0\" \"$@\""))
            .arg(program)
            .args(["--exact", "child_server", "--ignored", "--nocapture"])
            .env("SOCKEYE_CHILD", backend)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(connections) = connections {
            command.env("SOCKEYE_CHILD_CONNECTIONS", connections.to_string());
        }
        if let Some(folder) = tls {
            command.env("SOCKEYE_CHILD_TLS", folder);
        }
        let mut process = command.spawn().expect("it can be started");
        let output = process.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output).lines();
        let line = lines
            .find_map(|line| line.ok()?.strip_prefix("listening ").map(str::to_owned))
            .expect("the server says where it listens");
        let (address, backend) = line.split_once(' ').expect("two words");
        Self {
            process,
            _output: lines,
            address: address.parse().expect("an address"),
            backend: backend.to_owned(),
        }
    }

    /// Resident bytes.
    fn resident(&self) -> usize {
        let path = format!("/proc/{}/statm", self.process.id());
        let statm = std::fs::read_to_string(path).expect("Linux");
        let pages = statm
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse::<usize>().ok());
        pages.expect("a number") * 4096
    }

    /// Connects; from many source addresses, for ports not to run out.
    fn connect(&self, number: usize) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a descriptor");
        let source = [127, 0, 1, (1 + number / 5_000) as u8];
        socket
            .bind(&SocketAddr::from((source, 0)).into())
            .expect("all of 127.0.0.0/8 is ours");
        // Closed without a trace, for the next test.
        socket.set_linger(Some(Duration::ZERO)).expect("a socket");
        let patience = Duration::from_secs(30);
        socket
            .connect_timeout(&self.address.into(), patience)
            .expect("the backlog has room");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(patience)).expect("a socket");
        stream
    }

    fn open(&self, number: usize) -> TcpStream {
        let mut stream = self.connect(number);
        stream.write_all(REQUEST).expect("sent");
        expect_upgraded(&mut stream);
        stream
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn expect_upgraded(stream: &mut TcpStream) {
    let mut head = [0; 129];
    stream.read_exact(&mut head).expect("an answer");
    let head = String::from_utf8_lossy(&head);
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
}

fn echo(stream: &mut TcpStream) {
    stream
        .write_all(&[0x82, 0x84, 0, 0, 0, 0, 1, 2, 3, 4])
        .expect("sent");
    let mut reply = [0; 6];
    stream.read_exact(&mut reply).expect("an echo");
    assert_eq!(reply, [0x82, 4, 1, 2, 3, 4]);
}

/// Descriptors that this process may have.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().nth(3));
    soft.and_then(|soft| soft.parse().ok()).unwrap_or(1 << 20)
}

fn idle_connection_costs_little(backend: &str, connections: Option<usize>) {
    if backend == "uring" && !support::uring_works() {
        return;
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let count = 15_000.min(descriptors() - 500);
    let server = ChildServer::start(backend, connections, None);
    let mut streams: Vec<TcpStream> = (0..200).map(|number| server.open(number)).collect();
    streams.iter_mut().for_each(echo);
    let before = server.resident();
    streams.extend((200..200 + count).map(|number| server.open(number)));
    let after = server.resident();
    let bytes = (after - before) as f64 / count as f64;
    println!(
        "{}: {bytes:.0} bytes per idle connection, of {count}",
        server.backend
    );
    assert!(
        bytes <= IDLE_BYTES_MAX as f64,
        "{bytes} bytes per idle connection"
    );
    // Nor does an echo on each leave anything behind.
    streams.iter_mut().for_each(echo);
    let bytes = (server.resident() - before) as f64 / count as f64;
    println!("{}: {bytes:.0} bytes each after an echo", server.backend);
    assert!(
        bytes <= IDLE_BYTES_MAX as f64,
        "{bytes} bytes per connection after an echo"
    );
}

#[test]
fn idle_connection_costs_little_on_uring() {
    idle_connection_costs_little("uring", None);
}

#[test]
fn idle_connection_costs_little_on_uring_with_direct_descriptors() {
    idle_connection_costs_little("uring", Some(100_000));
}

#[test]
fn idle_connection_costs_little_on_poll() {
    idle_connection_costs_little("poll", None);
}

/// The most bytes that TLS may add to an idle connection.
const IDLE_TLS_BYTES_MAX: usize = 3 * 1024;

/// Resident bytes of the server for each of 5,000 connections, after an echo of 16 KiB on each.
fn idle_bytes_after_large_echo(backend: &str, tls: Option<&Path>) -> f64 {
    let server = ChildServer::start_with(backend, None, None, tls);
    let open = |number: usize| {
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        let url = format!("{scheme}://localhost:{}/", server.address.port());
        let connect = Connect::new(&url).expect("a URL").address(server.address);
        let connect = connect.source([127, 0, 2, (1 + number / 1_000) as u8].into());
        let connect = connect.tls(certificates::client_tls().clone());
        client::Builder::new(connect).connect().expect("it opens")
    };
    let payload = vec![7; 16 * 1024];
    let echo = |ws: &mut client::WebSocket<client::Stream>| {
        ws.write_message(&payload).expect("sent");
        let echo = ws.read_message().expect("an echo");
        assert!(echo.payload() == payload);
    };
    let mut sockets: Vec<_> = (0..200).map(open).collect();
    sockets.iter_mut().for_each(echo);
    let before = server.resident();
    let count = 5_000;
    for number in 200..200 + count {
        let mut ws = open(number);
        echo(&mut ws);
        sockets.push(ws);
    }
    // Once more, now that all are there.
    sockets.iter_mut().for_each(echo);
    let bytes = (server.resident() - before) as f64 / count as f64;
    for ws in sockets {
        let tcp = ws.get_ref().tcp().expect("it is TCP");
        let socket = socket2::SockRef::from(tcp);
        socket.set_linger(Some(Duration::ZERO)).expect("a socket");
    }
    bytes
}

fn idle_tls_connection_costs_little(backend: &str) {
    if backend == "uring" && !support::uring_works() {
        return;
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let name = format!("sockeye-idle-{backend}-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).expect("a folder");
    let certified = certificates::authority().issue(&["localhost"]);
    std::fs::write(folder.join("chain"), certified.chain).expect("written");
    std::fs::write(folder.join("key"), certified.key).expect("written");
    let plain = idle_bytes_after_large_echo(backend, None);
    let secure = idle_bytes_after_large_echo(backend, Some(&folder));
    std::fs::remove_dir_all(&folder).expect("it is there");
    let more = secure - plain;
    println!("{backend}: {plain:.0} bytes plain, {secure:.0} with TLS 1.3: {more:.0} more");
    assert!(more <= IDLE_TLS_BYTES_MAX as f64, "TLS costs {more} bytes");
}

#[test]
fn idle_tls_connection_costs_little_on_uring() {
    idle_tls_connection_costs_little("uring");
}

#[test]
fn idle_tls_connection_costs_little_on_poll() {
    idle_tls_connection_costs_little("poll");
}

/// More connections than the server has descriptors: those that it has are served, the others
/// wait, and are served when there is room.
fn resource_descriptors_run_out(backend: &str) {
    if backend == "uring" && !support::uring_works() {
        return;
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let most = 20_000.min(descriptors());
    let (limit, waiting) = (most - 1_200, 500);
    let server = ChildServer::start(backend, None, Some(limit));
    let held = limit - 60;
    let mut streams: Vec<TcpStream> = (0..held).map(|number| server.open(number)).collect();
    let mut late: Vec<TcpStream> = (0..waiting)
        .map(|number| {
            let mut stream = server.connect(held + number);
            stream.write_all(REQUEST).expect("sent");
            stream
        })
        .collect();
    // Descriptors have run out by now: at least that many of the late ones wait.
    streams.iter_mut().step_by(97).for_each(echo);
    streams.drain(..waiting);
    for stream in &mut late {
        expect_upgraded(stream);
        echo(stream);
    }
    streams.iter_mut().step_by(97).for_each(echo);
}

#[test]
fn resource_descriptors_run_out_on_uring() {
    resource_descriptors_run_out("uring");
}

#[test]
fn resource_descriptors_run_out_on_poll() {
    resource_descriptors_run_out("poll");
}

/// More connections than one ring's table holds, and than the process may have descriptors.
#[test]
fn resource_direct_descriptors_span_rings() {
    if !support::uring_works() {
        return;
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let count = 13_000.min(descriptors() - 500);
    let server = ChildServer::start("uring", Some(count), Some(4_000));
    assert_eq!(server.backend, "io_uring, direct descriptors");
    let mut streams: Vec<TcpStream> = (0..count).map(|number| server.open(number)).collect();
    streams.iter_mut().step_by(7).for_each(echo);
    // One more than were wanted is refused, and costs the others nothing.
    let mut refused = server.connect(count);
    assert!(refused.read(&mut [0]).is_ok_and(|len| len == 0));
    // Room that is given back is used again, in every ring.
    streams.retain({
        let mut number = 0;
        move |_| {
            number += 1;
            number % 2 == 0
        }
    });
    let again = count / 2 - 100;
    // What was given back may take the server a moment to notice: until then it refuses.
    while streams.len() < count / 2 + again {
        let mut stream = server.connect(streams.len());
        let mut head = [0; 129];
        if stream.write_all(REQUEST).is_ok() && stream.read_exact(&mut head).is_ok() {
            streams.push(stream);
        }
    }
    streams.iter_mut().step_by(7).for_each(echo);
}
