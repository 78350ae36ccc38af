//! The test kit, as a user's tests use it.

use std::time::Duration;

use sockeye::CloseCause;
use sockeye::CloseCode;
use sockeye::Closed;
use sockeye::Connect;
use sockeye::Context;
use sockeye::Handler;
use sockeye::Message;
use sockeye::OpeningHandshake;
use sockeye::Response;
use sockeye::Route;
use sockeye::Upgrade;
use sockeye::client;
use sockeye::client::Error;
use sockeye::protocol::Role;
use sockeye::testkit::SimSettings;
use sockeye::testkit::TestServer;

/// Asks another server what its clients ask it, and counts what it sees.
#[derive(Default)]
struct Broker {
    closed: Vec<String>,
}

impl Handler for Broker {
    /// The connection that a made one answers to.
    type Data = Option<sockeye::ConnId>;

    fn on_upgrade(&mut self, request: &mut OpeningHandshake<'_>) -> Upgrade<Self::Data> {
        if request.request().path() == "/forbidden" {
            return Upgrade::reject(Response::text(403));
        }
        Upgrade::accept(None)
    }

    fn on_message(&mut self, conn: &mut Context<'_, Self::Data>, message: Message<'_>) {
        match (conn.role(), message.as_str()) {
            (Role::Server, Some("ask")) => {
                let connect = Connect::new("ws://127.0.0.1/answers").expect("a URL");
                let asker = conn.id();
                let connect = connect.subprotocols(["qa"]);
                conn.connect(connect, Some(asker))
                    .expect("it can be asked for");
            }
            (Role::Server, _) => {
                conn.send(message);
            }
            (Role::Client, _) => {
                let asker = conn.data().expect("it was made for one");
                conn.remote().send(asker, message).expect("room");
                conn.close(CloseCode::NORMAL, "");
            }
        }
    }

    fn on_open(&mut self, conn: &mut Context<'_, Self::Data>) {
        if conn.role() == Role::Client {
            conn.send("what?");
        }
    }

    fn on_close(&mut self, _: &mut Context<'_, Self::Data>, closed: &Closed<'_>) {
        self.closed.push(match &closed.cause {
            CloseCause::NotOpened(error) => error.to_string(),
            cause => cause.code().to_string(),
        });
    }
}

#[test]
fn handler_serves_clients_in_memory() {
    let server = TestServer::new(Broker::default());
    let mut one = server.connect("/").expect("it opens");
    let mut two = server.connect("/two?x=1").expect("it opens");
    assert_eq!(server.connections(), 2);
    one.write_message("from one").expect("sent");
    two.write_message("from two").expect("sent");
    assert_eq!(
        one.read_message().expect("an echo").as_str(),
        Some("from one")
    );
    assert_eq!(
        two.read_message().expect("an echo").as_str(),
        Some("from two")
    );
    one.close(CloseCode::NORMAL, "").expect("closed");
    drop(one);
    server.pass(Duration::from_secs(1));
    assert_eq!(server.connections(), 1);
    server.shut_down();
    match two.read_message() {
        Err(Error::Closed(close)) => assert_eq!(close.code(), 1001),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        server.with_handler(|broker| broker.closed.clone()),
        ["1000", "1001"]
    );
}

#[test]
fn rejected_upgrade_is_seen_as_it_would_be() {
    let server = TestServer::new(Broker::default());
    match server.connect("/forbidden") {
        Err(Error::Refused(refusal)) => {
            assert_eq!(
                (refusal.status, &refusal.body[..]),
                (403, &b"403 Forbidden\n"[..])
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn connections_of_the_handler_are_accepted_by_the_test() {
    let server = TestServer::new(Broker::default());
    assert!(server.accept(None).expect_err("there is none").is_timeout());
    let mut client = server.connect("/").expect("it opens");
    client.write_message("ask").expect("sent");
    let mut upstream = server.accept(Some("qa")).expect("it was made");
    assert_eq!(
        upstream.read_message().expect("a question").as_str(),
        Some("what?")
    );
    upstream.write_message("42").expect("sent");
    assert_eq!(
        client.read_message().expect("an answer").as_str(),
        Some("42")
    );
    assert!(matches!(upstream.read_message(), Err(Error::Closed(_))));
    drop(upstream);
    server.pass(Duration::from_secs(1));

    // Nobody accepts: the handshake times out.
    client.write_message("ask").expect("sent");
    server.pass(Duration::from_secs(13));
    let closed = server.with_handler(|broker| broker.closed.clone());
    assert_eq!(closed, ["1000", "the handshake timed out"]);
}

#[test]
fn settings_and_requests_can_be_chosen() {
    let settings = SimSettings {
        base: Route::default().subprotocols(["b"]),
        ..SimSettings::default()
    };
    let server = TestServer::with(settings, Broker::default());
    let connect = Connect::new("ws://test.example/").expect("a URL");
    let builder = client::Builder::new(connect.subprotocols(["a", "b"]));
    let ws = server.connect_with(builder).expect("it opens");
    assert_eq!(ws.subprotocol(), Some("b"));
    // Time passes when the test says so: pings, and the end of a client that does not answer.
    let mut ws = ws;
    let (seen, pings) = std::sync::mpsc::channel();
    ws.on_ping(move |_| seen.send(()).is_ok());
    for _ in 0..3 {
        server.pass(Duration::from_secs(33));
        assert!(ws.read_message().expect_err("no message").is_timeout());
    }
    assert_eq!(pings.try_iter().count(), 3);
    assert_eq!(server.connections(), 1);
    server.pass(Duration::from_secs(60));
    assert_eq!(server.connections(), 0);
}
