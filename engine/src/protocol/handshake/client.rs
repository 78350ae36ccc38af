use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use base64::Engine;

use crate::http1;
use crate::http1::InvalidHeader;
use crate::http1::ResponseHead;
use crate::http1::has_header;
use crate::http1::list_items;
use crate::http1::push_header;
use crate::http1::reason_phrase;
use crate::http1::stands_once;

use super::BASE64;
use super::DeflateParams;
use super::ExtensionError;
use super::ExtensionOffers;
use super::accept_key;
use super::is_own_header;

/// A client's request for a WebSocket (RFC 6455 §4.1).
#[derive(Clone, Debug, Default)]
pub struct ClientRequest<'a> {
    /// `Host`: the authority, with its port unless that is the default.
    pub host: &'a str,
    /// The request target: path and query.
    pub target: &'a str,
    /// 16 bytes from a random source, new for each connection.
    pub nonce: [u8; 16],
    /// `Origin`, which browsers send.
    pub origin: Option<&'a str>,
    /// Offered subprotocols, the preferred one first.
    pub subprotocols: &'a [&'a str],
    /// permessage-deflate is offered with these parameters (RFC 7692 §7.1).
    pub deflate: Option<DeflateParams>,
    /// The value of a `Sec-WebSocket-Extensions` of the caller's own.
    pub extensions: Option<&'a str>,
    /// Further headers.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Why an answer is no upgrade (RFC 6455 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResponseError {
    /// `Sec-WebSocket-Accept` is not that of the key.
    #[error("wrong Sec-WebSocket-Accept")]
    AcceptKey,
    /// No `Connection: Upgrade`.
    #[error("no Connection: Upgrade")]
    Connection,
    /// An extension that was not offered, or not with these parameters.
    #[error("{0}")]
    Extensions(ExtensionError),
    /// The server switched protocols in HTTP/1.0, which has no upgrades (RFC 9110 §7.8).
    #[error("HTTP version before 1.1")]
    HttpVersion,
    /// Not the grammar of RFC 9112, or more headers than the limit.
    #[error("malformed response head")]
    Malformed,
    /// The first bytes are no response of HTTP/1: something else listens there.
    #[error("not an HTTP/1.1 response")]
    NotHttp,
    /// Any status but 101.
    #[error("status {0}")]
    Status(u16),
    /// A subprotocol that was not offered.
    #[error("subprotocol that was not offered")]
    Subprotocol,
    /// A head longer than the limit.
    #[error("response head too long")]
    TooLong,
    /// `Upgrade` is not `websocket`.
    #[error("no Upgrade: websocket")]
    Upgrade,
}

impl ResponseError {
    /// Returns why bytes are no response head.
    #[cfg(feature = "std")]
    pub(crate) fn not_a_head(bytes: &[u8]) -> Self {
        match http1::may_be_response(bytes) {
            true => Self::Malformed,
            false => Self::NotHttp,
        }
    }
}

impl ClientRequest<'_> {
    /// What the answer has to hold.
    pub fn expected(&self) -> ExpectedResponse {
        ExpectedResponse {
            accept_key: accept_key(self.key().as_bytes()),
            subprotocols: self.subprotocols.iter().map(|&name| name.into()).collect(),
            deflate: self.deflate,
            extensions_offered: self.extensions.is_some(),
        }
    }

    /// The value of `Sec-WebSocket-Key`.
    pub fn key(&self) -> String {
        BASE64.encode(self.nonce)
    }

    /// Appends the head to `output`.
    ///
    /// # Errors
    /// [`InvalidHeader`] if any part cannot stand in its line, or a further header is one of those
    /// above, or there twice though its value is no list; nothing is written then.
    pub fn write(&self, output: &mut Vec<u8>) -> Result<(), InvalidHeader> {
        let target_is_valid = |&byte: &u8| byte.is_ascii_graphic();
        if self.target.is_empty() || !self.target.as_bytes().iter().all(target_is_valid) {
            return Err(InvalidHeader);
        }
        let mut head = alloc::format!("GET {} HTTP/1.1\r\n", self.target);
        push_header(&mut head, "Host", self.host)?;
        push_header(&mut head, "Upgrade", "websocket")?;
        push_header(&mut head, "Connection", "Upgrade")?;
        push_header(&mut head, "Sec-WebSocket-Key", &self.key())?;
        push_header(&mut head, "Sec-WebSocket-Version", "13")?;
        if let Some(origin) = self.origin {
            push_header(&mut head, "Origin", origin)?;
        }
        if !self.subprotocols.is_empty() {
            let offered = self.subprotocols.join(", ");
            push_header(&mut head, "Sec-WebSocket-Protocol", &offered)?;
        }
        if let Some(deflate) = &self.deflate {
            push_header(&mut head, "Sec-WebSocket-Extensions", &deflate.offer())?;
        }
        if let Some(extensions) = self.extensions {
            push_header(&mut head, "Sec-WebSocket-Extensions", extensions)?;
        }
        for (name, value) in self.headers {
            if is_own_header(name) || stands_once(name) && has_header(&head, name) {
                return Err(InvalidHeader);
            }
            push_header(&mut head, name, value)?;
        }
        head.push_str("\r\n");
        output.extend_from_slice(head.as_bytes());
        Ok(())
    }
}

