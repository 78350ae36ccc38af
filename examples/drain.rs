//! An echo server that is made for deploys: it says on `/health` whether it is ready, and on
//! SIGTERM it lets its clients go, spread over some seconds, and ends. It listens on the sockets
//! that systemd hands it (socket activation), if there are any.
//!
//!     cargo run --release --example drain -- --bind 127.0.0.1:9001 --window 10
//!     curl http://127.0.0.1:9001/health
//!     kill -TERM <its process id>

use std::time::Duration;

use clap::Parser;
use listenfd::ListenFd;
use sockeye::CloseCode;
use sockeye::Drain;
use sockeye::Limits;
use sockeye::Server;
use sockeye_examples::Cli;
use sockeye_examples::EndSignals;
use sockeye_examples::fail_with;

#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    #[command(flatten)]
    cli: Cli,
    /// Seconds over which clients are let go.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    window: u32,
    /// Seconds after which the server ends, whoever is left.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    deadline: u32,
}

fn main() {
    let flags: Flags = sockeye_examples::read();
    let builder = Server::builder()
        .on_message(|conn, message| {
            conn.send(message);
        })
        .health_path("/health");
    let mut builder = flags.cli.apply(builder, Limits::default().message_len_max);
    let mut inherited = ListenFd::from_env();
    for index in 0..inherited.len() {
        match inherited.take_tcp_listener(index) {
            Ok(Some(socket)) => builder = builder.listen_on(socket),
            Ok(None) => {}
            Err(error) => fail_with(&error),
        }
    }
    let signals = EndSignals::hold();
    let server = flags.cli.start_on(builder, inherited.len() > 0);
    let drain = Drain::new()
        .window(Duration::from_secs(flags.window.into()))
        .deadline(Duration::from_secs(flags.deadline.into()))
        .close(CloseCode::SERVICE_RESTART, "restarting");
    signals.serve(server, drain);
}
