//! What a run has shown: for people as a table, for programs as JSON.

use std::fmt;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Deserialize;
use serde::Serialize;

use crate::process::Kernel;

/// One run of one scenario. Times are in nanoseconds unless they say otherwise.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// `echo`, `rate`, ….
    pub scenario: String,
    /// The URL.
    pub target: String,
    /// The command line.
    pub command: Vec<String>,
    /// What moved the generator's bytes.
    pub generator_backend: String,
    /// Connections.
    pub connections: u64,
    /// What is counted: `message`, `cycle`, `delivery`.
    pub unit: String,
    /// How many of them, all of them right, in the measured time.
    pub count: u64,
    /// The measured time.
    pub seconds: f64,
    /// `count / seconds`.
    pub per_second: f64,
    /// Why the result means nothing, if it does.
    pub invalid: Option<String>,
    /// What the generator used.
    pub generator: Cpu,
    /// What the server used, if its process is known.
    pub server: Option<Server>,
    /// What the kernel held before and behind, for everything on this machine.
    pub kernel: Option<(Kernel, Kernel)>,
    /// Times, each with its distribution.
    pub latencies: Vec<Latency>,
    /// Other figures: name, value, unit.
    pub figures: Vec<(String, f64, String)>,
    /// The run in slices.
    pub series: Vec<Sample>,
}

/// CPU time over the measured time.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Cpu {
    /// User and system, per unit.
    pub ns_per_unit: f64,
    /// The system's part of it, to a clock tick of the whole.
    pub system_ns_per_unit: f64,
    /// CPUs that it kept busy.
    pub cpus: f64,
}

/// What the server's processes used.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Server {
    /// CPU time.
    pub cpu: Cpu,
    /// Units per second of CPU time.
    pub per_cpu_second: f64,
    /// Resident bytes before the first connection and at the end of the measured time.
    pub resident: (u64, u64),
    /// The same, shared pages divided among those that share them.
    pub proportional: Option<(u64, u64)>,
    /// Growth of resident memory for each connection.
    pub bytes_per_connection: f64,
}

/// A distribution of times.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// What was timed.
    pub name: String,
    /// How often.
    pub count: u64,
    /// The shortest.
    pub min: u64,
    /// The mean.
    pub mean: f64,
    /// 50 % were at most so long; and so on.
    pub p50: u64,
    #[allow(missing_docs)]
    pub p90: u64,
    #[allow(missing_docs)]
    pub p99: u64,
    #[allow(missing_docs)]
    pub p99_9: u64,
    #[allow(missing_docs)]
    pub p99_99: u64,
    /// The longest.
    pub max: u64,
    /// The curve: quantile and nanoseconds.
    pub curve: Vec<(f64, u64)>,
}

impl Latency {
    /// What a histogram holds.
    pub fn new(name: &str, histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        // Half of what is left, again and again, in four steps each.
        let quantiles = (0..=4 * 17).map(|step| 1.0 - 0.5_f64.powf(f64::from(step) / 4.0));
        let seen = histogram.len() as f64;
        let curve = quantiles
            .filter(|quantile| (1.0 - quantile) * seen >= 1.0)
            .map(|quantile| (quantile, at(quantile)))
            .collect();
        Self {
            name: name.to_owned(),
            count: histogram.len(),
            min: histogram.min(),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram.max(),
            curve,
        }
    }
}

/// A slice of the run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Its end, in seconds of the measured time.
    pub at: f64,
    /// Units per second in it.
    pub per_second: f64,
    /// CPUs that the server kept busy in it.
    pub server_cpus: Option<f64>,
    /// The server's resident bytes at its end.
    pub resident: Option<u64>,
}

/// Nanoseconds for people: three digits and a unit.
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// Bytes for people.
pub fn bytes(bytes: f64) -> String {
    match bytes.abs() {
        len if len < 10_240.0 => format!("{bytes:.0} B"),
        len if len < 10_485_760.0 => format!("{:.1} KiB", bytes / 1024.0),
        len if len < 10_737_418_240.0 => format!("{:.1} MiB", bytes / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes / 1_073_741_824.0),
    }
}

