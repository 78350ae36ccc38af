//! The crate `tokio-tungstenite`, as a server and as a client.

use std::sync::Arc;
use std::time::Duration;

use futures_util::SinkExt;
use futures_util::StreamExt;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::Request;
use tokio_tungstenite::tungstenite::handshake::server::Response;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::Data;
use tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode;

use super::CODES;
use super::SIZES;
use crate::support::certificates;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

fn close_frame(code: u16) -> CloseFrame {
    CloseFrame {
        code: code.into(),
        reason: "bye".into(),
    }
}

fn fragment(payload: &'static str, opcode: Data, fin: bool) -> Message {
    Message::Frame(Frame::message(payload, OpCode::Data(opcode), fin))
}

/// A server on a thread of its own, until what it gives is dropped.
pub fn start_server(tls: bool) -> (u16, Runtime) {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a thread");
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    runtime.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let stream: Box<dyn Stream> = if tls {
                    let acceptor = TlsAcceptor::from(certificates::server_tls().config());
                    Box::new(acceptor.accept(tcp).await.expect("TLS"))
                } else {
                    Box::new(tcp)
                };
                serve(stream).await;
            });
        }
    });
    (port, runtime)
}

async fn serve(stream: Box<dyn Stream>) {
    #[allow(clippy::result_large_err, reason = "the library's callback")]
    let choose = |_: &Request, mut response: Response| {
        let chosen = HeaderValue::from_static("b");
        response
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", chosen);
        Ok(response)
    };
    let mut ws = accept_hdr_async(stream, choose).await.expect("a handshake");
    while let Some(Ok(message)) = ws.next().await {
        let text = message.to_text().unwrap_or_default().to_owned();
        let code = text
            .strip_prefix("close ")
            .and_then(|code| code.parse().ok());
        let sent = match (&message, code) {
            (Message::Pong(_), _) => ws.send(Message::text("pong")).await,
            (Message::Text(_), Some(code)) => ws.close(Some(close_frame(code))).await,
            (Message::Text(_), _) if text == "ping" => {
                ws.send(Message::Ping("are you there".into())).await
            }
            (Message::Text(_), _) if text == "fragments" => {
                let mut sent = ws.feed(fragment("one ", Data::Text, false)).await;
                for (payload, fin) in [("two ", false), ("three", true)] {
                    sent = sent.and(ws.feed(fragment(payload, Data::Continue, fin)).await);
                }
                sent.and(ws.flush().await)
            }
            (Message::Text(_) | Message::Binary(_), _) => ws.send(message).await,
            _ => Ok(()),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Runs the script against a server.
pub fn run_client(url: &str, tls: bool) {
    let runtime = Builder::new_current_thread().enable_all().build();
    let script = async { tokio::time::timeout(Duration::from_secs(60), script(url, tls)).await };
    let result = runtime.expect("a runtime").block_on(script);
    result.expect("the script takes too long");
}

async fn open(url: &str, tls: bool) -> WebSocketStream<Box<dyn Stream>> {
    let mut request = url.into_client_request().expect("a URL");
    let offered = HeaderValue::from_static("a, b");
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", offered);
    let port = request.uri().port_u16().expect("a port");
    let tcp = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("it listens");
    let stream: Box<dyn Stream> = if tls {
        let connector = TlsConnector::from(Arc::clone(&certificates::client_tls().config()));
        let name = "localhost".try_into().expect("a name");
        Box::new(connector.connect(name, tcp).await.expect("TLS"))
    } else {
        Box::new(tcp)
    };
    let (ws, response) = client_async(request, stream).await.expect("a handshake");
    let chosen = response.headers().get("Sec-WebSocket-Protocol");
    assert_eq!(chosen, Some(&HeaderValue::from_static("b")));
    ws
}

async fn script(url: &str, tls: bool) {
    let mut ws = open(url, tls).await;
    for size in SIZES {
        for message in [
            Message::text("x".repeat(size)),
            Message::binary(vec![7; size]),
        ] {
            ws.send(message.clone()).await.expect("sent");
            let echo = ws.next().await.expect("open").expect("an echo");
            assert!(echo == message, "{size}");
        }
    }
    ws.send(Message::Ping("hello".into())).await.expect("sent");
    let pong = ws.next().await.expect("open").expect("a pong");
    assert_eq!(pong, Message::Pong("hello".into()));
    for (payload, opcode, fin) in [
        ("frag", Data::Text, false),
        ("", Data::Continue, false),
        ("mented é", Data::Continue, true),
    ] {
        ws.send(fragment(payload, opcode, fin)).await.expect("sent");
    }
    let echo = ws.next().await.expect("open").expect("an echo");
    assert_eq!(echo, Message::text("fragmented é"));
    ws.send(Message::text("ping")).await.expect("sent");
    let ping = ws.next().await.expect("open").expect("a ping");
    assert_eq!(ping, Message::Ping("are you there".into()));
    let pong = ws.next().await.expect("open").expect("an answer");
    assert_eq!(pong, Message::text("pong"));
    for code in CODES {
        let mut closing = open(url, tls).await;
        closing.close(Some(close_frame(code))).await.expect("sent");
        match closing.next().await {
            Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), code),
            other => panic!("{code}: {other:?}"),
        }
        let mut closed = open(url, tls).await;
        closed
            .send(Message::text(format!("close {code}")))
            .await
            .expect("sent");
        match closed.next().await {
            Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame, close_frame(code)),
            other => panic!("{code}: {other:?}"),
        }
    }
}
