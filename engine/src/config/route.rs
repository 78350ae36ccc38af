use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::ConfigError;
use crate::http1;
use crate::http1::Request;

#[cfg(feature = "deflate")]
use super::Compression;
use super::CompressionSettings;
use super::Limits;

/// What the connections of one path have of their own: limits, policies, subprotocols.
///
/// A server without routes takes every path, with what its builder was told. A server with
/// routes answers requests for other paths with 404. Patterns are those of the crate `matchit`:
/// `/rooms/{room}` (one segment), `/files/{*path}` (all that follows).
///
/// ```
/// use sockeye::Limits;
/// use sockeye::OutputPolicy;
/// use sockeye::Server;
///
/// let builder = Server::builder()
///     .route("/quotes/{symbol}", |route| route.output_policy(OutputPolicy::DropOldest))
///     .route("/upload", |route| route.streaming(true));
/// # let _ = builder;
/// ```
#[derive(Clone, Debug, Default)]
pub struct Route {
    pub(crate) pattern: Option<Box<str>>,
    pub(crate) limits: Limits,
    pub(crate) subprotocols: Vec<String>,
    pub(crate) origins: OriginPolicy,
    pub(crate) output_policy: OutputPolicy,
    pub(crate) streaming: bool,
    pub(crate) manual_pong: bool,
    pub(crate) promote_timeout: Option<Duration>,
    pub(crate) compression: CompressionSettings,
}

impl Route {
    /// The pattern of its paths.
    pub fn pattern(&self) -> Option<&str> {
        self.pattern.as_deref()
    }

    pub(crate) fn with_pattern(mut self, pattern: &str) -> Self {
        self.pattern = Some(pattern.into());
        self
    }

    /// Sets all limits and time-outs. Those of what happens before the path is known are the
    /// builder's: the request head, the opening handshake; so is `turn_len_max`.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The longest message in bytes. The output limit is raised with it where it would not
    /// hold one.
    #[must_use]
    pub fn message_len_max(mut self, len: usize) -> Self {
        let limits = &mut self.limits;
        limits.message_len_max = len;
        limits.output_len_max = limits.output_len_max.max(len.saturating_add(16));
        self
    }

    /// Subprotocols that are spoken here, the preferred one first (RFC 6455 §1.9).
    #[must_use]
    pub fn subprotocols<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.subprotocols = names.into_iter().map(Into::into).collect();
        self
    }

    /// Which browsers' pages may connect.
    #[must_use]
    pub fn origins(mut self, policy: OriginPolicy) -> Self {
        self.origins = policy;
        self
    }

    /// What becomes of a message that the output limit leaves no room for.
    #[must_use]
    pub fn output_policy(mut self, policy: OutputPolicy) -> Self {
        self.output_policy = policy;
        self
    }

    /// Whether messages are delivered in chunks as they arrive
    /// ([`Handler::on_chunk`](crate::Handler::on_chunk)), and are not held. A message may then
    /// be as long as `message_len_max` says without that much memory being used.
    #[must_use]
    pub fn streaming(mut self, streaming: bool) -> Self {
        self.streaming = streaming;
        self
    }

    /// Whether pings are answered by the engine; the default. If not, the handler answers them
    /// ([`Context::pong`](crate::Context::pong)), which RFC 6455 §5.5.2 asks for.
    #[must_use]
    pub fn auto_pong(mut self, auto: bool) -> Self {
        self.manual_pong = !auto;
        self
    }

    /// How long a connection may be open before the handler has called
    /// [`Context::promote`](crate::Context::promote): from then on it is closed (1008). For
    /// connections that authenticate by a message. Not zero; off by default.
    #[must_use]
    pub fn promote_within(mut self, timeout: Duration) -> Self {
        self.promote_timeout = Some(timeout);
        self
    }

    /// Whether messages are compressed where the client offers it (permessage-deflate,
    /// RFC 7692). Off by default.
    #[cfg(feature = "deflate")]
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression.mode = compression;
        self
    }

    /// How hard messages are compressed, from 1, the fastest and the default, to 9.
    #[cfg(feature = "deflate")]
    #[must_use]
    pub fn compression_level(mut self, level: u8) -> Self {
        self.compression.level = level;
        self
    }

    /// The shortest message that is compressed, in bytes: 512 by default, 128 with context
    /// takeover. [`SendOptions::compress`](crate::SendOptions::compress) decides for one message.
    #[cfg(feature = "deflate")]
    #[must_use]
    pub fn compression_len_min(mut self, len: usize) -> Self {
        self.compression.len_min = Some(len);
        self
    }

    /// Compresses only for clients whose requests `check` accepts: for those that are known to
    /// inflate badly, by their `User-Agent`, say. The others are served uncompressed.
    #[cfg(feature = "deflate")]
    #[must_use]
    pub fn compression_check(
        mut self,
        check: impl Fn(&Request<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.compression.check = Some(Arc::new(check));
        self
    }

    /// # Errors
    /// The first value that makes no sense, and why.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.limits.validate()?;
        self.compression.validate()?;
        let is_bad = |name: &&String| !http1::is_token(name.as_bytes());
        if let Some(bad) = self.subprotocols.iter().find(is_bad) {
            return Err(ConfigError::Subprotocol(bad.clone()));
        }
        if self.promote_timeout.is_some_and(|t| t.is_zero()) {
            return Err(ConfigError::Limit("promote_within is zero"));
        }
        Ok(())
    }
}

