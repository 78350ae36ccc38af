//! Listening sockets.
//!
//! Options are set here once: accepted sockets inherit them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::net::ToSocketAddrs;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use socket2::Domain;
use socket2::SockAddr;
use socket2::Socket;
use socket2::Type;

/// Connections that the kernel may have accepted for us.
pub const BACKLOG: i32 = 1024;

/// How long a killed process's ring may hold on to its listening socket, and how often to look
/// whether it still does. The kernel takes rings apart in the background, which takes seconds on a
/// busy machine. Only a start that would fail otherwise waits.
const KILLED_RING_MAX: Duration = Duration::from_secs(5);
pub(super) const KILLED_RING_STEP: Duration = Duration::from_millis(20);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP over IPv4 or IPv6.
    Ip(SocketAddr),
    /// A path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = ();

    /// `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err(())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        // `to_socket_addrs` takes a port like +80.
        let (_, port) = text.rsplit_once(':').ok_or(())?;
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        let mut addresses = text.to_socket_addrs().map_err(|_| ())?;
        addresses.next().map(Self::Ip).ok_or(())
    }
}

impl Address {
    /// The IP address and port, unless it is a Unix socket.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
    /// Whether an IPv6 socket takes IPv4 connections as well.
    dual_stack: bool,
}

impl Listener {
    /// Listens. Port zero is replaced by one that is free. With `dual_stack`, an IPv6 socket takes
    /// IPv4 connections as well, if its address is `[::]`. Listeners are made only while a server
    /// starts, and an error here ends the start.
    ///
    /// # Errors
    /// The address is in use, not of this machine, or may not be used.
    pub fn bind(address: &Address, dual_stack: bool) -> io::Result<Self> {
        match address {
            Address::Ip(address) => {
                Self::check_free(*address, dual_stack)?;
                Self::bind_ip(*address, dual_stack)
            }
            Address::Unix(path) => Self::bind_unix(path),
        }
    }

    /// Sockets that share a port need not be of one server: a second server started by mistake
    /// would take half of the connections. Without the sharing, the kernel says so.
    ///
    /// The kernel takes a ring of a killed process apart in the background, and with it the
    /// listening socket that the ring was accepting from: a server that is started again at
    /// once has to wait for that.
    fn check_free(address: SocketAddr, dual_stack: bool) -> io::Result<()> {
        if address.port() == 0 {
            return Ok(());
        }
        let start = Instant::now();
        loop {
            match Self::try_bind(address, dual_stack) {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && start.elapsed() < KILLED_RING_MAX =>
                {
                    std::thread::sleep(KILLED_RING_STEP);
                }
                result => return result,
            }
        }
    }

