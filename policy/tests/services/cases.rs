//! Front ends, case by case.

use serde_json::{Value, json};
use veni_policy::{
    change::{PodKey, Step},
    object::Kind,
    service::{Found, OwnNode, ServiceTables},
};

use crate::{
    maps::Maps,
    support::{check, front_end, lay, node, object, own, pod, service, shown, slice, tables},
};

#[test]
fn a_cluster_address_leads_to_the_selected_pods() {
    let other = pod("other", "here", "10.0.9.3", json!({"metadata": {"labels": {"app": "x"}}}));
    let pods =
        [pod("a", "here", "10.0.9.1", json!({})), pod("b", "there", "10.0.9.2", json!({})), other];
    let [a, b, other] = pods;
    check(
        &[service(json!({})), a, b, other],
        &[("172.20.0.1:80/TCP", "10.0.9.1:8080 10.0.9.2:8080")],
    );
}

#[test]
fn without_back_ends_a_front_end_refuses() {
    check(&[service(json!({}))], &[("172.20.0.1:80/TCP", "")]);
    check(&[service(json!({"selector": null}))], &[("172.20.0.1:80/TCP", "")]);
}

#[test]
fn headless_services_names_and_those_of_another_proxy_have_no_front_end() {
    check(&[service(json!({"clusterIP": "None"}))], &[]);
    check(&[service(json!({"type": "ExternalName", "externalIPs": ["198.51.100.1"]}))], &[]);
    let mut proxied = service(json!({}));
    lay(
        &mut proxied,
        json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "x"}}}),
    );
    check(&[proxied], &[]);
}

#[test]
fn every_kind_of_address_is_a_front_end() {
    let spec = json!({"type": "LoadBalancer", "externalIPs": ["198.51.100.1"],
        "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]});
    let mut balanced = service(spec);
    lay(
        &mut balanced,
        json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "198.51.100.2"}, {"ip": "198.51.100.3", "ipMode": "Proxy"}, {"hostname": "x.elb"}]}}}),
    );
    check(
        &[balanced.clone(), pod("a", "there", "10.0.9.1", json!({}))],
        &[
            ("172.20.0.1:80/TCP", "10.0.9.1:8080"),
            ("198.51.100.1:80/TCP", "10.0.9.1:8080"),
            ("198.51.100.2:80/TCP", "10.0.9.1:8080"),
            ("10.0.1.10:30080/TCP", "10.0.9.1:8080"),
            ("10.0.1.11:30080/TCP", "10.0.9.1:8080"),
        ],
    );
    let at = "198.51.100.2:80/TCP";
    // The source decides then, which no front end can see: kube-proxy's, and refused from a pod that is isolated.
    let (mut tables, mut maps) = tables(&[balanced.clone()]);
    lay(&mut balanced, json!({"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24"]}}));
    maps.carry_out(&tables.apply(&object(&balanced)));
    assert_eq!(shown(&maps)[at], "kube-proxy");
    assert!(tables.translate(front_end("198.51.100.2", 80)).unwrap().of_proxy);
    lay(
        &mut balanced,
        json!({"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24", "0.0.0.0/0"]}}),
    );
    maps.carry_out(&tables.apply(&object(&balanced)));
    assert_eq!(shown(&maps)[at], "", "no back end");
}

#[test]
fn node_ports_are_only_those_of_a_type_that_has_them() {
    let ports = json!([{"port": 80, "targetPort": 8080, "nodePort": 30080}]);
    check(&[service(json!({"ports": ports}))], &[("172.20.0.1:80/TCP", "")]);
}

