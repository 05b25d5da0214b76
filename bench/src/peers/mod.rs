//! The proxies compared: what each is called, where it is found, and how it is run. Their configuration lies in
//! `bench/configs`, one file each, with placeholders between `@`.

mod enforced;
pub(crate) mod find;
pub(crate) mod launch;

use std::path::PathBuf;

use clap::ValueEnum;

/// A proxy under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Peer {
    /// A bare TCP relay: what all others are compared to
    Relay,
    /// Weir's agent
    Weir,
    Haproxy,
    Nginx,
    Envoy,
}

impl Peer {
    /// All, the relay first: without it there is no ratio.
    pub(crate) const ALL: [Self; 5] = [
        Self::Relay,
        Self::Weir,
        Self::Haproxy,
        Self::Nginx,
        Self::Envoy,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Weir => "weir",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }
}

/// A proxy that is there and can be run.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) peer: Peer,
    pub(crate) binary: PathBuf,
    /// `None` for the relay, which is part of this program.
    pub(crate) version: Option<String>,
}
