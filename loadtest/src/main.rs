//! A load generator for WebSocket servers that checks every reply it gets.
//!
//!     cargo run --release -p sockeye-loadtest -- echo ws://127.0.0.1:9001/ --depth 16
//!
//! It runs on sockeye's own reactor. Each message has a number and an Adler-32 checksum; a
//! reply that is wrong, lost, doubled or out of order fails the run. With `--server-pid` the
//! server's CPU time and memory are reported; a result is called invalid where the generator
//! was the limit.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::io;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use sockeye::BackendChoice;
use sockeye::Compression;
use sockeye::Connect;
use sockeye::tls::ClientTls;
use sockeye_loadtest::broadcast;
use sockeye_loadtest::churn;
use sockeye_loadtest::conformance;
use sockeye_loadtest::conformance::Verdict;
use sockeye_loadtest::connections;
use sockeye_loadtest::crew::Target;
use sockeye_loadtest::drain;
use sockeye_loadtest::echo;
use sockeye_loadtest::html;
use sockeye_loadtest::payload::Kind;
use sockeye_loadtest::rate;
use sockeye_loadtest::report::Report;
use sockeye_loadtest::sizes::Sizes;
use sockeye_loadtest::slow;
use sockeye_loadtest::watch::Watch;

/// Connections from one source address: a port is found at once while few of them are taken.
const CONNECTIONS_PER_SOURCE: usize = 2_000;

#[derive(Clone, Debug, Parser)]
#[command(version, about = "Loads a WebSocket server and checks every reply")]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Clone, Debug, Subcommand)]
enum Scenario {
    /// Each connection keeps so many messages under way, and sends another for each reply.
    Echo {
        #[command(flatten)]
        common: Common,
        /// Messages that each connection has under way.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
        depth: u32,
    },
    /// Messages are sent when they are due; their latency counts from that moment.
    Rate {
        #[command(flatten)]
        common: Common,
        /// Messages per second, of all connections together.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
        rate: u32,
    },
    /// Opens very many connections and holds them; compares some active ones alone and among
    /// them.
    Connections {
        #[command(flatten)]
        common: Common,
        /// Connections that are to be held (the same as --connections).
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
        count: Option<u32>,
        /// Those of them that echo all the time.
        #[arg(long, default_value_t = 64)]
        active: u32,
        /// Seconds that all idle.
        #[arg(long, default_value_t = 5)]
        idle: u16,
    },
    /// A server that sends every message to all of its connections.
    Broadcast {
        #[command(flatten)]
        common: Common,
        /// Messages that are published at once, before the next are.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
        burst: u32,
        /// Receivers besides, that never read.
        #[arg(long, default_value_t = 0)]
        stalled: u16,
    },
    /// A server that lets its clients go when it is sent SIGTERM: when each is told, and how.
    Drain {
        #[command(flatten)]
        common: Common,
        /// Seconds over which the server lets its clients go.
        #[arg(long, default_value_t = 5.0, value_parser = seconds)]
        window: f64,
    },
    /// Each connection is made, echoes one message, and closes; another takes its place.
    Churn {
        #[command(flatten)]
        common: Common,
    },
    /// Clients that read slowly or not at all, beside others that echo.
    Slow {
        #[command(flatten)]
        common: Common,
        /// Messages that each of the others has under way.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
        depth: u32,
        /// The share of the connections that is slow, in percent.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=99))]
        slow_percent: u8,
        /// Bytes that each slow client reads in a second; 0 for none.
        #[arg(long, default_value_t = 0)]
        read_per_second: u32,
        /// Bytes that each slow client sends in a second, if the server takes them.
        #[arg(long, default_value_t = 1_000_000)]
        write_per_second: u32,
    },
    /// Byte-exact cases for an echo server, beside what the RFCs say.
    Conformance {
        #[command(flatten)]
        place: Place,
        /// Close codes to try: FIRST-LAST.
        #[arg(long, default_value = "0-65535", value_parser = range)]
        codes: (u16, u16),
        /// Fails where the server does what an RFC only allows.
        #[arg(long)]
        strict: bool,
    },
}

