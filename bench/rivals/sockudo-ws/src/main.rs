//! `sockudo-ws` as an echo server on one thread: rival ADDRESS echo.
//! Replies are written together once nothing more is ready to be read.

use std::env;

use bytes::BytesMut;
use futures_util::FutureExt;
use futures_util::SinkExt;
use futures_util::StreamExt;
use sockudo_ws::Config;
use sockudo_ws::Error;
use sockudo_ws::WebSocketStream;
use sockudo_ws::handshake;
use sockudo_ws::protocol::Message;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

async fn upgrade(stream: &mut TcpStream) -> Result<(), Error> {
    let mut head = BytesMut::with_capacity(4096);
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(Error::ConnectionClosed);
        }
        if let Some((request, _)) = handshake::parse_request(&head)? {
            let key = handshake::generate_accept_key(request.key);
            let response = handshake::build_response(&key, None, None);
            return Ok(stream.write_all(&response).await?);
        }
    }
}

async fn echo(mut stream: TcpStream) -> Result<(), Error> {
    upgrade(&mut stream).await?;
    let mut ws = WebSocketStream::server(stream, Config::default());
    while let Some(message) = ws.next().await {
        let mut message = message?;
        loop {
            match message {
                Message::Text(_) | Message::Binary(_) => ws.feed(message).await?,
                Message::Close(_) => return ws.flush().await,
                _ => {}
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
        tokio::spawn(async move {
            let _ = echo(stream).await;
        });
    }
}

fn main() -> std::io::Result<()> {
    let address = env::args().nth(1).expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(address))
}
