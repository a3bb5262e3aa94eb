//! Which nodes follow a NodeNetworkConfig: each writes its own entry of the object's status, a list whose key is the node.
//!
//! Server-side apply with a field manager a node: nobody's entry is lost, and an entry goes with its manager's next,
//! empty, word. Every write is told to every node that watches, so there are few: one a node and change, none where the
//! list has [`MOST`] entries (the definition's bound too: what comes beyond it is in the metrics alone), spread over
//! [`Settings::spread`]. The entry of a node that is gone is removed by the node before it in the list, which looks
//! after that one name every [`Settings::tidy`]; nobody asks for all nodes.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};

use super::{Desk, Followed, Standing, escaped, text};
use crate::{
    Configuration, Resource,
    api::{Failure, Verb},
    backoff::Backoff,
};

/// Entries of a status at most.
const MOST: usize = 100;
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
    loop {
        let following = standing.borrow_and_update().following.clone();
        let now = configuration.borrow_and_update().clone();
        let wanted = following.and_then(|following| wanted(&now, following.as_ref()));
        let mut wait = backoff.between(desk.settings.tidy);
        if let Some(wanted) = wanted {
            said.retain(|name, _| wanted.contains_key(name));
            let news = wanted.iter().any(|(name, entry)| said.get(name) != Some(entry));
            if news {
                sleep(backoff.between(desk.settings.spread)).await;
            }
            match say(&desk, &wanted, &mut said).await {
                Ok(()) => backoff.reset(),
                Err(_) => wait = backoff.next(),
            }
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return },
            changed = configuration.changed() => if changed.is_err() { return },
            () = sleep(wait) => {}
        }
    }
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
        entry["message"] = message.as_str().into();
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

    #[test]
    fn a_field_managers_name_fits() {
        assert_eq!(manager("node-a"), "veni-ipamd.node-a");
        let long = ["a", "b"].map(|end| manager(&("n".repeat(200) + end)));
        assert!(long[0] != long[1] && long[0].len() <= LONGEST, "{long:?}");
    }
}
