//! The record layer of an established TLS 1.3 connection (RFC 8446 §5), over rustls' ciphers and
//! key schedule.
//!
//! When its handshake is done, rustls hands out the traffic keys: what it has needed for the
//! handshake is freed, which is most of what it holds, and records are decrypted where they
//! were received. The keys could as well be given to the kernel (kTLS).

use arrayvec::ArrayVec;
use rustls::AlertDescription;
use rustls::ConnectionTrafficSecrets;
use rustls::ContentType;
use rustls::Error as RustlsError;
use rustls::ExtractedSecrets;
use rustls::ProtocolVersion;
use rustls::SupportedCipherSuite;
use rustls::Tls13CipherSuite;
use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::AeadKey;
use rustls::crypto::cipher::InboundOpaqueMessage;
use rustls::crypto::cipher::Iv;
use rustls::crypto::cipher::MessageDecrypter;
use rustls::crypto::cipher::MessageEncrypter;
use rustls::crypto::cipher::OutboundChunks;
use rustls::crypto::cipher::OutboundPlainMessage;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;

use crate::buffer::Pool;
use crate::buffer::SendQueue;

use super::session::RECORD_HEADER_LEN;
use super::session::RECORD_LEN_MAX;

/// The longest ciphertext of a record (RFC 8446 §5.2).
const CIPHERTEXT_LEN_MAX: usize = RECORD_LEN_MAX + 256;

/// Records in a row that bring no application data: key updates, tickets, empty ones. Each
/// costs more than its bytes.
const EMPTY_RECORDS_MAX: u8 = 32;

/// A handshake message's type and length (RFC 8446 §4).
const HANDSHAKE_HEADER_LEN: usize = 4;

/// The longest handshake message that is taken: a session ticket.
const HANDSHAKE_LEN_MAX: usize = 0xFFFF;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

const ALERT_WARNING: u8 = 1;
const ALERT_FATAL: u8 = 2;

/// Pieces of output that one record takes.
const PIECES_MAX: usize = 16;

/// Keys and counters of both directions.
pub(super) struct Records {
    secrets: Secrets,
    suite: &'static Tls13CipherSuite,
    encrypter: Box<dyn MessageEncrypter>,
    decrypter: Box<dyn MessageDecrypter>,
    /// Records that were sent and received with the current keys.
    sent: u64,
    received: u64,
    /// The beginning of a handshake message that goes on in the next record.
    handshake: Vec<u8>,
    empty_records: u8,
    /// The peer has asked for new keys, which the next record is to come with.
    owes_key_update: bool,
}

/// What rustls keeps: the key schedule, and where tickets go.
pub(super) enum Secrets {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

/// What a record was.
pub(super) enum Received {
    /// Application data, appended, or something that was dealt with.
    Taken,
    /// The peer will send nothing more.
    CloseNotify,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the peer sent the TLS alert {0:?}")]
    Alert(AlertDescription),
    #[error("TLS: {1}")]
    Broken(AlertDescription, &'static str),
    #[error("TLS: {0}")]
    Rustls(RustlsError),
}

impl Fault {
    /// What the peer is told (RFC 8446 §6.2).
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Alert(_) => None,
            Self::Broken(alert, _) => Some(*alert),
            Self::Rustls(_) => Some(AlertDescription::InternalError),
        }
    }
}

impl From<RustlsError> for Fault {
    fn from(error: RustlsError) -> Self {
        Self::Rustls(error)
    }
}

fn unexpected(what: &'static str) -> Fault {
    Fault::Broken(AlertDescription::UnexpectedMessage, what)
}

impl Secrets {
    fn next_sending(&mut self) -> Result<ConnectionTrafficSecrets, RustlsError> {
        let next = match self {
            Self::Server(secrets) => secrets.update_tx_secret(),
            Self::Client(secrets) => secrets.update_tx_secret(),
        };
        next.map(|(_, keys)| keys)
    }

    fn next_receiving(&mut self) -> Result<ConnectionTrafficSecrets, RustlsError> {
        let next = match self {
            Self::Server(secrets) => secrets.update_rx_secret(),
            Self::Client(secrets) => secrets.update_rx_secret(),
        };
        next.map(|(_, keys)| keys)
    }

    pub(super) fn suite(&self) -> SupportedCipherSuite {
        match self {
            Self::Server(secrets) => secrets.negotiated_cipher_suite(),
            Self::Client(secrets) => secrets.negotiated_cipher_suite(),
        }
    }
}

