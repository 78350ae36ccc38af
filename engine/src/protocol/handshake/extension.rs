use crate::http1::is_token_byte;

/// The offers of a `Sec-WebSocket-Extensions` value, in order of preference (RFC 6455 §9.1).
/// Takes time linear in the value, and no memory.
#[derive(Clone, Debug)]
pub struct ExtensionOffers<'a> {
    lexer: Lexer<'a>,
}

/// One extension and its parameters, as offered or agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensionOffer<'a> {
    /// The registered name: `permessage-deflate`.
    pub name: &'a str,
    params: &'a [u8],
}

impl<'a> ExtensionOffers<'a> {
    /// Checks the grammar of the whole value; `None` if it is malformed.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let offers = Self {
            lexer: Lexer { rest: value },
        };
        let mut lexer = offers.lexer.clone();
        loop {
            lexer.skip_separators();
            if lexer.rest.is_empty() {
                return Some(offers);
            }
            lexer.offer()?;
            lexer.skip_space();
            if !lexer.rest.is_empty() && !lexer.byte(b',') {
                return None;
            }
        }
    }
}

impl<'a> Iterator for ExtensionOffers<'a> {
    type Item = ExtensionOffer<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.lexer.skip_separators();
        self.lexer.offer()
    }
}

impl<'a> ExtensionOffer<'a> {
    /// The parameters in order: name, and value if there is one. A quoted value comes without
    /// its quotes; escapes in it stay as they are.
    pub fn params(&self) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
        let mut lexer = Lexer { rest: self.params };
        core::iter::from_fn(move || lexer.param())
    }
}

#[derive(Clone, Debug)]
struct Lexer<'a> {
    rest: &'a [u8],
}

impl<'a> Lexer<'a> {
    fn offer(&mut self) -> Option<ExtensionOffer<'a>> {
        let name = self.token()?;
        let params = self.rest;
        loop {
            self.skip_space();
            if self.rest.first() != Some(&b';') {
                let len = params.len() - self.rest.len();
                return Some(ExtensionOffer {
                    name,
                    params: &params[..len],
                });
            }
            self.param()?;
        }
    }

    /// `;` name [ `=` value ]
    fn param(&mut self) -> Option<(&'a str, Option<&'a str>)> {
        self.skip_space();
        if !self.byte(b';') {
            return None;
        }
        self.skip_space();
        let name = self.token()?;
        self.skip_space();
        if !self.byte(b'=') {
            return Some((name, None));
        }
        self.skip_space();
        let value = if self.byte(b'"') {
            self.quoted()?
        } else {
            self.token()?
        };
        Some((name, Some(value)))
    }

    /// What stands before the closing quote.
    fn quoted(&mut self) -> Option<&'a str> {
        let mut len = 0;
        loop {
            match self.rest.get(len)? {
                b'"' => break,
                b'\\' => len += 2,
                _ => len += 1,
            }
        }
        let value = core::str::from_utf8(&self.rest[..len]).ok()?;
        self.rest = &self.rest[len + 1..];
        Some(value)
    }

    fn token(&mut self) -> Option<&'a str> {
        let end = self.rest.iter().position(|&byte| !is_token_byte(byte));
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        let token = core::str::from_utf8(token).ok()?;
        if token.is_empty() { None } else { Some(token) }
    }

    fn byte(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((&first, rest)) if first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn skip_space(&mut self) {
        while self.byte(b' ') || self.byte(b'\t') {}
    }

    fn skip_separators(&mut self) {
        while self.byte(b' ') || self.byte(b'\t') || self.byte(b',') {}
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    use super::*;

    fn check(value: &str, want: Option<&str>) {
        let offers = ExtensionOffers::parse(value.as_bytes());
        let got = offers.map(|offers| {
            let offers: Vec<String> = offers
                .map(|offer| {
                    let params = offer
                        .params()
                        .map(|(name, value)| alloc::format!(";{name}={}", value.unwrap_or("-")));
                    offer.name.to_string() + &params.collect::<String>()
                })
                .collect();
            offers.join(",")
        });
        assert_eq!(got.as_deref(), want, "{value:?}");
    }

    #[test]
    fn offers_have_their_parameters() {
        check("", Some(""));
        check(" , ,", Some(""));
        check("a", Some("a"));
        check(" a ; b ; c = d , e", Some("a;b=-;c=d,e"));
        check("a;b=\"c\",d;e=\"f,g;h\"", Some("a;b=c,d;e=f,g;h"));
        check(r#"a;b="c\"d""#, Some(r#"a;b=c\"d"#));
        check(
            "x;__proto__=1;constructor",
            Some("x;__proto__=1;constructor=-"),
        );
    }

    #[test]
    fn malformed_values_are_refused() {
        for value in [
            "a b",
            "a;",
            "a;=b",
            "a;b=",
            "a;b=\"c",
            "a;b=\"c\\",
            "a;b=\"c\\\"",
            ";a",
            "a=b",
            "a;b=c d",
            "a\u{0}",
            "é",
            "a;b=\"c\"d",
        ] {
            check(value, None);
        }
    }

    #[test]
    fn ext_redos_takes_linear_time() {
        // Long enough that anything quadratic would take minutes.
        let len = 1 << 20;
        let spaces = " ".repeat(len);
        check(
            &alloc::format!("a;b{spaces}={spaces}c{spaces}"),
            Some("a;b=c"),
        );
        check(&alloc::format!("a{spaces}x"), None);
        check(&alloc::format!("a;b=\"{}", "\\\\".repeat(len)), None);
        let params = ";b".repeat(len);
        assert!(ExtensionOffers::parse(alloc::format!("a{params}").as_bytes()).is_some());
    }
}
