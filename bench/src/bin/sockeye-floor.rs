//! The least that an echo server can do on this kernel: parse a header, unmask, reply. No
//! checks, no limits, no time-outs, no fragments, no API. What sockeye costs is reported as a
//! multiple of this. With `--broadcast` what it receives goes to every connection, in a bare loop
//! of sends.
//!
//!     cargo run --release -p sockeye-bench --bin sockeye-floor -- --bind 127.0.0.1:9001 --backend poll

use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use clap::Parser;
use clap::ValueEnum;
use io_uring::IoUring;
use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types::Fd;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;
use sockeye::protocol::handshake;
use sockeye::simd::Kernels;
use sockeye::simd::MaskKey;

#[derive(Clone, Debug, Parser)]
struct Cli {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:9001")]
    bind: SocketAddr,
    /// What moves the bytes.
    #[arg(long, value_enum, default_value_t = Backend::Poll)]
    backend: Backend,
    /// Sends each message to every connection, and not only back (epoll only).
    #[arg(long, conflicts_with = "backend")]
    broadcast: bool,
    /// Threads that do so, each with its share of the connections.
    #[arg(long, default_value_t = 1, requires = "broadcast")]
    threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    Poll,
    Uring,
}

/// What one receive may bring.
const BUFFER_LEN: usize = 256 * 1024;

/// Receives that are made at once on io_uring.
const BATCH: usize = 16;

/// A connection: what of a frame, or of a head, came without its end.
struct Conn {
    stream: TcpStream,
    tail: Vec<u8>,
    upgraded: bool,
}

/// What the replies to one receive consist of.
#[derive(Default)]
struct Replies {
    bytes: Vec<u8>,
    closed: bool,
    /// What is for the sender alone, where the rest goes to everyone.
    own: Option<Vec<u8>>,
}

impl Replies {
    fn clear(&mut self) {
        self.bytes.clear();
        self.closed = false;
        if let Some(own) = &mut self.own {
            own.clear();
        }
    }
}

impl Conn {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            tail: Vec::new(),
            upgraded: false,
        })
    }

    /// Takes what was received; the replies go into `replies`.
    fn receive(&mut self, received: &mut [u8], kernels: &Kernels, replies: &mut Replies) {
        if self.tail.is_empty() {
            let used = self.take(received, kernels, replies);
            self.tail.extend_from_slice(&received[used..]);
        } else {
            let mut all = std::mem::take(&mut self.tail);
            all.extend_from_slice(received);
            let used = self.take(&mut all, kernels, replies);
            all.drain(..used);
            self.tail = all;
        }
    }

    fn take(&mut self, bytes: &mut [u8], kernels: &Kernels, replies: &mut Replies) -> usize {
        let mut used = 0;
        if !self.upgraded {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                return 0;
            };
            answer(&bytes[..end], &mut replies.bytes);
            self.upgraded = true;
            used = end + 4;
        }
        while let Ok(Some((header, header_len))) = FrameHeader::decode(&bytes[used..]) {
            let payload_len = header.payload_len as usize;
            let start = used + header_len;
            let Some(payload) = bytes.get_mut(start..start + payload_len) else {
                break;
            };
            if let Some(key) = header.mask_key {
                kernels.unmask(payload, MaskKey::new(key));
            }
            let is_ping = header.opcode == Opcode::Ping;
            let reply = FrameHeader {
                mask_key: None,
                opcode: if is_ping { Opcode::Pong } else { header.opcode },
                ..header
            };
            let to = match &mut replies.own {
                Some(own) if is_ping || header.opcode == Opcode::Close => own,
                _ => &mut replies.bytes,
            };
            to.extend_from_slice(reply.encode().as_bytes());
            to.extend_from_slice(payload);
            replies.closed |= header.opcode == Opcode::Close;
            used = start + payload_len;
        }
        used
    }
}

/// The upgrade, whatever was asked for.
fn answer(head: &[u8], out: &mut Vec<u8>) {
    let head = String::from_utf8_lossy(head);
    let is_key = |line: &&str| line.to_ascii_lowercase().starts_with("sec-websocket-key:");
    let key = head.lines().find(is_key).unwrap_or("");
    let key = key.split(':').nth(1).unwrap_or("").trim();
    let accept = handshake::accept_key(key.as_bytes());
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&accept);
    out.extend_from_slice(b"\r\n\r\n");
}

