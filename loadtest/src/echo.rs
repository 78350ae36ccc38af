//! The closed echo loop: each connection keeps so many messages under way.

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
    /// Connections.
    pub connections: usize,
    /// Messages that each has under way.
    pub depth: u32,
    /// What they consist of.
    pub kind: Kind,
    /// How long they are.
    pub sizes: Sizes,
}

/// One connection. Its messages are numbered from `first` on, so that no two connections have
/// the same; one at a time of those under way is timed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    first: u64,
    sent: u32,
    received: u32,
    timed: u32,
    timed_at_ns: u64,
}

impl Progress {
    /// Of the connection with this number.
    pub fn new(number: usize) -> Self {
        Self {
            first: (number as u64) << 32,
            ..Self::default()
        }
    }
}

#[derive(Clone)]
struct Echo {
    base: Base,
    payloads: Payloads,
    epoch: Instant,
}

impl Load for Echo {
    fn base(&mut self) -> &mut Base {
        &mut self.base
    }
}

impl Echo {
    #[inline]
    fn send(&mut self, conn: &mut Context<'_, Progress>) {
        let progress = conn.data();
        let number = progress.first + u64::from(progress.sent);
        progress.sent += 1;
        let sent = conn.send(self.payloads.message(number));
        self.base.sent(sent);
    }

    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}

impl Handler for Echo {
    type Data = Progress;

    fn on_open(&mut self, conn: &mut Context<'_, Progress>) {
        self.base.ids.push(conn.id());
    }

