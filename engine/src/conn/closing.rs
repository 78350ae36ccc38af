//! Every way in which a connection ends.

use std::io;
use std::mem;

use crate::http1::Response;
use crate::protocol::CloseCode;
use crate::protocol::CloseFrame;
use crate::protocol::Opcode;
use crate::protocol::ProtocolError;
use crate::protocol::Role;

use super::CloseCause;
use super::Closed;
use super::Conn;
use super::Env;
use super::Initiator;
use super::OpenError;
use super::Output;
use super::Phase;
use super::Sink;
use super::Standing;
use super::Timeout;

impl<D> Conn<D> {
    /// The peer broke a rule: what was answered goes out, then the rule's close code.
    pub(super) fn fail(&mut self, error: ProtocolError, env: &mut Env, sink: &mut impl Sink<D>) {
        self.end_pause(env, sink);
        if self.state.phase == Phase::Closed {
            // Given up by a callback of what was held.
            return;
        }
        if self.state.phase == Phase::CloseSent {
            // RFC 6455 §5.5.1: nothing is sent behind a Close frame, not even another.
            return self.finish_close_sent(false, env, sink);
        }
        let reason = error.to_string();
        let frame = CloseFrame::new(error.close_code(), &reason);
        self.state.push_close(&frame, env);
        self.finish(
            CloseCause::Failed(error),
            Initiator::Local,
            false,
            env,
            sink,
        );
    }

    /// The peer's Close frame.
    pub(super) fn receive_close(
        &mut self,
        close: &CloseFrame<'_>,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        self.end_pause(env, sink);
        if self.state.phase == Phase::Closed {
            return;
        }
        if self.state.phase == Phase::CloseSent {
            return self.finish_close_sent(true, env, sink);
        }
        // RFC 6455 §5.5.1: the answer typically echoes the code.
        let answer = CloseFrame {
            code: close.code,
            reason: "",
        };
        self.state.push_close(&answer, env);
        let cause = CloseCause::Closed {
            code: close.code,
            reason: close.reason,
        };
        self.finish(cause, Initiator::Peer, true, env, sink);
    }

    /// Our Close frame has been answered, or never will be.
    fn finish_close_sent(&mut self, clean: bool, env: &mut Env, sink: &mut impl Sink<D>) {
        self.end_close_sent(Phase::Lingering, clean, env, sink);
    }

    fn end_close_sent(
        &mut self,
        phase: Phase,
        clean: bool,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        let sent = self.state.extra.as_mut().and_then(|e| e.close.take());
        let cause = CloseCause::Closed {
            code: sent.as_ref().and_then(|close| close.code),
            reason: sent.as_ref().map_or("", |close| &close.reason),
        };
        self.end(phase, cause, Initiator::Local, clean, env, sink);
    }

    /// Tells the handler that it is over, if it has been told that it had begun. What is queued still
    /// goes out.
    pub(super) fn finish(
        &mut self,
        cause: CloseCause<'_>,
        initiator: Initiator,
        clean: bool,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        self.end(Phase::Lingering, cause, initiator, clean, env, sink);
    }

    /// As [`finish`](Self::finish), of a connection that is removed at once.
    fn finish_closed(
        &mut self,
        cause: CloseCause<'_>,
        initiator: Initiator,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        self.end(Phase::Closed, cause, initiator, false, env, sink);
    }

    /// Enters the phase before the handler is told: its callback may panic.
    fn end(
        &mut self,
        phase: Phase,
        cause: CloseCause<'_>,
        initiator: Initiator,
        clean: bool,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        self.clear_partial(env);
        self.state.phase = phase;
        self.state.closing_done = clean;
        self.state.parked = false;
        let owed = mem::take(&mut self.state.owes_close);
        if let Some(mut data) = self.data.take() {
            let closed = Closed {
                cause,
                initiator,
                clean,
            };
            let output = Output {
                state: &mut self.state,
                data: &mut data,
                env,
            };
            if owed {
                sink.close(output, &closed);
            }
            sink.discard(data);
        }
    }

    /// The connection does not open; a handler that has asked for it is told.
    pub(super) fn fail_open(&mut self, error: OpenError, env: &mut Env, sink: &mut impl Sink<D>) {
        let initiator = error.initiator();
        self.finish_closed(CloseCause::NotOpened(error), initiator, env, sink);
    }

    /// The peer's FIN: nothing more will be received.
    pub fn handle_end_of_stream(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        self.state.end_of_stream = true;
        self.handle_last_byte(env, sink);
    }

    /// The peer has said, in its way, that nothing more will come.
    pub(super) fn handle_last_byte(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        self.end_pause(env, sink);
        match self.state.phase {
            Phase::Handshake => {
                let error = io::ErrorKind::UnexpectedEof.into();
                self.fail_open(OpenError::Io(error), env, sink);
            }
            Phase::Open => {
                let cause = CloseCause::Lost(io::ErrorKind::UnexpectedEof.into());
                self.finish(cause, Initiator::Peer, false, env, sink);
            }
            Phase::CloseSent => self.finish_close_sent(false, env, sink),
            Phase::Lingering | Phase::Closed => {}
        }
    }

    /// The socket broke.
    pub fn handle_error(&mut self, error: io::Error, env: &mut Env, sink: &mut impl Sink<D>) {
        if self.state.phase == Phase::Handshake {
            return self.fail_open(OpenError::Io(error), env, sink);
        }
        self.finish_closed(CloseCause::Lost(error), Initiator::Peer, env, sink);
    }

