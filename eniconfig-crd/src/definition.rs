//! The CustomResourceDefinitions that the chart ships.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt as _;

use crate::{
    eni_config::EniConfigObject, node_network_config::NodeNetworkConfigObject,
    resolved_security_group::ResolvedSecurityGroupObject,
    security_group_policy::SecurityGroupPolicyObject,
};

/// They, each with its file's name.
#[must_use]
pub fn definitions() -> Vec<(&'static str, CustomResourceDefinition)> {
    // As AWS's own: what its objects may have beside the spec (a status) is no error to `kubectl apply`.
    let open = |root: &mut JSONSchemaProps| root.x_kubernetes_preserve_unknown_fields = Some(true);
    let closed = |_: &mut JSONSchemaProps| {};
    vec![
        ("eniconfigs.yaml", tidied(EniConfigObject::crd(), open)),
        ("nodenetworkconfigs.yaml", tidied(NodeNetworkConfigObject::crd(), closed)),
        ("resolvedsecuritygroups.yaml", tidied(ResolvedSecurityGroupObject::crd(), closed)),
        ("securitygrouppolicies.yaml", tidied(SecurityGroupPolicyObject::crd(), open_selectors)),
    ]
}

/// AWS' definition leaves to its readers what a selector may say, and theirs are taken unchanged.
fn open_selectors(schema: &mut JSONSchemaProps) {
    for (name, property) in schema.properties.iter_mut().flatten() {
        if name != "matchExpressions" {
            open_selectors(property);
            continue;
        }
        property.max_items = None;
        let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut property.items else { continue };
        items.x_kubernetes_validations = None;
        for field in items.properties.iter_mut().flat_map(|fields| fields.values_mut()) {
            (field.enum_, field.max_items) = (None, None);
        }
    }
}

fn tidied(
    mut definition: CustomResourceDefinition,
    root: impl Fn(&mut JSONSchemaProps),
) -> CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        let schema =
            version.schema.iter_mut().filter_map(|schema| schema.open_api_v3_schema.as_mut());
        for schema in schema {
            // The Rust type's name.
            schema.title = None;
            root(schema);
            known_formats(schema);
        }
    }
    definition
}

/// `uint32` is schemars' own: the API server warns of formats that it does not know. The bounds say the rest.
fn known_formats(schema: &mut JSONSchemaProps) {
    if schema.format.as_deref() == Some("uint32") {
        schema.format = Some("int32".to_owned());
    }
    schema
        .properties
        .iter_mut()
        .flat_map(|properties| properties.values_mut())
        .for_each(known_formats);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        known_formats(items);
    }
}
