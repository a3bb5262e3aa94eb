//! Cluster states as lists of manifests, and what is expected of them.

use std::net::IpAddr;

use serde_json::Value;
use veni_policy::index::Scope;
use veni_policy::object::{Object, Pod, Protocol, parse};
use veni_policy::oracle::{End, Family, Oracle, Verdict};
use veni_policy::security_group::SecurityGroups;

use crate::compiled::Compiled;

/// Who reaches whom: (from, to, allowed), each `*`, a namespace or `namespace/pod`; the last that matches holds, and
/// what none matches is allowed.
pub(crate) type Expect<'a> = &'a [(&'a str, &'a str, bool)];

/// Creates or replaces an object.
pub(crate) fn put(objects: &mut Vec<Value>, object: Value) {
    match objects.iter_mut().find(|other| identity(other) == identity(&object)) {
        Some(other) => *other = object,
        None => objects.push(object),
    }
}

/// Deletes an object.
pub(crate) fn remove(objects: &mut Vec<Value>, object: &Value) {
    objects.retain(|other| identity(other) != identity(object));
}

/// Kind, namespace and name.
pub(crate) fn identity(object: &Value) -> (&Value, &Value, &Value) {
    (&object["kind"], &object["metadata"]["namespace"], &object["metadata"]["name"])
}

/// The objects of manifests that have to be readable; what is wrong inside them is closed.
pub(crate) fn objects(manifests: &[Value]) -> Vec<Object> {
    let read = |manifest| parse(manifest).unwrap_or_else(|error| panic!("{error:?}: {manifest}"));
    manifests.iter().filter_map(read).collect()
}

/// As [`objects`], of manifests that have to be valid.
pub(crate) fn valid_objects(manifests: &[Value]) -> Vec<Object> {
    let objects = objects(manifests);
    for object in &objects {
        assert_eq!(object.diagnostics(), [], "{object:?}");
    }
    objects
}

/// The pods among objects.
pub(crate) fn pods(objects: &[Object]) -> Vec<&Pod> {
    objects
        .iter()
        .filter_map(|object| if let Object::Pod(pod) = object { Some(pod) } else { None })
        .collect()
}

/// A pod as an end.
pub(crate) fn end(pod: &Pod) -> End {
    End::pod(&pod.namespace, &pod.name)
}

/// Whether both have an address of the family.
pub(crate) fn share(one: &Pod, other: &Pod, family: Family) -> bool {
    let has =
        |pod: &Pod| pod.addresses.iter().any(|address: &IpAddr| Family::of(*address) == family);
    has(one) && has(other)
}

/// The IP protocol number of a name.
pub(crate) fn number(protocol: &str) -> u8 {
    match protocol {
        "ICMP" => 1,
        "ICMPv6" => 58,
        other => Protocol::parse(other).expect("one of the transport protocols").number(),
    }
}

/// Compares who reaches whom with what is expected, pod by pod, in every family that two pods share.
#[track_caller]
pub(crate) fn check_state(manifests: &[Value], protocol: &str, port: u16, expect: Expect<'_>) {
    let objects = valid_objects(manifests);
    let groups = SecurityGroups::default();
    let oracle = Oracle::new(&objects, &groups);
    compiler_agrees(&objects, &groups, &[], (number(protocol), port));
    let pods = pods(&objects);
    for from in &pods {
        for to in &pods {
            for family in [Family::V4, Family::V6] {
                if !share(from, to, family) {
                    continue;
                }
                let verdict = oracle.verdict(&end(from), &end(to), number(protocol), port, family);
                let what = format!("{protocol}/{port} {family:?}");
                compare(from, to, &what, expect, &verdict);
            }
        }
    }
}

/// Compares one connection, from a pod to a pod or an address or the other way round, with what is expected.
#[track_caller]
pub(crate) fn check_poke(objects: &[Object], poke: (&str, &str, &str, u16, bool)) {
    let (from, to, protocol, port, allowed) = poke;
    let groups = SecurityGroups::default();
    let end = |text: &str| match (text.parse::<IpAddr>(), text.split_once('/')) {
        (Ok(address), _) => (End::Address(address), Family::of(address)),
        (_, Some((namespace, name))) => (End::pod(namespace, name), Family::V4),
        _ => panic!("{text} is neither an address nor namespace/name"),
    };
    let ((source, one), (destination, other)) = (end(from), end(to));
    let oracle = Oracle::new(objects, &groups);
    let addresses = [from, to].map(str::parse).into_iter().flatten().collect::<Vec<IpAddr>>();
    compiler_agrees(objects, &groups, &addresses, (number(protocol), port));
    let verdict = oracle.verdict(&source, &destination, number(protocol), port, one.max(other));
    assert_eq!(verdict.allowed(), allowed, "{poke:?}: {verdict:?}");
}

/// That the compiler's tables say what the oracle says, on all pods and these addresses.
#[track_caller]
pub(crate) fn compiler_agrees(
    objects: &[Object],
    groups: &SecurityGroups,
    addresses: &[IpAddr],
    probe: (u8, u16),
) {
    let result =
        Compiled::with_peers(Scope::All, addresses.to_vec(), vec![probe]).at_once(objects, groups);
    result.unwrap_or_else(|error| panic!("compiled: {error}"));
}

#[track_caller]
fn compare(from: &Pod, to: &Pod, what: &str, expect: Expect<'_>, verdict: &Verdict) {
    let [source, destination] = [from, to].map(|pod| format!("{}/{}", pod.namespace, pod.name));
    let expected = source == destination || expected(expect, &source, &destination);
    assert_eq!(verdict.allowed(), expected, "{source} to {destination} {what}: {verdict:?}");
}

fn expected(expect: Expect<'_>, from: &str, to: &str) -> bool {
    let meets = |pattern: &str, pod: &str| {
        pattern == "*" || pattern == pod || pod.split('/').next() == Some(pattern)
    };
    let rule = expect
        .iter()
        .rev()
        .find(|(source, destination, _)| meets(source, from) && meets(destination, to));
    rule.is_none_or(|(_, _, allowed)| *allowed)
}
