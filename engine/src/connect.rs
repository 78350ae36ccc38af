#![forbid(unsafe_code)]
//! What an outgoing connection asks for: where to, from where, which request, whom to trust.
//!
//! [`Connect`] is for both clients, the blocking one and the reactor's. It opens nothing: it
//! becomes a [`Target`], a request head and, for `wss`, a TLS session.

use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use crate::buffer::Pool;
use crate::config::Compression;
use crate::conn::ClientHandshake;
use crate::error::ConfigError;
use crate::http1;
use crate::http1::Authority;
use crate::protocol::handshake::ClientRequest;
use crate::protocol::handshake::DeflateParams;
use crate::protocol::handshake::is_own_header;
use crate::random::Random;
use crate::reactor::Target;
use crate::reactor::listen::Address;
use crate::tls::ClientTls;
use crate::tls::Session;

/// An outgoing connection: a `ws`, `wss` or `ws+unix` URL (RFC 6455 §3), and what goes into
/// its request.
///
/// ```
/// # fn main() -> sockeye::Result<()> {
/// use sockeye::Connect;
/// let connect = Connect::new("ws://127.0.0.1:9001/chat?room=1")?
///     .subprotocols(["chat.v2", "chat.v1"])
///     .header("Authorization", "Bearer abc")
///     .cookie("session", "0123");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Connect {
    url: Url,
    address: Option<Address>,
    source: Option<IpAddr>,
    source_ports: Option<(u16, u16)>,
    headers: Vec<(String, String)>,
    cookies: Vec<Cookie>,
    subprotocols: Vec<String>,
    origin: Option<String>,
    tls: Option<ClientTls>,
    tag: u64,
    compression: Compression,
}

/// A part of the `Cookie` header.
#[derive(Clone)]
enum Cookie {
    /// Name and value.
    Pair(String, String),
    /// A value of the whole header.
    Line(String),
}

impl Cookie {
    /// # Errors
    /// [`ConfigError::Header`]: one cookie would be taken for several.
    fn write(&self, line: &mut String) -> Result<(), ConfigError> {
        if !line.is_empty() {
            line.push_str("; ");
        }
        match self {
            Self::Line(value) => line.push_str(value),
            Self::Pair(name, value) => {
                if !http1::is_token(name.as_bytes()) || value.contains(';') {
                    return Err(ConfigError::Header(format!("cookie {name:?}")));
                }
                line.push_str(&format!("{name}={value}"));
            }
        }
        Ok(())
    }
}

/// A parsed URL.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    secure: bool,
    /// Without brackets, if it is an IPv6 address.
    host: String,
    port: u16,
    unix: Option<PathBuf>,
    /// The value of `Host`: with the port, unless that is the scheme's own.
    authority: String,
    target: String,
    /// The value of `Authorization` that stands for `user:password@`.
    authorization: Option<String>,
}

impl Connect {
    /// A connection to this URL: `ws://HOST[:PORT]/TARGET`, `wss://…`, or
    /// `ws+unix:///SOCKET[:/TARGET]`. `USER:PASSWORD@` before the host becomes an
    /// `Authorization` header (RFC 7617).
    ///
    /// # Errors
    /// [`ConfigError::Url`].
    pub fn new(url: &str) -> Result<Self, ConfigError> {
        let url = Url::parse(url).map_err(|why| ConfigError::Url {
            url: without_userinfo(url),
            why,
        })?;
        Ok(Self {
            address: url.address(),
            url,
            source: None,
            source_ports: None,
            headers: Vec::new(),
            cookies: Vec::new(),
            subprotocols: Vec::new(),
            origin: None,
            tls: None,
            tag: 0,
            compression: Compression::Off,
        })
    }

