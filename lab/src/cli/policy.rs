//! The demo's section on policy: a NetworkPolicy and a security group close paths, and open them again; a Service.
//!
//! Whether a path works is seen by real connections. Which rule closed it is asked of the daemon of the pod that the
//! path leads to.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::json;
use veni_core::wire::inspect::policy::{Decision, DefaultVerdict, Flow, Flows};
use veni_lab::{
    Lab, Pod, PodSpec,
    traffic::{
        self, Server,
        reach::{Target, Transport, reach},
    },
};
use veni_provider::security_group::{RuleDirection, RulePeer, RuleTraffic, TCP};

use super::{checks::Checks, print};

/// What every pod serves.
const PORT: u16 = 8080;
/// The Service's address, which only veni's own programs translate.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 21, 0, 10), 80);
/// The group that closes the way to the api.
const GROUP: &str = "sg-0demo";
/// A path that is open again must carry traffic within this.
const OPEN_AGAIN: Duration = Duration::from_secs(5);

/// The pods, by node.
const PODS: [(&str, &str, &str); 4] = [
    ("node-1", "shop", "web"),
    ("node-2", "shop", "api"),
    ("node-1", "shop", "db"),
    ("node-2", "guests", "visitor"),
];
/// Who is tried, and whether the path stays open under the rules below.
const PATHS: [(&str, &str, bool); 6] = [
    ("shop/web", "shop/api", true),
    ("shop/web", "shop/db", false),
    ("shop/api", "shop/db", true),
    ("guests/visitor", "shop/web", true),
    ("guests/visitor", "shop/api", false),
    ("guests/visitor", "shop/db", false),
];

/// Adds the section's pods and shows all of it; the pods are returned, to be deleted with the others.
pub(super) fn show(lab: &Lab, checks: &mut Checks) -> anyhow::Result<Vec<Pod>> {
    print::step(
        "policy: a NetworkPolicy, a security group and a Service, from a folder of manifests",
    );
    let mut pods = Vec::new();
    for (node, namespace, name) in PODS {
        let spec = PodSpec::new(namespace, name).label("app", name).port("http=8080".parse()?);
        pods.push(lab.add(node, &spec)?);
    }
    let servers = pods
        .iter()
        .map(|pod| Server::start(&pod.namespace, PORT))
        .collect::<Result<Vec<_>, _>>()?;
    checks.record("every node has the pods' objects in force", in_force(lab));
    checks.record("without policy every path is open", paths(lab, "open", |_| true));

    lab.cluster.apply("demo-service.yaml", &service().to_string())?;
    let took = lab.settle();
    checks.record(
        "a ClusterIP reaches its back end on the other node",
        took.map_err(Into::into).and_then(|_| through_service(lab)),
    );

    make_group(lab)?;
    lab.cluster.apply("demo-policy.yaml", &network_policy().to_string())?;
    lab.cluster.apply("demo-group.yaml", &group_policy().to_string())?;
    checks.record("a NetworkPolicy and a security group are in force", in_force(lab));
    checks.record("groups are resolved", group_closes(lab));
    checks.record("they close what they say, and nothing else", paths(lab, "closed", |kept| kept));
    checks.record("the Service's back end is judged by them too", through_service(lab));

    checks.record(
        "the NetworkPolicy goes: open again",
        open_again(lab, "demo-policy.yaml", "guests/visitor", "shop/db"),
    );
    checks.record(
        "the security group goes: open again",
        open_again(lab, "demo-group.yaml", "guests/visitor", "shop/api"),
    );
    checks.record("every path is open again", paths(lab, "open", |_| true));
    lab.cluster.delete("demo-service.yaml")?;
    drop(servers);
    Ok(pods)
}

fn in_force(lab: &Lab) -> anyhow::Result<String> {
    Ok(format!("after {}", print::millis(lab.settle()?)))
}

/// Every path by a real connection, beside what the daemon says; a table of them.
fn paths(lab: &Lab, state: &str, expected: impl Fn(bool) -> bool) -> anyhow::Result<String> {
    let mut table = print::table(["from", "to", "TCP 8080", "decided by"]);
    let mut wrong = Vec::new();
    for (from, to, kept) in PATHS {
        let expected = expected(kept);
        let works = works(lab, from, to, expected)?;
        let flow = verdict(lab, from, to)?;
        let word = |open: bool| if open { "allowed" } else { "denied" };
        table.add_row([from, to, word(works), &decided_by(&flow)]);
        if works != expected {
            wrong.push(format!("{from} → {to} is {}", word(works)));
        }
        if flow.allowed != works {
            wrong.push(format!("the daemon says {from} → {to} is {}", word(flow.allowed)));
        }
        if !expected && decided_by(&flow) == NO_RULE {
            wrong.push(format!("{from} → {to}: the daemon names no rule"));
        }
    }
    print::line(table);
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    let open = PATHS.iter().filter(|(.., kept)| expected(*kept)).count();
    Ok(format!("{open} of {} paths {state}, as the daemons say", PATHS.len())
        .replace("closed", "stay open"))
}

