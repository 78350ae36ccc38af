//! The command line that the examples share.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::path::PathBuf;
use std::process::exit;
use std::thread;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;
use sockeye::Address;
use sockeye::BackendChoice;
use sockeye::Builder;
use sockeye::Compression;
use sockeye::ConfigError;
use sockeye::Drain;
use sockeye::Handle;
use sockeye::MakeHandler;
use sockeye::Server;
use sockeye::tls::ServerTls;

/// Flags of an example server.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// Where to listen: HOST:PORT, [IPV6]:PORT or unix:PATH; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9001", value_parser = address)]
    pub bind: Address,
    /// Threads; one for each CPU by default.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// What moves the bytes: auto, uring or poll.
    #[arg(long, default_value = "auto", value_parser = backend)]
    pub backend: BackendChoice,
    /// Longest message in bytes.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_message: Option<u32>,
    /// Most connections at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: Option<u32>,
    /// Whether messages are compressed: off, shared, dedicated or dedicated:WINDOW_BITS:MEM.
    #[arg(long, value_name = "MODE", default_value = "off", value_parser = compression)]
    pub compression: Compression,
    /// PEM file with a certificate chain: listens with TLS (wss).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's private key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

fn address(text: &str) -> Result<Address, String> {
    text.parse()
        .map_err(|()| "wanted HOST:PORT, [IPV6]:PORT or unix:PATH".to_owned())
}

fn backend(text: &str) -> Result<BackendChoice, String> {
    text.parse()
}

fn compression(text: &str) -> Result<Compression, String> {
    text.parse()
}

impl Cli {
    /// Reads the command line, as [`read`] does.
    pub fn read() -> Self {
        read()
    }

    /// Puts the flags into a builder. `message_len_max` is that of the example where no flag
    /// says otherwise.
    pub fn apply<M: MakeHandler>(
        &self,
        mut builder: Builder<M>,
        message_len_max: usize,
    ) -> Builder<M> {
        let len = self.max_message.map_or(message_len_max, |len| len as usize);
        builder = builder
            .message_len_max(len)
            .backend(self.backend)
            .compression(self.compression);
        if let Some(threads) = self.threads {
            builder = builder.threads(threads.into());
        }
        if let Some(connections) = self.connections {
            builder = builder.connections_max(connections as usize);
        }
        builder
    }

    /// Starts the server, prints what runs, and serves until something fails.
    pub fn serve<M: MakeHandler>(&self, builder: Builder<M>) {
        let server = self.start_on(builder, false);
        server.join().unwrap_or_else(|error| fail(&error));
    }

    /// Starts the server and prints what runs; it listens where the flags say, or on what it has
    /// inherited. If that fails the process ends.
    pub fn start_on<M: MakeHandler>(&self, builder: Builder<M>, inherited: bool) -> Handle {
        let server = if inherited {
            builder.bind_inherited()
        } else {
            self.bind(builder)
        };
        let server = server.and_then(|server| server.spawn());
        let server = server.unwrap_or_else(|error| fail(&error));
        print_started(&server);
        server
    }
}

impl Cli {
    fn bind<M: MakeHandler>(&self, builder: Builder<M>) -> sockeye::Result<Server<M>> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(chain), Some(key)) => {
                let tls = ServerTls::from_pem_files(chain, key);
                builder.bind_tls(self.bind.clone(), &tls.map_err(ConfigError::from)?)
            }
            _ => builder.bind(self.bind.clone()),
        }
    }
}

/// Signals that end a server. They are held from here on: none that comes early is lost.
#[derive(Debug)]
pub struct EndSignals(Signals);

impl EndSignals {
    /// Holds SIGINT and SIGTERM. To be called before any thread is started.
    pub fn hold() -> Self {
        let signals = Signals::new([SIGINT, SIGTERM]);
        Self(signals.unwrap_or_else(|error| fail_with(&error)))
    }

    /// Serves until a signal comes. The first SIGTERM drains; any other ends the server at once.
    pub fn serve(mut self, server: Handle, drain: Drain) {
        if self.0.forever().next() == Some(SIGTERM) {
            eprintln!("draining {} connections", server.connections());
            server.drain(drain);
            while !server.is_finished() && self.0.pending().next().is_none() {
                thread::sleep(Duration::from_millis(50));
            }
            eprintln!("{} were told to go", server.drained());
        }
        server.shutdown();
        server.join().unwrap_or_else(|error| fail(&error));
    }
}

/// Reads a command line, and installs a logger: `RUST_LOG=sockeye=debug` shows why handshakes are
/// refused, by default there are only warnings. Bad input ends the process with one line and exit
/// code 2.
pub fn read<F: Parser>() -> F {
    let level = env_logger::Env::default().default_filter_or("warn");
    env_logger::init_from_env(level);
    F::try_parse().unwrap_or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print!("{error}");
            exit(0);
        }
        _ => {
            let text = error.to_string();
            let line: Vec<&str> = text.lines().map(str::trim).collect();
            let end = line.iter().position(|line| line.is_empty());
            eprintln!("{}", line[..end.unwrap_or(line.len())].join(" "));
            exit(2);
        }
    })
}

/// Ends the process with one line.
pub fn fail_with(error: &dyn Display) -> ! {
    eprintln!("error: {error}");
    exit(1);
}

fn fail(error: &sockeye::Error) -> ! {
    eprintln!("error: {error}");
    exit(match error {
        sockeye::Error::Config(_) => 2,
        _ => 1,
    });
}

fn print_started(server: &Handle) {
    println!(
        "listening on {}, {}, threads: {}",
        server.local_addr(),
        server.backend(),
        server.threads()
    );
}
