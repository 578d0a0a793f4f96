//! Keeps CPUs from sleeping while latency is measured: processes of idle priority that do nothing, and give way to anybody.
//! On a virtual machine a sleeping CPU answers tens of microseconds later, which would be measured instead of the server.

use std::os::unix::process::parent_id;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;

use crate::proc;

/// Between two looks at whether anybody still wants it.
const LOOK: Duration = Duration::from_millis(5);

/// Does nothing, busily, until the process that started it is gone
#[derive(Debug, Parser)]
pub(crate) struct SpinArgs {
    /// The CPU
    #[arg(long, value_name = "CPU")]
    pub cpu: usize,
}

/// Spins until the parent is gone.
pub(crate) fn spin(args: &SpinArgs) -> Result<bool, String> {
    let parent = parent_id();
    proc::bind(args.cpu).map_err(|error| error.to_string())?;
    // An orphan gets another parent.
    while parent_id() == parent {
        let until = Instant::now() + LOOK;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
    Ok(true)
}

/// Spinning processes; ended when dropped.
#[derive(Debug)]
pub(crate) struct Awake(Vec<Child>);

impl Awake {
    /// One for each CPU.
    pub(crate) fn start(cpus: &[usize]) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut awake = Self(Vec::new());
        for cpu in cpus {
            // chrt becomes the program that it starts, so the child is the spinner. It takes off its inherited binding itself.
            let child = Command::new("chrt")
                .args(["--idle", "0"])
                .arg(&own)
                .args(["spin", "--cpu", &cpu.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .map_err(|error| {
                    format!("chrt, which keeps CPU {cpu} awake: {error}; it is in util-linux")
                })?;
            awake.0.push(child);
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Fails if it has ended by itself, which is as well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spinner_that_is_not_bound_says_why() {
        let error = spin(&SpinArgs { cpu: usize::MAX }).unwrap_err();
        assert!(error.contains("there is no CPU"), "{error}");
    }
}
