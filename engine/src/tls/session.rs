//! One connection's TLS.

use std::fmt;
use std::io;
use std::mem;

use rustls::AlertDescription;
use rustls::Error as RustlsError;
use rustls::HandshakeKind;
use rustls::ProtocolVersion;
use rustls::SupportedCipherSuite;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::unbuffered::AppDataRecord;
use rustls::unbuffered::ConnectionState;
use rustls::unbuffered::EncodeError;
use rustls::unbuffered::EncryptError;
use rustls::unbuffered::UnbufferedStatus;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;

use crate::buffer::Buffer;
use crate::buffer::Pool;
use crate::buffer::SendQueue;

use super::ClientTls;
use super::ServerTls;
use super::record;
use super::record::Received;
use super::record::Records;
use super::record::Secrets;

/// The longest plaintext of a record (RFC 8446 §5.1).
pub(super) const RECORD_LEN_MAX: usize = 16 * 1024;

/// What a record's header, nonce, tag and padding take at most, of any cipher suite.
const RECORD_OVERHEAD_MAX: usize = 64;

/// The header of a record: type, version, length (RFC 8446 §5.1).
pub(super) const RECORD_HEADER_LEN: usize = 5;

/// Room for a message of the handshake, as a first guess.
const ENCODED_LEN: usize = 512;

/// Plaintext that is encrypted before the last ciphertext has been sent: what one send is
/// likely to take.
const SEAL_LEN_MAX: usize = 4 * RECORD_LEN_MAX;

/// The content type of a handshake record: what a connection begins with (RFC 8446 §5.1).
const CONTENT_HANDSHAKE: u8 = 22;

/// One connection's TLS, as either end.
pub struct Session {
    stage: Stage,
    /// Ciphertext that is not a whole record, or not a whole handshake message.
    incoming: Buffer,
    /// Ciphertext that waits for the kernel.
    outgoing: Option<Box<SendQueue>>,
    /// How much plaintext `outgoing` holds.
    sealed_len: usize,
    /// Application data may be encrypted.
    can_seal: bool,
    /// The settings let rustls hand out its keys.
    extracts: bool,
    received: bool,
    failed: bool,
    peer_closed: bool,
    close_notify_sent: bool,
}

#[allow(
    clippy::large_enum_variant,
    reason = "sessions are boxed, and most are established"
)]
enum Stage {
    /// rustls does everything: until the handshake is done, and where the settings do not let
    /// it hand out its keys, and with TLS 1.2.
    Rustls(Box<Side>),
    /// TLS 1.3 with its handshake done.
    Established(Records, Box<Agreed>),
    /// A change of stage has failed.
    Failed,
}

#[allow(
    clippy::large_enum_variant,
    reason = "it is boxed, and both sides are about as large"
)]
enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What the handshake has agreed.
struct Agreed {
    peer_certificates: Option<Vec<CertificateDer<'static>>>,
    alpn_protocol: Option<Vec<u8>>,
    resumed: bool,
}

/// The same expression for either side: rustls has a type for each.
macro_rules! on_side {
    ($side:expr, $connection:ident => $call:expr) => {
        match $side {
            Side::Server($connection) => $call,
            Side::Client($connection) => $call,
        }
    };
}

/// Where a call into rustls leaves a session.
enum Progress {
    /// There is more to do with what is there.
    Again,
    /// Nothing more can be done without more input.
    Idle,
}

