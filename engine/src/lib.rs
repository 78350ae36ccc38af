//! sockeye is a WebSocket server engine: one thread per core, each with a reactor (io_uring, or
//! epoll) that owns its connections and calls the user's handler.
//!
//! ```no_run
//! use sockeye::Server;
//!
//! fn main() -> sockeye::Result<()> {
//!     Server::builder()
//!         .on_message(|conn, message| { conn.send(message); })
//!         .bind("127.0.0.1:9001")?
//!         .run()
//! }
//! ```
//!
//! With state, implement [`Handler`] and give the builder a factory
//! ([`Builder::handler`](NewBuilder::handler)) that makes one for each thread. From other
//! threads, [`Remote`] reaches connections by their [`ConnId`].
//!
//! # The path of one message
//!
//! ```text
//! kernel ─▶ reactor ─▶ worker ─▶ conn ─▶ protocol: header, unmask, UTF-8, where it was received
//!                                           │  message: borrowed from that buffer
//!                                           ▼
//!                                   Handler::on_message
//!                                           │
//! kernel ◀─ reactor ◀─ worker ◀── send queue ◀─ protocol: header + payload ◀─ Context::send
//!           one send per touched connection, once per turn
//! ```
//!
//! [`protocol`] is public for those who bring their own I/O; it needs no operating system
//! (`default-features = false`).
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]
// `std` alone is what the backends have in common: of no use without one.
#![cfg_attr(
    all(feature = "std", not(any(feature = "uring", feature = "poll"))),
    allow(dead_code, unused_imports)
)]

extern crate alloc;

pub mod http1;
pub mod protocol;
#[allow(
    unsafe_code,
    reason = "vector intrinsics; every kernel has a safe scalar twin"
)]
pub mod simd;

#[cfg(feature = "std")]
#[allow(
    unsafe_code,
    reason = "a frame is copied into memory that is known to be there"
)]
mod buffer;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "std")]
mod config;
#[cfg(feature = "std")]
mod conn;
#[cfg(feature = "std")]
mod connect;
#[cfg(feature = "std")]
mod deflate;
#[cfg(feature = "std")]
mod error;
#[cfg(feature = "std")]
mod metrics;
#[cfg(feature = "std")]
mod pubsub;
#[cfg(feature = "std")]
mod random;
#[cfg(feature = "std")]
#[allow(
    unsafe_code,
    reason = "system calls, and memory that the kernel reads and writes"
)]
mod reactor;
#[cfg(any(feature = "uring", feature = "poll"))]
mod server;
#[cfg(feature = "testkit")]
pub mod testkit;
#[cfg(feature = "std")]
pub mod tls;
#[cfg(feature = "std")]
mod worker;

#[doc(hidden)]
pub mod slab;
#[doc(hidden)]
pub mod timer;

pub use http1::InvalidHeader;
pub use http1::Request;
pub use http1::Response;
pub use protocol::CloseCode;
pub use protocol::Message;
pub use protocol::OwnedMessage;
pub use protocol::ProtocolError;
pub use protocol::handshake::UpgradeRequest;

#[cfg(feature = "std")]
pub use with_std::*;

/// What needs an operating system.
#[cfg(feature = "std")]
mod with_std {
    pub use crate::config::CONTROL_RESERVE;
    #[cfg(feature = "deflate")]
    pub use crate::config::Compression;
    #[cfg(feature = "deflate")]
    pub use crate::config::CompressionFn;
    pub use crate::config::Limits;
    pub use crate::config::OriginFn;
    pub use crate::config::OriginPolicy;
    pub use crate::config::OutputPolicy;
    pub use crate::config::Proxies;
    pub use crate::config::Route;
    pub use crate::config::Victims;
    pub use crate::conn::Agreed;
    pub use crate::conn::Chunk;
    pub use crate::conn::CloseCause;
    pub use crate::conn::Closed;
    pub use crate::conn::DropReason;
    pub use crate::conn::Dropped;
    pub use crate::conn::Initiator;
    pub use crate::conn::MessageWriter;
    pub use crate::conn::OpenError;
    pub use crate::conn::Prepared;
    pub use crate::conn::SendOptions;
    pub use crate::conn::SendResult;
    pub use crate::conn::Timeout;
    pub use crate::conn::Upgrade;
    pub use crate::connect::Connect;
    pub use crate::error::ConfigError;
    pub use crate::error::Error;
    pub use crate::error::Result;
    pub use crate::metrics::CloseCount;
    pub use crate::metrics::Distribution;
    pub use crate::metrics::FrameCounts;
    pub use crate::metrics::Metrics;
    pub use crate::metrics::PROMETHEUS_CONTENT_TYPE;
    pub use crate::metrics::ThreadMetrics;
    pub use crate::reactor::PeerAddr;
    pub use crate::reactor::listen::Address;
    pub use crate::worker::Callback;
    pub use crate::worker::ConnId;
    pub use crate::worker::ConnectError;
    pub use crate::worker::Context;
    pub use crate::worker::Deferred;
    pub use crate::worker::Drain;
    pub use crate::worker::Handler;
    pub use crate::worker::OpeningHandshake;
    pub use crate::worker::PostError;
    pub use crate::worker::Remote;
    pub use crate::worker::SlowCallback;
    pub use crate::worker::Thread;
    pub use crate::worker::TimerId;
}

#[cfg(any(feature = "uring", feature = "poll"))]
pub use with_backend::*;

/// What needs a backend.
#[cfg(any(feature = "uring", feature = "poll"))]
mod with_backend {
    pub use crate::server::BackendChoice;
    pub use crate::server::Builder;
    pub use crate::server::Engine;
    pub use crate::server::Handle;
    pub use crate::server::IntoAddress;
    pub use crate::server::MakeHandler;
    pub use crate::server::NewBuilder;
    pub use crate::server::Server;
}

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// So do those of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/GUIDE.md")]
struct Guide;
