//! One pod's counters, or the machine's, read from files that are kept open: at
//! most five for each.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use super::places::{Layout, Version};
use super::{Kernel, parse};

/// Bytes that are read of a file: `/proc/stat` of 1,000 processors has its first
/// lines in it.
const MOST: usize = 128 << 10;

/// What the kernel has counted up to now. What it does not count is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// Time on a processor, of all tasks together.
    pub(super) used: Option<Duration>,
    /// Processors that it may use, in thousandths; `None`: all that there are.
    pub(super) millicpus: Option<u64>,
    /// Time in which some task waited for a processor.
    pub(super) waited_for_cpu: Option<Duration>,
    /// Time in which some task waited for memory.
    pub(super) waited_for_memory: Option<Duration>,
}

/// Why something is not measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub(super) enum Missing {
    #[error(
        "no control group of a pod is found: the agent needs the node's /sys/fs/cgroup, and pods of Kata or \
         gVisor have none there"
    )]
    Pod,
    #[error(
        "a pod's use of CPU cannot be read: loadShedding.cpu with source Pod sheds nothing for it"
    )]
    Usage,
    #[error(
        "the kernel does not tell pressure: loadShedding.pressure sheds nothing; start it with psi=1, and with \
         cgroup v2 mounted"
    )]
    Pressure,
    #[error(
        "the machine's use of CPU cannot be read from /proc/stat: loadShedding.cpu with source Node sheds nothing"
    )]
    Machine,
}

/// Files with counters.
pub(super) struct Source {
    usage: Option<Usage>,
    cpu_pressure: Option<File>,
    memory_pressure: Option<File>,
}

enum Usage {
    V2 {
        stat: File,
        max: Option<File>,
    },
    V1 {
        usage: File,
        limit: Option<(File, File)>,
    },
    Machine(File),
}

impl Source {
    /// The counters of a pod. Beside it: what of them is missing.
    pub(super) fn of_pod(
        kernel: &Kernel,
        uid: &str,
        buffer: &mut Vec<u8>,
    ) -> Result<(Source, Vec<Missing>), Missing> {
        let layout = Layout::of(&kernel.cgroup);
        let path = layout.find(uid).ok_or(Missing::Pod)?;
        let open = |within: &Path, name: &str| File::open(within.join(&path).join(name));
        let usage = match layout.version {
            Version::V2 => open(&layout.usage, "cpu.stat").map(|stat| Usage::V2 {
                stat,
                // Where the controller is off there is no limit.
                max: open(&layout.limit, "cpu.max").ok(),
            }),
            Version::V1 => open(&layout.usage, "cpuacct.usage").map(|usage| Usage::V1 {
                usage,
                limit: open(&layout.limit, "cpu.cfs_quota_us")
                    .and_then(|quota| Ok((quota, open(&layout.limit, "cpu.cfs_period_us")?)))
                    .ok(),
            }),
        };
        let pressure = |name| {
            let within = layout.pressure.as_deref()?;
            open(within, name).ok()
        };
        let (cpu, memory) = (pressure("cpu.pressure"), pressure("memory.pressure"));
        Ok(Source::new(usage, Missing::Usage, cpu, memory, buffer))
    }

    /// The counters of the machine.
    pub(super) fn of_machine(
        kernel: &Kernel,
        buffer: &mut Vec<u8>,
    ) -> Result<(Source, Vec<Missing>), Missing> {
        let usage = File::open(kernel.proc.join("stat")).map(Usage::Machine);
        let pressure = |name| File::open(kernel.proc.join("pressure").join(name)).ok();
        let (cpu, memory) = (pressure("cpu"), pressure("memory"));
        Ok(Source::new(usage, Missing::Machine, cpu, memory, buffer))
    }

    fn new(
        usage: io::Result<Usage>,
        without: Missing,
        cpu_pressure: Option<File>,
        memory_pressure: Option<File>,
        buffer: &mut Vec<u8>,
    ) -> (Source, Vec<Missing>) {
        let mut source = Source {
            usage: usage.ok(),
            cpu_pressure,
            memory_pressure,
        };
        let mut missing = Vec::new();
        // Where pressure is turned off the files are there and cannot be read.
        let first = source.read(buffer).unwrap_or_default();
        if first.used.is_none() {
            source.usage = None;
            missing.push(without);
        }
        if first.waited_for_cpu.is_none() {
            (source.cpu_pressure, source.memory_pressure) = (None, None);
            missing.push(Missing::Pressure);
        }
        (source, missing)
    }

    /// All counters as they are; `None` where none can be read any more.
    pub(super) fn read(&self, buffer: &mut Vec<u8>) -> Option<Reading> {
        let (used, millicpus) = match &self.usage {
            None => (None, None),
            Some(Usage::V2 { stat, max }) => (
                text(stat, buffer).and_then(parse::usage),
                max.as_ref()
                    .and_then(|max| text(max, buffer).and_then(parse::limit)),
            ),
            Some(Usage::V1 { usage, limit }) => (
                text(usage, buffer).and_then(parse::usage_v1),
                limit.as_ref().and_then(|(quota, period)| {
                    let quota = text(quota, buffer)?.to_owned();
                    parse::limit_v1(&quota, text(period, buffer)?)
                }),
            ),
            Some(Usage::Machine(stat)) => {
                let counted = text(stat, buffer).and_then(parse::processors);
                (counted.map(|(used, _)| used), counted.map(|(_, n)| n))
            }
        };
        let waited = |file: &Option<File>, buffer: &mut Vec<u8>| {
            let file = file.as_ref()?;
            text(file, buffer).and_then(parse::waited)
        };
        let waited_for_cpu = waited(&self.cpu_pressure, buffer);
        let waited_for_memory = waited(&self.memory_pressure, buffer);
        let reading = Reading {
            used,
            millicpus,
            waited_for_cpu,
            waited_for_memory,
        };
        (used.is_some() || waited_for_cpu.is_some()).then_some(reading)
    }
}

/// A file's text from its beginning, up to [`MOST`]. The kernel writes it anew
/// for each reading.
fn text<'b>(file: &File, buffer: &'b mut Vec<u8>) -> Option<&'b str> {
    buffer.clear();
    let mut room = 512;
    loop {
        let filled = buffer.len();
        buffer.resize(filled + room, 0);
        let read = file.read_at(&mut buffer[filled..], filled as u64).ok()?;
        buffer.truncate(filled + read);
        if read == 0 || buffer.len() >= MOST {
            // A text that was cut ends with the last whole character.
            return match std::str::from_utf8(buffer) {
                Ok(text) => Some(text),
                Err(error) => std::str::from_utf8(&buffer[..error.valid_up_to()]).ok(),
            };
        }
        room = 16 << 10;
    }
}
