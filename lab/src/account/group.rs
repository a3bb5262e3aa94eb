//! A security group for a test, in whichever cloud the lab is.

use veni_core::id::{SecurityGroupId, SecurityGroupRuleId};
use veni_provider::{
    security_group::{RuleDirection, RulePeer, RuleTraffic, TCP},
    sim::{Admin, AdminAnswer, RuleSpec},
};

use super::{Account, Behind};
use crate::{
    error::{Error, Result},
    vpc::VPC_CIDR,
};

/// A security group of the lab's VPC, which lets everything out, and in what it is told.
#[derive(Debug)]
pub struct Group<'a> {
    account: &'a Account,
    id: SecurityGroupId,
    open: Option<Opening>,
}

/// A rule that lets one TCP port in.
#[derive(Debug)]
struct Opening {
    port: u16,
    /// The simulator's.
    rule: Option<SecurityGroupRuleId>,
}

// === impl Group ===

impl<'a> Group<'a> {
    /// A new one: `name` is letters and digits.
    ///
    /// # Errors
    /// When there is one of that name.
    pub fn create(account: &'a Account, name: &str) -> Result<Self> {
        let id = match &account.behind {
            Behind::Simulator(_) => {
                let id = format!("sg-0{name}").parse();
                let id = id.map_err(|error| Error::invalid(format!("{error}")))?;
                account.create_group(&id, [])?;
                id
            }
            Behind::LocalStack(localstack) => localstack.create_group(name)?,
        };
        Ok(Self { account, id, open: None })
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> &SecurityGroupId {
        &self.id
    }

    /// Lets TCP to `port` in from all of the VPC. One port at a time.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub fn let_in(&mut self, port: u16) -> Result<()> {
        self.shut()?;
        let rule = match &self.account.behind {
            Behind::Simulator(_) => {
                let cidr = VPC_CIDR.parse().map_err(|error| Error::invalid(format!("{error}")))?;
                let rule = RuleSpec {
                    group: self.id.clone(),
                    direction: RuleDirection::Ingress,
                    traffic: RuleTraffic::Ports { protocol: TCP, first: port, last: port },
                    peer: RulePeer::Cidr(cidr),
                };
                match self.account.change_groups(Admin::AuthorizeRule(rule))? {
                    AdminAnswer::Rule(rule) => Some(rule),
                    other => {
                        return Err(Error::invalid(format!(
                            "the simulator made no rule: {other:?}"
                        )));
                    }
                }
            }
            Behind::LocalStack(localstack) => {
                localstack.authorize(&self.id, port, VPC_CIDR)?;
                None
            }
        };
        self.open = Some(Opening { port, rule });
        Ok(())
    }

    /// Lets nothing in any more.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub fn shut(&mut self) -> Result<()> {
        let Some(opening) = self.open.take() else { return Ok(()) };
        match (&self.account.behind, opening.rule) {
            (Behind::LocalStack(localstack), _) => {
                localstack.revoke(&self.id, opening.port, VPC_CIDR)
            }
            (Behind::Simulator(_), Some(rule)) => {
                self.account.change_groups(Admin::RevokeRule(rule)).map(drop)
            }
            (Behind::Simulator(_), None) => Ok(()),
        }
    }

    /// Deletes it.
    ///
    /// # Errors
    /// When something still needs it.
    pub fn delete(self) -> Result<()> {
        match &self.account.behind {
            Behind::Simulator(_) => {
                self.account.change_groups(Admin::DeleteSecurityGroup(self.id)).map(drop)
            }
            Behind::LocalStack(localstack) => localstack.delete_group(&self.id),
        }
    }
}
