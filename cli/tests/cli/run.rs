//! `weir run`, and the same in two processes.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::support::command;

/// A command that runs until it is told to end.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        let mut child = command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines }
    }

    /// The first line with this in it.
    fn line(&mut self, with: &str) -> String {
        let found = self
            .lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains(with));
        found.unwrap_or_else(|| panic!("it never says {with:?}"))
    }

    /// SIGTERM, and its exit code.
    fn end(mut self) -> Option<i32> {
        let told = Command::new("kill")
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        assert!(told.success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first word of the line that begins so.
fn word(line: &str, begins: &str) -> String {
    let at = line
        .find(begins)
        .unwrap_or_else(|| panic!("{begins:?} is not in {line:?}"));
    line[at..].split([' ', '/', ')']).next().unwrap().to_owned()
}

fn address(line: &str) -> String {
    word(&line.replace("http://", " "), "127.0.0.1:")
}

/// Waits until the control plane has heard that the agent enforces the policy.
fn is_enforced(server: &str) {
    let mut get = Running::start(&["get", "policies", "-w", "--server", server]);
    get.line("payments   Service/payments   Enforce   True         1/1");
}

const ANY: &str = "127.0.0.1:0";

#[test]
fn it_says_where_it_listens_shows_its_state_and_ends_when_told_to() {
    let mut run = Running::start(&[
        "run",
        "-f",
        "tests/manifests/good.yaml",
        "--proxy",
        ANY,
        "--admin",
        ANY,
        "--agent-admin",
        ANY,
        "--node",
        "here",
    ]);
    run.line("weir is running");
    let proxy = run.line("any service");
    assert!(proxy.contains("curl -x http://127.0.0.1:"), "{proxy}");
    let server = address(&run.line("state"));
    run.line("Ctrl-C ends");
    is_enforced(&server);
    assert_eq!(run.end(), Some(0));
}

#[test]
fn control_plane_and_agent_also_run_apart() {
    let mut control_plane = Running::start(&[
        "control-plane",
        "-f",
        "tests/manifests/good.yaml",
        "--grpc",
        ANY,
        "--admin",
        ANY,
    ]);
    let grpc = format!("http://{}", address(&control_plane.line("agents")));
    let server = address(&control_plane.line("state"));
    let mut agent = Running::start(&[
        "agent",
        "--control-plane",
        &grpc,
        "--node",
        "there",
        "--proxy",
        ANY,
        "--admin",
        ANY,
    ]);
    agent.line("any service");
    is_enforced(&server);
    assert_eq!(agent.end(), Some(0));
    assert_eq!(control_plane.end(), Some(0));
}
