//! Measures a load while it runs: counts, CPU time, memory, in slices; and says how far it is.

use std::io::IsTerminal;
use std::time::Duration;
use std::time::Instant;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;

use crate::crew::ENDING;
use crate::crew::MEASURING;
use crate::crew::Run;
use crate::crew::WARMING;
use crate::process;
use crate::process::Kernel;
use crate::process::Usage;
use crate::report;
use crate::report::Cpu;
use crate::report::Report;
use crate::report::Sample;
use crate::report::Server;

/// A thread that works for more of its time than this is at its limit.
const SATURATED: f64 = 0.95;

/// How long a slice of the series is.
const SLICE: Duration = Duration::from_millis(200);

/// How often a plain line says how far the run is.
const LINE: Duration = Duration::from_secs(10);

/// How a run is measured.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The server's processes.
    pub server_pids: Vec<u32>,
    /// CPUs that the server can use.
    pub server_cpus: f64,
    /// Threads of the generator.
    pub threads: usize,
    /// The time before it is measured.
    pub warm_up: Duration,
    /// The measured time.
    pub duration: Duration,
    /// Says nothing.
    pub quiet: bool,
}

impl Watch {
    /// A watch for a short run that says nothing.
    pub fn quiet(duration: Duration) -> Self {
        Self {
            server_pids: Vec::new(),
            server_cpus: 1.0,
            threads: 1,
            warm_up: Duration::ZERO,
            duration,
            quiet: true,
        }
    }
}

/// A moment: all that is counted.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    at: Instant,
    count: u64,
    own: Usage,
    server: Option<Usage>,
}

/// What there was before the first connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before {
    resident: u64,
    proportional: Option<u64>,
    kernel: Option<Kernel>,
}

impl Watch {
    /// Looks at everything.
    ///
    /// # Errors
    /// One of the server's processes is gone.
    pub fn look(&self, count: u64) -> Result<Moment, String> {
        let server = match &self.server_pids[..] {
            [] => None,
            pids => Some(process::usage(pids)?),
        };
        Ok(Moment {
            at: Instant::now(),
            count,
            own: process::usage(&[std::process::id()])?,
            server,
        })
    }

    /// Looks at the memory before the first connection.
    ///
    /// # Errors
    /// One of the server's processes is gone.
    pub fn before(&self) -> Result<Before, String> {
        let proportional = process::proportional(&self.server_pids);
        Ok(Before {
            resident: self.look(0)?.server.map_or(0, |usage| usage.resident),
            proportional: proportional.filter(|_| !self.server_pids.is_empty()),
            kernel: process::kernel(),
        })
    }

    /// Waits until so many connections are open, warms up, measures: the steps of a load with
    /// `connections` connections.
    ///
    /// # Errors
    /// The first thing that was wrong.
    pub fn measure(
        &self,
        run: &Run,
        wait_for: u64,
        connections: u64,
        report: &mut Report,
    ) -> Result<(), String> {
        report.connections = connections;
        let before = self.before()?;
        let mut progress = Progress::new(self.quiet, "opening", wait_for);
        run.wait_until(
            |run| run.opened() >= wait_for,
            |run| progress.at(run.opened()),
        )?;
        progress.end();
        run.enter(WARMING);
        let warm_until = Instant::now() + self.warm_up;
        run.wait_until(|_| Instant::now() >= warm_until, |_| ())?;
        run.enter(MEASURING);
        let start = self.look(run.count())?;
        let total = self.duration.as_millis() as u64;
        let mut progress = Progress::new(self.quiet, "running", total);
        let mut last = start;
        while start.at.elapsed() < self.duration {
            let until = (last.at + SLICE).min(start.at + self.duration);
            run.wait_until(|_| Instant::now() >= until, |_| ())?;
            let now = self.look(run.count())?;
            let sample = sample(&start, &last, &now);
            report.series.push(sample);
            progress.say(&format!("{}/s", report::count(sample.per_second)));
            progress.at(start.at.elapsed().as_millis() as u64);
            last = now;
        }
        run.enter(ENDING);
        progress.end();
        report.generator_backend = run.backend();
        self.conclude(&before, &start, &last, report);
        Ok(())
    }

    /// Says what was used between two moments.
    pub fn conclude(&self, before: &Before, start: &Moment, end: &Moment, report: &mut Report) {
        let elapsed = end.at - start.at;
        report.finish(end.count - start.count, elapsed);
        let cpu = |from: &Usage, to: &Usage| {
            let per_unit = |spent: Duration| spent.as_nanos() as f64 / report.count.max(1) as f64;
            let spent = to.cpu.saturating_sub(from.cpu);
            Cpu {
                ns_per_unit: per_unit(spent),
                system_ns_per_unit: per_unit(to.system.saturating_sub(from.system)),
                cpus: spent.as_secs_f64() / elapsed.as_secs_f64(),
            }
        };
        report.generator = cpu(&start.own, &end.own);
        let now = self.before().unwrap_or_default();
        report.kernel = before.kernel.zip(now.kernel);
        report.server = start.server.zip(end.server).map(|(from, to)| {
            let cpu = cpu(&from, &to);
            let grown = to.resident as f64 - before.resident as f64;
            Server {
                cpu,
                per_cpu_second: 1e9 / cpu.ns_per_unit.max(f64::MIN_POSITIVE),
                resident: (before.resident, to.resident),
                proportional: before.proportional.zip(now.proportional),
                bytes_per_connection: grown / report.connections.max(1) as f64,
            }
        });
        report.invalid = self.generator_was_the_limit(report);
    }

