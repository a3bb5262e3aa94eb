//! Deciding what is right. The priorities, tables and marks are those of `veni_core::marks` and ARCHITECTURE.md.

use serde_json::Value;
use veni_core::{config::CONFLIST, marks::DEFAULT_TABLE_BASE, wire::inspect::View};

use super::{
    Check, Status,
    facts::{Facts, Rule},
};
use crate::{
    client::Unanswered,
    problem::{self, Trouble},
    text,
};

mod policy;

/// The oldest kernel that veni is made for (README).
const KERNEL_FLOOR: (u32, u32) = (6, 1);

/// The plugin's name, in configurations and as a file.
const PLUGIN: &str = "veni-cni";

/// What the datapath is made of.
const KERNEL_OPTIONS: [&str; 13] = [
    "CONFIG_BPF_SYSCALL",
    "CONFIG_NET_CLS_ACT",
    "CONFIG_NET_CLS_BPF",
    "CONFIG_NET_SCH_INGRESS",
    "CONFIG_VETH",
    "CONFIG_IP_MULTIPLE_TABLES",
    "CONFIG_NF_CONNTRACK",
    "CONFIG_NF_CONNTRACK_MARK",
    "CONFIG_NF_NAT",
    "CONFIG_NF_TABLES",
    "CONFIG_NFT_CT",
    "CONFIG_NFT_NAT",
    "CONFIG_NFT_FIB_IPV4",
];

/// Problems of ipamd that are about reaching the cloud.
const CLOUD_PROBLEMS: [&str; 5] = ["throttled", "denied", "transient", "invalid", "not_found"];
/// Problems that pods feel, or will.
const GRAVE_PROBLEMS: [&str; 3] = ["host", "storage", "address_lost"];

const REPAIRS: &str =
    "ipamd puts it back within 2 s when it runs: start it, and look at its log if it stays away";

/// All checks, in the order in which a person would fix them.
pub(super) fn all(facts: &Facts) -> Vec<Check> {
    vec![
        kernel(facts),
        features(facts),
        bpffs(facts),
        socket(facts),
        ready(facts),
        cloud(facts),
        problems(facts),
        policy::standing(facts),
        policy::groups(facts),
        policy::hooks(facts),
        forwarding(facts),
        rp_filter(facts),
        rules(facts),
        routes(facts),
        nft(facts),
        conflist(facts),
        plugin(facts),
    ]
}

/// The pods' routing table.
pub(super) fn table_base(view: Option<&View>) -> u32 {
    setting(view, "VENI_TABLE_BASE")
        .and_then(|base| base.parse().ok())
        .unwrap_or(DEFAULT_TABLE_BASE)
}

fn setting<'a>(view: Option<&'a View>, name: &str) -> Option<&'a str> {
    view?.settings.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

fn kernel(facts: &Facts) -> Check {
    let name = "kernel";
    let release = match &facts.kernel {
        Ok(release) => release,
        Err(error) => return Check::skipped(name, error),
    };
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    match version {
        Some(version) if version >= KERNEL_FLOOR => {
            Check::ok(name, format!("{release} (6.1 or newer is needed)"))
        }
        Some(_) => Check::failed(
            name,
            release,
            "veni needs Linux 6.1 or newer: use a newer AMI (Amazon Linux 2023)",
        ),
        None => Check::warning(
            name,
            format!("cannot make out the version of {release:?}"),
            "veni needs 6.1 or newer",
        ),
    }
}

fn features(facts: &Facts) -> Check {
    let name = "features";
    let config = match &facts.kernel_config {
        Ok(config) => config,
        Err(error) => return Check::skipped(name, error),
    };
    let has = |option: &&str| {
        config.lines().any(|line| {
            line.split_once('=')
                .is_some_and(|(key, value)| key == *option && (value == "y" || value == "m"))
        })
    };
    let missing: Vec<_> = KERNEL_OPTIONS.iter().filter(|option| !has(option)).copied().collect();
    if missing.is_empty() {
        return Check::ok(
            name,
            format!("all {} kernel options that veni needs are there", KERNEL_OPTIONS.len()),
        );
    }
    Check::failed(
        name,
        format!("the kernel lacks {}", missing.join(", ")),
        "use a kernel that is built with them",
    )
}

