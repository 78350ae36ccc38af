//! Connections that come: accepted ones, and those that are made here.

use std::io;
use std::os::fd::OwnedFd;

use crate::conn;
use crate::conn::Agreed;
use crate::conn::ClientHandshake;
use crate::conn::Conn;
use crate::connect::Connect;
use crate::error::ConfigError;
use crate::pubsub::Subscriptions;
use crate::reactor;
use crate::reactor::Backend;
use crate::reactor::PeerAddr;
use crate::reactor::Target;
use crate::reactor::Token;
use crate::reactor::prepare_adopted;
use crate::slab::Key;
use crate::tls::Session;

use super::ACCEPT_REST;
use super::ConnId;
use super::Handler;
use super::Overdue;
use super::Slot;
use super::Worker;

/// Target, handshake and TLS session of a connection to be made.
type Prepared = (Target, ClientHandshake, Option<Session>);

impl<B: Backend, H: Handler> Worker<B, H> {
    pub(super) fn accept(&mut self, socket: B::Socket, listener: usize) {
        self.env.metrics.accepted.add(1);
        // A refused connection costs no more than this: the TLS session is made after all limits.
        if !self.may_accept() || !self.shared.claim() {
            return self.refuse(socket);
        }
        let (mut peer, mut address) = (None, None);
        if self.env.proxies.is_some() || self.shared.counts_addresses() {
            peer = match self.backend.peer_addr(socket) {
                Ok(PeerAddr::Ip(address)) => Some(address.ip()),
                Ok(PeerAddr::Unix) => None,
                Err(error) => {
                    self.shared.release();
                    return self.refuse_unknown(socket, &error);
                }
            };
            let proxies = self.env.proxies.as_ref();
            address = peer.and_then(|peer| conn::counted_address(peer, proxies));
            if address.is_some_and(|address| !self.shared.claim_address(address)) {
                self.shared.release();
                return self.refuse(socket);
            }
        }
        let tls = match self.env.tls.get(listener) {
            Some(Some(tls)) => Session::server(tls).map(Some),
            _ => Ok(None),
        };
        let tls = match tls {
            Ok(tls) => tls,
            Err(error) => {
                log::warn!("refusing a connection: no TLS session can be made: {error}");
                if let Some(address) = address {
                    self.shared.release_address(address);
                }
                self.shared.release();
                return self.refuse(socket);
            }
        };
        let mut conn = Conn::accept(tls, &self.env);
        conn.set_peer(peer, &self.env);
        let key = self.add(socket, conn);
        self.local.timing.begin_opening(key, self.now);
        match self.backend.register(socket, Token::new(key)) {
            Ok(()) if self.comes_too_late() => self.end_handshake(key),
            Ok(()) => self.after(key, false),
            Err(error) => {
                self.env.metrics.exhausted.add(1);
                log::warn!("a connection is refused: {error}");
                self.env.metrics.refused.add(1);
                self.rest_accepting();
                self.lose(key, error);
            }
        }
    }

    /// Whether a connection may be accepted now. While the worker ends, what the kernel has
    /// accepted before is answered as well.
    fn may_accept(&mut self) -> bool {
        self.accepts.take(self.now)
    }

    fn refuse(&mut self, socket: B::Socket) {
        self.env.metrics.refused.add(1);
        self.backend.close(socket, None);
    }

    /// Refuses a connection whose address cannot be had, where limits or trust depend on it.
    #[cold]
    fn refuse_unknown(&mut self, socket: B::Socket, error: &io::Error) {
        if reactor::is_exhausted(error) {
            self.env.metrics.exhausted.add(1);
            log::warn!(
                "refusing a connection and pausing accept: no peer address: {}",
                reactor::explain(error)
            );
            self.rest_accepting();
        }
        self.refuse(socket);
    }

    fn add(&mut self, socket: B::Socket, conn: Conn<H::Data>) -> Key {
        self.conns.insert(Slot {
            socket,
            conn,
            ready: false,
            hangup: false,
            large: false,
            overdue: Overdue::default(),
            touched: false,
            writable_armed: false,
            parked: false,
            blocked: false,
            subscriptions: Subscriptions::default(),
        })
    }

    /// Makes a connection, whose end, or whose failure to begin, `on_close` reports.
    ///
    /// # Errors
    /// What is asked for makes no sense; `on_close` is not called.
    pub fn connect(&mut self, connect: &Connect, data: H::Data) -> Result<ConnId, ConfigError> {
        let prepared = self.prepare_connect(connect)?;
        Ok(self.begin_connect(Ok(prepared), data))
    }

    fn prepare_connect(&mut self, connect: &Connect) -> Result<Prepared, ConfigError> {
        let target = connect.target()?;
        let deflate = self.env.offer_deflate(connect.compression_wanted());
        let handshake = connect.handshake(&mut self.env.random, deflate)?;
        let tls = connect.session(&mut self.env.pool)?;
        Ok((target, handshake, tls))
    }

