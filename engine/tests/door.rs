//! Guarantee 15: a panic in any user code, destructors included, costs its connection at most.

use std::any::Any;
use std::collections::BTreeSet;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::panic;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use sockeye::Agreed;
use sockeye::BackendChoice;
use sockeye::Chunk;
use sockeye::CloseCause;
use sockeye::Closed;
use sockeye::ConnId;
use sockeye::Connect;
use sockeye::Context;
use sockeye::Deferred;
use sockeye::Dropped;
use sockeye::Engine;
use sockeye::Handle;
use sockeye::Handler;
use sockeye::Limits;
use sockeye::Message;
use sockeye::OpeningHandshake;
use sockeye::OutputPolicy;
use sockeye::Prepared;
use sockeye::Request;
use sockeye::Response;
use sockeye::Route;
use sockeye::SendResult;
use sockeye::Server;
use sockeye::SlowCallback;
use sockeye::Thread;
use sockeye::Upgrade;
use sockeye::protocol::Opcode;
use sockeye::tls::ClientTls;

use crate::support;
use crate::support::PATIENCE;
use crate::support::certificates;
use crate::support::frame;

/// Every method of `Handler`. The test fails if the trait has another.
const METHODS: [&str; 22] = [
    "on_upgrade",
    "on_deferred",
    "on_http",
    "on_connect",
    "on_adopt",
    "on_open",
    "on_message",
    "on_chunk",
    "on_ping",
    "on_pong",
    "on_drain",
    "on_dropped",
    "on_timer",
    "on_post",
    "on_start",
    "on_remote",
    "on_thread_timer",
    "on_slow_callback",
    "on_close",
    // Not methods of the trait, but called like them.
    "origins",
    "compression_check",
    "factory",
];

/// Every destructor of what a user hands over.
const DESTRUCTORS: [&str; 10] = [
    "data",
    "data of on_adopt",
    "data of a failed connect",
    "value of on_post",
    "value of a connection that is gone",
    "value of a deferred answer that nobody waits for",
    "owner of a payload",
    "owner of a body",
    "panic payload",
    "value in a mailbox that is closed",
];

/// What is to panic next, once.
#[derive(Clone, Debug, Default)]
struct Trap {
    armed: Arc<Mutex<Option<&'static str>>>,
    sprung: Arc<AtomicU64>,
}

impl Trap {
    fn arm(&self, name: &'static str) {
        *self.armed.lock().unwrap() = Some(name);
    }

    fn spring(&self, name: &str) {
        let is_armed = self.armed.lock().unwrap().take_if(|armed| *armed == name);
        if is_armed.is_some() {
            self.sprung.fetch_add(1, Ordering::SeqCst);
            panic!("as asked");
        }
    }

    fn has_sprung(&self) -> bool {
        self.armed.lock().unwrap().is_none()
    }
}

