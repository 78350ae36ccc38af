//! One ring: entries in, completions out.

use std::io;
use std::mem::ManuallyDrop;
use std::thread;
use std::time::Duration;

use io_uring::CompletionQueue;
use io_uring::EnterFlags;
use io_uring::IoUring;
use io_uring::SubmissionQueue;
use io_uring::Submitter;
use io_uring::cqueue;
use io_uring::squeue;
use io_uring::types::SubmitArgs;
use io_uring::types::Timespec;

#[cfg(test)]
use super::faults;
use super::setup;

/// Entries of the submission queue. Tests fill and overflow both queues.
const SUBMISSIONS: u32 = if cfg!(test) { 8 } else { 1024 };

/// Entries of the completion queue. The kernel keeps completions that overflow it, at a cost:
/// one poll of each connection can complete at once without an overflow up to this number.
const COMPLETIONS: u32 = if cfg!(test) { 8 } else { 16 * 1024 };

/// Consecutive calls that the kernel may refuse for want of memory before the ring is given up:
/// after the first few, one in each millisecond.
const STARVED_MAX: u32 = 1_000;
const STARVED_AT_ONCE: u32 = 8;

/// Rounds that may be needed to empty an overflowed completion queue before a batch begins.
/// Each takes up to a whole queue.
const DRAIN_ROUNDS_MAX: u32 = 4_096;

/// A ring and its queues.
///
/// The queues borrow the ring, which is on the heap and never moves; [`Drop`] ends the borrows
/// before it frees the ring.
///
/// A ring breaks when the kernel refuses a call for a reason that does not pass. From then on it
/// is never entered again, by anybody: the kernel takes entries from the queue only inside
/// `io_uring_enter`, so an entry that was left in the queue is never executed.
pub(super) struct Ring {
    submitter: ManuallyDrop<Submitter<'static>>,
    submission: ManuallyDrop<SubmissionQueue<'static>>,
    completion: ManuallyDrop<CompletionQueue<'static>>,
    ring: *mut IoUring,
    /// The error number of the call that broke it.
    broken: Option<i32>,
    /// Consecutive calls that were refused for want of memory.
    starved: u32,
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
            broken: None,
            starved: 0,
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

    /// For `register_*` calls.
    pub(super) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    /// Queues an entry if there is room and the ring is not broken.
    ///
    /// # Safety
    /// What the entry points to stays valid until it has completed, or the ring is broken and
    /// the kernel has not taken the entry.
    #[inline]
    pub(super) unsafe fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise, and a ring that is broken is never entered again.
        unsafe { self.submission.push(entry) }.is_ok()
    }

    /// Queues an entry that points to no memory; submits first if the queue is full.
    ///
    /// # Errors
    /// The ring is broken: the next wait reports it.
    ///
    /// # Safety
    /// The entry points to no memory.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.broken.is_some() {
            return self.check();
        }
        // SAFETY: the entry points to no memory.
        while !unsafe { self.try_push(entry) } {
            self.enter(0, None)?;
        }
        Ok(())
    }

    /// Entries that the kernel has not taken yet.
    #[inline]
    pub(super) fn queued(&self) -> usize {
        self.submission.len()
    }

    /// Whether entries wait to be submitted.
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
        self.has_submissions() || self.has_overflow() || self.broken.is_some()
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Returns the error that broke the ring.
    #[cold]
    pub(super) fn check(&self) -> io::Result<()> {
        match self.broken {
            None => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Submits what is queued, runs what the kernel has deferred, and waits until `want`
    /// completions are there or the time is over. It may return early: callers that need
    /// completions or room look, and call again.
    ///
    /// # Errors
    /// The ring is broken, by this call or by one before.
    pub(super) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        if self.broken.is_some() {
            return self.check();
        }
        self.submission.sync();
        let timespec = timeout.map(Timespec::from).unwrap_or_default();
        let mut args = SubmitArgs::new();
        if timeout.is_some() {
            args = args.timespec(&timespec);
        }
        let count = self.submission.len() as u32;
        let result = self.enter_kernel(count, want, &args);
        self.submission.sync();
        self.completion.sync();
        match result {
            // The kernel reports a completion that it had no memory to keep only in calls that
            // submit nothing; it counts them always.
            Ok(_) if self.completion.overflow() == 0 => {
                self.starved = 0;
                Ok(())
            }
            Ok(_) => self.handle_refusal(&io::Error::from_raw_os_error(libc::EBADR)),
            Err(error) => self.handle_refusal(&error),
        }
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

    /// Tells what passes from what does not.
    #[cold]
    fn handle_refusal(&mut self, error: &io::Error) -> io::Result<()> {
        match error.raw_os_error() {
            // The time is over, or a signal came.
            Some(libc::ETIME | libc::EINTR) => Ok(()),
            // No memory for a request, or completions must be taken first.
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) if self.starved < STARVED_MAX => {
                self.starved += 1;
                if self.starved > STARVED_AT_ONCE {
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
            // EBADR among them: the kernel has lost completions.
            errno => {
                self.broken = Some(errno.unwrap_or(libc::EIO));
                self.check()
            }
        }
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

    /// Takes everything that has completed, until nothing is left that overflowed.
    ///
    /// # Errors
    /// The ring is broken, or (ENOBUFS) completions come faster than they can be taken.
    #[cold]
    pub(super) fn drain(&mut self, taken: &mut Vec<cqueue::Entry>) -> io::Result<()> {
        self.check()?;
        for _ in 0..DRAIN_ROUNDS_MAX {
            while let Some(entry) = self.complete() {
                taken.push(entry);
            }
            if !self.has_overflow() {
                return Ok(());
            }
            self.enter(0, None)?;
        }
        Err(io::Error::from_raw_os_error(libc::ENOBUFS))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
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
