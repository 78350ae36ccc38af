//! A load generator for WebSocket servers that checks every reply it gets.
//!
//!     cargo run --release -p sockeye-loadtest -- echo ws://127.0.0.1:9001/ --depth 16
//!     cargo run --release -p sockeye-loadtest -- churn ws://127.0.0.1:9001/ --connections 64
//!
//! It runs on one thread, on sockeye's own reactor. Each message has a number and an Adler-32
//! checksum; a reply that is wrong, lost, doubled or out of order fails the run. With
//! `--server-pid` the server's CPU time is reported, and a result is called invalid where the
//! generator was the limit.
#![forbid(unsafe_code)]

mod churn;
mod echo;
mod load;
mod payload;
mod process;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use sockeye::BackendChoice;
use sockeye::Connect;
use sockeye::tls::ClientTls;

use load::Outcome;
use load::Target;

/// A thread that works for more of its time than this is at its limit.
const SATURATED: f64 = 0.95;

#[derive(Clone, Debug, Parser)]
#[command(version, about = "Loads a WebSocket server and checks every reply")]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Clone, Debug, Subcommand)]
enum Scenario {
    /// Each connection keeps so many messages under way, and sends another for each reply.
    Echo {
        #[command(flatten)]
        common: Common,
        /// Messages that each connection has under way.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
        depth: u16,
    },
    /// Each connection is made, echoes one message, and closes; another takes its place.
    Churn {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Clone, Debug, Args)]
struct Common {
    /// The server, on this machine: ws://…, wss://… or ws+unix://….
    #[arg(value_parser = on_this_machine)]
    url: Connect,
    /// Connections at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Payload bytes of a message; at least 12, for its number and checksum.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(12..=16_777_216))]
    size: u32,
    /// Seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// What moves the generator's bytes: auto, uring or poll.
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    /// PEM file with the certificate authorities to trust.
    #[arg(long, value_name = "FILE")]
    authorities: Option<PathBuf>,
    /// The server's process, for its CPU time; may be repeated.
    #[arg(long)]
    server_pid: Vec<u32>,
}

fn on_this_machine(text: &str) -> Result<Connect, String> {
    let connect = Connect::new(text).and_then(Connect::resolve);
    let connect = connect.map_err(|error| error.to_string())?;
    let is_loopback = |ip: std::net::IpAddr| ip.is_loopback();
    if connect.is_unix() || connect.ip().is_some_and(is_loopback) {
        Ok(connect)
    } else {
        Err("only servers on this machine are loaded".to_owned())
    }
}

impl Common {
    fn target(&self) -> Result<Target, String> {
        let mut connect = self.url.clone();
        if let Some(file) = &self.authorities {
            let tls = ClientTls::from_roots_file(file).map_err(|error| error.to_string())?;
            connect = connect.tls(tls);
        }
        Ok(Target {
            connect,
            backend: self.backend,
            message_len_max: self.size as usize,
        })
    }

    fn server_cpu(&self) -> Option<Duration> {
        let times: Option<Vec<Duration>> = self
            .server_pid
            .iter()
            .map(|&pid| process::cpu_time(pid))
            .collect();
        times
            .filter(|times| !times.is_empty())
            .map(|times| times.iter().sum())
    }

    /// Runs a scenario and says what it has cost.
    fn report(
        &self,
        what: &str,
        run: impl FnOnce() -> Result<Outcome, String>,
    ) -> Result<(), String> {
        let before = self.server_cpu();
        let outcome = run()?;
        let after = self.server_cpu();
        let seconds = outcome.elapsed.as_secs_f64();
        let per_second = outcome.count as f64 / seconds;
        println!(
            "{} {what}s in {seconds:.2} s: {per_second:.0} {what}s/s, every reply checked",
            outcome.count
        );
        let each = |spent: Duration| spent.as_nanos() as f64 / outcome.count.max(1) as f64;
        let share = |spent: Duration| spent.as_secs_f64() / seconds;
        println!("generator CPU: {:.0} ns per {what}", each(outcome.own_cpu));
        let mut server_share = 0.0;
        if let (Some(before), Some(after)) = (before, after) {
            let spent = after.saturating_sub(before);
            println!("server CPU: {spent:.2?}, {:.0} ns per {what}", each(spent));
            server_share = share(spent);
        }
        if share(outcome.own_cpu) > SATURATED && server_share < SATURATED {
            println!("INVALID: the generator was the limit, and not the server");
        }
        Ok(())
    }
}

fn run(cli: &Cli) -> Result<(), String> {
    match &cli.scenario {
        Scenario::Echo { common, depth } => {
            let plan = echo::Plan {
                target: common.target()?,
                connections: common.connections as usize,
                depth: (*depth).into(),
                payload_len: common.size as usize,
                duration: Duration::from_secs(common.seconds.into()),
            };
            common.report("message", || echo::run(&plan))
        }
        Scenario::Churn { common } => {
            let plan = churn::Plan {
                target: common.target()?,
                connections: common.connections as usize,
                payload_len: common.size as usize,
                duration: Duration::from_secs(common.seconds.into()),
            };
            common.report("cycle", || churn::run(&plan))
        }
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
