//! The nftables table `ip veni`: which connections leave through the primary ENI, and their source translation.
//!
//! Invariants: the table is veni's alone and changes in one transaction, in which a packet meets each chain's rules of
//! before or of after; the decision is made once per connection, after Service translation (priority −90 comes after
//! `dstnat`), and kept in the connection mark. A reply is never marked by its own address: only by the mark of its
//! connection.
//!
//! What makes a change atomic: a base chain stays, and with it its place among the hooks; the kernel changes the rules
//! of a chain, and of those that it jumps to, by one generation that a packet reads once per hook (`nft_do_chain`).
//! That holds for rules only. Where one table takes the place of another, a packet may meet both, or neither, and the
//! rules of the new one without the elements of its interval set (seen with Linux 6.18): so CIDRs are rules, and a table
//! is changed, not replaced.
//!
//! Written as JSON through `nft -j -f -` (libnftables-json(5)), in the calling thread's network namespace.
//!
//! Deliberately absent: other tables, sets (above), counters (they would make "is it still as we wrote it" a moving
//! target).

use std::{
    io::Write as _,
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};
use veni_core::{
    config::{RandomizeSnat, Snat},
    marks::EniMarkMask,
    net::Ipv4Prefix,
};

use crate::error::{Error, Result};

/// The table's name; its family is `ip`.
pub const TABLE: &str = "veni";
/// How many of the chains are base chains.
const HOOKS: usize = 3;
/// The chain that says of a new connection whether it leaves the VPC.
const LEAVES_VPC: &str = "leaves_vpc";
/// How many of our latest `nft` processes are remembered.
const OWN_PIDS: usize = 8;

/// What the table depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftConfig {
    /// The link of the primary ENI.
    pub primary_ifname: String,
    /// Its address: the source of what leaves the VPC.
    pub primary_address: Ipv4Addr,
    /// `AWS_VPC_K8S_CNI_VETHPREFIX`: pods' veths on the node.
    pub veth_prefix: String,
    /// The VPC's CIDRs: not translated, like `snat.exclude_cidrs`.
    pub vpc_cidrs: Vec<Ipv4Prefix>,
    /// Whether and how.
    pub snat: Snat,
    /// The mark bits that say that a packet came from a pod.
    pub mask: EniMarkMask,
}

/// The table that is in force, with the kernel's own rendering of it to compare with later.
#[derive(Debug)]
pub struct NftTable {
    ruleset: Value,
    listed: Option<Value>,
}

/// Process ids of our own `nft`s: the watch ignores their notifications where both see the same numbers.
static OWN: Mutex<[u32; OWN_PIDS]> = Mutex::new([0; OWN_PIDS]);

// === impl NftTable ===

impl NftTable {
    /// The table for `config`; nothing is written yet.
    #[must_use]
    pub fn new(config: &NftConfig) -> Self {
        Self { ruleset: ruleset(config), listed: None }
    }

    /// The table for `config` as an earlier daemon left it, by what that one kept ([`NftTable::kept`]); `None` when it
    /// is another, or is not in the kernel as it was. A table that is the same is not written again.
    ///
    /// # Errors
    /// When `nft` cannot be run.
    pub fn resume(config: &NftConfig, kept: &Value) -> Result<Option<Self>> {
        let ruleset = ruleset(config);
        let listed = kept.get("listed").filter(|listed| !listed.is_null());
        let (Some(listed), true) = (listed, kept.get("ruleset") == Some(&ruleset)) else {
            return Ok(None);
        };
        let found = list()?;
        Ok((found.as_ref() == Some(listed)).then_some(Self { ruleset, listed: found }))
    }

    /// What [`NftTable::resume`] needs.
    #[must_use]
    pub fn kept(&self) -> Value {
        json!({"ruleset": self.ruleset, "listed": self.listed})
    }

