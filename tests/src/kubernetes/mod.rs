//! A real Kubernetes API server for a test, with RBAC and TLS on: etcd, `kube-apiserver` and `kube-controller-manager`
//! as processes, and the real `kubectl` and `helm` to use it with.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use weir_tests::kubernetes::Cluster;
//! let Some(cluster) = Cluster::start().await? else { return Ok(()) };
//! cluster.kubectl(&["create", "namespace", "shop"]).await?;
//! cluster.shutdown().await
//! # }
//! ```
//!
//! Everything is bound to 127.0.0.1 and lies in one directory below `TMPDIR`; it goes when the [`Cluster`] is dropped,
//! and also when the test process is killed.
//!
//! With [`Options::nodes`] there are real nodes, each with containerd, kubelet and kube-proxy in namespaces of its own, a
//! network between them and the control plane, and a DNS: see [`Node`]. That needs root, and some ten seconds. Without
//! them [`Cluster::node`] and [`Cluster::schedule_pods`] stand in where a test needs pods that look as if they ran.

mod access;
mod control;
mod node;
mod nodes;
mod pki;
mod ports;
mod programs;
mod server;
pub mod weir;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub use access::client;
pub use node::{BUSYBOX, Node, ProxyMode, WORKLOAD};
use node::{Hub, Nodes};
pub use nodes::{RunningPods, machine_address};
use pki::Pki;
use programs::{NodePrograms, Programs};
use server::{Guard, Server};

/// How long a server may take to answer on a machine that builds something else at the same time.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a cluster consists of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Members of etcd; 1 unless the test is about losing one of them, then 3.
    pub etcd_members: usize,
    /// Whether `kube-controller-manager` runs: without it there are no default ServiceAccounts, no EndpointSlices of
    /// Services, no Pods of Deployments and DaemonSets, and no garbage collection; the API server alone is ready sooner.
    pub controller_manager: bool,
    /// Nodes with kubelets, at most 200; then the controller manager runs always.
    pub nodes: u8,
    /// How Services are made on them.
    pub proxy_mode: ProxyMode,
    /// Where to keep it; a new directory below `TMPDIR` if `None`. It is removed with the cluster.
    pub directory: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            etcd_members: 1,
            controller_manager: true,
            nodes: 0,
            proxy_mode: ProxyMode::default(),
            directory: None,
        }
    }
}

/// A running cluster. Dropping it kills its processes and removes its files.
pub struct Cluster {
    // In this order they are dropped: clients of a server before it, and the guard, which takes the directory with it,
    // after all who write there.
    nodes: Vec<Node>,
    scheduler: Option<Server>,
    controller_manager: Option<Server>,
    api_server: Server,
    etcd: Vec<Server>,
    /// The network of the control plane, if there are nodes.
    hub: Option<Hub>,
    guard: Guard,
    pki: Pki,
    programs: Programs,
    directory: PathBuf,
    /// Of the user who may do everything.
    kubeconfig: PathBuf,
    address: SocketAddr,
    /// Where each member of etcd answers its clients.
    etcd_addresses: Vec<SocketAddr>,
}

/// Whether the programs are there. `false` means that this is not CI, and that a line that begins with `NOT RUN` has
/// been printed.
///
/// # Errors
/// One is missing on CI.
pub fn available() -> Result<bool> {
    Ok(Programs::find()?.is_some())
}

impl Cluster {
    /// A cluster with one etcd and the controller manager. `None` if a program is missing and this is not CI; then a
    /// line that begins with `NOT RUN` has been printed.
    ///
    /// # Errors
    /// A program is missing on CI, or a server does not become ready: the error shows the end of its log.
    pub async fn start() -> Result<Option<Cluster>> {
        Cluster::start_with(Options::default()).await
    }

    /// The same with these options.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_with(options: Options) -> Result<Option<Cluster>> {
        let Some(programs) = Programs::find()? else {
            return Ok(None);
        };
        let node_programs = match options.nodes {
            0 => None,
            _ => match NodePrograms::find()? {
                None => return Ok(None),
                found => found,
            },
        };
        let root = make(options.directory)?;
        let guard = Guard::watch(&root)?;
        let pki = Pki::create(&root.join("pki"))?;
        let nodes = node_programs.as_ref().map(|programs| Nodes {
            count: options.nodes,
            mode: options.proxy_mode,
            programs,
            guard: &guard,
            directory: &root,
        });

        let mut taken = ports::free(1 + 2 * options.etcd_members)?.into_iter();
        let mut next = || taken.next().context("as many ports as were asked for");
        let address = next()?;
        let mut members = Vec::new();
        for _ in 0..options.etcd_members {
            members.push((next()?, next()?));
        }
        let etcd_addresses = members
            .iter()
            .map(|(client, _)| *client)
            .collect::<Vec<_>>();

