//! The node's condition, its startup taint, and its capacity for pods with security groups.
//!
//! The condition is the well-known `NetworkUnavailable` (ADR 0019): while it is true the node lifecycle controller keeps
//! new pods away with a `NoSchedule` taint of its own, and touches none that run. It is written when it differs from what
//! the Node has, and anew for a Node that was registered anew; there are no heartbeats.
//!
//! EKS' webhook has each pod that a SecurityGroupPolicy selects request a branch ENI (`vpc.amazonaws.com/pod-eni`), which no
//! node without a trunk offers: such pods would never be scheduled. Here they need none, so that as many fit as pods do
//! (ADR 0022). Said where there are such policies and nobody else says a number; the kubelet takes it back to zero when the
//! machine has booted.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};

use super::{Desk, Network, Standing, escaped, now, text};
use crate::{
    Configuration,
    api::{Failure, Verb},
    backoff::Backoff,
    configuration::POD_ENI,
};

const CONDITION: &str = "NetworkUnavailable";

/// Writes until nobody tells.
pub(super) async fn write(
    desk: Desk,
    mut standing: watch::Receiver<Standing>,
    mut configuration: watch::Receiver<Arc<Configuration>>,
) {
    let mut backoff = Backoff::new(desk.settings.retry, desk.settings.retry_most);
    // For whom and what was written last.
    let mut written: Option<(String, Standing)> = None;
    loop {
        let wanted = only_ours(&standing.borrow_and_update());
        let now = configuration.borrow_and_update().clone();
        let offers = now.has_group_policies;
        let lacks =
            now.node.as_ref().is_some_and(|node| offers && is_none(node.pod_enis.as_deref()));
        let due = now.node.as_ref().map(|node| (node.uid.clone(), wanted));
        let due = due.filter(|due| {
            let some = due.1.network.is_some() || taint(&due.1).is_some();
            lacks || some && written.as_ref() != Some(due)
        });
        let mut again = None;
        if let Some((uid, wanted)) = due {
            match bring_about(&desk, &wanted, offers).await {
                Ok(()) => {
                    backoff.reset();
                    written = Some((uid, wanted));
                }
                // Asked for again when the Node is there.
                Err(failure) if failure.status() == Some(404) => written = Some((uid, wanted)),
                Err(_) => again = Some(backoff.next()),
            }
        }
        let later = async {
            match again {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return },
            changed = configuration.changed() => if changed.is_err() { return },
            () = later => {}
        }
    }
}

fn only_ours(standing: &Standing) -> Standing {
    Standing { following: None, ..standing.clone() }
}

/// The taint that is to go.
fn taint(standing: &Standing) -> Option<&str> {
    standing.startup_taint.as_deref().filter(|_| standing.able)
}

async fn bring_about(desk: &Desk, wanted: &Standing, offers: bool) -> Result<(), Failure> {
    let path = format!("/api/v1/nodes/{}", escaped(&desk.node));
    let node = desk.api.json(&path).await?;
    if let Some(change) = wanted.network.as_ref().and_then(|network| condition(&node, network)) {
        let done = desk.api.send(Verb::StrategicPatch, &format!("{path}/status"), &change).await;
        desk.count("patch nodes/status", done)?;
    }
    if let Some(change) = taint(wanted).and_then(|key| without_taint(&node, key)) {
        let done = desk.api.send(Verb::JsonPatch, &path, &change).await;
        desk.count("patch nodes", done)?;
        tracing::info!(taint = taint(wanted), "the startup taint is removed: pods may come");
    }
    // Last: whoever refuses it does not hold back what all pods wait for.
    if let Some(change) = capacity(&node).filter(|_| offers) {
        let done = desk.api.send(Verb::StrategicPatch, &format!("{path}/status"), &change).await;
        desk.count("patch nodes/status", done)?;
        let pods = text(&node, "/status/capacity/pods");
        tracing::info!(pods, resource = POD_ENI, "pods of SecurityGroupPolicies fit on this node");
    }
    Ok(())
}

fn is_none(capacity: Option<&str>) -> bool {
    capacity.is_none_or(|number| number == "0")
}

