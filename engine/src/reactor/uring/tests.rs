//! Queues that are filled many times over, and sends that are cut short.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::os::unix::net::UnixStream;

use super::*;

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
    if probe().is_err() {
        println!("skipped: io_uring does not work here");
        return;
    }
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
    if probe().is_err() {
        println!("skipped: io_uring does not work here");
        return;
    }
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
    use std::os::fd::IntoRawFd;

    if probe().is_err() {
        println!("skipped: io_uring does not work here");
        return;
    }
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
