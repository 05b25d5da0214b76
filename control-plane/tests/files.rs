//! The source `files`, with real directories and real inotify.

mod support;

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::Value;
use support::{
    Directory, PATIENCE, condition, policy, service, start, until, until_event, until_policy,
};
use tokio::time::timeout;
use weir_control_plane::store::{Change, Collection};
use weir_control_plane::{Config, ControlPlane};

fn shop(request: &str) -> String {
    service("a") + &policy("a", &format!("timeouts: {{request: {request}}}"))
}

fn request_is(object: &Value, request: &str) -> bool {
    object["spec"]["timeouts"]["request"] == request
}

#[tokio::test]
async fn a_broken_edit_keeps_the_last_good_version_and_says_where_and_what_to_write() {
    let directory = Directory::new();
    directory.write("shop.yaml", &shop("2s"));
    let control_plane = start(&directory).await;
    until_policy(&control_plane, "a", |object| request_is(object, "2s")).await;

    directory.write("shop.yaml", &shop("2 seconds"));
    let broken = until_policy(&control_plane, "a", |object| {
        condition(object, "Accepted").starts_with("False/Invalid")
    })
    .await;
    assert!(request_is(&broken, "2s"), "{broken}");
    assert_eq!(broken["metadata"]["generation"], 1);
    let message = condition(&broken, "Accepted");
    assert!(message.contains("shop.yaml:18:14: "), "{message}");
    assert!(
        message.contains("spec.timeouts.request") && message.contains("500ms"),
        "{message}"
    );
    assert!(
        message.contains("the last good version stays in force"),
        "{message}"
    );

    directory.write("shop.yaml", &shop("3s"));
    let fixed = until_policy(&control_plane, "a", |object| request_is(object, "3s")).await;
    assert!(
        condition(&fixed, "Accepted").starts_with("True/Accepted"),
        "{fixed}"
    );
    assert_eq!(fixed["metadata"]["generation"], 2);
}

#[tokio::test]
async fn a_file_cut_off_in_the_middle_or_emptied_keeps_its_objects() {
    let directory = Directory::new();
    let whole = shop("2s")
        + &policy("b", "retries: {}").replace(
            "targetRefs: [{kind: Service, name: b}]",
            "targetRefs: [{kind: Service, name: a}]",
        );
    directory.write("shop.yaml", &whole);
    let control_plane = start(&directory).await;
    until_policy(&control_plane, "b", |_| true).await;

    let cut = whole.find("targetRefs").unwrap() + "targetRefs: [{ki".len();
    directory.write("shop.yaml", &whole[..cut]);
    let kept = until_policy(&control_plane, "b", |object| {
        condition(object, "Accepted").starts_with("False/Invalid")
    })
    .await;
    assert!(
        condition(&kept, "Accepted").contains("shop.yaml:"),
        "{kept}"
    );

    directory.write("shop.yaml", "");
    let kept = until_policy(&control_plane, "a", |object| {
        condition(object, "Accepted").contains("holds nothing")
    })
    .await;
    assert!(request_is(&kept, "2s"), "{kept}");

    directory.write("shop.yaml", &whole);
    until_policy(&control_plane, "a", |object| {
        condition(object, "Accepted").starts_with("True/Accepted")
    })
    .await;
    until_policy(&control_plane, "b", |object| {
        condition(object, "Accepted").starts_with("True/Accepted")
    })
    .await;
}

#[tokio::test]
async fn editors_that_rename_or_delete_and_write_anew_are_followed_without_a_gap() {
    let directory = Directory::new();
    let path = directory.write("shop.yaml", &shop("2s"));
    let control_plane = start(&directory).await;
    let mut watch = control_plane.watch(Collection::ResiliencePolicies);
    until_policy(&control_plane, "a", |object| request_is(object, "2s")).await;

    let written = directory.write(".shop.yaml.swp", &shop("3s"));
    std::fs::rename(written, &path).unwrap();
    until_policy(&control_plane, "a", |object| request_is(object, "3s")).await;

    std::fs::remove_file(&path).unwrap();
    directory.write("shop.yaml", &shop("4s"));
    until_policy(&control_plane, "a", |object| request_is(object, "4s")).await;
    while let Ok(changed) = watch.changes.try_recv() {
        assert_ne!(changed.change, Change::Deleted, "{changed:?}");
    }
}

