//! `weir agent capture` as a process.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

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

#[test]
fn capture_runs_on_one_thread_until_it_is_told_to_end() {
    if !geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "run as root");
        println!("NOT RUN: capture enters network namespaces; run as root");
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
    let mut said = BufReader::new(capture.stderr.take().unwrap()).lines();
    let waits = |line: &str| line.contains("capture waits for the proxy");
    assert!(said.any(|line| waits(&line.unwrap())), "it ended");
    assert!(directory.path().join("socket").exists());
    let status = std::fs::read_to_string(format!("/proc/{}/status", capture.id())).unwrap();
    assert!(status.contains("\nThreads:\t1\n"), "{status}");

    let pid = Pid::from_child(&capture);
    kill_process(pid, Signal::TERM).unwrap();
    let ended = capture.wait().unwrap();
    assert_eq!((ended.code(), ended.signal()), (Some(0), None));
    assert!(!directory.path().join("socket").exists());
}
