use std::fmt;
use std::io;
use std::iter;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use crate::config::COMPRESSION_BUDGET;
#[cfg(feature = "deflate")]
use crate::config::Compression;
use crate::config::DEFERRED_MAX;
use crate::config::Limits;
use crate::config::OUTPUT_BUDGET;
use crate::config::OriginPolicy;
use crate::config::OutputPolicy;
use crate::config::Proxies;
use crate::config::Route;
use crate::config::Victims;
use crate::conn::Closed;
use crate::conn::Env;
use crate::error::ConfigError;
use crate::error::Error;
use crate::error::Result;
use crate::http1::Request;
use crate::http1::Response;
use crate::protocol::Message;
use crate::protocol::handshake;
use crate::reactor;
use crate::reactor::listen::Address;
use crate::reactor::listen::Listener;
use crate::tls::ServerTls;
use crate::worker::Context;
use crate::worker::Handler;

use super::Engine;
use super::Server;
use super::closures::Closures;
use super::closures::Factory;
use super::closures::MakeHandler;
use super::closures::Unset;

/// The most threads.
const THREADS_MAX: usize = 1024;

/// The smallest output budget of a thread.
const OUTPUT_BUDGET_MIN: usize = 64 * 1024;

/// The most routes: connections know theirs by a number of 16 bits.
const ROUTES_MAX: usize = 65_534;

/// Which mechanism of the operating system moves the bytes. All behave the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendChoice {
    /// io_uring if it works here, else readiness.
    #[default]
    Auto,
    /// io_uring; an error if it does not work here.
    Uring,
    /// epoll on Linux, kqueue elsewhere.
    Poll,
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "poll" => Ok(Self::Poll),
            _ => Err(format!("no backend {text:?}: wanted auto, uring or poll")),
        }
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Poll => "poll",
        })
    }
}

/// The settings of a server, besides its handler.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// What routes begin with, and what outgoing connections have.
    pub(super) base: Route,
    pub(super) routes: Vec<Route>,
    pub(super) threads: Option<usize>,
    pub(super) backend: BackendChoice,
    pub(super) connections_max: Option<usize>,
    pub(super) direct_descriptors: Option<bool>,
    pub(super) output_budget: Option<usize>,
    pub(super) victims: Victims,
    pub(super) compression_budget: Option<usize>,
    pub(super) proxies: Option<Proxies>,
    pub(super) health_path: Option<Box<str>>,
    pub(super) metrics_path: Option<Box<str>>,
    pub(super) timing: bool,
    pub(super) slow_callback: Option<Duration>,
    pub(super) deferred_max: Option<usize>,
    pub(super) per_address_max: Option<u32>,
    pub(super) accept_rate_max: u32,
    /// By listener, once they are bound.
    pub(super) tls: Vec<Option<ServerTls>>,
    addresses: Vec<(std::result::Result<Address, String>, Option<ServerTls>)>,
    inherited: Vec<Inherited>,
    inherited_tls: Option<ServerTls>,
    dual_stack: bool,
}

/// A listening socket that was made elsewhere. Only the first of the clones of a builder has it.
#[derive(Clone, Debug)]
struct Inherited(Arc<OwnedFd>);

/// Settings and handler of a server to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder<M> {
    settings: Settings,
    make: M,
}

/// Without closures, and without a handler.
pub type NewBuilder = Builder<Closures<Unset, Unset, Unset, Unset, Unset>>;

impl NewBuilder {
    pub(super) fn new() -> Self {
        Self {
            settings: Settings::default(),
            make: Closures::default(),
        }
    }

    /// Sets the handler: `factory` makes one for each thread, on that thread; it gets the
    /// thread's number.
    pub fn handler<H: Handler, F>(self, factory: F) -> Builder<Factory<F>>
    where
        F: Fn(usize) -> H + Send + Sync + 'static,
    {
        Builder {
            settings: self.settings,
            make: Factory(factory),
        }
    }
}

