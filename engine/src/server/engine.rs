//! One thread's engine, run by its owner.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::conn::Agreed;
use crate::connect::Connect;
use crate::error::ConfigError;
use crate::error::Error;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::reactor;
use crate::reactor::listen::Address;
use crate::reactor::spin::Spin;
use crate::worker::ConnId;
use crate::worker::Context;
use crate::worker::Drain;
use crate::worker::Handler;
use crate::worker::Remote;
use crate::worker::Shared;
use crate::worker::Worker;

use super::MakeHandler;
use super::Server;
use super::builder::NewBuilder;
use super::plan::Plan;

#[cfg(feature = "poll")]
use crate::reactor::poll::PollBackend;
#[cfg(all(feature = "uring", target_os = "linux"))]
use crate::reactor::uring::UringBackend;

/// An engine on the caller's thread: it accepts connections, if it listens, and makes them with
/// [`Engine::connect`]. All happens inside [`Engine::turn`], and it stays on this thread.
///
/// ```
/// use std::time::Duration;
/// use sockeye::CloseCode;
/// use sockeye::Connect;
/// use sockeye::Engine;
/// use sockeye::Server;
///
/// # fn main() -> sockeye::Result<()> {
/// let server = Server::builder()
///     .on_message(|conn, message| { conn.send(message); })
///     .threads(1)
///     .bind("127.0.0.1:0")?
///     .spawn()?;
///
/// let mut engine = Engine::builder()
///     .on_open(|conn| { conn.send("hello"); })
///     .on_message(|conn, message| {
///         assert_eq!(message.as_str(), Some("hello"));
///         conn.close(CloseCode::NORMAL, "");
///     })
///     .engine()?;
/// let url = format!("ws://{}/", server.local_addr());
/// engine.connect(&Connect::new(&url)?, ())?;
/// while engine.connections() > 0 {
///     engine.turn(Some(Duration::from_secs(1)))?;
/// }
/// # server.shutdown();
/// # server.join()
/// # }
/// ```
pub struct Engine<H: Handler> {
    worker: AnyWorker<H>,
    addresses: Vec<Address>,
    description: String,
    remote: Remote,
    shared: Arc<Shared>,
}

#[allow(
    clippy::large_enum_variant,
    reason = "there is one, and it does not move while it is used"
)]
enum AnyWorker<H: Handler> {
    #[cfg(all(feature = "uring", target_os = "linux"))]
    Uring(Worker<UringBackend, H>),
    #[cfg(feature = "poll")]
    Poll(Worker<PollBackend, H>),
}

/// The same expression for either backend: decided once a call.
macro_rules! on_worker {
    ($worker:expr, $name:ident => $call:expr) => {
        match $worker {
            #[cfg(all(feature = "uring", target_os = "linux"))]
            AnyWorker::Uring($name) => $call,
            #[cfg(feature = "poll")]
            AnyWorker::Poll($name) => $call,
        }
    };
}

impl Engine<NoHandler> {
    /// Starts with the defaults: every limit of `docs/LIMITS.md`. It listens where
    /// [`listen`](super::Builder::listen) says, or nowhere;
    /// [`engine`](super::Builder::engine) makes it.
    pub fn builder() -> NewBuilder {
        NewBuilder::new()
    }
}

/// Stands for the handler of an engine that has none yet.
#[derive(Debug)]
pub struct NoHandler;

impl Handler for NoHandler {
    type Data = ();
}

