//! The streams that a client makes for itself.

use std::cell::Cell;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::time::Instant;

use crate::connect::Connect;
use crate::reactor;
use crate::reactor::Target;
use crate::reactor::listen::Address;
use crate::tls::ClientTls;

use super::Error;
use super::proxy::Proxy;

/// A stream whose reads and writes can be bounded in time.
pub trait Timeouts {
    /// The longest that a read may wait; none for ever. Never zero.
    ///
    /// # Errors
    /// The stream is broken.
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// The longest that a write may wait; none for ever. Never zero.
    ///
    /// # Errors
    /// The stream is broken.
    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// Ends both directions: the closing handshake is over. By default that is left to the
    /// stream's drop.
    ///
    /// # Errors
    /// The stream is broken.
    fn shutdown(&self) -> io::Result<()> {
        Ok(())
    }
}

macro_rules! timeouts_of {
    ($($stream:ty),*) => {
        $(impl Timeouts for $stream {
            fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                <$stream>::set_read_timeout(self, timeout)
            }

            fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                <$stream>::set_write_timeout(self, timeout)
            }

            fn shutdown(&self) -> io::Result<()> {
                <$stream>::shutdown(self, Shutdown::Both)
            }
        })*
    };
}

timeouts_of!(TcpStream, UnixStream);

/// What [`connect`](super::connect) connects with: TCP, a Unix socket, or TLS over TCP.
#[derive(Debug)]
pub struct Stream(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, Bounded>>),
}

/// TCP whose every read and write ends by a deadline: one read of TLS is many of TCP.
#[derive(Debug)]
pub(super) struct Bounded {
    pub(super) tcp: TcpStream,
    read_deadline: Cell<Option<Instant>>,
    write_deadline: Cell<Option<Instant>>,
    /// Reads that may look for what has arrived after the read deadline.
    looks: Cell<u8>,
}

impl Bounded {
    pub(super) fn new(tcp: TcpStream, deadline: Instant) -> Self {
        Self {
            tcp,
            read_deadline: Cell::new(Some(deadline)),
            write_deadline: Cell::new(Some(deadline)),
            looks: Cell::new(LOOKS_MAX),
        }
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.read_deadline.get() {
            let mut looks = self.looks.get();
            let timeout = remaining_or_look(deadline, &mut looks)?;
            self.looks.set(looks);
            self.tcp.set_read_timeout(Some(timeout))?;
        }
        self.tcp.read(buffer)
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(deadline) = self.write_deadline.get() {
            self.tcp.set_write_timeout(Some(remaining(deadline)?))?;
        }
        self.tcp.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

impl Timeouts for Bounded {
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.read_deadline.set(timeout.and_then(deadline));
        self.looks.set(LOOKS_PER_READ);
        match self.read_deadline.get() {
            Some(_) => Ok(()),
            None => self.tcp.set_read_timeout(None),
        }
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.write_deadline.set(timeout.and_then(deadline));
        match self.write_deadline.get() {
            Some(_) => Ok(()),
            None => self.tcp.set_write_timeout(None),
        }
    }

    fn shutdown(&self) -> io::Result<()> {
        self.tcp.shutdown(Shutdown::Both)
    }
}

impl Stream {
    /// The TCP stream, below TLS if there is any; none if it is a Unix socket.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match &self.0 {
            Kind::Tcp(tcp) => Some(tcp),
            Kind::Unix(_) => None,
            #[cfg(feature = "tls")]
            Kind::Tls(tls) => Some(&tls.sock.tcp),
        }
    }

    /// What the two ends of a TLS connection have agreed; none without TLS.
    #[cfg(feature = "tls")]
    pub fn tls(&self) -> Option<&rustls::ClientConnection> {
        match &self.0 {
            Kind::Tls(tls) => Some(&tls.conn),
            _ => None,
        }
    }

    /// Connects, through the proxy if there is one, and shakes hands for TLS.
    pub(super) fn connect(
        connect: &Connect,
        proxy: Option<&Proxy>,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let tls = connect.tls_settings()?;
        let tcp = match proxy {
            Some(proxy) => proxy.connect(connect, deadline)?,
            None => match connect_first(connect, &connect.resolve_all()?, deadline)?.0 {
                Kind::Tcp(tcp) => tcp,
                other => return Ok(Self(other)),
            },
        };
        let stream = match tls {
            None => Self(Kind::Tcp(tcp)),
            Some(tls) => Self::secure(tcp, &tls, connect.host(), deadline)?,
        };
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(stream)
    }

    #[cfg(not(feature = "tls"))]
    fn secure(_: TcpStream, tls: &ClientTls, _: &str, _: Instant) -> Result<Self, Error> {
        match *tls {}
    }

    #[cfg(feature = "tls")]
    fn secure(
        tcp: TcpStream,
        tls: &ClientTls,
        name: &str,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let invalid = |_| crate::error::ConfigError::ServerName(name.to_owned());
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).map_err(invalid)?;
        let to_io = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut tls = rustls::ClientConnection::new(tls.config(), name).map_err(to_io)?;
        let mut tcp = Bounded::new(tcp, deadline);
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp).map_err(explain)?;
        }
        let stream = rustls::StreamOwned::new(tls, tcp);
        Ok(Self(Kind::Tls(Box::new(stream))))
    }
}

