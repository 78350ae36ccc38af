//! A client that writes whatever bytes it is told to, and says what the server did.

use std::fmt;
use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;
use rustls::StreamOwned;
use rustls::pki_types::ServerName;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;
use sockeye::protocol::handshake;
use sockeye::tls::ClientTls;

/// A server that says nothing for so long says nothing.
const PATIENCE: Duration = Duration::from_secs(3);

/// What stands between two writes that the server is to read apart from each other.
const GAP: Duration = Duration::from_millis(1);

/// The most of an answer that is looked at.
const ANSWER_LEN_MAX: usize = 1 << 20;

/// The key of every request, and what it has to be answered with.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Where the server is.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its socket.
    pub address: Address,
    /// The value of `Host`.
    pub host: String,
    /// The request's target.
    pub target: String,
    /// Whom to trust and the server's name, for `wss`.
    pub tls: Option<(ClientTls, String)>,
}

/// A TCP or a Unix socket.
#[derive(Clone, Debug)]
pub enum Address {
    #[allow(missing_docs)]
    Ip(SocketAddr),
    #[allow(missing_docs)]
    Unix(PathBuf),
}

/// What a server did last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It sent back what it was sent.
    Echo,
    /// It sent a Close frame; without a code where that is none.
    Close(Option<u16>),
    /// It answered a request that is not to be upgraded.
    Http(u16),
    /// It upgraded.
    Upgraded,
    /// It ended the connection without a word.
    Dropped,
    /// It did nothing.
    Silence,
    /// It did something else.
    Other(String),
    /// It does not do what the case is about.
    NotAgreed,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo => f.write_str("echo"),
            Self::Close(Some(code)) => write!(f, "Close {code}"),
            Self::Close(None) => f.write_str("Close without code"),
            Self::Http(status) => write!(f, "HTTP {status}"),
            Self::Upgraded => f.write_str("upgraded"),
            Self::Dropped => f.write_str("dropped"),
            Self::Silence => f.write_str("silence"),
            Self::Other(what) => f.write_str(what),
            Self::NotAgreed => f.write_str("not agreed"),
        }
    }
}

trait Both: Read + Write {}
impl<T: Read + Write> Both for T {}

/// A connection.
pub struct Wire {
    stream: Box<dyn Both>,
    received: Vec<u8>,
    ended: Option<Seen>,
}

/// One frame as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Server {
    /// The request that every server of RFC 6455 upgrades.
    pub fn request(&self) -> Request {
        let lines = [
            format!("GET {} HTTP/1.1", self.target),
            format!("Host: {}", self.host),
            "Upgrade: websocket".to_owned(),
            "Connection: Upgrade".to_owned(),
            format!("Sec-WebSocket-Key: {KEY}"),
            "Sec-WebSocket-Version: 13".to_owned(),
        ];
        Request(lines.into())
    }

    /// Connects, from an address of its own where there are many.
    ///
    /// # Errors
    /// The server is not there.
    pub fn connect(&self, source: Option<IpAddr>) -> io::Result<Wire> {
        let stream: Box<dyn Both> = match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Address::Ip(address) => {
                let domain = socket2::Domain::for_address(*address);
                let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
                if let Some(source) = source {
                    socket.bind(&SocketAddr::new(source, 0).into())?;
                }
                socket.connect(&(*address).into())?;
                let stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                match &self.tls {
                    None => Box::new(stream),
                    Some((tls, name)) => {
                        let name = ServerName::try_from(name.clone()).map_err(io::Error::other)?;
                        let session = ClientConnection::new(Arc::clone(&tls.config()), name);
                        let session = session.map_err(io::Error::other)?;
                        Box::new(StreamOwned::new(session, stream))
                    }
                }
            }
        };
        Ok(Wire {
            stream,
            received: Vec::new(),
            ended: None,
        })
    }

    /// Connects and upgrades.
    ///
    /// # Errors
    /// The server does not.
    pub fn open(&self, source: Option<IpAddr>) -> io::Result<Wire> {
        let mut wire = self.connect(source)?;
        wire.write(&self.request().to_bytes());
        match wire.upgraded() {
            Seen::Upgraded => Ok(wire),
            other => Err(io::Error::other(format!("the upgrade: {other}"))),
        }
    }
}

/// A request, line by line.
#[derive(Clone, Debug)]
pub struct Request(Vec<String>);

impl Request {
    /// With another first line.
    pub fn line(mut self, line: &str) -> Self {
        line.clone_into(&mut self.0[0]);
        self
    }

    /// The first line's method and version replaced.
    pub fn method(mut self, method: &str, version: &str) -> Self {
        let target = self.0[0].split(' ').nth(1).unwrap_or("/").to_owned();
        self.0[0] = format!("{method} {target} {version}");
        self
    }

    fn is(line: &str, name: &str) -> bool {
        let own = line.split(':').next().unwrap_or("");
        own.eq_ignore_ascii_case(name)
    }

    /// Without this header.
    pub fn without(mut self, name: &str) -> Self {
        self.0.retain(|line| !Self::is(line, name));
        self
    }

    /// With another value of this header.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        for line in &mut self.0 {
            if Self::is(line, name) {
                *line = format!("{name}: {value}");
            }
        }
        self
    }

    /// With one more line.
    pub fn and(mut self, line: &str) -> Self {
        self.0.push(line.to_owned());
        self
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        (self.0.join("\r\n") + "\r\n\r\n").into_bytes()
    }
}

