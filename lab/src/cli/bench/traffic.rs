//! `veni-lab bench traffic`: what the programs cost a pod's traffic, on one node, in interleaved rounds.
//!
//! Two pairs of pods are wired by the plugin. One pair's links then lose their clsact qdisc, and with it both programs:
//! the same links, routes and nftables rules, nothing else. Each round measures either pair once, each going first
//! every other time, and gives one ratio; the median of the ratios is the result. Likewise a Service: translated by
//! the programs for one pair, by nftables rules of the shape of kube-proxy's for the other, which are there only while
//! that pair is measured. The daemon is stopped meanwhile: it would give the bare links their programs back.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Args;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use veni_lab::{
    Lab, LabConfig, Node, Pod, PodSpec, interrupt,
    lab::READY,
    traffic::workload::{Load, Responder},
};
use veni_provider::sim::SimConfig;

use super::super::{Output, print};

#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct Options {
    /// The lab's name
    #[arg(long, default_value = "traffic")]
    name: String,
    /// Rounds, each of which measures everything with and without
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each measurement is
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(20..=60_000))]
    millis: u64,
    /// Policies that select the measured pods
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    policies: u32,
    /// Services besides the measured one
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=5_000))]
    services: u32,
    /// A variable of veni-ipamd, NAME=VALUE, several times
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// `table` or `json`
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// Where the pods listen.
const PORT: u16 = 8080;
/// The Service that the programs translate, and the one that nftables does.
const OURS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 21, 0, 1), 80);
const THEIRS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 22, 0, 1), 80);

/// A client and a server.
struct Pair {
    client: Pod,
    server: Pod,
}

/// What is measured against what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Path {
    /// Pod to pod, against the links without programs.
    Direct,
    /// Through a Service, against kube-proxy's nftables rules.
    Service,
}

/// One measurement's rounds: (ours, theirs), per second.
type Rounds = BTreeMap<(Path, Load), Vec<(f64, f64)>>;

const MEASURED: [(Path, Load); 5] = [
    (Path::Direct, Load::Rr),
    (Path::Direct, Load::Crr),
    (Path::Direct, Load::Stream),
    (Path::Service, Load::Rr),
    (Path::Service, Load::Crr),
];

pub(in crate::cli) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    interrupt::remove_on_signal(&options.name)?;
    let progress = |text: &str| {
        if options.output == Output::Table {
            print::step(text);
        }
    };
    progress(&format!(
        "two pairs of pods; {} policies, {} Services; one pair loses its programs",
        options.policies,
        options.services + 1
    ));
    let lab = lay(options)?;
    let [node] = lab.nodes() else { anyhow::bail!("one node was asked for") };
    let (judged, bare) = (pair(&lab, "judged")?, pair(&lab, "bare")?);
    put_objects(&lab, options)?;
    let _responders = [&judged, &bare]
        .map(|pair| Responder::start(&pair.server.namespace, PORT))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let links = links(node, &bare)?;
    // It would repair what is taken away; the programs and their tables do without it.
    node.stop_ipamd(Signal::SIGTERM)?;
    strip(node, &links)?;
    let rules = kube_proxy(bare.server.added.address, options.services)?;
    progress(&format!(
        "{} rounds of {} measurements of {} ms, with and without in turn",
        options.rounds,
        MEASURED.len() * 2,
        options.millis
    ));
    let mut rounds = Rounds::new();
    for round in 0..options.rounds {
        for (path, load) in MEASURED {
            let measure = |ours: bool| {
                let pair = if ours { &judged } else { &bare };
                let to = match (path, ours) {
                    (Path::Direct, _) => SocketAddrV4::new(pair.server.added.address, PORT),
                    (Path::Service, true) => OURS,
                    (Path::Service, false) => THEIRS,
                };
                let with_rules = path == Path::Service && !ours;
                if with_rules {
                    node.namespace.nft(&rules)?;
                }
                let time = Duration::from_millis(options.millis);
                let speed = load.run(&pair.client.namespace, to, time);
                if with_rules {
                    node.namespace.nft("delete table ip kube-proxy\n")?;
                }
                anyhow::Ok(speed?)
            };
            let (ours, theirs) = if round % 2 == 0 {
                let ours = measure(true)?;
                (ours, measure(false)?)
            } else {
                let theirs = measure(false)?;
                (measure(true)?, theirs)
            };
            rounds.entry((path, load)).or_default().push((ours, theirs));
        }
    }
    ensure!(
        !has_programs(node, &links)?,
        "the bare pair's links got programs while they were measured"
    );
    match options.output {
        Output::Table => show(&rounds),
        Output::Json => print::line(document(&rounds, options)),
    }
    Ok(ExitCode::SUCCESS)
}

