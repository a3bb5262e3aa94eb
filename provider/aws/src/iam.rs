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

    /// The SDK's names of the calls in a source: `ec2.<name>()` or `ec2()…`, on one line or on two.
    fn calls(source: &str) -> impl Iterator<Item = &str> {
        source.match_indices("ec2").filter_map(|(at, found)| {
            let rest = source[at + found.len()..].trim_start_matches("()").trim_start();
            let (name, _) = rest.strip_prefix('.')?.split_once("()")?;
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then_some(name)
        })
    }

    #[test]
    fn a_call_is_found_however_it_is_written() {
        let source = "ec2.describe_subnets()\n  self.ec2\n      .create_tags()\ncloud.ec2().describe_vpcs().send()";
        let found: Vec<_> = calls(source).collect();
        assert_eq!(found, ["describe_subnets", "create_tags", "describe_vpcs"]);
        assert_eq!(calls("aws_sdk_ec2::types; ec2 is asked.").count(), 0);
    }

    /// All files of this crate, those that are yet to come included: a call that is added asks for its action.
    #[test]
    fn the_actions_are_those_called_in_this_crate() {
        let mut called = BTreeSet::new();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() {
                    folders.push(entry);
                } else if !entry.ends_with("iam.rs") {
                    let source = std::fs::read_to_string(entry).unwrap();
                    called.extend(calls(&source).map(str::to_owned));
                }
            }
        }
        let listed: BTreeSet<_> = ACTIONS.iter().map(|action| snake(action)).collect();
        assert_eq!(called, listed);
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
