//! The VPC's fabric: a router, an "internet" host, a host of a peered network, and a cable for every ENI.
//!
//! Invariants: what EC2 would drop is dropped, and counted. A packet whose source is not an address of the ENI that
//! it leaves by fails the source/destination check; a packet to or from the internet needs the primary address of a
//! node (only those have a public address in this VPC, translated 1:1 on EC2 and left as they are here); a packet to
//! an address that no ENI holds goes nowhere.
//!
//! The router's /32 routes are the whole truth: it routes an address to the ENI that holds it, answers ARP for it
//! elsewhere (`proxy_arp`), and the source check is nftables' reverse path lookup over the same routes.
//!
//! Deliberately absent: security groups, network ACLs, bandwidth limits.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use veni_core::net::{Ipv4Prefix, Mac};

use crate::{
    error::{Error, Result, make_dir},
    ns::{Namespace, Outer},
};

/// The VPC's CIDR.
pub const VPC_CIDR: &str = "10.0.0.0/16";
/// Its subnets.
pub const SUBNETS: [&str; 2] = ["10.0.0.0/20", "10.0.16.0/20"];
/// A subnet that no node is in, for the pods of nodes with custom networking, in the zone of the first node.
pub const POD_SUBNET: (&str, &str) = ("subnet-0labpods", "10.0.32.0/20");
/// The host on the internet.
pub const INTERNET_HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The host in the peered network, outside the VPC's CIDR.
pub const PEER_HOST: Ipv4Addr = Ipv4Addr::new(172, 31, 5, 10);

/// Inside a VPC: jumbo frames (EC2 User Guide, "Network maximum transmission unit").
const VPC_MTU: u32 = 9001;
/// Over an internet gateway or a peering between regions.
const OUTSIDE_MTU: u32 = 1500;
/// The next hop that stands for an ENI's MAC on the router: EC2's fabric knows who holds an address and asks nobody.
const ENI_HOP: &str = "169.254.0.2";

/// The fabric of one lab.
#[derive(Debug)]
pub struct Vpc {
    /// Routes between ENIs, the internet and the peered network.
    pub router: Namespace,
    /// The host on the internet, [`INTERNET_HOST`].
    pub internet: Namespace,
    /// The host in the peered network, [`PEER_HOST`].
    pub peer: Namespace,
    ports: Mutex<BTreeMap<String, BTreeSet<Ipv4Addr>>>,
}

/// An ENI as the fabric sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The node's name.
    pub node: String,
    /// Its place on the instance: the link is `eth<index>` there.
    pub device_index: u8,
    /// Its MAC.
    pub mac: Mac,
    /// All of its addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
}

/// What the fabric dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drops {
    /// Packets that failed the source/destination check.
    pub source_check: u64,
    /// Packets to or from the internet without a public address.
    pub no_public_address: u64,
    /// Which port sent which foreign source address how often.
    pub offenders: Vec<String>,
}

// === impl Vpc ===

impl Vpc {
    /// Lays the fabric of a lab that keeps its files in `dir`.
    ///
    /// # Errors
    /// When a namespace, a link or the rule set is refused.
    pub fn build(dir: &Path, outer: &Outer) -> Result<Self> {
        let netns = dir.join("netns");
        make_dir(&netns)?;
        let namespace = |name: &str| Namespace::create(name, netns.join(name), outer);
        let vpc = Self {
            router: namespace("router")?,
            internet: namespace("internet")?,
            peer: namespace("peer")?,
            ports: Mutex::default(),
        };
        vpc.router.sysctls(&[
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv4/conf/default/proxy_arp", "1"),
        ])?;
        vpc.router.ip(&format!("route add blackhole {VPC_CIDR}\n{}", gateways()?))?;
        vpc.router.nft(ROUTER_RULES)?;
        vpc.add_host(&vpc.internet, INTERNET_HOST, 24, Ipv4Addr::new(198, 51, 100, 1))?;
        vpc.add_host(&vpc.peer, PEER_HOST, 16, Ipv4Addr::new(172, 31, 0, 1))?;
        Ok(vpc)
    }

    /// Plugs an ENI into `node`: the link appears there, down, as a hot-plugged one does.
    ///
    /// # Errors
    /// When the link exists already.
    pub fn plug(&self, node: &Namespace, port: &Port) -> Result<()> {
        let (cable, ifname) = (port.cable(), port.ifname());
        self.router.ip(&format!(
            "link add dev {cable} mtu {VPC_MTU} type veth peer name {ifname} mtu {VPC_MTU} address {mac} netns {path}\n\
             link set {cable} up\n\
             neigh replace {ENI_HOP} lladdr {mac} dev {cable} nud permanent\n",
            mac = port.mac,
            path = node.path().display(),
        ))?;
        // A proxied ARP answer is otherwise held back for up to 0.8 s (RFC 925's courtesy to the real owner).
        self.router.sysctls(&[(&format!("ipv4/neigh/{cable}/proxy_delay"), "0")])?;
        self.set_addresses(&cable, &port.addresses)
    }

    /// Pulls an ENI out: the link is gone from the node, and its addresses lead nowhere.
    ///
    /// # Errors
    /// When it was not plugged in.
    pub fn unplug(&self, cable: &str) -> Result<()> {
        self.ports().remove(cable);
        self.router.ip(&format!("link del {cable}\n"))
    }

