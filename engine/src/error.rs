#![forbid(unsafe_code)]
//! What the operator and the environment can do wrong. What a peer does wrong is
//! [`ProtocolError`](crate::protocol::ProtocolError).

use std::io;

/// A setting that makes no sense. Nothing has been started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is no address to listen on.
    #[error("not an address: {0:?} (wanted HOST:PORT or unix:PATH)")]
    Address(String),
    /// The wanted backend is not part of this build.
    #[error("backend {0} is not built in")]
    Backend(&'static str),
    /// A limit out of range.
    #[error("limit out of range: {0}")]
    Limit(&'static str),
    /// A subprotocol name that is no token (RFC 6455 §4.1).
    #[error("not a subprotocol name: {0:?}")]
    Subprotocol(String),
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
    /// Names the operation that failed.
    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { operation, error }
    }
}

/// What can fail in starting and running a server.
pub type Result<T> = std::result::Result<T, Error>;
