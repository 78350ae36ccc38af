use std::any::Any;
use std::net::SocketAddr;

use crate::http1;
use crate::http1::InvalidHeader;
use crate::http1::Response;
use crate::http1::set_header;
use crate::protocol::handshake::UpgradeRequest;
use crate::protocol::handshake::is_own_header;

/// The answer to a request for a WebSocket.
#[derive(Debug)]
pub struct Upgrade<D> {
    pub(super) answer: Answer<D>,
}

#[derive(Debug)]
pub(super) enum Answer<D> {
    Accept {
        data: D,
        subprotocol: Option<Box<str>>,
        headers: String,
    },
    Reject(Response),
    Defer,
}

/// A request for a WebSocket, and what is known of it.
#[derive(Debug)]
pub struct Opening<'a> {
    /// The request.
    pub request: &'a UpgradeRequest<'a>,
    /// The pattern of its route.
    pub route: Option<&'a str>,
    /// What the pattern's parameters stand for.
    pub params: Option<matchit::Params<'a, 'a>>,
    /// For whom a proxy asks.
    pub client: Option<SocketAddr>,
}

/// What a deferred answer is to be.
#[derive(Debug)]
pub enum DeferredAnswer {
    /// What the handler makes of this value.
    Value(Box<dyn Any + Send>),
    /// This one.
    Reject(Box<Response>),
}

impl<D> Upgrade<D> {
    /// Accepts; `data` is the connection's until the end of `on_close`. The subprotocol is the
    /// first of the server's that the client offers.
    pub fn accept(data: D) -> Self {
        Self {
            answer: Answer::Accept {
                data,
                subprotocol: None,
                headers: String::new(),
            },
        }
    }

    /// Answers later: what [`OpeningHandshake::defer`](crate::OpeningHandshake::defer) gives.
    pub(crate) fn deferred() -> Self {
        Self {
            answer: Answer::Defer,
        }
    }

    /// Rejects; the connection closes behind the answer.
    pub fn reject(response: Response) -> Self {
        Self {
            answer: Answer::Reject(response),
        }
    }

    /// Chooses a subprotocol. It is used only if the client has offered it (RFC 6455 §4.2.2).
    #[must_use]
    pub fn subprotocol(mut self, name: &str) -> Self {
        if let Answer::Accept { subprotocol, .. } = &mut self.answer {
            *subprotocol = Some(name.into());
        }
        self
    }

    /// Adds a header to the answer that accepts. One that may stand only once takes the place of an
    /// earlier one of its name.
    ///
    /// # Errors
    /// [`InvalidHeader`], so that no value can add a line of its own; also for the handshake's own
    /// headers: `Upgrade`, `Connection`, those that begin with `Sec-WebSocket-`
    /// ([`subprotocol`](Self::subprotocol) sets one of them), and those of a body.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, InvalidHeader> {
        if is_own_header(name) {
            return Err(InvalidHeader);
        }
        if let Answer::Accept { headers, .. } = &mut self.answer {
            set_header(headers, name, value)?;
        }
        Ok(self)
    }

    /// Sets a cookie in the answer that accepts (RFC 6265 §4.1): its attributes are what follows
    /// the value, as in `Path=/; Secure; HttpOnly`, or nothing.
    ///
    /// # Errors
    /// [`InvalidHeader`] if the name is no token, or the value has characters that no cookie
    /// value may hold: white space, quotes, commas, semicolons, backslashes.
    pub fn cookie(self, name: &str, value: &str, attributes: &str) -> Result<Self, InvalidHeader> {
        let in_value = |byte: u8| byte.is_ascii_graphic() && !b"\",;\\".contains(&byte);
        if !http1::is_token(name.as_bytes()) || !value.bytes().all(in_value) {
            return Err(InvalidHeader);
        }
        let separator = if attributes.is_empty() { "" } else { "; " };
        self.header(
            "Set-Cookie",
            &format!("{name}={value}{separator}{attributes}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_handshake_are_refused() {
        for name in [
            "Upgrade",
            "connection",
            "Sec-WebSocket-Accept",
            "sec-websocket-protocol",
            "Sec-WebSocket-Extensions",
            "Content-Length",
            "Transfer-Encoding",
        ] {
            assert!(Upgrade::accept(()).header(name, "x").is_err(), "{name}");
        }
        let twice = Upgrade::accept(()).header("Server", "a").expect("valid");
        match twice.header("server", "b").expect("valid").answer {
            Answer::Accept { headers, .. } => assert_eq!(headers, "server: b\r\n"),
            _ => panic!("it accepts"),
        }
    }

    #[test]
    fn cookie_is_one_cookie_and_one_line() {
        let check = |name: &str, value: &str, attributes: &str, want: Option<&str>| {
            let upgrade = Upgrade::accept(()).cookie(name, value, attributes);
            let got = upgrade.ok().map(|upgrade| match upgrade.answer {
                Answer::Accept { headers, .. } => headers,
                _ => panic!("it accepts"),
            });
            assert_eq!(got.as_deref(), want, "{name} {value} {attributes}");
        };
        check("a", "b", "", Some("Set-Cookie: a=b\r\n"));
        let secure = "Set-Cookie: a=b; Path=/; Secure\r\n";
        check("a", "b", "Path=/; Secure", Some(secure));
        check("a", "", "", Some("Set-Cookie: a=\r\n"));
        for (name, value, attributes) in [
            ("", "b", ""),
            ("a b", "b", ""),
            ("a=", "b", ""),
            ("a", "b; Domain=evil", ""),
            ("a", "b,c", ""),
            ("a", "b c", ""),
            ("a", "b\"", ""),
            ("a", "b\r\nX: y", ""),
            ("a", "é", ""),
            ("a", "b", "Path=/\r\nX: y"),
        ] {
            check(name, value, attributes, None);
        }
    }
}
