//! The kernel: its age, its nftables, its cgroups.

use super::finding::Finding;
use super::host::Host;
use super::node;

/// The first Linux on which a table can belong to the socket that made it, and goes when that closes.
const OLDEST: (u32, u32) = (5, 12);

/// What capture's rules and its ending of old connections are made of.
const MODULES: [&str; 7] = [
    "nf_tables",
    "nft_chain_nat",
    "nft_redir",
    "nft_ct",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "tcp_diag",
];

/// `tried`: whether it has been tried what the kernel can do. That counts more than what its files and its version
/// promise: vendors bring new things to old kernels.
pub(super) fn check(host: &Host, tried: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if tried {
        findings.extend(release(host).map(|release| Finding::ok("kernel", release)));
    } else {
        findings.push(age(host));
        findings.extend(modules(host));
    }
    findings.push(cgroups(host));
    findings.push(pressure(host));
    findings
}

fn release(host: &Host) -> Option<String> {
    host.word("/proc/sys/kernel/osrelease")
}

/// "6.8.0-45-generic" is 6.8.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn age(host: &Host) -> Finding {
    const CHECK: &str = "kernel";
    let (major, minor) = OLDEST;
    match release(host) {
        None => Finding::unknown(CHECK, "/proc/sys/kernel/osrelease cannot be read"),
        Some(release) => match version(&release) {
            None => Finding::unknown(CHECK, format!("{release} is no version of Linux")),
            Some(version) if version >= OLDEST => Finding::ok(CHECK, release),
            Some(_) => Finding::error(
                CHECK,
                format!("{release}: rules that go with their owner need Linux {major}.{minor}"),
            )
            .next("give the node a newer kernel"),
        },
    }
}

/// `None` where the kernel's modules cannot be seen, as in a container.
fn modules(host: &Host) -> Option<Finding> {
    const CHECK: &str = "nftables";
    let directory = format!("/lib/modules/{}", release(host)?);
    let built_in = host.text(&format!("{directory}/modules.builtin"))?;
    let loadable = host.text(&format!("{directory}/modules.dep"))?;
    let loaded = host.text("/proc/modules").unwrap_or_default();
    let missing: Vec<&str> = MODULES
        .into_iter()
        .filter(|name| {
            let file = format!("/{name}.ko");
            let is_file = |path: &str| path.contains(&file);
            let names = |line: &str| line.split(' ').next() == Some(name);
            !built_in.lines().any(is_file)
                && !loadable
                    .lines()
                    .filter_map(|line| line.split(':').next())
                    .any(is_file)
                && !loaded.lines().any(names)
        })
        .collect();
    Some(if missing.is_empty() {
        Finding::ok(CHECK, "the kernel has what redirections are made of")
    } else {
        Finding::error(CHECK, format!("the kernel lacks {}", missing.join(", ")))
            .next("install the package with the rest of this kernel's modules")
    })
}

fn cgroups(host: &Host) -> Finding {
    const CHECK: &str = "cgroups";
    const WITHOUT: &str = "loadShedding by CPU and pressure has no figures of single pods";
    let version = if host.has("/sys/fs/cgroup/cgroup.controllers") {
        "version 2"
    } else if host.has("/sys/fs/cgroup/unified") {
        "version 1, with version 2 beside it"
    } else if host.has("/sys/fs/cgroup/cpu") || host.has("/sys/fs/cgroup/cpu,cpuacct") {
        "version 1"
    } else {
        return Finding::unknown(CHECK, "/sys/fs/cgroup cannot be seen from here");
    };
    let of_pods = |directory: &str| {
        let names = host.names(directory).unwrap_or_default();
        names.iter().any(|name| name.starts_with("kubepods"))
    };
    let directories = [
        "/sys/fs/cgroup",
        "/sys/fs/cgroup/cpu",
        "/sys/fs/cgroup/cpu,cpuacct",
        // Where the node is itself a container, as kind makes them.
        "/sys/fs/cgroup/kubelet.slice",
        "/sys/fs/cgroup/kubelet",
    ];
    if directories.into_iter().any(of_pods) {
        Finding::ok(CHECK, version)
    } else if !node::is_seen(host) {
        Finding::unknown(
            CHECK,
            format!("{version}; those of pods cannot be seen from here"),
        )
    } else {
        Finding::warning(
            CHECK,
            format!("{version}, without pods' (kubepods): {WITHOUT}"),
        )
    }
}

fn pressure(host: &Host) -> Finding {
    const CHECK: &str = "pressure";
    if host.has("/proc/pressure/cpu") {
        Finding::ok(CHECK, "the kernel tells how long pods wait for CPU")
    } else {
        Finding::warning(
            CHECK,
            "off: loadShedding.pressure sheds nothing on this node",
        )
        .next("boot the node with psi=1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_what_a_release_begins_with() {
        assert_eq!(version("5.12"), Some((5, 12)));
        assert_eq!(version("6.8.0-45-generic"), Some((6, 8)));
        assert_eq!(version("5.15.0-1061-aws"), Some((5, 15)));
        assert_eq!(version("4.18.0-553.el8_10.x86_64"), Some((4, 18)));
        assert_eq!(version("6"), None);
        assert_eq!(version("next"), None);
    }
}
