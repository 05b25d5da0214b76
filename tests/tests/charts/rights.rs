//! What the charts' ServiceAccounts and roles may do, as the API server sees it.

use std::collections::BTreeSet;
use std::iter;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use weir_tests::eventually;
use weir_tests::kubernetes::Cluster;

use crate::NAMESPACE;
use crate::installed::install;

/// What the control plane may do in every namespace; after a space, the one object that it is about.
const EVERYWHERE: &[(&str, &str)] = &[
    (
        "circuitbreakers.weir.dev",
        "get list watch create patch delete",
    ),
    ("circuitbreakers/status.weir.dev", "patch"),
    ("resiliencepolicies.weir.dev", "get list watch"),
    ("resiliencepolicies/status.weir.dev", "patch"),
    ("events.events.k8s.io", "create patch"),
    ("services", "get list watch"),
    ("endpointslices.discovery.k8s.io", "get list watch"),
    ("namespaces", "get list watch"),
    ("pods", "list watch"),
    ("nodes", "list watch"),
    ("tokenreviews.authentication.k8s.io", "create"),
    (
        "customresourcedefinitions.apiextensions.k8s.io circuitbreakers.weir.dev",
        "get",
    ),
    (
        "customresourcedefinitions.apiextensions.k8s.io resiliencepolicies.weir.dev",
        "get",
    ),
    (
        "clusterroles.rbac.authorization.k8s.io weir-control-plane",
        "get",
    ),
];

/// And besides in its own.
const AT_HOME: &[(&str, &str)] = &[
    (
        "leases.coordination.k8s.io weir-control-plane",
        "get update",
    ),
    ("secrets weir-ca", "get update"),
    ("configmaps weir-ca", "get update"),
];

const VIEWER: &[(&str, &str)] = &[
    ("circuitbreakers.weir.dev", "get list watch"),
    ("resiliencepolicies.weir.dev", "get list watch"),
];

const EDITOR: &[(&str, &str)] = &[
    ("circuitbreakers.weir.dev", "get list watch"),
    (
        "resiliencepolicies.weir.dev",
        "get list watch create update patch delete deletecollection",
    ),
];

const OPERATOR: &[(&str, &str)] = &[
    ("circuitbreakers.weir.dev", "get list watch update patch"),
    ("resiliencepolicies.weir.dev", "get list watch"),
];

/// Resource, with its group and an object where it is about one; and verb.
type Rights = BTreeSet<(String, String)>;

fn table(lines: &[(&str, &str)]) -> Rights {
    let verbs = |(resource, verbs): &(&str, &str)| {
        let resource = (*resource).to_owned();
        let verbs: Vec<_> = verbs.split(' ').map(str::to_owned).collect();
        verbs.into_iter().map(move |verb| (resource.clone(), verb))
    };
    lines.iter().flat_map(verbs).collect()
}

fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().into_iter().flatten();
    list.map(|text| text.as_str().unwrap()).collect()
}

/// Everything that a user may do in a namespace.
async fn rights(cluster: &Cluster, user: &str, namespace: &str) -> Rights {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    });
    let user = format!("--as={user}");
    // kubectl would read all definitions for its own validation, which not everybody may.
    let unread = "--validate=ignore";
    let create = ["create", "--filename=-", "--output=json", unread, &user];
    let answer = cluster.kubectl_in(&create, &review.to_string()).await;
    let answer: Value = serde_json::from_str(&answer.unwrap()).unwrap();
    let status = &answer["status"];
    assert_eq!(status["incomplete"], false, "{status}");
    let mut rights = Rights::new();
    for rule in status["resourceRules"].as_array().unwrap() {
        let mut objects = texts(&rule["resourceNames"]);
        if objects.is_empty() {
            objects.push("");
        }
        for (group, resource) in texts(&rule["apiGroups"])
            .into_iter()
            .flat_map(|group| iter::repeat(group).zip(texts(&rule["resources"])))
        {
            for object in &objects {
                let dot = if group.is_empty() { "" } else { "." };
                let space = if object.is_empty() { "" } else { " " };
                let resource = format!("{resource}{dot}{group}{space}{object}");
                let verbs = texts(&rule["verbs"]).into_iter();
                rights.extend(verbs.map(|verb| (resource.clone(), verb.to_owned())));
            }
        }
    }
    for rule in status["nonResourceRules"].as_array().into_iter().flatten() {
        for url in texts(&rule["nonResourceURLs"]) {
            let verbs = texts(&rule["verbs"]).into_iter();
            rights.extend(verbs.map(|verb| (url.to_owned(), verb.to_owned())));
        }
    }
    rights
}

/// What a ServiceAccount of Weir's namespace may do that one without any role may not.
async fn granted(cluster: &Cluster, account: &str, namespace: &str) -> Rights {
    let all = async |account: &str| {
        let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
        rights(cluster, &user, namespace).await
    };
    &all(account).await - &all("default").await
}

/// Nothing if they are the same, else what one has and the other has not.
fn compare(found: &Rights, wanted: &Rights) -> Result<()> {
    let (more, less) = (found - wanted, wanted - found);
    if more.is_empty() && less.is_empty() {
        return Ok(());
    }
    bail!("too much: {more:?}; missing: {less:?}")
}

#[tokio::test]
async fn every_service_account_may_do_what_it_must_and_nothing_more() {
    let Some(cluster) = Cluster::start().await.unwrap() else {
        return;
    };
    install(&cluster, "weir-crds", &[]).await.unwrap();
    let proxy = ["--set", "agent.proxy.enabled=true"];
    install(&cluster, "weir", &proxy).await.unwrap();

    let at_home = &table(EVERYWHERE) | &table(AT_HOME);
    for (account, namespace, wanted) in [
        ("weir-control-plane", "default", table(EVERYWHERE)),
        ("weir-control-plane", NAMESPACE, at_home),
        ("weir-agent", "default", Rights::new()),
        ("weir-agent", NAMESPACE, Rights::new()),
    ] {
        let found = granted(&cluster, account, namespace).await;
        let compared = compare(&found, &wanted);
        assert!(compared.is_ok(), "{account} in {namespace}: {compared:?}");
    }
    // The two are all that the charts make.
    let names = "--output=jsonpath={.items[*].metadata.name}";
    let accounts = ["get", "serviceaccounts", "-n", NAMESPACE, names];
    let accounts = cluster.kubectl(&accounts).await.unwrap();
    assert_eq!(accounts, "default weir-agent weir-control-plane");
    cluster.shutdown().await.unwrap();
}

#[tokio::test]
async fn people_write_policies_with_edit_and_override_breakers_only_as_breaker_operators() {
    let Some(cluster) = Cluster::start().await.unwrap() else {
        return;
    };
    install(&cluster, "weir-crds", &[]).await.unwrap();
    install(&cluster, "weir", &[]).await.unwrap();
    for (role, may) in [
        ("view", VIEWER),
        ("edit", EDITOR),
        ("admin", EDITOR),
        ("weir-breaker-operator", OPERATOR),
    ] {
        let (of, user) = (format!("--clusterrole={role}"), format!("--user={role}er"));
        let bind = ["create", "rolebinding", role, &of, &user];
        cluster.kubectl(&bind).await.unwrap();
        // The controller manager puts aggregated roles together in its own time.
        eventually(role, async || {
            let mut found = rights(&cluster, &format!("{role}er"), "default").await;
            found.retain(|(resource, _)| resource.ends_with(".weir.dev"));
            compare(&found, &table(may))
        })
        .await;
    }
    cluster.shutdown().await.unwrap();
}
