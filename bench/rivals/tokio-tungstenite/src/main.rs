//! `tokio-tungstenite` as an echo or broadcast server on one thread:
//! rival ADDRESS echo|broadcast [batched]. Batched replies are written together once nothing
//! more is ready to be read, which costs a read that finds nothing.

use std::cell::RefCell;
use std::env;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::SinkExt;
use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::task::spawn_local;
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

type Peers = Rc<RefCell<Vec<mpsc::UnboundedSender<Message>>>>;

/// The default read buffer of 128 KiB costs more than it saves: it is cleared for each read.
fn config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(16 * 1024)
}

async fn echo(stream: TcpStream) -> Result<(), Error> {
    let mut ws = accept_async_with_config(stream, Some(config())).await?;
    while let Some(message) = ws.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            ws.send(message).await?;
        }
    }
    Ok(())
}

async fn echo_batched(stream: TcpStream) -> Result<(), Error> {
    let mut ws = accept_async_with_config(stream, Some(config())).await?;
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

async fn broadcast(stream: TcpStream, peers: Peers) -> Result<(), Error> {
    let (mut sink, mut messages) = accept_async_with_config(stream, Some(config()))
        .await?
        .split();
    let (sender, mut inbox) = mpsc::unbounded_channel();
    peers.borrow_mut().push(sender);
    spawn_local(async move {
        while let Some(message) = inbox.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
    });
    while let Some(message) = messages.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            peers
                .borrow_mut()
                .retain(|peer| peer.send(message.clone()).is_ok());
        }
    }
    Ok(())
}

async fn serve(address: String, mode: String, is_batched: bool) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    let peers = Peers::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true)?;
        let peers = Rc::clone(&peers);
        let is_broadcast = mode == "broadcast";
        spawn_local(async move {
            let _ = if is_broadcast {
                broadcast(stream, peers).await
            } else if is_batched {
                echo_batched(stream).await
            } else {
                echo(stream).await
            };
        });
    }
}

fn main() -> std::io::Result<()> {
    let mut args = env::args().skip(1);
    let address = args.next().expect("an address");
    let mode = args.next().unwrap_or_default();
    let is_batched = args.next().is_some_and(|flag| flag == "batched");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    LocalSet::new().block_on(&runtime, serve(address, mode, is_batched))
}
