//! The user's side: callbacks, and what they get.

use std::any::Any;
use std::fmt;
use std::io;
use std::io::IoSlice;
use std::time::Duration;

use crate::conn::Agreed;
use crate::conn::Chunk;
use crate::conn::Closed;
use crate::conn::Dropped;
use crate::conn::Flush;
use crate::conn::MessageWriter;
use crate::conn::Output;
use crate::conn::Prepared;
use crate::conn::SendOptions;
use crate::conn::SendResult;
use crate::conn::Upgrade;
use crate::connect::Connect;
use crate::error::ConfigError;
use crate::http1::Request;
use crate::http1::Response;
use crate::protocol::CloseCode;
use crate::protocol::CloseFrame;
use crate::protocol::Message;
use crate::protocol::Role;
use crate::pubsub::Subscriptions;
use crate::reactor::PeerAddr;
use crate::slab::Key;

use super::OpeningHandshake;
use super::PostError;
use super::Remote;
use super::Thread;
use super::TimerId;
use super::thread::Alarm;
use super::thread::Local;
use super::thread::Published;

/// Names one connection for ever: after its close every use is a defined "gone".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    pub(super) worker: u16,
    pub(super) key: Key,
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({self})")
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { index, generation } = self.key;
        write!(f, "{}.{index}.{generation}", self.worker)
    }
}

/// What happens to connections. Each thread has a handler of its own, so a handler needs
/// neither locks nor `Send`. A callback must not block: its thread serves nobody meanwhile.
///
/// Every method has a default: accept every upgrade, answer plain HTTP with 426, ignore the
/// rest.
pub trait Handler {
    /// Per-connection state, kept from the upgrade to the end of `on_close`.
    type Data: Default;

    /// A valid request for a WebSocket, of an allowed origin.
    fn on_upgrade(&mut self, request: &mut OpeningHandshake<'_>) -> Upgrade<Self::Data> {
        let _ = request;
        Upgrade::accept(Self::Data::default())
    }

    /// The value that has come for a request whose answer was put off
    /// ([`OpeningHandshake::defer`]).
    fn on_deferred(
        &mut self,
        request: &mut OpeningHandshake<'_>,
        value: Box<dyn Any + Send>,
    ) -> Upgrade<Self::Data> {
        let _ = (request, value);
        Upgrade::accept(Self::Data::default())
    }

    /// A GET or HEAD request that asks for no WebSocket.
    fn on_http(&mut self, request: &Request<'_>) -> Response {
        let _ = request;
        upgrade_required()
    }

    /// The data of a connection that [`Remote::connect`] asks for.
    fn on_connect(&mut self, connect: &Connect) -> Self::Data {
        let _ = connect;
        Self::Data::default()
    }

    /// The data of a connection that was opened elsewhere ([`Remote::adopt`]).
    fn on_adopt(&mut self, agreed: &Agreed) -> Self::Data {
        let _ = agreed;
        Self::Data::default()
    }

    /// The connection is open: the first callback of it.
    fn on_open(&mut self, conn: &mut Context<'_, Self::Data>) {
        let _ = conn;
    }

    /// A message.
    fn on_message(&mut self, conn: &mut Context<'_, Self::Data>, message: Message<'_>) {
        let _ = (conn, message);
    }

    /// A part of a message, on routes that ask for it
    /// ([`Route::streaming`](crate::Route::streaming)): `on_message` is not called there. Parts come
    /// in order, and nothing else of the connection but control frames comes between them.
    fn on_chunk(&mut self, conn: &mut Context<'_, Self::Data>, chunk: Chunk<'_>) {
        let _ = (conn, chunk);
    }

    /// A ping, which the engine has answered, unless the route leaves that to the handler
    /// ([`Route::auto_pong`](crate::Route::auto_pong), [`Context::pong`]).
    fn on_ping(&mut self, conn: &mut Context<'_, Self::Data>, payload: &[u8]) {
        let _ = (conn, payload);
    }

