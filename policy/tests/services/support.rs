//! Manifests, the node, and what is expected of its tables.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use veni_policy::{
    object::{Object, Protocol, parse},
    service::{Found, FrontEnd, OwnNode, ServiceTables},
};

use crate::maps::Maps;

/// The node's own addresses.
pub(crate) const OWN: [&str; 4] = ["10.0.1.10", "10.0.1.11", "127.0.0.1", "fd00::10"];

pub(crate) fn own() -> OwnNode {
    OwnNode {
        name: "here".to_owned(),
        zone: Some("z1".to_owned()),
        addresses: OWN.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

pub(crate) fn object(manifest: &Value) -> Object {
    parse(manifest).unwrap_or_else(|error| panic!("{error:?}: {manifest}")).unwrap()
}

/// The tables that the objects make.
pub(crate) fn tables(manifests: &[Value]) -> (ServiceTables, Maps) {
    let objects: Vec<Object> = manifests.iter().map(object).collect();
    let mut tables = ServiceTables::new(own(), &Found::default());
    let mut maps = Maps::default();
    maps.carry_out(&tables.reset(&objects));
    (tables, maps)
}

/// Asserts all front ends (`address:port/PROTOCOL`) and their back ends (`address:port`, separated by spaces).
pub(crate) fn check(manifests: &[Value], expect: &[(&str, &str)]) {
    let (_, maps) = tables(manifests);
    let expect: BTreeMap<String, String> =
        expect.iter().map(|(at, to)| ((*at).to_owned(), (*to).to_owned())).collect();
    assert_eq!(shown(&maps), expect);
}

pub(crate) fn shown(maps: &Maps) -> BTreeMap<String, String> {
    let seen = maps.seen();
    seen.into_iter()
        .map(|(at, seen)| {
            let back_ends: Vec<String> = seen
                .back_ends
                .iter()
                .map(|to| std::net::SocketAddr::new(to.address, to.port).to_string())
                .collect();
            let leads_to = back_ends.join(" ");
            (show(at), if seen.of_proxy { "kube-proxy".to_owned() } else { leads_to })
        })
        .collect()
}

pub(crate) fn show(at: FrontEnd) -> String {
    let socket = std::net::SocketAddr::new(at.address, at.port);
    format!("{socket}/{}", at.protocol.as_str())
}

pub(crate) fn front_end(address: &str, port: u16) -> FrontEnd {
    FrontEnd { address: address.parse().unwrap(), port, protocol: Protocol::Tcp }
}

/// A Service `n/web` with selector `app: web`, port 80 to 8080, over which `spec` is laid.
pub(crate) fn service(spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "n", "name": "web"},
        "spec": {"clusterIP": "172.20.0.1", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    lay(&mut service["spec"], spec);
    service
}

/// A ready pod `n/NAME` with label `app: web`, over which `fields` is laid.
pub(crate) fn pod(name: &str, node: &str, address: &str, fields: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "n", "name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
    });
    lay(&mut pod, fields);
    pod
}

/// A slice of `n/web`, port 8080.
pub(crate) fn slice(name: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "n", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

pub(crate) fn node(name: &str, zone: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}})
}

/// Lays `over` on top: maps are merged, everything else is replaced.
pub(crate) fn lay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                lay(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}
