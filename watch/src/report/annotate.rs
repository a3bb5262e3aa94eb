//! Pods' annotations with their addresses.
//!
//! What waits is by pod, so that it is not lost behind events and not more than the node has pods; what the API server could
//! not take is tried again, as it is by then. Written through the pod's status, because the right to that is less than one to
//! the pod: nobody could put another image into it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::json;
use tokio::{sync::watch, time::sleep};

use super::{About, Desk, escaped};
use crate::{
    api::{Failure, Verb},
    backoff::Backoff,
};

/// The AWS VPC CNI's.
const ANNOTATION: &str = "vpc.amazonaws.com/pod-ips";
/// A node has fewer pods.
const MOST: usize = 4096;

/// Pods with the addresses that they are to be annotated with.
pub(super) type Addresses = BTreeMap<About, String>;

/// Has it written. `false`: too many wait.
pub(super) fn tell(waiting: &watch::Sender<Addresses>, pod: About, addresses: String) -> bool {
    waiting.send_if_modified(|all| {
        let fits = all.len() < MOST || all.contains_key(&pod);
        if fits {
            all.insert(pod, addresses);
        }
        fits
    })
}

/// Writes what waits, with the runtime that it is spawned on.
pub(super) async fn write(desk: Desk, waiting: Arc<watch::Sender<Addresses>>) {
    let mut backoff = Backoff::new(desk.settings.retry, desk.settings.retry_most);
    let mut told = waiting.subscribe();
    loop {
        let Ok(all) = told.wait_for(|all| !all.is_empty()).await.map(|all| all.clone()) else {
            return;
        };
        let mut wait = Duration::ZERO;
        for (pod, addresses) in all {
            if is_to_come(pod_annotated(&desk, &pod, &addresses).await) {
                wait = backoff.next();
                break;
            }
            backoff.reset();
            // Unless it has other addresses by now.
            waiting.send_if_modified(|all| {
                let same = all.get(&pod) == Some(&addresses);
                same && all.remove(&pod).is_some()
            });
        }
        sleep(wait).await;
    }
}

/// Whether it is to be tried again: the API server has not decided about it.
fn is_to_come(done: Result<(), Failure>) -> bool {
    match done {
        Ok(()) => false,
        Err(Failure::Unreachable(_)) => true,
        Err(failure) => failure.status().is_some_and(|status| status == 429 || status >= 500),
    }
}

/// A pod of that name with another UID is left alone: the API server refuses (409).
async fn pod_annotated(desk: &Desk, pod: &About, addresses: &str) -> Result<(), Failure> {
    let About::Pod { namespace, name, uid } = pod else { return Ok(()) };
    let (namespace, name) = (escaped(namespace), escaped(name));
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
    let mut metadata = json!({"annotations": {ANNOTATION: addresses}});
    if let Some(uid) = uid {
        metadata["uid"] = uid.as_str().into();
    }
    let change = json!({"metadata": metadata});
    let done = desk.api.send(Verb::MergePatch, &path, &change).await;
    desk.count("patch pods/status", done).map(drop)
}
