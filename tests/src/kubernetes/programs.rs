//! Which programs a cluster is made of, and where they are.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// The five programs.
pub(super) struct Programs {
    pub(super) etcd: PathBuf,
    pub(super) api_server: PathBuf,
    pub(super) controller_manager: PathBuf,
    pub(super) kubectl: PathBuf,
    pub(super) helm: PathBuf,
}

impl Programs {
    /// All of them, or `None` when a test may pass over it; that has been printed then.
    pub(super) fn find() -> Result<Option<Programs>> {
        let mut missing = Vec::new();
        let mut find = |variable, name| {
            place(variable, name).unwrap_or_else(|| {
                missing.push(name);
                PathBuf::new()
            })
        };
        let found = Programs {
            etcd: find("WEIR_ETCD", "etcd"),
            api_server: find("WEIR_KUBE_APISERVER", "kube-apiserver"),
            controller_manager: find("WEIR_KUBE_CONTROLLER_MANAGER", "kube-controller-manager"),
            kubectl: find("WEIR_KUBECTL", "kubectl"),
            helm: find("WEIR_HELM", "helm"),
        };
        let missing = missing.join(", ");
        let hint = "`cargo xtask test` gets them, and `cargo xtask tools` prints where they are";
        if missing.is_empty() {
            Ok(Some(found))
        } else if std::env::var_os("CI").is_some() {
            bail!("{missing}: not found; {hint}")
        } else {
            println!("NOT RUN: {missing}: not found; {hint}");
            Ok(None)
        }
    }
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
