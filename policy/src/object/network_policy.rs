//! NetworkPolicy, `networking.k8s.io/v1`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Diagnostic, Protocol, Selector,
    pod::read_protocol,
    reader::{Invalid, Read, Reader},
};

/// A NetworkPolicy, closed where it was invalid: an invalid peer or port matches nothing; an invalid rule matches
/// nothing; with an invalid `podSelector` or `policyTypes` it isolates more (the whole namespace, both directions)
/// and allows nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pods of its namespace that it selects.
    pub pods: Selector,
    /// `Some`: isolates the pods' ingress, and these rules allow. Indices are those of the manifest.
    pub ingress: Option<Vec<PolicyRule>>,
    /// As `ingress`, for egress.
    pub egress: Option<Vec<PolicyRule>>,
    /// What was wrong and is closed.
    pub diagnostics: Vec<Diagnostic>,
}

/// A rule: peers **and** ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PolicyRule {
    /// Any of these; `None`: every peer; `Some` and empty: no peer.
    pub peers: Option<Vec<Peer>>,
    /// Any of these; `None`: every protocol and port; `Some` and empty: no port.
    pub ports: Option<Vec<PolicyPort>>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Pods.
    Pods {
        /// Of these namespaces; `None`: of the policy's own.
        namespaces: Option<Selector>,
        /// With these labels; `None`: all.
        pods: Option<Selector>,
    },
    /// Addresses, pods' and nodes' included.
    Block {
        /// In this block,
        cidr: IpNet,
        /// but not in these, which lie in it.
        except: Vec<IpNet>,
    },
}

/// Ports of one protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyPort {
    /// The protocol.
    pub protocol: Protocol,
    /// Which of its ports.
    pub port: PortMatch,
}

/// Which ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortMatch {
    /// Every port.
    Any,
    /// From the first to the last, both included.
    Range(u16, u16),
    /// The port of that name and protocol on the destination pod.
    Name(String),
}

impl PolicyRule {
    /// Matches nothing.
    #[must_use]
    pub const fn nothing() -> Self {
        Self { peers: Some(Vec::new()), ports: Some(Vec::new()) }
    }
}

impl NetworkPolicy {
    pub(super) fn read(root: &Reader<'_>) -> Self {
        let spec = root.get("spec");
        let mut closed =
            root.noted(spec.only(&["podSelector", "policyTypes", "ingress", "egress"])).is_none();
        let pods = root.noted(Selector::read(&spec.get("podSelector"))).unwrap_or_else(|| {
            closed = true;
            Selector::everything()
        });
        let (isolates_ingress, isolates_egress) =
            root.noted(policy_types(&spec)).unwrap_or_else(|| {
                closed = true;
                (true, true)
            });
        let rules = |field: &str, peers: &str| {
            let rules = read_rules(root, &spec.get(field), peers);
            if closed { vec![PolicyRule::nothing(); rules.len()] } else { rules }
        };
        Self {
            namespace: root.key().namespace.clone(),
            name: root.key().name.clone(),
            pods,
            ingress: isolates_ingress.then(|| rules("ingress", "from")),
            egress: isolates_egress.then(|| rules("egress", "to")),
            diagnostics: root.taken(),
        }
    }
}

/// Absent or empty: Ingress always, Egress when there are egress rules, as the API server's defaults have it
/// (`SetDefaults_NetworkPolicy`: `len(obj.Spec.Egress) != 0`).
fn policy_types(spec: &Reader<'_>) -> Read<(bool, bool)> {
    let items = spec.get("policyTypes").list()?;
    if items.is_empty() {
        return Ok((true, !spec.get("egress").list()?.is_empty()));
    }
    let (mut ingress, mut egress) = (false, false);
    for item in items {
        match item.text()? {
            Some("Ingress") => ingress = true,
            Some("Egress") => egress = true,
            _ => {
                let shown = item.shown();
                let message = format!(
                    "{shown} is neither \"Ingress\" nor \"Egress\"; both are isolated and nothing is allowed"
                );
                return Err(item.invalid(message));
            }
        }
    }
    Ok((ingress, egress))
}

fn read_rules(root: &Reader<'_>, at: &Reader<'_>, peers: &str) -> Vec<PolicyRule> {
    let items = root.noted(at.list()).unwrap_or_default();
    items
        .iter()
        .map(|item| root.noted(read_rule(item, peers)).unwrap_or_else(PolicyRule::nothing))
        .collect()
}