#[tokio::test]
async fn a_file_that_stays_away_takes_its_objects_with_it() {
    let directory = Directory::new();
    let path = directory.write("shop.yaml", &shop("2s"));
    directory.write("other.yaml", &(service("b") + &policy("b", "timeouts: {}")));
    let control_plane = start(&directory).await;
    until(&control_plane, Collection::ResiliencePolicies, |objects| {
        objects.len() == 2
    })
    .await;
    std::fs::remove_file(path).unwrap();
    let left = until(&control_plane, Collection::ResiliencePolicies, |objects| {
        objects.len() == 1
    })
    .await;
    assert_eq!(left[0]["metadata"]["name"], "b");
}

#[tokio::test]
async fn a_config_map_as_kubernetes_mounts_it_is_followed() {
    let directory = Directory::new();
    let version = |name: &str, request: &str| {
        let data = directory.path().join(name);
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("shop.yaml"), shop(request)).unwrap();
    };
    let link = |to: &str, at: &str| symlink(to, directory.path().join(at)).unwrap();
    version("..2026_01", "2s");
    link("..2026_01", "..data");
    link("..data/shop.yaml", "shop.yaml");
    let control_plane = start(&directory).await;
    until_policy(&control_plane, "a", |object| request_is(object, "2s")).await;

    version("..2026_02", "3s");
    link("..2026_02", "..data_tmp");
    std::fs::rename(
        directory.path().join("..data_tmp"),
        directory.path().join("..data"),
    )
    .unwrap();
    std::fs::remove_dir_all(directory.path().join("..2026_01")).unwrap();
    until_policy(&control_plane, "a", |object| request_is(object, "3s")).await;
}

#[tokio::test]
async fn of_the_same_object_in_two_files_the_first_counts_and_both_are_named() {
    let directory = Directory::new();
    let first = directory.write("1.yaml", &shop("2s"));
    directory.write("2.yaml", &policy("a", "timeouts: {request: 9s}"));
    let control_plane = start(&directory).await;
    until_policy(&control_plane, "a", |object| request_is(object, "2s")).await;
    let event = until_event(&control_plane, |event| {
        event.message.contains("remove one of them")
    })
    .await;
    assert!(
        event.message.contains("2.yaml:1:") && event.message.contains("1.yaml:13 "),
        "{}",
        event.message
    );

    std::fs::write(first, service("a")).unwrap();
    until_policy(&control_plane, "a", |object| request_is(object, "9s")).await;
}

#[tokio::test]
async fn what_must_not_be_read_is_refused_and_all_else_goes_on() {
    let directory = Directory::new();
    directory.write("good.yaml", &shop("2s"));
    directory.write("huge.yaml", &"# nothing\n".repeat(1 << 20));
    directory.write("binary.yaml", "kind: x\nname: ");
    std::fs::write(directory.path().join("binary.yaml"), b"kind: x\n\xff\xfe").unwrap();
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
    directory.write("bomb.yaml", bomb);
    directory.write("deep.yaml", &"[".repeat(100_000));
    directory.write("notes.txt", "not a manifest");
    let control_plane = start(&directory).await;
    until_policy(&control_plane, "a", |object| request_is(object, "2s")).await;
    for (file, what) in [
        (
            "huge.yaml:1:1",
            "10485760 bytes; a file may have 1048576: split it",
        ),
        ("binary.yaml:2:1", "not UTF-8"),
        ("bomb.yaml:", "aliases counted"),
        ("deep.yaml:", "nested deeper"),
    ] {
        until_event(&control_plane, |event| {
            event.message.contains(file) && event.message.contains(what)
        })
        .await;
    }
    assert!(
        !control_plane
            .events()
            .iter()
            .any(|event| event.message.contains("notes.txt"))
    );
}

