//! A machine that is exactly as busy as a test says, told as Linux tells it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weir_agent::Kernel;

/// How often its counters move.
const EVERY: Duration = Duration::from_millis(10);

/// A machine with two processors.
pub struct Machine {
    dir: TempDir,
    load: Arc<Load>,
    runs: JoinHandle<()>,
}

/// In percent.
#[derive(Default)]
struct Load {
    cpu: AtomicU64,
    pressure: AtomicU64,
}

impl Machine {
    /// One that has nothing to do.
    pub fn idle() -> Result<Machine> {
        let dir = TempDir::with_prefix("weir-machine-")?;
        std::fs::create_dir_all(dir.path().join("proc/pressure"))?;
        let file = |name: &str| File::create(dir.path().join("proc").join(name));
        let counters = Counters {
            stat: file("stat")?,
            cpu: file("pressure/cpu")?,
            memory: file("pressure/memory")?,
        };
        counters.write(0, 0)?;
        let load = Arc::new(Load::default());
        let runs = tokio::spawn(run(counters, load.clone()));
        Ok(Machine { dir, load, runs })
    }

    /// Its processors work for so much of the time.
    pub fn uses(&self, percent: u64) {
        self.load.cpu.store(percent, Relaxed);
    }

    /// Some task waits for a processor for so much of the time.
    pub fn waits(&self, percent: u64) {
        self.load.pressure.store(percent, Relaxed);
    }

    /// Where it tells of that.
    pub fn kernel(&self) -> Kernel {
        Kernel {
            cgroup: self.path().join("cgroup"),
            proc: self.path().join("proc"),
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.runs.abort();
    }
}

struct Counters {
    stat: File,
    cpu: File,
    memory: File,
}

impl Counters {
    /// In place and always as long, so that a reader never sees half of it.
    fn write(&self, busy_us: u64, waited_us: u64) -> std::io::Result<()> {
        let ticks = busy_us / 10_000;
        let stat = format!("cpu  {ticks:020} 0 0 0 0 0 0 0 0 0\ncpu0 0\ncpu1 0\nintr 0\n");
        self.stat.write_all_at(stat.as_bytes(), 0)?;
        for (file, total) in [(&self.cpu, waited_us), (&self.memory, 0)] {
            let text = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total:020}\n");
            file.write_all_at(text.as_bytes(), 0)?;
        }
        Ok(())
    }
}

async fn run(counters: Counters, load: Arc<Load>) {
    let (mut busy, mut waited) = (0, 0);
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        let now = Instant::now();
        let passed = u64::try_from((now - last).as_micros()).unwrap_or(0);
        last = now;
        busy += 2 * passed * load.cpu.load(Relaxed) / 100;
        waited += passed * load.pressure.load(Relaxed) / 100;
        if counters.write(busy, waited).is_err() {
            return;
        }
    }
}