fn works(lab: &Lab, from: &str, to: &str, expected: bool) -> anyhow::Result<bool> {
    let (from, to) = (lab.pod(from)?, lab.pod(to)?);
    let to = SocketAddrV4::new(to.added.address, PORT);
    let target = Target { transport: Transport::Tcp, to, expected };
    Ok(reach(&from.namespace, &[target])? == [true])
}

/// What the daemon of the pod that the path leads to says of it.
fn verdict(lab: &Lab, from: &str, to: &str) -> anyhow::Result<Flow> {
    let node = lab.pod(to)?.node;
    let path = format!("/v1/policy/check?from={from}&to={to}&protocol=TCP&port={PORT}");
    let flows: Flows = node.document(&path)?;
    flows.flows.into_iter().next().with_context(|| format!("{} knows no {from} → {to}", node.name))
}

const NO_RULE: &str = "no rule applies";

fn decided_by(flow: &Flow) -> String {
    let by_default = Decision::default_of(DefaultVerdict::Allow);
    let sides = [("egress", &flow.decided_by.egress), ("ingress", &flow.decided_by.ingress)];
    let decided = sides.iter().filter(|(_, decision)| **decision != by_default);
    let decided: Vec<_> = decided.map(|(side, decision)| format!("{side}: {decision}")).collect();
    if decided.is_empty() { NO_RULE.to_owned() } else { decided.join("; ") }
}

fn through_service(lab: &Lab) -> anyhow::Result<String> {
    let web = lab.pod("shop/web")?;
    let seen = traffic::tcp_seen(&web.namespace, SERVICE)?;
    ensure!(*seen.ip() == web.added.address, "shop/api saw {seen}");
    Ok(format!("{SERVICE} answered from shop/web; shop/api saw {}", seen.ip()))
}

/// Groups come from EC2, not from the folder: they take the calls that it takes.
fn group_closes(lab: &Lab) -> anyhow::Result<String> {
    let start = Instant::now();
    loop {
        let flow = verdict(lab, "shop/web", "shop/api")?;
        if flow.allowed {
            let took = print::millis(start.elapsed());
            return Ok(format!("after {took}: {}", decided_by(&flow)));
        }
        ensure!(start.elapsed() < OPEN_AGAIN * 2, "shop/web → shop/api: {}", decided_by(&flow));
        thread::sleep(Duration::from_millis(10));
    }
}

/// Removes manifests, and tries a closed path all the while.
fn open_again(lab: &Lab, manifest: &str, from: &str, to: &str) -> anyhow::Result<String> {
    ensure!(!works(lab, from, to, false)?, "{from} → {to} is open before");
    let start = Instant::now();
    lab.cluster.delete(manifest)?;
    let (from_pod, to_pod) = (lab.pod(from)?, lab.pod(to)?);
    let to_address = SocketAddrV4::new(to_pod.added.address, PORT);
    loop {
        // UDP: a lost packet is not repeated by the kernel a second later.
        if traffic::udp_answers(&from_pod.namespace, to_address, Duration::from_millis(2))? {
            return Ok(format!("{from} → {to} after {}", print::millis(start.elapsed())));
        }
        ensure!(start.elapsed() < OPEN_AGAIN, "{from} → {to} is closed after {OPEN_AGAIN:?}");
    }
}

/// The database: from the api only.
fn network_policy() -> serde_json::Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "db-from-api"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "db"}},
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": "api"}}}],
                "ports": [{"protocol": "TCP", "port": "http"}],
            }],
        },
    })
}

/// The api has the group.
fn group_policy() -> serde_json::Value {
    json!({
        "apiVersion": "vpcresources.k8s.aws/v1beta1", "kind": "SecurityGroupPolicy",
        "metadata": {"namespace": "shop", "name": "api"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "api"}},
            "securityGroups": {"groupIds": [GROUP]},
        },
    })
}

fn service() -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": "api"},
        "spec": {
            "type": "ClusterIP", "clusterIP": SERVICE.ip(), "clusterIPs": [SERVICE.ip()],
            "selector": {"app": "api"},
            "ports": [{"name": "http", "port": SERVICE.port(), "targetPort": PORT, "protocol": "TCP"}],
        },
    })
}

/// The group lets in what comes from shop/web, on the port.
fn make_group(lab: &Lab) -> anyhow::Result<()> {
    let web = ipnet::IpNet::from(std::net::IpAddr::V4(lab.pod("shop/web")?.added.address));
    let rule = (
        RuleDirection::Ingress,
        RuleTraffic::Ports { protocol: TCP, first: PORT, last: PORT },
        RulePeer::Cidr(web),
    );
    lab.account.create_group(&GROUP.parse()?, [rule])?;
    Ok(())
}
