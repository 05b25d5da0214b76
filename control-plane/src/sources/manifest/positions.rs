//! Where each value of a YAML document stands in its text.
//!
//! Serde loses positions, so the document is read a second time as a stream of
//! events and kept as a small tree of marks. The same pass refuses what must
//! not be read at all: deep nesting, and aliases that stand for more values
//! than a person would write.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser};

/// Levels of nesting that a document may have.
const MAX_DEPTH: usize = 64;
/// Values that a document may stand for, each alias counted as all that it
/// stands for. The largest object that Kubernetes stores is far below this.
const MAX_VALUES: usize = 200_000;

/// A place in a text, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

/// Why a document's positions cannot be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) at: Position,
    pub(super) message: String,
    /// False where only the YAML is wrong, so that another reader may have a
    /// better word for it.
    pub(super) refused: bool,
}

#[derive(Debug)]
struct Node {
    at: Position,
    kind: Kind,
    /// Values that this node stands for, itself included.
    values: usize,
}

#[derive(Debug)]
enum Kind {
    Scalar,
    List(Vec<usize>),
    Map(Vec<(String, Position, usize)>),
}

/// The tree of marks of one document.
#[derive(Debug)]
pub(super) struct Positions {
    nodes: Vec<Node>,
    root: Option<usize>,
}

struct Open {
    node: usize,
    anchor: usize,
    /// In a map: the key that waits for its value.
    key: Option<(String, Position)>,
    seen: HashSet<String>,
}

impl Positions {
    /// Reads `document`, whose first line is line `first_line` of its file.
    pub(super) fn read(document: &str, first_line: usize) -> Result<Positions, Unreadable> {
        let place = |mark: &Marker| Position {
            line: mark.line() + first_line - 1,
            column: mark.col() + 1,
        };
        let refuse = |at, message: String| Unreadable {
            at,
            message,
            refused: true,
        };
        let mut tree = Positions {
            nodes: Vec::new(),
            root: None,
        };
        let mut anchors: HashMap<usize, usize> = HashMap::new();
        let mut stack: Vec<Open> = Vec::new();
        for event in Parser::new_from_str(document) {
            let (event, span) =
                event.map_err(|error| match error.info().contains("recursion limit") {
                    true => refuse(place(error.marker()), too_deep()),
                    false => Unreadable {
                        at: place(error.marker()),
                        message: error.info().to_owned(),
                        refused: false,
                    },
                })?;
            let at = place(&span.start);
            let (node, anchor, text, opens) = match event {
                Event::Scalar(text, _, anchor, _) => (
                    tree.push(at, Kind::Scalar),
                    anchor,
                    Some(text.into_owned()),
                    false,
                ),
                Event::SequenceStart(anchor, _) => {
                    (tree.push(at, Kind::List(Vec::new())), anchor, None, true)
                }
                Event::MappingStart(anchor, _) => {
                    (tree.push(at, Kind::Map(Vec::new())), anchor, None, true)
                }
                Event::Alias(anchor) => match anchors.get(&anchor) {
                    Some(&node) => (node, 0, None, false),
                    None => {
                        return Err(refuse(
                            at,
                            "this alias stands inside its own anchor: write the value out".into(),
                        ));
                    }
                },
                Event::SequenceEnd | Event::MappingEnd => {
                    if let Some(closed) = stack.pop() {
                        if closed.anchor != 0 {
                            anchors.insert(closed.anchor, closed.node);
                        }
                        tree.attach(&mut stack, closed.node, None)
                            .map_err(|(at, message)| refuse(at, message))?;
                        tree.bounded(&stack, closed.node)
                            .map_err(|message| refuse(at, message))?;
                    }
                    continue;
                }
                _ => continue,
            };
            if opens {
                if stack.len() == MAX_DEPTH {
                    return Err(refuse(at, too_deep()));
                }
                stack.push(Open {
                    node,
                    anchor,
                    key: None,
                    seen: HashSet::new(),
                });
                continue;
            }
            if anchor != 0 {
                anchors.insert(anchor, node);
            }
            tree.attach(&mut stack, node, text)
                .map_err(|(at, message)| refuse(at, message))?;
            tree.bounded(&stack, node)
                .map_err(|message| refuse(at, message))?;
        }
        Ok(tree)
    }

    fn push(&mut self, at: Position, kind: Kind) -> usize {
        self.nodes.push(Node {
            at,
            kind,
            values: 1,
        });
        self.nodes.len() - 1
    }

    /// Puts `node` into the innermost open list or map, as its next key if
    /// that is what comes next.
    fn attach(
        &mut self,
        stack: &mut [Open],
        node: usize,
        text: Option<String>,
    ) -> Result<(), (Position, String)> {
        let Some(open) = stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        let (at, values) = (self.nodes[node].at, self.nodes[node].values);
        let parent = &mut self.nodes[open.node];
        match &mut parent.kind {
            Kind::Scalar => {}
            Kind::List(items) => {
                items.push(node);
                parent.values = parent.values.saturating_add(values);
            }
            Kind::Map(entries) => match open.key.take() {
                Some((key, key_at)) => {
                    entries.push((key, key_at, node));
                    parent.values = parent.values.saturating_add(values);
                }
                None => {
                    let key = text.ok_or_else(|| (at, "a key must be a plain word".to_owned()))?;
                    if !open.seen.insert(key.clone()) {
                        return Err((
                            at,
                            format!("`{key}` is given twice in one map: keep one of them"),
                        ));
                    }
                    open.key = Some((key, at));
                }
            },
        }
        Ok(())
    }

