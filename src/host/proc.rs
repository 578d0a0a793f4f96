//! Reads the text of the few files of `/proc` that are needed (see proc(5)). Pure; a line that is not understood is
//! skipped, since it says nothing about the others.

/// Time of one CPU since the start of the system, in ticks of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CpuTime {
    /// Its number; numbers of offline CPUs are missing.
    pub(super) number: usize,
    /// Running anything, or stolen by the hypervisor.
    pub(super) busy: u64,
    /// Idle, or waiting for a disk.
    pub(super) idle: u64,
}

/// Memory of the host, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) total: u64,
    /// What programs could get without swapping.
    pub(super) available: u64,
}

/// Counters of a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

/// Counters of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) name: String,
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
    /// Milliseconds in which it had work.
    pub(super) busy_ms: u64,
}

/// Bytes of a sector in `/proc/diskstats`, whatever the disk's own.
const SECTOR_BYTES: u64 = 512;

/// The CPUs of `/proc/stat`, without the line that sums them up.
pub(super) fn cpus(text: &str) -> Vec<CpuTime> {
    text.lines().filter_map(cpu).collect()
}

fn cpu(line: &str) -> Option<CpuTime> {
    let (number, times) = line.strip_prefix("cpu")?.split_once(' ')?;
    let number = number.parse().ok()?;
    // user, nice, system, idle, iowait, irq, softirq, steal; guest times after them are part of user and nice.
    let mut times = times.split_whitespace().take(8).map_while(|time| time.parse::<u64>().ok());
    let mut next = || times.next();
    let (user, nice, system, idle) = (next()?, next()?, next()?, next()?);
    let waiting = next().unwrap_or(0);
    let rest = times.fold(0, u64::saturating_add);
    let busy = [nice, system, rest].into_iter().fold(user, u64::saturating_add);
    Some(CpuTime { number, busy, idle: idle.saturating_add(waiting) })
}

/// The totals of `/proc/meminfo`.
pub(super) fn memory(text: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
        kib.checked_mul(1_024)
    };
    Some(Memory { total: bytes("MemTotal")?, available: bytes("MemAvailable")? })
}

/// The interfaces of `/proc/net/dev`, in the kernel's order.
pub(super) fn interfaces(text: &str) -> Vec<Interface> {
    text.lines().filter_map(interface).collect()
}

fn interface(line: &str) -> Option<Interface> {
    // Old kernels leave no space after the colon.
    let (name, counters) = line.rsplit_once(':')?;
    let mut counters = counters.split_whitespace();
    let rx_bytes = counters.next()?.parse().ok()?;
    let tx_bytes = counters.nth(7)?.parse().ok()?;
    Some(Interface { name: name.trim().to_owned(), rx_bytes, tx_bytes })
}

/// The disks of `/proc/diskstats`, in the kernel's order, without partitions, loop and RAM disks.
pub(super) fn disks(text: &str) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    for disk in text.lines().filter_map(disk) {
        let left_out = ["loop", "ram", "zram"].iter().any(|kind| disk.name.starts_with(kind));
        if !left_out && !disks.iter().any(|whole| is_partition(&whole.name, &disk.name)) {
            disks.push(disk);
        }
    }
    disks
}

fn disk(line: &str) -> Option<Disk> {
    // major, minor, name, reads, merged, sectors read, ms, writes, merged, sectors written, ms, in progress, ms busy
    let mut fields = line.split_whitespace();
    let name = fields.nth(2)?.to_owned();
    let mut count = |skipped: usize| fields.nth(skipped)?.parse::<u64>().ok();
    let (sectors_read, sectors_written, busy_ms) = (count(2)?, count(3)?, count(2)?);
    Some(Disk {
        name,
        read_bytes: sectors_read.saturating_mul(SECTOR_BYTES),
        written_bytes: sectors_written.saturating_mul(SECTOR_BYTES),
        busy_ms,
    })
}

