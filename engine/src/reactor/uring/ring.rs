//! One ring: entries in, completions out.

use std::io;
use std::mem::ManuallyDrop;
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

// In tests small enough to be filled.
const SUBMISSIONS: u32 = if cfg!(test) { 64 } else { 1024 };

/// A poll of each of so many connections can complete at once without an overflow, which the
/// kernel keeps but slowly.
const COMPLETIONS: u32 = if cfg!(test) { 128 } else { 16 * 1024 };

/// A ring and its queues.
///
/// The queues borrow the ring, which is on the heap and never moves; [`Drop`] ends the borrows
/// before it frees the ring.
pub(super) struct Ring {
    submitter: ManuallyDrop<Submitter<'static>>,
    submission: ManuallyDrop<SubmissionQueue<'static>>,
    completion: ManuallyDrop<CompletionQueue<'static>>,
    ring: *mut IoUring,
}

impl Ring {
    /// Sets a ring up; only this thread may use it.
    pub(super) fn new() -> io::Result<Self> {
        let setup = |no_sqarray: bool| {
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
        // Kernels before 6.6 do not know the last flag.
        let ring = setup(true).or_else(|_| setup(false))?;
        let parameters = ring.params();
        if !parameters.is_feature_ext_arg() || !parameters.is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let ring = Box::into_raw(Box::new(ring));
        // SAFETY: `ring` comes from a box, so it is valid, and nothing else refers to it. It is
        // freed in `drop` only, after what borrows it here.
        let (mut submitter, submission, completion) = unsafe { &mut *ring }.split();
        // An optimisation: without it each call looks the descriptor up.
        let _ = submitter.register_ring_fd();
        Ok(Self {
            submitter: ManuallyDrop::new(submitter),
            submission: ManuallyDrop::new(submission),
            completion: ManuallyDrop::new(completion),
            ring,
        })
    }

    /// For `register_*` calls.
    pub(super) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    /// Queues an entry; submits first if the queue is full.
    ///
    /// # Safety
    /// What the entry points to stays valid until it has completed.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise is the one that `push` asks for.
        while unsafe { self.submission.push(entry) }.is_err() {
            self.enter(0, None)?;
        }
        Ok(())
    }

    /// Whether entries wait to be submitted.
    pub(super) fn has_submissions(&mut self) -> bool {
        !self.submission.is_empty()
    }

    /// Submits what is queued, runs what the kernel has deferred, and waits until `want`
    /// completions are there or the time is over.
    pub(super) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        self.submission.sync();
        let timespec = timeout.map(Timespec::from).unwrap_or_default();
        let mut args = SubmitArgs::new();
        if timeout.is_some() {
            args = args.timespec(&timespec);
        }
        let flags = (EnterFlags::GETEVENTS | EnterFlags::EXT_ARG).bits();
        let count = self.submission.len() as u32;
        // SAFETY: `args` and the time it points to live until the call returns, and the flags
        // say that the argument is of its type.
        let result = unsafe { self.submitter.enter(count, want, flags, Some(&args)) };
        self.submission.sync();
        self.completion.sync();
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is over, a signal came, or completions must be taken first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes the next completion.
    pub(super) fn complete(&mut self) -> Option<cqueue::Entry> {
        let entry = self.completion.next();
        if entry.is_none() {
            self.completion.sync();
        }
        entry
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // No entry in flight points to memory: see `mod.rs`. So nothing has to be waited for.
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
