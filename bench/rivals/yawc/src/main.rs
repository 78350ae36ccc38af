//! `yawc` as an echo server on one thread: rival ADDRESS echo|deflate.
//! Replies are written together once nothing more is ready to be read.

use std::env;

use futures_util::FutureExt;
use futures_util::SinkExt;
use http_body_util::Empty;
use hyper::Request;
use hyper::Response;
use hyper::body::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use yawc::CompressionLevel;
use yawc::OpCode;
use yawc::Options;
use yawc::Result;
use yawc::UpgradeFut;
use yawc::WebSocket;

async fn echo(upgraded: UpgradeFut) -> Result<()> {
    let mut ws = upgraded.await?;
    loop {
        let mut frame = ws.next_frame().await?;
        loop {
            match frame.opcode() {
                OpCode::Text | OpCode::Binary => ws.feed(frame).await?,
                // Its answer has been queued.
                OpCode::Close => return ws.close().await,
                _ => {}
            }
            match ws.next_frame().now_or_never() {
                Some(next) => frame = next?,
                None => break,
            }
        }
        ws.flush().await?;
    }
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>> {
    let options = Options::default()
        .with_read_buffer_capacity(128 * 1024)
        .with_backpressure_boundary(64 * 1024);
    let options = match env::args().nth(2).as_deref() {
        Some("deflate") => options
            .with_compression_level(CompressionLevel::new(1))
            .server_no_context_takeover()
            .client_no_context_takeover(),
        _ => options.without_compression(),
    };
    let (response, upgraded) = WebSocket::upgrade_with_options(&mut request, options)?;
    tokio::spawn(async move {
        let _ = echo(upgraded).await;
    });
    Ok(response)
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
            let connection = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .with_upgrades();
            let _ = connection.await;
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
