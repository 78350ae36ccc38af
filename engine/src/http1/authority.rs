use core::net::Ipv6Addr;

/// `host[:port]` (RFC 3986 §3.2), as `Host`, `Origin` and URLs have it, without user information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Name or address; an IPv6 address has its brackets. Never empty.
    pub host: &'a [u8],
    /// Port, if there is one.
    pub port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Takes an authority apart. `None` if the host is empty or has characters that no host has, if
    /// brackets hold anything but an IPv6 address, or if the port is not one to five digits up to
    /// 65,535.
    pub fn parse(authority: &'a [u8]) -> Option<Self> {
        let host_len = if authority.first() == Some(&b'[') {
            memchr::memchr(b']', authority)? + 1
        } else {
            memchr::memchr(b':', authority).unwrap_or(authority.len())
        };
        let (host, rest) = authority.split_at(host_len);
        let is_valid = match host {
            [b'[', address @ .., b']'] => {
                let address = core::str::from_utf8(address).ok()?;
                address.parse::<Ipv6Addr>().is_ok()
            }
            _ => !host.is_empty() && host.iter().all(|&byte| is_name_byte(byte)),
        };
        let port = match rest {
            [] => None,
            [b':', digits @ ..] => Some(parse_port(digits)?),
            _ => return None,
        };
        is_valid.then_some(Self { host, port })
    }

    /// The host without the brackets of an IPv6 address.
    pub fn bare_host(&self) -> &'a [u8] {
        let inside = self.host.strip_prefix(b"[");
        let inside = inside.and_then(|rest| rest.strip_suffix(b"]"));
        inside.unwrap_or(self.host)
    }
}

/// RFC 3986 §3.2.2: the characters of a registered name without the delimiters, of which no name
/// makes use. Percent-encoded names are left out: two spellings of one host would differ.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// RFC 3986 §3.2.3: digits, and nothing else that `str::parse` takes.
fn parse_port(digits: &[u8]) -> Option<u16> {
    let is_plain = (1..=5).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let digits = core::str::from_utf8(digits).ok().filter(|_| is_plain)?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_is_host_and_port() {
        let check = |text: &str, want: Option<(&str, Option<u16>)>| {
            let got = Authority::parse(text.as_bytes());
            let got = got.map(|authority| (authority.host, authority.port));
            let want = want.map(|(host, port)| (host.as_bytes(), port));
            assert_eq!(got, want, "{text:?}");
        };
        check("a", Some(("a", None)));
        check("a_b.example.:80", Some(("a_b.example.", Some(80))));
        check("127.0.0.1:0", Some(("127.0.0.1", Some(0))));
        check("[::1]", Some(("[::1]", None)));
        check(
            "[::ffff:1.2.3.4]:65535",
            Some(("[::ffff:1.2.3.4]", Some(65535))),
        );
        for bad in [
            "",
            ":",
            ":80",
            "a:",
            "a:x",
            "a:+80",
            "a:-1",
            "a: 80",
            "a:80 ",
            "a:65536",
            "a:000080",
            "a:80:80",
            "::1",
            "[]",
            "[]:80",
            "[localhost]",
            "[::1",
            "[::1]80",
            "[::1]:",
            "[v1.a]",
            "[fe80::1%eth0]",
            "[1.2.3.4]",
            "]",
            "u@a",
            "a/b",
            "a b",
            "a%41",
            "a\0",
            "\u{e9}",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn bare_host_has_no_brackets() {
        let bare = |text: &'static str| Authority::parse(text.as_bytes()).map(|a| a.bare_host());
        assert_eq!(bare("[::1]:80"), Some(&b"::1"[..]));
        assert_eq!(bare("a:80"), Some(&b"a"[..]));
    }
}
