//! The command lines of the servers.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::node::HUB;
use super::pki::Pki;
use super::programs::Programs;
use super::server::{Guard, Server};
use crate::call;

/// What Services get their addresses from. Without nodes nothing routes to them.
const SERVICES: &str = "10.96.0.0/16";
/// The first of them is the API server's.
pub(super) const SERVICE: [u8; 4] = [10, 96, 0, 1];

/// The default of Kubernetes' own installers; it is also the default audience of tokens.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

fn flag(name: &str, value: impl Into<OsString>) -> OsString {
    let mut flag = OsString::from(format!("--{name}="));
    flag.push(value.into());
    flag
}

/// One server for each of `members`: where clients reach it, and where the others do.
pub(super) fn etcd(
    programs: &Programs,
    guard: &Guard,
    directory: &Path,
    members: &[(SocketAddr, SocketAddr)],
) -> Vec<Server> {
    let cluster = members
        .iter()
        .enumerate()
        .map(|(number, (_, peer))| format!("etcd-{number}=http://{peer}"))
        .collect::<Vec<_>>()
        .join(",");
    let member = |(number, (client, peer)): (usize, &(SocketAddr, SocketAddr))| {
        let name = format!("etcd-{number}");
        let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
        let arguments = vec![
            flag("name", &name),
            flag("data-dir", directory.join(&name)),
            flag("listen-client-urls", &client),
            flag("advertise-client-urls", &client),
            flag("listen-peer-urls", &peer),
            flag("initial-advertise-peer-urls", &peer),
            flag("initial-cluster", &cluster),
            flag("log-level", "warn"),
            // Killed processes lose nothing by it; only a machine that loses power would.
            OsString::from("--unsafe-no-fsync"),
        ];
        Server::new(&name, &programs.etcd, arguments, directory, guard)
    };
    members.iter().enumerate().map(member).collect()
}

/// Whether that member of etcd leads the others.
pub(super) async fn leads(member: SocketAddr) -> Result<bool> {
    let metrics = call::get(member, "/metrics").await?.text();
    Ok(metrics
        .lines()
        .any(|line| line == "etcd_server_is_leader 1"))
}

pub(super) fn api_server(
    programs: &Programs,
    guard: &Guard,
    directory: &Path,
    pki: &Pki,
    address: SocketAddr,
    etcd: &[SocketAddr],
    nodes: bool,
) -> Server {
    let etcd = etcd
        .iter()
        .map(|address| format!("http://{address}"))
        .collect::<Vec<_>>()
        .join(",");
    let mut arguments = vec![
        flag("etcd-servers", etcd),
        flag("secure-port", address.port().to_string()),
        flag("service-cluster-ip-range", SERVICES),
        flag("authorization-mode", "Node,RBAC"),
        flag("enable-admission-plugins", "NodeRestriction"),
        flag("allow-privileged", "true"),
        flag("client-ca-file", pki.ca_file()),
        flag("tls-cert-file", pki.file("apiserver.crt")),
        flag("tls-private-key-file", pki.file("apiserver.key")),
        flag("service-account-issuer", ISSUER),
        flag("service-account-key-file", pki.file("service-accounts.pub")),
        flag(
            "service-account-signing-key-file",
            pki.file("service-accounts.key"),
        ),
        flag("profiling", "false"),
    ];
    if nodes {
        let kubelet = |end: &str| pki.file(&format!("apiserver-kubelet.{end}"));
        arguments.extend([
            flag("bind-address", "0.0.0.0"),
            flag("advertise-address", HUB.to_string()),
            flag("kubelet-certificate-authority", pki.ca_file()),
            flag("kubelet-client-certificate", kubelet("crt")),
            flag("kubelet-client-key", kubelet("key")),
            flag("kubelet-preferred-address-types", "InternalIP"),
        ]);
    } else {
        arguments.extend([
            flag("bind-address", address.ip().to_string()),
            // The Service `kubernetes` would need an address that is not loopback. No pod is here to use it.
            flag("endpoint-reconciler-type", "none"),
            flag("advertise-address", address.ip().to_string()),
        ]);
    }
    let program = &programs.api_server;
    Server::new("kube-apiserver", program, arguments, directory, guard)
}

pub(super) fn controller_manager(
    programs: &Programs,
    guard: &Guard,
    directory: &Path,
    pki: &Pki,
    kubeconfig: &Path,
    nodes: bool,
) -> Server {
    let mut arguments = vec![
        flag("kubeconfig", kubeconfig),
        flag("leader-elect", "false"),
        // It serves nothing that is needed, and every port more can be one that somebody has.
        flag("secure-port", "0"),
        OsString::from("--use-service-account-credentials"),
        flag(
            "service-account-private-key-file",
            pki.file("service-accounts.key"),
        ),
        flag("root-ca-file", pki.ca_file()),
        flag("cluster-signing-cert-file", pki.ca_file()),
        flag("cluster-signing-key-file", pki.file("ca.key")),
        flag("service-cluster-ip-range", SERVICES),
        // Its default of 20 requests a second makes it take 4 s to begin.
        flag("kube-api-qps", "1000"),
        flag("kube-api-burst", "1000"),
        flag("profiling", "false"),
    ];
    if !nodes {
        // What stands in for nodes has no kubelet, and so no heartbeat.
        arguments.push(flag("node-monitor-grace-period", "24h"));
    }
    let program = &programs.controller_manager;
    Server::new(
        "kube-controller-manager",
        program,
        arguments,
        directory,
        guard,
    )
}

pub(super) fn scheduler(
    program: &Path,
    guard: &Guard,
    directory: &Path,
    kubeconfig: &Path,
) -> Server {
    let arguments = vec![
        flag("kubeconfig", kubeconfig),
        flag("leader-elect", "false"),
        flag("secure-port", "0"),
        flag("profiling", "false"),
    ];
    Server::new("kube-scheduler", program, arguments, directory, guard)
}
