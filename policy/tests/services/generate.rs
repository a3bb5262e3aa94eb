//! Random manifests from few names, addresses and ports, so that they meet.

use serde_json::{Value, json};

/// A source of choices that a failing test can be repeated from.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Below `n`.
    pub(crate) fn roll(&mut self, n: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % n
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())].clone()
    }

    /// One time in `n`.
    pub(crate) fn rarely(&mut self, n: usize) -> bool {
        self.roll(n) == 0
    }

    fn flag(&mut self) -> Value {
        self.one(&[json!(true), json!(false), Value::Null])
    }
}

pub(crate) fn manifest(dice: &mut Dice) -> Value {
    match dice.roll(9) {
        0..3 => service(dice),
        3..5 => slice(dice),
        5..8 => pod(dice),
        _ => node(dice),
    }
}

fn service(dice: &mut Dice) -> Value {
    let ports = [
        json!({"name": "a", "port": 80, "targetPort": 8080}),
        json!({"name": "a", "port": 80, "targetPort": "http"}),
        json!({"name": "b", "port": 81, "targetPort": "http", "nodePort": 30080}),
        json!({"name": "b", "port": 80, "targetPort": 53, "protocol": "UDP", "nodePort": 30080}),
        json!({"name": "c", "port": 82, "targetPort": 1, "protocol": "SCTP"}),
        json!({"name": "c", "port": 8081, "nodePort": 30081}),
    ];
    let addresses = ["172.20.0.1", "172.20.0.2", "172.20.0.3"];
    let cluster = match dice.roll(8) {
        0 => json!(["None"]),
        1 => json!([]),
        2 => json!(["fd00:20::1"]),
        3 | 4 => json!([dice.one(&addresses), "fd00:20::2"]),
        _ => json!([dice.one(&addresses)]),
    };
    let labels = if dice.rarely(12) {
        json!({"service.kubernetes.io/service-proxy-name": "x"})
    } else {
        Value::Null
    };
    let pick = dice.roll(2) + 1;
    let first = dice.roll(ports.len());
    let ports: Vec<Value> =
        ports.iter().cycle().skip(first).step_by(2).take(pick).cloned().collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": dice.one(&["n", "m"]), "name": dice.one(&["s0", "s1", "s2"]), "labels": labels,
            "creationTimestamp": dice.one(&[Value::Null, json!("2024-01-01T00:00:00Z"), json!("2024-01-02T00:00:00Z")])},
        "spec": {
            "type": dice.one(&["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "ExternalName"]),
            "clusterIPs": cluster,
            "selector": dice.one(&[json!({"app": "x"}), json!({"app": "y"}), json!({"app": "x", "tier": "t"}), Value::Null]),
            "ports": ports,
            "externalIPs": dice.one(&[json!([]), json!(["198.51.100.1"]), json!(["172.20.0.1", "fd00:99::1"])]),
            "sessionAffinity": dice.one(&["None", "ClientIP"]),
            "internalTrafficPolicy": dice.one(&["Cluster", "Cluster", "Local"]),
            "externalTrafficPolicy": dice.one(&["Cluster", "Local"]),
            "publishNotReadyAddresses": dice.rarely(4),
            "trafficDistribution": dice.one(&[Value::Null, json!("PreferClose"), json!("PreferSameNode")]),
        },
        "status": {"loadBalancer": {"ingress": dice.one(&[json!([]), json!([{"ip": "198.51.100.2"}])])}},
    })
}

fn slice(dice: &mut Dice) -> Value {
    let endpoints: Vec<Value> = (0..dice.roll(4)).map(|_| endpoint(dice)).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": dice.one(&["n", "m"]), "name": dice.one(&["e0", "e1", "e2"]),
            "labels": {"kubernetes.io/service-name": dice.one(&[json!("s0"), json!("s1"), Value::Null])}},
        "ports": [{"name": "a", "port": dice.one(&[8080, 9090])}, {"name": "b", "port": 53, "protocol": "UDP"}],
        "endpoints": endpoints,
    })
}

fn endpoint(dice: &mut Dice) -> Value {
    let zones = dice.one(&[
        Value::Null,
        json!([{"name": "z1"}]),
        json!([{"name": "z2"}]),
        json!([{"name": "z1"}, {"name": "z2"}]),
    ]);
    let nodes = dice.one(&[
        Value::Null,
        Value::Null,
        json!([{"name": "here"}]),
        json!([{"name": "there"}]),
    ]);
    json!({
        "addresses": [dice.one(&["10.0.9.1", "10.0.9.2", "10.0.9.3", "10.0.9.4", "fd00:9::1"])],
        "nodeName": dice.one(&[json!("here"), json!("there"), Value::Null]),
        "conditions": {"ready": dice.flag(), "serving": dice.flag(), "terminating": dice.flag()},
        "hints": {"forZones": zones, "forNodes": nodes},
    })
}

fn pod(dice: &mut Dice) -> Value {
    let (namespace, number) = (dice.roll(2), dice.roll(4));
    let address = format!("10.{}.9.{}", namespace, number + 1);
    let mut addresses = vec![json!({"ip": address})];
    if dice.rarely(3) {
        addresses.push(json!({"ip": format!("fd00:{namespace}::{}", number + 1)}));
    }
    let host_ip = dice.one(&[
        Value::Null,
        Value::Null,
        json!("0.0.0.0"),
        json!("::"),
        json!("10.0.1.10"),
        json!("10.0.1.99"),
    ]);
    let ports = [
        json!([]),
        json!([{"name": "http", "containerPort": 8080}]),
        json!([{"name": "http", "containerPort": 9090, "hostPort": 30080, "hostIP": host_ip}]),
        json!([{"containerPort": 9, "hostPort": 8081, "hostIP": host_ip}, {"containerPort": 10, "hostPort": 8081}]),
    ];
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": (["n", "m"][namespace]), "name": format!("p{number}"),
            "labels": dice.one(&[json!({"app": "x"}), json!({"app": "x", "tier": "t"}), json!({"app": "y"}), Value::Null]),
            "deletionTimestamp": dice.one(&[Value::Null, Value::Null, json!("2024-01-01T00:00:00Z")])},
        "spec": {"nodeName": dice.one(&[json!("here"), json!("there"), Value::Null]),
            "hostNetwork": dice.rarely(6), "containers": [{"name": "c", "ports": dice.one(&ports)}]},
        "status": {"phase": dice.one(&["Running", "Running", "Running", "Failed"]),
            "podIPs": if dice.rarely(8) { json!([]) } else { json!(addresses) },
            "conditions": [{"type": "Ready", "status": dice.one(&["True", "True", "False"])}]},
    })
}

fn node(dice: &mut Dice) -> Value {
    let zone = dice.one(&[json!("z1"), json!("z2"), Value::Null]);
    let labels =
        if zone.is_null() { json!({}) } else { json!({"topology.kubernetes.io/zone": zone}) };
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": dice.one(&["here", "there"]), "labels": labels}})
}
