use core::fmt;

use super::Authority;
use super::has_bare_lf;
use super::list_items;

/// The most headers that any configuration can allow.
pub const HEADER_COUNT_MAX: usize = 128;

/// A request head: borrowed from the receive buffer for as long as a callback runs.
///
/// A target in absolute form (`http://example.com/chat`, RFC 9112 §3.2.2) is taken apart here, once:
/// [`path`](Self::path), [`query`](Self::query) and [`host`](Self::host) do not depend on the form.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    method: &'a str,
    target: &'a str,
    /// Authority of a target in absolute form.
    authority: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
    minor_version: u8,
    headers: &'a [httparse::Header<'a>],
}

/// Why bytes are not a request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Not the grammar of RFC 9112.
    #[error("malformed request head")]
    Malformed,
    /// More headers than the limit.
    #[error("too many headers")]
    TooManyHeaders,
}

impl<'a> Request<'a> {
    /// Parses a whole head.
    ///
    /// # Errors
    /// [`RequestError::TooManyHeaders`] if `storage` is too short, else
    /// [`RequestError::Malformed`].
    pub fn parse(
        head: &'a [u8],
        storage: &'a mut [httparse::Header<'a>],
    ) -> Result<Self, RequestError> {
        // RFC 9112 §2.2 lets a recipient take a bare LF for a line end; an intermediary that
        // does not would see another request than we do.
        if has_bare_lf(head, 0) {
            return Err(RequestError::Malformed);
        }
        let mut parsed = httparse::Request::new(storage);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(RequestError::Malformed),
            Err(httparse::Error::TooManyHeaders) => return Err(RequestError::TooManyHeaders),
            Err(_) => return Err(RequestError::Malformed),
        }
        match (parsed.method, parsed.path, parsed.version) {
            (Some(method), Some(target), Some(minor_version)) => {
                Self::from_parts(method, target, minor_version, parsed.headers)
            }
            _ => Err(RequestError::Malformed),
        }
    }

    /// A head that was parsed elsewhere, with HTTP/1.`minor_version`.
    ///
    /// # Errors
    /// [`RequestError::Malformed`] if the target has characters outside ASCII, or is in absolute
    /// form and its scheme is not `http`, `https`, `ws` or `wss`, or its authority is not
    /// `host[:port]`.
    pub fn from_parts(
        method: &'a str,
        target: &'a str,
        minor_version: u8,
        headers: &'a [httparse::Header<'a>],
    ) -> Result<Self, RequestError> {
        // RFC 9112 §3.2: a target is a URI reference, which is ASCII.
        let split = split_target(target).filter(|_| target.is_ascii());
        let (authority, path_and_query) = split.ok_or(RequestError::Malformed)?;
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        Ok(Self {
            method,
            target,
            authority,
            // RFC 9112 §3.2.1: an empty path is "/".
            path: if path.is_empty() { "/" } else { path },
            query,
            minor_version,
            headers,
        })
    }

    /// The method, as sent: `GET`.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The request target, as sent: `/chat?room=1`, or `http://example.com/chat?room=1`.
    pub fn target(&self) -> &'a str {
        self.target
    }

    /// The path of the target: `/chat`.
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// The part of the target after its first `?`.
    pub fn query(&self) -> Option<&'a str> {
        self.query
    }

    /// Host and port that the request is for: those of a target in absolute form, otherwise the
    /// value of `Host` (RFC 9112 §3.2.2). `None` without a valid `Host`, which every request
    /// of HTTP/1.1 must have once, whatever the form of its target.
    pub fn host(&self) -> Option<&'a [u8]> {
        let host = self.only_header("Host")?;
        // RFC 9112 §3.2: empty where the target has no authority. RFC 3986 §3.2.3: a port may be
        // empty.
        let with_port = host.strip_suffix(b":").unwrap_or(host);
        if !host.is_empty() && Authority::parse(with_port).is_none() {
            return None;
        }
        Some(self.authority.map_or(host, str::as_bytes))
    }

    /// Whether a body follows the head, or might for another recipient: a transfer coding, or a
    /// `Content-Length` that is not zero, not a number, or there twice (RFC 9112 §6.3). A length of
    /// zero is no body (RFC 9110 §8.6).
    pub fn has_body(&self) -> bool {
        let is_zero = |len: &[u8]| !len.is_empty() && len.iter().all(|&digit| digit == b'0');
        let mut lengths = self.header_values("Content-Length");
        self.header("Transfer-Encoding").is_some()
            || lengths.next().is_some_and(|len| !is_zero(len))
            || lengths.next().is_some()
    }

    /// The minor version: 1 for HTTP/1.1.
    pub fn minor_version(&self) -> u8 {
        self.minor_version
    }

    /// All headers in order, names as sent.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.headers
            .iter()
            .map(|header| (header.name, header.value))
    }

    /// The values of every header of this name; names compare without case (RFC 9110 §5.1).
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers()
            .filter(move |(header, _)| header.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.header_values(name).next()
    }

    /// The value of the header of this name, if there is exactly one.
    pub fn only_header(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.header_values(name);
        let only = values.next();
        if values.next().is_some() { None } else { only }
    }

    /// Whether a list header of this name holds `token`, without case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.header_values(name)
            .flat_map(list_items)
            .any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
    }
}

