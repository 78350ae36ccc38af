//! A client that sends whatever bytes it is told to.

use std::cell::RefCell;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use sockeye::Upgrade;
use sockeye::client;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;
use sockeye::testkit::SimClient;
use sockeye::testkit::SimServer;

use super::Deflate;
use super::KEY;
use super::Probe;
use super::certificates;

pub enum End {
    Live(TcpStream),
    Sim(SimClient, Rc<RefCell<SimServer<Probe>>>),
}

/// A client's end: sends any bytes, and reads frames.
pub struct Link {
    pub end: End,
    pub tls: Option<Box<rustls::Connection>>,
    received: Vec<u8>,
    /// It is the server's end: it gets masked frames and sends unmasked ones.
    is_server: bool,
    /// Masking keys that it got.
    pub mask_keys: Vec<[u8; 4]>,
    /// The lengths of the TLS records that it got.
    pub record_lens: Vec<usize>,
    /// The beginning of the next record.
    record: Vec<u8>,
    dribbles: bool,
    /// Compression that has been agreed.
    pub deflate: Option<Deflate>,
    /// Whether each message that it got was compressed, and to how many bytes.
    pub deflated_lens: Vec<Option<usize>>,
    /// Its stream is another link's.
    handed_over: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub opcode: Opcode,
    pub payload: Vec<u8>,
}

pub const REQUEST: &str = "GET / HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\n\
     Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// The request with another header.
pub fn request_with(header: &str) -> String {
    REQUEST.replacen("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"), 1)
}

/// The answer to a client's request.
pub fn accept_of(request: &str, headers: &str) -> String {
    let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap();
    let key = key.split("\r\n").next().unwrap();
    let accept = sockeye::protocol::handshake::accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{headers}\r\n",
        str::from_utf8(&accept).unwrap()
    )
}

impl Link {
    pub(super) fn new(end: End, tls: bool) -> Self {
        let tls = tls.then(|| rustls::Connection::from(certificates::client_session("localhost")));
        Self::new_as(end, tls, false, false)
    }