fn bpffs(facts: &Facts) -> Check {
    let (name, dir) = ("bpffs", facts.bpf_dir.display());
    let mounts = match &facts.mounts {
        Ok(mounts) => mounts,
        Err(error) => return Check::skipped(name, error),
    };
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next();
        fields.next() == Some("bpf") && point.is_some_and(|point| facts.bpf_dir.starts_with(point))
    });
    match (&facts.pins, mounted) {
        (_, false) => Check::failed(
            name,
            format!("no bpf file system is mounted above {dir}"),
            "mount it: `mount -t bpf bpf /sys/fs/bpf`; ipamd in a container needs it from the host",
        ),
        (Ok(pins), true) if !pins.is_empty() => {
            Check::ok(name, format!("{} pinned in {dir}", text::counted(pins.len(), "object")))
        }
        (_, true) => Check::failed(
            name,
            format!(
                "nothing is pinned in {dir}: the filter's maps die with ipamd, or it has not started yet"
            ),
            "start ipamd with VENI_BPF_DIR on a bpf file system",
        ),
    }
}

fn socket(facts: &Facts) -> Check {
    let name = "socket";
    match &facts.view {
        Ok(view) => {
            let (socket, daemon) = (facts.socket.display(), &view.daemon);
            Check::ok(
                name,
                format!("ipamd {} answers at {socket} (pid {})", daemon.version, daemon.pid),
            )
        }
        Err(Unanswered { what, next_step, .. }) => Check::failed(name, what, next_step),
    }
}

/// The view, or the check that says that there is none.
fn view<'a>(facts: &'a Facts, name: &'static str) -> Result<&'a View, Check> {
    facts.view.as_ref().map_err(|_| Check::skipped(name, "needs ipamd's answer"))
}

fn ready(facts: &Facts) -> Check {
    let name = "ready";
    let view = match view(facts, name) {
        Ok(view) => view,
        Err(check) => return check,
    };
    let pool = &view.pool;
    if view.daemon.ready {
        let free = text::counted(pool.available, "address");
        let full = problem::just_full(view).map(|full| format!("; {}", full.message));
        let full = full.unwrap_or_default();
        return Check::ok(name, format!("{free} free, {} with pods{full}", pool.assigned));
    }
    let (why, next_step) = match (&view.plan.waiting_for[..], problem::full(view)) {
        (_, Some(full)) => (full.message, full.next_step),
        (waits @ [_, ..], None) => (
            format!("ipamd waits: {}", waits.join("; ")),
            "`venictl pool explain` says why".to_owned(),
        ),
        ([], None) => match problem::of_node(view).into_iter().next() {
            Some(first) => (format!("{}: {}", first.kind, first.message), first.next_step),
            None => (
                "ipamd does not say what it waits for".to_owned(),
                "look at the log of veni-ipamd".to_owned(),
            ),
        },
    };
    Check::failed(name, format!("no address can be given out: {why}"), &next_step)
}

fn cloud(facts: &Facts) -> Check {
    let name = "cloud";
    let view = match view(facts, name) {
        Ok(view) => view,
        Err(check) => return check,
    };
    let problems = troubles(view, true);
    if problems.is_empty() {
        return Check::ok(
            name,
            format!("ipamd reports no trouble with its provider, {}", view.daemon.provider),
        );
    }
    Check::failed(name, told(&problems), &steps(&problems))
}

/// The node's problems that are of the cloud, or the others, as `status` has them.
fn troubles(view: &View, of_cloud: bool) -> Vec<Trouble> {
    let all = problem::of_node(view).into_iter();
    all.filter(|problem| CLOUD_PROBLEMS.contains(&problem.kind.as_str()) == of_cloud).collect()
}

fn told(problems: &[Trouble]) -> String {
    let told: Vec<_> =
        problems.iter().map(|problem| format!("{}: {}", problem.kind, problem.message)).collect();
    told.join("; ")
}

