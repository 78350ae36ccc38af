//! Connections that come and go: connect, one echo, the closing handshake, and again.

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
use crate::report::Latency;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::watch::Watch;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub target: Target,
    /// Connections at once.
    pub connections: usize,
    /// What the message of each consists of.
    pub kind: Kind,
    /// How long it is.
    pub sizes: Sizes,
}

/// One connection.
#[derive(Clone, Copy, Debug, Default)]
struct Cycle {
    asked_at_ns: u64,
    number: u64,
    replied: bool,
}

#[derive(Clone)]
struct Churn {
    base: Base,
    payloads: Payloads,
    target: Target,
    epoch: Instant,
    /// From the request for a connection until it is open.
    opening: Histogram<u64>,
    /// The number of the next connection, and how far they are apart.
    next: u64,
    stride: u64,
}

impl Load for Churn {
    fn base(&mut self) -> &mut Base {
        &mut self.base
    }
}

impl Churn {
    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn next(&mut self) -> Cycle {
        let number = self.next;
        self.next += self.stride;
        Cycle {
            asked_at_ns: self.now_ns(),
            number,
            replied: false,
        }
    }
}

impl Handler for Churn {
    type Data = Cycle;

    fn on_open(&mut self, conn: &mut Context<'_, Cycle>) {
        let Cycle {
            asked_at_ns,
            number,
            ..
        } = *conn.data();
        if self.base.step == MEASURING {
            self.opening.saturating_record(self.now_ns() - asked_at_ns);
        }
        conn.send(self.payloads.message(number));
    }

    fn on_message(&mut self, conn: &mut Context<'_, Cycle>, message: Message<'_>) {
        let Cycle {
            number, replied, ..
        } = *conn.data();
        match self.payloads.check(number, &message) {
            Ok(()) if replied => self.base.fail(format!("message {number:#x} came twice")),
            Ok(()) => {
                conn.data().replied = true;
                conn.close(CloseCode::NORMAL, "");
            }
            Err(what) => self.base.fail(what),
        }
    }

    fn on_close(&mut self, conn: &mut Context<'_, Cycle>, closed: &Closed<'_>) {
        let Cycle {
            asked_at_ns,
            replied,
            ..
        } = *conn.data();
        if !closed.clean || !replied {
            let what = format!("a connection ended: {:?}", closed.cause);
            return self.base.fail(what);
        }
        self.base.count += 1;
        let spent_ns = self.now_ns() - asked_at_ns;
        self.base.note(spent_ns);
        if self.base.is_ending() {
            return;
        }
        let next = self.next();
        let connect = self.target.connect(next.number as usize).clone();
        if let Err(error) = conn.connect(connect, next) {
            self.base.fail(error.to_string());
        }
    }
}

/// Runs the plan; counts whole cycles.
///
/// # Errors
/// The first thing that was wrong.
pub fn run(plan: &Plan, watch: &Watch) -> Result<Report, String> {
    let payloads = Payloads::new(plan.kind, &plan.sizes)?;
    let mut report = Report {
        scenario: "churn".to_owned(),
        unit: "cycle".to_owned(),
        ..Report::default()
    };
    let work = |run: &Run, index: usize| {
        let churn = Churn {
            base: Base::default(),
            payloads: payloads.clone(),
            target: plan.target.clone(),
            epoch: Instant::now(),
            opening: crew::histogram(),
            next: index as u64,
            stride: plan.target.threads as u64,
        };
        let mut seat = Seat::new(run, index, &plan.target, churn)?;
        if seat.finish(OPENING)? != ENDING {
            for _ in 0..seat.share(plan.connections) {
                let cycle = seat.engine.handler().next();
                let connect = plan.target.connect(cycle.number as usize);
                let made = seat.engine.connect(connect, cycle);
                made.map_err(|error| error.to_string())?;
            }
        }
        seat.turn_until_ending()?;
        seat.turn_until_closed()?;
        let churn = seat.engine.handler();
        Ok((churn.base.latency.clone(), churn.opening.clone()))
    };
    let (done, ()) = crew::assemble(plan.target.threads, work, |run| {
        watch.measure(run, 0, plan.connections as u64, &mut report)
    })?;
    let (cycle, opening): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let cycle = Latency::new("cycle", &crew::merge(&cycle));
    report.latencies.push(cycle);
    let opening = Latency::new("until open", &crew::merge(&opening));
    report.latencies.push(opening);
    plan.target.amend(&mut report);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::echo::tests::against;

    use super::*;

    fn run_against(
        on_message: impl Fn(&mut Context<'_, ()>, Message<'_>) + Clone + Send + Sync + 'static,
        threads: usize,
    ) -> Result<Report, String> {
        against(on_message, |mut target| {
            target.threads = threads;
            let plan = Plan {
                target,
                connections: 4,
                kind: Kind::Binary,
                sizes: Sizes::fixed(64),
            };
            run(&plan, &Watch::quiet(Duration::from_millis(300)))
        })
    }

    #[test]
    fn honest_server_passes_and_others_are_caught() {
        for threads in [1, 2] {
            let honest = |conn: &mut Context<'_, ()>, message: Message<'_>| {
                conn.send(message);
            };
            let report = run_against(honest, threads).expect("every reply is right");
            assert!(report.count >= 4, "{report}");
            assert!(
                report.latencies[0].p50 >= report.latencies[1].min,
                "{report}"
            );
        }
        let altered = run_against(
            |conn, message| {
                let mut payload = message.payload().to_vec();
                payload[20] ^= 1;
                conn.send(&payload);
            },
            1,
        );
        let altered = altered.expect_err("it cheats");
        assert!(altered.contains("altered"), "{altered}");
        let closes = run_against(|conn, _| conn.close(CloseCode::GOING_AWAY, ""), 1);
        let closes = closes.expect_err("it says nothing");
        assert!(closes.contains("a connection ended"), "{closes}");
    }
}
