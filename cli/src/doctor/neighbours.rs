//! Who else has a hand in pods' connections: the network plugin, and other meshes.

use serde_json::Value;

use super::finding::Finding;
use super::host::Host;

/// Where the settings of network plugins are.
const DIRECTORIES: [&str; 4] = [
    "/etc/cni/net.d",
    "/etc/kubernetes/cni/net.d",
    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    "/var/snap/microk8s/current/args/cni-network",
];

/// Plugins that lead pods' connections through a mesh.
const MESHES: [(&str, &str); 4] = [
    ("istio-cni", "Istio"),
    ("linkerd-cni", "Linkerd"),
    ("kuma-cni", "Kuma"),
    ("consul-cni", "Consul"),
];

/// Where Istio's node proxy for ambient pods is told of them.
const ZTUNNEL: &str = "/var/run/ztunnel/ztunnel.sock";

/// Network plugins that choose an endpoint when a socket connects: where their programs for that are pinned, and the
/// setting that leaves pods out.
const SOCKET_BALANCING: [(&str, &str, &str); 3] = [
    (
        "/sys/fs/bpf/cilium/socketlb/links/cgroup/cil_sock4_connect",
        "Cilium",
        "set Cilium's socketLB.hostNamespaceOnly=true",
    ),
    (
        "/sys/fs/bpf/cilium/socketlb/links/cgroup/cil_sock6_connect",
        "Cilium",
        "set Cilium's socketLB.hostNamespaceOnly=true",
    ),
    (
        "/sys/fs/bpf/tc/globals/cali_ctlb_progs",
        "Calico",
        "set bpfConnectTimeLoadBalancing: Disabled in Calico's FelixConfiguration",
    ),
];

pub(super) fn check(host: &Host) -> Vec<Finding> {
    let plugins = plugins(host);
    let mut findings = Vec::new();
    if let Some((file, first)) = plugins.first() {
        findings.push(Finding::ok(
            "network plugin",
            format!("{} ({file})", first.join(", ")),
        ));
    }
    findings.extend(meshes(host, &plugins));
    findings.extend(socket_balancing(host));
    findings
}

/// Each file's plugins, in the order in which runtimes read the files: they take the first.
fn plugins(host: &Host) -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    for directory in DIRECTORIES {
        for name in host.names(directory).unwrap_or_default() {
            let path = format!("{directory}/{name}");
            let ends = [".conf", ".conflist", ".json"];
            if !ends.iter().any(|end| name.ends_with(end)) {
                continue;
            }
            let Some(settings) = host
                .text(&path)
                .and_then(|text| serde_json::from_str::<Value>(&text).ok())
            else {
                continue;
            };
            let list = settings["plugins"].as_array();
            let plugins = list.map_or(std::slice::from_ref(&settings), Vec::as_slice);
            let types = plugins.iter().filter_map(|plugin| plugin["type"].as_str());
            all.push((path, types.map(str::to_owned).collect()));
        }
    }
    all
}

fn meshes(host: &Host, plugins: &[(String, Vec<String>)]) -> Vec<Finding> {
    const CHECK: &str = "other meshes";
    let has = |plugin: &str| {
        plugins
            .iter()
            .any(|(_, types)| types.iter().any(|is| is == plugin))
    };
    let mut findings = Vec::new();
    for (_, mesh) in MESHES.into_iter().filter(|(plugin, _)| has(plugin)) {
        findings.push(Finding::warning(
            CHECK,
            format!("{mesh} (its network plugin): pods with its sidecar are left alone"),
        ));
    }
    if host.has(ZTUNNEL) {
        findings.push(Finding::warning(
            CHECK,
            "Istio ambient (ztunnel): its pods are left alone",
        ));
    }
    findings
}

fn socket_balancing(host: &Host) -> Option<Finding> {
    let mut known = SOCKET_BALANCING.into_iter();
    let (_, who, step) = known.find(|(program, _, _)| host.has(program))?;
    let found = format!(
        "{who} puts an endpoint's address in place of a Service's before a connection begins: it is not captured"
    );
    Some(Finding::error("socket balancing", found).next(step))
}
