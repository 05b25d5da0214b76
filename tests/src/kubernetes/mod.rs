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
//! and also when the test process is killed. There are no kubelets: [`Cluster::node`] and [`Cluster::schedule_pods`]
//! stand in for them where a test needs pods that look as if they ran.

mod access;
mod control;
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
pub use nodes::{RunningPods, machine_address};
use pki::Pki;
use programs::Programs;
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
    /// Where to keep it; a new directory below `TMPDIR` if `None`. It is removed with the cluster.
    pub directory: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            etcd_members: 1,
            controller_manager: true,
            directory: None,
        }
    }
}

/// A running cluster. Dropping it kills its processes and removes its files.
pub struct Cluster {
    // In this order they are dropped: clients of a server before it, and the directory after all who write there.
    controller_manager: Option<Server>,
    api_server: Server,
    etcd: Vec<Server>,
    _guard: Guard,
    pki: Pki,
    programs: Programs,
    directory: Directory,
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
        let directory = Directory::new(options.directory)?;
        let root = directory.path().to_owned();
        let guard = Guard::watch(&root)?;
        let pki = Pki::create(&root.join("pki"))?;

        let mut taken = ports::free(1 + 2 * options.etcd_members)?.into_iter();
        let mut next = || taken.next().context("as many ports as were asked for");
        let address = next()?;
        let mut members = Vec::new();
        for _ in 0..options.etcd_members {
            members.push((next()?, next()?));
        }
        let etcd = control::etcd(&programs, &guard, &root, &members);
        let etcd_addresses = members
            .iter()
            .map(|(client, _)| *client)
            .collect::<Vec<_>>();
        let api_server =
            control::api_server(&programs, &guard, &root, &pki, address, &etcd_addresses);

        let mut cluster = Cluster {
            controller_manager: None,
            api_server,
            etcd,
            _guard: guard,
            pki,
            programs,
            directory,
            kubeconfig: root.join("admin.kubeconfig"),
            address,
            etcd_addresses,
        };
        cluster.write_kubeconfig("admin", Some("system:masters"))?;
        for member in &cluster.etcd {
            member.start()?;
        }
        cluster.api_server.start()?;
        cluster.ready().await?;
        if options.controller_manager {
            let kubeconfig = cluster.write_kubeconfig("system:kube-controller-manager", None)?;
            let guard = &cluster._guard;
            let manager = control::controller_manager(
                &cluster.programs,
                guard,
                &root,
                &cluster.pki,
                &kubeconfig,
            );
            manager.start()?;
            cluster.controller_manager = Some(manager);
            cluster.default_service_account().await?;
        }
        Ok(Some(cluster))
    }

    /// Where all files of the cluster are, among them the log of each server.
    pub fn directory(&self) -> &Path {
        self.directory.path()
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

/// A directory that goes with the value.
struct Directory(PathBuf);

impl Directory {
    fn new(given: Option<PathBuf>) -> Result<Directory> {
        let path = match given {
            Some(path) => {
                std::fs::create_dir_all(&path)
                    .with_context(|| format!("cannot make {}", path.display()))?;
                path
            }
            None => tempfile::TempDir::with_prefix("weir-cluster-")?.keep(),
        };
        Ok(Directory(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            println!("{} could not be removed: {error}", self.0.display());
        }
    }
}

/// Where servers listen: nobody outside this machine is to reach them.
fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port)
}
