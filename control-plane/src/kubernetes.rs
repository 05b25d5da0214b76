//! The control plane in a cluster: everything that needs an API server, started
//! together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::identity::{self, Identity, Keeper, Lifetimes, Refusals, Served};
use crate::leadership::{Leadership, Role};
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::sources::Objects;
use crate::sources::kubernetes::{self as source, Observed};
use crate::store::Store;
use crate::world::Plans;
use crate::writer::{Writer, lease};

/// A connection to the API server that takes longer has failed.
const CONNECT: Duration = Duration::from_secs(2);
/// And one on which nothing comes for so long.
const SILENCE: Duration = Duration::from_secs(75);
/// What the chart makes for the whole cluster and removes with itself: what
/// Weir makes names it as owner, and goes with it.
const OWNER: &str = "weir-control-plane";

/// How a control plane runs in a cluster.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// How the API server is reached; `None`: as a Pod does it, or as kubectl
    /// would.
    pub kubeconfig: Option<PathBuf>,
    /// The namespace that Weir is in.
    pub namespace: String,
    /// Name of this replica, unique among them: that of its Pod.
    pub instance: String,
    /// The agents' ServiceAccount, in the same namespace.
    pub agent_service_account: String,
    /// How long certificates and streams live.
    pub lifetimes: Lifetimes,
}

/// Why there is no way to ask an API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing usable says where it is.
    #[error(
        "nothing says how to reach the API server: {0}: give --kubeconfig FILE, set KUBECONFIG, or run in a Pod"
    )]
    Config(String),
    /// The configuration cannot be used.
    #[error("the API server cannot be asked: {0}")]
    Client(#[from] kube::Error),
    /// The TLS library refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl Kubernetes {
    /// Reads how the API server is reached; does not reach for it.
    pub(crate) async fn open(self) -> Result<Cluster, ClientError> {
        // One provider of TLS in the whole process; an error says that it is
        // installed already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let wrong = |error: &dyn std::fmt::Display| ClientError::Config(error.to_string());
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
                let options = KubeConfigOptions::default();
                let config = kube::Config::from_custom_kubeconfig(read, &options).await;
                config.map_err(|error| wrong(&error))?
            }
            None => kube::Config::infer().await.map_err(|error| wrong(&error))?,
        };
        config.connect_timeout = Some(CONNECT);
        // A watch is asked for anew before that.
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        let client = Client::try_from(config)?;
        Ok(Cluster {
            kubernetes: self,
            client,
        })
    }
}

/// A cluster that can be asked.
pub(crate) struct Cluster {
    kubernetes: Kubernetes,
    client: Client,
}

/// What makes certificates, and the one that is in use.
pub(crate) struct Authority {
    pub(crate) keeper: Keeper,
    pub(crate) certificate: watch::Receiver<Option<Served>>,
}

/// What the parts share with the rest of the control plane.
pub(crate) struct Shared {
    pub(crate) objects: watch::Sender<Option<Arc<Objects>>>,
    pub(crate) objects_seen: watch::Receiver<Option<Arc<Objects>>>,
    pub(crate) plans: watch::Receiver<Arc<Plans>>,
    pub(crate) store: Arc<Store>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) observed: Arc<Observed>,
    pub(crate) roles: watch::Sender<Role>,
    pub(crate) leadership: Leadership,
    pub(crate) own: watch::Receiver<bool>,
}

impl Cluster {
    /// How agents and this control plane know each other.
    pub(crate) fn identity(&self, refusals: &Arc<Refusals>) -> Result<Identity, ClientError> {
        let config = identity::Config {
            client: self.client.clone(),
            namespace: self.kubernetes.namespace.clone(),
            agent_service_account: self.kubernetes.agent_service_account.clone(),
            names: identity::service_names(&self.kubernetes.namespace),
            lifetimes: self.kubernetes.lifetimes,
        };
        Ok(Identity::new(config, refusals)?)
    }

    /// Starts the source, the keeper of certificates, the Lease and the writer.
    pub(crate) fn spawn(
        self,
        shared: Shared,
        authority: Option<Authority>,
        tasks: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) {
        let Cluster { kubernetes, client } = self;
        let (keeper, certificate) = match authority {
            Some(authority) => (Some(authority.keeper), Some(authority.certificate)),
            None => (None, None),
        };
        let source = source::run(
            client.clone(),
            kubernetes.namespace.clone(),
            shared.objects,
            Arc::clone(&shared.observed),
            Arc::clone(&shared.readiness),
            Arc::clone(&shared.metrics),
            stop.clone(),
        );
        let readiness = Arc::clone(&shared.readiness);
        let mut stopped = stop.clone();
        tasks.spawn(async move {
            // A replica without a certificate is of no use to any agent.
            if let Some(mut certificate) = certificate {
                readiness.wait_for("a certificate: the API server must answer, and let this program write Secret and ConfigMap weir-ca".to_owned());
                tokio::select! {
                    () = crate::stop::stopped(&mut stopped) => return,
                    signed = async { certificate.wait_for(Option::is_some).await.is_ok() } => {
                        if !signed {
                            return;
                        }
                    }
                }
            }
            source.await;
        });
        let stopping = stop.clone();
        tasks.spawn(async move {
            let mut stop = stopping.clone();
            let keeping = async {
                if let Some(keeper) = keeper {
                    keeper.run(None, stopping.clone()).await;
                }
            };
            let Kubernetes {
                namespace,
                instance,
                ..
            } = kubernetes;
            let writing = async {
                // Before that there is nothing to write, and all would go.
                tokio::select! {
                    () = crate::stop::stopped(&mut stop) => return,
                    () = shared.readiness.is_ready() => {}
                }
                let owner = tokio::select! {
                    () = crate::stop::stopped(&mut stop) => return,
                    owner = owner(&client) => owner,
                };
                let writer = Writer {
                    client: client.clone(),
                    instance: instance.clone(),
                    store: shared.store,
                    observed: shared.observed,
                    objects: shared.objects_seen,
                    plans: shared.plans,
                    leadership: shared.leadership,
                    own: shared.own,
                    metrics: shared.metrics,
                    owner,
                };
                let holding = lease::run(
                    client.clone(),
                    namespace,
                    instance,
                    shared.roles,
                    stopping.clone(),
                );
                tokio::join!(holding, writer.run(stopping.clone()));
            };
            tokio::join!(keeping, writing);
        });
    }
}

/// An error of the API server, or of the way to it, in one line: what the
/// server said, or else the last link of the chain, about which a person can do
/// something.
pub(crate) fn say(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    loop {
        if let Some(kube::Error::Api(status)) = at.downcast_ref() {
            return status.message.clone();
        }
        match at.source() {
            Some(next) => at = next,
            None => return at.to_string(),
        }
    }
}

/// The owner of what Weir makes; `None` where there is none, as without the
/// chart. An API server that does not answer is asked again.
async fn owner(client: &Client) -> Option<OwnerReference> {
    let api: Api<ClusterRole> = Api::all(client.clone());
    let mut said = false;
    loop {
        match api.get_opt(OWNER).await {
            Ok(Some(role)) => {
                return Some(OwnerReference {
                    api_version: ClusterRole::api_version(&()).into_owned(),
                    kind: ClusterRole::kind(&()).into_owned(),
                    name: role.name_any(),
                    uid: role.uid()?,
                    ..OwnerReference::default()
                });
            }
            Ok(None) => return None,
            // Its rights may come after it.
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(
                        why = say(&error),
                        "nothing is written before the owner of what Weir makes is known"
                    );
                }
                tokio::time::sleep(CONNECT).await;
            }
        }
    }
}
