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
mod buffer;
#[cfg(feature = "std")]
mod config;
#[cfg(feature = "std")]
mod conn;
#[cfg(feature = "std")]
mod error;
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
pub use protocol::ProtocolError;
pub use protocol::handshake::UpgradeRequest;

#[cfg(feature = "std")]
pub use config::CONTROL_RESERVE;
#[cfg(feature = "std")]
pub use config::Limits;
#[cfg(feature = "std")]
pub use config::OriginPolicy;
#[cfg(feature = "std")]
pub use conn::CloseCause;
#[cfg(feature = "std")]
pub use conn::Closed;
#[cfg(feature = "std")]
pub use conn::DropReason;
#[cfg(feature = "std")]
pub use conn::Initiator;
#[cfg(feature = "std")]
pub use conn::SendResult;
#[cfg(feature = "std")]
pub use conn::Timeout;
#[cfg(feature = "std")]
pub use conn::Upgrade;
#[cfg(feature = "std")]
pub use error::ConfigError;
#[cfg(feature = "std")]
pub use error::Error;
#[cfg(feature = "std")]
pub use error::Result;
#[cfg(feature = "std")]
pub use reactor::PeerAddr;
#[cfg(feature = "std")]
pub use reactor::listen::Address;
#[cfg(any(feature = "uring", feature = "poll"))]
pub use server::BackendChoice;
#[cfg(any(feature = "uring", feature = "poll"))]
pub use server::Builder;
#[cfg(any(feature = "uring", feature = "poll"))]
pub use server::Handle;
#[cfg(any(feature = "uring", feature = "poll"))]
pub use server::IntoAddress;
#[cfg(any(feature = "uring", feature = "poll"))]
pub use server::MakeHandler;
#[cfg(any(feature = "uring", feature = "poll"))]
pub use server::NewBuilder;
#[cfg(any(feature = "uring", feature = "poll"))]
pub use server::Server;
#[cfg(feature = "std")]
pub use worker::ConnId;
#[cfg(feature = "std")]
pub use worker::Context;
#[cfg(feature = "std")]
pub use worker::Handler;
#[cfg(feature = "std")]
pub use worker::PostError;
#[cfg(feature = "std")]
pub use worker::Remote;

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
