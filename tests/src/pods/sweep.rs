//! What a test program that was killed could not remove.

use std::fs;
use std::path::Path;
use std::sync::Once;

use super::namespace;

const PREFIX: &str = "weir-pods-";

/// How the directories of a process begin.
pub(super) fn prefix(process: u32) -> String {
    format!("{PREFIX}{process}-")
}

/// Removes the directories of processes that are no more.
pub(super) fn once() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten() {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            let process = name.and_then(|name| name.split_once('-'));
            let Some((process, _)) = process else {
                continue;
            };
            if !Path::new("/proc").join(process).exists() {
                empty(&entry.path());
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    });
}

/// Removes the names of namespaces below a directory.
fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            empty(&path);
        } else {
            namespace::remove(&path);
        }
    }
}
