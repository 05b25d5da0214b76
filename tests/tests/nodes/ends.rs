//! What a cluster leaves behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use weir_tests::eventually_within;
use weir_tests::kubernetes::Cluster;

use super::cluster;

/// `weir-cluster serve`, which ends with the test whatever happens.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes of the cluster in a directory, by what their arguments say.
fn processes(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().unwrap();
    let listed = fs::read_dir("/proc").unwrap().flatten();
    let lines = listed.filter_map(|entry| {
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&words).replace('\0', " "))
    });
    lines.filter(|line| line.contains(directory)).collect()
}

/// Directories of cgroups that the nodes of a cluster have, as the cluster wrote them down.
fn cgroups(directory: &Path) -> BTreeSet<String> {
    let listed = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = listed.map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "cgroups"));
    let texts = files.map(|path| fs::read_to_string(path).unwrap());
    texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[tokio::test]
async fn a_cluster_that_is_killed_leaves_no_process_no_cgroup_no_mount_and_no_file() {
    // Where this one can be, another can be beside it.
    let Some(other) = cluster().await.unwrap() else {
        return;
    };
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("cluster");
    let mut serve = Command::new(env!("CARGO_BIN_EXE_weir-cluster"));
    serve
        .arg("serve")
        .arg(&directory)
        .arg("1")
        .stdout(Stdio::null());
    let mut serving = Serving(serve.spawn().unwrap());
    let ready = directory.join("ready");
    eventually_within(Duration::from_secs(120), "a cluster", || {
        assert_eq!(serving.0.try_wait().unwrap(), None, "it has ended");
        std::future::ready(fs::read_to_string(&ready))
    })
    .await;
    let groups = cgroups(&directory);
    assert!(!groups.is_empty());
    assert!(groups.iter().all(|group| Path::new(group).is_dir()));
    assert!(processes(&directory).len() > 5);
    // What a node mounts nobody else sees; so it goes with the node's processes.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    for own in [directory.to_str().unwrap(), "/run/weir/"] {
        assert!(!mounts.contains(own), "{own}: {mounts}");
    }

    serving.0.kill().unwrap();
    eventually_within(Duration::from_secs(30), "its end", async || {
        let groups = groups.iter().filter(|group| Path::new(group).exists());
        let left = (processes(&directory), groups.count(), directory.exists());
        if left == (Vec::new(), 0, false) {
            Ok(())
        } else {
            Err(left)
        }
    })
    .await;
    still_there(other).await;
}

async fn still_there(cluster: &Cluster) {
    let nodes = cluster
        .kubectl(&["get", "nodes", "--no-headers"])
        .await
        .unwrap();
    assert_eq!(nodes.matches(" Ready ").count(), 2, "{nodes}");
}
