//! The parts of `sockeye-loadtest`, which loads WebSocket servers and checks every reply.
//!
//! A scenario has a plan and gives a [`report::Report`]. Its threads are a [`crew`]; a
//! [`watch::Watch`] measures them.
#![forbid(unsafe_code)]

pub mod broadcast;
pub mod churn;
pub mod conformance;
pub mod connections;
pub mod crew;
pub mod drain;
pub mod echo;
pub mod html;
pub mod payload;
pub mod process;
pub mod rate;
pub mod report;
pub mod sizes;
pub mod slow;
pub mod watch;
