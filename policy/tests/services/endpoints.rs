//! Which endpoints serve: readiness, policies and topology.

use serde_json::{Value, json};

use crate::support::{check, lay, node, pod, service, shown, slice, tables};

fn endpoint(address: &str, node: &str, conditions: Value) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}

fn hinted(address: &str, node: &str, zone: Option<&str>) -> Value {
    let hints = zone.map(|zone| json!({"forZones": [{"name": zone}]}));
    json!({"addresses": [address], "nodeName": node, "hints": hints})
}

fn leads_to(spec: Value, endpoints: Value, expect: &str) {
    let (_, maps) = tables(&[service(spec), slice("s", endpoints)]);
    assert_eq!(shown(&maps)["172.20.0.1:80/TCP"], expect);
}

#[test]
fn slices_decide_where_there_are_any() {
    check(
        &[
            service(json!({})),
            slice("s", json!([{"addresses": ["10.0.9.7"]}])),
            pod("a", "here", "10.0.9.1", json!({})),
        ],
        &[("172.20.0.1:80/TCP", "10.0.9.7:8080")],
    );
    check(
        &[service(json!({})), slice("s", json!([])), pod("a", "here", "10.0.9.1", json!({}))],
        &[("172.20.0.1:80/TCP", "")],
    );
}

#[test]
fn slices_add_up_and_a_back_end_counts_once() {
    leads_to(
        json!({}),
        json!([{"addresses": ["10.0.9.1", "10.0.9.9"]}, {"addresses": ["10.0.9.1"]}]),
        "10.0.9.1:8080",
    );
    check(
        &[
            service(json!({})),
            slice("s", json!([{"addresses": ["10.0.9.1"]}])),
            slice("t", json!([{"addresses": ["10.0.9.1"]}, {"addresses": ["10.0.9.2"]}])),
        ],
        &[("172.20.0.1:80/TCP", "10.0.9.1:8080 10.0.9.2:8080")],
    );
}

#[test]
fn a_slices_port_belongs_by_name_and_protocol() {
    let mut slice = slice("s", json!([{"addresses": ["10.0.9.1"]}]));
    lay(
        &mut slice,
        json!({"ports": [
        {"name": "a", "port": 1}, {"name": "b", "port": 2}, {"name": "a", "port": 3, "protocol": "UDP"}, {"name": "c"}]}),
    );
    let ports =
        json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}, {"name": "c", "port": 82}]);
    check(
        &[service(json!({"ports": ports})), slice],
        &[
            ("172.20.0.1:80/TCP", "10.0.9.1:1"),
            ("172.20.0.1:81/TCP", "10.0.9.1:2"),
            ("172.20.0.1:82/TCP", ""),
        ],
    );
}

#[test]
fn ready_ones_serve_and_with_none_those_that_serve_while_they_terminate() {
    let ready =
        endpoint("10.0.9.1", "here", json!({"ready": true, "serving": true, "terminating": false}));
    let unready = endpoint(
        "10.0.9.2",
        "here",
        json!({"ready": false, "serving": false, "terminating": false}),
    );
    let leaving =
        endpoint("10.0.9.3", "here", json!({"ready": false, "serving": true, "terminating": true}));
    let failing = endpoint(
        "10.0.9.4",
        "here",
        json!({"ready": false, "serving": false, "terminating": true}),
    );
    leads_to(json!({}), json!([ready, unready, leaving, failing]), "10.0.9.1:8080");
    leads_to(json!({}), json!([unready, leaving, failing]), "10.0.9.3:8080");
    leads_to(json!({}), json!([unready, failing]), "");
    leads_to(json!({}), json!([endpoint("10.0.9.1", "here", json!({}))]), "10.0.9.1:8080");
}

#[test]
fn pods_count_as_their_controller_would_say() {
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let deleting = json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"}});
    let both = |spec: Value, expect: &str| {
        let objects = [
            service(spec),
            pod("a", "here", "10.0.9.1", unready.clone()),
            pod("b", "here", "10.0.9.2", deleting.clone()),
        ];
        check(&objects, &[("172.20.0.1:80/TCP", expect)]);
    };
    both(json!({}), "10.0.9.2:8080");
    both(json!({"publishNotReadyAddresses": true}), "10.0.9.1:8080 10.0.9.2:8080");
    let finished = pod("c", "here", "10.0.9.3", json!({"status": {"phase": "Failed"}}));
    check(&[service(json!({})), finished], &[("172.20.0.1:80/TCP", "")]);
}

