//! The IAM policy that this provider needs, made from the list of the calls it makes.

use serde_json::{Value, json};

/// The EC2 actions that this crate calls, and no others, sorted.
pub const ACTIONS: &[&str] = &[
    "AssignPrivateIpAddresses",
    "AttachNetworkInterface",
    "CreateNetworkInterface",
    "CreateTags",
    "DeleteNetworkInterface",
    "DescribeInstanceTypes",
    "DescribeManagedPrefixLists",
    "DescribeNetworkInterfaces",
    "DescribeSecurityGroupRules",
    "DescribeSecurityGroups",
    "DescribeSubnets",
    "DetachNetworkInterface",
    "GetManagedPrefixListEntries",
    "ModifyNetworkInterfaceAttribute",
    "UnassignPrivateIpAddresses",
];

/// The policy document for the role of the daemon: [`ACTIONS`], and tags only on network interfaces. Beyond what AWS's
/// managed `AmazonEKS_CNI_Policy` grants it asks for what pods' security groups are read with; without those, all
/// else works and a pod with security groups is denied, with the missing action named.
#[must_use]
pub fn iam_policy() -> Value {
    let actions: Vec<String> =
        ACTIONS.iter().filter(|a| **a != "CreateTags").map(|a| format!("ec2:{a}")).collect();
    json!({
        "Version": "2012-10-17",
        "Statement": [
            { "Effect": "Allow", "Action": actions, "Resource": "*" },
            {
                "Effect": "Allow",
                "Action": ["ec2:CreateTags"],
                "Resource": ["arn:aws:ec2:*:*:network-interface/*"]
            }
        ]
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;

    /// `AssignPrivateIpAddresses` → `assign_private_ip_addresses`, the SDK's name of the call.
    fn snake(action: &str) -> String {
        let mut name = String::new();
        for c in action.chars() {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(c.to_ascii_lowercase());
        }
        name
    }

    #[test]
    fn the_actions_are_those_called_in_this_crate() {
        let sources =
            [include_str!("change.rs"), include_str!("describe.rs"), include_str!("group.rs")]
                .concat();
        // Every call reads `ec2.<name>()` on a line, or `.<name>()` on the line after `ec2`.
        let called: BTreeSet<&str> = sources
            .split("ec2\n        .")
            .skip(1)
            .chain(sources.split("ec2.").skip(1))
            .filter_map(|rest| rest.split_once("()").map(|(name, _)| name))
            .filter(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
            .collect();
        let listed: Vec<String> = ACTIONS.iter().map(|a| snake(a)).collect();
        assert_eq!(called, listed.iter().map(String::as_str).collect());
        assert!(ACTIONS.is_sorted());
    }

    #[test]
    fn the_documented_policy_is_the_one_made_here() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/iam-policy.json");
        let made = format!("{:#}\n", iam_policy());
        if std::env::var_os("VENI_UPDATE_DOCS").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let documented = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            documented, made,
            "run again with VENI_UPDATE_DOCS=1 to write docs/iam-policy.json"
        );
    }
}
