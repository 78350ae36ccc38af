//! Queues that are filled many times over, and sends that are cut short.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::os::unix::net::UnixStream;

use super::faults::Fault;
use super::faults::RingStep;
use super::faults::Submits;
use super::faults::fail_next_ring;
use super::*;

/// Skips the test if io_uring does not work here.
macro_rules! require_uring {
    () => {
        if let Err(error) = probe() {
            println!("skipped: io_uring does not work here: {error}");
            return;
        }
    };
}

fn socket(stream: &UnixStream) -> UringSocket {
    UringSocket {
        index: stream.as_raw_fd() as u32,
        ring: NO_RING,
    }
}

/// Many times more of everything than the queues hold, which are small in tests.
#[test]
fn resource_full_queues_lose_nothing() {
    const PAIRS: usize = 1_000;
    require_uring!();
    let mut backend = UringBackend::new(Vec::new(), None).expect("it has been probed");
    let pairs: Vec<(UnixStream, UnixStream)> = (0..PAIRS)
        .map(|_| UnixStream::pair().expect("descriptors"))
        .collect();
    for (index, (near, _)) in pairs.iter().enumerate() {
        let token = Token::from_bits(index as u64);
        backend.register(socket(near), token).expect("room");
    }
    for round in 0..3_u8 {
        let byte = [round];
        let slices = [IoSlice::new(&byte)];
        let mut sends: Vec<_> = pairs
            .iter()
            .map(|(_, far)| SendOp {
                socket: socket(far),
                slices: &slices,
                result: Ok(0),
            })
            .collect();
        backend.send_many(&mut sends);
        assert!(sends.iter().all(|op| matches!(op.result, Ok(1))));

        let mut ready = BTreeSet::new();
        let mut events = Vec::new();
        while ready.len() < PAIRS {
            let second = Some(Duration::from_secs(1));
            backend.wait(second, &mut events).expect("the ring works");
            assert!(!events.is_empty(), "{} of {PAIRS} are ready", ready.len());
            for event in events.drain(..) {
                if let Event::Ready { token, lapsed, .. } = event {
                    ready.insert(token.to_bits());
                    if lapsed {
                        let near = &pairs[token.index() as usize].0;
                        backend.register(socket(near), token).expect("room");
                    }
                }
            }
        }
        let mut buffers = vec![[0; 8]; PAIRS];
        let mut receives: Vec<_> = pairs
            .iter()
            .zip(&mut buffers)
            .map(|((near, _), buffer)| RecvOp {
                socket: socket(near),
                buffer,
                result: Ok(0),
            })
            .collect();
        backend.recv_many(&mut receives);
        assert!(receives.iter().all(|op| matches!(op.result, Ok(1))));
        assert!(buffers.iter().all(|buffer| buffer[0] == round));
    }
}

/// A short send says how much was taken; nothing stays in flight behind it.
#[test]
fn short_sends_in_a_batch_are_counted_to_the_byte() {
    require_uring!();
    let mut backend = UringBackend::new(Vec::new(), None).expect("it has been probed");
    let pairs = [(); 2].map(|()| UnixStream::pair().expect("descriptors"));
    let large = vec![7; 4 << 20];
    let slices = [IoSlice::new(&large), IoSlice::new(b"end")];
    let mut sends: Vec<_> = pairs
        .iter()
        .map(|(_, far)| SendOp {
            socket: socket(far),
            slices: &slices,
            result: Ok(0),
        })
        .collect();
    backend.send_many(&mut sends);
    for ((near, far), op) in pairs.into_iter().zip(sends) {
        let sent = op.result.expect("some of it was taken");
        assert!(sent < large.len());
        drop(far);
        // The ring holds no reference: the end of the stream follows what was taken.
        let mut received = Vec::new();
        std::io::Read::read_to_end(&mut &near, &mut received).expect("all of it");
        assert_eq!(received.len(), sent);
    }
}

/// A poll that was woken and has not been looked at yet must not keep its socket open: nobody
/// would ever see the FIN.
#[test]
fn close_ends_a_poll_that_has_just_been_woken() {
    use std::io::Read;
    use std::io::Write;

    require_uring!();
    let mut backend = UringBackend::new(Vec::new(), None).expect("it has been probed");
    let mut events = Vec::new();
    for wakes in 0..3 {
        let (near, mut far) = UnixStream::pair().expect("descriptors");
        let near = UringSocket {
            index: near.into_raw_fd() as u32,
            ring: NO_RING,
        };
        let token = Token::from_bits(wakes);
        backend.register(near, token).expect("room");
        backend
            .wait(Some(Duration::ZERO), &mut events)
            .expect("it works");
        for _ in 0..wakes {
            far.write_all(b"x").expect("sent");
        }
        backend.close(near, Some(token));
        backend
            .wait(Some(Duration::ZERO), &mut events)
            .expect("it works");
        backend
            .wait(Some(Duration::ZERO), &mut events)
            .expect("it works");
        far.set_nonblocking(true).expect("a socket");
        let got = far.read(&mut [0]);
        // The end, or a reset if something was not read.
        let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        assert!(
            matches!(got, Ok(0)) || got.as_ref().is_err_and(is_reset),
            "{wakes} wakes: {got:?}"
        );
    }
}

const CANARY: u8 = 0xEE;

/// Queues in tests hold eight entries: a batch of more has to submit in the middle.
const ON_EACH_RING: usize = 11;

const RINGS: usize = 3;

/// Errors that pass, and errors that do not.
const PASSING: &[i32] = &[
    libc::EINTR,
    libc::EAGAIN,
    libc::EBUSY,
    libc::ETIME,
    libc::ENOMEM,
];
const LASTING: &[i32] = &[
    libc::EPERM,
    libc::ENXIO,
    libc::EBADF,
    libc::EFAULT,
    libc::EEXIST,
    libc::EINVAL,
    libc::ENOSYS,
    libc::EBADR,
    libc::EBADFD,
    libc::EOPNOTSUPP,
];