    /// Makes a connection, or reports to `on_close` why it cannot be made.
    fn begin_connect(&mut self, prepared: Result<Prepared, ConfigError>, data: H::Data) -> ConnId {
        let (conn, made) = match prepared {
            Ok((target, handshake, tls)) => {
                let conn = Conn::connect(handshake, data, tls, &mut self.env);
                (conn, self.begin_socket(&target))
            }
            Err(error) => {
                let error = io::Error::new(io::ErrorKind::InvalidInput, error);
                (Conn::not_connected(data, &self.env), Err(error))
            }
        };
        // Counted even if it could not be made, until its `on_close`.
        self.shared.count();
        let (socket, error) = match made {
            Ok(socket) => (socket, None),
            Err(error) => (B::NO_SOCKET, Some(error)),
        };
        let key = self.add(socket, conn);
        self.local.timing.begin_opening(key, self.now);
        if let Some(slot) = self.conns.get_mut(key) {
            slot.writable_armed = true;
        }
        let token = Token::new(key);
        let registered = match error {
            Some(error) => Err(error),
            None => self.backend.register(socket, token),
        };
        match registered {
            Ok(()) => {
                // It is writable when it is connected.
                self.backend.arm_writable(socket, token);
                self.after(key, false);
            }
            Err(error) => self.lose(key, error),
        }
        self.id(key)
    }

    fn begin_socket(&mut self, target: &Target) -> io::Result<B::Socket> {
        if self.stop_at.is_some() {
            return Err(io::Error::other("the engine is shutting down"));
        }
        if self.shared.is_full() {
            let text = "there are as many connections as there may be";
            return Err(io::Error::other(text));
        }
        self.backend.connect(target)
    }

    /// Takes a connection whose opening handshake has been made elsewhere, with the bytes that had
    /// been received behind it.
    ///
    /// # Errors
    /// There is no room for it, or the thread ends; `data` is dropped.
    pub fn adopt(
        &mut self,
        socket: OwnedFd,
        mut received: Vec<u8>,
        agreed: &Agreed,
        data: H::Data,
    ) -> io::Result<ConnId> {
        let socket = match self.admit_adopted(socket) {
            Ok(socket) => socket,
            Err(error) => {
                self.discard("the data of a connection", data);
                return Err(error);
            }
        };
        let conn = Conn::adopt(agreed, data, &mut self.env);
        let key = self.add(socket, conn);
        if let Err(error) = self.backend.register(socket, Token::new(key)) {
            // It has not been opened: nobody is told.
            if let Some(mut slot) = self.conns.remove(key) {
                self.discard("the data of a connection", slot.conn.take_data());
                slot.conn.release(&mut self.env);
            }
            self.backend.close(socket, None);
            self.shared.release();
            return Err(error);
        }
        self.deliver(key, |conn, env, sink| conn.begin(&mut received, env, sink));
        self.after(key, true);
        Ok(self.id(key))
    }

    /// The backend's socket for an adopted one, which is counted.
    fn admit_adopted(&mut self, socket: OwnedFd) -> io::Result<B::Socket> {
        if self.stop_at.is_some() {
            return Err(io::Error::other("the engine is shutting down"));
        }
        prepare_adopted(&socket)?;
        if !self.shared.claim() {
            let text = "there are as many connections as there may be";
            return Err(io::Error::other(text));
        }
        let adopted = self.backend.adopt(socket);
        adopted.inspect_err(|_| self.shared.release())
    }

    pub(super) fn id(&self, key: Key) -> ConnId {
        ConnId {
            worker: self.number,
            key,
        }
    }

    /// Makes the connections that callbacks have asked for.
    pub(super) fn make_connections(&mut self) {
        // What their callbacks ask for waits for the next turn: one that fails at once, and is
        // asked for again, must not keep the others waiting.
        for _ in 0..self.local.connects.len() {
            let Some((connect, data)) = self.local.connects.pop_front() else {
                break;
            };
            // Most of what could be wrong with it was found when it was asked for.
            let prepared = self.prepare_connect(&connect);
            if let Err(error) = &prepared {
                log::error!("cannot connect to {connect}: {error}");
            }
            self.begin_connect(prepared, data);
        }
    }

    pub(super) fn rest_accepting(&mut self) {
        if self.accept_at.is_none() && self.is_accepting() {
            self.env.metrics.accept_pauses.add(1);
            self.accept_at = Some(self.now + ACCEPT_REST);
            self.backend.pause_accept();
        }
    }

    pub(super) fn resume_accepting(&mut self) {
        if self.accept_at.take().is_some() && self.is_accepting() {
            self.backend.resume_accept();
        }
    }
}
