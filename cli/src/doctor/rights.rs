//! What this process may do, and what confines it.

use super::finding::Finding;
use super::host::Host;
use super::node;

/// What capture needs, by their numbers (linux/capability.h).
const CAPABILITIES: [(u32, &str); 3] = [(12, "NET_ADMIN"), (13, "NET_RAW"), (21, "SYS_ADMIN")];

pub(super) fn check(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(capabilities(host));
    findings.extend(user_namespace(host));
    findings.extend(selinux(host));
    findings
}

/// A hexadecimal number of /proc/self/status.
fn mask(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The names of those that this process lacks; `None` where it cannot be told.
fn missing(host: &Host) -> Option<Vec<&'static str>> {
    let held = mask(&host.text("/proc/self/status")?, "CapEff:")?;
    let lacks = |(number, name): (u32, _)| (held & (1 << number) == 0).then_some(name);
    Some(CAPABILITIES.into_iter().filter_map(lacks).collect())
}

/// Whether this process may do all that capture does.
pub(super) fn are_there(host: &Host) -> bool {
    missing(host).is_some_and(|missing| missing.is_empty())
}

fn capabilities(host: &Host) -> Option<Finding> {
    const CHECK: &str = "capabilities";
    let missing = missing(host)?.join(", ");
    Some(if missing.is_empty() {
        Finding::ok(CHECK, "NET_ADMIN, NET_RAW and SYS_ADMIN")
    } else if !node::is_seen(host) {
        Finding::error(CHECK, format!("this container lacks {missing}"))
            .next("run it in the container capture: kubectl exec daemonset/weir-agent -c capture -- /weir doctor")
    } else {
        Finding::unknown(
            CHECK,
            format!("this process lacks {missing}, so that nothing was tried"),
        )
        .next("run it as root")
    })
}

/// The whole range of users is mapped to itself where there is no namespace of users.
fn user_namespace(host: &Host) -> Option<Finding> {
    const CHECK: &str = "users";
    let map = host.text("/proc/self/uid_map")?;
    let map: Vec<&str> = map.split_whitespace().collect();
    (map != ["0", "0", "4294967295"]).then(|| {
        Finding::warning(
            CHECK,
            "this process is in a user namespace: it may enter only pods that are in the same one",
        )
        .next("leave hostUsers unset for the agents; a rootless cluster has all pods in one")
    })
}

fn selinux(host: &Host) -> Option<Finding> {
    const CHECK: &str = "SELinux";
    const SET: &str = "set agent.capture.seLinuxType=spc_t, or on OpenShift openshift.enabled=true";
    let label = host.word("/proc/self/attr/current").unwrap_or_default();
    // user:role:type:level
    let type_ = label.split(':').nth(2);
    let enforces = host.word("/sys/fs/selinux/enforce").as_deref() == Some("1");
    match type_ {
        Some("container_t") => Some(
            Finding::error(
                CHECK,
                "this container's type is container_t, which may enter no pod's network",
            )
            .next(SET),
        ),
        Some("spc_t") => Some(Finding::ok(CHECK, "this container's type is spc_t")),
        _ if enforces => Some(
            Finding::warning(
                CHECK,
                "enforcing: agents of the usual type, container_t, may enter no pod's network",
            )
            .next(SET),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_read_by_its_name() {
        let status = "Name:\tweir\nCapPrm:\t0000000000000000\nCapEff:\t0000000000203000\n";
        assert_eq!(mask(status, "CapEff:"), Some(0x20_3000));
        assert_eq!(mask(status, "CapBnd:"), None);
        let all = CAPABILITIES
            .iter()
            .fold(0, |mask, (number, _)| mask | 1 << number);
        assert_eq!(all, 0x20_3000);
    }
}
