//! Whether io_uring does here all that the backend needs: by doing it, on the backend that is
//! going to serve. Errors name the call, the limit and its value.

use std::io;
use std::io::IoSlice;
use std::io::Read;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::time::Instant;

use socket2::Domain;
use socket2::SockAddr;
use socket2::Socket;
use socket2::Type;

use crate::reactor::Backend;
use crate::reactor::Event;
use crate::reactor::RecvOp;
use crate::reactor::SendOp;
use crate::reactor::Token;
use crate::reactor::listen::Listener;
use crate::reactor::sys;

use super::UringBackend;
use super::UringSocket;
use super::descriptor::new_eventfd;

/// How long an operation may take that completes at once where it works.
const PATIENCE: Duration = Duration::from_secs(2);

const PROBE: &[u8] = b"probe";

/// Names the call that failed, and the limit that it ran into.
pub(super) fn failed(call: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{call}: {}", explain(&error)))
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            let path = "/proc/sys/kernel/io_uring_disabled";
            let disabled = std::fs::read_to_string(path).unwrap_or_default();
            match disabled.trim() {
                "" | "0" => "not permitted: denied by a seccomp filter or a security module".into(),
                value => format!("not permitted: kernel.io_uring_disabled is {value}"),
            }
        }
        Some(libc::ENOSYS) => "not in this kernel, or denied by a seccomp filter".into(),
        Some(libc::EINVAL) => "not supported by this kernel".into(),
        _ => sys::explain(error),
    }
}

fn no_completion(call: &'static str) -> io::Error {
    let error = io::Error::from(io::ErrorKind::TimedOut);
    failed(call)(error)
}

impl UringBackend {
    /// Does everything once that serving needs: accepts, polls, receives, sends, asks for an
    /// address, moves a descriptor into the table, closes. Leaves nothing behind.
    pub(super) fn try_out(&mut self) -> io::Result<()> {
        // What `prepare_descriptor` and further rings need.
        let submitter = self.rings[0].ring.submitter();
        let eventfd = new_eventfd()?;
        submitter
            .register_eventfd(std::os::fd::AsRawFd::as_raw_fd(&eventfd))
            .and_then(|()| submitter.unregister_eventfd())
            .map_err(failed("io_uring_register (eventfd)"))?;

        // A Unix socket with a name that the kernel chooses, for each backend has one.
        let (listener, address) = listener().map_err(failed("socket"))?;
        self.accept_from(vec![listener]);
        self.arm_accepts();
        let clients = [connect(&address)?, connect(&address)?];
        let mut sockets = Vec::new();
        self.wait_for("io_uring_enter (accept)", |_, event| {
            if let Event::Accepted { socket, .. } = event {
                sockets.push(*socket);
            }
            sockets.len() == clients.len()
        })?;
        if self.direct.is_some() {
            let (near, far) = UnixStream::pair().map_err(failed("socketpair"))?;
            let moved = self.adopt(OwnedFd::from(near));
            self.close(
                moved.map_err(failed("io_uring_enter (files update)"))?,
                None,
            );
            drop(far);
        }
        self.exchange(&clients, &sockets)?;
        let peer = self.peer_addr(sockets[0]);
        peer.map_err(failed(
            "io_uring_enter (fixed descriptor install, Linux 6.8)",
        ))?;

        for (&socket, token) in sockets.iter().zip(tokens()) {
            self.close(socket, Some(token));
        }
        self.pause_accept();
        self.wait_for("io_uring_enter (cancel)", |backend, _| {
            backend.is_accept_idle()
        })?;
        for client in &clients {
            // The stream ends only if the poll and the slot have let go of the socket.
            let mut rest = Vec::new();
            let mut client = client;
            let read = client.read_to_end(&mut rest);
            read.map_err(failed("io_uring_enter (close)"))?;
        }
        self.acceptors.clear();
        self.stash.clear();
        self.accepting = true;
        Ok(())
    }

    /// Readiness, receives and sends, in batches, of one piece and of several.
    fn exchange(&mut self, clients: &[UnixStream; 2], sockets: &[UringSocket]) -> io::Result<()> {
        for (&socket, token) in sockets.iter().zip(tokens()) {
            self.register(socket, token)
                .map_err(failed("io_uring_enter (poll)"))?;
        }
        for mut client in clients {
            client.write_all(PROBE).map_err(failed("write"))?;
        }
        let mut ready = [false; 2];
        self.wait_for("io_uring_enter (poll)", |_, event| {
            if let Event::Ready { token, .. } = event {
                ready[token.index() as usize % 2] = true;
            }
            ready == [true; 2]
        })?;

        let mut buffers = [[0; 2 * PROBE.len()]; 2];
        let ops = sockets.iter().zip(&mut buffers);
        let mut receives: Vec<_> = ops
            .map(|(&socket, buffer)| RecvOp {
                socket,
                buffer,
                result: Ok(0),
            })
            .collect();
        self.recv_many(&mut receives);
        for op in receives {
            let len = op.result.map_err(failed("io_uring_enter (receive)"))?;
            if op.buffer[..len] != *PROBE {
                return Err(no_completion("io_uring_enter (receive)"));
            }
        }

        let (first, rest) = PROBE.split_at(2);
        let (one, two) = (
            [IoSlice::new(PROBE)],
            [IoSlice::new(first), IoSlice::new(rest)],
        );
        let pieces: [&[IoSlice<'_>]; 2] = [&one, &two];
        let ops = sockets.iter().zip(pieces);
        let mut sends: Vec<_> = ops
            .map(|(&socket, slices)| SendOp {
                socket,
                slices,
                result: Ok(0),
            })
            .collect();
        self.send_many(&mut sends);
        for (op, mut client) in sends.into_iter().zip(clients) {
            op.result.map_err(failed("io_uring_enter (send)"))?;
            let mut got = [0; PROBE.len()];
            let read = client.read_exact(&mut got);
            read.map_err(failed("io_uring_enter (send)"))?;
            if got != PROBE {
                return Err(no_completion("io_uring_enter (send)"));
            }
        }
        Ok(())
    }

    /// Waits until `is_done` says so after an event, or after a wait without one.
    fn wait_for(
        &mut self,
        call: &'static str,
        mut is_done: impl FnMut(&mut Self, &Event<UringSocket>) -> bool,
    ) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut events = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            self.wait(Some(left.min(PATIENCE / 20)), &mut events)
                .map_err(failed("io_uring_enter"))?;
            // Asks even if nothing was reported.
            events.push(Event::Woken);
            for event in events.drain(..) {
                match event {
                    Event::AcceptFailed(error) => return Err(failed("accept")(error)),
                    event if is_done(self, &event) => return Ok(()),
                    _ => {}
                }
            }
            if left.is_zero() {
                return Err(no_completion(call));
            }
        }
    }
}

fn tokens() -> impl Iterator<Item = Token> {
    (0..).map(Token::from_bits)
}

fn listener() -> io::Result<(Listener, SockAddr)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // An empty name is replaced by a free one of the abstract namespace (unix(7), autobind).
    socket.bind(&SockAddr::unix("")?)?;
    let address = socket.local_addr()?;
    let listener = Listener::for_trial(socket)?;
    Ok((listener, address))
}

fn connect(address: &SockAddr) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("socket"))?;
    socket.connect(address).map_err(failed("connect"))?;
    socket
        .set_read_timeout(Some(PATIENCE))
        .map_err(failed("setsockopt"))?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}
