//! What a process has used: CPU time, time spent waiting for a CPU, and resident memory, read from `/proc`.

use std::{fs, io};

use serde::{Deserialize, Serialize};

/// The CPU time of a process so far, over all its living threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    /// On a CPU, user and system, in nanoseconds.
    pub(crate) run_ns: u64,
    /// Ready to run and waiting for a CPU, in nanoseconds.
    pub(crate) wait_ns: u64,
    /// User time in clock ticks.
    pub(crate) user_ticks: u64,
    /// System time in clock ticks.
    pub(crate) system_ticks: u64,
}

/// What a process used between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CpuUse {
    /// On a CPU, user and system, in nanoseconds.
    pub(crate) run_ns: u64,
    /// Ready to run and waiting for a CPU, in nanoseconds: what others on this core took from it.
    pub(crate) wait_ns: u64,
    /// The part of the time on a CPU spent in user space, 0 to 1. The kernel samples it at each clock tick.
    pub(crate) user_share: f64,
}

impl CpuTime {
    /// Reads the process's times now.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let mut time = Self::default();
        // `/proc/<pid>/schedstat` is the main thread alone, hence the sum over the threads.
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let (run, wait) =
                parse_schedstat(&text).ok_or_else(|| malformed("schedstat", &text))?;
            time.run_ns += run;
            time.wait_ns += wait;
        }
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        (time.user_ticks, time.system_ticks) =
            parse_stat(&text).ok_or_else(|| malformed("stat", &text))?;
        Ok(time)
    }

    /// What was used from `earlier` until this reading.
    pub(crate) fn since(self, earlier: Self) -> CpuUse {
        let user = self.user_ticks.saturating_sub(earlier.user_ticks);
        let system = self.system_ticks.saturating_sub(earlier.system_ticks);
        let ticks = user + system;
        CpuUse {
            // A thread that ended in between takes its time out of the sum.
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
            wait_ns: self.wait_ns.saturating_sub(earlier.wait_ns),
            user_share: if ticks == 0 {
                0.0
            } else {
                user as f64 / ticks as f64
            },
        }
    }
}

/// The process's resident memory in bytes.
pub(crate) fn resident_bytes(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_resident(&text).ok_or_else(|| malformed("status", &text))
}

/// The name of the processor, for the heading.
pub(crate) fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// `schedstat`: nanoseconds on a CPU, nanoseconds waiting for one, number of time slices.
fn parse_schedstat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_ascii_whitespace().map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// `stat`: fields 14 and 15 are user and system time in ticks. Field 2 is the name in brackets, and may hold
/// spaces and brackets, so that counting starts behind the last one.
fn parse_stat(text: &str) -> Option<(u64, u64)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11).map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn malformed(file: &str, text: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("/proc/<pid>/{file} is not as expected: {text:?}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_gives_time_on_cpu_and_time_waiting() {
        assert_eq!(
            parse_schedstat("714316236 44110930 364\n"),
            Some((714_316_236, 44_110_930))
        );
    }

    #[test]
    fn a_schedstat_that_is_cut_short_is_refused() {
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_schedstat("12\n"), None);
        assert_eq!(parse_schedstat("12 x 3\n"), None);
    }

    #[test]
    fn stat_is_read_past_a_name_with_spaces_and_brackets() {
        let text = "7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 31 62 0 0 20 0 3 0 1000 5000 900";
        assert_eq!(parse_stat(text), Some((31, 62)));
    }

    #[test]
    fn resident_memory_is_in_bytes() {
        assert_eq!(
            parse_resident("Name:\tx\nVmRSS:\t    3504 kB\n"),
            Some(3504 * 1024)
        );
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }

    #[test]
    fn use_is_the_difference_of_two_readings() {
        let before = CpuTime {
            run_ns: 10,
            wait_ns: 1,
            user_ticks: 4,
            system_ticks: 4,
        };
        let after = CpuTime {
            run_ns: 110,
            wait_ns: 3,
            user_ticks: 5,
            system_ticks: 7,
        };
        assert_eq!(
            after.since(before),
            CpuUse {
                run_ns: 100,
                wait_ns: 2,
                user_share: 0.25
            }
        );
    }

    #[test]
    fn an_idle_process_has_no_user_share() {
        assert_eq!(CpuTime::default().since(CpuTime::default()).user_share, 0.0);
    }

    #[test]
    fn this_process_can_be_read() {
        let pid = std::process::id();
        assert!(CpuTime::of(pid).is_ok());
        assert!(resident_bytes(pid).unwrap() > 0);
    }
}
