use super::ProtocolError;
use super::Role;

/// The longest frame header: two bytes, a 64-bit length, a masking key.
pub const HEADER_LEN_MAX: usize = 14;

/// The longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_PAYLOAD_LEN_MAX: usize = 125;

const _: () = assert!(HEADER_LEN_MAX == 2 + 8 + 4);

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2_RSV3: u8 = 0x30;
const OPCODE: u8 = 0x0F;
const MASK: u8 = 0x80;
const FIN_TEXT: u8 = FIN | Opcode::Text as u8;
const FIN_BINARY: u8 = FIN | Opcode::Binary as u8;
const LEN_16: u8 = 126;
const LEN_64: u8 = 127;

/// The 4-bit opcode (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Goes on with a fragmented message.
    Continuation = 0x0,
    /// UTF-8 text.
    Text = 0x1,
    /// Bytes.
    Binary = 0x2,
    /// The closing handshake.
    Close = 0x8,
    /// Asks for a pong.
    Ping = 0x9,
    /// Answers a ping.
    Pong = 0xA,
}

impl Opcode {
    fn new(bits: u8) -> Result<Self, ProtocolError> {
        match bits {
            0x0 => Ok(Self::Continuation),
            0x1 => Ok(Self::Text),
            0x2 => Ok(Self::Binary),
            0x8 => Ok(Self::Close),
            0x9 => Ok(Self::Ping),
            0xA => Ok(Self::Pong),
            _ => Err(ProtocolError::OpcodeReserved),
        }
    }

    /// Close, Ping and Pong (RFC 6455 §5.5).
    #[inline]
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// A frame header (RFC 6455 §5.2).
///
/// ```text
///  0               1               2               3
/// +-+-+-+-+-------+-+-------------+-------------------------------+
/// |F|R|R|R| opcode|M| payload len |  16 or 64 bits of length,     |
/// |I|S|S|S|       |A|  0..=125    |  if payload len is 126 or 127 |
/// |N|V|V|V|       |S|  126, 127   |                               |
/// | |1|2|3|       |K|             |  masking key, if MASK is set  |
/// +-+-+-+-+-------+-+-------------+-------------------------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Last frame of its message.
    pub fin: bool,
    /// The bit that permessage-deflate uses (RFC 7692 §6).
    pub rsv1: bool,
    /// What the payload is.
    pub opcode: Opcode,
    /// Bytes of payload, below 2^63.
    pub payload_len: u64,
    /// The masking key of a client's frame.
    pub mask_key: Option<[u8; 4]>,
}

/// What [`FrameHeader::decode_common`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CommonHeader {
    /// The message is text.
    pub(super) text: bool,
    /// Bytes of the header.
    pub(super) len: usize,
    /// Bytes of payload.
    pub(super) payload_len: usize,
    /// Zeros where there is none.
    pub(super) mask_key: [u8; 4],
}

/// A header on the wire.
#[derive(Clone, Copy, Debug)]
pub struct EncodedHeader {
    bytes: [u8; HEADER_LEN_MAX],
    len: u8,
}

