//! A server that lets its clients go: it is sent SIGTERM, and what counts is when each client is
//! told, and how.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use sockeye::Closed;
use sockeye::Context;
use sockeye::Handler;

use crate::crew;
use crate::crew::Base;
use crate::crew::Load;
use crate::crew::MEASURING;
use crate::crew::OPENING;
use crate::crew::Run;
use crate::crew::Seat;
use crate::crew::Target;
use crate::report::Latency;
use crate::report::Report;

/// Parts of the window in which clients are counted.
const PARTS: usize = 10;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub target: Target,
    /// Its clients.
    pub connections: usize,
    /// Its process, which SIGTERM tells to drain.
    pub pid: u32,
    /// Over how long it lets its clients go.
    pub window: Duration,
}

/// How one client was told.
#[derive(Clone, Copy, Debug)]
struct End {
    at: Duration,
    code: u16,
}

#[derive(Clone)]
struct Clients {
    base: Base,
    epoch: Instant,
    /// When the signal was sent, after the epoch; zero if it has not been.
    signalled_ns: Arc<AtomicU64>,
    ends: Vec<End>,
}

impl Load for Clients {
    fn base(&mut self) -> &mut Base {
        &mut self.base
    }
}

impl Handler for Clients {
    type Data = ();

    fn on_open(&mut self, conn: &mut Context<'_, ()>) {
        self.base.ids.push(conn.id());
    }

    fn on_close(&mut self, _: &mut Context<'_, ()>, closed: &Closed<'_>) {
        let signalled_ns = self.signalled_ns.load(Ordering::Acquire);
        if signalled_ns == 0 {
            return self.base.closed(closed);
        }
        let signalled = Duration::from_nanos(signalled_ns);
        self.ends.push(End {
            at: self.epoch.elapsed().saturating_sub(signalled),
            code: closed.cause.code(),
        });
        self.base.count += 1;
    }
}

/// Runs the plan; the server ends.
///
/// # Errors
/// The first thing that was wrong: a client that was not told with a Close frame.
pub fn run(plan: &Plan) -> Result<Report, String> {
    let mut report = Report {
        scenario: "drain".to_owned(),
        unit: "connection".to_owned(),
        connections: plan.connections as u64,
        ..Report::default()
    };
    let epoch = Instant::now();
    let signalled_ns = Arc::<AtomicU64>::default();
    let work = |run: &Run, index| {
        let clients = Clients {
            base: Base::default(),
            epoch,
            signalled_ns: Arc::clone(&signalled_ns),
            ends: Vec::new(),
        };
        let mut seat = Seat::new(run, index, &plan.target, clients)?;
        let share = seat.share(plan.connections);
        seat.open(&plan.target, share, |_| ())?;
        seat.finish(OPENING)?;
        seat.turn_until_closed()?;
        Ok(std::mem::take(&mut seat.engine.handler().ends))
    };
    let pid = i32::try_from(plan.pid).map_err(|_| "no such process".to_owned())?;
    let (ends, elapsed) = crew::assemble(plan.target.threads, work, |run| {
        run.wait_until(|run| run.has_finished(OPENING), |_| {})?;
        report.generator_backend = run.backend();
        run.enter(MEASURING);
        let start = epoch.elapsed();
        signalled_ns.store(start.as_nanos() as u64, Ordering::Release);
        let sent = signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
        sent.map_err(|error| format!("process {pid}: {error}"))?;
        let connections = plan.connections as u64;
        run.wait_until(|run| run.count() >= connections, |_| {})?;
        Ok(epoch.elapsed() - start)
    })?;
    let ends = ends.concat();
    report.finish(ends.len() as u64, elapsed);
    describe(&ends, plan.window, &mut report);
    let lost = ends.iter().filter(|end| end.code == 1006).count();
    if lost > 0 {
        return Err(format!("{lost} clients were not told: 1006"));
    }
    Ok(report)
}

/// Says when and how the clients were told.
fn describe(ends: &[End], window: Duration, report: &mut Report) {
    let mut times = crew::histogram();
    let mut parts = [0_u32; PARTS];
    let part = window.as_secs_f64() / PARTS as f64;
    for end in ends {
        times.saturating_record(end.at.as_nanos() as u64);
        let index = (end.at.as_secs_f64() / part) as usize;
        parts[index.min(PARTS - 1)] += 1;
    }
    report.latencies.push(Latency::new("told after", &times));
    let fair = ends.len() as f64 / PARTS as f64;
    let shares = parts.iter().map(|&count| f64::from(count) / fair);
    let least = shares.clone().fold(f64::INFINITY, f64::min);
    let most = shares.fold(0.0, f64::max);
    report.figure("least in a tenth of the window", least, "of the mean");
    report.figure("most in a tenth of the window", most, "of the mean");
    let mut codes: Vec<u16> = ends.iter().map(|end| end.code).collect();
    codes.sort_unstable();
    for same in codes.chunk_by(|one, other| one == other) {
        let name = format!("told with {}", same[0]);
        report.figure(&name, same.len() as f64, "clients");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_counted_in_tenths_of_the_window() {
        let end = |millis| End {
            at: Duration::from_millis(millis),
            code: 1012,
        };
        // Two in each tenth, but for one that comes a tenth later.
        let mut ends: Vec<End> = (0..20).map(|number| end(number * 50)).collect();
        ends[0] = end(150);
        let mut report = Report::default();
        describe(&ends, Duration::from_secs(1), &mut report);
        let figure = |name: &str| report.figure_of(name);
        assert_eq!(figure("least in a tenth of the window"), Some(0.5));
        assert_eq!(figure("most in a tenth of the window"), Some(1.5));
        assert_eq!(figure("told with 1012"), Some(20.0));
    }
}
