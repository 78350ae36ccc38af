//! From a connection to the handler.

use std::any::Any;
use std::io;
use std::slice;
use std::time::Duration;

use crate::buffer::Pool;
use crate::buffer::SendQueue;
use crate::conn::Chunk;
use crate::conn::Closed;
use crate::conn::Dropped;
use crate::conn::Flush;
use crate::conn::Opening;
use crate::conn::Output;
use crate::conn::Sink;
use crate::conn::Upgrade;
use crate::http1::Request;
use crate::http1::Response;
use crate::protocol::Message;
use crate::pubsub::Subscriptions;
use crate::reactor::Backend;
use crate::reactor::PeerAddr;
use crate::reactor::SLICES_MAX;
use crate::reactor::SendOp;

use super::Alarm;
use super::ConnId;
use super::Context;
use super::Handler;
use super::Local;
use super::OpeningHandshake;
use super::Remote;
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

impl<B: Backend> Flush for SocketWire<'_, B> {
    fn flush(&mut self, queue: &mut SendQueue, pool: &mut Pool) -> bool {
        while !queue.is_empty() {
            let (len, sent) = {
                let mut op = SendOp {
                    socket: self.socket,
                    slices: queue.slices().take(SLICES_MAX).collect(),
                    result: Ok(0),
                };
                self.backend.send_many(slice::from_mut(&mut op));
                // An error is met again by the next send or receive, which reports it.
                (op.len(), op.result.unwrap_or(0))
            };
            queue.consume(sent, pool);
            if sent < len {
                return true;
            }
        }
        false
    }
}

impl<B: Backend> Wire for SocketWire<'_, B> {
    fn peer_addr(&mut self) -> io::Result<PeerAddr> {
        self.backend.peer_addr(self.socket)
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
    pub(super) fn with<R>(
        &mut self,
        output: Output<'_, H::Data>,
        call: impl FnOnce(&mut H, &mut Context<'_, H::Data>) -> R,
    ) -> R {
        let (handler, mut context) = self.split(output);
        call(handler, &mut context)
    }
}

impl<B: Backend, H: Handler> Sink<H::Data> for Delivery<'_, B, H> {
    fn upgrade(&mut self, opening: &Opening<'_>) -> Upgrade<H::Data> {
        let mut request = OpeningHandshake {
            opening,
            wire: &mut self.wire,
            remote: self.remote,
            id: self.id,
        };
        self.handler.on_upgrade(&mut request)
    }

    fn deferred(&mut self, opening: &Opening<'_>, value: Box<dyn Any + Send>) -> Upgrade<H::Data> {
        let mut request = OpeningHandshake {
            opening,
            wire: &mut self.wire,
            remote: self.remote,
            id: self.id,
        };
        self.handler.on_deferred(&mut request, value)
    }

    fn http(&mut self, request: &Request<'_>) -> Response {
        self.handler.on_http(request)
    }

    fn open(&mut self, output: Output<'_, H::Data>) {
        let [promote, lifetime] = output.deadlines();
        if let Some(after) = promote {
            self.local.set_timer(after, Alarm::Promote(self.id.key));
        }
        if let Some(after) = lifetime {
            self.local.set_timer(after, Alarm::Lifetime(self.id.key));
        }
        let (handler, mut context) = self.split(output);
        handler.on_open(&mut context);
    }

    #[inline]
    fn message(&mut self, output: Output<'_, H::Data>, message: Message<'_>) {
        let (handler, mut context) = self.split(output);
        handler.on_message(&mut context, message);
    }

    fn ping(&mut self, output: Output<'_, H::Data>, payload: &[u8]) {
        let (handler, mut context) = self.split(output);
        handler.on_ping(&mut context, payload);
    }

    fn pong(&mut self, output: Output<'_, H::Data>, payload: &[u8], rtt: Option<Duration>) {
        let (handler, mut context) = self.split(output);
        handler.on_pong(&mut context, payload, rtt);
    }

    fn chunk(&mut self, output: Output<'_, H::Data>, chunk: Chunk<'_>) {
        let (handler, mut context) = self.split(output);
        handler.on_chunk(&mut context, chunk);
    }

    fn drain(&mut self, output: Output<'_, H::Data>) {
        let (handler, mut context) = self.split(output);
        handler.on_drain(&mut context);
    }

    #[cold]
    fn dropped(&mut self, output: Output<'_, H::Data>, dropped: Dropped) {
        let (handler, mut context) = self.split(output);
        handler.on_dropped(&mut context, dropped);
    }

    fn close(&mut self, output: Output<'_, H::Data>, closed: &Closed<'_>) {
        let (handler, mut context) = self.split(output);
        handler.on_close(&mut context, closed);
        // Here, and not when the socket is closed: nothing can be sent any more.
        self.local.pubsub.unsubscribe_all(self.subscriptions);
    }

    fn flush(&mut self, queue: &mut SendQueue, pool: &mut Pool) -> bool {
        self.wire.flush(queue, pool)
    }
}