#[test]
fn each_family_has_its_own_back_ends() {
    let dual = json!({"type": "NodePort", "clusterIPs": ["172.20.0.1", "fd00:20::1"],
        "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]});
    let ips = json!({"status": {"podIPs": [{"ip": "10.0.9.1"}, {"ip": "fd00:9::1"}]}});
    check(
        &[service(dual), pod("a", "here", "10.0.9.1", ips)],
        &[
            ("172.20.0.1:80/TCP", "10.0.9.1:8080"),
            ("[fd00:20::1]:80/TCP", "[fd00:9::1]:8080"),
            ("10.0.1.10:30080/TCP", "10.0.9.1:8080"),
            ("10.0.1.11:30080/TCP", "10.0.9.1:8080"),
            ("[fd00::10]:30080/TCP", "[fd00:9::1]:8080"),
        ],
    );
}

#[test]
fn a_named_target_port_is_each_pods_own() {
    let named = |port: u16, protocol: &str| {
        json!({"spec": {"containers": [{"name": "c",
            "ports": [{"name": "http", "containerPort": port, "protocol": protocol}]}]}})
    };
    check(
        &[
            service(json!({"ports": [{"port": 80, "targetPort": "http"}]})),
            pod("a", "here", "10.0.9.1", named(8080, "TCP")),
            pod("b", "here", "10.0.9.2", named(9090, "TCP")),
            pod("c", "here", "10.0.9.3", named(9090, "UDP")),
            pod("d", "here", "10.0.9.4", json!({})),
        ],
        &[("172.20.0.1:80/TCP", "10.0.9.1:8080 10.0.9.2:9090")],
    );
}

#[test]
fn protocols_share_an_address_and_a_port() {
    let ports = json!([
        {"name": "t", "port": 53, "targetPort": 1}, {"name": "u", "port": 53, "targetPort": 2, "protocol": "UDP"},
        {"name": "s", "port": 53, "targetPort": 3, "protocol": "SCTP"}]);
    check(
        &[service(json!({"ports": ports})), pod("a", "here", "10.0.9.1", json!({}))],
        &[
            ("172.20.0.1:53/TCP", "10.0.9.1:1"),
            ("172.20.0.1:53/UDP", "10.0.9.1:2"),
            ("172.20.0.1:53/SCTP", "10.0.9.1:3"),
        ],
    );
}

#[test]
fn host_ports_lead_to_local_pods_and_honour_the_address() {
    let bound = |node: &str, address: Option<&str>| {
        let port = json!({"containerPort": 8080, "hostPort": 8081, "hostIP": address});
        pod(
            "a",
            node,
            "10.0.9.1",
            json!({"spec": {"containers": [{"name": "c", "ports": [port]}]}}),
        )
    };
    let on = |own: &'static str| (own, "10.0.9.1:8080");
    check(&[bound("here", None)], &[on("10.0.1.10:8081/TCP"), on("10.0.1.11:8081/TCP")]);
    check(&[bound("here", Some("0.0.0.0"))], &[on("10.0.1.10:8081/TCP"), on("10.0.1.11:8081/TCP")]);
    check(&[bound("here", Some("10.0.1.11"))], &[on("10.0.1.11:8081/TCP")]);
    check(&[bound("here", Some("10.0.1.99"))], &[]);
    check(&[bound("here", Some("127.0.0.1"))], &[]);
    check(&[bound("here", Some("::"))], &[]);
    check(&[bound("there", None)], &[]);
    let mut finished = bound("here", None);
    lay(&mut finished, json!({"status": {"phase": "Succeeded"}}));
    check(&[finished], &[]);
    let mut of_node = bound("here", None);
    lay(&mut of_node, json!({"spec": {"hostNetwork": true}}));
    check(&[of_node], &[]);
}

#[test]
fn session_affinity_and_its_number_survive_a_change_of_back_ends() {
    let sticky = service(json!({"sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}));
    let (mut tables, mut maps) = tables(&[sticky, pod("a", "here", "10.0.9.1", json!({}))]);
    let at = front_end("172.20.0.1", 80);
    let before = maps.seen()[&at].clone();
    assert_eq!(before.affinity_secs, 60);
    maps.carry_out(&tables.apply(&object(&pod("b", "here", "10.0.9.2", json!({})))));
    let after = maps.seen()[&at].clone();
    assert_eq!(
        (after.affinity_secs, after.service, after.back_ends.len()),
        (60, before.service, 2)
    );
}

#[test]
fn the_service_that_was_first_keeps_a_front_end_and_the_other_is_told() {
    let named = |name: &str, created: &str| {
        let mut service = service(json!({"externalIPs": ["198.51.100.1"], "clusterIP": null,
            "ports": [{"port": 80, "targetPort": 8000 + name.len()}]}));
        lay(&mut service, json!({"metadata": {"name": name, "creationTimestamp": created}}));
        service
    };
    let (mut tables, mut maps) = tables(&[
        named("older", "2024-01-01T00:00:00Z"),
        named("a", "2024-01-02T00:00:00Z"),
        pod("p", "there", "10.0.9.1", json!({})),
    ]);
    assert_eq!(shown(&maps)["198.51.100.1:80/TCP"], "10.0.9.1:8005");
    let [told] = tables.diagnostics().try_into().unwrap();
    assert_eq!(told.key.to_string(), "Service n/a");
    assert!(told.message.contains("Service n/older"), "{told}");

    let older = object(&named("older", "x")).key();
    maps.carry_out(&tables.delete(&older));
    assert_eq!(shown(&maps)["198.51.100.1:80/TCP"], "10.0.9.1:8001");
    assert_eq!(tables.diagnostics(), []);
}

#[test]
fn a_service_wins_over_a_host_port() {
    let ports = json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 30080}]}]}});
    let claimed = service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}));
    let (tables, maps) = tables(&[claimed, pod("a", "here", "10.0.9.1", ports)]);
    assert_eq!(shown(&maps)["10.0.1.10:30080/TCP"], "10.0.9.1:80");
    assert_eq!(tables.diagnostics().len(), 2, "one for each address");
}

