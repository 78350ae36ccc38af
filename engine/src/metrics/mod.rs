#![forbid(unsafe_code)]
//! What a thread has seen: counted by the thread alone, read by any.
//!
//! A [`Recorder`] belongs to one thread, which is the only one that writes: to count is a load
//! and a store, without a locked instruction (to record a time takes one, in the crate
//! `histogram`), and no cache line is shared with what another thread writes.
//! Others read at any time, also while a callback holds the thread: what they get is exact for
//! each value, and not of one instant for all of them.
//!
//! What costs a clock reading (all durations but that of a ping) is recorded only where it was
//! asked for.

mod distribution;
mod prometheus;
mod recorder;

pub use distribution::Distribution;
pub use prometheus::PROMETHEUS_CONTENT_TYPE;
pub use recorder::CloseCount;
pub use recorder::FrameCounts;
pub use recorder::Metrics;
pub use recorder::Recorder;
pub use recorder::ThreadMetrics;
