//! Sends every message to every connection, the sender's included: all subscribe to one topic.
//!
//!     cargo run --release --example broadcast -- --bind 127.0.0.1:9001

use sockeye::CloseCode;
use sockeye::Limits;
use sockeye::Prepared;
use sockeye::Server;
use sockeye_examples::Cli;

const TOPIC: &str = "all";

fn main() {
    let cli = Cli::read();
    let builder = Server::builder()
        .on_open(|conn| {
            conn.subscribe(TOPIC);
        })
        .on_message(|conn, message| {
            if conn.publish(TOPIC, Prepared::new(message)).is_err() {
                // More is published than another thread can deliver: the publisher must know.
                conn.close(CloseCode::TRY_AGAIN_LATER, "too many messages");
            }
        });
    cli.serve(cli.apply(builder, Limits::default().message_len_max));
}
