//! What a process has used.

use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// CPU time of a process so far, to the nanosecond (`clock_gettime` on its clock).
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?);
    let now = clock_getcpuclockid(pid).ok()?.now().ok()?;
    Some(now.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_time_grows_with_work() {
        let before = cpu_time(std::process::id()).expect("Linux");
        for number in 0..100_000_u64 {
            std::hint::black_box(number);
        }
        let after = cpu_time(std::process::id()).expect("Linux");
        assert!(after > before, "{before:?} {after:?}");
        assert_eq!(cpu_time(u32::MAX), None);
    }
}
