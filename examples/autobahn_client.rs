//! The echo client that the Autobahn test suite drives (its fuzzingserver): the blocking client,
//! or the reactor's. Its limits are raised to what the suite sends.
//!
//!     cargo run --release --example autobahn_client -- --client reactor ws://127.0.0.1:9001

use std::process::exit;
use std::time::Duration;

use clap::Parser;
use clap::ValueEnum;
use sockeye::BackendChoice;
use sockeye::Closed;
use sockeye::Compression;
use sockeye::Connect;
use sockeye::Context;
use sockeye::Engine;
use sockeye::Handler;
use sockeye::Limits;
use sockeye::Message;
use sockeye::client;

/// Echoes every message of every case.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Which client.
    #[arg(long, value_enum, default_value_t = Client::Blocking)]
    client: Client,
    /// What moves the reactor's bytes: auto, uring or poll.
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    /// Whether compression is offered: off, shared, dedicated or dedicated:WINDOW_BITS:MEM.
    #[arg(long, value_name = "MODE", default_value = "off")]
    compression: Compression,
    /// How the client is called in the report.
    #[arg(long, default_value = "sockeye")]
    agent: String,
    /// Where the suite listens: ws://127.0.0.1:9001.
    url: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Client {
    Blocking,
    Reactor,
}

type Failure = Box<dyn std::error::Error>;

fn main() {
    let cli: Cli = sockeye_examples::read();
    if let Err(error) = run(&cli) {
        eprintln!("error: {error}");
        exit(1);
    }
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.message_len_max = 16 << 20;
    limits.output_len_max = limits.message_len_max + 16;
    limits.fragment_count_max = 1 << 18;
    limits
}

fn builder(url: &str, compression: Compression) -> Result<client::Builder, client::Error> {
    let connect = Connect::new(url)?.compression(compression);
    Ok(client::Builder::new(connect).limits(limits()))
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let mut ws = builder(&format!("{}/getCaseCount", cli.url), Compression::Off)?.connect()?;
    let cases: u32 = ws.read_message()?.as_str().unwrap_or_default().parse()?;
    drop(ws);
    let urls = (1..=cases).map(|case| {
        let Cli { url, agent, .. } = cli;
        format!("{url}/runCase?case={case}&agent={agent}")
    });
    match cli.client {
        Client::Blocking => {
            for url in urls {
                echo_blocking(&url, cli.compression)?;
            }
        }
        Client::Reactor => echo_on_reactor(urls, cli)?,
    }
    let url = format!("{}/updateReports?agent={}", cli.url, cli.agent);
    let mut ws = builder(&url, Compression::Off)?.connect()?;
    match ws.read_message() {
        Ok(_) | Err(client::Error::Closed(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn echo_blocking(url: &str, compression: Compression) -> Result<(), Failure> {
    let mut ws = builder(url, compression)?.connect()?;
    let mut payload = Vec::new();
    loop {
        payload.clear();
        let written = match ws.read_into(&mut payload) {
            Ok(true) => ws.write_message(std::str::from_utf8(&payload)?),
            Ok(false) => ws.write_message(&payload),
            Err(error) => Err(error),
        };
        if written.is_err() {
            // However the case ended: the suite knows how it should have.
            return Ok(());
        }
    }
}

struct Echo;

impl Handler for Echo {
    type Data = ();

    fn on_message(&mut self, conn: &mut Context<'_, ()>, message: Message<'_>) {
        conn.send(message);
    }

    fn on_close(&mut self, _: &mut Context<'_, ()>, closed: &Closed<'_>) {
        if let sockeye::CloseCause::NotOpened(error) = &closed.cause {
            eprintln!("a case did not open: {error}");
        }
    }
}

fn echo_on_reactor(urls: impl Iterator<Item = String>, cli: &Cli) -> Result<(), Failure> {
    let mut engine = Engine::builder()
        .handler(|_| Echo)
        .limits(limits())
        .backend(cli.backend)
        .engine()?;
    for url in urls {
        let connect = Connect::new(&url)?.compression(cli.compression);
        engine.connect(&connect, ())?;
        while engine.connections() > 0 {
            engine.turn(Some(Duration::from_secs(1)))?;
        }
    }
    Ok(())
}
