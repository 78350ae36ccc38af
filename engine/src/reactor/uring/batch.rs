//! Batches: operations on lent memory that begin and end inside one call.
//!
//! Receives and sends are submitted with `MSG_DONTWAIT`, and the others complete at once: each
//! operation of a batch completes while it is submitted. [`Batch::run`] fills one ring, submits
//! everything, and takes every completion before it returns. These facts follow, whatever fails:
//!
//! 1. **The batch has the ring for itself.** Only its own entries are pushed between its first
//!    push and its end; completions of anything else are put aside and handled after the end.
//! 2. **Everything that the kernel took has completed** when `run` returns: each receive has
//!    reported, and no completion overflowed that could still report a send.
//! 3. **Entries that the kernel did not take are never taken.** They are left in the queue only if
//!    the ring broke, and a broken ring is never entered again. If the kernel has no memory to take
//!    them, the batch tries without limit, a millisecond apart: it cannot end before.
//! 4. **Nothing unwinds** between the first push and the end: a panic there ends the process, and
//!    so does a completion that can no longer be learned.

use std::io;
use std::io::IoSlice;
use std::io::Write;
use std::mem;
use std::process;

use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::squeue::Flags;
use io_uring::types::Fd;
use io_uring::types::Fixed;

use crate::reactor::RecvOp;
use crate::reactor::SendOp;
use crate::reactor::sys;

use super::BATCH;
use super::KIND;
use super::UringSocket;
use super::entry;
use super::ring::Ring;

/// The user data of a batch: the kind, 28 bits of its number, 32 bits of the operation's index.
const INDEX: u64 = u32::MAX as u64;
pub(super) const NUMBER_MAX: u32 = (1 << 28) - 1;

/// The most bytes that one send takes: less than what the kernel cuts a send off at (2 GiB less
/// a page), which it does not report.
const SEND_LEN_MAX: usize = 1 << 30;

/// `IORING_FILE_INDEX_ALLOC` (io_uring.h).
const ALLOCATE_SLOT: i32 = -1;

/// The result of a receive that has not completed. No receive returns as many bytes.
const UNDER_WAY: usize = usize::MAX;

/// The operations of one batch on one ring.
///
/// # Safety
/// Each entry completes while it is submitted. What it points to stays valid and is not used
/// otherwise as long as the value is borrowed mutably for [`Batch::run`].
pub(super) unsafe trait Operations {
    /// Whether an operation reports its success. If not, only failures are reported.
    const REPORTS_SUCCESS: bool;

    /// Returns the next operation: its index, and its entry without user data.
    fn next(&mut self) -> Option<(usize, squeue::Entry)>;

    /// Takes the result of an operation. Returns `false` if none with this index is under way.
    fn complete(&mut self, index: usize, result: i32) -> bool;
}

/// A batch that was not carried out as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// Operations, of those that `next` returned first, that were carried out and have their
    /// results. The others were not and never will be.
    pub(super) done: usize,
    pub(super) reason: Reason,
}

/// Why operations of a batch were not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The ring broke.
    Broken,
    /// The kernel has no memory at the moment, or the ring could not be emptied.
    PutOff,
}

impl Failed {
    /// The result of an operation that was not carried out. The errors of `io_uring_enter` are not
    /// those of an operation: EAGAIN would read as evidence that nothing has arrived.
    pub(super) fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self.reason {
            Reason::Broken => libc::EIO,
            Reason::PutOff => libc::ENOBUFS,
        })
    }
}

/// A batch under way on one ring.
pub(super) struct Batch<'a, O> {
    pub(super) ring: &'a mut Ring,
    pub(super) operations: &'a mut O,
    /// Differs from that of any batch whose completions could still come.
    pub(super) number: u32,
    /// Completions of anything else.
    pub(super) aside: &'a mut Vec<cqueue::Entry>,
}

/// Ends the process if it is dropped: while unwinding.
struct NoUnwinding;

impl Drop for NoUnwinding {
    fn drop(&mut self) {
        give_up("a panic inside a batch of io_uring operations");
    }
}