    #[inline]
    fn on_message(&mut self, conn: &mut Context<'_, Progress>, message: Message<'_>) {
        let progress = conn.data();
        let (first, received) = (progress.first, progress.received);
        if received == progress.sent {
            return self.base.fail("more came than was sent".to_owned());
        }
        let checked = self.payloads.check(first + u64::from(received), &message);
        if let Err(what) = checked {
            return self.base.fail(what);
        }
        progress.received += 1;
        if progress.timed == received {
            let now_ns = self.now_ns();
            self.base.note(now_ns - progress.timed_at_ns);
            // The next that is sent, which is now unless the run ends.
            progress.timed = progress.sent;
            progress.timed_at_ns = now_ns;
        }
        self.base.count += 1;
        if !self.base.is_ending() {
            self.send(conn);
        } else if progress.received == progress.sent {
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
    let mut report = Report {
        scenario: "echo".to_owned(),
        unit: "message".to_owned(),
        ..Report::default()
    };
    report.figure("depth", plan.depth.into(), "messages");
    let (times, ()) = load(plan, |run| {
        watch.measure(
            run,
            plan.connections as u64,
            plan.connections as u64,
            &mut report,
        )
    })?;
    report.latencies.push(Latency::new("round trip", &times));
    plan.target.amend(&mut report);
    Ok(report)
}

/// Makes the load while `conduct` conducts it.
///
/// # Errors
/// The first thing that was wrong.
pub fn load<R>(
    plan: &Plan,
    conduct: impl FnOnce(&Run) -> Result<R, String>,
) -> Result<(Histogram<u64>, R), String> {
    let payloads = Payloads::new(plan.kind, &plan.sizes)?;
    let work = |run: &Run, index| {
        let handler = Echo {
            base: Base::default(),
            payloads: payloads.clone(),
            epoch: Instant::now(),
        };
        let mut seat = Seat::new(run, index, &plan.target, handler)?;
        let share = seat.share(plan.connections);
        seat.open(&plan.target, share, Progress::new)?;
        if seat.finish(OPENING)? != ENDING {
            for id in seat.engine.handler().base.ids.clone() {
                seat.engine.with(id, |echo, conn| {
                    conn.data().timed_at_ns = echo.now_ns();
                    (0..plan.depth).for_each(|_| echo.send(conn));
                });
            }
        }
        seat.turn_until_ending()?;
        // The others close with their last reply.
        seat.close_where(|progress| progress.received == progress.sent);
        seat.turn_until_closed()?;
        Ok(seat.engine.handler().base.latency.clone())
    };
    let (times, conducted) = crew::assemble(plan.target.threads, work, conduct)?;
    Ok((crew::merge(&times), conducted))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use sockeye::BackendChoice;
    use sockeye::Connect;
    use sockeye::Server;

    use super::*;

    /// What a scenario says of a server that answers messages so.
    pub(crate) fn against<T>(
        on_message: impl Fn(&mut Context<'_, ()>, Message<'_>) + Clone + Send + Sync + 'static,
        scenario: impl Fn(Target) -> Result<T, String>,
    ) -> Result<T, String> {
        let server = Server::builder()
            .on_message(on_message)
            .threads(1)
            .bind("127.0.0.1:0")
            .and_then(Server::spawn)
            .expect("it starts");
        let url = format!("ws://{}/", server.local_addr());
        let outcome = scenario(Target::new(Connect::new(&url).expect("a URL")));
        server.shutdown();
        server.join().expect("it ends");
        outcome
    }

    fn run_against(
        on_message: impl Fn(&mut Context<'_, ()>, Message<'_>) + Clone + Send + Sync + 'static,
    ) -> Result<Report, String> {
        against(on_message, |target| {
            let plan = Plan {
                target,
                connections: 2,
                depth: 4,
                kind: Kind::Binary,
                sizes: Sizes::fixed(100),
            };
            run(&plan, &Watch::quiet(Duration::from_millis(300)))
        })
    }

    #[test]
    fn honest_server_passes_with_every_kind_size_and_thread() {
        let echo = |conn: &mut Context<'_, ()>, message: Message<'_>| {
            conn.send(message);
        };
        for kind in [Kind::Binary, Kind::Text, Kind::Mixed] {
            for (sizes, threads) in [("24", 1), ("24-3000", 2), ("64:9,20000:1", 3)] {
                let report = against(echo, |mut target| {
                    target.threads = threads;
                    target.backend = BackendChoice::Auto;
                    let plan = Plan {
                        target,
                        connections: 5,
                        depth: 3,
                        kind,
                        sizes: sizes.parse().expect("sizes"),
                    };
                    let mut watch = Watch::quiet(Duration::from_millis(30));
                    watch.server_pids = vec![std::process::id()];
                    run(&plan, &watch)
                });
                let report = report.expect("every reply is right");
                assert!(report.count >= 15, "{report}");
                assert!(report.latencies[0].count > 0, "{report}");
                let server = report.server.expect("it is this process");
                assert!(server.cpu.ns_per_unit > 0.0, "{report}");
            }
        }
    }

    /// What `run` says of a server that treats the message numbered 5 as `alter` does.
    fn caught(alter: fn(&mut Context<'_, ()>, &[u8])) -> String {
        let outcome = run_against(move |conn, message| {
            if message.payload()[..8] == 5_u64.to_be_bytes() {
                alter(conn, message.payload());
            } else {
                conn.send(message);
            }
        });
        outcome.expect_err("it cheats")
    }

    #[test]
    fn server_that_corrupts_is_caught() {
        let corrupts = caught(|conn, payload| {
            let mut payload = payload.to_vec();
            payload[50] ^= 1;
            conn.send(&payload);
        });
        assert!(corrupts.contains("altered"), "{corrupts}");
        let cuts = caught(|conn, payload| {
            conn.send(&payload[..20]);
        });
        assert!(cuts.contains("has 20 bytes"), "{cuts}");
        let says_text = caught(|conn, _| {
            conn.send("x".repeat(100).as_str());
        });
        assert!(says_text.contains("came where 0x5 was due"), "{says_text}");
    }

    #[test]
    fn server_that_drops_is_caught() {
        let drops = caught(|_, _| {});
        assert!(drops.contains("came where 0x5 was due"), "{drops}");
        let closes = caught(|conn, _| conn.terminate());
        assert!(closes.contains("a connection ended"), "{closes}");
    }

    #[test]
    fn server_that_doubles_is_caught() {
        let doubles = caught(|conn, payload| {
            conn.send(payload);
            conn.send(payload);
        });
        let wanted = "message 0x5 came where 0x6 was due";
        assert!(doubles.contains(wanted), "{doubles}");
    }

    #[test]
    fn server_that_reorders_is_caught() {
        let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let reorders = run_against(move |conn, message| {
            let mut kept = kept.lock().expect("no panic");
            if message.payload()[..8] == 5_u64.to_be_bytes() {
                *kept = message.payload().to_vec();
                return;
            }
            conn.send(message);
            if message.payload()[..8] == 6_u64.to_be_bytes() {
                conn.send(&kept[..]);
            }
        });
        let reorders = reorders.expect_err("it cheats");
        let wanted = "message 0x6 came where 0x5 was due";
        assert!(reorders.contains(wanted), "{reorders}");
    }

    #[test]
    fn server_that_mixes_connections_up_is_caught() {
        let last = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let mixes = run_against(move |conn, message| {
            let mut last = last.lock().expect("no panic");
            let other = std::mem::replace(&mut *last, message.payload().to_vec());
            if other.is_empty() || other[..4] == last[..4] {
                conn.send(message);
            } else {
                conn.send(&other);
            }
        });
        let mixes = mixes.expect_err("it cheats");
        assert!(mixes.contains("was due"), "{mixes}");
    }
}
