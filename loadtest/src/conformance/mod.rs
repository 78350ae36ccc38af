//! Byte-exact cases for any echo server, those that the Autobahn suite lacks: what it did
//! beside what the RFCs say.

mod cases;
mod wire;

use std::fmt;
use std::io;
use std::io::Write;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;

pub use wire::Address;
pub use wire::Seen;
pub use wire::Server;

/// Cases that run at once.
const AT_ONCE: usize = 16;

/// What a server is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// Send it back.
    Echo,
    /// Send the pong first.
    Pong,
    /// Answer a Close frame with the same code, or with none.
    Answer(Option<u16>),
    /// Answer a Close frame whose code some implementations do not know.
    Registered(u16),
    /// Fail the connection with this code.
    Fail(u16),
    /// Fail the connection with one of these codes.
    FailAny(&'static [u16]),
    /// Answer with an HTTP error, or not at all.
    Refuse,
    /// Upgrade.
    Upgrade,
}

/// How what a server did compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It did that.
    Right,
    /// It did what an RFC allows, and says should be otherwise.
    Allowed,
    /// It did something else.
    Wrong,
    /// The case is about something that the server does not offer.
    NotOffered,
}

impl Want {
    /// How this compares with what was seen.
    pub fn verdict(&self, seen: &Seen) -> Verdict {
        let is_right = match (self, seen) {
            (_, Seen::NotAgreed) => return Verdict::NotOffered,
            (Self::Echo, seen) => *seen == Seen::Echo,
            (Self::Pong, seen) => *seen == Seen::Other("pong".to_owned()),
            (Self::Answer(code), Seen::Close(got)) => match got {
                // RFC 6455 §5.5.1: it typically echoes the code.
                _ if got == code => true,
                Some(1000) | None => return Verdict::Allowed,
                _ => false,
            },
            (Self::Registered(code), Seen::Close(got)) => match got {
                Some(got) if got == code => true,
                Some(1000 | 1002) | None => return Verdict::Allowed,
                _ => false,
            },
            (Self::Fail(code), Seen::Close(got)) => *got == Some(*code),
            (Self::FailAny(codes), Seen::Close(Some(got))) => codes.contains(got),
            // RFC 6455 §7.1.7: a Close frame should be sent, and need not be.
            (Self::Fail(_) | Self::FailAny(_), Seen::Dropped) => return Verdict::Allowed,
            (Self::Refuse, Seen::Http(status)) => (400..600).contains(status),
            (Self::Refuse, Seen::Dropped) => return Verdict::Allowed,
            (Self::Upgrade, seen) => *seen == Seen::Upgraded,
            _ => false,
        };
        if is_right {
            Verdict::Right
        } else {
            Verdict::Wrong
        }
    }
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo => f.write_str("echo"),
            Self::Pong => f.write_str("pong"),
            Self::Answer(Some(code)) | Self::Fail(code) => write!(f, "Close {code}"),
            Self::Answer(None) => f.write_str("Close without code"),
            Self::Registered(_) => f.write_str("Close, same code"),
            Self::FailAny(codes) => {
                let codes: Vec<String> = codes.iter().map(u16::to_string).collect();
                write!(f, "Close {}", codes.join(" or "))
            }
            Self::Refuse => f.write_str("HTTP 4xx"),
            Self::Upgrade => f.write_str("upgraded"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Right => "ok",
            Self::Allowed => "allowed",
            Self::Wrong => "WRONG",
            Self::NotOffered => "-",
        })
    }
}

/// What a case does with a server.
type Act = Box<dyn Fn(&Server) -> Seen + Send + Sync>;

/// One case.
pub struct Case {
    group: &'static str,
    name: String,
    rfc: &'static str,
    want: Want,
    act: Act,
}

impl Case {
    fn new(
        group: &'static str,
        name: &str,
        rfc: &'static str,
        want: Want,
        act: impl Fn(&Server) -> Seen + Send + Sync + 'static,
    ) -> Self {
        Self {
            group,
            name: name.to_owned(),
            rfc,
            want,
            act: Box::new(act),
        }
    }
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is about.
    pub group: String,
    /// The case.
    pub name: String,
    /// Where that is said.
    pub rfc: String,
    /// What the server is to do.
    pub want: String,
    /// What it did.
    pub seen: String,
    /// How that compares.
    pub verdict: Verdict,
}

