//! How each breaker stands on each node, and over all of them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use weir_proto::v1alpha1 as proto;
use weir_proto::v1alpha1::{BreakerReason, BreakerState};

/// Breakers that one node may report.
pub(super) const MAX_BREAKERS: usize = 4_096;
/// Transitions that are taken from one report; agents keep no more themselves.
const MAX_TRANSITIONS: usize = 4_096;
/// Nodes whose reports are kept.
const MAX_NODES: usize = 10_000;
/// Reports of a node that went away count for this long.
const STALE_AFTER: Duration = Duration::from_secs(30);
/// Characters of a name, message or token that are kept.
const MAX_TEXT: usize = 512;
/// States of one breaker on one node that wait to be shown, each for a moment:
/// one that is through HalfOpen within milliseconds was there all the same.
const MAX_AHEAD: usize = 8;
/// Breakers that are noted one by one until they are looked at.
const MAX_NEWS: usize = 65_536;
/// Characters of a reset's token; the schema takes no more.
const MAX_RESET: usize = 64;
/// The times that a status can hold, in milliseconds since the Unix epoch.
const YEAR_2000: i64 = 946_684_800_000;
const YEAR_3000: i64 = 32_503_679_999_000;
/// Nodes that a status names.
const MAX_OPEN_NODES: usize = 20;

/// Names a breaker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BreakerId {
    pub(crate) namespace: String,
    /// Unique in the namespace, for it begins with the service's name.
    pub(crate) key: String,
}

/// One node's word on one breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) state: BreakerState,
    pub(crate) reason: BreakerReason,
    pub(crate) message: String,
    pub(crate) since_unix_ms: i64,
    pub(crate) failure_percent: u32,
    pub(crate) window_requests: u64,
    pub(crate) request_rate_milli: u64,
    pub(crate) rejected_total: u64,
    pub(crate) shadow: bool,
    pub(crate) observed_reset: String,
}

/// All nodes' words on one breaker; the state is the worst.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Aggregate {
    /// The word of the node that stands for all: of those in the worst state
    /// the first to be (of closed ones the last).
    pub(crate) worst: Word,
    /// Nodes that report it.
    pub(crate) total: u32,
    pub(crate) open: u32,
    pub(crate) half_open: u32,
    /// Nodes on which it is not closed, the worst first, at most 20.
    pub(crate) not_closed: Vec<(String, Word)>,
    /// Over all nodes, weighted by their requests.
    pub(crate) failure_percent: u32,
    pub(crate) request_rate_milli: u64,
    pub(crate) rejected_total: u64,
}

#[derive(Default)]
struct Reports {
    /// Counts the streams that reported; the highest is the one that counts.
    stream: u64,
    /// When its stream ended, `None` while it is there.
    ended: Option<Instant>,
    /// Set until the stream's first report is complete: what it did not name
    /// by then is gone.
    named: Option<Vec<BreakerId>>,
    breakers: HashMap<BreakerId, Word>,
    /// What follows the word that is shown now; the last is the present one.
    ahead: HashMap<BreakerId, VecDeque<Word>>,
    /// Epoch and time of the last transition of each of them: agents tell one
    /// again when they do not know whether it was heard.
    told: HashMap<BreakerId, (u64, i64)>,
}

impl Reports {
    /// Whether a transition was not told before. Of breakers that the node does
    /// not report there are none.
    fn is_news(&mut self, transition: &proto::BreakerTransition) -> bool {
        let Some(id) = breaker_id(transition.id.as_ref()) else {
            return false;
        };
        if !self.breakers.contains_key(&id) {
            return false;
        }
        let now = (transition.epoch, transition.at_unix_ms);
        let last = self.told.entry(id).or_insert((0, i64::MIN));
        // Epochs begin anew with the agent, and then the time tells.
        if now.0 <= last.0 && now.1 <= last.1 {
            return false;
        }
        *last = now;
        true
    }
}