/// Sends all of it. Where the peer does not take it, this waits: a server of the least has no
/// queue.
fn send_all(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Receives and replies until the socket is empty.
fn serve_on(conn: &mut Conn, buffer: &mut [u8], kernels: &Kernels, replies: &mut Replies) {
    loop {
        match conn.stream.read(buffer) {
            Ok(0) => return replies.closed = true,
            Ok(len) => {
                replies.bytes.clear();
                conn.receive(&mut buffer[..len], kernels, replies);
                replies.closed |= send_all(&conn.stream, &replies.bytes).is_err();
                // A short read has emptied the socket.
                if len < buffer.len() {
                    return;
                }
            }
            Err(error) => return replies.closed |= error.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// What a thread of several gets from the others, and how it reaches them.
struct Fan {
    inbox: mpsc::Receiver<Arc<[u8]>>,
    /// Readable when there is something in it.
    bell: UnixStream,
    others: Vec<(mpsc::Sender<Arc<[u8]>>, UnixStream)>,
}

impl Fan {
    /// One for each of so many threads.
    fn new(threads: usize) -> io::Result<Vec<Self>> {
        let mut senders = Vec::new();
        let mut fans = Vec::new();
        for _ in 0..threads {
            let (sender, inbox) = mpsc::channel();
            let (ringer, bell) = UnixStream::pair()?;
            ringer.set_nonblocking(true)?;
            bell.set_nonblocking(true)?;
            senders.push((sender, ringer));
            fans.push(Self {
                inbox,
                bell,
                others: Vec::new(),
            });
        }
        for (number, fan) in fans.iter_mut().enumerate() {
            for (other, (sender, ringer)) in senders.iter().enumerate() {
                if other != number {
                    fan.others.push((sender.clone(), ringer.try_clone()?));
                }
            }
        }
        Ok(fans)
    }

    /// Sends to everyone, of all threads.
    fn publish(&mut self, slab: &[Option<Conn>], bytes: &[u8]) {
        if !self.others.is_empty() {
            let shared = Arc::<[u8]>::from(bytes);
            for (sender, ringer) in &mut self.others {
                // A thread that has ended sends nothing; one whose bell is full will look.
                let _ = sender.send(Arc::clone(&shared));
                let _ = ringer.write(&[0]);
            }
        }
        send_to_everyone(slab, bytes);
    }

    /// Sends what others have published.
    fn take(&mut self, slab: &[Option<Conn>]) {
        while self.bell.read(&mut [0; 64]).is_ok_and(|len| len > 0) {}
        while let Ok(bytes) = self.inbox.try_recv() {
            send_to_everyone(slab, &bytes);
        }
    }
}

/// The bare loop.
fn send_to_everyone(slab: &[Option<Conn>], bytes: &[u8]) {
    for conn in slab.iter().flatten().filter(|conn| conn.upgraded) {
        // One that has gone says so when it is read from.
        let _ = send_all(&conn.stream, bytes);
    }
}

/// Receives until the socket is empty, and sends what came to everyone.
fn broadcast_from(
    slab: &mut [Option<Conn>],
    from: usize,
    buffer: &mut [u8],
    kernels: &Kernels,
    replies: &mut Replies,
    fan: &mut Fan,
) {
    while let Some(conn) = &mut slab[from] {
        let opening = !conn.upgraded;
        match conn.stream.read(buffer) {
            Ok(0) => return replies.closed = true,
            Ok(len) => {
                replies.clear();
                conn.receive(&mut buffer[..len], kernels, replies);
                let own = replies.own.as_deref().unwrap_or_default();
                let own = if opening { &replies.bytes } else { own };
                replies.closed |= send_all(&conn.stream, own).is_err();
                if !opening && !replies.bytes.is_empty() {
                    fan.publish(slab, &replies.bytes);
                }
                if len < buffer.len() {
                    return;
                }
            }
            Err(error) => return replies.closed |= error.kind() != ErrorKind::WouldBlock,
        }
    }
}

fn serve_on_epoll(listener: &TcpListener, mut fan: Option<Fan>) -> io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let listening = listener.as_raw_fd() as u64;
    let data = epoll::EventData::new_u64(listening);
    epoll::add(&epoll, listener, data, epoll::EventFlags::IN)?;
    let bell = fan.as_ref().map(|fan| fan.bell.as_raw_fd() as u64);
    if let Some(fan) = &fan {
        let data = epoll::EventData::new_u64(fan.bell.as_raw_fd() as u64);
        epoll::add(&epoll, &fan.bell, data, epoll::EventFlags::IN)?;
    }
    let mut slab: Vec<Option<Conn>> = Vec::new();
    let kernels = *Kernels::best();
    let mut buffer = vec![0; BUFFER_LEN];
    let mut replies = Replies {
        own: fan.is_some().then(Vec::new),
        ..Replies::default()
    };
    let mut events = Vec::with_capacity(1024);
    loop {
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let token = event.data.u64();
            if token == listening {
                while let Ok((stream, _)) = listener.accept() {
                    let index = stream.as_raw_fd() as usize;
                    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
                    let data = epoll::EventData::new_u64(index as u64);
                    epoll::add(&epoll, &stream, data, flags)?;
                    if slab.len() <= index {
                        slab.resize_with(index + 1, || None);
                    }
                    slab[index] = Some(Conn::new(stream)?);
                }
                continue;
            }
            replies.clear();
            let index = token as usize;
            if let Some(fan) = &mut fan {
                if bell == Some(token) {
                    fan.take(&slab);
                } else {
                    broadcast_from(&mut slab, index, &mut buffer, &kernels, &mut replies, fan);
                }
            } else if let Some(conn) = &mut slab[index] {
                serve_on(conn, &mut buffer, &kernels, &mut replies);
            }
            if replies.closed {
                slab[index] = None;
            }
        }
    }
}

/// Broadcasts on several threads, which accept from one listener.
fn serve_on_threads(listener: &TcpListener, threads: usize) -> io::Result<()> {
    thread::scope(|scope| {
        let mut served = Vec::new();
        for fan in Fan::new(threads)? {
            served.push(scope.spawn(|| serve_on_epoll(listener, Some(fan))));
        }
        for thread in served {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))?;
        }
        Ok(())
    })
}

