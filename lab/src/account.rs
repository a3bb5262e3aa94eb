//! The EC2 account of a lab, and the hand that plugs and unplugs ENIs as it says. Two clouds can be behind it: the simulator
//! ([`Cloud::Simulator`]), and LocalStack with EC2's address semantics ([`Cloud::LocalStack`]), for daemons that have the AWS
//! SDK.
//!
//! Invariants: the fabric follows what the cloud says in its order, one at a time, whichever cloud it is.

mod ec2;
mod group;
mod hand;
mod localstack;
mod metadata;
mod simulator;

use std::{
    path::Path,
    str::FromStr,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use veni_core::id::{InstanceId, InstanceType, SecurityGroupId, SecurityGroupRuleId, SubnetId};
use veni_provider::{
    Interface,
    security_group::{RuleDirection, RulePeer, RuleTraffic},
    sim::{Admin, AdminAnswer, InstanceSpec, RuleSpec, Sim, SimConfig, WorldError},
};

pub use self::{group::Group, localstack::LocalStack};
use self::{
    hand::{Hand, Nodes},
    simulator::Simulator,
};
use crate::{
    error::{Error, Result},
    ns::Namespace,
    vpc::{SUBNETS, Vpc},
};

/// The lab's VPC in the simulator.
const VPC_ID: &str = "vpc-0lab";

/// Which cloud a lab is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cloud {
    /// The simulator, in this process.
    #[default]
    Simulator,
    /// LocalStack, a process of its own.
    LocalStack,
}

/// The account.
#[derive(Debug)]
pub struct Account {
    nodes: Nodes,
    behind: Behind,
}

#[derive(Debug)]
enum Behind {
    Simulator(Simulator),
    LocalStack(Box<LocalStack>),
}

/// An instance that was run.
#[derive(Debug, Clone)]
pub(crate) struct Booted {
    pub(crate) instance: InstanceId,
    pub(crate) subnet: SubnetId,
    /// Its primary ENI.
    pub(crate) primary: Interface,
}

// === impl Cloud ===

impl Cloud {
    /// The daemon that speaks to it, by its file's name.
    #[must_use]
    pub const fn daemon(self) -> &'static str {
        match self {
            Self::Simulator => "veni-ipamd",
            Self::LocalStack => "veni-ipamd-aws",
        }
    }

    /// And the controller.
    #[must_use]
    pub const fn controller(self) -> &'static str {
        match self {
            Self::Simulator => "veni-controller",
            Self::LocalStack => "veni-controller-aws",
        }
    }
}

impl FromStr for Cloud {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "simulator" => Ok(Self::Simulator),
            "localstack" => Ok(Self::LocalStack),
            _ => Err(Error::invalid(format!("no cloud {text:?}: simulator or localstack"))),
        }
    }
}

// === impl Account ===

impl Account {
    /// An account with the lab's VPC and subnets, in the lab that keeps its files in `dir`. `config` is the simulator's.
    ///
    /// # Errors
    /// When the simulator's socket cannot be made, or LocalStack is not installed or does not start.
    pub fn open(cloud: Cloud, config: SimConfig, dir: &Path, vpc: &Arc<Vpc>) -> Result<Self> {
        let nodes = Nodes::default();
        let hand = Hand::new(Arc::clone(vpc), Arc::clone(&nodes));
        let behind = match cloud {
            Cloud::Simulator => {
                Behind::Simulator(Simulator::open(config, dir.join("ec2.sock"), hand)?)
            }
            Cloud::LocalStack => {
                Behind::LocalStack(Box::new(LocalStack::open(dir, &vpc.router, hand)?))
            }
        };
        Ok(Self { nodes, behind })
    }

    /// Which cloud it is in.
    #[must_use]
    pub const fn cloud(&self) -> Cloud {
        match &self.behind {
            Behind::Simulator(_) => Cloud::Simulator,
            Behind::LocalStack(_) => Cloud::LocalStack,
        }
    }

    /// LocalStack, when it is in that.
    #[must_use]
    pub fn localstack(&self) -> Option<&LocalStack> {
        match &self.behind {
            Behind::LocalStack(localstack) => Some(localstack),
            Behind::Simulator(_) => None,
        }
    }

    /// The variables by which a daemon that runs as `instance` finds it.
    #[must_use]
    pub fn environment(&self, instance: &InstanceId) -> Vec<(String, String)> {
        match &self.behind {
            Behind::Simulator(simulator) => {
                let provider = format!("sim:{}", simulator.socket().display());
                [("VENI_PROVIDER", provider), ("VENI_SIM_INSTANCE", instance.to_string())]
                    .map(|(name, value)| (name.to_owned(), value))
                    .into()
            }
            Behind::LocalStack(localstack) => localstack.environment(),
        }
    }