    /// Counts memory from an earlier moment on.
    pub fn amend_memory(&self, before: &Before, report: &mut Report) {
        if let Some(server) = &mut report.server {
            server.resident.0 = before.resident;
            let grown = server.resident.1 as f64 - before.resident as f64;
            server.bytes_per_connection = grown / report.connections.max(1) as f64;
            if let (Some(own), Some(earlier)) = (&mut server.proportional, before.proportional) {
                own.0 = earlier;
            }
        }
        if let (Some(own), Some(earlier)) = (&mut report.kernel, before.kernel) {
            own.0 = earlier;
        }
    }

    /// Whether the generator was at its limit while the server was not.
    fn generator_was_the_limit(&self, report: &Report) -> Option<String> {
        if report.generator.cpus < SATURATED * self.threads as f64 {
            return None;
        }
        match &report.server {
            None => Some(
                "the generator was at its limit, and the server's process is not known \
                 (--server-pid)"
                    .to_owned(),
            ),
            Some(server) if server.cpu.cpus < SATURATED * self.server_cpus => Some(format!(
                "the generator was the limit ({:.2} CPUs), and not the server ({:.2})",
                report.generator.cpus, server.cpu.cpus
            )),
            Some(_) => None,
        }
    }
}

fn sample(start: &Moment, last: &Moment, now: &Moment) -> Sample {
    let seconds = (now.at - last.at).as_secs_f64();
    let spent = |(from, to): (Usage, Usage)| to.cpu.saturating_sub(from.cpu).as_secs_f64();
    Sample {
        at: (now.at - start.at).as_secs_f64(),
        per_second: (now.count - last.count) as f64 / seconds,
        server_cpus: last
            .server
            .zip(now.server)
            .map(|both| spent(both) / seconds),
        resident: now.server.map(|usage| usage.resident),
    }
}

/// How far something is: a bar on a terminal, some lines otherwise.
pub struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    total: u64,
    said: Instant,
    message: String,
    quiet: bool,
}

impl Progress {
    /// Begins at zero of `total`.
    pub fn new(quiet: bool, name: &str, total: u64) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style = "{prefix:>10} {wide_bar} {percent:>3} % {msg:>16} {elapsed_precise}";
            let style = ProgressStyle::with_template(style).expect("a valid template");
            let bar = ProgressBar::new(total).with_style(style);
            bar.with_prefix(name.to_owned())
        });
        Self {
            bar,
            name: name.to_owned(),
            total,
            said: Instant::now(),
            message: String::new(),
            quiet,
        }
    }

    /// What goes with it.
    pub fn say(&mut self, message: &str) {
        message.clone_into(&mut self.message);
        if let Some(bar) = &self.bar {
            bar.set_message(self.message.clone());
        }
    }

    /// It is at `done` of the total.
    pub fn at(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if !self.quiet && self.said.elapsed() > LINE {
            self.said = Instant::now();
            let share = 100.0 * done as f64 / self.total.max(1) as f64;
            eprintln!("{} {share:.0} % {}", self.name, self.message);
        }
    }

    /// It is done.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_is_invalid_where_the_generator_was_the_limit() {
        let mut watch = Watch::quiet(Duration::ZERO);
        let report = |generator: f64, server: Option<f64>| {
            let cpu = |cpus| Cpu {
                cpus,
                ..Cpu::default()
            };
            Report {
                generator: cpu(generator),
                server: server.map(|cpus| Server {
                    cpu: cpu(cpus),
                    ..Server::default()
                }),
                ..Report::default()
            }
        };
        let is_invalid = |watch: &Watch, generator, server| {
            let report = report(generator, server);
            watch.generator_was_the_limit(&report).is_some()
        };
        assert!(is_invalid(&watch, 0.99, Some(0.5)));
        assert!(is_invalid(&watch, 0.99, None));
        assert!(!is_invalid(&watch, 0.99, Some(0.99)));
        assert!(!is_invalid(&watch, 0.5, Some(0.5)));
        assert!(!is_invalid(&watch, 0.5, None));
        // Two threads, and a server that may have two CPUs.
        watch.threads = 2;
        assert!(!is_invalid(&watch, 1.5, Some(0.99)));
        watch.server_cpus = 2.0;
        assert!(is_invalid(&watch, 1.98, Some(1.5)));
    }
}