/// The ring, and what it has said of polls while something else was waited for.
struct Ring {
    ring: IoUring,
    polled: Vec<(RawFd, bool)>,
    results: [i32; BATCH],
}

/// Marks a receive or a send of a batch; what has no mark is a poll of that descriptor.
const IN_BATCH: u64 = 1 << 32;

/// Nobody waits for it.
const IGNORED: u64 = u64::MAX;

/// `-EAGAIN`.
const WOULD_BLOCK: i32 = -(rustix::io::Errno::AGAIN.raw_os_error());

impl Ring {
    fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(8192)
            .build(1024)?;
        Ok(Self {
            ring,
            polled: Vec::new(),
            results: [0; BATCH],
        })
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the buffers of receives and sends outlive them: `complete` waits for
            // each before its buffer is touched again. Polls and cancels have none.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    fn poll(&mut self, fd: RawFd) -> io::Result<()> {
        let readable = rustix::event::PollFlags::IN.bits();
        let poll = opcode::PollAdd::new(Fd(fd), readable.into()).multi(true);
        self.push(&poll.build().user_data(fd as u64))
    }

    fn forget(&mut self, fd: RawFd) -> io::Result<()> {
        let cancel = opcode::AsyncCancel::new(fd as u64).build();
        self.push(&cancel.user_data(IGNORED))?;
        self.ring.submit()?;
        Ok(())
    }

    /// Takes what has completed; says how many of a batch.
    fn take(&mut self) -> usize {
        let mut count = 0;
        for entry in self.ring.completion() {
            match entry.user_data() {
                IGNORED => {}
                user_data if user_data >= IN_BATCH => {
                    self.results[(user_data - IN_BATCH) as usize] = entry.result();
                    count += 1;
                }
                // A poll that was cancelled is of no descriptor that is still there.
                fd if entry.result() >= 0 => {
                    self.polled.push((fd as RawFd, cqueue::more(entry.flags())));
                }
                _ => {}
            }
        }
        count
    }

    /// Waits for so many receives or sends.
    fn complete(&mut self, count: usize) -> io::Result<()> {
        let mut done = 0;
        while done < count {
            self.ring.submit_and_wait(1)?;
            done += self.take();
        }
        Ok(())
    }

    /// Waits for polls.
    fn wait(&mut self) -> io::Result<Vec<(RawFd, bool)>> {
        while self.polled.is_empty() {
            self.ring.submit_and_wait(1)?;
            self.take();
        }
        Ok(std::mem::take(&mut self.polled))
    }
}

