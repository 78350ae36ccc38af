use crate::http1::Authority;

/// Whether an `Origin` names the host and port of `host`: the default policy against
/// cross-site hijacking (RFC 6455 §10.2).
///
/// A port that is left out is the default of the origin's scheme. Anything but
/// `http[s]://host[:port]` is another host: `null`, other schemes, paths, user names.
pub fn is_same_host(origin: &[u8], host: &[u8]) -> bool {
    let origin = Origin::parse(origin).filter(Origin::is_web);
    let Some((origin, host)) = origin.zip(Authority::parse(host)) else {
        return false;
    };
    origin.authority.is_some_and(|authority| {
        authority.host.eq_ignore_ascii_case(host.host) && origin.has_port(host.port)
    })
}

/// Whether `pattern` matches an `Origin`. Patterns are:
///
/// - `[scheme://]host[:port]`, where a leading `*.` of the host stands for one label or more. Without
///   a scheme, `http` and `https` match. A port that is left out is the default of the origin's
///   scheme, or none;
/// - `scheme://`, for origins of that scheme without a host: `file://`;
/// - `null`, for sandboxed pages, local files and the like.
pub fn origin_matches(pattern: &str, origin: &[u8]) -> bool {
    match OriginPattern::parse(pattern) {
        Some(OriginPattern::Null) => origin == NULL,
        Some(OriginPattern::Page(page)) => {
            Origin::parse(origin).is_some_and(|origin| page.matches(&origin))
        }
        None => false,
    }
}

/// Returns `true` if the pattern is one that [`origin_matches`] knows.
pub fn is_origin_pattern(pattern: &str) -> bool {
    OriginPattern::parse(pattern).is_some()
}

/// The origin of a page that has none to show (RFC 6454 §6.2).
const NULL: &[u8] = b"null";

/// `scheme://[host[:port]]`.
#[derive(Clone, Copy)]
struct Origin<'a> {
    scheme: &'a [u8],
    /// None for schemes whose origins need no host.
    authority: Option<Authority<'a>>,
}

impl<'a> Origin<'a> {
    fn parse(origin: &'a [u8]) -> Option<Self> {
        let end = memchr::memmem::find(origin, b"://")?;
        Self::from_parts(&origin[..end], &origin[end + 3..])
    }

    fn from_parts(scheme: &'a [u8], authority: &'a [u8]) -> Option<Self> {
        // RFC 3986 §3.1.
        let in_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let is_scheme =
            scheme.first().is_some_and(u8::is_ascii_alphabetic) && scheme.iter().all(in_scheme);
        let authority = match authority {
            [] if default_port(scheme).is_none() => None,
            authority => Some(Authority::parse(authority)?),
        };
        is_scheme.then_some(Self { scheme, authority })
    }

    /// Whether it is that of a page of a web site.
    fn is_web(&self) -> bool {
        let mut schemes = [b"http", &b"https"[..]].into_iter();
        schemes.any(|web| self.scheme.eq_ignore_ascii_case(web))
    }

    /// Whether its port is this one; either may be left out.
    fn has_port(&self, port: Option<u16>) -> bool {
        let own = self.authority.and_then(|authority| authority.port);
        let default = default_port(self.scheme);
        own.or(default) == port.or(default)
    }
}

/// Port of a scheme's URLs that have none.
fn default_port(scheme: &[u8]) -> Option<u16> {
    let is = |name: &str| scheme.eq_ignore_ascii_case(name.as_bytes());
    match () {
        () if is("http") || is("ws") => Some(80),
        () if is("https") || is("wss") => Some(443),
        () => None,
    }
}

/// A pattern of origins: to parse it is to check it.
enum OriginPattern<'a> {
    Null,
    Page(PagePattern<'a>),
}

struct PagePattern<'a> {
    /// With a scheme that counts only if the pattern has one.
    origin: Origin<'a>,
    has_scheme: bool,
    /// The host began with `*.`.
    any_label: bool,
}

