//! sockeye beside other servers.
//!
//!     cargo run --release -p sockeye-bench -- compare
//!
//! Without a command: messages per second and the p99 of the canonical workload.
#![forbid(unsafe_code)]

use std::env;
use std::env::consts::ARCH;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use sockeye_bench::chart;
use sockeye_bench::compare;
use sockeye_bench::compare::Effort;
use sockeye_bench::record::Machine;
use sockeye_bench::record::Record;
use sockeye_bench::record::said;
use sockeye_bench::servers;
use sockeye_bench::servers::Places;

#[derive(Clone, Debug, Parser)]
#[command(version, about = "Measures sockeye beside other WebSocket servers")]
struct Cli {
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Clone, Debug, Subcommand)]
enum Task {
    /// Every server in every scenario, in alternating rounds.
    Compare(Compare),
    /// The tables of a record.
    Show {
        /// The record.
        file: PathBuf,
    },
}

#[derive(Clone, Debug, Args)]
struct Compare {
    /// Two sizes, one short round: whether it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Rounds of each scenario. By default nine, of which servers that are not near take part in
    /// every third.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each round.
    #[arg(long)]
    seconds: Option<f64>,
    /// Only rivals with this in their folder's name; may be repeated.
    #[arg(long)]
    rival: Vec<String>,
    /// Only scenarios with this in their name; may be repeated.
    #[arg(long)]
    scenario: Vec<String>,
    /// Writes the record and its chart to bench/record.
    #[arg(long)]
    record: bool,
}

fn wanted<'a>(list: &'a [String]) -> impl Fn(&str) -> bool + 'a {
    move |name| list.is_empty() || list.iter().any(|part| name.contains(&part[..]))
}

fn compare(args: &Compare) -> Result<(), String> {
    let places = Places::new().map_err(|error| error.to_string())?;
    places.build_own()?;
    let mut all = servers::own();
    let (rivals, skipped) = servers::rivals(&places, wanted(&args.rival));
    all.extend(rivals);
    for skipped in &skipped {
        eprintln!("skipped {}: {}", skipped.name, skipped.reason);
    }
    let mut effort = if args.quick {
        Effort {
            rounds: 1,
            far_every: 1,
            duration: Duration::from_millis(300),
            warm_up: Duration::from_millis(100),
            receivers: 500,
            idle: 2_000,
        }
    } else {
        Effort {
            rounds: 9,
            far_every: 3,
            duration: Duration::from_millis(800),
            warm_up: Duration::from_millis(150),
            receivers: 10_000,
            idle: 15_000,
        }
    };
    if let Some(rounds) = args.rounds {
        effort.rounds = rounds.max(1);
        effort.far_every = 1;
    }
    if let Some(seconds) = args.seconds {
        effort.duration =
            Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    }
    let scenarios = compare::run(&places, &all, effort, args.quick, wanted(&args.scenario));
    let flags: Vec<String> = env::args().skip(1).collect();
    let record = Record {
        machine: Machine::this(),
        date: said("date", &["-u", "+%F"]),
        commit: said("git", &["rev-parse", "HEAD"]),
        command: format!(
            "cargo run --release -p sockeye-bench -- {}",
            flags.join(" ")
        ),
        servers: all,
        skipped,
        scenarios,
    };
    print!("{}", compare::tables(&record));
    if args.record {
        let folder = places.root.join("bench/record").join(ARCH);
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let json = serde_json::to_string_pretty(&record).map_err(|error| error.to_string())?;
        let write = |kind: &str, text: &str| {
            let file = folder.join(format!("{}.{kind}", record.date));
            fs::write(file, text).map_err(|error| error.to_string())
        };
        write("json", &(json + "\n"))?;
        write("svg", &chart::draw(&record)?)?;
    }
    let failed = record
        .scenarios
        .iter()
        .flat_map(|scenario| &scenario.results);
    let own = failed.filter(|result| result.server.starts_with("sockeye"));
    match own.filter_map(|result| result.failure.as_ref()).next() {
        Some(what) => Err(format!("sockeye failed: {what}")),
        None => Ok(()),
    }
}

/// Two numbers, and the machine.
fn canonical() -> Result<(), String> {
    let places = Places::new().map_err(|error| error.to_string())?;
    places.build_own()?;
    let sockeye = &servers::own()[..1];
    let (throughput, latency) = compare::canonical(&places, &sockeye[0])?;
    let machine = Machine::this();
    println!(
        "{} × {}, {}, {}",
        machine.cpus, machine.cpu, machine.kernel, machine.congestion_control
    );
    print!("{throughput}\n{latency}");
    Ok(())
}

fn show(file: &PathBuf) -> Result<(), String> {
    let record = fs::read(file).map_err(|error| error.to_string())?;
    let record: Record = serde_json::from_slice(&record).map_err(|error| error.to_string())?;
    print!("{}", compare::tables(&record));
    Ok(())
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        None => canonical(),
        Some(Task::Compare(args)) => compare(&args),
        Some(Task::Show { file }) => show(&file),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
