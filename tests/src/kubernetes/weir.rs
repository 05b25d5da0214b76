//! Weir in a cluster, as a person installs it: both charts by helm, the control planes and agents that its Deployment
//! and DaemonSet ask for as processes, each with the ServiceAccount, the token and the node of its Pod.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::{Cluster, Options, RunningPods};
use crate::{Backend, call, eventually, eventually_within, netns, programs};

/// Weir's own namespace.
pub const NAMESPACE: &str = "weir-system";
/// Where control planes listen, each at an address of its own.
const GRPC: u16 = 15_010;
const ADMIN: u16 = 15_014;
/// Where agents listen.
const PROXY: u16 = 15_081;
const AGENT_ADMIN: u16 = 15_082;
/// How long anything may take on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program of Weir's. Killed when dropped.
pub struct Process {
    child: Child,
    /// What it is called in errors.
    name: String,
    log: PathBuf,
}

impl Process {
    fn start(name: &str, arguments: &[String], directory: &std::path::Path) -> Result<Process> {
        let log = directory.join(format!("{name}.log"));
        let out = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)?;
        let child = Command::new(programs::weir())
            .args(arguments)
            .env("RUST_LOG", "info,weir_control_plane=debug")
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Process {
            child,
            name: name.to_owned(),
            log,
        })
    }

    /// What it has logged.
    ///
    /// # Errors
    /// The file is gone.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// Its number among the processes.
    ///
    /// # Errors
    /// It has ended.
    pub fn id(&self) -> Result<u32> {
        self.child
            .id()
            .with_context(|| format!("{} has ended", self.name))
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Ends it with SIGTERM, and waits.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.with_context(|| format!("{} does not end", self.name))??;
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        let pid = id
            .and_then(Pid::from_raw)
            .with_context(|| format!("{} has ended", self.name))?;
        Ok(kill_process(pid, signal)?)
    }
}

/// A control plane, and where it is.
pub struct ControlPlane {
    /// The program.
    pub process: Process,
    address: IpAddr,
    arguments: Vec<String>,
}

impl ControlPlane {
    /// Its admin address.
    pub fn admin(&self) -> SocketAddr {
        (self.address, ADMIN).into()
    }

    /// What it says when it is asked whether it is ready.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ready(&self) -> Result<call::Got> {
        call::get(self.admin(), "/readyz").await
    }

    /// One figure of its metrics; those of several labels are added up.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn figure(&self, name: &str) -> Result<f64> {
        figure(self.admin(), name).await
    }
}

/// An agent, and where it is.
pub struct Agent {
    /// The program.
    pub process: Process,
    /// Its node.
    pub node: String,
    address: IpAddr,
    arguments: Vec<String>,
}

impl Agent {
    /// Where it is an HTTP proxy.
    pub fn proxy(&self) -> SocketAddr {
        (self.address, PROXY).into()
    }

    /// Asks a service through it, as `GET path`.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn get(&self, host: &str, path: &str) -> Result<call::Got> {
        let mut request = call::request("GET", path, "")?;
        request.headers_mut().insert("host", host.parse()?);
        call::send(self.proxy(), request).await
    }

    /// One figure of its metrics.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn figure(&self, name: &str) -> Result<f64> {
        figure((self.address, AGENT_ADMIN).into(), name).await
    }
}

async fn figure(admin: SocketAddr, name: &str) -> Result<f64> {
    let page = call::get(admin, "/metrics").await?.text();
    let lines = page
        .lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum())
}

/// A cluster with Weir in it.
pub struct Weir {
    /// The cluster.
    pub cluster: Cluster,
    /// By number, from 1. The first leads at first.
    pub control_planes: BTreeMap<u8, ControlPlane>,
    /// By node.
    pub agents: BTreeMap<String, Agent>,
    _service: Service,
    _pods: RunningPods,
}

/// What kube-proxy is to agents: one address, behind which is any control plane that accepts a connection.
struct Service(JoinHandle<()>);

