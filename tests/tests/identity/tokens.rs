//! Tokens: which are let in, for which node, and what the others hear.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_RSA_SHA256, SigningKey as _};
use serde_json::Value;
use weir_control_plane::Lifetimes;
use weir_tests::eventually_within;
use weir_tests::kubernetes::Cluster;

use super::knock::{Told, discover, report};
use super::{
    AUDIENCE, NAMESPACE, PATIENCE, agent, agent_pod, agent_token, cluster, control_plane, figure,
    roots,
};

const UNAUTHENTICATED: u16 = 16;
const PERMISSION_DENIED: u16 = 7;
const UNAVAILABLE: u16 = 14;

#[tokio::test]
async fn an_agent_is_let_in_for_the_node_of_its_pod_and_no_other_gets_anything() -> Result<()> {
    let Some(cluster) = cluster().await? else {
        return Ok(());
    };
    let pods = [
        agent_pod(&cluster, "a").await?,
        agent_pod(&cluster, "b").await?,
    ];
    let control_plane = control_plane(&cluster, "one", Lifetimes::default()).await?;
    let roots = roots(&cluster).await?;
    let (at, admin) = (control_plane.grpc_addr(), control_plane.admin_addr());
    let good = agent_token(&cluster, &pods[0]).await?;

    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("ca.crt"), &roots)?;
    std::fs::write(directory.path().join("token"), &good)?;
    let agent = agent("a", at, directory.path()).await?;
    agent.synced().await;
    agent.shutdown().await;
    let told = discover(at, &roots, Some(&good), "a").await?;
    assert_eq!(told, Told::Something);

    let unbound = cluster.token(NAMESPACE, "weir-agent", Some(AUDIENCE), None, 3600);
    let other = cluster.token(NAMESPACE, "weir-control-plane", Some(AUDIENCE), None, 3600);
    let audience = cluster.token(NAMESPACE, "weir-agent", None, Some(&pods[0]), 3600);
    let (unbound, other, audience) = (unbound.await?, other.await?, audience.await?);
    let expired = expired(&cluster, &good)?;
    let forged = format!("{good}x");
    let cases = [
        (None, "a", UNAUTHENTICATED, "no_token", "--token-file"),
        (
            Some("garbage"),
            "a",
            UNAUTHENTICATED,
            "malformed_token",
            "--token-file",
        ),
        (
            Some(&*forged),
            "a",
            UNAUTHENTICATED,
            "unknown_token",
            "another cluster",
        ),
        (
            Some(&*expired),
            "a",
            UNAUTHENTICATED,
            "expired_token",
            "has expired",
        ),
        (
            Some(&*audience),
            "a",
            UNAUTHENTICATED,
            "other_audience",
            "audience weir-control-plane",
        ),
        (
            Some(&*other),
            "a",
            PERMISSION_DENIED,
            "other_account",
            "weir-system:weir-agent",
        ),
        (
            Some(&*unbound),
            "a",
            PERMISSION_DENIED,
            "no_node",
            "projected token",
        ),
        (
            Some(&*good),
            "b",
            PERMISSION_DENIED,
            "other_node",
            "--node a",
        ),
    ];
    for (token, node, code, reason, hint) in cases {
        let both = [
            discover(at, &roots, token, node).await?,
            report(at, &roots, token, node).await?,
        ];
        for told in both {
            let Told::Nothing(status, message) = told else {
                anyhow::bail!("{reason} was let in");
            };
            assert_eq!(status, code, "{reason}: {message}");
            assert!(message.contains(hint), "{reason}: {message}");
        }
        let label = format!("{{reason=\"{reason}\"}}");
        let counted = figure(admin, "weir_control_plane_refused_total", &label).await?;
        assert_eq!(counted, 2.0, "{reason}");
    }

    // A token dies with its pod. The API server remembers what it said for ten seconds.
    let orphaned = agent_token(&cluster, &pods[1]).await?;
    let told = discover(at, &roots, Some(&orphaned), "b").await?;
    assert_eq!(told, Told::Something);
    cluster
        .kubectl(&["-n", NAMESPACE, "delete", "pod", &pods[1], "--force"])
        .await?;
    eventually_within(
        PATIENCE,
        "the pod's token to be refused",
        async || match discover(at, &roots, Some(&orphaned), "b").await {
            Ok(Told::Nothing(UNAUTHENTICATED, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    control_plane.shutdown().await;
    cluster.shutdown().await
}

#[tokio::test]
async fn while_the_api_server_is_away_nobody_new_is_let_in_and_afterwards_all_are() -> Result<()> {
    let Some(cluster) = cluster().await? else {
        return Ok(());
    };
    let pod = agent_pod(&cluster, "a").await?;
    let control_plane = control_plane(&cluster, "one", Lifetimes::default()).await?;
    let roots = roots(&cluster).await?;
    let at = control_plane.grpc_addr();
    let token = agent_token(&cluster, &pod).await?;
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("ca.crt"), &roots)?;
    std::fs::write(directory.path().join("token"), &token)?;
    let agent = agent("a", at, directory.path()).await?;
    agent.synced().await;

    cluster.stop_api_server()?;
    let Told::Nothing(code, message) = discover(at, &roots, Some(&token), "a").await? else {
        anyhow::bail!("let in without a review");
    };
    assert_eq!(code, UNAVAILABLE, "{message}");
    assert!(message.contains("try again"), "{message}");
    // Whoever is in stays in.
    let connected = figure(agent.admin_addr(), "weir_connected_to_control_plane", "").await?;
    assert_eq!(connected, 1.0);

    cluster.start_api_server().await?;
    agent.shutdown().await;
    eventually_within(PATIENCE, "a review", async || {
        match discover(at, &roots, Some(&token), "a").await {
            Ok(Told::Something) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    control_plane.shutdown().await;
    cluster.shutdown().await
}

/// The same token as the API server would have made it two hours ago.
fn expired(cluster: &Cluster, token: &str) -> Result<String> {
    let mut parts = token.split('.');
    let (header, claims) = (parts.next(), parts.next());
    let (header, claims) = header.zip(claims).context("a token has parts")?;
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    for claim in ["exp", "iat", "nbf"] {
        let at = claims[claim].as_i64().context("a time")?;
        claims[claim] = (at - 7200).into();
    }
    let claims = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims)?);
    let signed = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(signer(cluster)?.sign(signed.as_bytes())?);
    Ok(format!("{signed}.{signature}"))
}

/// With what the API server signs tokens.
fn signer(cluster: &Cluster) -> Result<KeyPair> {
    let key = cluster.ca_file().with_file_name("service-accounts.key");
    let pem = std::fs::read_to_string(&key).with_context(|| key.display().to_string())?;
    Ok(KeyPair::from_pem_and_sign_algo(&pem, &PKCS_RSA_SHA256)?)
}