/// How long the record is that begins `input`, its header included; none if that cannot be
/// said yet.
///
/// # Errors
/// No record may begin so.
pub(super) fn record_len(input: &[u8]) -> Result<Option<usize>, Fault> {
    // RFC 8446 §5: behind the handshake every record is application data on the outside.
    let is_data = |&first: &u8| ContentType::from(first) == ContentType::ApplicationData;
    if !input.first().is_none_or(is_data) {
        return Err(unexpected("a record that is not encrypted"));
    }
    let Some(len) = input.get(3..RECORD_HEADER_LEN) else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
    // RFC 8446 §5.2: longer ones end the connection with record_overflow.
    if len > CIPHERTEXT_LEN_MAX {
        let what = "a record that is too long";
        return Err(Fault::Broken(AlertDescription::RecordOverflow, what));
    }
    Ok(Some(RECORD_HEADER_LEN + len))
}

impl Records {
    /// Goes on with the keys that rustls has agreed.
    pub(super) fn new(
        keys: ExtractedSecrets,
        secrets: Secrets,
        suite: &'static Tls13CipherSuite,
    ) -> Result<Self, RustlsError> {
        Ok(Self {
            secrets,
            suite,
            encrypter: encrypter(suite, keys.tx.1)?,
            decrypter: decrypter(suite, keys.rx.1)?,
            sent: keys.tx.0,
            received: keys.rx.0,
            handshake: Vec::new(),
            empty_records: 0,
            owes_key_update: false,
        })
    }

