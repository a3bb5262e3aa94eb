//! What happened to ENIs, for whoever plays the hardware and the VPC's router (the lab).

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use veni_core::{
    id::{EniId, InstanceId},
    net::Ipv4Prefix,
};

use crate::Interface;

/// Something that happened, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, milliseconds from the simulator's start.
    pub at_millis: u64,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An ENI exists, with the addresses it got at birth.
    Created {
        /// The ENI.
        interface: Box<Interface>,
    },
    /// An attachment is complete: the device appears in the instance. Its attachment tells index and card.
    Attached {
        /// The instance.
        instance: InstanceId,
        /// The ENI as it is now.
        interface: Box<Interface>,
    },
    /// A detachment began: the device disappears from the instance.
    Detaching {
        /// The instance.
        instance: InstanceId,
        /// The ENI as it is now.
        interface: Box<Interface>,
    },
    /// A detachment is complete (or the instance is gone): the ENI is free.
    Detached {
        /// The instance that had it.
        instance: InstanceId,
        /// The ENI as it is now, without attachment.
        interface: Box<Interface>,
    },
    /// An ENI got addresses.
    Assigned {
        /// The ENI.
        eni: EniId,
        /// What it is attached to.
        instance: Option<InstanceId>,
        /// The new ones.
        addresses: Vec<Ipv4Addr>,
        /// The new prefixes.
        prefixes: Vec<Ipv4Prefix>,
    },
    /// An ENI lost addresses.
    Unassigned {
        /// The ENI.
        eni: EniId,
        /// What it is attached to.
        instance: Option<InstanceId>,
        /// Those that it lost.
        addresses: Vec<Ipv4Addr>,
    },
    /// An ENI is gone.
    Deleted {
        /// The ENI.
        eni: EniId,
    },
}
