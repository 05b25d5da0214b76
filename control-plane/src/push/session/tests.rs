use super::super::Encoded;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn service(name: &str, port: u32) -> (ResourceId, Arc<Encoded>) {
    let ports = vec![proto::Port {
        number: port,
        ..Default::default()
    }];
    let body = proto::ServiceConfig {
        namespace: "shop".into(),
        name: name.into(),
        ports,
        ..Default::default()
    };
    (
        ResourceId::service("shop", name),
        Arc::new(Encoded::new(&body, Vec::new())),
    )
}

fn endpoints(name: &str, address: &str) -> (ResourceId, Arc<Encoded>) {
    let endpoints = vec![proto::Endpoint {
        address: address.into(),
        ..Default::default()
    }];
    let ports = vec![proto::PortEndpoints {
        port: 80,
        endpoints,
    }];
    let body = proto::Endpoints {
        namespace: "shop".into(),
        name: name.into(),
        ports,
    };
    (
        ResourceId::endpoints("shop", name),
        Arc::new(Encoded::new(&body, Vec::new())),
    )
}

fn catalog(resources: impl IntoIterator<Item = (ResourceId, Arc<Encoded>)>) -> Arc<Catalog> {
    Arc::new(Catalog {
        resources: resources.into_iter().collect(),
        ..Catalog::default()
    })
}

fn holding(held: impl IntoIterator<Item = proto::Held>) -> proto::Hello {
    proto::Hello {
        held: held.into_iter().collect(),
        ..proto::Hello::default()
    }
}

fn ack(nonce: u64) -> proto::Ack {
    proto::Ack {
        nonce,
        rejections: Vec::new(),
    }
}

fn names(response: &proto::DiscoverResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}

/// A new agent that was sent, and enforces, all of `catalog`.
fn synced(catalog: &Arc<Catalog>, now: Instant) -> Session {
    let mut session = Session::new(&proto::Hello::default(), SECOND);
    while let Some(response) = session.next(catalog, now) {
        session.answer(&ack(response.nonce));
    }
    assert!(session.is_synced());
    session
}

#[test]
fn a_new_agent_gets_everything_and_is_told_that_it_is_synced() {
    let now = Instant::now();
    let catalog = catalog([
        service("a", 1),
        service("b", 1),
        endpoints("a", "10.0.0.1:80"),
    ]);
    let mut session = Session::new(&proto::Hello::default(), SECOND);
    let first = session.next(&catalog, now).unwrap();
    assert_eq!((first.nonce, first.synced), (1, true));
    assert_eq!(names(&first), ["shop/a", "shop/a", "shop/b"]);
    assert_eq!(session.next(&catalog, now), None);
    let Answer::Taken(taken) = session.answer(&ack(1)) else {
        panic!("stale")
    };
    assert!(taken.synced && taken.enforced.len() == 3 && taken.refused.is_empty());
    assert_eq!(session.next(&catalog, now), None);
}

#[test]
fn an_agent_that_holds_everything_is_only_told_that_it_is_synced() {
    let now = Instant::now();
    let (id, resource) = service("a", 1);
    let held = proto::Held {
        kind: id.kind.into(),
        name: id.name.to_string(),
        version: resource.version.to_string(),
    };
    let catalog = catalog([(id, resource)]);
    let mut session = Session::new(&holding([held]), SECOND);
    let response = session.next(&catalog, now).unwrap();
    assert!(response.synced && response.resources.is_empty() && response.removed.is_empty());
}

#[test]
fn what_went_while_the_agent_was_away_is_removed() {
    let held = proto::Held {
        kind: ResourceKind::Service.into(),
        name: "shop/old".into(),
        version: "1".into(),
    };
    let mut session = Session::new(&holding([held]), SECOND);
    let response = session.next(&Arc::default(), Instant::now()).unwrap();
    assert_eq!(response.removed[0].name, "shop/old");
    session.answer(&ack(1));
    assert!(session.holding().enforced.is_empty());
}

#[test]
fn changes_merge_while_an_answer_is_awaited() {
    let now = Instant::now();
    let mut session = synced(&catalog([service("a", 1)]), now);
    let sent = session.next(&catalog([service("a", 2)]), now).unwrap();
    assert_eq!(session.next(&catalog([service("a", 3)]), now), None);
    let latest = catalog([service("a", 4), service("b", 1)]);
    session.answer(&ack(sent.nonce));
    let next = session.next(&latest, now).unwrap();
    assert_eq!(names(&next), ["shop/a", "shop/b"]);
    assert_eq!(
        next.resources[0].version,
        *latest.resources[&ResourceId::service("shop", "a")].version
    );
}

