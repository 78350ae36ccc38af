//! Fan-out: a server that sends every message to all of its connections. The next messages are
//! published when the last receiver has those before. Others may be there that never read; what
//! they cost shows in the times of those that do, whose pings are answered and whose closing
//! handshakes are made meanwhile.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use hdrhistogram::Histogram;
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
use crate::crew::Patience;
use crate::crew::Run;
use crate::crew::Seat;
use crate::crew::Target;
use crate::payload::Kind;
use crate::payload::Payloads;
use crate::report::Latency;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::slow;
use crate::watch::Watch;

/// Not known yet.
const UNKNOWN: u64 = u64::MAX;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server, which sends each message to every connection, the publisher's included.
    pub target: Target,
    /// Receivers; the first of them publishes.
    pub connections: usize,
    /// Messages that are published at once.
    pub burst: u64,
    /// Receivers besides, that never read.
    pub stalled: usize,
    /// What messages consist of.
    pub kind: Kind,
    /// How long they are.
    pub sizes: Sizes,
}

/// What the threads know of the publisher.
#[derive(Debug)]
struct Publisher {
    epoch: Instant,
    /// When the message that is under way was sent.
    sent_at_ns: AtomicU64,
    /// Deliveries of the whole run, once there is nothing more to come.
    deliveries: AtomicU64,
}

#[derive(Clone)]
struct Fan {
    base: Base,
    payloads: Payloads,
    publisher: Arc<Publisher>,
    pings: u64,
    /// Round trips of its pings.
    pongs: Histogram<u64>,
}

/// How often one of the receivers pings.
const PING_INTERVAL: Duration = Duration::from_millis(100);

impl Load for Fan {
    fn base(&mut self) -> &mut Base {
        &mut self.base
    }
}

impl Handler for Fan {
    /// Messages that the connection has received.
    type Data = u64;

    fn on_open(&mut self, conn: &mut Context<'_, u64>) {
        self.base.ids.push(conn.id());
    }

    fn on_message(&mut self, conn: &mut Context<'_, u64>, message: Message<'_>) {
        if let Err(what) = self.payloads.check(*conn.data(), &message) {
            return self.base.fail(what);
        }
        *conn.data() += 1;
        self.base.count += 1;
        let now_ns = self.publisher.epoch.elapsed().as_nanos() as u64;
        let sent_at_ns = self.publisher.sent_at_ns.load(Ordering::Relaxed);
        self.base.note(now_ns.saturating_sub(sent_at_ns));
    }

    fn on_pong(&mut self, _: &mut Context<'_, u64>, _: &[u8], round_trip: Option<Duration>) {
        if let Some(round_trip) = round_trip {
            self.pongs.saturating_record(round_trip.as_nanos() as u64);
        }
    }

    fn on_close(&mut self, _: &mut Context<'_, u64>, closed: &Closed<'_>) {
        self.base.closed(closed);
    }
}

/// Runs the plan; counts deliveries.
///
/// # Errors
/// The first thing that was wrong: a message that was altered, lost, doubled or out of order,
/// or a connection that ended.
pub fn run(plan: &Plan, watch: &Watch) -> Result<Report, String> {
    let stalled: Result<Vec<_>, _> = (0..plan.stalled)
        .map(|number| slow::open(plan.target.connect(number)))
        .collect();
    let stalled = stalled?;
    let payloads = Payloads::new(plan.kind, &plan.sizes)?;
    let connections = plan.connections as u64;
    let mut report = Report {
        scenario: "broadcast".to_owned(),
        unit: "delivery".to_owned(),
        ..Report::default()
    };
    let publisher = Arc::new(Publisher {
        epoch: Instant::now(),
        sent_at_ns: AtomicU64::new(0),
        deliveries: AtomicU64::new(UNKNOWN),
    });
    let work = |run: &Run, index| {
        let fan = Fan {
            base: Base::default(),
            payloads: payloads.clone(),
            publisher: Arc::clone(&publisher),
            pings: 0,
            pongs: crew::histogram(),
        };
        let mut seat = Seat::new(run, index, &plan.target, fan)?;
        let share = seat.share(plan.connections);
        seat.open(&plan.target, share, |_| 0)?;
        seat.finish(OPENING)?;
        let mut last = crew::histogram();
        if index == 0 {
            let mut published = 0;
            let mut pinged_at = Instant::now();
            while run.step() != ENDING {
                let sent_at = Instant::now();
                if sent_at - pinged_at >= PING_INTERVAL {
                    pinged_at = sent_at;
                    ping(&mut seat);
                }
                publish(&mut seat, &publisher, published..published + plan.burst)?;
                published += plan.burst;
                wait_for_last(&mut seat, connections * published)?;
                if run.step() == MEASURING {
                    last.saturating_record(sent_at.elapsed().as_nanos() as u64);
                }
            }
            let deliveries = connections * published;
            publisher.deliveries.store(deliveries, Ordering::Release);
        }
        seat.turn_until(|_| publisher.deliveries.load(Ordering::Acquire) != UNKNOWN)?;
        seat.turn_until(|fan| fan.pongs.len() == fan.pings)?;
        seat.close_where(|_| true);
        seat.turn_until_closed()?;
        let fan = seat.engine.handler();
        Ok((fan.base.latency.clone(), last, fan.pongs.clone()))
    };
    let (done, ()) = crew::assemble(plan.target.threads, work, |run| {
        watch.measure(run, connections, connections, &mut report)
    })?;
    drop(stalled);
    let (each, last, pongs): (Vec<_>, Vec<_>, Vec<_>) = done.into_iter().collect();
    let last = Latency::new("last receiver", &crew::merge(&last));
    report.latencies.push(last);
    let each = Latency::new("each receiver", &crew::merge(&each));
    report.latencies.push(each);
    let pongs = Latency::new("pong", &crew::merge(&pongs));
    report.latencies.push(pongs);
    if plan.stalled > 0 {
        report.figure("receivers that never read", plan.stalled as f64, "");
    }
    plan.target.amend(&mut report);
    Ok(report)
}