#[test]
fn a_host_network_pod_is_a_back_end_at_its_nodes_address() {
    let pod = pod("a", "there", "10.0.1.20", json!({"spec": {"hostNetwork": true}}));
    check(&[service(json!({})), pod], &[("172.20.0.1:80/TCP", "10.0.1.20:8080")]);
}

#[test]
fn internal_policy_local_keeps_to_the_node_and_external_addresses_do_not() {
    let spec = json!({"internalTrafficPolicy": "Local", "externalIPs": ["198.51.100.1"]});
    let near = endpoint("10.0.9.1", "here", json!({}));
    let far = endpoint("10.0.9.2", "there", json!({}));
    let leaving =
        endpoint("10.0.9.3", "here", json!({"ready": false, "serving": true, "terminating": true}));
    let (both, own) = ("10.0.9.1:8080 10.0.9.2:8080", "10.0.9.1:8080");
    let expect = |endpoints: Value, cluster: &str, external: &str| {
        check(
            &[service(spec.clone()), slice("s", endpoints)],
            &[("172.20.0.1:80/TCP", cluster), ("198.51.100.1:80/TCP", external)],
        );
    };
    expect(json!([near, far, leaving]), own, both);
    expect(json!([far, leaving]), "10.0.9.3:8080", "10.0.9.2:8080");
    expect(json!([far]), "", "10.0.9.2:8080");
}

/// proxier.go, "short-circuit pod traffic": a pod is subject to no external policy.
#[test]
fn external_policy_local_does_not_bind_pods() {
    let spec = json!({"type": "NodePort", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]});
    check(
        &[service(spec), pod("b", "there", "10.0.9.2", json!({}))],
        &[
            ("172.20.0.1:80/TCP", "10.0.9.2:8080"),
            ("10.0.1.10:30080/TCP", "10.0.9.2:8080"),
            ("10.0.1.11:30080/TCP", "10.0.9.2:8080"),
        ],
    );
}

#[test]
fn hints_count_when_all_have_one_and_one_is_for_us() {
    let near = hinted("10.0.9.1", "there", Some("z1"));
    let far = hinted("10.0.9.2", "there", Some("z2"));
    let (all, own) = ("10.0.9.1:8080 10.0.9.2:8080", "10.0.9.1:8080");
    leads_to(json!({}), json!([near, far]), own);
    leads_to(json!({}), json!([near, hinted("10.0.9.2", "there", None)]), all);
    leads_to(json!({}), json!([hinted("10.0.9.1", "there", Some("z2")), far]), all);
    let unready =
        json!({"addresses": ["10.0.9.3"], "conditions": {"ready": false, "serving": false}});
    leads_to(json!({}), json!([near, far, unready]), own);
}

#[test]
fn hints_for_nodes_come_before_those_for_zones() {
    let on = |address: &str, node: &str| {
        json!({"addresses": [address], "nodeName": node,
            "hints": {"forNodes": [{"name": node}], "forZones": [{"name": "z1"}]}})
    };
    leads_to(json!({}), json!([on("10.0.9.1", "here"), on("10.0.9.2", "there")]), "10.0.9.1:8080");
    leads_to(
        json!({}),
        json!([on("10.0.9.2", "there"), on("10.0.9.3", "yonder")]),
        "10.0.9.2:8080 10.0.9.3:8080",
    );
}

#[test]
fn a_traffic_distribution_prefers_what_is_close() {
    let objects = |prefer: &str| {
        [
            service(json!({"trafficDistribution": prefer})),
            node("here", "z1"),
            node("next", "z1"),
            node("there", "z2"),
            pod("a", "here", "10.0.9.1", json!({})),
            pod("b", "next", "10.0.9.2", json!({})),
            pod("c", "there", "10.0.9.3", json!({})),
        ]
    };
    let check = |objects: &[Value], expect: &str| check(objects, &[("172.20.0.1:80/TCP", expect)]);
    check(&objects("PreferClose"), "10.0.9.1:8080 10.0.9.2:8080");
    check(&objects("PreferSameZone"), "10.0.9.1:8080 10.0.9.2:8080");
    check(&objects("PreferSameNode"), "10.0.9.1:8080");
    check(&objects("x"), "10.0.9.1:8080 10.0.9.2:8080 10.0.9.3:8080");
    check(&objects("PreferSameNode")[..4], "");
    let mut zoneless = objects("PreferClose");
    lay(&mut zoneless[3], json!({"metadata": {"labels": null}}));
    check(&zoneless, "10.0.9.1:8080 10.0.9.2:8080 10.0.9.3:8080");
}
