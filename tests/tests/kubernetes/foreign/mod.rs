//! Other tools and other people at the same objects: GitOps with server-side apply and prune, every way of kubectl to
//! change something, and what is deleted that should not have been.

mod damage;
mod gitops;
mod people;

use std::time::Duration;

use anyhow::Result;
use weir_tests::kubernetes::weir::Weir;

use crate::story::destination;

/// The garbage collector and the namespace controller take their time.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn other_tools_and_people_work_at_the_objects_and_weir_keeps_to_its_own_fields() -> Result<()>
{
    let Some(weir) = Weir::install(&["node-a"]).await? else {
        return Ok(());
    };
    let (backend, status) = destination().await;
    weir.cluster
        .kubectl(&["create", "namespace", "shop"])
        .await?;
    for name in ["payments", "orders"] {
        weir.service("shop", name, &backend).await?;
    }
    gitops::server_side_apply(&weir, &status).await?;
    people::shown(&weir).await?;
    damage::deleted_and_cleared(&weir).await?;
    gitops::override_by_gitops(&weir, &status).await?;
    people::client_side(&weir, &status).await?;
    people::editors(&weir).await?;
    gitops::prune(&weir).await?;
    damage::namespace_goes(&weir).await?;
    weir.shutdown().await
}

/// A policy as a repository has it.
fn policy(name: &str, request: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\n\
         metadata:\n  name: {name}\n  namespace: shop\n  labels: {{app: shop}}\n  annotations: {{argocd.argoproj.io/sync-wave: '1'}}\n\
         spec:\n  targetRefs: [{{kind: Service, name: {name}}}]\n  timeouts: {{request: {request}}}\n\
         \x20 circuitBreaker: {{minimumRequests: 5, open: {{duration: 10m, maxDuration: 10m}}}}\n"
    )
}
