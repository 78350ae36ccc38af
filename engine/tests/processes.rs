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
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

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
    let variable = |name: &str| std::env::var(format!("SOCKEYE_CHILD{name}")).ok();
    let Some(backend) = variable("") else {
        return;
    };
    if let Some(denied) = variable("_DENY") {
        deny(&denied);
    }
    let number = |name| variable(name).map(|text| text.parse::<u32>().expect("a number"));
    let mut builder = Server::builder()
        .on_message(|conn, message| {
            conn.send(message);
        })
        .threads(number("_THREADS").unwrap_or(1) as usize)
        .backend(backend.parse::<BackendChoice>().expect("a backend"));
    if let Some(connections) = number("_CONNECTIONS") {
        builder = builder.connections_max(connections as usize);
    }
    if let Some(connections) = number("_PER_ADDRESS") {
        builder = builder.connections_per_address_max(connections);
    }
    let address = variable("_ADDRESS").unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let bound = match variable("_TLS") {
        Some(folder) => {
            let folder = std::path::Path::new(&folder);
            let tls = ServerTls::from_pem_files(folder.join("chain"), folder.join("key"));
            builder.bind_tls(address.as_str(), &tls.expect("a certificate"))
        }
        None => builder.bind(address.as_str()),
    };
    let mut port = None;
    let spawned = bound.and_then(|server| {
        port = server.local_addr().ip();
        server.spawn()
    });
    println!("\ndescriptors {}", open_descriptors());
    let server = match spawned {
        Ok(server) => server,
        Err(error) => {
            // A port of a server that is gone is free at once.
            if let Some(Err(error)) = port.map(std::net::TcpListener::bind) {
                println!("\nport taken: {error}");
            }
            println!("\nfailed {error}");
            return;
        }
    };
    println!("\nlistening {} {}", server.local_addr(), server.backend());
    // Until the parent goes away.
    let mut held = Vec::new();
    for line in std::io::stdin().lines() {
        match line.expect("a pipe").as_str() {
            "take descriptors" => {
                while let Ok(file) = std::fs::File::open("/dev/null") {
                    held.push(file);
                }
            }
            "give descriptors" => held.clear(),
            _ => {}
        }
        let metrics = server.metrics().total();
        let connections = server.connections();
        println!(
            "\nmetrics {} {} {connections}",
            metrics.accept_pauses, metrics.refused
        );
    }
    std::process::exit(0);
}

/// Open descriptors of this process below 256. It needs none to find out.
fn open_descriptors() -> usize {
    let is_open = |fd: &u32| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok();
    (0..256).filter(is_open).count()
}

/// Denies this thread, and those that it will start, a system call: `NUMBER:ERRNO`.
fn deny(denied: &str) {
    let (number, errno) = denied.split_once(':').expect("two numbers");
    let number: i64 = number.parse().expect("a number");
    let errno = errno.parse().expect("a number");
    let filter = seccompiler::SeccompFilter::new(
        [(number, Vec::new())].into(),
        seccompiler::SeccompAction::Allow,
        seccompiler::SeccompAction::Errno(errno),
        std::env::consts::ARCH.try_into().expect("a known machine"),
    );
    let program: seccompiler::BpfProgram = filter
        .and_then(TryInto::try_into)
        .expect("a filter of one call");
    seccompiler::apply_filter(&program).expect("seccomp is permitted");
}

/// How a server is started.
#[derive(Clone, Copy, Default)]
struct Options<'a> {
    connections: Option<usize>,
    /// The child's limit of descriptors, if not this process's.
    descriptors: Option<usize>,
    /// The child's limit of locked memory in KiB, which then holds for it: as root it would not.
    locked_memory: Option<usize>,
    /// A folder with `chain` and `key`.
    tls: Option<&'a Path>,
    /// A system call and its error: see `deny`.
    denied: Option<&'a str>,
    threads: Option<usize>,
    per_address: Option<usize>,
    address: Option<&'a str>,
    /// The stack of each thread, and the address space of the process, in KiB.
    memory: Option<(usize, usize)>,
}

struct ChildServer {
    process: Child,
    /// Kept open: the child's test harness may have something to say.
    output: std::io::Lines<BufReader<std::process::ChildStdout>>,
    address: SocketAddr,
    backend: String,
    /// Open descriptors after the start.
    descriptors: usize,
}

/// A start that failed.
#[derive(Debug)]
struct Failure {
    error: String,
    /// Open descriptors after the failure.
    descriptors: usize,
    /// The address was still in use.
    port_taken: bool,
}