/// The authority of a target in absolute form, and the rest of the target. Targets in other forms
/// are returned whole. `None` if the absolute form is not one of this protocol.
fn split_target(target: &str) -> Option<(Option<&str>, &str)> {
    if target.starts_with('/') {
        return Some((None, target));
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Some((None, target));
    };
    let schemes = ["http", "https", "ws", "wss"];
    if !schemes.iter().any(|own| scheme.eq_ignore_ascii_case(own)) {
        return None;
    }
    let len = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(len);
    // RFC 9110 §4.2.4: user information in an authority is an error.
    Authority::parse(authority.as_bytes())?;
    Some((Some(authority), rest))
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("target", &self.target)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str, check: impl FnOnce(Result<Request<'_>, RequestError>)) {
        let mut storage = [httparse::EMPTY_HEADER; 3];
        check(Request::parse(head.as_bytes(), &mut storage));
    }

    #[test]
    fn request_has_its_parts() {
        let head = "GET /a/b?c=d HTTP/1.1\r\nHost: h\r\nX: 1, two\r\nx: 3\r\n\r\n";
        parse(head, |request| {
            let request = request.expect("well-formed");
            assert_eq!(request.method(), "GET");
            assert_eq!(request.path(), "/a/b");
            assert_eq!(request.query(), Some("c=d"));
            assert_eq!(request.header("HOST"), Some(&b"h"[..]));
            assert_eq!(request.only_header("host"), Some(&b"h"[..]));
            assert_eq!(request.only_header("x"), None);
            assert!(request.has_token("X", "TWO"));
            assert!(!request.has_token("X", "four"));
        });
    }

    #[test]
    fn absolute_form_has_the_same_path_and_its_own_host() {
        let check = |target: &str, want: Option<(&str, Option<&str>, &str)>| {
            let head = alloc::format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            parse(&head, |request| match want {
                Some((path, query, host)) => {
                    let request = request.unwrap_or_else(|error| panic!("{target}: {error}"));
                    let got = (request.path(), request.query(), request.host());
                    assert_eq!(got, (path, query, Some(host.as_bytes())), "{target}");
                    assert_eq!(request.target(), target);
                }
                None => assert_eq!(request.err(), Some(RequestError::Malformed), "{target}"),
            });
        };
        check("/a?b", Some(("/a", Some("b"), "h")));
        check("http://a/b?c", Some(("/b", Some("c"), "a")));
        check("HTTP://a:80/b", Some(("/b", None, "a:80")));
        check("wss://[::1]:9/", Some(("/", None, "[::1]:9")));
        check("http://a", Some(("/", None, "a")));
        check("https://a?b/c", Some(("/", Some("b/c"), "a")));
        // A URL inside a path or query is no absolute form.
        check("/http://a/b", Some(("/http://a/b", None, "h")));
        check("/?u=http://a/b", Some(("/", Some("u=http://a/b"), "h")));
        check("*", Some(("*", None, "h")));
        for bad in [
            "ftp://a/b",
            "://a/b",
            "http:///b",
            "http://",
            "http://u@a/b",
            "http://u:p@a/b",
            "http://a:x/b",
            "http://a:+80/b",
            "http://a:99999/b",
            "http://[]/b",
            "http://[a]/b",
            "http://[::1/b",
            "/\u{e9}",
            "http://a/\u{e9}",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn host_is_there_once_and_valid() {
        let check = |lines: &str, want: Option<&str>| {
            let head = alloc::format!("GET http://a/ HTTP/1.1\r\n{lines}\r\n");
            parse(&head, |request| {
                let got = request.expect("well-formed").host();
                assert_eq!(got, want.map(str::as_bytes), "{lines}");
            });
        };
        check("Host: b\r\n", Some("a"));
        check("Host:\r\n", Some("a"));
        check("Host: b:\r\n", Some("a"));
        check("", None);
        check("Host: a\r\nHost: a\r\n", None);
        for bad in ["a b", "a/b", "u@a", "a:x", "a:99999", "[]", "[b]", "[::1"] {
            check(&alloc::format!("Host: {bad}\r\n"), None);
        }
    }

    #[test]
    fn zero_length_is_no_body() {
        let check = |lines: &str, want: bool| {
            let head = alloc::format!("GET / HTTP/1.1\r\n{lines}\r\n");
            parse(&head, |request| {
                assert_eq!(request.expect("well-formed").has_body(), want, "{lines}");
            });
        };
        check("", false);
        check("Content-Length: 0\r\n", false);
        check("content-length:\t00 \r\n", false);
        for bad in ["1", "", "+0", "-0", "0x0", "0,0", "0, 0", "0 0", "0;a", "a"] {
            check(&alloc::format!("Content-Length: {bad}\r\n"), true);
        }
        check("Content-Length: 0\r\nContent-Length: 0\r\n", true);
        check("Transfer-Encoding: chunked\r\n", true);
        check("Content-Length: 0\r\nTransfer-Encoding: identity\r\n", true);
    }

    #[test]
    fn bad_heads_are_errors() {
        let bad = |head: &str, want| parse(head, |got| assert_eq!(got.unwrap_err(), want));
        bad("GET / HTTP/1.1\nHost: h\r\n\r\n", RequestError::Malformed);
        bad("GET /\r\n\r\n", RequestError::Malformed);
        bad("GET / HTTP/2.0\r\n\r\n", RequestError::Malformed);
        bad(
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            RequestError::Malformed,
        );
        bad("GET / HTTP/1.1\r\na:1\r\n", RequestError::Malformed);
        let many = "GET / HTTP/1.1\r\na:1\r\nb:2\r\nc:3\r\nd:4\r\n\r\n";
        bad(many, RequestError::TooManyHeaders);
    }
}
