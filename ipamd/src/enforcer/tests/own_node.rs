//! What the node itself is to its pods, from the objects to the answer.

use veni_core::wire::inspect::policy::Flow;
use veni_policy::view::{End, Question};

use super::*;

const NODE: [u8; 4] = [10, 0, 0, 9];
/// Another address of the node, which its object does not name.
const NODE_TOO: [u8; 4] = [172, 17, 0, 1];

fn node(role: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n1", "labels": {"role": role}},
        "status": {"addresses": [{"type": "InternalIP", "address": IpAddr::from(NODE)}]},
    })
}

fn no_egress() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "out"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
    })
}

fn deny_workers() -> Value {
    let to = json!([{"nodes": {"matchLabels": {"role": "worker"}}}]);
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "workers"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "egress": [{"action": "Deny", "to": to}]},
    })
}

fn flow(bench: &Bench, to: [u8; 4]) -> Flow {
    let from = End::Pod { namespace: "x".to_owned(), name: "a".to_owned() };
    let to = End::Address(to.into());
    let question = Question { from, to, protocol: 6, port: 10250 };
    match bench.enforcer.query(&Query::Check(question)).unwrap() {
        Answer::Flows(mut flows) => flows.flows.pop().expect("one"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_policy_that_names_nodes_closes_the_own_one_and_is_named() {
    let mut bench = Bench::new();
    bench.enforcer.node_addresses([NODE, NODE_TOO].map(IpAddr::from).into(), bench.now);
    let mut pod = pod("u1");
    pod["status"] = json!({"podIP": "10.0.0.1"});
    bench.objects(&[pod, node("worker"), no_egress()]);
    bench.attach(7, Some("u1")).try_recv().expect("judged at once");
    let check = |bench: &Bench, open: [bool; 3]| {
        for (to, open) in [NODE, NODE_TOO, [10, 0, 0, 8]].into_iter().zip(open) {
            let flow = flow(bench, to);
            assert_eq!(flow.allowed, open, "{flow:?}");
        }
    };
    check(&bench, [true, true, false]);
    let before = bench.plane.0.lock().unwrap().epochs;
    bench.objects(&[deny_workers()]);
    check(&bench, [false, false, false]);
    assert!(bench.plane.0.lock().unwrap().epochs > before, "flows that run are judged again");
    let decided = format!("{:?}", flow(&bench, NODE).decided_by.egress);
    assert!(decided.contains("workers"), "{decided}");
    let told = bench.enforcer.query(&Query::Explain(PodKey::new("x", "a"))).unwrap();
    let told = format!("{told:?}");
    assert!(
        told.contains("10.0.0.9 (this node)") && told.contains("172.17.0.1 (this node)"),
        "{told}"
    );
    bench.enforcer.node_addresses([IpAddr::from(NODE)].into(), bench.now);
    check(&bench, [false, false, false]);
    bench.objects(&[node("control")]);
    check(&bench, [true, false, false]);
}
