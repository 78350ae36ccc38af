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
    /// Takes listeners to accept from, in place of those before, none of which has an accept in
    /// flight.
    pub(super) fn accept_from(&mut self, listeners: Vec<Listener>) {
        debug_assert!(self.is_accept_idle());
        let acceptor = |listener| Acceptor {
            listener,
            state: AcceptState::Idle,
        };
        self.acceptors = listeners.into_iter().map(acceptor).collect();
    }

    /// Whether no accept is in flight.
    pub(super) fn is_accept_idle(&self) -> bool {
        let idle = |acceptor: &Acceptor| acceptor.state == AcceptState::Idle;
        self.acceptors.iter().all(idle)
    }

    /// Accepting stops until it is resumed; the next wait reports why.
    fn stop_accepting(&mut self, error: io::Error) {
        self.accepting = false;
        self.stash.push(Event::AcceptFailed(error));
    }

    /// Accepts on every listener that may and does not. Where another ring is needed and cannot
    /// be made, accepting stops.
    pub(super) fn arm_accepts(&mut self) {
        if !self.accepting || self.acceptors.is_empty() {
            return;
        }
        let spare = slots_spare(self.acceptors.len());
        let mut free = usize::MAX;
        if self.direct.is_some() {
            if let Err(error) = self.choose_ring() {
                return self.stop_accepting(error);
            }
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
            self.queue(self.accept_ring, &entry.user_data(user_data));
        }
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
            let cancel = opcode::AsyncCancel::new(user_data).build();
            self.queue_quietly(self.accept_ring, cancel);
        }
    }

    pub(super) fn handle_accept(&mut self, ring: usize, index: usize, result: i32, more: bool) {
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
            if let Some(acceptor) = self.acceptors.get_mut(index) {
                if acceptor.state == AcceptState::Cancelled {
                    // Somebody may wait for that to end.
                    self.stash.push(Event::Woken);
                }
                acceptor.state = AcceptState::Idle;
            }
            let error = io::Error::from_raw_os_error(-result);
            if result < 0 && sys::is_exhausted(&error) {
                self.stop_accepting(error);
            }
        }
        self.arm_accepts();
    }
}
