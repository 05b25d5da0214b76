//! People's word over a breaker, through kubectl.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::Result;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;
use weir_tests::eventually;
use weir_tests::kubernetes::weir::{Agent, Weir};

use crate::story::destination;

/// Whether the agent itself refuses requests for payments.
async fn refuses(agent: &Agent) -> Result<bool, String> {
    let got = agent
        .get("payments.shop", "/")
        .await
        .map_err(|error| error.to_string())?;
    Ok(got.header("proxy-status").contains("circuit breaker"))
}

/// Waits until both agents refuse, or both do not, and says how long it took since `since`.
async fn everywhere(weir: &Weir, refused: bool, since: Instant) -> Duration {
    let both = ["node-a", "node-b"].map(|node| &weir.agents[node]);
    eventually(&format!("all agents to refuse: {refused}"), || async {
        for agent in both {
            if refuses(agent).await? != refused {
                return Err(format!("{} does not", agent.node));
            }
        }
        Ok(since.elapsed())
    })
    .await
}

async fn patch(weir: &Weir, spec: &Value) -> Result<Instant> {
    let patch = json!({"spec": spec}).to_string();
    let asked = Instant::now();
    weir.cluster
        .kubectl(&[
            "-n", "shop", "patch", "cb", "payments", "--type", "merge", "-p", &patch,
        ])
        .await?;
    Ok(asked)
}

/// The time of the API server's format, so far from now.
fn ahead(by: SignedDuration) -> Result<String> {
    Ok(format!("{:.0}", Timestamp::now().checked_add(by)?))
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind);
    found.cloned().unwrap_or_default()
}

async fn override_says(weir: &Weir, reason: &str) -> Value {
    eventually(&format!("OverrideAccepted to say {reason}"), || async {
        let object = weir
            .object("shop", "cb", "payments")
            .await
            .map_err(|error| error.to_string())?;
        let said = condition(&object, "OverrideAccepted");
        if said["reason"] == reason {
            Ok(object)
        } else {
            Err(said.to_string())
        }
    })
    .await
}

const POLICY: &str = "  circuitBreaker: {minimumRequests: 5, open: {duration: 60s}}";

