//! Events of Kubernetes: each change of a breaker's state, told on the policy
//! and on the Service, and refusals by agents.
//!
//! An Event's name follows from what happened, and so it cannot be made twice,
//! whichever replica tells it. What happens again to the same object within
//! two minutes is counted on the Event that is there.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use super::budget::Bucket;
use crate::events::Severity;

/// What happens again within it is counted on the Event that is there.
const AGAIN: Duration = Duration::from_secs(120);
/// A count is written no more often.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// Events that may be counted on; of more the oldest are forgotten.
const MAX_OPEN: usize = 4_096;
/// Bytes of a note; the API server takes 1,024.
const MAX_NOTE: usize = 1_000;
/// Characters of the object's name in that of the Event, which may have 253.
const MAX_NAME: usize = 200;
/// Events a second, and at once.
const RATE: (u32, u32) = (10, 100);

/// Something to tell of one object.
#[derive(Clone, Debug)]
pub(super) struct News {
    /// On which object.
    pub(super) regarding: ObjectReference,
    /// What else it is about.
    pub(super) related: Option<ObjectReference>,
    pub(super) severity: Severity,
    /// One word of a closed set.
    pub(super) reason: &'static str,
    pub(super) note: String,
    /// The same for the same happening, however often it is told.
    pub(super) identity: String,
}

/// An Event that was made, and how often it happened.
#[derive(Debug)]
struct Told {
    namespace: String,
    name: String,
    /// What happened last: told again, it is a second try to write, and no more.
    identity: String,
    count: i32,
    /// The count that the server has, and since when.
    said: i32,
    written: Instant,
    last: Instant,
}

impl Told {
    fn count(&mut self, now: Instant) -> Telling {
        self.said = self.count;
        self.written = now;
        Telling::Count {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            count: self.count,
        }
    }
}

/// What to do at the API server.
#[derive(Clone, Debug)]
pub(super) enum Telling {
    Make(Box<Event>),
    Count {
        namespace: String,
        name: String,
        count: i32,
    },
}

/// Decides what is told.
pub(super) struct Teller {
    told: HashMap<(String, &'static str), Told>,
    bucket: Bucket,
    instance: String,
}

impl Teller {
    /// `instance`: the Pod that tells.
    pub(super) fn new(instance: &str, now: Instant) -> Teller {
        Teller {
            told: HashMap::new(),
            bucket: Bucket::new(RATE.0, RATE.1, now),
            instance: instance.to_owned(),
        }
    }

    /// What to do about `news`; `None`: it is counted and told later, or there
    /// is too much to tell.
    pub(super) fn tell(&mut self, news: News, now: Instant) -> Option<Telling> {
        let key = (
            news.regarding.uid.clone().unwrap_or_default() + &news.identity_of_subject(),
            news.reason,
        );
        if let Some(told) = self
            .told
            .get_mut(&key)
            .filter(|told| now < told.last + AGAIN)
        {
            if told.identity == news.identity {
                return None;
            }
            told.identity = news.identity;
            told.count += 1;
            told.last = now;
            if now < told.written + COUNT_EVERY || !self.bucket.take(now) {
                return None;
            }
            return Some(told.count(now));
        }
        if !self.bucket.take(now) {
            return None;
        }
        let identity = news.identity.clone();
        let event = self.event(news);
        if self.told.len() >= MAX_OPEN {
            self.told.retain(|_, told| now < told.last + AGAIN);
        }
        if self.told.len() < MAX_OPEN {
            let told = Told {
                namespace: event.metadata.namespace.clone().unwrap_or_default(),
                name: event.metadata.name.clone().unwrap_or_default(),
                identity,
                count: 1,
                said: 1,
                written: now,
                last: now,
            };
            self.told.insert(key, told);
        }
        Some(Telling::Make(Box::new(event)))
    }

    /// Counts that were not told when they grew and may be told now.
    pub(super) fn counts(&mut self, now: Instant) -> Vec<Telling> {
        let mut due = Vec::new();
        for told in self.told.values_mut() {
            let is_due = told.said != told.count && now >= told.written + COUNT_EVERY;
            if is_due && self.bucket.take(now) {
                due.push(told.count(now));
            }
        }
        due
    }

    /// When [`Teller::counts`] may have something.
    pub(super) fn due(&self) -> Option<Instant> {
        let behind = self.told.values().filter(|told| told.said != told.count);
        let due = behind.map(|told| told.written + COUNT_EVERY).min()?;
        Some(due.max(self.bucket.next()))
    }

