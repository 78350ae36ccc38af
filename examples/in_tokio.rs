//! An engine on a thread of tokio's, beside other tasks: it echoes, and a task of tokio's sends
//! everyone the time.
//!
//!     cargo run --release --example in_tokio -- --bind 127.0.0.1:9001

use std::error::Error;
use std::process::exit;
use std::time::Duration;
use std::time::SystemTime;

use sockeye::Engine;
use sockeye::Handler;
use sockeye::Remote;
use sockeye_examples::Cli;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

fn main() {
    let cli = Cli::read();
    if let Err(error) = run(&cli) {
        eprintln!("error: {error}");
        exit(1);
    }
}

fn run(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let builder = Engine::builder()
        .on_message(|conn, message| {
            conn.send(message);
        })
        .listen(cli.bind.clone());
    let builder = cli.apply(builder, sockeye::Limits::default().message_len_max);
    let mut engine = builder.engine()?;
    let addresses = engine.local_addrs();
    println!(
        "listening on {}, {}, threads: 1",
        addresses[0],
        engine.backend()
    );
    // One thread for both: the engine stays on the thread that has made it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let remote = engine.remote().clone();
    runtime.block_on(async {
        tokio::spawn(tell_the_time(remote));
        serve(&mut engine).await
    })
}

/// Runs the engine until it is shut down; other tasks of the thread run while it waits.
async fn serve<H: Handler>(engine: &mut Engine<H>) -> Result<(), Box<dyn Error>> {
    // SAFETY: the descriptor is this value's own, and stays open as long as it.
    let descriptor =
        unsafe { AsyncFd::register_with_interest(engine.descriptor()?, Interest::READABLE)? };
    while !engine.is_finished() {
        let wait = engine.prepare_wait();
        if wait.is_zero() {
            // There is more to do; the others have their turn as well.
            tokio::task::yield_now().await;
        } else if let Ok(ready) = tokio::time::timeout(wait, descriptor.readable()).await {
            // Before the turn: what comes during it is announced anew.
            ready?.clear_ready();
        }
        engine.turn(Some(Duration::ZERO))?;
    }
    Ok(())
}

/// Any task reaches the connections, of this thread and of others.
async fn tell_the_time(remote: Remote) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let text = now.unwrap_or_default().as_secs().to_string();
        if remote.broadcast(&*text).is_err() {
            return;
        }
    }
}
