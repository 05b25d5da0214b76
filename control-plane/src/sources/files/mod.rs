//! The source `files`: manifests in directories and files, watched.
//!
//! inotify wakes the source; it waits until the writer seems done, then looks
//! at everything and reads what changed. A slow look every two seconds finds
//! what inotify missed (another file system, a watch that died). What is half
//! written, broken or gone for a moment leaves the last good objects in force.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::EventKind;
use notify::event::{AccessKind, AccessMode};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

mod file;
mod listing;
mod merge;
mod watches;

use merge::Merged;
#[cfg(test)]
pub(crate) use merge::from_text;
use watches::Watches;

use super::Objects;
use crate::stop::stopped;

/// Files that are read; more are refused.
pub const MAX_FILES: usize = 1_000;
/// A writer is done when nothing happened for so long.
const QUIET: Duration = Duration::from_millis(25);
/// A writer that is never quiet is not waited for any longer.
const PATIENCE: Duration = Duration::from_millis(75);
/// The slow look.
const RESCAN: Duration = Duration::from_secs(2);

/// Why the source cannot start.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}: give a directory of manifests, or a file", path.display())]
pub struct OpenError {
    path: PathBuf,
    error: std::io::Error,
}

/// The manifests at some paths.
pub struct Files {
    paths: Vec<PathBuf>,
    /// Those of them that were directories in the beginning.
    directories: Vec<PathBuf>,
    merged: Merged,
}

/// What a look found.
pub struct Look {
    /// Everything, if anything changed.
    pub changed: Option<Objects>,
    /// When something is to be decided that no event announces.
    pub again: Option<Instant>,
}

impl Files {
    /// The manifests at `paths`, each a file or a directory. Nothing is read yet.
    ///
    /// # Errors
    /// Where a path does not exist or may not be read.
    pub fn open(paths: Vec<PathBuf>) -> Result<Files, OpenError> {
        let mut directories = Vec::new();
        for path in &paths {
            let readable = std::fs::metadata(path).and_then(|found| {
                if found.is_dir() {
                    directories.push(path.clone());
                    std::fs::read_dir(path).map(drop)
                } else {
                    listing::open(path).map(drop)
                }
            });
            readable.map_err(|error| OpenError {
                path: path.clone(),
                error,
            })?;
        }
        Ok(Files {
            paths,
            directories,
            merged: Merged::default(),
        })
    }

    /// Reads what changed since the last look. Blocks on the disk.
    pub fn look(&mut self, now: Instant, wall: jiff::Timestamp) -> Look {
        let listing = listing::list(&self.paths, &self.directories);
        self.merged.take(&listing, now, wall)
    }

    /// Looks whenever something happens, and publishes what changed into
    /// `objects`, until `stop` is true.
    pub async fn run(
        mut self,
        objects: watch::Sender<Option<Arc<Objects>>>,
        mut again: Option<Instant>,
        mut stop: watch::Receiver<bool>,
    ) {
        // One place: a wake that finds another one waiting adds nothing to it.
        let (wake, mut woken) = mpsc::channel(1);
        let mut watches = Watches::new(&self.paths, move |event| {
            if is_news(&event) {
                let _ = wake.try_send(());
            }
        });
        // What changed before the watches were there.
        let mut rescan = Instant::now();
        loop {
            watches.renew();
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                Some(()) = woken.recv() => quiet(&mut woken).await,
                () = sleep_until(again.map_or(rescan, |again| again.min(rescan))) => {}
            }
            let now = Instant::now();
            rescan = now + RESCAN;
            let looked = tokio::task::spawn_blocking(move || {
                let look = self.look(now, jiff::Timestamp::now());
                (self, look)
            });
            let look;
            (self, look) = match looked.await {
                Ok(done) => done,
                Err(error) => {
                    tracing::error!(%error, "reading manifests failed; what was read stays in force until a restart");
                    return;
                }
            };
            again = look.again;
            if let Some(changed) = look.changed {
                objects.send_replace(Some(Arc::new(changed)));
            }
        }
    }
}

/// Waits until nothing happens for a moment.
async fn quiet(woken: &mut mpsc::Receiver<()>) {
    let patience = Instant::now() + PATIENCE;
    while Instant::now() < patience {
        let until = (Instant::now() + QUIET).min(patience);
        if timeout_at(until, woken.recv()).await.is_err() {
            return;
        }
    }
}

/// Whether an event may mean other contents: our own reading does not.
fn is_news(event: &notify::Result<notify::Event>) -> bool {
    match event {
        Ok(event) => match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
            EventKind::Access(_) => event.need_rescan(),
            _ => true,
        },
        Err(_) => true,
    }
}
