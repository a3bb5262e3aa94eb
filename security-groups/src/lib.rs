//! Security groups for pods: what EC2 says of a set of groups, complete, kept and refreshed.
//!
//! [`SecurityGroups`] is the interface: which groups are wanted, and what is known of them. [`Resolver`] is the one
//! implementation. It asks a [`Cloud`](veni_provider::Cloud), and only for what no leader publishes
//! ([`published`], [`Driver::led_by`]).
//!
//! Invariants:
//! - A group is published as resolved only with all that its rules refer to. Until then it is pending, or, when it
//!   cannot be read as things are, unresolved with the reason, and denies. Nothing is left out for its size: what is
//!   too large is unresolved.
//! - Neither an error nor a limit takes anything away. A group that was whole stays in force as it was, its age and the
//!   reason are told ([`GroupStatus`]); by way of [`Kept`] in the next daemon too. Only the cloud's word takes: a group
//!   or list that is gone, and a member that is missing, are asked for twice before they count as gone.
//! - All groups are asked for together, [`FILTER_VALUES`](veni_provider::security_group::FILTER_VALUES) at a time, in
//!   jittered intervals; what is new is asked for at once. An action that failed is not tried again before its wait is
//!   over, the cloud's own word first.
//!
//! Deliberately absent: which pod has which group, and verdicts (`veni-policy`); AWS types; veni's own pods as members.

mod assemble;
mod cache;
mod gate;
mod jitter;
mod leader;
mod load;
mod part;
pub mod published;
mod resolver;
mod settings;
mod status;
mod whole;

pub use resolver::{Driver, Resolver};
pub use settings::{Limits, Settings};
pub use status::{GroupHealth, GroupStatus};
pub use whole::Kept;

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;
use veni_core::id::SecurityGroupId;
use veni_policy::security_group as resolved;

/// What is known of all wanted groups. A group that is not in it was not asked for yet.
pub type Snapshot = Arc<resolved::SecurityGroups>;

/// Resolves security groups.
pub trait SecurityGroups: Send + Sync + 'static {
    /// These groups are wanted from now on, and no others. New ones are asked for at once.
    fn want(&self, groups: BTreeSet<SecurityGroupId>);
    /// What is known, from now on: the receiver sees a change as soon as there is one.
    fn subscribe(&self) -> watch::Receiver<Snapshot>;
    /// How each wanted group stands, by id.
    fn status(&self) -> Vec<GroupStatus>;
}

/// Waits until all of `groups` are answered for, resolved or not. Who waits sets the limit, by dropping the future.
///
/// Without a resolver any more there is nothing to wait for: it returns.
pub async fn answered(
    snapshots: &mut watch::Receiver<Snapshot>,
    groups: &BTreeSet<SecurityGroupId>,
) {
    let all = |snapshot: &Snapshot| groups.iter().all(|id| snapshot.groups.contains_key(id));
    if snapshots.wait_for(all).await.is_err() {
        tracing::debug!("the resolver of security groups has ended");
    }
}
