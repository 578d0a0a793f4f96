//! What the operating system says about processes: CPU time, waiting time and memory, from `/proc`; CPU affinity and
//! limits of this process. Linux only, as the whole generator.

use std::fs;
use std::io;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPU time of a process since its start, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Time on a CPU, by thread. Threads that have ended are missing.
    threads: Vec<(u32, u64)>,
    /// Time that threads were ready to run and had no CPU.
    waiting_ns: u64,
}

/// CPU time between two [`Usage`]s, as shares of one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// All threads together: 2.0 is two CPUs.
    pub cpus: f64,
    /// The busiest thread.
    pub busiest: f64,
    /// Ready but without a CPU, all threads together.
    pub waiting: f64,
}

impl Usage {
    /// Reads every thread of the process. `None` where the kernel keeps no scheduler statistics or the process is gone.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let mut usage = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A thread may end between the listing and the read.
            let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
            let (running_ns, waiting_ns) = parse_schedstat(&text)?;
            usage.threads.push((thread, running_ns));
            usage.waiting_ns += waiting_ns;
        }
        (!usage.threads.is_empty()).then_some(usage)
    }

    /// What was used since `earlier`, over `elapsed_ns`.
    pub(crate) fn since(&self, earlier: &Self, elapsed_ns: u64) -> Load {
        let used = |&(thread, now): &(u32, u64)| {
            let before = earlier.threads.iter().find(|(other, _)| *other == thread).map_or(0, |it| it.1);
            now.saturating_sub(before)
        };
        let share = |nanos: u64| nanos as f64 / elapsed_ns.max(1) as f64;
        Load {
            cpus: share(self.threads.iter().map(used).sum()),
            busiest: share(self.threads.iter().map(used).max().unwrap_or(0)),
            waiting: share(self.waiting_ns.saturating_sub(earlier.waiting_ns)),
        }
    }
}

/// `schedstat`: time on a CPU and time waiting for one, in nanoseconds, and a count of time slices.
fn parse_schedstat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_ascii_whitespace().map(str::parse);
    match (fields.next(), fields.next()) {
        (Some(Ok(running)), Some(Ok(waiting))) => Some((running, waiting)),
        _ => None,
    }
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Now.
    pub resident: u64,
    /// The most since its start, or since [`reset_peak`].
    pub peak: u64,
}

impl Memory {
    /// Reads `/proc/PID/status`.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        parse_status(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }
}

fn parse_status(text: &str) -> Option<Memory> {
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some(Memory { resident: kib("VmRSS")? * 1024, peak: kib("VmHWM")? * 1024 })
}

/// Starts the peak of a process's memory anew. Best effort: without the right to do so, the peak is since its start.
pub(crate) fn reset_peak(pid: u32) {
    // proc(5): 5 resets the peak resident set size.
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// CPU time of the whole machine since its start, in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    total: u64,
    idle: u64,
    steal: u64,
}

impl Machine {
    /// Reads `/proc/stat`.
    pub(crate) fn read() -> Option<Self> {
        parse_stat(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// Shares of all CPUs since `earlier` that were idle and that the hypervisor took.
    pub(crate) fn since(&self, earlier: &Self) -> (f64, f64) {
        let total = self.total.saturating_sub(earlier.total).max(1) as f64;
        let share = |now: u64, before: u64| now.saturating_sub(before) as f64 / total;
        (share(self.idle, earlier.idle), share(self.steal, earlier.steal))
    }
}

fn parse_stat(text: &str) -> Option<Machine> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest times are part of user.
    let &[user, nice, system, idle, iowait, irq, softirq, steal, ..] = ticks.as_slice() else { return None };
    let total = user + nice + system + idle + iowait + irq + softirq + steal;
    Some(Machine { total, idle: idle + iowait, steal })
}

/// The machine in a line: kernel and processor.
pub(crate) fn describe() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
    format!("{} CPUs, {model}, Linux {}", cpus(), kernel.trim())
}

/// CPUs of the machine, also if this process is bound to one of them.
pub(crate) fn cpus() -> usize {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    parse_cpus(&text).unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn parse_cpus(text: &str) -> Option<usize> {
    let numbered = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    Some(text.lines().filter(numbered).count()).filter(|&count| count > 0)
}

/// Runs `work` on a thread that is bound to `cpu`; processes started by it inherit that. Without a CPU it just runs it.
pub(crate) fn bound_to<T: Send>(
    cpu: Option<usize>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let Some(cpu) = cpu else { return work() };
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            bind(cpu)?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that binds to a CPU panicked")))
    })
}

/// Binds the calling thread, and the threads that it starts, to `cpu`.
pub(crate) fn bind(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no CPU {cpu}")));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
        .map_err(|error| io::Error::other(format!("cannot bind to CPU {cpu}: {error}")))
}

/// How many CPUs the calling thread may use.
pub(crate) fn allowed_cpus() -> usize {
    sched_getaffinity(None).map_or_else(|_| cpus(), |set| set.count() as usize).max(1)
}

/// Raises the limit of open files to `wanted` if it is lower; children inherit it.
pub(crate) fn raise_open_files(wanted: usize) -> io::Result<()> {
    let wanted = wanted as u64;
    let limit = getrlimit(Resource::Nofile);
    // None is no limit.
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    // Raising the hard limit takes a privilege; within it none is needed.
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).map_err(|error| {
        io::Error::other(format!("{wanted} open files are needed, and the limit cannot be raised: {error}"))
    })
}

/// This process.
pub(crate) fn own_pid() -> u32 {
    std::process::id()
}

/// A process number as the system calls want it.
pub(crate) fn pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat() {
        assert_eq!(parse_schedstat("177385718 9200619 418\n"), Some((177_385_718, 9_200_619)));
        for bad in ["", "1", "x y z"] {
            assert_eq!(parse_schedstat(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn shares_of_a_cpu() {
        let usage = |threads: &[(u32, u64)], waiting_ns| Usage { threads: threads.to_vec(), waiting_ns };
        let (before, after) = (usage(&[(1, 100), (2, 0)], 10), usage(&[(1, 600), (2, 900), (3, 100)], 60));
        let load = after.since(&before, 1_000);
        assert_eq!(load, Load { cpus: 1.5, busiest: 0.9, waiting: 0.05 });
    }

    #[test]
    fn status() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(text), Some(Memory { resident: 1 << 20, peak: 2 << 20 }));
        assert_eq!(parse_status("Name:\tkernel thread\n"), None);
    }

    #[test]
    fn machine() {
        let (a, b) = (
            parse_stat("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1\n").unwrap(),
            parse_stat("cpu  60 0 10 90 20 0 0 20 0 0\n").unwrap(),
        );
        assert_eq!(b.since(&a), (0.3, 0.2));
        assert_eq!(parse_stat("intr 1\n"), None);
        assert_eq!(parse_cpus("cpu  1 2\ncpu0 1\ncpu1 1\nintr 1\n"), Some(2));
        assert_eq!(parse_cpus("intr 1\n"), None);
    }

    #[test]
    fn this_process_is_measured() {
        let before = Usage::of(own_pid());
        let memory = Memory::of(own_pid()).unwrap();
        assert!(memory.resident > 0 && memory.peak >= memory.resident);
        if let (Some(before), Some(after)) = (before, Usage::of(own_pid())) {
            assert!(after.since(&before, 1_000_000_000).cpus >= 0.0);
        }
    }
}