    /// Makes `addresses` the ones that the ENI at `cable` holds.
    ///
    /// # Errors
    /// When a route is refused.
    pub fn set_addresses(&self, cable: &str, addresses: &BTreeSet<Ipv4Addr>) -> Result<()> {
        let mut ports = self.ports();
        let held = ports.entry(cable.to_owned()).or_default();
        let mut lines = String::new();
        for gone in held.difference(addresses) {
            line(&mut lines, &format!("route del {gone}/32 dev {cable}"));
        }
        for new in addresses.difference(held) {
            line(&mut lines, &format!("route replace {new}/32 via {ENI_HOP} dev {cable} onlink"));
        }
        held.clone_from(addresses);
        if lines.is_empty() { Ok(()) } else { self.router.ip(&lines) }
    }

    /// Gives `address`, a node's primary one, a way to and from the internet.
    ///
    /// # Errors
    /// When the router refuses it.
    pub fn make_public(&self, address: Ipv4Addr) -> Result<()> {
        self.router.nft(&format!("add element ip vpc public {{ {address} }}\n"))
    }

    /// What was dropped since the lab is up.
    ///
    /// # Errors
    /// When nftables' answer cannot be read.
    pub fn drops(&self) -> Result<Drops> {
        let text = self.router.tool("nft", &["-j", "list", "table", "ip", "vpc"], "")?;
        parse_drops(&text).ok_or_else(|| Error::invalid("cannot read the router's drop counters"))
    }

    /// Puts `host` on a cable of its own, which the router has `gateway` on.
    ///
    /// # Errors
    /// When a link or an address is refused.
    pub(crate) fn add_host(
        &self,
        host: &Namespace,
        address: Ipv4Addr,
        len: u8,
        gateway: Ipv4Addr,
    ) -> Result<()> {
        let (name, path) = (host.name(), host.path().display());
        host.sysctls(&[("ipv6/conf/all/disable_ipv6", "1")])?;
        self.router.ip(&format!(
            "link add dev {name} mtu {OUTSIDE_MTU} type veth peer name eth0 mtu {OUTSIDE_MTU} netns {path}\n\
             addr add {gateway}/{len} dev {name}\nlink set {name} up\n"
        ))?;
        host.ip(&format!(
            "addr add {address}/{len} dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
        ))
    }

    fn ports(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<Ipv4Addr>>> {
        // The map is whole between any two statements.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Port ===

impl Port {
    /// The router's end.
    #[must_use]
    pub fn cable(&self) -> String {
        cable_name(&self.node, self.device_index)
    }

    /// The node's end.
    #[must_use]
    pub fn ifname(&self) -> String {
        format!("eth{}", self.device_index)
    }
}

/// The name of the router's end of a node's ENI; fits 15 bytes for nodes' names of up to 9.
#[must_use]
pub fn cable_name(node: &str, device_index: u8) -> String {
    format!("{node}.eth{device_index}")
}

/// The two drops of EC2's fabric. `fib … oif missing` over /32 routes is the source check; it runs before connection
/// tracking, so that a dropped packet leaves no trace there.
const ROUTER_RULES: &str = r#"
table ip vpc {
    set public { type ipv4_addr; }
    set offenders { type ifname . ipv4_addr; size 4096; flags dynamic; }
    counter source_check { }
    counter no_public_address { }
    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        iifname != { "lo", "internet", "peer" } fib saddr . iif oif missing update @offenders { iifname . ip saddr counter } counter name source_check drop
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        oifname "internet" ip saddr != @public counter name no_public_address drop
        iifname "internet" ip daddr != @public counter name no_public_address drop
    }
}
"#;

/// The subnets' router addresses, on the loopback: they answer on every cable.
fn gateways() -> Result<String> {
    SUBNETS.iter().chain([&POD_SUBNET.1]).try_fold(String::new(), |mut lines, subnet| {
        let subnet: Ipv4Prefix =
            subnet.parse().map_err(|error| Error::invalid(format!("{error}")))?;
        line(&mut lines, &format!("addr add {}/32 dev lo", subnet.vpc_router()));
        Ok(lines)
    })
}

fn line(lines: &mut String, text: &str) {
    lines.push_str(text);
    lines.push('\n');
}

fn parse_drops(text: &str) -> Option<Drops> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let mut drops = Drops::default();
    for item in json.get("nftables")?.as_array()? {
        if let Some(counter) = item.get("counter") {
            let packets = counter.get("packets")?.as_u64()?;
            match counter.get("name")?.as_str()? {
                "source_check" => drops.source_check = packets,
                "no_public_address" => drops.no_public_address = packets,
                _ => {}
            }
        }
        let offenders = item
            .get("set")
            .filter(|set| set["name"] == "offenders")
            .and_then(|set| set["elem"].as_array());
        for elem in offenders.into_iter().flatten() {
            let elem = &elem["elem"];
            let (port, source) = (&elem["val"]["concat"][0], &elem["val"]["concat"][1]);
            drops.offenders.push(format!(
                "{} from {} ×{}",
                source.as_str().unwrap_or("?"),
                port.as_str().unwrap_or("?"),
                elem["counter"]["packets"]
            ));
        }
    }
    Some(drops)
}
