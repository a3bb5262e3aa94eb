//! `veni-lab group`: security groups in the lab's account.

use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use veni_core::id::{SecurityGroupId, SecurityGroupRuleId};
use veni_provider::{
    GroupReference,
    security_group::{RuleDirection, RulePeer, RuleTraffic, SecurityGroupRule},
    sim::{GroupView, RuleSpec},
};

use super::{
    Name,
    control::{Answer, GroupChange, Request, ask},
    print,
};

/// What is told after each change: the daemons learn of it as they would on EC2.
const WHEN: &str = "each daemon has it with its next refresh, within about a minute; `venictl policy explain --live POD` shows it";

/// What about security groups.
#[derive(Debug, Subcommand)]
pub(super) enum Group {
    /// Make a security group; it lets everything out and nothing in, as EC2 makes one
    Create {
        #[command(flatten)]
        lab: Name,
        /// Its id: `sg-` and letters and digits
        id: SecurityGroupId,
    },
    /// Add a rule to a group
    Allow(Allow),
    /// Take a rule away
    Revoke {
        #[command(flatten)]
        lab: Name,
        /// Its id, which `allow` and `list` print
        rule: SecurityGroupRuleId,
    },
    /// Show the groups and their rules
    List(Name),
    /// Delete a group that no ENI and no other group's rule needs
    Delete {
        #[command(flatten)]
        lab: Name,
        /// Its id
        id: SecurityGroupId,
    },
}

/// A rule.
#[derive(Debug, Args)]
pub(super) struct Allow {
    #[command(flatten)]
    lab: Name,
    /// The group's id
    id: SecurityGroupId,
    /// What comes in, or what goes out
    #[arg(long, default_value = "ingress")]
    direction: Way,
    /// `tcp`, `udp`, `icmp`, a protocol's number, or `all`
    #[arg(long, default_value = "tcp")]
    protocol: String,
    /// Of TCP and UDP: a port, or FIRST-LAST; every one unless told otherwise
    #[arg(long, value_name = "PORT[-LAST]")]
    port: Option<String>,
    /// From whom, or to whom: a CIDR, an address, or a group's id
    #[arg(long, value_name = "CIDR|GROUP", default_value = "0.0.0.0/0")]
    peer: String,
}

/// Which way a rule looks.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    /// At what comes in.
    Ingress,
    /// At what goes out.
    Egress,
}

