//! The cases, by what they are about.

use std::io::Read;

use sockeye::protocol::Opcode;

use super::Case;
use super::Want;
use super::wire::Seen;
use super::wire::Server;
use super::wire::Wire;

/// Every case's key.
const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const MASK: u8 = 0x80;

const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;

fn masked(payload: &[u8]) -> Vec<u8> {
    let keys = KEY.iter().cycle();
    payload
        .iter()
        .zip(keys)
        .map(|(byte, key)| byte ^ key)
        .collect()
}

/// A frame of a client, with this first byte and a short payload.
pub fn short(first: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    [
        &[first, MASK | payload.len() as u8],
        &KEY[..],
        &masked(payload),
    ]
    .concat()
}

/// A frame whose length is written as told, with so many bytes of a payload.
fn with_length(first: u8, length: &[u8], payload: &[u8]) -> Vec<u8> {
    [&[first], length, &KEY[..], &masked(payload)].concat()
}

fn close(code: u16) -> Vec<u8> {
    short(FIN | CLOSE, &code.to_be_bytes())
}

fn opcode_name(opcode: u8) -> &'static str {
    [
        "continuation",
        "text",
        "binary",
        "3",
        "4",
        "5",
        "6",
        "7",
        "close",
        "ping",
        "pong",
    ]
    .get(usize::from(opcode))
    .copied()
    .unwrap_or("reserved")
}

/// All cases but those of close codes, which are too many to be listed.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    masking(&mut cases);
    reserved(&mut cases);
    closing(&mut cases);
    fragments(&mut cases);
    lengths(&mut cases);
    segments(&mut cases);
    bad_handshakes(&mut cases);
    good_handshakes(&mut cases);
    compression(&mut cases);
    cases
}

/// Sends bytes on an open connection and looks at what comes of it.
fn sends(bytes: Vec<u8>) -> impl Fn(&Server) -> Seen + Send + Sync {
    opened(move |wire| {
        wire.write(&bytes);
        wire.outcome()
    })
}

/// Sends bytes on an open connection, which are to be echoed.
fn echoes(
    bytes: Vec<u8>,
    opcode: Opcode,
    payload: Vec<u8>,
) -> impl Fn(&Server) -> Seen + Send + Sync {
    opened(move |wire| {
        wire.write(&bytes);
        wire.echo(opcode, &payload)
    })
}

fn opened(
    case: impl Fn(&mut Wire) -> Seen + Send + Sync,
) -> impl Fn(&Server) -> Seen + Send + Sync {
    move |server| match server.open(None) {
        Ok(mut wire) => case(&mut wire),
        Err(error) => Seen::Other(error.to_string()),
    }
}

fn masking(cases: &mut Vec<Case>) {
    let group = "masking";
    for opcode in [0x0, 0x1, 0x2, 0x8, 0x9, 0xA] {
        let name = format!("unmasked {} frame", opcode_name(opcode));
        let payload: &[u8] = if opcode == CLOSE {
            &[0x03, 0xE8]
        } else {
            b"ab"
        };
        let mut bytes = Vec::new();
        if opcode == 0 {
            bytes = short(TEXT, b"x");
        }
        bytes.extend([FIN | opcode, payload.len() as u8]);
        bytes.extend(payload);
        cases.push(Case::new(
            group,
            &name,
            "6455 §5.1",
            Want::Fail(1002),
            sends(bytes),
        ));
    }
    let frame = short(FIN | TEXT, b"masks are read in parts");
    for cut in 2..=6 {
        let name = format!("header and key, cut behind byte {cut}");
        let frame = frame.clone();
        let case = opened(move |wire| {
            wire.write_apart([&frame[..cut], &frame[cut..]]);
            wire.echo(Opcode::Text, b"masks are read in parts")
        });
        cases.push(Case::new(group, &name, "6455 §5.3", Want::Echo, case));
    }
    let frame = short(FIN | BINARY, &[7; 60]);
    let case = opened(move |wire| {
        wire.write_apart(frame.chunks(1));
        wire.echo(Opcode::Binary, &[7; 60])
    });
    cases.push(Case::new(
        group,
        "a frame byte by byte",
        "6455 §5.3",
        Want::Echo,
        case,
    ));
}