#[test]
fn addresses_that_lead_nowhere_are_diagnostics_and_no_front_ends() {
    let (tables, maps) = tables(&[
        service(json!({"externalIPs": ["127.0.0.1", "169.254.169.254", "224.0.0.1"]})),
        slice(
            "s",
            json!([{"addresses": ["169.254.169.254"]}, {"addresses": ["127.0.0.1"]}, {"addresses": ["10.0.9.1"]}]),
        ),
    ]);
    assert_eq!(shown(&maps), [("172.20.0.1:80/TCP".to_owned(), "10.0.9.1:8080".to_owned())].into());
    let told: Vec<String> = tables
        .diagnostics()
        .into_iter()
        .map(|told| format!("{} {}", told.key, told.field))
        .collect();
    let of_slice = "EndpointSlice n/s endpoints";
    let of_service = "Service n/web spec.externalIPs";
    assert_eq!(told, [of_service, of_service, of_service, of_slice, of_slice]);
}

#[test]
fn what_changes_nothing_writes_nothing() {
    let objects = [service(json!({})), pod("a", "here", "10.0.9.1", json!({}))];
    let (mut tables, _) = tables(&objects);
    for manifest in &objects {
        assert_eq!(tables.apply(&object(manifest)), []);
    }
    let relabelled =
        pod("a", "here", "10.0.9.1", json!({"metadata": {"labels": {"unrelated": "x"}}}));
    assert_eq!(tables.apply(&object(&relabelled)), []);
    assert_eq!(tables.apply(&object(&node("there", "z9"))), []);
}

#[test]
fn new_addresses_of_the_node_get_its_node_ports() {
    let ports = json!([{"port": 80, "targetPort": 8080, "nodePort": 30080}]);
    let (mut tables, mut maps) = tables(&[service(json!({"type": "NodePort", "ports": ports}))]);
    maps.carry_out(&tables.set_addresses(["10.0.1.12".parse().unwrap()].into()));
    let at: Vec<String> = shown(&maps).into_keys().collect();
    assert_eq!(at, ["10.0.1.12:30080/TCP", "172.20.0.1:80/TCP"]);
}

/// Agents of the node listen at such addresses (EKS Pod Identity, NodeLocal DNS), and the kernel leads on what they are sent
/// at these ports as at any other: unclaimed, an isolated pod would reach another pod by them.
#[test]
fn link_local_addresses_of_the_node_have_its_node_ports_and_host_ports() {
    let ports = json!([{"port": 80, "targetPort": 8080, "nodePort": 30080}]);
    let host_ports = json!({"spec": {"containers": [{"name": "c", "ports": [
        {"containerPort": 1, "hostPort": 8080},
        {"containerPort": 2, "hostPort": 8081, "hostIP": "169.254.20.10"}]}]}});
    let (mut tables, mut maps) = tables(&[
        service(json!({"type": "NodePort", "ports": ports})),
        pod("a", "here", "10.0.9.1", host_ports),
    ]);
    let own = ["127.0.0.1", "169.254.20.10", "169.254.170.23"];
    let own = own.map(|address| address.parse().unwrap());
    maps.carry_out(&tables.set_addresses(own.into()));
    let at: Vec<String> = shown(&maps).into_keys().collect();
    let expected = [
        "169.254.170.23:30080/TCP",
        "169.254.170.23:8080/TCP",
        "169.254.20.10:30080/TCP",
        "169.254.20.10:8080/TCP",
        "169.254.20.10:8081/TCP",
        "172.20.0.1:80/TCP",
    ];
    assert_eq!(at, expected);
}

