//! Sends every message back.
//!
//!     cargo run --release --example echo -- --bind 127.0.0.1:9001

use sockeye::CloseCode;
use sockeye::DropReason;
use sockeye::Limits;
use sockeye::SendResult;
use sockeye::Server;
use sockeye_examples::Cli;

/// Replies that may wait for a client that sends faster than it reads.
const OUTPUT_LEN_MAX: usize = 16 << 20;

fn main() {
    let cli = Cli::read();
    let mut limits = Limits::default();
    limits.output_len_max = OUTPUT_LEN_MAX;
    let builder = Server::builder().on_message(|conn, message| {
        // An echo server that leaves an echo out is no echo server.
        if conn.send(message) == SendResult::Dropped(DropReason::OutputLimit) {
            conn.close(CloseCode::TRY_AGAIN_LATER, "read your replies");
        }
    });
    let builder = cli.apply(builder.limits(limits.clone()), limits.message_len_max);
    cli.serve(builder);
}
