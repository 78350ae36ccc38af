//! A chat: a page, and a WebSocket on the same port; every message goes to everyone.
//!
//!     cargo run --release --example chat -- --bind 127.0.0.1:9001
//!
//! Then open http://127.0.0.1:9001/ in two windows. The engine's default origin policy lets
//! only this page's own host connect.

use std::time::Duration;

use sockeye::CloseCode;
use sockeye::Context;
use sockeye::Drain;
use sockeye::Handler;
use sockeye::Limits;
use sockeye::Message;
use sockeye::OpeningHandshake;
use sockeye::Request;
use sockeye::Response;
use sockeye::Server;
use sockeye::Upgrade;
use sockeye_examples::Cli;
use sockeye_examples::EndSignals;

const PAGE: &str = include_str!("chat.html");

/// The longest name that is shown.
const NAME_CHARS_MAX: usize = 32;

struct Chat;

/// What the server knows of a connection.
#[derive(Default)]
struct Guest {
    name: String,
}

impl Handler for Chat {
    type Data = Guest;

    fn on_http(&mut self, request: &Request<'_>) -> Response {
        match request.path() {
            "/" => Response::new(200).body("text/html; charset=utf-8", PAGE),
            "/health" => Response::text(200),
            _ => Response::text(404),
        }
    }

    fn on_upgrade(&mut self, request: &mut OpeningHandshake<'_>) -> Upgrade<Guest> {
        if request.request().path() != "/chat" {
            return Upgrade::reject(Response::text(404));
        }
        Upgrade::accept(Guest::default())
    }

    fn on_message(&mut self, conn: &mut Context<'_, Guest>, message: Message<'_>) {
        let Some(text) = message.as_str() else {
            return;
        };
        if conn.data().name.is_empty() {
            // The first message of a connection is its name.
            let name: String = text.trim().chars().take(NAME_CHARS_MAX).collect();
            if !name.is_empty() {
                tell(conn, &format!("* {name} is here"));
                conn.data().name = name;
            }
            return;
        }
        let line = format!("{}: {text}", conn.data().name);
        tell(conn, &line);
    }

    fn on_close(&mut self, conn: &mut Context<'_, Guest>, _closed: &sockeye::Closed<'_>) {
        if !conn.data().name.is_empty() {
            let line = format!("* {} has left", conn.data().name);
            tell(conn, &line);
        }
    }
}

/// Sends a line to everyone.
fn tell(conn: &mut Context<'_, Guest>, line: &str) {
    if conn.remote().broadcast(line).is_err() {
        conn.send("* the server is too busy, say it again");
    }
}

fn main() {
    let cli = Cli::read();
    let builder = Server::builder().handler(|_thread| Chat);
    let builder = cli.apply(builder, Limits::default().message_len_max);
    // On SIGTERM guests are let go spread over a few seconds: their pages connect again.
    let signals = EndSignals::hold();
    let server = cli.start_on(builder, false);
    let drain = Drain::new()
        .window(Duration::from_secs(3))
        .deadline(Duration::from_secs(10))
        .close(CloseCode::SERVICE_RESTART, "restarting");
    signals.serve(server, drain);
}
