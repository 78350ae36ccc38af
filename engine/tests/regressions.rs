//! One test for each past bug, named after what broke.

use std::time::Duration;

use sockeye::Timeout;
use sockeye::protocol::Opcode;

use crate::support::End;
use crate::support::Ended;
use crate::support::Place;
use crate::support::Probe;
use crate::support::Running;
use crate::support::Settings;
use crate::support::Why;
use crate::support::World;
use crate::support::frame;

/// Lets time pass without a turn, as when the thread sleeps or is held up.
fn skip(server: &Running, time: Duration) {
    if let Place::Sim(server) = &server.place {
        server.borrow().net().advance(time);
    }
}

/// Deadlines counted from the last sweep, and a server without connections sweeps once in a
/// minute: a connection that came then was closed at once.
#[test]
fn connection_after_a_long_sleep_is_not_timed_out_at_once() {
    let server = World::Sim.start(Probe::echo());
    for seconds in [1, 20, 59, 300, 100_000] {
        skip(&server, Duration::from_secs(seconds));
        let mut link = server.open();
        link.send_text("hello");
        link.expect_text("hello");
        drop(link);
        server.wait_empty();
    }
}

/// Deadlines were checked against the time alone: where a thread had been held up, connections
/// were closed whose bytes had been there in time.
#[test]
fn peer_that_was_heard_in_time_is_not_blamed_for_a_late_thread() {
    let server = World::Sim.start(Probe::echo());
    let mut link = server.open();
    for seconds in [35, 45, 200, 400] {
        if let End::Sim(client, _) = &link.end {
            client.send(&frame(Opcode::Text, b"in time"));
        }
        skip(&server, Duration::from_secs(seconds));
        let got = link.next_frame().expect("a frame");
        // The network's own delays may let the ping go first.
        let got = match got.opcode {
            Opcode::Ping => link.next_frame().expect("a frame"),
            _ => got,
        };
        assert_eq!(
            (got.opcode, &got.payload[..]),
            (Opcode::Text, &b"in time"[..])
        );
    }
    assert_eq!(server.log().closes(), []);
}

/// All deadlines that were due were dealt with in one turn: of a million idle connections
/// thirty thousand in a second got their pings in some turns of a tenth of a second, for which
/// everyone waited.
#[test]
fn deadlines_that_are_due_together_hold_nobody_up() {
    let mut settings = Settings {
        calm: true,
        ..Settings::default()
    };
    settings.limits.ping_interval = Duration::ZERO;
    settings.limits.idle_timeout = Duration::from_secs(40);
    let server = World::Sim.start_with(settings, Probe::echo());
    let idle: Vec<_> = (0..300).map(|_| server.open()).collect();
    let mut turns = 0;
    while server.log().closes().len() < idle.len() {
        let before = server.log().closes().len();
        if before == 0 {
            skip(&server, Duration::from_millis(250));
        }
        server.turn(1);
        let closed = server.log().closes().len() - before;
        assert!(closed <= 16, "{closed} in a turn");
        turns += 1;
        assert!(turns < 1_000, "{before} were closed");
    }
    let timed_out = |ended: &Ended| ended.why == Why::TimedOut(Timeout::Idle);
    assert!(server.log().closes().iter().all(timed_out));
    let mut lively = server.open();
    lively.send_text("served");
    lively.expect_text("served");
}
