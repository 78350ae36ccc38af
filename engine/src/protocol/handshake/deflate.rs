use alloc::format;
use alloc::string::String;

use super::ExtensionOffer;

/// The registered name of the extension (RFC 7692 §7).
pub const PERMESSAGE_DEFLATE: &str = "permessage-deflate";

/// The smallest and the largest LZ77 window, as powers of two (RFC 7692 §7.1.2).
const WINDOW_BITS: core::ops::RangeInclusive<u8> = 8..=15;

/// Parameters of permessage-deflate (RFC 7692 §7.1): those that an endpoint wants, or those that
/// have been agreed.
///
/// ```
/// use sockeye::protocol::handshake::DeflateParams;
/// use sockeye::protocol::handshake::ExtensionOffers;
///
/// let offers = b"permessage-deflate; client_max_window_bits; server_max_window_bits=10";
/// let offers = ExtensionOffers::parse(offers).expect("it is well formed");
/// let (agreed, answer) = DeflateParams::default().accept(offers).expect("one is acceptable");
/// assert_eq!(agreed.server_max_window_bits, 10);
/// assert_eq!(answer, "permessage-deflate; server_max_window_bits=10");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateParams {
    /// The server compresses each message by itself (§7.1.1.1).
    pub server_no_context_takeover: bool,
    /// The client compresses each message by itself (§7.1.1.2).
    pub client_no_context_takeover: bool,
    /// The server's window is no larger than two to this power, 8 to 15 (§7.1.2.1).
    pub server_max_window_bits: u8,
    /// The client's window is no larger than two to this power, 8 to 15 (§7.1.2.2).
    pub client_max_window_bits: u8,
}

impl Default for DeflateParams {
    /// Context takeover, and windows as large as they can be.
    fn default() -> Self {
        Self {
            server_no_context_takeover: false,
            client_no_context_takeover: false,
            server_max_window_bits: 15,
            client_max_window_bits: 15,
        }
    }
}

/// Why an extension that a server has answered with is none that was offered (RFC 6455 §9.1,
/// RFC 7692 §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtensionError {
    /// `Sec-WebSocket-Extensions` is malformed.
    #[error("malformed list of extensions")]
    Malformed,
    /// Another extension.
    #[error("extension that was not offered")]
    NotOffered,
    /// A parameter that is there twice, has no valid value, or has one that was not offered.
    #[error("extension permessage-deflate: bad {0}, or not as offered")]
    Parameter(&'static str),
    /// A parameter that was asked for.
    #[error("extension permessage-deflate without {0}, which was asked for")]
    ParameterMissing(&'static str),
    /// The extension is there twice.
    #[error("extension permessage-deflate twice")]
    Repeated,
    /// A parameter that RFC 7692 does not know.
    #[error("extension permessage-deflate with an unknown parameter")]
    UnknownParameter,
}

const SERVER_NO_CONTEXT: &str = "server_no_context_takeover";
const CLIENT_NO_CONTEXT: &str = "client_no_context_takeover";
const SERVER_BITS: &str = "server_max_window_bits";
const CLIENT_BITS: &str = "client_max_window_bits";

/// Parameters as they were written.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// The value may be missing, in an offer.
    client_max_window_bits: Option<Option<u8>>,
}

impl Written {
    /// # Errors
    /// It is another extension, or there is a parameter that is unknown, there twice, or has a value
    /// that it must not have (§7).
    fn parse(extension: &ExtensionOffer<'_>) -> Result<Self, ExtensionError> {
        if extension.name != PERMESSAGE_DEFLATE {
            return Err(ExtensionError::NotOffered);
        }
        let mut written = Self::default();
        for (name, value) in extension.params() {
            let known = [
                SERVER_NO_CONTEXT,
                CLIENT_NO_CONTEXT,
                SERVER_BITS,
                CLIENT_BITS,
            ];
            let Some(&name) = known.iter().find(|known| **known == name) else {
                return Err(ExtensionError::UnknownParameter);
            };
            if !written.set(name, value).unwrap_or(false) {
                return Err(ExtensionError::Parameter(name));
            }
        }
        Ok(written)
    }

    /// Returns `true` if the parameter was not there before, `None` if its value is invalid.
    fn set(&mut self, name: &str, value: Option<&str>) -> Option<bool> {
        let set_once = |flag: &mut bool| !core::mem::replace(flag, true);
        Some(match (name, value) {
            (SERVER_NO_CONTEXT, None) => set_once(&mut self.server_no_context_takeover),
            (CLIENT_NO_CONTEXT, None) => set_once(&mut self.client_no_context_takeover),
            (SERVER_BITS, Some(value)) => {
                let bits = parse_window_bits(value)?;
                self.server_max_window_bits.replace(bits).is_none()
            }
            (CLIENT_BITS, value) => {
                let bits = match value {
                    Some(value) => Some(parse_window_bits(value)?),
                    None => None,
                };
                self.client_max_window_bits.replace(bits).is_none()
            }
            _ => return None,
        })
    }
}