#[tokio::test]
async fn an_override_holds_everywhere_expires_by_itself_and_outlives_its_policy() -> Result<()> {
    let Some(weir) = Weir::install(&["node-a", "node-b"]).await? else {
        return Ok(());
    };
    let (backend, status) = destination().await;
    weir.cluster
        .kubectl(&["create", "namespace", "shop"])
        .await?;
    weir.service("shop", "payments", &backend).await?;
    weir.policy("shop", "payments", POLICY).await?;
    weir.programmed("shop", "payments").await?;
    weir.breaker_is("shop", "payments", "Closed").await;

    // Opened and closed by hand.
    let hour = ahead(SignedDuration::from_hours(1))?;
    let held = json!({"override": {"state": "Open", "reason": "drill of the payments team", "expiresAt": hour}});
    let asked = patch(&weir, &held).await?;
    println!(
        "held open everywhere {:?} after kubectl began",
        everywhere(&weir, true, asked).await
    );
    let object = weir.breaker_is("shop", "payments", "ForcedOpen").await;
    assert_eq!(
        condition(&object, "OverrideAccepted")["status"],
        "True",
        "{object}"
    );
    let told = eventually("an Event to tell of it", || async {
        let events = weir
            .cluster
            .kubectl(&["-n", "shop", "get", "events"])
            .await
            .map_err(|error| error.to_string())?;
        let line = events.lines().find(|line| {
            line.contains("CircuitOpened") && line.contains("drill of the payments team")
        });
        line.map(str::to_owned).ok_or(events.clone())
    })
    .await;
    println!("{told}");

    // Without its policy the object stays, for the override holds; with it, so does the override.
    weir.cluster
        .kubectl(&["-n", "shop", "delete", "rp", "payments"])
        .await?;
    eventually("the object to say that nobody asks for it", || async {
        let object = weir
            .object("shop", "cb", "payments")
            .await
            .map_err(|error| error.to_string())?;
        let accepted = condition(&object, "Accepted");
        if accepted["reason"] == "NoSuchBreaker" {
            Ok(())
        } else {
            Err(accepted.to_string())
        }
    })
    .await;
    weir.policy("shop", "payments", POLICY).await?;
    weir.programmed("shop", "payments").await?;
    everywhere(&weir, true, Instant::now()).await;
    weir.breaker_is("shop", "payments", "ForcedOpen").await;

    let asked = patch(&weir, &json!({"override": null})).await?;
    println!(
        "let go everywhere {:?} after kubectl began",
        everywhere(&weir, false, asked).await
    );
    weir.breaker_is("shop", "payments", "Closed").await;

    // It ends by itself.
    let soon = ahead(SignedDuration::from_secs(3))?;
    let asked = patch(
        &weir,
        &json!({"override": {"state": "Open", "reason": "short", "expiresAt": soon}}),
    )
    .await?;
    everywhere(&weir, true, asked).await;
    let left = everywhere(&weir, false, asked).await;
    println!("an override until {soon} ended {left:?} after kubectl began");
    override_says(&weir, "Expired").await;

    // Held closed, whatever is measured.
    let held = json!({"override": {"state": "Closed", "reason": "the breaker is wrong", "expiresAt": hour}});
    patch(&weir, &held).await?;
    weir.breaker_is("shop", "payments", "ForcedClosed").await;
    status.store(503, SeqCst);
    for agent in weir.agents.values() {
        for _ in 0..20 {
            assert_eq!(refuses(agent).await, Ok(false));
        }
    }
    // Let go, it judges for itself; a reset closes it once.
    patch(&weir, &json!({"override": null})).await?;
    everywhere(&weir, true, Instant::now()).await;
    status.store(200, SeqCst);
    let asked = patch(&weir, &json!({"reset": "1"})).await?;
    println!(
        "reset everywhere {:?} after kubectl began",
        everywhere(&weir, false, asked).await
    );
    eventually("the reset to be acknowledged", || async {
        let object = weir
            .object("shop", "cb", "payments")
            .await
            .map_err(|error| error.to_string())?;
        if object["status"]["observedReset"] == "1" {
            Ok(())
        } else {
            Err(object["status"].to_string())
        }
    })
    .await;

    // What is too far ahead does nothing, and says so; without a reason it is refused.
    let days = ahead(SignedDuration::from_hours(48))?;
    patch(
        &weir,
        &json!({"override": {"state": "Open", "reason": "for ever", "expiresAt": days}}),
    )
    .await?;
    let object = override_says(&weir, "ExpiryTooFar").await;
    println!("{}", condition(&object, "OverrideAccepted")["message"]);
    everywhere(&weir, false, Instant::now()).await;
    let refused = patch(
        &weir,
        &json!({"override": {"state": "Open", "reason": null, "expiresAt": hour}}),
    )
    .await;
    let why = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(why.contains("spec.override.reason"), "{why}");

    // A breaker that nobody asks for is a person's to remove.
    let odd = "{apiVersion: weir.dev/v1alpha1, kind: CircuitBreaker, metadata: {name: paymenst, namespace: shop}, spec: {reset: '1'}}";
    weir.cluster.kubectl_in(&["apply", "-f", "-"], odd).await?;
    eventually("the misspelt breaker to say so", || async {
        let object = weir
            .object("shop", "cb", "paymenst")
            .await
            .map_err(|error| error.to_string())?;
        let accepted = condition(&object, "Accepted");
        let says = accepted["reason"] == "NoSuchBreaker"
            && accepted["message"].to_string().contains("payments");
        if says {
            Ok(())
        } else {
            Err(accepted.to_string())
        }
    })
    .await;
    weir.shutdown().await
}
