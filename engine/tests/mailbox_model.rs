//! Every interleaving of `post`, `sleep`, `awake` and the end of a mailbox, by `loom`, which
//! stands in for the atomics of `worker/gate.rs`.

use std::collections::VecDeque;

use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::Condvar;
use loom::sync::Mutex;
use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering;
use loom::thread;

use gate::Gate;
use gate::Queue;
use gate::Refused;

mod sync {
    pub(super) use loom::sync::atomic::AtomicBool;
    pub(super) use loom::sync::atomic::AtomicUsize;
    pub(super) use loom::sync::atomic::Ordering;
    pub(super) use loom::sync::atomic::fence;
    pub(super) use loom::thread::yield_now;
}

#[path = "../src/worker/gate.rs"]
mod gate;

/// A value that counts its drops.
struct Value(Arc<AtomicUsize>);

impl Drop for Value {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Items(Mutex<VecDeque<Value>>);

impl Queue for Items {
    type Item = Value;

    fn push(&self, item: Value) {
        self.0.lock().unwrap().push_back(item);
    }

    fn pop(&self) -> Option<Value> {
        self.0.lock().unwrap().pop_front()
    }
}

/// Model of an eventfd: a wake is kept until it is waited for.
#[derive(Default)]
struct Alarm {
    rings: Mutex<bool>,
    changed: Condvar,
}

impl Alarm {
    fn wake(&self) {
        *self.rings.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut rings = self.rings.lock().unwrap();
        while !std::mem::take(&mut *rings) {
            rings = self.changed.wait(rings).unwrap();
        }
    }
}

#[derive(Default)]
struct Mailbox {
    gate: Gate<Items>,
    alarm: Alarm,
}

impl Mailbox {
    fn post(&self, dropped: &Arc<AtomicUsize>) -> Result<(), Refused> {
        let value = Value(Arc::clone(dropped));
        if self.gate.post(usize::MAX >> 1, || value)? {
            self.alarm.wake();
        }
        Ok(())
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    // More than that finds nothing new in a gate of two atomics, and takes hours.
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A sleeper that nobody wakes is a deadlock, which `loom` reports.
#[test]
fn sleeper_is_woken_for_each_command() {
    check(|| {
        let mailbox = Arc::new(Mailbox::default());
        let dropped = Arc::new(AtomicUsize::new(0));
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let (mailbox, dropped) = (Arc::clone(&mailbox), Arc::clone(&dropped));
                thread::spawn(move || mailbox.post(&dropped).expect("it is open"))
            })
            .collect();
        let mut taken = 0;
        while taken < 2 {
            match mailbox.gate.take() {
                Some(_) => taken += 1,
                None if mailbox.gate.sleep() => {
                    mailbox.alarm.wait();
                    mailbox.gate.awake();
                }
                None => thread::yield_now(),
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn whatever_was_accepted_is_taken_or_dropped_at_the_end() {
    check(|| {
        let mailbox = Arc::new(Mailbox::default());
        let dropped = Arc::new(AtomicUsize::new(0));
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let (mailbox, dropped) = (Arc::clone(&mailbox), Arc::clone(&dropped));
                thread::spawn(move || mailbox.post(&dropped).is_ok())
            })
            .collect();
        let mut given = usize::from(mailbox.gate.take().is_some());
        mailbox.gate.close(|_| given += 1);
        let accepted = senders.into_iter().filter(|_| true);
        let accepted = accepted.map(|sender| sender.join().unwrap());
        let accepted = accepted.filter(|accepted| *accepted).count();
        assert_eq!(given, accepted);
        assert_eq!(mailbox.gate.len(), 0);
        assert!(mailbox.gate.take().is_none());
        // A refused command is dropped by its sender.
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        assert_eq!(mailbox.post(&dropped), Err(Refused::Closed));
    });
}
