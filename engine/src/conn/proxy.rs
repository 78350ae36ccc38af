//! For whom a proxy connects: the PROXY protocol (version 1 and 2, through the crate `ppp`), and
//! the headers that proxies add.

use std::net::IpAddr;
use std::net::SocketAddr;

use crate::config::ClientSource;
use crate::config::Proxies;
use crate::http1::Request;
use crate::http1::list_items;

use super::Conn;
use super::Env;
use super::HEADROOM;
use super::Phase;
use super::Sink;
use super::Standing;

/// What every header of version 2 begins with.
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The fixed part of a header of version 2.
const V2_FIXED_LEN: usize = 16;

/// The longest header of version 2 that is taken, with all that proxies add (TLVs).
const V2_LEN_MAX: usize = 4 * 1024;

/// The longest header of version 1, line end included.
const V1_LEN_MAX: usize = 107;

/// A header of the PROXY protocol, or what there is of it.
#[derive(Debug, PartialEq, Eq)]
enum Header {
    /// More of it has to come.
    Incomplete,
    /// It is none.
    Invalid,
    /// It is so long, and names the client; a proxy that connects on its own behalf names none.
    Complete(usize, Option<SocketAddr>),
}

impl Header {
    fn parse(bytes: &[u8]) -> Self {
        let is_v2 = bytes
            .iter()
            .zip(V2_SIGNATURE)
            .all(|(byte, want)| byte == want);
        if is_v2 {
            Self::parse_v2(bytes)
        } else {
            Self::parse_v1(bytes)
        }
    }

    fn parse_v2(bytes: &[u8]) -> Self {
        let Some(fixed) = bytes.first_chunk::<V2_FIXED_LEN>() else {
            return Self::Incomplete;
        };
        let len = V2_FIXED_LEN + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        if len > V2_LEN_MAX {
            return Self::Invalid;
        }
        let Some(bytes) = bytes.get(..len) else {
            return Self::Incomplete;
        };
        let Ok(header) = ppp::v2::Header::try_from(bytes) else {
            return Self::Invalid;
        };
        let client = match (header.command, header.addresses) {
            // For checks of its own, or for a connection that it knows nothing of.
            (ppp::v2::Command::Local, _) => None,
            (_, ppp::v2::Addresses::IPv4(ip)) => {
                Some(SocketAddr::from((ip.source_address, ip.source_port)))
            }
            (_, ppp::v2::Addresses::IPv6(ip)) => {
                Some(SocketAddr::from((ip.source_address, ip.source_port)))
            }
            (_, ppp::v2::Addresses::Unix(_) | ppp::v2::Addresses::Unspecified) => None,
        };
        Self::Complete(len, client)
    }

    fn parse_v1(bytes: &[u8]) -> Self {
        let begin = &b"PROXY "[..bytes.len().min(6)];
        let line = &bytes[..bytes.len().min(V1_LEN_MAX)];
        if !bytes.starts_with(begin) {
            return Self::Invalid;
        }
        let Some(end) = memchr::memchr(b'\n', line) else {
            return if line.len() == V1_LEN_MAX {
                Self::Invalid
            } else {
                Self::Incomplete
            };
        };
        let Ok(header) = ppp::v1::Header::try_from(&line[..=end]) else {
            return Self::Invalid;
        };
        let client = match header.addresses {
            ppp::v1::Addresses::Tcp4(ip) => {
                Some(SocketAddr::from((ip.source_address, ip.source_port)))
            }
            ppp::v1::Addresses::Tcp6(ip) => {
                Some(SocketAddr::from((ip.source_address, ip.source_port)))
            }
            ppp::v1::Addresses::Unknown => None,
        };
        Self::Complete(end + 1, client)
    }
}

impl<D> Conn<D> {
    /// Where the connection comes from; it may be a proxy, whose header is then awaited.
    pub fn set_peer(&mut self, peer: Option<IpAddr>, env: &Env) {
        let Some(peer) = peer.map(|peer| peer.to_canonical()) else {
            return;
        };
        self.state.extra_mut().peer = Some(peer);
        if let Some(proxies) = &env.proxies {
            let sends_header = proxies.source == ClientSource::ProxyProtocol;
            if sends_header && proxies.contains(peer) {
                self.state.standing = Standing::ProxyHeaderOwed;
            }
        }
    }

