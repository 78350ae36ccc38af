//! A client for the command line: sends each line that it reads, and prints what comes.
//!
//!     cargo run --release --example client -- ws://127.0.0.1:9001/

use std::io;
use std::io::BufRead;
use std::process::exit;
use std::time::Duration;
use std::time::Instant;

use clap::Parser;
use sockeye::CloseCode;
use sockeye::Connect;
use sockeye::client;
use sockeye::client::Error;
use sockeye::tls::ClientTls;

/// Sends each line of the standard input as a text message, and prints each answer.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// ws://HOST[:PORT]/PATH, wss://…, or ws+unix:///SOCKET:/PATH.
    url: String,
    /// PEM file with the certificate authorities to trust, instead of the system's.
    #[arg(long, value_name = "FILE")]
    authorities: Option<String>,
    /// A header of the request, NAME:VALUE; may be repeated.
    #[arg(long, value_name = "NAME:VALUE")]
    header: Vec<String>,
    /// A subprotocol to offer; may be repeated, the preferred one first.
    #[arg(long, value_name = "NAME")]
    subprotocol: Vec<String>,
    /// http://…, socks5://… or socks5h://…, with USER:PASSWORD@ if it wants them.
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// How long to wait for an answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait: u64,
}

fn main() {
    if let Err(error) = run(&sockeye_examples::read::<Cli>()) {
        eprintln!("error: {error}");
        exit(1);
    }
}

fn run(cli: &Cli) -> Result<(), Box<dyn std::error::Error>> {
    let mut connect = Connect::new(&cli.url)?.subprotocols(&cli.subprotocol);
    for header in &cli.header {
        let (name, value) = header.split_once(':').ok_or("a header is NAME:VALUE")?;
        connect = connect.header(name.trim(), value.trim());
    }
    if let Some(file) = &cli.authorities {
        connect = connect.tls(ClientTls::from_roots_file(file)?);
    }
    let mut builder = client::Builder::new(connect);
    builder = match &cli.proxy {
        Some(proxy) => builder.proxy(proxy)?,
        None => builder.proxy_from_environment()?,
    };
    let mut ws = builder.connect()?;
    for line in io::stdin().lock().lines() {
        ws.write_message(&line?)?;
        ws.set_read_deadline(Some(Instant::now() + Duration::from_secs(cli.wait)));
        match ws.read_message() {
            Ok(message) => match message.as_str() {
                Some(text) => println!("{text}"),
                None => println!("{} bytes", message.payload().len()),
            },
            Err(error @ Error::Closed(_)) => {
                println!("{error}");
                return Ok(());
            }
            Err(error) if error.is_timeout() => println!("nothing for {} s", cli.wait),
            Err(error) => return Err(error.into()),
        }
    }
    ws.close(CloseCode::NORMAL, "")?;
    Ok(())
}
