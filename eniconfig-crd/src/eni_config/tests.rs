use serde_json::json;

use super::*;

fn parsed(spec: &Value) -> Result<EniConfig, Vec<String>> {
    let object = json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig",
        "metadata": {"name": "us-west-2a"}, "spec": spec,
    });
    EniConfig::parse(&object)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_spec_says_where_enis_are_made_and_what_guards_them() {
    let check = |spec: Value, subnets: SubnetChoice, security_groups: GroupChoice| {
        let expected =
            EniConfig { name: "us-west-2a".to_owned(), subnets, security_groups, notes: vec![] };
        assert_eq!(parsed(&spec), Ok(expected), "{spec}");
    };
    let subnets =
        |ids: &[&str]| SubnetChoice::Ids(ids.iter().map(|id| id.parse().unwrap()).collect());
    let groups =
        |ids: &[&str]| GroupChoice::Ids(ids.iter().map(|id| id.parse().unwrap()).collect());
    // As in AWS's documentation of custom networking.
    check(
        json!({"securityGroups": ["sg-0a1b", "sg-0c2d"], "subnet": "subnet-0a1b"}),
        subnets(&["subnet-0a1b"]),
        groups(&["sg-0a1b", "sg-0c2d"]),
    );
    check(json!({"subnet": "subnet-1"}), subnets(&["subnet-1"]), GroupChoice::OfPrimary);
    check(
        json!({"subnet": "subnet-1", "securityGroups": []}),
        subnets(&["subnet-1"]),
        GroupChoice::OfPrimary,
    );
    check(
        json!({"subnet": "subnet-2", "subnets": ["subnet-1", "subnet-2", "subnet-3"], "securityGroups": ["sg-1", "sg-1"]}),
        subnets(&["subnet-2", "subnet-1", "subnet-3"]),
        groups(&["sg-1"]),
    );
    check(
        json!({"subnetTags": {"pods": "*", "team": "a"}, "securityGroupTags": {"pods": "yes"}}),
        SubnetChoice::Tags(tags(&[("pods", "*"), ("team", "a")])),
        GroupChoice::Tags(tags(&[("pods", "yes")])),
    );
}

#[test]
fn what_is_wrong_is_told_in_one_go_and_nothing_is_taken_by_half() {
    let check = |spec: Value, expected: &[&str]| {
        let problems = parsed(&spec).expect_err(&spec.to_string());
        let found: Vec<&str> =
            problems.iter().map(|problem| problem.split(": ").next().unwrap_or_default()).collect();
        assert_eq!(found, expected, "{spec}: {problems:?}");
    };
    check(json!({}), &["spec.subnet"]);
    check(json!({"subnet": ""}), &["spec.subnet"]);
    check(
        json!({"subnet": "eni-1", "securityGroups": ["sg-1", "x"]}),
        &["spec.subnet", "spec.securityGroups[1]"],
    );
    check(json!({"subnet": "subnet-1", "subnets": ["y"]}), &["spec.subnets[0]"]);
    check(json!({"subnet": "subnet-1", "subnetTags": {"a": "b"}}), &["spec.subnetTags"]);
    check(json!({"subnetTags": {}}), &["spec.subnetTags"]);
    check(json!({"subnetTags": {"": "b"}}), &["spec.subnetTags"]);
    check(
        json!({"subnet": "subnet-1", "securityGroups": ["sg-1"], "securityGroupTags": {"a": "b"}}),
        &["spec.securityGroupTags"],
    );
    check(json!({"subnet": "subnet-1", "securityGroupTags": {}}), &["spec.securityGroupTags"]);
    check(json!({"subnet": ["subnet-1"]}), &["spec"]);
    check(json!([]), &["spec"]);
    assert!(EniConfig::parse(&json!({"metadata": {"name": "a"}})).is_err(), "no spec");
    assert!(EniConfig::parse(&json!({"spec": {"subnet": "subnet-1"}})).is_err(), "no name");
}

#[test]
fn a_field_that_is_not_known_is_noted() {
    let read = parsed(&json!({"subnet": "subnet-1", "subnetz": ["subnet-2"]})).unwrap();
    assert_eq!(read.notes.len(), 1);
    assert_eq!(read.notes[0].field, "spec.subnetz");
}

/// The order of aws-node: the external label, the annotation, the label, `default`; what is there decides, even if it is
/// empty.
#[test]
fn a_nodes_eni_config_is_named_in_awss_order() {
    let external = (EXTERNAL_LABEL, "external");
    let check = |labels: &[(&str, &str)],
                 annotations: &[(&str, &str)],
                 keys: &Keys,
                 name: &str,
                 by: ChosenBy| {
        let expected = Chosen { name: name.to_owned(), by };
        assert_eq!(
            chosen(&tags(labels), &tags(annotations), keys),
            expected,
            "{labels:?} {annotations:?} {keys:?}"
        );
    };
    let standard = Keys::default();
    let (annotation, label) =
        (ChosenBy::Annotation(DEFAULT_KEY.to_owned()), ChosenBy::Label(DEFAULT_KEY.to_owned()));
    check(&[], &[], &standard, "default", ChosenBy::Default);
    check(&[(DEFAULT_KEY, "l")], &[], &standard, "l", label.clone());
    check(&[(DEFAULT_KEY, "l")], &[(DEFAULT_KEY, "a")], &standard, "a", annotation.clone());
    check(
        &[external, (DEFAULT_KEY, "l")],
        &[(DEFAULT_KEY, "a")],
        &standard,
        "external",
        ChosenBy::ExternalLabel,
    );
    check(&[], &[external], &standard, "default", ChosenBy::Default);
    check(&[(DEFAULT_KEY, "l")], &[(DEFAULT_KEY, "")], &standard, "", annotation);
    check(&[(EXTERNAL_LABEL, ""), (DEFAULT_KEY, "l")], &[], &standard, "", ChosenBy::ExternalLabel);
    let zone = "topology.kubernetes.io/zone";
    let by_zone = Keys { annotation: "x/eni".to_owned(), label: zone.to_owned() };
    check(
        &[(zone, "us-west-2a"), (DEFAULT_KEY, "l")],
        &[],
        &by_zone,
        "us-west-2a",
        ChosenBy::Label(zone.to_owned()),
    );
    check(&[(DEFAULT_KEY, "l")], &[(DEFAULT_KEY, "a")], &by_zone, "default", ChosenBy::Default);
    check(
        &[(zone, "z")],
        &[("x/eni", "a")],
        &by_zone,
        "a",
        ChosenBy::Annotation("x/eni".to_owned()),
    );
}
