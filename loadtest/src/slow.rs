//! Clients that send and read slowly, or not at all, beside others that echo: what the slow
//! ones cost the server, and the others.

use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use sockeye::Connect;
use sockeye::client::Builder;
use sockeye::client::Stream;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;

use crate::echo;
use crate::report::Latency;
use crate::report::Report;
use crate::watch::Watch;

/// How often the slow clients send and read.
const TICK: Duration = Duration::from_millis(10);

/// The receive buffer of a slow client: what it has not read is the server's to hold.
const RECEIVE_BUFFER_LEN: usize = 4096;

/// Payload bytes of a message of a slow client.
const MESSAGE_LEN: usize = 1024;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The clients that read.
    pub echo: echo::Plan,
    /// Clients that do not.
    pub slow: usize,
    /// Bytes that each of these reads in a second; 0 for none.
    pub read_per_second: usize,
    /// Bytes that each of these sends in a second, if the server takes them.
    pub write_per_second: usize,
}

/// What the slow clients have seen.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    sent: u64,
    received: u64,
    ended: u64,
}

/// A client that sends whole frames for ever, from a place in one of them, or nothing.
pub struct Slow {
    stream: Stream,
    frame_at: usize,
    ended: bool,
}

/// Runs the plan.
///
/// # Errors
/// The first thing that was wrong with the clients that read.
pub fn run(plan: &Plan, watch: &Watch) -> Result<Report, String> {
    let mut report = Report {
        scenario: "slow".to_owned(),
        unit: "message".to_owned(),
        ..Report::default()
    };
    let before = watch.before()?;
    let mut clients = Vec::new();
    for number in 0..plan.slow {
        clients.push(open(plan.echo.target.connect(number))?);
    }
    let stop = AtomicBool::new(false);
    let stopped = || stop.load(Ordering::Relaxed);
    let (times, outcome) = thread::scope(|scope| {
        let slow = scope.spawn(|| crawl(&mut clients, plan, stopped));
        let connections = plan.echo.connections as u64;
        let load = echo::load(&plan.echo, |run| {
            watch.measure(run, connections, connections, &mut report)
        });
        stop.store(true, Ordering::Relaxed);
        let outcome = slow.join().map_err(|_| "the generator panicked".to_owned());
        Ok::<_, String>((load?.0, outcome?))
    })?;
    watch.amend_memory(&before, &mut report);
    report.figure("slow clients", plan.slow as f64, "");
    report.figure("closed by server", outcome.ended as f64, "slow clients");
    report.figure("they sent", outcome.sent as f64, "B");
    report.figure("they read", outcome.received as f64, "B");
    report.latencies.push(Latency::new("round trip", &times));
    plan.echo.target.amend(&mut report);
    Ok(report)
}

/// A client that reads nothing by itself, with a small receive buffer.
///
/// # Errors
/// It cannot connect.
pub fn open(connect: &Connect) -> Result<Slow, String> {
    if connect.is_secure() || connect.is_unix() {
        return Err("slow clients speak plain TCP: ws://".to_owned());
    }
    let failed = |error: &dyn std::fmt::Display| format!("a slow client: {error}");
    let opened = Builder::new(connect.clone()).connect();
    let stream = opened.map_err(|error| failed(&error))?.into_inner();
    let tcp = stream.tcp().ok_or("not a TCP connection")?;
    let socket = socket2::SockRef::from(tcp);
    socket
        .set_recv_buffer_size(RECEIVE_BUFFER_LEN)
        .and_then(|()| socket.set_nonblocking(true))
        .map_err(|error| failed(&error))?;
    Ok(Slow {
        stream,
        frame_at: 0,
        ended: false,
    })
}

/// Sends and reads a little on each, again and again.
fn crawl(clients: &mut [Slow], plan: &Plan, stopped: impl Fn() -> bool) -> Outcome {
    let header = FrameHeader {
        fin: true,
        rsv1: false,
        opcode: Opcode::Binary,
        payload_len: MESSAGE_LEN as u64,
        // A key of zeros leaves the payload as it is.
        mask_key: Some([0; 4]),
    };
    let frame = [header.encode().as_bytes(), &[b's'; MESSAGE_LEN]].concat();
    let per_tick = |per_second: usize| (per_second as f64 * TICK.as_secs_f64()).ceil() as usize;
    let mut outcome = Outcome::default();
    let mut buffer = vec![0; per_tick(plan.read_per_second)];
    while !stopped() {
        let begun = Instant::now();
        for client in clients.iter_mut().filter(|client| !client.ended) {
            let Some(mut tcp) = client.stream.tcp() else {
                continue;
            };
            let mut room = per_tick(plan.write_per_second);
            let mut result = Ok(());
            while room > 0 && result.is_ok() {
                let rest = &frame[client.frame_at..];
                let sent = tcp.write(&rest[..rest.len().min(room)]);
                result = sent.map(|sent| {
                    client.frame_at = (client.frame_at + sent) % frame.len();
                    room -= sent;
                    outcome.sent += sent as u64;
                });
            }
            let received = read(tcp, &mut buffer, &mut outcome);
            client.ended = is_over(result) || is_over(received);
            outcome.ended += u64::from(client.ended);
        }
        thread::sleep(TICK.saturating_sub(begun.elapsed()));
    }
    outcome
}

fn read(mut tcp: &TcpStream, buffer: &mut [u8], outcome: &mut Outcome) -> io::Result<()> {
    if buffer.is_empty() {
        return Ok(());
    }
    match tcp.read(buffer)? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        len => {
            outcome.received += len as u64;
            Ok(())
        }
    }
}

fn is_over(result: io::Result<()>) -> bool {
    result.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use sockeye::DropReason;
    use sockeye::SendResult;

    use crate::crew::Target;
    use crate::echo::tests::against;
    use crate::payload::Kind;
    use crate::sizes::Sizes;

    use super::*;

    fn plan(target: Target) -> Plan {
        Plan {
            echo: echo::Plan {
                target,
                connections: 2,
                depth: 1,
                kind: Kind::Binary,
                sizes: Sizes::fixed(64),
            },
            slow: 3,
            read_per_second: 0,
            write_per_second: 50 << 20,
        }
    }

    #[test]
    fn slow_clients_are_closed_by_a_server_that_minds_and_the_others_are_served() {
        let report = against(
            |conn, message| {
                if conn.send(message) == SendResult::Dropped(DropReason::OutputLimit) {
                    conn.terminate();
                }
            },
            |target| run(&plan(target), &Watch::quiet(Duration::from_secs(2))),
        );
        let report = report.expect("the others are served");
        assert_eq!(report.figure_of("slow clients"), Some(3.0));
        assert_eq!(report.figure_of("closed by server"), Some(3.0), "{report}");
        assert_eq!(report.figure_of("they read"), Some(0.0));
        assert!(report.count > 2, "{report}");
    }

    #[test]
    fn clients_that_read_a_little_do_so() {
        let report = against(
            |conn, message| {
                conn.send(message);
            },
            |target| {
                let plan = Plan {
                    read_per_second: 100_000,
                    write_per_second: 10_000,
                    ..plan(target)
                };
                run(&plan, &Watch::quiet(Duration::from_millis(500)))
            },
        );
        let report = report.expect("all are served");
        assert_eq!(report.figure_of("closed by server"), Some(0.0), "{report}");
        let sent = report.figure_of("they sent").expect("it is there");
        assert!((5_000.0..60_000.0).contains(&sent), "{report}");
        let read = report.figure_of("they read").expect("it is there");
        assert!(read > 2_000.0, "{report}");
    }
}