    fn event(&self, news: News) -> Event {
        let uid = news.regarding.uid.clone().unwrap_or_default();
        let hash = xxhash_rust::xxh3::xxh3_64(
            format!("{uid} {} {}", news.reason, news.identity).as_bytes(),
        );
        let object = news.regarding.name.clone().unwrap_or_default();
        let kind = match news.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{hash:016x}", start(&object, MAX_NAME))),
                namespace: news.regarding.namespace.clone(),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(k8s_openapi::jiff::Timestamp::now())),
            action: Some(news.reason.to_owned()),
            reason: Some(news.reason.to_owned()),
            regarding: Some(news.regarding),
            related: news.related,
            note: Some(start(&news.note, MAX_NOTE).to_owned()),
            type_: Some(kind.to_owned()),
            reporting_controller: Some("weir.dev/control-plane".to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        }
    }
}

/// The beginning of `text`, in so many bytes at most.
fn start(text: &str, bytes: usize) -> &str {
    let fits = text.char_indices().map(|(at, char)| at + char.len_utf8());
    let end = fits.take_while(|end| *end <= bytes).last();
    &text[..end.unwrap_or(0)]
}

impl News {
    /// What it is about besides the object: two breakers of one policy are two
    /// stories.
    fn identity_of_subject(&self) -> String {
        let related = self.related.as_ref();
        related
            .and_then(|related| related.name.clone())
            .unwrap_or_default()
    }
}

/// Does it.
pub(super) async fn carry_out(client: &Client, telling: Telling) -> Result<(), kube::Error> {
    let done = match telling {
        Telling::Make(event) => {
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
            api.create(&PostParams::default(), &event).await.map(drop)
        }
        Telling::Count {
            namespace,
            name,
            count,
        } => {
            let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
            let now = k8s_openapi::jiff::Timestamp::now();
            let series = json!({"series": {"count": count, "lastObservedTime": MicroTime(now)}});
            api.patch(&name, &PatchParams::default(), &Patch::Merge(&series))
                .await
                .map(drop)
        }
    };
    match done {
        // It was told already; or its object, or it itself, is gone.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(reason: &'static str, identity: &str) -> News {
        News {
            regarding: ObjectReference {
                kind: Some("Service".into()),
                namespace: Some("shop".into()),
                name: Some("payments".into()),
                uid: Some("u".into()),
                ..ObjectReference::default()
            },
            related: None,
            severity: Severity::Warning,
            reason,
            note: "61% of 240 requests failed".into(),
            identity: identity.into(),
        }
    }

    fn name(telling: Option<Telling>) -> String {
        match telling {
            Some(Telling::Make(event)) => event.metadata.name.unwrap(),
            other => panic!("not made: {other:?}"),
        }
    }

    #[test]
    fn two_replicas_that_tell_the_same_make_the_same_event() {
        let now = Instant::now();
        let of = |replica: &str, identity| {
            name(Teller::new(replica, now).tell(news("CircuitOpened", identity), now))
        };
        assert_eq!(of("a", "Open 17"), of("b", "Open 17"));
        assert_ne!(of("a", "Open 17"), of("a", "Open 18"));
    }

    #[test]
    fn what_happens_again_is_counted_on_the_event_that_is_there() {
        let now = Instant::now();
        let mut teller = Teller::new("a", now);
        let first = name(teller.tell(news("CircuitOpened", "1"), now));
        assert!(teller.tell(news("CircuitOpened", "2"), now).is_none());
        assert!(
            teller.tell(news("CircuitOpened", "2"), now).is_none(),
            "a second try"
        );
        name(teller.tell(news("CircuitClosed", "3"), now));
        match teller.tell(news("CircuitOpened", "4"), now + COUNT_EVERY) {
            Some(Telling::Count { name, count, .. }) => {
                assert_eq!((name, count), (first.clone(), 3))
            }
            other => panic!("not counted: {other:?}"),
        }
        assert!(
            teller
                .tell(news("CircuitOpened", "4b"), now + COUNT_EVERY)
                .is_none()
        );
        let due = teller.due().unwrap();
        assert_eq!(due, now + COUNT_EVERY + COUNT_EVERY);
        assert!(matches!(
            teller.counts(due)[..],
            [Telling::Count { count: 4, .. }]
        ));
        assert_eq!(teller.due(), None);
        let later = now + COUNT_EVERY + AGAIN;
        assert_ne!(name(teller.tell(news("CircuitOpened", "5"), later)), first);
    }
}
