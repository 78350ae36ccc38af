#![forbid(unsafe_code)]
//! Tests without sockets, threads or waiting: a handler over a simulated network, in virtual
//! time.
//!
//! [`TestServer`] is for the tests of a handler: its clients are the blocking client, over
//! memory.
//!
//! ```
//! use std::time::Duration;
//! use sockeye::CloseCode;
//! use sockeye::Context;
//! use sockeye::Handler;
//! use sockeye::Message;
//! use sockeye::testkit::TestServer;
//!
//! struct Upper;
//!
//! impl Handler for Upper {
//!     type Data = ();
//!
//!     fn on_message(&mut self, conn: &mut Context<'_, ()>, message: Message<'_>) {
//!         match message.as_str() {
//!             Some(text) => { conn.send(&text.to_uppercase()); }
//!             None => conn.close(CloseCode::UNSUPPORTED_DATA, "text only"),
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<(), sockeye::client::Error> {
//! let server = TestServer::new(Upper);
//! let mut client = server.connect("/")?;
//! client.write_message("hello")?;
//! assert_eq!(client.read_message()?.as_str(), Some("HELLO"));
//!
//! // Nothing more comes, and no test waits for it.
//! assert!(client.read_message().unwrap_err().is_timeout());
//! // After a minute of silence the server gives a client up that does not answer its ping.
//! server.pass(Duration::from_secs(60));
//! assert_eq!(server.connections(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! [`SimServer`] is below it, for the tests of this crate and for whoever sends bytes that are
//! no protocol: faults of the network, frames by hand. The same seed gives the same run.

mod sim_server;
mod test_server;

pub use sim_server::SimServer;
pub use sim_server::SimSettings;
pub use test_server::TestServer;
pub use test_server::TestStream;

pub use crate::reactor::sim::Chance;
pub use crate::reactor::sim::Faults;
pub use crate::reactor::sim::SimClient;
pub use crate::reactor::sim::SimNet;
pub use crate::worker::MAILBOX_LEN_MAX;
