//! A relay: for each connection that it accepts it makes one to another server, from inside the
//! callback, and passes messages both ways. Both ends live on the same thread.
//!
//!     cargo run --release --example relay -- --bind 127.0.0.1:9002 --to ws://127.0.0.1:9001/

use std::collections::HashMap;

use clap::Parser;
use sockeye::CloseCause;
use sockeye::CloseCode;
use sockeye::Closed;
use sockeye::ConnId;
use sockeye::Connect;
use sockeye::Context;
use sockeye::Handler;
use sockeye::Message;
use sockeye::OwnedMessage;
use sockeye::Server;
use sockeye_examples::Cli;

/// What may come before the far end is there.
const WAITING_MAX: usize = 16;

/// Flags of a server, and where to pass messages on to.
#[derive(Clone, Debug, Parser)]
#[command(version)]
struct Flags {
    #[command(flatten)]
    cli: Cli,
    /// The server behind it: ws://…, wss://… or ws+unix://….
    #[arg(long, value_name = "URL", value_parser = connect)]
    to: Connect,
}

fn connect(url: &str) -> Result<Connect, String> {
    // The host is looked up once, here: no callback may wait for it.
    let connect = Connect::new(url).and_then(Connect::resolve);
    connect.map_err(|error| error.to_string())
}

/// One thread's relay.
struct Relay {
    to: Connect,
    /// By accepted connection.
    far_ends: HashMap<ConnId, FarEnd>,
}

/// The connection that was made for an accepted one.
enum FarEnd {
    /// It is being made; what came meanwhile.
    Waiting(Vec<OwnedMessage>),
    Open(ConnId),
}

impl Handler for Relay {
    /// The accepted connection that this one was made for; none for an accepted one.
    type Data = Option<ConnId>;

    fn on_open(&mut self, conn: &mut Context<'_, Self::Data>) {
        let id = conn.id();
        match *conn.data() {
            None => {
                self.far_ends.insert(id, FarEnd::Waiting(Vec::new()));
                if let Err(error) = conn.connect(self.to.clone(), Some(id)) {
                    eprintln!("error: {error}");
                    conn.close(CloseCode::BAD_GATEWAY, "");
                }
            }
            Some(near) => match self.far_ends.insert(near, FarEnd::Open(id)) {
                Some(FarEnd::Waiting(messages)) => {
                    for message in &messages {
                        conn.send(message);
                    }
                }
                // The accepted one has gone.
                _ => {
                    self.far_ends.remove(&near);
                    conn.close(CloseCode::GOING_AWAY, "");
                }
            },
        }
    }

    fn on_message(&mut self, conn: &mut Context<'_, Self::Data>, message: Message<'_>) {
        let other = match (*conn.data(), self.far_ends.get_mut(&conn.id())) {
            (Some(near), _) => near,
            (None, Some(FarEnd::Open(far))) => *far,
            (None, Some(FarEnd::Waiting(messages))) if messages.len() < WAITING_MAX => {
                return messages.push(message.to_owned_message());
            }
            (None, _) => return conn.close(CloseCode::TRY_AGAIN_LATER, ""),
        };
        if conn.remote().send(other, message).is_err() {
            conn.close(CloseCode::TRY_AGAIN_LATER, "");
        }
    }

    fn on_close(&mut self, conn: &mut Context<'_, Self::Data>, closed: &Closed<'_>) {
        let code = match &closed.cause {
            CloseCause::Closed { code, .. } => code.unwrap_or(CloseCode::NORMAL),
            CloseCause::NotOpened(error) => {
                eprintln!("error: {error}");
                CloseCode::BAD_GATEWAY
            }
            _ => CloseCode::GOING_AWAY,
        };
        let other = match (*conn.data(), self.far_ends.remove(&conn.id())) {
            (Some(near), _) => near,
            (None, Some(FarEnd::Open(far))) => far,
            (None, _) => return,
        };
        // If it is full, or has stopped, the other end goes with it.
        let _ = conn.remote().close(other, code, "");
    }
}

fn main() {
    let flags: Flags = sockeye_examples::read();
    let to = flags.to;
    let builder = Server::builder().handler(move |_| Relay {
        to: to.clone(),
        far_ends: HashMap::new(),
    });
    flags.cli.serve(flags.cli.apply(builder, 64 * 1024));
}
