//! An echo server that is made for deploys: it says on `/health` whether it is ready, and on
//! SIGTERM it lets its clients go, spread over some seconds, and ends. It listens on the sockets
//! that systemd hands it (socket activation), if there are any.
//!
//!     cargo run --release --example drain -- --bind 127.0.0.1:9001 --window 10
//!     curl http://127.0.0.1:9001/health
//!     kill -TERM <its process id>

use std::process::exit;
use std::thread;
use std::time::Duration;

use clap::Parser;
use listenfd::ListenFd;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;
use sockeye::CloseCode;
use sockeye::Drain;
use sockeye::Limits;
use sockeye::Server;
use sockeye_examples::Cli;

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
            Err(error) => fail(&error),
        }
    }
    // Before any thread starts: signals that come early are not lost.
    let mut signals = Signals::new([SIGINT, SIGTERM]).unwrap_or_else(|error| fail(&error));
    let server = flags.cli.start_on(builder, inherited.len() > 0);
    let drain = Drain::new()
        .window(Duration::from_secs(flags.window.into()))
        .deadline(Duration::from_secs(flags.deadline.into()))
        .close(CloseCode::SERVICE_RESTART, "restarting");
    // The first SIGTERM drains; any other signal ends the server at once.
    if signals.forever().next() == Some(SIGTERM) {
        eprintln!("draining {} connections", server.connections());
        server.drain(drain);
        while !server.is_finished() && signals.pending().next().is_none() {
            thread::sleep(Duration::from_millis(50));
        }
        eprintln!("{} were told to go", server.drained());
    }
    server.shutdown();
    if let Err(error) = server.join() {
        fail(&error);
    }
}

fn fail(error: &dyn std::fmt::Display) -> ! {
    eprintln!("error: {error}");
    exit(1);
}
