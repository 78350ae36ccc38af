//! What compression costs a connection in memory is what the documentation says, and what is
//! counted against the budget.

use sockeye::Compression;
use sockeye::Route;
use sockeye::protocol::Opcode;

use crate::support::Deflate;
use crate::support::Link;
use crate::support::Probe;
use crate::support::Running;
use crate::support::Settings;
use crate::support::World;
use crate::support::deflate::json;
use crate::support::request_with;

/// Connections that have each exchanged a compressed message.
fn open(server: &Running, takeover: bool, count: usize) -> Vec<Link> {
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits";
    let open = |_| {
        let mut link = server.connect();
        link.send(request_with(offer).as_bytes());
        assert!(link.read_head().contains("permessage-deflate"));
        let own = (15, takeover);
        link.deflate = Some(Deflate::new(own, (9, takeover)));
        let text = json(2_000, 1);
        link.send_deflated(Opcode::Text, text.as_bytes());
        link.expect_text(&text);
        link
    };
    (0..count).map(open).collect()
}

/// What each of so many connections holds that are idle again.
fn held(compression: Compression) -> (usize, usize) {
    const COUNT: usize = 64;
    let mut probe = Probe::echo();
    probe.record_messages = false;
    let settings = Settings {
        base: Route::default().compression(compression),
        ..Settings::default()
    };
    let server = World::Poll.start_with(settings, probe);
    let takeover = compression != Compression::Shared;
    // What all share is there, and room for the next.
    let first = open(&server, takeover, COUNT);
    let before = server.memory.held();
    let more = open(&server, takeover, COUNT);
    let after = server.memory.held();
    let granted = server
        .wait_metrics(|m| m.opened == 2 * COUNT as u64)
        .takeover;
    drop((first, more));
    let each = (after - before).max(0) as usize / COUNT;
    (each, granted as usize / (2 * COUNT))
}

#[test]
fn each_mode_holds_what_the_documentation_says() {
    // A slot, and what a slab that grows has besides.
    let (shared, granted) = held(Compression::Shared);
    assert!(shared < 1_024, "{shared}");
    assert_eq!(granted, 0);
    for (window_bits, mem) in [(15, 8), (15, 1), (9, 1), (12, 4), (10, 9)] {
        let (each, granted) = held(Compression::Dedicated { window_bits, mem });
        let documented = (48 << 10) + (132 << 10) + (4 << window_bits) + (7 << (mem + 6));
        assert_eq!(granted, documented, "{window_bits} {mem}");
        let most = documented + 2_048;
        assert!(
            (documented * 9 / 10..most).contains(&each),
            "{window_bits} {mem}: {each}"
        );
        println!("dedicated:{window_bits}:{mem}: {each} bytes each, {documented} counted");
    }
    println!("shared: {shared} bytes each");
}
