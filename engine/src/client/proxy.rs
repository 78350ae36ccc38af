//! Proxies: HTTP CONNECT and SOCKS5.
//!
//! SOCKS5 is written here: the crates that speak it over a caller's stream are not licensed as
//! this one is, and the others neither take a deadline nor a stream.

use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::TcpStream;
use std::net::ToSocketAddrs;
use std::time::Instant;

use percent_encoding::percent_decode_str;

use crate::connect::Connect;
use crate::connect::basic_authorization;
use crate::connect::check_ascii;
use crate::connect::split_authority;
use crate::connect::without_userinfo;
use crate::error::ConfigError;
use crate::http1;
use crate::http1::HEADER_COUNT_MAX;
use crate::http1::ResponseHead;
use crate::http1::reason_phrase;
use crate::reactor;
use crate::reactor::Target;
use crate::reactor::listen::Address;

use super::Error;
use super::stream::Bounded;
use super::stream::remaining;

/// The longest answer of an HTTP proxy.
const HEAD_LEN_MAX: usize = 8 * 1024;

/// Which proxy, and how it is spoken to.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    kind: Kind,
    host: String,
    port: u16,
    /// `user:password`, as the URL has it.
    userinfo: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// HTTP CONNECT.
    Http,
    /// SOCKS5; the proxy looks names up if `remote_names` says so.
    Socks5 { remote_names: bool },
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The user information has a password.
        write!(f, "Proxy({:?} {}:{})", self.kind, self.host, self.port)
    }
}

impl Proxy {
    pub(super) fn parse(url: &str) -> Result<Self, ConfigError> {
        let (kind, own_port, uri) = Self::parse_kind(url).map_err(|why| bad(url, why))?;
        let (userinfo, authority) = split_authority(&uri).map_err(|why| bad(url, why))?;
        let host = String::from_utf8_lossy(authority.bare_host()).into_owned();
        let port = match authority.port {
            Some(0) => return Err(bad(url, "port 0")),
            port => port.unwrap_or(own_port),
        };
        Ok(Self {
            kind,
            host,
            port,
            userinfo: userinfo.map(str::to_owned),
        })
    }

