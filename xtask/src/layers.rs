//! Who may use whom.
//!
//! [`TABLE`] is the whole rule; the rest of the file holds it against what `cargo metadata` resolved.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;

use self::alone::{Arrows, alone};
use crate::process;

mod alone;

/// What one of Weir's crates may use.
struct Layer {
    name: &'static str,
    /// Weir's crates that it may use, by dependency or build-dependency. A dev-dependency may also be [`SUPPORT`].
    uses: Uses,
    /// Crates that must not be reached from it, by whatever way.
    never: &'static [&'static str],
    /// Crates that must not be reached from it except through a crate of Weir's (which has a row of its own).
    not_itself: &'static [&'static str],
}

enum Uses {
    Only(&'static [&'static str]),
    /// Any crate below: one whose own row is `Only`.
    AnyBelow,
}

/// Kubernetes' types, and the form in which people write them.
const KUBERNETES: &[&str] = &[
    "kube",
    "kube-core",
    "kube-cel",
    "k8s-openapi",
    "serde_yaml",
    "weir-crds",
];
/// Sockets and timers: what decides gets time and results handed in.
const IO: &[&str] = &[
    "tokio",
    "mio",
    "socket2",
    "hyper",
    "hyper-util",
    "h2",
    "tonic",
    "axum",
];
const NOTHING: &[&str] = &[];

/// Shared support for tests: anyone may use it there, and nowhere else.
const SUPPORT: &str = "weir-tests";

#[rustfmt::skip]
const TABLE: &[Layer] = &[
    Layer { name: "weir-proto",         uses: Uses::Only(&[]),                                never: KUBERNETES, not_itself: NOTHING },
    Layer { name: "weir-resilience",    uses: Uses::Only(&["weir-proto"]),                    never: KUBERNETES, not_itself: IO },
    Layer { name: "weir-agent",         uses: Uses::Only(&["weir-proto", "weir-resilience"]), never: KUBERNETES, not_itself: NOTHING },
    Layer { name: "weir-crds",          uses: Uses::Only(&[]),                                never: IO,         not_itself: NOTHING },
    Layer { name: "weir-control-plane", uses: Uses::Only(&["weir-crds", "weir-proto", "weir-resilience"]),
                                                                                              never: NOTHING,    not_itself: NOTHING },
    Layer { name: "weir",               uses: Uses::Only(&["weir-agent", "weir-control-plane", "weir-crds"]),
                                                                                              never: NOTHING,    not_itself: NOTHING },
    Layer { name: "weir-tests",         uses: Uses::AnyBelow,                                 never: NOTHING,    not_itself: NOTHING },
    Layer { name: "weir-bench",         uses: Uses::AnyBelow,                                 never: NOTHING,    not_itself: NOTHING },
    Layer { name: "xtask",              uses: Uses::AnyBelow,                                 never: NOTHING,    not_itself: NOTHING },
];

impl Layer {
    /// `None` if it may use that crate of Weir's; else what it may use.
    fn refuses(&self, used: &str, table: &[Layer]) -> Option<String> {
        match self.uses {
            Uses::Only(allowed) if allowed.contains(&used) => None,
            Uses::Only([]) => Some("none of Weir's crates".to_owned()),
            Uses::Only(allowed) => Some(format!("only {}", allowed.join(", "))),
            Uses::AnyBelow => {
                let below = table
                    .iter()
                    .any(|row| row.name == used && matches!(row.uses, Uses::Only(_)));
                (!below).then(|| "only crates that ship".to_owned())
            }
        }
    }
}

