//! Label selectors (`metav1.LabelSelector`), for nodes.

#![cfg_attr(
    feature = "schema",
    expect(unreachable_pub, reason = "KubeSchema copies a struct into a function")
)]

use serde::{Deserialize, Serialize};

use crate::{Labels, Problem};

/// A label selector. All of it must hold; an empty one selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-map-type" = "atomic")))]
pub struct LabelSelector {
    /// Labels that must be there with these values.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub match_labels: Labels,
    /// Requirements that must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub match_expressions: Vec<Requirement>,
}

/// What is asked of one label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(kube::KubeSchema))]
#[cfg_attr(
    feature = "schema",
    x_kube(
        validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)").message("In and NotIn need at least one value, Exists and DoesNotExist none")
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    #[cfg_attr(
        feature = "schema",
        schemars(extend("enum" = ["In", "NotIn", "Exists", "DoesNotExist"]))
    )]
    pub operator: String,
    /// The values of `In` and `NotIn`; empty for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub values: Vec<String>,
}

impl LabelSelector {
    /// Whether the labels meet it. An operator that is not known selects nothing: [`LabelSelector::problems`].
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }

    /// What the API server would refuse in a selector of its own (apimachinery `ValidateLabelSelector`).
    pub(crate) fn problems(&self, field: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (index, requirement) in self.match_expressions.iter().enumerate() {
            let at = format!("{field}.matchExpressions[{index}]");
            match (requirement.operator.as_str(), requirement.values.is_empty()) {
                ("In" | "NotIn", false) | ("Exists" | "DoesNotExist", true) => {}
                ("In" | "NotIn", true) => problems.push(Problem::new(
                    format!("{at}.values"),
                    "needs at least one value for this operator",
                )),
                ("Exists" | "DoesNotExist", false) => problems
                    .push(Problem::new(format!("{at}.values"), "must be empty for this operator")),
                (other, _) => problems.push(Problem::new(
                    format!("{at}.operator"),
                    format!("{other:?} is none of \"In\", \"NotIn\", \"Exists\", \"DoesNotExist\""),
                )),
            }
        }
        problems
    }
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator.as_str() {
            "In" => value.is_some_and(|value| self.values.contains(value)),
            "NotIn" => value.is_none_or(|value| !self.values.contains(value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_match_as_kubernetes_does() {
        let labels: Labels =
            [("zone".to_owned(), "a".to_owned()), ("gpu".to_owned(), String::new())].into();
        let check = |selector: serde_json::Value, expect: bool| {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(parsed.matches(&labels), expect, "{selector}");
        };
        let asks = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        check(json!({}), true);
        check(json!({"matchLabels": {"zone": "a"}}), true);
        check(json!({"matchLabels": {"zone": "b"}}), false);
        check(json!({"matchLabels": {"zone": "a", "other": ""}}), false);
        check(asks("zone", "In", &["b", "a"]), true);
        check(asks("absent", "In", &["a"]), false);
        check(asks("zone", "NotIn", &["a"]), false);
        check(asks("absent", "NotIn", &["a"]), true);
        check(asks("gpu", "Exists", &[]), true);
        check(asks("gpu", "DoesNotExist", &[]), false);
        check(asks("zone", "Gt", &["0"]), false);
    }
}