impl UringBackend {
    /// Waits until nothing more is reported.
    fn settle(&mut self) {
        let mut events = Vec::new();
        for _ in 0..3 {
            self.wait(Some(Duration::ZERO), &mut events)
                .expect("the rings work");
        }
        assert!(events.is_empty(), "{events:?}");
    }
}

/// A backend of several rings, full of sockets, and other descriptors of the same sockets.
struct World {
    backend: UringBackend,
    sockets: Vec<UringSocket>,
    nears: Vec<UnixStream>,
    fars: Vec<UnixStream>,
}

impl World {
    /// Sockets of different rings follow each other.
    fn new() -> Self {
        let slots = ON_EACH_RING + 1;
        let rings_max = RINGS;
        let direct = Direct { slots, rings_max };
        let mut backend = UringBackend::build(Some(direct)).expect("it has been probed");
        let mut sockets = Vec::new();
        let (mut nears, mut fars) = (Vec::new(), Vec::new());
        for _ in 0..RINGS * (ON_EACH_RING + 1) {
            let (near, far) = UnixStream::pair().expect("descriptors");
            nears.push(near.try_clone().expect("descriptors"));
            sockets.push(backend.adopt(near.into()).expect("room"));
            fars.push(far);
        }
        assert_eq!(backend.rings.len(), RINGS);
        // Pending entries are submitted and taken, so that each call that follows is one of a batch and
        // the queue has room for its completions.
        backend.settle();
        let order = |index: usize| (index % RINGS) * (ON_EACH_RING + 1) + index / RINGS;
        let take = (0..RINGS * ON_EACH_RING).map(order);
        let sockets = take.clone().map(|at| sockets[at]).collect();
        let clone = |stream: &UnixStream| stream.try_clone().expect("descriptors");
        Self {
            backend,
            sockets,
            nears: take.clone().map(|at| clone(&nears[at])).collect(),
            fars: take.map(|at| clone(&fars[at])).collect(),
        }
    }

    fn set_fault(&mut self, ring: usize, fault: Fault) {
        self.backend.rings[ring].ring.fault = Some(fault);
    }

    fn calls(&self, ring: usize) -> u32 {
        self.backend.rings[ring]
            .ring
            .fault
            .map_or(0, |fault| fault.calls)
    }

    /// Does with the backend whatever enters rings, and drops it.
    fn use_and_drop(
        mut self,
        ring: usize,
        broken: Option<i32>,
    ) -> (Vec<UnixStream>, Vec<UnixStream>) {
        let calls = self.calls(ring);
        if broken.is_none() {
            self.backend.rings[ring].ring.fault = None;
        }
        let mut events = Vec::new();
        let waited = self.backend.wait(Some(Duration::ZERO), &mut events);
        let errno = waited.as_ref().err().and_then(io::Error::raw_os_error);
        assert_eq!(errno, broken, "{waited:?}");
        self.backend.submit();
        self.backend.has_events();
        let mut buffers = vec![[0; 8]; self.sockets.len()];
        let mut ops: Vec<_> = receives(&self.sockets, &mut buffers);
        self.backend.recv_many(&mut ops);
        self.backend
            .register(self.sockets[ring], Token::from_bits(1))
            .ok();
        self.backend
            .close(self.sockets[ring], Some(Token::from_bits(1)));
        if broken.is_some() {
            assert_eq!(self.calls(ring), calls, "a broken ring was entered");
        }
        (self.nears, self.fars)
    }
}

fn receives<'b, const LEN: usize>(
    sockets: &[UringSocket],
    buffers: &'b mut [[u8; LEN]],
) -> Vec<RecvOp<'b, UringSocket>> {
    let ops = sockets.iter().zip(buffers);
    ops.map(|(&socket, buffer)| RecvOp {
        socket,
        buffer,
        result: Ok(0),
    })
    .collect()
}

/// Everything that has arrived.
fn read_all(stream: &UnixStream) -> Vec<u8> {
    stream.set_nonblocking(true).expect("a socket");
    let mut received = Vec::new();
    let result = std::io::Read::read_to_end(&mut &*stream, &mut received);
    let waits = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    assert!(result.as_ref().map_or_else(waits, |_| true), "{result:?}");
    received
}

fn faults() -> impl Iterator<Item = (usize, Fault)> {
    let errnos = PASSING.iter().chain(LASTING);
    let submits = [Submits::Nothing, Submits::Half, Submits::All];
    errnos.flat_map(move |&errno| {
        submits.into_iter().flat_map(move |submits| {
            (0..RINGS).flat_map(move |ring| {
                // More than the calls that a batch takes: the last ones never strike.
                (0..4).map(move |after| (ring, Fault::new(after, errno, submits)))
            })
        })
    })
}

