//! Maps that are handed on whole, often, and of which little changes.

use std::collections::{BTreeMap, btree_map};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A map of which a clone costs nothing until one of the two is changed; only
/// then is it copied, with references to the same values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared<K, V>(Arc<BTreeMap<K, V>>);

impl<K, V> Default for Shared<K, V> {
    fn default() -> Shared<K, V> {
        Shared(Arc::default())
    }
}

impl<K, V> Deref for Shared<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        &self.0
    }
}

impl<K: Clone, V: Clone> DerefMut for Shared<K, V> {
    fn deref_mut(&mut self) -> &mut BTreeMap<K, V> {
        Arc::make_mut(&mut self.0)
    }
}

impl<'m, K, V> IntoIterator for &'m Shared<K, V> {
    type Item = (&'m K, &'m V);
    type IntoIter = btree_map::Iter<'m, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<K: Clone, V: Clone> IntoIterator for Shared<K, V> {
    type Item = (K, V);
    type IntoIter = btree_map::IntoIter<K, V>;

    fn into_iter(self) -> Self::IntoIter {
        Arc::unwrap_or_clone(self.0).into_iter()
    }
}

impl<K: Ord, V> Shared<K, V> {
    /// Whether both are one map, neither of them changed since.
    pub(crate) fn is(&self, other: &Shared<K, V>) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The entries in which `self` and `new` differ, in order, as each has them.
    /// Costs nothing where the two are one, and else a walk through both.
    pub(crate) fn differences<'m>(
        &'m self,
        new: &'m Shared<K, V>,
        same: impl Fn(&V, &V) -> bool,
    ) -> Vec<(&'m K, Option<&'m V>, Option<&'m V>)> {
        if Arc::ptr_eq(&self.0, &new.0) {
            return Vec::new();
        }
        differences(&self.0, &new.0, same)
    }
}

/// As [`Shared::differences`], for any two maps.
pub(crate) fn differences<'m, K: Ord, V>(
    old: &'m BTreeMap<K, V>,
    new: &'m BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) -> Vec<(&'m K, Option<&'m V>, Option<&'m V>)> {
    let mut different = Vec::new();
    let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (olds.peek(), news.peek()) {
            (Some((old, _)), Some((new, _))) => old.cmp(new),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return different,
        };
        let old = olds.next_if(|_| order.is_le());
        let new = news.next_if(|_| order.is_ge());
        match (old, new) {
            (Some((_, old)), Some((_, new))) if same(old, new) => {}
            (Some((key, old)), new) => different.push((key, Some(old), new.map(|(_, new)| new))),
            (None, Some((key, new))) => different.push((key, None, Some(new))),
            (None, None) => return different,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_maps_differ_in_what_came_what_went_and_what_changed() {
        let old: BTreeMap<u8, u8> = BTreeMap::from([(1, 1), (2, 2), (3, 3), (5, 5)]);
        let new: BTreeMap<u8, u8> = BTreeMap::from([(0, 0), (2, 2), (3, 4), (6, 6)]);
        let different = differences(&old, &new, u8::eq);
        let expected = [
            (&0, None, Some(&0)),
            (&1, Some(&1), None),
            (&3, Some(&3), Some(&4)),
            (&5, Some(&5), None),
            (&6, None, Some(&6)),
        ];
        assert_eq!(different, expected);
    }

    #[test]
    fn a_clone_does_not_see_what_changes_after_it() {
        let mut one: Shared<u8, u8> = Shared::default();
        one.insert(1, 1);
        let other = one.clone();
        assert!(one.differences(&other, u8::eq).is_empty());
        one.insert(2, 2);
        assert_eq!(other.len(), 1);
        assert_eq!(one.differences(&other, u8::eq), [(&2, Some(&2), None)]);
    }
}