/// One readiness source for all; receives and sends in batches that complete at once.
fn serve_on_uring(listener: &TcpListener) -> io::Result<()> {
    let mut ring = Ring::new()?;
    let kernels = *Kernels::best();
    let mut buffer = vec![0; BUFFER_LEN];
    let mut replies: Vec<Replies> = (0..BATCH).map(|_| Replies::default()).collect();
    let mut slab: Vec<Option<Conn>> = Vec::new();
    let listening = listener.as_raw_fd();
    ring.poll(listening)?;
    let mut ready: Vec<RawFd> = Vec::new();
    loop {
        for (fd, armed) in ring.wait()? {
            if !armed {
                ring.poll(fd)?;
            }
            if fd != listening {
                ready.push(fd);
                continue;
            }
            while let Ok((stream, _)) = listener.accept() {
                let fd = stream.as_raw_fd();
                if slab.len() <= fd as usize {
                    slab.resize_with(fd as usize + 1, || None);
                }
                slab[fd as usize] = Some(Conn::new(stream)?);
                ring.poll(fd)?;
            }
        }
        for batch in ready.chunks(BATCH) {
            // One alone gets the whole buffer.
            let slot_len = BUFFER_LEN / if batch.len() == 1 { 1 } else { BATCH };
            for (index, &fd) in batch.iter().enumerate() {
                let slot = &mut buffer[index * slot_len..][..slot_len];
                let receive = opcode::Recv::new(Fd(fd), slot.as_mut_ptr(), slot_len as u32)
                    .flags(rustix::net::RecvFlags::DONTWAIT.bits() as i32);
                ring.push(&receive.build().user_data(IN_BATCH + index as u64))?;
            }
            ring.complete(batch.len())?;
            let received = ring.results;
            let mut sends = 0;
            for (index, &fd) in batch.iter().enumerate() {
                let reply = &mut replies[index];
                reply.clear();
                ring.results[index] = 0;
                let Some(conn) = slab.get_mut(fd as usize).and_then(Option::as_mut) else {
                    continue;
                };
                match received[index] {
                    WOULD_BLOCK => continue,
                    len if len <= 0 => reply.closed = true,
                    len => {
                        let bytes = &mut buffer[index * slot_len..][..len as usize];
                        conn.receive(bytes, &kernels, reply);
                    }
                }
                if !reply.bytes.is_empty() {
                    let (start, len) = (reply.bytes.as_ptr(), reply.bytes.len() as u32);
                    let send = opcode::Send::new(Fd(fd), start, len)
                        .flags(rustix::net::SendFlags::DONTWAIT.bits() as i32);
                    ring.push(&send.build().user_data(IN_BATCH + index as u64))?;
                    sends += 1;
                }
            }
            ring.complete(sends)?;
            let sent = ring.results;
            for (index, &fd) in batch.iter().enumerate() {
                let Some(conn) = slab.get_mut(fd as usize).and_then(Option::as_mut) else {
                    continue;
                };
                let reply = &mut replies[index];
                let rest = &reply.bytes[sent[index].max(0) as usize..];
                reply.closed |= send_all(&conn.stream, rest).is_err();
                if received[index] == slot_len as i32 {
                    // There may be more, which no event announces: a multishot poll is
                    // edge-triggered.
                    serve_on(conn, &mut buffer, &kernels, reply);
                }
                if reply.closed {
                    ring.forget(fd)?;
                    slab[fd as usize] = None;
                }
            }
        }
        ready.clear();
    }
}

fn main() -> io::Result<()> {
    let cli = Cli::parse();
    let listener = TcpListener::bind(cli.bind)?;
    listener.set_nonblocking(true)?;
    println!("listening on {}, the floor", listener.local_addr()?);
    match cli.backend {
        _ if cli.broadcast => serve_on_threads(&listener, cli.threads),
        Backend::Poll => serve_on_epoll(&listener, None),
        Backend::Uring => serve_on_uring(&listener),
    }
}