/// Guarantee 16: whatever a call of `io_uring_enter` returns, in whichever ring and at whichever
/// moment, no receive writes after `recv_many` has returned, and no byte is lost.
#[test]
fn g16_ring_fail_no_receive_outlives_its_call() {
    require_uring!();
    for (ring, fault) in faults() {
        let mut world = World::new();
        for (index, mut far) in world.fars.iter().enumerate() {
            std::io::Write::write_all(&mut far, &[index as u8; 3]).expect("room");
        }
        world.set_fault(ring, fault);
        let mut buffers = vec![[CANARY; 8]; world.sockets.len()];
        let mut ops = receives(&world.sockets, &mut buffers);
        world.backend.recv_many(&mut ops);
        let results: Vec<_> = ops.into_iter().map(|op| op.result).collect();
        let is_struck = world.calls(ring) > fault.after;
        let lasts = LASTING.contains(&fault.errno);
        let broken = (is_struck && lasts).then_some(fault.errno);
        let failed = broken.map(|_| libc::EIO);
        for (index, result) in results.iter().enumerate() {
            let context = format!("{ring} {fault:?} {index}: {result:?}");
            let want = match result {
                Ok(3) => [[index as u8; 3].as_slice(), &[CANARY; 5]].concat(),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), failed, "{context}");
                    assert_eq!(world.sockets[index].ring(), ring, "{context}");
                    vec![CANARY; 8]
                }
                Ok(_) => panic!("{context}"),
            };
            assert_eq!(buffers[index].as_slice(), want, "{context}");
        }
        let before = buffers.clone();
        let (nears, _fars) = world.use_and_drop(ring, broken);
        assert_eq!(buffers, before, "{ring} {fault:?}: written after the call");
        for (index, near) in nears.iter().enumerate() {
            let left = read_all(near).len();
            let context = format!("{ring} {fault:?} {index}");
            // Those of whole rings have been received by `use_and_drop`.
            if results[index].is_err() {
                assert_eq!(left, 3, "{context}: bytes lost");
            }
        }
    }
}

/// The same for sends: what was not reported as sent is never sent.
#[test]
fn g16_ring_fail_no_send_outlives_its_call() {
    require_uring!();
    // EBADR says that a failure may have been lost: see the test of what ends the process.
    for (ring, fault) in faults().filter(|(_, fault)| fault.errno != libc::EBADR) {
        let mut world = World::new();
        world.set_fault(ring, fault);
        let bytes = [7; 5];
        let one = [IoSlice::new(&bytes)];
        let two = [IoSlice::new(&bytes[..2]), IoSlice::new(&bytes[2..])];
        let sockets = world.sockets.iter().enumerate();
        let mut ops: Vec<_> = sockets
            .map(|(index, &socket)| SendOp {
                socket,
                slices: if index % 2 == 0 { &one } else { &two },
                result: Ok(0),
            })
            .collect();
        world.backend.send_many(&mut ops);
        let results: Vec<_> = ops.into_iter().map(|op| op.result).collect();
        let lasts = LASTING.contains(&fault.errno);
        let broken = (world.calls(ring) > fault.after && lasts).then_some(fault.errno);
        let failed = broken.map(|_| libc::EIO);
        let sockets = world.sockets.clone();
        let (_nears, fars) = world.use_and_drop(ring, broken);
        for (index, far) in fars.iter().enumerate() {
            let context = format!("{ring} {fault:?} {index}: {:?}", results[index]);
            let want = match &results[index] {
                Ok(len) => *len,
                Err(error) => {
                    assert_eq!(error.raw_os_error(), failed, "{context}");
                    assert_eq!(sockets[index].ring(), ring, "{context}");
                    0
                }
            };
            assert_eq!(read_all(far).len(), want, "{context}");
            assert!(want == 0 || want == bytes.len(), "{context}");
        }
    }
}

/// The same for what moves descriptors: no result is written to a stack that is gone, and only
/// the one connection fails.
#[test]
fn g16_ring_fail_no_table_update_outlives_its_call() {
    require_uring!();
    for (_, fault) in faults().filter(|(ring, fault)| *ring == 0 && fault.after == 0) {
        for installs in [false, true] {
            let slots = 8;
            let rings_max = 1;
            let direct = Direct { slots, rings_max };
            let mut backend = UringBackend::build(Some(direct)).expect("it has been probed");
            let (near, far) = UnixStream::pair().expect("descriptors");
            let (other, _peer) = UnixStream::pair().expect("descriptors");
            let socket = backend.adopt(other.into()).expect("room");
            backend.submit();
            backend.rings[0].ring.fault = Some(fault);
            let failed = if installs {
                backend.peer_addr(socket).err()
            } else {
                backend.adopt(near.into()).err()
            };
            let lasts = LASTING.contains(&fault.errno);
            let context = format!("{fault:?} {installs}: {failed:?}");
            let errno = failed.as_ref().and_then(io::Error::raw_os_error);
            if lasts && fault.submits == Submits::Nothing {
                assert_eq!(errno, Some(libc::EIO), "{context}");
                // The entry stays in the queue, and is never executed.
                assert_eq!(backend.rings[0].ring.queued(), 1, "{context}");
                backend.submit();
                assert_eq!(backend.rings[0].ring.queued(), 1, "{context}");
                assert_eq!(
                    backend.rings[0].ring.fault.expect("set").calls,
                    1,
                    "{context}"
                );
            } else {
                assert!(failed.is_none(), "{context}");
            }
            let waited = backend.wait(Some(Duration::ZERO), &mut Vec::new());
            assert_eq!(waited.is_err(), lasts, "{context}");
            drop(backend);
            // Neither the table nor an entry holds the socket.
            if !installs {
                assert_eq!(read_all(&far), b"", "{context}");
            }
        }
    }
}

const REFUSALS: [i32; 3] = [libc::EAGAIN, libc::EBUSY, libc::ENOMEM];

/// More refused calls in a row than any bound that would make sense.
const REFUSED: u32 = 1_100;

fn refuses(errno: i32, times: u32) -> Fault {
    Fault {
        times,
        ..Fault::new(0, errno, Submits::Nothing)
    }
}

fn send_byte(mut stream: &UnixStream) {
    std::io::Write::write_all(&mut stream, b"x").expect("room");
}

