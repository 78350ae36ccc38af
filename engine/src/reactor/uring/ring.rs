//! One ring: entries in, completions out.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use io_uring::CompletionQueue;
use io_uring::EnterFlags;
use io_uring::IoUring;
use io_uring::SubmissionQueue;
use io_uring::Submitter;
use io_uring::cqueue;
use io_uring::squeue;
use io_uring::types::SubmitArgs;
use io_uring::types::Timespec;

use crate::reactor::sys;

#[cfg(test)]
use super::faults;
use super::setup;

/// Entries of the submission queue. Tests fill and overflow both queues.
const SUBMISSIONS: u32 = if cfg!(test) { 8 } else { 1024 };

/// Entries of the completion queue. The kernel keeps completions that overflow it, at a cost:
/// one poll of each connection can complete at once without an overflow up to this number.
const COMPLETIONS: u32 = if cfg!(test) { 8 } else { 16 * 1024 };

/// Locked memory of a ring at least, in bytes: its entries.
pub(super) const LOCKED_LEN_MIN: u64 = SUBMISSIONS as u64 * 64 + COMPLETIONS as u64 * 16;

/// Refused calls of a batch that are made again at once; those after them follow a pause.
const REFUSED_AT_ONCE: u32 = 8;

/// Longest sleep before a refused call is made again.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_millis(1);

/// Shortest time between two log lines about refused calls.
const REFUSED_LOG_STEP: Duration = Duration::from_secs(1);

/// Rounds that may be needed to empty an overflowed completion queue before a batch begins.
/// Each takes up to a whole queue.
const DRAIN_ROUNDS_MAX: u32 = 4_096;

/// Whether the kernel takes entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Works,
    /// A call was refused for want of memory since the last one outside of a batch.
    Refused,
    /// A call failed with this error number, for a reason that does not pass.
    Broken(i32),
}

/// A ring and its queues.
///
/// The queues borrow the ring, which is on the heap and never moves; [`Drop`] ends the borrows
/// before it frees the ring.
///
/// A call that is **refused** for want of kernel memory (EAGAIN, EBUSY, ENOMEM) is made again
/// later, without limit: missing memory slows accepting, and never ends the service. Meanwhile
/// completions are taken, and entries that find no room in the queue wait in `waiting`.
///
/// A ring **breaks** when a call fails for a reason that does not pass. From then on it is never
/// entered again, by anybody: the kernel takes entries from the queue only inside
/// `io_uring_enter`, so an entry that was left in the queue is never executed.
pub(super) struct Ring {
    submitter: ManuallyDrop<Submitter<'static>>,
    submission: ManuallyDrop<SubmissionQueue<'static>>,
    completion: ManuallyDrop<CompletionQueue<'static>>,
    ring: *mut IoUring,
    state: State,
    /// Entries that point to no memory and follow those of the queue. Empty if the ring works.
    waiting: VecDeque<squeue::Entry>,
    /// Regular descriptors whose close the kernel has not taken, each with its entry's position in
    /// the queue and `waiting`, counted from one.
    closing: Vec<(usize, RawFd)>,
    /// Refused calls so far, and those since the last call outside of a batch.
    refusals: u64,
    refusals_in_a_row: u32,
    /// Error number of the latest refused call.
    refusal: i32,
    logged: Option<Instant>,
    #[cfg(test)]
    pub(super) fault: Option<faults::Fault>,
}