    /// Where the connection comes from, if it was asked.
    pub fn peer(&self) -> Option<IpAddr> {
        self.state.extra.as_ref().and_then(|extra| extra.peer)
    }

    /// Takes the header of a proxy, and what came behind it.
    #[cold]
    pub(super) fn receive_proxy_header(
        &mut self,
        slot: &mut [u8],
        len: usize,
        env: &mut Env,
        sink: &mut impl Sink<D>,
    ) {
        let kept = self.partial.as_ref().map_or(0, |p| p.tail.len());
        let taken = len.min(V2_LEN_MAX - kept);
        let tail = self.keep(&slot[HEADROOM..HEADROOM + taken], env);
        match Header::parse(tail) {
            Header::Incomplete => {}
            Header::Invalid => {
                log::debug!("a proxy sent no header of the PROXY protocol");
                self.clear_partial(env);
                self.state.phase = Phase::Closed;
            }
            Header::Complete(header_len, client) => {
                tail.clear();
                self.release_partial(env);
                self.state.standing = Standing::Unproven;
                self.state.extra_mut().client = client;
                let used = header_len - kept;
                if used < len {
                    self.receive(&mut slot[used..], len - used, env, sink);
                }
            }
        }
    }

    /// Takes the client's address from the headers of a request, if a proxy has sent it.
    pub(super) fn take_forwarded(&mut self, request: &Request<'_>, env: &Env) {
        let Some((proxies, peer)) = env.proxies.as_ref().zip(self.peer()) else {
            return;
        };
        let header = match proxies.source {
            ClientSource::ProxyProtocol => return,
            ClientSource::Forwarded => "Forwarded",
            ClientSource::XForwardedFor => "X-Forwarded-For",
        };
        if !proxies.contains(peer) {
            return;
        }
        let items = request.header_values(header).flat_map(list_items);
        let named: Vec<_> = items
            .map(|item| match proxies.source {
                ClientSource::Forwarded => forwarded_for(item),
                _ => address(item),
            })
            .collect();
        // Each proxy adds at the end: the last that is no proxy of ours is the client, and what
        // stands before it anybody may have written.
        let mut client = None;
        for named in named.into_iter().rev() {
            let Some(named) = named else {
                break;
            };
            client = Some(named);
            if !proxies.contains(named.ip()) {
                break;
            }
        }
        self.state.extra_mut().client = client;
    }
}

