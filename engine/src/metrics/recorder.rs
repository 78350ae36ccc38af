use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::distribution::Distribution;
use super::distribution::Recording;

/// A number that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the thread to which it belongs may.
    #[inline]
    pub fn add(&self, count: u64) {
        // Not `fetch_add`: there is one writer, and no locked instruction.
        self.set(self.get().wrapping_add(count));
    }

    /// Sets; only the thread to which it belongs may.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number at this moment.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a value is written for Prometheus: name without the prefix, and help.
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
}

/// One list of everything that is recorded: what it is called, in Rust and for Prometheus, and
/// what it means.
macro_rules! recorded {
    (
        counters { $( $(#[doc = $counter_doc:literal])+ $counter:ident: $counter_name:literal, )+ }
        gauges { $( $(#[doc = $gauge_doc:literal])+ $gauge:ident: $gauge_name:literal, )+ }
        times { $( $(#[doc = $time_doc:literal])+ $time:ident: $time_name:literal, )+ }
    ) => {
        /// What one thread records.
        #[derive(Debug, Default)]
        // Nothing that another thread writes is in the same pair of cache lines.
        #[repr(align(128))]
        pub struct Recorder {
            $( $(#[doc = $counter_doc])+ pub $counter: Counter, )+
            $( $(#[doc = $gauge_doc])+ pub $gauge: Counter, )+
            $( $(#[doc = $time_doc])+ pub $time: Recording, )+
            /// Frames received, by opcode.
            received: [Counter; OPCODES],
            /// Frames sent, by opcode.
            sent: [Counter; OPCODES],
            closes: [[Counter; CLOSE_SLOTS]; 2],
        }

        /// What one thread has recorded, or several together.
        #[derive(Clone, Debug, Default, PartialEq)]
        #[non_exhaustive]
        pub struct ThreadMetrics {
            $( $(#[doc = $counter_doc])+ pub $counter: u64, )+
            $( $(#[doc = $gauge_doc])+ pub $gauge: u64, )+
            $( $(#[doc = $time_doc])+ pub $time: Distribution, )+
            /// Frames received. A message in fragments is one of its kind, when it is complete.
            pub received: FrameCounts,
            /// Frames that were queued to be sent. A message in fragments is one of its kind.
            pub sent: FrameCounts,
            /// How WebSockets were closed.
            pub closes: Vec<CloseCount>,
        }

        impl Recorder {
            /// What has been recorded so far.
            pub fn read(&self) -> ThreadMetrics {
                ThreadMetrics {
                    $( $counter: self.$counter.get(), )+
                    $( $gauge: self.$gauge.get(), )+
                    $( $time: self.$time.read(), )+
                    received: FrameCounts::read(&self.received),
                    sent: FrameCounts::read(&self.sent),
                    closes: self.read_closes(),
                }
            }
        }

        impl Recorder {
            /// Its gauges.
            pub fn gauges(&self) -> impl Iterator<Item = &Counter> {
                [ $( &self.$gauge, )+ ].into_iter()
            }
        }

        impl ThreadMetrics {
            /// Adds what another has recorded.
            pub fn add(&mut self, other: &Self) {
                $( self.$counter = self.$counter.wrapping_add(other.$counter); )+
                $( self.$gauge = self.$gauge.wrapping_add(other.$gauge); )+
                $( self.$time.add(&other.$time); )+
                self.received.add(&other.received);
                self.sent.add(&other.sent);
                for close in &other.closes {
                    self.add_closes(*close);
                }
            }

            pub(super) fn counters(&self) -> impl Iterator<Item = (Series, u64)> {
                [ $( (
                    Series { name: $counter_name, help: concat!($($counter_doc),+) },
                    self.$counter,
                ), )+ ].into_iter()
            }

            pub(super) fn gauges(&self) -> impl Iterator<Item = (Series, u64)> {
                [ $( (
                    Series { name: $gauge_name, help: concat!($($gauge_doc),+) },
                    self.$gauge,
                ), )+ ].into_iter()
            }

            pub(super) fn times(&self) -> impl Iterator<Item = (Series, &Distribution)> {
                [ $( (
                    Series { name: $time_name, help: concat!($($time_doc),+) },
                    &self.$time,
                ), )+ ].into_iter()
            }
        }
    };
}

recorded! {
    counters {
        /// Connections accepted.
        accepted: "connections_accepted_total",
        /// Connections closed at once: too many, too fast, or the system had run out of something.
        refused: "connections_refused_total",
        /// Times that accepting had to pause because the system had run out of something.
        accept_pauses: "accept_pauses_total",
        /// Calls that failed because the system had run out of descriptors, buffers or memory
        /// (EMFILE, ENFILE, ENOBUFS, ENOMEM).
        exhausted: "exhausted_total",
        /// Requests answered with something else than a WebSocket.
        http_responses: "http_responses_total",
        /// Connections that did not complete the opening handshake in time.
        handshake_timeouts: "handshake_timeouts_total",
        /// WebSockets opened, in both roles.
        opened: "websockets_opened_total",
        /// Outgoing connections that did not open.
        not_opened: "websockets_not_opened_total",
        /// Bytes received, as they are on the wire.
        bytes_received: "bytes_received_total",
        /// Bytes sent, as they are on the wire.
        bytes_sent: "bytes_sent_total",
        /// Messages that were refused for want of room, and left to the caller.
        messages_refused: "messages_refused_total",
        /// Messages that were given up for want of room, or for others in their place.
        messages_dropped: "messages_dropped_total",
        /// Compressed messages received.
        messages_inflated: "messages_inflated_total",
        /// Bytes that they had on the wire.
        bytes_before_inflate: "bytes_before_inflate_total",
        /// Bytes that have become of them.
        bytes_inflated: "bytes_inflated_total",
        /// Compressed messages queued.
        messages_deflated: "messages_deflated_total",
        /// Bytes that they have.
        bytes_deflated: "bytes_deflated_total",
        /// Bytes that they had before they were compressed.
        bytes_before_deflate: "bytes_before_deflate_total",
        /// Times that the kernel did not take all output of a connection.
        backpressure: "backpressure_total",
        /// Connections closed to keep to the output budget.
        evicted: "connections_evicted_total",
        /// Commands taken from the mailbox, by which other threads and callbacks reach a thread.
        commands: "mailbox_commands_total",
        /// Turns of the loop.
        turns: "turns_total",
        /// Callbacks that panicked.
        panics: "callback_panics_total",
        /// Callbacks that took longer than was allowed.
        slow_callbacks: "callback_slow_total",
    }
    gauges {
        /// Connections, in whatever phase.
        connections: "connections",
        /// Bytes held for output that peers have not taken.
        output_held: "output_held_bytes",
        /// Bytes granted for context takeover.
        takeover: "takeover_bytes",
        /// Buffers in use: for output, and for what has arrived of something incomplete. What a
        /// callback that panicked had been given stays counted.
        buffers_in_use: "buffers_in_use",
        /// Opening handshakes whose answers are deferred.
        deferred: "handshakes_deferred",
        /// Topics with subscribers.
        topics: "topics",
        /// Subscriptions, to all topics.
        subscriptions: "subscriptions",
        /// Timers that are set.
        timers: "timers",
    }
    times {
        /// From what a wait reported to the next wait; recorded if timing was asked for.
        turn_time: "turn_seconds",
        /// Of each callback; recorded if timing was asked for.
        callback_time: "callback_seconds",
        /// From the beginning of a turn until a connection that was ready was received from: how
        /// long it waited for others; recorded if timing was asked for.
        ready_time: "queue_ready_seconds",
        /// From when a command was put into the mailbox until it was taken; recorded if timing
        /// was asked for.
        mailbox_time: "queue_mailbox_seconds",
        /// From when a connection was accepted, or asked for, until it was open; recorded if
        /// timing was asked for.
        handshake_time: "handshake_seconds",
        /// From a ping to its pong.
        round_trip: "ping_round_trip_seconds",
    }
}

/// Opcodes have four bits (RFC 6455 §5.2).
const OPCODES: usize = 16;

/// Codes 1000 to 1015 each, then 3000 to 3999, 4000 to 4999, and the rest.
const CLOSE_SLOTS: usize = 19;

/// Frames, by opcode (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameCounts {
    /// Text messages.
    pub text: u64,
    /// Binary messages.
    pub binary: u64,
    /// Close frames.
    pub close: u64,
    /// Pings.
    pub ping: u64,
    /// Pongs.
    pub pong: u64,
}

/// How many WebSockets were closed in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseCount {
    /// This endpoint began it, not its peer or the network.
    pub local: bool,
    /// The code, as `Closed::cause` has it. What peers choose freely is counted together: 3000
    /// stands for 3000 to 3999, and 4000 for 4000 to 4999; zero is any other.
    pub code: u16,
    /// How many.
    pub count: u64,
}

fn close_slot(code: u16) -> usize {
    match code {
        1000..=1015 => usize::from(code - 1000),
        3000..=3999 => 16,
        4000..=4999 => 17,
        _ => 18,
    }
}

fn slot_code(slot: usize) -> u16 {
    match slot {
        0..16 => 1000 + slot as u16,
        16 => 3000,
        17 => 4000,
        _ => 0,
    }
}

impl FrameCounts {
    fn read(counters: &[Counter; OPCODES]) -> Self {
        Self {
            text: counters[1].get(),
            binary: counters[2].get(),
            close: counters[8].get(),
            ping: counters[9].get(),
            pong: counters[10].get(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.text = self.text.wrapping_add(other.text);
        self.binary = self.binary.wrapping_add(other.binary);
        self.close = self.close.wrapping_add(other.close);
        self.ping = self.ping.wrapping_add(other.ping);
        self.pong = self.pong.wrapping_add(other.pong);
    }

    /// Text and binary ones.
    pub fn messages(&self) -> u64 {
        self.text.wrapping_add(self.binary)
    }
}

impl Recorder {
    /// Counts a frame, or a message, that was received.
    #[inline]
    pub fn count_received(&self, opcode: u8) {
        self.received[usize::from(opcode) % OPCODES].add(1);
    }

    /// Counts a frame that is to be sent.
    #[inline]
    pub fn count_sent(&self, opcode: u8) {
        self.sent[usize::from(opcode) % OPCODES].add(1);
    }

    /// Counts the end of a WebSocket.
    pub fn count_close(&self, local: bool, code: u16) {
        self.closes[usize::from(local)][close_slot(code)].add(1);
    }

    fn read_closes(&self) -> Vec<CloseCount> {
        let mut closes = Vec::new();
        for (local, by_code) in self.closes.iter().enumerate() {
            let counts = by_code.iter().map(Counter::get).enumerate();
            closes.extend(
                counts
                    .filter(|(_, count)| *count > 0)
                    .map(|(slot, count)| CloseCount {
                        local: local == 1,
                        code: slot_code(slot),
                        count,
                    }),
            );
        }
        closes
    }
}

impl ThreadMetrics {
    fn add_closes(&mut self, more: CloseCount) {
        let is_same =
            |close: &&mut CloseCount| (close.local, close.code) == (more.local, more.code);
        match self.closes.iter_mut().find(is_same) {
            Some(close) => close.count = close.count.wrapping_add(more.count),
            None => self.closes.push(more),
        }
    }

    /// How many WebSockets were closed with this code, `local` ones by this endpoint.
    pub fn closed(&self, local: bool, code: u16) -> u64 {
        let is_it = |close: &&CloseCount| close.local == local && close.code == code;
        self.closes
            .iter()
            .find(is_it)
            .map_or(0, |close| close.count)
    }
}

/// What a server has seen, by thread, since it was started: counters only grow, gauges are of
/// the end of each thread's last turn. Each value is exact; they are not of one instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    threads: Vec<ThreadMetrics>,
    mailbox_lens: Vec<usize>,
}

impl Metrics {
    /// Of these threads, and how many commands wait for each.
    pub fn new(threads: Vec<ThreadMetrics>, mailbox_lens: Vec<usize>) -> Self {
        Self {
            threads,
            mailbox_lens,
        }
    }

    /// Of each thread.
    pub fn threads(&self) -> &[ThreadMetrics] {
        &self.threads
    }

    /// Commands that wait for each thread.
    pub fn mailbox_lens(&self) -> &[usize] {
        &self.mailbox_lens
    }

    /// Of all threads together.
    pub fn total(&self) -> ThreadMetrics {
        let mut total = ThreadMetrics::default();
        for thread in &self.threads {
            total.add(thread);
        }
        total
    }
}