fn reserved(cases: &mut Vec<Case>) {
    let group = "reserved bits and opcodes";
    for rsv in 1..=3_u8 {
        for opcode in [0x0, 0x1, 0x2, 0x8, 0x9, 0xA] {
            let name = format!("RSV{rsv} on a {} frame", opcode_name(opcode));
            let mut bytes = Vec::new();
            if opcode == 0 {
                bytes = short(TEXT, b"x");
            }
            let payload: &[u8] = if opcode == CLOSE {
                &[0x03, 0xE8]
            } else {
                b"ab"
            };
            bytes.extend(short(FIN | RSV1 >> (rsv - 1) | opcode, payload));
            cases.push(Case::new(
                group,
                &name,
                "6455 §5.2",
                Want::Fail(1002),
                sends(bytes),
            ));
        }
    }
    for opcode in [0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF] {
        let name = format!("opcode {opcode:#X}");
        let bytes = short(FIN | opcode, b"ab");
        cases.push(Case::new(
            group,
            &name,
            "6455 §5.2",
            Want::Fail(1002),
            sends(bytes),
        ));
    }
}

fn closing(cases: &mut Vec<Case>) {
    let group = "closing";
    let mut add = |name: &str, rfc, want, bytes: Vec<u8>| {
        cases.push(Case::new(group, name, rfc, want, sends(bytes)));
    };
    let utf8 = [&[0x03, 0xE8], &[0xCE, 0xBA][..]].concat();
    let not_utf8 = [&[0x03, 0xE8], &[0xCE][..]].concat();
    let longest = [&[0x03, 0xE8], &[b'r'; 123][..]].concat();
    add(
        "no code",
        "6455 §5.5.1",
        Want::Answer(None),
        short(FIN | CLOSE, b""),
    );
    add(
        "a code of one byte",
        "6455 §5.5.1",
        Want::Fail(1002),
        short(FIN | CLOSE, &[3]),
    );
    add(
        "a reason",
        "6455 §5.5.1",
        Want::Answer(Some(1000)),
        short(FIN | CLOSE, &utf8),
    );
    add(
        "a reason that is cut",
        "6455 §8.1",
        Want::Fail(1007),
        short(FIN | CLOSE, &not_utf8),
    );
    let longest = short(FIN | CLOSE, &longest);
    add(
        "the longest reason",
        "6455 §5.5",
        Want::Answer(Some(1000)),
        longest,
    );
    let too_long = [&[0x03, 0xE8], &[b'r'; 124][..]].concat();
    let too_long = with_length(FIN | CLOSE, &[MASK | 126, 0, 126], &too_long);
    add(
        "a reason that is too long",
        "6455 §5.5",
        Want::Fail(1002),
        too_long,
    );
    let fragmented = short(CLOSE, &[0x03, 0xE8]);
    add(
        "a fragmented Close frame",
        "6455 §5.5",
        Want::Fail(1002),
        fragmented,
    );
    let behind = [close(1000), short(FIN | TEXT, b"behind")].concat();
    add(
        "a message behind it",
        "6455 §5.5.1",
        Want::Answer(Some(1000)),
        behind,
    );
    let within = [short(TEXT, b"a"), close(1000)].concat();
    add(
        "in a fragmented message",
        "6455 §5.5.1",
        Want::Answer(Some(1000)),
        within,
    );
}

/// What a server is to answer to a Close frame with this code.
pub fn answer_to(code: u16) -> (Want, &'static str) {
    match code {
        1000..=1003 | 1007..=1011 => (Want::Answer(Some(code)), "6455 §7.4.1"),
        // Registered with IANA later.
        1012..=1014 => (Want::Registered(code), "IANA registry"),
        3000..=4999 => (Want::Answer(Some(code)), "6455 §7.4.2"),
        // Not to be sent: reserved, or of no range.
        1004..=1006 | 1015 => (Want::Fail(1002), "6455 §7.4.1"),
        _ => (Want::Fail(1002), "6455 §7.4.2"),
    }
}

/// Sends a Close frame with this code.
pub fn close_with(server: &Server, code: u16) -> Seen {
    // Many connections, from many addresses: each leaves its port unusable for a while.
    let source = [127, 0, 2, 1 + (code % 200) as u8];
    let is_ipv4 = matches!(&server.address, super::wire::Address::Ip(address)
        if address.is_ipv4() && address.ip().is_loopback());
    match server.open(is_ipv4.then(|| source.into())) {
        Ok(mut wire) => {
            wire.write(&close(code));
            wire.outcome()
        }
        Err(error) => Seen::Other(error.to_string()),
    }
}

