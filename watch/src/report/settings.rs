//! Which nodes follow a NodeNetworkConfig: each writes its own entry of the object's status, a list whose key is the node.
//!
//! Server-side apply with a field manager a node: nobody's entry is lost, and an entry goes with its manager's next,
//! empty, word. Every write is told, as the whole object, to every node that watches, so there are few: one a node and
//! change, none where the list has [`MOST`] entries (the definition's bound too: what comes beyond it is in the metrics
//! alone), spread over [`Settings::spread`]; before that a node does not look either. The entry of a node that is gone is removed by the node before it in the list, which looks
//! after that one name every [`Settings::tidy`]; nobody asks for all nodes.

use std::{collections::BTreeMap, future::pending, sync::Arc};

use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{Desk, Followed, Standing, escaped, events::cut, text};
use crate::{
    Configuration, Resource,
    api::{Failure, Verb},
    backoff::Backoff,
};

/// Entries of a status at most: what a change costs grows with their square, times all nodes that watch.
const MOST: usize = 10;
/// Of an entry's message.
const LONGEST_MESSAGE: usize = 256;
/// A field manager's name, at most (apimachinery `FieldManagerMaxLength`).
const LONGEST: usize = 128;

/// What there was to say when it was said: by object, its UID and the entry.
type Said = BTreeMap<String, (String, Option<Followed>)>;

/// Writes until nobody tells.
pub(super) async fn write(
    desk: Desk,
    mut standing: watch::Receiver<Standing>,
    mut configuration: watch::Receiver<Arc<Configuration>>,
) {
    let mut backoff = Backoff::new(desk.settings.retry, desk.settings.retry_most);
    let mut said = Said::new();
    // When the objects are looked at again without news of this node.
    let mut look_at: Option<Instant> = None;
    loop {
        let mut wanted = now_wanted(&mut standing, &mut configuration);
        if wanted.as_ref().is_some_and(|wanted| is_news(&said, wanted)) {
            sleep(backoff.below(desk.settings.spread)).await;
            look_at = Some(Instant::now());
            wanted = now_wanted(&mut standing, &mut configuration);
        }
        // What else changes is no reason to look: all nodes hear of it in the same second.
        let due = look_at.is_some_and(|at| Instant::now() >= at);
        look_at = look_at.filter(|_| !due);
        if let Some(wanted) = wanted.filter(|_| due) {
            said.retain(|name, _| wanted.contains_key(name));
            let wait = match say(&desk, &wanted, &mut said).await {
                Ok(()) => {
                    backoff.reset();
                    backoff.between(desk.settings.tidy)
                }
                Err(_) => backoff.next(),
            };
            look_at = Some(Instant::now() + wait);
        }
        let later = async {
            match look_at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return },
            changed = configuration.changed() => if changed.is_err() { return },
            () = later => {}
        }
    }
}

fn now_wanted(
    standing: &mut watch::Receiver<Standing>,
    configuration: &mut watch::Receiver<Arc<Configuration>>,
) -> Option<Said> {
    let following = standing.borrow_and_update().following.clone();
    let now = configuration.borrow_and_update().clone();
    wanted(&now, following?.as_ref())
}

fn is_news(said: &Said, wanted: &Said) -> bool {
    wanted.iter().any(|(name, entry)| said.get(name) != Some(entry))
}

/// The entry of this node in each object there is; `None` before the objects were read.
fn wanted(configuration: &Configuration, following: Option<&Followed>) -> Option<Said> {
    let all = configuration.node_network_configs.as_ref()?;
    let entry = |(name, known): (&String, &crate::Known<_>)| {
        let followed = following.filter(|followed| followed.name == *name).cloned();
        (name.clone(), (known.uid.clone(), followed))
    };
    Some(all.iter().map(entry).collect())
}

async fn say(desk: &Desk, wanted: &Said, said: &mut Said) -> Result<(), Failure> {
    for (name, entry) in wanted {
        let followed = entry.1.is_some();
        if said.get(name) == Some(entry) && !followed {
            continue;
        }
        match of_object(desk, name, entry.1.as_ref()).await {
            Ok(()) => {}
            // It went, which the watch will tell.
            Err(failure) if failure.status() == Some(404) => {}
            Err(failure) => return Err(failure),
        }
        said.insert(name.clone(), entry.clone());
    }
    Ok(())
}

