#![forbid(unsafe_code)]
//! A whole worker over a simulated network, in virtual time, for tests.
//!
//! [`SimServer`] runs a handler as a real server runs it; its clients are made with
//! [`SimNet::connect`](SimServer::net) and exchange bytes. The same seed gives the same run.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

pub use crate::reactor::sim::Chance;
pub use crate::reactor::sim::Faults;
pub use crate::reactor::sim::SimClient;
pub use crate::reactor::sim::SimNet;
pub use crate::worker::Counters;
pub use crate::worker::MAILBOX_LEN_MAX;

use crate::config::Limits;
use crate::config::OriginPolicy;
use crate::conn::Env;
use crate::reactor::sim::SimBackend;
use crate::reactor::spin::Spin;
use crate::worker::Handler;
use crate::worker::Remote;
use crate::worker::Shared;
use crate::worker::Worker;

/// A server of one thread on a simulated network.
pub struct SimServer<H: Handler> {
    net: SimNet,
    remote: Remote,
    worker: Worker<SimBackend, H>,
}

/// Settings of a simulated server.
#[derive(Clone, Debug)]
pub struct SimSettings {
    /// The limits.
    pub limits: Limits,
    /// Subprotocols that it speaks.
    pub subprotocols: Vec<String>,
    /// Which origins may connect.
    pub origins: OriginPolicy,
    /// The most connections.
    pub connections_max: usize,
    /// Where chance begins.
    pub seed: u64,
    /// What goes wrong.
    pub faults: Faults,
}

impl Default for SimSettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            subprotocols: Vec::new(),
            origins: OriginPolicy::SameHost,
            connections_max: usize::MAX,
            seed: 0,
            faults: Faults::default(),
        }
    }
}

impl<H: Handler> SimServer<H> {
    /// A server that nobody has connected to yet.
    pub fn new(settings: SimSettings, handler: H) -> Self {
        settings.limits.validate().expect("valid limits");
        let net = SimNet::new(settings.seed, settings.faults);
        let remote = Remote::new(1);
        let shared = Arc::new(Shared {
            connections: AtomicUsize::new(0),
            connections_max: settings.connections_max,
        });
        let env = Env::new(settings.limits, settings.subprotocols, settings.origins);
        // There is no CPU to spin on.
        let spin = Spin::new(1, 0);
        let worker = Worker::new(net.backend(), handler, env, 0, remote.clone(), shared, spin);
        Self {
            net,
            remote,
            worker,
        }
    }

    /// The network: makes clients, lets time pass.
    pub fn net(&self) -> &SimNet {
        &self.net
    }

    /// Reaches the connections.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// One turn, without letting time pass.
    ///
    /// # Errors
    /// The backend failed; the simulated one does not.
    pub fn turn(&mut self) -> io::Result<()> {
        self.worker.turn(Some(Duration::ZERO))
    }

    /// Turns while `time` passes, in steps of a quarter of a second.
    ///
    /// # Errors
    /// The backend failed; the simulated one does not.
    pub fn pass(&mut self, time: Duration) -> io::Result<()> {
        let step = Duration::from_millis(250);
        let mut passed = Duration::ZERO;
        while passed < time {
            self.net.advance(step);
            passed += step;
            self.turn()?;
            self.turn()?;
        }
        Ok(())
    }

    /// Begins to end the server.
    pub fn shut_down(&mut self) {
        self.remote.shutdown();
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.worker.is_finished()
    }

    /// What the worker has seen.
    pub fn counters(&self) -> Counters {
        self.worker.counters()
    }

    /// Messages that were refused for want of room.
    pub fn dropped(&self) -> u64 {
        self.worker.dropped()
    }

    /// Connections, in whatever phase.
    pub fn connections(&self) -> usize {
        self.worker.connections()
    }

    /// The largest output that waits for any connection.
    pub fn queued_len_max(&self) -> usize {
        self.worker.queued_len_max()
    }

    /// The handler.
    pub fn handler_mut(&mut self) -> &mut H {
        self.worker.handler_mut()
    }
}

impl<H: Handler> std::fmt::Debug for SimServer<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimServer")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
