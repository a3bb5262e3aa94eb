//! Pods' annotations with their addresses.
//!
//! What waits is by pod, so that it is not lost behind events and not more than the node has pods; what the API server could
//! not take is tried again, as it is by then. Written through the pod's status, because the right to that is less than one to
//! the pod: nobody could put another image into it.

use std::{collections::BTreeMap, sync::Arc};

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
        let mut is_left = false;
        for (pod, addresses) in all {
            match become_of(pod_annotated(&desk, &pod, &addresses).await) {
                Outcome::Decided => {}
                // Another pod may well be: an admission webhook that is down is of some namespaces.
                Outcome::Undecided => {
                    is_left = true;
                    continue;
                }
                Outcome::Unheard => {
                    is_left = true;
                    break;
                }
            }
            // Unless it has other addresses by now.
            waiting.send_if_modified(|all| {
                let same = all.get(&pod) == Some(&addresses);
                same && all.remove(&pod).is_some()
            });
        }
        if is_left {
            sleep(backoff.next()).await;
        } else {
            backoff.reset();
        }
    }
}

/// What became of an annotation.
enum Outcome {
    /// It was written, or is refused for good.
    Decided,
    /// It is to be tried again.
    Undecided,
    /// It is to be tried again, and so is every other.
    Unheard,
}

fn become_of(done: Result<(), Failure>) -> Outcome {
    let Err(failure) = done else { return Outcome::Decided };
    match (&failure, failure.status()) {
        (Failure::Unreachable(_), _) | (_, Some(429)) => Outcome::Unheard,
        (_, Some(500..)) => Outcome::Undecided,
        _ => Outcome::Decided,
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
