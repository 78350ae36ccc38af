//! What the workers of a server count together, as connections come and go.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

/// What the workers of a server share.
#[derive(Debug)]
pub struct Shared {
    /// Connections of all workers.
    connections: AtomicUsize,
    /// The most of them.
    connections_max: usize,
    addresses: Option<Addresses>,
    /// Connections that a drain has sent a Close frame, of all workers.
    drained: AtomicUsize,
}

/// Calls that do not overlap.
#[derive(Debug, Default)]
pub(super) struct OneByOne(Mutex<()>);

impl OneByOne {
    pub(super) fn run(&self, call: impl FnOnce()) {
        // Nothing panics while it is held.
        let _held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        call();
    }
}

/// How many connections each address has.
#[derive(Debug)]
struct Addresses {
    counts: Mutex<HashMap<IpAddr, u32>>,
    most: u32,
}

impl Shared {
    /// No connections, and the most that there may be.
    pub fn new(connections_max: Option<usize>) -> Self {
        Self {
            connections: AtomicUsize::new(0),
            connections_max: connections_max.unwrap_or(usize::MAX),
            addresses: None,
            drained: AtomicUsize::new(0),
        }
    }

    /// Connections that a drain has sent a Close frame.
    pub fn drained(&self) -> usize {
        self.drained.load(Ordering::Relaxed)
    }

    /// Allows no more than `most` connections of one address.
    #[must_use]
    pub fn per_address(mut self, most: Option<u32>) -> Self {
        self.addresses = most.map(|most| Addresses {
            counts: Mutex::default(),
            most,
        });
        self
    }

    /// Counts one more connection of an address, if there may be one.
    pub(super) fn claim_address(&self, address: IpAddr) -> bool {
        let Some(addresses) = &self.addresses else {
            return true;
        };
        // Nothing panics while it is held.
        let mut counts = addresses
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        let free = *count < addresses.most;
        *count += u32::from(free);
        free
    }

    /// Counts one connection of an address less.
    pub(super) fn release_address(&self, address: IpAddr) {
        if let Some(addresses) = &self.addresses {
            let mut counts = addresses
                .counts
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Entry::Occupied(mut entry) = counts.entry(address) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// Counts one more connection, if there may be one.
    pub(super) fn claim(&self) -> bool {
        let others = self.connections.fetch_add(1, Ordering::Relaxed);
        let free = others < self.connections_max;
        if !free {
            self.release();
        }
        free
    }

    /// Counts one connection less.
    pub(super) fn release(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts one more connection, whether there may be one or not.
    pub(super) fn count(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there are as many connections as there may be.
    pub(super) fn is_full(&self) -> bool {
        self.connections() >= self.connections_max
    }

    /// Whether connections are counted by their addresses.
    pub(super) fn counts_addresses(&self) -> bool {
        self.addresses.is_some()
    }

    /// Counts a connection that a drain has sent a Close frame.
    pub(super) fn count_drained(&self) {
        self.drained.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections of all workers.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}
