//! Whether it applied: `Programmed` is what kubectl waits for.

use anyhow::Result;
use rustix::process::Signal;
use serde_json::Value;
use weir_tests::kubernetes::weir::Weir;
use weir_tests::{eventually, eventually_within};

use crate::story::destination;

async fn programmed(weir: &Weir) -> Result<Value, String> {
    let object = weir
        .object("shop", "rp", "payments")
        .await
        .map_err(|error| error.to_string())?;
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Programmed");
    found.cloned().ok_or_else(|| object["status"].to_string())
}

async fn programmed_says(weir: &Weir, reason: &str) -> Value {
    let patience = std::time::Duration::from_secs(40);
    eventually_within(patience, &format!("Programmed to say {reason}"), || async {
        let said = programmed(weir).await?;
        if said["reason"] == reason {
            Ok(said)
        } else {
            Err(said.to_string())
        }
    })
    .await
}

#[tokio::test]
async fn a_wait_for_programmed_ends_when_the_last_agent_enforces_and_not_before() -> Result<()> {
    let Some(mut weir) = Weir::install(&["node-a", "node-b"]).await? else {
        return Ok(());
    };
    let (backend, _) = destination().await;
    weir.cluster
        .kubectl(&["create", "namespace", "shop"])
        .await?;
    weir.service("shop", "payments", &backend).await?;
    weir.policy("shop", "payments", "  retries: {attempts: 1}")
        .await?;
    weir.programmed("shop", "payments").await?;

    // An agent that hangs holds it, and is named.
    weir.agents["node-b"].process.signal(Signal::STOP)?;
    weir.policy("shop", "payments", "  retries: {attempts: 2}")
        .await?;
    let short = [
        "-n",
        "shop",
        "wait",
        "--for=condition=Programmed",
        "--timeout=3s",
        "rp/payments",
    ];
    assert!(
        weir.cluster.kubectl(&short).await.is_err(),
        "one agent hangs"
    );
    eventually("AGENTS to say 1/2", || async {
        let object = weir
            .object("shop", "rp", "payments")
            .await
            .map_err(|error| error.to_string())?;
        let agents = &object["status"]["summary"]["agents"];
        if agents == "1/2" {
            Ok(())
        } else {
            Err(agents.to_string())
        }
    })
    .await;
    let said = programmed_says(&weir, "Unreachable").await;
    println!("{}", said["message"]);
    assert!(said["message"].to_string().contains("node-b"), "{said}");
    weir.agents["node-b"].process.signal(Signal::CONT)?;
    weir.programmed("shop", "payments").await?;

    // One that is gone is expected back as long as its Pod is there.
    if let Some(agent) = weir.agents.get_mut("node-b") {
        agent.process.kill().await?;
    }
    let said = programmed_says(&weir, "Unreachable").await;
    assert!(said["message"].to_string().contains("node-b"), "{said}");
    weir.restart_agent("node-b").await?;
    weir.programmed("shop", "payments").await?;

    // A section that agents do not enforce yet is named.
    weir.policy(
        "shop",
        "payments",
        "  retries: {attempts: 2}\n  rateLimit: {requests: 5, per: 1s}",
    )
    .await?;
    let said = programmed_says(&weir, "UnsupportedSection").await;
    println!("{}", said["message"]);
    assert!(said["message"].to_string().contains("rateLimit"), "{said}");
    weir.shutdown().await
}
