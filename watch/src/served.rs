//! Whether the API server has a resource at all, for one that it answered 404 for.
//!
//! A 404 alone says little: something else may answer at that address, and a resource may be there in another version only,
//! with objects that nobody here would know of. So the server is asked what it has.

use serde_json::Value;

use crate::{
    api::{Api, Failure},
    resource::Resource,
};

/// Whether a resource is there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// As it is read here.
    Here,
    /// In these versions only.
    Otherwise(Vec<String>),
    /// No.
    Not,
}

/// Asks.
pub(crate) async fn ask(api: &Api, resource: Resource) -> Result<Served, Failure> {
    let groups = api.json("/apis").await?;
    let versions = if resource.group().is_empty() {
        vec![resource.api_version()]
    } else {
        versions(&groups, resource.group())?
    };
    let mut having = Vec::new();
    for version in versions {
        let root = if resource.group().is_empty() { "api" } else { "apis" };
        let found = match api.json(&format!("/{root}/{version}")).await {
            Ok(list) => has(&list, resource.plural())?,
            // It went between two questions.
            Err(failure) if failure.status() == Some(404) => false,
            Err(failure) => return Err(failure),
        };
        if found {
            having.push(version);
        }
    }
    Ok(if having.contains(&resource.api_version()) {
        Served::Here
    } else if having.is_empty() {
        Served::Not
    } else {
        Served::Otherwise(having)
    })
}

/// The versions of a group, of an `APIGroupList`.
fn versions(groups: &Value, group: &str) -> Result<Vec<String>, Failure> {
    let no_list = || Failure::Garbled("no list of API groups".to_owned());
    let list = groups.get("groups").and_then(Value::as_array).ok_or_else(no_list)?;
    let is_it = |found: &&Value| found.get("name").and_then(Value::as_str) == Some(group);
    let versions = list.iter().find(is_it).and_then(|found| found.get("versions")?.as_array());
    let name = |version: &Value| version.get("groupVersion")?.as_str().map(str::to_owned);
    Ok(versions.into_iter().flatten().filter_map(name).collect())
}

/// Whether an `APIResourceList` has it.
fn has(list: &Value, plural: &str) -> Result<bool, Failure> {
    let no_list = || Failure::Garbled("no list of resources".to_owned());
    let resources = list.get("resources").and_then(Value::as_array).ok_or_else(no_list)?;
    Ok(resources.iter().any(|found| found.get("name").and_then(Value::as_str) == Some(plural)))
}