    /// Makes the kernel's table this one, atomically, whatever is there.
    ///
    /// # Errors
    /// When `nft` cannot be run or refuses.
    pub fn apply(&mut self) -> Result<()> {
        self.listed = None;
        let found = list()?;
        let changed = match found.as_ref().map(|found| change(&self.ruleset, found)) {
            Some(Some(change)) => write(&change),
            Some(None) => write(&anew(&self.ruleset)),
            None => write(&self.ruleset),
        };
        // What is in the way of a change goes with the table.
        changed.or_else(|_| write(&anew(&self.ruleset)))?;
        self.listed = list()?;
        Ok(())
    }

    /// Whether the kernel still has the table as it was applied. `false` before the first [`NftTable::apply`].
    ///
    /// # Errors
    /// When `nft` cannot be run.
    pub fn intact(&self) -> Result<bool> {
        Ok(self.listed.is_some() && self.listed == list()?)
    }
}

/// Whether a table of ours is there at all.
///
/// # Errors
/// When `nft` cannot be run.
pub fn present() -> Result<bool> {
    Ok(list()?.is_some())
}

/// Removes the table. Nothing happens when there is none.
///
/// # Errors
/// When `nft` cannot be run or refuses.
pub fn remove() -> Result<()> {
    write(&json!({"nftables": without_table()}))
}

/// Whether `pid` is one of our own latest `nft` processes.
pub(crate) fn is_own(pid: u32) -> bool {
    OWN.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
}

/// The whole transaction, over no table or one that has these chains: other rules than these are gone after it.
#[must_use]
pub fn ruleset(config: &NftConfig) -> Value {
    let mut commands = vec![json!({"add": table()})];
    commands.extend(chains().map(|chain| json!({"add": {"chain": chain}})));
    commands.push(json!({"flush": table()}));
    if config.snat.node_port_support {
        commands.push(node_port(config));
    }
    if !config.snat.external {
        commands.push(leaves_node(config));
        commands.extend(local_networks(config));
        commands.push(leaves_vpc(config));
        commands.push(source_nat(config));
    }
    commands.push(restore(config));
    json!({"nftables": commands})
}

/// Those that hook first ([`HOOKS`]).
fn chains() -> [Value; 4] {
    [
        chain("node_port", "filter", "prerouting", -150),
        chain("connmark", "filter", "prerouting", -90),
        chain("egress_snat", "nat", "postrouting", 100),
        json!({"family": "ip", "table": TABLE, "name": LEAVES_VPC}),
    ]
}

/// `ruleset` with the removal of all else that is in the table `found`; `None` when a chain that hooks is there as
/// another, or is not there.
fn change(ruleset: &Value, found: &Value) -> Option<Value> {
    let chains = chains();
    let (mut ours, mut foreign) = (Vec::new(), Vec::new());
    for object in found["nftables"].as_array()?.iter().filter_map(Value::as_object) {
        for (kind, object) in object {
            let own = kind == "chain" && chains.iter().any(|chain| chain["name"] == object["name"]);
            match kind.as_str() {
                "metainfo" | "table" | "rule" => {}
                _ if own => ours.push(object),
                kind => {
                    let name = json!({"family": "ip", "table": TABLE, "name": object["name"]});
                    foreign.push(json!({"delete": {kind: name}}));
                }
            }
        }
    }
    // The kernel lists them in the order in which they came; who compares listings has the same one again.
    if ours.len() < HOOKS || ours.iter().zip(&chains).any(|(ours, chain)| *ours != chain) {
        return None;
    }
    let mut commands = ruleset["nftables"].as_array()?.clone();
    // What refers to another was listed after it, and rules have gone by then.
    let flushed = commands.iter().position(|command| command.get("flush").is_some())? + 1;
    commands.splice(flushed..flushed, foreign.into_iter().rev());
    Some(json!({"nftables": commands}))
}

/// `ruleset` over a table that is removed.
fn anew(ruleset: &Value) -> Value {
    let mut commands = without_table().to_vec();
    commands.extend(ruleset["nftables"].as_array().into_iter().flatten().cloned());
    json!({"nftables": commands})
}

/// Succeeds whether or not the table is there.
fn without_table() -> [Value; 2] {
    [json!({"add": table()}), json!({"delete": table()})]
}

fn table() -> Value {
    json!({"table": {"family": "ip", "name": TABLE}})
}

