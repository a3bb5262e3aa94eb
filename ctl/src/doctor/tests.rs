use std::collections::BTreeMap;

use super::{
    facts::{Facts, Route, Rule},
    *,
};
use veni_core::{
    config::CONFLIST,
    wire::inspect::policy::{
        Diagnostic, FlowTable, ForeignView, GroupStanding, JudgedBy, Standing, Unlabelled,
    },
};

use crate::{
    fixtures::{busy, calm},
    policy::arguments::Daemon,
    standing::Policy,
};

/// A node where nothing is wrong.
fn healthy() -> Facts {
    let rules = r#"[
        {"priority":0,"src":"all","table":"local"},
        {"priority":512,"src":"all","table":"7600","protocol":"118"},
        {"priority":1024,"src":"all","fwmark":"0x80","fwmask":"0x80","table":"main","protocol":"118"},
        {"priority":1536,"src":"all","fwmark":"0x20000","fwmask":"0xff0000","table":"7602","protocol":"118"},
        {"priority":32765,"src":"10.0.1.77","table":"7602","protocol":"118"},
        {"priority":32766,"src":"all","table":"main"}]"#;
    let pods = (0..16).map(|n| Route { dst: format!("10.0.1.{n}") }).collect();
    let options = "BPF_SYSCALL NET_CLS_ACT NET_CLS_BPF NET_SCH_INGRESS VETH IP_MULTIPLE_TABLES NF_CONNTRACK \
                   NF_CONNTRACK_MARK NF_NAT NF_TABLES NFT_CT NFT_NAT NFT_FIB_IPV4";
    let sysctl = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Facts {
        kernel: Ok("6.1.0-18-amd64".to_owned()),
        kernel_config: Ok(options
            .split_whitespace()
            .map(|option| format!("CONFIG_{option}=m\n"))
            .collect()),
        mounts: Ok("proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,nosuid 0 0\n".to_owned()),
        bpf_dir: "/sys/fs/bpf/veni".into(),
        pins: Ok(vec!["PODS".to_owned(), "DROPS".to_owned()]),
        sysctls: BTreeMap::from([
            sysctl("net/ipv4/ip_forward", "1"),
            sysctl("net/ipv4/conf/all/rp_filter", "1"),
            sysctl("net/ipv4/conf/eth0/rp_filter", "2"),
            sysctl("net/ipv4/conf/eth1/rp_filter", "2"),
        ]),
        socket: "/run/veni/ipamd.sock".into(),
        view: Ok(calm()),
        policy: Policy::Enforced(Box::new(Standing {
            mode: "standard".to_owned(),
            complete: true,
            generation: 4,
            applied: 4,
            pods: 16,
            sets: 3,
            ..Standing::default()
        })),
        wrong_objects: Vec::new(),
        nft_table: Ok(true),
        rules: Ok(serde_json::from_str::<Vec<Rule>>(rules).unwrap()),
        routes: BTreeMap::from([
            (7600, Ok(pods)),
            (7602, Ok(vec![Route { dst: "default".to_owned() }])),
        ]),
        cni_conf_dir: "/etc/cni/net.d".into(),
        conflists: Ok(vec![(
            CONFLIST.to_owned(),
            r#"{"name":"veni","plugins":[{"type":"veni-cni"},{"type":"portmap"}]}"#.to_owned(),
        )]),
        cni_bin_dir: "/opt/cni/bin".into(),
        plugins: vec!["portmap".to_owned(), "veni-cni".to_owned()],
    }
}

#[test]
fn a_healthy_node_passes() {
    let report = written(&judge::all(&healthy()), Format::Human).unwrap();
    assert!(!report.failed);
    insta::assert_snapshot!(report.text);
}

