//! Nodes as processes of this machine: containerd, kubelet and kube-proxy in namespaces of their own, on a network that
//! only they and the control plane are in.
//!
//! `hub.sh` is that network, `node.sh` one node. The control plane's programs listen on loopback in the hub's network
//! where a forwarder makes them reachable for the test.

mod forwarder;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node as Object;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::process::Command;

use super::access::run;
use super::programs::NodePrograms;
use super::server::{Guard, Server};
use super::{Cluster, PATIENCE, control};
use crate::image::Image;
use forwarder::Forwarder;

/// The address of the control plane for nodes and pods.
pub(super) const HUB: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);

/// The name of the image that answers requests and makes them: `tests/cluster/workload`.
pub const WORKLOAD: &str = "weir.test/workload:1";
/// The name of the image with a shell and the usual small programs.
pub const BUSYBOX: &str = "weir.test/busybox:1";

/// How kube-proxy makes Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyMode {
    /// With nftables.
    #[default]
    Nftables,
    /// With iptables.
    Iptables,
}

/// A node with a kubelet. Dropping it ends all that runs in it.
pub struct Node {
    /// Counts from 1.
    number: u8,
    first: Server,
    programs: PathBuf,
}

impl Node {
    /// What gives the kubelet the images in an archive, whose path goes behind it.
    pub const IMPORT: [&str; 5] = ["ctr", "--namespace=k8s.io", "images", "import", "--local"];

    /// The directory of `kubelet`, `ctr` and their like.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Its name in the cluster: `n1`.
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// Its address, where pods with `hostNetwork` and `NodePort`s are reached by other nodes. The test itself is on
    /// another network: see [`Node::command`].
    pub fn address(&self) -> IpAddr {
        Ipv4Addr::new(10, 89, 0, 10 + self.number).into()
    }

    /// A program that is to run in all the node's namespaces, with `kubelet` and its like on `PATH`. Killed when
    /// dropped.
    ///
    /// # Errors
    /// The node does not run.
    pub fn command(&self, program: &str) -> Result<Command> {
        let outer = self.first.id().context("the node does not run")?;
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
        let inner = children
            .split_whitespace()
            .next()
            .with_context(|| format!("{} has not begun", self.name()))?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={inner}"))
            .args(["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"])
            // What is in the PID namespace is a child of nsenter, and is to end with it.
            .args(["--", "setpriv", "--pdeathsig", "KILL", program])
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.programs.clone()).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(path)?);
        Ok(command)
    }

    /// Runs a program in the node to its end; returns its standard output.
    ///
    /// # Errors
    /// It ends unsuccessfully: the error shows all that it printed.
    pub async fn run(&self, words: &[&str]) -> Result<String> {
        let [program, arguments @ ..] = words else {
            bail!("name the program to be run in {}", self.name());
        };
        run(self.command(program)?.args(arguments), "").await
    }

    /// Sends a signal, such as `KILL`, to `containerd`, `kubelet` or `kube-proxy`. One that ends is started again.
    ///
    /// # Errors
    /// It has not been started.
    pub async fn signal(&self, program: &str, signal: &str) -> Result<()> {
        let script = r#"kill -s "$0" "$(cat "/run/weir/$1.pid")""#;
        self.run(&["sh", "-c", script, signal, program]).await?;
        Ok(())
    }

    /// Gives an image, as [`Image::write`] makes it, to the node.
    ///
    /// # Errors
    /// containerd does not take it.
    pub async fn load(&self, archive: &Path) -> Result<()> {
        let [ctr, arguments @ ..] = Node::IMPORT;
        let mut import = self.command(ctr)?;
        import.args(arguments).arg(std::path::absolute(archive)?);
        run(&mut import, "").await?;
        Ok(())
    }
}

impl Cluster {
    /// The nodes with kubelets: those that [`Options::nodes`](super::Options::nodes) asked for, `n1` first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Gives an archive with images to every node.
    ///
    /// # Errors
    /// A node does not take it.
    pub async fn load(&self, archive: &Path) -> Result<()> {
        futures::future::try_join_all(self.nodes.iter().map(|node| node.load(archive))).await?;
        Ok(())
    }

    /// Gives an image to every node.
    ///
    /// # Errors
    /// It cannot be written, or a node does not take it.
    pub async fn load_image(&self, image: &Image) -> Result<()> {
        let archive = tempfile::NamedTempFile::new_in(self.directory())?;
        image.write(archive.path())?;
        self.load(archive.path()).await
    }

    /// Starts the scheduler and lets the kubelets begin; waits until nodes, Services and the cluster's DNS can be used.
    pub(super) async fn begin_nodes(&mut self, programs: &NodePrograms) -> Result<()> {
        let kubeconfig = self.write_kubeconfig("system:kube-scheduler", None)?;
        let (program, directory) = (&programs.scheduler, &self.directory);
        let scheduler = control::scheduler(program, &self.guard, directory, &kubeconfig);
        let scheduler = scheduler.within(self.hub.as_ref().map(Hub::network));
        scheduler.start()?;
        self.scheduler = Some(scheduler);

        let api = format!("https://{HUB}:{}", self.address.port());
        self.write_kubeconfig_at(&api, "system:kube-proxy", None)?;
        for node in &self.nodes {
            let name = node.name();
            self.pki.kubelet(&name, node.address())?;
            let user = format!("system:node:{name}");
            self.write_kubeconfig_at(&api, &user, Some("system:nodes"))?;
        }
        std::fs::write(self.directory().join("api.ready"), "")?;

        let dns = include_str!("../../../cluster/coredns/coredns.yaml");
        self.kubectl_in(&["apply", "-f", "-"], dns).await?;
        let objects: Api<Object> = Api::all(self.client().await?);
        for node in &self.nodes {
            let name = node.name();
            let pods = format!("10.88.{}.0/24", node.number);
            // The range that the node's own configuration has.
            let range = Patch::Merge(json!({"spec": {"podCIDR": pods, "podCIDRs": [pods]}}));
            let look = async || {
                objects
                    .patch(&name, &PatchParams::default(), &range)
                    .await?;
                Ok(true)
            };
            node.first.until(PATIENCE, "known", look).await?;
        }
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        let words = ["wait", "--for=condition=Ready", "nodes", "--all", &patience];
        let ready = self.kubectl(&words).await;
        ready.with_context(|| format!("see the logs in {}", self.directory().display()))?;
        self.kubectl(&[
            "--namespace=kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            &patience,
        ])
        .await
        .context("the cluster's DNS does not start")?;
        Ok(())
    }
}

