//! What the API server holds of the objects whose status Weir writes. The
//! writer compares with it; nothing is written that is there already.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicObject;
use serde_json::Value;
use tokio::sync::Notify;

use crate::sources::Key;
use crate::store::Collection;

/// Who applies what Weir writes, as `kubectl get --show-managed-fields` shows it.
/// An object of which it wrote more than the status is one that Weir made.
pub(crate) const MANAGER: &str = "weir-control-plane";

/// One object as the server holds it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Live {
    /// Names this very object: one made again under its name has another.
    pub(crate) uid: String,
    /// Its resource version.
    pub(crate) version: u64,
    /// Weir made it.
    pub(crate) made: bool,
    /// An override is written in it that ends then.
    pub(crate) held_until: Option<Timestamp>,
    /// Its status as it is written there.
    pub(crate) status: Value,
}

/// Which object.
pub(crate) type Place = (Collection, Key);

#[derive(Default)]
struct Inner {
    live: HashMap<Place, Live>,
    /// Objects that changed since the writer looked last. Holds no more than
    /// there are objects, and those gone since.
    changed: HashSet<Place>,
}

/// See the module. Watches write it, and so does the writer with what the
/// server answered, which comes before the watch tells it.
#[derive(Default)]
pub(crate) struct Observed {
    inner: Mutex<Inner>,
    news: Notify,
}

impl Observed {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server holds `live`. An older word than the last one is ignored: a
    /// watch may lag behind the answer to a write.
    pub(crate) fn see(&self, collection: Collection, key: &Key, live: Live) {
        self.take(collection, key, live, false);
    }

    /// The same from a list, which is believed whatever was seen before: versions
    /// go back when the server's data was restored.
    pub(crate) fn see_listed(&self, collection: Collection, key: &Key, live: Live) {
        self.take(collection, key, live, true);
    }

    fn take(&self, collection: Collection, key: &Key, live: Live, listed: bool) {
        let mut inner = self.inner();
        let place = (collection, key.clone());
        let old = inner.live.get(&place);
        let is_older = |old: &Live| old.uid == live.uid && old.version > live.version;
        if !listed && old.is_some_and(is_older) {
            return;
        }
        if old == Some(&live) {
            return;
        }
        inner.live.insert(place.clone(), live);
        inner.changed.insert(place);
        drop(inner);
        self.news.notify_one();
    }

    /// The object is gone.
    pub(crate) fn forget(&self, collection: Collection, key: &Key) {
        let mut inner = self.inner();
        let place = (collection, key.clone());
        if inner.live.remove(&place).is_some() {
            inner.changed.insert(place);
            drop(inner);
            self.news.notify_one();
        }
    }

    /// The object as the server holds it.
    pub(crate) fn get(&self, place: &Place) -> Option<Live> {
        self.inner().live.get(place).cloned()
    }

    /// Every object that Weir made, of one collection.
    pub(crate) fn made(&self, collection: Collection) -> Vec<Key> {
        let inner = self.inner();
        let made = inner
            .live
            .iter()
            .filter(|((of, _), live)| *of == collection && live.made);
        made.map(|((_, key), _)| key.clone()).collect()
    }

    /// Waits until some objects changed, and gives them.
    pub(crate) async fn changed(&self) -> HashSet<Place> {
        loop {
            let changed = std::mem::take(&mut self.inner().changed);
            if !changed.is_empty() {
                return changed;
            }
            self.news.notified().await;
        }
    }
}

/// What the server holds, as it says it.
pub(crate) fn live(object: &DynamicObject) -> Live {
    let metadata = &object.metadata;
    let held = object
        .data
        .pointer("/spec/override/expiresAt")
        .and_then(Value::as_str);
    let writers = metadata.managed_fields.iter().flatten();
    let mut ours = writers.filter(|writer| {
        writer.manager.as_deref() == Some(MANAGER) && writer.subresource.is_none()
    });
    Live {
        uid: metadata.uid.clone().unwrap_or_default(),
        version: revision(metadata),
        made: ours.next().is_some(),
        held_until: held.and_then(|held| held.parse().ok()),
        status: object.data.get("status").cloned().unwrap_or(Value::Null),
    }
}

/// The resource version as a number; the server's own are, and they grow.
fn revision(metadata: &ObjectMeta) -> u64 {
    let version = metadata.resource_version.as_deref();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}
