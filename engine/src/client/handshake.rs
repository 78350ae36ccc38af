//! The opening handshake over any stream.

use std::io;
use std::io::Read;
use std::io::Write;
use std::time::Instant;

use crate::config::CompressionSettings;
use crate::connect::Connect;
use crate::http1;
use crate::http1::HEADER_COUNT_MAX;
use crate::http1::ResponseHead;
use crate::protocol::handshake::Refusal;
use crate::protocol::handshake::ResponseError;
use crate::random::Seed;

use super::Error;
use super::WebSocket;

/// A seed from the system's generator.
pub(super) fn seed() -> Result<Seed, Error> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(io::Error::from)?;
    Ok(seed)
}

impl<S: Read + Write> WebSocket<S> {
    /// Sends the request and takes its answer.
    pub(super) fn open(
        &mut self,
        connect: &Connect,
        compression: &CompressionSettings,
        deadline: Instant,
    ) -> Result<(), Error> {
        let handshake = {
            let deflate = connect.compression_wanted().params();
            connect.handshake(&mut self.random, deflate)?
        };
        self.bound(deadline);
        self.push_bytes(&handshake.head);
        self.flush()?;
        loop {
            let (status, len) = self.read_head()?;
            // RFC 9110 §15.2: interim responses come before the final one.
            if matches!(status, 100 | 102..200) {
                self.skip(len);
                continue;
            }
            let head = self.unread()[..len].to_vec();
            self.skip(len);
            if status != 101 {
                return Err(self.refusal(status, head));
            }
            let mut storage = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
            let response = ResponseHead::parse(&head, &mut storage);
            let response = response.ok_or(ResponseError::Malformed)?;
            let subprotocol = handshake.expected.check(&response)?.map(str::to_owned);
            let deflate = handshake.expected.check_deflate(&response)?;
            self.accept(subprotocol, head);
            if let Some(params) = deflate {
                self.set_deflate(&params, compression);
            }
            self.unbound();
            return Ok(());
        }
    }

    /// Reads until a head is there; gives its status and length.
    fn read_head(&mut self) -> Result<(u16, usize), Error> {
        let limits = self.limits().clone();
        let mut searched = 0;
        let len = loop {
            let unread = self.unread();
            match http1::head_len(unread, searched) {
                Some(len) if len <= limits.head_len_max => break len,
                None if http1::has_bare_lf(unread, searched) || !http1::may_be_response(unread) => {
                    return Err(ResponseError::not_a_head(unread).into());
                }
                None if unread.len() < limits.head_len_max => searched = unread.len(),
                _ => return Err(ResponseError::TooLong.into()),
            }
            self.fill()?;
        };
        let mut storage = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
        let storage = &mut storage[..limits.header_count_max];
        let head = &self.unread()[..len];
        let not_a_head = ResponseError::not_a_head(head);
        let head = ResponseHead::parse(head, storage).ok_or(not_a_head)?;
        Ok((head.status, len))
    }

    /// The answer, with the beginning of its body as far as it comes.
    fn refusal(&mut self, status: u16, head: Vec<u8>) -> Error {
        let mut storage = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
        let parsed = ResponseHead::parse(&head, &mut storage);
        let announced = parsed
            .and_then(|head| str::from_utf8(head.only_header("Content-Length")?).ok())
            .and_then(|len| len.parse().ok());
        let closes = parsed.is_some_and(|head| {
            let mut items = head.header_values("Connection").flat_map(http1::list_items);
            items.any(|item| item.eq_ignore_ascii_case(b"close"))
        });
        // Where nothing says how long it is, nobody waits for it.
        let there = self.unread().len();
        let wanted = announced.unwrap_or(if closes { usize::MAX } else { there });
        let wanted = wanted.min(Refusal::BODY_LEN_MAX);
        while self.unread().len() < wanted {
            // An end, an error or the deadline: what is there is what there is.
            if self.fill().is_err() {
                break;
            }
        }
        let body = self.unread();
        let body = body[..body.len().min(wanted)].to_vec();
        Error::Refused(Box::new(Refusal { status, head, body }))
    }
}