fn chain(name: &str, kind: &str, hook: &str, priority: i32) -> Value {
    json!({
        "family": "ip", "table": TABLE, "name": name, "type": kind, "hook": hook, "prio": priority, "policy": "accept",
    })
}

fn rule(chain: &str, comment: &str, statements: &[Value]) -> Value {
    json!({"add": {"rule": {
        "family": "ip", "table": TABLE, "chain": chain, "comment": comment, "expr": statements,
    }}})
}

fn matches(operator: &str, left: Value, right: Value) -> Value {
    json!({"match": {"op": operator, "left": left, "right": right}})
}

fn or_mark(key: &Value, bits: u32) -> Value {
    json!({"mangle": {"key": key, "value": {"|": [key, bits]}}})
}

fn ct_mark() -> Value {
    json!({"ct": {"key": "mark"}})
}

fn meta_mark() -> Value {
    json!({"meta": {"key": "mark"}})
}

fn is_new() -> Value {
    matches("in", json!({"ct": {"key": "state"}}), json!("new"))
}

fn from_pod(config: &NftConfig) -> Value {
    matches("==", json!({"meta": {"key": "iifname"}}), json!(format!("{}*", config.veth_prefix)))
}

fn has_connmark(config: &NftConfig) -> Value {
    let bits = config.snat.connmark;
    matches("==", json!({"&": [ct_mark(), bits]}), json!(bits))
}

fn destination_type(operator: &str) -> Value {
    matches(operator, json!({"fib": {"result": "type", "flags": "daddr"}}), json!("local"))
}

/// What came to the node itself through the primary ENI has to be answered through it, wherever a pod answers it
/// (AWS_VPC_CNI_NODE_PORT_SUPPORT).
fn node_port(config: &NftConfig) -> Value {
    rule(
        "node_port",
        "to the node through the primary ENI: replies leave by it",
        &[
            matches("==", json!({"meta": {"key": "iifname"}}), json!(config.primary_ifname)),
            destination_type("=="),
            is_new(),
            or_mark(&ct_mark(), config.snat.connmark),
        ],
    )
}

/// Judges the connections that pods begin.
fn leaves_node(config: &NftConfig) -> Value {
    rule(
        "connmark",
        "from a pod to another than the node",
        &[
            from_pod(config),
            is_new(),
            matches("==", json!({"ct": {"key": "direction"}}), json!("original")),
            destination_type("!="),
            json!({"jump": {"target": LEAVES_VPC}}),
        ],
    )
}

/// One rule each, and no set: see the module's documentation.
fn local_networks(config: &NftConfig) -> Vec<Value> {
    let prefixes = config.vpc_cidrs.iter().chain(&config.snat.exclude_cidrs).copied().collect();
    let daddr = || json!({"payload": {"protocol": "ip", "field": "daddr"}});
    let stays = |prefix: Ipv4Prefix| {
        let network = json!({"prefix": {"addr": prefix.network(), "len": prefix.len()}});
        let inside = (prefix.len() > 0).then(|| matches("==", daddr(), network));
        let statements: Vec<_> = inside.into_iter().chain([json!({"return": null})]).collect();
        rule(LEAVES_VPC, "in the VPC, or excluded: not translated", &statements)
    };
    disjoint(prefixes).into_iter().map(stays).collect()
}

fn leaves_vpc(config: &NftConfig) -> Value {
    rule(
        LEAVES_VPC,
        "from a pod to outside the VPC: leaves by the primary ENI",
        &[or_mark(&ct_mark(), config.snat.connmark)],
    )
}

fn restore(config: &NftConfig) -> Value {
    rule(
        "connmark",
        "a pod's packet of such a connection: marked for the rule to main",
        &[from_pod(config), has_connmark(config), or_mark(&meta_mark(), config.snat.connmark)],
    )
}

