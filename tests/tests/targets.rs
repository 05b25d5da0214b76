//! What policies are about, on real sockets: the mesh, and the calls from one
//! namespace.

use anyhow::Result;
use weir_tests::backend::never;
use weir_tests::{Backend, House, Manifests, call, eventually};

/// A policy of namespace `web` for its calls to `shop/payments`; `spec` is YAML,
/// indented by two.
fn of_web(spec: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {{name: payments, namespace: web}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: payments, namespace: shop}}]\n{spec}\n"
    )
}

/// `shop/payments` at `backend` with a policy of its owner and one of `web`.
fn payments(backend: &Backend, owner: &str, web: &str) -> Result<Manifests> {
    let manifests = Manifests::new()?;
    manifests.service("payments", &[backend.address()])?;
    if !owner.is_empty() {
        manifests.policy("payments", owner)?;
    }
    manifests.write("policy-of-web.yaml", &of_web(web))?;
    Ok(manifests)
}

const TRIPS: &str = "  circuitBreaker: {consecutiveFailures: 2, open: {duration: 60s}}";

#[tokio::test]
async fn a_consumers_breaker_opens_for_its_own_calls_and_shows_in_its_own_namespace() -> Result<()>
{
    let backend = Backend::always(500).await;
    let house = House::start_for(payments(&backend, "", TRIPS)?, Some("web")).await?;
    let listener = house.listener("payments").await;
    for _ in 0..2 {
        assert_eq!(call::get(listener, "/").await?.status, 500);
    }
    let refused = call::get(listener, "/").await?;
    assert_eq!(refused.status, 503);
    assert!(
        refused
            .header("proxy-status")
            .contains("web/calls.to.shop.payments"),
        "{refused:?}"
    );
    // The way by name is the same.
    let named = call::send(
        house.proxy()?,
        call::request("GET", "http://payments.shop/", "")?,
    )
    .await?;
    assert_eq!(named.status, 503);
    eventually("the breaker in namespace web", || async {
        let object = house
            .object_in("web", "circuitbreakers", "calls.to.shop.payments")
            .await
            .map_err(|e| e.to_string())?;
        match object["status"]["state"].as_str() {
            Some("Open") => Ok(()),
            _ => Err(object["status"].to_string()),
        }
    })
    .await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn callers_from_elsewhere_never_meet_a_consumers_policy() -> Result<()> {
    for callers in [None, Some("shop"), Some("other")] {
        let backend = Backend::always(500).await;
        let owner = "  timeouts: {request: 20s}";
        let house = House::start_for(payments(&backend, owner, TRIPS)?, callers).await?;
        let listener = house.listener("payments").await;
        for _ in 0..6 {
            assert_eq!(call::get(listener, "/").await?.status, 500, "{callers:?}");
        }
        house.shutdown().await;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_consumer_leaves_out_is_its_owners_with_the_owners_state() -> Result<()> {
    let backend = Backend::always(500).await;
    let manifests = payments(&backend, TRIPS, "  timeouts: {request: 20s}")?;
    let house = House::start_for(manifests, Some("web")).await?;
    let listener = house.listener("payments").await;
    for _ in 0..2 {
        call::get(listener, "/").await?;
    }
    assert_eq!(call::get(listener, "/").await?.status, 503);
    house.breaker_is("payments", "Open").await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_consumers_routes_do_not_lead_past_what_protects_the_destination() -> Result<()> {
    let backend = Backend::with(|_| never()).await;
    let owner = "  timeouts: {request: 60s}\n  routes:\n  - name: reports\n    matches: [{path: {type: PathPrefix, value: /reports}}]\n    \
                 bulkheads: [{name: reports, at: Destination, maxConcurrent: 1}]";
    let web = "  routes:\n  - name: all\n    timeouts: {request: 30s}";
    let house = House::start_for(payments(&backend, owner, web)?, Some("web")).await?;
    let listener = house.listener("payments").await;
    let first = tokio::spawn(async move { call::get(listener, "/reports").await });
    eventually("the first request at the destination", || async {
        match backend.requests() {
            1 => Ok(()),
            n => Err(n),
        }
    })
    .await;
    let refused = call::get(listener, "/reports/2").await?;
    assert!(
        refused
            .header("proxy-status")
            .contains("bulkhead reports is full"),
        "{refused:?}"
    );
    first.abort();
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn a_consumers_policy_that_goes_leaves_the_owners_in_force() -> Result<()> {
    let backend = Backend::always(500).await;
    let manifests = payments(&backend, "  timeouts: {request: 20s}", TRIPS)?;
    let of_web = manifests.path().join("policy-of-web.yaml");
    let house = House::start_for(manifests, Some("web")).await?;
    let listener = house.listener("payments").await;
    for _ in 0..2 {
        call::get(listener, "/").await?;
    }
    assert_eq!(call::get(listener, "/").await?.status, 503);
    std::fs::remove_file(of_web)?;
    eventually("the owner's policy alone", || async {
        match call::get(listener, "/").await {
            Ok(got) if got.status == 500 => Ok(()),
            other => Err(other.map(|got| got.status).map_err(|e| e.to_string())),
        }
    })
    .await;
    house.shutdown().await;
    Ok(())
}

#[tokio::test]
async fn the_mesh_wide_default_holds_from_when_a_namespace_asks_for_it() -> Result<()> {
    let backend = Backend::always(500).await;
    let manifests = Manifests::new()?;
    manifests.service("payments", &[backend.address()])?;
    manifests.write(
        "mesh.yaml",
        &format!(
            "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {{name: defaults, namespace: weir-system}}\nspec:\n  \
             targetRefs: [{{kind: Mesh}}]\n{TRIPS}\n"
        ),
    )?;
    let house = House::start(manifests).await?;
    let listener = house.listener("payments").await;
    for _ in 0..3 {
        assert_eq!(call::get(listener, "/").await?.status, 500);
    }
    house.manifests.write(
        "namespace.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {weir.dev/mesh-policy: enabled}}\n",
    )?;
    eventually("the default to be in force", || async {
        match call::get(listener, "/").await {
            Ok(got) if got.status == 503 => Ok(()),
            other => Err(other.map(|got| got.status).map_err(|e| e.to_string())),
        }
    })
    .await;
    house.breaker_is("payments", "Open").await;
    house.shutdown().await;
    Ok(())
}
