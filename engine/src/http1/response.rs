use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use super::HEADER_COUNT_MAX;
use super::has_bare_lf;
use super::is_header_value;
use super::is_token;

/// A plain HTTP answer, with a body from memory. The connection closes behind it.
///
/// ```
/// use sockeye::Response;
/// let page = Response::new(200).body("text/html; charset=utf-8", "<!doctype html>…");
/// ```
#[derive(Clone, Debug)]
pub struct Response {
    status: u16,
    /// Header lines, each with its line end; checked when they were added.
    headers: String,
    body: Bytes,
}

/// A header name that is no token, or a value with bytes that no value may hold: CR, LF, NUL
/// and other control characters (RFC 9110 §5.5), and bytes outside ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid HTTP header")]
pub struct InvalidHeader;

impl Response {
    /// An answer with this status (100 to 599, others become 500), without a body.
    pub fn new(status: u16) -> Self {
        Self {
            status: if (100..600).contains(&status) {
                status
            } else {
                500
            },
            headers: String::new(),
            body: Bytes::new(),
        }
    }

    /// A short text for a person: the status and its name.
    pub fn text(status: u16) -> Self {
        let phrase = reason_phrase(status);
        Self::new(status).body("text/plain", alloc::format!("{status} {phrase}\n"))
    }

    /// Sets the body. A content type that is no valid header value is left out.
    #[must_use]
    pub fn body(self, content_type: &str, body: impl Into<Bytes>) -> Self {
        let mut response = self;
        response.body = body.into();
        response
            .clone()
            .header("Content-Type", content_type)
            .unwrap_or(response)
    }

    /// Adds a header. One that may stand only once, such as `Content-Type`, takes the place of an
    /// earlier one of its name.
    ///
    /// # Errors
    /// [`InvalidHeader`], so that no value can add a line of its own; also for `Content-Length`,
    /// `Transfer-Encoding` and `Connection`, which the engine writes.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, InvalidHeader> {
        let own = ["Content-Length", "Transfer-Encoding", "Connection"];
        if own.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            return Err(InvalidHeader);
        }
        set_header(&mut self.headers, name, value)?;
        Ok(self)
    }

    /// Adds what a 426 must say: which protocol is required (RFC 9110 §15.5.22, §7.8).
    #[must_use]
    pub fn offer_upgrade(mut self) -> Self {
        self.headers
            .push_str("Upgrade: websocket\r\nConnection: Upgrade\r\n");
        self
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body.
    pub fn body_bytes(&self) -> &Bytes {
        &self.body
    }

    /// The headers that have been set, in their order.
    pub fn header_lines(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.headers.split_terminator("\r\n");
        lines.filter_map(|line| line.split_once(": "))
    }

    /// Whether its status allows a body: all but 1xx, 204 and 304 do (RFC 9110 §6.4.1).
    pub fn may_have_body(&self) -> bool {
        !matches!(self.status, 100..200 | 204 | 304)
    }

    /// Appends the head to `output`. `date` is the value of `Date` (RFC 9110 §6.6.1), unless the
    /// response has one of its own.
    pub fn write_head(&self, date: &str, output: &mut Vec<u8>) {
        let phrase = reason_phrase(self.status);
        let mut head = alloc::format!("HTTP/1.1 {} {phrase}\r\n{}", self.status, self.headers);
        if !has_header(&self.headers, "Date") {
            head += &alloc::format!("Date: {date}\r\n");
        }
        // RFC 9110 §8.6: where no body is allowed there is no length either.
        if self.may_have_body() {
            head += &alloc::format!("Content-Length: {}\r\n", self.body.len());
        }
        head.push_str("Connection: close\r\n\r\n");
        output.extend_from_slice(head.as_bytes());
    }
}

/// Appends a header line, if it can be one line.
pub(crate) fn push_header(
    lines: &mut String,
    name: &str,
    value: &str,
) -> Result<(), InvalidHeader> {
    if !is_token(name.as_bytes()) || !is_header_value(value.as_bytes()) {
        return Err(InvalidHeader);
    }
    lines.push_str(name);
    lines.push_str(": ");
    lines.push_str(value);
    lines.push_str("\r\n");
    Ok(())
}

/// Appends a header line; one that may stand only once takes the place of an earlier one.
pub(crate) fn set_header(lines: &mut String, name: &str, value: &str) -> Result<(), InvalidHeader> {
    let mut line = String::new();
    push_header(&mut line, name, value)?;
    if stands_once(name) && has_header(lines, name) {
        let is_other = |line: &&str| {
            let own = line.split(':').next().unwrap_or_default();
            !own.eq_ignore_ascii_case(name)
        };
        *lines = lines.split_inclusive('\n').filter(is_other).collect();
    }
    lines.push_str(&line);
    Ok(())
}

/// Whether a header may stand only once, for its value is no list (RFC 9110 §5.3).
pub(crate) fn stands_once(name: &str) -> bool {
    const ONCE: [&str; 20] = [
        "Age",
        "Authorization",
        "Content-Location",
        "Content-Range",
        "Content-Type",
        "Cookie",
        "Date",
        "ETag",
        "Expires",
        "From",
        "Host",
        "Last-Modified",
        "Location",
        "Max-Forwards",
        "Origin",
        "Proxy-Authorization",
        "Referer",
        "Retry-After",
        "Server",
        "User-Agent",
    ];
    ONCE.iter().any(|once| once.eq_ignore_ascii_case(name))
}

