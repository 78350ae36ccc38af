//! Benchmarks of sockeye: of its parts in `benches/`, of the whole beside other servers here.
#![forbid(unsafe_code)]

pub mod chart;
pub mod compare;
pub mod record;
pub mod servers;
