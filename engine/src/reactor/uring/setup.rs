//! The trial of a backend before it serves. It uses each operation once, on the rings that will
//! serve. Errors name the call, the limit and its value.

use std::io;
use std::io::IoSlice;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
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
#[cfg(test)]
use super::faults;
use super::ring;

/// Maximum time for an operation that completes at once if it works.
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

/// Returns `false` if this limit of locked memory, in bytes, does not suffice for the rings of this
/// process, whatever other processes hold.
pub(super) fn may_find_memory(limit: Option<u64>, threads: usize) -> bool {
    limit.is_none_or(|limit| limit >= ring::LOCKED_LEN_MIN * threads as u64)
}

/// The sockets of a trial.
#[derive(Debug, Default)]
struct Trial {
    clients: Vec<UnixStream>,
    /// Their other ends, in the same order.
    sockets: Vec<UringSocket>,
    /// The sockets that were reported to be readable.
    ready: [bool; CLIENTS],
}

/// Connections that a trial makes: the fewest that make a batch.
const CLIENTS: usize = 2;

impl UringBackend {
    /// Uses once what serving needs: accepts, polls, receives, sends, makes a regular descriptor,
    /// moves a descriptor into the table, closes. Nothing is left behind if it succeeds.
    ///
    /// # Errors
    /// Something does not work: the backend is to be dropped. The sockets are closed.
    pub(super) fn try_out(&mut self) -> io::Result<()> {
        // `prepare_descriptor` and further rings need this call.
        let submitter = self.rings[0].ring.submitter();
        let eventfd = new_eventfd()?;
        submitter
            .register_eventfd(eventfd.as_raw_fd())
            .and_then(|()| submitter.unregister_eventfd())
            .map_err(failed("io_uring_register (eventfd)"))?;

        let mut trial = Trial::default();
        let result = self.try_with(&mut trial);
        // A socket is a number: those that an error has left open are closed here.
        self.close_all(&mut trial);
        self.discard_stash();
        result
    }

    fn try_with(&mut self, trial: &mut Trial) -> io::Result<()> {
        // A Unix socket with a name that the kernel chooses: each backend has its own.
        let (listener, address) = listener().map_err(failed("socket"))?;
        self.accept_from(vec![listener]);
        self.arm_accepts();
        #[cfg(test)]
        faults::let_strangers_connect(&address);
        self.wait_for(trial, "io_uring_enter (accept)", |_, trial| {
            while trial.clients.len() < CLIENTS {
                match connect(&address) {
                    Ok(client) => trial.clients.push(client),
                    // The backlog is full of others: room comes as they are accepted.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) => return Err(failed("connect")(error)),
                }
            }
            Ok(trial.sockets.len() == CLIENTS)
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
        self.exchange(trial)?;

        self.close_all(trial);
        self.pause_accept();
        self.wait_for(trial, "io_uring_enter (cancel)", |backend, _| {
            Ok(backend.is_accept_idle())
        })?;
        for mut client in &trial.clients {
            // The stream ends only if the poll and the slot have let go of the socket.
            let mut rest = Vec::new();
            let read = client.read_to_end(&mut rest);
            read.map_err(failed("io_uring_enter (close)"))?;
        }
        self.acceptors.clear();
        self.accepting = true;
        Ok(())
    }

    fn close_all(&mut self, trial: &mut Trial) {
        for (socket, token) in trial.sockets.drain(..).zip(tokens()) {
            self.close(socket, Some(token));
        }
    }

    /// Readiness, receives and sends, in batches, of one piece and of several.
    fn exchange(&mut self, trial: &mut Trial) -> io::Result<()> {
        for (&socket, token) in trial.sockets.iter().zip(tokens()) {
            self.register(socket, token)
                .map_err(failed("io_uring_enter (poll)"))?;
        }
        for mut client in &trial.clients {
            client.write_all(PROBE).map_err(failed("write"))?;
        }
        self.wait_for(trial, "io_uring_enter (poll)", |_, trial| {
            Ok(trial.ready == [true; CLIENTS])
        })?;

        let mut buffers = [[0; 2 * PROBE.len()]; CLIENTS];
        let ops = trial.sockets.iter().zip(&mut buffers);
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
        let pieces: [&[IoSlice<'_>]; CLIENTS] = [&one, &two];
        let ops = trial.sockets.iter().zip(pieces);
        let mut sends: Vec<_> = ops
            .map(|(&socket, slices)| SendOp {
                socket,
                slices,
                result: Ok(0),
            })
            .collect();
        self.send_many(&mut sends);
        for (op, mut client) in sends.into_iter().zip(&trial.clients) {
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

    /// Waits, and handles events, until `is_done` returns `true`.
    fn wait_for(
        &mut self,
        trial: &mut Trial,
        call: &'static str,
        mut is_done: impl FnMut(&mut Self, &mut Trial) -> io::Result<bool>,
    ) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut events = Vec::new();
        while !is_done(self, trial)? {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(no_completion(call));
            }
            self.wait(Some(left.min(PATIENCE / 20)), &mut events)
                .map_err(failed("io_uring_enter"))?;
            let mut result = Ok(());
            // All of them, also after an error: some are open sockets.
            for event in events.drain(..) {
                result = result.and(self.handle_trial(trial, event));
            }
            result?;
        }
        Ok(())
    }

    fn handle_trial(&mut self, trial: &mut Trial, event: Event<UringSocket>) -> io::Result<()> {
        match event {
            Event::Accepted { socket, .. } => {
                // Any process of this machine can connect to the listener.
                let is_own = self.is_own(socket);
                if trial.sockets.len() < CLIENTS && matches!(is_own, Ok(true)) {
                    trial.sockets.push(socket);
                } else {
                    self.close(socket, None);
                }
                is_own.map(drop)
            }
            Event::AcceptFailed(error) => Err(failed("accept")(error)),
            Event::Ready { token, .. } => {
                trial.ready[token.index() as usize % CLIENTS] = true;
                Ok(())
            }
            Event::Woken => Ok(()),
        }
    }

    /// Returns `true` if this process is at the other end of a Unix socket.
    fn is_own(&mut self, socket: UringSocket) -> io::Result<bool> {
        let is_own = if socket.is_direct() {
            let fd = self.install(socket);
            let fd = fd.map_err(failed(
                "io_uring_enter (fixed descriptor install, Linux 6.8)",
            ))?;
            sys::is_peer_own(fd.as_raw_fd())
        } else {
            sys::is_peer_own(socket.fd())
        };
        is_own.map_err(failed("getsockopt (SO_PEERCRED)"))
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

/// Connects without waiting.
fn connect(address: &SockAddr) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}