    fn bounded(&self, stack: &[Open], node: usize) -> Result<(), String> {
        let largest = stack.last().map_or(node, |open| open.node);
        if self.nodes[largest].values > MAX_VALUES {
            return Err(format!(
                "stands for more than {MAX_VALUES} values, aliases counted: write out what is meant"
            ));
        }
        Ok(())
    }

    /// Where the document's value begins.
    pub(super) fn start(&self) -> Option<Position> {
        self.root.map(|root| self.nodes[root].at)
    }

    /// Where the value at `path` stands, or the deepest part of it that does.
    /// A map's entry stands where its key does.
    pub(super) fn find(&self, path: &str) -> Option<Position> {
        let mut node = self.root?;
        let mut at = self.nodes[node].at;
        for step in steps(path) {
            let next = match (&self.nodes[node].kind, step) {
                (Kind::Map(entries), Step::Key(key)) => entries
                    .iter()
                    .find(|(name, _, _)| *name == key)
                    .map(|(_, at, node)| (*at, *node)),
                (Kind::List(items), Step::Index(index)) => {
                    items.get(index).map(|&node| (self.nodes[node].at, node))
                }
                _ => None,
            };
            match next {
                Some((found, child)) => (at, node) = (found, child),
                None => break,
            }
        }
        Some(at)
    }
}

fn too_deep() -> String {
    format!("nested deeper than {MAX_DEPTH} levels: no object of Kubernetes is")
}

enum Step {
    Key(String),
    Index(usize),
}

/// The steps of `spec.routes[0].name`; a key with dots of its own is written
/// `annotations["weir.dev/listen"]`.
fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path.trim_start_matches('$');
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(inner) = rest.strip_prefix('[') {
            let quoted = inner
                .strip_prefix('"')
                .and_then(|inner| inner.split_once("\"]"));
            let (text, after) = match quoted {
                Some(split) => split,
                None => inner.split_once(']').unwrap_or((inner, "")),
            };
            steps.push(match (quoted, text.parse()) {
                (None, Ok(index)) => Step::Index(index),
                _ => Step::Key(text.to_owned()),
            });
            rest = after;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end > 0 {
                steps.push(Step::Key(rest[..end].to_owned()));
            }
            rest = &rest[end..];
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, column: usize) -> Option<Position> {
        Some(Position { line, column })
    }

    const POLICY: &str = "kind: A\nmetadata:\n  annotations:\n    weir.dev/listen: x\nspec:\n  routes:\n  - name: a\n  - name: b\n    idempotent: true\n";

    #[test]
    fn a_path_leads_to_the_line_of_its_key() {
        let positions = Positions::read(POLICY, 1).unwrap();
        assert_eq!(positions.find("spec.routes[1].idempotent"), at(9, 5));
        assert_eq!(
            positions.find("metadata.annotations[\"weir.dev/listen\"]"),
            at(4, 5)
        );
    }

    #[test]
    fn a_path_to_something_missing_leads_to_the_deepest_part_that_is_there() {
        let positions = Positions::read(POLICY, 11).unwrap();
        assert_eq!(positions.find("spec.routes[0].matches[3].path"), at(17, 5));
        assert_eq!(positions.find("status"), at(11, 1));
    }

    #[test]
    fn a_path_goes_through_an_alias() {
        let positions = Positions::read("a: &x\n  b: 1\nc: *x\n", 1).unwrap();
        assert_eq!(positions.find("c.b"), at(2, 3));
    }

    #[test]
    fn a_key_given_twice_is_refused_where_it_comes_again() {
        let error = Positions::read("a: 1\nb: 2\na: 3\n", 1).unwrap_err();
        assert_eq!(error.at, Position { line: 3, column: 1 });
        assert!(
            error.message.contains("`a` is given twice"),
            "{}",
            error.message
        );
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut bomb = String::from("a0: &a0 [1,1,1,1,1,1,1,1,1]\n");
        for level in 1..9 {
            let refs = vec![format!("*a{}", level - 1); 9].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        let error = Positions::read(&bomb, 1).unwrap_err();
        assert!(
            error.refused && error.message.contains("aliases counted"),
            "{}",
            error.message
        );
    }

    #[test]
    fn an_alias_to_itself_is_refused() {
        assert!(Positions::read("a: &x\n  b: *x\n", 1).is_err());
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let error = Positions::read(&"[".repeat(100_000), 1).unwrap_err();
        assert!(
            error.refused && error.message.contains("nested deeper"),
            "{}",
            error.message
        );
    }
}
