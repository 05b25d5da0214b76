//! A host's files, below any directory.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::io::Errno;

/// The most that is read of a file. The longest, the list of a kernel's modules, has some 600 KiB.
const MOST_BYTES: u64 = 4 * 1024 * 1024;
/// The most entries that are read of a directory.
const MOST_NAMES: usize = 16 * 1024;

/// A host: its files, by their own paths. What is not there is `None`, and so is what may not be read, which is kept
/// in mind.
pub(super) struct Host {
    root: OwnedFd,
    own: bool,
    refused: RefCell<BTreeSet<PathBuf>>,
}

impl Host {
    /// The host whose files are below this directory.
    pub(super) fn below(root: &Path) -> anyhow::Result<Host> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(root, flags, Mode::empty());
        Ok(Host {
            root: opened.with_context(|| root.display().to_string())?,
            own: root == Path::new("/"),
            refused: RefCell::default(),
        })
    }

    /// Whether there is a file, a directory or a socket.
    pub(super) fn has(&self, path: &str) -> bool {
        self.seen(path, self.open(path, OFlags::PATH)).is_some()
    }

    /// A file, opened to be read.
    pub(super) fn file(&self, path: &str) -> io::Result<OwnedFd> {
        self.open(path, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    /// A file's text.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let file = std::fs::File::from(self.seen(path, self.file(path))?);
        let mut bytes = Vec::new();
        let read = file.take(MOST_BYTES).read_to_end(&mut bytes);
        self.seen(path, read)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A file's text without the space around it.
    pub(super) fn word(&self, path: &str) -> Option<String> {
        Some(self.text(path)?.trim().to_owned())
    }

    /// What is in a directory, in order.
    pub(super) fn names(&self, path: &str) -> Option<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.seen(path, self.open(path, flags))?;
        let entries = self.seen(path, Dir::new(directory).map_err(io::Error::from))?;
        let mut names: Vec<String> = entries
            .take(MOST_NAMES)
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .filter(|name| name != "." && name != "..")
            .collect();
        names.sort_unstable();
        Some(names)
    }

    /// What may not be read.
    pub(super) fn refused(&self) -> Vec<PathBuf> {
        self.refused.borrow().iter().cloned().collect()
    }

    /// Links lead to where they lead on that host: `/var/run` to its own `/run`.
    fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        let inside = Path::new(path).strip_prefix("/").unwrap_or(Path::new(path));
        if self.own {
            return Ok(openat(&self.root, inside, flags, Mode::empty())?);
        }
        match openat2(
            &self.root,
            inside,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        ) {
            // A kernel before 5.6, or a sandbox that is older than the call.
            Err(Errno::NOSYS | Errno::PERM) => {
                Ok(openat(&self.root, inside, flags, Mode::empty())?)
            }
            opened => Ok(opened?),
        }
    }

    fn seen<T>(&self, path: &str, outcome: io::Result<T>) -> Option<T> {
        if let Err(error) = &outcome
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            self.refused
                .borrow_mut()
                .insert(PathBuf::from(OsStr::new(path)));
        }
        outcome.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_hosts_links_stay_on_that_host() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run/netns")).unwrap();
        std::fs::create_dir(root.path().join("var")).unwrap();
        std::fs::write(root.path().join("run/netns/cni-1"), "").unwrap();
        symlink("/run", root.path().join("var/run")).unwrap();
        symlink("/etc/hostname", root.path().join("name")).unwrap();
        let host = Host::below(root.path()).unwrap();
        assert_eq!(host.names("/var/run/netns").unwrap(), ["cni-1"]);
        assert!(host.has("/var/run/netns/cni-1"));
        assert_eq!(host.text("/name"), None);
        assert_eq!(host.text("/../../../../../../etc/passwd"), None);
    }
}
