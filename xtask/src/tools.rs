//! Programs of others that tests, checks and comparisons use: found, or got where that may be done unasked.
//!
//! Tests never search: each tool's place is handed to them in an environment variable, and a test whose variable is
//! not set skips itself with a line that says so. With `CI=true` nothing may be missing.
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, anyhow};

use crate::process;

mod go;

/// A program, and how it is got.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// The environment variable that tells tests where it is; none if no test uses it.
    variable: Option<&'static str>,
    source: Source,
}

enum Source {
    /// A package of Debian's and Ubuntu's.
    Apt { package: &'static str },
    /// A crate with a program, built into the cache.
    Crate { version: &'static str },
    /// Python with the packages of `xtask/python-requirements.txt`, in an environment of its own in the cache.
    Python,
    /// A package of a Go module, built into the cache.
    Go(go::Package),
}

impl Tool {
    const fn apt(
        name: &'static str,
        variable: Option<&'static str>,
        package: &'static str,
    ) -> Self {
        Self {
            name,
            variable,
            source: Source::Apt { package },
        }
    }
}

pub(crate) static CURL: Tool = Tool::apt("curl", Some("WEIR_CURL"), "curl");
pub(crate) static IP: Tool = Tool::apt("ip", None, "iproute2");
pub(crate) static NFT: Tool = Tool::apt("nft", None, "nftables");
pub(crate) static IPTABLES: Tool = Tool::apt("iptables", None, "iptables");
pub(crate) static WRK: Tool = Tool::apt("wrk", Some("WEIR_WRK"), "wrk");
pub(crate) static H2LOAD: Tool = Tool::apt("h2load", Some("WEIR_H2LOAD"), "nghttp2-client");
pub(crate) static NGINX: Tool = Tool::apt("nginx", None, "nginx-light");
pub(crate) static HAPROXY: Tool = Tool::apt("haproxy", None, "haproxy");
static CONNTRACK: Tool = Tool::apt("conntrack", None, "conntrack");
static BUSYBOX: Tool = Tool::apt("busybox", Some("WEIR_BUSYBOX"), "busybox-static");
pub(crate) static PYTHON: Tool = Tool {
    name: "python",
    variable: Some("WEIR_PYTHON"),
    source: Source::Python,
};
pub(crate) static CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    variable: None,
    source: Source::Crate { version: "0.20.2" },
};

/// What a Kubernetes cluster without nodes consists of, and what it is used with.
pub(crate) static FOR_CLUSTERS: &[&Tool] = &[
    &go::ETCD,
    &go::API_SERVER,
    &go::CONTROLLER_MANAGER,
    &go::KUBECTL,
    &go::HELM,
];

/// What its nodes need besides. Only root can use it.
pub(crate) static FOR_NODES: &[&Tool] = &[
    &go::KUBELET,
    &go::SCHEDULER,
    &go::PROXY,
    &go::CONTAINERD,
    &go::SHIM,
    &go::CTR,
    &go::RUNC,
    &go::CNI_PTP,
    &go::CNI_BRIDGE,
    &go::CNI_LOOPBACK,
    &go::CNI_HOST_LOCAL,
    &go::CNI_PORTMAP,
    &go::COREDNS,
    &go::WORKLOAD,
    &IP,
    &NFT,
    &IPTABLES,
    &CONNTRACK,
    &BUSYBOX,
];

/// What other tests have use for.
static FOR_OTHER_TESTS: &[&Tool] = &[&CURL, &IP, &NFT, &IPTABLES, &WRK, &H2LOAD, &PYTHON];

/// What `cargo test` alone has use for; without what nodes need where they could not be made.
pub(crate) fn for_tests() -> Vec<&'static Tool> {
    let nodes = if is_root() { FOR_NODES } else { &[] };
    [FOR_OTHER_TESTS, FOR_CLUSTERS, nodes].concat()
}

const REQUIREMENTS: &str = include_str!("../python-requirements.txt");

/// Where a distribution may put a program; servers stand in `sbin`, which is not on everybody's `PATH`.
const ALSO: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path)
        .chain(ALSO.map(PathBuf::from))
        .map(|directory| directory.join(program));
    candidates.find(|candidate| candidate.is_file())
}

/// Where tools are built and kept between runs and between checkouts.
///
/// # Errors
/// None of `WEIR_CACHE`, `XDG_CACHE_HOME` and `HOME` is set.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("WEIR_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("weir")))
        .or_else(|| Some(set("HOME")?.join(".cache/weir")))
        .context("say where tools may be kept: WEIR_CACHE=DIRECTORY")
}