/// What is to be written once application data may be.
enum Seal<'a> {
    Nothing,
    Data(&'a [u8]),
    CloseNotify,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("can_seal", &self.can_seal)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A server's session with a client that has just connected.
    ///
    /// # Errors
    /// The settings cannot be used; [`ServerTls`] has tried them.
    pub fn server(tls: &ServerTls) -> io::Result<Self> {
        let config = tls.config();
        let extracts = config.enable_secret_extraction;
        let connection = UnbufferedServerConnection::new(config).map_err(to_io)?;
        Ok(Self::new(Side::Server(connection), extracts))
    }

    /// A client's session with the server of this name or address.
    ///
    /// # Errors
    /// No such name can be.
    pub fn client(tls: &ClientTls, name: &str) -> io::Result<Self> {
        let name = server_name(name)?.to_owned();
        let config = tls.config();
        let extracts = config.enable_secret_extraction;
        let connection = UnbufferedClientConnection::new(config, name).map_err(to_io)?;
        Ok(Self::new(Side::Client(connection), extracts))
    }

    /// Whether a server's certificate can be for this name or address.
    ///
    /// # Errors
    /// It cannot.
    pub fn check_name(name: &str) -> io::Result<()> {
        server_name(name).map(|_| ())
    }

    fn new(side: Side, extracts: bool) -> Self {
        Self {
            stage: Stage::Rustls(Box::new(side)),
            incoming: Buffer::new(),
            outgoing: None,
            sealed_len: 0,
            can_seal: false,
            extracts,
            received: false,
            failed: false,
            peer_closed: false,
            close_notify_sent: false,
        }
    }

    /// Whether nothing has been received.
    pub fn is_fresh(&self) -> bool {
        !self.received
    }

    /// Whether the peer has said that nothing more will come.
    pub fn is_peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Whether output can be encrypted.
    pub fn can_seal(&self) -> bool {
        self.can_seal && !self.failed && !self.close_notify_sent
    }

    /// Whether the peer has to be told before the stream ends.
    pub fn owes_close_notify(&self) -> bool {
        self.can_seal()
    }

    /// Ciphertext that waits for the kernel.
    pub fn outgoing(&self) -> Option<&SendQueue> {
        self.outgoing.as_deref()
    }

    /// Takes the ciphertext that waits, to send it.
    pub fn take_outgoing(&mut self) -> Option<Box<SendQueue>> {
        self.outgoing.take()
    }

    /// Gives back what was not sent of it.
    pub fn put_outgoing(&mut self, queue: Box<SendQueue>, pool: &mut Pool) {
        self.outgoing = Some(queue);
        self.consume(0, pool);
    }

    /// Plaintext that has been encrypted and not been sent, in bytes; never more than waits.
    pub fn queued_len(&self) -> usize {
        let waiting = self.outgoing.as_ref().map_or(0, |queue| queue.len());
        self.sealed_len.min(waiting)
    }

    /// Moves ciphertext that waits into less memory, where most of it is not in use.
    pub fn compact(&mut self, pool: &mut Pool) {
        if let Some(queue) = &mut self.outgoing {
            queue.compact(pool);
        }
    }

    /// Memory that is held for ciphertext that waits.
    pub fn held_len(&self) -> usize {
        self.outgoing.as_ref().map_or(0, |queue| queue.held_len())
    }

    /// The kernel has taken `len` bytes of ciphertext.
    pub fn consume(&mut self, len: usize, pool: &mut Pool) {
        if let Some(queue) = &mut self.outgoing {
            queue.consume(len, pool);
        }
        if let Some(queue) = self.outgoing.take_if(|queue| queue.is_empty()) {
            pool.put_queue(queue);
            self.sealed_len = 0;
        }
    }

    /// Takes ciphertext and appends the plaintext of each whole record in it to `plain`. What
    /// the handshake answers, and the alert that an error is, waits to be sent.
    ///
    /// # Errors
    /// The peer broke TLS, or was refused; plaintext from before that has been appended.
    pub fn receive(
        &mut self,
        input: &mut [u8],
        plain: &mut Vec<u8>,
        pool: &mut Pool,
    ) -> io::Result<()> {
        if self.failed || self.peer_closed {
            return Ok(());
        }
        if !mem::replace(&mut self.received, true) {
            self.check_first(input)?;
        }
        let mut rest = input;
        while !self.incoming.is_empty() && !rest.is_empty() {
            let len = match missing_len(&self.incoming) {
                // A handshake message goes on in further records.
                0 => rest.len(),
                // The record that has begun is completed, and no byte more is copied.
                missing => missing.min(rest.len()),
            };
            let (front, back) = mem::take(&mut rest).split_at_mut(len);
            pool.extend(&mut self.incoming, front);
            rest = back;
            let established = matches!(self.stage, Stage::Established(..));
            if missing_len(&self.incoming) > 0 && !established {
                continue;
            }
            let mut incoming = mem::take(&mut self.incoming);
            let taken = self.drive(&mut incoming, plain, pool, &Seal::Nothing);
            let taken = taken.inspect_err(|_| pool.put(mem::take(&mut incoming)))?;
            if taken == incoming.len() {
                pool.put(incoming);
            } else {
                // A handshake message that goes on in the next record.
                remove_front(&mut incoming, taken);
                self.incoming = incoming;
            }
        }
        if !rest.is_empty() {
            let taken = self.drive(rest, plain, pool, &Seal::Nothing)?;
            if taken < rest.len() {
                if self.incoming.capacity() == 0 {
                    self.incoming = pool.take();
                }
                pool.extend(&mut self.incoming, &rest[taken..]);
            }
        }
        Ok(())
    }

    /// Says what is wrong where rustls would only say that a message is corrupt.
    fn check_first(&mut self, input: &[u8]) -> io::Result<()> {
        let Stage::Rustls(side) = &self.stage else {
            return Ok(());
        };
        match (&**side, input.first()) {
            (Side::Client(_), Some(b'H')) => {
                self.failed = true;
                let text = "the server answered TLS with plain text: not a TLS port";
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
            (Side::Server(_), Some(&first)) if first != CONTENT_HANDSHAKE => {
                self.failed = true;
                let text = "the client did not speak TLS";
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
            _ => Ok(()),
        }
    }

    /// Lets rustls work through `input`; says how much of it is done with. What is not has to be
    /// there again, in front, the next time: rustls remembers where in it a handshake message
    /// began.
    fn drive(
        &mut self,
        input: &mut [u8],
        plain: &mut Vec<u8>,
        pool: &mut Pool,
        seal: &Seal<'_>,
    ) -> io::Result<usize> {
        if matches!(self.stage, Stage::Established(..)) {
            return self.drive_records(input, plain, pool);
        }
        let mut done = 0;
        loop {
            match self.step(&mut input[done..], plain, pool, seal) {
                Ok((discard, Progress::Again)) => done += discard,
                Ok((discard, Progress::Idle)) => {
                    done += discard;
                    self.establish(&input[done..]);
                    return Ok(done);
                }
                Err((discard, error)) => {
                    self.take_alert(&mut input[done + discard..], pool);
                    self.failed = true;
                    return Err(to_io(error));
                }
            }
        }
    }

    /// Queues what rustls has to say to the peer about an error. While it has something to say
    /// it does not look at the input, which it must not do a second time.
    fn take_alert(&mut self, rest: &mut [u8], pool: &mut Pool) {
        let mut plain = Vec::new();
        while let Stage::Rustls(side) = &self.stage
            && on_side!(&**side, connection => connection.wants_write())
            && self.step(rest, &mut plain, pool, &Seal::Nothing).is_ok()
        {}
    }

    /// One state of rustls.
    fn step(
        &mut self,
        input: &mut [u8],
        plain: &mut Vec<u8>,
        pool: &mut Pool,
        seal: &Seal<'_>,
    ) -> Result<(usize, Progress), (usize, RustlsError)> {
        let mut outgoing = self.outgoing.take().unwrap_or_else(|| pool.take_queue());
        let mut flags = (self.can_seal, self.peer_closed);
        let result = match &mut self.stage {
            Stage::Rustls(side) => on_side!(&mut **side, connection => {
                let status = connection.process_tls_records(input);
                handle(status, plain, &mut outgoing, pool, &mut flags, seal)
            }),
            _ => Err((0, RustlsError::HandshakeNotComplete)),
        };
        (self.can_seal, self.peer_closed) = flags;
        self.keep_outgoing(outgoing, pool);
        result
    }

    /// Takes the keys from rustls, if its handshake is done and it holds nothing more that is
    /// not. `rest` is what it has left of the input.
    fn establish(&mut self, rest: &[u8]) {
        // A handshake message that goes on in a later record has been decrypted already: it
        // begins with a whole record.
        let mid_message = !rest.is_empty() && missing_len(rest) == 0;
        if mid_message || self.peer_closed || !self.may_establish() {
            return;
        }
        let Stage::Rustls(side) = mem::replace(&mut self.stage, Stage::Failed) else {
            return;
        };
        let agreed = Box::new(Agreed::of(&side));
        let extracted = match *side {
            Side::Server(connection) => connection
                .dangerous_into_kernel_connection()
                .map(|(keys, secrets)| (keys, Secrets::Server(secrets))),
            Side::Client(connection) => connection
                .dangerous_into_kernel_connection()
                .map(|(keys, secrets)| (keys, Secrets::Client(secrets))),
        };
        let records = extracted.and_then(|(keys, secrets)| match secrets.suite() {
            SupportedCipherSuite::Tls13(suite) => Records::new(keys, secrets, suite),
            _ => Err(RustlsError::HandshakeNotComplete),
        });
        match records {
            Ok(records) => {
                self.stage = Stage::Established(records, agreed);
                self.can_seal = true;
            }
            Err(error) => {
                log::error!("TLS keys cannot be used: {error}");
                self.failed = true;
            }
        }
    }

    fn may_establish(&self) -> bool {
        let Stage::Rustls(side) = &self.stage else {
            return false;
        };
        self.extracts
            && on_side!(&**side, connection => {
                let version = connection.protocol_version();
                !connection.is_handshaking() && version == Some(ProtocolVersion::TLSv1_3)
            })
    }

    /// Takes the whole records of `input`; says how much that was.
    fn drive_records(
        &mut self,
        input: &mut [u8],
        plain: &mut Vec<u8>,
        pool: &mut Pool,
    ) -> io::Result<usize> {
        let Stage::Established(records, _) = &mut self.stage else {
            return Ok(0);
        };
        let mut done = 0;
        while !self.peer_closed {
            let rest = &mut input[done..];
            let received = record::record_len(rest).and_then(|len| match len {
                Some(len) if len <= rest.len() => {
                    let received = records.receive(&mut rest[..len], plain)?;
                    done += len;
                    Ok(Some(received))
                }
                _ => Ok(None),
            });
            match received {
                Ok(Some(Received::Taken)) => {}
                Ok(Some(Received::CloseNotify)) => self.peer_closed = true,
                Ok(None) => return Ok(done),
                Err(fault) => {
                    if let Some(alert) = fault.alert() {
                        let mut outgoing =
                            self.outgoing.take().unwrap_or_else(|| pool.take_queue());
                        // Without it the peer has to guess.
                        let _ = records.seal_alert(alert, &mut outgoing, pool);
                        self.keep_outgoing(outgoing, pool);
                    }
                    self.failed = true;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, fault));
                }
            }
        }
        // What comes behind a close_notify is not looked at.
        Ok(input.len())
    }

    fn keep_outgoing(&mut self, outgoing: Box<SendQueue>, pool: &mut Pool) {
        if outgoing.is_empty() {
            pool.put_queue(outgoing);
        } else {
            self.outgoing = Some(outgoing);
        }
    }

    /// Encrypts from the front of `queue`, in as few records as there can be: everything, or
    /// what one send is likely to take. Nothing while earlier ciphertext waits, so that what
    /// waits stays short.
    ///
    /// # Errors
    /// No more can be encrypted with the session's keys.
    pub fn seal(
        &mut self,
        queue: &mut SendQueue,
        scratch: &mut Vec<u8>,
        pool: &mut Pool,
    ) -> io::Result<()> {
        if !self.can_seal() || self.sealed_len > 0 {
            return Ok(());
        }
        if let Stage::Established(records, _) = &mut self.stage {
            let mut outgoing = self.outgoing.take().unwrap_or_else(|| pool.take_queue());
            let mut sealed = Ok(0);
            while !queue.is_empty() && self.sealed_len < SEAL_LEN_MAX && sealed.is_ok() {
                sealed = records.seal(queue, &mut outgoing, pool);
                let len = *sealed.as_ref().unwrap_or(&0);
                queue.consume(len, pool);
                self.sealed_len += len;
            }
            self.failed |= sealed.is_err();
            self.keep_outgoing(outgoing, pool);
            return sealed.map(|_| ()).map_err(to_io);
        }
        while !queue.is_empty() && self.sealed_len < SEAL_LEN_MAX {
            let first = queue.slices().next();
            let first_len = first.as_ref().map_or(0, |slice| slice.len());
            let direct = if first_len == queue.len() {
                first_len
            } else {
                first_len - first_len % RECORD_LEN_MAX
            };
            let len = if direct > 0 {
                let len = direct.min(SEAL_LEN_MAX);
                let data = first.as_deref().map_or(&[][..], |slice| &slice[..len]);
                self.write(&Seal::Data(data), pool)?;
                len
            } else {
                // Several pieces in one record.
                scratch.clear();
                for slice in queue.slices() {
                    let room = RECORD_LEN_MAX - scratch.len();
                    scratch.extend_from_slice(&slice[..slice.len().min(room)]);
                    if scratch.len() == RECORD_LEN_MAX {
                        break;
                    }
                }
                self.write(&Seal::Data(scratch), pool)?;
                scratch.len()
            };
            queue.consume(len, pool);
            self.sealed_len += len;
        }
        Ok(())
    }

    /// Tells the peer that nothing more will come (RFC 8446 §6.1).
    ///
    /// # Errors
    /// No more can be encrypted with the session's keys.
    pub fn seal_close(&mut self, pool: &mut Pool) -> io::Result<()> {
        if !self.owes_close_notify() {
            return Ok(());
        }
        if let Stage::Established(records, _) = &mut self.stage {
            let mut outgoing = self.outgoing.take().unwrap_or_else(|| pool.take_queue());
            let alert = AlertDescription::CloseNotify;
            let sealed = records.seal_alert(alert, &mut outgoing, pool);
            self.keep_outgoing(outgoing, pool);
            sealed.map_err(to_io)?;
        } else {
            self.write(&Seal::CloseNotify, pool)?;
        }
        self.close_notify_sent = true;
        Ok(())
    }

    fn write(&mut self, seal: &Seal<'_>, pool: &mut Pool) -> io::Result<()> {
        let mut plain = Vec::new();
        let mut incoming = mem::take(&mut self.incoming);
        let taken = self.drive(&mut incoming, &mut plain, pool, seal);
        let taken = taken.inspect_err(|_| pool.put(mem::take(&mut incoming)))?;
        debug_assert!(plain.is_empty(), "plaintext was taken with its record");
        remove_front(&mut incoming, taken);
        self.incoming = incoming;
        Ok(())
    }

    /// Begins a client's handshake: its first message waits to be sent.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn start(&mut self, pool: &mut Pool) -> io::Result<()> {
        self.write(&Seal::Nothing, pool)
    }

    /// Gives its buffers back.
    pub fn release(mut self, pool: &mut Pool) {
        pool.put(mem::take(&mut self.incoming));
        if let Some(mut queue) = self.outgoing.take() {
            queue.clear(pool);
            pool.put_queue(queue);
        }
    }

    /// What was agreed.
    pub fn info(&self) -> TlsInfo<'_> {
        TlsInfo { session: self }
    }
}