/// Where the server is.
#[derive(Clone, Debug, Args)]
struct Place {
    /// The server, on this machine: ws://…, wss://… or ws+unix://….
    #[arg(value_parser = on_this_machine)]
    url: Connect,
    /// PEM file with the certificate authorities to trust.
    #[arg(long, value_name = "FILE")]
    authorities: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
struct Common {
    #[command(flatten)]
    place: Place,
    /// Connections at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    connections: u32,
    /// Payload bytes of a message: LEN, MIN-MAX, or LEN:WEIGHT,LEN:WEIGHT,….
    #[arg(long, default_value = "64")]
    size: Sizes,
    /// What messages consist of.
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// Compression that is offered: off, shared, dedicated or dedicated:WINDOW_BITS:MEM. Messages
    /// of 512 bytes and more (128 with context takeover) are then compressed.
    #[arg(long, value_name = "MODE", default_value = "off")]
    compression: Compression,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Seconds before that.
    #[arg(long, default_value_t = 0.5, value_parser = seconds)]
    warm_up: f64,
    /// Threads that make the load.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// What moves the generator's bytes: auto, uring or poll.
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    /// Source addresses, from 127.0.1.1 on; as many as are needed by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    sources: Option<u32>,
    /// A header of the request, NAME:VALUE; may be repeated.
    #[arg(long, value_parser = header)]
    header: Vec<(String, String)>,
    /// The server's process, for its CPU time and memory; may be repeated.
    #[arg(long)]
    server_pid: Vec<u32>,
    /// CPUs that the server can use: at its limit it keeps them all busy.
    #[arg(long, default_value_t = 1.0)]
    server_cpus: f64,
    /// Writes the report as JSON; - for standard output, in place of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Says nothing while it runs.
    #[arg(long)]
    quiet: bool,
}

fn on_this_machine(text: &str) -> Result<Connect, String> {
    let connect = Connect::new(text).and_then(Connect::resolve);
    let connect = connect.map_err(|error| error.to_string())?;
    let is_loopback = |ip: IpAddr| ip.is_loopback();
    if connect.is_unix() || connect.ip().is_some_and(is_loopback) {
        Ok(connect)
    } else {
        Err("only servers on this machine are loaded".to_owned())
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("wanted seconds, at most 3600".to_owned()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("wanted NAME:VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').ok_or("wanted FIRST-LAST")?;
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err("wanted FIRST-LAST, at most 65535".to_owned()),
    }
}

impl Place {
    fn tls(&self) -> Result<Option<ClientTls>, String> {
        let Some(file) = &self.authorities else {
            return Ok(None);
        };
        let tls = ClientTls::from_roots_file(file);
        tls.map(Some).map_err(|error| error.to_string())
    }

    fn server(&self) -> Result<conformance::Server, String> {
        let tls = match (self.url.is_secure(), self.tls()?) {
            (false, _) => None,
            (true, Some(tls)) => Some(tls),
            (true, None) => Some(ClientTls::system().map_err(|error| error.to_string())?),
        };
        let address = match self.url.ip() {
            Some(ip) => conformance::Address::Ip((ip, self.url.port()).into()),
            None => conformance::Address::Unix(self.url.unix_path().ok_or("no address")?.into()),
        };
        Ok(conformance::Server {
            address,
            host: self.url.authority().to_owned(),
            target: self.url.target_path().to_owned(),
            tls: tls.map(|tls| (tls, self.url.host().to_owned())),
        })
    }
}

impl Common {
    /// The target of so many connections.
    fn target(&self, connections: usize) -> Result<Target, String> {
        let mut connect = self.place.url.clone().compression(self.compression);
        if let Some(tls) = self.place.tls()? {
            connect = connect.tls(tls);
        }
        for (name, value) in &self.header {
            connect = connect.header(name, value);
        }
        let needed = connections.div_ceil(CONNECTIONS_PER_SOURCE);
        let sources = self.sources.map_or(needed, |sources| sources as usize);
        let is_ipv4 = connect.ip().is_some_and(|ip| ip.is_ipv4());
        let connects = if sources > 1 && is_ipv4 {
            let first = Ipv4Addr::new(127, 0, 1, 1).to_bits();
            let source = |index| Ipv4Addr::from_bits(first + index as u32);
            (0..sources)
                .map(|index| connect.clone().source(source(index).into()))
                .collect()
        } else {
            vec![connect.clone()]
        };
        Ok(Target {
            connects,
            backend: self.backend,
            connections,
            threads: usize::from(self.threads).min(connections),
            message_len_max: self.size.max(),
            compressed: Arc::default(),
        })
    }

    fn watch(&self) -> Watch {
        Watch {
            server_pids: self.server_pid.clone(),
            server_cpus: self.server_cpus,
            threads: self.threads.into(),
            warm_up: Duration::from_secs_f64(self.warm_up),
            duration: Duration::from_secs_f64(self.seconds),
            quiet: self.quiet,
        }
    }

    /// Says what came of it.
    fn tell(&self, mut report: Report) -> Result<(), String> {
        report.target = self.place.url.to_string();
        report.command = env::args().collect();
        if let Some(program) = report.command.first_mut() {
            "sockeye-loadtest".clone_into(program);
        }
        let failed = |error: io::Error| error.to_string();
        let to_stdout = self
            .json
            .as_ref()
            .is_some_and(|file| file.as_os_str() == "-");
        if let Some(file) = &self.json {
            let json = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
            if to_stdout {
                writeln!(io::stdout(), "{json}").map_err(failed)?;
            } else {
                fs::write(file, json).map_err(failed)?;
            }
        }
        if let Some(file) = &self.html {
            fs::write(file, html::page(&report)?).map_err(failed)?;
        }
        if !to_stdout {
            write!(io::stdout(), "{report}").map_err(failed)?;
        }
        Ok(())
    }
}

fn run(cli: Cli) -> Result<(), String> {
    match cli.scenario {
        Scenario::Echo { common, depth } => {
            let plan = echo_plan(&common, common.connections as usize, depth)?;
            common.tell(echo::run(&plan, &common.watch())?)
        }
        Scenario::Rate { common, rate } => {
            let connections = common.connections as usize;
            let plan = rate::Plan {
                target: common.target(connections)?,
                connections,
                per_second: rate.into(),
                kind: common.kind,
                sizes: common.size.clone(),
            };
            common.tell(rate::run(&plan, &common.watch())?)
        }
        Scenario::Connections {
            common,
            count,
            active,
            idle,
        } => {
            let connections = count.unwrap_or(common.connections) as usize;
            let plan = connections::Plan {
                target: common.target(connections)?,
                connections,
                active: (active as usize).min(connections),
                idle: Duration::from_secs(idle.into()),
                kind: common.kind,
                sizes: common.size.clone(),
            };
            common.tell(connections::run(&plan, &common.watch())?)
        }
        Scenario::Broadcast {
            common,
            burst,
            stalled,
        } => {
            let connections = common.connections as usize;
            let plan = broadcast::Plan {
                target: common.target(connections)?,
                connections,
                burst: burst.into(),
                stalled: stalled.into(),
                kind: common.kind,
                sizes: common.size.clone(),
            };
            common.tell(broadcast::run(&plan, &common.watch())?)
        }
        Scenario::Drain { common, window } => {
            let connections = common.connections as usize;
            let &[pid] = &common.server_pid[..] else {
                return Err("wanted one --server-pid".to_owned());
            };
            let plan = drain::Plan {
                target: common.target(connections)?,
                connections,
                pid,
                window: Duration::from_secs_f64(window),
            };
            common.tell(drain::run(&plan)?)
        }
        Scenario::Churn { common } => {
            let connections = common.connections as usize;
            let plan = churn::Plan {
                target: common.target(connections)?,
                connections,
                kind: common.kind,
                sizes: common.size.clone(),
            };
            common.tell(churn::run(&plan, &common.watch())?)
        }
        Scenario::Slow {
            common,
            depth,
            slow_percent,
            read_per_second,
            write_per_second,
        } => {
            let slow = common.connections as usize * usize::from(slow_percent) / 100;
            let others = (common.connections as usize - slow).max(1);
            let plan = slow::Plan {
                echo: echo_plan(&common, others, depth)?,
                slow,
                read_per_second: read_per_second as usize,
                write_per_second: write_per_second as usize,
            };
            common.tell(slow::run(&plan, &common.watch())?)
        }
        Scenario::Conformance {
            place,
            codes,
            strict,
        } => {
            let table = conformance::run(&place.server()?, codes.0..=codes.1);
            let written = table.write(&mut io::stdout().lock());
            written.map_err(|error| error.to_string())?;
            let wrong = table.count(Verdict::Wrong);
            let allowed = table.count(Verdict::Allowed);
            if wrong > 0 || strict && allowed > 0 {
                return Err("the server does not conform".to_owned());
            }
            Ok(())
        }
    }
}

fn echo_plan(common: &Common, connections: usize, depth: u32) -> Result<echo::Plan, String> {
    Ok(echo::Plan {
        target: common.target(connections)?,
        connections,
        depth,
        kind: common.kind,
        sizes: common.size.clone(),
    })
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
