//! A difference is told by the smallest object that still shows it.

use anyhow::Result;
use serde_json::Value;
use weir_crds::Kind;

use crate::generate::remove;
use crate::server::Server;

/// The object without all that can be taken from it while the verdicts still differ, and how they differ.
pub(crate) async fn smallest(
    server: &Server,
    kind: Kind,
    object: &Value,
) -> Result<(Value, String)> {
    let mut object = object.clone();
    let mut difference = differ(server, kind, &object).await?.unwrap_or_default();
    let mut pointers = Vec::new();
    find(&object, "", &mut pointers);
    for pointer in pointers {
        let mut less = object.clone();
        remove(&mut less, &pointer);
        if less != object
            && let Some(still) = differ(server, kind, &less).await?
        {
            (object, difference) = (less, still);
        }
    }
    Ok((object, difference))
}

async fn differ(server: &Server, kind: Kind, object: &Value) -> Result<Option<String>> {
    let theirs = server.verdict(kind, object).await?;
    let same = Server::same(kind, object, &theirs);
    Ok(same.err().map(|difference| difference.to_string()))
}

/// Pointers to all below `at`: what holds others before what it holds, and the last item of a list first, so that taking
/// one away leaves the pointers after it as they are.
fn find(value: &Value, at: &str, found: &mut Vec<String>) {
    if !at.is_empty() {
        found.push(at.to_owned());
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                find(value, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate().rev() {
                find(item, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}