/// Ends the process with one line: the kernel may use memory that this process would use for
/// something else.
#[cold]
fn give_up(reason: &str) -> ! {
    // Not by a logger, which may panic.
    let _ = writeln!(io::stderr(), "sockeye: aborting: {reason}");
    process::abort();
}

impl<O: Operations> Batch<'_, O> {
    /// Carries the operations out; each has its result afterwards.
    ///
    /// # Errors
    /// The ring broke, or takes nothing at the moment: some operations were not begun.
    #[inline]
    pub(super) fn run(mut self) -> Result<(), Failed> {
        debug_assert!(self.number <= NUMBER_MAX);
        if self.ring.has_trouble() || self.ring.has_overflow() {
            self.prepare()?;
        }
        let no_unwinding = NoUnwinding;
        let result = self.run_to_end();
        mem::forget(no_unwinding);
        result
    }

    /// Empties the completion queue of a ring that takes entries.
    #[cold]
    fn prepare(&mut self) -> Result<(), Failed> {
        self.ring.drain(self.aside).map_err(|_| Failed {
            done: 0,
            reason: if self.ring.is_broken() {
                Reason::Broken
            } else {
                Reason::PutOff
            },
        })
    }

    #[inline]
    fn run_to_end(&mut self) -> Result<(), Failed> {
        let tag = BATCH | u64::from(self.number) << 32;
        let (mut pushed, mut completed) = (0, 0);
        while let Some((index, entry)) = self.operations.next() {
            let entry = entry.user_data(tag | index as u64);
            // SAFETY: what the entry points to is valid until `run` returns (`Operations`), and
            // this function returns only when the entry has completed, or is left in the queue
            // of a broken ring: facts 2 and 3.
            while !unsafe { self.ring.try_push(&entry) } {
                if let Err(error) = self.ring.enter_in_batch(0) {
                    return Err(self.break_off(&error, tag, pushed, completed));
                }
                completed += self.take(tag);
            }
            pushed += 1;
        }
        loop {
            let missing = if O::REPORTS_SUCCESS {
                pushed - completed
            } else {
                0
            };
            let want = missing > 0 && !self.ring.has_submissions();
            if let Err(error) = self.ring.enter_in_batch(want.into()) {
                return Err(self.break_off(&error, tag, pushed, completed));
            }
            completed += self.take(tag);
            let reported = !O::REPORTS_SUCCESS || completed == pushed;
            if reported && !self.ring.has_submissions() && !self.ring.has_overflow() {
                return Ok(());
            }
        }
    }

    /// Takes what has completed; returns how much of it is of this batch.
    #[inline]
    fn take(&mut self, tag: u64) -> usize {
        let mut completed = 0;
        while let Some(entry) = self.ring.complete() {
            let user_data = entry.user_data();
            let index = (user_data & INDEX) as usize;
            if user_data & !INDEX == tag && self.operations.complete(index, entry.result()) {
                completed += 1;
            } else {
                self.aside.push(entry);
            }
        }
        completed
    }

    /// The ring broke: the entries in its queue are never executed.
    #[cold]
    fn break_off(&mut self, error: &io::Error, tag: u64, pushed: usize, done: usize) -> Failed {
        let completed = done + self.take(tag);
        let submitted = pushed - self.ring.queued().min(pushed);
        let unknown = if O::REPORTS_SUCCESS {
            completed < submitted
        } else {
            // A failure may be among the completions that the kernel keeps, or has lost.
            self.ring.has_overflow() || error.raw_os_error() == Some(libc::EBADR)
        };
        if unknown {
            give_up(&format!(
                "io_uring_enter failed ({error}) with operations under way"
            ));
        }
        Failed {
            done: submitted,
            reason: Reason::Broken,
        }
    }
}

/// Whether a completion is of a batch.
pub(super) fn is_of_batch(entry: &cqueue::Entry) -> bool {
    entry.user_data() & KIND == BATCH
}