#[test]
fn an_answer_to_another_nonce_changes_nothing() {
    let now = Instant::now();
    let all = catalog([service("a", 1)]);
    let mut session = Session::new(&proto::Hello::default(), SECOND);
    session.next(&all, now).unwrap();
    assert_eq!(session.answer(&ack(7)), Answer::Stale);
    assert!(session.is_waiting() && session.holding().enforced.is_empty());
    session.answer(&ack(1));
    assert_eq!(session.answer(&ack(1)), Answer::Stale);
}

#[test]
fn a_refused_resource_is_kept_back_until_it_changes() {
    let now = Instant::now();
    let (id, resource) = service("a", 1);
    let first = catalog([(id.clone(), resource), service("b", 1)]);
    let mut session = Session::new(&proto::Hello::default(), SECOND);
    session.next(&first, now).unwrap();
    let rejection = proto::Rejection {
        kind: id.kind.into(),
        name: id.name.to_string(),
        message: "no".into(),
        ..Default::default()
    };
    session.answer(&proto::Ack {
        nonce: 1,
        rejections: vec![rejection],
    });
    assert_eq!(session.holding().refused[&id].message, "no");
    assert!(!session.holding().enforced.contains_key(&id));
    assert_eq!(session.next(&first, now), None);
    let second = catalog([service("a", 2), service("b", 1)]);
    let retry = session.next(&second, now).unwrap();
    assert_eq!(names(&retry), ["shop/a"]);
    session.answer(&ack(retry.nonce));
    assert!(session.holding().refused.is_empty());
}

#[test]
fn a_resource_is_encoded_once_however_many_agents_get_it() {
    let now = Instant::now();
    let all = catalog([service("a", 1), endpoints("a", "10.0.0.1:80")]);
    let bodies = || {
        let response = Session::new(&proto::Hello::default(), SECOND)
            .next(&all, now)
            .unwrap();
        let bodies = response
            .resources
            .iter()
            .map(|resource| resource.body.as_ptr());
        bodies.collect::<Vec<_>>()
    };
    let first = bodies();
    assert_eq!(first.len(), 2);
    assert_eq!(first, bodies(), "both agents get the same bytes in memory");
}

#[test]
fn endpoints_go_at_once_first_and_then_once_a_second_while_policies_go_at_once() {
    let now = Instant::now();
    let mut session = synced(
        &catalog([service("a", 1), endpoints("a", "10.0.0.1:80")]),
        now,
    );
    let moved = catalog([service("a", 1), endpoints("a", "10.0.0.2:80")]);
    assert_eq!(session.next(&moved, now), None);
    assert_eq!(session.due(&moved), Some(now + SECOND));
    let both = catalog([service("a", 2), endpoints("a", "10.0.0.2:80")]);
    let policy = session.next(&both, now).unwrap();
    assert_eq!(policy.resources.len(), 1);
    session.answer(&ack(policy.nonce));
    let later = session.next(&both, now + SECOND).unwrap();
    assert_eq!(later.resources[0].kind(), ResourceKind::Endpoints);
}

#[test]
fn the_first_endpoints_of_a_new_service_do_not_wait() {
    let now = Instant::now();
    let first = [service("a", 1), endpoints("a", "10.0.0.1:80")];
    let mut session = synced(&catalog(first.clone()), now);
    let new = [service("b", 1), endpoints("b", "10.0.0.2:80")];
    let response = session.next(&catalog(first.into_iter().chain(new)), now);
    assert_eq!(names(&response.unwrap()), ["shop/b", "shop/b"]);
}

#[test]
fn a_large_synchronisation_is_split_and_only_its_last_part_completes_it() {
    let now = Instant::now();
    let all = catalog((0..2_000).map(|n| service(&format!("service-{n:040}"), 1)));
    let mut session = Session::new(&proto::Hello::default(), SECOND);
    let mut parts = Vec::new();
    while let Some(response) = session.next(&all, now) {
        assert!(
            response.encoded_len() <= MAX_RESPONSE_BYTES,
            "{} bytes",
            response.encoded_len()
        );
        session.answer(&ack(response.nonce));
        parts.push(response.synced);
    }
    assert!(parts.len() > 3);
    assert_eq!(parts.iter().filter(|synced| **synced).count(), 1);
    assert_eq!(parts.last(), Some(&true));
    assert_eq!(session.holding().enforced.len(), 2_000);
}