fn lay(options: &Options) -> anyhow::Result<Lab> {
    let mut config = LabConfig::one_node(&options.name, "m5.xlarge");
    config.ec2 = SimConfig::instant();
    for variable in &options.env {
        let (name, value) = super::super::pair(variable, "--env", "NAME=VALUE")?;
        config = config.with_env(name, value);
    }
    let lab = Lab::up(&config)?;
    lab.nodes()[0].wait_for("a warm pool", READY, |view| view.pool.available >= 4)?;
    Ok(lab)
}

fn pair(lab: &Lab, name: &str) -> anyhow::Result<Pair> {
    let add = |role: &str| {
        let spec = PodSpec::new("bench", &format!("{name}-{role}"));
        lab.add("node-1", &spec.label("pair", name).label("role", role))
    };
    Ok(Pair { client: add("client")?, server: add("server")? })
}

/// Policies of which the last one opens the way, and Services.
fn put_objects(lab: &Lab, options: &Options) -> anyhow::Result<()> {
    let mut items: Vec<_> = (0..options.policies).map(policy).collect();
    items.push(service("measured", OURS, &json!({"pair": "judged", "role": "server"})));
    for number in 0..options.services {
        let [.., high, low] = number.to_be_bytes();
        let address = SocketAddrV4::new(Ipv4Addr::new(172, 21, 1 + high, low), 80);
        items.push(service(&format!("other-{number}"), address, &json!({"role": "server"})));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    lab.cluster.apply("bench.yaml", &list.to_string())?;
    lab.settle()?;
    Ok(())
}

/// Isolates all measured pods; each allows some blocks, and the first one what is measured.
fn policy(number: u32) -> Value {
    let [.., high, low] = number.to_be_bytes();
    let block = |third: u8| json!({"ipBlock": {"cidr": format!("192.{high}.{third}.{low}/32")}});
    let mut peers: Vec<_> = (0..10).map(block).collect();
    if number == 0 {
        peers.push(
            json!({"podSelector": {"matchExpressions": [{"key": "role", "operator": "Exists"}]}}),
        );
    }
    let ports = json!([{"protocol": "TCP", "port": PORT}, {"protocol": "TCP", "port": 9000 + number % 1000}]);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "bench", "name": format!("policy-{number}")},
        "spec": {
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": ports}], "egress": [{"to": peers, "ports": ports}],
        },
    })
}

fn service(name: &str, address: SocketAddrV4, selector: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "bench", "name": name},
        "spec": {
            "type": "ClusterIP", "clusterIP": address.ip(), "clusterIPs": [address.ip()],
            "selector": selector,
            "ports": [{"name": "http", "port": address.port(), "targetPort": PORT, "protocol": "TCP"}],
        },
    })
}

/// The rules that kube-proxy's nftables mode makes (proxier.go, `syncProxyRules`), without those for node ports.
fn kube_proxy(endpoint: Ipv4Addr, others: u32) -> anyhow::Result<String> {
    let mut chains = String::new();
    let mut elements = vec![format!("{} . tcp . {} : goto service-0", THEIRS.ip(), THEIRS.port())];
    let mut addresses = vec![*THEIRS.ip()];
    for number in 0..others {
        let [.., high, low] = number.to_be_bytes();
        let address = Ipv4Addr::new(172, 22, 1 + high, low);
        elements.push(format!("{address} . tcp . 80 : goto service-{}", number + 1));
        addresses.push(address);
    }
    for (number, address) in addresses.iter().enumerate() {
        write!(
            chains,
            "chain endpoint-{number} {{\n ip saddr {endpoint} jump mark-for-masquerade\n\
             meta l4proto tcp dnat to {endpoint}:{PORT}\n}}\n\
             chain service-{number} {{\n ip daddr {address} tcp dport 80 ip saddr != 10.0.0.0/16 jump mark-for-masquerade\n\
             numgen random mod 1 vmap {{ 0 : goto endpoint-{number} }}\n}}\n"
        )?;
    }
    Ok(format!(
        "table ip kube-proxy {{\n\
         chain mark-for-masquerade {{\n mark set mark or 0x4000\n}}\n{chains}\
         map service-ips {{\n type ipv4_addr . inet_proto . inet_service : verdict\n elements = {{ {} }}\n}}\n\
         map no-endpoint-services {{\n type ipv4_addr . inet_proto . inet_service : verdict\n}}\n\
         chain services {{\n ip daddr . meta l4proto . th dport vmap @service-ips\n}}\n\
         chain service-endpoints-check {{\n ip daddr . meta l4proto . th dport vmap @no-endpoint-services\n}}\n\
         chain masquerading {{\n mark and 0x4000 == 0 return\n mark set mark xor 0x4000\n masquerade fully-random\n}}\n\
         chain nat-prerouting {{\n type nat hook prerouting priority dstnat\n jump services\n}}\n\
         chain nat-output {{\n type nat hook output priority -100\n jump services\n}}\n\
         chain nat-postrouting {{\n type nat hook postrouting priority srcnat\n jump masquerading\n}}\n\
         chain filter-forward {{\n type filter hook forward priority -110\n ct state new jump service-endpoints-check\n}}\n\
         chain filter-output {{\n type filter hook output priority -110\n ct state new jump service-endpoints-check\n}}\n\
         }}\n",
        elements.join(", ")
    ))
}

