//! Up to the answer of the request head, as a server.

use std::mem;

use crate::buffer::Buffer;
use crate::buffer::SendQueue;
use crate::config::OriginPolicy;
use crate::http1;
use crate::http1::HEADER_COUNT_MAX;
use crate::http1::Request;
use crate::http1::RequestError;
use crate::http1::Response;
use crate::protocol::Role;
use crate::protocol::handshake;
use crate::protocol::handshake::HandshakeError;
use crate::protocol::handshake::UpgradeRequest;

use super::Conn;
use super::Env;
use super::Phase;
use super::Sink;
use super::owner::guarded;
use super::upgrade::Answer;
use super::upgrade::DeferredAnswer;
use super::upgrade::Opening;

/// What a request line has besides its target, and then some.
const REQUEST_LINE_REST: usize = 64;

/// A head, and what came behind it.
pub(super) enum Collected<'i> {
    /// It lies whole in the input.
    Here(&'i [u8], &'i mut [u8]),
    /// It came in pieces: put together here, so long.
    Kept(Buffer, usize, &'i mut [u8]),
    /// It is longer than the limit; its first line has so many bytes, or no end.
    TooLong(usize),
    /// More of it has to come.
    Incomplete,
}

impl<D> Conn<D> {
    /// Takes bytes of the peer's head, and of frames that came along with it.
    pub(super) fn receive_head(
        &mut self,
        input: &mut [u8],
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        if self.state.role == Role::Client {
            return self.receive_response(input, env, sink);
        }
        let begun = self.partial.as_ref().is_some_and(|p| !p.tail.is_empty());
        // No method begins so: TLS, or a probe. Nothing is gained by waiting for more.
        let no_method = |byte: &u8| !byte.is_ascii_graphic() && *byte != b'\r';
        if !begun && input.first().is_some_and(no_method) {
            return self.respond(Response::text(400), false, env);
        }
        match self.collect_head(input, env) {
            Collected::Here(head, frames) => {
                self.answer(head, env, sink);
                self.receive_early(frames, env, sink);
            }
            Collected::Kept(head, len, frames) => {
                self.answer(&head[..len], env, sink);
                env.pool.put(head);
                self.receive_early(frames, env, sink);
            }
            Collected::TooLong(line_len) => {
                let long_uri = line_len > env.limits().uri_len_max + REQUEST_LINE_REST;
                let status = if long_uri { 414 } else { 431 };
                self.respond(Response::text(status), false, env);
            }
            // No server will be there when the rest has come.
            Collected::Incomplete if env.draining && env.health_path.is_none() => {
                self.end_handshake(env);
            }
            Collected::Incomplete => {}
        }
    }

