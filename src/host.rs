//! Telemetry of the host, from Linux's `/proc`. Publishes nothing itself; never async. Parsing is in `host/proc.rs`.
//!
//! | channel | value |
//! | --- | --- |
//! | `host.NAME.cpu` | vector: the fraction of time (0 to 1) that each CPU was busy since the last reading |
//! | `host.NAME.memory.used_bytes`, `.available_bytes` | integer: what programs hold; what they could still get |
//! | `host.NAME.network.INTERFACE.rx_bytes`, `.tx_bytes` | integer: received and sent since the interface came up |
//! | `host.NAME.network.INTERFACE.rx_bytes_per_s`, `.tx_bytes_per_s` | number: since the last reading |
//! | `host.NAME.disk.DISK.read_bytes`, `.written_bytes` | integer: since the disk came up |
//! | `host.NAME.disk.DISK.read_bytes_per_s`, `.written_bytes_per_s` | number: since the last reading |
//! | `host.NAME.disk.DISK.busy` | number: the fraction of time that it had work, since the last reading |
//!
//! The kernel counts CPU time in ticks of 10 ms, so at ten readings a second `cpu` has steps of about a tenth.
//! What is "since the last reading" is left out where there is none: in the first, and for a device that is new.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::pattern;
use crate::reading::{Reading, integer, vector};
use crate::wire::proto::sample::Value;
use proc::{CpuTime, Disk, Interface};

mod proc;

/// CPUs that are shown: those with the lowest numbers.
pub const CPUS_MAX: usize = 1_024;

/// Network interfaces that are shown: the first that the kernel lists, which are the oldest.
pub const INTERFACES_MAX: usize = 16;

/// Disks that are shown: the first that the kernel lists. Partitions, loop and RAM disks are left out.
pub const DISKS_MAX: usize = 16;

/// Bytes of a token that is made of a name of the system.
pub const TOKEN_BYTES_MAX: usize = 63;

/// Reads the host's telemetry.
#[derive(Debug)]
pub struct HostTelemetry {
    /// Where `/proc` is.
    root: PathBuf,
    /// `host.NAME`.
    prefix: String,
    previous: Option<Previous>,
    /// Files that were warned of, so that it is once for each.
    unreadable: Vec<&'static str>,
}

/// What the next reading is compared with.
#[derive(Debug)]
struct Previous {
    at: Instant,
    cpus: Vec<CpuTime>,
    interfaces: Vec<Interface>,
    disks: Vec<Disk>,
}

impl HostTelemetry {
    /// Finds the host's name.
    ///
    /// # Errors
    /// Where there is no `/proc` with the files of Linux: on other systems, or where it is not mounted. Then there is no
    /// telemetry of the host.
    pub fn open() -> io::Result<Self> {
        Self::open_at(Path::new("/proc"))
    }

    fn open_at(root: &Path) -> io::Result<Self> {
        let explain = |error: io::Error| {
            io::Error::new(error.kind(), format!("host telemetry needs the /proc of Linux: {error}"))
        };
        fs::metadata(root.join("stat")).map_err(explain)?;
        let name = fs::read(root.join("sys/kernel/hostname")).map_err(explain)?;
        let prefix = format!("host.{}", token(String::from_utf8_lossy(&name).trim()));
        Ok(Self { root: root.to_owned(), prefix, previous: None, unreadable: Vec::new() })
    }

