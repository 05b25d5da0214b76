//! Keeps the roots in the cluster and this replica's certificate in memory.
//!
//! Every replica does it, and nobody needs to be chosen for it: each write says
//! which version of the object it changes, so of two that write at once one
//! wins, and the other looks again.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Config;
use super::certificate::Served;
use super::root::CertificateError;
use super::rotation::{Lifetimes, Roots, Step, plan};
use super::secret::{self, CERTIFICATE, Data, DataError};
use crate::stop::stopped;

/// Name of the Secret with the roots and of the ConfigMap with the bundle.
pub(crate) const NAME: &str = "weir-ca";
/// How often both are looked at; a change by another replica is seen within it.
const LOOK: Duration = Duration::from_secs(60);
/// The first wait after a failure; it doubles up to [`LOOK`].
const AGAIN: Duration = Duration::from_millis(500);
/// A request to the API server is given up after this.
const REQUEST: Duration = Duration::from_secs(10);
/// Steps in one look. Four change a root, and each may meet a conflict.
const MAX_STEPS: usize = 16;

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("the API server did not answer within 10 s")]
    Slow,
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error(
        "Secret {namespace}/{NAME} holds no certificate authority: {error}: \
         empty it, and another is made (kubectl patch secret {NAME} -n {namespace} --type json \
         -p '[{{\"op\":\"remove\",\"path\":\"/data\"}}]')"
    )]
    Data { namespace: String, error: DataError },
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    #[error(
        "there is no Secret or no ConfigMap {0}/{NAME}, and the control plane may not create it: \
         helm upgrade with the same values brings it back"
    )]
    Gone(String),
    #[error("others keep changing Secret and ConfigMap {NAME}")]
    Contested,
}

/// Keeps the roots of one namespace.
pub(crate) struct Keeper {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    namespace: String,
    owner: Option<OwnerReference>,
    names: Vec<String>,
    lifetimes: Lifetimes,
    served: watch::Sender<Option<Served>>,
    roots: Option<Roots>,
}

impl Keeper {
    pub(crate) fn new(config: Config, served: watch::Sender<Option<Served>>) -> Keeper {
        let namespace = config.namespace;
        Keeper {
            secrets: Api::namespaced(config.client.clone(), &namespace),
            config_maps: Api::namespaced(config.client, &namespace),
            namespace,
            owner: None,
            names: config.names,
            lifetimes: config.lifetimes,
            served,
            roots: None,
        }
    }