/// What a server did in all cases.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Its lines.
    pub rows: Vec<Row>,
}

impl Table {
    /// How many lines have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.rows
            .iter()
            .filter(|row| row.verdict == verdict)
            .count()
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut group = "";
        for row in &self.rows {
            if row.group != group {
                group = &row.group;
                writeln!(out, "\n{group}")?;
            }
            let Row {
                name,
                rfc,
                want,
                seen,
                verdict,
                ..
            } = row;
            writeln!(out, "  {verdict:<8} {name:<40} {rfc:<14} {want:<20} {seen}")?;
        }
        writeln!(
            out,
            "\n{} right, {} allowed, {} wrong, {} about what the server does not offer",
            self.count(Verdict::Right),
            self.count(Verdict::Allowed),
            self.count(Verdict::Wrong),
            self.count(Verdict::NotOffered)
        )
    }
}

/// Runs every case, some at once; `codes` are the close codes to try.
pub fn run(server: &Server, codes: std::ops::RangeInclusive<u16>) -> Table {
    let cases = cases::all();
    let seen = in_parallel(cases.len(), |index| (cases[index].act)(server));
    let mut rows: Vec<Row> = Vec::new();
    for (case, seen) in cases.iter().zip(seen) {
        rows.push(Row {
            group: case.group.to_owned(),
            name: case.name.clone(),
            rfc: case.rfc.to_owned(),
            want: case.want.to_string(),
            verdict: case.want.verdict(&seen),
            seen: seen.to_string(),
        });
    }
    rows.extend(close_codes(server, codes));
    Table { rows }
}

/// Every close code; codes that follow each other and fare alike share a line.
fn close_codes(server: &Server, codes: std::ops::RangeInclusive<u16>) -> Vec<Row> {
    let (first, last) = (*codes.start(), *codes.end());
    let seen = in_parallel(usize::from(last - first) + 1, |index| {
        cases::close_with(server, first + index as u16)
    });
    let mut rows: Vec<(u16, u16, Row)> = Vec::new();
    for (code, seen) in codes.zip(seen) {
        let (want, rfc) = cases::answer_to(code);
        let verdict = want.verdict(&seen);
        let same = |seen: &Seen| match seen {
            Seen::Close(Some(got)) if *got == code => "Close, same code".to_owned(),
            seen => seen.to_string(),
        };
        let row = Row {
            group: "close codes".to_owned(),
            name: String::new(),
            rfc: rfc.to_owned(),
            want: match want {
                Want::Answer(_) => "Close, same code".to_owned(),
                want => want.to_string(),
            },
            seen: same(&seen),
            verdict,
        };
        match rows.last_mut() {
            Some((_, end, last)) if *last == row => *end = code,
            _ => rows.push((code, code, row)),
        }
    }
    let named = |(first, last, row): (u16, u16, Row)| Row {
        name: if first == last {
            format!("{first}")
        } else {
            format!("{first} to {last}")
        },
        ..row
    };
    rows.into_iter().map(named).collect()
}

