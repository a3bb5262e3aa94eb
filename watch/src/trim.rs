//! Reading JSON without what nothing here depends on, so that it is never in memory.
//!
//! What is left out is named, and all else is kept: a policy with a field that is not known has to fail closed, and a
//! field that policy's objects begin to read is there. Half of a pod is who changed which field when.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::resource::Resource;

/// Fields that are left out, and what is left out further down. A list's items are as the list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trim(&'static [(&'static str, Option<Self>)]);

const NOTHING: Trim = Trim(&[]);
const METADATA: Trim = Trim(&[("managedFields", None), ("ownerReferences", None)]);
const CONTAINER: Trim = Trim(&[
    ("args", None),
    ("command", None),
    ("env", None),
    ("envFrom", None),
    ("lifecycle", None),
    ("livenessProbe", None),
    ("readinessProbe", None),
    ("resources", None),
    ("securityContext", None),
    ("startupProbe", None),
    ("volumeMounts", None),
]);
const POD: Trim = Trim(&[
    ("metadata", Some(METADATA)),
    (
        "spec",
        Some(Trim(&[
            ("affinity", None),
            ("containers", Some(CONTAINER)),
            ("ephemeralContainers", None),
            ("initContainers", Some(CONTAINER)),
            ("tolerations", None),
            ("topologySpreadConstraints", None),
            ("volumes", None),
        ])),
    ),
    (
        "status",
        Some(Trim(&[
            ("containerStatuses", None),
            ("ephemeralContainerStatuses", None),
            ("initContainerStatuses", None),
        ])),
    ),
]);
const NODE: Trim = Trim(&[
    ("metadata", Some(METADATA)),
    (
        "status",
        Some(Trim(&[
            ("conditions", None),
            ("images", None),
            ("nodeInfo", None),
            ("volumesAttached", None),
            ("volumesInUse", None),
        ])),
    ),
]);
const OTHER: Trim = Trim(&[("metadata", Some(METADATA))]);

impl Trim {
    const fn of(resource: Resource) -> Self {
        match resource {
            Resource::Pods => POD,
            Resource::OwnNode | Resource::OtherNodes => NODE,
            _ => OTHER,
        }
    }

    /// Reads an object of this resource.
    pub(crate) fn object(resource: Resource, json: &[u8]) -> serde_json::Result<Value> {
        read(Seed { trim: Self::of(resource), below: None }, json)
    }

    /// Reads an event of a watch: `{"type": …, "object": …}`.
    pub(crate) fn event(resource: Resource, json: &[u8]) -> serde_json::Result<Value> {
        read(Seed { trim: Self::of(resource), below: Some("object") }, json)
    }

    /// Reads a list: `{"metadata": …, "items": […]}`.
    pub(crate) fn list(resource: Resource, json: &[u8]) -> serde_json::Result<Value> {
        read(Seed { trim: Self::of(resource), below: Some("items") }, json)
    }

    /// `None`: it is left out.
    fn field(self, name: &str) -> Option<Self> {
        match self.0.iter().find(|(field, _)| *field == name) {
            Some((_, below)) => *below,
            None => Some(NOTHING),
        }
    }
}

fn read(seed: Seed, json: &[u8]) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Reads a value; with `below` it is an envelope whose field of that name is trimmed.
#[derive(Clone, Copy)]
struct Seed {
    trim: Trim,
    below: Option<&'static str>,
}

impl Seed {
    fn field(self, name: &str) -> Option<Self> {
        match self.below {
            Some(below) if below == name => Some(Self { below: None, ..self }),
            Some(_) => Some(Self { trim: NOTHING, below: None }),
            None => self.trim.field(name).map(|trim| Self { trim, below: None }),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut read = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            read.push(item);
        }
        Ok(Value::Array(read))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut read = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            match self.field(&name) {
                Some(seed) => drop(read.insert(name, fields.next_value_seed(seed)?)),
                None => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(read))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_named_is_left_out_and_all_else_is_kept() {
        let check = |resource: Resource, full: Value, expected: Value| {
            let text = full.to_string();
            assert_eq!(Trim::object(resource, text.as_bytes()).unwrap(), expected);
            let event = json!({"type": "ADDED", "object": full, "managedFields": 1});
            let expected_event = json!({"type": "ADDED", "object": expected, "managedFields": 1});
            assert_eq!(
                Trim::event(resource, event.to_string().as_bytes()).unwrap(),
                expected_event
            );
            let list = json!({"metadata": {"continue": "x"}, "items": [full, full]});
            let expected = json!({"metadata": {"continue": "x"}, "items": [expected, expected]});
            assert_eq!(Trim::list(resource, list.to_string().as_bytes()).unwrap(), expected);
        };
        check(
            Resource::Pods,
            json!({"metadata": {"name": "a", "managedFields": [{"f": 1}]}, "spec": {"volumes": [1], "containers": [
                {"name": "c", "env": [], "ports": [{"containerPort": 80, "env": 1}]}]},
                "status": {"podIP": "10.0.0.1", "containerStatuses": [{}]}}),
            json!({"metadata": {"name": "a"}, "spec": {"containers": [
                {"name": "c", "ports": [{"containerPort": 80, "env": 1}]}]}, "status": {"podIP": "10.0.0.1"}}),
        );
        // A policy is kept whole, whatever a field is called.
        let policy = json!({"metadata": {"name": "a"}, "spec": {"volumes": true, "managedFields": -1, "x": [1.5, null, 7]}});
        check(Resource::NetworkPolicies, policy.clone(), policy.clone());
        check(Resource::ClusterNetworkPolicies, policy.clone(), policy);
    }

    /// What policy reads of an object is the same with and without trimming.
    #[test]
    fn policy_reads_the_same_of_a_trimmed_object() {
        let check = |resource: Resource, object: Value| {
            let trimmed = Trim::object(resource, object.to_string().as_bytes()).unwrap();
            let whole = veni_policy::object::parse(&object).unwrap().unwrap();
            assert_eq!(veni_policy::object::parse(&trimmed), Ok(Some(whole)));
        };
        check(
            Resource::Pods,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "namespace": "x", "name": "a", "uid": "u", "labels": {"app": "a"}, "managedFields": [],
                    "annotations": {"vpc.amazonaws.com/security-groups": "sg-1"},
                    "creationTimestamp": "2025-11-21T09:30:00Z", "deletionTimestamp": "2025-11-21T09:31:00Z",
                },
                "spec": {
                    "nodeName": "n", "serviceAccountName": "s", "hostNetwork": false, "volumes": [{"name": "v"}],
                    "initContainers": [{"name": "i", "restartPolicy": "Always", "ports": [{"containerPort": 9000, "name": "m"}]}],
                    "containers": [{"name": "c", "env": [{"name": "E"}], "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.9", "protocol": "UDP"}]}],
                },
                "status": {
                    "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                    "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [{"name": "c"}],
                },
            }),
        );
        check(
            Resource::OwnNode,
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"z": "a"}},
                "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.9"}], "images": [{}], "conditions": [{}]},
            }),
        );
    }
}