impl Reports {
    /// The breaker now stands as `now`, after it passed through the states that
    /// `passed` ends in.
    fn present(&mut self, id: BreakerId, now: Word, passed: &[&proto::BreakerTransition]) {
        let waiting = self.ahead.remove(&id);
        let is_behind = waiting.is_some();
        let mut words: VecDeque<Word> = waiting.unwrap_or_default();
        // The last transition is the one into the present state.
        let before = passed.split_last().map_or(&[][..], |(_, before)| before);
        if passed.is_empty() {
            words.pop_back();
        }
        words.extend(before.iter().map(|transition| Word {
            state: transition.to(),
            reason: transition.reason(),
            message: bounded(&transition.message),
            since_unix_ms: sane(transition.at_unix_ms),
            ..now.clone()
        }));
        words.push_back(now);
        let excess = words.len().saturating_sub(MAX_AHEAD);
        words.drain(..excess);
        if !is_behind && let Some(first) = words.pop_front() {
            self.breakers.insert(id.clone(), first);
        }
        if !words.is_empty() {
            self.ahead.insert(id, words);
        }
    }
}

/// Breakers of which something new may have been said since the last look.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) ids: HashSet<BreakerId>,
    /// Instead of more than [`MAX_NEWS`].
    pub(crate) all: bool,
}

impl News {
    fn add<'i>(&mut self, ids: impl IntoIterator<Item = &'i BreakerId>) {
        for id in ids {
            if self.ids.len() >= MAX_NEWS {
                self.all = true;
                self.ids.clear();
            }
            if self.all {
                return;
            }
            if !self.ids.contains(id) {
                self.ids.insert(id.clone());
            }
        }
    }
}

/// Reports by node. One lock: a report is taken in within microseconds, at most
/// once a second for each node.
#[derive(Default)]
pub(super) struct Breakers {
    nodes: Mutex<BTreeMap<String, Reports>>,
    /// Locked after `nodes`, never before.
    news: Mutex<News>,
}

impl Breakers {
    fn nodes(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Reports>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<'i>(&self, ids: impl IntoIterator<Item = &'i BreakerId>) {
        self.news
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(ids);
    }