impl Ring {
    /// Sets a ring up; only this thread may use it.
    ///
    /// # Errors
    /// The error names the call and the limit. Nothing is left behind.
    pub(super) fn new() -> io::Result<Self> {
        let set_up = |no_sqarray: bool| {
            let mut builder = IoUring::builder();
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_submit_all()
                .setup_cqsize(COMPLETIONS);
            if no_sqarray {
                builder.setup_no_sqarray();
            }
            builder.build(SUBMISSIONS)
        };
        #[cfg(test)]
        faults::ring_step(faults::RingStep::SetUp).map_err(setup::failed("io_uring_setup"))?;
        // Kernels before 6.6 do not know the last flag.
        let ring = set_up(true)
            .or_else(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => set_up(false),
                _ => Err(error),
            })
            .map_err(setup::failed("io_uring_setup"))?;
        let parameters = ring.params();
        if !parameters.is_feature_ext_arg() || !parameters.is_feature_nodrop() {
            let error = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(setup::failed("io_uring_setup")(error));
        }
        let ring = Box::into_raw(Box::new(ring));
        // SAFETY: `ring` comes from a box, so it is valid, and nothing else refers to it. It is
        // freed in `drop` only, after what borrows it here.
        let (submitter, submission, completion) = unsafe { &mut *ring }.split();
        let mut ring = Self {
            submitter: ManuallyDrop::new(submitter),
            submission: ManuallyDrop::new(submission),
            completion: ManuallyDrop::new(completion),
            ring,
            state: State::Works,
            waiting: VecDeque::new(),
            closing: Vec::new(),
            refusals: 0,
            refusals_in_a_row: 0,
            refusal: 0,
            logged: None,
            #[cfg(test)]
            fault: None,
        };
        // Without it each call looks the descriptor up. A thread can register sixteen rings
        // (EBUSY): further ones do without.
        match ring.submitter.register_ring_fd() {
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                Err(setup::failed("io_uring_register (ring descriptor)")(error))
            }
            _ => Ok(ring),
        }
    }

    /// Access to the `register_*` calls.
    pub(super) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    /// Queues an entry if there is room and the ring is not broken.
    ///
    /// # Safety
    /// The memory that the entry points to stays valid until it has completed, or the ring is broken and
    /// the kernel has not taken the entry.
    #[inline]
    pub(super) unsafe fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise, and a ring that is broken is never entered again.
        unsafe { self.submission.push(entry) }.is_ok()
    }

    /// Queues an entry that points to no memory; submits first if the queue is full. If the kernel
    /// takes nothing at the moment the entry waits outside of the queue.
    ///
    /// # Errors
    /// EIO: the ring is broken. The next wait reports why.
    ///
    /// # Safety
    /// The entry points to no memory.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        let broken = |_| io::Error::from_raw_os_error(libc::EIO);
        self.check().map_err(broken)?;
        // Entries keep their order.
        let mut waits = !self.waiting.is_empty();
        // SAFETY: the entry points to no memory.
        while !waits && !unsafe { self.try_push(entry) } {
            self.enter(0, None).map_err(broken)?;
            waits = self.state == State::Refused && self.submission.is_full();
        }
        if waits {
            self.waiting.push_back(entry.clone());
        }
        Ok(())
    }

    /// Queues the close of a regular descriptor, which the ring owns from here on. If the kernel
    /// never takes the entry the descriptor is closed by a plain call.
    ///
    /// # Safety
    /// The entry closes `fd` and points to no memory.
    pub(super) unsafe fn push_close(&mut self, entry: &squeue::Entry, fd: RawFd) {
        // SAFETY: the caller's promise.
        match unsafe { self.push(entry) } {
            Ok(()) => self.closing.push((self.untaken(), fd)),
            Err(_) => sys::close(fd),
        }
    }

    /// Entries that the kernel has not taken yet, those included that wait for room.
    fn untaken(&self) -> usize {
        self.submission.len() + self.waiting.len()
    }

    /// Forgets the descriptors whose close the kernel has taken, after a call that began with
    /// `before` entries in the queue.
    #[cold]
    fn forget_closed(&mut self, before: usize) {
        let taken = before - self.submission.len();
        self.closing.retain_mut(|(position, _)| {
            let is_untaken = *position > taken;
            *position = position.saturating_sub(taken);
            is_untaken
        });
    }

    /// Closes the descriptors whose entries the kernel will never take.
    fn close_untaken(&mut self) {
        for (_, fd) in self.closing.drain(..) {
            sys::close(fd);
        }
    }

    /// Regular descriptors whose close the kernel has not taken.
    #[cfg(test)]
    pub(super) fn closing(&self) -> usize {
        self.closing.len()
    }

    /// Entries in the queue that the kernel has not taken yet.
    #[inline]
    pub(super) fn queued(&self) -> usize {
        self.submission.len()
    }

    /// Whether the queue has entries that the kernel has not taken yet.
    pub(super) fn has_submissions(&self) -> bool {
        !self.submission.is_empty()
    }

    /// Whether the kernel keeps completions for which there was no room.
    #[inline]
    pub(super) fn has_overflow(&self) -> bool {
        self.submission.cq_overflow()
    }

    /// Whether [`enter`](Self::enter) has something to do, or to report.
    pub(super) fn is_pending(&self) -> bool {
        self.has_submissions() || self.has_overflow() || self.has_trouble()
    }

    /// Whether a call was refused lately, or the ring is broken.
    #[inline]
    pub(super) fn has_trouble(&self) -> bool {
        self.state != State::Works
    }

    /// Whether the kernel had no memory for the latest call.
    pub(super) fn is_refused(&self) -> bool {
        self.state == State::Refused
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self.state, State::Broken(_))
    }

    /// Calls that were refused so far.
    pub(super) fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Returns the error that broke the ring.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.state {
            State::Broken(errno) => Err(io::Error::from_raw_os_error(errno)),
            State::Works | State::Refused => Ok(()),
        }
    }

    /// Submits what is queued, runs what the kernel has deferred, and waits until `want`
    /// completions are there or the time is over. It may return early: callers that need
    /// completions or room look, and call again. Not for use inside a batch.
    ///
    /// A call that is refused is no error: the entries stay in the queue, completions are taken
    /// all the same, and a wait is cut to [`REFUSED_PAUSE`].
    ///
    /// # Errors
    /// The ring is broken, by this call or by one before.
    pub(super) fn enter(&mut self, mut want: u32, timeout: Option<Duration>) -> io::Result<()> {
        if self.has_trouble() {
            self.recover()?;
            if !self.waiting.is_empty() {
                want = 0;
            }
        }
        self.call(want, timeout, Caller::Turn)
    }

    /// The same inside a batch, whose entries point to lent memory and must not be left behind: a
    /// call that is refused returns after a pause.
    pub(super) fn enter_in_batch(&mut self, want: u32) -> io::Result<()> {
        self.call(want, None, Caller::Batch)
    }

    /// Before a call outside of a batch: queues what waits, and logs what was refused.
    #[cold]
    fn recover(&mut self) -> io::Result<()> {
        self.check()?;
        self.refusals_in_a_row = 0;
        while let Some(entry) = self.waiting.pop_front() {
            // SAFETY: entries that wait point to no memory: `push`.
            if !unsafe { self.try_push(&entry) } {
                self.waiting.push_front(entry);
                break;
            }
        }
        if self.waiting.is_empty() {
            self.state = State::Works;
        }
        let is_due = |logged: Instant| logged.elapsed() >= REFUSED_LOG_STEP;
        if self.logged.is_none_or(is_due) {
            self.logged = Some(Instant::now());
            log::warn!(
                "io_uring_enter refused: {} ({} times so far)",
                io::Error::from_raw_os_error(self.refusal),
                self.refusals
            );
        }
        Ok(())
    }

    #[inline]
    fn call(&mut self, want: u32, timeout: Option<Duration>, caller: Caller) -> io::Result<()> {
        self.submission.sync();
        let count = self.submission.len() as u32;
        let result = self.enter_for(count, want, timeout);
        if !self.closing.is_empty() {
            self.forget_closed(count as usize);
        }
        match result {
            // The kernel reports a completion that it had no memory to keep only in calls that
            // submit nothing; it counts them always.
            Ok(_) if self.completion.overflow() == 0 => Ok(()),
            Ok(_) => self.break_down(libc::EBADR),
            Err(error) => self.handle_error(&error, want, timeout, caller),
        }
    }

    #[inline]
    fn enter_for(&mut self, count: u32, want: u32, timeout: Option<Duration>) -> io::Result<usize> {
        let timespec = timeout.map(Timespec::from).unwrap_or_default();
        let mut args = SubmitArgs::new();
        if timeout.is_some() {
            args = args.timespec(&timespec);
        }
        let result = self.enter_kernel(count, want, &args);
        self.submission.sync();
        self.completion.sync();
        result
    }

    #[inline]
    fn enter_kernel(
        &mut self,
        count: u32,
        want: u32,
        args: &SubmitArgs<'_, '_>,
    ) -> io::Result<usize> {
        let flags = (EnterFlags::GETEVENTS | EnterFlags::EXT_ARG).bits();
        #[cfg(test)]
        if let Some((errno, count)) = self.fault.as_mut().and_then(|fault| fault.strike(count)) {
            if count > 0 {
                // SAFETY: as below.
                unsafe { self.submitter.enter(count, 0, flags, Some(args)) }?;
            }
            return Err(io::Error::from_raw_os_error(errno));
        }
        // SAFETY: `args` and the time it points to live until the call returns, and the flags
        // say that the argument is of its type. Entries in the queue that point to memory are
        // those of a batch, which has not ended: `batch.rs`.
        unsafe { self.submitter.enter(count, want, flags, Some(args)) }
    }

    /// Tells errors that pass from those that do not.
    #[cold]
    fn handle_error(
        &mut self,
        error: &io::Error,
        want: u32,
        timeout: Option<Duration>,
        caller: Caller,
    ) -> io::Result<()> {
        match error.raw_os_error() {
            // The time is over, or a signal came.
            Some(libc::ETIME | libc::EINTR) => Ok(()),
            // No memory for a request, or completions must be taken first.
            Some(errno @ (libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) => {
                self.state = State::Refused;
                self.refusal = errno;
                self.refusals += 1;
                self.refusals_in_a_row = self.refusals_in_a_row.saturating_add(1);
                self.look(want, timeout, caller)
            }
            // EBADR among them: the kernel has lost completions.
            errno => self.break_down(errno.unwrap_or(libc::EIO)),
        }
    }

    /// After a refused call, which takes no completions: takes them without submitting anything,
    /// for which the kernel needs no memory. Waits for them for a moment if the caller would wait.
    fn look(&mut self, want: u32, timeout: Option<Duration>, caller: Caller) -> io::Result<()> {
        let longest = timeout.map_or(REFUSED_PAUSE, |timeout| timeout.min(REFUSED_PAUSE));
        let pause = match caller {
            Caller::Turn if want > 0 => longest,
            Caller::Batch if self.refusals_in_a_row > REFUSED_AT_ONCE => REFUSED_PAUSE,
            _ => Duration::ZERO,
        };
        // A batch looks at the completion queue first, and needs time to pass, not completions.
        let waits = want > 0 && caller == Caller::Turn;
        let timeout = waits.then_some(longest);
        match self.enter_for(0, waits.into(), timeout) {
            Ok(_) if self.completion.overflow() != 0 => self.break_down(libc::EBADR),
            Ok(_) if caller == Caller::Turn => Ok(()),
            Ok(_) => {
                thread::sleep(pause);
                Ok(())
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) => Ok(()),
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
                    thread::sleep(pause);
                    Ok(())
                }
                errno => self.break_down(errno.unwrap_or(libc::EIO)),
            },
        }
    }

    /// The ring is not entered any more. The kernel never takes what is left in the queue.
    #[cold]
    fn break_down(&mut self, errno: i32) -> io::Result<()> {
        self.state = State::Broken(errno);
        self.close_untaken();
        self.check()
    }

    /// Takes the next completion.
    #[inline]
    pub(super) fn complete(&mut self) -> Option<cqueue::Entry> {
        let entry = self.completion.next();
        if entry.is_none() {
            self.completion.sync();
        }
        entry
    }

    /// Takes everything that has completed, until nothing is left that overflowed and the kernel
    /// takes entries.
    ///
    /// # Errors
    /// The ring is broken; or (ENOBUFS) the kernel has no memory, or completions come faster than
    /// they can be taken.
    #[cold]
    pub(super) fn drain(&mut self, taken: &mut Vec<cqueue::Entry>) -> io::Result<()> {
        self.check()?;
        for _ in 0..DRAIN_ROUNDS_MAX {
            let before = (taken.len(), self.untaken());
            while let Some(entry) = self.complete() {
                taken.push(entry);
            }
            if !self.has_overflow() && !self.has_trouble() {
                return Ok(());
            }
            self.enter(0, None)?;
            if self.is_refused() && before == (taken.len(), self.untaken()) {
                break;
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENOBUFS))
    }
}

/// The caller of `io_uring_enter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// It can go on without the entries being taken.
    Turn,
    /// It cannot: the entries point to lent memory.
    Batch,
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.close_untaken();
        // The registration would keep the ring, and its locked memory, until the thread ends.
        // An error says that there is none.
        let _ = self.submitter.unregister_ring_fd();
        // No entry in flight points to memory (`batch.rs`), so nothing has to be waited for, and
        // to close a ring submits nothing.
        // SAFETY: each is dropped here only, before the ring that it borrows.
        unsafe { ManuallyDrop::drop(&mut self.completion) };
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.submission) };
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.submitter) };
        // SAFETY: `ring` came from a box in `new`, and the borrows of it have ended.
        drop(unsafe { Box::from_raw(self.ring) });
    }
}
