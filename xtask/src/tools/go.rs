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
    pub(super) given: Given,
    /// What C code in it needs: a file that tells whether it is there, and Debian's package that has it. None of it is
    /// built from C if this is empty.
    pub(super) needs: &'static [(&'static str, &'static str)],
    /// The source if it is ours, else nothing: then the module's version says what it is.
    pub(super) ours: &'static str,
}

/// What is used instead, once `KUBEBUILDER_ASSETS` says that versions are not our choice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// One in that directory.
    Assets,
    /// One there, or any on `PATH`.
    AssetsOrPath,
    /// Nothing: the parts of a node fit together, and are looked for in one directory.
    Never,
}

// The API server first among the large ones: the others share what is compiled for it.
#[rustfmt::skip]
pub(super) static ETCD: Tool = program("etcd", "WEIR_ETCD", "go.etcd.io/etcd/server/v3", "1 minute", Given::Assets);
#[rustfmt::skip]
pub(super) static API_SERVER: Tool = program("kube-apiserver", "WEIR_KUBE_APISERVER", "k8s.io/kubernetes/cmd/kube-apiserver", "4 to 6 minutes", Given::Assets);
#[rustfmt::skip]
pub(super) static CONTROLLER_MANAGER: Tool = program("kube-controller-manager", "WEIR_KUBE_CONTROLLER_MANAGER", "k8s.io/kubernetes/cmd/kube-controller-manager", "1 to 3 minutes", Given::AssetsOrPath);
#[rustfmt::skip]
pub(super) static KUBECTL: Tool = program("kubectl", "WEIR_KUBECTL", "k8s.io/kubernetes/cmd/kubectl", "half a minute", Given::Assets);
#[rustfmt::skip]
pub(super) static HELM: Tool = program("helm", "WEIR_HELM", "helm.sh/helm/v4/cmd/helm", "half a minute", Given::AssetsOrPath);

/// What nodes need besides. The tests are told where the first is; the others lie beside it.
#[rustfmt::skip]
pub(super) static KUBELET: Tool = program("kubelet", "WEIR_KUBELET", "k8s.io/kubernetes/cmd/kubelet", "1 to 2 minutes", Given::Never);
pub(super) static SCHEDULER: Tool =
    beside("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler");
pub(super) static PROXY: Tool = beside("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy");
#[rustfmt::skip]
pub(super) static CONTAINERD: Tool = beside("containerd", "github.com/containerd/containerd/v2/cmd/containerd");
#[rustfmt::skip]
pub(super) static SHIM: Tool = beside("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2");
pub(super) static CTR: Tool = beside("ctr", "github.com/containerd/containerd/v2/cmd/ctr");
pub(super) static RUNC: Tool = Tool {
    name: "runc",
    variable: None,
    source: Source::Go(Package {
        path: "github.com/opencontainers/runc",
        takes: A_LITTLE,
        given: Given::Never,
        needs: &[
            ("/usr/include/seccomp.h", "libseccomp-dev"),
            ("/usr/bin/pkg-config", "pkg-config"),
        ],
        ours: "",
    }),
};
#[rustfmt::skip]
pub(super) static CNI_PTP: Tool = beside("ptp", "github.com/containernetworking/plugins/plugins/main/ptp");
#[rustfmt::skip]
pub(super) static CNI_BRIDGE: Tool = beside("bridge", "github.com/containernetworking/plugins/plugins/main/bridge");
#[rustfmt::skip]
pub(super) static CNI_LOOPBACK: Tool = beside("loopback", "github.com/containernetworking/plugins/plugins/main/loopback");
#[rustfmt::skip]
pub(super) static CNI_HOST_LOCAL: Tool = beside("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local");
#[rustfmt::skip]
pub(super) static CNI_PORTMAP: Tool = beside("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap");
#[rustfmt::skip]
pub(super) static COREDNS: Tool = ours("coredns", "WEIR_COREDNS", "weir.dev/cluster/coredns", include_str!("../../../tests/cluster/coredns/main.go"));
#[rustfmt::skip]
pub(super) static WORKLOAD: Tool = ours("workload", "WEIR_WORKLOAD", "weir.dev/cluster/workload", include_str!("../../../tests/cluster/workload/main.go"));

