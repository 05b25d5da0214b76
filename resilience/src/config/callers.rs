//! Who calls, and which callers a partition is for.

use std::fmt;

/// Namespace and name of a ServiceAccount or a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A caller that the control plane knows, as far as its address tells. It is no
/// authentication: who can take a pod's address is taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Its pod's namespace.
    pub namespace: String,
    /// Its pod's ServiceAccount.
    pub service_account: String,
    /// The name of what its pod belongs to, `checkout` for a pod of
    /// `Deployment/checkout`; `None`: nothing.
    pub workload: Option<String>,
}

/// Which callers: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Callers {
    /// In any of these namespaces; none: in whichever.
    pub namespaces: Vec<String>,
    /// With any of these ServiceAccounts; none: with whichever.
    pub service_accounts: Vec<Name>,
    /// Of any of these workloads, of whatever kind; none: of whichever.
    pub workloads: Vec<Name>,
}

impl Callers {
    /// Whether they are all callers, also those whom nobody knows.
    pub fn is_everybody(&self) -> bool {
        self.namespaces.is_empty() && self.service_accounts.is_empty() && self.workloads.is_empty()
    }

    /// Whether `caller` is one of them. A caller whom nobody knows is so only where
    /// everybody is.
    pub fn include(&self, caller: Option<&Caller>) -> bool {
        let Some(caller) = caller else {
            return self.is_everybody();
        };
        let named = |names: &[Name], wanted: Option<&str>| {
            names.is_empty()
                || names.iter().any(|name| {
                    name.namespace == caller.namespace && Some(name.name.as_str()) == wanted
                })
        };
        (self.namespaces.is_empty() || self.namespaces.contains(&caller.namespace))
            && named(&self.service_accounts, Some(&caller.service_account))
            && named(&self.workloads, caller.workload.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        let (namespace, name) = text.split_once('/').unwrap();
        Name {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn callers(namespaces: &[&str], accounts: &[&str], workloads: &[&str]) -> Callers {
        Callers {
            namespaces: namespaces.iter().map(|n| (*n).to_owned()).collect(),
            service_accounts: accounts.iter().map(|n| name(n)).collect(),
            workloads: workloads.iter().map(|n| name(n)).collect(),
        }
    }

    fn checkout() -> Caller {
        Caller {
            namespace: "shop".to_owned(),
            service_account: "buyer".to_owned(),
            workload: Some("checkout".to_owned()),
        }
    }

    #[test]
    fn callers_are_in_who_have_one_name_of_each_list_that_is_given() {
        for (callers, in_it) in [
            (callers(&[], &[], &[]), true),
            (callers(&["web", "shop"], &[], &[]), true),
            (callers(&["web"], &[], &[]), false),
            (callers(&[], &["shop/buyer"], &[]), true),
            (callers(&[], &["web/buyer"], &[]), false),
            (callers(&[], &["shop/checkout"], &[]), false),
            (callers(&[], &[], &["shop/batch", "shop/checkout"]), true),
            (callers(&[], &[], &["web/checkout"]), false),
            (
                callers(&["shop"], &["shop/buyer"], &["shop/checkout"]),
                true,
            ),
            (
                callers(&["shop"], &["shop/other"], &["shop/checkout"]),
                false,
            ),
        ] {
            assert_eq!(callers.include(Some(&checkout())), in_it, "{callers:?}");
        }
    }

    #[test]
    fn whom_nobody_knows_is_only_among_everybody() {
        assert!(callers(&[], &[], &[]).include(None));
        assert!(!callers(&["shop"], &[], &[]).include(None));
        assert!(!callers(&[], &["shop/buyer"], &[]).include(None));
        assert!(!callers(&[], &[], &["shop/checkout"]).include(None));
    }

    #[test]
    fn a_pod_of_its_own_is_of_no_workload() {
        let alone = Caller {
            workload: None,
            ..checkout()
        };
        assert!(!callers(&[], &[], &["shop/checkout"]).include(Some(&alone)));
        assert!(callers(&["shop"], &[], &[]).include(Some(&alone)));
    }
}
