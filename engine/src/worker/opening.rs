//! A request for a WebSocket, as the handler gets it.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::ops::Deref;

use percent_encoding::percent_decode_str;

use crate::conn::DeferredAnswer;
use crate::conn::Opening;
use crate::conn::Upgrade;
use crate::http1::Response;
use crate::protocol::handshake::UpgradeRequest;
use crate::reactor::PeerAddr;

use super::ConnId;
use super::Remote;
use super::handler::Wire;

/// A valid request for a WebSocket, of an allowed origin: an [`UpgradeRequest`], and what is known
/// besides.
pub struct OpeningHandshake<'a> {
    pub(super) opening: &'a Opening<'a>,
    pub(super) wire: &'a mut dyn Wire,
    pub(super) remote: &'a Remote,
    pub(super) id: ConnId,
}

impl<'a> Deref for OpeningHandshake<'a> {
    type Target = UpgradeRequest<'a>;

    fn deref(&self) -> &UpgradeRequest<'a> {
        self.opening.request
    }
}

impl OpeningHandshake<'_> {
    /// The pattern of the request's route, if the server has routes.
    pub fn route(&self) -> Option<&str> {
        self.opening.route
    }

    /// What a parameter of the route's pattern stands for, percent-decoded: `room` of
    /// `/rooms/{room}`. `None` if the pattern has no such parameter, or it is not UTF-8.
    pub fn param(&self, name: &str) -> Option<Cow<'_, str>> {
        let value = self.opening.params.as_ref()?.get(name)?;
        percent_decode_str(value).decode_utf8().ok()
    }

    /// The value of a cookie (RFC 6265 §5.4); the first, if there are several of this name.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let lines = self.request().header_values("Cookie");
        let mut pairs = lines.flat_map(|line| line.split(|&byte| byte == b';'));
        pairs.find_map(|pair| {
            let pair = std::str::from_utf8(pair.trim_ascii()).ok()?;
            let (key, value) = pair.split_once('=')?;
            (key == name).then_some(value)
        })
    }

    /// The other end, as the kernel has it: a proxy, if there is one. Takes a system call.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn peer_addr(&mut self) -> io::Result<PeerAddr> {
        self.wire.peer_addr()
    }

    /// For whom the connection was made: what a trusted proxy says
    /// ([`Builder::proxies`](crate::Builder::proxies)), else the other end.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn client_addr(&mut self) -> io::Result<PeerAddr> {
        match self.opening.client {
            Some(client) => Ok(PeerAddr::Ip(client)),
            None => self.peer_addr(),
        }
    }

    /// The name that the connection will have.
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Reaches all connections of the server.
    pub fn remote(&self) -> &Remote {
        self.remote
    }

    /// Puts the answer off: `on_upgrade` returns the first part, and any thread gives the answer
    /// with the second. Until then nothing is read of the connection. No more than 1,024 requests
    /// of a thread can wait
    /// ([`Builder::deferred_max`](crate::Builder::deferred_max)), and none longer than the
    /// handshake time-out: both are answered with 503.
    ///
    /// ```
    /// use std::any::Any;
    /// use std::thread;
    /// use sockeye::{Handler, OpeningHandshake, Response, Upgrade};
    ///
    /// struct Lobby;
    ///
    /// impl Handler for Lobby {
    ///     type Data = String;
    ///
    ///     fn on_upgrade(&mut self, request: &mut OpeningHandshake<'_>) -> Upgrade<String> {
    ///         let token = request.cookie("token").unwrap_or_default().to_owned();
    ///         let (upgrade, deferred) = request.defer();
    ///         thread::spawn(move || match token.as_str() {
    ///             "secret" => deferred.accept("a name from a data base".to_owned()),
    ///             _ => deferred.reject(Response::text(401)),
    ///         });
    ///         upgrade
    ///     }
    ///
    ///     fn on_deferred(
    ///         &mut self,
    ///         _: &mut OpeningHandshake<'_>,
    ///         value: Box<dyn Any + Send>,
    ///     ) -> Upgrade<String> {
    ///         Upgrade::accept(*value.downcast().expect("a name"))
    ///     }
    /// }
    /// ```
    pub fn defer<D>(&self) -> (Upgrade<D>, Deferred) {
        let deferred = Deferred {
            remote: self.remote.clone(),
            id: self.id,
            answered: false,
        };
        (Upgrade::deferred(), deferred)
    }
}

impl fmt::Debug for OpeningHandshake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpeningHandshake")
            .field("id", &self.id)
            .field("opening", &self.opening)
            .finish_non_exhaustive()
    }
}

/// An answer that was put off, to be given from any thread. If it is dropped the request is
/// answered with 503.
#[derive(Debug)]
#[must_use]
pub struct Deferred {
    remote: Remote,
    id: ConnId,
    answered: bool,
}

impl Deferred {
    /// Lets the handler answer, with this value
    /// ([`Handler::on_deferred`](crate::Handler::on_deferred)). If the client has gone nothing
    /// happens.
    pub fn accept(mut self, value: impl Any + Send) {
        self.answer(DeferredAnswer::Value(Box::new(value)));
    }

    /// Rejects; the connection closes behind the answer.
    pub fn reject(mut self, response: Response) {
        self.answer(DeferredAnswer::Reject(Box::new(response)));
    }

    /// The name that the connection will have.
    pub fn id(&self) -> ConnId {
        self.id
    }

    fn answer(&mut self, answer: DeferredAnswer) {
        if !std::mem::replace(&mut self.answered, true) {
            self.remote.answer_deferred(self.id, answer);
        }
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        self.answer(DeferredAnswer::Reject(Box::new(Response::text(503))));
    }
}