/// A batch has lent memory in the queue: it goes on until the kernel has memory again.
#[test]
fn ring_fail_batch_outlasts_missing_memory() {
    require_uring!();
    for (errno, times) in [
        (libc::EAGAIN, REFUSED),
        (libc::EBUSY, 20),
        (libc::ENOMEM, 20),
    ] {
        let mut world = World::new();
        world.set_fault(
            1,
            Fault {
                spares_looks: true,
                ..refuses(errno, times)
            },
        );
        world.fars.iter().for_each(send_byte);
        let mut buffers = vec![[CANARY; 8]; world.sockets.len()];
        let mut ops = receives(&world.sockets, &mut buffers);
        world.backend.recv_many(&mut ops);
        assert!(ops.iter().all(|op| matches!(op.result, Ok(1))), "{errno}");
        assert!(world.calls(1) > times);
        world.use_and_drop(1, None);
    }
}

/// Guarantee 12: as long as the kernel has no memory for requests, connections are served, and
/// connections that are registered meanwhile are served later.
#[test]
fn g12_ring_fail_missing_memory_never_ends_the_service() {
    const PAIRS: usize = 3;
    const LATE: usize = 50;
    require_uring!();
    let register = |backend: &mut UringBackend, index: usize, stream: &UnixStream| {
        let token = Token::from_bits(index as u64);
        backend.register(socket(stream), token).expect("it waits");
    };
    for errno in REFUSALS {
        let mut backend = UringBackend::new(Vec::new(), None).expect("it has been probed");
        let pairs = [(); PAIRS + LATE].map(|()| UnixStream::pair().expect("descriptors"));
        let (early, late) = pairs.split_at(PAIRS);
        for (index, (near, _)) in early.iter().enumerate() {
            register(&mut backend, index, near);
        }
        backend.settle();
        backend.rings[0].ring.fault = Some(Fault {
            spares_looks: true,
            ..refuses(errno, u32::MAX)
        });
        for (index, (near, far)) in late.iter().enumerate() {
            register(&mut backend, PAIRS + index, near);
            send_byte(far);
        }
        let mut events = Vec::new();
        for round in 0..REFUSED {
            early.iter().for_each(|(_, far)| send_byte(far));
            let mut ready = BTreeSet::new();
            while ready.len() < PAIRS {
                backend.wait(None, &mut events).expect("nothing is broken");
                for event in events.drain(..) {
                    match event {
                        Event::Ready { token, .. } => ready.insert(token.index() as usize),
                        event => panic!("{event:?}"),
                    };
                }
            }
            assert_eq!(ready, (0..PAIRS).collect(), "{errno}, {round}");
            let sockets: Vec<_> = early.iter().map(|(near, _)| socket(near)).collect();
            let mut buffers = [[CANARY; 8]; PAIRS];
            let mut ops = receives(&sockets, &mut buffers);
            backend.recv_many(&mut ops);
            assert!(ops.iter().all(|op| matches!(op.result, Ok(1))), "{errno}");
            let slices = [IoSlice::new(b"y")];
            let mut ops: Vec<_> = sockets.iter().map(|&to| send_op(to, &slices)).collect();
            backend.send_many(&mut ops);
            assert!(ops.iter().all(|op| matches!(op.result, Ok(1))), "{errno}");
            assert!(early.iter().all(|(_, far)| read_all(far) == b"y"));
            assert!(backend.has_events());
        }
        backend.rings[0].ring.fault = None;
        let mut ready = BTreeSet::new();
        while ready.len() < LATE {
            backend.wait(None, &mut events).expect("nothing is broken");
            for event in events.drain(..) {
                if let Event::Ready { token, .. } = event {
                    ready.insert(token.index() as usize);
                }
            }
        }
        assert_eq!(ready, (PAIRS..PAIRS + LATE).collect());
        assert!(!backend.has_events());
    }
}