/// Breaks one thing, and expects exactly this check to be as said and to name a next step.
fn broken(name: &str, status: Status, breaking: impl FnOnce(&mut Facts)) {
    let mut facts = healthy();
    breaking(&mut facts);
    let checks = judge::all(&facts);
    let wrong: Vec<_> = checks.iter().filter(|check| check.status != Status::Ok).collect();
    assert_eq!(
        wrong.iter().map(|c| (c.name, c.status)).collect::<Vec<_>>(),
        [(name, status)],
        "{wrong:?}"
    );
    assert_eq!(wrong[0].next_step.is_some(), status != Status::Skipped, "{wrong:?}");
    assert_eq!(written(&checks, Format::Json).unwrap().failed, status == Status::Failed);
}

fn view(facts: &mut Facts) -> &mut veni_core::wire::inspect::View {
    facts.view.as_mut().unwrap()
}

#[test]
fn each_thing_that_is_wrong_is_found_alone_with_its_next_step() {
    use Status::{Failed, Skipped, Warning};
    broken("kernel", Failed, |f| f.kernel = Ok("5.15.0-1051-aws".to_owned()));
    broken("kernel", Warning, |f| f.kernel = Ok("linux".to_owned()));
    broken("features", Failed, |f| f.kernel_config = Ok("CONFIG_VETH=y\n".to_owned()));
    broken("features", Skipped, |f| f.kernel_config = Err("no".to_owned()));
    broken("bpffs", Failed, |f| f.mounts = Ok("tmpfs /sys/fs/bpf tmpfs rw 0 0\n".to_owned()));
    broken("bpffs", Failed, |f| f.pins = Ok(vec![]));
    broken("ready", Failed, |f| view(f).daemon.ready = false);
    broken("cloud", Failed, |f| view(f).problems = busy().problems);
    let problem = |kind: &str| {
        vec![veni_core::wire::inspect::Problem {
            kind: kind.to_owned(),
            message: "m".to_owned(),
            age_secs: 1,
        }]
    };
    broken("problems", Failed, |f| view(f).problems = problem("address_lost"));
    broken("problems", Warning, |f| view(f).problems = problem("subnet_full"));
    broken("forward", Failed, |f| {
        f.sysctls.insert("net/ipv4/ip_forward".to_owned(), "0".to_owned());
    });
    broken("rp_filter", Failed, |f| {
        f.sysctls.insert("net/ipv4/conf/eth1/rp_filter".to_owned(), "0".to_owned());
    });
    broken("rules", Skipped, |f| f.rules = Err("`ip` is not installed".to_owned()));
    broken("routes", Failed, |f| {
        f.routes.insert(7602, Ok(vec![]));
    });
    broken("routes", Failed, |f| {
        f.routes.insert(7600, Ok(vec![]));
    });
    broken("nftables", Failed, |f| f.nft_table = Ok(false));
    broken("nftables", Skipped, |f| f.nft_table = Err("`nft` is not installed".to_owned()));
    broken("conflist", Failed, |f| f.conflists = Ok(vec![]));
    broken("conflist", Failed, |f| f.conflists = Err("cannot read".to_owned()));
    broken("conflist", Failed, |f| {
        f.conflists.as_mut().unwrap().insert(0, ("05-cilium.conflist".to_owned(), "{}".to_owned()));
    });
    broken("plugin", Failed, |f| f.plugins = vec!["portmap".to_owned()]);
    broken("plugin", Failed, |f| f.plugins = vec!["veni-cni".to_owned()]);
}

#[test]
fn only_plugins_that_are_chained_must_be_there() {
    let mut facts = healthy();
    facts.plugins = vec!["veni-cni".to_owned()];
    facts.conflists.as_mut().unwrap()[0].1 =
        r#"{"name":"veni","plugins":[{"type":"veni-cni"}]}"#.to_owned();
    let checks = judge::all(&facts);
    assert!(checks.iter().all(|check| check.status == Status::Ok), "{checks:?}");
}