fn fragments(cases: &mut Vec<Case>) {
    let group = "fragments";
    let mut echo = |name: &str, bytes: Vec<u8>, opcode, payload: &[u8]| {
        let case = echoes(bytes, opcode, payload.to_vec());
        cases.push(Case::new(group, name, "6455 §5.4", Want::Echo, case));
    };
    let text = "one byte each: κόσμε";
    let mut bytes = Vec::new();
    for (index, byte) in text.bytes().enumerate() {
        let opcode = if index == 0 { TEXT } else { 0 };
        let fin = if index + 1 == text.len() { FIN } else { 0 };
        bytes.extend(short(fin | opcode, &[byte]));
    }
    echo("of one byte", bytes, Opcode::Text, text.as_bytes());
    let empties = |count: usize, opcode: u8| {
        let mut bytes = short(opcode, b"");
        (0..count).for_each(|_| bytes.extend(short(0, b"")));
        bytes
    };
    let none = [empties(3, TEXT), short(FIN, b"")].concat();
    echo("all empty", none, Opcode::Text, b"");
    let first = [short(BINARY, b""), short(FIN, b"last")].concat();
    echo("the first empty", first, Opcode::Binary, b"last");
    let middle = [short(BINARY, b"a"), short(0, b""), short(FIN, b"b")].concat();
    echo("the middle empty", middle, Opcode::Binary, b"ab");
    let last = [short(BINARY, b"first"), short(FIN, b"")].concat();
    echo("the last empty", last, Opcode::Binary, b"first");
    let hundred = [empties(100, TEXT), short(FIN, b"end")].concat();
    echo("a hundred empty", hundred, Opcode::Text, b"end");
    let ping = short(FIN | PING, b"between");
    let between = [short(TEXT, b"a"), ping.clone(), short(FIN, b"b")].concat();
    echo("a ping between", between.clone(), Opcode::Text, b"ab");

    let pong_first = opened(move |wire| {
        wire.write(&between);
        wire.pong(b"between")
    });
    let want = Want::Pong;
    cases.push(Case::new(
        group,
        "the pong comes at once",
        "6455 §5.4",
        want,
        pong_first,
    ));

    let mut fail = |name: &str, rfc, code, bytes: Vec<u8>| {
        cases.push(Case::new(group, name, rfc, Want::Fail(code), sends(bytes)));
    };
    fail(
        "a continuation of nothing",
        "6455 §5.4",
        1002,
        short(FIN, b"x"),
    );
    fail(
        "an empty continuation of nothing",
        "6455 §5.4",
        1002,
        short(0, b""),
    );
    let new = [short(TEXT, b"a"), short(FIN | TEXT, b"b")].concat();
    fail("a new message inside", "6455 §5.4", 1002, new);
    fail("a fragmented ping", "6455 §5.5", 1002, short(PING, b"x"));
    let cut = [short(TEXT, &[0xCE]), short(FIN, b"x")].concat();
    fail("text that is not UTF-8", "6455 §8.1", 1007, cut);
    let open = [short(TEXT, &[0xF0, 0x9F]), short(FIN, &[0x98])].concat();
    fail("text that ends inside a character", "6455 §8.1", 1007, open);
}

fn lengths(cases: &mut Vec<Case>) {
    let group = "lengths";
    let sixteen = |len: u16| [&[MASK | 126], &len.to_be_bytes()[..]].concat();
    let sixty_four = |len: u64| [&[MASK | 127], &len.to_be_bytes()[..]].concat();
    let mut fail = |name: &str, want, first: u8, length: Vec<u8>, payload: &[u8]| {
        let bytes = with_length(first, &length, payload);
        cases.push(Case::new(group, name, "6455 §5.2", want, sends(bytes)));
    };
    for len in [0, 1, 125] {
        let name = format!("{len} in 16 bits");
        let payload = vec![b'x'; len];
        fail(
            &name,
            Want::Fail(1002),
            FIN | BINARY,
            sixteen(len as u16),
            &payload,
        );
    }
    for len in [0, 125, 126, 65_535] {
        let name = format!("{len} in 64 bits");
        let payload = vec![b'x'; len];
        fail(
            &name,
            Want::Fail(1002),
            FIN | BINARY,
            sixty_four(len as u64),
            &payload,
        );
    }
    fail(
        "the top bit set",
        Want::Fail(1002),
        FIN | BINARY,
        sixty_four(1 << 63),
        b"x",
    );
    fail(
        "all bits set",
        Want::Fail(1002),
        FIN | BINARY,
        sixty_four(u64::MAX),
        b"x",
    );
    let want = Want::FailAny(&[1009, 1002]);
    fail(
        "2^62 bytes announced",
        want,
        FIN | BINARY,
        sixty_four(1 << 62),
        b"x",
    );
    fail(
        "a ping of 126 bytes",
        Want::Fail(1002),
        FIN | PING,
        sixteen(126),
        &[0; 126],
    );
    let bytes = with_length(FIN | BINARY, &sixteen(126), &[9; 126]);
    let case = echoes(bytes, Opcode::Binary, vec![9; 126]);
    cases.push(Case::new(
        group,
        "126 in 16 bits",
        "6455 §5.2",
        Want::Echo,
        case,
    ));
}

