//! System calls that backends share.

use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;

use rustix::io::retry_on_intr;
use rustix::net;
use rustix::net::RecvFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendFlags;
use rustix::process::Resource;
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

/// Returns how many bytes were sent and have not been acknowledged (`SIOCOUTQ`, tcp(7), unix(7)).
#[cfg(target_os = "linux")]
pub(super) fn unacknowledged(fd: RawFd) -> io::Result<usize> {
    let mut len: libc::c_int = 0;
    // SAFETY: `len` is writable until the call returns.
    let result = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(len).unwrap_or(0))
}

/// There is no such call here: no progress is seen but that of sends.
#[cfg(not(target_os = "linux"))]
pub(super) fn unacknowledged(_fd: RawFd) -> io::Result<usize> {
    Ok(0)
}

/// Returns the most bytes that may wait unread in a socket: what the kernel lets a buffer grow to
/// (`tcp_rmem`, tcp(7)), or be set to (`rmem_max`, socket(7), which counts twice).
pub(super) fn receive_buffer_max() -> usize {
    // Linux's default, for where the files cannot be read.
    const DEFAULT: usize = 6 << 20;
    let last_number = |path: &str| -> Option<usize> {
        let text = std::fs::read_to_string(path).ok()?;
        text.split_ascii_whitespace().last()?.parse().ok()
    };
    let grown = last_number("/proc/sys/net/ipv4/tcp_rmem").unwrap_or(DEFAULT);
    let set = last_number("/proc/sys/net/core/rmem_max").unwrap_or(0);
    grown.max(set.saturating_mul(2))
}

/// The other end of a connection.
pub(super) fn peer_addr(fd: RawFd) -> io::Result<PeerAddr> {
    // SAFETY: the descriptor is open: its owner has not closed it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let address = SockRef::from(&fd).peer_addr()?;
    Ok(match address.as_socket() {
        None => PeerAddr::Unix,
        // An IPv4 client of a dual-stack socket is an IPv4 client: to trusted networks, to limits
        // per address, and to whoever reads logs.
        Some(SocketAddr::V6(v6)) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => PeerAddr::Ip((v4, v6.port()).into()),
            None => PeerAddr::Ip(v6.into()),
        },
        Some(v4) => PeerAddr::Ip(v4),
    })
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

/// The error, with the limit of the process that it ran into and the value of that, if it is one of
/// memory or descriptors. The error's number is lost: for what goes to the operator.
pub fn explained(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
            io::Error::new(error.kind(), explain(&error))
        }
        _ => error,
    }
}

/// Text of an error for the operator: one of memory or descriptors names the limit and its value.
pub fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        #[cfg(target_os = "linux")]
        Some(libc::ENOMEM) => {
            // The kernel does not tell the two apart: rings are charged to locked memory,
            // unless the process has CAP_IPC_LOCK, and mapped into its address space.
            let address_space = match limit(Resource::As) {
                None => String::new(),
                Some(limit) => format!(", RLIMIT_AS is {}", in_bytes(limit)),
            };
            match limit(Resource::Memlock) {
                None => format!("out of memory: RLIMIT_MEMLOCK is unlimited{address_space}"),
                Some(limit) => {
                    let limit = in_bytes(limit);
                    format!("out of locked memory: RLIMIT_MEMLOCK is {limit}{address_space}")
                }
            }
        }
        Some(libc::EMFILE) => match limit(Resource::Nofile) {
            Some(limit) => format!("out of descriptors: RLIMIT_NOFILE is {limit}"),
            None => "out of descriptors: RLIMIT_NOFILE is unlimited".to_owned(),
        },
        #[cfg(target_os = "linux")]
        Some(libc::ENFILE) => {
            let path = "/proc/sys/fs/file-max";
            let limit = std::fs::read_to_string(path).unwrap_or_default();
            let limit = limit.trim();
            format!("out of descriptors of the whole system: fs.file-max is {limit}")
        }
        _ => error.to_string(),
    }
}

#[cfg(target_os = "linux")]
fn in_bytes(limit: u64) -> String {
    match limit {
        0..0x2800 => format!("{limit} bytes"),
        0x2800..0xA0_0000 => format!("{} KiB", limit >> 10),
        _ => format!("{} MiB", limit >> 20),
    }
}

/// The most descriptors that this process may have.
#[cfg(all(feature = "uring", target_os = "linux"))]
pub(super) fn descriptor_limit() -> usize {
    limit(Resource::Nofile).map_or(usize::MAX, |limit| limit as usize)
}

/// The most memory that this process may lock, in bytes; `None` if there is no limit.
#[cfg(all(feature = "uring", target_os = "linux"))]
pub(super) fn locked_memory_limit() -> Option<u64> {
    limit(Resource::Memlock)
}

/// A limit of this process (getrlimit(2)); `None` if there is none.
fn limit(resource: Resource) -> Option<u64> {
    getrlimit(resource).current
}

/// Gives the whole pages of memory whose content is dead to the system: they come back empty when
/// they are written to. Where the system refuses (locked memory), they stay.
#[cfg(target_os = "linux")]
pub fn discard(memory: &mut [MaybeUninit<u8>]) {
    let page = rustix::param::page_size();
    let start = memory.as_mut_ptr();
    let offset = start.align_offset(page);
    let len = memory.len().saturating_sub(offset) / page * page;
    if len == 0 {
        return;
    }
    let first = start.wrapping_add(offset).cast();
    // SAFETY: the range lies inside `memory`, which is borrowed for this call alone and whose
    // content is not initialised: no value is lost, whatever the pages hold afterwards.
    let _ = unsafe { rustix::mm::madvise(first, len, rustix::mm::Advice::LinuxDontNeed) };
}

/// Other systems do not promise what is wanted here.
#[cfg(not(target_os = "linux"))]
pub fn discard(_: &mut [MaybeUninit<u8>]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_memory_and_descriptors_name_the_limit_and_its_value() {
        let text = |number| explained(io::Error::from_raw_os_error(number)).to_string();
        let limit = limit(Resource::Nofile).expect("there is always one");
        let want = format!("out of descriptors: RLIMIT_NOFILE is {limit}");
        assert_eq!(text(libc::EMFILE), want);
        #[cfg(target_os = "linux")]
        {
            assert!(text(libc::ENOMEM).contains("RLIMIT_MEMLOCK is "));
            let files = text(libc::ENFILE);
            assert!(
                files.ends_with(|last: char| last.is_ascii_digit()),
                "{files}"
            );
        }
        let other = explained(io::Error::from_raw_os_error(libc::EADDRINUSE));
        assert_eq!(other.raw_os_error(), Some(libc::EADDRINUSE));
        assert_eq!(in_bytes(8 << 20), "8192 KiB");
        assert_eq!(in_bytes(64 << 20), "64 MiB");
    }
}
