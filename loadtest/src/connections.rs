//! Very many connections: opens and holds them, has each answer an echo and a ping, and
//! compares what some active ones feel alone and among them.

use std::thread;
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
use crate::crew::Run;
use crate::crew::Seat;
use crate::crew::Target;
use crate::crew::WARMING;
use crate::payload::Kind;
use crate::payload::Payloads;
use crate::report::Latency;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::watch::Progress;
use crate::watch::Watch;

/// The steps behind those that every load has.
const FILLING: usize = 3;
const ECHOING: usize = 4;
const PINGING: usize = 5;
const IDLING: usize = 6;
const CROWD_WARMING: usize = 7;
const CROWD: usize = 8;

/// Echoes and pings that a thread has under way while every connection is asked.
const WINDOW: usize = 256;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub target: Target,
    /// Connections that are to be held.
    pub connections: usize,
    /// Those of them that echo while the others idle.
    pub active: usize,
    /// How long all idle before memory is read.
    pub idle: Duration,
    /// What messages consist of.
    pub kind: Kind,
    /// How long they are.
    pub sizes: Sizes,
}

/// One connection: its messages, the last of which is under way.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    first: u64,
    sent: u32,
    received: u32,
    at_ns: u64,
}

#[derive(Clone)]
struct Holder {
    base: Base,
    payloads: Payloads,
    epoch: Instant,
    /// Replies are answered with the next message.
    looping: bool,
    under_way: usize,
    /// Round trips of the active ones among all, and of one echo on each.
    crowd: Histogram<u64>,
    each: Histogram<u64>,
    pings: Histogram<u64>,
}

impl Load for Holder {
    fn base(&mut self) -> &mut Base {
        &mut self.base
    }
}

impl Holder {
    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn send(&mut self, conn: &mut Context<'_, Held>) {
        let now_ns = self.now_ns();
        let held = conn.data();
        let number = held.first + u64::from(held.sent);
        held.sent += 1;
        held.at_ns = now_ns;
        self.under_way += 1;
        let sent = conn.send(self.payloads.message(number));
        self.base.sent(sent);
    }

    fn ping(&mut self, conn: &mut Context<'_, Held>) {
        let now_ns = self.now_ns();
        let held = conn.data();
        held.at_ns = now_ns;
        let first = held.first;
        self.under_way += 1;
        conn.ping(&first.to_be_bytes());
    }
}

impl Handler for Holder {
    type Data = Held;

    fn on_open(&mut self, conn: &mut Context<'_, Held>) {
        self.base.ids.push(conn.id());
    }

    fn on_message(&mut self, conn: &mut Context<'_, Held>, message: Message<'_>) {
        let held = *conn.data();
        if held.received == held.sent {
            return self.base.fail("more came than was sent".to_owned());
        }
        let number = held.first + u64::from(held.received);
        if let Err(what) = self.payloads.check(number, &message) {
            return self.base.fail(what);
        }
        conn.data().received += 1;
        self.under_way -= 1;
        self.base.count += 1;
        let spent_ns = self.now_ns() - held.at_ns;
        match self.base.step {
            CROWD => self.crowd.saturating_record(spent_ns),
            ECHOING => self.each.saturating_record(spent_ns),
            _ => self.base.note(spent_ns),
        }
        if self.looping {
            self.send(conn);
        }
    }

    fn on_pong(&mut self, conn: &mut Context<'_, Held>, payload: &[u8], _: Option<Duration>) {
        let held = *conn.data();
        if payload != held.first.to_be_bytes() {
            return self.base.fail("a pong is not that of its ping".to_owned());
        }
        self.under_way -= 1;
        self.base.count += 1;
        let spent_ns = self.now_ns() - held.at_ns;
        self.pings.saturating_record(spent_ns);
    }

    fn on_close(&mut self, _: &mut Context<'_, Held>, closed: &Closed<'_>) {
        if !self.base.is_ending() {
            self.base.closed(closed);
        }
    }
}