    /// What is new since the last call.
    pub(super) fn news(&self) -> News {
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A stream begins to report for `node`. False: too many nodes report.
    pub(super) fn begin(&self, node: &str, stream: u64) -> bool {
        let mut nodes = self.nodes();
        if nodes.len() >= MAX_NODES && !nodes.contains_key(node) {
            return false;
        }
        let reports = nodes.entry(node.to_owned()).or_default();
        reports.stream = stream;
        reports.ended = None;
        reports.named = Some(Vec::new());
        true
    }

    /// Takes a report in, and gives the transitions that were not told before.
    /// `None`: a newer stream reports for this node.
    pub(super) fn take<'r>(
        &self,
        node: &str,
        stream: u64,
        request: &'r proto::ReportRequest,
    ) -> Option<Vec<&'r proto::BreakerTransition>> {
        let mut nodes = self.nodes();
        let reports = nodes
            .get_mut(node)
            .filter(|reports| reports.stream == stream)?;
        for report in &request.breakers {
            let Some(id) = breaker_id(report.id.as_ref()) else {
                continue;
            };
            if reports.breakers.len() >= MAX_BREAKERS && !reports.breakers.contains_key(&id) {
                continue;
            }
            if let Some(named) = &mut reports.named
                && named.len() < MAX_BREAKERS
            {
                named.push(id.clone());
            }
            // A breaker must be known before its transitions are.
            let unknown = !reports.breakers.contains_key(&id);
            if unknown {
                reports.breakers.insert(id, word(report));
            }
        }
        let news = request.transitions.iter().take(MAX_TRANSITIONS);
        let news: Vec<_> = news.filter(|t| reports.is_news(t)).collect();
        let mut passed: HashMap<BreakerId, Vec<&proto::BreakerTransition>> = HashMap::new();
        for transition in &news {
            if let Some(id) = breaker_id(transition.id.as_ref()) {
                passed.entry(id).or_default().push(transition);
            }
        }
        for report in &request.breakers {
            let Some(id) = breaker_id(report.id.as_ref()) else {
                continue;
            };
            if reports.breakers.contains_key(&id) {
                let passed = passed.remove(&id).unwrap_or_default();
                self.note([&id]);
                reports.present(id, word(report), &passed);
            }
        }
        for id in &request.removed {
            if let Some(id) = breaker_id(Some(id)) {
                reports.breakers.remove(&id);
                reports.ahead.remove(&id);
                self.note([&id]);
            }
        }
        if request.complete
            && let Some(named) = reports.named.take()
        {
            let named: HashSet<_> = named.into_iter().collect();
            self.note(reports.breakers.keys().filter(|id| !named.contains(*id)));
            reports.breakers.retain(|id, _| named.contains(id));
        }
        let Reports {
            breakers,
            ahead,
            told,
            ..
        } = reports;
        told.retain(|id, _| breakers.contains_key(id));
        ahead.retain(|id, _| breakers.contains_key(id));
        Some(news)
    }

    /// The stream ended.
    pub(super) fn end(&self, node: &str, stream: u64, now: Instant) {
        if let Some(reports) = self
            .nodes()
            .get_mut(node)
            .filter(|reports| reports.stream == stream)
        {
            reports.ended = Some(now);
        }
    }

    /// Drops what is too old; whether anything was, and when to come again.
    pub(super) fn forget(&self, now: Instant) -> (bool, Option<Instant>) {
        let mut nodes = self.nodes();
        let before = nodes.len();
        nodes.retain(|_, reports| {
            let keep = reports.ended.is_none_or(|ended| now < ended + STALE_AFTER);
            if !keep {
                self.note(reports.breakers.keys());
            }
            keep
        });
        let next = nodes
            .values()
            .filter_map(|reports| reports.ended)
            .min()
            .map(|ended| ended + STALE_AFTER);
        (nodes.len() != before, next)
    }

    /// Whether the node's first report is complete.
    pub(super) fn has_told(&self, node: &str) -> bool {
        let nodes = self.nodes();
        nodes
            .get(node)
            .is_some_and(|reports| reports.named.is_none() && reports.ended.is_none())
    }

    /// Every breaker that passed through several states moves on by one; whether
    /// any did.
    pub(super) fn step(&self) -> bool {
        let mut moved = false;
        for reports in self.nodes().values_mut() {
            let Reports {
                breakers, ahead, ..
            } = reports;
            ahead.retain(|id, words| {
                if let Some(next) = words.pop_front() {
                    breakers.insert(id.clone(), next);
                    self.note([id]);
                    moved = true;
                }
                !words.is_empty()
            });
        }
        moved
    }

    pub(super) fn aggregate(&self, id: &BreakerId) -> Option<Aggregate> {
        let nodes = self.nodes();
        let mut words: Vec<(&str, &Word)> = nodes
            .iter()
            .filter_map(|(node, reports)| Some((node.as_str(), reports.breakers.get(id)?)))
            .collect();
        words.sort_by_key(|(_, word)| {
            let since = if severity(word.state) == 0 {
                -word.since_unix_ms
            } else {
                word.since_unix_ms
            };
            (std::cmp::Reverse(severity(word.state)), since)
        });
        let worst = (*words.first()?.1).clone();
        let count = |states: &[BreakerState]| {
            u32::try_from(
                words
                    .iter()
                    .filter(|(_, word)| states.contains(&word.state))
                    .count(),
            )
            .unwrap_or(u32::MAX)
        };
        let refusing = [BreakerState::Open, BreakerState::ForcedOpen];
        let requests: u64 = words.iter().map(|(_, word)| word.window_requests).sum();
        let failures: u64 = words
            .iter()
            .map(|(_, word)| word.window_requests * u64::from(word.failure_percent))
            .sum();
        Some(Aggregate {
            total: u32::try_from(words.len()).unwrap_or(u32::MAX),
            open: count(&refusing),
            half_open: count(&[BreakerState::HalfOpen]),
            not_closed: words
                .iter()
                .filter(|(_, word)| severity(word.state) > 0)
                .take(MAX_OPEN_NODES)
                .map(|(node, word)| ((*node).to_owned(), (*word).clone()))
                .collect(),
            failure_percent: match failures.checked_div(requests) {
                Some(percent) => u32::try_from(percent).unwrap_or(100),
                None => worst.failure_percent,
            },
            request_rate_milli: words.iter().map(|(_, word)| word.request_rate_milli).sum(),
            rejected_total: words.iter().map(|(_, word)| word.rejected_total).sum(),
            worst,
        })
    }
}

/// Higher is worse for those who call.
fn severity(state: BreakerState) -> u8 {
    match state {
        BreakerState::ForcedOpen => 4,
        BreakerState::Open => 3,
        BreakerState::HalfOpen => 2,
        BreakerState::ForcedClosed => 1,
        BreakerState::Closed | BreakerState::Unspecified => 0,
    }
}