    pub(super) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Takes one whole record, of the length that [`record_len`] says; it is decrypted where it
    /// lies.
    pub(super) fn receive(
        &mut self,
        record: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> Result<Received, Fault> {
        let payload = &mut record[RECORD_HEADER_LEN..];
        let version = ProtocolVersion::TLSv1_2;
        let message = InboundOpaqueMessage::new(ContentType::ApplicationData, version, payload);
        let message = self.decrypter.decrypt(message, self.received);
        let message = message.map_err(|error| match error {
            RustlsError::PeerSentOversizedRecord => Fault::Broken(
                AlertDescription::RecordOverflow,
                "a record that is too long",
            ),
            RustlsError::PeerMisbehaved(_) => unexpected("a record of no type"),
            _ => Fault::Broken(AlertDescription::BadRecordMac, "a record that was altered"),
        })?;
        self.received += 1;
        // RFC 8446 §5.1: nothing comes between the fragments of a handshake message.
        if !self.handshake.is_empty() && message.typ != ContentType::Handshake {
            return Err(unexpected("a handshake message that was interrupted"));
        }
        if message.typ == ContentType::ApplicationData && !message.payload.is_empty() {
            self.empty_records = 0;
            plain.extend_from_slice(message.payload);
            return Ok(Received::Taken);
        }
        self.empty_records += 1;
        if self.empty_records > EMPTY_RECORDS_MAX {
            return Err(unexpected("too many records without data"));
        }
        match message.typ {
            ContentType::ApplicationData => Ok(Received::Taken),
            ContentType::Alert => receive_alert(message.payload),
            ContentType::Handshake => {
                // Borrowed from the record, which is not looked at again.
                self.handshake.extend_from_slice(message.payload);
                self.receive_handshake()?;
                Ok(Received::Taken)
            }
            _ => Err(unexpected("a record of another type")),
        }
    }

    /// Takes the handshake messages that are whole.
    fn receive_handshake(&mut self) -> Result<(), Fault> {
        while let Some(&[kind, len @ ..]) = self.handshake.first_chunk::<HANDSHAKE_HEADER_LEN>() {
            let len = u32::from_be_bytes([0, len[0], len[1], len[2]]) as usize;
            let is_client = matches!(self.secrets, Secrets::Client(_));
            match kind {
                // RFC 8446 §4.6.1: servers send them.
                NEW_SESSION_TICKET if is_client && len <= HANDSHAKE_LEN_MAX => {}
                KEY_UPDATE if len == 1 => {}
                _ => return Err(unexpected("a handshake message out of place")),
            }
            let end = HANDSHAKE_HEADER_LEN + len;
            let Some(body) = self.handshake.get(HANDSHAKE_HEADER_LEN..end) else {
                return Ok(());
            };
            match (kind, body, &mut self.secrets) {
                (NEW_SESSION_TICKET, body, Secrets::Client(secrets)) => {
                    let taken = secrets.handle_new_session_ticket(body);
                    taken.map_err(|_| {
                        Fault::Broken(AlertDescription::DecodeError, "a malformed ticket")
                    })?;
                }
                (KEY_UPDATE, &[request @ (0 | 1)], _) => {
                    // RFC 8446 §5.1: keys change between records.
                    if self.handshake.len() > end {
                        return Err(unexpected("data behind a key update"));
                    }
                    self.owes_key_update |= request == 1;
                    let keys = self.secrets.next_receiving()?;
                    self.decrypter = decrypter(self.suite, keys)?;
                    self.received = 0;
                }
                _ => {
                    let alert = AlertDescription::IllegalParameter;
                    return Err(Fault::Broken(alert, "a malformed key update"));
                }
            }
            self.handshake.drain(..end);
        }
        if self.handshake.is_empty() {
            // An idle connection holds no buffer.
            self.handshake = Vec::new();
        }
        Ok(())
    }

    /// Encrypts the front of `queue` into one record; says how much that was.
    pub(super) fn seal(
        &mut self,
        queue: &SendQueue,
        outgoing: &mut SendQueue,
        pool: &mut Pool,
    ) -> Result<usize, RustlsError> {
        let last = self.suite.common.confidentiality_limit.saturating_sub(2);
        if self.owes_key_update || self.sent >= last {
            self.update_sending(outgoing, pool)?;
        }
        let slices: ArrayVec<_, PIECES_MAX> = queue.slices().take(PIECES_MAX).collect();
        let mut room = RECORD_LEN_MAX;
        let pieces: ArrayVec<&[u8], PIECES_MAX> = slices
            .iter()
            .map(|slice| {
                let len = slice.len().min(room);
                room -= len;
                &slice[..len]
            })
            .collect();
        let chunks = OutboundChunks::new(&pieces);
        let len = chunks.len();
        self.push(ContentType::ApplicationData, chunks, outgoing, pool)?;
        Ok(len)
    }

    /// New keys for what is sent (RFC 8446 §4.6.3).
    fn update_sending(
        &mut self,
        outgoing: &mut SendQueue,
        pool: &mut Pool,
    ) -> Result<(), RustlsError> {
        const UPDATE_NOT_REQUESTED: u8 = 0;
        let message = [KEY_UPDATE, 0, 0, 1, UPDATE_NOT_REQUESTED];
        let chunks = OutboundChunks::Single(&message);
        self.push(ContentType::Handshake, chunks, outgoing, pool)?;
        let keys = self.secrets.next_sending()?;
        self.encrypter = encrypter(self.suite, keys)?;
        self.sent = 0;
        self.owes_key_update = false;
        Ok(())
    }

    /// Says why nothing more will be sent.
    pub(super) fn seal_alert(
        &mut self,
        alert: AlertDescription,
        outgoing: &mut SendQueue,
        pool: &mut Pool,
    ) -> Result<(), RustlsError> {
        let level = if alert == AlertDescription::CloseNotify {
            ALERT_WARNING
        } else {
            ALERT_FATAL
        };
        let message = [level, u8::from(alert)];
        let chunks = OutboundChunks::Single(&message);
        self.push(ContentType::Alert, chunks, outgoing, pool)
    }

    fn push(
        &mut self,
        typ: ContentType,
        payload: OutboundChunks<'_>,
        outgoing: &mut SendQueue,
        pool: &mut Pool,
    ) -> Result<(), RustlsError> {
        let message = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_2,
            payload,
        };
        let record = self.encrypter.encrypt(message, self.sent)?;
        // RFC 8446 §5.3: a sequence number is used once; the keys change long before the end.
        self.sent += 1;
        outgoing.push(&record.encode(), &[], pool);
        Ok(())
    }
}

fn receive_alert(payload: &[u8]) -> Result<Received, Fault> {
    let &[_, description] = payload else {
        let what = "a malformed alert";
        return Err(Fault::Broken(AlertDescription::DecodeError, what));
    };
    match AlertDescription::from(description) {
        AlertDescription::CloseNotify => Ok(Received::CloseNotify),
        // RFC 8446 §6.1: a close_notify follows.
        AlertDescription::UserCanceled => Ok(Received::Taken),
        alert => Err(Fault::Alert(alert)),
    }
}

fn encrypter(
    suite: &Tls13CipherSuite,
    keys: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageEncrypter>, RustlsError> {
    let (key, iv) = key_and_iv(keys).ok_or(RustlsError::EncryptError)?;
    Ok(suite.aead_alg.encrypter(key, iv))
}

fn decrypter(
    suite: &Tls13CipherSuite,
    keys: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, RustlsError> {
    let (key, iv) = key_and_iv(keys).ok_or(RustlsError::DecryptError)?;
    Ok(suite.aead_alg.decrypter(key, iv))
}

/// The same of every suite; none of one that is newer than this.
fn key_and_iv(keys: ConnectionTrafficSecrets) -> Option<(AeadKey, Iv)> {
    match keys {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Some((key, iv)),
        _ => None,
    }
}
