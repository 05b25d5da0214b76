//! `kubectl explain`: the reference manual that a cluster carries.

use anyhow::{Context as _, Result};
use serde_json::Value;
use weir_crds::Kind;

use crate::server::Server;

#[tokio::test]
async fn kubectl_explain_describes_every_field_of_both_kinds_and_its_default() -> Result<()> {
    let Some(server) = Server::start().await? else {
        return Ok(());
    };
    // What kubectl explain reads.
    let request = http::Request::get("/openapi/v3/apis/weir.dev/v1alpha1").body(Vec::new())?;
    let document: Value = server.client.request(request).await?;
    for kind in Kind::ALL {
        let schema = &document["components"]["schemas"][format!("dev.weir.v1alpha1.{kind}")];
        let mut fields = Vec::new();
        describe(schema, kind.as_str(), &mut fields);
        for (path, description, default) in &fields {
            let ends = description.ends_with(['.', ')']) || path.contains(".metadata");
            let plain = !description.is_empty() && description.trim() == description;
            assert!(
                plain && ends || path.ends_with("ersion") || path.ends_with("kind"),
                "{path}: {description:?}"
            );
            if let Some(default) = default {
                assert!(
                    description.contains(default),
                    "{path}: {description:?} does not say {default}"
                );
            }
        }
        println!("{kind}: {} fields", fields.len());
    }

    for topic in [
        "resiliencepolicy",
        "resiliencepolicy.spec.circuitBreaker",
        "resiliencepolicy.spec.routes.retries.budget",
        "circuitbreaker.spec.override",
    ] {
        let text = server.cluster.kubectl(&["explain", topic]).await?;
        println!("$ kubectl explain {topic}\n{text}");
        assert!(!text.contains("<empty>"), "{text}");
    }
    let tree = [
        "explain",
        "resiliencepolicy.spec.retries.budget",
        "--recursive",
    ];
    let tree = server.cluster.kubectl(&tree).await?;
    let rate = tree
        .split_once("minRetryRate")
        .context("a field of a field")?;
    assert!(rate.1.contains("count"), "{tree}");
    server.cluster.shutdown().await
}

/// Path, description and default of all that a schema holds.
fn describe(schema: &Value, path: &str, fields: &mut Vec<(String, String, Option<String>)>) {
    let description = schema["description"].as_str().unwrap_or_default();
    let default = match &schema["default"] {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        default @ (Value::Number(_) | Value::Bool(_)) => Some(default.to_string()),
        _ => None,
    };
    fields.push((path.to_owned(), description.to_owned(), default));
    let properties = [&schema["properties"], &schema["items"]["properties"]];
    let properties = properties.into_iter().filter_map(Value::as_object);
    for (name, schema) in properties.flatten() {
        describe(schema, &format!("{path}.{name}"), fields);
    }
}
