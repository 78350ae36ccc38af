//! System calls that backends share.

use std::io;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::io::retry_on_intr;
use rustix::net;
use rustix::net::RecvFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendFlags;
#[cfg(all(feature = "uring", target_os = "linux"))]
pub(super) use rustix::process::Resource;
#[cfg(all(feature = "uring", target_os = "linux"))]
use rustix::process::getrlimit;
use socket2::SockRef;
use socket2::Socket;

use super::PeerAddr;

/// Of sends: no waiting, and no signal if the peer is gone.
#[cfg(target_os = "linux")]
pub(super) const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
#[cfg(not(target_os = "linux"))]
pub(super) const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT;

/// Receives without waiting. Not by the C library, whose call is a point of cancellation, which
/// costs a process of several threads something each time.
#[inline]
pub(super) fn recv(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the descriptor is open: its owner has not closed it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut receive = || net::recv(fd, &mut *buffer, RecvFlags::DONTWAIT);
    let (received, _) = retry_on_intr(&mut receive)?;
    Ok(received)
}

/// Sends without waiting, as much as the kernel takes.
#[inline]
pub(super) fn send(fd: RawFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: the descriptor is open: its owner has not closed it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let sent = retry_on_intr(|| match slices {
        [slice] => net::send(fd, slice, SEND_FLAGS),
        _ => net::sendmsg(fd, slices, &mut SendAncillaryBuffer::default(), SEND_FLAGS),
    })?;
    Ok(sent)
}

/// Returns `true` if a send would be taken or fail.
pub(super) fn is_writable(fd: RawFd) -> io::Result<bool> {
    // SAFETY: the descriptor is open: its owner has not closed it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let ready = retry_on_intr(|| poll(&mut polled, Some(&Timespec::default())))?;
    Ok(ready > 0)
}

/// The other end of a connection.
pub(super) fn peer_addr(fd: RawFd) -> io::Result<PeerAddr> {
    // SAFETY: the descriptor is open: its owner has not closed it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let address = SockRef::from(&fd).peer_addr()?;
    Ok(address.as_socket().map_or(PeerAddr::Unix, PeerAddr::Ip))
}

/// Returns `true` if the process at the other end of a Unix socket is this one.
#[cfg(all(feature = "uring", target_os = "linux"))]
pub(super) fn is_peer_own(fd: RawFd) -> io::Result<bool> {
    // SAFETY: the descriptor is open: its owner has not closed it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let credentials = net::sockopt::socket_peercred(fd)?;
    Ok(credentials.pid == rustix::process::getpid())
}

/// Shuts the sending direction down. The connection may be broken: then there is nothing left
/// to shut.
pub(super) fn shutdown_write(fd: RawFd) {
    // SAFETY: a call without pointers; a bad descriptor is an error that is of no interest.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Lets `bind` take an address without a port (`IP_BIND_ADDRESS_NO_PORT`, ip(7)).
#[cfg(target_os = "linux")]
pub(super) fn set_bind_address_no_port(socket: &Socket) -> io::Result<()> {
    set_ip_option(socket, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Elsewhere `bind` chooses the port.
#[cfg(not(target_os = "linux"))]
pub(super) fn set_bind_address_no_port(_socket: &Socket) -> io::Result<()> {
    Ok(())
}

/// Limits which ports the kernel chooses from (`IP_LOCAL_PORT_RANGE`, ip(7); Linux 6.3).
#[cfg(target_os = "linux")]
pub(super) fn set_local_port_range(socket: &Socket, first: u16, last: u16) -> io::Result<()> {
    const IP_LOCAL_PORT_RANGE: i32 = 51;
    let range = u32::from(last) << 16 | u32::from(first);
    set_ip_option(socket, IP_LOCAL_PORT_RANGE, range)
}

/// There is no such option here.
#[cfg(not(target_os = "linux"))]
pub(super) fn set_local_port_range(_socket: &Socket, _first: u16, _last: u16) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn set_ip_option(socket: &Socket, option: i32, value: u32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let len = size_of::<u32>() as libc::socklen_t;
    let value = (&raw const value).cast();
    // SAFETY: four bytes are readable at `value` until the call returns.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, value, len) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Closes a descriptor that its caller owns.
#[cfg(any(feature = "poll", all(feature = "uring", target_os = "linux")))]
pub(super) fn close(fd: RawFd) {
    // SAFETY: the caller owns the descriptor and gives it up.
    unsafe { libc::close(fd) };
}

/// How many CPUs this process may use.
pub fn allowed_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether a call failed for want of something that may come back.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// The most descriptors that this process may have.
#[cfg(all(feature = "uring", target_os = "linux"))]
pub(super) fn descriptor_limit() -> usize {
    limit(Resource::Nofile).map_or(usize::MAX, |limit| limit as usize)
}

/// A limit of this process (getrlimit(2)); `None` if there is none.
#[cfg(all(feature = "uring", target_os = "linux"))]
pub(super) fn limit(resource: Resource) -> Option<u64> {
    getrlimit(resource).current
}
