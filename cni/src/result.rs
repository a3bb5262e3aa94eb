//! Results of ADD, in the form of every version of the specification; read back as prevResult.
//!
//! One set of types holds what any version can say. [`AddResult::to_json`] leaves out what a version does not know.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use veni_core::{id::IfName, wire::Wiring};

use crate::spec::{SpecVersion, to_json};

/// What an ADD made, and what plugins before us in the chain had made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddResult {
    /// Links, on the node and in the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes in the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name service, passed through.
    #[serde(default)]
    pub dns: Dns,
}

/// One link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU (from 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The pod's namespace; absent for a link on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// A vhost-user socket (from 1.1.0), passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// A PCI device (from 1.1.0), passed through.
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// `4` or `6` (before 1.0.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its place in `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// With its prefix length.
    pub address: IpNet,
    /// The default gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// One route in the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By way of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// From 1.1.0, passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// From 1.1.0, passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// From 1.1.0, passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// From 1.1.0, passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// From 1.1.0, passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

/// Name service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

// === impl AddResult ===

impl AddResult {
    /// `before` (what the chain had made so far) and the pod as `wiring` says.
    #[must_use]
    pub fn of(before: Option<Self>, wiring: &Wiring, ifname: &IfName, sandbox: &str) -> Self {
        let mut result = before.unwrap_or_default();
        let host_end = Interface {
            name: wiring.host_ifname.to_string(),
            mac: Some(wiring.host_mac.to_string()),
            mtu: Some(wiring.mtu),
            ..Interface::default()
        };
        let pod_end = Interface {
            name: ifname.to_string(),
            mac: Some(wiring.pod_mac.to_string()),
            mtu: Some(wiring.mtu),
            sandbox: Some(sandbox.to_owned()),
            ..Interface::default()
        };
        // DEL knows our pair by their adjacency: see `host_end`.
        result.interfaces.extend([host_end, pod_end]);
        let gateway = IpAddr::V4(wiring.gateway);
        result.ips.push(Ip {
            version: None,
            interface: Some(result.interfaces.len() - 1),
            address: IpNet::from(IpAddr::V4(wiring.address)),
            gateway: Some(gateway),
        });
        result.routes.push(Route {
            dst: IpNet::V4(ipnet::Ipv4Net::default()),
            gw: Some(gateway),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        });
        result
    }

    /// The name of our host end: the link on the node that is listed right before the pod's `ifname`.
    #[must_use]
    pub fn host_end(&self, ifname: &IfName) -> Option<IfName> {
        let on_node = |i: &Interface| i.sandbox.as_deref().unwrap_or_default().is_empty();
        self.interfaces.windows(2).find_map(|pair| {
            let ours = on_node(&pair[0]) && !on_node(&pair[1]) && pair[1].name == ifname.as_str();
            ours.then(|| pair[0].name.parse().ok())?
        })
    }

    /// Whether `address` is among the pod's.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.ips.iter().any(|ip| ip.address.addr() == address)
    }

    /// In the form of `version`.
    #[must_use]
    pub fn to_json(mut self, version: SpecVersion) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Versioned {
            cni_version: &'static str,
            #[serde(flatten)]
            result: AddResult,
        }
        for ip in &mut self.ips {
            let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
            ip.version = (version < SpecVersion::V1_0_0).then(|| family.to_owned());
        }
        if version < SpecVersion::V1_1_0 {
            self.leave_out_newer_than_1_0();
        }
        to_json(&Versioned { cni_version: version.as_str(), result: self })
    }

    fn leave_out_newer_than_1_0(&mut self) {
        for interface in &mut self.interfaces {
            interface.mtu = None;
            interface.socket_path = None;
            interface.pci_id = None;
        }
        for route in &mut self.routes {
            *route = Route {
                dst: route.dst,
                gw: route.gw,
                mtu: None,
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            };
        }
    }
}