fn server_name(name: &str) -> io::Result<ServerName<'_>> {
    let invalid = |_| {
        let text = format!("no certificate can be for {name:?}");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    ServerName::try_from(name).map_err(invalid)
}

/// Moves what lies behind the first `len` bytes to the front.
fn remove_front(buffer: &mut Buffer, len: usize) {
    buffer.copy_within(len.., 0);
    buffer.truncate(buffer.len() - len);
}

/// How many bytes the record at the front of `incoming` lacks, or its header.
fn missing_len(incoming: &[u8]) -> usize {
    match incoming.get(3..RECORD_HEADER_LEN) {
        Some(len) => {
            let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
            (RECORD_HEADER_LEN + len).saturating_sub(incoming.len())
        }
        None => RECORD_HEADER_LEN - incoming.len(),
    }
}

/// Does what a state of rustls asks for; says how much input is done with.
fn handle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut Vec<u8>,
    outgoing: &mut SendQueue,
    pool: &mut Pool,
    (can_seal, peer_closed): &mut (bool, bool),
    seal: &Seal<'_>,
) -> Result<(usize, Progress), (usize, RustlsError)> {
    let mut discard = status.discard;
    let progress = match status.state.map_err(|error| (discard, error))? {
        ConnectionState::ReadTraffic(mut traffic) => {
            *can_seal = true;
            while let Some(record) = traffic.next_record() {
                let AppDataRecord {
                    discard: more,
                    payload,
                    ..
                } = record.map_err(|error| (discard, error))?;
                discard += more;
                plain.extend_from_slice(payload);
            }
            Progress::Again
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let mut room = ENCODED_LEN;
            // Nothing is encoded twice, so the only error is one of room.
            while let Err(EncodeError::InsufficientSize(size)) =
                outgoing.push_with(room, pool, |to| data.encode(to))
            {
                room = size.required_size;
            }
            Progress::Again
        }
        ConnectionState::TransmitTlsData(data) => {
            // It waits in its place among what is to be sent.
            data.done();
            Progress::Again
        }
        ConnectionState::PeerClosed => {
            *peer_closed = true;
            Progress::Again
        }
        ConnectionState::WriteTraffic(mut traffic) => {
            *can_seal = true;
            let mut room = match seal {
                Seal::Nothing => return Ok((discard, Progress::Idle)),
                Seal::Data(data) => {
                    let records = data.len().div_ceil(RECORD_LEN_MAX) + 1;
                    data.len() + records * RECORD_OVERHEAD_MAX
                }
                Seal::CloseNotify => RECORD_OVERHEAD_MAX,
            };
            loop {
                let written = outgoing.push_with(room, pool, |to| match seal {
                    Seal::Data(data) => traffic.encrypt(data, to),
                    _ => traffic.queue_close_notify(to),
                });
                match written {
                    Ok(()) => return Ok((discard, Progress::Idle)),
                    Err(EncryptError::InsufficientSize(size)) => room = size.required_size,
                    Err(EncryptError::EncryptExhausted) => {
                        return Err((discard, RustlsError::EncryptError));
                    }
                }
            }
        }
        // Early data is refused by the settings, and never asked for.
        ConnectionState::ReadEarlyData(_)
        | ConnectionState::BlockedHandshake
        | ConnectionState::Closed => Progress::Idle,
        _ => Progress::Idle,
    };
    Ok((discard, progress))
}