    /// A pong, with the round-trip time if it answers a ping of this end: from the turn in which
    /// that was sent to this one.
    fn on_pong(
        &mut self,
        conn: &mut Context<'_, Self::Data>,
        payload: &[u8],
        round_trip: Option<Duration>,
    ) {
        let _ = (conn, payload, round_trip);
    }

    /// Output that was held up, or refused, has fallen below the low-water mark.
    fn on_drain(&mut self, conn: &mut Context<'_, Self::Data>) {
        let _ = conn;
    }

    /// Messages were given up: the policy of the route or of the message said so, and there was
    /// no caller that would have heard of it from the result of its `send`.
    fn on_dropped(&mut self, conn: &mut Context<'_, Self::Data>, dropped: Dropped) {
        let _ = (conn, dropped);
    }

    /// A timer of the connection ([`Context::set_timer`]).
    fn on_timer(&mut self, conn: &mut Context<'_, Self::Data>, token: u64) {
        let _ = (conn, token);
    }

    /// A value about this connection, from elsewhere ([`Remote::post_to`]).
    fn on_post(&mut self, conn: &mut Context<'_, Self::Data>, value: Box<dyn Any + Send>) {
        let _ = (conn, value);
    }

    /// The thread begins to serve.
    fn on_start(&mut self, thread: &mut Thread<'_, Self::Data>) {
        let _ = thread;
    }

    /// A value for this thread, from elsewhere ([`Remote::post`]).
    fn on_remote(&mut self, thread: &mut Thread<'_, Self::Data>, value: Box<dyn Any + Send>) {
        let _ = (thread, value);
    }

    /// A timer of the thread ([`Thread::set_timer`]).
    fn on_thread_timer(&mut self, thread: &mut Thread<'_, Self::Data>, token: u64) {
        let _ = (thread, token);
    }

    /// A callback of this thread took longer than
    /// [`Builder::slow_callback`](crate::Builder::slow_callback) allows: everyone else of the
    /// thread waited meanwhile. Logs a warning where it is not overridden.
    fn on_slow_callback(&mut self, slow: &SlowCallback) {
        log::warn!("{slow}");
    }

    /// The connection is over: the last callback of it. Nothing can be sent. For a connection
    /// that this endpoint has asked for and that did not open it is the only one
    /// ([`CloseCause::NotOpened`](crate::CloseCause::NotOpened)).
    fn on_close(&mut self, conn: &mut Context<'_, Self::Data>, closed: &Closed<'_>) {
        let _ = (conn, closed);
    }
}

/// Which callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Callback {
    /// [`Handler::on_upgrade`].
    Upgrade,
    /// [`Handler::on_deferred`].
    Deferred,
    /// [`Handler::on_http`].
    Http,
    /// [`Handler::on_connect`].
    Connect,
    /// [`Handler::on_adopt`].
    Adopt,
    /// [`Handler::on_open`].
    Open,
    /// [`Handler::on_message`].
    Message,
    /// [`Handler::on_chunk`].
    Chunk,
    /// [`Handler::on_ping`].
    Ping,
    /// [`Handler::on_pong`].
    Pong,
    /// [`Handler::on_drain`].
    Drain,
    /// [`Handler::on_dropped`].
    Dropped,
    /// [`Handler::on_timer`].
    Timer,
    /// [`Handler::on_post`].
    Post,
    /// [`Handler::on_close`].
    Close,
    /// [`Handler::on_start`].
    Start,
    /// [`Handler::on_remote`].
    Remote,
    /// [`Handler::on_thread_timer`].
    ThreadTimer,
    /// [`Engine::with`](crate::Engine::with).
    With,
}

/// A callback that held its thread for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowCallback {
    /// Which.
    pub callback: Callback,
    /// Of which connection; none if it was about none.
    pub conn: Option<ConnId>,
    /// How long it took.
    pub elapsed: Duration,
    /// How long it may take.
    pub allowed: Duration,
}

impl fmt::Display for SlowCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (callback, elapsed, allowed) = (self.callback, self.elapsed, self.allowed);
        write!(
            f,
            "callback {callback:?} took {elapsed:?}, more than {allowed:?}"
        )?;
        match self.conn {
            Some(id) => write!(f, ", for connection {id}"),
            None => Ok(()),
        }
    }
}