/// Runs the plan; counts echoes of the active connections among all.
///
/// # Errors
/// The first thing that was wrong.
pub fn run(plan: &Plan, watch: &Watch) -> Result<Report, String> {
    let payloads = Payloads::new(plan.kind, &plan.sizes)?;
    let mut report = Report {
        scenario: "connections".to_owned(),
        unit: "message".to_owned(),
        ..Report::default()
    };
    let work = |run: &Run, index: usize| {
        let holder = Holder {
            base: Base::default(),
            payloads: payloads.clone(),
            epoch: Instant::now(),
            looping: false,
            under_way: 0,
            crowd: crew::histogram(),
            each: crew::histogram(),
            pings: crew::histogram(),
        };
        let mut seat = Seat::new(run, index, &plan.target, holder)?;
        work(&mut seat, plan)?;
        let holder = seat.engine.handler();
        let (alone, crowd) = (holder.base.latency.clone(), holder.crowd.clone());
        let (each, pings) = (holder.each.clone(), holder.pings.clone());
        // Dropped without closing handshakes, which are not what is measured.
        Ok(vec![alone, crowd, each, pings])
    };
    let (done, ()) = crew::assemble(plan.target.threads, work, |run| {
        conduct(run, plan, watch, &mut report)
    })?;
    let names = [
        "active, alone",
        "active, in crowd",
        "one on each",
        "ping on each",
    ];
    for (which, name) in names.into_iter().enumerate() {
        let all: Vec<_> = done.iter().map(|thread| thread[which].clone()).collect();
        let latency = Latency::new(name, &crew::merge(&all));
        report.latencies.push(latency);
    }
    let p99 = |which: usize| report.latencies[which].p99 as f64;
    let ratio = p99(1) / p99(0).max(1.0);
    report.figure("p99 in crowd", ratio, "times alone");
    plan.target.amend(&mut report);
    Ok(report)
}

/// What one thread does, step by step.
fn work(seat: &mut Seat<'_, Holder>, plan: &Plan) -> Result<(), String> {
    let held = |number: usize| Held {
        first: (number as u64) << 32,
        ..Held::default()
    };
    let active = seat.share(plan.active);
    seat.open(&plan.target, active, held)?;
    seat.finish(OPENING)?;
    begin_loop(seat, active);
    turn_while(seat, |step| step == WARMING || step == MEASURING)?;
    end_loop(seat)?;
    if seat.run.step() == FILLING {
        seat.open(&plan.target, seat.share(plan.connections), held)?;
        seat.finish(FILLING)?;
    }
    if seat.run.step() == ECHOING {
        on_each(seat, Holder::send)?;
        seat.finish(ECHOING)?;
    }
    if seat.run.step() == PINGING {
        on_each(seat, Holder::ping)?;
        seat.finish(PINGING)?;
    }
    if seat.run.step() == IDLING {
        seat.finish(IDLING)?;
    }
    begin_loop(seat, active);
    turn_while(seat, |step| step == CROWD_WARMING || step == CROWD)?;
    end_loop(seat)
}

fn begin_loop(seat: &mut Seat<'_, Holder>, active: usize) {
    let ids = seat.engine.handler().base.ids[..active].to_vec();
    seat.engine.handler().looping = true;
    for id in ids {
        seat.engine.with(id, Holder::send);
    }
}

fn end_loop(seat: &mut Seat<'_, Holder>) -> Result<(), String> {
    seat.engine.handler().looping = false;
    seat.turn_until(|holder| holder.under_way == 0)
}

fn turn_while(seat: &mut Seat<'_, Holder>, so: impl Fn(usize) -> bool) -> Result<(), String> {
    while so(seat.run.step()) {
        seat.turn(crew::LOOK)?;
    }
    Ok(())
}