fn send_op<'a>(socket: UringSocket, slices: &'a [IoSlice<'a>]) -> SendOp<'a, UringSocket> {
    SendOp {
        socket,
        slices,
        result: Ok(0),
    }
}

/// Operations of direct descriptors have no plain call: they are put off, with an error that is no
/// evidence about their sockets. Rings that the kernel does not refuse go on.
#[test]
fn ring_fail_operations_of_direct_descriptors_are_put_off() {
    require_uring!();
    for errno in REFUSALS {
        for ring in 0..RINGS {
            let mut world = World::new();
            world.fars.iter().for_each(send_byte);
            world.set_fault(ring, refuses(errno, u32::MAX));
            let events = &mut Vec::new();
            world
                .backend
                .queue(ring, &opcode::Nop::new().build().user_data(DONE));
            // Ends at once or after a moment, whichever ring is refused.
            world.backend.wait(None, events).expect("nothing is broken");
            let mut buffers = vec![[CANARY; 8]; world.sockets.len()];
            let mut ops = receives(&world.sockets, &mut buffers);
            world.backend.recv_many(&mut ops);
            for op in &ops {
                match &op.result {
                    Ok(1) => assert_ne!(op.socket.ring(), ring),
                    Err(error) => {
                        assert_eq!(op.socket.ring(), ring);
                        assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
                    }
                    Ok(_) => panic!("{:?}", op.result),
                }
            }
            world.backend.rings[ring].ring.fault = None;
            let put_off = ops.iter().filter(|op| op.result.is_err());
            let sockets: Vec<_> = put_off.map(|op| op.socket).collect();
            assert_eq!(sockets.len(), ON_EACH_RING);
            let mut ops = receives(&sockets, &mut buffers[..ON_EACH_RING]);
            world.backend.recv_many(&mut ops);
            assert!(ops.iter().all(|op| matches!(op.result, Ok(1))), "{errno}");
        }
    }
}

/// Returns a regular socket that the backend owns, and its other end.
fn owned_pair() -> (UringSocket, UnixStream) {
    let (near, far) = UnixStream::pair().expect("descriptors");
    let patience = Some(Duration::from_secs(60));
    far.set_read_timeout(patience).expect("a socket");
    let index = near.into_raw_fd() as u32;
    (
        UringSocket {
            index,
            ring: NO_RING,
        },
        far,
    )
}

/// Waits for the end of the stream, or a reset.
fn expect_end(mut far: impl std::io::Read, context: &str) {
    loop {
        match far.read(&mut [0]) {
            Ok(0) => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            // The kernel notifies the thread when it takes a ring apart.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            got => panic!("{context}: {got:?}"),
        }
    }
}

/// No client waits for a FIN that never comes: regular sockets of a broken ring are closed,
/// whether the close came before or after the call that broke it.
#[test]
fn ring_fail_broken_ring_closes_regular_sockets() {
    require_uring!();
    for submits in [Submits::Nothing, Submits::Half, Submits::All] {
        let mut backend = UringBackend::new(Vec::new(), None).expect("it has been probed");
        let pairs = [(); 7].map(|()| owned_pair());
        for (index, (near, _)) in pairs.iter().enumerate() {
            let token = Token::from_bits(index as u64);
            backend.register(*near, token).expect("room");
        }
        backend.settle();
        // The queue has room for two of the closes, with their cancels.
        let token = |index: usize| Some(Token::from_bits(index as u64));
        for (index, (near, _)) in pairs.iter().enumerate().take(3) {
            backend.close(*near, token(index));
        }
        backend.rings[0].ring.fault = Some(Fault::new(0, libc::EBADF, submits));
        let waited = backend.wait(Some(Duration::ZERO), &mut Vec::new());
        assert_eq!(
            waited.expect_err("broken").raw_os_error(),
            Some(libc::EBADF)
        );
        for (index, (near, _)) in pairs.iter().enumerate().skip(3) {
            backend.close(*near, token(index));
        }
        drop(backend);
        for (index, (_, far)) in pairs.iter().enumerate() {
            expect_end(far, &format!("{submits:?}, {index}"));
        }
    }
}

/// Accepted sockets that were not handed out are closed with the backend, also if its ring broke.
#[test]
fn ring_fail_broken_ring_closes_accepted_sockets() {
    require_uring!();
    for breaks in [false, true] {
        let address = "127.0.0.1:0".parse().expect("an address");
        let listener = Listener::bind(&address, false).expect("a free port");
        let port = listener.address().ip().expect("TCP").port();
        let mut backend = UringBackend::new(vec![listener], None).expect("it has been probed");
        backend.settle();
        let clients = [(); 3].map(|()| {
            let client = std::net::TcpStream::connect(("127.0.0.1", port));
            client.expect("the backlog has room")
        });
        // Their completions are there, and not taken.
        backend.rings[0].ring.enter(1, None).expect("it works");
        if breaks {
            backend.rings[0].ring.fault = Some(Fault::new(0, libc::EBADF, Submits::Nothing));
            assert!(backend.rings[0].ring.enter(0, None).is_err());
        }
        drop(backend);
        for client in clients {
            let patience = Some(Duration::from_secs(60));
            client.set_read_timeout(patience).expect("a socket");
            expect_end(client, &format!("{breaks}"));
        }
    }
}

/// A descriptor is closed once: by the ring if the kernel takes the entry, otherwise by a call.
#[test]
fn ring_fail_closes_that_the_kernel_took_are_not_repeated() {
    require_uring!();
    let mut backend = UringBackend::new(Vec::new(), None).expect("it has been probed");
    backend.settle();
    let pairs = [(); 20].map(|()| owned_pair());
    let mut fault = refuses(libc::EAGAIN, u32::MAX);
    backend.rings[0].ring.fault = Some(fault);
    for (near, _) in &pairs {
        backend.close(*near, None);
    }
    // Eight are in the queue, the others wait for room.
    assert_eq!(backend.rings[0].ring.queued(), 8);
    assert_eq!(backend.rings[0].ring.closing(), pairs.len());
    fault.submits = Submits::Half;
    for (taken, closed) in [(4, 4), (4, 8), (4, 12)] {
        backend.rings[0].ring.fault = Some(Fault { times: 1, ..fault });
        backend.submit();
        assert_eq!(
            backend.rings[0].ring.closing(),
            pairs.len() - closed,
            "{taken}"
        );
        for (index, (_, far)) in pairs.iter().enumerate() {
            if index < closed {
                expect_end(far, "it was taken");
            } else {
                far.set_nonblocking(true).expect("a socket");
                let got = std::io::Read::read(&mut &*far, &mut [0]);
                let error = got.expect_err("it is open");
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{index}");
                far.set_nonblocking(false).expect("a socket");
            }
        }
    }
    // Memory never comes back: the rest is closed with the ring.
    backend.rings[0].ring.fault = Some(refuses(libc::EAGAIN, u32::MAX));
    drop(backend);
    for (_, far) in &pairs {
        expect_end(far, "the backend is gone");
    }
}

/// Rings of killed processes may give locked memory back, but not more than the limit.
#[test]
fn fallback_waits_for_locked_memory_only_if_the_limit_suffices() {
    let one = ring::LOCKED_LEN_MIN;
    assert!(setup::may_find_memory(None, 64));
    for threads in [1, 2, 64] {
        assert!(setup::may_find_memory(
            Some(one * threads),
            threads as usize
        ));
        assert!(!setup::may_find_memory(
            Some(one * threads - 1),
            threads as usize
        ));
    }
}

/// Open descriptors of this process below 1,000.
fn open_descriptors() -> Vec<String> {
    let links = (0..1_000).map(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")));
    let links = links
        .enumerate()
        .filter_map(|(fd, link)| Some((fd, link.ok()?)));
    links
        .map(|(fd, link)| format!("{fd} {}", link.display()))
        .collect()
}

/// A trial that fails at whichever call leaves no descriptor open.
fn fail_trials() {
    let direct = Direct {
        slots: SLOTS_MIN,
        rings_max: 1,
    };
    let before = open_descriptors();
    for direct in [None, Some(direct)] {
        for submits in [Submits::Nothing, Submits::Half, Submits::All] {
            let mut succeeded = false;
            let mut after = 0;
            while !succeeded {
                let mut backend = UringBackend::build(direct).expect("it has been probed");
                backend.rings[0].ring.fault = Some(Fault::new(after, libc::EBADF, submits));
                // A failure that cannot be learned ends the process: EBADF tells everything.
                succeeded = backend.try_out().is_ok();
                drop(backend);
                let left = open_descriptors();
                assert_eq!(left, before, "{submits:?} {after}");
                after += 1;
            }
            assert!(after > 5, "{after} calls");
        }
    }
    println!("\nall closed");
}

/// Starts this program again for one of its tests that are none.
fn child(name: &str) -> std::process::Command {
    let program = std::env::current_exe().expect("this program");
    let mut command = std::process::Command::new(program);
    let name = format!("reactor::uring::tests::{name}");
    command.args(["--exact", &name, "--ignored", "--nocapture"]);
    command
}

#[test]
fn fallback_failed_trials_leave_no_descriptor_open() {
    require_uring!();
    // In a process that does nothing else with descriptors.
    let mut command = child("ring_fail_child");
    let output = command.env("SOCKEYE_RING_FAIL", "trials").output();
    let output = output.expect("it can be started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("all closed"),
        "{text}"
    );
}

/// Not a test: another process that connects to the listener of a trial.
#[test]
#[ignore = "the process that another test starts"]
fn stranger_child() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    let Ok(name) = std::env::var("SOCKEYE_STRANGER") else {
        return;
    };
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let clients = [(); 3].map(|()| UnixStream::connect_addr(&address).expect("room"));
    for mut client in &clients {
        std::io::Write::write_all(&mut client, b"strange").expect("room");
    }
    println!("\nconnected");
    // Until the parent lets go.
    let _ = std::io::stdin().lines().next();
}

/// Another process connects to the listener of a trial first. It costs nothing.
#[test]
fn fallback_trial_is_not_disturbed_by_other_processes() {
    use std::cell::RefCell;
    use std::io::BufRead;
    use std::io::BufReader;
    use std::io::Lines;
    use std::process::Child;
    use std::process::ChildStdout;
    use std::process::Stdio;

    thread_local! {
        static STRANGERS: RefCell<Vec<(Child, Lines<BufReader<ChildStdout>>)>> =
            const { RefCell::new(Vec::new()) };
    }

    require_uring!();
    faults::set_strangers(|address| {
        let name = address.as_abstract_namespace().expect("an abstract name");
        let mut stranger = child("stranger_child")
            .env("SOCKEYE_STRANGER", std::str::from_utf8(name).expect("hex"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be started");
        let output = stranger.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output).lines();
        let mut texts = lines.by_ref().map_while(Result::ok);
        assert!(texts.any(|line| line == "connected"));
        STRANGERS.with_borrow_mut(|strangers| strangers.push((stranger, lines)));
    });
    for direct in [None, Some(16)] {
        UringBackend::prepare(0, direct, 1).expect("strangers are ignored");
    }
    STRANGERS.with_borrow_mut(|strangers| {
        assert_eq!(strangers.len(), 2);
        for (mut stranger, _output) in strangers.drain(..) {
            drop(stranger.stdin.take());
            stranger.wait().expect("it ends");
        }
    });
}

/// Not a test: ends this process, when it is started for that.
#[test]
#[ignore = "the process that another test starts"]
fn ring_fail_child() {
    struct Panics(u32);
    // SAFETY: nothing points to memory.
    unsafe impl Operations for Panics {
        const REPORTS_SUCCESS: bool = true;
        fn next(&mut self) -> Option<(usize, squeue::Entry)> {
            self.0 += 1;
            assert!(self.0 < 2, "as the test wants");
            Some((0, opcode::Nop::new().build()))
        }
        fn complete(&mut self, _: usize, _: i32) -> bool {
            true
        }
    }
    match std::env::var("SOCKEYE_RING_FAIL").as_deref() {
        Ok("panic") => {
            let mut backend = UringBackend::build(None).expect("it has been probed");
            let _ = backend.run_batch(0, &mut Panics(0));
        }
        Ok("trials") => return fail_trials(),
        Ok("unknown") => {
            // The completion queue is full: those of the batch overflow, and cannot be had.
            let mut world = World::new();
            let ring = world.sockets[0].ring();
            let of_ring = |index: &usize| world.sockets[*index].ring() == ring;
            let indexes: Vec<_> = (0..world.sockets.len()).filter(of_ring).take(8).collect();
            for index in indexes {
                let token = Token::from_bits(index as u64);
                let socket = world.sockets[index];
                world.backend.register(socket, token).expect("room");
                std::io::Write::write_all(&mut &world.fars[index], b"x").expect("room");
            }
            world.backend.submit();
            assert!(!world.backend.rings[ring].ring.has_overflow());
            world.set_fault(ring, Fault::new(0, libc::EBADF, Submits::All));
            let mut buffers = vec![[CANARY; 8]; world.sockets.len()];
            let mut ops = receives(&world.sockets, &mut buffers);
            world.backend.recv_many(&mut ops);
        }
        Ok("lost") => {
            let mut world = World::new();
            let ring = world.sockets[0].ring();
            world.set_fault(ring, Fault::new(0, libc::EBADR, Submits::All));
            let one = [IoSlice::new(b"x")];
            let sockets = world.sockets.iter();
            let mut ops: Vec<_> = sockets
                .map(|&socket| SendOp {
                    socket,
                    slices: &one,
                    result: Ok(0),
                })
                .collect();
            world.backend.send_many(&mut ops);
        }
        _ => return,
    }
    println!("still here");
}

/// A panic during a batch, and a result that cannot be learned, end the process with one line.
#[test]
fn g16_ring_fail_unknown_completions_end_the_process() {
    use std::os::unix::process::ExitStatusExt;

    require_uring!();
    for (case, want) in [
        ("panic", "sockeye: aborting: a panic inside a batch"),
        ("unknown", "sockeye: aborting: io_uring_enter failed"),
        ("lost", "sockeye: aborting: io_uring_enter failed"),
    ] {
        let output = child("ring_fail_child")
            .env("SOCKEYE_RING_FAIL", case)
            .output()
            .expect("it can be started");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGABRT),
            "{case}: {text}"
        );
        let lines = text.lines().filter(|line| line.starts_with("sockeye: "));
        let lines: Vec<_> = lines.collect();
        assert!(
            matches!(lines[..], [line] if line.starts_with(want)),
            "{case}: {text}"
        );
        assert!(!String::from_utf8_lossy(&output.stdout).contains("still here"));
    }
}