#[test]
fn every_rule_of_ours_is_missed() {
    for priority in [512, 1024, 1536, 32765] {
        broken("rules", Status::Failed, |f| {
            f.rules.as_mut().unwrap().retain(|r| r.priority != priority)
        });
    }
    broken("rules", Status::Failed, |f| {
        view(f).settings.insert("AWS_EXTERNAL_SERVICE_CIDRS".to_owned(), "10.9.0.0/16".to_owned());
    });
}

#[test]
fn without_ipamd_the_rest_is_still_looked_at() {
    let mut facts = healthy();
    facts.view = Err(crate::client::Unanswered {
        what: "there is no socket at /run/veni/ipamd.sock".to_owned(),
        next_step: "start ipamd on this node, or name its socket with --socket".to_owned(),
        is_absent: true,
    });
    facts.nft_table = Ok(false);
    let report = written(&judge::all(&facts), Format::Human).unwrap();
    assert!(report.failed);
    insta::assert_snapshot!(report.text);
}

#[test]
fn a_full_node_is_told_as_status_tells_it() {
    let mut facts = healthy();
    let view = view(&mut facts);
    view.daemon.ready = false;
    view.pool.waiting = 1;
    view.pool.assigned = text::room(&view.node);
    view.pool.cooling = 0;
    view.settings.insert("MAX_ENI".to_owned(), "4".to_owned());
    let checks = judge::all(&facts);
    for (name, status) in [("ready", Status::Failed), ("problems", Status::Warning)] {
        let check = checks.iter().find(|check| check.name == name).unwrap();
        assert!(check.found.contains("the node is full: MAX_ENI=4 allows 4 ENIs"), "{check:?}");
        assert!(check.next_step.as_ref().unwrap().contains("raise MAX_ENI"), "{check:?}");
        assert_eq!(check.status, status);
    }
}

#[test]
fn objects_that_are_wrong_are_told_and_groups_that_are_none_fail() {
    let wrong = |object: &str, field: &str, message: &str| Diagnostic {
        object: object.to_owned(),
        field: field.to_owned(),
        message: message.to_owned(),
        ..Diagnostic::default()
    };
    let annotation = wrong(
        "Pod x/a",
        "metadata.annotations.vpc.amazonaws.com/security-groups",
        "\"nosuch\" is not a security group's id; the pod is denied everything",
    );
    let group_policy = wrong("SecurityGroupPolicy x/g", "spec.securityGroups.groupIds[0]", "no id");
    let policy = wrong("NetworkPolicy x/p", "spec.ingress[0]", "matches nothing");
    for (found, count, of_groups, of_policy) in [
        (vec![], 0, (Status::Ok, "no pod here"), (Status::Ok, "in force")),
        (vec![annotation], 1, (Status::Failed, "Pod x/a: "), (Status::Ok, "in force")),
        (vec![group_policy], 1, (Status::Failed, "x/g: "), (Status::Ok, "in force")),
        (
            vec![policy.clone(); 4],
            5,
            (Status::Ok, "no pod here"),
            (Status::Warning, "matches nothing; 2 more things wrong with objects"),
        ),
        (vec![], 1, (Status::Ok, "no pod here"), (Status::Warning, "1 thing wrong with objects")),
    ] {
        let mut facts = healthy();
        let Policy::Enforced(standing) = &mut facts.policy else { panic!("it is enforced") };
        standing.diagnostics = count;
        facts.wrong_objects = found;
        let checks = judge::all(&facts);
        for (name, (status, words)) in [("groups", of_groups), ("policy", of_policy)] {
            let check = checks.iter().find(|check| check.name == name).unwrap();
            assert!(check.status == status && check.found.contains(words), "{check:?}");
        }
    }
}

/// Beside another name of it, by which the runtime would have two of veni's.
#[test]
fn the_advice_names_the_list_that_the_daemon_writes() {
    let mut facts = healthy();
    facts.conflists = Ok(Vec::new());
    let checks = judge::all(&facts);
    let check = checks.iter().find(|check| check.name == "conflist").unwrap();
    let step = check.next_step.as_deref().unwrap_or_default();
    assert!(step.contains(CONFLIST) && step.matches(".conflist").count() == 1, "{step}");
}

