//! What the command makes of its arguments.

use crate::support::weir;

#[test]
fn arguments_that_cannot_be_used_end_with_code_2_and_say_what_to_write() {
    for (arguments, said) in [
        (&["run"][..], "--filename <PATH>"),
        (
            &["run", "-f", ".", "--workers", "0"],
            "write a number from 1 to 256",
        ),
        (
            &["run", "-f", ".", "--drain-timeout", "30"],
            "write one such as 500ms, 10s or 1h30m",
        ),
        (
            &["run", "-f", ".", "--proxy", "15081"],
            "invalid socket address",
        ),
        (&["agent"], "--control-plane <URL>"),
        (&["agent", "proxy"], "--control-plane <URL>"),
        (&["agent", "capture"], "--socket <PATH>"),
        (
            &["agent", "--node", "a", "proxy"],
            "cannot be used with '--node <NODE>'",
        ),
        (&["get", "pods"], "breakers, policies"),
        (&["get", "cb", "-n", "shop", "-A"], "cannot be used with"),
        (&["get", "cb", "--server", "https://x:1"], "kubectl"),
        (&["demo", "--duration", "1s"], "write 20s to 1h"),
        (&["check"], "<FILE|DIR|->"),
        (&["check", "/nowhere"], "/nowhere: No such file"),
        (
            &["check", "tests/manifests/good.yaml", "--log", "=="],
            "write a level such as debug",
        ),
    ] {
        let done = weir(arguments);
        assert_eq!(
            (done.code, done.out.as_str()),
            (2, ""),
            "{arguments:?}: {}",
            done.err
        );
        assert!(done.err.contains(said), "{arguments:?}: {}", done.err);
    }
}

#[test]
fn a_path_that_is_not_there_stops_what_runs_with_a_clear_error() {
    let done = weir(&["run", "-f", "/nowhere", "--admin", "127.0.0.1:0"]);
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("error: /nowhere: ")
            && done.err.contains("give a directory of manifests"),
        "{}",
        done.err
    );
}

#[test]
fn an_address_that_is_taken_stops_what_runs_with_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let done = weir(&[
        "run",
        "-f",
        "tests/manifests/good.yaml",
        "--admin",
        &address,
    ]);
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains(&format!("cannot listen on {address}")),
        "{}",
        done.err
    );
}
