//! Accepting: which listener, into which ring's table, and how many at once.

use std::io;

use io_uring::opcode;
use io_uring::types::DestinationSlot;
use io_uring::types::Fd;

use crate::reactor::Event;
use crate::reactor::listen::BACKLOG;
use crate::reactor::listen::Listener;
use crate::reactor::sys;

use super::ACCEPT;
use super::NO_RING;
use super::RingState;
use super::UringBackend;
use super::UringSocket;

/// A multishot accept cannot be stopped at once: with fewer free slots than this, connections
/// are accepted one by one. More than the backlogs hold, so that none is accepted into a full
/// table, which drops it.
pub(super) const fn slots_spare(listeners: usize) -> usize {
    2 * BACKLOG as usize * listeners
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcceptState {
    /// Nothing is in flight.
    Idle,
    /// A multishot accept is in flight.
    Many,
    /// A single accept is in flight.
    One,
    /// The accept in flight has been cancelled.
    Cancelled,
}

pub(super) struct Acceptor {
    pub(super) listener: Listener,
    pub(super) state: AcceptState,
}

impl UringBackend {
    /// Accepts on every listener that may and does not.
    pub(super) fn arm_accepts(&mut self) -> io::Result<()> {
        if !self.accepting || self.acceptors.is_empty() {
            return Ok(());
        }
        let spare = slots_spare(self.acceptors.len());
        let mut free = usize::MAX;
        if self.direct.is_some() {
            self.choose_ring()?;
            let ring = &self.rings[self.accept_ring];
            free = ring.slots - ring.slots_used;
        }
        for index in 0..self.acceptors.len() {
            let acceptor = &self.acceptors[index];
            match acceptor.state {
                AcceptState::Idle => {}
                // Its table is filling up: from now on one by one.
                AcceptState::Many if free <= spare => {
                    self.cancel_accept(index);
                    continue;
                }
                _ => continue,
            }
            let fd = Fd(acceptor.listener.fd());
            // Each listener may have one accept in flight.
            let (state, entry) = if free > spare {
                let accept = opcode::AcceptMulti::new(fd);
                let accept = if self.direct.is_some() {
                    accept.allocate_file_index(true)
                } else {
                    accept.flags(libc::SOCK_CLOEXEC)
                };
                (AcceptState::Many, accept.build())
            } else if free > self.acceptors.len() {
                let null = std::ptr::null_mut();
                let accept = opcode::Accept::new(fd, null, std::ptr::null_mut())
                    .file_index(Some(DestinationSlot::auto_target()));
                (AcceptState::One, accept.build())
            } else {
                continue;
            };
            self.acceptors[index].state = state;
            let user_data = Self::accept_user_data(index, self.accept_ring);
            self.push(self.accept_ring, &entry.user_data(user_data))?;
        }
        Ok(())
    }

    fn accept_user_data(acceptor: usize, ring: usize) -> u64 {
        ACCEPT | (ring as u64) << 32 | acceptor as u64
    }

    pub(super) fn cancel_accept(&mut self, index: usize) {
        if matches!(
            self.acceptors[index].state,
            AcceptState::Many | AcceptState::One
        ) {
            self.acceptors[index].state = AcceptState::Cancelled;
            let user_data = Self::accept_user_data(index, self.accept_ring);
            self.push_quietly(
                self.accept_ring,
                opcode::AsyncCancel::new(user_data).build(),
            );
        }
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
    fn choose_ring(&mut self) -> io::Result<()> {
        let Some(direct) = self.direct else {
            return Ok(());
        };
        let idle = |acceptor: &Acceptor| acceptor.state == AcceptState::Idle;
        let spare = self.acceptors.len() + 1;
        let is_full = |ring: &RingState| ring.slots - ring.slots_used <= spare;
        if !is_full(&self.rings[self.accept_ring]) || !self.acceptors.iter().all(idle) {
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

    pub(super) fn handle_accept(
        &mut self,
        ring: usize,
        index: usize,
        result: i32,
        more: bool,
    ) -> io::Result<()> {
        if result >= 0 {
            let socket = if self.direct.is_some() {
                self.rings[ring].slots_used += 1;
                UringSocket {
                    index: result as u32,
                    ring: ring as u16,
                }
            } else {
                UringSocket {
                    index: result as u32,
                    ring: NO_RING,
                }
            };
            self.stash.push(Event::Accepted {
                socket,
                listener: index,
            });
        }
        if !more {
            self.acceptors[index].state = AcceptState::Idle;
            let error = io::Error::from_raw_os_error(-result);
            if result < 0 && sys::is_exhausted(&error) {
                self.accepting = false;
                self.stash.push(Event::AcceptFailed(error));
            }
        }
        self.arm_accepts()
    }
}
