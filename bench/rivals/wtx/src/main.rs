//! `wtx` as an echo server on one thread: rival ADDRESS echo|deflate.
//! It writes each reply as it comes.

use std::env;

use tokio::net::TcpListener;
use tokio::net::TcpStream;
use wtx::collection::Vector;
use wtx::rng::Xorshift64;
use wtx::web_socket::OpCode;
use wtx::web_socket::WebSocket;
use wtx::web_socket::WebSocketAcceptor;
use wtx::web_socket::WebSocketBuffer;
use wtx::web_socket::WebSocketPayloadOrigin;
use wtx::web_socket::compression::CompressionLevel;
use wtx::web_socket::compression::DeflateConfig;
use wtx::web_socket::compression::Flate2;
use wtx::web_socket::compression::NegotiatedCompression;
use wtx::web_socket::compression::WindowBits;

async fn echo<C: NegotiatedCompression>(
    mut ws: WebSocket<C, Xorshift64, TcpStream, WebSocketBuffer, false>,
) -> wtx::Result<()> {
    let (mut common, mut reader, mut writer) = ws.split_mut();
    let mut buffer = Vector::new();
    loop {
        let mut frame = reader
            .read_frame(&mut buffer, &mut common, WebSocketPayloadOrigin::Adaptive)
            .await?;
        match frame.op_code() {
            OpCode::Text | OpCode::Binary => writer.write_frame(&mut common, &mut frame).await?,
            OpCode::Close => return Ok(()),
            _ => {}
        }
    }
}

async fn serve(address: String, deflate: bool) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let acceptor = WebSocketAcceptor::default().no_masking(false);
            if !deflate {
                if let Ok(ws) = acceptor.accept(stream).await {
                    let _ = echo(ws).await;
                }
                return;
            }
            let config = DeflateConfig {
                client_max_window_bits: WindowBits::Fifteen,
                compression_level: CompressionLevel::One,
                server_max_window_bits: WindowBits::Fifteen,
            };
            let acceptor = acceptor.compression(Flate2::from(config));
            if let Ok(ws) = acceptor.accept(stream).await {
                let _ = echo(ws).await;
            }
        });
    }
}

fn main() -> std::io::Result<()> {
    let address = env::args().nth(1).expect("an address");
    let deflate = env::args().nth(2).as_deref() == Some("deflate");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(serve(address, deflate))
}