/// `None` where it names nothing, or more than a name can be.
pub(super) fn breaker_id(id: Option<&proto::BreakerId>) -> Option<BreakerId> {
    let id = id?;
    let named = !id.namespace.is_empty() && !id.key.is_empty();
    (named && id.namespace.len() <= MAX_TEXT && id.key.len() <= MAX_TEXT).then(|| {
        // A consumer's is in its own namespace.
        let (namespace, key) = id.key.split_once('/').unwrap_or((&id.namespace, &id.key));
        BreakerId {
            namespace: namespace.to_owned(),
            key: key.to_owned(),
        }
    })
}

/// A time that can be written into a status: a node's clock may be anywhere.
fn sane(unix_ms: i64) -> i64 {
    unix_ms.clamp(YEAR_2000, YEAR_3000)
}

fn word(report: &proto::BreakerReport) -> Word {
    Word {
        state: report.state(),
        reason: report.reason(),
        message: bounded(&report.message),
        since_unix_ms: sane(report.since_unix_ms),
        failure_percent: report.failure_percent.min(100),
        window_requests: report.window_requests.min(u64::from(u32::MAX)),
        request_rate_milli: report.request_rate_milli.min(u64::from(u32::MAX) * 1_000),
        rejected_total: report.rejected_total.min(1 << 53),
        shadow: report.shadow,
        observed_reset: report.observed_reset.chars().take(MAX_RESET).collect(),
    }
}