/// Whether header lines hold a header of this name.
pub(crate) fn has_header(lines: &str, name: &str) -> bool {
    let mut names = lines.lines().filter_map(|line| line.split(':').next());
    names.any(|own| own.eq_ignore_ascii_case(name))
}

/// The name of a status code (RFC 9110 §15, RFC 6585); empty where it has none here.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// A response head, as a client receives it.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    /// The status code.
    pub status: u16,
    /// Minor version: 1 for HTTP/1.1.
    pub minor_version: u8,
    headers: &'a [httparse::Header<'a>],
}

impl<'a> ResponseHead<'a> {
    /// Parses a whole head; `None` if it is malformed or has more headers than `storage`.
    pub fn parse(head: &'a [u8], storage: &'a mut [httparse::Header<'a>]) -> Option<Self> {
        // As in a request: what ends a line here must end it for everybody.
        if has_bare_lf(head, 0) {
            return None;
        }
        let mut parsed = httparse::Response::new(storage);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(_)) => Some(Self {
                status: parsed.code?,
                minor_version: parsed.version?,
                headers: parsed.headers,
            }),
            _ => None,
        }
    }

    /// The values of every header of this name, without case.
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    }

    /// The value of the header of this name, if there is exactly one.
    pub fn only_header(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.header_values(name);
        let only = values.next();
        if values.next().is_some() { None } else { only }
    }
}

/// Whether bytes can be the beginning of a response (RFC 9112 §4). Other protocols begin with a
/// greeting of their own, and then wait.
pub fn may_be_response(bytes: &[u8]) -> bool {
    const START: &[u8] = b"HTTP/1.";
    let len = bytes.len().min(START.len());
    bytes[..len] == START[..len]
}

/// The value of the first header of this name in a whole response head, without case; bytes
/// that are not UTF-8 are replaced.
pub(crate) fn response_header(head: &[u8], name: &str) -> Option<String> {
    let mut storage = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
    let head = ResponseHead::parse(head, &mut storage)?;
    let value = head.header_values(name).next()?;
    Some(String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

    #[test]
    fn head_is_written_with_length_and_close() {
        let response = Response::new(404)
            .header("X-A", "b")
            .expect("valid")
            .body("text/plain", "gone");
        let mut head = Vec::new();
        response.write_head(DATE, &mut head);
        assert_eq!(
            String::from_utf8(head).expect("ASCII"),
            "HTTP/1.1 404 Not Found\r\nX-A: b\r\nContent-Type: text/plain\r\n\
             Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
             Content-Length: 4\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn head_of_a_status_without_body_has_no_length() {
        for status in [101, 204, 304] {
            let mut head = Vec::new();
            Response::new(status)
                .body("a/b", "c")
                .write_head(DATE, &mut head);
            let head = String::from_utf8(head).expect("ASCII");
            assert!(!head.contains("Content-Length"), "{head}");
        }
    }

    #[test]
    fn headers_that_stand_once_are_replaced_or_refused() {
        let lines = |response: Response| {
            let lines = response.header_lines();
            lines
                .map(|(name, value)| alloc::format!("{name}: {value}"))
                .collect::<Vec<_>>()
        };
        let set = |response: Response, name: &str, value: &str| {
            response.header(name, value).expect("valid")
        };
        let page = || Response::new(200).body("a/b", "c");
        assert_eq!(
            lines(set(page(), "content-type", "d/e")),
            ["content-type: d/e"]
        );
        let page = set(Response::new(200), "Content-Type", "d/e").body("a/b", "c");
        assert_eq!(lines(page.clone()), ["Content-Type: a/b"]);
        assert_eq!(lines(page.clone().body("x/y", "z")), ["Content-Type: x/y"]);
        let both = set(set(page, "Set-Cookie", "a=b"), "Set-Cookie", "c=d");
        assert_eq!(lines(both)[1..], ["Set-Cookie: a=b", "Set-Cookie: c=d"]);
        for name in [
            "Content-Length",
            "content-length",
            "Transfer-Encoding",
            "connection",
        ] {
            assert!(Response::new(200).header(name, "0").is_err(), "{name}");
        }
    }

    #[test]
    fn date_of_the_response_stands_alone() {
        let own = Response::new(200).header("date", "x").expect("valid");
        let mut head = Vec::new();
        own.write_head(DATE, &mut head);
        let head = String::from_utf8(head).expect("ASCII").to_lowercase();
        assert_eq!(head.matches("date:").count(), 1, "{head}");
    }

    #[test]
    fn split_is_impossible_to_emit() {
        for value in ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b", "a\u{7f}", "é"] {
            assert_eq!(
                Response::new(200).header("X", value).err(),
                Some(InvalidHeader),
                "{value:?}"
            );
            let mut head = Vec::new();
            Response::new(200)
                .body(value, "")
                .write_head(DATE, &mut head);
            assert!(!String::from_utf8_lossy(&head).contains("Content-Type"));
        }
        for name in ["", "a b", "a:", "a\r\n", "é"] {
            assert_eq!(
                Response::new(200).header(name, "v").err(),
                Some(InvalidHeader)
            );
        }
    }
}