    pub(super) fn new_as(
        end: End,
        tls: Option<rustls::Connection>,
        is_server: bool,
        dribbles: bool,
    ) -> Self {
        let mut link = Self {
            end,
            tls: tls.map(Box::new),
            received: Vec::new(),
            is_server,
            mask_keys: Vec::new(),
            record_lens: Vec::new(),
            record: Vec::new(),
            dribbles,
            deflate: None,
            deflated_lens: Vec::new(),
            handed_over: false,
        };
        while link.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            let flight = link.take_sealed();
            assert!(link.try_send_raw(&flight), "the server took no handshake");
            if link.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
                assert!(link.fill(), "the server ended the TLS handshake");
            }
        }
        let flight = link.take_sealed();
        link.try_send_raw(&flight);
        link
    }

    pub(super) fn into_end(mut self) -> End {
        // Its drop would end a simulated stream.
        self.handed_over = true;
        match &self.end {
            End::Live(stream) => End::Live(stream.try_clone().unwrap()),
            End::Sim(client, server) => End::Sim(client.clone(), Rc::clone(server)),
        }
    }

    /// What TLS has to send.
    fn take_sealed(&mut self) -> Vec<u8> {
        let mut sealed = Vec::new();
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut sealed).unwrap();
            }
        }
        sealed
    }

    /// The bytes on the wire.
    pub fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        match &mut self.tls {
            None => bytes.to_vec(),
            Some(tls) => {
                tls.set_buffer_limit(None);
                tls.writer().write_all(bytes).unwrap();
                self.take_sealed()
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let wire = self.seal(bytes);
        match &mut self.end {
            End::Live(stream) => stream.write_all(&wire).unwrap(),
            End::Sim(..) => {
                self.try_send_raw(&wire);
            }
        }
    }

    /// Sends though the server may have closed.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        let wire = self.seal(bytes);
        self.try_send_raw(&wire)
    }

    /// Sends these bytes, whether there is TLS or not.
    pub fn try_send_raw(&mut self, wire: &[u8]) -> bool {
        if self.dribbles && wire.len() > 1 {
            return wire.iter().all(|byte| self.try_send_raw(&[*byte]));
        }
        match &mut self.end {
            End::Live(stream) => stream.write_all(wire).is_ok(),
            End::Sim(client, server) => {
                client.send(wire);
                server.borrow_mut().turn().unwrap();
                true
            }
        }
    }

    /// Sends so that each byte is received alone.
    pub fn dribble(&mut self, bytes: &[u8]) {
        for byte in bytes {
            for byte in self.seal(&[*byte]) {
                self.try_send_raw(&[byte]);
            }
        }
    }

    /// Takes bytes off the wire.
    fn take(&mut self, wire: &[u8]) {
        let Some(tls) = &mut self.tls else {
            return self.received.extend_from_slice(wire);
        };
        self.record.extend_from_slice(wire);
        while let Some(len) = self.record.get(3..5) {
            let len = 5 + usize::from(u16::from_be_bytes([len[0], len[1]]));
            if self.record.len() < len {
                break;
            }
            self.record.drain(..len);
            self.record_lens.push(len);
        }
        let mut rest = wire;
        while !rest.is_empty() {
            tls.read_tls(&mut rest).unwrap();
            tls.process_new_packets().unwrap();
            // The end of the stream is not there yet.
            let _ = tls.reader().read_to_end(&mut self.received);
        }
    }

    /// Reads more; false at the end of the stream.
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match &mut self.end {
            End::Live(stream) => match retry_interrupted(|| stream.read(&mut buffer)) {
                Ok(0) => false,
                Ok(len) => {
                    self.take(&buffer[..len]);
                    true
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    panic!("reset by the server: what it had sent may be lost")
                }
                Err(error) => panic!("nothing came: {error}"),
            },
            End::Sim(client, server) => {
                for _ in 0..20_000 {
                    let bytes = client.receive(usize::MAX);
                    if !bytes.is_empty() {
                        self.take(&bytes);
                        return true;
                    }
                    if client.is_finished() {
                        return false;
                    }
                    server.borrow_mut().turn().unwrap();
                }
                panic!("nothing came");
            }
        }
    }

    /// What comes next, or nothing at the end of the stream.
    pub fn read_some(&mut self) -> Vec<u8> {
        self.fill();
        std::mem::take(&mut self.received)
    }

    /// Everything up to the end of the stream.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.received)
    }

    /// Everything up to the end of a stream that the server may break off.
    pub fn read_to_end_or_reset(&mut self) -> Vec<u8> {
        if let End::Live(stream) = &mut self.end {
            let mut bytes = Vec::new();
            match stream.read_to_end(&mut bytes) {
                Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
                    panic!("nothing came: {error}")
                }
                _ => return bytes,
            }
        }
        self.read_to_end()
    }

    /// A response head.
    pub fn read_head(&mut self) -> String {
        loop {
            if let Some(len) = sockeye::http1::head_len(&self.received, 0) {
                let head: Vec<u8> = self.received.drain(..len).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.fill(), "the stream ended inside a head");
        }
    }

    /// The status of the answer.
    pub fn read_status(&mut self) -> u16 {
        self.read_head()[9..12].parse().unwrap()
    }

    pub fn upgrade(&mut self) {
        self.send(REQUEST.as_bytes());
        let head = self.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        assert!(head.contains(accept), "{head}");
    }

    /// The server's side of the opening handshake; `headers` are lines that the answer has
    /// besides. Gives the request.
    pub fn accept_upgrade(&mut self, headers: &str) -> String {
        let request = self.read_head();
        let answer = accept_of(&request, headers);
        self.send(answer.as_bytes());
        request
    }

    /// The next frame, none at the end of the stream.
    pub fn next_frame(&mut self) -> Option<Received> {
        let (fin, frame) = self.next_fragment()?;
        assert!(fin, "a server fragmented");
        Some(frame)
    }

    /// The next frame, and whether its message ends with it.
    pub fn next_fragment(&mut self) -> Option<(bool, Received)> {
        loop {
            let decoded = FrameHeader::decode(&self.received).expect("a legal frame");
            if let Some((header, header_len)) = decoded {
                assert_eq!(header.mask_key.is_some(), self.is_server, "masked or not");
                let deflates = self.deflate.is_some();
                assert!(!header.rsv1 || deflates, "compressed without being asked");
                let len = header_len + header.payload_len as usize;
                if self.received.len() >= len {
                    let mut frame: Vec<u8> = self.received.drain(..len).collect();
                    if let Some(key) = header.mask_key {
                        self.mask_keys.push(key);
                        sockeye::protocol::mask(&mut frame[header_len..], key);
                    }
                    let mut payload = frame[header_len..].to_vec();
                    if matches!(header.opcode, Opcode::Text | Opcode::Binary) {
                        let len = header.rsv1.then_some(payload.len());
                        self.deflated_lens.push(len);
                    }
                    if let Some(deflate) = self.deflate.as_mut().filter(|_| header.rsv1) {
                        assert!(header.fin, "compressed fragments are not expected here");
                        payload = deflate.inflate(&payload);
                    }
                    let received = Received {
                        opcode: header.opcode,
                        payload,
                    };
                    return Some((header.fin, received));
                }
            }
            if !self.fill() {
                assert!(self.received.is_empty(), "the stream ended inside a frame");
                return None;
            }
        }
    }

    pub fn send_frame(&mut self, opcode: Opcode, payload: &[u8]) {
        let frame = if self.is_server {
            server_frame(0x80 | opcode as u8, payload)
        } else {
            frame(opcode, payload)
        };
        self.send(&frame);
    }

    /// A compressed message, in one frame.
    pub fn send_deflated(&mut self, opcode: Opcode, payload: &[u8]) {
        let deflate = self.deflate.as_mut().expect("it has been agreed");
        let deflated = deflate.deflate(payload);
        self.send_rsv1(opcode, &deflated);
    }

    /// A frame that says it is compressed.
    pub fn send_rsv1(&mut self, opcode: Opcode, payload: &[u8]) {
        let first = 0xC0 | opcode as u8;
        let frame = match self.is_server {
            true => server_frame(first, payload),
            false => raw_frame(first, payload),
        };
        self.send(&frame);
    }

    pub fn send_text(&mut self, text: &str) {
        self.send_frame(Opcode::Text, text.as_bytes());
    }

    #[track_caller]
    pub fn expect(&mut self, opcode: Opcode, payload: &[u8]) {
        let got = self.next_frame().expect("a frame");
        assert_eq!(got.opcode, opcode, "{got:?}");
        assert!(got.payload == payload, "got {} bytes", got.payload.len());
    }

    /// A ping of the engine's own, which carries the time, hidden.
    #[track_caller]
    pub fn expect_own_ping(&mut self) -> Vec<u8> {
        let got = self.next_frame().expect("a ping");
        assert_eq!((got.opcode, got.payload.len()), (Opcode::Ping, 16));
        got.payload
    }

    #[track_caller]
    pub fn expect_text(&mut self, text: &str) {
        self.expect(Opcode::Text, text.as_bytes());
    }

    /// A Close frame with this code, then a FIN, which a client sends behind the server's.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) {
        let got = self.next_frame().expect("a Close frame");
        assert_eq!(got.opcode, Opcode::Close, "{got:?}");
        let got_code = got
            .payload
            .first_chunk::<2>()
            .map_or(1005, |code| u16::from_be_bytes(*code));
        assert_eq!(got_code, code, "{got:?}");
        if self.is_server {
            self.shutdown();
        }
        assert_eq!(self.next_frame(), None, "behind a Close frame");
    }

    /// A Close frame with this code, which is answered, then a FIN.
    #[track_caller]
    pub fn expect_close_answered(&mut self, code: u16) {
        let got = self.next_frame().expect("a Close frame");
        assert_eq!(got.opcode, Opcode::Close, "{got:?}");
        assert_eq!(got.payload[..2], code.to_be_bytes(), "{got:?}");
        self.send_frame(Opcode::Close, &code.to_be_bytes());
        assert_eq!(self.next_frame(), None, "behind a Close frame");
    }

    /// The closing handshake, begun here.
    pub fn close(&mut self, code: u16) {
        self.send_frame(Opcode::Close, &code.to_be_bytes());
        self.expect_close(code);
    }

    pub fn shutdown(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let wire = self.take_sealed();
            self.try_send_raw(&wire);
        }
        match &mut self.end {
            End::Live(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            End::Sim(client, server) => {
                client.shutdown();
                server.borrow_mut().turn().unwrap();
            }
        }
    }

    /// Ends the server's end of a connection after its Close frame.
    pub fn finish(&mut self) {
        self.shutdown();
        assert_eq!(self.next_frame(), None);
    }

    /// Breaks the connection.
    pub fn reset(mut self) {
        match &mut self.end {
            End::Live(stream) => {
                let socket = socket2::SockRef::from(&*stream);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
            End::Sim(client, _) => client.reset(),
        }
    }
}