/// What each step does to the node's own addresses and to front ends.
fn kinds(steps: &[Step]) -> Vec<String> {
    let kind = |step: &Step| match step {
        Step::NodeAddresses(own) => format!("own {own:?}"),
        Step::Delete(_) => "front end goes".to_owned(),
        Step::Write(_) => "front end comes".to_owned(),
        other => format!("{other:?}"),
    };
    steps.iter().map(kind).collect()
}

#[test]
fn an_address_is_the_nodes_own_only_while_its_front_ends_are_there() {
    let ports = json!([{"port": 80, "targetPort": 8080, "nodePort": 30080}]);
    let (mut tables, _) = tables(&[service(json!({"type": "NodePort", "ports": ports}))]);
    let (first, second) = ("10.0.1.11".parse().unwrap(), "10.0.1.12".parse().unwrap());
    tables.set_addresses([first].into());
    let more = kinds(&tables.set_addresses([first, second].into()));
    assert_eq!(more, ["front end comes", "own {10.0.1.11, 10.0.1.12}", "Epoch"]);
    let less = kinds(&tables.set_addresses([second].into()));
    assert_eq!(less, ["own {10.0.1.12}", "front end goes", "own {10.0.1.12}", "Epoch"]);
    assert_eq!(kinds(&tables.set_addresses([second].into())), [""; 0]);
}

/// A daemon starts that knows what is the node's own from the one before, and no object.
fn resumed(addresses: &[&str]) -> ServiceTables {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    ServiceTables::new(OwnNode { addresses, ..own() }, &Found::default())
}

#[test]
fn an_address_that_is_new_since_the_last_daemon_is_the_nodes_own_once_all_objects_are_known() {
    let host_port = json!({"spec": {"containers": [
        {"name": "c", "ports": [{"containerPort": 8080, "hostPort": 9000, "protocol": "TCP"}]}]}});
    let [first, second, gone] =
        ["10.0.1.11", "10.0.1.12", "10.0.1.13"].map(|address| address.parse().unwrap());
    let mut tables = resumed(&["10.0.1.11", "10.0.1.13"]);
    let told = kinds(&tables.set_addresses([first, second].into()));
    assert_eq!(told, ["own {10.0.1.11}", "own {10.0.1.11}", "Epoch"], "one goes, one waits");
    assert!(!tables.own_addresses().contains(&second) && !tables.own_addresses().contains(&gone));
    let served = kinds(&tables.apply(&object(&pod("a", "here", "10.0.9.1", host_port))));
    assert_eq!(served, ["front end comes", "front end comes", "front end comes", "Epoch"]);
    assert_eq!(kinds(&tables.complete()), ["own {10.0.1.11, 10.0.1.12}", "Epoch"]);
    assert_eq!(kinds(&tables.complete()), [""; 0]);
    let later = kinds(&tables.set_addresses([first, second, gone].into()));
    assert!(later.contains(&"own {10.0.1.11, 10.0.1.12, 10.0.1.13}".to_owned()), "{later:?}");
}

#[test]
fn what_waits_for_the_objects_is_told_with_a_new_list_of_them_as_well() {
    let mut tables = resumed(&["10.0.1.11"]);
    let both = ["10.0.1.11", "10.0.1.12"].map(|address| address.parse().unwrap());
    assert_eq!(kinds(&tables.set_addresses(both.into())), [""; 0]);
    // It was there for a moment.
    assert_eq!(kinds(&tables.set_addresses([both[0]].into())), [""; 0]);
    assert_eq!(kinds(&tables.set_addresses(both.into())), [""; 0]);
    let ports = json!([{"port": 80, "targetPort": 8080, "nodePort": 30080}]);
    let web = object(&service(json!({"type": "NodePort", "ports": ports})));
    let told = kinds(&tables.reset([&web]));
    let expected = ["front end comes"; 3];
    assert_eq!(told[..3], expected);
    assert_eq!(told[3..], ["own {10.0.1.11, 10.0.1.12}", "Epoch"]);
}