/// Calls with 0, 1, …, some at once; what comes of it, in that order.
fn in_parallel<T: Send>(count: usize, call: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicU32::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed) as usize;
            if index >= count {
                return done;
            }
            done.push((index, call(index)));
        }
    };
    let mut done: Vec<(usize, T)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Vec<(usize, T)>>| {
            worker.join().expect("cases do not panic")
        };
        workers.into_iter().flat_map(join).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::io::BufReader;
    use std::net::SocketAddr;
    use std::net::TcpListener;

    use sockeye::protocol::handshake;

    use super::*;

    fn server(address: SocketAddr) -> Server {
        Server {
            address: Address::Ip(address),
            host: address.to_string(),
            target: "/".to_owned(),
            tls: None,
        }
    }

    fn rows<'a>(table: &'a Table, group: &'a str) -> impl Iterator<Item = &'a Row> {
        table.rows.iter().filter(move |row| row.group == group)
    }

    #[test]
    fn sockeye_is_right_in_all_cases() {
        let running = sockeye::Server::builder()
            .on_message(|conn, message| {
                conn.send(message);
            })
            .threads(1)
            .bind("127.0.0.1:0")
            .and_then(sockeye::Server::spawn)
            .expect("it starts");
        let address = running.local_addr().ip().expect("TCP");
        let table = run(&server(address), 995..=1020);
        let mut text = Vec::new();
        table.write(&mut text).expect("memory takes it");
        let text = String::from_utf8(text).expect("text");
        assert_eq!(table.count(Verdict::Wrong), 0, "{text}");
        assert_eq!(table.count(Verdict::Allowed), 0, "{text}");
        assert!(table.count(Verdict::Right) > 100, "{text}");
        assert!(text.contains("1016 to 1020"), "{text}");
        running.shutdown();
        running.join().expect("it ends");
    }

    /// Upgrades whatever asks, and hangs up.
    fn hang_up(listener: &TcpListener) -> io::Result<()> {
        loop {
            let (stream, _) = listener.accept()?;
            let mut key = String::new();
            for line in BufReader::new(&stream).split(b'\n') {
                let line = String::from_utf8_lossy(&line?).trim().to_owned();
                if line.is_empty() {
                    break;
                }
                if let Some((name, value)) = line.split_once(": ")
                    && name.eq_ignore_ascii_case("Sec-WebSocket-Key")
                {
                    value.clone_into(&mut key);
                }
            }
            let accept = handshake::accept_key(key.as_bytes());
            let mut response = Vec::new();
            handshake::write_accept(&mut response, &accept, None, None, "");
            let _ = (&stream).write_all(&response);
        }
    }

    #[test]
    fn server_that_hangs_up_is_told_what_is_wrong() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        thread::spawn(move || hang_up(&listener));
        let table = run(&server(address), 1000..=1000);
        let is_upgraded = |row: &&Row| row.seen == "upgraded";
        let refusals: Vec<_> = rows(&table, "bad handshakes").filter(is_upgraded).collect();
        assert!(refusals.len() > 8, "{table:?}");
        assert!(refusals.iter().all(|row| row.verdict == Verdict::Wrong));
        for row in rows(&table, "fragments").filter(|row| row.want == "echo") {
            assert_eq!((row.verdict, &row.seen[..]), (Verdict::Wrong, "dropped"));
        }
        for row in rows(&table, "reserved bits and opcodes") {
            assert_eq!((row.verdict, &row.seen[..]), (Verdict::Allowed, "dropped"));
        }
        let codes: Vec<_> = rows(&table, "close codes").collect();
        assert_eq!(codes[0].verdict, Verdict::Wrong);
    }

    #[test]
    fn verdicts_follow_the_rfc() {
        let check = |want: Want, seen: Seen, verdict: Verdict| {
            assert_eq!(want.verdict(&seen), verdict, "{want:?} {seen:?}");
        };
        let close = |code| Seen::Close(Some(code));
        check(Want::Fail(1002), close(1002), Verdict::Right);
        check(Want::Fail(1002), close(1007), Verdict::Wrong);
        check(Want::Fail(1002), Seen::Close(None), Verdict::Wrong);
        check(Want::Fail(1002), Seen::Dropped, Verdict::Allowed);
        check(Want::Fail(1002), Seen::Silence, Verdict::Wrong);
        check(Want::Fail(1002), Seen::Echo, Verdict::Wrong);
        check(Want::Answer(Some(3000)), close(3000), Verdict::Right);
        check(Want::Answer(Some(3000)), close(1000), Verdict::Allowed);
        check(Want::Answer(Some(3000)), close(1002), Verdict::Wrong);
        check(Want::Answer(None), Seen::Close(None), Verdict::Right);
        check(Want::Registered(1014), close(1002), Verdict::Allowed);
        check(Want::Refuse, Seen::Http(400), Verdict::Right);
        check(Want::Refuse, Seen::Http(200), Verdict::Wrong);
        check(Want::Refuse, Seen::Upgraded, Verdict::Wrong);
        check(Want::Upgrade, Seen::Http(400), Verdict::Wrong);
        check(Want::Echo, Seen::NotAgreed, Verdict::NotOffered);
    }
}