    /// Adds a header to the request. Those of the handshake itself are not to be added. A header that
    /// may stand only once takes the place of an earlier one of its name, however that was set:
    /// `Authorization` that of the URL's `USER:PASSWORD@`, `Cookie` those of
    /// [`cookie`](Self::cookie), `Origin` that of [`origin`](Self::origin).
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("Origin") {
            return self.origin(value);
        }
        if is("Cookie") {
            self.cookies = vec![Cookie::Line(value.to_owned())];
            return self;
        }
        if is("Authorization") {
            self.url.authorization = None;
        }
        if http1::stands_once(name) {
            self.headers.retain(|(own, _)| !is(own));
        }
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a cookie to the request's `Cookie` header (RFC 6265 §4.2). Its name must be a token, and
    /// its value must not hold `;`: that is reported when the connection is made.
    pub fn cookie(mut self, name: &str, value: &str) -> Self {
        let cookie = Cookie::Pair(name.to_owned(), value.to_owned());
        self.cookies.push(cookie);
        self
    }

    /// Offers subprotocols, the preferred one first (RFC 6455 §1.9).
    pub fn subprotocols<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.subprotocols = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sends an `Origin` header, as a browser's page would (RFC 6455 §4.1).
    pub fn origin(mut self, origin: &str) -> Self {
        self.origin = Some(origin.to_owned());
        self
    }

