//! Which files there are, and reading one.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::MAX_FILES;
use crate::sources::manifest::{Finding, MAX_FILE_BYTES, too_large, whole_file};

/// Tells one version of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    /// Changes with every write, and with the permissions.
    changed: (i64, i64),
}

/// What is at the paths now.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Files with manifests, in the order in which the first object wins.
    pub(super) files: BTreeMap<PathBuf, Stamp>,
    /// Directories that cannot be listed, with the reason: their files are not
    /// gone, they are unknown.
    pub(super) unknown: BTreeMap<PathBuf, String>,
    /// Files beyond the bound.
    pub(super) left_out: usize,
}

/// Lists the files at `paths`: of a directory those named `*.yaml` and `*.yml`
/// that are not hidden, through symbolic links (Kubernetes mounts a ConfigMap
/// as links into a hidden directory that is replaced whole).
///
/// A directory that is gone takes nothing with it: it was moved or unmounted
/// more likely than meant. A single file that is gone is meant.
pub(super) fn list(paths: &[PathBuf], directories: &[PathBuf]) -> Listing {
    let mut listing = Listing::default();
    for path in paths {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => list_directory(path, &mut listing),
            Ok(found) if found.is_file() => listing.add(path.clone(), &found),
            Ok(_) => drop(
                listing
                    .unknown
                    .insert(path.clone(), "is neither a file nor a directory".to_owned()),
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if directories.contains(path) {
                    let gone = "is gone: put it back; what was in it stays in force";
                    listing.unknown.insert(path.clone(), gone.to_owned());
                }
            }
            Err(error) => drop(listing.unknown.insert(path.clone(), error.to_string())),
        }
    }
    listing
}

fn list_directory(directory: &Path, listing: &mut Listing) {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            return drop(
                listing
                    .unknown
                    .insert(directory.to_owned(), error.to_string()),
            );
        }
    };
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if is_manifest(&entry.path()) => names.push(entry.path()),
            Ok(_) => {}
            Err(error) => {
                return drop(
                    listing
                        .unknown
                        .insert(directory.to_owned(), error.to_string()),
                );
            }
        }
    }
    names.sort();
    for path in names {
        if let Ok(found) = fs::metadata(&path)
            && found.is_file()
        {
            listing.add(path, &found);
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden
        && path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml")
}

impl Listing {
    fn add(&mut self, path: PathBuf, found: &Metadata) {
        if self.files.len() == MAX_FILES && !self.files.contains_key(&path) {
            self.left_out += 1;
            return;
        }
        let stamp = Stamp {
            inode: (found.dev(), found.ino()),
            bytes: found.len(),
            changed: (found.ctime(), found.ctime_nsec()),
        };
        self.files.insert(path, stamp);
    }

    /// Whether a file that is not listed may still be there.
    pub(super) fn may_hide(&self, path: &Path) -> bool {
        self.unknown.keys().any(|unknown| path.starts_with(unknown))
    }
}

/// Opens a file to be read; a pipe or a device, which could be waited on for
/// ever, is refused.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    /// As on every Linux that Weir runs on.
    const O_NONBLOCK: i32 = 0o4000;
    let file = File::options()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other(
            "it is neither a file nor a directory",
        ));
    }
    Ok(file)
}

/// The text of a file, or what is wrong with it.
pub(super) fn read(path: &Path) -> Result<String, Finding> {
    let mut bytes = Vec::new();
    let read = open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        return Err(whole_file(format!(
            "cannot be read: {error}: make it readable for the user that runs weir"
        )));
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let bytes = fs::metadata(path).map_or(bytes.len() as u64, |found| found.len());
        return Err(too_large(path, bytes));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let mut finding = whole_file("not UTF-8: save it as UTF-8 text".to_owned());
        finding.line = line;
        finding
    })
}