    fn parse_kind(url: &str) -> Result<(Kind, u16, http::Uri), &'static str> {
        check_ascii(url)?;
        let uri: http::Uri = url.parse().map_err(|_| "not a URL")?;
        let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
        let socks = |remote_names| Kind::Socks5 { remote_names };
        let (kind, own_port) = match &scheme[..] {
            "http" => (Kind::Http, 80),
            "socks5" => (socks(false), 1080),
            "socks5h" => (socks(true), 1080),
            _ => return Err("the scheme is not http, socks5 or socks5h"),
        };
        Ok((kind, own_port, uri))
    }

    /// The proxy that the variables name for this connection.
    pub(super) fn from_variables(
        connect: &Connect,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ConfigError> {
        let exempt = variable("no_proxy").is_some_and(|list| is_exempt(connect.host(), &list));
        let names = if connect.is_secure() {
            ["wss_proxy", "https_proxy", "all_proxy"]
        } else {
            ["ws_proxy", "http_proxy", "all_proxy"]
        };
        match names.into_iter().find_map(variable) {
            Some(url) if !exempt && !connect.is_unix() => Self::parse(&url).map(Some),
            _ => Ok(None),
        }
    }

    /// Connects to the URL's host through the proxy.
    pub(super) fn connect(&self, connect: &Connect, deadline: Instant) -> Result<TcpStream, Error> {
        let unresolved = || ConfigError::Unresolved(self.host.clone());
        let addresses = (&self.host[..], self.port).to_socket_addrs();
        let mut last = Error::from(unresolved());
        for address in addresses.map_err(|_| unresolved())? {
            let target = Target {
                source_ports: None,
                ..connect.target_at(Address::Ip(address))
            };
            let attempt = remaining(deadline)
                .and_then(|remaining| reactor::connect::connect(&target, remaining));
            match attempt {
                Ok(socket) => {
                    let mut stream = Bounded::new(socket.into(), deadline);
                    match self.kind {
                        Kind::Http => self.connect_http(&mut stream, connect)?,
                        Kind::Socks5 { remote_names } => {
                            self.connect_socks(&mut stream, connect, remote_names)?;
                        }
                    }
                    return Ok(stream.tcp);
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// RFC 9110 §9.3.6.
    fn connect_http(&self, stream: &mut Bounded, connect: &Connect) -> Result<(), Error> {
        let host = connect.host();
        let port = connect.port();
        let authority = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let mut head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        if let Some(userinfo) = &self.userinfo {
            let value = basic_authorization(userinfo);
            head.push_str(&format!("Proxy-Authorization: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        // Byte by byte: what follows the head is the server's.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
            if http1::has_bare_lf(&head, head.len() - 1) || !http1::may_be_response(&head) {
                return Err(Error::Proxy("its answer is not HTTP".to_owned()));
            }
            if head.len() > HEAD_LEN_MAX {
                return Err(Error::Proxy("its answer is too long".to_owned()));
            }
        }
        let mut storage = [http1::EMPTY_HEADER; HEADER_COUNT_MAX];
        match ResponseHead::parse(&head, &mut storage).map(|head| head.status) {
            Some(200..300) => Ok(()),
            Some(status) => {
                let phrase = reason_phrase(status);
                Err(Error::Proxy(format!("{status} {phrase}")))
            }
            None => Err(Error::Proxy("its answer is not HTTP".to_owned())),
        }
    }

    /// RFC 1928, with the user and password of RFC 1929.
    fn connect_socks(
        &self,
        stream: &mut Bounded,
        connect: &Connect,
        remote_names: bool,
    ) -> Result<(), Error> {
        const NO_AUTHENTICATION: u8 = 0;
        const PASSWORD: u8 = 2;
        // A proxy that knows its clients by their addresses wants no password.
        let methods: &[u8] = match self.userinfo {
            Some(_) => &[5, 2, NO_AUTHENTICATION, PASSWORD],
            None => &[5, 1, NO_AUTHENTICATION],
        };
        stream.write_all(methods)?;
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen)?;
        let [version, method] = chosen;
        if version != 5 {
            return Err(Error::Proxy("it speaks no SOCKS5".to_owned()));
        }
        if !methods[2..].contains(&method) {
            return Err(Error::Proxy("it wants other credentials".to_owned()));
        }
        if let Some(userinfo) = self.userinfo.as_ref().filter(|_| method == PASSWORD) {
            let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
            let mut request = vec![1];
            for part in [user, password] {
                let part: Vec<u8> = percent_decode_str(part).collect();
                push_short(&mut request, &part)?;
            }
            stream.write_all(&request)?;
            let mut granted = [0; 2];
            stream.read_exact(&mut granted)?;
            if granted[1] != 0 {
                return Err(Error::Proxy("it refuses the credentials".to_owned()));
            }
        }
        let mut request = vec![5, 1, 0];
        push_address(&mut request, connect, remote_names)?;
        request.extend(connect.port().to_be_bytes());
        stream.write_all(&request)?;
        let mut reply = [0; 4];
        stream.read_exact(&mut reply)?;
        if reply[1] != 0 {
            return Err(Error::Proxy(socks_reply(reply[1]).to_owned()));
        }
        // The address that it connects from, which nobody asked for.
        let len = match reply[3] {
            1 => 4,
            4 => 16,
            3 => {
                let mut len = [0];
                stream.read_exact(&mut len)?;
                len[0].into()
            }
            _ => return Err(Error::Proxy("its answer is not SOCKS5".to_owned())),
        };
        let mut bound = vec![0; len + 2];
        stream.read_exact(&mut bound)?;
        Ok(())
    }
}

fn bad(url: &str, why: &'static str) -> ConfigError {
    let url = without_userinfo(url);
    ConfigError::Proxy { url, why }
}

/// Type and address (RFC 1928 §5).
fn push_address(request: &mut Vec<u8>, connect: &Connect, remote_names: bool) -> Result<(), Error> {
    let host = connect.host();
    let ip = match host.parse() {
        Ok(ip) => Some(ip),
        Err(_) if remote_names => None,
        Err(_) => connect.resolve_all()?.iter().find_map(|address| {
            let address = address.ip()?;
            Some(address.ip())
        }),
    };
    match ip {
        Some(IpAddr::V4(ip)) => {
            request.push(1);
            request.extend(ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            request.push(4);
            request.extend(ip.octets());
        }
        None => {
            request.push(3);
            push_short(request, host.as_bytes())?;
        }
    }
    Ok(())
}

/// A length of one byte, and the bytes.
fn push_short(request: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Error> {
    let len = u8::try_from(bytes.len());
    let len = len.map_err(|_| Error::Proxy("a name of over 255 bytes".to_owned()))?;
    request.push(len);
    request.extend_from_slice(bytes);
    Ok(())
}

/// RFC 1928 §6.
fn socks_reply(code: u8) -> &'static str {
    match code {
        2 => "its rules forbid it",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "time to live expired",
        7 => "it does not connect",
        8 => "it does not know such addresses",
        _ => "it failed",
    }
}

/// Whether `no_proxy` names this host: itself, a domain that it is in, or all.
fn is_exempt(host: &str, list: &str) -> bool {
    list.split(',').map(str::trim).any(|entry| {
        let entry = entry.trim_start_matches('.');
        let inside = host.len().checked_sub(entry.len() + 1).is_some_and(|dot| {
            host.as_bytes()[dot] == b'.'
                && host.as_bytes()[dot + 1..].eq_ignore_ascii_case(entry.as_bytes())
        });
        !entry.is_empty() && (entry == "*" || host.eq_ignore_ascii_case(entry) || inside)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_and_bad_ones_refused_without_their_password() {
        let http = Proxy::parse("http://u:p@127.0.0.1:3128").expect("a proxy");
        let want = (Kind::Http, "127.0.0.1", 3128, Some("u:p"));
        let got = (
            http.kind,
            &http.host[..],
            http.port,
            http.userinfo.as_deref(),
        );
        assert_eq!(got, want);
        assert!(!format!("{http:?}").contains("u:p"));
        let socks = Proxy::parse("socks5h://[::1]").expect("a proxy");
        assert_eq!((&socks.host[..], socks.port), ("::1", 1080));
        for bad in [
            "",
            "a",
            "https://a",
            "http://",
            "socks4://a",
            "http://a:99999",
            "http://a:+7001",
            "http://a:x",
            "http://a:",
            "http://a:0",
            "socks5://[]",
            "socks5h://[localhost]:1",
            "http://u:p@",
            "http://\u{fc}",
        ] {
            assert!(Proxy::parse(bad).is_err(), "{bad:?}");
        }
        let error = Proxy::parse("ftp://u:secret@a").expect_err("not a proxy");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn variables_name_the_proxy_unless_the_host_is_exempt() {
        let find = |url: &str, variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let connect = Connect::new(url).expect("a URL");
            let found = Proxy::from_variables(&connect, variable).expect("a proxy");
            found.map(|proxy| proxy.port)
        };
        let http = ("http_proxy", "http://p:1");
        let https = ("https_proxy", "http://p:2");
        let all = ("all_proxy", "socks5://p:3");
        assert_eq!(find("ws://a/", &[http, https, all]), Some(1));
        assert_eq!(find("wss://a/", &[http, https, all]), Some(2));
        assert_eq!(find("wss://a/", &[http, all]), Some(3));
        assert_eq!(find("wss://a/", &[http]), None);
        assert_eq!(find("ws+unix:///a", &[all]), None);
        for (list, exempt) in [
            ("a.b", true),
            (".b", true),
            ("b", true),
            ("*", true),
            ("x, A.b", true),
            ("", false),
            ("c", false),
            ("aa.b", false),
        ] {
            let want = if exempt { None } else { Some(1) };
            assert_eq!(
                find("ws://a.b/", &[http, ("no_proxy", list)]),
                want,
                "{list}"
            );
        }
    }
}