/// One of the receivers pings.
fn ping(seat: &mut Seat<'_, Fan>) {
    let fan = seat.engine.handler();
    let index = fan.pings as usize % fan.base.ids.len().max(1);
    let Some(id) = fan.base.ids.get(index).copied() else {
        return;
    };
    let sent = seat.engine.with(id, |_, conn| conn.ping(b""));
    // What has ended has been noted where it ended.
    if sent.is_some() {
        seat.engine.handler().pings += 1;
    }
}

fn publish(
    seat: &mut Seat<'_, Fan>,
    publisher: &Publisher,
    numbers: Range<u64>,
) -> Result<(), String> {
    let first = seat.engine.handler().base.ids.first().copied();
    let first = first.ok_or("nobody publishes")?;
    let now_ns = publisher.epoch.elapsed().as_nanos() as u64;
    publisher.sent_at_ns.store(now_ns, Ordering::Relaxed);
    let sent = seat.engine.with(first, |fan, conn| {
        for number in numbers {
            conn.send(fan.payloads.message(number));
        }
    });
    sent.ok_or_else(|| "the publisher's connection ended".to_owned())
}

/// Turns until so much has been delivered, on all threads.
fn wait_for_last(seat: &mut Seat<'_, Fan>, deliveries: u64) -> Result<(), String> {
    let run = seat.run;
    let own = seat.share(deliveries as usize) as u64;
    let mut patience = Patience::default();
    while run.count() < deliveries {
        // What other threads receive does not wake this one.
        let others_only = seat.engine.handler().base.count >= own;
        let timeout = if others_only {
            Duration::ZERO
        } else {
            crew::LOOK
        };
        seat.turn(timeout)?;
        let count = run.count();
        patience
            .check(count)
            .map_err(|error| format!("{count} of {deliveries} deliveries came: {error}"))?;
    }
    if run.count() > deliveries {
        return Err("more was delivered than published".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
                connections: 5,
                burst: threads as u64,
                stalled: threads - 1,
                kind: Kind::Binary,
                sizes: Sizes::fixed(100),
            };
            run(&plan, &Watch::quiet(Duration::from_millis(300)))
        })
    }

    #[test]
    fn everyone_gets_everything_and_cheats_are_caught() {
        for threads in [1, 3] {
            let honest = run_against(
                |conn, message| conn.remote().broadcast(message).expect("room"),
                threads,
            );
            let report = honest.expect("every delivery is right");
            assert!(report.count > 10, "{report}");
            assert!(
                report.latencies[0].p50 >= report.latencies[1].min,
                "{report}"
            );
        }
        let doubles = run_against(
            |conn, message| {
                conn.remote().broadcast(message).expect("room");
                conn.send(message);
            },
            1,
        );
        let doubles = doubles.expect_err("it cheats");
        assert!(
            doubles.contains("was due") || doubles.contains("more"),
            "{doubles}"
        );
        let corrupts = run_against(
            |conn, message| {
                let mut payload = message.payload().to_vec();
                payload[99] ^= 1;
                conn.remote().broadcast(&payload).expect("room");
            },
            1,
        );
        let corrupts = corrupts.expect_err("it cheats");
        assert!(corrupts.contains("altered"), "{corrupts}");
    }
}
