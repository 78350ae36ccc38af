//! Up to the answer of the request head, as a server.

use std::fmt;
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

/// Characters of a peer's text that go into a line of the log.
const LOGGED_CHARS_MAX: usize = 128;

/// A head, and what came behind it.
pub(super) enum Collected<'i> {
    /// It lies whole in the input.
    Here(&'i [u8], &'i mut [u8]),
    /// It came in pieces: put together here, so long.
    Kept(Buffer, usize, &'i mut [u8]),
    /// It is longer than the limit: its beginning.
    TooLong(Buffer),
    /// It cannot become a head, whatever follows: its beginning.
    Malformed(Buffer),
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
            return self.refuse(Response::text(400), &"not HTTP", env);
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
            Collected::TooLong(head) => {
                self.state.note_method(&head);
                let reason = format!("head over {} bytes", env.limits().head_len_max);
                // A head without the end of its first line: it is the target that is too long.
                let is_one_line = memchr::memchr(b'\n', &head).is_none();
                let status = if is_one_line { 414 } else { 431 };
                env.pool.put(head);
                self.refuse(Response::text(status), &reason, env);
            }
            Collected::Malformed(head) => {
                self.state.note_method(&head);
                env.pool.put(head);
                self.refuse(Response::text(400), &"a line ends with LF alone", env);
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
        let is_client = self.state.role == Role::Client;
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
            None if http1::has_bare_lf(tail, kept)
                || is_client && !http1::may_be_response(tail) =>
            {
                let head = mem::take(tail);
                self.release_partial(env);
                Collected::Malformed(head)
            }
            None if tail.len() == len_max => {
                let head = mem::take(tail);
                self.release_partial(env);
                Collected::TooLong(head)
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
        self.state.note_method(head);
        let mut storage = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
        let storage = &mut storage[..env.limits().header_count_max];
        let request = match Request::parse(head, storage) {
            Ok(request) => request,
            Err(error) => {
                let status = match error {
                    RequestError::TooManyHeaders => 431,
                    RequestError::Malformed => 400,
                };
                return self.refuse(Response::text(status), &error, env);
            }
        };
        if !handshake::is_upgrade_attempt(&request) {
            return self.answer_http(&request, env, sink);
        }
        if env.draining {
            return self.refuse(Response::text(503), &"draining", env);
        }
        // A path of no route is the builder's, or nobody's.
        match env.find_route(request.path()) {
            Some(route) => self.state.route = route,
            None => {
                let reason = format!("no route for {}", for_log(request.path().as_bytes()));
                return self.refuse(Response::text(404), &reason, env);
            }
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
            Err(error) => self.refuse(refusal(error), &Refused(error, &request), env),
        }
    }

    fn answer_http(&mut self, request: &Request<'_>, env: &mut Env, sink: &mut impl Sink<D>) {
        self.take_forwarded(request, env);
        let no_host = request.minor_version() > 0 && request.host().is_none();
        let response = if !self.state.is_head_only() && request.method() != "GET" {
            with_header(Response::text(405), "Allow", "GET, HEAD")
        } else if request.has_body() || no_host {
            Response::text(400)
        } else if env.health_path.as_deref() == Some(request.path()) {
            Response::text(if env.draining { 503 } else { 200 })
        } else {
            sink.http(request)
        };
        self.respond(response, env);
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
            let reason = format!("{} answers are deferred", env.deferred);
            return self.refuse(Response::text(503), &reason, env);
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
            return self.refuse(Response::text(503), &"draining", env);
        }
        let value = match answer {
            DeferredAnswer::Reject(response) => {
                return self.refuse(*response, &BY_HANDLER, env);
            }
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
            self.refuse(
                Response::text(503),
                &"the deferred answer did not come",
                env,
            );
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
            Answer::Reject(response) => return self.refuse(response, &BY_HANDLER, env),
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
        let headers = match http1::has_header(&headers, "Date") {
            true => headers,
            false => format!("Date: {}\r\n{headers}", env.date()),
        };
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

    /// Refuses an upgrade, or bytes that are no request. The reason goes to the log: it is the
    /// operator who has to find out why clients do not connect.
    pub(super) fn refuse(&mut self, response: Response, reason: &dyn fmt::Display, env: &mut Env) {
        log::debug!("refusing a handshake with {}: {reason}", response.status());
        self.respond(response, env);
    }

    /// Answers with plain HTTP, the last thing that is sent.
    pub(super) fn respond(&mut self, response: Response, env: &mut Env) {
        env.metrics.http_responses.add(1);
        let mut head = env.take_scratch();
        response.write_head(&env.date(), &mut head);
        // RFC 9110 §9.3.2: HEAD never gets a body.
        let has_body = response.may_have_body() && !self.state.is_head_only();
        let queue = self.push_head(&head, env);
        if has_body {
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

/// Reason of a refusal that the handler has decided on.
const BY_HANDLER: &str = "the handler rejects it";

/// A broken rule, and the request's headers that it is about.
struct Refused<'a>(HandshakeError, &'a Request<'a>);

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error, request) = self;
        error.fmt(f)?;
        let names: &[&str] = match error {
            HandshakeError::Body => &["Content-Length", "Transfer-Encoding"],
            HandshakeError::Connection => &["Connection"],
            HandshakeError::Extensions => &["Sec-WebSocket-Extensions"],
            HandshakeError::Host => &["Host"],
            HandshakeError::Origin => &["Origin", "Host"],
            HandshakeError::Subprotocol => &["Sec-WebSocket-Protocol"],
            HandshakeError::Upgrade => &["Upgrade"],
            HandshakeError::Version => &["Sec-WebSocket-Version"],
            _ => &[],
        };
        for name in names {
            for value in request.header_values(name) {
                write!(f, "; {name}: {}", for_log(value))?;
            }
        }
        Ok(())
    }
}

/// A peer's text for one line of the log: cut, and without control characters.
fn for_log(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let cut = text.chars().take(LOGGED_CHARS_MAX);
    cut.flat_map(char::escape_debug).collect()
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
            let host = request.host().unwrap_or_default();
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
