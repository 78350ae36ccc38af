//! From a connection to the handler.

use std::any::Any;
use std::io;
use std::io::IoSlice;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::buffer::Pool;
use crate::buffer::SendQueue;
use crate::conn::Chunk;
use crate::conn::Closed;
use crate::conn::Dropped;
use crate::conn::Flush;
use crate::conn::Initiator;
use crate::conn::Opening;
use crate::conn::Output;
use crate::conn::Sink;
use crate::conn::Upgrade;
use crate::http1::Request;
use crate::http1::Response;
use crate::metrics::PROMETHEUS_CONTENT_TYPE;
use crate::protocol::Message;
use crate::pubsub::Subscriptions;
use crate::reactor;
use crate::reactor::Backend;
use crate::reactor::PeerAddr;
use crate::reactor::SLICES_MAX;
use crate::reactor::SendOp;

use super::Alarm;
use super::Callback;
use super::ConnId;
use super::Context;
use super::Handler;
use super::Local;
use super::OpeningHandshake;
use super::Remote;
use super::door;
use super::handler::Wire;

/// Where one connection delivers during one call.
pub(super) struct Delivery<'a, B: Backend, H: Handler> {
    pub(super) handler: &'a mut H,
    pub(super) wire: SocketWire<'a, B>,
    pub(super) remote: &'a Remote,
    pub(super) local: &'a mut Local<H::Data>,
    pub(super) subscriptions: &'a mut Subscriptions,
    pub(super) id: ConnId,
}

/// One connection's socket.
pub(super) struct SocketWire<'a, B: Backend> {
    pub(super) backend: &'a mut B,
    pub(super) socket: B::Socket,
}

impl<B: Backend> SocketWire<'_, B> {
    fn send_slices(&mut self, slices: &[IoSlice<'_>]) -> (usize, io::Result<usize>) {
        let mut op = SendOp {
            socket: self.socket,
            slices,
            result: Ok(0),
        };
        self.backend.send_many(slice::from_mut(&mut op));
        (op.len(), op.result)
    }
}

impl<B: Backend> Flush for SocketWire<'_, B> {
    fn flush(&mut self, queue: &mut SendQueue, pool: &mut Pool) -> bool {
        while !queue.is_empty() {
            let (len, result) = {
                let slices: ArrayVec<IoSlice<'_>, SLICES_MAX> =
                    queue.slices().take(SLICES_MAX).collect();
                self.send_slices(&slices)
            };
            let sent = match result {
                Ok(sent) => sent,
                Err(error) if reactor::would_block(&error) => 0,
                // The next send meets it again, and reports it.
                Err(_) => return false,
            };
            queue.consume(sent, pool);
            if sent < len {
                return true;
            }
        }
        false
    }

    fn send(&mut self, slices: &[IoSlice<'_>]) -> Option<usize> {
        match self.send_slices(slices).1 {
            Ok(sent) => Some(sent),
            Err(error) if reactor::would_block(&error) => Some(0),
            // The next send meets it again, and reports it.
            Err(_) => None,
        }
    }
}

impl<B: Backend> Wire for SocketWire<'_, B> {
    fn peer_addr(&mut self) -> io::Result<PeerAddr> {
        self.backend.peer_addr(self.socket)
    }

    fn now(&self) -> Duration {
        self.backend.now()
    }
}

impl<B: Backend, H: Handler> Delivery<'_, B, H> {
    /// The handler, and the connection as it gets it.
    #[inline]
    fn split<'a>(&'a mut self, output: Output<'a, H::Data>) -> (&'a mut H, Context<'a, H::Data>) {
        let context = Context {
            output,
            wire: &mut self.wire,
            remote: self.remote,
            local: self.local,
            subscriptions: self.subscriptions,
            id: self.id,
        };
        (self.handler, context)
    }

    /// Calls with both.
    #[inline(always)]
    pub(super) fn call<R>(
        &mut self,
        callback: Callback,
        output: Output<'_, H::Data>,
        call: impl FnOnce(&mut H, &mut Context<'_, H::Data>) -> R,
    ) -> R {
        let began = self.begin();
        let (handler, mut context) = self.split(output);
        let result = call(handler, &mut context);
        self.end(callback, began);
        result
    }

    /// When a callback begins, if it is timed.
    #[inline]
    fn begin(&self) -> Option<Duration> {
        let timed = self.local.timing.is_on();
        timed.then(|| self.wire.backend.now())
    }

    #[inline]
    fn end(&mut self, callback: Callback, began: Option<Duration>) {
        if let Some(began) = began {
            self.end_timed(callback, began);
        }
    }

    fn end_timed(&mut self, callback: Callback, began: Duration) {
        let elapsed = self.wire.backend.now().saturating_sub(began);
        let conn = Some(self.id);
        if let Some(slow) = self.local.note_callback(callback, conn, elapsed) {
            self.handler.on_slow_callback(&slow);
        }
    }
}

