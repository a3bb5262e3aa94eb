//! Journal records: facts and intents, in the order in which they became true.
//!
//! An intent ([`Record::EniPlanned`], [`Record::EniDraining`], [`Record::Unassigning`]) is written before the call
//! it announces, so that a daemon that dies in between finishes the same thing and not another.
//! Records are only ever added, and fields of a record only ever added with a default.

use std::{net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{BootTime, placement::EniPlace};
use crate::{
    id::{AttachmentId, EniId, IfName, SubnetId},
    marks::EniSlot,
    net::{Ipv4Prefix, Mac},
    wire::{Attachment, PodRef},
};

/// An address on a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Whose it is.
    pub attachment: Attachment,
    /// The pod.
    #[serde(default)]
    pub pod: PodRef,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The address.
    pub address: Ipv4Addr,
    /// The ENI that holds it.
    pub slot: EniSlot,
    /// The veth on the node.
    pub host_ifname: IfName,
    /// Its index.
    pub host_ifindex: u32,
    /// When it was allocated.
    pub at: BootTime,
}

/// What is known of an ENI that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniFacts {
    /// Its id.
    pub id: EniId,
    /// Its MAC.
    pub mac: Mac,
    /// Its subnet.
    pub subnet: SubnetId,
    /// The subnet's CIDR, where known.
    pub subnet_prefix: Option<Ipv4Prefix>,
    /// Its own address.
    pub primary_address: Ipv4Addr,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// An address went to an attachment.
    Assigned(Allocation),
    /// An attachment gave its address back: it cools from `at`.
    Released {
        /// Whose it was.
        attachment: Attachment,
        /// When.
        at: BootTime,
    },
    /// Addresses released at or before this time have cooled: they can be handed out and given back again.
    Thawed {
        /// The time.
        released_until: BootTime,
    },
    /// This address has not cooled and is free all the same: a pod has it after all. (A kind of its own: an older ipamd
    /// leaves out what it does not know, and a field of `Thawed` that it does not know would thaw all.)
    ThawedAlone {
        /// Which.
        address: Ipv4Addr,
    },
    /// From here on the ledger may lack or keep what it should not, for part of the journal was lost: no daemon serves from it
    /// unasked until [`Record::Confirmed`]. (To an older ipamd, which does not know it, the journal is damaged.)
    Unconfirmed,
    /// EC2's answers agree with the ledger again.
    Confirmed,
    /// Host interface indexes up to this one have been used (written by snapshots: indexes are not reused).
    IfindexUsed {
        /// The highest.
        last: u32,
    },
    /// Intent: an ENI will be created with this token.
    EniPlanned {
        /// Its place.
        slot: EniSlot,
        /// The idempotency token.
        token: String,
        /// How many secondary addresses it is created with.
        addresses: u32,
        /// Where; `None` of an older ipamd: where the primary ENI is. The token is good for this place only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        place: Option<EniPlace>,
        /// When.
        at: BootTime,
    },
    /// EC2 has made it.
    EniCreated {
        /// Its place.
        slot: EniSlot,
        /// What it is.
        eni: EniFacts,
        /// Its secondary addresses.
        addresses: Vec<Ipv4Addr>,
        /// When.
        at: BootTime,
    },
    /// EC2 attaches it.
    EniAttaching {
        /// Its place.
        slot: EniSlot,
        /// The attachment.
        attachment: AttachmentId,
        /// When.
        at: BootTime,
    },
    /// Its link is on the node and configured: its addresses can be used.
    EniReady {
        /// Its place.
        slot: EniSlot,
        /// When.
        at: BootTime,
    },
    /// It goes when the instance goes.
    EniProtected {
        /// Its place.
        slot: EniSlot,
    },
    /// An ENI that EC2 shows and the ledger did not know.
    EniAdopted {
        /// Its place.
        slot: EniSlot,
        /// Whether it is the instance's first.
        primary: bool,
        /// What it is.
        eni: EniFacts,
        /// Its secondary addresses.
        addresses: Vec<Ipv4Addr>,
        /// Its attachment, `None` for one that was left behind unattached: it will be deleted.
        attachment: Option<AttachmentId>,
        /// Whether it goes when the instance goes.
        protected: bool,
        /// When.
        at: BootTime,
    },
    /// Intent: it will be detached and deleted; nothing of it is handed out any more.
    EniDraining {
        /// Its place.
        slot: EniSlot,
        /// When.
        at: BootTime,
    },
    /// EC2 detaches it.
    EniDetaching {
        /// Its place.
        slot: EniSlot,
        /// When.
        at: BootTime,
    },
    /// It is detached.
    EniDetached {
        /// Its place.
        slot: EniSlot,
        /// When.
        at: BootTime,
    },
    /// It does not exist any more, or never came to be.
    EniGone {
        /// Its place.
        slot: EniSlot,
        /// When.
        at: BootTime,
    },
    /// The cloud gave addresses.
    Gained {
        /// To which ENI.
        slot: EniSlot,
        /// Which.
        addresses: Vec<Ipv4Addr>,
        /// When.
        at: BootTime,
    },
    /// Intent: these go back to the cloud; they are not handed out any more.
    Unassigning {
        /// Of which ENI.
        slot: EniSlot,
        /// Which.
        addresses: Vec<Ipv4Addr>,
        /// When.
        at: BootTime,
    },
    /// These are not ours any more. A later stale answer that still shows them is not believed for a while.
    Unassigned {
        /// Of which ENI.
        slot: EniSlot,
        /// Which.
        addresses: Vec<Ipv4Addr>,
        /// When.
        at: BootTime,
    },
    /// The cloud refused to take these back: they are ours still.
    UnassignRefused {
        /// Of which ENI.
        slot: EniSlot,
        /// Which.
        addresses: Vec<Ipv4Addr>,
        /// When.
        at: BootTime,
    },
}