fn source_nat(config: &NftConfig) -> Value {
    let mut translation = json!({"addr": config.primary_address});
    match config.snat.randomize {
        RandomizeSnat::Prng => translation["flags"] = json!("fully-random"),
        RandomizeSnat::HashRandom => translation["flags"] = json!("random"),
        RandomizeSnat::None => {}
    }
    rule(
        "egress_snat",
        "a pod's connection to outside the VPC",
        &[
            matches("==", json!({"meta": {"key": "oifname"}}), json!(config.primary_ifname)),
            has_connmark(config),
            matches("==", json!({"ct": {"key": "direction"}}), json!("original")),
            matches("!=", json!({"&": [meta_mark(), config.mask.bits()]}), json!(0)),
            json!({"snat": translation}),
        ],
    )
}

/// The prefixes without those inside another.
fn disjoint(mut prefixes: Vec<Ipv4Prefix>) -> Vec<Ipv4Prefix> {
    prefixes.sort_by_key(|prefix| (prefix.len(), *prefix));
    let mut kept: Vec<Ipv4Prefix> = Vec::new();
    for prefix in prefixes {
        if !kept.iter().any(|wider| wider.contains(prefix.network())) {
            kept.push(prefix);
        }
    }
    kept.sort();
    kept
}

/// The table as the kernel has it, without handles; `None` when there is none.
fn list() -> Result<Option<Value>> {
    let text = match run(&["-j", "list", "table", "ip", TABLE], None) {
        Ok(text) => text,
        Err(Error::Nft { stderr, .. }) if stderr.contains("No such file or directory") => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut value: Value = serde_json::from_slice(&text).map_err(Error::NftOutput)?;
    strip_handles(&mut value);
    Ok(Some(value))
}

fn strip_handles(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.remove("handle");
            object.values_mut().for_each(strip_handles);
        }
        Value::Array(array) => array.iter_mut().for_each(strip_handles),
        _ => {}
    }
}

fn write(commands: &Value) -> Result<()> {
    run(&["-j", "-f", "-"], Some(commands)).map(drop)
}

fn run(arguments: &[&str], input: Option<&Value>) -> Result<Vec<u8>> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("running nft (is the nftables package installed?)"))?;
    remember(child.id());
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A write error means that nft ended early: its own words, below, say more.
        if let Err(error) = stdin.write_all(input.to_string().as_bytes()) {
            tracing::debug!(%error, "writing to nft");
        }
    }
    let output = child.wait_with_output().map_err(Error::io("waiting for nft"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().chars().take(1024).collect();
    Err(Error::Nft { status: output.status, stderr })
}

fn remember(pid: u32) {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    own.rotate_right(1);
    own[0] = pid;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NftConfig {
        NftConfig {
            primary_ifname: "eth0".into(),
            primary_address: Ipv4Addr::new(10, 0, 1, 10),
            veth_prefix: "eni".into(),
            vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()],
            snat: Snat::default(),
            mask: EniMarkMask::default(),
        }
    }

    #[test]
    fn the_default_table() {
        insta::assert_json_snapshot!(ruleset(&config()));
    }

    #[test]
    fn with_external_snat_only_node_ports_are_marked() {
        let mut config = config();
        config.snat.external = true;
        insta::assert_json_snapshot!(ruleset(&config));
    }

    #[test]
    fn without_node_ports_and_with_plain_source_ports() {
        let mut config = config();
        config.snat.node_port_support = false;
        config.snat.randomize = RandomizeSnat::None;
        config.vpc_cidrs.clear();
        insta::assert_json_snapshot!(ruleset(&config));
    }

    #[test]
    fn overlapping_prefixes_are_merged() {
        let parse =
            |list: &[&str]| list.iter().map(|p| p.parse().unwrap()).collect::<Vec<Ipv4Prefix>>();
        let check =
            |given: &[&str], expect: &[&str]| assert_eq!(disjoint(parse(given)), parse(expect));
        check(&[], &[]);
        check(&["10.0.0.0/16", "10.0.0.0/16"], &["10.0.0.0/16"]);
        check(&["10.0.4.0/24", "10.0.0.0/16", "10.1.0.0/16"], &["10.0.0.0/16", "10.1.0.0/16"]);
        check(&["192.168.0.0/16", "0.0.0.0/0"], &["0.0.0.0/0"]);
    }
}
