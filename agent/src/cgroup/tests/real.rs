//! A control group of the kernel's own, with a process in it that would use a
//! whole processor and may use a tenth of one.

#![allow(clippy::print_stdout, reason = "says what it measured, or why not")]

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::super::places::{Layout, Version};
use super::*;
use crate::clock::Clock;

/// A pod that spins. Everything is taken away with it.
struct Spinning {
    directories: Vec<PathBuf>,
    child: Option<Child>,
}

impl Spinning {
    fn start(kernel: &Kernel, uid: &str) -> io::Result<Spinning> {
        let layout = Layout::of(&kernel.cgroup);
        let mut roots = vec![layout.usage.clone(), layout.limit.clone()];
        roots.extend(layout.pressure.clone());
        roots.sort();
        roots.dedup();
        let mut pod = Spinning {
            directories: Vec::new(),
            child: None,
        };
        let within = format!("kubepods-weir-{}", std::process::id());
        for root in roots {
            for directory in [
                root.join(&within),
                root.join(&within).join(format!("pod{uid}")),
            ] {
                fs::create_dir(&directory)?;
                pod.directories.push(directory.clone());
                if layout.version == Version::V2 {
                    // Else the directory below has no limit; pods are at the end.
                    let _ = fs::write(directory.join("../cgroup.subtree_control"), "+cpu");
                }
            }
        }
        let of_pod = layout.limit.join(&within).join(format!("pod{uid}"));
        match layout.version {
            Version::V2 => fs::write(of_pod.join("cpu.max"), "10000 100000")?,
            Version::V1 => fs::write(of_pod.join("cpu.cfs_quota_us"), "10000")?,
        }
        let child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()?;
        let id = child.id().to_string();
        pod.child = Some(child);
        for directory in pod
            .directories
            .iter()
            .filter(|d| d.ends_with(format!("pod{uid}")))
        {
            fs::write(directory.join("cgroup.procs"), &id)?;
        }
        Ok(pod)
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        for directory in self.directories.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}

#[tokio::test]
async fn a_pod_that_uses_all_of_its_limit_is_seen_to_in_the_kernels_own_files() {
    let (kernel, clock) = (Kernel::default(), Clock::start());
    let uid = format!("{:08x}-0000-4000-8000-000000000000", std::process::id());
    let pod = match Spinning::start(&kernel, &uid) {
        Ok(pod) => pod,
        Err(error) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "no control group: {error}"
            );
            println!("NOT RUN: no control group of one's own: {error}; run as root");
            return;
        }
    };
    let sampler = Arc::new(Sampler::new(kernel));
    let measured = sampler.measured(POD);
    let _watch = sampler.watch(&uid, &[POD]);
    let mut cpu = None;
    for _ in 0..150 {
        sampler.sample(&|| clock.now());
        cpu = measured.pod.cpu.read(clock.now());
        if cpu.is_some_and(|cpu| cpu.percent() >= 70) {
            break;
        }
        tokio::time::sleep(EVERY).await;
    }
    let pressure = measured.pod.cpu_pressure.read(clock.now());
    println!("use of its limit: {cpu:?}; time waiting for CPU: {pressure:?}");
    assert!(cpu.is_some_and(|cpu| cpu.percent() >= 70), "{cpu:?}");
    let told = sampler.lock().told.contains(&Missing::Pressure);
    assert_eq!(pressure.is_none(), told);
    drop(pod);
}