impl<H: Handler> Engine<H> {
    pub(super) fn start<M: MakeHandler<Handler = H>>(server: Server<M>) -> Result<Self> {
        let plan = Plan::new(&server.settings);
        let remote = Remote::new(1);
        let shared = Arc::new(
            Shared::new(server.settings.connections_max)
                .per_address(server.settings.per_address_max),
        );
        let env = server.settings.env()?;
        let handler = server.make.make(0);
        let listeners = server.listeners.into_iter().next().unwrap_or_default();
        let spin = Spin::new(1, reactor::allowed_cpus());
        let (to_worker, with_all) = (remote.clone(), Arc::clone(&shared));
        let mut tried = None;
        #[cfg(all(feature = "uring", target_os = "linux"))]
        let mut uring = None;
        #[cfg(all(feature = "uring", target_os = "linux"))]
        if let Some(plan) = plan.uring() {
            let made = UringBackend::prepare(listeners.len(), plan.direct_connections, 1);
            tried = Some(made.map(|backend| uring = Some(backend)));
        }
        let (_, description) = plan.decide(tried.take())?;
        log::info!("{description}");
        #[cfg(all(feature = "uring", target_os = "linux"))]
        if let Some(mut backend) = uring {
            backend.listen(listeners);
            let worker = Worker::new(backend, handler, env, 0, to_worker, with_all, spin);
            return Ok(Self {
                worker: AnyWorker::Uring(worker),
                addresses: server.addresses,
                description,
                remote,
                shared,
            });
        }
        #[cfg(not(feature = "poll"))]
        return Err(super::plan::no_backend(""));
        #[cfg(feature = "poll")]
        let worker = {
            let backend = PollBackend::new(listeners).map_err(reactor::explained);
            let backend = backend.map_err(Error::io("set a backend up"))?;
            AnyWorker::Poll(Worker::new(
                backend, handler, env, 0, to_worker, with_all, spin,
            ))
        };
        #[cfg(feature = "poll")]
        Ok(Self {
            worker,
            addresses: server.addresses,
            description,
            remote,
            shared,
        })
    }

    /// Makes a connection: the same callbacks, limits, time-outs and ids as of accepted ones.
    /// It does not wait. `data` is the connection's until the end of `on_close`, which also
    /// says if it did not open: refused, unreachable, timed out, not upgraded
    /// ([`CloseCause::NotOpened`](crate::CloseCause::NotOpened)).
    ///
    /// # Errors
    /// What is asked for makes no sense: a host that has not been looked up
    /// ([`Connect::resolve`]), a header that cannot be sent, TLS settings. `on_close` is not
    /// called.
    pub fn connect(
        &mut self,
        connect: &Connect,
        data: H::Data,
    ) -> std::result::Result<ConnId, ConfigError> {
        on_worker!(&mut self.worker, worker => worker.connect(connect, data))
    }

    /// Takes a connection whose opening handshake has been made elsewhere: by another HTTP server
    /// in this process, say, that has routed and authenticated the request. `received` is what had
    /// been read of it behind the request. `on_open` is called at once, and what was received is
    /// delivered; what is sent leaves in the next turn. The stream is not encrypted.
    ///
    /// # Errors
    /// It is no stream socket, there is no room for it, or the engine ends. The socket is closed,
    /// and `data` dropped.
    pub fn adopt(
        &mut self,
        socket: impl Into<OwnedFd>,
        received: impl Into<Vec<u8>>,
        agreed: &Agreed,
        data: H::Data,
    ) -> io::Result<ConnId> {
        let (socket, received) = (socket.into(), received.into());
        on_worker!(&mut self.worker, worker => worker.adopt(socket, received, agreed, data))
    }