#[tokio::test]
async fn a_directory_in_which_everything_is_broken_is_no_reason_not_to_start() {
    let directory = Directory::new();
    directory.write("shop.yaml", "kind: [\n");
    let control_plane = start(&directory).await;
    until_event(&control_plane, |event| {
        event.message.contains("shop.yaml:") && event.message.contains("not valid YAML")
    })
    .await;
    directory.write("shop.yaml", &shop("2s"));
    until_policy(&control_plane, "a", |object| request_is(object, "2s")).await;
}

#[tokio::test]
async fn a_path_that_does_not_exist_is_a_clear_error() {
    let config = Config::new(vec![PathBuf::from("/nowhere/at/all")]);
    let Err(error) = ControlPlane::start(config).await else {
        panic!("it started")
    };
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

#[tokio::test]
async fn files_and_directories_can_be_given_together() {
    let directory = Directory::new();
    let apart = Directory::new();
    directory.write("service.yaml", &service("a"));
    let single = apart.write("policy.conf", &policy("a", "timeouts: {request: 2s}"));
    let config = Config::new(vec![directory.path().to_owned(), single.clone()]);
    let control_plane = ControlPlane::start(config).await.unwrap();
    until_policy(&control_plane, "a", |object| request_is(object, "2s")).await;
    std::fs::write(single, policy("a", "timeouts: {request: 3s}")).unwrap();
    until_policy(&control_plane, "a", |object| request_is(object, "3s")).await;
}

#[tokio::test]
async fn an_override_needs_no_agent_to_be_judged() {
    let directory = Directory::new();
    directory.write(
        "shop.yaml",
        &(service("a") + &policy("a", "circuitBreaker: {}")),
    );
    let control_plane = start(&directory).await;
    let asked = |objects: &[Value]| {
        objects.len() == 1 && condition(&objects[0], "Accepted").starts_with("True")
    };
    until(&control_plane, Collection::CircuitBreakers, asked).await;
    let over = "apiVersion: weir.dev/v1alpha1\nkind: CircuitBreaker\nmetadata: {name: a}\nspec: {override: {state: Open, reason: drill, expiresAt: \"2020-01-01T00:00:00Z\"}}\n";
    directory.write("drill.yaml", over);
    let expired =
        |objects: &[Value]| condition(&objects[0], "OverrideAccepted").starts_with("False/Expired");
    until(&control_plane, Collection::CircuitBreakers, expired).await;
    timeout(PATIENCE, control_plane.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_pipe_is_refused_at_once_and_does_not_hang() {
    let directory = Directory::new();
    let pipe = directory.path().join("pipe.yaml");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let started = timeout(PATIENCE, ControlPlane::start(Config::new(vec![pipe])));
    let refused = started.await.unwrap().err().unwrap();
    let said = refused.to_string();
    assert!(said.contains("neither a file nor a directory"), "{said}");
    // In a directory it is passed over.
    directory.write("shop.yaml", &shop("2s"));
    let control_plane = start(&directory).await;
    until_policy(&control_plane, "a", |object| request_is(object, "2s")).await;
}

#[tokio::test]
async fn a_directory_that_is_gone_takes_nothing_with_it_and_is_missed() {
    let above = Directory::new();
    let (here, away) = (above.path().join("here"), above.path().join("away"));
    std::fs::create_dir(&here).unwrap();
    std::fs::write(here.join("shop.yaml"), shop("2s")).unwrap();
    let config = Config::new(vec![here.clone()]);
    let control_plane = ControlPlane::start(config).await.unwrap();
    until_policy(&control_plane, "a", |object| request_is(object, "2s")).await;
    std::fs::rename(&here, &away).unwrap();
    until_event(&control_plane, |event| event.message.contains("is gone")).await;
    until_policy(&control_plane, "a", |object| request_is(object, "2s")).await;
    std::fs::write(away.join("shop.yaml"), shop("3s")).unwrap();
    std::fs::rename(&away, &here).unwrap();
    until_policy(&control_plane, "a", |object| request_is(object, "3s")).await;
}
