//! `weir agent capture` as a process.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::support::{command, weir};

#[test]
fn capture_says_which_directories_it_misses() {
    let arguments = [
        "--socket=/nowhere/socket",
        "--namespaces=/nowhere/netns",
        "--instance=a",
    ];
    let done = weir(&[&["agent", "capture"], &arguments[..]].concat());
    assert_eq!(done.code, 1);
    let said = "error: none of these directories is there: /nowhere/netns; name where";
    assert!(done.err.contains(said), "{}", done.err);
}

/// Whether this test can be run; else that has been said.
fn may_enter_namespaces() -> bool {
    if !geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "run as root");
        println!("NOT RUN: capture enters network namespaces; run as root");
    }
    geteuid().is_root()
}

/// Reads what a process says until a line has `text` in it.
fn says(process: &mut Child, text: &str) -> bool {
    let mut lines = BufReader::new(process.stderr.as_mut().unwrap()).lines();
    lines.any(|line| line.unwrap().contains(text))
}

#[test]
fn capture_and_proxy_know_each_other_though_their_processes_are_numbered_apart() {
    if !may_enter_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let (socket, namespaces) = (format!("{path}/socket"), format!("--namespaces={path}"));
    // As in two containers of a pod.
    let mut capture = Command::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--kill-child=KILL",
            env!("CARGO_BIN_EXE_weir"),
        ])
        .args([
            "agent",
            "capture",
            "--instance=test",
            "--proxy-user=0",
            &namespaces,
        ])
        .arg(format!("--socket={socket}"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(
        says(&mut capture, "capture waits for the proxy"),
        "it ended"
    );
    let proxy = command(&["agent", "proxy", "--control-plane=http://127.0.0.1:1"])
        .args(["--admin=127.0.0.1:0", "--node=a", "--capture", &socket])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let met = says(&mut capture, "the proxy is here");
    for mut process in [proxy, capture] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert!(met, "it ended");
}

#[test]
fn capture_runs_on_one_thread_until_it_is_told_to_end() {
    if !may_enter_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let (socket, namespaces) = (
        format!("--socket={path}/socket"),
        format!("--namespaces={path}"),
    );
    let mut capture = command(&["agent", "capture", &socket, &namespaces, "--instance=test"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(
        says(&mut capture, "capture waits for the proxy"),
        "it ended"
    );
    assert!(directory.path().join("socket").exists());
    let status = std::fs::read_to_string(format!("/proc/{}/status", capture.id())).unwrap();
    assert!(status.contains("\nThreads:\t1\n"), "{status}");

    let pid = Pid::from_child(&capture);
    kill_process(pid, Signal::TERM).unwrap();
    let ended = capture.wait().unwrap();
    assert_eq!((ended.code(), ended.signal()), (Some(0), None));
    assert!(!directory.path().join("socket").exists());
}
