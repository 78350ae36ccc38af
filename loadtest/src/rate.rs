//! The open loop: messages are sent when they are due, whether the server keeps up or not, and
//! their latency counts from that moment.

use std::time::Duration;
use std::time::Instant;

use hdrhistogram::Histogram;
use sockeye::CloseCode;
use sockeye::Closed;
use sockeye::Context;
use sockeye::Handler;
use sockeye::Message;

use crate::crew;
use crate::crew::Base;
use crate::crew::ENDING;
use crate::crew::Load;
use crate::crew::MEASURING;
use crate::crew::OPENING;
use crate::crew::Run;
use crate::crew::Seat;
use crate::crew::Target;
use crate::payload::Kind;
use crate::payload::Payloads;
use crate::report;
use crate::report::Latency;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::watch::Watch;

/// A generator whose messages leave later than this has measured itself.
const LAG_MAX: Duration = Duration::from_millis(1);

/// Gaps shorter than this are waited for without sleeping: a wait has a millisecond's
/// resolution.
const SLEEP_MIN: Duration = Duration::from_millis(2);

/// Messages that are sent late before replies are looked at again.
const BURST_MAX: usize = 256;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub target: Target,
    /// Connections, which take turns.
    pub connections: usize,
    /// Messages per second, of all connections together.
    pub per_second: f64,
    /// What they consist of.
    pub kind: Kind,
    /// How long they are.
    pub sizes: Sizes,
}

/// One connection: its place among those of its thread, and its messages.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    first: u64,
    index: u64,
    sent: u64,
    received: u64,
}

/// When the messages of a thread are due.
#[derive(Clone, Copy, Debug, Default)]
struct Schedule {
    start_ns: u64,
    interval_ns: f64,
    connections: u64,
    /// What is due from then on is measured, whenever its reply comes.
    measured_from_ns: Option<u64>,
}

impl Schedule {
    fn due_ns(&self, message: u64) -> u64 {
        self.start_ns + (message as f64 * self.interval_ns) as u64
    }
}

#[derive(Clone)]
struct Rate {
    base: Base,
    payloads: Payloads,
    schedule: Schedule,
    epoch: Instant,
}

impl Load for Rate {
    fn base(&mut self) -> &mut Base {
        &mut self.base
    }
}

impl Rate {
    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}

impl Handler for Rate {
    type Data = Progress;

    fn on_open(&mut self, conn: &mut Context<'_, Progress>) {
        conn.data().index = self.base.ids.len() as u64;
        self.base.ids.push(conn.id());
    }

    fn on_message(&mut self, conn: &mut Context<'_, Progress>, message: Message<'_>) {
        let progress = conn.data();
        let received = progress.received;
        if received == progress.sent {
            return self.base.fail("more came than was sent".to_owned());
        }
        let checked = self.payloads.check(progress.first + received, &message);
        if let Err(what) = checked {
            return self.base.fail(what);
        }
        let number = progress.index + received * self.schedule.connections;
        let due_ns = self.schedule.due_ns(number);
        if self
            .schedule
            .measured_from_ns
            .is_some_and(|from| due_ns >= from)
        {
            let late_ns = self.now_ns().saturating_sub(due_ns);
            self.base.latency.saturating_record(late_ns);
        }
        progress.received += 1;
        self.base.count += 1;
        if self.base.is_ending() && progress.received == progress.sent {
            conn.close(CloseCode::NORMAL, "");
        }
    }

    fn on_close(&mut self, _: &mut Context<'_, Progress>, closed: &Closed<'_>) {
        self.base.closed(closed);
    }
}

/// Runs the plan.
///
/// # Errors
/// The first thing that was wrong: a reply that was altered, lost, doubled or out of order, or
/// a connection that ended.
pub fn run(plan: &Plan, watch: &Watch) -> Result<Report, String> {
    let payloads = Payloads::new(plan.kind, &plan.sizes)?;
    let mut report = Report {
        scenario: "rate".to_owned(),
        unit: "message".to_owned(),
        ..Report::default()
    };
    report.figure("rate asked for", plan.per_second, "messages/s");
    let work = |run: &Run, index| {
        let rate = Rate {
            base: Base::default(),
            payloads: payloads.clone(),
            schedule: Schedule::default(),
            epoch: Instant::now(),
        };
        let mut seat = Seat::new(run, index, &plan.target, rate)?;
        let share = seat.share(plan.connections);
        seat.open(&plan.target, share, |number| Progress {
            first: (number as u64) << 32,
            ..Progress::default()
        })?;
        let mut late = crew::histogram();
        if seat.finish(OPENING)? != ENDING && share > 0 {
            // A thread's part of the rate is that of its connections.
            let per_second = plan.per_second * share as f64 / plan.connections as f64;
            send_when_due(&mut seat, 1e9 / per_second, &mut late)?;
        }
        seat.turn_until_ending()?;
        // The others close with their last reply.
        seat.close_where(|progress| progress.received == progress.sent);
        seat.turn_until_closed()?;
        Ok((seat.engine.handler().base.latency.clone(), late))
    };
    let (done, ()) = crew::assemble(plan.target.threads, work, |run| {
        watch.measure(
            run,
            plan.connections as u64,
            plan.connections as u64,
            &mut report,
        )
    })?;
    let (times, late): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let late = Latency::new("sent late by", &crew::merge(&late));
    // It does not sleep between messages, so its CPU time says nothing.
    report.invalid = (Duration::from_nanos(late.p99) > LAG_MAX).then(|| {
        let late = report::time(late.p99 as f64);
        format!("the generator was late: by {late} for 1 % of the messages")
    });
    let times = crew::merge(&times);
    report.latencies.push(Latency::new("since due", &times));
    report.latencies.push(late);
    plan.target.amend(&mut report);
    Ok(report)
}