    /// Offers compression (permessage-deflate, RFC 7692). Off by default. Over a reactor, level
    /// and shortest length are those of the builder.
    #[cfg(feature = "deflate")]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    pub(crate) fn compression_wanted(&self) -> Compression {
        self.compression
    }

    /// Whom to trust; by default whom the system trusts.
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Connects here, whatever the URL's host is. The request and the server's certificate are
    /// still those of the URL.
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = Some(Address::Ip(address));
        self
    }

    /// Looks the URL's host up and connects to the first address. It waits for the answer:
    /// not to be called where a thread serves connections.
    ///
    /// # Errors
    /// [`ConfigError::Unresolved`].
    pub fn resolve(self) -> Result<Self, ConfigError> {
        let first = self.resolve_all()?.into_iter().next();
        Ok(Self {
            address: first,
            ..self
        })
    }

    /// All addresses: one, or as many as the host has.
    pub(crate) fn resolve_all(&self) -> Result<Vec<Address>, ConfigError> {
        if let Some(address) = &self.address {
            return Ok(vec![address.clone()]);
        }
        let unresolved = || ConfigError::Unresolved(self.url.host.clone());
        let addresses = (&self.url.host[..], self.url.port).to_socket_addrs();
        let addresses: Vec<_> = addresses
            .map_err(|_| unresolved())?
            .map(Address::Ip)
            .collect();
        if addresses.is_empty() {
            return Err(unresolved());
        }
        Ok(addresses)
    }

    /// Connects from this address.
    pub fn source(mut self, address: IpAddr) -> Self {
        self.source = Some(address);
        self
    }

    /// Connects from a port of this range, ends included (Linux 6.3 and newer). A port is
    /// shared by connections to different addresses (`IP_BIND_ADDRESS_NO_PORT`).
    pub fn source_ports(mut self, first: u16, last: u16) -> Self {
        self.source_ports = Some((first, last));
        self
    }

    /// A number of the caller's own, which the handler that makes the connection's data sees.
    pub fn tag(mut self, tag: u64) -> Self {
        self.tag = tag;
        self
    }

    /// The number given with [`tag`](Self::tag), or zero.
    pub fn tag_value(&self) -> u64 {
        self.tag
    }

    /// The URL's host, without brackets.
    pub fn host(&self) -> &str {
        &self.url.host
    }

    /// The IP address that it connects to: the URL's, or one that was given or looked up.
    pub fn ip(&self) -> Option<IpAddr> {
        let address = self.address.as_ref()?.ip()?;
        Some(address.ip())
    }

    /// The URL's port, or its scheme's.
    pub fn port(&self) -> u16 {
        self.url.port
    }

    /// The request's target: path and query, `/chat?room=1`.
    pub fn target_path(&self) -> &str {
        &self.url.target
    }

    /// The value of `Host`: with the port, unless that is the scheme's own (RFC 6455 §4.1).
    pub fn authority(&self) -> &str {
        &self.url.authority
    }

    /// The path of the Unix socket, if the URL is that of one.
    pub fn unix_path(&self) -> Option<&Path> {
        self.url.unix.as_deref()
    }

    /// Whether the URL is that of a Unix socket.
    pub fn is_unix(&self) -> bool {
        self.url.unix.is_some()
    }

    /// Whether the URL asks for TLS.
    pub fn is_secure(&self) -> bool {
        self.url.secure
    }

    /// Where to and from where, without looking anything up.
    ///
    /// # Errors
    /// [`ConfigError::Unresolved`].
    pub(crate) fn target(&self) -> Result<Target, ConfigError> {
        let unresolved = || ConfigError::Unresolved(self.url.host.clone());
        let address = self.address.clone().ok_or_else(unresolved)?;
        Ok(self.target_at(address))
    }

    pub(crate) fn target_at(&self, address: Address) -> Target {
        Target {
            address,
            source: self.source,
            source_ports: self.source_ports,
        }
    }

    /// The request, with a nonce of its own.
    ///
    /// # Errors
    /// [`ConfigError::Header`], [`ConfigError::Subprotocol`].
    pub(crate) fn handshake(
        &self,
        random: &mut Random,
        deflate: Option<DeflateParams>,
    ) -> Result<ClientHandshake, ConfigError> {
        let is_bad = |name: &&String| !http1::is_token(name.as_bytes());
        if let Some(bad) = self.subprotocols.iter().find(is_bad) {
            return Err(ConfigError::Subprotocol(bad.clone()));
        }
        let mut headers: Vec<(&str, &str)> = Vec::new();
        if let Some(authorization) = &self.url.authorization {
            headers.push(("Authorization", authorization));
        }
        let mut cookies = String::new();
        for cookie in &self.cookies {
            cookie.write(&mut cookies)?;
        }
        if !cookies.is_empty() {
            headers.push(("Cookie", &cookies));
        }
        headers.extend(
            self.headers
                .iter()
                .map(|(name, value)| (&name[..], &value[..])),
        );
        let own = |name: &str| name.eq_ignore_ascii_case("Host") || is_own_header(name);
        if let Some((name, _)) = headers.iter().find(|(name, _)| own(name)) {
            return Err(ConfigError::Header((*name).to_owned()));
        }
        let subprotocols: Vec<&str> = self.subprotocols.iter().map(|name| &name[..]).collect();
        let request = ClientRequest {
            host: &self.url.authority,
            target: &self.url.target,
            nonce: random.nonce(),
            origin: self.origin.as_deref(),
            subprotocols: &subprotocols,
            deflate,
            extensions: None,
            headers: &headers,
        };
        let mut head = Vec::new();
        let invalid = |_| ConfigError::Header("a header of the request".to_owned());
        request.write(&mut head).map_err(invalid)?;
        Ok(ClientHandshake {
            head,
            expected: request.expected(),
            compression: self.compression,
        })
    }

    /// The settings of its TLS, if it has any.
    ///
    /// # Errors
    /// The system trusts nobody, or this build has no TLS.
    pub(crate) fn tls_settings(&self) -> Result<Option<ClientTls>, ConfigError> {
        match (&self.tls, self.url.secure) {
            (_, false) => Ok(None),
            (tls, true) if tls.is_some() => Ok(tls.clone()),
            #[cfg(feature = "tls")]
            (_, true) => Ok(Some(ClientTls::system()?)),
            #[cfg(not(feature = "tls"))]
            (_, true) => Err(ConfigError::Feature("tls")),
        }
    }

    /// Finds out what is wrong with it before it is used.
    ///
    /// # Errors
    /// Whatever [`target`](Self::target), [`handshake`](Self::handshake) and
    /// [`session`](Self::session) would find.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.target()?;
        self.compression.validate()?;
        self.handshake(&mut Random::new([0; 32]), None)?;
        if self.tls_settings()?.is_some() {
            Session::check_name(&self.url.host).map_err(refused)?;
        }
        Ok(())
    }

    /// The TLS session of a connection, its first message ready to be sent.
    ///
    /// # Errors
    /// As for [`tls_settings`](Self::tls_settings), or the URL's host cannot have a
    /// certificate.
    pub(crate) fn session(&self, pool: &mut Pool) -> Result<Option<Session>, ConfigError> {
        let Some(tls) = self.tls_settings()? else {
            return Ok(None);
        };
        let mut session = Session::client(&tls, &self.url.host).map_err(refused)?;
        session.start(pool).map_err(refused)?;
        Ok(Some(session))
    }
}

