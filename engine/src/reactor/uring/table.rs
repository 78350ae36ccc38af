//! Tables of direct descriptors. Each ring has one. Sockets move into a table (`Update`), and get a
//! regular descriptor from it (`Install`).

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use super::RingState;
use super::UringBackend;
use super::UringSocket;
use super::batch::Failed;
use super::batch::Install;
use super::batch::Single;
use super::batch::Update;
use super::descriptor::new_eventfd;
#[cfg(test)]
use super::faults;
#[cfg(test)]
use super::faults::RingStep;
use super::ring::Ring;
use super::setup;

/// Returns an error if the one operation of a batch was not carried out. Otherwise it has its
/// result, even if the ring broke after it.
fn check_one(result: Result<(), Failed>) -> io::Result<()> {
    match result {
        Err(failed) if failed.done == 0 => Err(failed.error()),
        _ => Ok(()),
    }
}

impl UringBackend {
    /// Adds a ring, with its table if descriptors are direct, and an eventfd if it is not the
    /// first.
    ///
    /// # Errors
    /// Out of descriptors, memory, or locked memory. Nothing is left behind: a half-made ring is
    /// dropped, and a descriptor that is closed leaves the epoll that it was added to.
    pub(super) fn add_ring(&mut self) -> io::Result<()> {
        let ring = Ring::new()?;
        let slots = self.direct.map_or(0, |direct| direct.slots);
        if slots > 0 {
            let registered = ring.submitter().register_files_sparse(slots as u32);
            #[cfg(test)]
            let registered = registered.and_then(|()| faults::ring_step(RingStep::Table));
            registered.map_err(setup::failed("io_uring_register (descriptor table)"))?;
        }
        let number = self.rings.len();
        let mut eventfd = None;
        if number > 0 {
            let new = new_eventfd()?;
            let registered = ring.submitter().register_eventfd(new.as_raw_fd());
            #[cfg(test)]
            let registered = registered.and_then(|()| faults::ring_step(RingStep::RegisterEventfd));
            registered.map_err(setup::failed("io_uring_register (eventfd)"))?;
            if let Some(outer) = &self.outer {
                outer.add(&new)?;
            }
            // The last step that can fail, and only if the first ring is broken.
            self.push(0, &Self::signal_poll(new.as_raw_fd(), number))?;
            eventfd = Some(new);
        }
        self.rings.push(RingState {
            ring,
            slots,
            slots_used: 0,
            signalled: true,
            eventfd,
        });
        Ok(())
    }

    /// A ring whose table has room for a connection that is made here.
    pub(super) fn ring_with_room(&mut self) -> io::Result<usize> {
        let spare = self.acceptors.len();
        let has_room = |ring: &RingState| ring.slots - ring.slots_used > spare;
        if has_room(&self.rings[self.accept_ring]) {
            return Ok(self.accept_ring);
        }
        if let Some(ring) = self.rings.iter().position(has_room) {
            return Ok(ring);
        }
        let rings_max = self.direct.map_or(0, |direct| direct.rings_max);
        if self.rings.len() >= rings_max {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        self.add_ring()?;
        Ok(self.rings.len() - 1)
    }

    /// Goes on to a ring whose table has room, if the current one has none and no accept is in
    /// flight there.
    pub(super) fn choose_ring(&mut self) -> io::Result<()> {
        let Some(direct) = self.direct else {
            return Ok(());
        };
        let spare = self.acceptors.len() + 1;
        let is_full = |ring: &RingState| ring.slots - ring.slots_used <= spare;
        if !is_full(&self.rings[self.accept_ring]) || !self.is_accept_idle() {
            return Ok(());
        }
        let emptiest = (0..self.rings.len()).min_by_key(|&ring| self.rings[ring].slots_used);
        if let Some(ring) = emptiest.filter(|&ring| !is_full(&self.rings[ring])) {
            self.accept_ring = ring;
        } else if self.rings.len() < direct.rings_max {
            self.add_ring()?;
            self.accept_ring = self.rings.len() - 1;
        }
        Ok(())
    }

    /// Makes a descriptor of the process for a direct one (Linux 6.8).
    ///
    /// # Errors
    /// Out of descriptors or kernel memory; or the ring is broken.
    pub(super) fn install(&mut self, socket: UringSocket) -> io::Result<OwnedFd> {
        let mut install = Single::new(Install(socket.index));
        check_one(self.run_batch(socket.ring(), &mut install))?;
        let fd = install.descriptor()?;
        // SAFETY: the kernel has made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Takes a slot of a ring's table for a socket; the caller closes its descriptor.
    ///
    /// # Errors
    /// No room, and no further ring; out of kernel memory; or the ring is broken.
    pub(super) fn move_to_table(&mut self, socket: &OwnedFd) -> io::Result<UringSocket> {
        let ring = self.ring_with_room()?;
        let mut update = Single::new(Update(socket.as_raw_fd()));
        check_one(self.run_batch(ring, &mut update))?;
        let index = update.slot()?;
        self.rings[ring].slots_used += 1;
        Ok(UringSocket {
            index,
            ring: ring as u16,
        })
    }
}