/// Thousands of sockets are ready at once, hundreds of times what the completion queue holds:
/// each result is that of its own operation, and no readiness is lost.
#[test]
fn g16_ring_fail_overflowed_completions_reach_their_own_operations() {
    const PAIRS: usize = 4_000;
    require_uring!();
    let mut backend = UringBackend::new(Vec::new(), None).expect("it has been probed");
    // Peers whose output is full, and one that takes half of a message.
    let full: Vec<_> = (0..4).map(|_| full_pair()).collect();
    let pairs: Vec<_> = (0..PAIRS)
        .map(|_| UnixStream::pair().expect("descriptors"))
        .collect();
    let mut events = Vec::new();
    for (index, (near, far)) in pairs.iter().enumerate() {
        let token = Token::from_bits(index as u64);
        backend.register(socket(near), token).expect("room");
        std::io::Write::write_all(&mut &*far, &(index as u32).to_be_bytes()).expect("room");
    }
    // One completion of each poll is there before the first batch begins.
    backend.submit();
    let mut ready = BTreeSet::new();
    for turn in 0..PAIRS / 4 {
        if turn % 8 == 7 {
            let zero = Some(Duration::ZERO);
            backend.wait(zero, &mut events).expect("the ring works");
        }
        let one = [IoSlice::new(b"hello")];
        let send = |stream| SendOp {
            socket: socket(stream),
            slices: &one,
            result: Ok(0),
        };
        let free = &pairs[4 * turn].0;
        let mut ops: Vec<_> = full.iter().map(|(_, far)| send(far)).collect();
        ops.insert(2, send(free));
        backend.send_many(&mut ops);
        for (index, op) in ops.iter().enumerate() {
            match (&op.result, index) {
                (Ok(5), 2) => {}
                (Err(error), 0 | 1 | 3 | 4) if error.kind() == io::ErrorKind::WouldBlock => {}
                (result, _) => panic!("turn {turn}, send {index}: {result:?}"),
            }
        }
        let mut buffers = [[CANARY; 8]; 5];
        let indexes: Vec<_> = (4 * turn..4 * turn + 4).collect();
        let sockets: Vec<_> = indexes
            .iter()
            .map(|&index| socket(&pairs[index].0))
            .collect();
        let mut ops = receives(&sockets, &mut buffers);
        backend.recv_many(&mut ops);
        for (op, &index) in ops.iter().zip(&indexes) {
            assert!(matches!(op.result, Ok(4)), "turn {turn}: {:?}", op.result);
            assert_eq!(op.buffer[..4], (index as u32).to_be_bytes(), "turn {turn}");
        }
    }
    while ready.len() < PAIRS {
        let second = Some(Duration::from_secs(1));
        backend.wait(second, &mut events).expect("the ring works");
        assert!(!events.is_empty(), "{} of {PAIRS} are ready", ready.len());
        for event in events.drain(..) {
            if let Event::Ready { token, .. } = event {
                ready.insert(token.to_bits());
            }
        }
    }
    assert_eq!(backend.strays, 0);
}