#[test]
fn while_a_manifest_cannot_be_read_only_what_is_known_to_be_gone_is_removed() {
    let held = ["unknown", "removed"].map(|name| proto::Held {
        kind: ResourceKind::Service.into(),
        name: format!("shop/{name}"),
        version: "1".into(),
    });
    let removed = [ResourceId::service("shop", "removed")].into();
    let partial = Arc::new(Catalog {
        partial: true,
        removed,
        ..Catalog::default()
    });
    let mut session = Session::new(&holding(held), SECOND);
    let response = session.next(&partial, Instant::now()).unwrap();
    let names: Vec<_> = response
        .removed
        .iter()
        .map(|removed| removed.name.as_str())
        .collect();
    assert_eq!(names, ["shop/removed"]);
    session.answer(&ack(1));
    let response = session.next(&Arc::default(), Instant::now()).unwrap();
    assert_eq!(response.removed[0].name, "shop/unknown");
}

#[test]
fn whatever_changes_meanwhile_an_agent_ends_with_what_is_there() {
    for seed in 0..50 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut now = Instant::now();
        let mut session = Session::new(&proto::Hello::default(), SECOND);
        let mut latest = Catalog::default();
        let mut unanswered = None;
        for step in 0..120 {
            let calm = step >= 100;
            if !calm && rng.bool() {
                let name = ["a", "b", "c", "d"][rng.usize(..4)];
                let before = latest.clone();
                let (id, resource) = match rng.bool() {
                    true => service(name, rng.u32(1..4)),
                    false => endpoints(name, ["10.0.0.1:80", "10.0.0.2:80"][rng.usize(..2)]),
                };
                match rng.u8(..3) {
                    0 => drop(latest.resources.remove(&id)),
                    _ => drop(latest.resources.insert(id, resource)),
                }
                latest.partial = rng.u8(..5) == 0;
                let there = before.resources.keys().chain(&before.removed);
                let gone = there.filter(|id| !latest.resources.contains_key(*id));
                let removed = match latest.partial {
                    true => gone.cloned().collect(),
                    false => BTreeSet::new(),
                };
                latest.removed = removed;
            }
            if calm {
                latest.partial = false;
                latest.removed.clear();
            }
            now += SECOND / 3;
            let catalog = Arc::new(latest.clone());
            if let Some(response) = session.next(&catalog, now) {
                unanswered = Some(response);
            }
            session.due(&catalog);
            if (calm || rng.bool())
                && let Some(response) = unanswered.take()
            {
                session.answer(&ack(response.nonce));
            }
        }
        let there = latest.resources.iter();
        let there: HashMap<_, _> = there
            .map(|(id, resource)| (id.clone(), Arc::clone(&resource.version)))
            .collect();
        assert_eq!(session.holding().enforced, there, "seed {seed}");
    }
}

/// The catalog in which node `one` has these Pods.
fn with_pods(before: &Catalog, pods: &[(&str, u8)]) -> Arc<Catalog> {
    let mut catalog = before.clone();
    let pods = pods.iter().map(|(name, version)| {
        let body = proto::Pod {
            name: (*name).to_owned(),
            uid: version.to_string(),
            ..proto::Pod::default()
        };
        let id = ResourceId {
            name: (*name).into(),
            kind: ResourceKind::Pod,
        };
        (id, Arc::new(Encoded::new(&body, Vec::new())))
    });
    let mut of_node = crate::sources::Shared::default();
    of_node.extend(pods);
    catalog.nodes.insert("one".into(), of_node);
    Arc::new(catalog)
}

fn hello(node: &str, features: &[&str]) -> proto::Hello {
    proto::Hello {
        node: node.to_owned(),
        features: features.iter().map(ToString::to_string).collect(),
        ..proto::Hello::default()
    }
}