fn segments(cases: &mut Vec<Case>) {
    let group = "segments";
    let behind = |frames: Vec<u8>, payload: &'static [u8]| {
        move |server: &Server| match server.connect(None) {
            Err(error) => Seen::Other(error.to_string()),
            Ok(mut wire) => {
                wire.write(&[server.request().to_bytes(), frames.clone()].concat());
                match wire.upgraded() {
                    Seen::Upgraded => wire.echo(Opcode::Text, payload),
                    other => other,
                }
            }
        }
    };
    let whole = behind(short(FIN | TEXT, b"at once"), b"at once");
    cases.push(Case::new(
        group,
        "a frame behind the handshake",
        "6455 §4",
        Want::Echo,
        whole,
    ));
    let two = [short(TEXT, b"at"), short(FIN, b" once")].concat();
    let two = behind(two, b"at once");
    cases.push(Case::new(
        group,
        "fragments behind the handshake",
        "6455 §4",
        Want::Echo,
        two,
    ));
    let apart = |server: &Server| match server.connect(None) {
        Err(error) => Seen::Other(error.to_string()),
        Ok(mut wire) => {
            let request = server.request().to_bytes();
            wire.write_apart(request.chunks(1));
            wire.upgraded()
        }
    };
    let name = "a handshake byte by byte";
    cases.push(Case::new(group, name, "6455 §4", Want::Upgrade, apart));
    let cut = |server: &Server| match server.connect(None) {
        Err(error) => Seen::Other(error.to_string()),
        Ok(mut wire) => {
            let frame = short(FIN | TEXT, b"cut");
            let first = [&server.request().to_bytes(), &frame[..4]].concat();
            wire.write_apart([&first[..], &frame[4..]]);
            match wire.upgraded() {
                Seen::Upgraded => wire.echo(Opcode::Text, b"cut"),
                other => other,
            }
        }
    };
    let name = "a part of a frame behind the handshake";
    cases.push(Case::new(group, name, "6455 §4", Want::Echo, cut));
}

type MakeRequest = fn(&Server) -> Vec<u8>;