impl EncodedHeader {
    /// The bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl FrameHeader {
    /// Reads the header at the front of `input` and says how many bytes it takes; `None` if it
    /// is not all there. An illegal header is refused as soon as the byte that makes it so is
    /// there.
    ///
    /// # Errors
    /// Rules that hold for every frame of every endpoint: [`ProtocolError::ReservedBit`] for
    /// RSV2 and RSV3, [`ProtocolError::OpcodeReserved`], [`ProtocolError::ControlFragmented`],
    /// [`ProtocolError::ControlTooLong`], [`ProtocolError::LengthNotMinimal`],
    /// [`ProtocolError::LengthTooLarge`].
    #[inline]
    pub fn decode(input: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some(&first) = input.first() else {
            return Ok(None);
        };
        // RFC 6455 §5.2: RSV bits are zero unless an extension says otherwise; no extension
        // that exists uses RSV2 or RSV3.
        if first & RSV2_RSV3 != 0 {
            return Err(ProtocolError::ReservedBit);
        }
        let opcode = Opcode::new(first & OPCODE)?;
        let fin = first & FIN != 0;
        let rsv1 = first & RSV1 != 0;
        if opcode.is_control() {
            // RFC 6455 §5.5: control frames are not fragmented.
            if !fin {
                return Err(ProtocolError::ControlFragmented);
            }
            // RFC 7692 §6: only the first frame of a data message is marked.
            if rsv1 {
                return Err(ProtocolError::ReservedBit);
            }
        }
        let Some(&second) = input.get(1) else {
            return Ok(None);
        };
        let len_bits = second & !MASK;
        // RFC 6455 §5.5: control frames have 125 bytes or less.
        if opcode.is_control() && usize::from(len_bits) > CONTROL_PAYLOAD_LEN_MAX {
            return Err(ProtocolError::ControlTooLong);
        }
        let rest = &input[2..];
        // RFC 6455 §5.2: the minimal number of bytes is used to encode the length.
        let (payload_len, rest) = match len_bits {
            LEN_16 => match rest.split_first_chunk::<2>() {
                Some((bytes, rest)) => match u16::from_be_bytes(*bytes) {
                    0..=125 => return Err(ProtocolError::LengthNotMinimal),
                    len => (u64::from(len), rest),
                },
                None => return Ok(None),
            },
            LEN_64 => match rest.split_first_chunk::<8>() {
                Some((bytes, rest)) => match u64::from_be_bytes(*bytes) {
                    0..=0xFFFF => return Err(ProtocolError::LengthNotMinimal),
                    len if len >> 63 != 0 => return Err(ProtocolError::LengthTooLarge),
                    len => (len, rest),
                },
                None => return Ok(None),
            },
            len => (u64::from(len), rest),
        };
        let (mask_key, rest) = if second & MASK == 0 {
            (None, rest)
        } else {
            match rest.split_first_chunk::<4>() {
                Some((key, rest)) => (Some(*key), rest),
                None => return Ok(None),
            }
        };
        let header = Self {
            fin,
            rsv1,
            opcode,
            payload_len,
            mask_key,
        };
        Ok(Some((header, input.len() - rest.len())))
    }

    /// The header of a message in one frame with the shortest or the middle form of a length, as
    /// a peer of an endpoint in this role sends it; `None` if it is anything else, a broken rule
    /// among it, or fewer than eight bytes are there. What most frames have, read at once.
    #[inline]
    pub(super) fn decode_common(input: &[u8], role: Role) -> Option<CommonHeader> {
        let word = u64::from_le_bytes(*input.first_chunk()?);
        let [first, second, ..] = word.to_le_bytes();
        let text = match first {
            FIN_TEXT => true,
            FIN_BINARY => false,
            _ => return None,
        };
        let masked = role == Role::Server;
        if (second & MASK != 0) != masked {
            return None;
        }
        let (len, payload_len) = match second & !MASK {
            LEN_16 => match (word >> 16) as u16 {
                // RFC 6455 §5.2: the minimal number of bytes is used to encode the length.
                len if len.swap_bytes() < LEN_16.into() => return None,
                len => (4, len.swap_bytes().into()),
            },
            LEN_64 => return None,
            len => (2, len.into()),
        };
        let mask_key = match masked {
            true => ((word >> (8 * len)) as u32).to_le_bytes(),
            false => [0; 4],
        };
        Some(CommonHeader {
            text,
            len: if masked { len + 4 } else { len },
            payload_len,
            mask_key,
        })
    }

    /// Checks that the peer of an endpoint in this role may have sent it.
    ///
    /// # Errors
    /// [`ProtocolError::Unmasked`], [`ProtocolError::Masked`].
    #[inline]
    pub fn check_mask(&self, role: Role) -> Result<(), ProtocolError> {
        match (role, self.mask_key) {
            (Role::Server, Some(_)) | (Role::Client, None) => Ok(()),
            // RFC 6455 §5.1: a server closes the connection on a frame that is not masked.
            (Role::Server, None) => Err(ProtocolError::Unmasked),
            // RFC 6455 §5.1: a client closes the connection on a masked frame.
            (Role::Client, Some(_)) => Err(ProtocolError::Masked),
        }
    }

