//! Which endpoints callers of this node may use: what the Service itself says,
//! as kube-proxy would do it.

use weir_resilience::config::Endpoint;

use super::Here;

/// The endpoints, those first that callers here may use, and how many these
/// are; of these, those of IPv4 first. The order among equals is kept.
///
/// - Those that are ready; where none is, those that end and still answer.
/// - `internalTrafficPolicy: Local`: on this node alone, if need be none.
/// - `trafficDistribution`: those that are meant for this node, else for this
///   zone, where every one says for whom it is meant and one is meant for here.
pub(super) fn order(given: &[Endpoint], local_only: bool, here: &Here) -> (Vec<Endpoint>, usize) {
    let near = |endpoint: &Endpoint| !local_only || endpoint.node == here.node;
    let ready = |endpoint: &Endpoint| !endpoint.unready && !endpoint.terminating;
    let mut usable: Vec<bool> = given.iter().map(|e| near(e) && ready(e)).collect();
    if !usable.contains(&true) {
        usable = given.iter().map(|e| near(e) && e.terminating).collect();
    } else if !local_only {
        let meant = |of: fn(&Endpoint) -> &[String], name: &str| {
            let mut used = given.iter().zip(&usable).filter(|(_, usable)| **usable);
            let all_say = used.all(|(endpoint, _)| !of(endpoint).is_empty());
            let here = |endpoint: &Endpoint| of(endpoint).iter().any(|n| n == name);
            let both = given.iter().zip(&usable);
            let here: Vec<bool> = both.map(|(e, usable)| *usable && here(e)).collect();
            (all_say && here.contains(&true)).then_some(here)
        };
        let meant = meant(|endpoint| &endpoint.for_nodes, &here.node)
            .or_else(|| meant(|endpoint| &endpoint.for_zones, &here.zone));
        usable = meant.unwrap_or(usable);
    }
    let those = |wanted: bool| {
        let all = given.iter().zip(&usable);
        all.filter(move |(_, usable)| **usable == wanted)
            .map(|(endpoint, _)| endpoint.clone())
    };
    let mut all: Vec<Endpoint> = those(true).collect();
    all.sort_by_key(|endpoint| endpoint.address.is_ipv6());
    let count = all.len();
    all.extend(those(false));
    (all, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: u8, node: &str) -> Endpoint {
        Endpoint {
            address: ([10, 0, 0, name], 80).into(),
            zone: String::new(),
            node: node.to_owned(),
            unready: false,
            terminating: false,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        }
    }

    fn here() -> Here {
        Here {
            node: "n1".to_owned(),
            zone: "a".to_owned(),
        }
    }

    /// The last numbers of the addresses that may be used.
    fn usable(given: &[Endpoint], local_only: bool) -> Vec<u8> {
        let (all, count) = order(given, local_only, &here());
        assert_eq!(all.len(), given.len(), "all are known");
        let last = |endpoint: &Endpoint| match endpoint.address.ip() {
            std::net::IpAddr::V4(address) => address.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        all[..count].iter().map(last).collect()
    }

    #[test]
    fn unready_endpoints_are_known_and_not_used() {
        let mut starting = endpoint(1, "n1");
        starting.unready = true;
        assert_eq!(usable(&[starting.clone(), endpoint(2, "n2")], false), [2]);
        assert!(usable(&[starting], false).is_empty());
    }

    #[test]
    fn ending_endpoints_are_used_only_where_none_is_ready() {
        let mut ending = endpoint(1, "n1");
        ending.terminating = true;
        assert_eq!(usable(&[ending.clone(), endpoint(2, "n2")], false), [2]);
        let mut starting = endpoint(3, "n1");
        starting.unready = true;
        assert_eq!(usable(&[ending, starting], false), [1]);
    }

    #[test]
    fn a_local_service_is_called_on_its_own_node_or_not_at_all() {
        let both = [endpoint(1, "n2"), endpoint(2, "n1")];
        assert_eq!(usable(&both, true), [2]);
        assert!(usable(&both[..1], true).is_empty());
        let mut ending = endpoint(3, "n1");
        ending.terminating = true;
        assert_eq!(usable(&[endpoint(1, "n2"), ending], true), [3]);
    }

    #[test]
    fn the_nearest_are_used_where_every_endpoint_says_for_whom_it_is() {
        let zoned = |name, node, zone: &str| Endpoint {
            for_zones: vec![zone.to_owned()],
            ..endpoint(name, node)
        };
        let all = [
            zoned(1, "n1", "a"),
            zoned(2, "n2", "a"),
            zoned(3, "n3", "b"),
        ];
        assert_eq!(usable(&all, false), [1, 2]);
        // Nobody is meant for here: all are used, as without the words.
        assert_eq!(usable(&all[2..], false), [3]);
        // One does not say: nobody's word counts.
        let some = [all[0].clone(), endpoint(2, "n2")];
        assert_eq!(usable(&some, false), [1, 2]);
        // The node's own come before the zone's.
        let nodes = all.map(|endpoint| Endpoint {
            for_nodes: vec![endpoint.node.clone()],
            ..endpoint
        });
        assert_eq!(usable(&nodes, false), [1]);
    }
}
