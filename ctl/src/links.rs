//! The names of the ENIs' links on this node, for views that do not carry them.

use std::{collections::BTreeMap, process::Command};

use serde::Deserialize;
use veni_core::{id::IfName, net::Mac, wire::inspect::View};

/// An element of `ip -j link show`.
#[derive(Debug, Deserialize)]
struct Link {
    ifname: String,
    address: Option<String>,
}

/// Fills in the links that ipamd did not name, by MAC. Elsewhere than on the node, or without `ip`, nothing is
/// found, and the view stays as it is.
pub(crate) fn name(view: &mut View) {
    if view.enis.iter().all(|eni| eni.ifname.is_some() || eni.mac.is_none()) {
        return;
    }
    let output = Command::new("ip").args(["-j", "link", "show"]).output();
    if let Ok(output) = output {
        name_from(view, &output.stdout);
    }
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
