//! A load generator for WebSocket echo servers that checks every reply it gets.
//!
//!     cargo run --release -p sockeye-loadtest -- --address 127.0.0.1:9001 --depth 16
//!
//! Closed loop: each of `--connections` keeps `--depth` messages under way, each with a number
//! and an Adler-32 checksum; a reply that is wrong, lost, doubled or out of order fails the
//! run. With `--server-pid` the server's CPU time per message is reported.
#![forbid(unsafe_code)]

mod cpu;
mod echo;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

#[derive(Clone, Debug, Parser)]
#[command(
    version,
    about = "Loads a WebSocket echo server and checks every reply"
)]
struct Cli {
    /// The server, on this machine.
    #[arg(long, default_value = "127.0.0.1:9001", value_parser = loopback)]
    address: SocketAddr,
    /// Connections, each with a thread of its own.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Messages that each connection has under way.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: u16,
    /// Payload bytes of a message; at least 12, for its number and checksum.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(12..=16_777_216))]
    size: u32,
    /// Seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// The server's process, for its CPU time.
    #[arg(long)]
    server_pid: Option<u32>,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "wanted ADDRESS:PORT".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("only servers on this machine are loaded".to_owned())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let plan = echo::Plan {
        address: cli.address,
        connections: cli.connections.into(),
        depth: cli.depth.into(),
        payload_len: cli.size as usize,
        duration: Duration::from_secs(cli.seconds.into()),
    };
    let cpu_before = cli.server_pid.and_then(cpu::time_of);
    match echo::run(&plan) {
        Ok(outcome) => {
            let seconds = outcome.elapsed.as_secs_f64();
            println!(
                "{} messages in {seconds:.2} s: {:.0} messages/s, every reply checked",
                outcome.messages,
                outcome.messages as f64 / seconds
            );
            let cpu_after = cli.server_pid.and_then(cpu::time_of);
            if let (Some(before), Some(after)) = (cpu_before, cpu_after) {
                let spent = after - before;
                let nanoseconds = spent.as_nanos() as f64 / outcome.messages as f64;
                println!("server CPU: {spent:.2?}, {nanoseconds:.0} ns per message");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
