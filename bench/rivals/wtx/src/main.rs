//! `wtx` as an echo server on one thread: rival ADDRESS echo.
//! It writes each reply as it comes.

use std::env;

use tokio::net::TcpListener;
use tokio::net::TcpStream;
use wtx::collection::Vector;
use wtx::web_socket::OpCode;
use wtx::web_socket::WebSocketAcceptor;
use wtx::web_socket::WebSocketPayloadOrigin;

async fn echo(stream: TcpStream) -> wtx::Result<()> {
    let mut ws = WebSocketAcceptor::default()
        .no_masking(false)
        .accept(stream)
        .await?;
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
        .enable_io()
        .build()?;
    runtime.block_on(serve(address))
}
