//! Compressed messages (permessage-deflate, RFC 7692) of one connection.

use std::fmt;
use std::mem;
use std::ops::Range;

use crate::config::CompressionSettings;
use crate::config::Limits;
use crate::conn::Directions;
use crate::deflate::Bounds;
use crate::deflate::Codec;
use crate::deflate::Deflater;
use crate::deflate::Inflater;
use crate::protocol::Message;
use crate::protocol::ProtocolError;
use crate::protocol::Role;
use crate::protocol::handshake::DeflateParams;

/// What is kept of an inflated message's memory.
const INFLATED_LEN_KEPT: usize = 256 * 1024;

/// Compression that has been agreed.
pub(super) struct Compressor {
    directions: Directions,
    level: u8,
    mem: u8,
    len_min: usize,
    /// Whether messages are compressed, whatever their length.
    pub(super) wanted: Option<bool>,
    bounds: Bounds,
    codec: Codec,
    inflater: Option<Inflater>,
    deflater: Option<Deflater>,
    /// What has been made of the latest piece.
    inflated: Vec<u8>,
    /// In the middle of a message.
    begun: bool,
    deflated: Vec<u8>,
}

impl Compressor {
    /// For an endpoint of this role; `nonce` is random.
    pub(super) fn new(
        params: &DeflateParams,
        role: Role,
        settings: &CompressionSettings,
        limits: &Limits,
        nonce: [u8; 16],
    ) -> Self {
        let wanted = settings.mode.params();
        let takes_over = match role {
            Role::Server => true,
            Role::Client => wanted.is_none_or(|wanted| !wanted.client_no_context_takeover),
        };
        let directions = Directions::new(params, role, takes_over);
        Self {
            level: settings.level,
            mem: settings.mode.mem(),
            len_min: settings.len_min(directions.send_takeover),
            directions,
            wanted: None,
            bounds: Bounds::new(limits),
            codec: Codec::new(nonce),
            inflater: None,
            deflater: None,
            inflated: Vec::new(),
            begun: false,
            deflated: Vec::new(),
        }
    }

    /// Takes a piece of a compressed message; gives where in [`inflated`](Self::inflated) lies
    /// what it has become.
    pub(super) fn inflate(
        &mut self,
        mut piece: &[u8],
        is_text: bool,
        is_last: bool,
    ) -> Result<Range<usize>, ProtocolError> {
        let is_first = !mem::replace(&mut self.begun, !is_last);
        if self.inflated.len() > INFLATED_LEN_KEPT {
            self.inflated = Vec::new();
        }
        if self.inflated.is_empty() {
            self.inflated = self.codec.take_output();
        }
        if is_first && is_last && !self.directions.receive_takeover {
            let len = self.codec.inflate(piece, self.bounds, &mut self.inflated)?;
            if is_text {
                Message::text_of(&self.inflated[..len])?;
            }
            return Ok(0..len);
        }
        let bits = self.directions.receive_bits;
        let inflater = self.inflater.get_or_insert_with(|| Inflater::new(bits));
        if is_first && !self.directions.receive_takeover {
            inflater.reset();
        }
        inflater.announce(piece.len(), is_text);
        let mut len = 0;
        loop {
            let room = &mut self.inflated[len..];
            let (made, done) = inflater.inflate(&mut piece, is_last, self.bounds, room)?;
            len += made;
            if done {
                return Ok(0..len);
            }
            if len == self.inflated.len() {
                self.inflated.resize(2 * len, 0);
            }
        }
    }

    /// What has been made of the latest piece.
    pub(super) fn inflated(&self, range: Range<usize>) -> &[u8] {
        &self.inflated[range]
    }

    /// A message compressed, if it is to be and becomes shorter by it.
    pub(super) fn deflate(&mut self, payload: &[u8]) -> Option<&[u8]> {
        if !self.wanted.unwrap_or(payload.len() >= self.len_min) {
            return None;
        }
        if self.deflated.len() > INFLATED_LEN_KEPT {
            self.deflated = Vec::new();
        }
        let (level, bits, mem) = (self.level, self.directions.send_bits, self.mem);
        let deflated = &mut self.deflated;
        let len = if self.directions.send_takeover {
            let deflater = &mut self.deflater;
            let deflater = deflater.get_or_insert_with(|| Deflater::new(level, bits, mem));
            deflater.deflate(payload, deflated)?
        } else {
            self.codec.deflate(payload, level, bits, deflated)?
        };
        Some(&self.deflated[..len])
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor")
            .field("directions", &self.directions)
            .finish_non_exhaustive()
    }
}
