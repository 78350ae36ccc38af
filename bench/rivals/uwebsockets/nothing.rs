//! See Cargo.toml: only the dependency is wanted.
