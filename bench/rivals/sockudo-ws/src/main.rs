//! `sockudo-ws` as an echo server on one thread: rival ADDRESS echo|deflate [LEVEL].
//! Replies are written together once nothing more is ready to be read.

use std::env;

use bytes::BytesMut;
use futures_util::FutureExt;
use futures_util::SinkExt;
use futures_util::StreamExt;
use sockudo_ws::CompressedWebSocketStream;
use sockudo_ws::Config;
use sockudo_ws::DeflateConfig;
use sockudo_ws::Error;
use sockudo_ws::WebSocketStream;
use sockudo_ws::deflate::negotiate_server_deflate;
use sockudo_ws::handshake;
use sockudo_ws::protocol::Message;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

/// Answers the request; gives what was agreed of compression.
async fn upgrade(
    stream: &mut TcpStream,
    policy: Option<&DeflateConfig>,
) -> Result<Option<DeflateConfig>, Error> {
    let mut head = BytesMut::with_capacity(4096);
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(Error::ConnectionClosed);
        }
        if let Some((request, _)) = handshake::parse_request(&head)? {
            let key = handshake::generate_accept_key(request.key);
            let offers = policy.zip(request.extensions);
            let agreed =
                offers.and_then(|(policy, offers)| negotiate_server_deflate(offers, policy));
            let header = agreed.as_ref().map(|agreed| agreed.to_response_header());
            let response = handshake::build_response(&key, None, header.as_deref());
            stream.write_all(&response).await?;
            return Ok(agreed.map(|agreed| agreed.config));
        }
    }
}

/// Echoes over either kind of stream.
macro_rules! echo {
    ($ws:ident) => {
        while let Some(message) = $ws.next().await {
            let mut message = message?;
            loop {
                match message {
                    Message::Text(_) | Message::Binary(_) => $ws.feed(message).await?,
                    Message::Close(_) => return $ws.flush().await,
                    _ => {}
                }
                match $ws.next().now_or_never() {
                    Some(Some(next)) => message = next?,
                    Some(None) => return Ok(()),
                    None => break,
                }
            }
            $ws.flush().await?;
        }
    };
}

async fn echo(mut stream: TcpStream, policy: Option<DeflateConfig>) -> Result<(), Error> {
    match upgrade(&mut stream, policy.as_ref()).await? {
        None => {
            let mut ws = WebSocketStream::server(stream, Config::default());
            echo!(ws);
        }
        Some(agreed) => {
            let mut ws = CompressedWebSocketStream::server(stream, Config::default(), agreed);
            echo!(ws);
        }
    }
    Ok(())
}

async fn serve(address: String, policy: Option<DeflateConfig>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true)?;
        let policy = policy.clone();
        tokio::spawn(async move {
            let _ = echo(stream, policy).await;
        });
    }
}

fn main() -> std::io::Result<()> {
    let address = env::args().nth(1).expect("an address");
    let deflate = env::args().nth(2).as_deref() == Some("deflate");
    let level = env::args()
        .nth(3)
        .map_or(1, |level| level.parse().expect("a level"));
    let policy = deflate.then(|| DeflateConfig {
        server_no_context_takeover: true,
        client_no_context_takeover: true,
        compression_level: level,
        ..DeflateConfig::default()
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(address, policy))
}