fn to_result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// Goes through the operations of one ring after the other, each ring once.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// The ring that is filled.
    ring: usize,
    /// The next operation to look at.
    next: usize,
    /// Another ring: the nearest one after this, counted around from the first.
    other: Option<usize>,
    first: usize,
}

impl Cursor {
    fn new(first: usize) -> Self {
        Self {
            ring: first,
            next: 0,
            other: None,
            first,
        }
    }

    /// Distance from the first ring.
    fn distance(&self, ring: usize) -> usize {
        ring.wrapping_sub(self.first)
    }

    /// An operation of another ring was passed.
    #[cold]
    fn pass(&mut self, ring: usize) {
        let distance = self.distance(ring);
        let is_later = distance > self.distance(self.ring);
        let is_nearer = |other| distance < self.distance(other);
        if is_later && self.other.is_none_or(is_nearer) {
            self.other = Some(ring);
        }
    }

    /// Goes on to the next ring.
    #[inline]
    fn advance(&mut self) -> bool {
        let Some(ring) = self.other.take() else {
            return false;
        };
        (self.ring, self.next) = (ring, 0);
        true
    }
}

/// An operation on lent memory.
pub(super) trait Lent {
    /// The socket that it is about.
    fn socket(&self) -> UringSocket;

    /// Sets its result.
    fn finish(&mut self, result: io::Result<usize>);

    /// Carries it out by a plain call on its socket, a regular one.
    fn carry_out(&mut self);
}

impl Lent for RecvOp<'_, UringSocket> {
    #[inline]
    fn socket(&self) -> UringSocket {
        self.socket
    }

    fn finish(&mut self, result: io::Result<usize>) {
        self.result = result;
    }

    fn carry_out(&mut self) {
        self.result = sys::recv(self.socket.fd(), self.buffer);
    }
}

impl Lent for SendOp<'_, UringSocket> {
    #[inline]
    fn socket(&self) -> UringSocket {
        self.socket
    }

    fn finish(&mut self, result: io::Result<usize>) {
        self.result = result;
    }

    fn carry_out(&mut self) {
        self.result = sys::send(self.socket.fd(), self.slices);
    }
}

/// Operations on several rings.
pub(super) struct Spread<'o, T> {
    operations: &'o mut [T],
    cursor: Cursor,
}

impl<'o, T: Lent> Spread<'o, T> {
    #[inline]
    fn new(operations: &'o mut [T]) -> Self {
        let first = operations.first().map_or(0, |op| op.socket().ring());
        Self {
            operations,
            cursor: Cursor::new(first),
        }
    }

    /// Returns the next operation of the current ring, and its index.
    #[inline]
    fn next(&mut self) -> Option<(usize, &mut T)> {
        loop {
            let index = self.cursor.next;
            let ring = self.operations.get(index)?.socket().ring();
            self.cursor.next += 1;
            if ring == self.cursor.ring {
                return Some((index, &mut self.operations[index]));
            }
            self.cursor.pass(ring);
        }
    }

    /// The ring whose operations come next.
    #[inline]
    pub(super) fn ring(&self) -> usize {
        self.cursor.ring
    }

    /// Goes on to the operations of another ring. Returns `false` if there are none.
    #[inline]
    pub(super) fn advance(&mut self) -> bool {
        self.cursor.advance()
    }

    /// Finishes the operations of the current ring that were not carried out. Those that were put
    /// off are carried out here if their sockets are regular; the others have an error.
    #[cold]
    pub(super) fn fail(&mut self, failed: Failed) {
        let ring = self.cursor.ring;
        let ops = self.operations.iter_mut();
        let of_ring = ops.filter(|op| op.socket().ring() == ring);
        for op in of_ring.skip(failed.done) {
            if failed.reason == Reason::PutOff && !op.socket().is_direct() {
                op.carry_out();
            } else {
                op.finish(Err(failed.error()));
            }
        }
        // The batch may have ended before it saw all of them.
        for op in &self.operations[self.cursor.next..] {
            self.cursor.pass(op.socket().ring());
        }
    }
}

