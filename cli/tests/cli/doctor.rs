//! `weir doctor` on made-up hosts: a file of `tests/hosts` each, with what it says of them beside it. Rewrite these with
//! `WEIR_UPDATE_GOLDEN=1`, and read the difference.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Done, weir};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(default)]
    links: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
}

impl Host {
    fn read(path: &Path) -> Host {
        serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn below(&self) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        let place = |path: &str| {
            let place = root.path().join(path.strip_prefix('/').unwrap());
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            place
        };
        for (path, text) in &self.files {
            fs::write(place(path), text).unwrap();
        }
        for (path, to) in &self.links {
            symlink(to, place(path)).unwrap();
        }
        root
    }

    fn doctor(&self, more: &[&str]) -> Done {
        let root = self.below();
        let root = format!("--root={}", root.path().display());
        let mut arguments = vec!["doctor", "--files-only", &root];
        arguments.extend(self.arguments.iter().map(String::as_str));
        arguments.extend(more);
        weir(&arguments)
    }
}

fn hosts() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts");
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut hosts: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .collect();
    hosts.sort();
    assert!(!hosts.is_empty());
    hosts
}

#[test]
fn the_doctor_says_of_each_host_what_is_in_captures_way_and_what_to_do() {
    for path in hosts() {
        let done = Host::read(&path).doctor(&[]);
        let said = format!("{}exit code {}\n", done.out, done.code);
        assert_eq!(done.err, "", "{}", path.display());
        let golden = path.with_extension("txt");
        if std::env::var_os("WEIR_UPDATE_GOLDEN").is_some() {
            fs::write(&golden, said).unwrap();
            continue;
        }
        let wanted = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(
            said,
            wanted,
            "{}: if that is right, WEIR_UPDATE_GOLDEN=1",
            path.display()
        );
    }
}

#[test]
fn in_json_the_doctor_says_the_same() {
    for path in hosts() {
        let host = Host::read(&path);
        let (text, json) = (host.doctor(&[]), host.doctor(&["--output=json"]));
        assert_eq!(text.code, json.code);
        let json: Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!(json["works"], text.code == 0);
        for finding in json["findings"].as_array().unwrap() {
            let [level, check, found] =
                ["level", "check", "found"].map(|key| finding[key].as_str().unwrap());
            let line = format!("{level:7}  {check:18}  {found}\n");
            assert!(text.out.contains(&line), "{line}");
        }
    }
}

#[test]
fn a_host_that_is_not_there_cannot_be_examined() {
    let done = weir(&["doctor", "--root=/nowhere"]);
    assert_eq!((done.code, done.out.as_str()), (2, ""));
    assert!(
        done.err.contains("error: /nowhere: No such file"),
        "{}",
        done.err
    );
}