fn read_rule(at: &Reader<'_>, peers: &str) -> Read<PolicyRule> {
    at.present()?;
    at.only(&[peers, "ports"])?;
    Ok(PolicyRule {
        peers: read_some(&at.get(peers), |item| item.noted(read_peer(item)))?,
        ports: read_some(&at.get("ports"), read_port)?,
    })
}

/// The valid items. An empty list is as an absent one; a list of nothing but invalid items is not.
fn read_some<T>(at: &Reader<'_>, noted: impl Fn(&Reader<'_>) -> Option<T>) -> Read<Option<Vec<T>>> {
    let items = at.list()?;
    if items.is_empty() {
        return Ok(None);
    }
    Ok(Some(items.iter().filter_map(noted).collect()))
}

fn read_peer(at: &Reader<'_>) -> Read<Peer> {
    at.only(&["ipBlock", "namespaceSelector", "podSelector"])?;
    let (block, namespaces, pods) =
        (at.get("ipBlock"), at.get("namespaceSelector"), at.get("podSelector"));
    let selects = !namespaces.is_absent() || !pods.is_absent();
    match (block.is_absent(), selects) {
        (true, false) => Err(at.invalid("has neither ipBlock nor a selector; it matches nothing")),
        (false, true) => Err(at.invalid("has both ipBlock and a selector; it matches nothing")),
        (false, false) => read_block(&block),
        (true, true) => {
            Ok(Peer::Pods { namespaces: optional(&namespaces)?, pods: optional(&pods)? })
        }
    }
}

fn optional(at: &Reader<'_>) -> Read<Option<Selector>> {
    if at.is_absent() { Ok(None) } else { Selector::read(at).map(Some) }
}

fn read_block(at: &Reader<'_>) -> Read<Peer> {
    at.only(&["cidr", "except"])?;
    let cidr = read_cidr(&at.get("cidr"))?;
    let mut except = Vec::new();
    for item in at.get("except").list()? {
        let net = read_cidr(&item)?;
        if !cidr.contains(&net) || net == cidr {
            return Err(item.invalid(format!("{net} does not lie strictly inside {cidr}")));
        }
        except.push(net);
    }
    except.sort();
    except.dedup();
    Ok(Peer::Block { cidr, except })
}

/// A CIDR without its host bits.
pub(super) fn read_cidr(at: &Reader<'_>) -> Read<IpNet> {
    let net: IpNet = at.parsed("a CIDR")?.ok_or_else(|| at.invalid("is missing"))?;
    let mapped = matches!(net.addr(), IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    if mapped {
        return Err(at.invalid(format!("{} is an IPv4-mapped IPv6 block", at.shown())));
    }
    Ok(net.trunc())
}

/// All that is wrong with it is noted, so that one look is enough to mend it.
fn read_port(at: &Reader<'_>) -> Option<PolicyPort> {
    let known = at.noted(at.present().and_then(|()| at.only(&["protocol", "port", "endPort"])));
    let protocol = at.noted(read_protocol(&at.get("protocol")));
    let port = at.noted(read_port_match(at));
    known?;
    Some(PolicyPort { protocol: protocol?, port: port? })
}

fn read_port_match(at: &Reader<'_>) -> Read<PortMatch> {
    let (port, end) = (at.get("port"), at.get("endPort"));
    let port = if port.is_absent() {
        if !end.is_absent() {
            return Err(end.invalid("needs a port"));
        }
        PortMatch::Any
    } else if port.is_number() {
        let first = port.port()?.unwrap_or_default();
        let last = end.port()?.unwrap_or(first);
        if last < first {
            return Err(end.invalid(format!("{last} is below port {first}")));
        }
        PortMatch::Range(first, last)
    } else {
        named_port(&port, &end)?
    };
    Ok(port)
}

fn named_port(port: &Reader<'_>, end: &Reader<'_>) -> Read<PortMatch> {
    let name = port.text()?.unwrap_or_default();
    if !end.is_absent() {
        return Err(end.invalid("needs a port with a number, not a name"));
    }
    check_port_name(name, port)?;
    Ok(PortMatch::Name(name.to_owned()))
}

/// At most 15 of a–z, 0–9 and single hyphens inside, one letter at least (apimachinery `IsValidPortName`).
pub(super) fn check_port_name(name: &str, at: &Reader<'_>) -> Result<(), Invalid> {
    let ok = (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-');
    if ok { Ok(()) } else { Err(at.invalid(format!("{name:?} is not a port's name"))) }
}