    /// The header of a server's message in one frame, if its length has the shortest or the middle
    /// form: four bytes, and how many of them it is. As [`encode`](Self::encode) would write it.
    #[inline]
    pub fn encode_common(opcode: Opcode, payload_len: usize) -> Option<([u8; 4], usize)> {
        let first = FIN | opcode as u8;
        match payload_len {
            0..=125 => Some(([first, payload_len as u8, 0, 0], 2)),
            126..=0xFFFF => {
                let [high, low] = (payload_len as u16).to_be_bytes();
                Some(([first, LEN_16, high, low], 4))
            }
            _ => None,
        }
    }

    /// The header on the wire.
    #[inline]
    pub fn encode(&self) -> EncodedHeader {
        let mut bytes = [0; HEADER_LEN_MAX];
        bytes[0] = u8::from(self.fin) << 7 | u8::from(self.rsv1) << 6 | self.opcode as u8;
        let mask = if self.mask_key.is_some() { MASK } else { 0 };
        let mut len = match self.payload_len {
            0..=125 => {
                bytes[1] = mask | self.payload_len as u8;
                2
            }
            126..=0xFFFF => {
                bytes[1] = mask | LEN_16;
                bytes[2..4].copy_from_slice(&(self.payload_len as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = mask | LEN_64;
                bytes[2..10].copy_from_slice(&self.payload_len.to_be_bytes());
                10
            }
        };
        if let Some(key) = self.mask_key {
            bytes[len..len + 4].copy_from_slice(&key);
            len += 4;
        }
        EncodedHeader {
            bytes,
            len: len as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the first bytes are, what is read at once is what is read step by step.
    #[test]
    fn common_header_is_read_and_written_as_any_other() {
        let mut common = 0;
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                for len in [0_u16, 125, 126, 127, 0x1234, 0xFFFF] {
                    let mut input = [0xA5; 16];
                    input[..2].copy_from_slice(&[first, second]);
                    input[2..4].copy_from_slice(&len.to_be_bytes());
                    for role in [Role::Client, Role::Server] {
                        common += u32::from(check(&input, role));
                    }
                }
            }
        }
        // Two opcodes, two roles, six lengths: 126 short forms, and the four middle ones allowed.
        assert_eq!(common, 2 * 2 * (6 * 126 + 4));
        assert_eq!(FrameHeader::decode_common(&[0x82; 7], Role::Client), None);
    }

    fn check(input: &[u8], role: Role) -> bool {
        let Some(got) = FrameHeader::decode_common(input, role) else {
            return false;
        };
        let Ok(Some((header, len))) = FrameHeader::decode(input) else {
            panic!("{input:02X?} is no header");
        };
        assert_eq!(header.check_mask(role), Ok(()));
        let want = CommonHeader {
            text: header.opcode == Opcode::Text,
            len,
            payload_len: header.payload_len as usize,
            mask_key: header.mask_key.unwrap_or_default(),
        };
        assert_eq!(got, want, "{input:02X?}");
        assert!(header.fin);
        assert!(!header.rsv1);
        true
    }

    #[test]
    fn common_header_is_encoded_as_any_other() {
        for payload_len in [
            0,
            1,
            125,
            126,
            127,
            0x1234,
            0xFFFF,
            0x1_0000,
            usize::MAX >> 1,
        ] {
            for opcode in [Opcode::Text, Opcode::Binary] {
                let header = FrameHeader {
                    fin: true,
                    rsv1: false,
                    opcode,
                    payload_len: payload_len as u64,
                    mask_key: None,
                };
                match FrameHeader::encode_common(opcode, payload_len) {
                    Some((bytes, len)) => assert_eq!(header.encode().as_bytes(), &bytes[..len]),
                    None => assert!(payload_len > 0xFFFF),
                }
            }
        }
    }
}
