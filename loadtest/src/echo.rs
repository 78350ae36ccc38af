//! The closed echo loop: each connection keeps so many messages under way.

use std::time::Duration;

use sockeye::CloseCode;
use sockeye::Closed;
use sockeye::Context;
use sockeye::Handler;
use sockeye::Message;

use crate::load;
use crate::load::Outcome;
use crate::load::SharedRef;
use crate::load::Target;
use crate::load::Watch;
use crate::payload;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    pub target: Target,
    pub connections: usize,
    pub depth: usize,
    /// At least [`payload::PAYLOAD_LEN_MIN`].
    pub payload_len: usize,
    pub duration: Duration,
}

/// One connection.
#[derive(Debug, Default)]
struct Progress {
    sent: u64,
    received: u64,
}

struct Echo {
    shared: SharedRef,
    payload: Vec<u8>,
}

impl Handler for Echo {
    type Data = Progress;

    fn on_open(&mut self, _: &mut Context<'_, Progress>) {
        self.shared.borrow_mut().opened += 1;
    }

    fn on_message(&mut self, conn: &mut Context<'_, Progress>, message: Message<'_>) {
        let mut shared = self.shared.borrow_mut();
        let progress = conn.data();
        // The first messages are the same on every connection, and come from outside.
        progress.sent = progress.sent.max(shared.primed);
        let checked = payload::check(message.payload(), progress.received, self.payload.len());
        if let Err(what) = checked {
            return shared.fail(what);
        }
        if message.is_text() {
            return shared.fail(format!("reply {} is text", progress.received));
        }
        progress.received += 1;
        shared.count += 1;
        if !shared.ending {
            payload::fill(&mut self.payload, progress.sent);
            progress.sent += 1;
            conn.send(&self.payload);
        } else if progress.received == progress.sent {
            conn.close(CloseCode::NORMAL, "");
        }
    }

    fn on_close(&mut self, _: &mut Context<'_, Progress>, closed: &Closed<'_>) {
        self.shared.borrow_mut().closed(closed);
    }
}

/// Runs the plan.
///
/// # Errors
/// The first thing that was wrong: a reply that was altered, lost, doubled or out of order, or
/// a connection that ended.
pub fn run(plan: &Plan) -> Result<Outcome, String> {
    assert!(plan.payload_len >= payload::PAYLOAD_LEN_MIN);
    let payload_len = plan.payload_len;
    let mut engine = load::engine(&plan.target, move || Echo {
        shared: SharedRef::default(),
        payload: vec![0; payload_len],
    })?;
    let shared = SharedRef::clone(&engine.handler().shared);
    let none = Progress::default;
    load::open(&mut engine, &plan.target, &shared, plan.connections, none)?;

    let watch = Watch::start();
    shared.borrow_mut().primed = plan.depth as u64;
    let mut payload = vec![0; payload_len];
    for number in 0..plan.depth as u64 {
        payload::fill(&mut payload, number);
        let broadcast = engine.remote().broadcast(&payload);
        broadcast.map_err(|error| error.to_string())?;
    }
    load::run(&mut engine, &shared, &watch, plan.duration)
}

#[cfg(test)]
mod tests {
    use sockeye::BackendChoice;
    use sockeye::Connect;
    use sockeye::Server;

    use super::*;

    fn run_against(
        on_message: impl Fn(&mut Context<'_, ()>, Message<'_>) + Clone + Send + Sync + 'static,
    ) -> Result<Outcome, String> {
        let server = Server::builder()
            .on_message(on_message)
            .threads(1)
            .bind("127.0.0.1:0")
            .expect("a free port")
            .spawn()
            .expect("it starts");
        let url = format!("ws://{}/", server.local_addr());
        let outcome = run(&Plan {
            target: Target {
                connect: Connect::new(&url).expect("a URL"),
                backend: BackendChoice::Auto,
                message_len_max: 100,
            },
            connections: 2,
            depth: 4,
            payload_len: 100,
            duration: Duration::from_millis(50),
        });
        server.shutdown();
        server.join().expect("it ends");
        outcome
    }

    #[test]
    fn honest_server_passes() {
        let outcome = run_against(|conn, message| {
            conn.send(message);
        });
        assert!(outcome.expect("every reply is right").count >= 8);
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
    fn cheating_servers_are_caught() {
        let altered = caught(|conn, payload| {
            let mut payload = payload.to_vec();
            payload[50] ^= 1;
            conn.send(&payload);
        });
        assert!(altered.contains("altered"), "{altered}");
        let doubled = caught(|conn, payload| {
            conn.send(payload);
            conn.send(payload);
        });
        assert!(
            doubled.contains("reply 5 came where 6 was due"),
            "{doubled}"
        );
        let lost = caught(|_, _| {});
        assert!(lost.contains("came where 5 was due"), "{lost}");
        let cut = caught(|conn, payload| {
            conn.send(&payload[..20]);
        });
        assert!(cut.contains("has 20 bytes"), "{cut}");
        let text = caught(|conn, _| {
            conn.send("x".repeat(100).as_str());
        });
        assert!(text.contains("came where 5 was due"), "{text}");
        let closed = caught(|conn, _| conn.terminate());
        assert!(closed.contains("a connection ended"), "{closed}");
    }
}
