//! Golden pairs: `testdata/<case>.in.yaml` is compiled, and gives
//! `testdata/<case>.out.yaml`. Rewrite these with `WEIR_UPDATE_GOLDEN=1`, and
//! read what changed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Compiled, compile};
use crate::capture::Covers;
use crate::ledger::Ledger;
use crate::push::{Catalog, Holding};
use crate::sources::Objects;
use crate::sources::files::from_text;
use crate::status::{Look, Memory, Versions, View};
use crate::world::{encode, renew};

mod changes;
mod render;
mod scale;

fn now() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn cases() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".in.yaml"))
        .collect();
    cases.sort();
    cases
}

/// Everything encoded, from nothing.
fn encoded(compiled: &Compiled) -> Catalog {
    encode(
        compiled,
        compiled.services.keys(),
        &Catalog::default(),
        false,
    )
}

/// The statuses when one agent enforces everything.
fn statuses(objects: &Objects, compiled: &Compiled) -> Value {
    let catalog = encoded(compiled);
    let mut versions = Versions::new();
    renew(&mut versions, compiled, compiled.services.keys(), &catalog);
    let enforced: HashMap<_, _> = catalog
        .resources
        .iter()
        .map(|(id, resource)| (id.clone(), Arc::clone(&resource.version)))
        .collect();
    let ledger = Arc::new(Ledger::default());
    let _agent = ledger
        .connect(
            "node-a",
            &Holding {
                enforced,
                refused: HashMap::new(),
            },
            false,
        )
        .unwrap();
    let nodes = ledger.nodes();
    let instant = Instant::now();
    let view = View {
        objects,
        compiled,
        versions: &versions,
        ledger: &ledger,
        nodes: &nodes,
        covers: &Covers::default(),
        now: now(),
        instant,
    };
    let everything = Look {
        all_policies: true,
        all_breakers: true,
        ..Look::default()
    };
    let statuses = Memory::default().statuses(&view, everything);
    json!({
        "policies": statuses.policies.values().flatten().map(render::policy).collect::<serde_json::Map<_, _>>(),
        "breakers": statuses.breakers.values().flatten().map(render::breaker).collect::<serde_json::Map<_, _>>(),
    })
}

fn outcome(name: &str, text: &str) -> Value {
    let objects = from_text(Path::new(name), text, now());
    let compiled = compile(&objects, now());
    let mut outcome = statuses(&objects, &compiled);
    outcome["services"] = compiled
        .services
        .values()
        .map(render::service)
        .collect::<serde_json::Map<_, _>>()
        .into();
    outcome["problems"] = objects
        .problems
        .iter()
        .chain(&compiled.problems)
        .cloned()
        .collect();
    outcome
}

#[test]
fn every_golden_pair_holds() {
    let update = std::env::var_os("WEIR_UPDATE_GOLDEN").is_some();
    let mut different = Vec::new();
    assert!(cases().len() > 10, "the pairs are gone");
    for case in cases() {
        let name = case
            .file_name()
            .unwrap()
            .to_string_lossy()
            .replace(".in.yaml", ".yaml");
        let text = std::fs::read_to_string(&case).unwrap();
        let got = serde_yaml::to_string(&outcome(&name, &text)).unwrap();
        let out = PathBuf::from(case.to_string_lossy().replace(".in.yaml", ".out.yaml"));
        let want = std::fs::read_to_string(&out).unwrap_or_default();
        if got != want {
            if update {
                std::fs::write(&out, &got).unwrap();
            } else {
                different.push(format!(
                    "{}:\n{}",
                    out.display(),
                    first_difference(&want, &got)
                ));
            }
        }
    }
    assert!(
        different.is_empty(),
        "{}\nif that is right: WEIR_UPDATE_GOLDEN=1",
        different.join("\n")
    );
}

fn first_difference(want: &str, got: &str) -> String {
    let lines = want.lines().zip(got.lines()).enumerate();
    for (number, (want, got)) in lines {
        if want != got {
            return format!("line {}:\n  want {want}\n  got  {got}", number + 1);
        }
    }
    format!(
        "{} lines wanted, {} got",
        want.lines().count(),
        got.lines().count()
    )
}

#[test]
fn compiling_twice_gives_the_same_versions() {
    for case in cases() {
        let text = std::fs::read_to_string(&case).unwrap();
        let compiled = || encoded(&compile(&from_text(&case, &text, now()), now()));
        assert_eq!(compiled(), compiled(), "{}", case.display());
    }
}
