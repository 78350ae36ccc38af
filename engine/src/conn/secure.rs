//! TLS around a connection: what comes in is decrypted, what goes out is encrypted when it is
//! about to be sent.

use std::io;
use std::mem;

use crate::buffer::Pool;
use crate::buffer::SendQueue;
use crate::http1::Response;
use crate::protocol::Role;

use super::CloseCause;
use super::Conn;
use super::Env;
use super::HEADROOM;
use super::Initiator;
use super::OpenError;
use super::Phase;
use super::Sink;
use super::State;

impl<D> Conn<D> {
    /// Takes ciphertext.
    pub(super) fn receive_tls(&mut self, input: &mut [u8], env: &mut Env, sink: &mut impl Sink<D>) {
        let Some(tls) = &mut self.state.tls else {
            return;
        };
        if matches!(self.state.phase, Phase::Lingering | Phase::Closed) {
            return;
        }
        let is_plain_http = |byte: &u8| byte.is_ascii_uppercase();
        if self.state.role == Role::Server
            && tls.is_fresh()
            && input.first().is_some_and(is_plain_http)
        {
            // The only answer that such a client can read.
            self.state.drop_tls(env);
            self.state.note_method(input);
            let response = Response::new(400).body("text/plain", "this port speaks TLS\n");
            return self.respond(response, env);
        }
        let mut plain = mem::take(&mut env.plain);
        plain.clear();
        plain.resize(HEADROOM, 0);
        let result = tls.receive(input, &mut plain, &mut env.pool);
        let peer_closed = tls.is_peer_closed();
        if plain.len() > HEADROOM {
            self.receive_plain(&mut plain, env, sink);
        }
        env.plain = plain;
        match result {
            Err(error) => self.fail_tls(error, env, sink),
            // RFC 8446 §6.1: nothing that comes behind a close_notify counts.
            Ok(()) if peer_closed => self.handle_last_byte(env, sink),
            Ok(()) => {}
        }
    }

    /// The peer broke TLS, or was refused: it gets an alert, if there is one, and nothing else.
    fn fail_tls(&mut self, error: io::Error, env: &mut Env, sink: &mut impl Sink<D>) {
        self.state.clear_queue(env);
        match self.state.phase {
            Phase::Handshake => {
                log::debug!("TLS: {error}");
                let cause = CloseCause::NotOpened(OpenError::Io(error));
                self.finish(cause, Initiator::Peer, false, env, sink);
            }
            Phase::Open | Phase::CloseSent => {
                self.finish(CloseCause::Lost(error), Initiator::Peer, false, env, sink);
            }
            Phase::Lingering | Phase::Closed => {}
        }
    }

    /// Encrypts output that is to be sent now; nothing without TLS.
    ///
    /// # Errors
    /// The session's keys are used up.
    #[inline]
    pub fn seal(&mut self, env: &mut Env) -> io::Result<()> {
        if self.state.tls.is_none() || self.state.phase == Phase::Closed {
            return Ok(());
        }
        self.state.seal(env)
    }

    /// What waits to be sent, if the socket may take it now.
    #[inline]
    pub fn sendable(&self) -> Option<&SendQueue> {
        if self.state.blocked || self.state.phase == Phase::Closed {
            return None;
        }
        match &self.state.tls {
            None => self.state.queue.as_deref(),
            Some(tls) => tls.outgoing(),
        }
    }

    /// The same where it is one piece, of a connection without encryption.
    #[inline]
    pub fn only_output(&self) -> Option<&[u8]> {
        let state = &self.state;
        if state.blocked || state.phase == Phase::Closed || state.tls.is_some() {
            return None;
        }
        state.queue.as_ref()?.only_piece()
    }

    /// Whether there is, or would be after [`seal`](Self::seal), something to send now.
    #[inline]
    pub fn has_output(&self) -> bool {
        if self.state.blocked || self.state.phase == Phase::Closed {
            return false;
        }
        match &self.state.tls {
            None => self.state.queue.is_some(),
            Some(tls) => {
                let sealable = self.state.queue.is_some() || self.state.owes_close_notify();
                tls.outgoing().is_some() || tls.can_seal() && sealable
            }
        }
    }
}

impl State {
    /// Whether something has not been handed to the kernel.
    #[inline]
    pub(super) fn has_unsent(&self) -> bool {
        let sealed = self
            .tls
            .as_ref()
            .is_some_and(|tls| tls.outgoing().is_some());
        self.queue.is_some() || sealed || self.owes_close_notify()
    }

    /// Whether the peer is to end the stream first: a server's part (RFC 6455 §7.1.1).
    pub(super) fn awaits_peer(&self) -> bool {
        self.role == Role::Client && self.was_open
    }

    /// Whether the socket can be closed without waiting for the peer's end of the stream. It sends
    /// nothing behind its Close frame (RFC 6455 §5.5.1), so there is nothing that would have to be
    /// read first for ours not to be lost; and a server closes first (RFC 6455 §7.1.1).
    pub(super) fn may_end_at_once(&self) -> bool {
        self.closing_done && self.role == Role::Server && self.tls.is_none()
    }

    /// Whether the stream has to be ended by TLS before it is ended by TCP.
    fn owes_close_notify(&self) -> bool {
        match &self.tls {
            Some(tls) if self.phase == Phase::Lingering && !self.awaits_peer() => {
                tls.owes_close_notify()
            }
            _ => false,
        }
    }

    fn seal(&mut self, env: &mut Env) -> io::Result<()> {
        let owes_close_notify = self.owes_close_notify();
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        if let Some(queue) = &mut self.queue {
            tls.seal(queue, &mut env.scratch, &mut env.pool)?;
            self.release_queue(env);
        }
        if let Some(tls) = &mut self.tls
            && self.queue.is_none()
            && owes_close_notify
        {
            tls.seal_close(&mut env.pool)?;
        }
        Ok(())
    }

    /// Encrypts and flushes until nothing is left or the kernel takes no more.
    pub(super) fn flush_sealed(
        &mut self,
        env: &mut Env,
        mut flush: impl FnMut(&mut SendQueue, &mut Pool) -> bool,
    ) {
        loop {
            if self.seal(env).is_err() {
                // The next attempt to send says so.
                return;
            }
            let Some(tls) = &mut self.tls else {
                return;
            };
            let Some(mut outgoing) = tls.take_outgoing() else {
                return;
            };
            self.blocked = env.count_flush(&mut outgoing, &mut flush);
            self.drain_owed |= self.blocked;
            let sent_all = outgoing.is_empty();
            tls.put_outgoing(outgoing, &mut env.pool);
            if !sent_all {
                return;
            }
        }
    }

    /// Throws away output that can never be sent.
    fn clear_queue(&mut self, env: &mut Env) {
        if let Some(queue) = &mut self.queue {
            queue.clear(&mut env.pool);
        }
        self.release_queue(env);
    }

    /// Goes on without TLS, which has not begun.
    fn drop_tls(&mut self, env: &mut Env) {
        if let Some(tls) = self.tls.take() {
            tls.release(&mut env.pool);
        }
    }
}
