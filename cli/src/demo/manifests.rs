//! The manifests of `examples/shop`, with the addresses that the demo has.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize as _;
use serde_yaml::Value;
use tempfile::TempDir;

use super::shop::NAMES;

const SERVICES: &str = include_str!("../../../examples/shop/services.yaml");
const POLICIES: &str = include_str!("../../../examples/shop/policies.yaml");

/// A directory that is removed when this is dropped.
pub(super) struct Manifests {
    directory: TempDir,
}

impl Manifests {
    /// Writes them, with services at `addresses`, in the order of [`NAMES`].
    pub(super) fn write(addresses: &[SocketAddr]) -> anyhow::Result<Manifests> {
        let directory = tempfile::Builder::new()
            .prefix("weir-demo-")
            .tempdir()
            .context("a directory for the manifests")?;
        let manifests = Manifests { directory };
        let write = |path: PathBuf, text: &str| -> io::Result<()> { std::fs::write(path, text) };
        write(
            manifests.path().join("services.yaml"),
            &services(addresses)?,
        )?;
        write(manifests.policies(), POLICIES)?;
        Ok(manifests)
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The file to edit.
    pub(super) fn policies(&self) -> PathBuf {
        self.path().join("policies.yaml")
    }
}

/// The services with listeners on any free ports, and endpoints at `addresses`.
fn services(addresses: &[SocketAddr]) -> anyhow::Result<String> {
    let mut text = String::new();
    for document in serde_yaml::Deserializer::from_str(SERVICES) {
        let mut object = Value::deserialize(document)?;
        if let Some(listen) = find(&mut object, &["metadata", "annotations", "weir.dev/listen"]) {
            *listen = "127.0.0.1:0".into();
        }
        let service = find(
            &mut object,
            &["metadata", "labels", "kubernetes.io/service-name"],
        );
        let service =
            service.and_then(|name| NAMES.iter().position(|known| name.as_str() == Some(known)));
        if let Some(address) = service.and_then(|index| addresses.get(index))
            && let Some(Value::Sequence(ports)) = object.get_mut("ports")
        {
            for port in ports {
                port["port"] = address.port().into();
            }
        }
        text.push_str("---\n");
        text.push_str(&serde_yaml::to_string(&object)?);
    }
    Ok(text)
}

fn find<'a>(object: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter()
        .try_fold(object, |value, key| value.get_mut(*key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_control_plane::sources::manifest;

    #[test]
    fn the_demo_runs_on_valid_manifests_with_its_own_ports() {
        let addresses: Vec<SocketAddr> = (1..=3)
            .map(|n| SocketAddr::from(([127, 0, 0, 1], 4_000 + n)))
            .collect();
        let text = services(&addresses).unwrap();
        assert_eq!(manifest::check(Path::new("services.yaml"), &text), []);
        assert_eq!(manifest::check(Path::new("policies.yaml"), POLICIES), []);
        for address in addresses {
            assert!(
                text.contains(&format!("port: {}\n", address.port())),
                "{text}"
            );
        }
        assert_eq!(text.matches("weir.dev/listen: 127.0.0.1:0").count(), 3);
    }

    #[test]
    fn the_directory_is_removed_in_the_end() {
        let manifests = Manifests::write(&[]).unwrap();
        let path = manifests.path().to_owned();
        assert!(manifests.policies().is_file());
        drop(manifests);
        assert!(!path.exists());
    }
}
