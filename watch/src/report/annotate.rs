//! A pod's annotation with its addresses.

use serde_json::json;

use super::{About, Desk, escaped};
use crate::api::Verb;

/// The AWS VPC CNI's.
const ANNOTATION: &str = "vpc.amazonaws.com/pod-ips";

/// Writes it. A pod of that name with another UID is left alone: the API server refuses (409).
pub(super) async fn pod(desk: &Desk, pod: About, addresses: &str) {
    let About::Pod { namespace, name, uid } = pod else { return };
    let path = format!("/api/v1/namespaces/{}/pods/{}", escaped(&namespace), escaped(&name));
    let mut metadata = json!({"annotations": {ANNOTATION: addresses}});
    if let Some(uid) = uid {
        metadata["uid"] = uid.into();
    }
    let change = json!({"metadata": metadata});
    let done = desk.api.send(Verb::MergePatch, &path, &change).await;
    drop(desk.count("patch pods", done));
}