impl ChildServer {
    /// `descriptors`: the child's limit, if not this process's.
    fn start(backend: &str, connections: Option<usize>, descriptors: Option<usize>) -> Self {
        let options = Options {
            connections,
            descriptors,
            ..Options::default()
        };
        Self::start_with(backend, options)
    }

    fn start_with(backend: &str, options: Options<'_>) -> Self {
        Self::try_start(backend, options).expect("it starts")
    }

    /// Starts a server; returns the error that it ends with.
    fn try_start(backend: &str, options: Options<'_>) -> Result<Self, String> {
        Self::start_or_fail(backend, options).map_err(|failure| failure.error)
    }

    fn start_or_fail(backend: &str, options: Options<'_>) -> Result<Self, Failure> {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new("sh");
        let mut script = String::new();
        if let Some(count) = options.descriptors {
            script += &format!("ulimit -n {count}; ");
        }
        if let Some((_, address_space)) = options.memory {
            script += &format!("ulimit -v {address_space}; ");
        }
        script += "exec ";
        if let Some(kib) = options.locked_memory {
            script.insert_str(0, &format!("ulimit -l {kib}; "));
            if is_root() {
                script += "setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock ";
            }
        }
        command
            .arg("-c")
            .arg(format!("{script}\"$0\" \"$@\""))
            .arg(program)
            .args(["--exact", "child_server", "--ignored", "--nocapture"])
            .env("SOCKEYE_CHILD", backend)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let numbers = [
            ("SOCKEYE_CHILD_CONNECTIONS", options.connections),
            ("SOCKEYE_CHILD_THREADS", options.threads),
            ("SOCKEYE_CHILD_PER_ADDRESS", options.per_address),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                command.env(name, number.to_string());
            }
        }
        if let Some(folder) = options.tls {
            command.env("SOCKEYE_CHILD_TLS", folder);
        }
        if let Some(denied) = options.denied {
            command.env("SOCKEYE_CHILD_DENY", denied);
        }
        if let Some((stack, _)) = options.memory {
            command.env("RUST_MIN_STACK", (stack << 10).to_string());
        }
        if let Some(address) = options.address {
            command.env("SOCKEYE_CHILD_ADDRESS", address);
        }
        let mut process = command.spawn().expect("it can be started");
        let output = process.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output).lines();
        let mut failure = Failure {
            error: String::new(),
            descriptors: 0,
            port_taken: false,
        };
        let is_last = |line: &String| {
            if let Some(count) = line.strip_prefix("descriptors ") {
                failure.descriptors = count.parse().expect("a number");
            }
            failure.port_taken |= line.starts_with("port taken");
            line.starts_with("listening ") || line.starts_with("failed ")
        };
        let line = lines.by_ref().map_while(Result::ok).find(is_last);
        let Some(line) = line else {
            let status = process.wait().expect("it has ended");
            failure.error = format!("it has ended without a word: {status}");
            return Err(failure);
        };
        if let Some(error) = line.strip_prefix("failed ") {
            let _ = process.wait();
            error.clone_into(&mut failure.error);
            return Err(failure);
        }
        let (address, backend) = line["listening ".len()..]
            .split_once(' ')
            .expect("two words");
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Ok(Self {
            process,
            output: lines,
            // A Unix socket's is the one that was given.
            address: address.parse().unwrap_or(nowhere),
            backend: backend.to_owned(),
            descriptors: failure.descriptors,
        })
    }

    /// Asks the child for something; returns its pauses of accepting, the connections that it
    /// has refused, and those that it has.
    fn ask(&mut self, what: &str) -> [u64; 3] {
        let mut input = self.process.stdin.as_ref().expect("it is piped");
        writeln!(input, "{what}").expect("the child runs");
        let line = self
            .output
            .find_map(|line| line.ok()?.strip_prefix("metrics ").map(str::to_owned))
            .expect("it answers");
        let mut numbers = line.split(' ').map(|text| text.parse().expect("a number"));
        [(); 3].map(|()| numbers.next().expect("three numbers"))
    }

    /// Asks until the answer is the wanted one.
    fn ask_until(&mut self, is_wanted: impl Fn([u64; 3]) -> bool) {
        let start = Instant::now();
        loop {
            let answer = self.ask("");
            if is_wanted(answer) {
                return;
            }
            assert!(start.elapsed() < support::PATIENCE, "still {answer:?}");
        }
    }

    /// Whether the child may lock as much memory as it likes.
    fn is_unlimited(&self) -> bool {
        const CAP_IPC_LOCK: u64 = 1 << 14;
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok());
        capabilities.expect("a number") & CAP_IPC_LOCK != 0
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

