/// Whether an `Origin` names the host and port of `Host`: the default policy against
/// cross-site hijacking (RFC 6455 §10.2).
///
/// A port that is left out is the default of the origin's scheme. Anything but
/// `http[s]://host[:port]` is another host: `null`, other schemes, paths, user names.
pub fn is_same_host(origin: &[u8], host: &[u8]) -> bool {
    let (default_port, origin) = if let Some(rest) = strip_prefix(origin, b"http://") {
        (80, rest)
    } else if let Some(rest) = strip_prefix(origin, b"https://") {
        (443, rest)
    } else {
        return false;
    };
    match (split_port(origin), split_port(host)) {
        (Some((origin, origin_port)), Some((host, host_port))) => {
            origin.eq_ignore_ascii_case(host)
                && origin_port.unwrap_or(default_port) == host_port.unwrap_or(default_port)
        }
        _ => false,
    }
}

fn strip_prefix<'a>(bytes: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (front, rest) = bytes.split_at_checked(prefix.len())?;
    front.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// `host[:port]`, where the host may be an IPv6 address in brackets (RFC 3986 §3.2).
fn split_port(authority: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let host_len = if authority.first() == Some(&b'[') {
        memchr::memchr(b']', authority)? + 1
    } else {
        memchr::memchr(b':', authority).unwrap_or(authority.len())
    };
    let (host, port) = authority.split_at(host_len);
    let in_host = |&byte: &u8| match byte {
        b'[' | b']' | b':' => host.first() == Some(&b'['),
        _ => byte.is_ascii_alphanumeric() || b"-._~".contains(&byte),
    };
    if host.is_empty() || !host.iter().all(in_host) {
        return None;
    }
    match port {
        [] => Some((host, None)),
        [b':', digits @ ..] if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
            let port = core::str::from_utf8(digits).ok()?.parse().ok()?;
            Some((host, Some(port)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_is_compared_by_host_and_port() {
        let check = |origin: &str, host: &str, want| {
            let got = is_same_host(origin.as_bytes(), host.as_bytes());
            assert_eq!(got, want, "{origin:?} against {host:?}");
        };
        check("http://example.com", "example.com", true);
        check("https://example.com", "example.com", true);
        check("http://EXAMPLE.com", "example.COM", true);
        check("HTTP://example.com:80", "example.com", true);
        check("https://example.com", "example.com:443", true);
        check("http://example.com:8080", "example.com:8080", true);
        check("http://[::1]:9001", "[::1]:9001", true);
        check("http://[::1]", "[::1]", true);

        check("http://example.com", "example.com:8080", false);
        check("http://example.com:8080", "example.com", false);
        check("https://example.com", "example.com:80", false);
        check("http://evil.com", "example.com", false);
        check("http://example.com.evil.com", "example.com", false);
        check("http://example.com.", "example.com", false);
        check("http://example.com@evil.com", "example.com", false);
        check("http://user@example.com", "example.com", false);
        check("http://user:1@example.com", "example.com", false);
        check("http://[::1]:9001", "[::2]:9001", false);
        check("http://::1", "::1", false);
        check("http://a:b", "a:b", false);
        check("http://a:b", "a", false);
        check("http://a:", "a:", false);
        check("http://a:99999", "a:99999", false);
        check("http://example.com/", "example.com", false);
        check("http://", "", false);
        check("", "", false);
        check("null", "null", false);
        check("null", "example.com", false);
        check("file://", "", false);
        check("ftp://example.com", "example.com", false);
        check("chrome-extension://example.com", "example.com", false);
        check("http://exa\u{301}mple.com", "exa\u{301}mple.com", false);
        check("http://a\0b", "a\0b", false);
    }
}
