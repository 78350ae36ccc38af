#![forbid(unsafe_code)]
//! Listening sockets, threads, and the handle that reaches them.

mod builder;
mod closures;
mod engine;
mod plan;

pub use builder::BackendChoice;
pub use builder::Builder;
pub use builder::IntoAddress;
pub use builder::NewBuilder;
pub use closures::MakeHandler;
pub use engine::Engine;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;

use crate::error::Error;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::reactor;
use crate::reactor::Backend;
use crate::reactor::listen::Address;
use crate::reactor::listen::Listener;
use crate::reactor::spin::Spin;
use crate::worker::Drain;
use crate::worker::Remote;
use crate::worker::Shared;
use crate::worker::Worker;
use crate::worker::call_user;
use crate::worker::discard_user_value;

use builder::Settings;
use plan::Ballot;
use plan::Plan;
use plan::Vote;

/// A server that listens and does not accept yet.
#[derive(Debug)]
pub struct Server<M> {
    settings: Settings,
    make: M,
    /// By thread.
    listeners: Vec<Vec<Listener>>,
    addresses: Vec<Address>,
}

impl Server<()> {
    /// Starts with the defaults: every limit of `docs/LIMITS.md`, one thread for each CPU.
    pub fn builder() -> NewBuilder {
        NewBuilder::new()
    }
}

impl<M: MakeHandler> Server<M> {
    /// Where it listens: the first address.
    ///
    /// # Panics
    /// It listens nowhere ([`Builder::without_listener`]).
    pub fn local_addr(&self) -> &Address {
        &self.addresses[0]
    }

    /// Serves on this thread and others until something fails.
    ///
    /// # Errors
    /// What kept a thread from starting or going on.
    pub fn run(self) -> Result<()> {
        self.spawn()?.join()
    }

    /// Serves on threads of its own.
    ///
    /// # Errors
    /// What kept a thread from starting.
    pub fn spawn(self) -> Result<Handle> {
        let plan = Plan::new(&self.settings);
        let mut ballot = Ballot::new();
        let threads = self.listeners.len();
        let remote = Remote::new(threads);
        let shared = Arc::new(
            Shared::new(self.settings.connections_max).per_address(self.settings.per_address_max),
        );
        let make = Arc::new(self.make);
        let settings = Arc::new(self.settings);
        let (started, starts) = mpsc::channel();
        let mut handle = Handle {
            addresses: self.addresses,
            description: String::new(),
            remote: remote.clone(),
            shared: Arc::clone(&shared),
            threads: Vec::new(),
            listeners: Arc::default(),
            handed_over: AtomicBool::new(false),
        };
        for listener in self.listeners.iter().flatten() {
            let clone = listener.try_clone().map_err(reactor::explained);
            let clone = clone.map_err(Error::bind(listener.address()))?;
            handle.lock_listeners().push(clone.into_fd());
        }
        for (number, listeners) in self.listeners.into_iter().enumerate() {
            let start = Start {
                number,
                listeners,
                settings: Arc::clone(&settings),
                make: Arc::clone(&make),
                remote: remote.clone(),
                shared: Arc::clone(&shared),
                started: started.clone(),
                vote: if plan.has_vote() { ballot.vote() } else { None },
                ending: Ending {
                    number: number as u16,
                    remote: remote.clone(),
                    listeners: Arc::clone(&handle.listeners),
                    as_told: false,
                },
            };
            let thread = thread::Builder::new()
                .name(format!("sockeye-{number}"))
                .spawn(move || start.run(plan))
                .map_err(Error::io("spawn a thread"));
            match thread {
                Ok(thread) => handle.threads.push(thread),
                Err(error) => {
                    drop(ballot);
                    handle.abandon();
                    return Err(error);
                }
            }
        }
        drop(started);
        let tried = plan.has_vote().then(|| ballot.count());
        match plan.decide(tried) {
            Ok((verdict, description)) => {
                log::info!("{description}");
                handle.description = description;
                ballot.announce(verdict);
            }
            Err(error) => {
                drop(ballot);
                handle.abandon();
                return Err(error);
            }
        }
        for _ in 0..threads {
            // A thread that panics before it has started says nothing.
            let result = starts.recv().unwrap_or_else(|_| {
                let error = io::Error::other("the handler factory panicked");
                Err(Error::io("start a thread")(error))
            });
            if let Err(error) = result {
                handle.abandon();
                return Err(error);
            }
        }
        Ok(handle)
    }
}