/// Where an address can come from: `"127.0.0.1:9001"`, `"[::1]:0"`, `"unix:/run/chat"`, a
/// `SocketAddr`, or an [`Address`].
pub trait IntoAddress {
    /// The address, or the text that is none.
    ///
    /// # Errors
    /// The text.
    fn into_address(self) -> std::result::Result<Address, String>;
}

impl IntoAddress for &str {
    fn into_address(self) -> std::result::Result<Address, String> {
        self.parse().map_err(|()| self.to_owned())
    }
}

impl IntoAddress for Address {
    fn into_address(self) -> std::result::Result<Address, String> {
        Ok(self)
    }
}

impl IntoAddress for std::net::SocketAddr {
    fn into_address(self) -> std::result::Result<Address, String> {
        Ok(Address::Ip(self))
    }
}

/// A builder with one closure set, and the others as they are in `self`.
macro_rules! with_closure {
    ($builder:ident, $new:ident, $($kept:ident),*) => {{
        let Closures { $($kept,)* .. } = $builder.make;
        $builder.settings.with(Closures { $new, $($kept,)* })
    }};
}

impl<O, M, D, C, T> Builder<Closures<O, M, D, C, T>> {
    /// Called when a connection has opened.
    pub fn on_open<F>(self, open: F) -> Builder<Closures<F, M, D, C, T>>
    where
        F: Fn(&mut Context<'_, ()>) + Clone + Send + Sync + 'static,
    {
        with_closure!(self, open, message, drain, close, http)
    }

    /// Called with each message.
    pub fn on_message<F>(self, message: F) -> Builder<Closures<O, F, D, C, T>>
    where
        F: Fn(&mut Context<'_, ()>, Message<'_>) + Clone + Send + Sync + 'static,
    {
        with_closure!(self, message, open, drain, close, http)
    }

    /// Called when output that was held up, or refused, has drained.
    pub fn on_drain<F>(self, drain: F) -> Builder<Closures<O, M, F, C, T>>
    where
        F: Fn(&mut Context<'_, ()>) + Clone + Send + Sync + 'static,
    {
        with_closure!(self, drain, open, message, close, http)
    }

    /// Called when a connection is over.
    pub fn on_close<F>(self, close: F) -> Builder<Closures<O, M, D, F, T>>
    where
        F: Fn(&mut Context<'_, ()>, &Closed<'_>) + Clone + Send + Sync + 'static,
    {
        with_closure!(self, close, open, message, drain, http)
    }

    /// Answers GET and HEAD requests that ask for no WebSocket.
    pub fn on_http<F>(self, http: F) -> Builder<Closures<O, M, D, C, F>>
    where
        F: Fn(&Request<'_>) -> Response + Clone + Send + Sync + 'static,
    {
        with_closure!(self, http, open, message, drain, close)
    }
}

impl Settings {
    fn with<M>(self, make: M) -> Builder<M> {
        Builder {
            settings: self,
            make,
        }
    }

    fn validate(&self) -> std::result::Result<(), ConfigError> {
        self.validate_routes()?;
        let threads = self.threads();
        if threads == 0 || threads > THREADS_MAX {
            return Err(ConfigError::Threads(threads));
        }
        for (address, _) in &self.addresses {
            if let Err(text) = address {
                return Err(ConfigError::Address(text.clone()));
            }
        }
        if self
            .output_budget
            .is_some_and(|bytes| bytes < OUTPUT_BUDGET_MIN)
        {
            return Err(ConfigError::Limit("output_budget is below 64 KiB"));
        }
        match self.backend {
            BackendChoice::Uring if !cfg!(all(feature = "uring", target_os = "linux")) => {
                Err(ConfigError::Backend("uring"))
            }
            BackendChoice::Poll if !cfg!(feature = "poll") => Err(ConfigError::Backend("poll")),
            _ => Ok(()),
        }
    }

    fn validate_routes(&self) -> std::result::Result<(), ConfigError> {
        let mut router = matchit::Router::new();
        for route in iter::once(&self.base).chain(&self.routes) {
            route.validate()?;
            if let Some(pattern) = route.pattern() {
                let why = |error: matchit::InsertError| error.to_string();
                router
                    .insert(pattern, ())
                    .map_err(why)
                    .and_then(|()| match pattern.starts_with('/') {
                        true => Ok(()),
                        false => Err("it does not begin with /".to_owned()),
                    })
                    .map_err(|why| ConfigError::Route(pattern.to_owned(), why))?;
            }
            if let OriginPolicy::List(patterns) = &route.origins {
                let is_bad = |pattern: &&String| !handshake::is_origin_pattern(pattern);
                if let Some(bad) = patterns.iter().find(is_bad) {
                    return Err(ConfigError::Origin(bad.clone()));
                }
            }
        }
        if self.routes.len() > ROUTES_MAX {
            return Err(ConfigError::Limit("more than 65,534 routes"));
        }
        Ok(())
    }

    /// What the connections of a thread share.
    pub(super) fn env(&self) -> Result<Env> {
        let mut seed = [0; 32];
        let no_seed = |error: getrandom::Error| Error::io("get random bytes")(error.into());
        getrandom::fill(&mut seed).map_err(no_seed)?;
        let routes = iter::once(&self.base).chain(&self.routes);
        let mut env = Env::new(routes.cloned().collect(), seed);
        env.wall_clock = Some(SystemTime::now);
        env.tls.clone_from(&self.tls);
        env.held_len_max = self.output_budget.unwrap_or(OUTPUT_BUDGET);
        env.victims = self.victims;
        env.takeover_len_max = self.compression_budget.unwrap_or(COMPRESSION_BUDGET);
        env.proxies.clone_from(&self.proxies);
        env.health_path.clone_from(&self.health_path);
        env.metrics_path.clone_from(&self.metrics_path);
        env.slow_callback = match self.slow_callback {
            None if self.timing => Some(Duration::MAX),
            slow => slow,
        };
        env.deferred_max = self.deferred_max.unwrap_or(DEFERRED_MAX);
        env.accept_rate_max = self.accept_rate_max;
        Ok(env)
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(reactor::allowed_cpus)
    }
}

impl<M: MakeHandler> Builder<M> {
    /// Listens here as well; a bad address is reported by [`bind`](Self::bind).
    pub fn listen(mut self, address: impl IntoAddress) -> Self {
        self.settings.addresses.push((address.into_address(), None));
        self
    }

    /// Listens here as well, with TLS (`wss`); a bad address is reported by
    /// [`bind`](Self::bind).
    #[cfg(feature = "tls")]
    pub fn listen_tls(mut self, address: impl IntoAddress, tls: &ServerTls) -> Self {
        let address = (address.into_address(), Some(tls.clone()));
        self.settings.addresses.push(address);
        self
    }

    /// Whether a listener on `[::]` takes IPv4 connections as well. Default: no, whatever the system
    /// prefers (`net.ipv6.bindv6only`), so that `[::]` and `0.0.0.0` can be listened on side by side.
    /// IPv4 clients of such a listener have IPv4 addresses here. Sockets that were made elsewhere
    /// ([`listen_on`](Self::listen_on)) are left as they are.
    pub fn dual_stack(mut self, dual_stack: bool) -> Self {
        self.settings.dual_stack = dual_stack;
        self
    }

    /// Sets what routes begin with, and what outgoing connections and servers without routes
    /// have.
    pub fn defaults(self, base: Route) -> Self {
        self.change_base(|_| base)
    }

    /// Listens on a socket that was made elsewhere as well: by systemd (socket activation), or
    /// by a process before this one ([`Handle::listeners`](super::Handle::listeners)). It may be
    /// given several; all threads share them. What fails is reported by
    /// [`bind_inherited`](Self::bind_inherited).
    pub fn listen_on(mut self, socket: impl Into<OwnedFd>) -> Self {
        let socket = Inherited(Arc::new(socket.into()));
        self.settings.inherited.push(socket);
        self
    }

    /// TLS of the sockets that were made elsewhere.
    #[cfg(feature = "tls")]
    pub fn inherited_tls(mut self, tls: &ServerTls) -> Self {
        self.settings.inherited_tls = Some(tls.clone());
        self
    }

    /// The server listens where [`listen`](Self::listen) and [`listen_on`](Self::listen_on) have
    /// said.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind); also if nothing has been said, or a socket cannot listen.
    pub fn bind_inherited(self) -> Result<Server<M>> {
        if self.settings.inherited.is_empty() && self.settings.addresses.is_empty() {
            return Err(ConfigError::NoAddress.into());
        }
        self.bind_all()
    }

    /// A server that listens nowhere: its connections are made
    /// ([`Remote::connect`](crate::Remote::connect)) or handed over
    /// ([`Remote::adopt`](crate::Remote::adopt)).
    ///
    /// # Errors
    /// As for [`bind`](Self::bind); also if an address was given.
    pub fn without_listener(self) -> Result<Server<M>> {
        if !self.settings.inherited.is_empty() || !self.settings.addresses.is_empty() {
            return Err(ConfigError::SurplusAddress.into());
        }
        self.bind_all()
    }

    /// Where the server says whether it is ready: it answers GET requests of this path with 200,
    /// and with 503 while it drains ([`Handle::drain`](super::Handle::drain)).
    pub fn health_path(mut self, path: &str) -> Self {
        self.settings.health_path = Some(path.into());
        self
    }

    /// Where the server says what it has seen ([`Metrics::to_prometheus`]): it answers GET requests
    /// of this path with it. Whoever can reach the server can read it, so it is for servers behind
    /// a proxy that keeps the path to itself; others render it in
    /// [`Handler::on_http`](crate::Handler::on_http), or in an HTTP server of their own, from
    /// [`Remote::metrics`](crate::Remote::metrics).
    ///
    /// [`Metrics::to_prometheus`]: crate::Metrics::to_prometheus
    pub fn metrics_path(mut self, path: &str) -> Self {
        self.settings.metrics_path = Some(path.into());
        self
    }

    /// Whether the times of [`ThreadMetrics`](crate::ThreadMetrics) are recorded, which costs two
    /// readings of the clock for each callback, one for each turn and each batch of receives, and
    /// one for each command of another thread. Off by default; the round-trip times of pings are
    /// always recorded.
    pub fn timing(mut self, timing: bool) -> Self {
        self.settings.timing = timing;
        self
    }

    /// How long a callback may hold its thread before
    /// [`Handler::on_slow_callback`](crate::Handler::on_slow_callback) reports it. Callbacks are
    /// timed for that ([`timing`](Self::timing)); off by default.
    pub fn slow_callback(mut self, allowed: Duration) -> Self {
        self.settings.slow_callback = Some(allowed);
        self
    }

    /// Sets all limits and time-outs.
    pub fn limits(self, limits: Limits) -> Self {
        self.change_base(|base| base.limits(limits))
    }

    /// The longest message in bytes. The output limit is raised with it where it would not
    /// hold one.
    pub fn message_len_max(self, len: usize) -> Self {
        self.change_base(|base| base.message_len_max(len))
    }

    /// Subprotocols that the server speaks, the preferred one first (RFC 6455 §1.9).
    pub fn subprotocols<S: Into<String>>(self, names: impl IntoIterator<Item = S>) -> Self {
        self.change_base(|base| base.subprotocols(names))
    }

    /// Which browsers' pages may connect.
    pub fn origins(self, policy: OriginPolicy) -> Self {
        self.change_base(|base| base.origins(policy))
    }

    /// What becomes of a message that the output limit leaves no room for.
    pub fn output_policy(self, policy: OutputPolicy) -> Self {
        self.change_base(|base| base.output_policy(policy))
    }

    /// Whether messages are delivered in chunks as they arrive, and are not held
    /// ([`Route::streaming`]).
    pub fn streaming(self, streaming: bool) -> Self {
        self.change_base(|base| base.streaming(streaming))
    }

    /// Whether pings are answered by the engine; the default ([`Route::auto_pong`]).
    pub fn auto_pong(self, auto: bool) -> Self {
        self.change_base(|base| base.auto_pong(auto))
    }

    /// Whether messages are compressed where the client offers it
    /// ([`Route::compression`]).
    #[cfg(feature = "deflate")]
    pub fn compression(self, compression: Compression) -> Self {
        self.change_base(|base| base.compression(compression))
    }

    /// How hard messages are compressed, from 1, the fastest and the default, to 9
    /// ([`Route::compression_level`]).
    #[cfg(feature = "deflate")]
    pub fn compression_level(self, level: u8) -> Self {
        self.change_base(|base| base.compression_level(level))
    }

    /// The shortest message that is compressed, in bytes ([`Route::compression_len_min`]).
    #[cfg(feature = "deflate")]
    pub fn compression_len_min(self, len: usize) -> Self {
        self.change_base(|base| base.compression_len_min(len))
    }

    /// Compresses only for clients whose requests `check` accepts
    /// ([`Route::compression_check`]).
    #[cfg(feature = "deflate")]
    pub fn compression_check(
        self,
        check: impl Fn(&Request<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.change_base(|base| base.compression_check(check))
    }

    /// The most memory, in bytes, that a thread's connections may keep for context takeover
    /// ([`Compression::Dedicated`]): those that come when it is used up compress each message by
    /// itself. 64 MiB by default, which is for about 150 connections with the largest windows.
    #[cfg(feature = "deflate")]
    pub fn compression_budget(mut self, bytes: usize) -> Self {
        self.settings.compression_budget = Some(bytes);
        self
    }

    /// How long a connection may be open before the handler has promoted it
    /// ([`Route::promote_within`]).
    pub fn promote_within(self, timeout: Duration) -> Self {
        self.change_base(|base| base.promote_within(timeout))
    }

    /// Takes requests for paths that `pattern` stands for, with what `change` says in place of
    /// what the builder has been told so far. Other paths are then answered with 404.
    pub fn route(mut self, pattern: &str, change: impl FnOnce(Route) -> Route) -> Self {
        let route = change(self.settings.base.clone()).with_pattern(pattern);
        self.settings.routes.push(route);
        self
    }

    fn change_base(mut self, change: impl FnOnce(Route) -> Route) -> Self {
        self.settings.base = change(self.settings.base);
        self
    }

    /// How many threads; by default one for each CPU that the process may use.
    pub fn threads(mut self, threads: usize) -> Self {
        self.settings.threads = Some(threads);
        self
    }

    /// Which mechanism moves the bytes.
    pub fn backend(mut self, backend: BackendChoice) -> Self {
        self.settings.backend = backend;
        self
    }

    /// The most connections at once, of all threads; further ones are closed at once. No limit
    /// by default but what the system has. If it is more than the process may have
    /// descriptors, io_uring holds them in tables of its own.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.settings.connections_max = Some(connections);
        self
    }

    /// Proxies in front of the server, whose word on their clients' addresses is believed
    /// ([`Context::client_addr`]).
    pub fn proxies(mut self, proxies: Proxies) -> Self {
        self.settings.proxies = Some(proxies);
        self
    }

    /// The most requests of a thread whose answers are put off at once
    /// ([`OpeningHandshake::defer`](crate::OpeningHandshake::defer)); further ones are answered
    /// with 503. Default 1,024.
    pub fn deferred_max(mut self, requests: usize) -> Self {
        self.settings.deferred_max = Some(requests);
        self
    }

    /// The most connections at once of one IPv4 address, or of one IPv6 network of 64 bits, on
    /// all threads; further ones are closed at once, and counted. Those of
    /// [`proxies`](Self::proxies) are not limited. No limit by default: many people may be
    /// behind one address.
    pub fn connections_per_address_max(mut self, connections: u32) -> Self {
        self.settings.per_address_max = Some(connections);
        self
    }

    /// The most connections that a thread accepts in a second, and as many at once; further ones
    /// are closed at once, and counted. No limit by default.
    pub fn accept_rate_max(mut self, connections: u32) -> Self {
        self.settings.accept_rate_max = connections;
        self
    }

    /// The most memory of a thread, in bytes, for output that peers have not taken. When it is
    /// nearly used up, connections are closed (1013) until an eighth is free; `victims` says
    /// whose. Default 256 MiB. Messages that were encoded once for many connections count with
    /// what refers to them.
    pub fn output_budget(mut self, bytes: usize, victims: Victims) -> Self {
        self.settings.output_budget = Some(bytes);
        self.settings.victims = victims;
        self
    }

    /// Whether io_uring is to hold connections in tables of its own (direct descriptors).
    /// Decided by [`connections_max`](Self::connections_max) if it is not said.
    pub fn direct_descriptors(mut self, direct: bool) -> Self {
        self.settings.direct_descriptors = Some(direct);
        self
    }

    /// Listens on `address`, and on those given before. A port that is in use is tried for a
    /// second, for the kernel to let go of the sockets of a server that was killed.
    ///
    /// # Errors
    /// A setting that makes no sense, or an address that cannot be listened on.
    pub fn bind(self, address: impl IntoAddress) -> Result<Server<M>> {
        self.listen(address).bind_all()
    }

    /// As [`bind`](Self::bind), with TLS (`wss`) on this address.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind).
    #[cfg(feature = "tls")]
    pub fn bind_tls(self, address: impl IntoAddress, tls: &ServerTls) -> Result<Server<M>> {
        self.listen_tls(address, tls).bind_all()
    }

    /// An engine for this thread, which its owner turns. It listens where
    /// [`listen`](Self::listen) has said, or nowhere; [`threads`](Self::threads) says nothing
    /// to it.
    ///
    /// # Errors
    /// A setting that makes no sense, an address that cannot be listened on, or a backend that
    /// cannot be set up.
    pub fn engine(self) -> Result<Engine<M::Handler>> {
        Engine::start(self.threads(1).bind_all()?)
    }

    fn bind_all(mut self) -> Result<Server<M>> {
        self.settings.validate()?;
        let mut addresses = Vec::new();
        for (address, tls) in self.settings.addresses.drain(..) {
            addresses.extend(address);
            self.settings.tls.push(tls);
        }
        let threads = self.settings.threads();
        let mut listeners: Vec<Vec<Listener>> = (0..threads).map(|_| Vec::new()).collect();
        let mut bound = Vec::new();
        for address in &addresses {
            let fail = |error| Error::bind(address)(reactor::explained(error));
            let first = Listener::bind(address, self.settings.dual_stack).map_err(fail)?;
            bound.push(first.address().clone());
            for listeners in &mut listeners[1..] {
                let another = first.for_another_thread().map_err(fail)?;
                listeners.push(another);
            }
            listeners[0].push(first);
        }
        let inherit = |Inherited(fd): &Inherited| {
            Listener::adopt(fd.try_clone()?).map_err(reactor::explained)
        };
        let inherited = self.settings.inherited.drain(..);
        let inherited: io::Result<Vec<Listener>> = inherited.map(|fd| inherit(&fd)).collect();
        let inherited = inherited.map_err(Error::io("listen on an inherited socket"))?;
        for listener in &inherited {
            if !bound.contains(listener.address()) {
                bound.push(listener.address().clone());
            }
        }
        // Each thread has one at least, and each is one thread's at least.
        if !inherited.is_empty() {
            for number in 0..threads.max(inherited.len()) {
                let listener = inherited[number % inherited.len()].try_clone();
                let listener = listener.map_err(Error::io("listen on an inherited socket"))?;
                listeners[number % threads].push(listener);
            }
            let per_thread = inherited.len().div_ceil(threads);
            let tls = &self.settings.inherited_tls;
            self.settings
                .tls
                .extend(iter::repeat_n(tls.clone(), per_thread));
        }
        Ok(Server {
            settings: self.settings,
            make: self.make,
            listeners,
            addresses: bound,
        })
    }
}