/// Checks the workspace.
///
/// # Errors
/// One sentence for each broken arrow.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let mut metadata = process::cargo(root);
    // One platform, so that only what Weir really builds with is looked at: the data path is Linux's.
    metadata.args([
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]);
    let metadata: Value = serde_json::from_str(&process::output(&mut metadata)?)?;
    let mut graph = Graph::read(&metadata)?;
    for row in TABLE {
        if !row.never.is_empty() || !row.not_itself.is_empty() {
            graph.alone.insert(row.name, alone(root, row.name)?);
        }
    }
    let broken = broken(&graph, TABLE);
    if !broken.is_empty() {
        bail!(
            "{}\nThe table, and the reasons, are in xtask/src/layers.rs.",
            broken.join("\n")
        );
    }
    println!(
        "{} crates keep to the table in xtask/src/layers.rs",
        TABLE.len()
    );
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Becomes part of what ships, or makes it.
    Ships,
    /// For tests, examples and benches.
    Dev,
}

/// Which package uses which, by package id.
struct Graph<'a> {
    names: BTreeMap<&'a str, &'a str>,
    members: BTreeSet<&'a str>,
    arrows: BTreeMap<&'a str, Vec<(&'a str, Kind)>>,
    /// For each of Weir's crates that must not reach others: which of the arrows are there when it is built by itself.
    /// For one without an entry, all.
    alone: BTreeMap<&'a str, Arrows>,
}