    /// Reads everything once; what cannot be read is left out. Blocks for the kernel's answer: 0.16 ms on average and up to
    /// 4 ms in 300 readings on a busy machine, so call it where no connection waits.
    pub fn read(&mut self, at: Instant) -> Vec<Reading> {
        let current = Previous {
            at,
            cpus: proc::cpus(&self.text("stat")),
            interfaces: proc::interfaces(&self.text("net/dev")),
            disks: proc::disks(&self.text("diskstats")),
        };
        let memory = proc::memory(&self.text("meminfo"));

        let mut readings = Readings { prefix: &self.prefix, list: Vec::new() };
        if let Some(previous) = &self.previous {
            readings.cpus(&previous.cpus, &current.cpus);
        }
        if let Some(memory) = memory {
            readings.push("memory.used_bytes", integer(memory.total.saturating_sub(memory.available)));
            readings.push("memory.available_bytes", integer(memory.available));
        }
        let earlier = self.previous.as_ref();
        let elapsed = earlier.map_or(Duration::ZERO, |earlier| at.saturating_duration_since(earlier.at));
        readings.interfaces(earlier.map_or(&[], |earlier| &earlier.interfaces), &current.interfaces, elapsed);
        readings.disks(earlier.map_or(&[], |earlier| &earlier.disks), &current.disks, elapsed);
        let list = readings.list;
        self.previous = Some(current);
        list
    }

    /// The text of a file; empty if it cannot be read.
    fn text(&mut self, name: &'static str) -> String {
        match fs::read(self.root.join(name)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => {
                if !self.unreadable.contains(&name) {
                    self.unreadable.push(name);
                    tracing::warn!(file = name, %error, "a part of the host's telemetry cannot be read");
                }
                String::new()
            }
        }
    }
}

/// Collects readings under the host's prefix.
struct Readings<'a> {
    prefix: &'a str,
    list: Vec<Reading>,
}

impl Readings<'_> {
    fn push(&mut self, name: &str, value: Value) {
        self.list.push(Reading { channel: format!("{}.{name}", self.prefix), value });
    }

    fn push_rate(&mut self, name: &str, per_s: Option<f64>) {
        if let Some(per_s) = per_s {
            self.push(name, Value::Number(per_s));
        }
    }

    fn cpus(&mut self, earlier: &[CpuTime], current: &[CpuTime]) {
        let count = current.iter().map(|cpu| cpu.number + 1).max().unwrap_or(0).min(CPUS_MAX);
        if count == 0 {
            return;
        }
        // A CPU that is offline is not busy.
        let mut busy = vec![0.0; count];
        for cpu in current {
            let before = earlier.iter().find(|before| before.number == cpu.number);
            if let (Some(busy), Some(before)) = (busy.get_mut(cpu.number), before) {
                *busy = busy_fraction(before, cpu);
            }
        }
        self.push("cpu", vector(busy));
    }

    fn interfaces(&mut self, earlier: &[Interface], current: &[Interface], elapsed: Duration) {
        for (token, interface) in tokens(current, |interface| &interface.name).take(INTERFACES_MAX) {
            let before = earlier.iter().find(|before| before.name == interface.name);
            let per_s = |count: fn(&Interface) -> u64| rate(count(before?), count(interface), elapsed);
            self.push(&format!("network.{token}.rx_bytes"), integer(interface.rx_bytes));
            self.push_rate(&format!("network.{token}.rx_bytes_per_s"), per_s(|interface| interface.rx_bytes));
            self.push(&format!("network.{token}.tx_bytes"), integer(interface.tx_bytes));
            self.push_rate(&format!("network.{token}.tx_bytes_per_s"), per_s(|interface| interface.tx_bytes));
        }
    }

    fn disks(&mut self, earlier: &[Disk], current: &[Disk], elapsed: Duration) {
        for (token, disk) in tokens(current, |disk| &disk.name).take(DISKS_MAX) {
            let before = earlier.iter().find(|before| before.name == disk.name);
            let per_s = |count: fn(&Disk) -> u64| rate(count(before?), count(disk), elapsed);
            self.push(&format!("disk.{token}.read_bytes"), integer(disk.read_bytes));
            self.push_rate(&format!("disk.{token}.read_bytes_per_s"), per_s(|disk| disk.read_bytes));
            self.push(&format!("disk.{token}.written_bytes"), integer(disk.written_bytes));
            self.push_rate(&format!("disk.{token}.written_bytes_per_s"), per_s(|disk| disk.written_bytes));
            // Milliseconds per second; the kernel rounds them up, so one can be a little over.
            let busy = per_s(|disk| disk.busy_ms).map(|ms_per_s| (ms_per_s / 1_000.0).min(1.0));
            self.push_rate(&format!("disk.{token}.busy"), busy);
        }
    }
}

