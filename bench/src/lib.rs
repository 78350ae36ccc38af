//! Benchmarks of sockeye's parts: see `benches/`.
#![forbid(unsafe_code)]