/// Sends a message every so often until the run ends.
fn send_when_due(
    seat: &mut Seat<'_, Rate>,
    interval_ns: f64,
    late: &mut Histogram<u64>,
) -> Result<(), String> {
    let rate = seat.engine.handler();
    let ids = rate.base.ids.clone();
    let schedule = Schedule {
        // Threads take turns as well.
        start_ns: rate.now_ns() + (interval_ns * seat.index as f64) as u64,
        interval_ns,
        connections: ids.len() as u64,
        measured_from_ns: None,
    };
    rate.schedule = schedule;
    let mut next = 0;
    loop {
        let step = seat.run.step();
        let now_ns = seat.engine.handler().now_ns();
        if step == ENDING {
            return Ok(());
        }
        if step == MEASURING {
            let measured = &mut seat.engine.handler().schedule.measured_from_ns;
            measured.get_or_insert(now_ns);
        }
        for _ in 0..BURST_MAX {
            let due_ns = schedule.due_ns(next);
            if due_ns > now_ns {
                break;
            }
            let id = ids[next as usize % ids.len()];
            seat.engine.with(id, |rate, conn| {
                let progress = conn.data();
                let number = progress.first + progress.sent;
                progress.sent += 1;
                let sent = conn.send(rate.payloads.message(number));
                rate.base.sent(sent);
            });
            late.saturating_record(now_ns - due_ns);
            next += 1;
        }
        let gap = Duration::from_nanos(schedule.due_ns(next).saturating_sub(now_ns));
        let timeout = if gap > SLEEP_MIN {
            gap - SLEEP_MIN / 2
        } else {
            Duration::ZERO
        };
        seat.turn(timeout.min(crew::LOOK))?;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crate::echo::tests::against;

    use super::*;

    fn plan(target: Target, per_second: f64) -> Plan {
        Plan {
            target,
            connections: 3,
            per_second,
            kind: Kind::Text,
            sizes: Sizes::fixed(64),
        }
    }

    #[test]
    fn rate_is_kept_and_every_message_comes_back() {
        let report = against(
            |conn, message| {
                conn.send(message);
            },
            |mut target| {
                target.threads = 2;
                let watch = Watch::quiet(Duration::from_millis(500));
                run(&plan(target, 2_000.0), &watch)
            },
        );
        let report = report.expect("every reply is right");
        assert!((1_400.0..2_600.0).contains(&report.per_second), "{report}");
    }

    #[test]
    fn latency_counts_from_when_a_message_was_due() {
        // The server holds its thread for 50 ms with one message in a hundred. What was due
        // meanwhile waits, and a loop that waited for replies would not have sent it.
        let report = against(
            |conn, message| {
                if message.payload()[14..16] == *b"10" {
                    thread::sleep(Duration::from_millis(50));
                }
                conn.send(message);
            },
            |target| {
                let watch = Watch::quiet(Duration::from_millis(800));
                run(&plan(target, 300.0), &watch)
            },
        );
        let report = report.expect("every reply is right");
        let times = &report.latencies[0];
        assert!(times.max >= 45_000_000, "{report}");
        // 15 messages are due in 50 ms: many are late, and not only the one that was held.
        assert!(times.p90 >= 5_000_000, "{report}");
    }

    #[test]
    fn reply_that_comes_when_the_run_is_over_counts() {
        // Held beyond the measured time, with all that was due behind it.
        let report = against(
            |conn, message| {
                if message.payload()[14..16] == *b"05" {
                    thread::sleep(Duration::from_millis(400));
                }
                conn.send(message);
            },
            |target| {
                let watch = Watch::quiet(Duration::from_millis(200));
                run(&plan(target, 300.0), &watch)
            },
        );
        let report = report.expect("every reply is right");
        assert!(report.latencies[0].max >= 300_000_000, "{report}");
    }
}
