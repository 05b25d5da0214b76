//! Who calls.

use weir_proto::v1alpha1 as proto;

use super::at::At;
use super::{Problem, all, finish};
use crate::config::{Caller, Callers, Name};

/// Entries of one list of callers.
const MAX_CALLERS: usize = 16;

/// Decodes what the control plane knows of a caller, `None` where that is
/// nothing, or says all that is wrong.
pub fn caller(message: &proto::Caller) -> Result<Option<Caller>, Vec<Problem>> {
    if !message.known {
        return Ok(None);
    }
    let mut problems = Vec::new();
    let mut at = At::root(&mut problems);
    let namespace_is_good = at.label("namespace", &message.namespace);
    let account_is_good = at.subdomain("service_account", &message.service_account);
    let workload = match message.workload.rsplit_once('/') {
        None if message.workload.is_empty() => Some(None),
        Some((_, name)) if at.subdomain("workload", name) => Some(Some(name.to_owned())),
        Some(_) => None,
        None => {
            at.refuse("workload", "write kind and name, Deployment/checkout");
            None
        }
    };
    let caller = workload
        .filter(|_| namespace_is_good && account_is_good)
        .map(|workload| {
            Some(Caller {
                namespace: message.namespace.clone(),
                service_account: message.service_account.clone(),
                workload,
            })
        });
    finish(caller, problems)
}

/// The callers that a bulkhead is for.
pub(super) fn from(at: &mut At<'_>, message: &proto::Bulkhead) -> Option<Callers> {
    let namespaces = &message.from_namespaces;
    at.at_most("from_namespaces", namespaces.len(), MAX_CALLERS);
    let good: Vec<_> = (namespaces.iter().enumerate())
        .map(|(n, namespace)| {
            at.label(&format!("from_namespaces[{n}]"), namespace)
                .then(|| namespace.clone())
        })
        .collect();
    let accounts = names(at, "from_service_accounts", &message.from_service_accounts);
    let workloads = names(at, "from_workloads", &message.from_workloads);
    Some(Callers {
        namespaces: all(good)?,
        service_accounts: accounts?,
        workloads: workloads?,
    })
}

fn names(at: &mut At<'_>, field: &str, texts: &[String]) -> Option<Vec<Name>> {
    at.at_most(field, texts.len(), MAX_CALLERS);
    let names = texts.iter().enumerate().map(|(n, text)| {
        let field = format!("{field}[{n}]");
        let Some((namespace, name)) = text.split_once('/') else {
            at.refuse(
                &field,
                format!("{text:?} has no slash; write namespace/name"),
            );
            return None;
        };
        let namespace_is_good = at.label(&field, namespace);
        (at.subdomain(&field, name) && namespace_is_good).then(|| Name {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    });
    all(names.collect())
}
