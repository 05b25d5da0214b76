//! Which programs a cluster is made of, and where they are.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The programs of a control plane, and those with which it is used.
pub(super) struct Programs {
    pub(super) etcd: PathBuf,
    pub(super) api_server: PathBuf,
    pub(super) controller_manager: PathBuf,
    pub(super) kubectl: PathBuf,
    pub(super) helm: PathBuf,
}

/// What nodes need besides.
pub(super) struct NodePrograms {
    /// Where kubelet and its like lie.
    pub(super) directory: PathBuf,
    pub(super) scheduler: PathBuf,
    /// What goes into images.
    pub(super) busybox: PathBuf,
    pub(super) coredns: PathBuf,
    pub(super) workload: PathBuf,
}

/// What must lie beside the kubelet.
const BESIDE: [&str; 11] = [
    "kube-scheduler",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "ptp",
    "bridge",
    "loopback",
    "host-local",
    "portmap",
];

impl Programs {
    /// All of them, or `None` when a test may pass over it; that has been printed then.
    pub(super) fn find() -> Result<Option<Programs>> {
        let mut search = Search::default();
        let found = Programs {
            etcd: search.find("WEIR_ETCD", "etcd"),
            api_server: search.find("WEIR_KUBE_APISERVER", "kube-apiserver"),
            controller_manager: search
                .find("WEIR_KUBE_CONTROLLER_MANAGER", "kube-controller-manager"),
            kubectl: search.find("WEIR_KUBECTL", "kubectl"),
            helm: search.find("WEIR_HELM", "helm"),
        };
        search.end(found)
    }
}

impl NodePrograms {
    /// The same for nodes, which only root can make.
    pub(super) fn find() -> Result<Option<NodePrograms>> {
        let mut search = Search::default();
        let kubelet = search.find("WEIR_KUBELET", "kubelet");
        let directory = kubelet.parent().unwrap_or(Path::new("")).to_owned();
        if kubelet.is_file() {
            let absent = |name: &&str| !directory.join(name).is_file();
            search.missing.extend(BESIDE.into_iter().filter(absent));
        }
        let found = NodePrograms {
            scheduler: directory.join("kube-scheduler"),
            directory,
            busybox: search.find("WEIR_BUSYBOX", "busybox"),
            coredns: search.find("WEIR_COREDNS", "coredns"),
            workload: search.find("WEIR_WORKLOAD", "workload"),
        };
        if !rustix::process::geteuid().is_root() {
            let why =
                "nodes have namespaces, mounts and cgroups of their own, which only root can make";
            return pass_over(why);
        }
        search.end(found)
    }
}

#[derive(Default)]
struct Search {
    missing: Vec<&'static str>,
}

impl Search {
    /// Where it is; what is returned for one that is missing is of no use.
    fn find(&mut self, variable: &str, name: &'static str) -> PathBuf {
        place(variable, name).unwrap_or_else(|| {
            self.missing.push(name);
            PathBuf::new()
        })
    }

    fn end<T>(self, found: T) -> Result<Option<T>> {
        if self.missing.is_empty() {
            return Ok(Some(found));
        }
        let missing = self.missing.join(", ");
        pass_over(&format!(
            "{missing}: not found; `cargo xtask test` gets them, and `cargo xtask tools` prints where they are"
        ))
    }
}

fn pass_over<T>(why: &str) -> Result<Option<T>> {
    if std::env::var_os("CI").is_some() {
        bail!("{why}");
    }
    println!("NOT RUN: {why}");
    Ok(None)
}

/// Where its variable says, else among the programs that were made for tests of Kubernetes. Not from `PATH`: a
/// `kubectl` of any age may be there.
fn place(variable: &str, name: &str) -> Option<PathBuf> {
    let assets = || Some(PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS")?).join(name));
    std::env::var_os(variable)
        .map(PathBuf::from)
        .or_else(assets)
        .filter(|path| path.is_file())
}
