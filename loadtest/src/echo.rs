//! The closed echo loop.

use std::io;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use simd_adler32::adler32;
use sockeye::http1::ResponseHead;
use sockeye::http1::head_len;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::HEADER_LEN_MAX;
use sockeye::protocol::Opcode;
use sockeye::protocol::Role;
use sockeye::protocol::handshake::ClientRequest;
use sockeye::protocol::handshake::check_response;
use sockeye::simd;
use sockeye::simd::MaskKey;

/// Number and checksum.
pub const PAYLOAD_LEN_MIN: usize = 8 + 4;

/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub address: SocketAddr,
    pub connections: usize,
    pub depth: usize,
    /// At least [`PAYLOAD_LEN_MIN`].
    pub payload_len: usize,
    pub duration: Duration,
}

/// What was done; every reply was right.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub messages: u64,
    pub elapsed: Duration,
}

/// Runs the plan.
///
/// # Errors
/// The first connection that failed, and why: a reply that was wrong, lost, doubled or out of
/// order, or an I/O error.
pub fn run(plan: &Plan) -> io::Result<Outcome> {
    assert!(plan.payload_len >= PAYLOAD_LEN_MIN);
    let connections: Vec<Connection> = (0..plan.connections)
        .map(|_| Connection::open(plan))
        .collect::<io::Result<_>>()?;
    let start = Instant::now();
    let threads: Vec<_> = connections
        .into_iter()
        .map(|connection| thread::spawn(move || connection.run(start)))
        .collect();
    let mut messages = 0;
    for thread in threads {
        messages += thread
            .join()
            .expect("a connection's thread does not panic")?;
    }
    let elapsed = start.elapsed();
    Ok(Outcome { messages, elapsed })
}

struct Connection {
    stream: BufReader<TcpStream>,
    plan: Plan,
    payload: Vec<u8>,
    output: Vec<u8>,
}

