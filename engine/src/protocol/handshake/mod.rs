//! The opening handshake (RFC 6455 §4), both roles: what a head must hold, and what answers it.
//!
//! A server calls [`UpgradeRequest::check`] on a request head and then [`write_accept`]; a
//! client writes a [`ClientRequest`] and checks the answer with [`check_response`]. Extensions
//! are parsed and carried; which are agreed is decided above.

mod client;
mod deflate;
mod extension;
mod origin;
mod server;

pub use client::ClientRequest;
pub use client::ExpectedResponse;
pub use client::Refusal;
pub use client::ResponseError;
pub use client::check_response;
pub use deflate::DeflateParams;
pub use deflate::ExtensionError;
pub use deflate::PERMESSAGE_DEFLATE;
pub use extension::ExtensionOffer;
pub use extension::ExtensionOffers;
pub use origin::is_origin_pattern;
pub use origin::is_same_host;
pub use origin::origin_matches;
pub use server::HandshakeError;
pub use server::UpgradeRequest;
pub use server::is_upgrade_attempt;
pub use server::write_accept;

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::GeneralPurposeConfig;
use sha1::Digest;
use sha1::Sha1;

/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical)
        .with_decode_allow_trailing_bits(true),
);

/// The value of `Sec-WebSocket-Accept` for a value of `Sec-WebSocket-Key` (RFC 6455 §4.2.2):
/// 28 ASCII characters.
pub fn accept_key(key: &[u8]) -> [u8; 28] {
    let mut sha1 = Sha1::new();
    sha1.update(key);
    sha1.update(GUID);
    let mut accept = [0; 28];
    BASE64
        .encode_slice(sha1.finalize(), &mut accept)
        .expect("20 bytes are 28 characters");
    accept
}

/// Whether a header is one that the handshake writes itself, or that would announce a body: it
/// cannot be added to a request or to the answer that accepts one.
pub(crate) fn is_own_header(name: &str) -> bool {
    let own = [
        "Upgrade",
        "Connection",
        "Content-Length",
        "Transfer-Encoding",
    ];
    let prefix = "Sec-WebSocket-";
    let begin = name.get(..prefix.len());
    begin.is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
        || own.iter().any(|own| own.eq_ignore_ascii_case(name))
}

/// Whether `key` is 16 bytes in base64 (RFC 6455 §4.1).
fn is_key(key: &[u8]) -> bool {
    let mut nonce = [0; 18];
    key.len() == 24 && BASE64.decode_slice(key, &mut nonce) == Ok(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_key_is_that_of_rfc_6455_section_1_3() {
        let accept = accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(&accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn key_is_16_bytes_in_base64() {
        assert!(is_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(is_key(b"AAAAAAAAAAAAAAAAAAAAAB=="));
        for bad in [
            &b""[..],
            b"x",
            b"dGhlIHNhbXBsZSBub25jZQ",
            b"dGhlIHNhbXBsZSBub25jZQ=a",
            b"dGhlIHNhbXBsZSBub25jZSEh",
            b"dGhlIHNhbXBsZSBub25j ZQ==",
            b"dGhlIHNhbXBsZSBub25j\0\0\0\0",
        ] {
            assert!(!is_key(bad), "{bad:?}");
        }
    }
}
