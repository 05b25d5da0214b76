//! The programs of Kubernetes, built from the Go modules that `tests/cluster/go.mod` names.
//!
//! A set of them that is there already is used instead: `KUBEBUILDER_ASSETS` is the directory with `etcd`,
//! `kube-apiserver` and `kubectl`, as other projects of Kubernetes have it; the rest may then be on `PATH`.
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::{Source, Tool, name_of, on_path};
use crate::process;

const MODULE: &str = include_str!("../../../tests/cluster/go.mod");
const SUMS: &str = include_str!("../../../tests/cluster/go.sum");

/// The first Go that gets a newer one by itself when a module asks for it.
const FETCHES_TOOLCHAINS: (u32, u32) = (1, 21);

/// A package that is a program, and what building it costs.
pub(super) struct Package {
    pub(super) path: &'static str,
    /// On two cores, with those before it built; a word for a person who waits.
    pub(super) takes: &'static str,
    /// Whether any version of it from `PATH` will do, once `KUBEBUILDER_ASSETS` says that versions are not our choice.
    pub(super) from_path: bool,
}

// The API server first among the large ones: the others share what is compiled for it.
#[rustfmt::skip]
pub(super) static ETCD: Tool = program("etcd", "WEIR_ETCD", Package { path: "go.etcd.io/etcd/server/v3", takes: "1 minute", from_path: false });
#[rustfmt::skip]
pub(super) static API_SERVER: Tool = program("kube-apiserver", "WEIR_KUBE_APISERVER", Package { path: "k8s.io/kubernetes/cmd/kube-apiserver", takes: "4 to 6 minutes", from_path: false });
#[rustfmt::skip]
pub(super) static CONTROLLER_MANAGER: Tool = program("kube-controller-manager", "WEIR_KUBE_CONTROLLER_MANAGER", Package { path: "k8s.io/kubernetes/cmd/kube-controller-manager", takes: "1 to 3 minutes", from_path: true });
#[rustfmt::skip]
pub(super) static KUBECTL: Tool = program("kubectl", "WEIR_KUBECTL", Package { path: "k8s.io/kubernetes/cmd/kubectl", takes: "half a minute", from_path: false });
#[rustfmt::skip]
pub(super) static HELM: Tool = program("helm", "WEIR_HELM", Package { path: "helm.sh/helm/v4/cmd/helm", takes: "half a minute", from_path: true });

const fn program(name: &'static str, variable: &'static str, package: Package) -> Tool {
    Tool {
        name,
        variable: Some(variable),
        source: Source::Go(package),
    }
}

/// The version of a module that is asked for, such as `v1.37.2`.
fn version(module: &str) -> &'static str {
    let words = |line: &'static str| {
        let mut words = line.split_whitespace();
        (words.next() == Some(module)).then(|| words.next())?
    };
    MODULE.lines().find_map(words).unwrap_or("unknown")
}

/// What is stamped into the programs: built from modules they would not know their own version.
fn flags() -> String {
    let kubernetes = version("k8s.io/kubernetes");
    let mut numbers = kubernetes.trim_start_matches('v').split('.');
    let mut number = || numbers.next().unwrap_or_default();
    let (major, minor) = (number(), number());
    let helm = version("helm.sh/helm/v4");
    let base = "-X k8s.io/component-base/version";
    format!(
        "-s -w {base}.gitVersion={kubernetes} {base}.gitMajor={major} {base}.gitMinor={minor} \
         {base}.gitTreeState=clean -X helm.sh/helm/v4/internal/version.version={helm}"
    )
}

/// Where the set is kept that is built from these modules, in this way.
pub(super) fn home(cache: &Path) -> PathBuf {
    let says_something = |line: &&str| !line.is_empty() && !line.starts_with("//");
    let module: Vec<&str> = MODULE.lines().filter(says_something).collect();
    let key = name_of(&[&module.concat(), SUMS, &flags()].concat());
    cache.join(format!("kubernetes-{}-{key}", version("k8s.io/kubernetes")))
}

pub(super) fn find(name: &str, package: &Package, cache: &Path) -> Option<PathBuf> {
    let given = env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty());
    given
        .map(|assets| PathBuf::from(assets).join(name))
        .filter(|path| path.is_file())
        .or_else(|| {
            let known = env::var_os("KUBEBUILDER_ASSETS").is_some() && package.from_path;
            known.then(|| on_path(name))?
        })
        .or_else(|| Some(home(cache).join(name)).filter(|path| path.is_file()))
}

