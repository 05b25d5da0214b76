//! Network namespaces: which one is a pod's, and going there.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::routing;

/// Namespaces whose addresses are remembered; what is found beyond that is not
/// looked at.
pub(super) const MAX_NAMESPACES: usize = 4096;

/// The network namespace that this thread is in.
const OWN: &str = "/proc/thread-self/ns/net";

/// What a namespace is known by as long as it is held open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(metadata: &std::fs::Metadata) -> Identity {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// A pod's network namespace, held open.
#[derive(Debug)]
pub(super) struct Namespace {
    file: File,
    identity: Identity,
    path: PathBuf,
}

impl Namespace {
    fn open(path: &Path) -> io::Result<Namespace> {
        let file = File::open(path)?;
        Ok(Namespace {
            identity: Identity::of(&file.metadata()?),
            file,
            path: path.to_owned(),
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its file is still what it was. If not, the pod has ended.
    pub(super) fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| Identity::of(&metadata) == self.identity)
    }
}

/// Why there is no namespace for a pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum FindError {
    #[error("no address of it is known, so its network namespace cannot be found")]
    NoAddress,
    #[error("no network namespace under {directories} holds {addresses}")]
    None {
        directories: String,
        addresses: String,
    },
    #[error(
        "{addresses} is held by the network namespace that capture is in, which is never captured"
    )]
    Own { addresses: String },
    #[error("both {} and {} hold {addresses}; neither is captured", .first.display(), .second.display())]
    Several {
        addresses: String,
        first: PathBuf,
        second: PathBuf,
    },
    #[error("cannot enter {}: {error}", .path.display())]
    Enter { path: PathBuf, error: io::Error },
}

/// The namespaces of this machine, as far as they are in some directories.
pub(super) struct Namespaces {
    directories: Vec<PathBuf>,
    home: Namespace,
    /// Set when the thread could not go back to where it belongs.
    lost: Cell<bool>,
    known: HashMap<Identity, Known>,
}

struct Known {
    path: PathBuf,
    addresses: Vec<IpAddr>,
}

impl Namespaces {
    /// To be used on this thread only.
    pub(super) fn new(directories: Vec<PathBuf>) -> io::Result<Namespaces> {
        Ok(Namespaces {
            directories,
            home: Namespace::open(Path::new(OWN))?,
            lost: Cell::new(false),
            known: HashMap::new(),
        })
    }

    /// Does something in a namespace, on this thread.
    pub(super) fn within<T>(
        &self,
        namespace: &Namespace,
        work: impl FnOnce() -> T,
    ) -> io::Result<T> {
        enter(&namespace.file)?;
        let done = work();
        if let Err(error) = enter(&self.home.file) {
            self.lost.set(true);
            return Err(error);
        }
        Ok(done)
    }

    /// Whether this thread is not in its own namespace any more and must do
    /// nothing further.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// The one namespace that holds all of a pod's addresses. `taken`: which
    /// ones have a pod already; one of those is given only if no other holds
    /// the addresses.
    pub(super) fn find(
        &mut self,
        addresses: &[IpAddr],
        taken: impl Fn(Identity) -> bool,
    ) -> Result<Namespace, FindError> {
        if addresses.is_empty() {
            return Err(FindError::NoAddress);
        }
        let files = self.files();
        self.known
            .retain(|identity, _| files.contains_key(identity));
        for (identity, path) in &files {
            match self.known.get_mut(identity) {
                Some(known) => known.path.clone_from(path),
                None => self.look(path),
            }
        }
        if self.holders(addresses).all(|(identity, _)| taken(identity)) {
            // One that was new when it was looked at may have got its
            // addresses since.
            for (identity, path) in &files {
                if !taken(*identity) {
                    self.look(path);
                }
            }
        }
        // A pod that took another's address as well does not keep that from
        // being captured, once it is known whose the namespace is.
        let (theirs, free): (Vec<_>, Vec<_>) = self
            .holders(addresses)
            .partition(|(identity, _)| taken(*identity));
        let path = match (free.as_slice(), theirs.first()) {
            ([(_, path)], _) | ([], Some((_, path))) => (*path).to_owned(),
            ([], None) => return Err(self.missing(addresses)),
            ([(_, first), (_, second), ..], _) => {
                return Err(FindError::Several {
                    addresses: list(addresses),
                    first: (*first).to_owned(),
                    second: (*second).to_owned(),
                });
            }
        };
        let namespace = self.open(&path)?;
        // What is remembered may have changed.
        self.look(&path);
        if self
            .holders(addresses)
            .all(|(identity, _)| identity != namespace.identity)
        {
            return Err(self.missing(addresses));
        }
        Ok(namespace)
    }

    fn open(&self, path: &Path) -> Result<Namespace, FindError> {
        let enter = |error| FindError::Enter {
            path: path.to_owned(),
            error,
        };
        let namespace = Namespace::open(path).map_err(enter)?;
        if namespace.identity == self.home.identity || !self.known.contains_key(&namespace.identity)
        {
            return Err(enter(io::Error::other("it has just been replaced")));
        }
        Ok(namespace)
    }

    fn missing(&self, addresses: &[IpAddr]) -> FindError {
        let own = routing::addresses().unwrap_or_default();
        if addresses.iter().any(|address| own.contains(address)) {
            return FindError::Own {
                addresses: list(addresses),
            };
        }
        let directories: Vec<_> = self
            .directories
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        FindError::None {
            directories: directories.join(", "),
            addresses: list(addresses),
        }
    }

    fn holders<'a>(
        &'a self,
        addresses: &'a [IpAddr],
    ) -> impl Iterator<Item = (Identity, &'a Path)> {
        self.known
            .iter()
            .filter(|(_, known)| {
                addresses
                    .iter()
                    .all(|address| known.addresses.contains(address))
            })
            .map(|(identity, known)| (*identity, known.path.as_path()))
    }

    /// The files that may be namespaces, the thread's own apart.
    fn files(&self) -> HashMap<Identity, PathBuf> {
        let mut files = HashMap::new();
        for directory in &self.directories {
            // One that is not there has no pods: containers may come later.
            let Ok(entries) = std::fs::read_dir(directory) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                let Ok(metadata) = std::fs::metadata(&path) else {
                    continue;
                };
                let identity = Identity::of(&metadata);
                if identity != self.home.identity && files.len() < MAX_NAMESPACES {
                    files.insert(identity, path);
                }
            }
        }
        files
    }

    /// Remembers what addresses a namespace has. What is none has none.
    fn look(&mut self, path: &Path) {
        let Ok(namespace) = Namespace::open(path) else {
            return;
        };
        let addresses = self
            .within(&namespace, routing::addresses)
            .and_then(|addresses| addresses)
            .unwrap_or_default();
        self.known.insert(
            namespace.identity,
            Known {
                path: namespace.path,
                addresses,
            },
        );
    }
}

fn enter(namespace: impl AsFd) -> io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

fn list(addresses: &[IpAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    addresses.join(" and ")
}
