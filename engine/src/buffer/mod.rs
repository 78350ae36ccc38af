//! Memory that connections hold only while they need it.
//!
//! An idle connection owns no buffer. [`Pool`] keeps what a thread's connections give back, up
//! to a cap; [`SendQueue`] is what waits for the kernel to take it.
//!
//! **Invariant:** what a pool hands out is empty.

mod pool;
mod send_queue;

pub use pool::Buffer;
pub use pool::Pool;
pub use pool::RELEASE_INTERVAL;
pub use send_queue::FrameSpan;
pub use send_queue::Replacement;
pub use send_queue::SHARED_LEN_MIN;
pub use send_queue::SendQueue;