/// What must be there before the control plane of a cluster with nodes, and the nodes themselves.
pub(super) struct Nodes<'a> {
    pub(super) count: u8,
    pub(super) mode: ProxyMode,
    pub(super) programs: &'a NodePrograms,
    pub(super) guard: &'a Guard,
    pub(super) directory: &'a Path,
}

/// The network of the control plane, to which nodes are plugged. It goes with the value.
pub(super) struct Hub {
    // Dropped in this order.
    _forwarder: Forwarder,
    server: Server,
    network: PathBuf,
}

impl Hub {
    /// The file that stands for the network.
    pub(super) fn network(&self) -> &Path {
        &self.network
    }
}

impl Nodes<'_> {
    /// Makes the network. What will listen on loopback there at one of these addresses can be reached from here at the
    /// same.
    pub(super) async fn hub(&self, addresses: &[SocketAddr]) -> Result<Hub> {
        if self.count > 200 {
            bail!("{} nodes: 200 at most", self.count);
        }
        let inside = ["/etc", "/opt", "/run", "/var"];
        if let Some(hidden) = inside.iter().find(|path| self.directory.starts_with(path)) {
            bail!(
                "a node has a {hidden} of its own, and so would not see {}: set TMPDIR to another place",
                self.directory.display()
            );
        }
        let script = self.script("hub.sh", include_str!("hub.sh"))?;
        let mut arguments: Vec<OsString> = vec!["--net".into(), "bash".into(), script.into()];
        arguments.extend([self.directory.into(), self.count.to_string().into()]);
        let unshare = Path::new("unshare");
        let server = Server::new("hub", unshare, arguments, self.directory, self.guard);
        server.start()?;
        let ready = self.directory.join("hub.ready");
        let look = async || Ok(ready.exists());
        server.until(PATIENCE, "ready", look).await?;
        let process = server.id().context("the hub has ended")?;
        let network = PathBuf::from(format!("/proc/{process}/ns/net"));
        Ok(Hub {
            _forwarder: Forwarder::start(addresses, &network)?,
            server,
            network,
        })
    }

    /// Writes the images that every node is given: they are read when a node starts.
    pub(super) fn images(&self) -> Result<()> {
        let directory = self.directory.join("images");
        std::fs::create_dir(&directory)?;
        let programs = self.programs;
        let listed = std::process::Command::new(&programs.busybox)
            .arg("--list")
            .output()?;
        let busybox = "/bin/busybox";
        let mut shell = Image::new(BUSYBOX).program(busybox, &programs.busybox)?;
        for name in String::from_utf8(listed.stdout)?.lines() {
            if name != "busybox" {
                shell = shell.link(&format!("/bin/{name}"), busybox);
            }
        }
        let pause = Image::new("weir.test/pause:1")
            .program(busybox, &programs.busybox)?
            // Some thirty years.
            .entrypoint(&[busybox, "sleep", "1000000000"])
            .user("65532:65532");
        let coredns = Image::new("weir.test/coredns:1")
            .program("/coredns", &programs.coredns)?
            .entrypoint(&["/coredns"]);
        let workload = Image::new(WORKLOAD)
            .program("/workload", &programs.workload)?
            .entrypoint(&["/workload"])
            .user("65532:65532");
        for (name, image) in [
            ("busybox", shell),
            ("pause", pause),
            ("coredns", coredns),
            ("workload", workload),
        ] {
            image.write(&directory.join(format!("{name}.tar")))?;
        }
        Ok(())
    }

    /// Starts the nodes: what needs no API server is made ready, and the rest waits for `begin_nodes`.
    pub(super) fn start(&self, hub: &Hub) -> Result<Vec<Node>> {
        let script = self.script("node.sh", include_str!("node.sh"))?;
        let hub = hub.server.id().context("the hub has ended")?.to_string();
        let mode = match self.mode {
            ProxyMode::Nftables => "nftables",
            ProxyMode::Iptables => "iptables",
        };
        let start = |number: u8| {
            let name = format!("n{number}");
            let group = format!("weir-{}-{name}", self.guard.number());
            let mut arguments: Vec<OsString> = vec!["--net".into(), "bash".into()];
            arguments.extend([script.clone().into(), self.directory.into()]);
            let counts = [number.to_string(), self.count.to_string()];
            arguments.extend(counts.map(OsString::from));
            arguments.extend([hub.clone().into(), group.into()]);
            arguments.push(self.programs.directory.clone().into());
            arguments.push(mode.into());
            let unshare = Path::new("unshare");
            let first = Server::new(&name, unshare, arguments, self.directory, self.guard);
            first.start()?;
            Ok(Node {
                number,
                first,
                programs: self.programs.directory.clone(),
            })
        };
        (1..=self.count).map(start).collect()
    }

    fn script(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }
}
