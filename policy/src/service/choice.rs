//! Which endpoints serve: kube-proxy's pkg/proxy/topology.go (`CategorizeEndpoints`), for traffic from a pod.

use std::sync::Arc;

use super::{
    endpoints::{Endpoint, Endpoints},
    front_end::BackEnd,
    sources::Hint,
};

/// The back ends of traffic policy "Cluster": the ready ones that topology allows; with none of them, all that still
/// serve while they terminate.
pub(super) fn cluster(endpoints: &Endpoints) -> Arc<[BackEnd]> {
    let topology = topology(endpoints);
    let ready = pick(endpoints, |endpoint| endpoint.ready && topology(endpoint));
    if ready.is_empty() { pick(endpoints, serves_terminating) } else { ready }
}

/// The back ends of traffic policy "Local": the ready ones on our node, whatever the hints; with none of them, those
/// on our node that still serve while they terminate.
pub(super) fn local(endpoints: &Endpoints) -> Arc<[BackEnd]> {
    let ready = pick(endpoints, |endpoint| endpoint.local && endpoint.ready);
    if ready.is_empty() {
        pick(endpoints, |endpoint| endpoint.local && serves_terminating(endpoint))
    } else {
        ready
    }
}

/// `topologyModeFromHints`: hints count when every ready endpoint has one and one of them is for us; those for nodes
/// before those for zones. What they allow.
fn topology(endpoints: &Endpoints) -> fn(&Endpoint) -> bool {
    let in_force = |hint: fn(&Endpoint) -> Hint| {
        let mut ready = endpoints.values().filter(|endpoint| endpoint.ready).map(hint);
        let mut here = false;
        ready.all(|hint| {
            here |= hint == Hint::Here;
            hint != Hint::Absent
        }) && here
    };
    if in_force(|endpoint| endpoint.node_hint) {
        |endpoint| endpoint.node_hint == Hint::Here
    } else if in_force(|endpoint| endpoint.zone_hint) {
        |endpoint| endpoint.zone_hint == Hint::Here
    } else {
        |_| true
    }
}

fn serves_terminating(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// In the order of the back ends, so that equal lists compare equal.
fn pick(endpoints: &Endpoints, wanted: impl Fn(&Endpoint) -> bool) -> Arc<[BackEnd]> {
    let picked = endpoints.iter().filter(|(_, endpoint)| wanted(endpoint));
    picked.map(|(back_end, _)| *back_end).collect()
}
