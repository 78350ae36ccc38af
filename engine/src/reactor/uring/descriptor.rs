//! Descriptors that say that a ring has something.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;

#[cfg(test)]
use super::faults;
use super::setup;

/// A descriptor that is readable when a ring may have something. A ring's own descriptor does not
/// say when the kernel has put work off (`DEFER_TASKRUN`), and an eventfd that a ring signals
/// because another eventfd was written comes late: so all of them are in one epoll.
pub(super) struct Outer {
    pub(super) epoll: OwnedFd,
    /// Signalled by the first ring.
    pub(super) eventfd: OwnedFd,
}

impl Outer {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a call without pointers; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(setup::failed("epoll_create1")(io::Error::last_os_error()));
        }
        let outer = Self {
            // SAFETY: the descriptor is new and nobody else's.
            epoll: unsafe { OwnedFd::from_raw_fd(fd) },
            eventfd: new_eventfd()?,
        };
        outer.add(&outer.eventfd)?;
        Ok(outer)
    }

    /// Reports each signal of an eventfd once.
    pub(super) fn add(&self, eventfd: &OwnedFd) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: 0,
        };
        let (epoll, fd) = (self.epoll.as_raw_fd(), eventfd.as_raw_fd());
        // SAFETY: the event is readable until the call returns.
        let result = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if result < 0 {
            return Err(setup::failed("epoll_ctl")(io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Forgets the signals so far. Later ones make the descriptor readable again.
    pub(super) fn reset(&self) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        let (pointer, len) = (events.as_mut_ptr(), events.len() as i32);
        // SAFETY: `len` events are writable at `pointer` until the call returns. If more are due,
        // or the call fails, the descriptor stays readable for another turn.
        unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), pointer, len, 0) };
    }
}

pub(super) fn new_eventfd() -> io::Result<OwnedFd> {
    #[cfg(test)]
    faults::ring_step(faults::RingStep::Eventfd).map_err(setup::failed("eventfd"))?;
    // SAFETY: a call without pointers; the result is checked.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(setup::failed("eventfd")(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn reset_eventfd(fd: RawFd) {
    let mut count = 0_u64;
    // SAFETY: eight bytes are writable at `count` until the call returns. It fails only if the
    // eventfd has been reset before.
    unsafe { libc::read(fd, (&raw mut count).cast(), 8) };
}
