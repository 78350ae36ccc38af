//! The tests that need no process of their own: one program, for to build it is most of what they take.
//!
//! `cargo test -p sockeye --test main -- output::` runs those of one file.

#[macro_use]
mod support;

mod allocations;
mod client;
mod client_role;
mod deflate;
mod deflate_client;
mod deflate_memory;
mod documentation;
mod door;
mod drain;
mod embedding;
mod ends;
mod evidence;
mod guarantees;
mod interop;
mod json;
mod mailbox_model;
mod metrics;
mod opening;
mod outgoing;
mod output;
mod pubsub;
mod regressions;
mod rooms;
mod security;
mod security_deflate;
mod serving;
mod streaming;
mod testkit;
mod tls;
mod worker_sim;