/// The change that lets as many pods with security groups come as pods can; `None`: there is a number already, ours or that
/// of EKS' controller for a node with a trunk ENI, or the kubelet has not said yet how many pods can.
fn capacity(node: &Value) -> Option<Value> {
    let capacity = node.pointer("/status/capacity")?;
    let pods = capacity.get("pods")?;
    let present = capacity.get(POD_ENI).and_then(Value::as_str);
    is_none(present).then(|| json!({"status": {"capacity": {POD_ENI: pods}}}))
}

/// The change that makes it so; `None`: it is.
fn condition(node: &Value, wanted: &Network) -> Option<Value> {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let is_it = |found: &&Value| text(found, "/type") == CONDITION;
    let present = conditions.into_iter().flatten().find(is_it);
    let status = if wanted.available { "False" } else { "True" };
    let is = |field: &str, value: &str| present.is_some_and(|found| text(found, field) == value);
    if is("/status", status) && is("/reason", wanted.reason) && is("/message", &wanted.message) {
        return None;
    }
    let time = format!("{:.0}", now());
    let since =
        present.filter(|_| is("/status", status)).map(|found| text(found, "/lastTransitionTime"));
    let since = since.filter(|since| !since.is_empty()).unwrap_or(&time);
    Some(json!({"status": {"conditions": [{
        "type": CONDITION, "status": status, "reason": wanted.reason, "message": wanted.message,
        "lastHeartbeatTime": time, "lastTransitionTime": since,
    }]}}))
}

/// The change that takes the taints of this key away, and fails where taints have changed meanwhile; `None`: there is none.
fn without_taint(node: &Value, key: &str) -> Option<Value> {
    let taints = node.pointer("/spec/taints")?;
    let left: Vec<_> =
        taints.as_array()?.iter().filter(|taint| text(taint, "/key") != key).cloned().collect();
    let test = json!({"op": "test", "path": "/spec/taints", "value": taints});
    (left.len() < taints.as_array()?.len())
        .then(|| json!([test, {"op": "replace", "path": "/spec/taints", "value": left}]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(available: bool, message: &str) -> Network {
        Network { available, reason: "PodAddresses", message: message.to_owned() }
    }

    #[test]
    fn the_condition_is_written_when_it_differs_and_its_time_moves_with_its_status() {
        let with = |status: &str, message: &str| {
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {
                "type": "NetworkUnavailable", "status": status, "reason": "PodAddresses", "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
        };
        let moved = |node: &Value, wanted: &Network| {
            condition(node, wanted).map(|change| {
                text(&change, "/status/conditions/0/lastTransitionTime") != "2026-01-01T00:00:00Z"
            })
        };
        assert_eq!(moved(&json!({}), &network(true, "m")), Some(true));
        assert_eq!(moved(&with("False", "m"), &network(true, "m")), None);
        assert_eq!(moved(&with("False", "m"), &network(true, "n")), Some(false));
        assert_eq!(moved(&with("False", "m"), &network(false, "m")), Some(true));
        let change = condition(&json!({}), &network(false, "m")).unwrap();
        assert_eq!(text(&change, "/status/conditions/0/status"), "True");
    }

    #[test]
    fn pods_with_groups_fit_as_pods_do_unless_somebody_says_a_number() {
        let check = |capacity: Value, expected: Option<&str>| {
            let node = json!({"status": {"capacity": capacity}});
            let offered = super::capacity(&node)
                .map(|change| change["status"]["capacity"][POD_ENI].as_str().map(str::to_owned));
            assert_eq!(offered, expected.map(|pods| Some(pods.to_owned())), "{node}");
        };
        check(json!({"pods": "58"}), Some("58"));
        check(json!({"pods": "58", POD_ENI: "0"}), Some("58"));
        check(json!({"pods": "58", POD_ENI: "58"}), None);
        check(json!({"pods": "58", POD_ENI: "9"}), None);
        check(json!({}), None);
    }

    #[test]
    fn only_the_startup_taint_goes() {
        let (ours, other) = (json!({"key": "a/b", "effect": "NoSchedule"}), json!({"key": "c"}));
        let node = json!({"spec": {"taints": [other, ours]}});
        let change = without_taint(&node, "a/b").unwrap();
        assert_eq!(change[1]["value"], json!([{"key": "c"}]));
        assert_eq!(change[0]["value"], node["spec"]["taints"]);
        assert_eq!(without_taint(&node, "a/x"), None);
        assert_eq!(without_taint(&json!({"spec": {}}), "a/b"), None);
    }
}