impl Service {
    async fn start() -> Result<Service> {
        let listener = TcpListener::bind(("127.0.0.1", GRPC)).await?;
        Ok(Service(tokio::spawn(async move {
            while let Ok((mut agent, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut behind = [1, 2].map(netns::address);
                    fastrand::shuffle(&mut behind);
                    for address in behind {
                        if let Ok(mut control_plane) = TcpStream::connect((address, GRPC)).await {
                            // How it ends is the agent's business.
                            let _ = copy_bidirectional(&mut agent, &mut control_plane).await;
                            return;
                        }
                    }
                });
            }
        })))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Weir {
    /// Puts this thread into a network of its own, starts a cluster with `nodes` there, installs both charts, and runs
    /// what they ask for. `None` where programs or rights are missing and this is not CI.
    ///
    /// # Errors
    /// Something does not come up; the error says what, and what it logged.
    pub async fn install(nodes: &[&str]) -> Result<Option<Weir>> {
        Weir::install_with(nodes, Options::default()).await
    }

    /// The same with a cluster of these options.
    ///
    /// # Errors
    /// As [`Weir::install`].
    pub async fn install_with(nodes: &[&str], options: Options) -> Result<Option<Weir>> {
        if !super::available()? || !netns::enter()? {
            return Ok(None);
        }
        let Some(cluster) = Cluster::start_with(options).await? else {
            return Ok(None);
        };
        for node in nodes {
            cluster.node(node).await?;
        }
        let pods = cluster
            .schedule_pods(|pod| Some(netns::address(address_of(pod))))
            .await?;
        let charts = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts");
        for chart in ["weir-crds", "weir"] {
            let path = format!("{charts}/{chart}");
            cluster
                .helm(&[
                    "install",
                    chart,
                    &path,
                    "--namespace",
                    NAMESPACE,
                    "--create-namespace",
                ])
                .await?;
        }
        let mut weir = Weir {
            cluster,
            control_planes: BTreeMap::new(),
            agents: BTreeMap::new(),
            _service: Service::start().await?,
            _pods: pods,
        };
        weir.start_control_plane(1).await?;
        for node in nodes {
            weir.start_agent(node).await?;
        }
        Ok(Some(weir))
    }

    /// The Pods of one component, once there are `count`.
    async fn pods(&self, component: &str, count: usize) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client().await?, NAMESPACE);
        let list =
            ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
        Ok(eventually_within(
            PATIENCE,
            &format!("{count} pods of {component}"),
            async || {
                let found = pods.list(&list).await.map_err(|error| error.to_string())?;
                let found: Vec<Pod> = found
                    .into_iter()
                    .filter(|pod| {
                        pod.spec
                            .as_ref()
                            .is_some_and(|spec| spec.node_name.is_some())
                    })
                    .collect();
                if found.len() < count {
                    Err(format!("{} pods", found.len()))
                } else {
                    Ok(found)
                }
            },
        )
        .await)
    }

    /// Starts a control plane as one of the Deployment's Pods, with its ServiceAccount; returns when it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start_control_plane(&mut self, number: u8) -> Result<()> {
        self.launch_control_plane(number).await?;
        let control_plane = &self.control_planes[&number];
        let ready = async || match control_plane.ready().await {
            Ok(got) if got.status == 200 => Ok(()),
            Ok(got) => Err(got.text()),
            Err(error) => Err(error.to_string()),
        };
        eventually_within(PATIENCE, "the control plane to be ready", ready).await;
        Ok(())
    }

    /// The same without waiting for anything.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn launch_control_plane(&mut self, number: u8) -> Result<()> {
        let pods = self.pods("control-plane", 2).await?;
        let pod = pods
            .get(usize::from(number - 1))
            .context("there are two replicas")?
            .name_any();
        let kubeconfig = self
            .cluster
            .kubeconfig_of(NAMESPACE, "weir-control-plane", Some(&pod))
            .await?;
        let address = netns::address(number);
        let arguments = [
            "control-plane".to_owned(),
            "--kubernetes".to_owned(),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--namespace={NAMESPACE}"),
            format!("--pod-name={pod}"),
            format!("--grpc={address}:{GRPC}"),
            format!("--admin={address}:{ADMIN}"),
        ];
        let process = Process::start(
            &format!("control-plane-{number}"),
            &arguments,
            self.cluster.directory(),
        )?;
        let control_plane = ControlPlane {
            process,
            address,
            arguments: arguments.to_vec(),
        };
        self.control_planes.insert(number, control_plane);
        Ok(())
    }

    /// Starts a control plane again that was ended, as the kubelet would, without waiting for anything.
    ///
    /// # Errors
    /// There was none of that number.
    pub fn relaunch_control_plane(&mut self, number: u8) -> Result<()> {
        let directory = self.cluster.directory().to_owned();
        let control_plane = self.control_planes.get_mut(&number);
        let control_plane = control_plane.with_context(|| format!("no control plane {number}"))?;
        let name = format!("control-plane-{number}");
        control_plane.process = Process::start(&name, &control_plane.arguments, &directory)?;
        Ok(())
    }

    /// Starts the agent of `node`, as the DaemonSet's Pod there, and returns when it holds what it should. It knows
    /// both control planes, as a Service would give them to it, by one name.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start_agent(&mut self, node: &str) -> Result<()> {
        let number = u8::try_from(self.agents.len()).unwrap_or(0) + 3;
        let pods = self.pods("agent", 1).await?;
        let on =
            |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
        let pod = pods
            .iter()
            .find(on)
            .with_context(|| format!("node {node} has no agent"))?
            .name_any();
        let directory = self.cluster.directory();
        let token_file = self.token_file(node);
        let token = self
            .cluster
            .token(
                NAMESPACE,
                "weir-agent",
                Some("weir-control-plane"),
                Some(&pod),
                3600,
            )
            .await?;
        std::fs::write(&token_file, token)?;
        let roots = self.roots().await?;
        let ca_file = directory.join("weir-ca.crt");
        std::fs::write(&ca_file, roots)?;
        let address = netns::address(number);
        let arguments = vec![
            "agent".to_owned(),
            format!("--control-plane=https://localhost:{GRPC}"),
            format!("--control-plane-ca={}", ca_file.display()),
            format!("--token-file={}", token_file.display()),
            format!("--node={node}"),
            format!(
                "--state-dir={}",
                directory.join(format!("{node}.state")).display()
            ),
            format!("--proxy={address}:{PROXY}"),
            format!("--admin={address}:{AGENT_ADMIN}"),
        ];
        let process = Process::start(&format!("agent-{node}"), &arguments, directory)?;
        let agent = Agent {
            process,
            node: node.to_owned(),
            address,
            arguments,
        };
        agent.ready().await;
        self.agents.insert(node.to_owned(), agent);
        Ok(())
    }

    /// Starts an agent again that was ended, as the kubelet would.
    ///
    /// # Errors
    /// There was none on that node.
    pub async fn restart_agent(&mut self, node: &str) -> Result<()> {
        self.restart_agent_with(node, &[]).await
    }

    /// The same with more arguments, which it keeps.
    ///
    /// # Errors
    /// As [`Weir::restart_agent`].
    pub async fn restart_agent_with(&mut self, node: &str, more: &[&str]) -> Result<()> {
        let directory = self.cluster.directory().to_owned();
        let agent = self
            .agents
            .get_mut(node)
            .with_context(|| format!("no agent on {node}"))?;
        agent
            .arguments
            .extend(more.iter().map(|&argument| argument.to_owned()));
        agent.process = Process::start(&format!("agent-{node}"), &agent.arguments, &directory)?;
        agent.ready().await;
        Ok(())
    }

    /// What the agent of `node` reaches the control planes with, for a test that speaks in its place: their address, the
    /// roots that vouch for them, and its token.
    ///
    /// # Errors
    /// There was never an agent on that node.
    pub async fn credentials(&self, node: &str) -> Result<(SocketAddr, String, String)> {
        let token = std::fs::read_to_string(self.token_file(node))
            .with_context(|| format!("no agent on {node}"))?;
        Ok((([127, 0, 0, 1], GRPC).into(), self.roots().await?, token))
    }

    fn token_file(&self, node: &str) -> PathBuf {
        self.cluster.directory().join(format!("{node}.agent-token"))
    }

    /// The roots that agents trust, once the control plane has published them.
    async fn roots(&self) -> Result<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client().await?, NAMESPACE);
        Ok(eventually("the ConfigMap weir-ca", async || {
            let map = maps
                .get_opt("weir-ca")
                .await
                .map_err(|error| error.to_string())?;
            let roots = map.and_then(|map| map.data?.get("ca.crt").cloned());
            roots.ok_or_else(|| "no ca.crt".to_owned())
        })
        .await)
    }

    /// An object as the server holds it.
    ///
    /// # Errors
    /// It is not there.
    pub async fn object(&self, namespace: &str, kind: &str, name: &str) -> Result<Value> {
        let text = self
            .cluster
            .kubectl(&["-n", namespace, "get", kind, name, "-o", "json"])
            .await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Makes a Service without a selector in `namespace`, and sends its requests to `backend`.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn service(&self, namespace: &str, name: &str, backend: &Backend) -> Result<()> {
        let SocketAddr::V4(address) = backend.address() else {
            bail!("the backend's address must be of IPv4");
        };
        let (ip, port) = (address.ip(), address.port());
        let manifest = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, \
               spec: {{ports: [{{name: http, port: 80, appProtocol: http}}]}}}}\n---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
               metadata: {{name: {name}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}, \
               ports: [{{name: http, port: {port}}}], endpoints: [{{addresses: [\"{ip}\"], conditions: {{ready: true}}}}]}}\n"
        );
        self.cluster
            .kubectl_in(&["apply", "-f", "-"], &manifest)
            .await?;
        Ok(())
    }

    /// Applies a policy for a Service of the same name: `sections` is its spec but for `targetRefs`, in YAML.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn policy(&self, namespace: &str, name: &str, sections: &str) -> Result<String> {
        let manifest = format!(
            "apiVersion: weir.dev/v1alpha1\nkind: ResiliencePolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: {name}}}]\n{sections}\n"
        );
        self.cluster
            .kubectl_in(&["apply", "-f", "-"], &manifest)
            .await
    }

    /// Waits until every agent enforces the policy, as a person would.
    ///
    /// # Errors
    /// They do not.
    pub async fn programmed(&self, namespace: &str, name: &str) -> Result<()> {
        let policy = format!("resiliencepolicy/{name}");
        let wait = [
            "-n",
            namespace,
            "wait",
            "--for=condition=Programmed",
            "--timeout=60s",
            &policy,
        ];
        self.cluster.kubectl(&wait).await?;
        Ok(())
    }

    /// Waits until a breaker's object shows this state.
    pub async fn breaker_is(&self, namespace: &str, name: &str, state: &str) -> Value {
        eventually(
            &format!("breaker {namespace}/{name} to be {state}"),
            async || {
                let object = self
                    .object(namespace, "circuitbreaker", name)
                    .await
                    .map_err(|error| error.to_string())?;
                if object["status"]["state"] == state {
                    Ok(object)
                } else {
                    Err(object["status"].to_string())
                }
            },
        )
        .await
    }

    /// Ends everything, control planes and agents first.
    ///
    /// # Errors
    /// A process cannot be waited for.
    pub async fn shutdown(mut self) -> Result<()> {
        for agent in self.agents.values_mut() {
            agent.process.kill().await?;
        }
        for control_plane in self.control_planes.values_mut() {
            control_plane.process.kill().await?;
        }
        self.cluster.shutdown().await
    }
}

/// Where a Pod is: those that carry a label `address` say it, the others are at the first.
fn address_of(pod: &Pod) -> u8 {
    let address = pod
        .labels()
        .get("address")
        .and_then(|address| address.parse().ok());
    address.unwrap_or(1)
}

impl Agent {
    async fn ready(&self) {
        let admin: SocketAddr = (self.address, AGENT_ADMIN).into();
        let look = async || match call::get(admin, "/readyz").await {
            Ok(got) if got.status == 200 => Ok(()),
            Ok(got) => Err(got.text()),
            Err(error) => Err(error.to_string()),
        };
        eventually_within(
            PATIENCE,
            &format!("the agent of {} to be ready", self.node),
            look,
        )
        .await;
    }
}