/// What builds it, as a person would type it.
pub(super) fn command(name: &str, package: &Package, cache: &Path) -> String {
    let to = home(cache).join(name);
    format!(
        "(cd tests/cluster && CGO_ENABLED=0 go build -trimpath -o {} {})",
        to.display(),
        package.path
    )
}

/// Builds it. What was not built to its end is never found: it gets its name last.
pub(super) fn get(name: &str, package: &Package, root: &Path, cache: &Path) -> anyhow::Result<()> {
    let home = home(cache);
    fs::create_dir_all(&home)?;
    let go = toolchain()?;
    let unfinished = home.join(format!("{name}.unfinished"));
    println!(
        "building {name} from Go modules with {}: {} on two cores, once",
        go.version, package.takes
    );
    let mut build = Command::new(&go.program);
    build
        .current_dir(root.join("tests/cluster"))
        .env("CGO_ENABLED", "0")
        // A module that changes while it is built shares nothing with the build before.
        .env("GOFLAGS", "-mod=readonly")
        .env("GOTOOLCHAIN", "auto")
        .env("GOWORK", "off")
        .env_remove("GOROOT")
        .args(["build", "-trimpath", "-ldflags", &flags(), "-o"])
        .arg(&unfinished)
        .arg(package.path)
        .stdin(Stdio::null());
    process::output(&mut build)?;
    fs::rename(unfinished, home.join(name))?;
    Ok(())
}

struct Toolchain {
    program: PathBuf,
    version: String,
}

/// Whether there is a Go to begin with.
pub(super) fn is_there() -> bool {
    !installed().is_empty()
}

/// Every Go that is installed, the newest first.
fn installed() -> Vec<((u32, u32), Toolchain)> {
    let mut found: Vec<_> = on_path("go")
        .into_iter()
        .chain([PathBuf::from("/usr/local/go/bin/go")])
        .filter_map(|program| {
            let mut ask = Command::new(&program);
            ask.args(["env", "GOVERSION"])
                .env("GOTOOLCHAIN", "local")
                .current_dir("/");
            let version = process::output(&mut ask).ok()?.trim().to_owned();
            Some((numbers(&version)?, Toolchain { program, version }))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found
}

/// `go1.26.8` → (1, 26)
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("go")?.split('.');
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

/// A Go that can build the programs.
fn toolchain() -> anyhow::Result<Toolchain> {
    let newest = installed().into_iter().next();
    match newest {
        Some((version, go)) if version >= FETCHES_TOOLCHAINS => Ok(go),
        Some((_, old)) => fetch(&old),
        None => bail!("Go is missing: get Debian's golang-go, or https://go.dev/dl"),
    }
}

/// The Go that the modules ask for, by one that is too old to do so by itself: it is a module like any other, of which
/// only the right to execute must be given back.
fn fetch(old: &Toolchain) -> anyhow::Result<Toolchain> {
    let version = format!("go{}", version("go"));
    let machine = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!(
            "{} is too old, and on {other} a newer Go is not got unasked",
            old.version
        ),
    };
    println!(
        "fetching {version} as a Go module: {} here is too old",
        old.version
    );
    let mut download = Command::new(&old.program);
    let module = format!("golang.org/toolchain@v0.0.1-{version}.linux-{machine}");
    download
        .args(["mod", "download", "-json", &module])
        .current_dir("/")
        .stdin(Stdio::null());
    let answer: serde_json::Value = serde_json::from_str(&process::output(&mut download)?)?;
    let home = answer["Dir"]
        .as_str()
        .context("go says where a module is")?;
    let home = Path::new(home);
    for directory in ["bin", &format!("pkg/tool/linux_{machine}")] {
        for file in fs::read_dir(home.join(directory))? {
            fs::set_permissions(file?.path(), fs::Permissions::from_mode(0o555))?;
        }
    }
    Ok(Toolchain {
        program: home.join("bin/go"),
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_module_file() {
        assert!(version("k8s.io/kubernetes").starts_with("v1."));
        assert!(version("helm.sh/helm/v4").starts_with("v4."));
        assert!(numbers(&format!("go{}", version("go"))) >= Some(FETCHES_TOOLCHAINS));
        assert_eq!(version("example.org/none"), "unknown");
        assert!(flags().contains(&format!("gitVersion={} ", version("k8s.io/kubernetes"))));
    }

    #[test]
    fn a_version_of_go_is_read_by_its_first_two_numbers() {
        assert_eq!(numbers("go1.26.8"), Some((1, 26)));
        assert_eq!(numbers("go1.19"), Some((1, 19)));
        assert_eq!(numbers("devel +abc"), None);
    }
}