/// The `for` parameter of an element (RFC 7239 §4).
fn forwarded_for(element: &[u8]) -> Option<SocketAddr> {
    let pairs = element.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    let mut values = pairs.filter_map(|pair| {
        let (name, value) = pair.split_at(memchr::memchr(b'=', pair)?);
        name.eq_ignore_ascii_case(b"for").then_some(&value[1..])
    });
    let value = values.next()?;
    let value = value
        .strip_prefix(b"\"")
        .and_then(|value| value.strip_suffix(b"\""))
        .unwrap_or(value);
    address(value)
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`; a port that is
/// not given is zero.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let ip = bare.unwrap_or(text).parse::<IpAddr>();
    ip.map(|ip| SocketAddr::new(ip.to_canonical(), 0))
        .or_else(|_| text.parse::<SocketAddr>())
        .ok()
}

/// Whether an address may be counted, and under which: of IPv6, a customer's network.
pub fn counted_address(address: IpAddr, proxies: Option<&Proxies>) -> Option<IpAddr> {
    if proxies.is_some_and(|proxies| proxies.contains(address)) {
        return None;
    }
    Some(match address.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => {
            let network = u128::from(ip) >> 64 << 64;
            IpAddr::V6(network.into())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_header_is_parsed_wherever_it_is_cut() {
        let v2 = |command: u8, family: u8, rest: &[u8]| {
            let mut header = V2_SIGNATURE.to_vec();
            header.extend([command, family]);
            header.extend((rest.len() as u16).to_be_bytes());
            header.extend(rest);
            header
        };
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let client: SocketAddr = ([192, 0, 2, 1], 0x1234).into();
        let mut v6 = [0; 36];
        v6[15] = 1;
        v6[33] = 7;
        let with_tlv = [&v4[..], &[0x04, 0, 1, 0]].concat();
        let local6: SocketAddr = "[::1]:7".parse().unwrap();
        let unknown = b"PROXY UNKNOWN anything\r\n".to_vec();
        let longest = b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
              ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        let widest: SocketAddr = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
            .parse()
            .unwrap();
        for (header, want) in [
            (
                b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 80\r\n".to_vec(),
                Some(client),
            ),
            (b"PROXY TCP6 ::1 ::2 7 80\r\n".to_vec(), Some(local6)),
            (longest.to_vec(), Some(widest)),
            (unknown, None),
            (v2(0x21, 0x11, &v4), Some(client)),
            (v2(0x21, 0x21, &v6), Some(local6)),
            (v2(0x21, 0x11, &with_tlv), Some(client)),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v4), None),
            (v2(0x21, 0x31, &[b'a'; 216]), None),
        ] {
            for cut in 0..header.len() {
                assert_eq!(
                    Header::parse(&header[..cut]),
                    Header::Incomplete,
                    "{header:?}"
                );
            }
            let whole = Header::Complete(header.len(), want);
            assert_eq!(Header::parse(&header), whole);
            assert_eq!(Header::parse(&[&header[..], b"GET /"].concat()), whole);
        }
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 a b c d\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 80000\r\n",
            &[&b"PROXY TCP4 "[..], &[b'1'; 120]].concat(),
            &v2(0x31, 0x11, &v4),
            &v2(0x22, 0x11, &v4),
            &v2(0x21, 0x11, &v4[..11]),
            &v2(0x21, 0x51, &v4),
            &v2(0x21, 0x11, &[0; 4096]),
        ] {
            assert_eq!(Header::parse(bad), Header::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn forwarded_elements_name_addresses_or_nobody() {
        let check = |element: &str, want: Option<&str>| {
            let want = want.map(|want| want.parse().unwrap());
            assert_eq!(forwarded_for(element.as_bytes()), want, "{element}");
        };
        check("for=192.0.2.1", Some("192.0.2.1:0"));
        check(
            "proto=https;For=\"192.0.2.1:8000\";by=203.0.113.4",
            Some("192.0.2.1:8000"),
        );
        check("for=\"[2001:db8::1]:47\"", Some("[2001:db8::1]:47"));
        check("for=\"[2001:db8::1]\"", Some("[2001:db8::1]:0"));
        check("for=unknown", None);
        check("for=_hidden", None);
        check("for=\"", None);
        check("by=192.0.2.1", None);
        check("", None);
        let check = |item: &str, want: Option<&str>| {
            let want = want.map(|want| want.parse().unwrap());
            assert_eq!(address(item.as_bytes()), want, "{item}");
        };
        check("::ffff:192.0.2.1", Some("192.0.2.1:0"));
        check("2001:db8::1", Some("[2001:db8::1]:0"));
        check("192.0.2.1.5", None);
        check("\u{e9}", None);
    }

    #[test]
    fn addresses_are_counted_by_customer_and_proxies_are_not() {
        let proxies = Proxies::new(["10.0.0.0/8"]).unwrap();
        let check = |address: &str, want: Option<&str>| {
            let counted = counted_address(address.parse().unwrap(), Some(&proxies));
            assert_eq!(counted, want.map(|want| want.parse().unwrap()), "{address}");
        };
        check("192.0.2.1", Some("192.0.2.1"));
        check("::ffff:192.0.2.1", Some("192.0.2.1"));
        check("2001:db8:1:2:3::4", Some("2001:db8:1:2::"));
        check("10.1.2.3", None);
        check("::ffff:10.1.2.3", None);
    }
}