/// Something that panics when it is dropped, if its trap is armed under its name.
#[derive(Debug, Default)]
struct Bomb(Option<(Trap, &'static str)>);

impl Bomb {
    fn new(trap: &Trap, name: &'static str) -> Self {
        Self(Some((trap.clone(), name)))
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if let Some((trap, name)) = &self.0 {
            trap.spring(name);
        }
    }
}

/// A payload whose owner panics.
struct Owner(Vec<u8>, #[allow(dead_code)] Bomb);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Clone, Default)]
struct Shared {
    trap: Trap,
    deferred: Arc<Mutex<Vec<Deferred>>>,
    ids: Arc<Mutex<Vec<ConnId>>>,
    ends: Arc<Mutex<Vec<String>>>,
    flooded: Arc<AtomicBool>,
}

struct Trapped {
    shared: Shared,
    #[allow(dead_code, reason = "it is dropped with the handler")]
    bomb: Bomb,
}

impl Trapped {
    fn new(shared: &Shared) -> Self {
        shared.trap.spring("factory");
        Self {
            shared: shared.clone(),
            bomb: Bomb::new(&shared.trap, "handler"),
        }
    }

    fn hit(&self, name: &str) {
        self.shared.trap.spring(name);
    }

    fn data(&self) -> Bomb {
        Bomb::new(&self.shared.trap, "data")
    }
}

impl Handler for Trapped {
    type Data = Bomb;

    fn on_upgrade(&mut self, request: &mut OpeningHandshake<'_>) -> Upgrade<Bomb> {
        self.hit("on_upgrade");
        if request.request().path() == "/deferred" {
            let (upgrade, deferred) = request.defer();
            self.shared.deferred.lock().unwrap().push(deferred);
            return upgrade;
        }
        Upgrade::accept(self.data())
    }

    fn on_deferred(
        &mut self,
        _: &mut OpeningHandshake<'_>,
        _: Box<dyn Any + Send>,
    ) -> Upgrade<Bomb> {
        self.hit("on_deferred");
        Upgrade::accept(self.data())
    }

    fn on_http(&mut self, _: &Request<'_>) -> Response {
        self.hit("on_http");
        let bomb = Bomb::new(&self.shared.trap, "owner of a body");
        Response::new(200).body("text/plain", Bytes::from_owner(Owner(vec![b'x'; 10], bomb)))
    }

    fn on_connect(&mut self, _: &Connect) -> Bomb {
        self.hit("on_connect");
        Bomb::new(&self.shared.trap, "data of a failed connect")
    }

    fn on_adopt(&mut self, _: &Agreed) -> Bomb {
        self.hit("on_adopt");
        Bomb::new(&self.shared.trap, "data of on_adopt")
    }

    fn on_open(&mut self, conn: &mut Context<'_, Bomb>) {
        self.hit("on_open");
        self.shared.ids.lock().unwrap().push(conn.id());
    }

    fn on_message(&mut self, conn: &mut Context<'_, Bomb>, message: Message<'_>) {
        self.hit("on_message");
        match message.payload() {
            b"timer" => {
                conn.set_timer(Duration::ZERO, 1);
            }
            // Nothing is read meanwhile, so there is an end of what the kernel takes.
            b"flood" => {
                while !matches!(conn.send(&[b'f'; 10_000][..]), SendResult::Dropped(_)) {}
                self.shared.flooded.store(true, Ordering::SeqCst);
            }
            b"drop" => {
                while conn.queued_bytes() < 50_000 {
                    conn.send(&[b'd'; 10_000][..]);
                }
                for _ in 0..1_000 {
                    let more = Prepared::binary(vec![b'd'; 20_000]);
                    conn.remote().send(conn.id(), more).expect("room");
                }
            }
            b"payload" => {
                let bomb = Bomb::new(&self.shared.trap, "owner of a payload");
                let owned = Bytes::from_owner(Owner(vec![b'p'; 3_000], bomb));
                conn.send_prepared(&Prepared::binary(owned));
            }
            b"bomb" => {
                panic::panic_any(Bomb::new(&self.shared.trap, "panic payload"));
            }
            _ => {
                conn.send(message);
            }
        }
    }

    fn on_chunk(&mut self, _: &mut Context<'_, Bomb>, _: Chunk<'_>) {
        self.hit("on_chunk");
    }

    fn on_ping(&mut self, _: &mut Context<'_, Bomb>, _: &[u8]) {
        self.hit("on_ping");
    }

    fn on_pong(&mut self, _: &mut Context<'_, Bomb>, _: &[u8], _: Option<Duration>) {
        self.hit("on_pong");
    }

    fn on_drain(&mut self, _: &mut Context<'_, Bomb>) {
        self.hit("on_drain");
    }

    fn on_dropped(&mut self, _: &mut Context<'_, Bomb>, _: Dropped) {
        self.hit("on_dropped");
    }

    fn on_timer(&mut self, _: &mut Context<'_, Bomb>, _: u64) {
        self.hit("on_timer");
    }

    fn on_post(&mut self, _: &mut Context<'_, Bomb>, value: Box<dyn Any + Send>) {
        self.hit("on_post");
        drop(value);
    }

    fn on_start(&mut self, _: &mut Thread<'_, Bomb>) {
        self.hit("on_start");
    }

    fn on_remote(&mut self, thread: &mut Thread<'_, Bomb>, _: Box<dyn Any + Send>) {
        self.hit("on_remote");
        thread.set_timer(Duration::ZERO, 1);
    }

    fn on_thread_timer(&mut self, _: &mut Thread<'_, Bomb>, _: u64) {
        self.hit("on_thread_timer");
    }

    fn on_slow_callback(&mut self, _: &SlowCallback) {
        self.hit("on_slow_callback");
    }

    fn on_close(&mut self, _: &mut Context<'_, Bomb>, closed: &Closed<'_>) {
        if matches!(closed.cause, CloseCause::NotOpened(_)) {
            let end = format!("{:?}", closed.cause);
            self.shared.ends.lock().unwrap().push(end);
        }
        self.hit("on_close");
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    backend: BackendChoice,
    direct: bool,
}

fn places() -> Vec<Place> {
    let place = |backend, direct| Place { backend, direct };
    let mut places = vec![place(BackendChoice::Poll, false)];
    if support::uring_works() {
        places.push(place(BackendChoice::Uring, false));
        places.push(place(BackendChoice::Uring, true));
    }
    places
}

fn start(place: Place, shared: &Shared) -> sockeye::Result<Handle> {
    let (made, asked) = (shared.clone(), shared.trap.clone());
    let origins = asked.clone();
    let mut limits = Limits::default();
    limits.close_timeout = Duration::from_secs(2);
    let dropping = Route::default().output_policy(OutputPolicy::DropOldest);
    let streaming = Route::default().streaming(true);
    Server::builder()
        .handler(move |_| Trapped::new(&made))
        .limits(limits)
        .origins(sockeye::OriginPolicy::Fn(Arc::new(move |_| {
            origins.spring("origins");
            true
        })))
        .compression(sockeye::Compression::Shared)
        .compression_check(move |_| {
            asked.spring("compression_check");
            true
        })
        .route("/stream", |_| streaming)
        .route("/drop", |_| dropping)
        .route("/deferred", |base| base)
        .route("/compressed", |base| base)
        .route("/", |base| base)
        .slow_callback(Duration::ZERO)
        .threads(1)
        .backend(place.backend)
        .direct_descriptors(place.direct)
        .bind("127.0.0.1:0")?
        .spawn()
}

/// A client that reads what it is told to.
struct Peer(TcpStream);

impl Peer {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    fn request(address: SocketAddr, path: &str) -> Self {
        let mut peer = Self::connect(address);
        // Compression is asked for where it is checked.
        let head = match path {
            "/compressed" => {
                support::request_with("Sec-WebSocket-Extensions: permessage-deflate\r\n")
            }
            _ => support::REQUEST.to_owned(),
        };
        let head = head.replace("GET / ", &format!("GET {path} "));
        peer.0.write_all(head.as_bytes()).unwrap();
        peer
    }

    fn open(address: SocketAddr, path: &str) -> Self {
        let mut peer = Self::request(address, path);
        assert_eq!(peer.status(), 101);
        peer
    }

    /// The status of an answer, whose head is read.
    fn status(&mut self) -> u16 {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).expect("an answer");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        head[9..12].parse().unwrap()
    }

    fn send(&mut self, opcode: Opcode, payload: &[u8]) {
        self.0.write_all(&frame(opcode, payload)).unwrap();
    }

    /// A short frame.
    fn frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut header = [0; 2];
        self.0.read_exact(&mut header)?;
        let mut payload = vec![0; usize::from(header[1])];
        assert!(payload.len() < 126);
        self.0.read_exact(&mut payload)?;
        Ok((header[0] & 0xF, payload))
    }

    fn echo(&mut self, text: &str) {
        self.send(Opcode::Text, text.as_bytes());
        assert_eq!(
            self.frame().expect("an echo"),
            (1, text.as_bytes().to_vec())
        );
    }

    /// A Close frame with this code comes, whatever comes before.
    fn expect_close(&mut self, code: u16) {
        let mut all = Vec::new();
        self.0.read_to_end(&mut all).expect("an end");
        let close = [&[0x88, 2][..], &code.to_be_bytes()].concat();
        assert!(
            all.ends_with(&close),
            "{:?}",
            &all[all.len().saturating_sub(9)..]
        );
    }

    /// An end of the stream comes.
    fn expect_end(&mut self) {
        io::copy(&mut self.0, &mut io::sink()).expect("an end");
    }
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: waited in vain");
        std::thread::yield_now();
    }
}

fn quiet_panics() {
    use std::sync::Once;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_ours = info.payload().downcast_ref::<&str>() == Some(&"as asked");
            if !is_ours && !info.payload().is::<Bomb>() {
                hook(info);
            }
        }));
    });
}