fn refused(error: std::io::Error) -> ConfigError {
    ConfigError::ServerName(error.to_string())
}

/// A URL for an error message, without its password.
pub(crate) fn without_userinfo(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}…{}", &url[..scheme + 3], &url[at..])
        }
        _ => url.to_owned(),
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and cookies are often secrets.
        write!(f, "Connect({self})")
    }
}

impl fmt::Display for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.url.secure { "wss" } else { "ws" };
        match &self.url.unix {
            Some(path) => write!(f, "ws+unix://{}:{}", path.display(), self.url.target),
            None => write!(f, "{scheme}://{}{}", self.url.authority, self.url.target),
        }
    }
}

impl Url {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text.contains('#') {
            // RFC 6455 §3.
            return Err("fragments have no meaning here");
        }
        let lower = text.to_ascii_lowercase();
        if lower.starts_with("ws+unix:") {
            return Self::parse_unix(&text["ws+unix:".len()..]);
        }
        check_ascii(text)?;
        let uri: http::Uri = text.parse().map_err(|_| "not a URL")?;
        // RFC 3986 §3.1: schemes compare without case.
        let secure = match uri.scheme_str() {
            Some(scheme) if scheme.eq_ignore_ascii_case("ws") => false,
            Some(scheme) if scheme.eq_ignore_ascii_case("wss") => true,
            _ => return Err("the scheme is not ws, wss or ws+unix"),
        };
        let (userinfo, authority) = split_authority(&uri)?;
        let own_port = if secure { 443 } else { 80 };
        let port = match authority.port {
            Some(0) => return Err("port 0"),
            port => port.unwrap_or(own_port),
        };
        let text_of = |bytes| str::from_utf8(bytes).expect("an authority is ASCII");
        let (bracketed, host) = (text_of(authority.host), text_of(authority.bare_host()));
        // RFC 6455 §4.1: with the port, unless it is the default one.
        let authority = if port == own_port {
            bracketed.to_owned()
        } else {
            format!("{bracketed}:{port}")
        };
        let target = uri.path_and_query().map_or("", |target| target.as_str());
        // RFC 6455 §3: an empty path is "/".
        let target = if target.starts_with('/') {
            target.to_owned()
        } else {
            format!("/{target}")
        };
        Ok(Self {
            secure,
            host: host.to_owned(),
            port,
            unix: None,
            authority,
            target,
            authorization: userinfo.map(basic_authorization),
        })
    }

    fn parse_unix(rest: &str) -> Result<Self, &'static str> {
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (path, target) = match rest.split_once(':') {
            Some((path, target)) => (path, target),
            None => (rest, "/"),
        };
        if path.is_empty() {
            return Err("no socket");
        }
        if !target.starts_with('/') {
            return Err("the target does not begin with /");
        }
        check_ascii(target)?;
        Ok(Self {
            secure: false,
            host: "localhost".to_owned(),
            port: 80,
            unix: Some(path.into()),
            authority: "localhost".to_owned(),
            target: target.to_owned(),
            authorization: None,
        })
    }

    /// What needs no looking up.
    fn address(&self) -> Option<Address> {
        if let Some(path) = &self.unix {
            return Some(Address::Unix(path.clone()));
        }
        let ip: IpAddr = self.host.parse().ok()?;
        Some(Address::Ip(SocketAddr::new(ip, self.port)))
    }
}