    /// The deadline that ran has expired.
    pub fn handle_deadline(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        match self.state.phase {
            Phase::Handshake => {
                if !self.give_deferral_up(env) {
                    env.metrics.handshake_timeouts.add(1);
                    self.fail_open(OpenError::TimedOut, env, sink);
                }
            }
            Phase::Lingering => self.state.phase = Phase::Closed,
            Phase::Open => self.handle_silence(env, sink),
            Phase::CloseSent => {
                self.end_close_sent(Phase::Closed, false, env, sink);
            }
            Phase::Closed => {}
        }
    }

    fn handle_silence(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        let limits = self.state.limits(env);
        self.state.silence_s += u32::from(self.state.span);
        let silence_s = u64::from(self.state.silence_s);
        let reached = |limit: std::time::Duration| !limit.is_zero() && silence_s >= limit.as_secs();
        if self.state.ping_sent {
            self.time_out(Timeout::Pong, "no pong", env, sink);
        } else if reached(limits.idle_timeout) {
            self.time_out(Timeout::Idle, "idle", env, sink);
        } else if reached(limits.ping_interval) {
            // The time, for the round trip, hidden: nothing has to be kept for it.
            let payload = env.time_mask.hide(env.now, env.random.bits());
            if self.state.push_control(Opcode::Ping, &payload, env) {
                self.state.note_ping();
            }
            self.state.ping_sent = true;
        }
    }

    fn time_out(&mut self, timeout: Timeout, reason: &str, env: &mut Env, sink: &mut impl Sink<D>) {
        let frame = CloseFrame::new(CloseCode::GOING_AWAY, reason);
        self.state.push_close(&frame, env);
        self.finish(
            CloseCause::TimedOut(timeout),
            Initiator::Local,
            false,
            env,
            sink,
        );
    }

    /// The peer has taken no output for the write time-out.
    pub fn handle_stall(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        let cause = CloseCause::TimedOut(Timeout::Write);
        self.finish_closed(cause, Initiator::Local, env, sink);
    }

    /// A callback of this connection panicked.
    pub fn handle_panic(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        match self.state.phase {
            Phase::Handshake if self.state.role == Role::Client => {
                self.finish_closed(CloseCause::Panicked, Initiator::Local, env, sink);
            }
            Phase::Handshake => {
                self.clear_partial(env);
                self.respond(Response::text(500), env);
            }
            Phase::Open => {
                let frame = CloseFrame::new(CloseCode::INTERNAL_ERROR, "");
                self.state.push_close(&frame, env);
                self.finish(CloseCause::Panicked, Initiator::Local, false, env, sink);
            }
            Phase::CloseSent => {
                self.finish(CloseCause::Panicked, Initiator::Local, false, env, sink);
            }
            Phase::Closed => {
                self.finish_closed(CloseCause::Panicked, Initiator::Local, env, sink);
            }
            Phase::Lingering => {}
        }
    }

    /// Tells the handler of a connection that it has given up.
    #[inline]
    pub fn settle(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        if self.state.settle_owed {
            self.settle_rest(env, sink);
        }
        if self.state.phase == Phase::Closed && self.state.owes_close {
            self.finish_closed(CloseCause::Terminated, Initiator::Local, env, sink);
        }
    }

    /// What few calls leave to be done.
    #[cold]
    fn settle_rest(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        self.state.settle_owed = false;
        let extra = self.state.extra.as_ref();
        if extra.is_some_and(|extra| extra.dropped.messages > 0) {
            self.tell_drops(env, sink);
        }
        if !self.state.paused && !self.state.delivers {
            self.deliver_held(env, sink);
        }
    }

    /// Tells the handler of messages that were given up.
    fn tell_drops(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        let dropped = mem::take(&mut self.state.extra_mut().dropped);
        if matches!(self.state.phase, Phase::Open | Phase::CloseSent)
            && let Some(output) = self.output(env)
        {
            sink.dropped(output, dropped);
        }
    }

    /// Its time to prove who it is has ended.
    pub fn handle_promote_deadline(&mut self, env: &mut Env) {
        if self.state.standing != Standing::Promoted {
            let frame = CloseFrame::new(CloseCode::POLICY_VIOLATION, "not authenticated in time");
            self.state.begin_close(&frame, env);
        }
    }

    /// Ends an opening handshake because the server ends. A request that has come, or begun to
    /// come, is answered with 503; a connection that has sent nothing is closed.
    pub fn end_handshake(&mut self, env: &mut Env) {
        if self.state.phase != Phase::Handshake || self.give_deferral_up(env) {
            return;
        }
        let is_begun = self.partial.as_ref().is_some_and(|p| !p.tail.is_empty());
        if let Some(partial) = &self.partial {
            self.state.note_method(&partial.tail);
        }
        self.clear_partial(env);
        if is_begun && self.state.role == Role::Server {
            self.refuse(Response::text(503), &"the server ends", env);
        } else {
            self.state.phase = Phase::Closed;
        }
    }

    /// Begins the closing handshake from outside a callback; ends the opening handshake if that is
    /// not over and `unopened` says so.
    pub fn begin_close(&mut self, close: &CloseFrame<'_>, unopened: bool, env: &mut Env) {
        match self.state.phase {
            Phase::Handshake if unopened => self.end_handshake(env),
            _ => self.state.begin_close(close, env),
        }
    }

    /// Gives the connection up, with what is queued.
    pub fn terminate(&mut self) {
        if matches!(self.state.phase, Phase::Open | Phase::CloseSent) {
            self.state.phase = Phase::Closed;
        }
    }

    /// Ends the connection now, whatever it was doing: the thread stops.
    pub fn abandon(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        if self.state.extra.as_ref().is_some_and(|e| e.close.is_some()) {
            self.end_close_sent(Phase::Closed, false, env, sink);
        } else {
            self.finish_closed(CloseCause::Terminated, Initiator::Local, env, sink);
        }
    }
}