/// What a thread starts with.
struct Start<M> {
    number: usize,
    listeners: Vec<Listener>,
    settings: Arc<Settings>,
    make: Arc<M>,
    remote: Remote,
    shared: Arc<Shared>,
    started: mpsc::Sender<Result<()>>,
    /// Its part in the choice of the backend; none if there is no choice.
    #[cfg_attr(
        not(all(feature = "uring", target_os = "linux")),
        allow(dead_code, reason = "there is no choice")
    )]
    vote: Option<Vote>,
    ending: Ending,
}

/// Sees to the rest when a thread ends, in whatever way.
struct Ending {
    number: u16,
    remote: Remote,
    /// Further descriptors of all listening sockets.
    listeners: Arc<Mutex<Vec<OwnedFd>>>,
    /// It was told to end: the others were told the same.
    as_told: bool,
}

impl Drop for Ending {
    fn drop(&mut self) {
        // There may never have been a worker.
        self.remote.stop(self.number);
        if !self.as_told {
            // A port that one thread has left would go on taking connections that nobody serves.
            lock(&self.listeners).clear();
            self.remote.fail();
        }
    }
}

impl<M: MakeHandler> Start<M> {
    #[cfg_attr(
        not(all(feature = "uring", target_os = "linux")),
        allow(unused_variables, reason = "there is no choice")
    )]
    fn run(mut self, plan: Plan) -> Result<()> {
        let listeners = std::mem::take(&mut self.listeners);
        #[cfg(all(feature = "uring", target_os = "linux"))]
        if let (Some(plan), Some(vote)) = (plan.uring(), self.vote.take()) {
            use crate::reactor::uring::UringBackend;
            use plan::Verdict;

            let threads = self.remote.threads();
            let made = UringBackend::prepare(listeners.len(), plan.direct_connections, threads);
            let (backend, works) = match made {
                Ok(backend) => (Some(backend), Ok(())),
                Err(error) => (None, Err(error)),
            };
            match (vote.cast(works), backend) {
                (Some(Verdict::Keep), Some(mut backend)) => {
                    backend.listen(listeners);
                    return self.serve(Ok(backend));
                }
                (Some(_), backend) => drop(backend),
                (None, _) => return Ok(()),
            }
        }
        #[cfg(feature = "poll")]
        {
            use crate::reactor::poll::PollBackend;
            self.serve(PollBackend::new(listeners))
        }
        #[cfg(not(feature = "poll"))]
        {
            // There is nothing to fall back to: the start has failed, or will.
            drop(listeners);
            Ok(())
        }
    }

    fn serve<B: Backend>(mut self, backend: io::Result<B>) -> Result<()> {
        let backend = match backend {
            Ok(backend) => backend,
            Err(error) => {
                // `spawn` waits for the word of each thread.
                let _ = self
                    .started
                    .send(Err(Error::io("set a backend up")(reactor::explained(
                        error,
                    ))));
                return Ok(());
            }
        };
        let env = match self.settings.env() {
            Ok(env) => env,
            Err(error) => {
                let _ = self.started.send(Err(error));
                return Ok(());
            }
        };
        let recorder = Arc::clone(self.remote.recorder(self.number as u16));
        let make = || self.make.make(self.number);
        let Some(handler) = call_user(&recorder, "the handler factory", make) else {
            let error = io::Error::other("the handler factory panicked");
            let _ = self.started.send(Err(Error::io("start a thread")(error)));
            return Ok(());
        };
        let spin = Spin::new(self.remote.threads(), reactor::allowed_cpus());
        let mut worker: Worker<B, M::Handler> = Worker::new(
            backend,
            handler,
            env,
            self.number as u16,
            self.remote.clone(),
            self.shared,
            spin,
        );
        let _ = self.started.send(Ok(()));
        drop(self.started);
        let ended = worker.run();
        self.ending.as_told = ended.is_ok();
        discard_user_value(&recorder, "a handler", worker);
        ended.map_err(Error::io("wait for events"))
    }
}

