//! inotify watches on the directories that hold the manifests.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Directories that are watched; each is remembered by its inode, for a watch
/// stays with a directory that is replaced.
pub(super) struct Watches {
    watcher: Option<RecommendedWatcher>,
    directories: BTreeMap<PathBuf, Option<(u64, u64)>>,
}

impl Watches {
    /// Watches what holds `paths`. Without inotify the slow look must do.
    pub(super) fn new(
        paths: &[PathBuf],
        tell: impl Fn(notify::Result<notify::Event>) + Send + 'static,
    ) -> Watches {
        let watcher = notify::recommended_watcher(tell)
            .map_err(|error| tracing::warn!(%error, "no inotify: manifests are looked at every two seconds"))
            .ok();
        let directories = paths
            .iter()
            .map(|path| (directory_of(path), None))
            .collect();
        let mut watches = Watches {
            watcher,
            directories,
        };
        watches.renew();
        watches
    }

    /// Watches anew what is not watched, or was replaced.
    pub(super) fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for (directory, watched) in &mut self.directories {
            let now = std::fs::metadata(directory)
                .ok()
                .map(|found| (found.dev(), found.ino()));
            if now == *watched {
                continue;
            }
            if watched.is_some() {
                // It fails where the kernel has dropped the watch already.
                let _ = watcher.unwatch(directory);
            }
            *watched = now.filter(|_| match watcher.watch(directory, RecursiveMode::NonRecursive) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(directory = %directory.display(), %error, "cannot be watched; looked at every two seconds");
                    false
                }
            });
        }
    }
}

fn directory_of(path: &Path) -> PathBuf {
    if path.is_dir() {
        return path.to_owned();
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