    /// Does what is due, until `stop` is true. While the API server is away it
    /// goes on with the roots that it has. Secret and ConfigMap go when `owner`
    /// goes.
    pub(crate) async fn run(
        mut self,
        owner: Option<OwnerReference>,
        mut stop: watch::Receiver<bool>,
    ) {
        self.owner = owner;
        let mut failures = 0u32;
        loop {
            let looked = tokio::select! {
                () = stopped(&mut stop) => return,
                looked = self.look() => looked,
            };
            let mut wait = match looked {
                Ok(due) => {
                    failures = 0;
                    until(due).min(LOOK)
                }
                Err(error) => {
                    // Said once for each time that it begins.
                    if failures == 0 {
                        tracing::error!(%error, "cannot keep the certificate authority; trying again");
                    }
                    failures += 1;
                    AGAIN.saturating_mul(1 << failures.min(16)).min(LOOK)
                }
            };
            match self.renew() {
                Ok(Some(renewal)) => wait = wait.min(until(renewal)),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "cannot renew the server's certificate"),
            }
            // Jitter keeps replicas that began together from asking together.
            let wait = wait.mul_f64(0.8 + 0.2 * fastrand::f64());
            tokio::select! {
                () = stopped(&mut stop) => return,
                () = sleep(wait) => {}
            }
        }
    }

    /// Reads what there is and does all steps that are due; when the next is.
    async fn look(&mut self) -> Result<Timestamp, KeepError> {
        for _ in 0..MAX_STEPS {
            let now = Timestamp::now();
            // The ConfigMap first: whoever changes it after this read makes our
            // own write to it a conflict, so that no older bundle replaces a
            // newer one.
            let published = ask(self.config_maps.get_opt(NAME)).await?;
            let secret = ask(self.secrets.get_opt(NAME)).await?;
            let Some(data) = secret.as_ref().and_then(filled) else {
                self.make(secret, now).await?;
                continue;
            };
            let roots = secret::read(data).map_err(|error| KeepError::Data {
                namespace: self.namespace.clone(),
                error,
            })?;
            let bundle = published
                .as_ref()
                .and_then(|map| Some(map.data.as_ref()?.get(CERTIFICATE)?.as_str()));
            match plan(&roots, bundle, now, &self.lifetimes) {
                Step::Wait(due) => {
                    self.roots = Some(roots);
                    return Ok(due);
                }
                Step::Publish => {
                    self.publish(&roots, published).await?;
                }
                Step::Write(change) => {
                    let changed = roots.after(change, now, &self.lifetimes)?;
                    if self.write(secret, &changed).await? {
                        tracing::info!(?change, "the certificate authority changed");
                    }
                }
            }
        }
        Err(KeepError::Contested)
    }

    /// The first roots. The chart brings the Secret along empty; without the
    /// chart there is none.
    async fn make(&self, known: Option<Secret>, now: Timestamp) -> Result<(), KeepError> {
        let roots = Roots::new(now, &self.lifetimes)?;
        if self.write(known, &roots).await? {
            tracing::info!(
                secret = format!("{}/{NAME}", self.namespace),
                "made a certificate authority"
            );
        }
        Ok(())
    }

    /// Writes roots to the Secret as it was read; false where it changed since.
    async fn write(&self, known: Option<Secret>, roots: &Roots) -> Result<bool, KeepError> {
        let params = PostParams::default();
        let data = Some(secret::write(roots));
        won(match known {
            Some(known) => {
                let object = Secret { data, ..known };
                ask(self.secrets.replace(NAME, &params, &object)).await
            }
            None => {
                let metadata = self.metadata();
                let object = Secret {
                    metadata,
                    data,
                    ..Secret::default()
                };
                self.may_create(ask(self.secrets.create(&params, &object)).await)
            }
        })
    }

    /// Writes the bundle to the ConfigMap as it was read.
    async fn publish(&self, roots: &Roots, known: Option<ConfigMap>) -> Result<(), KeepError> {
        let params = PostParams::default();
        let data = Some([(CERTIFICATE.to_owned(), roots.bundle())].into());
        won(match known {
            Some(known) => {
                let object = ConfigMap { data, ..known };
                ask(self.config_maps.replace(NAME, &params, &object)).await
            }
            None => {
                let metadata = self.metadata();
                let object = ConfigMap {
                    metadata,
                    data,
                    ..ConfigMap::default()
                };
                self.may_create(ask(self.config_maps.create(&params, &object)).await)
            }
        })
        .map(|_| ())
    }

    fn may_create<T>(&self, created: Result<T, KeepError>) -> Result<T, KeepError> {
        match created {
            Err(KeepError::Api(kube::Error::Api(status))) if status.code == 403 => {
                Err(KeepError::Gone(self.namespace.clone()))
            }
            other => other,
        }
    }

    fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(self.namespace.clone()),
            labels: Some(
                [
                    ("app.kubernetes.io/name", "weir"),
                    ("app.kubernetes.io/managed-by", "weir-control-plane"),
                ]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ),
            owner_references: self.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }

    /// Signs another certificate if it is time; when the next is due.
    fn renew(&self) -> Result<Option<Timestamp>, CertificateError> {
        let Some(roots) = &self.roots else {
            return Ok(None);
        };
        let now = Timestamp::now();
        let root = &roots.current;
        if let Some(served) = &*self.served.borrow()
            && served.is_fresh(root.certificate(), now)
        {
            return Ok(Some(served.renew_at()));
        }
        let served = Served::sign(root, &self.names, now, self.lifetimes.server)?;
        let due = served.renew_at();
        tracing::info!(renewal = %due, "the server has a new certificate");
        self.served.send_replace(Some(served));
        Ok(Some(due))
    }
}

/// What a Secret holds, if it holds anything.
fn filled(secret: &Secret) -> Option<&Data> {
    secret.data.as_ref().filter(|data| !data.is_empty())
}

fn until(at: Timestamp) -> Duration {
    at.duration_since(Timestamp::now())
        .try_into()
        .unwrap_or_default()
}

async fn ask<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, KeepError> {
    match timeout(REQUEST, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(KeepError::Slow),
    }
}

/// False where another was faster: whoever lost looks again.
fn won<T>(written: Result<T, KeepError>) -> Result<bool, KeepError> {
    match written {
        Ok(_) => Ok(true),
        Err(KeepError::Api(kube::Error::Api(status))) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