/// FNV-1a: a name for a text that is the same on every machine and with every compiler.
fn name_of(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

impl Tool {
    /// Where it is kept in the cache; tools from elsewhere are not.
    fn home(&self, cache: &Path) -> PathBuf {
        match &self.source {
            Source::Apt { .. } => cache.to_owned(),
            Source::Crate { version } => cache.join(format!("{}-{version}", self.name)),
            Source::Python => cache.join(format!("{}-{}", self.name, name_of(REQUIREMENTS))),
            Source::Go(package) => go::home(package, cache),
        }
    }

    /// The packages to install, for it or as what it is made from.
    fn packages(&self) -> Vec<&'static str> {
        match &self.source {
            Source::Apt { package } => vec![*package],
            Source::Python if python_with_venv().is_none() => vec!["python3-venv"],
            Source::Go(package) => package.missing(),
            Source::Crate { .. } | Source::Python => Vec::new(),
        }
    }

    fn find(&self, cache: &Path) -> Option<PathBuf> {
        match &self.source {
            Source::Apt { .. } => on_path(self.name),
            Source::Go(package) => go::find(self.name, package, cache),
            Source::Crate { .. } => {
                Some(self.home(cache).join("bin").join(self.name)).filter(|path| path.is_file())
            }
            Source::Python => {
                let python = self.home(cache).join("bin/python");
                // An environment breaks when the Python it was made from goes away.
                python_can(&python, "import requests, grpc, grpc_tools").then_some(python)
            }
        }
    }

    /// What gets it, as a person would type it.
    fn command(&self, cache: &Path) -> String {
        let home = self.home(cache);
        match &self.source {
            Source::Go(package) => go::command(self.name, package, cache),
            Source::Apt { package } => format!("sudo apt-get install {package}"),
            Source::Crate { version } => {
                format!(
                    "cargo install {} --locked --version {version} --root {}",
                    self.name,
                    home.display()
                )
            }
            Source::Python => {
                let home = home.display();
                format!(
                    "python3 -m venv {home} && {home}/bin/pip install -r xtask/python-requirements.txt"
                )
            }
        }
    }

    fn get(&self, root: &Path, cache: &Path) -> anyhow::Result<()> {
        let home = self.home(cache);
        match &self.source {
            Source::Go(package) => go::get(self.name, package, root, cache),
            // Packages come before all else, in one go: see `Tools::get`.
            Source::Apt { .. } => Ok(()),
            Source::Crate { version } => {
                let build = cache.join(format!("build-{}", self.name));
                let mut install = process::cargo(root);
                install
                    .args([
                        "install",
                        self.name,
                        "--locked",
                        "--version",
                        version,
                        "--root",
                    ])
                    .arg(&home);
                // Not where this project's crates are built, and not with its flags.
                install
                    .arg("--target-dir")
                    .arg(&build)
                    .env_remove("RUSTFLAGS");
                let installed = process::run(&mut install);
                if build.exists() {
                    fs::remove_dir_all(&build)?;
                }
                installed
            }
            Source::Python => {
                let python = python_with_venv()
                    .context("no python3 here can make environments: get Debian's python3-venv")?;
                if home.exists() {
                    fs::remove_dir_all(&home)?;
                }
                process::run(Command::new(python).args(["-m", "venv"]).arg(&home))?;
                let mut pip = Command::new(home.join("bin/python"));
                pip.args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--no-input",
                    "--disable-pip-version-check",
                    "--requirement",
                ]);
                process::run(
                    pip.arg(root.join("xtask/python-requirements.txt"))
                        .stdin(Stdio::null()),
                )
            }
        }
    }
}

fn python_can(python: impl AsRef<OsStr>, what: &str) -> bool {
    let mut python = Command::new(python);
    python
        .args(["-c", what])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    python.status().is_ok_and(|status| status.success())
}

/// A Python that can make environments: Debian's cannot until `python3-venv` is there.
fn python_with_venv() -> Option<PathBuf> {
    let candidates = on_path("python3")
        .into_iter()
        .chain([PathBuf::from("/usr/bin/python3")]);
    candidates
        .into_iter()
        .find(|python| python_can(python, "import venv, ensurepip"))
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Whether packages can be installed without asking: as root, on Debian or Ubuntu.
fn may_apt() -> bool {
    is_root() && on_path("apt-get").is_some()
}

fn apt_install(packages: &[&str]) -> anyhow::Result<()> {
    let _quiet = NoServices::begin();
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        process::quietly(&mut apt)
    };
    apt(&["update"])?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(packages);
    apt(&install)
}

