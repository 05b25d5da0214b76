use super::*;

const POLICY: &str = "shop/payments";

fn holding(versions: &[(&str, &str)]) -> Holding {
    let enforced = versions
        .iter()
        .map(|(name, version)| {
            let (namespace, name) = name.split_once('/').unwrap();
            (ResourceId::service(namespace, name), Arc::from(*version))
        })
        .collect();
    Holding {
        enforced,
        ..Holding::default()
    }
}

fn wanted(version: &str) -> Vec<(ResourceId, Arc<str>)> {
    vec![(ResourceId::service("shop", "payments"), Arc::from(version))]
}

#[test]
fn what_an_agent_says_it_holds_counts_as_enforced_and_nothing_else_does() {
    let ledger = Arc::new(Ledger::default());
    let _agent = ledger
        .connect("a", &holding(&[(POLICY, "1")]), false)
        .unwrap();
    let nodes = ledger.nodes();
    assert_eq!(nodes[0].verdict(&wanted("1")), Verdict::Enforced);
    assert_eq!(nodes[0].verdict(&wanted("2")), Verdict::Pending);
    assert_eq!(nodes[0].verdict(&[]), Verdict::Enforced);
}

#[test]
fn endpoints_have_no_part_in_what_is_kept() {
    let ledger = Arc::new(Ledger::default());
    let agent = ledger.connect("a", &Holding::default(), false).unwrap();
    let endpoints = (ResourceId::endpoints("shop", "payments"), Arc::from("1"));
    agent.answered(&Taken {
        enforced: vec![endpoints],
        ..Taken::default()
    });
    assert!(lock(&agent.node).holding.enforced.is_empty());
}

#[test]
fn an_agent_that_leaves_is_expected_for_five_minutes_and_then_forgotten() {
    let ledger = Arc::new(Ledger::default());
    drop(ledger.connect("a", &Holding::default(), false).unwrap());
    let now = Instant::now();
    let until = ledger.forget(now).unwrap();
    assert!(!ledger.nodes()[0].connected);
    assert_eq!(ledger.forget(until), None);
    assert!(ledger.nodes().is_empty());
}

#[test]
fn an_agent_that_is_there_is_never_forgotten() {
    let ledger = Arc::new(Ledger::default());
    let _agent = ledger.connect("a", &Holding::default(), false).unwrap();
    assert_eq!(ledger.forget(Instant::now() + 10 * FORGET_AFTER), None);
    assert_eq!(ledger.connected(), 1);
}

#[tokio::test]
async fn a_superseded_stream_is_told_and_changes_nothing_any_more() {
    let ledger = Arc::new(Ledger::default());
    let older = ledger.connect("a", &Holding::default(), false).unwrap();
    let newer = ledger
        .connect("a", &holding(&[(POLICY, "2")]), false)
        .unwrap();
    older.superseded().await;
    let stale = (ResourceId::service("shop", "payments"), Arc::from("1"));
    older.answered(&Taken {
        enforced: vec![stale],
        ..Taken::default()
    });
    drop(older);
    let nodes = ledger.nodes();
    assert!(nodes[0].connected);
    assert_eq!(nodes[0].verdict(&wanted("2")), Verdict::Enforced);
    drop(newer);
    assert_eq!(ledger.connected(), 0);
}

#[test]
fn a_name_that_no_node_can_have_is_refused() {
    let ledger = Arc::new(Ledger::default());
    assert!(ledger.connect("", &Holding::default(), false).is_err());
    assert!(
        ledger
            .connect(&"a".repeat(254), &Holding::default(), false)
            .is_err()
    );
}

impl Ledger {
    /// A stream of reports of `node` begins.
    pub(crate) fn report_begins(&self, node: &str) {
        self.breakers.begin(node, 1);
    }

    /// It says something.
    pub(crate) fn hear(&self, node: &str, report: &weir_proto::v1alpha1::ReportRequest) {
        self.breakers.take(node, 1, report);
    }
}