/// Operations that are carried out one ring after the other.
pub(super) trait SpreadOperations<'o>: Operations {
    type Operation: Lent;

    fn spread(&mut self) -> &mut Spread<'o, Self::Operation>;
}

/// Receives into lent buffers.
pub(super) struct Receives<'o, 'b>(Spread<'o, RecvOp<'b, UringSocket>>);

impl<'o, 'b> Receives<'o, 'b> {
    #[inline]
    pub(super) fn new(operations: &'o mut [RecvOp<'b, UringSocket>]) -> Self {
        Self(Spread::new(operations))
    }
}

impl<'o, 'b> SpreadOperations<'o> for Receives<'o, 'b> {
    type Operation = RecvOp<'b, UringSocket>;

    #[inline]
    fn spread(&mut self) -> &mut Spread<'o, Self::Operation> {
        &mut self.0
    }
}

// SAFETY: a receive with `MSG_DONTWAIT` never waits. Its buffer is borrowed by the operation, which
// is borrowed by `self`; nobody else uses it before the batch has ended.
unsafe impl Operations for Receives<'_, '_> {
    const REPORTS_SUCCESS: bool = true;

    #[inline]
    fn next(&mut self) -> Option<(usize, squeue::Entry)> {
        let (index, op) = self.0.next()?;
        op.result = Ok(UNDER_WAY);
        let (pointer, len) = (op.buffer.as_mut_ptr(), op.buffer.len() as u32);
        let entry = entry!(op.socket, fd => opcode::Recv::new(fd, pointer, len)
            .flags(libc::MSG_DONTWAIT)
            .build());
        Some((index, entry))
    }

    #[inline]
    fn complete(&mut self, index: usize, result: i32) -> bool {
        let Some(op) = self.0.operations.get_mut(index) else {
            return false;
        };
        if !matches!(op.result, Ok(UNDER_WAY)) {
            return false;
        }
        op.result = to_result(result);
        true
    }
}

/// Sends of lent pieces.
pub(super) struct Sends<'o, 'b> {
    spread: Spread<'o, SendOp<'b, UringSocket>>,
    /// Headers of the sends that have several pieces.
    messages: &'o mut Vec<libc::msghdr>,
}

impl<'o, 'b> Sends<'o, 'b> {
    #[inline]
    pub(super) fn new(
        operations: &'o mut [SendOp<'b, UringSocket>],
        messages: &'o mut Vec<libc::msghdr>,
    ) -> Self {
        messages.clear();
        // The entries point into it: it does not grow after this.
        messages.reserve(operations.len());
        Self {
            spread: Spread::new(operations),
            messages,
        }
    }
}

impl<'o, 'b> SpreadOperations<'o> for Sends<'o, 'b> {
    type Operation = SendOp<'b, UringSocket>;

    #[inline]
    fn spread(&mut self) -> &mut Spread<'o, Self::Operation> {
        &mut self.spread
    }
}

