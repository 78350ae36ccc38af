//! What the tests share: one way to run a server, on every backend and on the simulated
//! network, and a client that sends whatever bytes it is told to.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(unused_imports, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod certificates;
pub mod deflate;
mod link;
mod memory;
mod probe;
mod server;

use std::sync::OnceLock;
use std::time::Duration;

use sockeye::BackendChoice;
use sockeye::Server;

pub use deflate::Deflate;
pub use link::*;
pub use memory::Memory;
pub use probe::*;
pub use server::*;

/// How long anything may take that does not depend on a time-out. Only a failure takes it.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// Whether io_uring works here. Containers often forbid it: then its tests are skipped, and say
/// so; the conformance run of `.ci/run` fails without it.
pub fn uring_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    let works = *WORKS.get_or_init(|| {
        let server = Server::builder()
            .backend(BackendChoice::Uring)
            .threads(1)
            .bind("127.0.0.1:0")
            .unwrap();
        match server.spawn() {
            Ok(server) => {
                server.shutdown();
                server.join().is_ok()
            }
            Err(error) => {
                eprintln!("no io_uring: {error}");
                false
            }
        }
    });
    if !works {
        println!("SKIPPED: io_uring does not work here");
    }
    works
}

/// Declares cases that are about TLS: each runs on every backend and on the simulated network.
#[macro_export]
macro_rules! cases_over_tls {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[test] fn $name() {
                if $crate::support::uring_works() {
                    super::$name($crate::support::World::UringTls);
                }
            })*
        }
        mod poll {
            $(#[test] fn $name() { super::$name($crate::support::World::PollTls); })*
        }
        mod sim {
            $(#[test] fn $name() { super::$name($crate::support::World::SimTls); })*
        }
    };
}

/// Declares cases of the client role: each also runs with the blocking client.
#[macro_export]
macro_rules! client_cases {
    ($($name:ident),* $(,)?) => {
        $crate::cases!($($name),*);
        mod blocking {
            $(#[test] fn $name() { super::$name($crate::support::World::Blocking); })*
        }
        mod blocking_tls {
            $(#[test] fn $name() { super::$name($crate::support::World::BlockingTls); })*
        }
    };
}

/// Declares cases: each runs on every backend and on the simulated network.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[test] fn $name() {
                if $crate::support::uring_works() {
                    super::$name($crate::support::World::Uring);
                }
            })*
        }
        mod uring_direct {
            $(#[test] fn $name() {
                if $crate::support::uring_works() {
                    super::$name($crate::support::World::UringDirect);
                }
            })*
        }
        mod poll {
            $(#[test] fn $name() { super::$name($crate::support::World::Poll); })*
        }
        mod sim {
            $(#[test] fn $name() { super::$name($crate::support::World::Sim); })*
        }
        mod uring_tls {
            $(#[test] fn $name() {
                if $crate::support::uring_works() {
                    super::$name($crate::support::World::UringTls);
                }
            })*
        }
        mod poll_tls {
            $(#[test] fn $name() { super::$name($crate::support::World::PollTls); })*
        }
        mod sim_tls {
            $(#[test] fn $name() { super::$name($crate::support::World::SimTls); })*
        }
    };
}