/// §7.1.2.1: a decimal integer from 8 to 15, without leading zeros.
fn parse_window_bits(value: &str) -> Option<u8> {
    let is_plain = value.bytes().all(|byte| byte.is_ascii_digit()) && !value.starts_with('0');
    let bits = value.parse().ok().filter(|_| is_plain)?;
    WINDOW_BITS.contains(&bits).then_some(bits)
}

impl DeflateParams {
    /// What a server that wants this agrees to, and the value of its `Sec-WebSocket-Extensions`:
    /// the first offer that it can accept. None if there is none, which is no error: nothing is
    /// compressed then.
    pub fn accept<'a>(
        &self,
        offers: impl IntoIterator<Item = ExtensionOffer<'a>>,
    ) -> Option<(Self, String)> {
        let mut offers = offers.into_iter();
        let offer = offers.find_map(|offer| Written::parse(&offer).ok())?;
        let server_bits = offer.server_max_window_bits.unwrap_or(15);
        let client_bits = match offer.client_max_window_bits {
            // §7.1.2.2: a client that does not say that it can must not be asked to.
            None => 15,
            Some(bits) => bits.unwrap_or(15).min(self.client_max_window_bits),
        };
        let agreed = Self {
            server_no_context_takeover: self.server_no_context_takeover
                || offer.server_no_context_takeover,
            client_no_context_takeover: self.client_no_context_takeover
                || offer.client_no_context_takeover,
            server_max_window_bits: server_bits.min(self.server_max_window_bits),
            client_max_window_bits: client_bits,
        };
        let says_server_bits = offer.server_max_window_bits.is_some();
        Some((agreed, agreed.write(says_server_bits)))
    }

    fn write(&self, says_server_bits: bool) -> String {
        let mut text = String::from(PERMESSAGE_DEFLATE);
        if self.server_no_context_takeover {
            text.push_str("; server_no_context_takeover");
        }
        if self.client_no_context_takeover {
            text.push_str("; client_no_context_takeover");
        }
        if says_server_bits || self.server_max_window_bits < 15 {
            text += &format!("; server_max_window_bits={}", self.server_max_window_bits);
        }
        if self.client_max_window_bits < 15 {
            text += &format!("; client_max_window_bits={}", self.client_max_window_bits);
        }
        text
    }

    /// What a client that wants this offers: the value of its `Sec-WebSocket-Extensions`. It lets
    /// the server choose the client's window.
    pub fn offer(&self) -> String {
        let mut text = self.write(false);
        if self.client_max_window_bits == 15 {
            text.push_str("; client_max_window_bits");
        }
        text
    }

    /// What is agreed when a server answers this client's [`offer`](Self::offer) with one
    /// extension. `None` if the answer breaks the rules: then the connection must fail (§7.1).
    pub fn check(&self, answer: &ExtensionOffer<'_>) -> Option<Self> {
        self.check_answer(answer).ok()
    }

    /// As [`check`](Self::check).
    ///
    /// # Errors
    /// The rule that the answer breaks.
    pub fn check_answer(&self, answer: &ExtensionOffer<'_>) -> Result<Self, ExtensionError> {
        let answer = Written::parse(answer)?;
        let client_bits = match answer.client_max_window_bits {
            None => 15,
            // §7.1.2.2: in an answer it has a value.
            Some(bits) => bits.ok_or(ExtensionError::Parameter(CLIENT_BITS))?,
        };
        let server_bits = answer.server_max_window_bits.unwrap_or(15);
        // §7.1.1.1, §7.1.2.1: what was asked of the server it must have agreed to. A client may
        // do more than it has to.
        if self.server_no_context_takeover && !answer.server_no_context_takeover {
            return Err(ExtensionError::ParameterMissing(SERVER_NO_CONTEXT));
        }
        if server_bits > self.server_max_window_bits {
            return Err(match answer.server_max_window_bits {
                Some(_) => ExtensionError::Parameter(SERVER_BITS),
                None => ExtensionError::ParameterMissing(SERVER_BITS),
            });
        }
        // §7.1.2.2: no more than was offered.
        if answer.client_max_window_bits.is_some() && client_bits > self.client_max_window_bits {
            return Err(ExtensionError::Parameter(CLIENT_BITS));
        }
        Ok(Self {
            server_no_context_takeover: answer.server_no_context_takeover,
            // Only what the server has said: where it has not it may keep its window, and must
            // be sent what goes on behind each message.
            client_no_context_takeover: answer.client_no_context_takeover,
            server_max_window_bits: server_bits,
            client_max_window_bits: client_bits.min(self.client_max_window_bits),
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::super::ExtensionOffers;
    use super::*;

    fn offers(value: &str) -> ExtensionOffers<'_> {
        ExtensionOffers::parse(value.as_bytes()).expect("it is well formed")
    }

    fn params(server_no: bool, client_no: bool, server: u8, client: u8) -> DeflateParams {
        DeflateParams {
            server_no_context_takeover: server_no,
            client_no_context_takeover: client_no,
            server_max_window_bits: server,
            client_max_window_bits: client,
        }
    }

    fn accepted(wanted: DeflateParams, value: &str) -> Option<(DeflateParams, String)> {
        wanted.accept(offers(value))
    }

    #[test]
    fn server_agrees_to_what_it_can() {
        let any = DeflateParams::default();
        for (offer, agreed, answer) in [
            ("", params(false, false, 15, 15), ""),
            ("; client_max_window_bits", params(false, false, 15, 15), ""),
            (
                "; server_no_context_takeover",
                params(true, false, 15, 15),
                "; server_no_context_takeover",
            ),
            (
                "; client_no_context_takeover",
                params(false, true, 15, 15),
                "; client_no_context_takeover",
            ),
            (
                "; server_max_window_bits=15",
                params(false, false, 15, 15),
                "; server_max_window_bits=15",
            ),
            (
                "; server_max_window_bits=8; client_max_window_bits=9",
                params(false, false, 8, 9),
                "; server_max_window_bits=8; client_max_window_bits=9",
            ),
            // A quoted value is the same value (RFC 6455 §9.1).
            (
                "; server_max_window_bits=\"10\"",
                params(false, false, 10, 15),
                "; server_max_window_bits=10",
            ),
        ] {
            let got = accepted(any, &format!("permessage-deflate{offer}"));
            let want = (agreed, format!("permessage-deflate{answer}"));
            assert_eq!(got, Some(want), "{offer}");
        }
        // What the server wants, where the client lets it.
        let wanted = params(true, true, 11, 10);
        let got = accepted(wanted, "permessage-deflate");
        let answer = "permessage-deflate; server_no_context_takeover; \
                      client_no_context_takeover; server_max_window_bits=11";
        assert_eq!(got, Some((params(true, true, 11, 15), answer.to_string())));
        let offer = "permessage-deflate; client_max_window_bits=12; server_max_window_bits=9";
        let (agreed, answer) = accepted(wanted, offer).expect("it is acceptable");
        assert_eq!(agreed, params(true, true, 9, 10));
        assert!(answer.ends_with("; server_max_window_bits=9; client_max_window_bits=10"));
    }

    #[test]
    fn window_offers_that_are_not_legal_are_declined() {
        for bad in [
            "server_max_window_bits",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=08",
            "server_max_window_bits=+9",
            "server_max_window_bits=1000000000000000000000",
            "server_max_window_bits=\"\"",
            "server_max_window_bits=\" 9\"",
            "server_max_window_bits=9; server_max_window_bits=9",
            "client_max_window_bits=7",
            "client_max_window_bits=\"\"",
            "client_max_window_bits; client_max_window_bits",
            "server_no_context_takeover=true",
            "server_no_context_takeover; server_no_context_takeover",
            "client_no_context_takeover=\"\"",
            "client_no_context_takeover; client_no_context_takeover",
            "Server_No_Context_Takeover",
            "unknown",
            "unknown=1",
        ] {
            let offer = format!("permessage-deflate; {bad}");
            assert_eq!(accepted(DeflateParams::default(), &offer), None, "{bad}");
            // The next one is taken.
            let several = format!("{offer}, x-other; a=b, permessage-deflate");
            let (agreed, answer) =
                accepted(DeflateParams::default(), &several).expect("the last is acceptable");
            assert_eq!(agreed, DeflateParams::default());
            assert_eq!(answer, "permessage-deflate");
        }
        assert_eq!(
            accepted(DeflateParams::default(), "x-webkit-deflate-frame"),
            None
        );
        assert_eq!(accepted(DeflateParams::default(), ""), None);
    }

    #[test]
    fn first_acceptable_offer_is_taken() {
        let value = "permessage-deflate; server_max_window_bits=9, permessage-deflate";
        let (agreed, _) = accepted(DeflateParams::default(), value).expect("both are acceptable");
        assert_eq!(agreed.server_max_window_bits, 9);
    }

    /// What a client gets for an answer; none if the connection fails.
    fn checked(wanted: DeflateParams, answer: &str) -> Option<DeflateParams> {
        let answer = format!("permessage-deflate{answer}");
        let answer = offers(&answer).next().expect("there is one");
        wanted.check(&answer)
    }

    #[test]
    fn client_takes_what_it_has_offered_and_nothing_else() {
        let any = DeflateParams::default();
        assert_eq!(any.offer(), "permessage-deflate; client_max_window_bits");
        assert_eq!(checked(any, ""), Some(any));
        for (answer, agreed) in [
            ("; server_no_context_takeover", params(true, false, 15, 15)),
            ("; client_no_context_takeover", params(false, true, 15, 15)),
            ("; server_max_window_bits=8", params(false, false, 8, 15)),
            ("; client_max_window_bits=8", params(false, false, 15, 8)),
        ] {
            assert_eq!(checked(any, answer), Some(agreed), "{answer}");
        }
        let wanted = params(true, true, 12, 10);
        assert_eq!(
            wanted.offer(),
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
             server_max_window_bits=12; client_max_window_bits=10"
        );
        let least = "; server_no_context_takeover; server_max_window_bits=12";
        assert_eq!(checked(wanted, least), Some(params(true, false, 12, 10)));
        let less =
            "; server_no_context_takeover; server_max_window_bits=9; client_max_window_bits=8";
        assert_eq!(checked(wanted, less), Some(params(true, false, 9, 8)));
        for bad in [
            "",
            "; server_no_context_takeover",
            "; server_max_window_bits=12",
            "; server_no_context_takeover; server_max_window_bits=13",
            "; server_no_context_takeover; server_max_window_bits=12; client_max_window_bits=11",
            "; server_no_context_takeover; server_max_window_bits=12; client_max_window_bits",
            "; server_no_context_takeover; server_max_window_bits=12; unknown",
        ] {
            assert_eq!(checked(wanted, bad), None, "{bad}");
        }
        assert_eq!(any.check(&offers("x-other").next().unwrap()), None);
    }

    #[test]
    fn answers_that_break_the_rules_say_which() {
        let wanted = params(true, true, 12, 10);
        let check = |answer: &str, want: ExtensionError| {
            let answer = offers(answer).next().expect("there is one");
            assert_eq!(wanted.check_answer(&answer), Err(want));
        };
        check("x-other", ExtensionError::NotOffered);
        for (params, want) in [
            ("a", ExtensionError::UnknownParameter),
            (
                "server_max_window_bits=12",
                ExtensionError::ParameterMissing(SERVER_NO_CONTEXT),
            ),
            (
                "server_no_context_takeover",
                ExtensionError::ParameterMissing(SERVER_BITS),
            ),
            (
                "server_no_context_takeover; server_max_window_bits=13",
                ExtensionError::Parameter(SERVER_BITS),
            ),
            (
                "server_max_window_bits=16",
                ExtensionError::Parameter(SERVER_BITS),
            ),
            (
                "server_no_context_takeover; server_max_window_bits=9; client_max_window_bits",
                ExtensionError::Parameter(CLIENT_BITS),
            ),
            (
                "server_no_context_takeover; server_max_window_bits=9; client_max_window_bits=11",
                ExtensionError::Parameter(CLIENT_BITS),
            ),
            (
                "client_no_context_takeover=1",
                ExtensionError::Parameter(CLIENT_NO_CONTEXT),
            ),
        ] {
            check(&format!("permessage-deflate; {params}"), want);
        }
        let text = ExtensionError::Parameter(SERVER_BITS).to_string();
        assert!(text.contains("server_max_window_bits"), "{text}");
    }

    #[test]
    fn both_ends_agree_whatever_each_wants() {
        let mut wants = alloc::vec::Vec::new();
        for bits in 0..64_u8 {
            let window = |shift: u8| [8, 9, 12, 15][usize::from(bits >> shift) % 4];
            wants.push(params(bits & 1 > 0, bits & 2 > 0, window(2), window(4)));
        }
        for client in &wants {
            for server in &wants {
                let offer = client.offer();
                let (of_server, answer) = accepted(*server, &offer).expect("it is acceptable");
                let answer = offers(&answer).next().expect("there is one");
                let of_client = client.check(&answer).expect("it is an answer to the offer");
                assert_eq!(of_client, of_server, "{client:?} {server:?}");
            }
        }
    }
}
