//! Weir's own kinds must be there, and as new as this program, before anything
//! is read: a control plane that is newer than the schema would not see fields
//! that the API server drops.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use tokio::time::sleep;
use weir_crds::Kind;
use weir_crds::crd::{GROUP, INSTALL_COMMAND, SCHEMA_REVISION, schema_revision};

use crate::kubernetes::say;
use crate::readiness::Readiness;

/// How often it is looked while they are missing.
const EVERY: Duration = Duration::from_secs(1);

/// Returns once both kinds are served in this program's schema or a later one.
pub(super) async fn wait(client: &Client, readiness: &Readiness) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut said = String::new();
    loop {
        let Err(why) = look(&api).await else { return };
        if said != why {
            tracing::warn!("{why}");
            readiness.wait_for(why.clone());
            said = why;
        }
        sleep(EVERY).await;
    }
}

async fn look(api: &Api<CustomResourceDefinition>) -> Result<(), String> {
    for kind in Kind::ALL {
        let name = format!("{}.{}", kind.plural(), GROUP);
        let crd = match api.get_opt(&name).await {
            Ok(crd) => crd,
            Err(error) => {
                return Err(format!(
                    "the API server does not give {name}: {}",
                    say(&error)
                ));
            }
        };
        let Some(crd) = crd else {
            return Err(format!(
                "the CustomResourceDefinition {name} is missing: run: {INSTALL_COMMAND}"
            ));
        };
        let revision = schema_revision(&crd.metadata.annotations.unwrap_or_default());
        if revision < SCHEMA_REVISION {
            return Err(format!(
                "the CustomResourceDefinition {name} has schema revision {revision}, and this version of Weir needs {SCHEMA_REVISION}: run: {INSTALL_COMMAND}"
            ));
        }
        let conditions = crd
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        if !conditions
            .iter()
            .any(|condition| condition.type_ == "Established" && condition.status == "True")
        {
            return Err(format!("the API server does not serve {name} yet"));
        }
    }
    Ok(())
}
