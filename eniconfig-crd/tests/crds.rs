//! The chart's CustomResourceDefinitions are those of the types, and AWS's objects fit them.

#![expect(clippy::disallowed_methods, reason = "the shipped files are read; the crate reads none")]

use std::{fs, path::Path};

use serde_json::Value;
use veni_eniconfig_crd::{EniConfig, GroupChoice, SubnetChoice, definitions};

#[test]
fn the_chart_has_the_definitions_that_the_types_make() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/veni/crds");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let definitions = definitions();
    assert_eq!(files, definitions.iter().map(|(file, _)| *file).collect::<Vec<_>>());
    for (file, definition) in definitions {
        let shipped = fs::read_to_string(folder.join(file)).unwrap();
        assert!(
            shipped == serde_saphyr::to_string(&definition).unwrap(),
            "{file} differs from its type: run `cargo run -p veni-eniconfig-crd --example crds`"
        );
    }
}

#[test]
fn the_definitions_are_those_that_aws_has() {
    let check = |file: &str, name: &str, version: &str, scope: &str| {
        let definitions = definitions();
        let (_, found) = definitions.iter().find(|(of, _)| *of == file).unwrap();
        assert_eq!(found.metadata.name.as_deref(), Some(name));
        assert_eq!(found.spec.scope, scope);
        assert_eq!(
            found.spec.versions.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(),
            [version]
        );
        assert!(found.spec.versions[0].served && found.spec.versions[0].storage);
    };
    check("eniconfigs.yaml", "eniconfigs.crd.k8s.amazonaws.com", "v1alpha1", "Cluster");
    check(
        "securitygrouppolicies.yaml",
        "securitygrouppolicies.vpcresources.k8s.aws",
        "v1beta1",
        "Namespaced",
    );
    check("nodenetworkconfigs.yaml", "nodenetworkconfigs.veni.dev", "v1alpha1", "Cluster");
    check("resolvedsecuritygroups.yaml", "resolvedsecuritygroups.veni.dev", "v1alpha1", "Cluster");
}

/// What the API server prunes or refuses is decided by these parts of a schema.
#[test]
fn the_schemas_say_what_has_to_hold() {
    let schema = |file: &str| -> Value {
        let definitions = definitions();
        let (_, found) = definitions.iter().find(|(of, _)| *of == file).unwrap();
        let schema = found.spec.versions[0].schema.as_ref().unwrap();
        serde_json::to_value(schema.open_api_v3_schema.as_ref().unwrap()).unwrap()
    };
    let check = |file: &str, pointer: &str, expected: Value| {
        let schema = schema(file);
        assert_eq!(schema.pointer(pointer), Some(&expected), "{file} {pointer}: {schema:#}");
    };
    let spec = "/properties/spec";
    check("eniconfigs.yaml", "/x-kubernetes-preserve-unknown-fields", true.into());
    check("eniconfigs.yaml", &format!("{spec}/x-kubernetes-preserve-unknown-fields"), true.into());
    check("eniconfigs.yaml", &format!("{spec}/properties/subnet/type"), "string".into());
    assert_eq!(schema("eniconfigs.yaml").pointer(&format!("{spec}/required")), None);
    let rules = |file: &str, at: &str| {
        schema(file)
            .pointer(&format!("{at}/x-kubernetes-validations"))
            .and_then(Value::as_array)
            .map(Vec::len)
    };
    assert_eq!(rules("eniconfigs.yaml", spec), Some(3));
    assert_eq!(rules("nodenetworkconfigs.yaml", &format!("{spec}/properties/pool")), Some(2));
    let selector = format!("{spec}/properties/nodeSelector/properties/matchExpressions");
    assert_eq!(rules("nodenetworkconfigs.yaml", &format!("{selector}/items")), Some(1));
    let operators = ["In", "NotIn", "Exists", "DoesNotExist"];
    let operator = format!("{selector}/items/properties/operator/enum");
    check("nodenetworkconfigs.yaml", &operator, operators.as_slice().into());
    let entries = "/properties/status/properties/nodes/maxItems";
    check("nodenetworkconfigs.yaml", entries, 10.into());
    let groups = format!("{spec}/properties/securityGroups/properties/groupIds");
    check("securitygrouppolicies.yaml", &format!("{groups}/minItems"), 1.into());
    check("securitygrouppolicies.yaml", &format!("{groups}/maxItems"), 16.into());
}

#[test]
fn objects_as_aws_documents_them_are_taken_unchanged() {
    let read = |yaml: &str| -> Value { serde_saphyr::from_str(yaml).unwrap() };
    let eni_config = read(include_str!("aws/eniconfig.yaml"));
    let parsed = EniConfig::parse(&eni_config).unwrap();
    assert_eq!(parsed.name, "us-west-2a");
    assert!(parsed.notes.is_empty(), "{:?}", parsed.notes);
    assert_eq!(
        parsed.subnets,
        SubnetChoice::Ids(vec!["subnet-0bb1c79de3ab12345".parse().unwrap()])
    );
    assert_eq!(
        parsed.security_groups,
        GroupChoice::Ids(vec!["sg-0dff111a1d11c1c11".parse().unwrap()])
    );
    for yaml in [
        include_str!("aws/securitygrouppolicy-pods.yaml"),
        include_str!("aws/securitygrouppolicy-accounts.yaml"),
    ] {
        let object = read(yaml);
        let parsed: veni_eniconfig_crd::security_group_policy::SecurityGroupPolicyObject =
            serde_json::from_value(object.clone()).unwrap();
        let mut again = serde_json::to_value(&parsed).unwrap();
        again.as_object_mut().unwrap().remove("status");
        assert_eq!(again, object, "a field is lost");
    }
}
