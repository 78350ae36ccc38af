#![forbid(unsafe_code)]
//! Limits, routes, and their validation. `docs/LIMITS.md` has the reason for each default.

mod compression;
mod limits;
mod proxy;
mod route;

pub use compression::COMPRESSION_BUDGET;
pub use compression::Compression;
#[cfg(feature = "deflate")]
pub use compression::CompressionFn;
pub(crate) use compression::CompressionSettings;
pub use limits::CONTROL_RESERVE;
pub use limits::DEFERRED_MAX;
pub(crate) use limits::HEADERS_LEN;
pub use limits::Limits;
pub use limits::OUTPUT_BUDGET;
pub(crate) use proxy::ClientSource;
pub use proxy::Proxies;
pub use route::OriginFn;
pub use route::OriginPolicy;
pub use route::OutputPolicy;
pub use route::Route;
pub use route::Victims;
