//! The one door to user code: callbacks, the handler factory, and the destructors of what users
//! hand over.
//!
//! Callbacks of one connection run inside `Worker::deliver`, which is this door with the
//! consequence that the connection is closed; all other calls come here. Destructors are user code
//! too: nothing of a user's is dropped by the worker outside.

use std::any::Any;
use std::fmt;
use std::mem;
use std::panic;
use std::panic::AssertUnwindSafe;

use crate::metrics::Recorder;

/// Calls user code that is about no connection, or whose panic has no other consequence. `None` if
/// it panicked, which is counted and logged under the name `what`.
pub(crate) fn enter<R>(
    recorder: &Recorder,
    what: impl fmt::Display,
    call: impl FnOnce() -> R,
) -> Option<R> {
    match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => Some(result),
        Err(payload) => {
            note_panic(recorder, what, payload);
            None
        }
    }
}

/// Drops a value of a user's.
pub(crate) fn discard<T>(recorder: &Recorder, what: impl fmt::Display, value: T) {
    if mem::needs_drop::<T>() {
        enter(recorder, what, || drop(value));
    }
}

/// Counts and logs a panic of user code that was caught.
#[cold]
pub(super) fn note_panic(
    recorder: &Recorder,
    what: impl fmt::Display,
    payload: Box<dyn Any + Send>,
) {
    recorder.panics.add(1);
    log::error!("{what} panicked");
    // The payload is the user's as well. One whose destructor panics with another such payload
    // could go on for ever: the second is leaked.
    if let Err(second) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        recorder.panics.add(1);
        mem::forget(second);
    }
}