/// A count for people: `1,234,567`.
pub fn count(count: f64) -> String {
    let digits = format!("{count:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// More than one of a unit: `messages`, `deliveries`.
pub fn plural(unit: &str) -> String {
    match unit.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{unit}s"),
    }
}

impl Report {
    /// Says what was measured.
    pub fn finish(&mut self, count: u64, elapsed: Duration) {
        self.count = count;
        self.seconds = elapsed.as_secs_f64();
        self.per_second = count as f64 / self.seconds;
    }

    /// A figure of the scenario's own.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        self.figures.push((name.to_owned(), value, unit.to_owned()));
    }

    /// The value of a figure.
    pub fn figure_of(&self, name: &str) -> Option<f64> {
        let figure = self.figures.iter().find(|(own, ..)| own == name)?;
        Some(figure.1)
    }

    /// What a table says: names and values.
    pub fn rows(&self) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
        let unit = &self.unit;
        row("target", self.target.clone());
        row("connections", count(self.connections as f64));
        row(
            &plural(unit),
            format!("{} in {:.2} s", count(self.count as f64), self.seconds),
        );
        row("throughput", format!("{}/s", count(self.per_second)));
        let cpu = |cpu: &Cpu| {
            format!(
                "{} per {unit} (user {}, system {}), {:.2} CPUs",
                time(cpu.ns_per_unit),
                time((cpu.ns_per_unit - cpu.system_ns_per_unit).max(0.0)),
                time(cpu.system_ns_per_unit),
                cpu.cpus
            )
        };
        if let Some(server) = &self.server {
            row("server CPU", cpu(&server.cpu));
            let efficiency = count(server.per_cpu_second);
            row(
                "efficiency",
                format!("{efficiency} {} per server CPU second", plural(unit)),
            );
            let (before, after) = server.resident;
            let mut memory = format!("{} → {}", bytes(before as f64), bytes(after as f64));
            let _ = write!(
                memory,
                " ({} per connection)",
                bytes(server.bytes_per_connection)
            );
            row("server memory", memory);
            if let Some((before, after)) = server.proportional {
                let (before, after) = (bytes(before as f64), bytes(after as f64));
                row("proportional", format!("{before} → {after}"));
            }
        }
        if let Some((before, after)) = &self.kernel {
            let held = |kernel: &Kernel| (kernel.slab + kernel.tcp_buffers) as f64;
            let each = (held(after) - held(before)) / self.connections.max(1) as f64;
            let (before, after) = (bytes(held(before)), bytes(held(after)));
            row(
                "kernel memory",
                format!(
                    "{before} → {after} ({} per connection, both ends)",
                    bytes(each)
                ),
            );
        }
        row(
            "generator CPU",
            format!("{} on {}", cpu(&self.generator), self.generator_backend),
        );
        for (name, value, unit) in &self.figures {
            let value = match &unit[..] {
                "ns" => time(*value),
                "B" => bytes(*value),
                _ if value.fract() == 0.0 || *value >= 1000.0 => {
                    format!("{} {unit}", count(*value))
                }
                _ => format!("{value:.3} {unit}"),
            };
            row(name, value);
        }
        rows
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.rows() {
            writeln!(f, "{name:<15} {value}")?;
        }
        if !self.latencies.is_empty() {
            writeln!(
                f,
                "{:<15} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11}",
                "latency", "p50", "p90", "p99", "p99.9", "p99.99", "max", "count"
            )?;
        }
        for latency in &self.latencies {
            write!(f, "{:<15}", latency.name)?;
            let Latency {
                p50,
                p90,
                p99,
                p99_9,
                p99_99,
                max,
                ..
            } = latency;
            for ns in [p50, p90, p99, p99_9, p99_99, max] {
                write!(f, " {:>9}", time(*ns as f64))?;
            }
            writeln!(f, " {:>11}", count(latency.count as f64))?;
        }
        match &self.invalid {
            Some(why) => writeln!(f, "INVALID: {why}"),
            None => writeln!(f, "every reply was checked, and right"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(time(398.4), "398 ns");
        assert_eq!(time(4_880.0), "4.88 µs");
        assert_eq!(time(33_500.0), "33.5 µs");
        assert_eq!(time(2_500_000_000.0), "2.50 s");
        assert_eq!(bytes(142.3), "142 B");
        assert_eq!(bytes(20_480.0), "20.0 KiB");
        assert_eq!(count(1_234_567.2), "1,234,567");
        assert_eq!(count(12.0), "12");
        assert_eq!(
            (&plural("message")[..], &plural("delivery")[..]),
            ("messages", "deliveries")
        );
    }

    #[test]
    fn distribution_is_kept() {
        let mut histogram = crate::crew::histogram();
        for ns in 1..=10_000 {
            histogram.record(ns * 1_000).expect("in range");
        }
        let latency = Latency::new("echo", &histogram);
        let near = |got: u64, want: f64| (got as f64 / want - 1.0).abs() < 0.002;
        assert!(near(latency.p50, 5e6), "{latency:?}");
        assert!(near(latency.p99_9, 9.99e6), "{latency:?}");
        assert!(near(latency.max, 1e7), "{latency:?}");
        let is_rising = |pair: &[(f64, u64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        assert!(latency.curve.windows(2).all(is_rising));
        let json = serde_json::to_string(&latency).expect("it is plain");
        let back: Latency = serde_json::from_str(&json).expect("it was written so");
        assert_eq!(back.p99, latency.p99);
    }
}
