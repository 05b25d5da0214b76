//! What breakers know on disk, for the agent's own restart.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::message::{self, MAX_BYTES};
use crate::clock::Clock;
use crate::registry::{Registry, Remembered};

/// How often it is written at most: a crash loses no more.
const EVERY: Duration = Duration::from_secs(1);

/// A file in the agent's state directory, readable by nobody else.
#[derive(Clone)]
pub(crate) struct File {
    path: PathBuf,
}

impl File {
    /// In a directory that is there.
    pub(crate) fn in_directory(directory: &Path) -> File {
        File {
            path: directory.join("breakers.pb"),
        }
    }

    /// What was known when it was last saved; nothing where there is no file.
    pub(crate) fn load(&self) -> io::Result<Vec<Remembered>> {
        let file = match fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES as u64).read_to_end(&mut bytes)?;
        Ok(message::decode(&bytes))
    }

    /// Replaces what is saved, at once and whole. It does not wait for the disk:
    /// what a crash of the whole machine loses nobody needs after it.
    pub(crate) fn save(&self, registry: &Registry, clock: Clock) {
        let bytes = message::encode(&registry.memories(clock.moment()));
        if let Err(error) = self.replace(&bytes) {
            tracing::error!(%error, "cannot save what breakers know; a restart would begin without");
        }
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let fresh = self.path.with_extension("pb.new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(bytes)?;
        fs::rename(&fresh, &self.path)
    }

    /// Saves after every change, for ever.
    pub(crate) async fn follow(self, registry: Arc<Registry>, clock: Clock) {
        let mut look = interval(EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What is there is what was read.
        let mut saved = registry.steps();
        loop {
            look.tick().await;
            let now = registry.steps();
            if now != saved {
                saved = now;
                self.save(&registry, clock);
            }
        }
    }
}