/// Returns a message header that points to `slices`.
fn message_of(slices: &[IoSlice<'_>]) -> libc::msghdr {
    // SAFETY: all zeros is a valid `msghdr`: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    // `IoSlice` has the layout of `iovec` on Unix.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    message
}

// SAFETY: a send with `MSG_DONTWAIT` never waits. Its pieces are borrowed by the operation, which
// is borrowed by `self`. Its header lies in `messages`, which `new` gave room for one of each
// operation, and which is not touched before the next value of this type is made.
unsafe impl Operations for Sends<'_, '_> {
    /// A send that takes everything reports nothing.
    const REPORTS_SUCCESS: bool = false;

    #[inline]
    fn next(&mut self) -> Option<(usize, squeue::Entry)> {
        const FLAGS: i32 = sys::SEND_FLAGS.bits() as i32 | libc::MSG_WAITALL;
        let (index, op) = self.spread.next()?;
        let len = assumed(op);
        op.result = Ok(len);
        let entry = match op.slices {
            [slice, ..] if is_first_alone(op) => {
                entry!(op.socket, fd => opcode::Send::new(fd, slice.as_ptr(), len as u32)
                    .flags(FLAGS)
                    .build())
            }
            slices => {
                self.messages.push(message_of(slices));
                let message = &raw const self.messages[self.messages.len() - 1];
                entry!(op.socket, fd => opcode::SendMsg::new(fd, message)
                    .flags(FLAGS as u32)
                    .build())
            }
        };
        Some((index, entry.flags(Flags::SKIP_SUCCESS)))
    }

    #[cold]
    fn complete(&mut self, index: usize, result: i32) -> bool {
        let ring = self.spread.ring();
        let op = self.spread.operations.get_mut(index);
        let Some(op) = op.filter(|op| op.socket.ring() == ring) else {
            return false;
        };
        // A failure, and a send that was cut short, replace what `next` has assumed.
        if !matches!(op.result, Ok(len) if len == assumed(op)) {
            return false;
        }
        op.result = to_result(result);
        true
    }
}

/// Whether only the first piece is sent: there is one, or all are too long for one call.
#[inline]
fn is_first_alone(op: &SendOp<'_, UringSocket>) -> bool {
    op.slices.len() == 1 || op.len() > SEND_LEN_MAX
}

/// Bytes that a send has taken if it reports nothing.
#[inline]
fn assumed(op: &SendOp<'_, UringSocket>) -> usize {
    match op.slices {
        [slice, ..] if is_first_alone(op) => slice.len().min(SEND_LEN_MAX),
        _ => op.len(),
    }
}

/// A batch of one operation.
pub(super) struct Single<P> {
    payload: P,
    begun: bool,
    result: Option<i32>,
}

/// The operation of a [`Single`] batch.
///
/// # Safety
/// The operation never waits. Its entry points to no memory, or only into `self`.
pub(super) unsafe trait Payload {
    fn entry(&mut self) -> squeue::Entry;
}

impl<P: Payload> Single<P> {
    pub(super) fn new(payload: P) -> Self {
        Self {
            payload,
            begun: false,
            result: None,
        }
    }
}

// SAFETY: the operation never waits. Its entry points into `self` at most (`Payload`), which is
// borrowed, and so does not move, until the batch has ended.
unsafe impl<P: Payload> Operations for Single<P> {
    const REPORTS_SUCCESS: bool = true;

    fn next(&mut self) -> Option<(usize, squeue::Entry)> {
        if mem::replace(&mut self.begun, true) {
            return None;
        }
        Some((0, self.payload.entry()))
    }

    fn complete(&mut self, index: usize, result: i32) -> bool {
        let is_first = index == 0 && self.result.is_none();
        if is_first {
            self.result = Some(result);
        }
        is_first
    }
}

/// Makes a descriptor of the process for the direct one in this slot.
pub(super) struct Install(pub(super) u32);

// SAFETY: an install never waits, and points to no memory.
unsafe impl Payload for Install {
    fn entry(&mut self) -> squeue::Entry {
        opcode::FixedFdInstall::new(Fixed(self.0), 0).build()
    }
}

impl Single<Install> {
    /// Returns the descriptor.
    pub(super) fn descriptor(&self) -> io::Result<i32> {
        to_descriptor(self.result)
    }
}

/// Moves a descriptor into a free slot of the ring's table. The kernel writes the number of the
/// slot over the descriptor.
pub(super) struct Update(pub(super) i32);

// SAFETY: an update never waits, and points to a field of `self`.
unsafe impl Payload for Update {
    fn entry(&mut self) -> squeue::Entry {
        let update = opcode::FilesUpdate::new(&raw mut self.0, 1);
        update.offset(ALLOCATE_SLOT).build()
    }
}

impl Single<Update> {
    /// Returns the slot.
    pub(super) fn slot(&self) -> io::Result<u32> {
        to_descriptor(self.result)?;
        Ok(self.payload.0 as u32)
    }
}

fn to_descriptor(result: Option<i32>) -> io::Result<i32> {
    match result {
        Some(result) if result >= 0 => Ok(result),
        Some(result) => Err(io::Error::from_raw_os_error(-result)),
        // A batch that ended without an error reported each.
        None => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}