impl<'a> OriginPattern<'a> {
    fn parse(pattern: &'a str) -> Option<Self> {
        if pattern.as_bytes() == NULL {
            return Some(Self::Null);
        }
        let (scheme, authority) = match pattern.split_once("://") {
            Some((scheme, authority)) => (Some(scheme), authority),
            None => (None, pattern),
        };
        let (any_label, authority) = match authority.strip_prefix("*.") {
            Some(parent) => (true, parent),
            None => (false, authority),
        };
        let origin_scheme = scheme.unwrap_or("https").as_bytes();
        let origin = Origin::from_parts(origin_scheme, authority.as_bytes())?;
        // Addresses have no labels.
        let has_labels = origin.authority.is_some_and(|a| a.host[0] != b'[');
        (has_labels || !any_label).then_some(Self::Page(PagePattern {
            origin,
            has_scheme: scheme.is_some(),
            any_label,
        }))
    }
}

impl PagePattern<'_> {
    fn matches(&self, origin: &Origin<'_>) -> bool {
        let same_scheme = match self.has_scheme {
            true => self.origin.scheme.eq_ignore_ascii_case(origin.scheme),
            false => origin.is_web(),
        };
        let same_host = match (&self.origin.authority, &origin.authority) {
            (None, None) => true,
            (Some(own), Some(other)) => {
                origin.has_port(own.port) && self.has_host(own.host, other.host)
            }
            _ => false,
        };
        same_scheme && same_host
    }

    fn has_host(&self, own: &[u8], host: &[u8]) -> bool {
        if !self.any_label {
            return host.eq_ignore_ascii_case(own);
        }
        let labels_len = host.len().saturating_sub(own.len());
        let (labels, parent) = host.split_at(labels_len);
        let labels = labels.strip_suffix(b".").unwrap_or_default();
        let is_whole = |label: &[u8]| !label.is_empty();
        parent.eq_ignore_ascii_case(own) && labels.split(|&byte| byte == b'.').all(is_whole)
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
        check("http://[]", "[]", false);
        check("http://[a]", "[a]", false);
        check("http://a:+80", "a", false);
        check("ws://example.com", "example.com", false);
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
        check("example.com", "ws://example.com", false);
        check("ws://example.com", "ws://example.com:80", true);
        check("wss://example.com", "wss://example.com:443", true);
        check("wss://example.com", "ws://example.com:443", false);
        check("https://[::1]", "https://[::1]:443", true);

        check("null", "null", true);
        check("null", "NULL", false);
        check("null", "https://null", false);
        check("https://null", "null", false);
        check("file://", "file://", true);
        check("file://", "FILE://", true);
        check("file://", "file:///", false);
        check("file://", "file://a", false);
        check("file://a", "file://", false);
        check("file://", "null", false);
        check("capacitor://", "capacitor://", true);
        check("capacitor://localhost", "capacitor://localhost", true);
        check("capacitor://localhost", "ionic://localhost", false);
        check("capacitor://localhost", "https://localhost", false);
        check("capacitor://localhost", "capacitor://localhost:80", false);
        check("app://a:1", "app://a:1", true);
        check("app://a:1", "app://a", false);
        let extension = "chrome-extension://fmkadmapgofadopljbjfkapdkoienihi";
        check(extension, extension, true);
        check(extension, "chrome-extension://other", false);
        check("app://*.a", "app://b.a", true);
        for pattern in [
            "",
            "*",
            "*.",
            "https://",
            "://",
            "://a",
            "1a://b",
            "a b://c",
            "\u{e9}://a",
            "a b",
            "https://a/",
            "a:x",
            "a:+80",
            "https://a:99999",
            "[]",
            "https://[localhost]",
            "*.[::1]",
            "https://*.",
            "file://*.",
            "file:///",
            "https://u@a",
            " null",
        ] {
            assert!(!is_origin_pattern(pattern), "{pattern:?}");
            assert!(!origin_matches(pattern, pattern.as_bytes()), "{pattern:?}");
        }
    }
}
