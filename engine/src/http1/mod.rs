#![forbid(unsafe_code)]
//! HTTP/1.1 request and response heads (RFC 9112), over the crate `httparse`.
//!
//! A head is parsed once, when its end has been seen: [`head_len`] searches only what is new.
//! Bodies, chunking and keep-alive are not here: a request that is not an upgrade is answered
//! once and its connection closed.

mod authority;
mod request;
mod response;

pub use authority::Authority;
pub use httparse::EMPTY_HEADER;
pub use request::HEADER_COUNT_MAX;
pub use request::Request;
pub use request::RequestError;
pub use response::InvalidHeader;
pub use response::Response;
pub use response::ResponseHead;
pub(crate) use response::has_header;
pub use response::may_be_response;
pub(crate) use response::push_header;
pub use response::reason_phrase;
pub(crate) use response::response_header;
#[cfg(feature = "std")]
pub(crate) use response::set_header;
pub(crate) use response::stands_once;

use memchr::memmem;

/// Length of the head at the front of `bytes`, its empty line included, if it is all there;
/// the first `searched` bytes have been searched before.
pub fn head_len(bytes: &[u8], searched: usize) -> Option<usize> {
    let start = searched.saturating_sub(3).min(bytes.len());
    memmem::find(&bytes[start..], b"\r\n\r\n").map(|index| start + index + 4)
}

/// Whether a line of `bytes`, an incomplete head, ends with LF alone; the first `searched` bytes
/// have been searched before. Such a head is malformed wherever it ends: this endpoint takes only
/// CRLF for a line end (RFC 9112 §2.2).
pub fn has_bare_lf(bytes: &[u8], searched: usize) -> bool {
    let searched = searched.min(bytes.len());
    memchr::memchr_iter(b'\n', &bytes[searched..])
        .map(|index| searched + index)
        .any(|index| index == 0 || bytes[index - 1] != b'\r')
}

/// The items of a comma-separated field value, white space trimmed, empty items left out
/// (RFC 9110 §5.6.1).
pub fn list_items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&byte| byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|item| !item.is_empty())
}

/// Whether `bytes` are a token (RFC 9110 §5.6.2).
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is_token_byte(byte))
}

pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a header may be written with this value: visible ASCII, spaces and tabs. No value
/// that passes can end its line (RFC 9110 §5.5).
pub(crate) fn is_header_value(value: &[u8]) -> bool {
    let plain = |&byte: &u8| byte == b'\t' || byte == b' ' || byte.is_ascii_graphic();
    value.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_ends_where_the_empty_line_ends_wherever_the_search_goes_on() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        for cut in 0..head.len() - 4 {
            assert_eq!(head_len(&head[..cut], 0).is_some(), cut >= 27, "{cut}");
            if cut < 27 {
                assert_eq!(head_len(head, cut), Some(27), "{cut}");
            }
        }
    }

    #[test]
    fn bare_lf_is_found_wherever_the_search_goes_on() {
        let head = b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n";
        for searched in 0..=head.len() {
            assert_eq!(has_bare_lf(head, searched), searched <= 23, "{searched}");
            let cut = &head[..searched];
            assert_eq!(has_bare_lf(cut, 0), searched > 23, "{searched}");
        }
        assert!(has_bare_lf(b"\n", 0));
    }

    #[test]
    fn list_items_are_trimmed_and_not_empty() {
        let items: alloc::vec::Vec<_> = list_items(b" a,b ,, c\t,").collect();
        assert_eq!(items, [b"a", b"b", b"c"]);
    }
}
