//! What files cannot tell: whether the kernel lets this process do what capture does.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::Context as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use weir_agent::capture::probe;

use super::finding::Finding;
use super::host::Host;

/// Does it all in a network namespace made for that, and enters one of each directory. No pod notices.
pub(super) fn check(host: &Host, namespaces: &[PathBuf]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = probe()
        .into_iter()
        .map(|tried| {
            let what = tried.what.to_string();
            match tried.problem {
                None => Finding::ok("tried", what),
                Some(problem) if tried.what.is_essential() => {
                    Finding::error("tried", format!("cannot {what}: {problem}"))
                }
                Some(problem) => Finding::warning("tried", format!("cannot {what}: {problem}")),
            }
        })
        .collect();
    for directory in namespaces {
        let shown = directory.display().to_string();
        let Some(name) = host.names(&shown).unwrap_or_default().into_iter().next() else {
            continue;
        };
        let path = format!("{shown}/{name}");
        findings.push(match enter(host, &path) {
            Ok(()) => Finding::ok("tried", format!("enter {path}")),
            Err(error) => Finding::error("tried", format!("cannot enter {path}: {error:#}"))
                .next("mount the directory with HostToContainer, as the chart does"),
        });
    }
    findings
}

/// On a thread of its own, which the namespace goes with.
fn enter(host: &Host, path: &str) -> anyhow::Result<()> {
    let file = host.file(path)?;
    let entered = std::thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
    });
    match entered.join() {
        Ok(entered) => entered.context("it is no network namespace, or not to be entered"),
        Err(_) => anyhow::bail!("the thread that was to enter it failed"),
    }
}