/// The methods of the trait, as they are in its source.
fn methods_of_trait() -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/worker/handler.rs");
    let source = std::fs::read_to_string(path).expect("the source is there");
    let body = source
        .split_once("pub trait Handler {")
        .expect("the trait")
        .1;
    let body = body.split_once("\n}").expect("its end").0;
    let names = body.split("    fn ").skip(1);
    let names = names.map(|rest| rest.split('(').next().unwrap().to_owned());
    names.collect()
}

#[test]
fn g15_every_method_is_listed() {
    let listed = METHODS.iter().filter(|name| name.starts_with("on_"));
    let listed: BTreeSet<String> = listed.map(|name| (*name).to_owned()).collect();
    assert_eq!(methods_of_trait(), listed);
}

/// Makes the server call `name`, which panics, and checks what the peer sees of it.
fn provoke(name: &'static str, server: &Handle, address: SocketAddr, shared: &Shared) {
    let remote = server.remote();
    let trap = &shared.trap;
    let last_id = || *shared.ids.lock().unwrap().last().expect("it is open");
    match name {
        "on_upgrade" | "compression_check" | "origins" => {
            trap.arm(name);
            assert_eq!(Peer::request(address, "/compressed").status(), 500);
        }
        "on_deferred" => {
            trap.arm(name);
            let mut peer = Peer::request(address, "/deferred");
            wait(name, || !shared.deferred.lock().unwrap().is_empty());
            let deferred = shared.deferred.lock().unwrap().pop();
            deferred.expect("it waits").accept(());
            assert_eq!(peer.status(), 500);
        }
        "on_http" => {
            trap.arm(name);
            let mut peer = Peer::connect(address);
            peer.0
                .write_all(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap();
            assert_eq!(peer.status(), 500);
        }
        "on_connect" => {
            trap.arm(name);
            let connect = Connect::new(&format!("ws://{address}/")).unwrap();
            remote.connect(connect).unwrap();
        }
        "on_adopt" => {
            trap.arm(name);
            let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
            remote.adopt(near, Vec::new(), Agreed::new()).unwrap();
            let mut far = far;
            far.set_read_timeout(Some(PATIENCE)).unwrap();
            io::copy(&mut far, &mut io::sink()).expect("it is closed");
        }
        "on_open" => {
            trap.arm(name);
            Peer::open(address, "/").expect_close(1011);
        }
        "on_message" | "on_ping" | "on_pong" | "on_timer" | "on_slow_callback" => {
            let mut peer = Peer::open(address, "/");
            peer.echo("open");
            trap.arm(name);
            match name {
                "on_ping" => peer.send(Opcode::Ping, b""),
                "on_pong" => peer.send(Opcode::Pong, b""),
                "on_timer" => peer.send(Opcode::Text, b"timer"),
                _ => peer.send(Opcode::Text, b"message"),
            }
            peer.expect_close(1011);
        }
        "on_chunk" => {
            let mut peer = Peer::open(address, "/stream");
            trap.arm(name);
            peer.send(Opcode::Text, b"chunk");
            peer.expect_close(1011);
        }
        "on_drain" => {
            let mut peer = Peer::open(address, "/");
            trap.arm(name);
            peer.send(Opcode::Text, b"flood");
            wait(name, || shared.flooded.swap(false, Ordering::SeqCst));
            peer.expect_close(1011);
        }
        "on_dropped" => {
            let mut peer = Peer::open(address, "/drop");
            trap.arm(name);
            peer.send(Opcode::Text, b"drop");
            // Nothing is read before, or there might be room for all.
            wait(name, || trap.has_sprung());
            peer.expect_close(1011);
        }
        "on_post" => {
            let mut peer = Peer::open(address, "/");
            peer.echo("open");
            trap.arm(name);
            remote.post_to(last_id(), ()).unwrap();
            peer.expect_close(1011);
        }
        "on_remote" | "on_thread_timer" => {
            trap.arm(name);
            remote.post(0, ()).unwrap();
        }
        "on_close" => {
            let mut peer = Peer::open(address, "/");
            trap.arm(name);
            peer.send(Opcode::Close, &1000_u16.to_be_bytes());
            peer.expect_close(1000);
        }
        _ => unreachable!("no such method: {name}"),
    }
}

/// Makes the server drop what `name` says, whose destructor panics.
fn provoke_drop(name: &'static str, server: &Handle, address: SocketAddr, shared: &Shared) {
    let remote = server.remote();
    let trap = &shared.trap;
    let bomb = || Bomb::new(trap, name);
    let last_id = || *shared.ids.lock().unwrap().last().expect("it is open");
    match name {
        "data" => {
            let mut peer = Peer::open(address, "/");
            trap.arm(name);
            peer.send(Opcode::Close, &1000_u16.to_be_bytes());
            peer.expect_close(1000);
        }
        "data of on_adopt" => {
            // No stream socket: it is refused, and its data dropped.
            let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
            trap.arm(name);
            remote.adopt(socket, Vec::new(), Agreed::new()).unwrap();
        }
        "data of a failed connect" => {
            trap.arm(name);
            remote.connect(unusable_connect(address)).unwrap();
        }
        "value of on_post" => {
            let mut peer = Peer::open(address, "/");
            peer.echo("open");
            trap.arm(name);
            remote.post_to(last_id(), bomb()).unwrap();
            peer.expect_close(1011);
        }
        "value of a connection that is gone" => {
            let mut peer = Peer::open(address, "/");
            peer.echo("open");
            let id = last_id();
            peer.send(Opcode::Close, &1000_u16.to_be_bytes());
            peer.expect_close(1000);
            trap.arm(name);
            remote.post_to(id, bomb()).unwrap();
        }
        "value of a deferred answer that nobody waits for" => {
            let peer = Peer::request(address, "/deferred");
            wait(name, || !shared.deferred.lock().unwrap().is_empty());
            drop(peer);
            wait(name, || server.metrics().total().deferred == 0);
            trap.arm(name);
            let deferred = shared.deferred.lock().unwrap().pop();
            deferred.expect("it waits").accept(bomb());
        }
        "owner of a payload" => {
            let mut peer = Peer::open(address, "/stream");
            drop(peer);
            peer = Peer::open(address, "/");
            trap.arm(name);
            peer.send(Opcode::Text, b"payload");
            // The connection goes on: the destructor of a payload is about none.
            wait(name, || trap.has_sprung());
        }
        "owner of a body" => {
            trap.arm(name);
            let mut peer = Peer::connect(address);
            peer.0
                .write_all(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap();
            peer.expect_end();
        }
        "panic payload" => {
            let mut peer = Peer::open(address, "/");
            trap.arm(name);
            peer.send(Opcode::Text, b"bomb");
            peer.expect_close(1011);
        }
        _ => unreachable!("no such destructor: {name}"),
    }
}

/// One that passes its validation and cannot be made.
fn unusable_connect(address: SocketAddr) -> Connect {
    let mut config = (*certificates::client_tls().config()).clone();
    config.max_fragment_size = Some(1);
    let connect = Connect::new(&format!("wss://{address}/")).unwrap();
    connect.tls(ClientTls::from_config(Arc::new(config)))
}

#[test]
fn g15_panic_everywhere_costs_its_connection_at_most() {
    quiet_panics();
    for place in places() {
        let shared = Shared::default();
        // On the way up.
        shared.trap.arm("factory");
        let error = start(place, &shared).expect_err("the factory panics");
        assert!(error.to_string().contains("factory"), "{error}");
        shared.trap.arm("on_start");
        let server = start(place, &shared).expect("it starts all the same");
        let address = server.local_addr().ip().unwrap();
        assert!(shared.trap.has_sprung());

        let mut bystander = Peer::open(address, "/");
        bystander.echo("before");
        let at_start = ["on_start", "factory"];
        let at_end = "value in a mailbox that is closed";
        let methods = METHODS.iter().filter(|name| !at_start.contains(name));
        let destructors = DESTRUCTORS.iter().filter(|name| **name != at_end);
        let cases = methods.map(|name| (*name, false));
        let cases = cases.chain(destructors.map(|name| (*name, true)));
        for (name, is_drop) in cases {
            let before = server.metrics().total().panics;
            if is_drop {
                provoke_drop(name, &server, address, &shared);
            } else {
                provoke(name, &server, address, &shared);
            }
            wait(name, || shared.trap.has_sprung());
            bystander.echo("still served");
            Peer::open(address, "/").echo("as before");
            wait(name, || server.metrics().total().panics > before);
            assert!(!server.is_finished(), "{name}");
        }
        // On the way down.
        shared.trap.arm("handler");
        let remote = server.remote().clone();
        server.shutdown();
        drop(bystander);
        server.join().expect("it ends as it was told to");
        assert!(shared.trap.has_sprung());
        drop(remote);
    }
}

/// What waits in the mailbox of an engine that is dropped, and its data.
#[test]
fn g15_panic_everywhere_at_the_end_of_an_engine() {
    quiet_panics();
    for place in places() {
        let shared = Shared::default();
        let made = shared.clone();
        let engine: Engine<Trapped> = Engine::builder()
            .handler(move |_| Trapped::new(&made))
            .backend(place.backend)
            .direct_descriptors(place.direct)
            .engine()
            .unwrap();
        let remote = engine.remote().clone();
        shared.trap.arm(DESTRUCTORS[9]);
        remote
            .post(0, Bomb::new(&shared.trap, DESTRUCTORS[9]))
            .unwrap();
        drop(engine);
        assert!(shared.trap.has_sprung());
        assert_eq!(remote.metrics().total().panics, 1);
    }
}

/// A connect that passes its validation and cannot be made is reported as any other that fails.
#[test]
fn g01_connect_that_fails_after_its_validation_gets_its_on_close() {
    for place in places() {
        let shared = Shared::default();
        let server = start(place, &shared).unwrap();
        let address = server.local_addr().ip().unwrap();
        server.remote().connect(unusable_connect(address)).unwrap();
        wait("on_close", || !shared.ends.lock().unwrap().is_empty());
        let ends = shared.ends.lock().unwrap().clone();
        assert_eq!(ends.len(), 1);
        assert!(ends[0].starts_with("NotOpened"), "{ends:?}");
        wait("its end", || server.connections() == 0);
        server.shutdown();
        server.join().unwrap();
    }
}