fn requests(
    cases: &mut Vec<Case>,
    group: &'static str,
    want: Want,
    list: &[(&str, &'static str, MakeRequest)],
) {
    for (name, rfc, request) in list {
        let request = *request;
        let case = move |server: &Server| match server.connect(None) {
            Err(error) => Seen::Other(error.to_string()),
            Ok(mut wire) => {
                wire.write(&request(server));
                wire.upgraded()
            }
        };
        cases.push(Case::new(group, name, rfc, want.clone(), case));
    }
}

fn bad_handshakes(cases: &mut Vec<Case>) {
    let list: &[(&str, &'static str, MakeRequest)] = &[
        ("no Upgrade", "6455 §4.2.1", |server| {
            server.request().without("Upgrade").to_bytes()
        }),
        ("another Upgrade", "6455 §4.2.1", |server| {
            server.request().with("Upgrade", "h2c").to_bytes()
        }),
        ("no Connection", "6455 §4.2.1", |server| {
            server.request().without("Connection").to_bytes()
        }),
        ("Connection: close", "6455 §4.2.1", |server| {
            server.request().with("Connection", "close").to_bytes()
        }),
        ("no key", "6455 §4.2.1", |server| {
            server.request().without("Sec-WebSocket-Key").to_bytes()
        }),
        ("an empty key", "6455 §4.2.1", |server| {
            server.request().with("Sec-WebSocket-Key", "").to_bytes()
        }),
        ("a key of 15 bytes", "6455 §4.2.1", |server| {
            let key = "AAAAAAAAAAAAAAAAAAAA";
            server.request().with("Sec-WebSocket-Key", key).to_bytes()
        }),
        ("a key that is no base64", "6455 §4.2.1", |server| {
            let key = "dGhlIHNhbXBsZSBub25j!!==";
            server.request().with("Sec-WebSocket-Key", key).to_bytes()
        }),
        ("two keys", "6455 §11.3.1", |server| {
            let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
            server.request().and(key).to_bytes()
        }),
        ("no version", "6455 §4.2.1", |server| {
            server.request().without("Sec-WebSocket-Version").to_bytes()
        }),
        ("version 8", "6455 §4.4", |server| {
            server
                .request()
                .with("Sec-WebSocket-Version", "8")
                .to_bytes()
        }),
        ("POST", "6455 §4.2.1", |server| {
            server.request().method("POST", "HTTP/1.1").to_bytes()
        }),
        ("HTTP/1.0", "6455 §4.2.1", |server| {
            server.request().method("GET", "HTTP/1.0").to_bytes()
        }),
        ("HTTP/2.0", "6455 §4.2.1", |server| {
            server.request().method("GET", "HTTP/2.0").to_bytes()
        }),
        ("no Host", "6455 §4.2.1", |server| {
            server.request().without("Host").to_bytes()
        }),
        ("two hosts", "9112 §3.2", |server| {
            server.request().and("Host: other").to_bytes()
        }),
        ("a space before a colon", "9112 §5.1", |server| {
            server.request().and("X-A : b").to_bytes()
        }),
        ("a folded header", "9112 §5.2", |server| {
            server.request().and("X-A: b\r\n c").to_bytes()
        }),
        ("a NUL in a value", "9110 §5.5", |server| {
            server.request().and("X-A: \0").to_bytes()
        }),
        ("no target", "9112 §3", |server| {
            server.request().line("GET HTTP/1.1").to_bytes()
        }),
        ("a head of 256 KiB", "6585 §5", |server| {
            let long = format!("X-A: {}", "a".repeat(256 * 1024));
            server.request().and(&long).to_bytes()
        }),
        ("not HTTP", "9112 §2", |_| {
            b"\x16\x03\x01\x00\x05hello\r\n\r\n".to_vec()
        }),
    ];
    requests(cases, "bad handshakes", Want::Refuse, list);
}

fn good_handshakes(cases: &mut Vec<Case>) {
    let list: &[(&str, &'static str, MakeRequest)] = &[
        ("as it is written", "6455 §1.2", |server| {
            server.request().to_bytes()
        }),
        ("names in lower case", "9110 §5.1", |server| {
            let request = String::from_utf8(server.request().to_bytes()).unwrap_or_default();
            let (first, rest) = request.split_once("\r\n").unwrap_or_default();
            let lines: Vec<String> = rest
                .split("\r\n")
                .map(|line| match line.split_once(": ") {
                    Some((name, value)) => format!("{}: {value}", name.to_lowercase()),
                    None => line.to_owned(),
                })
                .collect();
            format!("{first}\r\n{}", lines.join("\r\n")).into_bytes()
        }),
        ("Upgrade: WebSocket", "6455 §4.2.1", |server| {
            server.request().with("Upgrade", "WebSocket").to_bytes()
        }),
        ("Connection: keep-alive, upgrade", "6455 §4.2.1", |server| {
            let value = "keep-alive, upgrade";
            server.request().with("Connection", value).to_bytes()
        }),
        ("no space behind colons", "9112 §5", |server| {
            let request = String::from_utf8(server.request().to_bytes()).unwrap_or_default();
            request.replace(": ", ":").into_bytes()
        }),
        ("headers of others", "6455 §4.2.1", |server| {
            server
                .request()
                .and("X-A: b")
                .and("Cookie: a=b; c=d")
                .to_bytes()
        }),
        (
            "a subprotocol that it does not have",
            "6455 §4.2.2",
            |server| {
                server
                    .request()
                    .and("Sec-WebSocket-Protocol: none.such")
                    .to_bytes()
            },
        ),
        (
            "an extension that it does not have",
            "6455 §9.1",
            |server| {
                server
                    .request()
                    .and("Sec-WebSocket-Extensions: none-such; a=1")
                    .to_bytes()
            },
        ),
    ];
    requests(cases, "good handshakes", Want::Upgrade, list);
}

/// Raw deflate blocks (RFC 1951), as RFC 7692 has them: without the last four bytes.
fn compression(cases: &mut Vec<Case>) {
    let group = "permessage-deflate";
    let mut add = |name: &str, rfc, want, bytes: Vec<u8>, payload: &'static [u8]| {
        let case = move |server: &Server| with_deflate(server, &bytes, payload);
        cases.push(Case::new(group, name, rfc, want, case));
    };
    let rsv1 = FIN | RSV1 | TEXT;
    // RFC 7692 §7.2.3.1.
    let hello: &[u8] = &[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
    let stored: &[u8] = &[
        0x00, 0x05, 0x00, 0xFA, 0xFF, b'H', b'e', b'l', b'l', b'o', 0x00,
    ];
    let last: &[u8] = &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00];
    let two: &[u8] = &[
        0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00,
    ];
    let mut add_echo = |name: &str, rfc, deflated: &[u8], payload| {
        add(name, rfc, Want::Echo, short(rsv1, deflated), payload);
    };
    add_echo("one block", "7692 §7.2.3.1", hello, b"Hello");
    add_echo("a stored block", "7692 §7.2.3.3", stored, b"Hello");
    add_echo("a block with BFINAL", "7692 §7.2.3.4", last, b"Hello");
    add_echo("two blocks", "7692 §7.2.3.5", two, b"Hello");
    add_echo("an empty message", "7692 §7.2.3.6", &[0x00], b"");
    add_echo("an empty fixed block", "7692 §7.2.3.6", &[0x02, 0x00], b"");
    let fragments = [short(RSV1 | TEXT, &hello[..3]), short(FIN, &hello[3..])].concat();
    add(
        "fragments",
        "7692 §7.2.3.1",
        Want::Echo,
        fragments,
        b"Hello",
    );
    let plain = short(FIN | TEXT, b"Hello");
    add(
        "a message that is not compressed",
        "7692 §6",
        Want::Echo,
        plain,
        b"Hello",
    );
    let continuation = [short(TEXT, b"a"), short(FIN | RSV1, hello)].concat();
    add(
        "RSV1 on a continuation",
        "7692 §6.1",
        Want::Fail(1002),
        continuation,
        b"",
    );
    let ping = short(FIN | RSV1 | PING, b"x");
    add("RSV1 on a ping", "7692 §6.1", Want::Fail(1002), ping, b"");
    let garbage = short(rsv1, &[0xFF, 0xFF, 0xFF, 0xFF]);
    add(
        "a block of no type",
        "7692 §7.2.2",
        Want::FailAny(&[1007, 1002]),
        garbage,
        b"",
    );
    let wrong = short(rsv1, &[0x00, 0x05, 0x00, 0x00, 0x00, b'H']);
    let want = Want::FailAny(&[1007, 1002]);
    add(
        "a stored block whose length is wrong",
        "7692 §7.2.2",
        want,
        wrong,
        b"",
    );
}

/// Offers compression without context takeover and sends frames.
fn with_deflate(server: &Server, frames: &[u8], payload: &[u8]) -> Seen {
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; \
                 server_no_context_takeover; client_no_context_takeover";
    let mut wire = match server.connect(None) {
        Ok(wire) => wire,
        Err(error) => return Seen::Other(error.to_string()),
    };
    wire.write(&server.request().and(offer).to_bytes());
    match wire.agreed() {
        Err(seen) => return seen,
        Ok(head) if !head.to_ascii_lowercase().contains("permessage-deflate") => {
            return Seen::NotAgreed;
        }
        Ok(_) => {}
    }
    wire.write(frames);
    let frame = match wire.message() {
        Ok(frame) => frame,
        Err(seen) => return seen,
    };
    let mut inflated = frame.payload;
    if frame.header.rsv1 {
        // RFC 7692 §7.2.2, and a last block for those who want one.
        let tail = [0x00, 0x00, 0xFF, 0xFF, 0x03, 0x00];
        let deflated = [&inflated[..], &tail].concat();
        inflated = Vec::new();
        let mut decoder = flate2::read::DeflateDecoder::new(&deflated[..]);
        if decoder.read_to_end(&mut inflated).is_err() {
            return Seen::Other("a bad deflate stream".to_owned());
        }
    }
    if inflated == payload {
        Seen::Echo
    } else {
        Seen::Other("another message".to_owned())
    }
}