/// The answer to plain HTTP where nothing else is served.
pub(crate) fn upgrade_required() -> Response {
    Response::text(426).offer_upgrade()
}

/// What a callback needs of the socket, whatever the backend.
pub(super) trait Wire: Flush {
    fn peer_addr(&mut self) -> io::Result<PeerAddr>;
    fn now(&self) -> Duration;
}

/// A connection, in a callback. Whatever is asked of it happens after the callback: nothing
/// calls back from here.
pub struct Context<'a, D> {
    pub(super) output: Output<'a, D>,
    pub(super) wire: &'a mut dyn Wire,
    pub(super) remote: &'a Remote,
    pub(super) local: &'a mut Local<D>,
    pub(super) subscriptions: &'a mut Subscriptions,
    pub(super) id: ConnId,
}

impl<D> Context<'_, D> {
    /// Sends a message. What was queued leaves at the end of the turn, in one send.
    #[inline]
    pub fn send<'m>(&mut self, message: impl Into<Message<'m>>) -> SendResult {
        let message = message.into();
        if self.output.send_straight(message) {
            return SendResult::Sent;
        }
        self.send_queued(message)
    }

    /// Sends a message for which room has to be made, or memory.
    #[inline(never)]
    fn send_queued(&mut self, message: Message<'_>) -> SendResult {
        self.catch_up();
        let len = message.payload().len();
        let must_flush = self.output.must_flush(len);
        if must_flush || self.output.is_sent_directly(len) {
            let wire = &mut self.wire;
            let send = |slices: &[IoSlice<'_>]| wire.send(slices);
            if let Some(result) = self.output.send_directly(message, send) {
                return result;
            }
        }
        if must_flush && self.output.must_flush(len) {
            self.flush();
        }
        self.output.send(message)
    }

    /// Sends a message with options of its own.
    pub fn send_with<'m>(
        &mut self,
        message: impl Into<Message<'m>>,
        options: &SendOptions,
    ) -> SendResult {
        self.catch_up();
        let message = message.into();
        if self.output.must_flush(message.payload().len()) {
            self.flush();
        }
        self.output.send_with(message, options)
    }

    /// Sends a value as JSON, in a text message.
    ///
    /// # Errors
    /// The value cannot be written as JSON: a map whose keys are no strings, say. Nothing is sent.
    #[cfg(feature = "json")]
    pub fn send_json(
        &mut self,
        value: &(impl serde::Serialize + ?Sized),
    ) -> serde_json::Result<SendResult> {
        let mut text = self.output.take_scratch();
        let written = serde_json::to_writer(&mut text, value);
        let result = written.map(|()| self.send(Message::checked(true, &text)));
        self.output.put_scratch(text);
        result
    }

    /// Sends a message that was encoded before, and that others may get as well. Large ones are
    /// not copied.
    pub fn send_prepared(&mut self, message: &Prepared) -> SendResult {
        self.send_prepared_with(message, &SendOptions::new())
    }

    /// Sends a message that was encoded before, with options of its own.
    pub fn send_prepared_with(&mut self, message: &Prepared, options: &SendOptions) -> SendResult {
        self.catch_up();
        if self.output.must_flush(message.payload().len()) {
            self.flush();
        }
        self.output.send_prepared(message, options)
    }

    /// Subscribes to a topic; says whether that is new: not if it has been done, nor if there are
    /// [`Limits::subscriptions_max`](crate::Limits::subscriptions_max) of them already. What is
    /// published from here on arrives. The end of the connection ends all its subscriptions.
    pub fn subscribe(&mut self, topic: &str) -> bool {
        let is_full = self.subscriptions.count() >= self.output.subscriptions_max();
        if is_full || !self.output.is_open() {
            return false;
        }
        let (key, pubsub) = (self.id.key, &mut self.local.pubsub);
        pubsub.subscribe(key, self.subscriptions, topic)
    }

    /// Ends the subscription to a topic; says whether there was one. Nothing more of it is
    /// sent, also of what has been published in this turn.
    pub fn unsubscribe(&mut self, topic: &str) -> bool {
        let pubsub = &mut self.local.pubsub;
        pubsub.unsubscribe(self.subscriptions, topic)
    }

    /// How many topics the connection has subscribed to.
    pub fn subscription_count(&self) -> usize {
        self.subscriptions.count()
    }

    /// Sends a message to the subscribers of a topic, of all threads: encoded once, sent later
    /// in the turn. Messages that one thread publishes to one topic reach each subscriber in
    /// the order published.
    ///
    /// # Errors
    /// At least one other thread did not take it.
    pub fn publish(&mut self, topic: &str, message: impl Into<Prepared>) -> Result<(), PostError> {
        self.publish_as(topic, message.into(), &SendOptions::new(), None)
    }

    /// As [`publish`](Self::publish), to all subscribers but this connection.
    ///
    /// # Errors
    /// At least one other thread did not take it.
    pub fn publish_to_others(
        &mut self,
        topic: &str,
        message: impl Into<Prepared>,
    ) -> Result<(), PostError> {
        let except = Some(self.id.key);
        self.publish_as(topic, message.into(), &SendOptions::new(), except)
    }

    /// As [`publish`](Self::publish), with options of its own.
    ///
    /// # Errors
    /// At least one other thread did not take it.
    pub fn publish_with(
        &mut self,
        topic: &str,
        message: impl Into<Prepared>,
        options: &SendOptions,
    ) -> Result<(), PostError> {
        self.publish_as(topic, message.into(), options, None)
    }

    fn publish_as(
        &mut self,
        topic: &str,
        message: Prepared,
        options: &SendOptions,
        except: Option<Key>,
    ) -> Result<(), PostError> {
        let thread = (self.remote, self.id.worker);
        let result = self.local.publish(thread, topic, message, options, except);
        let (key, pubsub) = (self.id.key, &mut self.local.pubsub);
        if except.is_none() && pubsub.expect_catch_up(key, self.subscriptions, topic) {
            self.output.hold_straight();
        }
        result
    }

    /// Before something is sent out of the ordinary: what this connection has published to a topic
    /// that it subscribes to, and what was published before that, comes first.
    fn catch_up(&mut self) {
        let pubsub = &mut self.local.pubsub;
        for Published { message, options } in pubsub.catch_up(self.id.key, self.subscriptions) {
            if self.output.must_flush(message.payload().len()) {
                self.flush();
            }
            self.output.send_published(&message, &options);
        }
        self.output.renew_straight();
    }

    /// Subscribers of a topic on this thread; [`Remote::subscriber_count`] has those of all.
    pub fn subscriber_count(&self, topic: &str) -> usize {
        self.local.pubsub.subscriber_count(topic)
    }

    /// Begins a message that is sent in fragments while it is written, or goes on with one that
    /// has been begun. See [`MessageWriter`].
    ///
    /// # Errors
    /// The connection is not open; or what has been begun is of the other type
    /// ([`InvalidInput`](io::ErrorKind::InvalidInput)).
    pub fn writer(&mut self, text: bool) -> io::Result<MessageWriter<'_>> {
        self.catch_up();
        MessageWriter::new(&mut self.output, self.wire, text)
    }

    /// Calls [`Handler::on_timer`] with `token`, once, not before `after` has passed since this
    /// call, unless the connection ends before. A time that is too far away never comes.
    pub fn set_timer(&mut self, after: Duration, token: u64) -> TimerId {
        let alarm = Alarm::Timer(self.id.key, token);
        let now = self.wire.now();
        self.local.set_timer(now, after, alarm)
    }

    /// Cancels a timer; says whether it had not come yet.
    pub fn cancel_timer(&mut self, timer: TimerId) -> bool {
        self.local.cancel_timer(timer)
    }

    /// Delivers no further messages until [`resume`](Self::resume); control frames are answered
    /// as before. Up to [`Limits::hold_len_max`](crate::Limits::hold_len_max) bytes of messages
    /// are held meanwhile; then nothing is read, and the peer has to wait (and is not pinged). A
    /// peer that closes ends the pause: what is held is delivered before `on_close`.
    pub fn pause(&mut self) {
        self.output.pause();
    }

    /// Delivers messages again, beginning with those that are held, after this callback.
    pub fn resume(&mut self) {
        self.output.resume();
    }

    /// The connection has proven who it is: its time for that
    /// ([`Route::promote_within`](crate::Route::promote_within)) ends.
    pub fn promote(&mut self) {
        self.output.promote();
    }

    /// The pattern of the connection's route, if the server has routes.
    pub fn route(&self) -> Option<&str> {
        self.output.route()
    }

    #[cold]
    fn flush(&mut self) {
        let wire = &mut self.wire;
        self.output.flush(|queue, pool| wire.flush(queue, pool));
    }

    /// Sends a ping; the payload is cut at 125 bytes (RFC 6455 §5.5). The round-trip time comes
    /// with its pong ([`Handler::on_pong`]), if no more than 8 are under way.
    pub fn ping(&mut self, payload: &[u8]) -> SendResult {
        self.output.ping(payload)
    }

    /// Answers a ping, where the route leaves that to the handler; the payload is that of the
    /// ping (RFC 6455 §5.5.3). It has a part in the reserve for control frames.
    pub fn pong(&mut self, payload: &[u8]) -> SendResult {
        self.output.pong(payload)
    }

    /// Begins the closing handshake: no message is delivered from here on, and `on_close`
    /// comes when the peer has answered, or has not for the close time-out. A reason longer
    /// than 123 bytes is cut at a character.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        self.catch_up();
        self.output.close(&CloseFrame::new(code, reason));
    }

    /// Gives the connection up at once, with what is queued, and without a Close frame.
    pub fn terminate(&mut self) {
        self.output.terminate();
    }

    /// The user's data.
    #[inline]
    pub fn data(&mut self) -> &mut D {
        self.output.data()
    }

    /// Bytes of output that wait.
    pub fn queued_bytes(&self) -> usize {
        self.output.queued_len()
    }

    /// The agreed subprotocol.
    pub fn subprotocol(&self) -> Option<&str> {
        self.output.subprotocol()
    }

    /// The connection's name, for [`Remote`].
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Reaches all connections of the server, this one included.
    pub fn remote(&self) -> &Remote {
        self.remote
    }

    /// Makes a connection on this thread, after this callback: the same callbacks, limits and
    /// time-outs as of accepted ones, and masked frames. `data` is the connection's until the
    /// end of its `on_close`, which also says if it did not open.
    ///
    /// # Errors
    /// What is asked for makes no sense: a host that has not been looked up
    /// ([`Connect::resolve`]), a header that cannot be sent, TLS settings. `on_close` is not
    /// called.
    pub fn connect(&mut self, connect: Connect, data: D) -> Result<(), ConfigError> {
        connect.validate()?;
        self.local.connects.push_back((connect, data));
        Ok(())
    }

    /// Which end of the connection this is: a client where it was made by [`Context::connect`],
    /// `Engine::connect` or [`Remote::connect`].
    pub fn role(&self) -> Role {
        self.output.role()
    }

    /// What the two ends of a TLS connection have agreed, and the client's certificate if it
    /// was asked for one; none without TLS.
    #[cfg(feature = "tls")]
    pub fn tls(&self) -> Option<crate::tls::TlsInfo<'_>> {
        self.output.tls()
    }

    /// For whom the connection was made: what a trusted proxy says
    /// ([`Builder::proxies`](crate::Builder::proxies)), else the other end.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn client_addr(&mut self) -> io::Result<PeerAddr> {
        match self.output.client() {
            Some(client) => Ok(PeerAddr::Ip(client)),
            None => self.peer_addr(),
        }
    }

    /// The other end, as the kernel has it: a proxy, if there is one. Takes a system call.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn peer_addr(&mut self) -> io::Result<PeerAddr> {
        self.wire.peer_addr()
    }
}

impl<D: fmt::Debug> fmt::Debug for Context<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.id)
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}