/// Failures of sends that overflow a queue which others have filled are not taken for successes.
#[test]
fn g16_ring_fail_overflowed_failures_of_sends_are_reported() {
    require_uring!();
    let mut backend = UringBackend::new(Vec::new(), None).expect("it has been probed");
    backend.settle();
    let pairs = [(); 8].map(|()| UnixStream::pair().expect("descriptors"));
    for (index, (near, far)) in pairs.iter().enumerate() {
        let token = Token::from_bits(index as u64);
        std::io::Write::write_all(&mut &*far, b"x").expect("room");
        backend.register(socket(near), token).expect("room");
    }
    backend.submit();
    assert!(!backend.rings[0].ring.has_overflow());
    let full = [(); 5].map(|()| full_pair());
    let one = [IoSlice::new(b"hello")];
    let mut ops: Vec<_> = full
        .iter()
        .map(|(_, far)| SendOp {
            socket: socket(far),
            slices: &one,
            result: Ok(0),
        })
        .collect();
    backend.send_many(&mut ops);
    for op in ops {
        let kind = op.result.expect_err("there is no room").kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock);
    }
    let mut events = Vec::new();
    backend
        .wait(Some(Duration::ZERO), &mut events)
        .expect("the ring works");
    assert_eq!(events.len(), pairs.len());
}

/// A pair of sockets, the second of which has no room.
fn full_pair() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().expect("descriptors");
    far.set_nonblocking(true).expect("a socket");
    for len in [1 << 16, 1] {
        while std::io::Write::write(&mut &far, &vec![0; len]).is_ok() {}
    }
    (near, far)
}

