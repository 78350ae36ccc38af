//! Deadlines of a million connections: a sweep of all of them, which happens once in a second,
//! and the renewal of one, which happens with each read;
//! beside a hashed wheel.
//!
//!     cargo bench -p sockeye-bench --bench deadlines
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use hierarchical_hash_wheel_timer::wheels::cancellable::CancellableTimerEntry;
use hierarchical_hash_wheel_timer::wheels::cancellable::QuadWheelWithOverflow;
use sockeye::timer::Deadlines;
use sockeye::timer::TICK;

const CONNECTIONS: u32 = 1_000_000;

/// What a sweep of a million connections may take of each second.
const SWEEP_MAX: Duration = Duration::from_millis(1);

fn million() -> Deadlines {
    let mut deadlines = Deadlines::default();
    for index in 0..CONNECTIONS {
        deadlines.set(index, 250);
    }
    deadlines
}

fn sweep(criterion: &mut Criterion) {
    let mut deadlines = million();
    let mut expired = Vec::new();
    let mut now = Duration::ZERO;
    let mut group = criterion.benchmark_group("deadlines of 1,000,000 connections");
    group.throughput(Throughput::Elements(CONNECTIONS.into()));
    group.bench_function("sweep for one second", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                if now.as_secs() % 200 == 199 {
                    // Before any is due.
                    (deadlines, now) = (million(), Duration::ZERO);
                }
                now += TICK;
                let start = Instant::now();
                deadlines.advance(black_box(now), &mut expired);
                spent += start.elapsed();
                assert!(expired.is_empty());
            }
            spent
        });
    });
    group.finish();

    // The target, checked: the median of many seconds.
    let (mut deadlines, mut now) = (million(), Duration::ZERO);
    let mut seconds: Vec<Duration> = (0..150)
        .map(|_| {
            now += TICK;
            let start = Instant::now();
            deadlines.advance(black_box(now), &mut expired);
            start.elapsed()
        })
        .collect();
    seconds.sort_unstable();
    let median = seconds[seconds.len() / 2];
    println!("1,000,000 deadlines: {median:?} of each second (at most {SWEEP_MAX:?})");
    assert!(median < SWEEP_MAX, "{median:?}");
}

/// A connection's deadline in a wheel that can cancel.
#[derive(Debug)]
struct Entry(u32);

impl CancellableTimerEntry for Entry {
    type Id = u32;

    fn id(&self) -> &u32 {
        &self.0
    }
}

/// Each message that is received puts its connection's deadline off.
fn renew(criterion: &mut Criterion) {
    const AFTER: Duration = Duration::from_secs(30);
    let mut deadlines = million();
    let mut index = 0;
    let mut group = criterion.benchmark_group("renew one of 1,000,000 deadlines");
    group.bench_function("sockeye", |bencher| {
        bencher.iter(|| {
            index = (index + 1) % 1024;
            deadlines.set(black_box(index), black_box(30));
        });
    });
    assert!(deadlines.is_set(index));
    let mut wheel = QuadWheelWithOverflow::<Entry>::new();
    let entries: Vec<Rc<Entry>> = (0..CONNECTIONS)
        .map(|index| Rc::new(Entry(index)))
        .collect();
    for entry in &entries {
        wheel
            .insert_ref_with_delay(Rc::clone(entry), AFTER)
            .expect("in range");
    }
    group.bench_function("hierarchical_hash_wheel_timer", |bencher| {
        bencher.iter(|| {
            index = (index + 1) % 1024;
            wheel.cancel(&index).expect("it is set");
            let entry = Rc::clone(&entries[index as usize]);
            wheel.insert_ref_with_delay(entry, AFTER).expect("in range");
            if index == 0 {
                // Else it would keep every deadline that was put off.
                black_box(wheel.tick());
            }
        });
    });
    group.finish();
}

criterion_group!(benches, sweep, renew);
criterion_main!(benches);