pub(super) fn group(group: Group) -> anyhow::Result<ExitCode> {
    match group {
        Group::List(lab) => {
            for group in groups(&lab.name)? {
                print::line(&group.id);
                for rule in &group.rules {
                    print::note(format!("{}  {}", rule.id, shown(rule)));
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        Group::Create { lab, id } => {
            change(&lab.name, GroupChange::Create(id.clone()))?;
            print::line(format!(
                "{id}: give it to pods by a SecurityGroupPolicy, or with `add --annotation \
                 vpc.amazonaws.com/security-groups={id}`"
            ));
        }
        Group::Allow(allow) => {
            let rule = allow.rule()?;
            let rule = change(&allow.lab.name, GroupChange::Allow(rule))?;
            print::line(format!("{}: {WHEN}", rule.context("the lab named no rule")?));
        }
        Group::Revoke { lab, rule } => {
            change(&lab.name, GroupChange::Revoke(rule.clone()))?;
            print::line(format!("{rule} is gone: {WHEN}"));
        }
        Group::Delete { lab, id } => {
            change(&lab.name, GroupChange::Delete(id.clone()))?;
            print::line(format!("{id} is gone: pods that have it are denied everything; {WHEN}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn groups(lab: &str) -> anyhow::Result<Vec<GroupView>> {
    match ask(lab, &Request::Groups)? {
        Answer::Groups { groups } => Ok(groups),
        _ => bail!("the lab {lab} answered something else: is it of another version?"),
    }
}

fn change(lab: &str, change: GroupChange) -> anyhow::Result<Option<SecurityGroupRuleId>> {
    match ask(lab, &Request::Group { change })? {
        Answer::Group { rule } => Ok(rule),
        _ => bail!("the lab {lab} answered something else: is it of another version?"),
    }
}

/// `ingress tcp 80-90 10.0.0.0/8`.
fn shown(rule: &SecurityGroupRule) -> String {
    let direction = match rule.direction {
        RuleDirection::Ingress => "ingress",
        RuleDirection::Egress => "egress",
    };
    let named = veni_policy::view::protocol_name;
    let traffic = match &rule.traffic {
        RuleTraffic::All => "everything".to_owned(),
        RuleTraffic::Protocol(number) => named(*number),
        RuleTraffic::Ports { protocol, first, last } if first == last => {
            format!("{} {first}", named(*protocol))
        }
        RuleTraffic::Ports { protocol, first, last } => {
            format!("{} {first}-{last}", named(*protocol))
        }
        RuleTraffic::Icmp { protocol, kind, code } => match code {
            Some(code) => format!("{} type {kind} code {code}", named(*protocol)),
            None => format!("{} type {kind}", named(*protocol)),
        },
        RuleTraffic::Unknown(words) => words.clone(),
    };
    let peer = match &rule.peer {
        RulePeer::Cidr(cidr) => cidr.to_string(),
        RulePeer::Group(group) => group.id.to_string(),
        RulePeer::PrefixList(list) => list.to_string(),
        RulePeer::Unknown(words) => words.clone(),
    };
    let preposition = if direction == "ingress" { "from" } else { "to" };
    format!("{direction}  {traffic}  {preposition} {peer}")
}

// === impl Allow ===

impl Allow {
    fn rule(&self) -> anyhow::Result<RuleSpec> {
        let (first, last) = match &self.port {
            None => (None, None),
            Some(text) => {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let port = |text: &str| {
                    let port: u16 = text.parse().with_context(|| {
                        format!("--port {:?}: wants a port, or FIRST-LAST", self.port)
                    })?;
                    anyhow::Ok(Some(i32::from(port)))
                };
                (port(first)?, port(last)?)
            }
        };
        let traffic = RuleTraffic::parse(&self.protocol, first, last);
        if let RuleTraffic::Unknown(words) = &traffic {
            bail!("{words}: no rule can be made of it");
        }
        let takes_ports = matches!(traffic, RuleTraffic::Ports { .. });
        ensure!(
            self.port.is_none() || takes_ports,
            "--port is for TCP and UDP, --protocol is {}",
            self.protocol
        );
        let direction = match self.direction {
            Way::Ingress => RuleDirection::Ingress,
            Way::Egress => RuleDirection::Egress,
        };
        Ok(RuleSpec { group: self.id.clone(), direction, traffic, peer: peer(&self.peer)? })
    }
}

fn peer(text: &str) -> anyhow::Result<RulePeer> {
    if text.starts_with("sg-") {
        let reference = GroupReference {
            id: text.parse()?,
            foreign_account: None,
            peering_connection: None,
            stale: false,
        };
        return Ok(RulePeer::Group(reference));
    }
    let cidr = text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(Into::into));
    cidr.map(RulePeer::Cidr).ok().with_context(|| {
        format!("--peer {text:?} is no CIDR, no address, and no group's id (sg-…)")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        allow: Allow,
    }

    #[test]
    fn a_rule_is_read_as_it_is_shown() {
        for (words, expected) in [
            ("", Ok("ingress  TCP  from 0.0.0.0/0")),
            ("--port 80 --peer 10.0.0.7", Ok("ingress  TCP 80  from 10.0.0.7/32")),
            ("--protocol udp --port 53-54 --peer sg-b", Ok("ingress  UDP 53-54  from sg-b")),
            ("--direction egress --protocol all --peer ::/0", Ok("egress  everything  to ::/0")),
            ("--protocol icmp", Ok("ingress  ICMP  from 0.0.0.0/0")),
            ("--protocol icmp --port 8", Err("--port is for TCP and UDP")),
            ("--protocol 50 --port 8", Err("--port is for TCP and UDP")),
            ("--port 90-80", Err("no rule can be made")),
            ("--port many", Err("FIRST-LAST")),
            ("--peer everyone", Err("no CIDR, no address")),
            ("--protocol quic", Err("no rule can be made")),
        ] {
            let words = ["allow", "sg-a"].into_iter().chain(words.split_whitespace());
            let rule = Line::parse_from(words.clone()).allow.rule();
            match (rule, expected) {
                (Ok(RuleSpec { group, direction, traffic, peer }), Ok(expected)) => {
                    let id = "sgr-1".parse().unwrap();
                    let rule = SecurityGroupRule { id, group, direction, traffic, peer };
                    assert_eq!(shown(&rule), expected);
                }
                (Err(error), Err(expected)) => {
                    assert!(format!("{error:#}").contains(expected), "{error:#}");
                }
                (rule, expected) => {
                    panic!("{:?}: {rule:?}, {expected:?}", words.collect::<Vec<_>>())
                }
            }
        }
    }
}
