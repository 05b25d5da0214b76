//! Which policy each section comes from: per top-level section, the nearest
//! policy that says anything about it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use weir_crds::v1alpha1::{Mode, ResiliencePolicySpec, Section};

use crate::sources::Key;

/// A policy as the merge sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy<'a> {
    pub(super) key: &'a Key,
    pub(super) spec: &'a ResiliencePolicySpec,
    pub(super) created: Option<&'a Time>,
    pub(super) annotations: Option<&'a BTreeMap<String, String>>,
}

impl Policy<'_> {
    /// "namespace/name".
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.key.0, self.key.1)
    }

    /// Whether the section only decides and counts.
    pub(super) fn is_shadow(&self, section: Section) -> bool {
        self.spec.mode == Mode::Shadow || self.spec.shadow.contains(&section)
    }

    /// Whether it says anything about `item`.
    fn claims(&self, item: Item) -> bool {
        match item {
            Item::Section(section) => {
                self.spec.sections.has(section) || self.spec.disabled.contains(&section)
            }
            Item::Routes => !self.spec.routes.is_empty(),
        }
    }
}

/// How near a policy is to the requests; the first wins. Overrides go from the
/// widest to the narrowest, everything else the other way round (GEP-713).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// For the Mesh, with strategy Overrides.
    MeshOverrides,
    /// For the Namespace, with strategy Overrides.
    Overrides,
    /// A consumer's, for the Service's port.
    ConsumerPort,
    /// A consumer's, for the Service.
    Consumer,
    /// For the Service's port.
    Port,
    /// For the Service.
    Service,
    /// For the Namespace.
    Namespace,
    /// For the Mesh.
    Mesh,
}

impl Rank {
    /// Written in the callers' namespace and for their calls alone.
    pub(super) fn is_consumer(self) -> bool {
        matches!(self, Rank::ConsumerPort | Rank::Consumer)
    }

    /// Whether what it says goes before the sections in `routes`, which go before
    /// everything else of their own side.
    pub(super) fn is_before_routes(self, routes: Rank) -> bool {
        match self {
            Rank::MeshOverrides | Rank::Overrides => true,
            rank => rank.is_consumer() && !routes.is_consumer(),
        }
    }
}

/// Whether a section acts at the destination. A consumer has no say in these:
/// they protect the destination from its callers.
pub(super) fn acts_at_destination(section: Section) -> bool {
    matches!(
        section,
        Section::LoadShedding | Section::RateLimit | Section::Idempotency
    )
}

/// What is won or lost as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    Section(Section),
    /// All routes of a policy: the first that matches wins, so two lists cannot
    /// be mixed.
    Routes,
}

impl Item {
    fn all() -> impl Iterator<Item = Item> {
        Section::ALL
            .into_iter()
            .map(Item::Section)
            .chain([Item::Routes])
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Item::Section(section) => section.as_str(),
            Item::Routes => "routes",
        }
    }
}

/// The policies of one rank, the one that wins first.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer<'a>(Vec<Policy<'a>>);

impl<'a> Layer<'a> {
    /// Adds a policy; the older wins, then the name.
    pub(super) fn add(&mut self, policy: Policy<'a>) {
        if self.0.iter().any(|other| other.key == policy.key) {
            return;
        }
        let order = |policy: &Policy<'a>| {
            (
                policy.created.is_none(),
                policy.created.map(|time| time.0),
                policy.key,
            )
        };
        let place = self
            .0
            .partition_point(|other| order(other) < order(&policy));
        self.0.insert(place, policy);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one that wins first.
    pub(super) fn policies(&self) -> impl Iterator<Item = Policy<'a>> {
        self.0.iter().copied()
    }

    fn first(&self, item: Item) -> Option<Policy<'a>> {
        self.0.iter().copied().find(|policy| policy.claims(item))
    }

    /// What the policy `key` says in vain on this layer, with the winner of each;
    /// and whether that is all it says.
    pub(super) fn lost(&self, key: &Key) -> (Vec<(Item, Policy<'a>)>, bool) {
        let Some(own) = self.0.iter().find(|policy| policy.key == key) else {
            return (Vec::new(), false);
        };
        let claims: Vec<Item> = Item::all().filter(|item| own.claims(*item)).collect();
        let lost: Vec<_> = claims
            .iter()
            .filter_map(|item| Some((*item, self.first(*item).filter(|winner| winner.key != key)?)))
            .collect();
        let all = !lost.is_empty() && lost.len() == claims.len();
        (lost, all)
    }
}

/// Where a section comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Winner<'a> {
    pub(super) policy: Policy<'a>,
    pub(super) rank: Rank,
}

/// What holds for one port.
#[derive(Clone, Debug, Default)]
pub(super) struct Merged<'a> {
    /// Whose word on each section counts, be it that there is none.
    winners: BTreeMap<Section, Winner<'a>>,
    pub(super) routes: Option<Winner<'a>>,
}

impl<'a> Merged<'a> {
    /// Whose word on `section` counts; it may be that it is disabled.
    pub(super) fn winner(&self, section: Section) -> Option<Winner<'a>> {
        self.winners.get(&section).copied()
    }

    /// Where `section` comes from, if it is in force.
    pub(super) fn given(&self, section: Section) -> Option<Winner<'a>> {
        self.winner(section)
            .filter(|winner| winner.policy.spec.sections.has(section))
    }

    /// The sections in force.
    pub(super) fn sections(&self) -> impl Iterator<Item = (Section, Winner<'a>)> + '_ {
        Section::ALL
            .into_iter()
            .filter_map(|section| Some((section, self.given(section)?)))
    }
}

/// Merges `layers`, the nearest first.
pub(super) fn merge<'a>(layers: &[(Rank, Option<&Layer<'a>>)]) -> Merged<'a> {
    let nearest = |item: Item| {
        layers
            .iter()
            .filter(|(rank, _)| !(rank.is_consumer() && is_destinations(item)))
            .find_map(|(rank, layer)| {
                Some(Winner {
                    policy: layer.as_ref()?.first(item)?,
                    rank: *rank,
                })
            })
    };
    let winner = |section: Section| Some((section, nearest(Item::Section(section))?));
    Merged {
        winners: Section::ALL.into_iter().filter_map(winner).collect(),
        routes: nearest(Item::Routes),
    }
}

fn is_destinations(item: Item) -> bool {
    matches!(item, Item::Section(section) if acts_at_destination(section))
}