impl<'a> Graph<'a> {
    fn read(metadata: &'a Value) -> anyhow::Result<Self> {
        let list = |value: &'a Value| {
            value
                .as_array()
                .context("cargo metadata has another form than format-version 1")
        };
        let text = |value: &'a Value| {
            value
                .as_str()
                .context("cargo metadata has another form than format-version 1")
        };
        let mut graph = Self {
            names: BTreeMap::new(),
            members: BTreeSet::new(),
            arrows: BTreeMap::new(),
            alone: BTreeMap::new(),
        };
        for package in list(&metadata["packages"])? {
            graph
                .names
                .insert(text(&package["id"])?, text(&package["name"])?);
        }
        for member in list(&metadata["workspace_members"])? {
            graph.members.insert(text(member)?);
        }
        for node in list(&metadata["resolve"]["nodes"])? {
            let arrows = graph.arrows.entry(text(&node["id"])?).or_default();
            for used in list(&node["deps"])? {
                for kind in list(&used["dep_kinds"])? {
                    let kind = if kind["kind"] == "dev" {
                        Kind::Dev
                    } else {
                        Kind::Ships
                    };
                    arrows.push((text(&used["pkg"])?, kind));
                }
            }
        }
        Ok(graph)
    }

    fn name(&self, id: &'a str) -> &'a str {
        self.names.get(id).copied().unwrap_or(id)
    }

    fn is_built(&self, member: &'a str, from: &'a str, to: &'a str) -> bool {
        let arrow = || (self.name(from).to_owned(), self.name(to).to_owned());
        let alone = self.alone.get(self.name(member));
        alone.is_none_or(|alone| alone.contains(&arrow()))
    }

    fn used_by(&self, id: &str) -> &[(&'a str, Kind)] {
        self.arrows.get(id).map_or(&[], Vec::as_slice)
    }

    /// The shortest way from a crate to each of those named, written with arrows. Dev-dependencies are no way, and
    /// neither are Weir's own crates when `past_members` is false.
    fn ways(&self, from: &'a str, to: &[&str], past_members: bool) -> Vec<String> {
        let mut before = BTreeMap::from([(from, None)]);
        let mut queue = VecDeque::from([from]);
        let mut found = Vec::new();
        while let Some(id) = queue.pop_front() {
            if id != from && to.contains(&self.name(id)) {
                found.push(self.way(id, &before));
                continue;
            }
            for &(used, kind) in self.used_by(id) {
                let passes = kind == Kind::Ships && (past_members || !self.members.contains(used));
                if passes && !before.contains_key(used) && self.is_built(from, id, used) {
                    before.insert(used, Some(id));
                    queue.push_back(used);
                }
            }
        }
        found
    }

    fn way(&self, to: &'a str, before: &BTreeMap<&'a str, Option<&'a str>>) -> String {
        let mut names = vec![self.name(to)];
        let mut at = to;
        while let Some(Some(id)) = before.get(at) {
            names.push(self.name(id));
            at = id;
        }
        names.reverse();
        names.join(" → ")
    }
}

fn broken(graph: &Graph<'_>, table: &[Layer]) -> Vec<String> {
    let mut broken = Vec::new();
    let members: BTreeSet<_> = graph.members.iter().map(|id| graph.name(id)).collect();
    for row in table.iter().filter(|row| !members.contains(row.name)) {
        broken.push(format!(
            "{} has a row in the table but is no crate of the workspace: remove the row",
            row.name
        ));
    }
    for &id in &graph.members {
        let name = graph.name(id);
        let Some(row) = table.iter().find(|row| row.name == name) else {
            broken.push(format!(
                "{name} has no row in the table: add one that says what it may use"
            ));
            continue;
        };
        for &(used, kind) in graph
            .used_by(id)
            .iter()
            .filter(|(used, _)| graph.members.contains(used))
        {
            let used = graph.name(used);
            match (row.refuses(used, table), kind) {
                (Some(allowed), Kind::Ships) => {
                    broken.push(format!("{name} → {used}: {name} may use {allowed}"))
                }
                (Some(allowed), Kind::Dev) if used != SUPPORT => {
                    broken.push(format!(
                        "{name} → {used}, in tests: {name} may use {allowed}, and {SUPPORT}"
                    ));
                }
                _ => {}
            }
        }
        for way in graph.ways(id, row.never, true) {
            broken.push(format!("{way}: {name} must not reach it, by whatever way"));
        }
        for way in graph.ways(id, row.not_itself, false) {
            broken.push(format!(
                "{way}: {name} must not reach it by a way of its own"
            ));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What `cargo metadata` says of a workspace with every crate of the table, and these arrows (dev if so marked).
    fn metadata(arrows: &[(&str, &str, &str)]) -> Value {
        let members: BTreeSet<&str> = TABLE.iter().map(|row| row.name).collect();
        let packages: BTreeSet<&str> = arrows
            .iter()
            .flat_map(|(from, _, to)| [*from, *to])
            .chain(members.clone())
            .collect();
        let node = |name: &&str| {
            let deps = arrows.iter().filter(|(from, ..)| from == name).map(|(_, kind, to)| {
                let kind = if *kind == "normal" { Value::Null } else { json!(kind) };
                json!({ "name": to, "pkg": to, "dep_kinds": [{ "kind": kind, "target": null }] })
            });
            json!({ "id": name, "deps": deps.collect::<Vec<_>>() })
        };
        json!({
            "packages": packages.iter().map(|name| json!({ "id": name, "name": name })).collect::<Vec<_>>(),
            "workspace_members": members,
            "resolve": { "nodes": packages.iter().map(node).collect::<Vec<_>>() },
        })
    }

    fn broken_by(arrows: &[(&str, &str, &str)]) -> Vec<String> {
        broken(&Graph::read(&metadata(arrows)).unwrap(), TABLE)
    }

    #[test]
    fn every_arrow_of_the_table_is_allowed() {
        let arrows: Vec<_> = TABLE
            .iter()
            .filter_map(|row| match row.uses {
                Uses::Only(used) => Some(used.iter().map(|used| (row.name, "normal", *used))),
                Uses::AnyBelow => None,
            })
            .flatten()
            .chain([
                ("weir-tests", "normal", "weir"),
                ("weir-bench", "normal", "weir-agent"),
                ("xtask", "build", "weir-crds"),
            ])
            .collect();
        assert_eq!(broken_by(&arrows), NOTHING);
    }

    #[test]
    fn an_arrow_that_the_table_does_not_have_is_broken() {
        assert_eq!(
            broken_by(&[("weir-resilience", "normal", "weir-agent")]),
            ["weir-resilience → weir-agent: weir-resilience may use only weir-proto"]
        );
        assert_eq!(
            broken_by(&[("weir-proto", "build", "weir-resilience")]),
            ["weir-proto → weir-resilience: weir-proto may use none of Weir's crates"]
        );
    }

    #[test]
    fn nobody_depends_on_the_crates_that_do_not_ship() {
        for top in ["weir-tests", "weir-bench", "xtask"] {
            assert_eq!(broken_by(&[("weir", "normal", top)]).len(), 1, "{top}");
        }
        assert_eq!(
            broken_by(&[("weir-bench", "normal", "weir-tests")]),
            ["weir-bench → weir-tests: weir-bench may use only crates that ship"]
        );
    }

    #[test]
    fn tests_may_use_the_shared_support_and_no_other_arrow_of_their_own() {
        assert_eq!(broken_by(&[("weir-agent", "dev", "weir-tests")]), NOTHING);
        assert_eq!(
            broken_by(&[("weir-agent", "dev", "weir-control-plane")]),
            [
                "weir-agent → weir-control-plane, in tests: weir-agent may use only weir-proto, weir-resilience, and weir-tests"
            ]
        );
    }

    #[test]
    fn the_agent_never_sees_kubernetes_however_far_away() {
        let arrows = [
            ("weir-agent", "normal", "a"),
            ("a", "normal", "b"),
            ("b", "build", "kube"),
        ];
        assert_eq!(
            broken_by(&arrows),
            ["weir-agent → a → b → kube: weir-agent must not reach it, by whatever way"]
        );
        let through_ours = [
            ("weir-agent", "normal", "weir-proto"),
            ("weir-proto", "normal", "serde_yaml"),
        ];
        assert_eq!(
            broken_by(&through_ours).len(),
            2,
            "the agent's row and the wire's own are both broken"
        );
    }

    #[test]
    fn a_crate_that_only_tests_use_is_not_reached() {
        assert_eq!(
            broken_by(&[("weir-agent", "normal", "a"), ("a", "dev", "kube")]),
            NOTHING
        );
    }

    #[test]
    fn what_another_crate_turned_a_feature_on_for_is_not_reached() {
        let metadata = metadata(&[
            ("weir-crds", "normal", "kube"),
            ("kube", "normal", "kube-core"),
            ("kube", "normal", "kube-client"),
            ("kube-client", "normal", "tokio"),
        ]);
        let mut graph = Graph::read(&metadata).unwrap();
        assert_eq!(broken(&graph, TABLE).len(), 1);
        let tree =
            "0weir-crds v0.1.0 (/weir/crds)\n1kube v5.0.0\n2kube-core v5.0.0\n1serde v1.0.0 (*)\n";
        graph.alone.insert("weir-crds", alone::arrows(tree));
        assert_eq!(broken(&graph, TABLE), NOTHING);
    }

    #[test]
    fn what_decides_has_no_sockets_but_those_of_the_wire() {
        let wire = [
            ("weir-resilience", "normal", "weir-proto"),
            ("weir-proto", "normal", "tonic"),
            ("tonic", "normal", "tokio"),
        ];
        assert_eq!(broken_by(&wire), NOTHING);
        assert_eq!(
            broken_by(&[("weir-resilience", "normal", "a"), ("a", "normal", "tokio")]),
            ["weir-resilience → a → tokio: weir-resilience must not reach it by a way of its own"]
        );
    }

    #[test]
    fn a_crate_without_a_row_and_a_row_without_a_crate_are_named() {
        let metadata = metadata(&[]);
        let graph = Graph::read(&metadata).unwrap();
        let without_row = broken(&graph, &TABLE[1..]);
        assert_eq!(
            without_row,
            ["weir-proto has no row in the table: add one that says what it may use"]
        );
        let without_crate = Graph {
            members: graph
                .members
                .iter()
                .copied()
                .filter(|id| *id != "xtask")
                .collect(),
            ..graph
        };
        assert_eq!(
            broken(&without_crate, TABLE),
            ["xtask has a row in the table but is no crate of the workspace: remove the row"]
        );
    }
}