/// While this value lives, packages start no service: nginx and haproxy are wanted as programs, and nobody asked for a
/// server on port 80. Debian's own means for it is this file; one that is there already stays as it is.
struct NoServices(Option<&'static Path>);

impl NoServices {
    fn begin() -> Self {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = Path::new("/usr/sbin/policy-rc.d");
        let made = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(path);
        let written = made
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n"));
        Self(written.is_ok().then_some(path))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            // Left behind it would keep later packages from starting; there is no better place to say so.
            if let Err(error) = fs::remove_file(path) {
                println!("!! remove {} by hand: {error}", path.display());
            }
        }
    }
}

/// What is there, and what is not.
pub(crate) struct Tools {
    found: BTreeMap<&'static str, PathBuf>,
    variables: BTreeMap<&'static str, PathBuf>,
    /// One line for each that is missing: why, and the command that gets it.
    missing: Vec<String>,
}

impl Tools {
    /// Says what is there and what will be got, without getting anything.
    ///
    /// # Errors
    /// There is nowhere to keep tools.
    pub(crate) fn announce(needed: &[&Tool]) -> anyhow::Result<()> {
        let cache = cache()?;
        println!(
            "It needs these programs; what is built for it is kept in {} (WEIR_CACHE):",
            cache.display()
        );
        for tool in needed {
            let state = match (tool.find(&cache), &tool.source) {
                (Some(path), _) => path.display().to_string(),
                (None, Source::Apt { package }) if may_apt() => {
                    format!("missing, will be got: apt-get install {package}")
                }
                (None, Source::Apt { .. }) if !may_apt() => {
                    format!("missing; to get it: {}", tool.command(&cache))
                }
                (None, _) => format!("missing, will be got: {}", tool.command(&cache)),
            };
            println!("  {:<12}{state}", tool.name);
        }
        Ok(())
    }

    /// Finds the tools, and gets those that are missing where that may be done unasked.
    ///
    /// # Errors
    /// There is nowhere to keep tools. A tool that cannot be had is no error here: see [`Tools::missing`].
    pub(crate) fn get(root: &Path, needed: &[&Tool]) -> anyhow::Result<Self> {
        let cache = cache()?;
        fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
        // Two runs at once must not build the same tool in the same place.
        let lock = fs::File::create(cache.join("lock"))?;
        if lock.try_lock().is_err() {
            println!("Another run is getting programs: waiting for it.");
            lock.lock()?;
        }
        let mut tools = Self {
            found: BTreeMap::new(),
            variables: BTreeMap::new(),
            missing: Vec::new(),
        };
        let absent: Vec<&Tool> = needed
            .iter()
            .copied()
            .filter(|tool| tool.find(&cache).is_none())
            .collect();
        let packages: Vec<&str> = absent.iter().flat_map(|tool| tool.packages()).collect();
        let installed = match packages.is_empty() {
            true => Ok(()),
            false if may_apt() => apt_install(&packages),
            false => Err(anyhow!(
                "packages can be installed as root on Debian and Ubuntu only"
            )),
        };
        for &tool in needed {
            let got = match (tool.find(&cache), &installed) {
                (Some(_), _) => Ok(()),
                (None, Err(error)) if !tool.packages().is_empty() => Err(format!("{error:#}")),
                (None, _) => tool.get(root, &cache).map_err(|error| format!("{error:#}")),
            };
            match tool.find(&cache) {
                Some(place) => {
                    tools
                        .variables
                        .extend(tool.variable.map(|variable| (variable, place.clone())));
                    tools.found.insert(tool.name, place);
                }
                None => {
                    let why = got
                        .err()
                        .unwrap_or_else(|| "it was installed, but cannot be found".to_owned());
                    let command = tool.command(&cache);
                    tools.missing.push(format!(
                        "{} is missing ({why}); to get it: {command}",
                        tool.name
                    ));
                }
            }
        }
        Ok(tools)
    }

    pub(crate) fn place(&self, tool: &Tool) -> Option<&Path> {
        self.found.get(tool.name).map(PathBuf::as_path)
    }

    pub(crate) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// What tells tests where the tools are.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.variables
            .iter()
            .map(|(variable, place)| (*variable, place.as_path()))
    }
}