impl<B: Backend, H: Handler> Sink<H::Data> for Delivery<'_, B, H> {
    fn upgrade(&mut self, opening: &Opening<'_>) -> Upgrade<H::Data> {
        let began = self.begin();
        let mut request = OpeningHandshake {
            opening,
            wire: &mut self.wire,
            remote: self.remote,
            id: self.id,
        };
        let upgrade = self.handler.on_upgrade(&mut request);
        self.end(Callback::Upgrade, began);
        upgrade
    }

    fn deferred(&mut self, opening: &Opening<'_>, value: Box<dyn Any + Send>) -> Upgrade<H::Data> {
        let began = self.begin();
        let mut request = OpeningHandshake {
            opening,
            wire: &mut self.wire,
            remote: self.remote,
            id: self.id,
        };
        let upgrade = self.handler.on_deferred(&mut request, value);
        self.end(Callback::Deferred, began);
        upgrade
    }

    fn http(&mut self, request: &Request<'_>) -> Response {
        if self.local.metrics_path.as_deref() == Some(request.path()) {
            let text = self.remote.metrics().to_prometheus();
            return Response::new(200).body(PROMETHEUS_CONTENT_TYPE, text);
        }
        let began = self.begin();
        let response = self.handler.on_http(request);
        self.end(Callback::Http, began);
        response
    }

    fn open(&mut self, output: Output<'_, H::Data>) {
        let [promote, lifetime] = output.deadlines();
        let key = self.id.key;
        let due = promote.map(|after| self.local.attended.saturating_add(after));
        for (after, alarm) in [
            (promote, Alarm::Promote(key, due.unwrap_or_default())),
            (lifetime, Alarm::Lifetime(key)),
        ] {
            if let Some(after) = after {
                let now = self.wire.backend.now();
                self.local.set_timer(now, after, alarm);
            }
        }
        let metrics = &self.local.metrics;
        metrics.opened.add(1);
        if let Some(began) = self.local.timing.end_opening(self.id.key) {
            let elapsed = self.wire.backend.now().saturating_sub(began);
            metrics.handshake_time.record(elapsed);
        }
        self.call(Callback::Open, output, |handler, conn| {
            handler.on_open(conn)
        });
    }

    #[inline(always)]
    fn message(&mut self, output: Output<'_, H::Data>, message: Message<'_>) {
        self.call(Callback::Message, output, |handler, conn| {
            handler.on_message(conn, message);
        });
    }

    fn ping(&mut self, output: Output<'_, H::Data>, payload: &[u8]) {
        self.call(Callback::Ping, output, |handler, conn| {
            handler.on_ping(conn, payload);
        });
    }

    fn pong(&mut self, output: Output<'_, H::Data>, payload: &[u8], rtt: Option<Duration>) {
        if let Some(round_trip) = rtt {
            self.local.metrics.round_trip.record(round_trip);
        }
        self.call(Callback::Pong, output, |handler, conn| {
            handler.on_pong(conn, payload, rtt);
        });
    }

    fn chunk(&mut self, output: Output<'_, H::Data>, chunk: Chunk<'_>) {
        self.call(Callback::Chunk, output, |handler, conn| {
            handler.on_chunk(conn, chunk);
        });
    }

    fn drain(&mut self, output: Output<'_, H::Data>) {
        self.call(Callback::Drain, output, |handler, conn| {
            handler.on_drain(conn)
        });
    }

    #[cold]
    fn dropped(&mut self, output: Output<'_, H::Data>, dropped: Dropped) {
        self.call(Callback::Dropped, output, |handler, conn| {
            handler.on_dropped(conn, dropped);
        });
    }

    fn close(&mut self, output: Output<'_, H::Data>, closed: &Closed<'_>) {
        let metrics = &self.local.metrics;
        if output.was_open() {
            let local = closed.initiator == Initiator::Local;
            metrics.count_close(local, closed.cause.code());
        } else {
            metrics.not_opened.add(1);
        }
        let metrics = Arc::clone(&self.local.metrics);
        let id = self.id;
        let what = format_args!("callback Close of connection {id}");
        door::enter(&metrics, what, || {
            self.call(Callback::Close, output, |handler, conn| {
                handler.on_close(conn, closed);
            });
        });
        // Here, and not when the socket is closed: nothing can be sent any more.
        self.local.pubsub.unsubscribe_all(self.subscriptions);
        self.local.release_timers(self.id.key);
    }

    fn discard(&mut self, data: H::Data) {
        let what = format_args!("the data of connection {}", self.id);
        door::discard(&self.local.metrics, what, data);
    }

    fn flush(&mut self, queue: &mut SendQueue, pool: &mut Pool) -> bool {
        self.wire.flush(queue, pool)
    }
}