/// A process that is stopped and goes on has its reads with a time-out interrupted.
fn retry_interrupted(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // As the kernel does for a live one.
        if let End::Sim(client, _) = &self.end
            && !self.handed_over
        {
            client.shutdown();
        }
    }
}

/// A server's frame whose first byte is given.
pub fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        fin: true,
        rsv1: false,
        opcode: Opcode::Binary,
        payload_len: payload.len() as u64,
        mask_key: None,
    };
    let mut frame = header.encode().as_bytes().to_vec();
    frame[0] = first;
    frame.extend_from_slice(payload);
    frame
}

/// A masked frame, FIN set.
pub fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    raw_frame(0x80 | opcode as u8, payload)
}

/// A masked frame whose first byte is given.
pub fn raw_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        fin: true,
        rsv1: false,
        opcode: Opcode::Binary,
        payload_len: payload.len() as u64,
        mask_key: Some(KEY),
    };
    let mut frame = header.encode().as_bytes().to_vec();
    frame[0] = first;
    frame.extend(masked(payload));
    frame
}

pub fn masked(payload: &[u8]) -> impl Iterator<Item = u8> + '_ {
    payload
        .iter()
        .zip(KEY.iter().cycle())
        .map(|(byte, key)| byte ^ key)
}

/// A fragment: FIN clear.
pub fn fragment(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    raw_frame(opcode as u8, payload)
}
