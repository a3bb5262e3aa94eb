//! What tests and the lab ask of a running simulator from outside, as data: it travels over the lab's socket.

use std::{net::Ipv4Addr, time::Duration};

use serde::{Deserialize, Serialize};
use veni_core::id::{InstanceId, SubnetId};

use super::{
    CallCounts, CallRecord, Consistency, Distortion, Fault, Latency, Sim, SimState, Throttling,
    WorldError,
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
        }
        Ok(AdminAnswer::Done)
    }
}