/// The pair's links on the node.
fn links(node: &Node, pair: &Pair) -> anyhow::Result<Vec<String>> {
    let view = node.inspect()?;
    let link = |pod: &Pod| {
        let of_pod = view.addresses.iter().find(|a| a.address == pod.added.address);
        let name = of_pod.and_then(|address| address.host_ifname.as_ref());
        name.map(ToString::to_string).with_context(|| format!("{} has no link", pod.name))
    };
    [&pair.client, &pair.server].into_iter().map(link).collect()
}

/// Takes the programs off `links`, with the qdisc that holds them.
fn strip(node: &Node, links: &[String]) -> anyhow::Result<()> {
    for link in links {
        if has_programs(node, std::slice::from_ref(link))? {
            node.namespace.tool("tc", &["qdisc", "del", "dev", link, "clsact"], "")?;
        }
    }
    Ok(())
}

fn has_programs(node: &Node, links: &[String]) -> anyhow::Result<bool> {
    for link in links {
        if node.namespace.tool("tc", &["qdisc", "show", "dev", link], "")?.contains("clsact") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Medians of ours, of theirs, and of the ratios of the rounds.
fn medians(rounds: &[(f64, f64)]) -> [f64; 3] {
    [
        median(rounds.iter().map(|(ours, _)| *ours).collect()),
        median(rounds.iter().map(|(_, theirs)| *theirs).collect()),
        median(rounds.iter().map(|(ours, theirs)| ours / theirs).collect()),
    ]
}

// === impl Path ===

impl Path {
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Direct => ("direct", "plain veth"),
            Self::Service => ("service", "kube-proxy's nftables"),
        }
    }

    /// What the median of the ratios must not fall below (issue: numbers of policy).
    const fn bound(self, load: Load) -> f64 {
        match (self, load) {
            (Self::Direct, Load::Crr) => 0.9,
            (Self::Direct, _) => 0.95,
            (Self::Service, _) => 1.0,
        }
    }
}

fn show(rounds: &Rounds) {
    let mut table =
        print::table(["path", "load", "with programs", "against", "", "median ratio", "bound"]);
    for ((path, load), rounds) in rounds {
        let [ours, theirs, ratio] = medians(rounds);
        let speed = |value: f64| match load {
            Load::Stream => format!("{:.2} Gbit/s", value * 8.0 / 1e9),
            Load::Rr | Load::Crr => format!("{value:.0}/s"),
        };
        let (path_name, against) = path.names();
        table.add_row([
            path_name,
            load.name(),
            &speed(ours),
            &speed(theirs),
            against,
            &format!("{ratio:.3}"),
            &format!("≥ {}", path.bound(*load)),
        ]);
    }
    print::line(table);
}

fn document(rounds: &Rounds, options: &Options) -> Value {
    let measurements = rounds.iter().map(|((path, load), rounds)| {
        let [ours, theirs, ratio] = medians(rounds);
        let (path_name, against) = path.names();
        json!({
            "path": path_name, "load": load.name(), "against": against,
            "unit": if *load == Load::Stream { "bytes_per_sec" } else { "transactions_per_sec" },
            "median": ours, "median_against": theirs, "median_ratio": ratio, "bound": path.bound(*load),
            "ratios": rounds.iter().map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>(),
        })
    });
    json!({
        "rounds": options.rounds, "millis": options.millis,
        "policies": options.policies, "services": options.services + 1,
        "measurements": measurements.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_ratios_is_not_the_ratio_of_medians() {
        let [ours, theirs, ratio] = medians(&[(1.0, 2.0), (3.0, 3.0), (10.0, 4.0)]);
        assert_eq!((ours, theirs), (3.0, 3.0));
        assert!((ratio - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn the_first_policy_opens_what_is_measured() {
        let has_pods =
            |number| policy(number).to_string().contains("podSelector\":{\"matchExpressions");
        assert!(has_pods(0) && !has_pods(1));
    }
}
