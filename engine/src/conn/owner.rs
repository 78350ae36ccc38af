//! Payloads that users own: their destructors are user code, and run wherever the last of many
//! sends ends.

use std::cell::Cell;
use std::mem;
use std::panic;
use std::panic::AssertUnwindSafe;

use bytes::Bytes;

thread_local! {
    /// Panics that have been caught on this thread and not been counted.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Panics of owners' destructors on this thread since the last call.
pub fn take_owner_panics() -> u64 {
    PANICS.take()
}

/// Catches what a destructor panics with.
struct Guarded(Bytes);

impl AsRef<[u8]> for Guarded {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let bytes = mem::take(&mut self.0);
        let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| drop(bytes))) else {
            return;
        };
        PANICS.set(PANICS.get() + 1);
        log::error!("the destructor of a payload's owner panicked");
        if let Err(second) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            mem::forget(second);
        }
    }
}

/// The same bytes, whose owner's destructor may panic without consequences. Costs one small
/// allocation, once for all who get the bytes.
pub(super) fn guarded(bytes: Bytes) -> Bytes {
    if bytes.is_empty() {
        return Bytes::new();
    }
    Bytes::from_owner(Guarded(bytes))
}
