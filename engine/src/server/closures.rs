//! Handlers made of closures, without a virtual call.

use crate::conn::Closed;
use crate::http1::Request;
use crate::http1::Response;
use crate::protocol::Message;
use crate::worker::Context;
use crate::worker::Handler;
use crate::worker::upgrade_required;

/// Makes a handler for each thread.
pub trait MakeHandler: Send + Sync + 'static {
    /// What it makes.
    type Handler: Handler;

    /// Makes the handler of a thread, on that thread.
    fn make(&self, thread: usize) -> Self::Handler;
}

/// A handler factory given by the user.
#[derive(Clone, Copy, Debug)]
pub struct Factory<F>(pub(super) F);

impl<H: Handler, F: Fn(usize) -> H + Send + Sync + 'static> MakeHandler for Factory<F> {
    type Handler = H;

    fn make(&self, thread: usize) -> H {
        (self.0)(thread)
    }
}

/// No closure was given: the default of [`Handler`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Unset;

/// A handler of closures; each is one of the user's or [`Unset`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Closures<O, M, D, C, T> {
    pub(super) open: O,
    pub(super) message: M,
    pub(super) drain: D,
    pub(super) close: C,
    pub(super) http: T,
}

/// A callback that gets the connection.
pub trait OnConn: Clone + Send + Sync + 'static {
    /// Calls it.
    fn call(&self, conn: &mut Context<'_, ()>);
}

/// A callback that gets a message.
pub trait OnMessage: Clone + Send + Sync + 'static {
    /// Calls it.
    fn call(&self, conn: &mut Context<'_, ()>, message: Message<'_>);
}

/// A callback that gets the end of a connection.
pub trait OnClose: Clone + Send + Sync + 'static {
    /// Calls it.
    fn call(&self, conn: &mut Context<'_, ()>, closed: &Closed<'_>);
}

/// A callback that answers plain HTTP.
pub trait OnHttp: Clone + Send + Sync + 'static {
    /// Calls it.
    fn call(&self, request: &Request<'_>) -> Response;
}

impl OnConn for Unset {
    fn call(&self, _: &mut Context<'_, ()>) {}
}

impl OnMessage for Unset {
    fn call(&self, _: &mut Context<'_, ()>, _: Message<'_>) {}
}

impl OnClose for Unset {
    fn call(&self, _: &mut Context<'_, ()>, _: &Closed<'_>) {}
}

impl OnHttp for Unset {
    fn call(&self, _: &Request<'_>) -> Response {
        upgrade_required()
    }
}

impl<F: Fn(&mut Context<'_, ()>) + Clone + Send + Sync + 'static> OnConn for F {
    fn call(&self, conn: &mut Context<'_, ()>) {
        self(conn);
    }
}

impl<F> OnMessage for F
where
    F: Fn(&mut Context<'_, ()>, Message<'_>) + Clone + Send + Sync + 'static,
{
    #[inline(always)]
    fn call(&self, conn: &mut Context<'_, ()>, message: Message<'_>) {
        self(conn, message);
    }
}

impl<F> OnClose for F
where
    F: Fn(&mut Context<'_, ()>, &Closed<'_>) + Clone + Send + Sync + 'static,
{
    fn call(&self, conn: &mut Context<'_, ()>, closed: &Closed<'_>) {
        self(conn, closed);
    }
}

impl<F: Fn(&Request<'_>) -> Response + Clone + Send + Sync + 'static> OnHttp for F {
    fn call(&self, request: &Request<'_>) -> Response {
        self(request)
    }
}

impl<O: OnConn, M: OnMessage, D: OnConn, C: OnClose, T: OnHttp> Handler
    for Closures<O, M, D, C, T>
{
    type Data = ();

    fn on_http(&mut self, request: &Request<'_>) -> Response {
        self.http.call(request)
    }

    fn on_open(&mut self, conn: &mut Context<'_, ()>) {
        self.open.call(conn);
    }

    // Not a call: that would pass a copy of the message, loaded in registers of 16 bytes where it was
    // stored in words, and such loads wait for the cache.
    #[inline(always)]
    fn on_message(&mut self, conn: &mut Context<'_, ()>, message: Message<'_>) {
        self.message.call(conn, message);
    }

    fn on_drain(&mut self, conn: &mut Context<'_, ()>) {
        self.drain.call(conn);
    }

    fn on_close(&mut self, conn: &mut Context<'_, ()>, closed: &Closed<'_>) {
        self.close.call(conn, closed);
    }
}

impl<O: OnConn, M: OnMessage, D: OnConn, C: OnClose, T: OnHttp> MakeHandler
    for Closures<O, M, D, C, T>
{
    type Handler = Self;

    fn make(&self, _thread: usize) -> Self {
        self.clone()
    }
}
