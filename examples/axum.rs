//! A service of axum that routes and authenticates, and hands each connection over to sockeye
//! behind the upgrade.
//!
//!     cargo run --release --example axum -- --bind 127.0.0.1:9001
//!
//! `ws://127.0.0.1:9001/rooms/NAME?token=secret` gets what others say in that room; another token
//! gets a 401 of axum's, and a page of another site sockeye's 403.

use std::io;
use std::net::TcpListener;
use std::process::exit;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade;
use sockeye::Address;
use sockeye::Agreed;
use sockeye::Context;
use sockeye::Handler;
use sockeye::Message;
use sockeye::Prepared;
use sockeye::Remote;
use sockeye::Route;
use sockeye::Server;
use sockeye_examples::Cli;
use tokio::net::TcpStream;

/// What anybody says in a room reaches everyone in it.
struct Rooms;

impl Handler for Rooms {
    /// The path, which names the room.
    type Data = Arc<str>;

    fn on_adopt(&mut self, agreed: &Agreed) -> Arc<str> {
        agreed.requested_path().unwrap_or_default().into()
    }

    fn on_open(&mut self, conn: &mut Context<'_, Arc<str>>) {
        let room = Arc::clone(conn.data());
        conn.subscribe(&room);
    }

    fn on_message(&mut self, conn: &mut Context<'_, Arc<str>>, message: Message<'_>) {
        let room = Arc::clone(conn.data());
        // It fails for threads that are flooded with commands: those miss this message.
        let _ = conn.publish(&room, Prepared::new(message));
    }
}

fn main() {
    let cli = Cli::read();
    let Address::Ip(address) = cli.bind else {
        eprintln!("error: this example listens on TCP only");
        exit(2);
    };
    let builder = Server::builder().handler(|_| Rooms);
    let engine = cli.apply(builder, sockeye::Limits::default().message_len_max);
    let engine = engine.without_listener().and_then(|server| server.spawn());
    let engine = engine.unwrap_or_else(|error| fail(&error));
    let served = serve(address, &engine);
    fail(&served.expect_err("it serves for ever"));
}

fn serve(address: std::net::SocketAddr, engine: &sockeye::Handle) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let service = Router::new()
        .route(
            "/",
            get(|| async { "rooms are at /rooms/NAME?token=secret\n" }),
        )
        .route("/rooms/{name}", get(enter))
        .with_state(engine.remote().clone());
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (backend, threads) = (engine.backend(), engine.threads());
        println!("listening on {bound}, {backend}, threads: {threads}");
        axum::serve(listener, service).await
    })
}

/// Answers a request for a WebSocket here, and hands its connection over.
async fn enter(State(remote): State<Remote>, mut request: Request) -> Response {
    if request.uri().query() != Some("token=secret") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    // The engine's own checks, on what axum has parsed: RFC 6455 §4.2.1, and the origin.
    let (answer, agreed) = match Agreed::answer(&request, &Route::default()) {
        Ok(accepted) => accepted,
        Err(refused) => return refused.map(Body::from),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await.map_err(io::Error::other) {
            Ok(upgraded) => {
                if let Err(error) = hand_over(upgraded, agreed, &remote) {
                    eprintln!("a connection is lost: {error}");
                }
            }
            Err(error) => eprintln!("not upgraded: {error}"),
        }
    });
    answer.map(|()| Body::empty())
}

/// Takes the socket from hyper, with what has been read of it behind the request.
fn hand_over(upgraded: Upgraded, agreed: Agreed, remote: &Remote) -> io::Result<()> {
    let parts = upgrade::downcast::<TokioIo<TcpStream>>(upgraded)
        .map_err(|_| io::Error::other("it is not the plain TCP of axum::serve"))?;
    let socket = parts.io.into_inner().into_std()?;
    remote
        .adopt(socket, parts.read_buf, agreed)
        .map_err(io::Error::other)
}

fn fail(error: &dyn std::error::Error) -> ! {
    eprintln!("error: {error}");
    exit(1);
}
