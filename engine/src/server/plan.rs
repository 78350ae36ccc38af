//! Which backend runs: decided once, at the start, for all threads together.
//!
//! Each thread makes everything that it would serve with, and tries it out, before the choice is
//! made: what suffices for one thread need not suffice for all of them. A ring can be used only
//! by the thread that made it, so each thread makes its own, reports ([`Vote`]) and waits for the
//! verdict. If one of them fails, all drop theirs.

use std::io;
use std::sync::mpsc;

use crate::error::Error;
use crate::error::Result;

use super::BackendChoice;
use super::builder::Settings;

#[cfg(all(feature = "uring", target_os = "linux"))]
use crate::reactor::uring;

/// The backend to try first, and whether another may take its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    #[cfg(all(feature = "uring", target_os = "linux"))]
    uring: Option<UringPlan>,
    may_fall_back: bool,
}

#[cfg(all(feature = "uring", target_os = "linux"))]
#[derive(Clone, Copy, Debug)]
pub(super) struct UringPlan {
    /// Connections on direct descriptors; `None` for regular ones.
    pub(super) direct_connections: Option<usize>,
}

impl Plan {
    pub(super) fn new(settings: &Settings) -> Self {
        #[cfg(all(feature = "uring", target_os = "linux"))]
        let uring = (settings.backend != BackendChoice::Poll).then(|| {
            let wanted = settings.connections_max.unwrap_or(0);
            let regular_max = uring::regular_connections_max();
            let direct = settings.direct_descriptors.unwrap_or(wanted > regular_max);
            let connections = settings.connections_max.unwrap_or(regular_max);
            UringPlan {
                direct_connections: direct.then_some(connections),
            }
        });
        Self {
            #[cfg(all(feature = "uring", target_os = "linux"))]
            uring,
            may_fall_back: settings.backend != BackendChoice::Uring,
        }
    }

    /// The io_uring backend to try, if any.
    #[cfg(all(feature = "uring", target_os = "linux"))]
    pub(super) fn uring(&self) -> Option<UringPlan> {
        self.uring
    }

    /// Whether threads make a backend that may have to be given up for another.
    pub(super) fn has_vote(&self) -> bool {
        #[cfg(all(feature = "uring", target_os = "linux"))]
        return self.uring.is_some();
        #[cfg(not(all(feature = "uring", target_os = "linux")))]
        return false;
    }

    /// Decides, and describes the backend that runs. `tried` is the result of making io_uring
    /// backends; `None` if none was made.
    ///
    /// # Errors
    /// io_uring was asked for and fails, or there is nothing to fall back to.
    pub(super) fn decide(&self, tried: Option<io::Result<()>>) -> Result<(Verdict, String)> {
        let refusal = match tried {
            Some(Ok(())) => return Ok((Verdict::Keep, self.describe_uring())),
            Some(Err(error)) if !self.may_fall_back => {
                return Err(Error::io("set io_uring up")(error));
            }
            Some(Err(error)) => format!(" (io_uring unavailable: {error})"),
            None => String::new(),
        };
        if cfg!(feature = "poll") {
            let name = if cfg!(target_os = "linux") {
                "epoll"
            } else {
                "kqueue"
            };
            Ok((Verdict::FallBack, format!("{name}{refusal}")))
        } else {
            Err(no_backend(&refusal))
        }
    }

    fn describe_uring(&self) -> String {
        #[cfg(all(feature = "uring", target_os = "linux"))]
        if let Some(plan) = self.uring {
            let is_direct = plan.direct_connections.is_some();
            let kind = if is_direct { "direct" } else { "regular" };
            return format!("io_uring, {kind} descriptors");
        }
        String::new()
    }
}

/// There is nothing to fall back to.
pub(super) fn no_backend(refusal: &str) -> Error {
    let text = format!("no backend but io_uring is built in{refusal}");
    Error::io("find a backend")(io::Error::new(io::ErrorKind::Unsupported, text))
}

/// The decision about the backends that the threads have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They serve.
    Keep,
    /// They are dropped, and each thread makes another.
    FallBack,
}

/// A thread's part in the choice.
#[derive(Debug)]
#[cfg_attr(
    not(all(feature = "uring", target_os = "linux")),
    allow(dead_code, reason = "there is no choice")
)]
pub(super) struct Vote {
    report: mpsc::Sender<io::Result<()>>,
    verdict: mpsc::Receiver<Verdict>,
}

impl Vote {
    /// Reports whether the thread's backend works, and waits for the verdict. `None` if the start
    /// has been given up.
    #[cfg(all(feature = "uring", target_os = "linux"))]
    pub(super) fn cast(self, works: io::Result<()>) -> Option<Verdict> {
        // Nobody listens if the start has been given up; then there is no verdict either.
        let _ = self.report.send(works);
        drop(self.report);
        self.verdict.recv().ok()
    }
}

/// The other end of all votes. If it is dropped without a verdict the threads end.
#[derive(Debug)]
pub(super) struct Ballot {
    report: Option<mpsc::Sender<io::Result<()>>>,
    reports: mpsc::Receiver<io::Result<()>>,
    verdicts: Vec<mpsc::Sender<Verdict>>,
}

impl Ballot {
    pub(super) fn new() -> Self {
        let (report, reports) = mpsc::channel();
        Self {
            report: Some(report),
            reports,
            verdicts: Vec::new(),
        }
    }

    /// Returns a vote for one more thread.
    pub(super) fn vote(&mut self) -> Option<Vote> {
        let report = self.report.clone()?;
        let (sender, verdict) = mpsc::channel();
        self.verdicts.push(sender);
        Some(Vote { report, verdict })
    }

    /// Waits for all votes; returns the first error.
    pub(super) fn count(&mut self) -> io::Result<()> {
        self.report = None;
        let mut result = Ok(());
        for _ in 0..self.verdicts.len() {
            // A thread that panics reports nothing.
            let report = self.reports.recv().unwrap_or_else(|_| {
                let text = "a thread ended before it had made its backend";
                Err(io::Error::other(text))
            });
            result = result.and(report);
        }
        result
    }

    /// Tells the threads.
    pub(super) fn announce(self, verdict: Verdict) {
        for sender in self.verdicts {
            // A thread that is gone hears nothing; its report says so, or its end.
            let _ = sender.send(verdict);
        }
    }
}
