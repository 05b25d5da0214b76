//! Container images from files, without a daemon and without a registry: an OCI image layout in a tar archive, as
//! `ctr images import`, `podman load` and `docker load` read it.
//!
//! The same files give the same bytes: nothing of the machine or of the time goes in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

mod tar;
mod weir;

use tar::Tar;
pub use weir::{Build, weir, weir_name};

/// What every user and every program is where an image names nobody else.
const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\n\
                      nobody:x:65534:65534:nobody:/:/bin/false\n\
                      nonroot:x:65532:65532:nonroot:/:/bin/false\n";

/// An image of one layer, with the few users in `/etc/passwd` and with `/tmp`.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    /// By path, without `/` before it: a directory stands before what is in it.
    entries: BTreeMap<String, Entry>,
    entrypoint: Vec<String>,
    user: &'static str,
}

#[derive(Clone, Debug)]
enum Entry {
    File { mode: u32, content: Vec<u8> },
    Directory { mode: u32 },
    Link { target: String },
}

impl Image {
    /// An image of this name, such as `weir.test/busybox:1`. With any tag but `latest` the kubelet asks no registry for
    /// what is there.
    pub fn new(name: &str) -> Image {
        let image = Image {
            name: name.to_owned(),
            entries: BTreeMap::new(),
            entrypoint: Vec::new(),
            user: "0:0",
        };
        image
            .entry("/tmp", Entry::Directory { mode: 0o1777 })
            .file("/etc/passwd", 0o644, PASSWD)
    }

    /// With this file, and the directories that lead to it.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Image {
        let content = content.into();
        self.entry(path, Entry::File { mode, content })
    }

    /// With a program that is on this machine.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn program(self, path: &str, from: &Path) -> Result<Image> {
        let content =
            std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        Ok(self.file(path, 0o755, content))
    }

    /// With a symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Image {
        let target = target.to_owned();
        self.entry(path, Entry::Link { target })
    }

    /// What a container runs that is not told otherwise; what it is told goes behind it.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Image {
        self.entrypoint = words.iter().copied().map(str::to_owned).collect();
        self
    }

    /// The user and the group, as numbers: a kubelet that must prove that it is not root knows no names.
    #[must_use]
    pub fn user(mut self, user: &'static str) -> Image {
        self.user = user;
        self
    }

    fn entry(mut self, path: &str, entry: Entry) -> Image {
        let path = path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            let directory = || Entry::Directory { mode: 0o755 };
            let above = path[..end].to_owned();
            self.entries.entry(above).or_insert_with(directory);
        }
        self.entries.insert(path.to_owned(), entry);
        self
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// It cannot be written, a path in the image is too long, or no image is known for this machine's processor.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let mut layer = Tar::default();
        for (path, entry) in &self.entries {
            layer.add(path, entry)?;
        }
        let layer = layer.end();
        let config = text(&json!({
            "architecture": architecture()?,
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "User": self.user,
                "WorkingDir": "/",
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [sum(&layer)]},
        }));
        let manifest = text(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("config.v1+json", &config),
            "layers": [described("layer.v1.tar", &layer)],
        }));
        let name = full(&self.name);
        let mut top = described("manifest.v1+json", &manifest);
        top["annotations"] =
            json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name});
        let index = text(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [top],
        }));

        let mut layout = Image {
            entries: BTreeMap::new(),
            ..self.clone()
        };
        layout = layout
            .file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", 0o644, index);
        for blob in [config, manifest, layer] {
            let path = format!("blobs/{}", sum(&blob).replace(':', "/"));
            layout = layout.file(&path, 0o644, blob);
        }
        let mut tar = Tar::default();
        for (path, entry) in &layout.entries {
            tar.add(path, entry)?;
        }
        let written = std::fs::write(archive, tar.end());
        written.with_context(|| format!("cannot write {}", archive.display()))
    }
}

/// The name as containerd and the kubelet know it: `weir:1` → `docker.io/library/weir:1`.
fn full(name: &str) -> String {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image is made on {other}: its name in OCI's images is not known here"),
    }
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn sum(blob: &[u8]) -> String {
    let mut sum = "sha256:".to_owned();
    for byte in digest(&SHA256, blob).as_ref() {
        // A String takes all that is written.
        let _ = write!(sum, "{byte:02x}");
    }
    sum
}

fn described(kind: &str, blob: &[u8]) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": sum(blob),
        "size": blob.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Image {
        Image::new("weir.test/sample:1")
            .file("/usr/bin/tool", 0o755, "#!/bin/sh\necho well\n")
            .link("/bin/tool", "/usr/bin/tool")
            .entrypoint(&["/bin/tool"])
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one.tar", "two.tar"].map(|name| directory.path().join(name));
        sample().write(&one).unwrap();
        sample().write(&two).unwrap();
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    }

    #[test]
    fn tar_reads_the_archive_and_its_layer() {
        let directory = tempfile::tempdir().unwrap();
        let tar = |arguments: &[&str]| {
            let mut tar = std::process::Command::new("tar");
            let ended = tar.args(arguments).current_dir(&directory).output();
            let ended = ended.unwrap();
            assert!(ended.status.success(), "{ended:?}");
            String::from_utf8(ended.stdout).unwrap()
        };
        sample().write(&directory.path().join("image.tar")).unwrap();
        tar(&["-xf", "image.tar"]);
        let read = |path: &str| -> Value {
            serde_json::from_slice(&std::fs::read(directory.path().join(path)).unwrap()).unwrap()
        };
        let blob = |description: &Value| {
            let digest = description["digest"].as_str().unwrap();
            format!("blobs/{}", digest.replace(':', "/"))
        };
        let manifest = read(&blob(&read("index.json")["manifests"][0]));
        let layer = blob(&manifest["layers"][0]);
        let listed = tar(&["-tf", &layer]);
        let listed = listed.lines().collect::<Vec<_>>();
        let expected = [
            "bin",
            "bin/tool",
            "etc",
            "etc/passwd",
            "tmp",
            "usr",
            "usr/bin",
        ];
        assert_eq!(&listed[..7], expected);
        assert_eq!(
            tar(&["-xOf", &layer, "usr/bin/tool"]),
            "#!/bin/sh\necho well\n"
        );
        let config = read(&blob(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/tool"]));
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );
    }

    #[test]
    fn a_name_without_a_host_is_the_one_that_the_kubelet_looks_for() {
        assert_eq!(full("weir:1"), "docker.io/library/weir:1");
        assert_eq!(full("team/weir:1"), "docker.io/team/weir:1");
        assert_eq!(full("weir.test/weir:1"), "weir.test/weir:1");
        assert_eq!(full("localhost/weir:1"), "localhost/weir:1");
    }

    #[test]
    fn a_path_that_a_tar_header_cannot_hold_is_refused() {
        let long = format!("/{}", "a".repeat(101));
        let image = sample().file(&long, 0o644, "");
        let directory = tempfile::tempdir().unwrap();
        let refused = image.write(&directory.path().join("image.tar"));
        assert!(refused.unwrap_err().to_string().contains("at most 100"));
    }
}
