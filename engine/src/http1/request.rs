use core::fmt;

use super::list_items;

/// The most headers that any configuration can allow.
pub const HEADER_COUNT_MAX: usize = 128;

/// A request head: borrowed from the receive buffer for as long as a callback runs.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    method: &'a str,
    target: &'a str,
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
        let mut lines = memchr::memchr_iter(b'\n', head);
        if lines.any(|index| index == 0 || head[index - 1] != b'\r') {
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
            (Some(method), Some(target), Some(minor_version)) => Ok(Self {
                method,
                target,
                minor_version,
                headers: parsed.headers,
            }),
            _ => Err(RequestError::Malformed),
        }
    }

    /// A head that somebody else has parsed, with HTTP/1.`minor_version`.
    pub fn from_parts(
        method: &'a str,
        target: &'a str,
        minor_version: u8,
        headers: &'a [httparse::Header<'a>],
    ) -> Self {
        Self {
            method,
            target,
            minor_version,
            headers,
        }
    }

    /// The method, as sent: `GET`.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The request target, as sent: `/chat?room=1`.
    pub fn target(&self) -> &'a str {
        self.target
    }

    /// The target up to its query: `/chat`.
    pub fn path(&self) -> &'a str {
        self.target.split('?').next().unwrap_or(self.target)
    }

    /// What follows the first `?` of the target.
    pub fn query(&self) -> Option<&'a str> {
        self.target.split_once('?').map(|(_, query)| query)
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
