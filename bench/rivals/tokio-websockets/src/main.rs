//! `tokio-websockets` as an echo server on one thread: rival ADDRESS echo.
//! Replies are written together once nothing more is ready to be read.

use std::env;

use futures_util::FutureExt;
use futures_util::SinkExt;
use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio_websockets::Config;
use tokio_websockets::Error;
use tokio_websockets::Limits;
use tokio_websockets::ServerBuilder;

async fn echo(stream: TcpStream) -> Result<(), Error> {
    let builder = ServerBuilder::new()
        .config(Config::default().frame_size(usize::MAX))
        .limits(Limits::unlimited());
    let (_, mut ws) = builder.accept(stream).await?;
    while let Some(message) = ws.next().await {
        let mut message = message?;
        loop {
            if message.is_text() || message.is_binary() {
                ws.feed(message).await?;
            }
            match ws.next().now_or_never() {
                Some(Some(next)) => message = next?,
                Some(None) => return Ok(()),
                None => break,
            }
        }
        ws.flush().await?;
    }
    Ok(())
}

async fn serve(address: String) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true)?;
        tokio::spawn(tokio::task::unconstrained(async move {
            let _ = echo(stream).await;
        }));
    }
}

fn main() -> std::io::Result<()> {
    let address = env::args().nth(1).expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(serve(address))
}