        let (hub, machines) = match &nodes {
            Some(nodes) => {
                nodes.images()?;
                let forwarded = [&[address], &etcd_addresses[..]].concat();
                let hub = nodes.hub(&forwarded).await?;
                let machines = nodes.start(&hub)?;
                (Some(hub), machines)
            }
            None => (None, Vec::new()),
        };
        let network = hub.as_ref().map(Hub::network);
        let etcd = control::etcd(&programs, &guard, &root, &members)
            .into_iter()
            .map(|member| member.within(network))
            .collect();
        let with_nodes = options.nodes > 0;
        let api_server = control::api_server(
            &programs,
            &guard,
            &root,
            &pki,
            address,
            &etcd_addresses,
            with_nodes,
        );

        let mut cluster = Cluster {
            nodes: machines,
            scheduler: None,
            controller_manager: None,
            api_server: api_server.within(network),
            etcd,
            hub,
            guard,
            pki,
            programs,
            kubeconfig: root.join("admin.kubeconfig"),
            directory: root,
            address,
            etcd_addresses,
        };
        cluster
            .begin(options.controller_manager || with_nodes)
            .await?;
        if let Some(programs) = node_programs {
            cluster.begin_nodes(&programs).await?;
        }
        Ok(Some(cluster))
    }

    /// Starts the control plane.
    async fn begin(&mut self, controller_manager: bool) -> Result<()> {
        self.write_kubeconfig("admin", Some("system:masters"))?;
        for member in &self.etcd {
            member.start()?;
        }
        self.api_server.start()?;
        self.ready().await?;
        if controller_manager {
            let kubeconfig = self.write_kubeconfig("system:kube-controller-manager", None)?;
            let manager = control::controller_manager(
                &self.programs,
                &self.guard,
                &self.directory,
                &self.pki,
                &kubeconfig,
                self.hub.is_some(),
            );
            let manager = manager.within(self.hub.as_ref().map(Hub::network));
            manager.start()?;
            self.controller_manager = Some(manager);
            self.default_service_account().await?;
        }
        Ok(())
    }

    /// Where all files of the cluster are, among them the log of each server.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The API server's URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate of the authority that signed the API server's.
    pub fn ca_file(&self) -> &Path {
        self.pki.ca_file()
    }

    /// Kills the API server with SIGKILL. Watches break, and connections are refused until it is started again.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn stop_api_server(&self) -> Result<()> {
        self.api_server.kill()
    }

    /// Starts the API server again, on the same port and with the same data, and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start_api_server(&self) -> Result<()> {
        self.api_server.start()?;
        self.ready().await
    }

    /// Stops the API server as if it hung: connections are accepted by the kernel and never answered.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause_api_server(&self) -> Result<()> {
        self.api_server.signal(rustix::process::Signal::STOP)
    }

    /// Lets a paused API server go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume_api_server(&self) -> Result<()> {
        self.api_server.signal(rustix::process::Signal::CONT)
    }

    /// Kills every member of etcd. The API server stays, and fails what it is asked.
    ///
    /// # Errors
    /// One cannot be waited for.
    pub fn stop_etcd(&self) -> Result<()> {
        self.etcd.iter().try_for_each(Server::kill)
    }

    /// Starts the members of etcd that do not run, with the data that they had, and waits until the API server is
    /// ready.
    ///
    /// # Errors
    /// One cannot be started, or the API server does not become ready.
    pub async fn start_etcd(&self) -> Result<()> {
        for member in self.etcd.iter().filter(|member| !member.runs()) {
            member.start()?;
        }
        self.ready().await
    }

    /// Kills the member of etcd that leads, and returns its number. The others elect another within some seconds, if
    /// they are a majority.
    ///
    /// # Errors
    /// No member says that it leads.
    pub async fn stop_etcd_leader(&self) -> Result<usize> {
        for (number, address) in self.etcd_addresses.iter().enumerate() {
            if self.etcd[number].runs() && control::leads(*address).await? {
                self.etcd[number].kill()?;
                return Ok(number);
            }
        }
        bail!("no member of etcd leads")
    }

    /// Ends everything. The same as dropping it, but an error is told.
    ///
    /// # Errors
    /// A process cannot be waited for.
    pub async fn shutdown(self) -> Result<()> {
        if let Some(manager) = &self.controller_manager {
            manager.kill()?;
        }
        self.api_server.kill()?;
        self.stop_etcd()
    }

    /// Waits until the API server says that it is ready.
    async fn ready(&self) -> Result<()> {
        let client = self.client().await?;
        self.api_server
            .until(PATIENCE, "ready", async || {
                let request = http::Request::get("/readyz").body(Vec::new())?;
                Ok(client.request_text(request).await? == "ok")
            })
            .await
    }
}

/// Makes the directory; a new one if none is given.
fn make(given: Option<PathBuf>) -> Result<PathBuf> {
    match given {
        Some(path) => {
            std::fs::create_dir_all(&path)
                .with_context(|| format!("cannot make {}", path.display()))?;
            Ok(path)
        }
        None => Ok(tempfile::TempDir::with_prefix("weir-cluster-")?.keep()),
    }
}

/// Where servers listen: nobody outside this machine is to reach them.
fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port)
}
