//! Connections that come and go: connect, one echo, the closing handshake, and again.

use std::time::Duration;

use sockeye::CloseCode;
use sockeye::Closed;
use sockeye::Connect;
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
    /// Connections at once.
    pub connections: usize,
    /// At least [`payload::PAYLOAD_LEN_MIN`].
    pub payload_len: usize,
    pub duration: Duration,
}

struct Churn {
    shared: SharedRef,
    connect: Connect,
    payload: Vec<u8>,
    next: u64,
}

impl Handler for Churn {
    /// The number of the connection's message, and whether its reply has come.
    type Data = (u64, bool);

    fn on_open(&mut self, conn: &mut Context<'_, Self::Data>) {
        conn.data().0 = self.next;
        payload::fill(&mut self.payload, self.next);
        self.next += 1;
        conn.send(&self.payload);
    }

    fn on_message(&mut self, conn: &mut Context<'_, Self::Data>, message: Message<'_>) {
        let (number, replied) = *conn.data();
        let checked = payload::check(message.payload(), number, self.payload.len());
        match checked {
            Ok(()) if replied => self
                .shared
                .borrow_mut()
                .fail(format!("reply {number} twice")),
            Ok(()) => {
                conn.data().1 = true;
                conn.close(CloseCode::NORMAL, "");
            }
            Err(what) => self.shared.borrow_mut().fail(what),
        }
    }

    fn on_close(&mut self, conn: &mut Context<'_, Self::Data>, closed: &Closed<'_>) {
        let mut shared = self.shared.borrow_mut();
        if !closed.clean || !conn.data().1 {
            return shared.fail(format!("a connection ended: {:?}", closed.cause));
        }
        shared.count += 1;
        if !shared.ending
            && let Err(error) = conn.connect(self.connect.clone(), (0, false))
        {
            shared.fail(error.to_string());
        }
    }
}

/// Runs the plan; counts whole cycles.
///
/// # Errors
/// The first thing that was wrong.
pub fn run(plan: &Plan) -> Result<Outcome, String> {
    assert!(plan.payload_len >= payload::PAYLOAD_LEN_MIN);
    let (connect, payload_len) = (plan.target.connect.clone(), plan.payload_len);
    let mut engine = load::engine(&plan.target, move || Churn {
        shared: SharedRef::default(),
        connect: connect.clone(),
        payload: vec![0; payload_len],
        next: 0,
    })?;
    let shared = SharedRef::clone(&engine.handler().shared);
    let watch = Watch::start();
    for _ in 0..plan.connections {
        let made = engine.connect(&plan.target.connect, (0, false));
        made.map_err(|error| error.to_string())?;
    }
    load::run(&mut engine, &shared, &watch, plan.duration)
}

#[cfg(test)]
mod tests {
    use sockeye::BackendChoice;
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
                message_len_max: 64,
            },
            connections: 4,
            payload_len: 64,
            duration: Duration::from_millis(50),
        });
        server.shutdown();
        server.join().expect("it ends");
        outcome
    }

    #[test]
    fn honest_server_passes_and_others_are_caught() {
        let outcome = run_against(|conn, message| {
            conn.send(message);
        });
        assert!(outcome.expect("every reply is right").count >= 4);
        let altered = run_against(|conn, message| {
            let mut payload = message.payload().to_vec();
            payload[20] ^= 1;
            conn.send(&payload);
        });
        let altered = altered.expect_err("it cheats");
        assert!(altered.contains("altered"), "{altered}");
        let closes = run_against(|conn, _| conn.close(CloseCode::GOING_AWAY, ""));
        let closes = closes.expect_err("it says nothing");
        assert!(closes.contains("a connection ended"), "{closes}");
    }
}