/// Brings this node's entry about, and looks after the one behind it.
async fn of_object(desk: &Desk, name: &str, entry: Option<&Followed>) -> Result<(), Failure> {
    let path = format!("{}/{}", Resource::NodeNetworkConfigs.path(), escaped(name));
    let object = desk.api.json(&path).await?;
    let entries = object.pointer("/status/nodes").and_then(Value::as_array);
    let entries = entries.map_or(&[][..], Vec::as_slice);
    let own = entries.iter().find(|found| text(found, "/name") == &*desk.node);
    let wanted = entry.map(|entry| as_entry(&desk.node, entry));
    if own != wanted.as_ref() && (own.is_some() || entries.len() < MOST) {
        apply(desk, name, &desk.node, wanted).await?;
    }
    let Some(next) = entry.and_then(|_| behind(entries, &desk.node)) else { return Ok(()) };
    match desk.api.json(&format!("/api/v1/nodes/{}", escaped(next))).await {
        Err(failure) if failure.status() == Some(404) => {
            tracing::info!(
                node = next,
                object = name,
                "a node that is gone is taken out of the status"
            );
            apply(desk, name, next, None).await
        }
        _ => Ok(()),
    }
}

fn as_entry(node: &str, followed: &Followed) -> Value {
    let mut entry = json!({"name": node, "generation": followed.generation});
    if let Some(message) = &followed.message {
        entry["message"] = cut(message, LONGEST_MESSAGE).into();
    }
    entry
}

/// The node after this one, in the ring of those that have an entry.
fn behind<'a>(entries: &'a [Value], node: &str) -> Option<&'a str> {
    let mut names: Vec<_> = entries.iter().map(|entry| text(entry, "/name")).collect();
    names.retain(|name| !name.is_empty() && *name != node);
    names.sort_unstable();
    names.iter().find(|name| **name > node).or_else(|| names.first()).copied()
}

async fn apply(desk: &Desk, object: &str, node: &str, entry: Option<Value>) -> Result<(), Failure> {
    let resource = Resource::NodeNetworkConfigs;
    let status = entry.map_or_else(|| json!({}), |entry| json!({"nodes": [entry]}));
    let body = json!({
        "apiVersion": resource.api_version(), "kind": resource.kind(),
        "metadata": {"name": object}, "status": status,
    });
    let (name, manager) = (escaped(object), escaped(&manager(node)));
    let path = format!("{}/{name}/status?fieldManager={manager}&force=true", resource.path());
    match desk.api.send(Verb::Apply, &path, &body).await {
        // Others were quicker: the list is full.
        Err(Failure::Refused { status: 422, .. }) => Ok(()),
        done => desk.count("patch nodenetworkconfigs/status", done).map(drop),
    }
}

/// One a node, with its name where that fits.
fn manager(node: &str) -> String {
    let manager = format!("veni-ipamd.{node}");
    if manager.len() <= LONGEST {
        return manager;
    }
    let hash = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("veni-ipamd.{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_looks_after_the_one_behind_it() {
        let entries = ["c", "a", "d"].map(|name| json!({"name": name}));
        for (node, expect) in [("a", "c"), ("b", "c"), ("c", "d"), ("d", "a"), ("e", "a")] {
            assert_eq!(behind(&entries, node), Some(expect), "{node}");
        }
        assert_eq!(behind(&[json!({"name": "a"})], "a"), None);
        assert_eq!(behind(&[], "a"), None);
    }

    /// Each entry is a write, and each write is sent to each node: 5,000 nodes are sent less than 300 MB by a change.
    #[test]
    fn a_change_costs_a_bounded_number_of_bytes() {
        let followed =
            Followed {
                name: "n".to_owned(), generation: i64::MAX, message: Some("ü".repeat(999))
            };
        let mut bytes = 0;
        let mut sizes = Vec::new();
        for entries in 1..=MOST {
            let names =
                (0..entries).map(|n| format!("ip-10-0-{n:03}-1.eu-central-1.compute.internal"));
            let fields = names.clone().map(|name| {
                json!({
                    "apiVersion": "veni.dev/v1alpha1", "fieldsType": "FieldsV1", "manager": manager(&name),
                    "operation": "Apply", "subresource": "status", "time": "2026-11-22T03:00:00Z",
                    "fieldsV1": {"f:status": {"f:nodes": {format!("k:{{\"name\":\"{name}\"}}"):
                        {".": {}, "f:generation": {}, "f:message": {}, "f:name": {}}}}},
                })
            });
            let object = json!({
                "metadata": {"managedFields": fields.collect::<Vec<_>>()},
                "status": {"nodes": names.map(|name| as_entry(&name, &followed)).collect::<Vec<_>>()},
            });
            sizes.push(object.to_string().len());
            bytes += object.to_string().len();
        }
        assert!(bytes < 60_000, "{bytes}: {sizes:?}");
    }

    #[test]
    fn a_field_managers_name_fits() {
        assert_eq!(manager("node-a"), "veni-ipamd.node-a");
        let long = ["a", "b"].map(|end| manager(&("n".repeat(200) + end)));
        assert!(long[0] != long[1] && long[0].len() <= LONGEST, "{long:?}");
    }
}
