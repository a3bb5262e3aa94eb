//! What tests and the lab ask of a running simulator from outside, as data: it travels over the lab's socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use veni_core::id::{
    EniId, InstanceId, PrefixListId, SecurityGroupId, SecurityGroupRuleId, SubnetId, VpcId,
};

use super::{
    CallCounts, CallRecord, Consistency, Distortion, Fault, GroupView, Latency, RuleSpec, Sim,
    SimState, Throttling, WorldError,
};

/// A request to the simulator itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admin {
    /// Puts a fault in force: [`AdminAnswer::Fault`].
    Inject(Fault),
    /// Takes a fault back.
    Withdraw(u64),
    /// Takes all faults and distortions back.
    ClearFaults,
    /// Distorts instance metadata for a while.
    Distort(Distortion),
    /// Sets how long things take.
    SetLatency(Latency),
    /// Sets how many calls are allowed.
    SetThrottling(Option<Throttling>),
    /// Sets how late changes show.
    SetConsistency(Consistency),
    /// How often each action was called: [`AdminAnswer::Calls`].
    Calls,
    /// The last calls one by one: [`AdminAnswer::CallLog`].
    CallLog,
    /// Forgets all calls so far.
    ResetCalls,
    /// The whole region as it really is: [`AdminAnswer::State`].
    State,
    /// Takes addresses of a subnet for others: [`AdminAnswer::Addresses`].
    Occupy {
        /// Which subnet.
        subnet: SubnetId,
        /// How many.
        count: u32,
    },
    /// Gives occupied addresses back.
    Vacate {
        /// Which subnet.
        subnet: SubnetId,
        /// Which addresses.
        addresses: Vec<Ipv4Addr>,
    },
    /// Ends an instance.
    Terminate(InstanceId),
    /// Makes a security group, which lets all out and nothing in.
    CreateSecurityGroup {
        /// Its id.
        id: SecurityGroupId,
        /// Its VPC.
        vpc_id: VpcId,
    },
    /// Tags a security group.
    TagSecurityGroup {
        /// Its id.
        id: SecurityGroupId,
        /// The tags to add or to overwrite.
        tags: BTreeMap<String, String>,
    },
    /// Takes a security group away.
    DeleteSecurityGroup(SecurityGroupId),
    /// Adds a rule to a security group: [`AdminAnswer::Rule`].
    AuthorizeRule(RuleSpec),
    /// Takes a rule away.
    RevokeRule(SecurityGroupRuleId),
    /// All security groups with their rules: [`AdminAnswer::SecurityGroups`].
    SecurityGroups,
    /// Makes a managed prefix list, or a new version of it.
    SetPrefixList {
        /// Its id.
        id: PrefixListId,
        /// All its entries from now on.
        entries: Vec<IpNet>,
    },
    /// Takes a managed prefix list away.
    DeletePrefixList(PrefixListId),
    /// Gives an ENI IPv6 addresses, which members of security groups show.
    SetIpv6Addresses {
        /// Which ENI.
        eni: EniId,
        /// All its IPv6 addresses from now on.
        addresses: BTreeSet<Ipv6Addr>,
    },
}

/// The answer to an [`Admin`] request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminAnswer {
    /// Done.
    Done,
    /// The number of a new fault.
    Fault(u64),
    /// Counts of calls.
    Calls(CallCounts),
    /// The last calls, oldest first.
    CallLog(Vec<CallRecord>),
    /// The region.
    State(Box<SimState>),
    /// Addresses.
    Addresses(Vec<Ipv4Addr>),
    /// The id of a new rule.
    Rule(SecurityGroupRuleId),
    /// Security groups.
    SecurityGroups(Vec<GroupView>),
}

impl Sim {
    /// Does what `request` asks.
    ///
    /// # Errors
    /// When it names something that does not exist, or asks for more than there is.
    pub fn admin(&mut self, now: Duration, request: Admin) -> Result<AdminAnswer, WorldError> {
        self.advance(now);
        match request {
            Admin::Inject(fault) => return Ok(AdminAnswer::Fault(self.inject(fault))),
            Admin::Calls => return Ok(AdminAnswer::Calls(self.calls().clone())),
            Admin::CallLog => return Ok(AdminAnswer::CallLog(self.call_log().cloned().collect())),
            Admin::State => return Ok(AdminAnswer::State(Box::new(self.state()))),
            Admin::Occupy { subnet, count } => {
                return self.occupy(&subnet, count).map(AdminAnswer::Addresses);
            }
            Admin::AuthorizeRule(rule) => return self.authorize(rule).map(AdminAnswer::Rule),
            Admin::SecurityGroups => {
                let groups = self.security_groups().cloned().collect();
                return Ok(AdminAnswer::SecurityGroups(groups));
            }
            Admin::Withdraw(id) if !self.withdraw(id) => {
                return Err(WorldError::Missing(format!("fault {id}")));
            }
            Admin::Withdraw(_) => {}
            Admin::ClearFaults => self.clear_faults(),
            Admin::Distort(distortion) => self.distort(now, distortion),
            Admin::SetLatency(latency) => self.set_latency(latency),
            Admin::SetThrottling(throttling) => self.set_throttling(throttling),
            Admin::SetConsistency(consistency) => self.set_consistency(consistency),
            Admin::ResetCalls => self.reset_calls(),
            Admin::Vacate { subnet, addresses } => self.vacate(&subnet, &addresses),
            Admin::Terminate(instance) => self.terminate_instance(now, &instance)?,
            Admin::CreateSecurityGroup { id, vpc_id } => self.add_security_group(id, vpc_id)?,
            Admin::TagSecurityGroup { id, tags } => self.tag_security_group(&id, tags)?,
            Admin::DeleteSecurityGroup(id) => self.delete_security_group(&id)?,
            Admin::RevokeRule(rule) => self.revoke(&rule)?,
            Admin::SetPrefixList { id, entries } => self.set_prefix_list(id, entries),
            Admin::DeletePrefixList(id) => self.delete_prefix_list(&id)?,
            Admin::SetIpv6Addresses { eni, addresses } => {
                self.set_ipv6_addresses(&eni, addresses)?;
            }
        }
        Ok(AdminAnswer::Done)
    }
}
