#![forbid(unsafe_code)]
//! TLS between reactor and protocol: ciphertext in, plaintext out, and back (crate `rustls`,
//! its unbuffered API).
//!
//! A [`Session`] holds no buffer while nothing is on its way: whole records are decrypted in
//! the receive buffer, only the beginning of an incomplete one is kept, and output is
//! encrypted when it is about to be sent, a turn's worth at a time. [`ServerTls`] and
//! [`ClientTls`] are the operator's settings; they read files when they are told to, sessions
//! do no I/O.
//!
//! rustls does the handshake; then a TLS 1.3 session takes the traffic keys and the record layer
//! into its own hands (`record.rs`), which frees most of what rustls holds. kTLS would be a
//! session that gives those keys to the kernel and steps aside; nothing above this room would
//! notice.
//!
//! **Invariant:** plaintext is handed out in order and once; what was encrypted is sent in the
//! order in which it was encrypted.

#[cfg(not(feature = "tls"))]
mod absent;
#[cfg(feature = "tls")]
mod config;
#[cfg(feature = "tls")]
mod record;
#[cfg(feature = "tls")]
mod session;

#[cfg(not(feature = "tls"))]
pub use absent::ClientTls;
#[cfg(not(feature = "tls"))]
pub use absent::ServerTls;
#[cfg(not(feature = "tls"))]
pub use absent::Session;
#[cfg(feature = "tls")]
pub use config::ClientTls;
#[cfg(feature = "tls")]
pub use config::ClientTlsBuilder;
#[cfg(feature = "tls")]
pub use config::ServerTls;
#[cfg(feature = "tls")]
pub use config::ServerTlsBuilder;
#[cfg(feature = "tls")]
pub use config::TlsError;
#[cfg(feature = "tls")]
pub use session::Session;
#[cfg(feature = "tls")]
pub use session::TlsInfo;
