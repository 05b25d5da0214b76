//! All files together: the first to name an object has it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::file::{FileState, origin};
use super::listing::{Listing, read};
use super::{Look, MAX_FILES};
use crate::sources::manifest::ObjectId;
use crate::sources::{Objects, Refused, Sourced};

/// A file must stay away for so long before its objects are: editors that
/// delete and write anew are not noticed.
const GONE_AFTER: Duration = Duration::from_secs(1);

/// What is remembered of an object beyond its versions.
#[derive(Clone, Copy, Debug)]
struct Past {
    spec: u64,
    generation: i64,
    first_seen: Timestamp,
    /// When this generation was first seen.
    written: Timestamp,
}

/// See the module.
#[derive(Default)]
pub(super) struct Merged {
    files: BTreeMap<PathBuf, FileState>,
    /// Only of objects that are there.
    past: HashMap<ObjectId, Past>,
    /// About the listing alone.
    complaints: Vec<String>,
    looked: bool,
}

impl Merged {
    pub(super) fn take(&mut self, listing: &Listing, now: Instant, wall: Timestamp) -> Look {
        let mut changed = !self.looked;
        self.looked = true;
        let mut again: Option<Instant> = None;
        self.files.retain(|path, file| {
            if listing.files.contains_key(path) || listing.may_hide(path) {
                file.gone = None;
                return true;
            }
            let away = *file.gone.get_or_insert(now) + GONE_AFTER;
            let keep = now < away;
            changed |= !keep;
            if keep {
                again = Some(again.map_or(away, |again| again.min(away)));
            } else {
                tracing::info!(file = %path.display(), "gone, and its objects with it");
            }
            keep
        });
        for (path, stamp) in &listing.files {
            let file = self.files.entry(path.clone()).or_default();
            if file.stamp == Some(*stamp) {
                continue;
            }
            let ignored = std::mem::take(&mut file.ignored);
            file.take(read(path));
            file.stamp = Some(*stamp);
            if !file.ignored.is_empty() && file.ignored != ignored {
                tracing::info!(file = %path.display(), objects = file.ignored.join(", "), "kinds that are not read are ignored");
            }
            changed = true;
        }
        let problems = complaints(listing);
        changed |= problems != self.complaints;
        self.complaints.clone_from(&problems);
        let changed = changed.then(|| self.objects(problems, wall));
        Look { changed, again }
    }

    fn objects(&mut self, mut problems: Vec<String>, wall: Timestamp) -> Objects {
        let mut objects = Objects::default();
        let unlisted = !problems.is_empty();
        let mut owners: HashMap<&ObjectId, Arc<str>> = HashMap::new();
        let mut past = HashMap::new();
        for (path, file) in &self.files {
            let place = |finding: &dyn std::fmt::Display| format!("{}:{finding}", path.display());
            problems.extend(file.findings.iter().map(|finding| place(finding)));
            for good in &file.good {
                let here = origin(path, good.line);
                if let Some(first) = owners.get(&good.id) {
                    problems.push(twice(&here, &good.id, first));
                    continue;
                }
                owners.insert(&good.id, Arc::clone(&here));
                let before = self.past.get(&good.id).copied();
                let same = before.filter(|past| past.spec == good.spec);
                let now = same.unwrap_or(Past {
                    spec: good.spec,
                    generation: before.map_or(1, |past| past.generation + 1),
                    first_seen: before.map_or(wall, |past| past.first_seen),
                    written: wall,
                });
                past.insert(good.id.clone(), now);
                let problem = good.problem.as_ref().map(|problem| place(problem).into());
                let about = Sourced {
                    object: (),
                    generation: now.generation,
                    origin: here,
                    first_seen: now.first_seen,
                    written: now.written,
                    problem,
                };
                objects.insert(&good.id, &good.typed, about);
            }
            for bad in &file.bad {
                let here = origin(path, bad.problem.line);
                if let Some(first) = owners.get(&bad.id) {
                    problems.push(twice(&here, &bad.id, first));
                    continue;
                }
                owners.insert(&bad.id, here);
                let first_seen = self.past.get(&bad.id).map_or(wall, |past| past.first_seen);
                past.insert(
                    bad.id.clone(),
                    Past {
                        spec: 0,
                        generation: 0,
                        first_seen,
                        written: wall,
                    },
                );
                let refused = Refused {
                    written: bad.written.clone(),
                    first_seen,
                    problem: place(&bad.problem).into(),
                };
                objects.refused.insert(bad.id.clone(), refused);
            }
        }
        objects.partial = unlisted
            || self
                .files
                .values()
                .any(|file| file.unreadable || !file.bad.is_empty());
        self.past = past;
        objects.problems = problems;
        objects
    }
}

fn twice(here: &str, id: &ObjectId, first: &str) -> String {
    format!("{here}: {id}: {first} has the same object, and that one counts: remove one of them")
}

/// What is wrong with the listing itself.
fn complaints(listing: &Listing) -> Vec<String> {
    let unknown = |(path, reason): (&PathBuf, &String)| {
        format!(
            "{}: {reason}: its last good objects stay in force",
            Path::display(path)
        )
    };
    let mut problems: Vec<String> = listing.unknown.iter().map(unknown).collect();
    if listing.left_out > 0 {
        let left_out = listing.left_out;
        problems.push(format!(
            "{left_out} files are not read: at most {MAX_FILES} are; put more objects into one file"
        ));
    }
    problems
}

/// For tests that have text and no files.
#[cfg(test)]
pub(crate) fn from_text(path: &Path, text: &str, wall: Timestamp) -> Objects {
    let mut file = FileState::default();
    file.take(Ok(text.to_owned()));
    let mut merged = Merged::default();
    merged.files.insert(path.to_owned(), file);
    merged.objects(Vec::new(), wall)
}