const A_LITTLE: &str = "half a minute at most";

/// What containerd leaves out: file systems that no test uses, for which it would need C; tracing. What runc puts in.
const TAGS: &str = "no_btrfs,no_devmapper,no_zfs,no_tracing,seccomp";

const fn tool(
    name: &'static str,
    variable: Option<&'static str>,
    path: &'static str,
    takes: &'static str,
    given: Given,
    ours: &'static str,
) -> Tool {
    Tool {
        name,
        variable,
        source: Source::Go(Package {
            path,
            takes,
            given,
            needs: &[],
            ours,
        }),
    }
}

const fn program(
    name: &'static str,
    variable: &'static str,
    path: &'static str,
    takes: &'static str,
    given: Given,
) -> Tool {
    tool(name, Some(variable), path, takes, given, "")
}

const fn beside(name: &'static str, path: &'static str) -> Tool {
    tool(name, None, path, A_LITTLE, Given::Never, "")
}

const fn ours(
    name: &'static str,
    variable: &'static str,
    path: &'static str,
    source: &'static str,
) -> Tool {
    tool(name, Some(variable), path, A_LITTLE, Given::Never, source)
}

impl Package {
    /// Debian's packages that are missing for building it.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let absent = |(file, package): &(&str, &'static str)| {
            (!Path::new(file).exists()).then_some(*package)
        };
        let go = installed().is_empty().then_some("golang-go");
        go.into_iter()
            .chain(self.needs.iter().filter_map(absent))
            .collect()
    }

    fn cgo(&self) -> &'static str {
        if self.needs.is_empty() { "0" } else { "1" }
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

/// Where what is built from these modules, in this way, is kept together; a program of ours is kept apart, so that a
/// change of it builds nothing else anew.
pub(super) fn home(package: &Package, cache: &Path) -> PathBuf {
    let says_something = |line: &&str| !line.is_empty() && !line.starts_with("//");
    let module: Vec<&str> = MODULE.lines().filter(says_something).collect();
    let key = name_of(&[&module.concat(), SUMS, TAGS, &flags(), package.ours].concat());
    match package.ours {
        "" => cache.join(format!("kubernetes-{}-{key}", version("k8s.io/kubernetes"))),
        _ => cache.join(format!("cluster-{key}")),
    }
}

pub(super) fn find(name: &str, package: &Package, cache: &Path) -> Option<PathBuf> {
    let given = env::var_os("KUBEBUILDER_ASSETS")
        .filter(|value| !value.is_empty() && package.given != Given::Never);
    given
        .as_ref()
        .map(|assets| PathBuf::from(assets).join(name))
        .filter(|path| path.is_file())
        .or_else(|| {
            let any = given.is_some() && package.given == Given::AssetsOrPath;
            any.then(|| on_path(name))?
        })
        .or_else(|| Some(home(package, cache).join(name)).filter(|path| path.is_file()))
}

/// What builds it, as a person would type it.
pub(super) fn command(name: &str, package: &Package, cache: &Path) -> String {
    let to = home(package, cache).join(name);
    format!(
        "(cd tests/cluster && CGO_ENABLED={} go build -trimpath -tags {TAGS} -o {} {})",
        package.cgo(),
        to.display(),
        package.path
    )
}

/// Builds it. What was not built to its end is never found: it gets its name last.
pub(super) fn get(name: &str, package: &Package, root: &Path, cache: &Path) -> anyhow::Result<()> {
    let home = home(package, cache);
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
        .env("CGO_ENABLED", package.cgo())
        // A module that changes while it is built shares nothing with the build before.
        .env("GOFLAGS", "-mod=readonly")
        .env("GOTOOLCHAIN", "auto")
        .env("GOWORK", "off")
        .env_remove("GOROOT")
        .args(["build", "-trimpath", "-tags", TAGS, "-ldflags", &flags()])
        .arg("-o")
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