    /// Collects a head, wherever it was cut.
    pub(super) fn collect_head<'i>(&mut self, input: &'i mut [u8], env: &mut Env) -> Collected<'i> {
        let len_max = env.limits().head_len_max;
        let kept = self.partial.as_ref().map_or(0, |p| p.tail.len());
        if kept == 0
            && let Some(len) = http1::head_len(input, 0).filter(|&len| len <= len_max)
        {
            let (head, frames) = input.split_at_mut(len);
            return Collected::Here(head, frames);
        }
        let taken = input.len().min(len_max - kept);
        let tail = self.keep(&input[..taken], env);
        match http1::head_len(tail, kept) {
            Some(len) => {
                let head = mem::take(tail);
                self.release_partial(env);
                Collected::Kept(head, len, &mut input[len - kept..])
            }
            None if tail.len() == len_max => {
                let line_len = memchr::memchr(b'\n', tail).unwrap_or(len_max);
                self.clear_partial(env);
                Collected::TooLong(line_len)
            }
            None => Collected::Incomplete,
        }
    }

    /// Frames may have come in the same segment as the head.
    pub(super) fn receive_early(
        &mut self,
        frames: &mut [u8],
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        if matches!(self.state.phase, Phase::Open | Phase::CloseSent) {
            self.receive_frames(frames, env, sink);
        } else if self.state.deferred && !frames.is_empty() {
            self.keep(frames, env);
        }
    }

    fn answer(&mut self, head: &[u8], env: &mut Env, sink: &mut impl Sink<D>) {
        let mut storage = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
        let storage = &mut storage[..env.limits().header_count_max];
        let request = match Request::parse(head, storage) {
            Ok(request) => request,
            Err(RequestError::TooManyHeaders) => {
                return self.respond(Response::text(431), false, env);
            }
            Err(RequestError::Malformed) => {
                return self.respond(Response::text(400), false, env);
            }
        };
        if request.target().len() > env.limits().uri_len_max {
            return self.respond(Response::text(414), false, env);
        }
        if !handshake::is_upgrade_attempt(&request) {
            return self.answer_http(&request, env, sink);
        }
        if env.draining {
            return self.respond(Response::text(503), false, env);
        }
        // A path of no route is the builder's, or nobody's.
        match env.find_route(request.path()) {
            Some(route) => self.state.route = route,
            None => return self.respond(Response::text(404), false, env),
        }
        let checked = UpgradeRequest::check(request).and_then(|upgrade| {
            let allowed = is_origin_allowed(&request, &env.route(self.state.route).route.origins);
            allowed.then_some(upgrade).ok_or(HandshakeError::Origin)
        });
        match checked {
            Ok(upgrade) => {
                self.take_forwarded(&request, env);
                let answer = {
                    let opening = self.opening(&upgrade, env);
                    sink.upgrade(&opening).answer
                };
                if matches!(answer, Answer::Defer) {
                    return self.defer(head, env);
                }
                self.answer_upgrade(&upgrade, answer, env, sink);
            }
            Err(error) => self.respond(refusal(error), false, env),
        }
    }

    fn answer_http(&mut self, request: &Request<'_>, env: &mut Env, sink: &mut impl Sink<D>) {
        self.take_forwarded(request, env);
        let head_only = request.method() == "HEAD";
        let has_body = request.header("Transfer-Encoding").is_some()
            || request
                .header_values("Content-Length")
                .any(|len| len != b"0");
        let no_host = request.minor_version() > 0 && request.only_header("Host").is_none();
        let response = if !head_only && request.method() != "GET" {
            with_header(Response::text(405), "Allow", "GET, HEAD")
        } else if has_body || no_host {
            Response::text(400)
        } else if env.health_path.as_deref() == Some(request.path()) {
            Response::text(if env.draining { 503 } else { 200 })
        } else {
            sink.http(request)
        };
        self.respond(response, head_only, env);
    }

    /// A request, and what is known of it.
    fn opening<'a>(&self, request: &'a UpgradeRequest<'a>, env: &'a Env) -> Opening<'a> {
        let route = env.route(self.state.route).route.pattern();
        let found = route.and_then(|_| env.router.at(request.request().path()).ok());
        Opening {
            request,
            route,
            params: found.map(|found| found.params),
            client: self.state.extra.as_ref().and_then(|extra| extra.client),
        }
    }

    /// Keeps the request until its answer comes; nothing is read meanwhile.
    fn defer(&mut self, head: &[u8], env: &mut Env) {
        if env.deferred >= env.deferred_max {
            return self.respond(Response::text(503), false, env);
        }
        env.deferred += 1;
        self.state.deferred = true;
        self.state.parked = true;
        self.state.extra_mut().head = Some(head.into());
    }

    /// Takes the answer to a request, which has been deferred.
    pub fn answer_deferred(
        &mut self,
        answer: DeferredAnswer,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        if !self.end_deferral(env) {
            return;
        }
        let head = self.state.extra_mut().head.take().unwrap_or_default();
        if env.draining {
            return self.respond(Response::text(503), false, env);
        }
        let value = match answer {
            DeferredAnswer::Reject(response) => return self.respond(*response, false, env),
            DeferredAnswer::Value(value) => value,
        };
        let mut storage = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
        let request = Request::parse(&head, &mut storage).ok();
        let Some(upgrade) = request.and_then(|request| UpgradeRequest::check(request).ok()) else {
            unreachable!("the head was checked before");
        };
        let answer = {
            let opening = self.opening(&upgrade, env);
            sink.deferred(&opening, value).answer
        };
        if matches!(answer, Answer::Defer) {
            return self.defer(&head, env);
        }
        self.answer_upgrade(&upgrade, answer, env, sink);
        // What came along with the request.
        if let Some(partial) = &mut self.partial {
            let mut early = mem::take(&mut partial.tail);
            self.release_partial(env);
            self.receive_early(&mut early, env, sink);
            env.pool.put(early);
        }
    }

    /// Goes on reading; says whether an answer was owed.
    fn end_deferral(&mut self, env: &mut Env) -> bool {
        if !mem::take(&mut self.state.deferred) {
            return false;
        }
        env.deferred -= 1;
        self.state.parked = false;
        self.state.phase == Phase::Handshake
    }

    /// The time for a deferred answer is over; false if there is none.
    pub(super) fn give_deferral_up(&mut self, env: &mut Env) -> bool {
        let owed = self.end_deferral(env);
        if owed {
            self.clear_partial(env);
            self.respond(Response::text(503), false, env);
        }
        owed
    }

    fn answer_upgrade(
        &mut self,
        request: &UpgradeRequest<'_>,
        answer: Answer<D>,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        let (data, wanted, headers) = match answer {
            Answer::Accept {
                data,
                subprotocol,
                headers,
            } => (data, subprotocol, headers),
            Answer::Reject(response) => return self.respond(response, false, env),
            Answer::Defer => unreachable!("it has been looked for"),
        };
        // Before anything of the user's is called that may panic.
        self.data = Some(data);
        // RFC 6455 §4.2.2: one that the client has offered, or none.
        let spoken = &env.route(self.state.route).route.subprotocols;
        let chosen = match &wanted {
            Some(name) => Some(name.as_ref()).filter(|name| is_offered(request, name)),
            None => choose_subprotocol(request, spoken),
        };
        self.state.set_subprotocol(chosen, env);
        let deflate = self.state.accept_deflate(request, env);
        let mut head = env.take_scratch();
        let subprotocol = self.state.subprotocol(env);
        let (accept_key, extensions) = (request.accept_key(), deflate.as_deref());
        handshake::write_accept(&mut head, &accept_key, subprotocol, extensions, &headers);
        self.push_head(&head, env);
        env.scratch = head;
        self.open(env, sink);
    }

    /// The handshake is over, and the handler is told.
    pub(super) fn open(&mut self, env: &mut Env, sink: &mut impl Sink<D>) {
        self.state.phase = Phase::Open;
        self.state.delivers = self.delivers_straight(env);
        self.state.set_sends_straight(env);
        self.state.was_open = true;
        self.state.owes_close = true;
        if let Some(output) = self.output(env) {
            sink.open(output);
        }
    }

    /// Answers with plain HTTP, the last thing that is sent.
    pub(super) fn respond(&mut self, response: Response, head_only: bool, env: &mut Env) {
        env.metrics.http_responses.add(1);
        let mut head = env.take_scratch();
        response.write_head(&mut head);
        let queue = self.push_head(&head, env);
        if !head_only {
            // No frame either.
            queue.push_tail(guarded(response.body_bytes().clone()));
        }
        env.scratch = head;
        self.state.phase = Phase::Lingering;
    }

    /// Queues a head, which is no message: it is not counted.
    pub(super) fn push_head(&mut self, head: &[u8], env: &mut Env) -> &mut SendQueue {
        let queue = self
            .state
            .queue
            .get_or_insert_with(|| env.pool.take_queue());
        queue.push_head(head, &mut env.pool);
        queue
    }
}