fn lock(listeners: &Mutex<Vec<OwnedFd>>) -> MutexGuard<'_, Vec<OwnedFd>> {
    // Nothing panics while it is held.
    listeners.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server that runs. Dropping the handle leaves it running.
#[derive(Debug)]
pub struct Handle {
    addresses: Vec<Address>,
    description: String,
    remote: Remote,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
    /// For a process that takes over.
    listeners: Arc<Mutex<Vec<OwnedFd>>>,
    handed_over: AtomicBool,
}

impl Handle {
    /// Where it listens: the first address.
    ///
    /// # Panics
    /// It listens nowhere ([`Builder::without_listener`]).
    pub fn local_addr(&self) -> &Address {
        &self.addresses[0]
    }

    /// Where it listens: every address, in the order they were given.
    pub fn local_addrs(&self) -> &[Address] {
        &self.addresses
    }

    /// What moves the bytes: `io_uring, regular descriptors`.
    pub fn backend(&self) -> &str {
        &self.description
    }

    /// How many threads serve.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// What the threads have seen so far.
    pub fn metrics(&self) -> Metrics {
        self.remote.metrics()
    }

    /// Connections at this moment, in whatever phase.
    pub fn connections(&self) -> usize {
        self.shared.connections()
    }

    /// Reaches the connections.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Ends the server without all its clients coming back at once: see [`Drain`].
    /// [`drained`](Self::drained) and [`connections`](Self::connections) say how far it is, and
    /// [`join`](Self::join) waits for its end. What is called a second time does nothing;
    /// [`shutdown`](Self::shutdown) cuts it short.
    pub fn drain(&self, drain: Drain) {
        self.lock_listeners().clear();
        self.remote.drain(drain);
    }

    /// Whether every thread has ended.
    pub fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Connections that a drain has sent a Close frame so far.
    pub fn drained(&self) -> usize {
        self.shared.drained()
    }

    /// Further descriptors of the listening sockets, of every thread, for a process that takes
    /// over: it listens on them ([`Builder::listen_on`]), and this one drains
    /// ([`Drain::hand_over`]). No connection is lost: what this process has not accepted the
    /// other one finds in the same queues. From here on a Unix socket's path is not removed at
    /// the end.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn listeners(&self) -> io::Result<Vec<OwnedFd>> {
        self.handed_over.store(true, Ordering::Relaxed);
        let listeners = self.lock_listeners();
        listeners.iter().map(OwnedFd::try_clone).collect()
    }

    fn lock_listeners(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        lock(&self.listeners)
    }

    /// Accepts no more, sends every connection a Close frame (1001), and ends when all have
    /// answered or the close time-out is over.
    pub fn shutdown(&self) {
        // The last that hold a port would let clients wait where nobody accepts.
        self.lock_listeners().clear();
        self.remote.shutdown();
    }

    /// Gives a failed start up. The threads have ended when it returns, so the ports are free.
    fn abandon(self) {
        self.shutdown();
        for thread in self.threads {
            // The caller reports the error that came first.
            let _ = thread.join();
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// What kept a thread from going on.
    pub fn join(self) -> Result<()> {
        let mut result = Ok(());
        for thread in self.threads {
            let ended = thread.join().unwrap_or_else(|_| {
                let error = io::Error::other("a worker panicked");
                Err(Error::io("serve")(error))
            });
            result = result.and(ended);
        }
        for address in self.addresses {
            if let Address::Unix(path) = address
                && !self.handed_over.load(Ordering::Relaxed)
            {
                // Somebody else may have removed it.
                let _ = std::fs::remove_file(path);
            }
        }
        result
    }
}
