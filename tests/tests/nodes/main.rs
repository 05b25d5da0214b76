//! Tests on a cluster with real nodes: that it is one.

#![allow(clippy::unwrap_used)] // in functions that tests share
#![allow(clippy::print_stdout)] // the walk-through shows what a reader sees

mod ends;
mod image;
mod traffic;
mod walk;

use anyhow::{Result, bail};
use tokio::sync::OnceCell;
use weir_tests::kubernetes::{Cluster, Options};

/// The cluster that tests share, each in a namespace of its own. It ends with the test program.
async fn cluster() -> Result<Option<&'static Cluster>> {
    static CLUSTER: OnceCell<Option<Cluster>> = OnceCell::const_new();
    let options = Options {
        nodes: 2,
        ..Options::default()
    };
    let cluster = CLUSTER
        .get_or_try_init(|| Cluster::start_with(options))
        .await?;
    Ok(cluster.as_ref())
}

/// A namespace for one test.
struct Namespace<'a> {
    cluster: &'a Cluster,
    name: &'static str,
}

impl<'a> Namespace<'a> {
    async fn new(cluster: &'a Cluster, name: &'static str) -> Result<Namespace<'a>> {
        cluster.kubectl(&["create", "namespace", name]).await?;
        Ok(Namespace { cluster, name })
    }

    /// `kubectl` in the namespace.
    async fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.kubectl_in(words, "").await
    }

    async fn kubectl_in(&self, words: &[&str], input: &str) -> Result<String> {
        let words = [&["--namespace", self.name], words].concat();
        self.cluster.kubectl_in(&words, input).await
    }

    /// Applies manifests, and waits until all Deployments and Pods are ready.
    async fn run(&self, manifests: &str) -> Result<()> {
        self.kubectl_in(&["apply", "-f", "-"], manifests).await?;
        self.rolled_out("deployment").await
    }

    /// Waits until all of a kind are rolled out.
    async fn rolled_out(&self, kind: &str) -> Result<()> {
        for name in self.kubectl(&["get", kind, "-o", "name"]).await?.lines() {
            let rollout = ["rollout", "status", name, "--timeout=60s"];
            if let Err(error) = self.kubectl(&rollout).await {
                let seen = self.kubectl(&["describe", "pods"]).await?;
                bail!("{error:#}\n{seen}");
            }
        }
        Ok(())
    }

    /// One field of one object, such as `{.spec.clusterIP}`.
    async fn field(&self, object: &str, path: &str) -> Result<String> {
        let output = format!("jsonpath={path}");
        self.kubectl(&["get", object, "-o", &output]).await
    }
}
