//! Security groups from what the AWS command line prints.
//!
//! `aws ec2 describe-security-group-rules`, and for groups that rules refer to and whose members are no pods
//! `aws ec2 describe-network-interfaces`. Prefix lists are not among it: a rule with one admits nobody here.

use std::{fs, net::IpAddr, path::Path};

use ipnet::IpNet;
use serde::Deserialize;
use veni_core::{id::SecurityGroupId, wire::inspect::policy::Diagnostic};
use veni_policy::security_group::{
    GroupPeer, GroupProtocol, GroupRule, GroupState, ResolvedGroup, SecurityGroups,
};

use crate::Usage;

/// Either answer, or both in one document.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    security_group_rules: Vec<Rule>,
    #[serde(default)]
    network_interfaces: Vec<Interface>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    security_group_rule_id: String,
    group_id: SecurityGroupId,
    is_egress: bool,
    ip_protocol: String,
    from_port: Option<i32>,
    to_port: Option<i32>,
    cidr_ipv4: Option<IpNet>,
    cidr_ipv6: Option<IpNet>,
    prefix_list_id: Option<String>,
    referenced_group_info: Option<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Group {
    group_id: SecurityGroupId,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Interface {
    #[serde(default)]
    groups: Vec<Group>,
    #[serde(default)]
    private_ip_addresses: Vec<Address>,
    #[serde(default)]
    ipv6_addresses: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    #[serde(alias = "PrivateIpAddress", alias = "Ipv6Address")]
    address: IpAddr,
}

/// The groups that the files describe.
///
/// # Errors
/// When one cannot be read.
pub(super) fn read(
    paths: &[impl AsRef<Path>],
    diagnostics: &mut Vec<Diagnostic>,
) -> Result<SecurityGroups, Usage> {
    let mut groups = SecurityGroups::default();
    for path in paths.iter().map(AsRef::as_ref) {
        let fail = |why: &dyn std::fmt::Display| Usage(vec![format!("{}: {why}", path.display())]);
        let text = fs::read_to_string(path).map_err(|error| fail(&error))?;
        let answer: Answer = serde_json::from_str(&text).map_err(|error| fail(&error))?;
        for rule in answer.security_group_rules {
            if let Err(message) = add(&mut groups, &rule) {
                let object = format!("SecurityGroup {}", rule.group_id);
                let field = rule.security_group_rule_id;
                let file = Some(path.display().to_string());
                diagnostics.push(Diagnostic {
                    object,
                    field,
                    message,
                    file,
                    ..Diagnostic::default()
                });
            }
        }
        for Interface { groups: of, private_ip_addresses, ipv6_addresses } in
            answer.network_interfaces
        {
            let addresses = private_ip_addresses.iter().chain(&ipv6_addresses).map(|a| a.address);
            let addresses: Vec<_> = addresses.collect();
            for Group { group_id } in of {
                groups.members.entry(group_id).or_default().extend(&addresses);
            }
        }
    }
    Ok(groups)
}

fn add(groups: &mut SecurityGroups, rule: &Rule) -> Result<(), String> {
    let group = groups.groups.entry(rule.group_id.clone()).or_insert_with(|| ResolvedGroup {
        id: rule.group_id.clone(),
        state: GroupState::Resolved,
        ingress: Vec::new(),
        egress: Vec::new(),
    });
    let protocol = protocol(&rule.ip_protocol)?;
    let (first, last) = ports(protocol, rule.from_port, rule.to_port)?;
    let peer = peer(rule)?;
    let list = if rule.is_egress { &mut group.egress } else { &mut group.ingress };
    list.push(GroupRule { id: rule.security_group_rule_id.clone(), protocol, first, last, peer });
    Ok(())
}

fn peer(rule: &Rule) -> Result<GroupPeer, String> {
    match (&rule.referenced_group_info, rule.cidr_ipv4.or(rule.cidr_ipv6), &rule.prefix_list_id) {
        (Some(group), ..) => Ok(GroupPeer::Group(group.group_id.clone())),
        (None, Some(cidr), _) => Ok(GroupPeer::Cidr(cidr)),
        (None, None, Some(list)) => Err(format!(
            "the entries of the prefix list {list} are not known; the rule admits nobody"
        )),
        (None, None, None) => Err("has no peer that is known; the rule admits nobody".to_owned()),
    }
}

fn protocol(text: &str) -> Result<GroupProtocol, String> {
    if text == "-1" {
        return Ok(GroupProtocol::Any);
    }
    veni_policy::view::protocol_number(text)
        .map(GroupProtocol::Number)
        .ok_or_else(|| format!("{text:?} is no protocol; the rule admits nobody"))
}

/// EC2's ports, for ICMP and ICMPv6 type and code; -1 is all of them.
fn ports(
    protocol: GroupProtocol,
    from: Option<i32>,
    to: Option<i32>,
) -> Result<(u16, u16), String> {
    let part = |value: i32| u16::try_from(value).map_err(|_| format!("{value} is no port"));
    let (from, to) = (from.filter(|from| *from != -1), to.filter(|to| *to != -1));
    match (protocol, from, to) {
        (GroupProtocol::Number(1 | 58), Some(kind), None) => {
            let kind = part(kind)? << 8;
            Ok((kind, kind | 0xff))
        }
        (GroupProtocol::Number(1 | 58), Some(kind), Some(code)) => {
            let exact = (part(kind)? << 8) | part(code)?;
            Ok((exact, exact))
        }
        (GroupProtocol::Number(6 | 17 | 132), Some(first), Some(last)) => {
            Ok((part(first)?, part(last)?))
        }
        _ => Ok((0, u16::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_ec2s() {
        let (any, tcp, icmp) =
            (GroupProtocol::Any, GroupProtocol::Number(6), GroupProtocol::Number(1));
        for (protocol, from, to, expect) in [
            (any, Some(-1), Some(-1), (0, 65535)),
            (any, None, None, (0, 65535)),
            (tcp, Some(80), Some(81), (80, 81)),
            (tcp, Some(0), Some(65535), (0, 65535)),
            (icmp, Some(-1), Some(-1), (0, 65535)),
            (icmp, Some(8), Some(-1), (8 << 8, (8 << 8) | 255)),
            (icmp, Some(3), Some(4), ((3 << 8) | 4, (3 << 8) | 4)),
            (GroupProtocol::Number(50), Some(1), Some(1), (0, 65535)),
        ] {
            assert_eq!(ports(protocol, from, to), Ok(expect), "{protocol:?} {from:?} {to:?}");
        }
        ports(tcp, Some(80), Some(70_000)).unwrap_err();
    }

    #[test]
    fn answers_of_the_command_line_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules.json");
        let rule = |id: &str, peer: &str| {
            format!(
                r#"{{"SecurityGroupRuleId":"sgr-{id}","GroupId":"sg-1","GroupOwnerId":"1","IsEgress":false,"IpProtocol":"tcp","FromPort":80,"ToPort":80,{peer},"Tags":[]}}"#
            )
        };
        let rules = [
            rule("1", r#""CidrIpv4":"10.0.0.0/8""#),
            rule("2", r#""CidrIpv6":"fd00::/8""#),
            rule("3", r#""ReferencedGroupInfo":{"GroupId":"sg-2","UserId":"1"}"#),
            rule("4", r#""PrefixListId":"pl-1""#),
        ];
        let interfaces = r#"[{"Groups":[{"GroupId":"sg-2","GroupName":"x"}],"PrivateIpAddresses":[{"Primary":true,"PrivateIpAddress":"10.0.0.7"}],"Ipv6Addresses":[{"Ipv6Address":"fd00::7"}]}]"#;
        let text = format!(
            r#"{{"SecurityGroupRules":[{}],"NetworkInterfaces":{interfaces}}}"#,
            rules.join(",")
        );
        fs::write(&path, text).unwrap();
        let mut diagnostics = Vec::new();
        let groups = read(&[&path], &mut diagnostics).unwrap();
        let (one, two): (SecurityGroupId, SecurityGroupId) =
            ("sg-1".parse().unwrap(), "sg-2".parse().unwrap());
        assert_eq!(groups.groups[&one].ingress.len(), 3);
        assert_eq!(groups.groups[&one].ingress[2].peer, GroupPeer::Group(two.clone()));
        assert_eq!(groups.members[&two].len(), 2);
        assert_eq!(diagnostics.len(), 1);
        assert!(diagnostics[0].to_string().contains("pl-1"), "{}", diagnostics[0]);
        assert!(read(&[dir.path().join("missing")], &mut diagnostics).is_err());
    }
}
