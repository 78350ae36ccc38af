//! Calls that fail, for tests.

use std::cell::Cell;
use std::io;

use socket2::SockAddr;

/// The steps of making a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingStep {
    SetUp,
    Table,
    Eventfd,
    RegisterEventfd,
}

impl RingStep {
    pub(super) const ALL: [Self; 4] = [
        Self::SetUp,
        Self::Table,
        Self::Eventfd,
        Self::RegisterEventfd,
    ];
}

thread_local! {
    static RING_STEP: Cell<Option<RingStep>> = const { Cell::new(None) };
    static STRANGERS: Cell<Option<fn(&SockAddr)>> = const { Cell::new(None) };
}

/// Trials of this thread call `connect` with the address of their listener before they connect.
pub(super) fn set_strangers(connect: fn(&SockAddr)) {
    STRANGERS.set(Some(connect));
}

pub(super) fn let_strangers_connect(address: &SockAddr) {
    if let Some(connect) = STRANGERS.get() {
        connect(address);
    }
}

/// This step fails on this thread, until another or none is set.
pub(super) fn fail_next_ring(step: Option<RingStep>) {
    RING_STEP.set(step);
}

/// The error of a step that is to fail.
pub(super) fn ring_step(step: RingStep) -> io::Result<()> {
    if RING_STEP.get() == Some(step) {
        let errno = match step {
            RingStep::SetUp | RingStep::Table => libc::ENOMEM,
            RingStep::Eventfd | RingStep::RegisterEventfd => libc::EMFILE,
        };
        return Err(io::Error::from_raw_os_error(errno));
    }
    Ok(())
}

/// Entries that the kernel takes before it refuses a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Submits {
    Nothing,
    /// Half of the queue, rounded up.
    Half,
    All,
}

/// The n-th call fails, and so do some after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// Calls that succeed first.
    pub(super) after: u32,
    /// Calls that fail then.
    pub(super) times: u32,
    pub(super) errno: i32,
    pub(super) submits: Submits,
    /// Calls that submit nothing succeed, as they do where the kernel has no memory for requests.
    pub(super) spares_looks: bool,
    /// Calls so far.
    pub(super) calls: u32,
}

impl Fault {
    pub(super) fn new(after: u32, errno: i32, submits: Submits) -> Self {
        Self {
            after,
            times: 1,
            errno,
            submits,
            spares_looks: false,
            calls: 0,
        }
    }

    /// Returns the error of this call, if it is to fail, and how many of `count` entries are
    /// submitted all the same.
    pub(super) fn strike(&mut self, count: u32) -> Option<(i32, u32)> {
        if self.spares_looks && count == 0 {
            return None;
        }
        let call = self.calls;
        self.calls += 1;
        let strikes = call >= self.after && call - self.after < self.times;
        let submitted = match self.submits {
            Submits::Nothing => 0,
            Submits::Half => count.div_ceil(2),
            Submits::All => count,
        };
        strikes.then_some((self.errno, submitted))
    }
}
