//! What somebody takes away that is Weir's comes again, and what goes for good goes quietly.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir_tests::kubernetes::weir::Weir;
use weir_tests::{eventually, eventually_within};

use super::{PATIENCE, policy};

/// Waits until the breaker is there as another object than the one with this uid, and open as it was.
async fn made_again(weir: &Weir, uid: &Value) -> Value {
    eventually("the breaker to be there again", || async {
        let object = weir
            .object("shop", "cb", "payments")
            .await
            .map_err(|error| error.to_string())?;
        let again = object["metadata"]["uid"] != *uid && object["status"]["state"] == "Open";
        if again {
            Ok(object)
        } else {
            Err(object["status"].to_string())
        }
    })
    .await
}

/// What people take away that is Weir's comes again.
pub(super) async fn deleted_and_cleared(weir: &Weir) -> Result<()> {
    let object = weir.object("shop", "cb", "payments").await?;
    ensure!(object["metadata"]["labels"].is_null(), "{object}");
    weir.cluster
        .kubectl(&["-n", "shop", "delete", "cb", "payments"])
        .await?;
    let object = made_again(weir, &object["metadata"]["uid"]).await;
    weir.cluster
        .kubectl(&["-n", "shop", "delete", "cb", "--all"])
        .await?;
    made_again(weir, &object["metadata"]["uid"]).await;

    for kind in ["rp", "cb"] {
        for wrong in [r#"{"status":null}"#, r#"{"status":{"conditions":[]}}"#] {
            let before = weir.object("shop", kind, "payments").await?;
            let patch = [
                "-n",
                "shop",
                "patch",
                kind,
                "payments",
                "--subresource=status",
                "--type=merge",
                "-p",
                wrong,
            ];
            weir.cluster.kubectl(&patch).await?;
            right_again(weir, kind, &before).await;
        }
    }
    let before = weir.object("shop", "cb", "payments").await?;
    let lie = r#"{"status":{"state":"Closed","nodes":{"open":0}}}"#;
    weir.cluster
        .kubectl(&[
            "-n",
            "shop",
            "patch",
            "cb",
            "payments",
            "--subresource=status",
            "--type=merge",
            "-p",
            lie,
        ])
        .await?;
    right_again(weir, "cb", &before).await;
    Ok(())
}

/// Waits until the status says again what it said before.
async fn right_again(weir: &Weir, kind: &str, before: &Value) {
    let words = |object: &Value| {
        let status = &object["status"];
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let conditions: Vec<_> = conditions
            .map(|condition| [&condition["type"], &condition["reason"]].map(Value::clone))
            .collect();
        json!([
            conditions,
            status["state"],
            status["nodes"],
            status["targets"],
            status["agents"]
        ])
    };
    eventually_within(
        PATIENCE,
        &format!("the status of {kind} to be written again"),
        || async {
            let object = weir
                .object("shop", kind, "payments")
                .await
                .map_err(|error| error.to_string())?;
            if words(&object) == words(before) {
                Ok(())
            } else {
                Err(object["status"].to_string())
            }
        },
    )
    .await;
}

/// A namespace goes with all that is in it, and comes again.
pub(super) async fn namespace_goes(weir: &Weir) -> Result<()> {
    let names = ["payments", "orders"];
    for name in names {
        weir.cluster
            .kubectl_in(&["apply", "-f", "-"], &policy(name, "5s"))
            .await?;
        weir.programmed("shop", name).await?;
        let look = async || weir.object("shop", "cb", name).await;
        eventually("its breaker to be there", look).await;
    }
    let log = || weir.control_planes[&1].process.log();
    let before = log()?.len();
    weir.cluster
        .kubectl(&["delete", "namespace", "shop", "--timeout=90s"])
        .await?;
    let said = log()?.get(before..).unwrap_or_default().to_owned();
    let complaints: Vec<_> = said
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .collect();
    println!("while the namespace went: {complaints:#?}");
    // Said once that something cannot be written, if at all.
    ensure!(complaints.len() <= 2, "{complaints:#?}");
    let left = weir
        .cluster
        .kubectl(&["get", "cb", "-A", "-o", "name"])
        .await?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}
