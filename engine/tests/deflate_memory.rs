//! What compression costs a connection in memory is what the documentation says, and what is
//! counted against the budget.

mod support;

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::cell::Cell;
use std::sync::atomic::AtomicIsize;
use std::sync::atomic::Ordering;

use sockeye::Compression;
use sockeye::Route;
use sockeye::protocol::Opcode;

use support::Deflate;
use support::Link;
use support::Probe;
use support::Running;
use support::Settings;
use support::World;
use support::deflate::json;
use support::request_with;

thread_local! {
    /// This thread is a server's.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// Bytes that the server's threads have allocated and not freed.
static HELD: AtomicIsize = AtomicIsize::new(0);

struct Counting;

fn count(len: isize) {
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        HELD.fetch_add(len, Ordering::SeqCst);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count(len as isize - layout.size() as isize);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
    let probe = Probe::echo().on_open(|_| COUNTED.set(true));
    let mut probe = probe;
    probe.record_messages = false;
    let settings = Settings {
        base: Route::default().compression(compression),
        ..Settings::default()
    };
    let server = World::Poll.start_with(settings, probe);
    let takeover = compression != Compression::Shared;
    // What all share is there, and room for the next.
    let first = open(&server, takeover, COUNT);
    let before = HELD.load(Ordering::SeqCst);
    let more = open(&server, takeover, COUNT);
    let after = HELD.load(Ordering::SeqCst);
    let granted = server
        .wait_metrics(|m| m.opened == 2 * COUNT as u64)
        .takeover;
    drop((first, more));
    let each = (after - before).max(0) as usize / COUNT;
    (each, granted as usize / (2 * COUNT))
}

/// One test, for the count is that of the process.
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
