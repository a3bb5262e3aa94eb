//! What somebody deletes or changes by hand comes back, counted and logged.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use veni_fault_tests::{Bench, bench::eventually, checks};
use veni_lab::ns::Namespace;

/// What the kernel tells of.
const NOTIFIED: Duration = Duration::from_secs(2);
/// What it tells nobody of.
const CHECKED: Duration = Duration::from_secs(10 + 1);

/// A deed by hand: the program with its arguments, the kind of repair, and how long it may take.
struct Deed {
    command: String,
    kind: &'static str,
    within: Duration,
}

/// A node with a pod on a secondary ENI.
struct Names {
    pod_address: Ipv4Addr,
    pod_link: String,
}

fn deeds(names: &Names) -> Vec<Deed> {
    let Names { pod_address, pod_link } = names;
    let deed = |command: &str, kind, within| Deed { command: command.to_owned(), kind, within };
    vec![
        deed("ip rule del priority 512", "rule", NOTIFIED),
        deed("ip rule del priority 1024", "rule", NOTIFIED),
        deed("ip rule del priority 1536", "rule", NOTIFIED),
        deed("ip rule flush protocol 118", "rule", NOTIFIED),
        deed(&format!("ip route del {pod_address} table 7600"), "pod_route", NOTIFIED),
        deed("ip route flush table 7600", "pod_route", NOTIFIED),
        deed("ip route del default table 7602", "route", NOTIFIED),
        deed("ip route flush table 7602", "route", NOTIFIED),
        deed("ip link set eth1 down", "link", NOTIFIED),
        deed("ip address flush dev eth1", "address", NOTIFIED),
        deed("nft delete table ip veni", "nft", NOTIFIED),
        deed("nft flush table ip veni", "nft", NOTIFIED),
        deed("nft flush ruleset", "nft", NOTIFIED),
        deed("nft flush chain ip veni egress_snat", "nft", NOTIFIED),
        deed(
            "nft flush chain ip veni connmark; nft delete chain ip veni connmark",
            "nft",
            NOTIFIED,
        ),
        deed("sysctl -q -w net.ipv4.conf.eth1.rp_filter=1", "sysctl", NOTIFIED),
        deed("sysctl -q -w net.ipv4.ip_forward=0", "sysctl", NOTIFIED),
        deed(&format!("tc qdisc del dev {pod_link} clsact"), "qdisc", CHECKED),
        deed("tc filter del block 30309", "filter", CHECKED),
        deed("ip link del veni-anchor", "filter", NOTIFIED),
    ]
}

/// Somebody's link has an address that is spare: nobody else gets it until the link is gone.
fn stray_link() -> Result<()> {
    let Some(mut bench) = Bench::up("stray")? else { return Ok(()) };
    bench.add("a")?;
    let view = bench.rest(1)?;
    let spare = view.addresses.iter().find(|a| a.state == "available").context("no spare")?.address;
    let node = bench.node.namespace.clone();
    let ip = |command: &str| {
        let arguments: Vec<_> = command.split(' ').collect();
        node.tool("ip", &arguments, "").map(drop)
    };
    ip("link add enistray0 type veth peer name straypeer")?;
    ip("link set enistray0 up")?;
    ip(&format!("route add {spare}/32 dev enistray0 table 7600 proto 118"))?;
    let told = |bench: &Bench| -> Result<bool> {
        let problems = bench.view()?.problems;
        let told = problems.iter().find(|problem| problem.kind == "address_quarantined");
        Ok(told.is_some_and(|p| p.message.contains(&spare.to_string())))
    };
    let told_after = eventually(CHECKED, || {
        ensure!(told(&bench)?, "{spare} is not set aside");
        Ok(())
    })?;
    println!("told after {told_after:?}");
    ensure!(bench.node.metrics()?.contains("veni_quarantined_addresses 1"), "no metric");
    for pod in ["b", "c"] {
        ensure!(bench.add(pod)? != spare, "{pod} got {spare}");
    }
    ip("link del enistray0")?;
    eventually(NOTIFIED, || {
        ensure!(!told(&bench)?, "{spare} is set aside still");
        Ok(())
    })?;
    checks::sound(&bench)?;
    for pod in ["a", "b", "c"] {
        bench.del(pod)?;
    }
    bench.rest(0).map(drop)
}

#[test]
fn an_address_on_somebodys_link_is_set_aside_until_the_link_is_gone() {
    stray_link().unwrap();
}

/// What must be as before: everything but the numbers and MACs that a link made anew has. (A veth's state is unknown
/// until the first change of its carrier is noticed.)
fn state(namespace: &Namespace) -> Result<Vec<String>> {
    let shell = |script: &str| namespace.tool("sh", &["-c", script], "");
    let text = shell(
        "ip -o link show | sed 's/^[0-9]*: //; s/state UNKNOWN/state UP/; s/link\\/ether .*//; s/@[^:]*//' | sort; \
         ip -o -4 address show | sed 's/^[0-9]*: //' | sort; ip -4 rule show; \
         ip -4 route show table all | sort; tc qdisc show | sed 's/parent.*ingress_block/ingress_block/' | sort; \
         tc filter show block 30309 | sed 's/id [0-9]*//; s/handle 0x[0-9a-f]*//; s/ tag .*//'; \
         nft -s list table ip veni; \
         cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/eth1/rp_filter",
    )?;
    Ok(text.lines().map(|line| line.trim_end().to_owned()).collect())
}

