//! The objects with their status as people read them, and who watches them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::broadcast;

/// Changes that a watcher may fall behind before it is cut off.
const MAX_BEHIND: usize = 1_024;

/// The field that counts the changes.
const VERSION: &str = "resourceVersion";

/// Which objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collection {
    /// `resiliencepolicies`.
    ResiliencePolicies,
    /// `circuitbreakers`.
    CircuitBreakers,
}

impl Collection {
    /// The collection as a path of the API names it.
    pub fn named(plural: &str) -> Option<Collection> {
        match plural {
            "resiliencepolicies" => Some(Collection::ResiliencePolicies),
            "circuitbreakers" => Some(Collection::CircuitBreakers),
            _ => None,
        }
    }

    /// Kind of its objects.
    pub fn kind(self) -> &'static str {
        match self {
            Collection::ResiliencePolicies => "ResiliencePolicy",
            Collection::CircuitBreakers => "CircuitBreaker",
        }
    }
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new, or was there when the watch began.
    Added,
    /// It changed.
    Modified,
    /// It is gone; the object is as it was last.
    Deleted,
}

impl Change {
    /// As watches of Kubernetes say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Added => "ADDED",
            Change::Modified => "MODIFIED",
            Change::Deleted => "DELETED",
        }
    }
}

/// An object and what happened to it.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Whose.
    pub collection: Collection,
    /// What.
    pub change: Change,
    /// Its namespace.
    pub namespace: String,
    /// The whole object, with status and `metadata.resourceVersion`.
    pub object: Arc<Value>,
}

type Key = (Collection, String, String);

#[derive(Default)]
struct Inner {
    revision: u64,
    /// With their resource versions.
    objects: BTreeMap<Key, Arc<Value>>,
}

/// The objects as they are now.
pub struct Store {
    inner: Mutex<Inner>,
    watchers: broadcast::Sender<Changed>,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            inner: Mutex::default(),
            watchers: broadcast::Sender::new(MAX_BEHIND),
        }
    }
}

/// A watch: first what is there, then what changes.
pub struct Watch {
    /// The present state, each as added.
    pub present: Vec<Changed>,
    /// The resource version of the present state.
    pub revision: u64,
    /// What comes after it. One that falls 1,024 changes behind is told so and
    /// must begin anew.
    pub changes: broadcast::Receiver<Changed>,
}

impl Store {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings objects of `collection`, by namespace and name, up to date; `None`:
    /// there is no such object any more.
    pub(crate) fn update(
        &self,
        collection: Collection,
        objects: BTreeMap<(String, String), Option<Value>>,
    ) {
        let mut inner = self.inner();
        for ((namespace, name), object) in objects {
            let key = (collection, namespace, name);
            let Some(mut object) = object else {
                if let Some(gone) = inner.objects.remove(&key) {
                    inner.revision += 1;
                    self.tell(collection, Change::Deleted, key.1, gone);
                }
                continue;
            };
            let change = match inner.objects.get(&key) {
                Some(stored) => {
                    object["metadata"][VERSION] = stored["metadata"][VERSION].clone();
                    if **stored == object {
                        continue;
                    }
                    Change::Modified
                }
                None => Change::Added,
            };
            inner.revision += 1;
            object["metadata"][VERSION] = inner.revision.to_string().into();
            let object = Arc::new(object);
            self.tell(collection, change, key.1.clone(), Arc::clone(&object));
            inner.objects.insert(key, object);
        }
    }

    fn tell(&self, collection: Collection, change: Change, namespace: String, object: Arc<Value>) {
        // An error only says that nobody watches.
        let _ = self.watchers.send(Changed {
            collection,
            change,
            namespace,
            object,
        });
    }

    /// Begins to watch `collection`, in one namespace or in all.
    pub fn watch(&self, collection: Collection, namespace: Option<&str>) -> Watch {
        let inner = self.inner();
        let present = inner
            .objects
            .iter()
            .filter(|((of, within, _), _)| {
                *of == collection && namespace.is_none_or(|namespace| within == namespace)
            })
            .map(|((_, within, _), object)| Changed {
                collection,
                change: Change::Added,
                namespace: within.clone(),
                object: Arc::clone(object),
            })
            .collect();
        Watch {
            present,
            revision: inner.revision,
            changes: self.watchers.subscribe(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Objects by name; 0: there is none.
    fn objects(of: &[(&str, u32)]) -> BTreeMap<(String, String), Option<Value>> {
        let object = |name: &str, n: u32| json!({"metadata": {"name": name}, "n": n});
        of.iter()
            .map(|(name, n)| {
                (
                    ("shop".into(), (*name).into()),
                    (*n > 0).then(|| object(name, *n)),
                )
            })
            .collect()
    }

    #[test]
    fn a_watch_sees_what_is_there_and_then_only_what_changes() {
        let store = Store::default();
        store.update(Collection::CircuitBreakers, objects(&[("a", 1), ("b", 1)]));
        let mut watch = store.watch(Collection::CircuitBreakers, Some("shop"));
        assert_eq!(watch.present.len(), 2);
        assert!(
            store
                .watch(Collection::CircuitBreakers, Some("other"))
                .present
                .is_empty()
        );
        store.update(
            Collection::CircuitBreakers,
            objects(&[("a", 0), ("b", 1), ("c", 1)]),
        );
        store.update(Collection::CircuitBreakers, objects(&[("b", 2), ("c", 1)]));
        let seen: Vec<_> = std::iter::from_fn(|| watch.changes.try_recv().ok())
            .map(|changed| {
                (
                    changed.change,
                    changed.object["metadata"]["resourceVersion"]
                        .as_str()
                        .unwrap()
                        .to_owned(),
                )
            })
            .collect();
        let expected = [
            (Change::Deleted, "1"),
            (Change::Added, "4"),
            (Change::Modified, "5"),
        ];
        assert_eq!(
            seen,
            expected.map(|(change, version)| (change, version.to_owned()))
        );
    }
}
