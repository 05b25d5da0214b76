use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

mod real;

const UID: &str = "0a1b2c3d-0000-4000-8000-00000000000f";
const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));
const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// A kernel of a test's own, in files.
struct Fake {
    root: PathBuf,
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Fake {
    fn new() -> Fake {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("weir-cgroup-{}-{number}", std::process::id());
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(&root).unwrap();
        Fake { root }
    }

    fn kernel(&self) -> Kernel {
        Kernel {
            cgroup: self.root.join("cgroup"),
            proc: self.root.join("proc"),
        }
    }

    /// Writes a file in place, as the kernel does: who has it open sees it.
    fn write(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn machine(&self, busy_ticks: u64) {
        let stat = format!("cpu  {busy_ticks} 0 0 999 5 0 0 0 0 0\ncpu0 1\ncpu1 1\nintr 1\n");
        self.write("proc/stat", &stat);
    }
}

fn psi(total_us: u64) -> String {
    format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}\nfull avg10=0.00 total=0\n")
}

/// A clock that is set by hand.
#[derive(Default)]
struct Hand(Cell<u64>);

impl Hand {
    fn now(&self) -> Time {
        Time::from_millis(10_000 + self.0.get())
    }

    fn pass(&self, millis: u64) {
        self.0.set(self.0.get() + millis);
    }
}

/// Samples for twelve seconds, in which `step` moves the counters before each.
fn settle(sampler: &Sampler, hand: &Hand, mut step: impl FnMut(u64)) {
    sampler.sample(&|| hand.now());
    for n in 1..=60 {
        hand.pass(200);
        step(n);
        sampler.sample(&|| hand.now());
    }
}

fn percent(figure: &weir_resilience::shed::Figure, hand: &Hand) -> Option<u32> {
    // It comes near what it follows, and never there.
    let share = figure.read(hand.now())?;
    Some((share.ratio() * 100.0).round() as u32)
}

#[test]
fn a_pod_is_measured_against_its_own_limit_with_either_driver_of_cgroup_v2() {
    for directory in [
        format!(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
            UID.replace('-', "_")
        ),
        format!("kubepods/burstable/pod{UID}"),
        format!("kubepods/pod{UID}"),
        format!(
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{}.slice",
            UID.replace('-', "_")
        ),
    ] {
        let (fake, hand) = (Fake::new(), Hand::default());
        let file = |name: &str| format!("cgroup/{directory}/{name}");
        fake.machine(0);
        fake.write("cgroup/cgroup.controllers", "cpu memory\n");
        fake.write("cgroup/system.slice/cpu.stat", "usage_usec 1\n");
        let counters = |n: u64| {
            // 100 ms of work in 200 ms, with half a CPU; some task waits half of
            // the time, and a tenth of it for memory.
            fake.write(
                file("cpu.stat"),
                &format!("usage_usec {}\nuser_usec 1\n", n * 100_000),
            );
            fake.write(file("cpu.pressure"), &psi(n * 100_000));
            fake.write(file("memory.pressure"), &psi(n * 20_000));
        };
        counters(0);
        fake.write(file("cpu.max"), "50000 100000\n");
        let sampler = Arc::new(Sampler::new(fake.kernel()));
        let measured = sampler.measured(POD);
        let watch = sampler.watch(UID, &[POD]);
        settle(&sampler, &hand, counters);
        assert_eq!(percent(&measured.pod.cpu, &hand), Some(100), "{directory}");
        assert_eq!(percent(&measured.pod.cpu_pressure, &hand), Some(50));
        assert_eq!(percent(&measured.pod.memory_pressure, &hand), Some(10));
        // Without a limit it is measured against the machine's two processors.
        fake.write(file("cpu.max"), "max 100000\n");
        settle(&sampler, &hand, |n| counters(60 + n));
        assert_eq!(percent(&measured.pod.cpu, &hand), Some(25));
        drop(watch);
        settle(&sampler, &hand, |_| {});
        assert_eq!(percent(&measured.pod.cpu, &hand), None, "the pod is gone");
    }
}

#[test]
fn a_pod_is_measured_where_both_generations_of_control_groups_are_mounted() {
    let (fake, hand) = (Fake::new(), Hand::default());
    let pod = format!("kubepods/besteffort/pod{UID}");
    fake.machine(0);
    let counters = |n: u64| {
        fake.write(
            format!("cgroup/cpuacct/{pod}/cpuacct.usage"),
            &format!("{}\n", n * 100_000_000),
        );
        fake.write(
            format!("cgroup/unified/{pod}/cpu.pressure"),
            &psi(n * 50_000),
        );
        fake.write(format!("cgroup/unified/{pod}/memory.pressure"), &psi(0));
    };
    counters(0);
    fake.write(format!("cgroup/cpu/{pod}/cpu.cfs_quota_us"), "100000\n");
    fake.write(format!("cgroup/cpu/{pod}/cpu.cfs_period_us"), "100000\n");
    let sampler = Arc::new(Sampler::new(fake.kernel()));
    let measured = sampler.measured(POD);
    let _watch = sampler.watch(UID, &[POD]);
    settle(&sampler, &hand, counters);
    assert_eq!(percent(&measured.pod.cpu, &hand), Some(50));
    assert_eq!(percent(&measured.pod.cpu_pressure, &hand), Some(25));
    assert_eq!(percent(&measured.pod.memory_pressure, &hand), Some(0));
}

#[test]
fn without_pressure_the_use_of_cpu_still_counts() {
    let (fake, hand) = (Fake::new(), Hand::default());
    let pod = format!("cgroup/cpu,cpuacct/kubepods/pod{UID}");
    fake.machine(0);
    let counters = |n: u64| {
        fake.write(
            format!("{pod}/cpuacct.usage"),
            &(n * 50_000_000).to_string(),
        )
    };
    counters(0);
    fake.write(format!("{pod}/cpu.cfs_quota_us"), "-1\n");
    fake.write(format!("{pod}/cpu.cfs_period_us"), "100000\n");
    let sampler = Arc::new(Sampler::new(fake.kernel()));
    let measured = sampler.measured(POD);
    let _watch = sampler.watch(UID, &[POD]);
    settle(&sampler, &hand, counters);
    assert_eq!(
        percent(&measured.pod.cpu, &hand),
        Some(12),
        "of two processors"
    );
    assert_eq!(percent(&measured.pod.cpu_pressure, &hand), None);
    assert_eq!(sampler.lock().told, HashSet::from([Missing::Pressure]));
}

#[test]
fn an_endpoint_on_loopback_is_measured_by_its_machine() {
    let (fake, hand) = (Fake::new(), Hand::default());
    let counters = |n: u64| {
        // 30 of 40 ticks in 200 ms on two processors.
        fake.machine(n * 30);
        fake.write("proc/pressure/cpu", &psi(n * 180_000));
        fake.write("proc/pressure/memory", &psi(0));
    };
    counters(0);
    let sampler = Arc::new(Sampler::new(fake.kernel()));
    let (here, elsewhere) = (sampler.measured(LOOPBACK), sampler.measured(POD));
    settle(&sampler, &hand, counters);
    for figures in [&here.pod, &here.node] {
        assert_eq!(percent(&figures.cpu, &hand), Some(75));
        assert_eq!(percent(&figures.cpu_pressure, &hand), Some(90));
    }
    for figures in [&elsewhere.pod, &elsewhere.node] {
        assert_eq!(
            percent(&figures.cpu, &hand),
            None,
            "nobody knows where it is"
        );
    }
    let _watch = sampler.watch(UID, &[POD]);
    settle(&sampler, &hand, |n| counters(60 + n));
    assert_eq!(percent(&elsewhere.node.cpu, &hand), Some(75));
    assert_eq!(percent(&elsewhere.pod.cpu, &hand), None);
    assert_eq!(sampler.lock().told, HashSet::from([Missing::Pod]));
}

#[test]
fn a_pod_whose_control_group_was_made_anew_is_found_again() {
    let (fake, hand) = (Fake::new(), Hand::default());
    fake.machine(0);
    fake.write("cgroup/cgroup.controllers", "cpu\n");
    let sampler = Arc::new(Sampler::new(fake.kernel()));
    let measured = sampler.measured(POD);
    let _watch = sampler.watch(UID, &[POD]);
    settle(&sampler, &hand, |_| {});
    assert_eq!(percent(&measured.pod.cpu, &hand), None);
    let pod = format!("cgroup/kubepods/pod{UID}");
    fake.write(format!("{pod}/cpu.max"), "100000 100000\n");
    let counters = |n: u64| {
        fake.write(
            format!("{pod}/cpu.stat"),
            &format!("usage_usec {}\n", n * 200_000),
        )
    };
    counters(0);
    settle(&sampler, &hand, counters);
    assert_eq!(percent(&measured.pod.cpu, &hand), Some(100));
    // Counters that begin again say nothing of what was before.
    settle(&sampler, &hand, |_| counters(0));
    assert_eq!(percent(&measured.pod.cpu, &hand), Some(0));
}

#[test]
fn nothing_is_kept_open_for_what_nobody_asks_for() {
    let (fake, hand) = (Fake::new(), Hand::default());
    fake.machine(0);
    fake.write("cgroup/cgroup.controllers", "cpu\n");
    fake.write(
        format!("cgroup/kubepods/pod{UID}/cpu.stat"),
        "usage_usec 1\n",
    );
    let sampler = Arc::new(Sampler::new(fake.kernel()));
    let (measured, other) = (sampler.measured(POD), sampler.measured(LOOPBACK));
    let _watch = sampler.watch(UID, &[POD]);
    let is_open = || sampler.lock().pods[UID].source.is_some();
    sampler.sample(&|| hand.now());
    assert!(is_open());
    let again = sampler.measured(POD);
    assert!(Arc::ptr_eq(&again.pod, &measured.pod) && Arc::ptr_eq(&again.node, &measured.node));
    drop((measured, again));
    sampler.sample(&|| hand.now());
    assert!(!is_open());
    assert_eq!(sampler.lock().wanted.len(), 1);
    drop(other);
    sampler.sample(&|| hand.now());
    assert!(sampler.lock().wanted.is_empty());
}
