//! The names of links on this node, for views that do not carry them: ENIs' by MAC, pods' by number.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde::Deserialize;
use veni_core::{
    id::IfName,
    net::Mac,
    wire::inspect::{View, policy::Standing},
};

use crate::client;

/// How texts name a pod's link that has a number only.
const OF_A_POD: &str = "the pod's link ";
/// How a pod is called whose name is not known, or another's.
const NAMELESS: &str = "ifindex-";

/// An element of `ip -j link show`.
#[derive(Debug, Deserialize)]
struct Link {
    #[serde(default)]
    ifindex: u32,
    ifname: String,
    address: Option<String>,
}

/// Fills in the links that ipamd did not name, by MAC. Elsewhere than on the node, or without `ip`, nothing is
/// found, and the view stays as it is.
pub(crate) fn name(view: &mut View) {
    if view.enis.iter().all(|eni| eni.ifname.is_some() || eni.mac.is_none()) {
        return;
    }
    name_from(view, &list());
}

/// Names the pods where texts have their links' numbers. ipamd and `ip` are asked only if there are some.
pub(crate) fn name_in_standing(standing: &mut Standing, socket: &Path) {
    let unlabelled = standing.unlabelled.iter().any(|pod| pod.pod.contains(NAMELESS));
    if !unlabelled && !standing.foreign.iter().any(|foreign| foreign.what.contains(OF_A_POD)) {
        return;
    }
    if let Ok(view) = client::inspect(socket, true) {
        name_pods(standing, &pods(&view, &list()));
    }
}

fn list() -> Vec<u8> {
    let output = Command::new("ip").args(["-j", "link", "show"]).output();
    output.map(|output| output.stdout).unwrap_or_default()
}

/// Whose link has which number.
fn pods(view: &View, links: &[u8]) -> BTreeMap<u32, String> {
    let links: Vec<Link> = serde_json::from_slice(links).unwrap_or_default();
    let owners = view.addresses.iter().filter_map(|address| {
        let pod = address.pod.as_ref().filter(|pod| !pod.name.is_empty())?;
        let ifname = address.host_ifname.as_ref()?.as_str();
        let link = links.iter().find(|link| link.ifname == ifname)?;
        Some((link.ifindex, format!("{}/{}", pod.namespace, pod.name)))
    });
    owners.collect()
}

fn name_pods(standing: &mut Standing, pods: &BTreeMap<u32, String>) {
    for foreign in &mut standing.foreign {
        if let Some((before, number, after)) = numbered(&foreign.what, OF_A_POD)
            && let Some(pod) = pods.get(&number)
        {
            foreign.what = format!("{before}{pod}'s link [{number}]{after}");
        }
    }
    for unlabelled in &mut standing.unlabelled {
        if let Some((_, number, _)) = numbered(&unlabelled.pod, NAMELESS)
            && let Some(pod) = pods.get(&number)
        {
            unlabelled.pod = format!("{pod} [link {number}]");
        }
    }
}

/// What is before the words, the number after them, and the rest.
fn numbered<'a>(text: &'a str, words: &str) -> Option<(&'a str, u32, &'a str)> {
    let (before, rest) = text.split_once(words)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((before, rest[..end].parse().ok()?, &rest[end..]))
}

fn name_from(view: &mut View, links: &[u8]) {
    let links: Vec<Link> = serde_json::from_slice(links).unwrap_or_default();
    let by_mac: BTreeMap<Mac, IfName> = links
        .into_iter()
        .filter_map(|link| Some((link.address?.parse().ok()?, link.ifname.parse().ok()?)))
        .collect();
    for eni in view.enis.iter_mut().filter(|eni| eni.ifname.is_none()) {
        eni.ifname = eni.mac.and_then(|mac| by_mac.get(&mac).cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_link_is_named_by_its_pod_with_the_number_in_brackets() {
        let links =
            br#"[{"ifindex":1,"ifname":"lo"},{"ifindex":1048577,"ifname":"eni0123456789a"}]"#;
        let pods = pods(&crate::fixtures::busy(), links);
        let named = |what: &str, pod: &str| {
            let text = serde_json::json!({
                "foreign": [{"what": what, "bypasses": true}],
                "unlabelled": [{"pod": pod, "judged_by": "closed", "reason": "r", "age_secs": 1}],
            });
            let mut standing: Standing = serde_json::from_value(text).unwrap();
            name_pods(&mut standing, &pods);
            (standing.foreign[0].what.clone(), standing.unlabelled[0].pod.clone())
        };
        for (what, pod, expected) in [
            (
                "TCX programs on the pod's link 1048577 see it",
                "-/ifindex-1048577",
                (
                    "TCX programs on default/web-0's link [1048577] see it",
                    "default/web-0 [link 1048577]",
                ),
            ),
            ("the pod's link 7 has nothing", "x/a", ("the pod's link 7 has nothing", "x/a")),
        ] {
            assert_eq!(named(what, pod), (expected.0.to_owned(), expected.1.to_owned()));
        }
    }

    #[test]
    fn links_are_named_by_mac_and_what_ipamd_named_stays() {
        let mut view = crate::fixtures::busy();
        view.enis[1].ifname = None;
        let links = br#"[{"ifname":"lo","address":"00:00:00:00:00:00"},{"ifname":"none0"},
            {"ifname":"wrong","address":"02:00:00:00:00:01"},{"ifname":"ens6","address":"02:00:00:00:00:02"}]"#;
        name_from(&mut view, links);
        let names: Vec<_> =
            view.enis.iter().map(|eni| eni.ifname.as_ref().map(IfName::as_str)).collect();
        assert_eq!(names, [Some("eth0"), Some("ens6"), None]);
        name_from(&mut view, b"not json");
    }
}
