//! What the kernel leads to links that are not known to be pods'.
//!
//! Routes of ours are looked at whoever made the link, and others' (another plugin's pods) where the link has a pod's
//! name; the filter's entries only where there is a link of a pod's name that nobody knows. A pod whose ADD is under way is among what is found: the owner knows it.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use veni_core::config::Config;
use veni_datapath::{
    bpf::Filter,
    host::{self, PodLink},
};

use super::{
    Stray, Strays,
    keeper::{Links, lock},
};

/// As the kernel shows it now.
pub(super) fn look(
    config: &Config,
    filter: &Filter,
    links: &Links,
    pods: &BTreeMap<u32, PodLink>,
) -> Result<Strays, veni_datapath::Error> {
    let mut routes = host::pod_routes(config.table_base)?;
    let others = host::routes_on_links()?;
    let links = lock(links);
    routes.extend(
        others.into_iter().filter(|(_, index)| is_pods(&links, *index, &config.veth_prefix)),
    );
    let unknown = unknown_link(pods, &links, &config.veth_prefix);
    let mapped = if unknown { filter.pods()? } else { BTreeMap::default() };
    let mapped = mapped.into_iter().map(|(index, pod)| (pod.address, index));
    Ok(strays(routes, mapped, pods, &links))
}

/// Out of `routes` (address, index of the link) and the filter's entries `mapped` (the same), what is no pod of `pods`.
fn strays(
    routes: impl IntoIterator<Item = (Ipv4Addr, u32)>,
    mapped: impl IntoIterator<Item = (Ipv4Addr, u32)>,
    pods: &BTreeMap<u32, PodLink>,
    links: &HashMap<u32, String>,
) -> Strays {
    let known = |address, ifindex| pods.get(&ifindex).is_some_and(|pod| pod.address == address);
    routes
        .into_iter()
        // An entry without a link leads nowhere.
        .chain(mapped.into_iter().filter(|(_, ifindex)| links.contains_key(ifindex)))
        .filter(|(address, ifindex)| !known(*address, *ifindex))
        .map(|(address, ifindex)| {
            let ifname = links.get(&ifindex).cloned().unwrap_or_default();
            (address, Stray { ifindex, ifname })
        })
        .collect()
}

/// Whether the link has a pod's name. The VPC CNI's pods, too, have such links, and routes in the table `main`: on a node
/// that is taken over while they run, their addresses are in use.
fn is_pods(links: &HashMap<u32, String>, index: u32, veth_prefix: &str) -> bool {
    links.get(&index).is_some_and(|name| name.starts_with(veth_prefix))
}

/// Whether there is a link of a pod's name that is no pod's of `pods`.
fn unknown_link(
    pods: &BTreeMap<u32, PodLink>,
    links: &HashMap<u32, String>,
    veth_prefix: &str,
) -> bool {
    links.iter().any(|(index, name)| name.starts_with(veth_prefix) && !pods.contains_key(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_a_link_that_is_no_pods_is_stray() {
        let address = |last| Ipv4Addr::new(10, 0, 0, last);
        let pod = |last, ifindex: u32| {
            (ifindex, PodLink { address: address(last), ifindex, ifname: format!("eni{ifindex}") })
        };
        let pods = BTreeMap::from([pod(70, 7), pod(80, 8)]);
        let links =
            [(7, "eni7"), (8, "eni8"), (9, "eni9"), (3, "dummy0")].map(|(i, n)| (i, n.to_owned()));
        let links = HashMap::from(links);
        // A pod's, another address on a pod's link, a link of nobody, one that is no veth of ours.
        let routes = [(address(70), 7), (address(81), 8), (address(30), 3)];
        let mapped = [(address(80), 8), (address(90), 9), (address(60), 6)];
        let found: Vec<_> = strays(routes, mapped, &pods, &links)
            .into_iter()
            .map(|(address, stray)| (address, stray.ifname))
            .collect();
        let expect = [(30, "dummy0"), (81, "eni8"), (90, "eni9")];
        assert_eq!(found, expect.map(|(last, name)| (address(last), name.to_owned())));
        assert!(unknown_link(&pods, &links, "eni"));
        assert!(!unknown_link(&pods, &links, "cali"));
        let of_pods: Vec<_> =
            [7, 9, 3, 4].into_iter().filter(|i| is_pods(&links, *i, "eni")).collect();
        assert_eq!(of_pods, [7, 9], "another plugin's pods have links of that name");
    }
}
