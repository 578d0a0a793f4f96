//! What the operating system says about processes: CPU time, waiting time and memory, from `/proc`; CPU affinity and
//! limits of this process. Linux only, as the whole generator.

use std::fs;
use std::io;

use crate::result::MachineInfo;
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

/// When the process was started, in clock ticks since the start of the machine: with its number it names one process for ever.
/// `None` if there is none.
pub(crate) fn started(pid: u32) -> Option<u64> {
    parse_started(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc(5): the 22nd field; the second, a name in parentheses, may have anything in it.
fn parse_started(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Open file descriptors of a process. `None` if it is gone, or another user's.
pub(crate) fn descriptors(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

fn parse_status(text: &str) -> Option<Memory> {
    Some(Memory { resident: parse_kib(text, "VmRSS")?, peak: parse_kib(text, "VmHWM")? })
}

/// Bytes of a line such as `VmRSS:  1024 kB`.
fn parse_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Starts the peak of a process's memory anew. Best effort: without the right to do so, the peak is since its start.
pub(crate) fn reset_peak(pid: u32) {
    // proc(5): 5 resets the peak resident set size.
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// CPU time since the start of the machine, in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticks {
    total: u64,
    idle: u64,
    steal: u64,
}

impl Ticks {
    /// Shares of the time since `earlier` that were idle and that the hypervisor took.
    pub(crate) fn since(&self, earlier: &Self) -> (f64, f64) {
        let total = self.total.saturating_sub(earlier.total).max(1) as f64;
        let share = |now: u64, before: u64| now.saturating_sub(before) as f64 / total;
        (share(self.idle, earlier.idle), share(self.steal, earlier.steal))
    }
}

/// The CPUs of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// All together.
    pub all: Ticks,
    /// Each, by its number.
    pub cpus: Vec<(usize, Ticks)>,
}

impl Machine {
    /// Reads `/proc/stat`.
    pub(crate) fn read() -> Option<Self> {
        parse_stat(&fs::read_to_string("/proc/stat").ok()?)
    }
}

fn parse_stat(text: &str) -> Option<Machine> {
    let mut machine =
        Machine { all: parse_ticks(text.lines().find_map(|it| it.strip_prefix("cpu "))?)?, cpus: vec![] };
    for line in text.lines() {
        let numbered = line.strip_prefix("cpu").and_then(|rest| rest.split_once(' '));
        if let Some((number, ticks)) = numbered
            && let (Ok(number), Some(ticks)) = (number.parse(), parse_ticks(ticks))
        {
            machine.cpus.push((number, ticks));
        }
    }
    Some(machine)
}

fn parse_ticks(fields: &str) -> Option<Ticks> {
    let ticks: Vec<u64> = fields.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest times are part of user.
    let &[user, nice, system, idle, iowait, irq, softirq, steal, ..] = ticks.as_slice() else { return None };
    let total = user + nice + system + idle + iowait + irq + softirq + steal;
    Some(Ticks { total, idle: idle + iowait, steal })
}

/// The machine, as results describe it.
pub(crate) fn describe() -> MachineInfo {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    MachineInfo {
        cpus: cpus(),
        processor: value_of(&cpuinfo, "model name", ':').unwrap_or_else(|| "unknown processor".to_owned()),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        distribution: value_of(&read("/etc/os-release"), "PRETTY_NAME", '='),
        memory_bytes: parse_kib(&read("/proc/meminfo"), "MemTotal").unwrap_or(0),
        // Set by every hypervisor that does not hide.
        is_virtual: value_of(&cpuinfo, "flags", ':')
            .is_some_and(|it| it.split(' ').any(|it| it == "hypervisor")),
    }
}

/// The value of a key in lines of `key = value`, without quotes.
fn value_of(text: &str, key: &str, between: char) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(between)?;
        (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// The machine in a line.
pub(crate) fn in_a_line(machine: &MachineInfo) -> String {
    format!("{} CPUs, {}, Linux {}", machine.cpus, machine.processor, machine.kernel)
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
            parse_stat("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1\ncpu3 1 0 1 6 2 0 0 0 0 0\n").unwrap(),
            parse_stat("cpu  60 0 10 90 20 0 0 20 0 0\ncpu3 1 0 1 6 2 0 0 5 0 0\n").unwrap(),
        );
        assert_eq!(b.all.since(&a.all), (0.3, 0.2));
        assert_eq!((a.cpus.len(), a.cpus[0].0, b.cpus[0].1.since(&a.cpus[0].1)), (1, 3, (0.0, 1.0)));
        assert_eq!(parse_stat("intr 1\n"), None);
        assert_eq!(parse_cpus("cpu  1 2\ncpu0 1\ncpu1 1\nintr 1\n"), Some(2));
        assert_eq!(parse_cpus("intr 1\n"), None);
    }

    #[test]
    fn values_in_lines() {
        assert_eq!(value_of("a\t: b c\nd: \"e\"\n", "a", ':').as_deref(), Some("b c"));
        assert_eq!(value_of("d=\"e\"\n", "d", '=').as_deref(), Some("e"));
        assert_eq!(parse_kib("MemTotalX: 1 kB\nMemTotal:   2 kB\n", "MemTotal"), Some(2048));
        assert!(describe().memory_bytes > 0 && !describe().kernel.is_empty());
    }

    #[test]
    fn a_process_is_known_again() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 3 0 9876 1000 200";
        assert_eq!((parse_started(stat), parse_started("7 (a) S 1")), (Some(9876), None));
        assert_eq!(started(own_pid()), started(own_pid()));
        assert!(started(own_pid()).is_some() && started(u32::MAX).is_none());
        // It has the folder itself open while it counts.
        assert!(descriptors(own_pid()).is_some_and(|it| it > 3));
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