#[test]
fn findings_for_programs() {
    let mut facts = healthy();
    facts.nft_table = Ok(false);
    let document: serde_json::Value =
        serde_json::from_str(&written(&judge::all(&facts), Format::Json).unwrap().text).unwrap();
    insta::assert_json_snapshot!(document);
}

#[test]
fn looking_at_any_machine_never_fails() {
    let paths = Paths {
        cni_conf_dir: "/nonexistent/net.d".into(),
        cni_bin_dir: "/nonexistent/bin".into(),
        bpf_dir: "/sys/fs/bpf/veni-nonexistent".into(),
        daemon: Daemon { introspection: "127.0.0.1:1".to_owned() },
    };
    let report = report(Path::new("/nonexistent/ipamd.sock"), &paths, Format::Json).unwrap();
    let document: serde_json::Value = serde_json::from_str(&report.text).unwrap();
    assert!(report.failed);
    assert_eq!(document["checks"].as_array().unwrap().len(), 17);
}

fn flows(flows: u64) -> FlowTable {
    FlowTable { family: "ipv4".to_owned(), flows, room: 100 }
}

#[test]
fn policy_groups_and_others_programs_are_judged_apart() {
    let with = |change: fn(&mut Standing)| {
        let mut facts = healthy();
        let Policy::Enforced(standing) = &mut facts.policy else { panic!("it is enforced") };
        change(standing);
        judge::all(&facts)
    };
    let group = |state: &str| GroupStanding {
        id: "sg-1".to_owned(),
        state: state.to_owned(),
        reason: Some("it does not exist".to_owned()),
        ..GroupStanding::default()
    };
    let groups = |state: &str| {
        let mut facts = healthy();
        let Policy::Enforced(standing) = &mut facts.policy else { panic!("it is enforced") };
        standing.security_groups = vec![group(state)];
        judge::all(&facts)
    };
    let closed: fn(&mut Standing) = |standing| {
        standing.unlabelled = vec![Unlabelled {
            pod: "x/a".to_owned(),
            judged_by: JudgedBy::Closed,
            reason: "there is no object of this name".to_owned(),
            age_secs: 5,
        }];
    };
    for (checks, name, status, words) in [
        (with(closed), "policy", Status::Warning, "x/a: closed to all but its own node"),
        (with(|s| s.complete = false), "policy", Status::Failed, "not read yet"),
        (with(|s| s.ranges_unknown = true), "policy", Status::Warning, "range is not known"),
        (with(|s| s.flow_tables = vec![flows(89)]), "policy", Status::Ok, "in force"),
        (
            with(|s| s.flow_tables = vec![flows(89), flows(97)]),
            "policy",
            Status::Warning,
            "ipv4 flows is 97 % full (97 of 100)",
        ),
        (with(|s| s.write_failure = Some("full".to_owned())), "policy", Status::Failed, "full"),
        (groups("fresh"), "groups", Status::Ok, "sees the ENI's groups, not the pod's"),
        (groups("stale"), "groups", Status::Warning, "sees the ENI's groups, not the pod's"),
        (groups("unresolved"), "groups", Status::Failed, "it does not exist"),
        (
            with(|s| s.foreign = vec![ForeignView { what: "TCX".to_owned(), bypasses: true }]),
            "hooks",
            Status::Failed,
            "TCX",
        ),
        (
            with(|s| {
                s.foreign = vec![ForeignView { what: "a filter".to_owned(), bypasses: false }]
            }),
            "hooks",
            Status::Warning,
            "a filter",
        ),
    ] {
        let check = checks.iter().find(|check| check.name == name).unwrap();
        assert!(check.status == status && check.found.contains(words), "{check:?}");
    }
}