/// Asks every connection once, some at a time, and waits for all answers.
fn on_each(
    seat: &mut Seat<'_, Holder>,
    ask: fn(&mut Holder, &mut Context<'_, Held>),
) -> Result<(), String> {
    for index in 0..seat.engine.handler().base.ids.len() {
        let id = seat.engine.handler().base.ids[index];
        let asked = seat.engine.with(id, ask);
        asked.ok_or("a connection ended")?;
        if seat.engine.handler().under_way >= WINDOW {
            seat.turn_until(|holder| holder.under_way < WINDOW / 2)?;
        }
    }
    seat.turn_until(|holder| holder.under_way == 0)
}

/// Leads the threads through the steps.
fn conduct(run: &Run, plan: &Plan, watch: &Watch, report: &mut Report) -> Result<(), String> {
    report.connections = plan.connections as u64;
    let before = watch.before()?;
    run.wait_until(|run| run.has_finished(OPENING), |_| ())?;
    run.enter(WARMING);
    pause(run, watch.warm_up)?;
    run.enter(MEASURING);
    pause(run, watch.duration)?;

    let steps = |step, name: &str, report: &mut Report| {
        let start = (Instant::now(), run.count());
        let mut progress = Progress::new(watch.quiet, name, plan.connections as u64);
        run.enter(step);
        run.wait_until(
            |run| run.has_finished(step),
            |run| match step {
                FILLING => progress.at(run.opened()),
                _ => progress.at(run.count() - start.1),
            },
        )?;
        progress.end();
        let seconds = start.0.elapsed().as_secs_f64();
        report.figure(name, plan.connections as f64 / seconds, "connections/s");
        Ok::<_, String>(())
    };
    steps(FILLING, "opened", report)?;
    steps(ECHOING, "echoed", report)?;
    steps(PINGING, "pinged", report)?;

    run.enter(IDLING);
    pause(run, plan.idle)?;
    run.enter(CROWD_WARMING);
    pause(run, watch.warm_up)?;
    run.enter(CROWD);
    let start = watch.look(run.count())?;
    pause(run, watch.duration)?;
    let end = watch.look(run.count())?;
    watch.conclude(&before, &start, &end, report);
    report.generator_backend = run.backend();
    run.enter(ENDING);
    Ok(())
}

fn pause(run: &Run, length: Duration) -> Result<(), String> {
    let until = Instant::now() + length;
    while Instant::now() < until {
        run.check()?;
        thread::sleep(crew::LOOK.min(until - Instant::now()));
    }
    run.check()
}

#[cfg(test)]
mod tests {
    use crate::echo::tests::against;

    use super::*;

    #[test]
    fn every_connection_echoes_and_answers_a_ping() {
        for threads in [1, 2] {
            let report = against(
                |conn, message| {
                    conn.send(message);
                },
                |mut target| {
                    target.threads = threads;
                    let plan = Plan {
                        target,
                        connections: 300,
                        active: 5,
                        idle: Duration::from_millis(20),
                        kind: Kind::Binary,
                        sizes: Sizes::fixed(64),
                    };
                    run(&plan, &Watch::quiet(Duration::from_millis(100)))
                },
            );
            let report = report.expect("all are right");
            assert_eq!(report.latencies[2].count, 300, "{report}");
            assert_eq!(report.latencies[3].count, 300, "{report}");
            assert!(report.latencies[0].count > 5, "{report}");
            assert!(report.latencies[1].count > 5, "{report}");
        }
    }

    #[test]
    fn connection_that_is_lost_while_all_idle_is_seen() {
        let lost = against(
            |conn, message| {
                conn.send(message);
                if message.payload()[3] == 200 {
                    conn.close(sockeye::CloseCode::GOING_AWAY, "");
                }
            },
            |target| {
                let plan = Plan {
                    target,
                    connections: 300,
                    active: 5,
                    idle: Duration::from_millis(20),
                    kind: Kind::Binary,
                    sizes: Sizes::fixed(64),
                };
                run(&plan, &Watch::quiet(Duration::from_millis(100)))
            },
        );
        let lost = lost.expect_err("one was lost");
        assert!(lost.contains("a connection ended"), "{lost}");
    }
}
