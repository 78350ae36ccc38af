//! Messages that are JSON.

use std::collections::HashMap;
use std::io;
use std::thread;

use serde::Deserialize;
use serde::Serialize;
use sockeye::Message;
use sockeye::Prepared;
use sockeye::client;

use crate::support;
use crate::support::Probe;
use crate::support::World;

cases!(json_is_read_sent_and_published);

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Order<'a> {
    #[serde(borrow)]
    symbol: &'a str,
    amount: u32,
}

fn json_is_read_sent_and_published(world: World) {
    let server = world.start(
        Probe::echo()
            .on_open(|conn| {
                conn.subscribe("orders");
            })
            .on_message(|conn, message| match message.json::<Order<'_>>() {
                Ok(order) => {
                    let answer = Order {
                        amount: order.amount + 1,
                        ..order
                    };
                    conn.send_json(&answer).expect("it can be written");
                    conn.publish("orders", Prepared::json(&answer).unwrap())
                        .expect("there is room");
                    // Nothing is sent of what cannot be written.
                    let keys = HashMap::from([((1, 2), 3)]);
                    assert!(conn.send_json(&keys).is_err());
                    assert!(Prepared::json(&keys).is_err());
                }
                Err(error) => {
                    conn.send(&error.to_string());
                }
            }),
    );
    let mut link = server.open();
    for _ in 0..2 {
        link.send_text(r#"{"symbol":"A","amount":1}"#);
        link.expect_text(r#"{"symbol":"A","amount":2}"#);
        link.expect_text(r#"{"symbol":"A","amount":2}"#);
    }
    // In pieces, and as bytes.
    link.send(&support::fragment(
        sockeye::protocol::Opcode::Binary,
        br#"{"symbol":"B","#,
    ));
    link.send(&support::raw_frame(0x80, br#""amount":7}"#));
    link.expect_text(r#"{"symbol":"B","amount":8}"#);
    link.expect_text(r#"{"symbol":"B","amount":8}"#);
    link.send_text(r#"{"symbol":"A"}"#);
    let got = link.next_frame().unwrap();
    let text = String::from_utf8(got.payload).unwrap();
    assert!(text.contains("missing field `amount`"), "{text}");
}

#[test]
fn message_borrows_what_it_can() {
    let text = String::from(r#"{"symbol":"A","amount":1}"#);
    let order: Order<'_> = Message::text(&text).json().unwrap();
    assert!(
        text.as_bytes()
            .as_ptr_range()
            .contains(&order.symbol.as_ptr())
    );
    assert!(Message::binary(b"\xFF").json::<String>().is_err());
}

#[test]
fn client_writes_json() {
    let server = sockeye::Server::builder()
        .on_message(|conn, message| {
            conn.send(message);
        })
        .threads(1)
        .bind("127.0.0.1:0")
        .unwrap()
        .spawn()
        .unwrap();
    let url = format!("ws://{}/", server.local_addr());
    let client = thread::spawn(move || {
        let mut socket = client::connect(&url).unwrap();
        let order = Order {
            symbol: "A",
            amount: 1,
        };
        socket.write_json(&order).unwrap();
        assert_eq!(
            socket.read_message().unwrap().json::<Order<'_>>().unwrap(),
            order
        );
        match socket.write_json(&HashMap::from([((1, 2), 3)])) {
            Err(client::Error::Io(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            }
            other => panic!("{other:?}"),
        }
        // It goes on.
        socket.write_json("text").unwrap();
        assert_eq!(
            socket.read_message().unwrap().json::<&str>().unwrap(),
            "text"
        );
    });
    client.join().unwrap();
    server.shutdown();
    server.join().unwrap();
}
