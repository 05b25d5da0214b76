//! Which cores there are to measure on, and the start of a process on one of them.

use std::{ffi::OsString, io, os::unix::process::CommandExt as _, process::Command};

use rustix::{
    process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use serde::Serialize;

/// File descriptors for each process: more than any measurement here needs, and few enough for tables by descriptor.
const DESCRIPTORS: u64 = 16_384;

/// The core that the proxy has for itself, and the one that load and backend share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cores {
    pub(crate) proxy: usize,
    pub(crate) rest: usize,
}

impl Cores {
    /// The first two cores that this process may use; the same one twice if there is no second.
    pub(crate) fn allowed() -> io::Result<Self> {
        let set = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core));
        let proxy = cores.next().unwrap_or(0);
        Ok(Self {
            proxy,
            rest: cores.next().unwrap_or(proxy),
        })
    }

    /// Whether all share one core, so that the figures say little about a proxy.
    pub(crate) fn single(self) -> bool {
        self.proxy == self.rest
    }
}

/// Becomes `command`, on the core `cpu`, ended by the kernel when the parent ends. It comes back only on failure.
///
/// The parent cannot do this itself without `unsafe`: what runs between fork and exec is not checked by the compiler.
pub(crate) fn exec(cpu: usize, command: &[OsString]) -> anyhow::Error {
    let Some((program, arguments)) = command.split_first() else {
        return anyhow::anyhow!("nothing to run: write `-- PROGRAM ARGUMENT…`");
    };
    let mut set = CpuSet::new();
    set.set(cpu);
    if let Err(error) = sched_setaffinity(None, &set) {
        return anyhow::Error::new(error).context(format!("cannot run on CPU {cpu}"));
    }
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return anyhow::Error::new(error).context("cannot tie this process to its parent");
    }
    // A relay has two descriptors for each connection, and the usual soft limit is 1,024. Where there is no more to be
    // had, the shortage shows as an error of the one that meets it.
    let limit = getrlimit(Resource::Nofile);
    let current = Some(
        limit
            .maximum
            .map_or(DESCRIPTORS, |hard| hard.min(DESCRIPTORS)),
    );
    let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
    let error = Command::new(program).args(arguments).exec();
    anyhow::Error::new(error).context(format!("cannot run {}", program.display()))
}