impl Wire {
    /// Writes; a server that has ended the connection is found by the next read.
    pub fn write(&mut self, bytes: &[u8]) {
        let written = self.stream.write_all(bytes);
        let _ = written.and_then(|()| self.stream.flush());
    }

    /// Writes pieces that arrive one by one.
    pub fn write_apart<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>) {
        for piece in pieces {
            self.write(piece);
            std::thread::sleep(GAP);
        }
    }

    /// Receives more; false if there is no more to come.
    fn fill(&mut self) -> bool {
        if self.ended.is_some() || self.received.len() > ANSWER_LEN_MAX {
            return false;
        }
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.ended = Some(Seen::Dropped),
            Ok(len) => self.received.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                self.ended = Some(Seen::Silence);
            }
            Err(_) => self.ended = Some(Seen::Dropped),
        }
        self.ended.is_none()
    }

    fn end(&self) -> Seen {
        self.ended.clone().unwrap_or(Seen::Silence)
    }

    /// The response head, without its end.
    pub fn head(&mut self) -> Result<String, Seen> {
        loop {
            let end = self
                .received
                .windows(4)
                .position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                let head = self.received.drain(..end + 4).collect::<Vec<u8>>();
                return Ok(String::from_utf8_lossy(&head[..end]).into_owned());
            }
            if !self.fill() {
                return Err(self.end());
            }
        }
    }

    /// What became of the request.
    pub fn upgraded(&mut self) -> Seen {
        self.agreed().map_or_else(|seen| seen, |_| Seen::Upgraded)
    }

    /// The head of an upgrade, or what came instead.
    ///
    /// # Errors
    /// There was no upgrade.
    pub fn agreed(&mut self) -> Result<String, Seen> {
        let head = self.head()?;
        let mut words = head.split(' ');
        let version = words.next().unwrap_or("");
        let status = words.next().and_then(|status| status.parse().ok());
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(':'));
            let line = lines.find(|(own, _)| own.eq_ignore_ascii_case(name));
            line.map(|(_, value)| value.trim().to_owned())
        };
        match status {
            Some(101) => {
                let right = handshake::accept_key(KEY.as_bytes());
                let accept = header("Sec-WebSocket-Accept");
                let is_right = accept.is_some_and(|accept| accept.as_bytes() == right);
                if is_right {
                    Ok(head.clone())
                } else {
                    Err(Seen::Other("101 with a wrong accept key".to_owned()))
                }
            }
            Some(status) if version.starts_with("HTTP/1.") => Err(Seen::Http(status)),
            _ => Err(Seen::Other("no HTTP".to_owned())),
        }
    }

    /// The next frame.
    ///
    /// # Errors
    /// There is none.
    pub fn frame(&mut self) -> Result<Frame, Seen> {
        loop {
            match FrameHeader::decode(&self.received) {
                Err(error) => return Err(Seen::Other(format!("a bad frame: {error}"))),
                Ok(Some((header, len))) => {
                    let end = len + header.payload_len as usize;
                    if self.received.len() >= end {
                        let payload = self.received[len..end].to_vec();
                        self.received.drain(..end);
                        return Ok(Frame { header, payload });
                    }
                }
                Ok(None) => {}
            }
            if !self.fill() {
                return Err(self.end());
            }
        }
    }

    /// The next message, whatever frames it comes in; pongs are left out.
    ///
    /// # Errors
    /// There is none; the server closed, for example.
    pub fn message(&mut self) -> Result<Frame, Seen> {
        let mut whole: Option<Frame> = None;
        loop {
            let Frame { header, payload } = self.frame()?;
            match header.opcode {
                Opcode::Close => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    return Err(Seen::Close(code));
                }
                Opcode::Ping | Opcode::Pong => continue,
                _ => {}
            }
            let message = match &mut whole {
                None => whole.insert(Frame { header, payload }),
                Some(message) => {
                    message.payload.extend_from_slice(&payload);
                    message
                }
            };
            if header.fin {
                return Ok(message.clone());
            }
        }
    }

    /// Whether the next message is this one.
    pub fn echo(&mut self, opcode: Opcode, payload: &[u8]) -> Seen {
        match self.message() {
            Ok(frame) if frame.header.opcode == opcode && frame.payload == payload => Seen::Echo,
            Ok(_) => Seen::Other("another message".to_owned()),
            Err(seen) => seen,
        }
    }

    /// What the server does with what it was sent, if it is not to echo it.
    pub fn outcome(&mut self) -> Seen {
        match self.message() {
            Ok(frame) => Seen::Other(format!("a message of {} bytes", frame.payload.len())),
            Err(seen) => seen,
        }
    }

    /// Whether the next frame is the pong of a ping.
    pub fn pong(&mut self, payload: &[u8]) -> Seen {
        match self.frame() {
            Ok(frame) if frame.header.opcode == Opcode::Pong && frame.payload == payload => {
                Seen::Other("pong".to_owned())
            }
            Ok(frame) => Seen::Other(format!("a {:?} frame", frame.header.opcode)),
            Err(seen) => seen,
        }
    }
}