/// What the answer to a [`ClientRequest`] has to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedResponse {
    accept_key: [u8; 28],
    subprotocols: Vec<String>,
    deflate: Option<DeflateParams>,
    extensions_offered: bool,
}

impl ExpectedResponse {
    /// Checks an answer; gives the subprotocol that the server chose.
    ///
    /// # Errors
    /// The first rule of RFC 6455 §4.1 that the answer breaks.
    pub fn check<'a>(&self, head: &ResponseHead<'a>) -> Result<Option<&'a str>, ResponseError> {
        if head.status != 101 {
            return Err(ResponseError::Status(head.status));
        }
        if head.minor_version < 1 {
            return Err(ResponseError::HttpVersion);
        }
        let upgrade = head.only_header("Upgrade").unwrap_or_default();
        if !upgrade.eq_ignore_ascii_case(b"websocket") {
            return Err(ResponseError::Upgrade);
        }
        let mut connection = head.header_values("Connection").flat_map(list_items);
        if !connection.any(|item| item.eq_ignore_ascii_case(b"upgrade")) {
            return Err(ResponseError::Connection);
        }
        if head.only_header("Sec-WebSocket-Accept") != Some(&self.accept_key[..]) {
            return Err(ResponseError::AcceptKey);
        }
        if !self.extensions_offered {
            self.check_deflate(head)?;
        }
        let mut chosen = head.header_values("Sec-WebSocket-Protocol");
        match (chosen.next(), chosen.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => match core::str::from_utf8(value) {
                Ok(name) if self.subprotocols.iter().any(|offered| offered == name) => {
                    Ok(Some(name))
                }
                _ => Err(ResponseError::Subprotocol),
            },
            _ => Err(ResponseError::Subprotocol),
        }
    }
}

impl ExpectedResponse {
    /// What has been agreed of permessage-deflate, if it was offered and no other extension was:
    /// what other extensions mean is the caller's business.
    ///
    /// # Errors
    /// [`ResponseError::Extensions`]: an extension that was not offered, or permessage-deflate
    /// with parameters that break RFC 7692 §7.1.
    pub fn check_deflate(
        &self,
        head: &ResponseHead<'_>,
    ) -> Result<Option<DeflateParams>, ResponseError> {
        let mut agreed = None;
        for value in head.header_values("Sec-WebSocket-Extensions") {
            let answers = ExtensionOffers::parse(value);
            let malformed = ResponseError::Extensions(ExtensionError::Malformed);
            for answer in answers.ok_or(malformed)? {
                let checked = match (self.deflate, agreed) {
                    (None, _) => Err(ExtensionError::NotOffered),
                    (Some(_), Some(_)) => Err(ExtensionError::Repeated),
                    (Some(offered), None) => offered.check_answer(&answer),
                };
                agreed = Some(checked.map_err(ResponseError::Extensions)?);
            }
        }
        Ok(agreed)
    }
}

/// Checks the answer to `request`; gives the subprotocol that the server chose.
///
/// # Errors
/// The first rule of RFC 6455 §4.1 that the answer breaks.
pub fn check_response<'a>(
    head: &ResponseHead<'a>,
    request: &ClientRequest<'_>,
) -> Result<Option<&'a str>, ResponseError> {
    request.expected().check(head)
}

/// An answer that is not 101: what the server said instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub status: u16,
    /// The head, as received, its empty line included.
    pub head: Vec<u8>,
    /// The beginning of the body: what came along with the head, or what a blocking client
    /// has read of it; at most [`Refusal::BODY_LEN_MAX`] bytes.
    pub body: Vec<u8>,
}

impl Refusal {
    /// The most of a body that is kept.
    pub const BODY_LEN_MAX: usize = 1024;

    /// The value of the first header of this name, without case: `Location`, `Retry-After`.
    /// Bytes that are not UTF-8 are replaced.
    pub fn header(&self, name: &str) -> Option<String> {
        http1::response_header(&self.head, name)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phrase = reason_phrase(self.status);
        write!(f, "the server answered {} {phrase}", self.status)
    }
}