#[test]
fn an_agent_that_captures_gets_the_pods_of_its_own_node_and_no_other_does() {
    let now = Instant::now();
    let all = with_pods(&catalog([service("a", 1)]), &[("shop/x", 1), ("shop/y", 1)]);
    for (node, features, expected) in [
        (
            "one",
            ["capture"].as_slice(),
            vec!["shop/a", "shop/x", "shop/y"],
        ),
        ("two", &["capture"], vec!["shop/a"]),
        ("one", &[], vec!["shop/a"]),
    ] {
        let mut session = Session::new(&hello(node, features), SECOND);
        let response = session.next(&all, now).unwrap();
        assert!(response.synced);
        assert_eq!(names(&response), expected, "{node} {features:?}");
    }
}

#[test]
fn a_pod_that_comes_changes_or_goes_is_told_at_once() {
    let now = Instant::now();
    let mut session = Session::new(&hello("one", &["capture"]), SECOND);
    let empty = Catalog::default();
    let mut step = |pods: &[(&str, u8)]| {
        let response = session.next(&with_pods(&empty, pods), now).unwrap();
        session.answer(&ack(response.nonce));
        let sent: Vec<String> = names(&response).into_iter().map(str::to_owned).collect();
        let removed = response.removed.into_iter().map(|removed| removed.name);
        (sent, removed.collect::<Vec<_>>())
    };
    let one = |name: &str| vec![name.to_owned()];
    assert_eq!(step(&[("shop/x", 1)]), (one("shop/x"), vec![]));
    assert_eq!(
        step(&[("shop/x", 1), ("shop/y", 1)]),
        (one("shop/y"), vec![])
    );
    assert_eq!(
        step(&[("shop/x", 2), ("shop/y", 1)]),
        (one("shop/x"), vec![])
    );
    assert_eq!(step(&[("shop/x", 2)]), (vec![], one("shop/y")));
    assert_eq!(
        session.next(&with_pods(&empty, &[("shop/x", 2)]), now),
        None
    );
}

#[test]
fn an_agent_that_captures_no_more_is_told_to_drop_its_pods() {
    let held = proto::Held {
        kind: ResourceKind::Pod.into(),
        name: "shop/x".into(),
        version: "1".into(),
    };
    let all = with_pods(&Catalog::default(), &[("shop/x", 1)]);
    let mut session = Session::new(&holding([held]), SECOND);
    let response = session.next(&all, Instant::now()).unwrap();
    assert_eq!(response.removed[0].kind(), ResourceKind::Pod);
}

#[test]
fn an_agent_that_knows_only_ready_endpoints_gets_these_alone() {
    let now = Instant::now();
    let endpoint = |address: &str| proto::Endpoint {
        address: address.into(),
        ..proto::Endpoint::default()
    };
    let all = |unready: bool, terminating: bool| {
        let mut second = endpoint("10.0.0.2:80");
        (second.unready, second.terminating) = (unready, terminating);
        let body = proto::Endpoints {
            namespace: "shop".into(),
            name: "a".into(),
            ports: vec![proto::PortEndpoints {
                port: 80,
                endpoints: vec![endpoint("10.0.0.1:80"), second],
            }],
        };
        let encoded = Arc::new(Encoded::endpoints(&body));
        catalog([(ResourceId::endpoints("shop", "a"), encoded)])
    };
    let addresses = |features: &[&str], catalog: &Arc<Catalog>| {
        let mut session = Session::new(&hello("one", features), SECOND);
        let mut response = session.next(catalog, now).unwrap();
        session.answer(&ack(response.nonce));
        assert_eq!(session.next(catalog, now), None);
        let body = response.resources.remove(0).body;
        proto::Endpoints::decode(body).unwrap().ports[0]
            .endpoints
            .len()
    };
    for (unready, terminating, older) in [(true, false, 1), (false, true, 1), (false, false, 2)] {
        let catalog = all(unready, terminating);
        assert_eq!(addresses(&["endpointConditions"], &catalog), 2);
        assert_eq!(addresses(&[], &catalog), older);
    }
    // One that becomes unready leaves the older agent's list, and nothing else
    // that happens to it is news there.
    let mut session = Session::new(&hello("one", &[]), SECOND);
    for (catalog, is_news) in [
        (all(false, false), true),
        (all(true, false), true),
        (all(false, true), false),
    ] {
        let later = now + SECOND * 5;
        session.endpoints_after = None;
        let response = session.next(&catalog, later);
        assert_eq!(response.is_some(), is_news);
        if let Some(response) = response {
            session.answer(&ack(response.nonce));
        }
    }
}