/// Completions of other batches, and of operations that there are not, are discarded.
#[test]
fn ring_fail_foreign_completions_are_discarded() {
    require_uring!();
    let mut backend = UringBackend::new(Vec::new(), None).expect("it has been probed");
    let pairs = [(); 3].map(|()| UnixStream::pair().expect("descriptors"));
    for (_, far) in &pairs {
        std::io::Write::write_all(&mut &*far, b"bytes").expect("room");
    }
    backend.submit();
    let next = u64::from(backend.batch + 1);
    for foreign in [
        (next - 1) << 32,
        (next + 1) << 32 | 1,
        next << 32 | 3,
        next << 32 | 0xFFFF_FFFF,
    ] {
        backend.queue(0, &opcode::Nop::new().build().user_data(BATCH | foreign));
    }
    let sockets: Vec<_> = pairs.iter().map(|(near, _)| socket(near)).collect();
    let mut buffers = [[CANARY; 8]; 3];
    let mut ops = receives(&sockets, &mut buffers);
    backend.recv_many(&mut ops);
    assert!(ops.iter().all(|op| matches!(op.result, Ok(5))));
    assert_eq!(backend.strays, 4);
}

/// A further ring that cannot be made stops accepting, costs nobody who is served anything, and
/// is made when it can be. What had been made of it is gone.
#[test]
fn resource_further_ring_that_cannot_be_made_pauses_accepting() {
    require_uring!();
    let address = "127.0.0.1:0".parse().expect("an address");
    for step in RingStep::ALL {
        let listener = Listener::bind(&address, false).expect("a free port");
        let port = listener.address().ip().expect("TCP").port();
        let slots = 6;
        let rings_max = 3;
        let mut backend = UringBackend::build(Some(Direct { slots, rings_max })).expect("probed");
        backend.listen(vec![listener]);
        let mut clients = Vec::new();
        let mut accepted = Vec::new();
        let mut failure = None;
        let mut events = Vec::new();
        fail_next_ring(Some(step));
        while failure.is_none() {
            let client = std::net::TcpStream::connect(("127.0.0.1", port));
            clients.push(client.expect("the backlog has room"));
            let wanted = accepted.len() + 1;
            while accepted.len() < wanted && failure.is_none() {
                backend.wait(None, &mut events).expect("the ring works");
                for event in events.drain(..) {
                    match event {
                        Event::Accepted { socket, .. } => accepted.push(socket),
                        Event::AcceptFailed(error) => failure = Some(error),
                        _ => {}
                    }
                }
            }
        }
        let failure = failure.expect("it has failed").to_string();
        assert!(failure.contains("RLIMIT_"), "{step:?}: {failure}");
        assert_eq!(backend.rings.len(), 1);
        for _ in 0..2 {
            let client = std::net::TcpStream::connect(("127.0.0.1", port));
            clients.push(client.expect("the backlog has room"));
        }
        // An outgoing connection fails alone. So does one more attempt to accept.
        let mut held = Vec::new();
        while let Ok((near, far)) = UnixStream::pair() {
            match backend.adopt(near.into()) {
                Ok(socket) => held.push((socket, far)),
                Err(_) => break,
            }
        }
        backend.resume_accept();
        backend
            .wait(Some(Duration::ZERO), &mut events)
            .expect("the ring works");
        assert!(
            matches!(events[..], [Event::AcceptFailed(_)]),
            "{step:?}: {events:?}"
        );
        events.clear();
        // Accepted connections are served as before.
        for (socket, mut client) in accepted.iter().zip(&clients) {
            std::io::Write::write_all(&mut client, b"on").expect("sent");
            backend
                .register(*socket, Token::from_bits(0))
                .expect("room");
            backend.wait(None, &mut events).expect("the ring works");
            assert!(matches!(events[..], [Event::Ready { readable: true, .. }]));
            events.clear();
            let mut buffers = [[0; 8]];
            let mut ops = receives(&[*socket], &mut buffers);
            backend.recv_many(&mut ops);
            assert!(matches!(ops[0].result, Ok(2)));
        }
        // There is enough again.
        fail_next_ring(None);
        let waiting = clients.len() - accepted.len();
        assert!(waiting > 0);
        backend.resume_accept();
        let mut late = 0;
        while late < waiting {
            backend.wait(None, &mut events).expect("the ring works");
            for event in events.drain(..) {
                match event {
                    Event::Accepted { socket, .. } => {
                        assert_eq!(socket.ring(), 1);
                        late += 1;
                    }
                    event => panic!("{event:?}"),
                }
            }
        }
        assert_eq!(backend.rings.len(), 2);
    }
}

/// A backend that has been tried out is as one that has just been made.
#[test]
fn fallback_trial_leaves_nothing_behind() {
    require_uring!();
    for direct in [None, Some(1), Some(100)] {
        let mut backend = UringBackend::prepare(1, direct, 1).expect("it has been probed");
        assert!(backend.acceptors.is_empty());
        assert!(backend.accepting);
        assert_eq!(backend.rings[0].slots_used, 0);
        let mut events = Vec::new();
        backend
            .wait(Some(Duration::ZERO), &mut events)
            .expect("the ring works");
        assert!(events.is_empty(), "{events:?}");
    }
}

/// A limit that was hit is named with its value, and the call with it.
#[test]
fn fallback_errors_name_the_call_and_the_limit() {
    let errno = io::Error::from_raw_os_error;
    let text = |number| setup::failed("a_call")(errno(number)).to_string();
    let descriptors = sys::descriptor_limit();
    assert_eq!(
        text(libc::EMFILE),
        format!("a_call: out of descriptors: RLIMIT_NOFILE is {descriptors}")
    );
    assert!(text(libc::ENOMEM).starts_with("a_call: out of "));
    assert!(text(libc::ENOMEM).contains("RLIMIT_MEMLOCK is "));
    assert!(text(libc::EPERM).starts_with("a_call: not permitted: "));
    assert!(text(libc::ENOSYS).contains("seccomp"));
}