/// RFC 3986 §2: a URL is ASCII.
pub(crate) fn check_ascii(url: &str) -> Result<(), &'static str> {
    match url.is_ascii() {
        true => Ok(()),
        false => Err(
            "characters outside ASCII: percent-encode them, and write a host in its ASCII form (xn--…)",
        ),
    }
}

/// User information, and host and port, of a URL: the same rules for servers and for proxies.
pub(crate) fn split_authority(
    uri: &http::Uri,
) -> Result<(Option<&str>, Authority<'_>), &'static str> {
    let authority = uri.authority().ok_or("no host")?.as_str();
    let (userinfo, authority) = match authority.rsplit_once('@') {
        Some((userinfo, authority)) => (Some(userinfo), authority),
        None => (None, authority),
    };
    let parsed = Authority::parse(authority.as_bytes());
    Ok((userinfo, parsed.ok_or("not a host, or not a port")?))
}

/// `user:password`, as a URL has it, as the value of an `Authorization` or
/// `Proxy-Authorization` header (RFC 7617 §2).
pub(crate) fn basic_authorization(userinfo: &str) -> String {
    let decoded: Vec<u8> = percent_decode_str(userinfo).collect();
    let with_colon = if decoded.contains(&b':') {
        decoded
    } else {
        [&decoded[..], b":"].concat()
    };
    format!("Basic {}", STANDARD.encode(with_colon))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_bad_ones_refused() {
        let check = |url: &str, want: (&str, u16, &str, &str)| {
            let got = Url::parse(url).unwrap_or_else(|why| panic!("{url}: {why}"));
            let got = (&got.host[..], got.port, &got.authority[..], &got.target[..]);
            assert_eq!(got, want, "{url}");
        };
        check("ws://a", ("a", 80, "a", "/"));
        check("WSS://a/b?c=d", ("a", 443, "a", "/b?c=d"));
        check("ws://a:443/", ("a", 443, "a:443", "/"));
        check("wss://a:443/", ("a", 443, "a", "/"));
        check("ws://a?b", ("a", 80, "a", "/?b"));
        check("ws://[::1]:9/x", ("::1", 9, "[::1]:9", "/x"));
        check("ws://[::1]", ("::1", 80, "[::1]", "/"));
        check("ws://u:p@a/", ("a", 80, "a", "/"));
        check("ws+unix:///run/a.sock", ("localhost", 80, "localhost", "/"));
        check(
            "ws+unix:/run/a.sock:/b?c",
            ("localhost", 80, "localhost", "/b?c"),
        );
        for bad in [
            "",
            "a",
            "/a",
            "http://a",
            "ws:a",
            "ws://",
            "ws:///a",
            "ws://a#b",
            "ws://a b",
            "ws://a:0",
            "ws://a:99999",
            "ws://a:x",
            "ws://a:",
            "ws://a:+7001",
            "ws://[]",
            "ws://[]:80",
            "ws://[localhost]",
            "ws://[::1",
            "ws://::1",
            "ws://a%41",
            "ws://@",
            "ws://u:p@",
            "ws+unix:",
            "ws+unix:///a:b",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad:?} was read");
        }
    }

    #[test]
    fn characters_outside_ascii_are_named() {
        for url in [
            "ws://b\u{fc}cher.example/",
            "ws://a/\u{fc}",
            "ws+unix:/a:/\u{fc}",
        ] {
            let error = Connect::new(url).expect_err("not ASCII").to_string();
            assert!(error.contains("outside ASCII"), "{error}");
        }
        let _ = Connect::new("ws+unix:/\u{fc}.sock").expect("a path may have any");
    }

    #[test]
    fn headers_that_stand_once_are_replaced() {
        let mut random = Random::new([7; 32]);
        let connect = Connect::new("ws://u:p@a/").expect("a URL");
        let mut check = |connect: Connect, name: &str, want: &str| {
            let head = connect.handshake(&mut random, None).expect("valid").head;
            let head = String::from_utf8(head).expect("ASCII");
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            let values = lines.filter(|(own, _)| own.eq_ignore_ascii_case(name));
            let values: Vec<&str> = values.map(|(_, value)| value).collect();
            assert_eq!(values, [want], "{head}");
        };
        check(connect.clone(), "Authorization", "Basic dTpw");
        let own = connect.clone().header("authorization", "Bearer x");
        check(own.clone(), "Authorization", "Bearer x");
        check(own.header("Authorization", "y"), "Authorization", "y");
        let cookies = connect
            .clone()
            .cookie("a", "1")
            .header("cookie", "b=2; c=3");
        check(cookies.clone(), "Cookie", "b=2; c=3");
        check(cookies.cookie("d", "4"), "Cookie", "b=2; c=3; d=4");
        let origin = connect
            .clone()
            .header("Origin", "http://a")
            .origin("http://b");
        check(origin.clone(), "Origin", "http://b");
        check(origin.header("origin", "http://c"), "Origin", "http://c");
        let agent = connect.header("User-Agent", "a").header("user-agent", "b");
        check(agent, "User-Agent", "b");
    }

    #[test]
    fn secrets_are_in_no_message() {
        let connect = Connect::new("ws://user:secret@a/").expect("a URL");
        let connect = connect
            .header("Authorization", "secret")
            .cookie("a", "secret");
        assert_eq!(format!("{connect:?} {connect}"), "Connect(ws://a/) ws://a/");
        let error = Connect::new("ftp://user:secret@a/").expect_err("not ours");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn userinfo_becomes_a_header() {
        // RFC 7617 §2.
        let url = Url::parse("ws://Aladdin:open%20sesame@a/").expect("a URL");
        let want = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
        assert_eq!(url.authorization.as_deref(), Some(want));
    }

    #[test]
    fn request_holds_what_was_asked_for_and_nothing_can_be_split() {
        let mut random = Random::new([7; 32]);
        let connect = Connect::new("ws://example.com:81/a").expect("a URL");
        let full = connect
            .clone()
            .header("X-A", "b")
            .cookie("a", "1")
            .cookie("b", "2")
            .subprotocols(["x", "y"])
            .origin("http://o");
        let head = full.handshake(&mut random, None).expect("valid").head;
        let head = String::from_utf8(head).expect("ASCII");
        for line in [
            "GET /a HTTP/1.1",
            "Host: example.com:81",
            "X-A: b",
            "Cookie: a=1; b=2",
            "Sec-WebSocket-Protocol: x, y",
            "Origin: http://o",
        ] {
            assert!(head.split("\r\n").any(|got| got == line), "{line}: {head}");
        }
        for bad in [
            connect.clone().header("X", "a\r\nY: b"),
            connect.clone().header("X Y", "a"),
            connect.clone().header("Host", "a"),
            connect.clone().header("sec-websocket-key", "a"),
            connect.clone().cookie("a", "b\r\n"),
            connect.clone().cookie("a", "b; c=d"),
            connect.clone().cookie("a", ";"),
            connect.clone().cookie("a=b;c", "d"),
            connect.clone().cookie("", "d"),
            connect.clone().origin("a\nb"),
            connect.clone().subprotocols(["a b"]),
            connect.clone().subprotocols(["a,b"]),
        ] {
            assert!(bad.handshake(&mut random, None).is_err(), "{bad:?}");
        }
    }
}