fn lines_of(before: &[String], now: &[String]) -> String {
    let only = |a: &[String], b: &[String], sign: char| {
        let lines = a.iter().filter(|line| !b.contains(line));
        lines.map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    only(before, now, '-') + &only(now, before, '+')
}

fn comes_back(bench: &Bench, before: &[String], deed: &Deed) -> Result<Duration> {
    let counted = bench.view()?.repairs.get(deed.kind).copied().unwrap_or_default();
    let logged = repairs_in_log(bench, deed.kind)?;
    bench.node.namespace.tool("sh", &["-c", &deed.command], "")?;
    let took = eventually(deed.within, || {
        let now = state(&bench.node.namespace)?;
        ensure!(now == before, "not as before:\n{}", lines_of(before, &now));
        let repairs = bench.view()?.repairs;
        let count = repairs.get(deed.kind).copied().unwrap_or_default();
        ensure!(count > counted, "no repair of kind {} is counted: {repairs:?}", deed.kind);
        Ok(())
    })?;
    ensure!(
        repairs_in_log(bench, deed.kind)? > logged,
        "no repair of kind {} is logged",
        deed.kind
    );
    Ok(took)
}

fn repairs_in_log(bench: &Bench, kind: &str) -> Result<usize> {
    let log = std::fs::read_to_string(bench.node.log())?;
    let (what, kind) = ("\"message\":\"repaired\"", format!("\"kind\":\"{kind}\""));
    Ok(log.lines().filter(|line| line.contains(what) && line.contains(&kind)).count())
}

fn metric(bench: &Bench, kind: &str) -> Result<u64> {
    let text = bench.node.metrics()?;
    let name = format!("veni_repairs_total{{kind=\"{kind}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.with_context(|| format!("no {name}in the metrics"))?.trim().parse().context("a count")
}

fn everything_comes_back() -> Result<()> {
    let Some(mut bench) = Bench::up("repair")? else { return Ok(()) };
    bench.add_all(&["a", "b"])?;
    bench.settle(2, 3, 1)?;
    bench.add_all(&["c", "d"])?;
    bench.settle(4, 5, 2)?;
    checks::sound(&bench)?;
    ensure!(bench.view()?.repairs.is_empty(), "nobody broke anything: {:?}", bench.view()?.repairs);

    let pod_address = bench.pod("d")?.added.address;
    let links = bench.node.namespace.tool("ip", &["route", "show", "table", "7600"], "")?;
    let line = links.lines().find(|line| line.starts_with(&format!("{pod_address} ")));
    let link = line.and_then(|line| line.split_whitespace().nth(2)).context("the pod's link")?;
    let names = Names { pod_address, pod_link: link.to_owned() };
    let before = state(&bench.node.namespace)?;
    let mut failed = Vec::new();
    for deed in deeds(&names) {
        match comes_back(&bench, &before, &deed) {
            Ok(took) => println!("{:60} {took:?}", deed.command),
            Err(error) => failed.push(format!("{}: {error:#}", deed.command)),
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    let repairs = bench.view()?.repairs;
    for (kind, count) in &repairs {
        ensure!(metric(&bench, kind)? == *count, "the metric of {kind} is not {count}");
    }
    println!("{repairs:?}");
    checks::sound(&bench)
}

/// What is done to the table, or to what was kept of it, while no daemon runs; and whether the next one writes it.
const WHILE_NOBODY_LOOKS: [(&str, bool); 9] = [
    ("true", false),
    ("rm $KEPT", true),
    ("truncate -s 100 $KEPT", true),
    ("echo '{\"ruleset\": {}, \"listed\": null}' > $KEPT", true),
    ("head -c 2000 /dev/urandom > $KEPT", true),
    ("nft flush chain ip veni leaves_vpc", true),
    ("nft insert rule ip veni connmark accept", true),
    // As after a boot: what was kept tells of a table that is not there.
    ("nft delete table ip veni", true),
    ("true", false),
];

fn table_over_a_restart() -> Result<()> {
    let Some(mut bench) = Bench::up("table")? else { return Ok(()) };
    bench.add("a")?;
    bench.rest(1)?;
    let kept = veni_fault_tests::journal::path(&bench.node).with_extension("nft");
    let with_handles = |bench: &Bench| {
        bench.node.namespace.tool("nft", &["-a", "list", "table", "ip", "veni"], "")
    };
    let without =
        |bench: &Bench| bench.node.namespace.tool("nft", &["list", "table", "ip", "veni"], "");
    let told = |bench: &Bench, what: &str| -> Result<usize> {
        let log = std::fs::read_to_string(bench.node.log())?;
        Ok(log.lines().filter(|line| line.contains(what)).count())
    };
    let (right, kept_right) = (without(&bench)?, std::fs::read(&kept)?);
    for (deed, written) in WHILE_NOBODY_LOOKS {
        let before = with_handles(&bench)?;
        bench.stop(nix::sys::signal::Signal::SIGKILL)?;
        let script = format!("KEPT={}; {deed}", kept.display());
        bench.node.namespace.tool("sh", &["-c", &script], "")?;
        let what = if written { "nftables table written" } else { "nftables table left as it is" };
        let already = told(&bench, what)?;
        bench.start()?;
        eventually(NOTIFIED, || {
            ensure!(told(&bench, what)? > already, "after {deed:?} the log does not say {what:?}");
            Ok(())
        })?;
        ensure!(without(&bench)? == right, "after {deed:?} it is another");
        ensure!((with_handles(&bench)? == before) != written, "{deed:?}: {before}");
        ensure!(std::fs::read(&kept)? == kept_right, "after {deed:?} something else is kept");
    }
    bench.del("a")?;
    bench.rest(0).map(drop)
}

#[test]
fn a_restart_writes_the_nftables_table_only_when_it_is_not_right() {
    table_over_a_restart().unwrap();
}

#[test]
fn what_is_deleted_by_hand_comes_back() {
    everything_comes_back().unwrap();
}
