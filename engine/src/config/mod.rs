#![forbid(unsafe_code)]
//! Limits, routes, and their validation. `docs/LIMITS.md` has the reason for each default.

mod limits;
mod route;

pub use limits::CONTROL_RESERVE;
pub use limits::Limits;
pub use limits::OUTPUT_BUDGET;
pub use route::OriginFn;
pub use route::OriginPolicy;
pub use route::OutputPolicy;
pub use route::Route;
pub use route::Victims;
