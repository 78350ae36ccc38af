//! Sockets of outgoing connections.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::Domain;
use socket2::SockAddr;
use socket2::SockRef;
use socket2::Socket;
use socket2::Type;

use super::listen::Address;
use super::sys;

/// Where a connection is to go, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The other end.
    pub address: Address,
    /// The address of this end; by default the one that the route says.
    pub source: Option<IpAddr>,
    /// The first and the last port of this end; by default what the system uses. Linux only.
    pub source_ports: Option<(u16, u16)>,
}

/// Begins to connect, without waiting: the socket is writable when it is connected, and gives
/// an error when it is used if it could not be.
#[cfg_attr(not(any(feature = "poll", feature = "uring")), allow(dead_code))]
pub(super) fn begin(target: &Target) -> io::Result<Socket> {
    let (socket, address) = match &target.address {
        Address::Ip(address) => (ip_socket(*address, target)?, SockAddr::from(*address)),
        Address::Unix(path) => {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            (socket, SockAddr::unix(path)?)
        }
    };
    socket.set_nonblocking(true)?;
    match socket.connect(&address) {
        Err(error) if !is_in_progress(&error) => Err(error),
        _ => Ok(socket),
    }
}

/// Connects, and waits for it at most so long.
///
/// # Errors
/// Refused, unreachable, or [`TimedOut`](io::ErrorKind::TimedOut).
#[cfg(feature = "client")]
pub fn connect(target: &Target, timeout: Duration) -> io::Result<Socket> {
    try_connect(target, timeout).map_err(sys::explained)
}

#[cfg(feature = "client")]
fn try_connect(target: &Target, timeout: Duration) -> io::Result<Socket> {
    match &target.address {
        Address::Ip(address) => {
            let socket = ip_socket(*address, target)?;
            socket.connect_timeout(&SockAddr::from(*address), timeout)?;
            Ok(socket)
        }
        Address::Unix(path) => {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.connect_timeout(&SockAddr::unix(path)?, timeout)?;
            Ok(socket)
        }
    }
}

fn ip_socket(address: SocketAddr, target: &Target) -> io::Result<Socket> {
    // Each error costs this one connection.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
    if target.source.is_some() || target.source_ports.is_some() {
        let any: IpAddr = if address.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let source = SocketAddr::new(target.source.unwrap_or(any), 0);
        // The port is chosen when the other end is known: one port serves many of them.
        sys::set_bind_address_no_port(&socket)?;
        if let Some((first, last)) = target.source_ports {
            sys::set_local_port_range(&socket, first, last)?;
        }
        socket.bind(&SockAddr::from(source))?;
    }
    Ok(socket)
}

fn is_in_progress(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINPROGRESS)
}

/// Makes a socket that was made elsewhere what the backends want.
///
/// # Errors
/// It is no stream socket.
pub fn prepare_adopted(socket: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if socket.r#type()? != Type::STREAM {
        let text = "not a stream socket";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    socket.set_nonblocking(true)?;
    // A Unix socket has no such option.
    let _ = socket.set_tcp_nodelay(true);
    Ok(())
}
