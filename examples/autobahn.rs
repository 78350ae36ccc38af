//! The echo server that the Autobahn test suite runs against. Its limits are raised to what the
//! suite sends: messages of 16 MiB (cases 9.1 and 9.2) and in 65,536 fragments (9.3 and 9.4).
//!
//!     cargo run --release --example autobahn -- --bind 127.0.0.1:9001

use sockeye::Limits;
use sockeye::Server;
use sockeye_examples::Cli;

const MESSAGE_LEN_MAX: usize = 16 << 20;
const FRAGMENT_COUNT_MAX: u32 = 1 << 18;

fn main() {
    let cli = Cli::read();
    let mut limits = Limits::default();
    limits.fragment_count_max = FRAGMENT_COUNT_MAX;
    let builder = Server::builder().on_message(|conn, message| {
        conn.send(message);
    });
    cli.serve(cli.apply(builder.limits(limits), MESSAGE_LEN_MAX));
}