/// The objects may be long in coming, and pods take no probe from an address that is not the node's own.
#[test]
fn an_address_that_was_the_nodes_own_is_so_at_once_when_it_comes_back() {
    let mut tables = resumed(&["10.0.1.11"]);
    let [known, new] = ["10.0.1.11", "10.0.1.12"].map(|address| address.parse().unwrap());
    assert_eq!(kinds(&tables.set_addresses([].into())), ["own {}", "own {}", "Epoch"]);
    assert_eq!(kinds(&tables.set_addresses([known, new].into())), ["own {10.0.1.11}", "Epoch"]);
    assert_eq!(tables.waiting_addresses(), [new].into());
    assert_eq!(kinds(&tables.complete()), ["own {10.0.1.11, 10.0.1.12}", "Epoch"]);
    assert_eq!(tables.waiting_addresses(), [].into());
}

/// Probes come from there, and nothing that was judged before has to be kept.
#[test]
fn a_kernel_that_was_never_told_of_the_nodes_addresses_is_told_at_once() {
    let mut tables = resumed(&[]);
    let [first, second] = ["10.0.1.11", "10.0.1.12"].map(|address| address.parse().unwrap());
    assert_eq!(kinds(&tables.set_addresses([first].into())), ["own {10.0.1.11}", "Epoch"]);
    let more = kinds(&tables.set_addresses([first, second].into()));
    assert_eq!(more, ["own {10.0.1.11, 10.0.1.12}", "Epoch"]);
}

#[test]
fn a_flow_to_what_becomes_a_front_end_is_judged_again() {
    let (mut tables, _) = tables(&[]);
    let epochs = |steps: &[Step]| steps.iter().filter(|step| matches!(step, Step::Epoch)).count();
    let ports = json!([{"port": 53, "protocol": "UDP"}]);
    let web = json!({"ports": ports, "externalIPs": ["1.2.3.4"]});
    assert_eq!(epochs(&tables.apply(&object(&service(web)))), 1);
    // Pods come and go all the time; a flow that has a back end keeps it.
    let back_end = pod("a", "here", "10.0.9.1", json!({}));
    assert_eq!(epochs(&tables.apply(&object(&back_end))), 0);
}

