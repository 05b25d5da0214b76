//! Whether Weir enforces the policy that it is measured with. An agent that lacks a section still forwards requests, all
//! the faster for it: its figures would be those of another proxy.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// How long the control plane may take to hear that the agent enforces.
const LIMIT: Duration = Duration::from_secs(10);
/// The list has one policy and its status.
const MAX_ANSWER: u64 = 1 << 20;
/// HTTP/1.0, so that the answer ends where the connection does.
const REQUEST: &[u8] =
    b"GET /apis/weir.dev/v1alpha1/resiliencepolicies HTTP/1.0\r\nhost: bench\r\n\r\n";

/// Waits until the control plane, by its admin address, says that every policy is enforced.
pub(crate) async fn enforced(admin: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let missing = match timeout(Duration::from_secs(1), policies(admin)).await {
            Ok(Ok(list)) => match missing(&list) {
                None => return Ok(()),
                Some(missing) => missing,
            },
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "the control plane does not answer".to_owned(),
        };
        if Instant::now() > deadline {
            bail!("weir does not enforce the policy it is measured with ({missing})");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn policies(admin: SocketAddr) -> anyhow::Result<Value> {
    let mut stream = TcpStream::connect(admin)
        .await
        .context("the control plane cannot be reached")?;
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .context("the control plane's answer is cut short")?;
    serde_json::from_str(body)
        .with_context(|| format!("the control plane answers {:?}", answer.trim_end()))
}

/// What keeps the policies from being enforced; `None` if all are.
fn missing(list: &Value) -> Option<String> {
    let policies = list["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if policies.is_empty() {
        return Some("the control plane knows no policy".to_owned());
    }
    policies.iter().find_map(|policy| {
        let conditions = policy["status"]["conditions"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let programmed = conditions
            .iter()
            .find(|condition| condition["type"] == "Programmed");
        match programmed {
            Some(condition) if condition["status"] == "True" => None,
            Some(condition) => {
                let text = |field: &str| condition[field].as_str().unwrap_or("?").to_owned();
                Some(format!(
                    "Programmed={} {}: {}",
                    text("status"),
                    text("reason"),
                    text("message")
                ))
            }
            None => Some("its status does not say Programmed yet".to_owned()),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(condition: &Value) -> Value {
        json!({"items": [{"status": {"conditions": [{"type": "Accepted", "status": "True"}, condition]}}]})
    }

    #[test]
    fn a_programmed_policy_lacks_nothing() {
        assert_eq!(
            missing(&list(&json!({"type": "Programmed", "status": "True"}))),
            None
        );
    }

    #[test]
    fn a_section_that_no_agent_enforces_is_told_with_its_reason() {
        let condition = json!({"type": "Programmed", "status": "False", "reason": "UnsupportedSection", "message": "hedging"});
        assert_eq!(
            missing(&list(&condition)),
            Some("Programmed=False UnsupportedSection: hedging".to_owned())
        );
    }

    #[test]
    fn without_a_policy_or_its_status_nothing_is_enforced() {
        assert!(missing(&json!({"items": []})).is_some());
        assert!(missing(&json!({})).is_some());
        assert!(missing(&json!({"items": [{"metadata": {}}]})).is_some());
    }
}