/// Busy time over all time between two readings; 0 if no time passed on the CPU's clock, which ticks every 10 ms.
fn busy_fraction(earlier: &CpuTime, later: &CpuTime) -> f64 {
    let busy = later.busy.saturating_sub(earlier.busy);
    // The kernel lets the idle and waiting times of a CPU go back a little.
    let idle = later.idle.saturating_sub(earlier.idle);
    match busy.saturating_add(idle) {
        0 => 0.0,
        total => busy as f64 / total as f64,
    }
}

/// How fast a counter rose; `None` if no time passed, or if it went back, since then it counts a new device.
fn rate(earlier: u64, later: u64, elapsed: Duration) -> Option<f64> {
    let rise = later.checked_sub(earlier)?;
    (!elapsed.is_zero()).then(|| rise as f64 / elapsed.as_secs_f64())
}

/// Devices with their names as tokens. Where two names give the same token, the first has it.
fn tokens<T>(devices: &[T], name: fn(&T) -> &String) -> impl Iterator<Item = (String, &T)> {
    let mut taken = Vec::new();
    devices.iter().filter_map(move |device| {
        let token = token(name(device));
        let new = !taken.contains(&token);
        taken.push(token.clone());
        new.then_some((token, device))
    })
}

/// A name of the system as one token of a channel: other characters than a token may hold become `_`.
fn token(name: &str) -> String {
    let allowed = |character: char| pattern::check_name(character.encode_utf8(&mut [0; 4]), 4).is_ok();
    let replace = |character| if allowed(character) { character } else { '_' };
    let token: String = name.chars().map(replace).take(TOKEN_BYTES_MAX).collect();
    if token.is_empty() { "unnamed".to_owned() } else { token }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: [&str; 2] = [
        "cpu 0 0 0 0\ncpu0 100 0 50 800 50 0 0 0 0 0\ncpu2 10 0 0 90 0 0 0 0 7 0\nintr 1 2\n",
        "cpu 0 0 0 0\ncpu0 120 5 60 855 45 3 2 0 0 0\ncpu2 10 0 0 90 0 0 0 0 9 0\nintr 1 2\n",
    ];
    const NET: [&str; 2] = [
        "h\nh\n  lo: 10 1 0 0 0 0 0 0 20 2 0 0 0 0 0 0\neth0.7: 1000 1 0 0 0 0 0 0 500 2 0 0 0 0 0 0\n",
        "h\nh\n  lo: 5 1 0 0 0 0 0 0 20 2 0 0 0 0 0 0\neth0.7: 2000 1 0 0 0 0 0 0 600 2 0 0 0 0 0 0\n",
    ];
    const DISKS: [&str; 2] = [
        " 8 0 sda 9 0 4 0 9 0 8 0 0 100 0\n 8 1 sda1 9 0 4 0 9 0 8 0 0 100 0\n",
        " 8 0 sda 9 0 8 0 9 0 8 0 0 150 0\n 8 1 sda1 9 0 8 0 9 0 8 0 0 150 0\n",
    ];
    const MEMORY: &str = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n";

    /// A `/proc` of files in a directory.
    fn write_proc(root: &Path, index: usize) {
        for (name, text) in [
            ("stat", STAT[index]),
            ("net/dev", NET[index]),
            ("diskstats", DISKS[index]),
            ("meminfo", MEMORY),
            ("sys/kernel/hostname", "rig 7.example\n"),
        ] {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
    }

    fn named(rows: Vec<(&str, Value)>) -> Vec<Reading> {
        let channel = |name| format!("host.rig_7_example.{name}");
        rows.into_iter().map(|(name, value)| Reading { channel: channel(name), value }).collect()
    }

    #[test]
    fn readings_are_what_proc_says_and_rates_come_with_the_second() {
        let root = tempfile::tempdir().expect("a directory");
        write_proc(root.path(), 0);
        let mut host = HostTelemetry::open_at(root.path()).expect("a /proc");
        let start = Instant::now();
        assert_eq!(
            host.read(start),
            named(vec![
                ("memory.used_bytes", Value::Integer(600 << 10)),
                ("memory.available_bytes", Value::Integer(400 << 10)),
                ("network.lo.rx_bytes", Value::Integer(10)),
                ("network.lo.tx_bytes", Value::Integer(20)),
                ("network.eth0_7.rx_bytes", Value::Integer(1_000)),
                ("network.eth0_7.tx_bytes", Value::Integer(500)),
                ("disk.sda.read_bytes", Value::Integer(2_048)),
                ("disk.sda.written_bytes", Value::Integer(4_096)),
            ])
        );

        write_proc(root.path(), 1);
        let readings = host.read(start + Duration::from_millis(100));
        assert_eq!(
            readings,
            named(vec![
                // CPU 0: 40 of 90 ticks; its waiting time went back. CPU 1 is offline. CPU 2's clock stood.
                ("cpu", vector(vec![40.0 / 90.0, 0.0, 0.0])),
                ("memory.used_bytes", Value::Integer(600 << 10)),
                ("memory.available_bytes", Value::Integer(400 << 10)),
                // Its counter went back: no rate.
                ("network.lo.rx_bytes", Value::Integer(5)),
                ("network.lo.tx_bytes", Value::Integer(20)),
                ("network.lo.tx_bytes_per_s", Value::Number(0.0)),
                ("network.eth0_7.rx_bytes", Value::Integer(2_000)),
                ("network.eth0_7.rx_bytes_per_s", Value::Number(10_000.0)),
                ("network.eth0_7.tx_bytes", Value::Integer(600)),
                ("network.eth0_7.tx_bytes_per_s", Value::Number(1_000.0)),
                ("disk.sda.read_bytes", Value::Integer(4_096)),
                ("disk.sda.read_bytes_per_s", Value::Number(20_480.0)),
                ("disk.sda.written_bytes", Value::Integer(4_096)),
                ("disk.sda.written_bytes_per_s", Value::Number(0.0)),
                ("disk.sda.busy", Value::Number(0.5)),
            ])
        );
        for reading in readings {
            assert_eq!(pattern::check_name(&reading.channel, 255), Ok(()));
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_without_proc_there_is_nothing() {
        let root = tempfile::tempdir().expect("a directory");
        let error = HostTelemetry::open_at(root.path()).expect_err("there is no /proc");
        assert!(error.to_string().contains("/proc of Linux"), "{error}");

        write_proc(root.path(), 0);
        let mut host = HostTelemetry::open_at(root.path()).expect("a /proc");
        for name in ["net/dev", "diskstats", "stat"] {
            fs::remove_file(root.path().join(name)).expect("it is there");
        }
        let now = Instant::now();
        host.read(now);
        assert_eq!(host.read(now).len(), 2, "memory alone");
        assert_eq!(host.unreadable, ["stat", "net/dev", "diskstats"]);
    }

    #[test]
    fn names_become_tokens() {
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        let rows = [
            ("rig-7", "rig-7"),
            ("a.example.com", "a_example_com"),
            ("", "unnamed"),
            ("$*>\u{202e}\n", "_____"),
            (&long, &long[1..]),
        ];
        for (name, expected) in rows {
            assert_eq!(token(name), expected);
            assert_eq!(pattern::check_name(&token(name), 255), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn devices_are_bounded_and_a_token_is_given_once() {
        let interface = |name: &str| Interface { name: name.to_owned(), rx_bytes: 0, tx_bytes: 0 };
        let clash = [interface("a.b"), interface("a_b"), interface("c")];
        let names: Vec<_> = tokens(&clash, |interface| &interface.name).map(|(token, _)| token).collect();
        assert_eq!(names, ["a_b", "c"]);

        let many: Vec<_> =
            (0..INTERFACES_MAX + 5).map(|number| interface(&format!("veth{number}"))).collect();
        let mut readings = Readings { prefix: "host.x", list: Vec::new() };
        readings.interfaces(&[], &many, Duration::ZERO);
        assert_eq!(readings.list.len(), 2 * INTERFACES_MAX);
    }
}