fn to_io(error: RustlsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What the two ends of a TLS connection have agreed, and who the other end is.
#[derive(Clone, Copy, Debug)]
pub struct TlsInfo<'a> {
    session: &'a Session,
}

impl Agreed {
    fn of(side: &Side) -> Self {
        on_side!(side, connection => Self {
            peer_certificates: connection.peer_certificates().map(<[_]>::to_vec),
            alpn_protocol: connection.alpn_protocol().map(<[u8]>::to_vec),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        })
    }
}

impl<'a> TlsInfo<'a> {
    /// The peer's certificates, its own first; none if it was not asked for one or has none.
    pub fn peer_certificates(&self) -> Option<&'a [CertificateDer<'static>]> {
        match &self.session.stage {
            Stage::Rustls(side) => on_side!(&**side, it => it.peer_certificates()),
            Stage::Established(_, agreed) => agreed.peer_certificates.as_deref(),
            Stage::Failed => None,
        }
    }

    /// TLS 1.2 or 1.3.
    pub fn protocol_version(&self) -> Option<ProtocolVersion> {
        match &self.session.stage {
            Stage::Rustls(side) => on_side!(&**side, it => it.protocol_version()),
            Stage::Established(..) => Some(ProtocolVersion::TLSv1_3),
            Stage::Failed => None,
        }
    }

    /// The cipher suite.
    pub fn cipher_suite(&self) -> Option<rustls::CipherSuite> {
        let suite = match &self.session.stage {
            Stage::Rustls(side) => on_side!(&**side, it => it.negotiated_cipher_suite()),
            Stage::Established(records, _) => Some(records.secrets().suite()),
            Stage::Failed => None,
        };
        suite.map(|suite| suite.suite())
    }

    /// The agreed application protocol (ALPN): `http/1.1`, or none.
    pub fn alpn_protocol(&self) -> Option<&'a [u8]> {
        match &self.session.stage {
            Stage::Rustls(side) => on_side!(&**side, it => it.alpn_protocol()),
            Stage::Established(_, agreed) => agreed.alpn_protocol.as_deref(),
            Stage::Failed => None,
        }
    }

    /// Whether an earlier session was resumed.
    pub fn is_resumed(&self) -> bool {
        match &self.session.stage {
            Stage::Rustls(side) => {
                let kind = on_side!(&**side, it => it.handshake_kind());
                kind == Some(HandshakeKind::Resumed)
            }
            Stage::Established(_, agreed) => agreed.resumed,
            Stage::Failed => false,
        }
    }
}
