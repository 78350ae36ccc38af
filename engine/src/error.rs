#![forbid(unsafe_code)]
//! What the operator and the environment can do wrong. What a peer does wrong is
//! [`ProtocolError`](crate::protocol::ProtocolError).

use std::fmt;
use std::io;

/// A setting that makes no sense. Nothing has been started.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Nothing was said of where to listen.
    #[error("no address to listen on was given")]
    NoAddress,
    /// A server that is to listen nowhere was given an address.
    #[error("an address was given, and the server is to listen nowhere")]
    SurplusAddress,
    /// The text is no address to listen on.
    #[error("not an address: {0:?} (wanted HOST:PORT or unix:PATH)")]
    Address(String),
    /// The wanted backend is not part of this build.
    #[error("backend {0} is not built in")]
    Backend(&'static str),
    /// What was asked for is not part of this build.
    #[error("feature {0} is not built in")]
    Feature(&'static str),
    /// A header that cannot be sent, or that the handshake writes itself.
    #[error("not a header that can be added: {0}")]
    Header(String),
    /// A limit out of range.
    #[error("limit out of range: {0}")]
    Limit(&'static str),
    /// No address, and no network.
    #[error("not a network: {0:?} (wanted 10.0.0.0/8 or an address)")]
    Network(String),
    /// A pattern of origins that matches nothing.
    #[error(
        "not a pattern of origins: {0:?} (wanted [SCHEME://][*.]HOST[:PORT], SCHEME:// or null)"
    )]
    Origin(String),
    /// A route's pattern, and what is wrong with it.
    #[error("not a route: {0:?}: {1}")]
    Route(String, String),
    /// A proxy's URL.
    #[error("not a proxy: {url:?}: {why}")]
    Proxy {
        /// The text, without its user information.
        url: String,
        /// Fault.
        why: &'static str,
    },
    /// A name that no server certificate can be for.
    #[error("TLS: {0}")]
    ServerName(String),
    /// A subprotocol name that is no token (RFC 6455 §4.1).
    #[error("not a subprotocol name: {0:?}")]
    Subprotocol(String),
    /// A host without an address: not found, or not looked up.
    #[error("no address for host {0:?}: not found, or not resolved")]
    Unresolved(String),
    /// A URL that nothing can be connected to.
    #[error("{url:?}: {why}")]
    Url {
        /// The text.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// TLS settings.
    #[cfg(feature = "tls")]
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// No threads, or more than 1,024.
    #[error("threads out of range: {0}")]
    Threads(usize),
    /// A time-out below a second, or longer than it can be: a day for those on silence, 250 s
    /// for others.
    #[error("time-out out of range: {0} (wanted at least 1 s, at most 24 h or 250 s)")]
    Timeout(&'static str),
}

/// Why a server does not start or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address that cannot be listened on.
    #[error("bind {address}: {error}")]
    Bind {
        /// Address, as [`Address`](crate::Address) prints it.
        address: String,
        /// Cause.
        #[source]
        error: io::Error,
    },
    /// The operating system.
    #[error("{operation}: {error}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What came of it.
        #[source]
        error: io::Error,
    },
}

impl Error {
    /// Names the address that cannot be listened on.
    pub(crate) fn bind(address: &impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        let address = address.to_string();
        move |error| Self::Bind { address, error }
    }

    /// Names the operation that failed.
    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { operation, error }
    }
}

/// What can fail in starting and running a server.
pub type Result<T> = std::result::Result<T, Error>;
