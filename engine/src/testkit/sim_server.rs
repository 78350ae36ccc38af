use std::io;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use crate::config::COMPRESSION_BUDGET;
use crate::config::DEFERRED_MAX;
use crate::config::OUTPUT_BUDGET;
use crate::config::Proxies;
use crate::config::Route;
use crate::config::Victims;
use crate::conn::Env;
use crate::connect::Connect;
use crate::error::ConfigError;
use crate::metrics::Metrics;
use crate::reactor::sim::Faults;
use crate::reactor::sim::SimBackend;
use crate::reactor::sim::SimNet;
use crate::reactor::spin::Spin;
use crate::tls::ServerTls;
use crate::worker::ConnId;
use crate::worker::Drain;
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
    /// What the connections may do.
    pub base: Route,
    /// The routes, if there are any.
    pub routes: Vec<(&'static str, Route)>,
    /// TLS, if connections to it are to have it.
    pub tls: Option<ServerTls>,
    /// The most connections.
    pub connections_max: usize,
    /// Memory for output that peers have not taken.
    pub output_budget: usize,
    /// Memory for context takeover.
    pub compression_budget: usize,
    /// Whose connections are closed when that for output is used up.
    pub victims: Victims,
    /// Where it says whether it is ready.
    pub health_path: Option<Box<str>>,
    /// Where it says what it has seen.
    pub metrics_path: Option<Box<str>>,
    /// How long callbacks may take; nothing is timed if there is none.
    pub slow_callback: Option<Duration>,
    /// Proxies in front of it.
    pub proxies: Option<Proxies>,
    /// The most requests whose answers are put off.
    pub deferred_max: usize,
    /// The most connections of one address.
    pub per_address_max: Option<u32>,
    /// The most connections accepted in a second; zero is no limit.
    pub accept_rate_max: u32,
    /// Where chance begins.
    pub seed: u64,
    /// What goes wrong.
    pub faults: Faults,
}

impl Default for SimSettings {
    fn default() -> Self {
        Self {
            base: Route::default(),
            routes: Vec::new(),
            tls: None,
            connections_max: usize::MAX,
            output_budget: OUTPUT_BUDGET,
            compression_budget: COMPRESSION_BUDGET,
            victims: Victims::default(),
            health_path: None,
            metrics_path: None,
            slow_callback: None,
            proxies: None,
            deferred_max: DEFERRED_MAX,
            per_address_max: None,
            accept_rate_max: 0,
            seed: 0,
            faults: Faults::default(),
        }
    }
}

impl<H: Handler> SimServer<H> {
    /// A server that nobody has connected to yet.
    pub fn new(settings: SimSettings, handler: H) -> Self {
        settings.base.validate().expect("valid limits");
        let net = SimNet::new(settings.seed, settings.faults);
        let remote = Remote::new(1);
        let shared = Arc::new(
            Shared::new(Some(settings.connections_max)).per_address(settings.per_address_max),
        );
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&settings.seed.to_le_bytes());
        let routes = settings.routes.into_iter();
        let routes = routes.map(|(pattern, route)| route.with_pattern(pattern));
        let routes = iter::once(settings.base).chain(routes);
        let mut env = Env::new(routes.collect(), seed);
        env.held_len_max = settings.output_budget;
        env.takeover_len_max = settings.compression_budget;
        env.victims = settings.victims;
        env.proxies = settings.proxies;
        env.health_path = settings.health_path;
        env.metrics_path = settings.metrics_path;
        env.slow_callback = settings.slow_callback;
        env.deferred_max = settings.deferred_max;
        env.accept_rate_max = settings.accept_rate_max;
        env.tls = vec![settings.tls];
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

    /// Makes a connection, as `Engine::connect` does; [`SimNet::accept`] gives its far end.
    ///
    /// # Errors
    /// What is asked for makes no sense.
    pub fn connect(&mut self, connect: &Connect, data: H::Data) -> Result<ConnId, ConfigError> {
        self.worker.connect(connect, data)
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

    /// Begins to end the server, spread over a window.
    pub fn drain(&mut self, drain: Drain) {
        self.remote.drain(drain);
    }

    /// Connections that a drain has sent a Close frame.
    pub fn drained(&self) -> usize {
        self.worker.drained()
    }

    /// Begins to end the server.
    pub fn shut_down(&mut self) {
        self.remote.shutdown();
    }

    /// Does what the failure of another thread does to a thread.
    pub fn fail(&mut self) {
        self.remote.fail();
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.worker.is_finished()
    }

    /// What it has seen.
    pub fn metrics(&self) -> Metrics {
        self.remote.metrics()
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