    /// Serves `instance` alone at `socket`, whatever instance a caller names: one that does not know which it is. LocalStack's
    /// daemons have instance metadata for that.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn serve_instance(&self, instance: &InstanceId, socket: &Path) -> Result<()> {
        match &self.behind {
            Behind::Simulator(simulator) => simulator.serve_instance(instance, socket),
            Behind::LocalStack(_) => Ok(()),
        }
    }

    /// The simulator's region itself, for faults, counts and a look at what is really there. While it is held, EC2 stands
    /// still.
    ///
    /// # Panics
    /// When the account is not the simulator's: whoever made the lab chose.
    pub fn sim(&self) -> MutexGuard<'_, Sim> {
        self.simulator().sim()
    }

    /// The simulated region's time.
    ///
    /// # Panics
    /// As [`Account::sim`].
    #[must_use]
    pub fn now(&self) -> Duration {
        self.simulator().now()
    }

    /// The ENIs of `instance` as they really are, the primary first.
    #[must_use]
    pub fn interfaces_of(&self, instance: &InstanceId) -> Vec<Interface> {
        let of = |i: &&Interface| i.attachment.as_ref().is_some_and(|a| a.instance_id == *instance);
        let mut interfaces: Vec<_> = match &self.behind {
            Behind::Simulator(simulator) => {
                simulator.sim().interfaces().filter(of).cloned().collect()
            }
            Behind::LocalStack(localstack) => {
                localstack.interfaces().iter().filter(of).cloned().collect()
            }
        };
        interfaces.sort_by_key(|i| i.attachment.as_ref().map(|a| (a.network_card, a.device_index)));
        interfaces
    }

    /// Makes a security group in the lab's VPC with these rules besides the one that lets everything out; returns their
    /// ids. In the simulator only.
    ///
    /// # Errors
    /// When there is one of that id, or a rule refers to what does not exist.
    ///
    /// # Panics
    /// As [`Account::sim`].
    pub fn create_group(
        &self,
        id: &SecurityGroupId,
        rules: impl IntoIterator<Item = (RuleDirection, RuleTraffic, RulePeer)>,
    ) -> Result<Vec<SecurityGroupRuleId>> {
        let refused = |error: WorldError| Error::invalid(format!("security group {id}: {error}"));
        let (now, mut sim) = (self.now(), self.sim());
        let vpc_id = VPC_ID.parse().map_err(|error| Error::invalid(format!("{error}")))?;
        sim.admin(now, Admin::CreateSecurityGroup { id: id.clone(), vpc_id }).map_err(refused)?;
        let authorize = |(direction, traffic, peer)| {
            let rule = RuleSpec { group: id.clone(), direction, traffic, peer };
            sim.authorize(rule).map_err(refused)
        };
        rules.into_iter().map(authorize).collect()
    }

    /// Does `change` to security groups; returns what it answers. In the simulator only.
    ///
    /// # Errors
    /// When it names what does not exist, or what something still needs.
    ///
    /// # Panics
    /// As [`Account::sim`].
    pub fn change_groups(&self, change: Admin) -> Result<AdminAnswer> {
        let (now, mut sim) = (self.now(), self.sim());
        sim.admin(now, change).map_err(|error| Error::invalid(error.to_string()))
    }

    /// Runs the instance that the node of this number (counted from 0) is. From now on, ENIs that are attached to it are
    /// plugged into `node`.
    pub(crate) fn run_instance(
        &self,
        number: usize,
        instance_type: &InstanceType,
        node: &Namespace,
    ) -> Result<Booted> {
        match &self.behind {
            Behind::Simulator(simulator) => {
                let refused = |why| Error::invalid(format!("cannot run {}: {why}", node.name()));
                let instance: InstanceId =
                    format!("i-0lab{number}").parse().map_err(|e| refused(format!("{e}")))?;
                let subnet = simulator::subnet_of(number);
                self.place(&instance, node);
                let spec = InstanceSpec {
                    id: instance.clone(),
                    instance_type: instance_type.clone(),
                    subnet_id: subnet.clone(),
                    security_groups: Vec::new(),
                };
                let primary = simulator.sim().run_instance(simulator.now(), spec);
                let primary = primary.map_err(|e| refused(e.to_string()))?;
                Ok(Booted { instance, subnet, primary })
            }
            Behind::LocalStack(localstack) => {
                localstack.run_instance(number, instance_type, |instance| {
                    self.place(instance, node);
                })
            }
        }
    }

    fn place(&self, instance: &InstanceId, node: &Namespace) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(instance.clone(), node.clone());
    }

    fn simulator(&self) -> &Simulator {
        match &self.behind {
            Behind::Simulator(simulator) => simulator,
            Behind::LocalStack(_) => panic!("the lab is in LocalStack, which has no simulator"),
        }
    }
}

/// The CIDR of the subnet of the node of this number, counted from 0: they take turns.
pub(crate) fn subnet_cidr(node: usize) -> &'static str {
    SUBNETS[node % SUBNETS.len()]
}

/// The availability zone of the node of this number.
pub(crate) fn zone_of(node: usize) -> &'static str {
    ["eu-central-1a", "eu-central-1b"][node % SUBNETS.len()]
}