#[test]
fn a_list_is_written_before_the_flip_and_removed_after_a_grace_period() {
    let (mut tables, _) = tables(&[service(json!({})), pod("a", "here", "10.0.9.1", json!({}))]);
    let steps = tables.apply(&object(&pod("b", "here", "10.0.9.2", json!({}))));
    let kinds: Vec<&str> = steps
        .iter()
        .map(|step| match step {
            Step::Write(veni_policy::change::Write::Backend { .. }) => "write a back end",
            Step::Write(_) => "flip",
            Step::Grace => "grace",
            Step::Delete(_) => "delete",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["write a back end", "write a back end", "flip", "grace", "delete"]);
}

#[test]
fn a_restart_adopts_what_is_there_and_writes_only_the_difference() {
    let objects = [
        service(json!({"sessionAffinity": "ClientIP"})),
        pod("a", "here", "10.0.9.1", json!({})),
        pod("b", "here", "10.0.9.2", json!({})),
    ];
    let (_, mut maps) = tables(&objects);
    let at = front_end("172.20.0.1", 80);
    let service = maps.seen()[&at].service;
    let objects: Vec<_> = objects.iter().map(object).collect();

    let mut next = ServiceTables::new(own(), &maps.found());
    assert_eq!(next.reset(&objects), [], "nothing changed");
    maps.carry_out(&next.delete(&objects[2].key()));
    assert_eq!(maps.seen()[&at].service, service, "affinity is kept");
    assert_eq!(maps.seen()[&at].back_ends.len(), 1);

    let mut last = ServiceTables::new(own(), &maps.found());
    maps.carry_out(&last.reset([]));
    assert_eq!((maps.seen().len(), maps.strays()), (0, 0), "nobody's");
}

#[test]
fn a_batch_cut_off_anywhere_is_made_good_by_the_next_daemon() {
    let mut objects =
        vec![object(&service(json!({}))), object(&pod("a", "here", "10.0.9.1", json!({})))];
    let mut tables = ServiceTables::new(own(), &Found::default());
    let mut maps = Maps::default();
    maps.carry_out(&tables.reset(&objects));
    objects.push(object(&pod("b", "here", "10.0.9.2", json!({}))));
    let steps = tables.apply(&objects[2]);
    for done in 0..=steps.len() {
        let mut maps = maps.clone();
        maps.carry_out(&steps[..done]);
        let mut next = ServiceTables::new(own(), &maps.found());
        maps.carry_out(&next.reset(&objects));
        assert_eq!(shown(&maps)["172.20.0.1:80/TCP"], "10.0.9.1:8080 10.0.9.2:8080");
        assert_eq!(maps.strays(), 0, "after {done} steps");
    }
    assert_eq!(objects[2].key().kind, Kind::Pod);
}

#[test]
fn a_list_that_finds_no_room_leaves_the_old_one_and_is_told() {
    const MANY: u32 = 150_000;
    let many = |first: u32| {
        let address = |i: u32| std::net::Ipv4Addr::from(0x0a80_0000 + first + i).to_string();
        let endpoints: Vec<_> = (0..MANY).map(|i| json!({"addresses": [address(i)]})).collect();
        object(&slice("s", json!(endpoints)))
    };
    let mut tables = ServiceTables::new(own(), &Found::default());
    let steps = tables.reset(&[object(&service(json!({}))), many(0)]);
    assert_eq!(steps.len(), 150_002);
    assert_eq!(tables.apply(&many(1)), [], "both lists together are too long");
    let [told] = tables.diagnostics().try_into().unwrap();
    assert!(told.message.contains("no room"), "{told}");

    let few = object(&slice("s", json!([{"addresses": ["10.0.9.1"]}])));
    assert_eq!(tables.apply(&few).len(), 1 + 1 + 1 + 150_000, "there is room for this one");
    assert_eq!(tables.diagnostics(), []);
    assert_eq!(tables.apply(&many(1)).len(), 150_000 + 1 + 1 + 1, "and then for the other");
}

#[test]
fn a_host_port_is_known_once_the_node_has_given_the_pod_its_address() {
    let waiting = |fields: Value| {
        let ports = json!([{"containerPort": 8080, "hostPort": 8081, "hostIP": "10.0.1.10"}]);
        let mut pod = pod("a", "here", "10.0.9.1", fields);
        pod["spec"]["containers"] = json!([{"name": "c", "ports": ports}]);
        pod["status"] = json!({"phase": "Pending"});
        pod
    };
    let at = "10.0.1.10:8081/TCP";
    let leads_to = |maps: &Maps| shown(maps).get(at).cloned();
    let key = PodKey::new("n", "a");
    let given = ["10.0.9.7".parse().unwrap()];
    // The object first, or the address first.
    let (mut tables, mut maps) = tables(&[waiting(json!({}))]);
    assert_eq!(leads_to(&maps), None);
    maps.carry_out(&tables.attach(&key, &given));
    assert_eq!(leads_to(&maps).as_deref(), Some("10.0.9.7:8080"));
    maps.carry_out(&tables.apply(&object(&waiting(json!({"metadata": {"uid": "u2"}})))));
    assert_eq!(leads_to(&maps).as_deref(), Some("10.0.9.7:8080"));
    maps.carry_out(&tables.attach(&key, &[]));
    assert_eq!(leads_to(&maps), None);
    let (mut tables, mut maps) = crate::support::tables(&[]);
    maps.carry_out(&tables.attach(&key, &given));
    maps.carry_out(&tables.apply(&object(&waiting(json!({})))));
    assert_eq!(leads_to(&maps).as_deref(), Some("10.0.9.7:8080"));
}

#[test]
fn a_front_end_of_a_service_that_went_while_no_daemon_ran_goes_once_all_objects_are_known() {
    let (_, mut maps) = tables(&[service(json!({})), pod("a", "here", "10.0.9.1", json!({}))]);
    let mut next = ServiceTables::new(own(), &maps.found());
    maps.carry_out(&next.update([], []));
    assert_eq!(shown(&maps).len(), 1, "until they are");
    maps.carry_out(&next.complete());
    assert_eq!(shown(&maps).len(), 0);
}
