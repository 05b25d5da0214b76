//! Where a pod's control group is.

use std::fs;
use std::path::{Path, PathBuf};

/// Levels below the root that are searched: two of the kubelet's own, the class
/// of service, the pod.
const LEVELS: usize = 4;

/// How control groups are mounted: the directories under which each thing is
/// found, at the same path in each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) version: Version,
    /// CPU that was used.
    pub(super) usage: PathBuf,
    /// CPU that may be used.
    pub(super) limit: PathBuf,
    /// Pressure; `None` where there is none.
    pub(super) pressure: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// One hierarchy, which has everything.
    V2,
    /// One hierarchy for each controller, and beside them perhaps that of v2,
    /// without controllers but with the pressure.
    V1,
}

impl Layout {
    /// What is mounted at `root`.
    pub(super) fn of(root: &Path) -> Layout {
        if root.join("cgroup.controllers").exists() {
            return Layout {
                version: Version::V2,
                usage: root.to_owned(),
                limit: root.to_owned(),
                pressure: Some(root.to_owned()),
            };
        }
        // Often mounted as one, with links for each name.
        let of = |controller: &str| {
            let alone = root.join(controller);
            if alone.exists() {
                alone
            } else {
                root.join("cpu,cpuacct")
            }
        };
        let unified = root.join("unified");
        Layout {
            version: Version::V1,
            usage: of("cpuacct"),
            limit: of("cpu"),
            pressure: unified.exists().then_some(unified),
        }
    }

    /// The path of a pod's control group, below each directory.
    pub(super) fn find(&self, uid: &str) -> Option<PathBuf> {
        let names = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
        let found = search(&self.usage, &names, LEVELS)?;
        found.strip_prefix(&self.usage).ok().map(Path::to_owned)
    }
}

/// The directory within `within` that has one of `names` in its own. Other pods'
/// directories, and what has nothing to do with pods, are not entered.
fn search(within: &Path, names: &[String], levels: usize) -> Option<PathBuf> {
    let mut deeper = Vec::new();
    for entry in fs::read_dir(within).ok()?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if names.iter().any(|wanted| name.contains(wanted.as_str())) {
            return Some(entry.path());
        }
        if leads_to_pods(&name) && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            deeper.push(entry.path());
        }
    }
    let levels = levels.checked_sub(1).filter(|levels| *levels > 0)?;
    deeper
        .iter()
        .find_map(|directory| search(directory, names, levels))
}

/// `kubepods`, `kubepods.slice`, `kubepods-burstable.slice`, `burstable`;
/// `kubelet.slice` and `kubelet-kubepods.slice` where a kubelet runs in a slice
/// of its own.
fn leads_to_pods(name: &str) -> bool {
    let rest = name.replacen("kubepods", "", 1);
    let of_kubelet = name.starts_with("kubepods") || name.starts_with("kubelet");
    let class = ["burstable", "besteffort", "guaranteed"].contains(&name);
    class || of_kubelet && !rest.contains("pod")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leads_to_pods_is_entered() {
        for name in [
            "kubepods",
            "kubepods.slice",
            "kubepods-besteffort.slice",
            "burstable",
            "kubelet.slice",
            "kubelet-kubepods.slice",
            "kubelet-kubepods-burstable.slice",
        ] {
            assert!(leads_to_pods(name), "{name}");
        }
        for name in [
            "system.slice",
            "kubepods-burstable-pod0a1b.slice",
            "pod0a1b",
            "cri-containerd-5.scope",
            "user.slice",
        ] {
            assert!(!leads_to_pods(name), "{name}");
        }
    }
}