fn failed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Connection {
    fn open(plan: &Plan) -> io::Result<Self> {
        let stream = TcpStream::connect(plan.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Self {
            stream: BufReader::with_capacity(256 * 1024, stream),
            plan: *plan,
            payload: vec![0; plan.payload_len],
            output: Vec::new(),
        };
        connection.upgrade()?;
        Ok(connection)
    }

    fn upgrade(&mut self) -> io::Result<()> {
        let host = self.plan.address.to_string();
        let request = ClientRequest {
            host: &host,
            target: "/",
            // Nothing on this machine caches: the nonce has nobody to surprise.
            nonce: *b"sockeye-loadtest",
            ..ClientRequest::default()
        };
        request
            .write(&mut self.output)
            .map_err(|error| failed(error.to_string()))?;
        self.stream.get_mut().write_all(&self.output)?;
        self.output.clear();
        let mut head = Vec::new();
        while head_len(&head, 0).is_none() {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let mut storage = [sockeye::http1::EMPTY_HEADER; 64];
        let response = ResponseHead::parse(&head, &mut storage)
            .ok_or_else(|| failed("malformed response".to_owned()))?;
        check_response(&response, &request).map_err(|error| failed(error.to_string()))?;
        Ok(())
    }

    fn run(mut self, start: Instant) -> io::Result<u64> {
        let mut sent = 0;
        let mut received = 0;
        for _ in 0..self.plan.depth {
            self.push(sent);
            sent += 1;
        }
        while received < sent {
            self.stream.get_mut().write_all(&self.output)?;
            self.output.clear();
            self.expect(received)?;
            received += 1;
            // Whatever else has arrived with it belongs to the same round.
            while received < sent && !self.stream.buffer().is_empty() {
                self.expect(received)?;
                received += 1;
            }
            if start.elapsed() < self.plan.duration {
                while sent < received + self.plan.depth as u64 {
                    self.push(sent);
                    sent += 1;
                }
            }
        }
        Ok(received)
    }

    /// Adds message `number` to the output.
    fn push(&mut self, number: u64) {
        fill(&mut self.payload, number);
        let key = (number as u32).wrapping_mul(0x9E37_79B9).to_ne_bytes();
        let header = FrameHeader {
            fin: true,
            rsv1: false,
            opcode: Opcode::Binary,
            payload_len: self.payload.len() as u64,
            mask_key: Some(key),
        };
        self.output.extend_from_slice(header.encode().as_bytes());
        let start = self.output.len();
        self.output.extend_from_slice(&self.payload);
        simd::unmask(&mut self.output[start..], MaskKey::new(key));
    }

    /// Takes the reply to message `number`.
    fn expect(&mut self, number: u64) -> io::Result<()> {
        let mut header = [0; HEADER_LEN_MAX];
        let mut len = 0;
        let header = loop {
            self.stream.read_exact(&mut header[len..len + 1])?;
            len += 1;
            let decoded = FrameHeader::decode(&header[..len]);
            match decoded.map_err(|error| failed(error.to_string()))? {
                Some((header, _)) => break header,
                None => continue,
            }
        };
        header
            .check_mask(Role::Client)
            .map_err(|error| failed(error.to_string()))?;
        if header.opcode != Opcode::Binary || !header.fin {
            return Err(failed(format!("reply {number} is {header:?}")));
        }
        if header.payload_len != self.payload.len() as u64 {
            return Err(failed(format!(
                "reply {number} has {} bytes",
                header.payload_len
            )));
        }
        self.stream.read_exact(&mut self.payload)?;
        check(&self.payload, number).map_err(failed)
    }
}

/// Number, checksum of the rest, and the rest, which differs from message to message.
fn fill(payload: &mut [u8], number: u64) {
    payload[..8].copy_from_slice(&number.to_be_bytes());
    let filler = number.to_le_bytes();
    for chunk in payload[PAYLOAD_LEN_MIN..].chunks_mut(filler.len()) {
        chunk.copy_from_slice(&filler[..chunk.len()]);
    }
    let sum = adler32(&&payload[PAYLOAD_LEN_MIN..]);
    payload[8..PAYLOAD_LEN_MIN].copy_from_slice(&sum.to_be_bytes());
}

fn check(payload: &[u8], number: u64) -> Result<(), String> {
    let (got, rest) = payload.split_first_chunk::<8>().expect("12 bytes or more");
    let got = u64::from_be_bytes(*got);
    if got != number {
        return Err(format!("reply {got} came where {number} was due"));
    }
    let (sum, rest) = rest.split_first_chunk::<4>().expect("12 bytes or more");
    if u32::from_be_bytes(*sum) != adler32(&rest) {
        return Err(format!("reply {number} was altered"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sockeye::Server;

    use super::*;

    fn run_against(
        on_message: impl Fn(&mut sockeye::Context<'_, ()>, sockeye::Message<'_>)
        + Clone
        + Send
        + Sync
        + 'static,
    ) -> io::Result<Outcome> {
        let server = Server::builder()
            .on_message(on_message)
            .threads(1)
            .bind("127.0.0.1:0")
            .expect("a free port")
            .spawn()
            .expect("it starts");
        let outcome = run(&Plan {
            address: server.local_addr().ip().expect("an IP address"),
            connections: 2,
            depth: 4,
            payload_len: 100,
            duration: Duration::from_millis(50),
        });
        server.shutdown();
        server.join().expect("it ends");
        outcome
    }

    #[test]
    fn honest_server_passes() {
        let outcome = run_against(|conn, message| {
            conn.send(message);
        });
        assert!(outcome.expect("every reply is right").messages >= 8);
    }

    /// What `run` says of a server that treats the message numbered 5 as `alter` does.
    fn caught(alter: fn(&mut sockeye::Context<'_, ()>, &[u8])) -> String {
        let outcome = run_against(move |conn, message| {
            if message.payload()[..8] == 5_u64.to_be_bytes() {
                alter(conn, message.payload());
            } else {
                conn.send(message);
            }
        });
        outcome.expect_err("it cheats").to_string()
    }

    #[test]
    fn cheating_servers_are_caught() {
        let altered = caught(|conn, payload| {
            let mut payload = payload.to_vec();
            payload[50] ^= 1;
            conn.send(&payload);
        });
        assert!(altered.contains("altered"), "{altered}");
        let doubled = caught(|conn, payload| {
            conn.send(payload);
            conn.send(payload);
        });
        assert!(
            doubled.contains("reply 5 came where 6 was due"),
            "{doubled}"
        );
        let lost = caught(|_, _| {});
        assert!(lost.contains("came where 5 was due"), "{lost}");
        let cut = caught(|conn, payload| {
            conn.send(&payload[..20]);
        });
        assert!(cut.contains("has 20 bytes"), "{cut}");
    }
}