fn is_offered(request: &UpgradeRequest<'_>, name: &str) -> bool {
    request.subprotocols().any(|offer| offer == name)
}

/// The first that is spoken and was offered.
pub(super) fn choose_subprotocol<'s>(
    request: &UpgradeRequest<'_>,
    spoken: &'s [String],
) -> Option<&'s str> {
    let mut spoken = spoken.iter().map(String::as_str);
    spoken.find(|name| is_offered(request, name))
}

pub(super) fn is_origin_allowed(request: &Request<'_>, policy: &OriginPolicy) -> bool {
    let mut origins = request.header_values("Origin");
    let patterns = match policy {
        OriginPolicy::Any => return true,
        OriginPolicy::Fn(check) => return check(request),
        OriginPolicy::List(patterns) => patterns.as_slice(),
        OriginPolicy::SameHost => &[],
    };
    match (origins.next(), origins.next()) {
        (None, _) => true,
        (Some(origin), None) => {
            let host = request.only_header("Host").unwrap_or_default();
            let matches = |pattern: &String| handshake::origin_matches(pattern, origin);
            handshake::is_same_host(origin, host) || patterns.iter().any(matches)
        }
        (Some(_), Some(_)) => false,
    }
}

pub(super) fn refusal(error: HandshakeError) -> Response {
    let body = format!("{error}\n");
    let response = Response::new(error.status()).body("text/plain", body);
    match error {
        // RFC 6455 §4.2.2: the versions that the server speaks.
        HandshakeError::Version | HandshakeError::Upgrade => {
            with_header(response, "Sec-WebSocket-Version", "13").offer_upgrade()
        }
        HandshakeError::Method => with_header(response, "Allow", "GET"),
        _ => response,
    }
}

fn with_header(response: Response, name: &str, value: &str) -> Response {
    response
        .header(name, value)
        .expect("names and values here are constants")
}
