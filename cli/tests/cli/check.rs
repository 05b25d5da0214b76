//! `weir check`: verdicts, places, exit codes.

use crate::support::{weir, weir_with_input};

const GOOD: &str = "tests/manifests/good.yaml";
const BAD: &str = "tests/manifests/bad.yaml";

#[test]
fn good_manifests_are_well_and_what_is_not_read_is_said() {
    let done = weir(&["check", GOOD]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    assert_eq!(
        done.out,
        "all is well: 2 objects in 1 file; 1 object of other kinds not checked\n"
    );
}

#[test]
fn each_thing_that_is_wrong_is_a_line_with_its_place() {
    let done = weir(&["check", BAD]);
    assert_eq!((done.code, done.err.as_str()), (1, ""));
    let lines: Vec<&str> = done.out.lines().collect();
    for (line, begins) in lines.iter().zip([
        "tests/manifests/bad.yaml:12:5: ResiliencePolicy shop/payments: spec.timeouts.perTry: perTry must not be longer",
        "tests/manifests/bad.yaml:14:5: ResiliencePolicy shop/payments: spec.retries.attempts: ",
        "tests/manifests/bad.yaml:15:5: ResiliencePolicy shop/payments: spec.retries.atempts: ",
        "3 things are wrong: 1 object in 1 file",
    ]) {
        assert!(line.starts_with(begins), "{line}\nis not\n{begins}");
    }
    assert_eq!(lines.len(), 4, "{}", done.out);
}

#[test]
fn a_directory_is_checked_whole_and_stdin_too() {
    let done = weir(&["check", "tests/manifests", "../examples/shop"]);
    assert_eq!(done.code, 1);
    assert!(
        done.out.ends_with(
            "3 things are wrong: 11 objects in 4 files; 1 object of other kinds not checked\n"
        ),
        "{}",
        done.out
    );
    let done = weir_with_input(&["check", "-"], "kind: [");
    assert_eq!(done.code, 1);
    assert!(
        done.out.starts_with("<stdin>:") && done.out.contains("not valid YAML"),
        "{}",
        done.out
    );
}

#[test]
fn programs_get_json() {
    let done = weir(&["check", "-o", "json", BAD, GOOD]);
    assert_eq!(done.code, 1);
    let said: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(
        (&said["files"], &said["objects"], &said["ignored"]),
        (&2.into(), &3.into(), &1.into())
    );
    let first = &said["findings"][0];
    assert_eq!(
        (&first["file"], &first["line"], &first["column"]),
        (&BAD.into(), &12.into(), &5.into())
    );
    assert_eq!(
        (&first["object"]["name"], &first["path"]),
        (&"payments".into(), &"spec.timeouts.perTry".into())
    );
}