    /// A descriptor that is readable when there is something to do, for owners with a loop of
    /// their own, which wait for other things as well. It is the same for the whole life of the
    /// engine, and only to be waited for; between turns, no longer than
    /// [`prepare_wait`](Self::prepare_wait) says.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn descriptor(&mut self) -> Result<OwnedFd> {
        let clone = on_worker!(&mut self.worker, worker => {
            worker.prepare_descriptor().and_then(|()| {
                let descriptor = worker.descriptor();
                let none = || io::Error::from(io::ErrorKind::Unsupported);
                descriptor.ok_or_else(none)?.try_clone_to_owned()
            })
        });
        clone.map_err(Error::io("get a descriptor"))
    }

    /// How long the owner may wait for the engine's [`descriptor`](Self::descriptor) to become
    /// readable before the next turn: zero if there is something to do already.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use sockeye::{Engine, Handler};
    /// # fn wait_readable(_: std::os::fd::BorrowedFd<'_>, _: Duration) {}
    /// # fn run<H: Handler>(engine: &mut Engine<H>) -> sockeye::Result<()> {
    /// use std::os::fd::AsFd;
    ///
    /// let descriptor = engine.descriptor()?;
    /// while !engine.is_finished() {
    ///     let wait = engine.prepare_wait();
    ///     wait_readable(descriptor.as_fd(), wait);
    ///     engine.turn(Some(Duration::ZERO))?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn prepare_wait(&mut self) -> Duration {
        on_worker!(&mut self.worker, worker => worker.prepare_wait())
    }

    /// Does what there is to do; waits for it at most `timeout`, or for ever.
    ///
    /// Time-outs count at most one second per turn, so that no peer pays for time in which nobody
    /// listened. An owner that turns more rarely than [`prepare_wait`](Self::prepare_wait) says makes
    /// them longer: at one turn every 10 s, ten times as long.
    ///
    /// # Errors
    /// The backend failed: nothing can go on.
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<()> {
        let result: io::Result<()> = on_worker!(&mut self.worker, worker => {
            worker.end_wait();
            let result = worker.turn(timeout);
            // The owner may turn again much later, and peers wait.
            worker.submit();
            result
        });
        result.map_err(Error::io("wait for events"))
    }

    /// Turns until [`Engine::shut_down`] has been asked for and is done.
    ///
    /// # Errors
    /// The backend failed: nothing can go on.
    pub fn run(&mut self) -> Result<()> {
        while !self.is_finished() {
            self.turn(None)?;
        }
        Ok(())
    }

    /// Accepts no more, sends every connection a Close frame (1001), and is finished when all
    /// have answered or the close time-out is over: some turns from now.
    pub fn shut_down(&self) {
        self.remote.shutdown();
    }

    /// Ends without all clients coming back at once: see [`Drain`]. It goes on in the turns to
    /// come.
    pub fn drain(&self, drain: Drain) {
        self.remote.drain(drain);
    }

    /// What it has seen so far.
    pub fn metrics(&self) -> Metrics {
        self.remote.metrics()
    }

    /// Connections that a drain has sent a Close frame so far.
    pub fn drained(&self) -> usize {
        self.shared.drained()
    }

    /// Whether it was shut down and all its connections are over.
    pub fn is_finished(&self) -> bool {
        on_worker!(&self.worker, worker => worker.is_finished())
    }

    /// The handler, between turns.
    pub fn handler(&mut self) -> &mut H {
        on_worker!(&mut self.worker, worker => worker.handler_mut())
    }

    /// Calls with the handler and an open connection, between turns: for what an owner does of
    /// its own accord, such as sending at a time of its choice. What is asked for happens in the
    /// next turn. `None` if the connection is not open, or gone.
    ///
    /// ```
    /// # use sockeye::{ConnId, Engine, Handler, SendResult};
    /// fn tick<H: Handler>(engine: &mut Engine<H>, id: ConnId) -> Option<SendResult> {
    ///     engine.with(id, |_, conn| conn.send("tick"))
    /// }
    /// ```
    pub fn with<R>(
        &mut self,
        id: ConnId,
        call: impl FnOnce(&mut H, &mut Context<'_, H::Data>) -> R,
    ) -> Option<R> {
        on_worker!(&mut self.worker, worker => worker.with(id, call))
    }

    /// Reaches the connections, from any thread.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Connections at this moment, in whatever phase.
    pub fn connections(&self) -> usize {
        self.shared.connections()
    }

    /// Where it listens.
    pub fn local_addrs(&self) -> &[Address] {
        &self.addresses
    }

    /// What moves the bytes: `io_uring, regular descriptors`.
    pub fn backend(&self) -> &str {
        &self.description
    }
}

impl<H: Handler> fmt::Debug for Engine<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("backend", &self.description)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
