use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::HeaderMatch;
use super::text::{DnsLabel, NamespacedName};

/// Which callers are meant: those that are in each list that is given.
///
/// Who calls is known from the address of the calling pod. It is good for
/// sharing out, and no authentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Callers {
    /// Namespaces of callers. 1 to 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<DnsLabel>", length(min = 1, max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub namespaces: Vec<String>,
    /// ServiceAccounts of callers, each as namespace/name. 1 to 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<NamespacedName>", length(min = 1, max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub service_accounts: Vec<String>,
    /// Workloads of callers (Deployment, StatefulSet, Job…), each as
    /// namespace/name. 1 to 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<NamespacedName>", length(min = 1, max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub workloads: Vec<String>,
    /// Headers of the request, all of which must match. 1 to 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub headers: Vec<HeaderMatch>,
}
