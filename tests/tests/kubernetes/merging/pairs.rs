//! A golden pair on an API server: its objects applied, its statuses awaited.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use weir_tests::kubernetes::weir::Weir;
use weir_tests::{eventually, eventually_within};

/// When overrides end, by the clock of the golden pairs.
const GOLDEN_END: &str = "2026-05-01T13:00:00Z";
/// A machine that builds something meanwhile applies slowly.
const PATIENCE: Duration = Duration::from_secs(60);

/// One pair: its objects applied, its statuses awaited.
pub(super) async fn hold(weir: &Weir, case: &str) -> Result<()> {
    let end = Timestamp::now().checked_add(SignedDuration::from_hours(1))?;
    let read = |half: &str| -> Result<String> {
        let path = format!(
            "{}/../control-plane/testdata/{case}.{half}.yaml",
            env!("CARGO_MANIFEST_DIR")
        );
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let text = text.replace(GOLDEN_END, &format!("{end:.0}"));
        // Theirs is one agent.
        Ok(text
            .replace("1 of 1 agents", "2 of 2 agents")
            .replace("agents: 1/1", "agents: 2/2"))
    };
    let documents = serde_yaml::Deserializer::from_str(&read("in")?)
        .map(Value::deserialize)
        .collect::<Result<Vec<_>, _>>()?;
    let mut wanted: Value = serde_yaml::from_str(&read("out")?)?;
    let refused = refused(&mut wanted);
    apply(weir, documents, &refused).await?;
    let wanted = shown_as(&wanted);
    eventually_within(PATIENCE, &format!("the statuses of {case}"), || async {
        let shown = statuses(weir).await.map_err(|error| error.to_string())?;
        let differ = wanted
            .iter()
            .find(|(name, status)| shown.get(*name) != Some(*status));
        let more = shown.keys().find(|name| !wanted.contains_key(*name));
        match (differ, more) {
            (None, None) => Ok(()),
            (Some((name, status)), _) => {
                Err(format!("{name}: want {status}\n got {:?}", shown.get(name)))
            }
            (None, Some(name)) => Err(format!("nobody wants {name}")),
        }
    })
    .await;
    println!("{case}: {} statuses", wanted.len());
    Ok(())
}

/// Policies that the schema refuses: with files they have a status, a server does not take them in.
fn refused(wanted: &mut Value) -> BTreeSet<String> {
    let Some(policies) = wanted["policies"].as_object_mut() else {
        return BTreeSet::new();
    };
    let (refused, taken) = std::mem::take(policies)
        .into_iter()
        .partition(|(_, policy)| policy["generation"].is_null());
    *policies = taken;
    let refused: Map<String, Value> = refused;
    refused.keys().cloned().collect()
}

/// Applies a pair's objects, policies in the order of their age. A server gives them their age by itself, in whole
/// seconds, and of the same second the first by name is the older.
async fn apply(weir: &Weir, documents: Vec<Value>, refused: &BTreeSet<String>) -> Result<()> {
    let text = |document: &Value, field: &str| {
        document["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let (mut policies, mut others): (Vec<_>, Vec<_>) = documents
        .into_iter()
        .partition(|document| document["kind"] == "ResiliencePolicy");
    // The API server keeps this one itself.
    others.retain(|document| {
        (text(document, "namespace"), text(document, "name"))
            != ("default".into(), "kubernetes".into())
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": others});
    weir.cluster
        .kubectl_in(&["apply", "-f", "-"], &list.to_string())
        .await?;
    policies.sort_by_key(|policy| (text(policy, "creationTimestamp"), text(policy, "name")));
    let mut before = String::new();
    for policy in policies {
        let (age, name) = (
            text(&policy, "creationTimestamp"),
            format!("{}/{}", text(&policy, "namespace"), text(&policy, "name")),
        );
        if !before.is_empty() && age != before {
            let second = Timestamp::now().as_second();
            let look = async || {
                if Timestamp::now().as_second() > second {
                    Ok(())
                } else {
                    Err(second)
                }
            };
            eventually("the next second", look).await;
        }
        before = age;
        let applied = weir
            .cluster
            .kubectl_in(&["apply", "-f", "-"], &policy.to_string())
            .await;
        let as_wanted = applied.is_err() == refused.contains(&name);
        ensure!(as_wanted, "{name}: {applied:?}");
    }
    Ok(())
}

/// Statuses as the golden pairs write them, without generations: those of a server are its own.
fn shown_as(wanted: &Value) -> Map<String, Value> {
    let mut all = Map::new();
    for kind in ["policies", "breakers"] {
        for (name, status) in wanted[kind].as_object().into_iter().flatten() {
            let mut status = status.clone();
            if let Some(status) = status.as_object_mut() {
                status.remove("generation");
            }
            all.insert(format!("{kind} {name}"), sorted(status));
        }
    }
    all
}

/// Conditions in the order of their types, and breakers as a number: the pairs have no agents that report their states.
/// Which of two policies is the older is not decided within one second, and the name that then decides is named instead;
/// the winner is the same.
fn sorted(mut status: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
                    // Without a cluster nobody captures.
                    let says = |line: &Value, word| {
                        line.as_str().is_some_and(|line| line.starts_with(word))
                    };
                    conditions.retain(|line| !says(line, "Covered="));
                    conditions.sort_by_key(ToString::to_string);
                }
                if let Some(Value::Object(breakers)) = fields.get("breakers") {
                    let all: u64 = breakers.values().filter_map(Value::as_u64).sum();
                    fields.insert("breakers".to_owned(), all.into());
                }
                fields.values_mut().for_each(walk);
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            Value::String(text) => *text = text.replace("(first by name)", "(older)"),
            _ => {}
        }
    }
    walk(&mut status);
    status
}

/// What the server holds, in the same form.
pub(super) async fn statuses(weir: &Weir) -> Result<Map<String, Value>> {
    let text = weir
        .cluster
        .kubectl(&["get", "rp,cb", "-A", "-o", "json"])
        .await?;
    let list: Value = serde_json::from_str(&text)?;
    let mut all = Map::new();
    for object in list["items"].as_array().into_iter().flatten() {
        let metadata = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = format!(
            "{}/{}",
            text(&metadata["namespace"]),
            text(&metadata["name"])
        );
        let status = &object["status"];
        let (kind, status) = match object["kind"] == "ResiliencePolicy" {
            true => ("policies", policy(status)),
            false => (
                "breakers",
                json!({"conditions": conditions(status), "service": status["service"], "shadow": status["shadow"]}),
            ),
        };
        all.insert(format!("{kind} {name}"), sorted(status));
    }
    Ok(all)
}

fn policy(status: &Value) -> Value {
    let section = |section: &Value| {
        let word = |field: &str| section[field].as_str().unwrap_or_default().to_owned();
        format!(
            "{} from {} ({})",
            word("section"),
            word("from"),
            word("mode")
        )
    };
    let target = |target: &Value| {
        let sections: Vec<_> = target["sections"]
            .as_array()
            .into_iter()
            .flatten()
            .map(section)
            .collect();
        json!({"conditions": conditions(target), "sections": sections})
    };
    let targets: Vec<_> = status["targets"]
        .as_array()
        .into_iter()
        .flatten()
        .map(target)
        .collect();
    json!({
        "conditions": conditions(status), "targets": targets,
        "summary": status["summary"], "breakers": status["breakers"],
    })
}

fn conditions(of: &Value) -> Vec<String> {
    let text = |condition: &Value| {
        let word = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        format!(
            "{}={}/{}: {}",
            word("type"),
            word("status"),
            word("reason"),
            word("message")
        )
    };
    of["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .collect()
}