    /// Binds as one that does not share its port.
    fn try_bind(address: SocketAddr, dual_stack: bool) -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(!dual_stack)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(address))
    }

    fn bind_ip(address: SocketAddr, dual_stack: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.is_ipv6() {
            // Never left to net.ipv6.bindv6only.
            socket.set_only_v6(!dual_stack)?;
        }
        socket.set_reuse_address(true)?;
        // Each thread listens for itself, and the kernel deals out connections.
        socket.set_reuse_port(true)?;
        socket.set_tcp_nodelay(true)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
        socket.bind(&SockAddr::from(address))?;
        let bound = socket.local_addr()?;
        let bound = bound.as_socket().unwrap_or(address);
        let listener = Self::listen(socket, Address::Ip(bound))?;
        Ok(Self {
            dual_stack,
            ..listener
        })
    }

    fn bind_unix(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        let address = SockAddr::unix(path)?;
        match socket.bind(&address) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && becomes_abandoned(path, &address) =>
            {
                std::fs::remove_file(path)?;
                socket.bind(&address)?;
            }
            result => result?,
        }
        Self::listen(socket, Address::Unix(path.to_owned()))
    }

    /// A listener that lives only while a backend is tried out.
    #[cfg(all(feature = "uring", target_os = "linux"))]
    pub(super) fn for_trial(socket: Socket) -> io::Result<Self> {
        Self::listen(socket, Address::Unix(PathBuf::new()))
    }

    /// Takes a socket that listens, or is bound: one that was inherited.
    ///
    /// # Errors
    /// It is no stream socket of an address that this room knows.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(fd);
        if socket.r#type()? != Type::STREAM {
            return Err(io::Error::other("not a stream socket"));
        }
        let local = socket.local_addr()?;
        let address = match (local.as_socket(), local.as_pathname()) {
            (Some(address), _) => {
                socket.set_tcp_nodelay(true)?;
                #[cfg(target_os = "linux")]
                socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
                Address::Ip(address)
            }
            (None, Some(path)) => Address::Unix(path.to_owned()),
            (None, None) => return Err(io::Error::other("not a socket that can listen here")),
        };
        Self::listen(socket, address)
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            address: self.address.clone(),
            dual_stack: self.dual_stack,
        })
    }

    /// Its descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.socket.into()
    }

    fn listen(socket: Socket, address: Address) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
        Ok(Self {
            socket,
            address,
            dual_stack: false,
        })
    }

    /// A listener for another thread: a socket of its own on the same port, or, on a Unix
    /// socket, the same one.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn for_another_thread(&self) -> io::Result<Self> {
        match &self.address {
            Address::Ip(address) => Self::bind_ip(*address, self.dual_stack),
            Address::Unix(_) => self.try_clone(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Returns `true` if a path is a socket that a killed process has left behind: nobody listens on
/// it, now or within [`KILLED_RING_MAX`].
///
/// As with TCP, the ring of a killed process may hold its listener for a moment. A connection
/// that is made meanwhile ends with the listener; one to a live server does not.
fn becomes_abandoned(path: &Path, address: &SockAddr) -> bool {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if !is_socket {
        return false;
    }
    let start = Instant::now();
    loop {
        let connected = connect_now(address);
        if is_abandoned(&connected) {
            return true;
        }
        if let Ok(connection) = connected {
            wait_for_end(&connection, KILLED_RING_MAX.saturating_sub(start.elapsed()));
        }
        if start.elapsed() >= KILLED_RING_MAX {
            return false;
        }
        std::thread::sleep(KILLED_RING_STEP);
    }
}

/// Returns `true` if an attempt to connect found that nobody listens.
fn is_abandoned(connected: &io::Result<Socket>) -> bool {
    let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    connected.as_ref().is_err_and(is_refused)
}

/// Connects without waiting: a listener whose backlog is full is there (EAGAIN).
fn connect_now(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    Ok(socket)
}

/// Waits until the other end of a connection is gone.
fn wait_for_end(connection: &Socket, timeout: Duration) {
    let timeout = Timespec {
        tv_sec: timeout.as_secs() as _,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let mut polled = [PollFd::new(connection, PollFlags::empty())];
    // An error ends the wait early, and the caller looks again.
    let _ = poll(&mut polled, Some(&timeout));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_bad_ones_refused() {
        assert_eq!(
            "127.0.0.1:80".parse(),
            Ok(Address::Ip(([127, 0, 0, 1], 80).into()))
        );
        assert!(matches!("[::1]:80".parse(), Ok(Address::Ip(_))));
        assert_eq!("unix:/a".parse(), Ok(Address::Unix("/a".into())));
        for bad in [
            "",
            "unix:",
            "127.0.0.1",
            "127.0.0.1:99999",
            "127.0.0.1:+80",
            "127.0.0.1:",
            "[localhost]:80",
            "[]:80",
            ":",
            "[::1]",
            "a b:1",
        ] {
            assert_eq!(bad.parse::<Address>(), Err(()), "{bad:?}");
        }
    }

    #[test]
    fn port_in_use_is_an_error_and_threads_share_it() {
        let first = Listener::bind(&"127.0.0.1:0".parse().expect("an address"), false);
        let first = first.expect("a free port");
        let error = Listener::bind(first.address(), false).expect_err("it is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let second = first.for_another_thread().expect("of the same server");
        assert_eq!(second.address(), first.address());
    }

    #[test]
    fn abandoned_unix_socket_is_replaced_and_a_live_one_is_not() {
        let path = std::env::temp_dir().join(format!("sockeye-listen-{}", std::process::id()));
        let address = Address::Unix(path.clone());
        let first = Listener::bind(&address, false).expect("the path is free");
        let error = Listener::bind(&address, false).expect_err("somebody listens");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        Listener::bind(&address, false).expect("nobody listens");
        std::fs::remove_file(&path).expect("it is there");

        // A listener that another descriptor holds for a moment, as the ring of a killed process
        // does: nobody accepts from it.
        let dying = Listener::bind(&address, false).expect("the path is free");
        let next = std::thread::spawn({
            let address = address.clone();
            move || Listener::bind(&address, false)
        });
        // Not before the other has looked.
        let mut polled = [PollFd::new(&dying.socket, PollFlags::IN)];
        poll(&mut polled, None).expect("somebody connects");
        drop(dying);
        let next = next.join().expect("it does not panic");
        next.expect("the old listener is gone");
        std::fs::remove_file(&path).expect("it is there");

        std::fs::write(&path, "a file").expect("the path is free");
        let error = Listener::bind(&address, false).expect_err("not a socket");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        std::fs::remove_file(&path).expect("it is there");
    }

    /// Without room in its backlog a listener is as alive as with it.
    #[test]
    fn full_backlog_is_not_taken_for_an_abandoned_socket() {
        let name = format!("sockeye-listen-full-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener =
            Listener::bind(&Address::Unix(path.clone()), false).expect("the path is free");
        let remote = SockAddr::unix(&path).expect("a path");
        let mut clients = Vec::new();
        let error = loop {
            match connect_now(&remote) {
                Ok(client) => clients.push(client),
                Err(error) => break error,
            }
        };
        assert!(clients.len() >= BACKLOG as usize);
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(!is_abandoned(&connect_now(&remote)));
        drop(listener);
        assert!(is_abandoned(&connect_now(&remote)));
        std::fs::remove_file(&path).expect("it is there");
    }
}
