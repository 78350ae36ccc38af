use std::collections::VecDeque;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use crate::protocol::CloseCode;

use super::Dropped;
use super::Env;
use super::RateBudget;
use super::State;
use super::deflate::Takeover;
use super::writer::Begun;

/// What few connections have, in a box of its own: an idle connection that has none of it pays
/// for a pointer.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// The agreed subprotocol, if it is none of the route's list.
    subprotocol: Option<Box<str>>,
    /// The Close frame that the handler asked for.
    pub(super) close: Option<LocalClose>,
    /// Messages that were given up, and of which the handler has not been told.
    pub(super) dropped: Dropped,
    /// The message of a writer.
    pub(super) begun: Option<Begun>,
    /// Pings of the handler that have not been answered.
    pub(super) pings: Pings,
    /// Pongs that the peer owes us, beyond those in [`State`].
    pub(super) pongs_owed: u32,
    /// Where the connection comes from, if that had to be asked.
    pub(super) peer: Option<IpAddr>,
    /// For whom a proxy has made it.
    pub(super) client: Option<SocketAddr>,
    /// The request head, while its answer is deferred.
    pub(super) head: Option<Box<[u8]>>,
    /// What the peer may send now, if there is a limit for it.
    pub(super) rate: RateBudget,
    /// Its request is a HEAD, which is answered without a body.
    pub(super) head_only: bool,
    /// What context takeover keeps.
    pub(super) takeover: Option<Box<Takeover>>,
}

/// A Close frame that was sent.
#[derive(Debug)]
pub(super) struct LocalClose {
    pub(super) code: Option<CloseCode>,
    pub(super) reason: Box<str>,
}

/// Pings that have not been answered, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Pings(VecDeque<(Box<[u8]>, Duration)>);

impl Pings {
    /// The most that are remembered.
    const COUNT_MAX: usize = 8;

    pub(super) fn push(&mut self, payload: &[u8], now: Duration) {
        if self.0.len() == Self::COUNT_MAX {
            self.0.pop_front();
        }
        self.0.push_back((payload.into(), now));
    }

    /// When the ping with this payload was sent. A pong may answer only the latest of several
    /// pings (RFC 6455 §5.5.3): those before are forgotten with it.
    pub(super) fn take(&mut self, payload: &[u8]) -> Option<Duration> {
        let is_same = |(sent, _): &(Box<[u8]>, Duration)| **sent == *payload;
        let index = self.0.iter().position(is_same)?;
        self.0.drain(..=index).next_back().map(|(_, at)| at)
    }
}

/// Which subprotocol was agreed: one of the route's list costs no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subprotocol(u8);

impl Subprotocol {
    /// None.
    pub(super) const NONE: Self = Self(u8::MAX);
    /// The one in [`Extra`].
    const OWN: Self = Self(u8::MAX - 1);
}

impl State {
    pub(super) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Remembers whether `head`, or its beginning, is that of a HEAD request.
    pub(super) fn note_method(&mut self, head: &[u8]) {
        if is_head_request(head) {
            self.extra_mut().head_only = true;
        }
    }

    /// Whether its answer must not have a body (RFC 9110 §9.3.2).
    pub(super) fn is_head_only(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.head_only)
    }

    pub(super) fn set_subprotocol(&mut self, name: Option<&str>, env: &Env) {
        let listed = &env.route(self.route).route.subprotocols;
        let Some(name) = name else {
            self.subprotocol = Subprotocol::NONE;
            return;
        };
        let index = listed.iter().position(|listed| listed == name);
        match index.and_then(|index| u8::try_from(index).ok()) {
            Some(index) if index < Subprotocol::OWN.0 => self.subprotocol = Subprotocol(index),
            _ => {
                self.subprotocol = Subprotocol::OWN;
                self.extra_mut().subprotocol = Some(name.into());
            }
        }
    }

    pub(super) fn subprotocol<'s>(&'s self, env: &'s Env) -> Option<&'s str> {
        match self.subprotocol {
            Subprotocol::NONE => None,
            Subprotocol::OWN => self.extra.as_ref()?.subprotocol.as_deref(),
            Subprotocol(index) => {
                let listed = &env.route(self.route).route.subprotocols;
                listed.get(usize::from(index)).map(String::as_str)
            }
        }
    }
}

fn is_head_request(head: &[u8]) -> bool {
    // RFC 9112 §2.2: empty lines before a request are skipped.
    let line = head.iter().position(|byte| !b"\r\n".contains(byte));
    line.is_some_and(|start| head[start..].starts_with(b"HEAD "))
}