/// What to do about them: each step once.
fn steps(problems: &[Trouble]) -> String {
    let mut steps = Vec::new();
    for step in problems.iter().map(|problem| problem.next_step.as_str()) {
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    steps.join("; ")
}

/// What ipamd reports beside the cloud.
fn problems(facts: &Facts) -> Check {
    let name = "problems";
    let view = match view(facts, name) {
        Ok(view) => view,
        Err(check) => return check,
    };
    let others = troubles(view, false);
    if others.is_empty() {
        return Check::ok(name, "ipamd reports no other problem");
    }
    let grave = others.iter().any(|problem| GRAVE_PROBLEMS.contains(&problem.kind.as_str()));
    let status = if grave { Status::Failed } else { Status::Warning };
    Check::new(name, status, told(&others), &steps(&others))
}

fn forwarding(facts: &Facts) -> Check {
    let name = "forward";
    match facts.sysctls.get("net/ipv4/ip_forward").map(String::as_str) {
        Some("1") => Check::ok(name, "net.ipv4.ip_forward is 1"),
        Some(other) => Check::failed(
            name,
            format!("net.ipv4.ip_forward is {other}: no packet leaves a pod"),
            "`sysctl -w net.ipv4.ip_forward=1`, and see what sets it back (`grep -r ip_forward /etc/sysctl.d`)",
        ),
        None => Check::skipped(name, "cannot read net.ipv4.ip_forward"),
    }
}

/// The kernel takes the larger of `all` and the link's own (Documentation/networking/ip-sysctl.rst).
fn rp_filter(facts: &Facts) -> Check {
    let name = "rp_filter";
    let view = match view(facts, name) {
        Ok(view) => view,
        Err(check) => return check,
    };
    let value = |of: &str| {
        facts
            .sysctls
            .get(&format!("net/ipv4/conf/{of}/rp_filter"))
            .and_then(|value| value.parse::<u8>().ok())
    };
    let all = value("all").unwrap_or(0);
    let links = view.enis.iter().filter_map(|eni| eni.ifname.as_ref()).map(ToString::to_string);
    let (strict, loose): (Vec<_>, Vec<_>) =
        links.partition(|link| value(link).is_some_and(|own| own.max(all) == 1));
    if strict.is_empty() {
        return Check::ok(name, format!("not strict on {}", loose.join(", ")));
    }
    Check::failed(
        name,
        format!("1 (strict) on {}: replies to pods on secondary ENIs are lost", strict.join(", ")),
        "`sysctl -w net.ipv4.conf.<link>.rp_filter=2`, and see what sets it back (`grep -r rp_filter /etc/sysctl.d`)",
    )
}

fn rules(facts: &Facts) -> Check {
    let name = "rules";
    let rules = match &facts.rules {
        Ok(rules) => rules,
        Err(error) => return Check::skipped(name, error),
    };
    let missing: Vec<_> = expected_rules(facts.view.as_ref().ok())
        .into_iter()
        .filter(|wanted| !rules.iter().any(|rule| wanted.is(rule)))
        .map(|wanted| wanted.to_string())
        .collect();
    if missing.is_empty() {
        return Check::ok(name, "the rules for pods, ENIs and marks are there");
    }
    Check::failed(name, format!("missing: {}", missing.join("; ")), REPAIRS)
}

/// A rule that must be there.
struct Wanted {
    priority: u32,
    mark: Option<u32>,
    from: Option<String>,
    to: Option<String>,
    table: String,
}

fn expected_rules(view: Option<&View>) -> Vec<Wanted> {
    let base = table_base(view);
    let rule =
        |priority, table: String| Wanted { priority, mark: None, from: None, to: None, table };
    let mut wanted = vec![rule(512, base.to_string())];
    let connmark = setting(view, "AWS_VPC_K8S_CNI_CONNMARK").and_then(parse_mark).unwrap_or(0x80);
    if view.is_some() && setting(view, "AWS_VPC_K8S_CNI_EXTERNALSNAT") != Some("true") {
        wanted.push(Wanted { mark: Some(connmark), ..rule(1024, "main".to_owned()) });
    }
    let cidrs = setting(view, "AWS_EXTERNAL_SERVICE_CIDRS").unwrap_or_default();
    for cidr in cidrs.split(',').filter(|cidr| !cidr.is_empty()) {
        wanted.push(Wanted { to: Some(cidr.to_owned()), ..rule(1535, "main".to_owned()) });
    }
    let secondary = view.into_iter().flat_map(|view| &view.enis);
    for eni in secondary.filter(|eni| !eni.primary && eni.phase == "in_use" && eni.ifname.is_some())
    {
        wanted.push(Wanted { mark: Some(eni.mark), ..rule(1536, eni.table.to_string()) });
        if let Some(address) = eni.primary_address {
            wanted.push(Wanted {
                from: Some(address.to_string()),
                ..rule(32765, eni.table.to_string())
            });
        }
    }
    wanted
}

/// A mark as `ip` and the settings print it.
fn parse_mark(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn routes(facts: &Facts) -> Check {
    let name = "routes";
    let view = match view(facts, name) {
        Ok(view) => view,
        Err(check) => return check,
    };
    let base = table_base(Some(view));
    let mut missing = Vec::new();
    for (table, routes) in &facts.routes {
        let routes = match routes {
            Ok(routes) => routes,
            Err(error) => return Check::skipped(name, error),
        };
        let in_use = view.enis.iter().any(|eni| eni.table == *table && eni.phase == "in_use");
        if *table == base {
            let (has, pods) = (routes.len(), view.pool.assigned);
            if u32::try_from(has).is_ok_and(|has| has < pods) {
                missing.push(format!(
                    "{pods} of the addresses are with pods, but table {base} has {}",
                    text::counted(has, "route")
                ));
            }
        } else if in_use && !routes.iter().any(|route| route.dst == "default") {
            missing.push(format!("table {table} has no default route"));
        }
    }
    if missing.is_empty() {
        return Check::ok(
            name,
            format!("pods' routes in table {base}, a default route for each secondary ENI"),
        );
    }
    // A pod that is being wired right now has an address and no route yet.
    Check::failed(
        name,
        missing.join("; "),
        "look again in a few seconds; ipamd repairs ENIs' routes by itself, and a pod without a route must be made again",
    )
}

fn nft(facts: &Facts) -> Check {
    let name = "nftables";
    match &facts.nft_table {
        Ok(true) => Check::ok(name, "the table `ip veni` is there"),
        Ok(false) => Check::failed(
            name,
            "the table `ip veni` is not there: pods reach nothing outside of the VPC",
            REPAIRS,
        ),
        Err(error) => Check::skipped(name, error),
    }
}

fn conflist(facts: &Facts) -> Check {
    let (name, dir) = ("conflist", facts.cni_conf_dir.display());
    let step = format!(
        "ipamd writes it there as {CONFLIST}, the first by name, once it can give addresses: see its log, and that \
         HOST_CNI_CONFDIR_PATH is set; --cni-conf-dir names another directory"
    );
    let files = match &facts.conflists {
        Ok(files) => files,
        Err(error) => return Check::failed(name, error, &step),
    };
    match files.iter().position(|(_, text)| chain(text).iter().any(|name| name == PLUGIN)) {
        None => Check::failed(name, format!("no configuration in {dir} names veni-cni"), &step),
        Some(0) => Check::ok(name, format!("{dir}/{}", files[0].0)),
        Some(index) => Check::failed(
            name,
            format!(
                "{} comes after {} in {dir}: the runtime takes the first",
                files[index].0, files[0].0
            ),
            "remove the other network's configuration",
        ),
    }
}

/// The types of a network configuration's plugins, in their order.
fn chain(text: &str) -> Vec<String> {
    let config: Value = serde_json::from_str(text).unwrap_or_default();
    let plugins = config["plugins"].as_array().cloned().unwrap_or_else(|| vec![config]);
    plugins.iter().filter_map(|plugin| Some(plugin["type"].as_str()?.to_owned())).collect()
}

/// The runtime executes every plugin of the chain for every pod: one that is not there fails every ADD.
fn plugin(facts: &Facts) -> Check {
    let (name, dir) = ("plugin", facts.cni_bin_dir.display());
    let has = |plugin: &str| facts.plugins.iter().any(|name| name == plugin);
    if !has(PLUGIN) {
        return Check::failed(
            name,
            format!("{dir} has no executable {PLUGIN}: no pod can start"),
            "copy it there from veni's build; --cni-bin-dir names another directory",
        );
    }
    let chains = facts.conflists.iter().flatten().map(|(_, text)| chain(text));
    let mut chained = chains.filter(|chain| chain.iter().any(|name| name == PLUGIN));
    let others: Vec<_> =
        chained.next().unwrap_or_default().into_iter().filter(|name| name != PLUGIN).collect();
    let missing: Vec<_> = others.iter().filter(|name| !has(name)).cloned().collect();
    if !missing.is_empty() {
        return Check::failed(
            name,
            format!(
                "{dir} has no executable {}, which is chained after {PLUGIN}: no pod can start",
                missing.join(", ")
            ),
            "install the CNI project's plugins there (Debian: containernetworking-plugins, in /usr/lib/cni)",
        );
    }
    let beside = match others.as_slice() {
        [] => "nothing is chained after it".to_owned(),
        others => format!("and {} beside it", others.join(", ")),
    };
    Check::ok(name, format!("{dir}/{PLUGIN}, {beside}"))
}

// === impl Wanted ===

impl Wanted {
    fn is(&self, rule: &Rule) -> bool {
        let to = rule.dst.as_ref().map(|dst| match rule.dstlen {
            Some(len) => format!("{dst}/{len}"),
            None => format!("{dst}/32"),
        });
        let from = rule.src.clone().filter(|src| src != "all");
        rule.priority == self.priority
            && rule.table.as_deref() == Some(&self.table)
            && rule.fwmark.as_deref().and_then(parse_mark) == self.mark
            && to == self.to
            && from == self.from
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.priority)?;
        if let Some(from) = &self.from {
            write!(f, " from {from}")?;
        }
        if let Some(to) = &self.to {
            write!(f, " to {to}")?;
        }
        if let Some(mark) = self.mark {
            write!(f, " fwmark {mark:#x}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}
