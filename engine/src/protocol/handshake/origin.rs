/// Whether an `Origin` names the host and port of `Host`: the default policy against
/// cross-site hijacking (RFC 6455 §10.2).
///
/// A port that is left out is the default of the origin's scheme. Anything but
/// `http[s]://host[:port]` is another host: `null`, other schemes, paths, user names.
pub fn is_same_host(origin: &[u8], host: &[u8]) -> bool {
    match (Origin::parse(origin), split_port(host)) {
        (Some(origin), Some((host, port))) => {
            origin.host.eq_ignore_ascii_case(host) && origin.has_port(port)
        }
        _ => false,
    }
}

/// Whether an `Origin` is one that `pattern` stands for: `[scheme://]host[:port]`, where a
/// leading `*.` of the host stands for one label or more. A port that is left out is the
/// default of the origin's scheme.
pub fn origin_matches(pattern: &str, origin: &[u8]) -> bool {
    let (scheme, authority) = match pattern.split_once("://") {
        Some((scheme, authority)) => (Some(scheme), authority),
        None => (None, pattern),
    };
    let (any_label, authority) = match authority.strip_prefix("*.") {
        Some(parent) => (true, parent),
        None => (false, authority),
    };
    let parsed = Origin::parse(origin).zip(split_port(authority.as_bytes()));
    let Some((origin, (host, port))) = parsed else {
        return false;
    };
    let same_scheme = scheme.is_none_or(|scheme| scheme.eq_ignore_ascii_case(origin.scheme()));
    let same_host = if any_label {
        let labels_len = origin.host.len().saturating_sub(host.len());
        let (labels, parent) = origin.host.split_at(labels_len);
        let labels = labels.strip_suffix(b".").unwrap_or_default();
        let is_whole = |label: &[u8]| !label.is_empty();
        parent.eq_ignore_ascii_case(host) && labels.split(|&byte| byte == b'.').all(is_whole)
    } else {
        origin.host.eq_ignore_ascii_case(host)
    };
    same_scheme && same_host && origin.has_port(port)
}

/// Whether a pattern can match anything: [`origin_matches`] says what one looks like.
pub fn is_origin_pattern(pattern: &str) -> bool {
    let (scheme, authority) = pattern.split_once("://").unwrap_or(("https", pattern));
    let authority = authority.strip_prefix("*.").unwrap_or(authority);
    matches!(scheme, "http" | "https") && split_port(authority.as_bytes()).is_some()
}

/// `http[s]://host[:port]`.
struct Origin<'a> {
    secure: bool,
    host: &'a [u8],
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    fn parse(origin: &'a [u8]) -> Option<Self> {
        let (secure, authority) = match strip_prefix(origin, b"http://") {
            Some(rest) => (false, rest),
            None => (true, strip_prefix(origin, b"https://")?),
        };
        let (host, port) = split_port(authority)?;
        Some(Self { secure, host, port })
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// Whether its port is this one; either may be left out.
    fn has_port(&self, port: Option<u16>) -> bool {
        let default = if self.secure { 443 } else { 80 };
        self.port.unwrap_or(default) == port.unwrap_or(default)
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

    #[test]
    fn origin_is_matched_with_patterns() {
        let check = |pattern: &str, origin: &str, want| {
            assert!(is_origin_pattern(pattern), "{pattern:?}");
            let got = origin_matches(pattern, origin.as_bytes());
            assert_eq!(got, want, "{origin:?} against {pattern:?}");
        };
        check("https://example.com", "https://example.com", true);
        check("https://example.com", "https://EXAMPLE.com:443", true);
        check("https://example.com", "http://example.com", false);
        check("https://example.com", "https://example.com:8443", false);
        check("example.com", "http://example.com", true);
        check("example.com", "https://example.com", true);
        check("example.com:8080", "http://example.com:8080", true);
        check("*.example.com", "https://a.example.com", true);
        check("*.example.com", "https://a.b.example.com", true);
        check("*.example.com", "https://a.example.com:443", true);
        check("*.example.com", "https://a.example.com:444", false);
        check("*.example.com:444", "https://a.example.com:444", true);
        check("*.example.com:444", "https://a.example.com", false);
        check("https://*.example.com", "https://a.example.com", true);
        check("https://*.example.com", "http://a.example.com", false);
        check("https://*.example.com", "https://example.com", false);
        check("https://*.example.com", "https://.example.com", false);
        check("https://*.example.com", "https://aexample.com", false);
        check("https://*.example.com", "https://a..example.com", false);
        check(
            "https://*.example.com",
            "https://a.example.com.evil.com",
            false,
        );
        check(
            "https://*.example.com",
            "https://evil.com/.example.com",
            false,
        );
        check(
            "https://*.example.com",
            "https://evil.com#.example.com",
            false,
        );
        check("https://*.example.com", "https://u@a.example.com", false);
        check(
            "https://*.example.com",
            "https://evil.com:1.example.com",
            false,
        );
        check("https://*.example.com", "null", false);
        check("*.example.com", "ftp://a.example.com", false);
        for pattern in [
            "",
            "*",
            "*.",
            "https://",
            "ftp://a",
            "a b",
            "https://a/",
            "a:x",
        ] {
            assert!(!is_origin_pattern(pattern), "{pattern:?}");
        }
    }
}
