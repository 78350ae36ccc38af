//! The CPU time of a process.

use std::fs;
use std::time::Duration;

/// Ticks of `/proc/PID/stat` in a second: fixed by the kernel's interface (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of a process so far, in steps of 10 ms.
pub fn time_of(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything: what follows it is numbers.
    let numbers: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let user: u64 = numbers.get(11)?.parse().ok()?;
    let system: u64 = numbers.get(12)?.parse().ok()?;
    Some(Duration::from_millis(
        (user + system) * 1000 / TICKS_PER_SECOND,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_time_grows_with_work() {
        let before = time_of(std::process::id()).expect("Linux");
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(60) {
            std::hint::black_box(start);
        }
        let after = time_of(std::process::id()).expect("Linux");
        assert!(after > before, "{before:?} {after:?}");
        assert_eq!(time_of(u32::MAX), None);
    }
}