/// What becomes of a message that the output limit leaves no room for. Each message that is
/// refused or given up is counted; [`Context::send`](crate::Context::send) says what was done,
/// and [`Handler::on_dropped`](crate::Handler::on_dropped) reports what no caller has heard of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputPolicy {
    /// It is refused: the caller keeps it, and `on_drain` says when to try again. What has no
    /// caller that would hear of it (a publish, a message of another thread) is given up.
    #[default]
    Refuse,
    /// It is given up; `on_dropped` reports how many were. For messages that others replace.
    DropNewest,
    /// Whole messages that wait are given up, the oldest first, until there is room;
    /// `on_dropped` reports how many. What has begun to leave is not given up.
    DropOldest,
    /// It takes the place of the message that waits under the same key, which is given up; if
    /// there is none, it waits like any other, and is given up if there is no room. For
    /// values of which only the latest counts: a key for each. As the policy of a route, with
    /// one key, only the latest message waits.
    Conflate(u64),
    /// The connection is closed with 1013 (try again later): a peer that has missed something
    /// must begin anew. What waits is still sent.
    Close,
}

/// Whose connections are closed (1013) when the output that peers have not taken uses up its
/// budget ([`Builder::output_budget`](crate::Builder::output_budget)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Victims {
    /// Those with the most output: the fewest are closed.
    #[default]
    LargestQueue,
    /// Those that have taken nothing for the longest time.
    LongestBlocked,
}

/// Which browsers' pages may connect (RFC 6455 §10.2). Requests without an `Origin` header do
/// not come from a browser's page and are always accepted, but by [`OriginPolicy::check`].
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum OriginPolicy {
    /// Pages of the host and port that the request names; others are answered with 403.
    #[default]
    SameHost,
    /// Pages of the same host, and of origins that a pattern matches: `https://example.com`,
    /// `https://*.example.com:8443`, `*.example.com` (`http` and `https`; the port is the scheme's).
    /// `*.` stands for one label or more. Apps and extensions have schemes of their own:
    /// `capacitor://localhost`, `chrome-extension://ID`, `file://`. `null` stands for sandboxed pages
    /// and local files, of any site.
    List(Vec<String>),
    /// Requests that the function accepts.
    Fn(OriginFn),
    /// Pages of any site.
    ///
    /// Warning: with this, any page that a user visits can open a connection with the user's
    /// cookies and act in the user's name. Only for services that use neither cookies nor
    /// the caller's network position to decide what a connection may do.
    Any,
}

/// Decides whether a request may become a WebSocket.
pub type OriginFn = Arc<dyn Fn(&Request<'_>) -> bool + Send + Sync>;

impl OriginPolicy {
    /// Pages of the same host, and of origins that a pattern matches
    /// ([`OriginPolicy::List`]).
    pub fn list<S: Into<String>>(patterns: impl IntoIterator<Item = S>) -> Self {
        Self::List(patterns.into_iter().map(Into::into).collect())
    }

    /// Requests that `check` accepts; it is asked about every one, also without an `Origin`.
    pub fn check(check: impl Fn(&Request<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self::Fn(Arc::new(check))
    }
}

impl fmt::Debug for OriginPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameHost => f.write_str("SameHost"),
            Self::List(patterns) => f.debug_tuple("List").field(patterns).finish(),
            Self::Fn(_) => f.write_str("Fn"),
            Self::Any => f.write_str("Any"),
        }
    }
}
