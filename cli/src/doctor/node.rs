//! The node: its system, its runtimes, where they keep pods' network namespaces.

use std::path::PathBuf;

use super::finding::Finding;
use super::host::Host;

/// Where container runtimes listen.
const RUNTIMES: [(&str, &str); 7] = [
    ("/run/containerd/containerd.sock", "containerd"),
    ("/run/crio/crio.sock", "CRI-O"),
    (
        "/run/k3s/containerd/containerd.sock",
        "containerd of k3s or RKE2",
    ),
    ("/run/k0s/containerd.sock", "containerd of k0s"),
    (
        "/var/snap/microk8s/common/run/containerd.sock",
        "containerd of MicroK8s",
    ),
    ("/run/cri-dockerd.sock", "Docker by cri-dockerd"),
    ("/run/dockershim.sock", "Docker by dockershim"),
];

/// Where their settings are: files, or directories of files.
const SETTINGS: [&str; 9] = [
    "/etc/containerd/config.toml",
    "/etc/containerd/conf.d",
    "/etc/crio/crio.conf",
    "/etc/crio/crio.conf.d",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
    "/etc/k0s/containerd.toml",
    "/etc/k0s/containerd.d",
    "/var/snap/microk8s/current/args/containerd.toml",
];

/// Words in them that stand for a kernel of the pod's own.
const SANDBOXES: [(&str, &str); 2] = [("runsc", "gVisor"), ("kata", "Kata Containers")];

/// Where Docker keeps network namespaces.
const DOCKER: &str = "/var/run/docker/netns";

pub(super) fn check(host: &Host, name: &str, namespaces: &[PathBuf]) -> Vec<Finding> {
    let mut findings = vec![system(host)];
    findings.extend(service(name));
    findings.extend(runtimes(host));
    findings.extend(sandboxes(host));
    findings.extend(namespaces.iter().map(|path| directory(host, path)));
    findings
}

/// A value of /etc/os-release, without its quotes.
fn release<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(key)?.strip_prefix('=');
    let value = text.lines().find_map(value)?;
    Some(value.trim_matches(['"', '\'']))
}

/// Whether the host's own files are there to be read.
pub(super) fn is_seen(host: &Host) -> bool {
    host.has("/etc/os-release")
}

fn system(host: &Host) -> Finding {
    const CHECK: &str = "system";
    let Some(text) = host.text("/etc/os-release") else {
        return Finding::unknown(
            CHECK,
            "of the node's own files nothing can be seen from here: its system, its runtime and other meshes are unknown",
        )
        .next("kubectl debug node/NAME -it --profile=sysadmin --image=IMAGE -- /weir doctor --root=/host");
    };
    let value = |key| release(&text, key);
    let name = value("PRETTY_NAME")
        .or(value("NAME"))
        .unwrap_or("Linux")
        .to_owned();
    let id = value("ID").unwrap_or_default();
    if id == "talos" {
        return Finding::warning(
            CHECK,
            format!("{name}: its clusters enforce Pod Security baseline"),
        )
        .next("kubectl label namespace weir-system pod-security.kubernetes.io/enforce=privileged");
    }
    if value("OPENSHIFT_VERSION").is_some() || id == "rhcos" {
        return Finding::warning(
            CHECK,
            format!("{name}: OpenShift admits only pods that its constraints allow"),
        )
        .next("set openshift.enabled=true");
    }
    Finding::ok(CHECK, name)
}

/// Services that run pods, but not ours. Their nodes are known by their names.
fn service(name: &str) -> Option<Finding> {
    const CHECK: &str = "service";
    const INSTEAD: &str =
        "set agent.capture.enabled=false and agent.proxy.enabled=true, and http_proxy in the pods";
    if name.starts_with("gk3-") {
        let found = "GKE Autopilot: it refuses pods that ask for SYS_ADMIN";
        return Some(
            Finding::error(CHECK, found).next(format!("take a GKE Standard cluster, or {INSTEAD}")),
        );
    }
    if name.starts_with("fargate-") {
        let found = "AWS Fargate: it runs no DaemonSets, and pods have a kernel of their own";
        return Some(Finding::error(CHECK, found).next("put callers on nodes of a node group"));
    }
    None
}

fn runtimes(host: &Host) -> Option<Finding> {
    const CHECK: &str = "runtime";
    if !is_seen(host) {
        return None;
    }
    let found: Vec<&str> = RUNTIMES
        .into_iter()
        .filter(|(socket, _)| host.has(socket))
        .map(|(_, name)| name)
        .collect();
    Some(if found.is_empty() {
        Finding::warning(CHECK, "no container runtime that is known: is this a node?")
    } else {
        Finding::ok(CHECK, found.join(", "))
    })
}

fn sandboxes(host: &Host) -> Option<Finding> {
    const CHECK: &str = "sandboxes";
    let mut settings = String::new();
    for path in SETTINGS {
        match host.names(path) {
            Some(names) => {
                let files = names.iter().map(|name| format!("{path}/{name}"));
                settings.extend(files.filter_map(|file| host.text(&file)));
            }
            None => settings.extend(host.text(path)),
        }
    }
    let found: Vec<&str> = SANDBOXES
        .into_iter()
        .filter(|(word, _)| settings.contains(word))
        .map(|(_, name)| name)
        .collect();
    (!found.is_empty()).then(|| {
        let found = found.join(", ");
        Finding::warning(CHECK, format!("{found}: pods of such a RuntimeClass have a kernel of their own and are not captured"))
    })
}

fn directory(host: &Host, path: &std::path::Path) -> Finding {
    const CHECK: &str = "network namespaces";
    let path = path.display().to_string();
    match host.names(&path) {
        Some(names) if names.is_empty() => Finding::warning(
            CHECK,
            format!("{path} is empty: no pod with a network of its own is here"),
        ),
        Some(names) => Finding::ok(CHECK, format!("{} in {path}", names.len())),
        None => {
            let step = if host.has(DOCKER) {
                format!("set agent.capture.namespaces={{{DOCKER}}}")
            } else {
                "find where the node's runtime has them, and name it in agent.capture.namespaces"
                    .to_owned()
            };
            Finding::error(CHECK, format!("there is no {path}")).next(step)
        }
    }
}