/// Length of the answer that accepts an upgrade.
const ACCEPT_LEN: usize = 166;

fn expect_upgraded(stream: &mut TcpStream) {
    let mut head = [0; ACCEPT_LEN];
    stream.read_exact(&mut head).expect("an answer");
    let head = String::from_utf8_lossy(&head);
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
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
    let server = ChildServer::start_with(
        backend,
        Options {
            tls,
            ..Options::default()
        },
    );
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
        let mut head = [0; ACCEPT_LEN];
        if stream.write_all(REQUEST).is_ok() && stream.read_exact(&mut head).is_ok() {
            streams.push(stream);
        }
    }
    streams.iter_mut().step_by(7).for_each(echo);
}

/// Further rings for direct descriptors cannot be made, for want of descriptors: who is served
/// notices nothing, the others wait, and are served when there is room.
#[test]
fn resource_further_rings_run_out_of_descriptors() {
    if !support::uring_works() {
        return;
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // Each ring takes two of them, and its table has as many slots.
    let mut server = ChildServer::start("uring", Some(4_000), Some(64));
    assert_eq!(server.backend, "io_uring, direct descriptors");
    let mut streams: Vec<TcpStream> = (0..2_000)
        .map(|number| {
            let mut stream = server.connect(number);
            stream.write_all(REQUEST).expect("sent");
            stream
        })
        .collect();
    server.ask_until(|[pauses, ..]| pauses >= 2);
    let [_, refused, held] = server.ask("");
    assert_eq!(refused, 0);
    assert!((200..2_000).contains(&held), "{held} connections");
    let held = held as usize - 100;
    for stream in &mut streams[..held] {
        expect_upgraded(stream);
    }
    streams[..held].iter_mut().step_by(17).for_each(echo);
    drop(streams.drain(..held));
    for stream in &mut streams {
        expect_upgraded(stream);
        echo(stream);
    }
}

/// The same for want of locked memory.
#[test]
fn resource_further_rings_run_out_of_locked_memory() {
    if !support::uring_works() {
        return;
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let options = Options {
        connections: Some(20_000),
        descriptors: Some(400),
        locked_memory: Some(1_500),
        ..Options::default()
    };
    let mut server = match ChildServer::try_start("uring", options) {
        Ok(server) if server.is_unlimited() => {
            return println!("SKIPPED: locked memory cannot be limited here");
        }
        Ok(server) => server,
        Err(error) => return println!("SKIPPED: {error}"),
    };
    let mut streams: Vec<TcpStream> = (0..2_500)
        .map(|number| {
            let mut stream = server.connect(number);
            stream.write_all(REQUEST).expect("sent");
            stream
        })
        .collect();
    server.ask_until(|[pauses, ..]| pauses >= 2);
    let [_, refused, held] = server.ask("");
    assert_eq!(refused, 0);
    assert!((300..2_500).contains(&held), "{held} connections");
    streams.truncate(held as usize);
    for stream in &mut streams {
        expect_upgraded(stream);
    }
    streams.iter_mut().step_by(17).for_each(echo);
}

/// A direct socket's address costs a descriptor for a moment. Where there is none the limit on
/// connections of one address holds all the same.
#[test]
fn resource_limit_per_address_holds_without_descriptors() {
    if !support::uring_works() {
        return;
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let options = Options {
        connections: Some(4_000),
        descriptors: Some(300),
        per_address: Some(2),
        ..Options::default()
    };
    let mut server = ChildServer::start_with("uring", options);
    assert_eq!(server.backend, "io_uring, direct descriptors");
    let mut first = [server.open(0), server.open(1)];
    let [_, refused, _] = server.ask("take descriptors");
    for number in 0..3 {
        let mut stream = server.connect(number);
        let end = stream.read(&mut [0]);
        assert!(!matches!(end, Ok(1..)), "{end:?}");
    }
    let [pauses, refused_now, held] = server.ask("");
    assert!(pauses >= 1);
    assert_eq!((refused_now - refused, held), (3, 2));
    first.iter_mut().for_each(echo);
    drop(first);
    server.ask("give descriptors");
    // The server notices in its own time that the first two are gone.
    server.ask_until(|[.., held]| held == 0);
    let mut again = [server.open(0), server.open(1)];
    again.iter_mut().for_each(echo);
    let mut third = server.connect(0);
    assert!(!matches!(third.read(&mut [0]), Ok(1..)));
}

/// Numbers of `io_uring_setup`, `io_uring_enter` and `io_uring_register`, on every machine.
const URING_CALLS: [(&str, u32); 3] = [
    ("io_uring_setup", 425),
    ("io_uring_enter", 426),
    ("io_uring_register", 427),
];

/// A filter that denies one of io_uring's calls: `auto` runs on epoll and says why.
#[test]
fn fallback_seccomp_leads_to_epoll() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for (name, number) in URING_CALLS {
        for (errno, why) in [(1, "not permitted"), (38, "not in this kernel, or denied")] {
            for connections in [None, Some(100_000)] {
                let denied = format!("{number}:{errno}");
                let options = Options {
                    connections,
                    denied: Some(&denied),
                    threads: Some(2),
                    ..Options::default()
                };
                let server = ChildServer::start_with("auto", options);
                let want = format!("epoll (io_uring unavailable: {name}");
                let backend = &server.backend;
                let context = format!("{name} {errno} {connections:?}: {backend}");
                // Where io_uring does not work at all another call may be the first to fail.
                if support::uring_works() {
                    assert!(backend.starts_with(&want), "{context}");
                    assert!(backend.contains(why), "{context}");
                }
                assert!(backend.starts_with("epoll ("), "{context}");
                echo(&mut server.open(0));

                let error = ChildServer::try_start("uring", options).err();
                let error = error.expect("io_uring is denied");
                assert!(error.starts_with("set io_uring up: "), "{context}: {error}");
            }
        }
    }
}

/// Locked memory for none of the threads, and for some of them.
#[test]
fn fallback_locked_memory_leads_to_epoll() {
    if !support::uring_works() {
        return;
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for (kib, threads) in [(16, 1), (64, 2), (500, 2), (1_500, 8)] {
        let options = Options {
            locked_memory: Some(kib),
            threads: Some(threads),
            ..Options::default()
        };
        let server = match ChildServer::try_start("auto", options) {
            Ok(server) if server.is_unlimited() => {
                return println!("SKIPPED: locked memory cannot be limited here");
            }
            Ok(server) => server,
            Err(error) => return println!("SKIPPED: {error}"),
        };
        let want = format!(
            "epoll (io_uring unavailable: io_uring_setup: out of locked memory: \
             RLIMIT_MEMLOCK is {kib} KiB)"
        );
        assert_eq!(server.backend, want);
        echo(&mut server.open(0));
        let error = ChildServer::try_start("uring", options).err();
        let want = want.replace("epoll (io_uring unavailable: ", "set io_uring up: ");
        assert_eq!(error, Some(want.trim_end_matches(')').to_owned()));
    }
}

/// Descriptors for less than the threads need: an error, or epoll; never a panic. What was made
/// for io_uring is closed.
#[test]
fn fallback_few_descriptors_are_an_error_or_epoll() {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let one = Options {
        threads: Some(4),
        ..Options::default()
    };
    let on_poll = ChildServer::start_with("poll", one).descriptors;
    // A process that fails to bind has opened nothing.
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = holder.local_addr().expect("it is bound").to_string();
    let failed = ChildServer::start_or_fail(
        "poll",
        Options {
            address: Some(&address),
            ..one
        },
    );
    drop(holder);
    let on_failure = failed.err().map(|failure| failure.descriptors);
    let mut started = 0;
    for descriptors in (8..48).step_by(2) {
        let options = Options {
            descriptors: Some(descriptors),
            ..one
        };
        for backend in ["auto", "uring", "poll"] {
            match ChildServer::start_or_fail(backend, options) {
                Ok(server) => {
                    started += 1;
                    if server.backend.starts_with("epoll") {
                        assert_eq!(server.descriptors, on_poll, "{backend}, {descriptors}");
                    }
                    // It may have none left for a connection, which waits then.
                    drop(server);
                }
                Err(failure) => {
                    let error = &failure.error;
                    assert!(
                        error.contains("Too many open files")
                            || error.contains("out of descriptors: RLIMIT_NOFILE is")
                            || backend == "uring" && error.contains("io_uring"),
                        "{backend}, {descriptors}: {error}"
                    );
                    assert_eq!(
                        Some(failure.descriptors),
                        on_failure,
                        "{backend}, {descriptors}: {error}"
                    );
                    assert!(!failure.port_taken, "{backend}, {descriptors}: {error}");
                }
            }
        }
    }
    assert!(started > 0);
}

/// A thread that cannot be started ends the start: the others have ended, and the port is free,
/// when the error is returned.
fn failed_start_leaves_no_thread(backend: &str) {
    if backend == "uring" && !support::uring_works() {
        return;
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // Stacks of some of the threads fit into the address space.
    let options = Options {
        threads: Some(12),
        memory: Some((1 << 20, 6 << 20)),
        ..Options::default()
    };
    let failure = ChildServer::start_or_fail(backend, options).err();
    let failure = failure.expect("twelve do not fit");
    let error = &failure.error;
    assert!(error.starts_with("spawn a thread: "), "{error}");
    assert!(!failure.port_taken, "{failure:?}");
}

#[test]
fn fallback_failed_start_leaves_no_thread_on_uring() {
    failed_start_leaves_no_thread("uring");
}

#[test]
fn fallback_failed_start_leaves_no_thread_on_poll() {
    failed_start_leaves_no_thread("poll");
}

/// A server that is killed and started again at once has its Unix socket.
fn unix_socket_is_bound_again_after_a_kill(backend: &str) {
    if backend == "uring" && !support::uring_works() {
        return;
    }
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let name = format!("sockeye-restart-{backend}-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let address = format!("unix:{}", path.display());
    let options = Options {
        address: Some(&address),
        ..Options::default()
    };
    for _ in 0..10 {
        // Killed when it is dropped.
        drop(ChildServer::start_with(backend, options));
    }
    let live = ChildServer::start_with(backend, options);
    let error = ChildServer::try_start(backend, options).err();
    let error = error.expect("the path is in use");
    assert!(error.contains("in use"), "{error}");
    drop(live);
    std::fs::remove_file(path).expect("it is there");
}

#[test]
fn unix_socket_is_bound_again_after_a_kill_on_uring() {
    unix_socket_is_bound_again_after_a_kill("uring");
}

#[test]
fn unix_socket_is_bound_again_after_a_kill_on_poll() {
    unix_socket_is_bound_again_after_a_kill("poll");
}

/// Peers leave many buffers behind, half-received messages or output that they did not read:
/// their memory is the system's again while the server has nothing else to do.
fn memory_goes_back_after_a_peak(backend: &str) {
    const PEERS: usize = 400;
    const LEN: usize = 50_000;
    if backend == "uring" && !support::uring_works() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let server = ChildServer::start(backend, None, None);
    let mut first = server.open(0);
    echo(&mut first);
    let base = server.resident();
    let wait = |done: &dyn Fn(usize) -> bool| {
        let began = Instant::now();
        while !done(server.resident()) {
            let resident = server.resident() >> 10;
            assert!(began.elapsed() < Duration::from_secs(30), "{resident} KiB");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let announced = u16::try_from(LEN + 10_000).expect("a short length");
    let mut header = vec![0x82, 0xFE];
    header.extend(announced.to_be_bytes());
    header.extend([0; 4]);
    let half = [&header[..], &vec![0; LEN]].concat();
    let whole = [&half[..], &vec![0; 10_000]].concat();
    for round in 0..4 {
        let mut peers = Vec::new();
        for number in 0..PEERS {
            let peer = server.connect(number);
            let socket = socket2::SockRef::from(&peer);
            socket.set_recv_buffer_size(2_048).expect("a socket");
            peers.push(peer);
        }
        for peer in &mut peers {
            peer.write_all(REQUEST).expect("sent");
            expect_upgraded(peer);
        }
        for peer in &mut peers {
            if round % 2 == 0 {
                peer.write_all(&half).expect("sent");
            } else {
                // Until the server takes no more: it has what they do not read.
                let patience = Some(Duration::from_millis(1));
                peer.set_write_timeout(patience).expect("a socket");
                for _ in 0..100 {
                    if peer.write_all(&whole).is_err() {
                        break;
                    }
                }
            }
        }
        wait(&|resident| resident > base + PEERS * LEN / 2);
        drop(peers);
        wait(&|resident| resident <= base + base / 4 + (4 << 20));
        echo(&mut first);
    }
}

#[test]
fn g17_memory_goes_back_after_a_peak_on_uring() {
    memory_goes_back_after_a_peak("uring");
}

#[test]
fn g17_memory_goes_back_after_a_peak_on_poll() {
    memory_goes_back_after_a_peak("poll");
}
