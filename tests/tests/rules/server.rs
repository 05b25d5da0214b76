//! An API server that is asked what it would do with an object, and the same question without one.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kube::Client;
use kube::core::response::StatusCause;
use serde_json::Value;
use weir_control_plane::sources::manifest;
use weir_crds::Kind;
use weir_crds::validate::validate;
use weir_tests::eventually_within;
use weir_tests::kubernetes::{Cluster, Options};

/// Requests that are under way at a time.
const AT_ONCE: usize = 16;

/// How long an API server may take to serve new kinds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Below this every whole number has a float of its own.
const WHOLE: f64 = 9e15;

/// An API server that knows Weir's kinds and the namespace `shop`.
pub(crate) struct Server {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
}

/// What becomes of an object that is applied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// It is stored like this.
    Taken(Value),
    /// It is not, for these reasons.
    Refused(Refusal),
}

/// Why an object is refused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    /// All that is said.
    pub(crate) message: String,
    /// Which fields are to blame, and what is said about each.
    pub(crate) causes: Vec<(String, String)>,
}

impl Verdict {
    pub(crate) fn taken(&self) -> Option<&Value> {
        match self {
            Verdict::Taken(object) => Some(object),
            Verdict::Refused(_) => None,
        }
    }
}

impl Server {
    /// `None`: the programs are missing, and this is not CI.
    pub(crate) async fn start() -> Result<Option<Server>> {
        let options = Options {
            controller_manager: false,
            ..Options::default()
        };
        let Some(cluster) = Cluster::start_with(options).await? else {
            return Ok(None);
        };
        // As people without Helm do it: the whole definition has to fit into an annotation then.
        let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds");
        cluster.kubectl(&["apply", "--filename", crds]).await?;
        cluster.kubectl(&["create", "namespace", "shop"]).await?;
        let client = cluster.client().await?;
        let server = Server { cluster, client };
        eventually_within(PATIENCE, "both kinds to be served", async || {
            for kind in Kind::ALL {
                let request = http::Request::get(path(kind)).body(Vec::new())?;
                server.client.request::<Value>(request).await?;
            }
            anyhow::Ok(())
        })
        .await;
        Ok(Some(server))
    }

    /// What the server would do with this object, as `kubectl apply` asks it: unknown fields are refused.
    pub(crate) async fn verdict(&self, kind: Kind, object: &Value) -> Result<Verdict> {
        let path = format!("{}?dryRun=All&fieldValidation=Strict", path(kind));
        let request = http::Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&as_sent(object))?)?;
        match self.client.request::<Value>(request).await {
            Ok(stored) => Ok(Verdict::Taken(stored)),
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                let causes = status.details.map(|details| details.causes);
                let cause = |StatusCause { field, message, .. }| (field, message);
                Ok(Verdict::Refused(Refusal {
                    message: status.message,
                    causes: causes.unwrap_or_default().into_iter().map(cause).collect(),
                }))
            }
            Err(error) => Err(error).with_context(|| format!("no verdict on {object}")),
        }
    }

    /// The verdicts on all of these, in their order.
    pub(crate) async fn verdicts(&self, objects: &[(Kind, Value)]) -> Result<Vec<Verdict>> {
        stream::iter(objects)
            .map(|(kind, object)| self.verdict(*kind, object))
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Whether the server's verdict and Weir's own are the same, and what is stored, too; else both.
    pub(crate) fn same(kind: Kind, object: &Value, theirs: &Verdict) -> Result<()> {
        let ours = check(kind, object)?;
        match (theirs, &ours) {
            (Verdict::Refused(_), Verdict::Refused(_)) => Ok(()),
            (Verdict::Taken(theirs), Verdict::Taken(ours)) => {
                ensure!(
                    theirs["spec"] == ours["spec"],
                    "stored by the server: {}\nstored by Weir: {}",
                    theirs["spec"],
                    ours["spec"]
                );
                Ok(())
            }
            (Verdict::Taken(_), Verdict::Refused(ours)) => {
                bail!("the server takes it; Weir says: {}", ours.message)
            }
            (Verdict::Refused(theirs), Verdict::Taken(_)) => {
                bail!("Weir takes it; the server says: {}", theirs.message)
            }
        }
    }
}

/// What `weir check` says of an object in a file.
pub(crate) fn check(kind: Kind, object: &Value) -> Result<Verdict> {
    let text = serde_json::to_string(object)?;
    let findings = manifest::check(Path::new("object.yaml"), &text);
    let problems = match validate(kind, object) {
        Ok(stored) if findings.is_empty() => return Ok(Verdict::Taken(stored)),
        Ok(_) => Vec::new(),
        Err(problems) => problems,
    };
    ensure!(!findings.is_empty(), "only `weir check` takes {object}");
    let message: Vec<String> = findings.iter().map(ToString::to_string).collect();
    let cause = |problem: weir_crds::validate::Problem| (problem.path, problem.message);
    Ok(Verdict::Refused(Refusal {
        message: message.join("; "),
        causes: problems.into_iter().map(cause).collect(),
    }))
}

/// The object as kubectl sends it: it writes 3.0 as 3. To the API server itself 3.0 is a whole number in the schema and
/// none in rules.
fn as_sent(object: &Value) -> Value {
    match object {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), as_sent(value)))
            .collect(),
        Value::Array(items) => items.iter().map(as_sent).collect(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < WHOLE => {
                Value::from(float as i64)
            }
            _ => object.clone(),
        },
        _ => object.clone(),
    }
}

/// Where objects of a kind are made.
fn path(kind: Kind) -> String {
    let plural = kind.plural();
    format!("/apis/weir.dev/v1alpha1/namespaces/shop/{plural}")
}