/// Says what is wrong where rustls would only say that a message is corrupt.
#[cfg(feature = "tls")]
fn explain(error: io::Error) -> io::Error {
    use rustls::InvalidMessage::InvalidContentType;
    let source = error.get_ref().and_then(|source| source.downcast_ref());
    match source {
        Some(rustls::Error::InvalidMessage(InvalidContentType)) => {
            let text = "the server answered TLS with plain text: not a TLS port";
            io::Error::new(io::ErrorKind::InvalidData, text)
        }
        _ => error,
    }
}

/// Connects to the first of these that can be connected to.
pub(super) fn connect_first(
    connect: &Connect,
    addresses: &[Address],
    deadline: Instant,
) -> Result<Stream, Error> {
    let mut last = None;
    for address in addresses {
        let target: Target = connect.target_at(address.clone());
        let attempt =
            remaining(deadline).and_then(|remaining| reactor::connect::connect(&target, remaining));
        match attempt {
            Ok(socket) => {
                return Ok(match address {
                    Address::Ip(_) => Stream(Kind::Tcp(socket.into())),
                    Address::Unix(_) => Stream(Kind::Unix(socket.into())),
                });
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last
        .unwrap_or_else(|| io::ErrorKind::NotFound.into())
        .into())
}

/// Maximum reads that look for what has arrived after a deadline: enough for 8 MiB in reads of 64 KiB,
/// more than a socket's receive buffer holds. A peer that sends little by little delays the time-out by
/// that many clock ticks of the kernel.
pub(super) const LOOKS_MAX: u8 = 128;

/// Reads of TCP that one read of TLS may make after its deadline.
const LOOKS_PER_READ: u8 = 4;

/// Longest wait of a look. Zero would mean for ever.
const LOOK: Duration = Duration::from_micros(1);

/// Returns how long a read may wait. After the deadline a read still takes what has arrived in time,
/// `looks` times: the process may have been held up, and not the peer.
pub(super) fn remaining_or_look(deadline: Instant, looks: &mut u8) -> io::Result<Duration> {
    remaining(deadline).or_else(|error| {
        *looks = looks.checked_sub(1).ok_or(error)?;
        Ok(LOOK)
    })
}

/// The time after which a call that begins now has waited too long; none if that is too far away.
fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// Returns the time until the deadline.
///
/// # Errors
/// `TimedOut`: it has passed.
pub(super) fn remaining(deadline: Instant) -> io::Result<Duration> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    if remaining.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(remaining)
}

/// The same expression for each kind of stream.
macro_rules! on_stream {
    ($stream:expr, $name:ident => $call:expr) => {
        match $stream {
            Kind::Tcp($name) => $call,
            Kind::Unix($name) => $call,
            #[cfg(feature = "tls")]
            Kind::Tls($name) => $call,
        }
    };
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        on_stream!(&mut self.0, stream => stream.read(buffer))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        on_stream!(&mut self.0, stream => stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        on_stream!(&mut self.0, stream => stream.flush())
    }
}

impl Stream {
    /// What has the time-outs.
    fn timeouts(&self) -> &dyn Timeouts {
        match &self.0 {
            Kind::Tcp(tcp) => tcp,
            Kind::Unix(unix) => unix,
            #[cfg(feature = "tls")]
            Kind::Tls(tls) => &tls.sock,
        }
    }
}

impl Timeouts for Stream {
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.timeouts().set_read_timeout(timeout)
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.timeouts().set_write_timeout(timeout)
    }

    fn shutdown(&self) -> io::Result<()> {
        self.timeouts().shutdown()
    }
}
