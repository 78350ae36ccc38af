//! A record of a comparison: the machine, the commands, every figure of every round.

use std::fs;
use std::process::Command;

use serde::Deserialize;
use serde::Serialize;
use sockeye_loadtest::crew::COMPRESSED_TO;
use sockeye_loadtest::report::Report;

use crate::servers::Server;
use crate::servers::Skipped;

/// Everything that a comparison has shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Where.
    pub machine: Machine,
    /// When: year, month, day.
    pub date: String,
    /// What was measured.
    pub commit: String,
    /// How to do it again.
    pub command: String,
    /// The servers, and how they are set up.
    pub servers: Vec<Server>,
    /// Those that could not be built.
    pub skipped: Vec<Skipped>,
    /// What came of it.
    pub scenarios: Vec<Scenario>,
}

/// The machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// How many of them.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// The kernel's release.
    pub kernel: String,
    /// How TCP controls congestion; empty in older records.
    #[serde(default)]
    pub congestion_control: String,
    /// The compiler.
    pub rustc: String,
}

/// One scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scenario {
    /// What tables call it.
    pub name: String,
    /// What is counted.
    pub unit: String,
    /// The load generator's command line, without the server's address and process.
    pub command: String,
    /// The servers, in the order in which they were started.
    pub results: Vec<Result>,
}

/// What one server did in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Result {
    /// The server.
    pub server: String,
    /// What it did, round by round.
    pub rounds: Vec<Round>,
    /// Why there is none.
    pub failure: Option<String>,
}

/// One round.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Round {
    /// Which.
    pub round: usize,
    /// Units per second.
    pub per_second: f64,
    /// The server's CPU time for each.
    pub cpu_ns: f64,
    /// What of it was spent in user space.
    #[serde(default)]
    pub user_ns: f64,
    /// Growth of the server's resident memory for each connection, in bytes.
    pub bytes_per_connection: f64,
    /// Nanoseconds of what the scenario times first.
    pub p50: u64,
    #[allow(missing_docs)]
    pub p99: u64,
    #[allow(missing_docs)]
    pub p99_9: u64,
    /// The generator was the limit.
    pub limited: bool,
    /// What replies were compressed to, of their length, if they were.
    #[serde(default)]
    pub compressed_to: Option<f64>,
}

impl Round {
    /// What a report says.
    pub fn new(round: usize, report: &Report) -> Self {
        let server = report.server.unwrap_or_default();
        let latency = report.latencies.first().cloned().unwrap_or_default();
        Self {
            round,
            per_second: report.per_second,
            cpu_ns: server.cpu.ns_per_unit,
            user_ns: server.cpu.ns_per_unit - server.cpu.system_ns_per_unit,
            bytes_per_connection: server.bytes_per_connection,
            p50: latency.p50,
            p99: latency.p99,
            p99_9: latency.p99_9,
            limited: report.invalid.is_some(),
            compressed_to: report.figure_of(COMPRESSED_TO),
        }
    }
}

/// The value in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

impl Result {
    /// The median of a figure.
    pub fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure))
    }

    /// Least and most of the ratio to another's, round by round.
    pub fn spread(&self, to: &Self, figure: impl Fn(&Round) -> f64) -> (f64, f64) {
        let ratios = self.rounds.iter().filter_map(|own| {
            let other = to.rounds.iter().find(|other| other.round == own.round)?;
            Some(figure(own) / figure(other))
        });
        ratios.fold((f64::INFINITY, 0.0), |(least, most), ratio| {
            (ratio.min(least), ratio.max(most))
        })
    }
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let memory = memory
            .split(' ')
            .next()
            .and_then(|kib| kib.parse::<u64>().ok());
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory: memory.unwrap_or(0) * 1024,
            kernel: said("uname", &["-sr"]),
            congestion_control: fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
                .map(|name| name.trim().to_owned())
                .unwrap_or_default(),
            rustc: said("rustc", &["--version"]),
        }
    }
}

/// What a command prints, or nothing.
pub fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads_are_of_the_same_rounds() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
        let result = |values: &[(usize, f64)]| Result {
            rounds: values
                .iter()
                .map(|&(round, cpu_ns)| Round {
                    round,
                    cpu_ns,
                    ..Round::default()
                })
                .collect(),
            ..Result::default()
        };
        let one = result(&[(0, 10.0), (1, 20.0), (2, 30.0)]);
        let other = result(&[(0, 10.0), (2, 10.0), (3, 1.0)]);
        assert_eq!(one.spread(&other, |round| round.cpu_ns), (1.0, 3.0));
    }
}
