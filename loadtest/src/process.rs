//! What processes and the kernel have used.

use std::fs;
use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use procfs::Current;
use procfs::Meminfo;
use procfs::process::Process;
use serde::Deserialize;
use serde::Serialize;

/// CPU time of a process so far, to the nanosecond (`clock_gettime` on its clock).
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?);
    let now = clock_getcpuclockid(pid).ok()?.now().ok()?;
    Some(now.into())
}

/// What some processes have used, together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPU time to the nanosecond.
    pub cpu: Duration,
    /// The part of it in the kernel, to a clock tick (10 ms).
    pub system: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// What these processes have used so far.
///
/// # Errors
/// One of them is not there, or another user's.
pub fn usage(pids: &[u32]) -> Result<Usage, String> {
    let mut sum = Usage::default();
    for &pid in pids {
        let gone = |error: procfs::ProcError| format!("process {pid}: {error}");
        let stat = Process::new(pid as i32).and_then(|process| process.stat());
        let stat = stat.map_err(gone)?;
        let tick = 1.0 / procfs::ticks_per_second() as f64;
        sum.cpu += cpu_time(pid).ok_or_else(|| format!("process {pid} is gone"))?;
        sum.system += Duration::from_secs_f64(stat.stime as f64 * tick);
        sum.resident += stat.rss * procfs::page_size();
    }
    Ok(sum)
}

/// Memory of some processes in bytes, shared pages divided among those that share them.
pub fn proportional(pids: &[u32]) -> Option<u64> {
    let each = |&pid: &u32| {
        let rollup = Process::new(pid as i32).ok()?.smaps_rollup().ok()?;
        let map = rollup.memory_map_rollup.into_iter().next()?;
        map.extension.map.get("Pss").copied()
    };
    pids.iter().map(each).sum()
}

/// Memory that the kernel holds for everything on this machine, sockets among it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// All slabs (`/proc/meminfo`): where sockets, inodes and files live.
    pub slab: u64,
    /// Buffers of TCP sockets (`/proc/net/sockstat`).
    pub tcp_buffers: u64,
    /// TCP sockets in use.
    pub tcp_sockets: u64,
}

/// What the kernel holds now.
pub fn kernel() -> Option<Kernel> {
    let sockstat = fs::read_to_string("/proc/net/sockstat").ok()?;
    let line = sockstat.lines().find(|line| line.starts_with("TCP:"))?;
    let value = |name: &str| -> Option<u64> {
        let mut words = line.split_whitespace().skip_while(|word| *word != name);
        words.nth(1)?.parse().ok()
    };
    Some(Kernel {
        slab: Meminfo::current().ok()?.slab,
        tcp_buffers: value("mem")? * procfs::page_size(),
        tcp_sockets: value("inuse")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_usage_grows_with_work() {
        let own = [std::process::id()];
        let before = usage(&own).expect("it runs");
        for number in 0..100_000_u64 {
            std::hint::black_box(number);
        }
        let after = usage(&own).expect("it runs");
        assert!(after.cpu > before.cpu, "{before:?} {after:?}");
        assert!(after.resident > 1 << 20, "{after:?}");
        assert!(usage(&[u32::MAX >> 1]).is_err());
        assert!(proportional(&own).expect("it runs") > 1 << 19);
    }

    #[test]
    fn kernel_memory_is_read() {
        let kernel = kernel().expect("Linux");
        assert!(kernel.slab > 1 << 20, "{kernel:?}");
    }
}
