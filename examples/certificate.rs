//! Makes a certificate to try TLS with: for this machine, signed by itself, trusted by nobody.
//!
//!     cargo run --release --example certificate -- --out /tmp/tls
//!     cargo run --release --example echo -- --tls-cert /tmp/tls/chain.pem --tls-key /tmp/tls/key.pem
//!     cargo run --release --example client -- --authorities /tmp/tls/chain.pem wss://localhost:9001/

use std::fs;
use std::path::PathBuf;
use std::process::exit;

use clap::Parser;

/// Writes chain.pem and key.pem.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// The folder to write to; made if it is not there.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Names and addresses that the certificate is for.
    #[arg(default_values = ["localhost", "127.0.0.1", "::1"])]
    names: Vec<String>,
}

fn main() {
    let cli: Cli = sockeye_examples::read();
    if let Err(error) = write(&cli) {
        eprintln!("error: {error}");
        exit(1);
    }
}

fn write(cli: &Cli) -> Result<(), Box<dyn std::error::Error>> {
    let made = rcgen::generate_simple_self_signed(cli.names.clone())?;
    fs::create_dir_all(&cli.out)?;
    fs::write(cli.out.join("chain.pem"), made.cert.pem())?;
    fs::write(cli.out.join("key.pem"), made.signing_key.serialize_pem())?;
    println!("wrote chain.pem and key.pem in {}", cli.out.display());
    Ok(())
}
