//! What a crate of the workspace is made of when nobody else is built with it.
use std::collections::BTreeSet;
use std::path::Path;

use crate::process;

/// Which crate uses which by name, dev-dependencies apart.
pub(super) type Arrows = BTreeSet<(String, String)>;

/// What a crate is made of when it is built by itself.
///
/// `cargo metadata` knows only the features that anybody in the workspace turns on: there `kube` has a client under
/// `weir-crds` because the control plane wants one.
pub(super) fn alone(root: &Path, name: &str) -> anyhow::Result<Arrows> {
    let mut tree = process::cargo(root);
    tree.args(["tree", "--locked", "--package", name]);
    tree.args(["--target", "x86_64-unknown-linux-gnu"]);
    tree.args(["--edges", "normal,build", "--prefix", "depth"]);
    Ok(arrows(&process::output(&mut tree)?))
}

/// Reads lines such as `2serde_core v1.0.229 (*)`: the depth, and the name of what the crate above with one less uses.
pub(super) fn arrows(tree: &str) -> Arrows {
    let mut above: Vec<&str> = Vec::new();
    let mut arrows = Arrows::new();
    for line in tree.lines() {
        let name = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let (Ok(depth), Some(name)) = (
            line[..line.len() - name.len()].parse(),
            name.split(' ').next(),
        ) else {
            continue;
        };
        above.truncate(depth);
        if let Some(user) = above.last() {
            arrows.insert(((*user).to_owned(), name.to_owned()));
        }
        above.push(name);
    }
    arrows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_of_lines_with_depths_is_read_as_arrows() {
        let tree = "0a v1\n1b v1\n2c v1 (proc-macro)\n1d v1 (*)\n";
        let arrow = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let expected = [arrow("a", "b"), arrow("a", "d"), arrow("b", "c")];
        assert_eq!(arrows(tree), Arrows::from(expected));
    }
}
