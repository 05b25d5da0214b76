use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::{DnsLabel, GrpcMethod, GrpcService, Method};
use super::{HeaderMatch, Sections};

/// A part of a target's requests with sections of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(
    transform = super::sections::in_route,
    extend("x-kubernetes-validations" = [
        Rule::new("!has(self.outlierDetection)")
            .message("endpoints are judged for a whole target: move outlierDetection out of the route, beside routes")
            .field_path(".outlierDetection"),
        Rule::new("!has(self.loadShedding)")
            .message("a pod is protected as a whole: move loadShedding out of the route, beside routes")
            .field_path(".loadShedding"),
    ])
)]
pub struct Route {
    /// Unique in the policy; a DNS label of up to 63 characters. It appears in
    /// metrics and in names of CircuitBreakers.
    #[schemars(with = "DnsLabel")]
    pub name: String,
    /// Which requests belong to it: those that match any of these. Up to 8; empty
    /// or absent: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub matches: Vec<RouteMatch>,
    /// The owner's word that repeating such a request is harmless, whatever its
    /// method (POST, gRPC methods).
    #[serde(default)]
    pub idempotent: bool,
    /// What is given here takes the place of the policy's section.
    #[serde(flatten)]
    pub sections: Sections,
}

/// What a request must be; all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("!has(self.grpc) || (!has(self.path) && !has(self.methods))")
        .message("grpc stands for the path and the method of a request: leave out path and methods, or grpc")
        .field_path(".grpc"),
]))]
pub struct RouteMatch {
    /// Methods, in upper case: any of these. 1 to 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Method>", length(min = 1, max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub methods: Vec<String>,
    /// The path, without the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Headers: all of these. 1 to 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub headers: Vec<HeaderMatch>,
    /// The gRPC method that is called. Empty ({}): any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcMatch>,
}

/// What a path must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("self.type == 'RegularExpression' || self.value.startsWith('/')")
        .message("a path begins with /")
        .field_path(".value"),
    Rule::new("self.type != 'RegularExpression' || [''.matches(self.value)].size() == 1")
        .message("value must be a regular expression in RE2 syntax")
        .field_path(".value"),
]))]
pub struct PathMatch {
    /// Exact: the path is value. PathPrefix: it begins with the elements of value,
    /// so that /a stands for /a and /a/b but not for /ab. RegularExpression: value
    /// (RE2 syntax) matches the whole of it.
    pub r#type: PathMatchType,
    /// Begins with /, or is a regular expression. Up to 256 characters.
    #[schemars(length(min = 1, max = 256))]
    pub value: String,
}

impl Default for PathMatch {
    fn default() -> PathMatch {
        PathMatch {
            r#type: PathMatchType::PathPrefix,
            value: "/".to_owned(),
        }
    }
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "told once, at the field")]
pub enum PathMatchType {
    Exact,
    PathPrefix,
    RegularExpression,
}

/// Which gRPC method is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMatch {
    /// Full name of the service, such as shop.v1.Payments; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<GrpcService>")]
    pub service: Option<String>,
    /// Name of the method, such as Refund; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<GrpcMethod>")]
    pub method: Option<String>,
}