pub(super) fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(
        key: &str,
        state: BreakerState,
        since: i64,
        percent: u32,
        requests: u64,
    ) -> proto::BreakerReport {
        proto::BreakerReport {
            id: Some(proto::BreakerId {
                namespace: "shop".into(),
                service: "payments".into(),
                key: key.into(),
            }),
            state: state.into(),
            since_unix_ms: YEAR_2000 + since,
            failure_percent: percent,
            window_requests: requests,
            rejected_total: 1,
            ..Default::default()
        }
    }

    fn request(breakers: Vec<proto::BreakerReport>, complete: bool) -> proto::ReportRequest {
        proto::ReportRequest {
            breakers,
            complete,
            ..Default::default()
        }
    }

    fn id() -> BreakerId {
        BreakerId {
            namespace: "shop".into(),
            key: "payments".into(),
        }
    }

    #[test]
    fn the_worst_node_stands_for_all_and_figures_are_pooled() {
        let breakers = Breakers::default();
        for (node, state, since, percent, requests) in [
            ("a", BreakerState::Closed, 1, 0, 300),
            ("b", BreakerState::Open, 9, 80, 100),
            ("c", BreakerState::HalfOpen, 5, 0, 0),
        ] {
            assert!(breakers.begin(node, 1));
            assert!(
                breakers
                    .take(
                        node,
                        1,
                        &request(
                            vec![report("payments", state, since, percent, requests)],
                            true
                        )
                    )
                    .is_some()
            );
        }
        let all = breakers.aggregate(&id()).unwrap();
        assert_eq!(
            (all.worst.state, all.worst.since_unix_ms),
            (BreakerState::Open, YEAR_2000 + 9)
        );
        assert_eq!(
            (
                all.total,
                all.open,
                all.half_open,
                all.failure_percent,
                all.rejected_total
            ),
            (3, 1, 1, 20, 3)
        );
        let nodes: Vec<&str> = all
            .not_closed
            .iter()
            .map(|(node, _)| node.as_str())
            .collect();
        assert_eq!(nodes, ["b", "c"]);
    }

    #[test]
    fn what_a_complete_first_report_does_not_name_is_gone() {
        let breakers = Breakers::default();
        breakers.begin("a", 1);
        let both = vec![
            report("payments", BreakerState::Open, 1, 0, 0),
            report("old", BreakerState::Open, 1, 0, 0),
        ];
        breakers.take("a", 1, &request(both, true));
        breakers.begin("a", 2);
        breakers.take(
            "a",
            2,
            &request(
                vec![report("payments", BreakerState::Closed, 2, 0, 0)],
                true,
            ),
        );
        assert!(
            breakers
                .aggregate(&BreakerId {
                    namespace: "shop".into(),
                    key: "old".into()
                })
                .is_none()
        );
        assert_eq!(
            breakers.aggregate(&id()).unwrap().worst.state,
            BreakerState::Closed
        );
    }

    #[test]
    fn states_that_passed_between_two_looks_are_shown_one_by_one() {
        let breakers = Breakers::default();
        breakers.begin("a", 1);
        let at = |to: BreakerState, epoch, at| proto::BreakerTransition {
            id: report("payments", to, at, 0, 0).id,
            to: to.into(),
            epoch,
            at_unix_ms: at,
            ..Default::default()
        };
        let mut first = request(
            vec![report("payments", BreakerState::Open, 1, 100, 20)],
            true,
        );
        first.transitions = vec![at(BreakerState::Open, 1, 1)];
        breakers.take("a", 1, &first);
        let state = || breakers.aggregate(&id()).unwrap().worst.state;
        assert_eq!(state(), BreakerState::Open);
        assert!(!breakers.step());
        let mut back = request(
            vec![report("payments", BreakerState::Closed, 3, 0, 0)],
            false,
        );
        back.transitions = vec![
            at(BreakerState::HalfOpen, 2, 2),
            at(BreakerState::Closed, 3, 3),
        ];
        breakers.take("a", 1, &back);
        assert_eq!(state(), BreakerState::HalfOpen);
        // A figure that comes meanwhile does not jump ahead.
        let figures = request(
            vec![report("payments", BreakerState::Closed, 3, 0, 5)],
            false,
        );
        breakers.take("a", 1, &figures);
        assert_eq!(state(), BreakerState::HalfOpen);
        assert!(breakers.step());
        assert_eq!(state(), BreakerState::Closed);
        assert!(!breakers.step());
    }

    #[test]
    fn an_older_stream_of_a_node_is_not_heard() {
        let breakers = Breakers::default();
        breakers.begin("a", 1);
        breakers.begin("a", 2);
        assert!(
            breakers
                .take(
                    "a",
                    1,
                    &request(vec![report("payments", BreakerState::Open, 1, 0, 0)], false)
                )
                .is_none()
        );
        assert!(breakers.aggregate(&id()).is_none());
    }

    #[test]
    fn a_node_keeps_no_more_breakers_than_the_bound() {
        let breakers = Breakers::default();
        breakers.begin("a", 1);
        let many = (0..MAX_BREAKERS + 10)
            .map(|n| report(&format!("b{n}"), BreakerState::Closed, 1, 0, 0))
            .collect();
        breakers.take("a", 1, &request(many, true));
        assert_eq!(breakers.nodes()["a"].breakers.len(), MAX_BREAKERS);
    }

    #[test]
    fn reports_of_a_node_that_left_count_for_a_while_and_no_longer() {
        let breakers = Breakers::default();
        let now = Instant::now();
        breakers.begin("a", 1);
        breakers.take(
            "a",
            1,
            &request(vec![report("payments", BreakerState::Open, 1, 0, 0)], true),
        );
        breakers.end("a", 1, now);
        assert_eq!(breakers.forget(now), (false, Some(now + STALE_AFTER)));
        assert!(breakers.aggregate(&id()).is_some());
        assert_eq!(breakers.forget(now + STALE_AFTER), (true, None));
        assert!(breakers.aggregate(&id()).is_none());
    }

    #[test]
    fn a_transition_that_is_told_again_is_no_news_and_neither_is_one_of_an_unknown_breaker() {
        let transition = |key: &str, epoch, at| proto::BreakerTransition {
            id: Some(proto::BreakerId {
                namespace: "shop".into(),
                service: "payments".into(),
                key: key.into(),
            }),
            epoch,
            at_unix_ms: at,
            ..Default::default()
        };
        let breakers = Breakers::default();
        assert!(breakers.begin("a", 1));
        let mut first = request(
            vec![report("payments", BreakerState::Open, 0, 100, 20)],
            true,
        );
        first.transitions = vec![transition("payments", 1, 10), transition("odd", 1, 10)];
        let told = |request: &proto::ReportRequest| breakers.take("a", 1, request).map(|n| n.len());
        assert_eq!(told(&first), Some(1));
        assert_eq!(told(&first), Some(0), "it was told before");
        first.transitions = vec![transition("payments", 1, 10), transition("payments", 2, 20)];
        assert_eq!(told(&first), Some(1));
        first.transitions = vec![transition("payments", 1, 30)];
        assert_eq!(told(&first), Some(1), "the agent began anew");
    }
}