/// Whether the kernel would give a partition of `whole` this name: `sda1` of `sda`, `nvme0n1p1` of `nvme0n1`; but `dm-10`
/// is none of `dm-1`.
fn is_partition(whole: &str, name: &str) -> bool {
    let Some(rest) = name.strip_prefix(whole) else { return false };
    let number =
        if whole.ends_with(|last: char| last.is_ascii_digit()) { rest.strip_prefix('p') } else { Some(rest) };
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cpu_lines() {
        let rows = [
            ("cpu0 1 2 3 4 5 6 7 8 9 10", Some((0, 1 + 2 + 3 + 6 + 7 + 8, 4 + 5))),
            ("cpu127 1 2 3 4", Some((127, 6, 4))),
            ("cpu0 18446744073709551615 1 1 1", Some((0, u64::MAX, 1))),
            ("cpu  1 2 3 4", None),
            ("cpu0 1 2 3", None),
            ("cpu0 1 2 x 4", None),
            ("cpux 1 2 3 4", None),
            ("cpu-1 1 2 3 4", None),
            ("intr 1 2 3 4", None),
            ("cpu0", None),
            ("", None),
        ];
        for (line, expected) in rows {
            let expected = expected.map(|(number, busy, idle)| CpuTime { number, busy, idle });
            assert_eq!(cpu(line), expected, "{line}");
        }
    }

    #[test]
    fn memory_texts() {
        let rows = [
            ("MemTotal:  8 kB\nMemFree: 1 kB\nMemAvailable:   3 kB\n", Some((8 << 10, 3 << 10))),
            ("MemAvailable: 3 kB\nMemTotal: 8 kB", Some((8 << 10, 3 << 10))),
            ("MemTotal: 8 kB\n", None),
            ("MemTotal: 8\nMemAvailable: 3 kB\n", None),
            ("MemTotal: 18446744073709551615 kB\nMemAvailable: 3 kB\n", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let expected = expected.map(|(total, available)| Memory { total, available });
            assert_eq!(memory(text), expected, "{text}");
        }
    }

    #[test]
    fn interface_lines() {
        let rows = [
            (" eth0: 7 1 2 3 4 5 6 8 9 1 2 3 4 5 6 7", Some(("eth0", 7, 9))),
            ("eth0:7 1 2 3 4 5 6 8 9 1 2 3 4 5 6 7", Some(("eth0", 7, 9))),
            ("eth0:1: 7 1 2 3 4 5 6 8 9 1 2 3 4 5 6 7", Some(("eth0:1", 7, 9))),
            ("eth0: 7 1 2 3 4 5 6 8", None),
            ("eth0: -7 1 2 3 4 5 6 8 9", None),
            (" face |bytes    packets errs drop fifo frame compressed multicast|bytes", None),
            ("", None),
        ];
        for (line, expected) in rows {
            let expected = expected.map(|(name, rx_bytes, tx_bytes)| Interface {
                name: name.to_owned(),
                rx_bytes,
                tx_bytes,
            });
            assert_eq!(interface(line), expected, "{line}");
        }
    }

    #[test]
    fn disk_lines() {
        let rows = [
            ("254 0 vda 1 2 3 4 5 6 7 8 9 10 11 12 13", Some(("vda", 3, 7, 10))),
            ("254 0 vda 1 2 3 4 5 6 7 8 9 10", Some(("vda", 3, 7, 10))),
            ("254 0 vda 1 2 3 4 5 6 7 8 9", None),
            ("254 0 vda", None),
            ("254 0 vda 1 2 x 4 5 6 7 8 9 10", None),
            ("", None),
        ];
        for (line, expected) in rows {
            let expected = expected.map(|(name, read, written, busy_ms)| Disk {
                name: name.to_owned(),
                read_bytes: read * SECTOR_BYTES,
                written_bytes: written * SECTOR_BYTES,
                busy_ms,
            });
            assert_eq!(disk(line), expected, "{line}");
        }
    }

    #[test]
    fn only_whole_disks_are_kept() {
        let names = [
            "loop0",
            "ram1",
            "zram0",
            "sda",
            "sda1",
            "sda12",
            "sdaa",
            "sdaa1",
            "nvme0n1",
            "nvme0n1p1",
            "nvme0n2",
            "mmcblk0",
            "mmcblk0p2",
            "dm-1",
            "dm-10",
            "md0",
            "md0p1",
        ];
        let text: String = names.iter().map(|name| format!("8 0 {name} 1 2 3 4 5 6 7 8 9 10\n")).collect();
        let kept: Vec<_> = disks(&text).into_iter().map(|disk| disk.name).collect();
        assert_eq!(kept, ["sda", "sdaa", "nvme0n1", "nvme0n2", "mmcblk0", "dm-1", "dm-10", "md0"]);
    }

    proptest! {
        /// No text makes a parser panic.
        #[test]
        fn any_text_is_read(text in "(cpu[0-9 ]{0,40}|MemTotal:[0-9 kB]{0,30}|[a-z:0-9 ]{0,80}|.{0,60}|\n){0,12}") {
            cpus(&text);
            memory(&text);
            interfaces(&text);
            disks(&text);
        }
    }
}
