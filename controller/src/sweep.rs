//! Which ENIs nobody will ever use again: pure.
//!
//! An instance that ends while an ENI of its is attached to nothing (it was just made, or just taken off) leaves it behind:
//! its address stays taken, and its security groups and subnet cannot be deleted. On a node that lives, its own daemon sees
//! to such ENIs; those of instances that are gone are swept here.
//!
//! Invariants: what is taken away has veni's (and the AWS VPC CNI's) marks and this cluster's tag, is attached to nothing, is
//! older than [`Rules::grace`], and belonged to an instance that is gone; all of it as seen twice, [`Rules::apart`] from
//! each other. What cannot be told is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use veni_core::id::{EniId, InstanceId};
use veni_provider::{
    Interface, InterfaceStatus, TAG_CLUSTER, TAG_CREATED_AT, TAG_INSTANCE_ID, TAG_NO_MANAGE,
};

/// What veni's daemons, and the AWS VPC CNI's, call their ENIs.
const DESCRIPTION: &str = "aws-K8S-";

/// Which cluster, and how sure one has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The cluster's name, as it is in the ENIs' tags.
    pub cluster: String,
    /// A younger ENI is left, however it looks.
    pub grace: Duration,
    /// How far the two looks are apart at least.
    pub apart: Duration,
}

/// What an ENI is by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// None of ours to take away.
    Left(&'static str),
    /// Ours, and it does not say how old it is.
    Ageless,
    /// Leaked if this instance is gone.
    Suspect(InstanceId),
}

/// What was seen before, by ENI: when first.
#[derive(Debug, Default)]
pub struct Sightings(BTreeMap<EniId, Duration>);

/// Judges an ENI that EC2 lists.
#[must_use]
pub fn judge(eni: &Interface, rules: &Rules, now: Timestamp) -> Verdict {
    let tag = |key: &str| eni.tags.get(key).map(String::as_str);
    if tag(TAG_CLUSTER) != Some(rules.cluster.as_str()) {
        return Verdict::Left("another cluster's");
    }
    if tag(TAG_NO_MANAGE) == Some("true") {
        return Verdict::Left("not to be managed");
    }
    if eni.status != InterfaceStatus::Available || eni.attachment.is_some() {
        return Verdict::Left("attached, or on its way");
    }
    if !eni.description.starts_with(DESCRIPTION) || eni.interface_type != "interface" {
        return Verdict::Left("made by something else");
    }
    let Some(Ok(instance)) = tag(TAG_INSTANCE_ID).map(str::parse) else {
        return Verdict::Left("of no instance");
    };
    let Some(Ok(made)) = tag(TAG_CREATED_AT).map(str::parse::<Timestamp>) else {
        return Verdict::Ageless;
    };
    // One from the future is as young as one of now.
    let age = Duration::try_from(now.duration_since(made)).unwrap_or_default();
    if age < rules.grace { Verdict::Left("young") } else { Verdict::Suspect(instance) }
}

impl Sightings {
    /// Takes a look in: `leaked` are those of instances that are gone, `untold` those of which it could not be told. Which
    /// of the former were seen so before, long enough ago.
    pub fn look(
        &mut self,
        leaked: &BTreeSet<EniId>,
        untold: &BTreeSet<EniId>,
        now: Duration,
        rules: &Rules,
    ) -> Vec<EniId> {
        self.0.retain(|eni, _| leaked.contains(eni) || untold.contains(eni));
        let mut sure = Vec::new();
        for eni in leaked {
            let first = *self.0.entry(eni.clone()).or_insert(now);
            if now.saturating_sub(first) >= rules.apart {
                sure.push(eni.clone());
            }
        }
        sure
    }

    /// It is gone, or it is used after all.
    pub fn forget(&mut self, eni: &EniId) {
        self.0.remove(eni);
    }

    /// How many wait for their second look, or for EC2.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use veni_provider::InterfaceAttachment;

    use super::*;

    const NOW: &str = "2026-11-22T03:00:00Z";

    fn rules() -> Rules {
        let (grace, apart) = (Duration::from_secs(300), Duration::from_secs(60));
        Rules { cluster: "prod".to_owned(), grace, apart }
    }

    fn leaked() -> Interface {
        let tags = [
            (TAG_CLUSTER, "prod"),
            (TAG_INSTANCE_ID, "i-1"),
            (TAG_CREATED_AT, "2026-11-22T02:50:00Z"),
        ];
        Interface {
            id: "eni-1".parse().unwrap(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            subnet_id: "subnet-1".parse().unwrap(),
            vpc_id: "vpc-1".parse().unwrap(),
            primary_address: "10.0.0.4".parse().unwrap(),
            secondary_addresses: Vec::new(),
            prefixes: Vec::new(),
            security_groups: Vec::new(),
            status: InterfaceStatus::Available,
            attachment: None,
            interface_type: "interface".to_owned(),
            description: "aws-K8S-i-1".to_owned(),
            tags: tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        }
    }

    fn check(change: impl FnOnce(&mut Interface), expect: &Verdict) {
        let mut eni = leaked();
        change(&mut eni);
        assert_eq!(judge(&eni, &rules(), NOW.parse().unwrap()), *expect, "{eni:?}");
    }

    fn tagged(key: &str, value: &str) -> impl FnOnce(&mut Interface) {
        let (key, value) = (key.to_owned(), value.to_owned());
        move |eni| drop(eni.tags.insert(key, value))
    }

    #[test]
    fn only_an_unattached_eni_of_this_cluster_that_is_old_enough_is_suspected() {
        use Verdict::{Ageless, Left, Suspect};
        check(|_| {}, &Suspect("i-1".parse().unwrap()));
        check(tagged(TAG_CLUSTER, "prod-2"), &Left("another cluster's"));
        check(|eni| drop(eni.tags.remove(TAG_CLUSTER)), &Left("another cluster's"));
        check(tagged(TAG_NO_MANAGE, "true"), &Left("not to be managed"));
        check(tagged(TAG_NO_MANAGE, "false"), &Suspect("i-1".parse().unwrap()));
        check(|eni| eni.status = InterfaceStatus::InUse, &Left("attached, or on its way"));
        check(|eni| eni.status = InterfaceStatus::Pending, &Left("attached, or on its way"));
        let attachment = InterfaceAttachment {
            id: "eni-attach-1".parse().unwrap(),
            instance_id: "i-1".parse().unwrap(),
            device_index: 1,
            network_card: 0,
            delete_on_termination: true,
        };
        check(|eni| eni.attachment = Some(attachment), &Left("attached, or on its way"));
        check(|eni| eni.description = "ELB app/x".to_owned(), &Left("made by something else"));
        check(|eni| eni.interface_type = "trunk".to_owned(), &Left("made by something else"));
        check(|eni| drop(eni.tags.remove(TAG_INSTANCE_ID)), &Left("of no instance"));
        check(tagged(TAG_INSTANCE_ID, "web"), &Left("of no instance"));
        check(|eni| drop(eni.tags.remove(TAG_CREATED_AT)), &Ageless);
        check(tagged(TAG_CREATED_AT, "yesterday"), &Ageless);
        check(tagged(TAG_CREATED_AT, "2026-11-22T02:55:01Z"), &Left("young"));
        check(tagged(TAG_CREATED_AT, "2026-11-22T02:55:00Z"), &Suspect("i-1".parse().unwrap()));
        check(tagged(TAG_CREATED_AT, "2027-01-01T00:00:00Z"), &Left("young"));
    }

    #[test]
    fn what_was_leaked_at_two_looks_far_enough_apart_is_sure() {
        let enis =
            |list: &[&str]| list.iter().map(|id| id.parse().unwrap()).collect::<BTreeSet<EniId>>();
        let none = BTreeSet::new();
        let mut sightings = Sightings::default();
        let mut look = |leaked: &[&str], untold: &[&str], secs| {
            let (leaked, untold) = (enis(leaked), enis(untold));
            let sure = sightings.look(&leaked, &untold, Duration::from_secs(secs), &rules());
            sure.into_iter().collect::<BTreeSet<_>>()
        };
        assert_eq!(look(&["eni-1", "eni-2", "eni-3"], &[], 0), none);
        assert_eq!(look(&["eni-1", "eni-2"], &["eni-3"], 59), none);
        assert_eq!(look(&["eni-1"], &["eni-3"], 60), enis(&["eni-1"]), "eni-2 is used again");
        assert_eq!(look(&["eni-2", "eni-3"], &[], 70), enis(&["eni-3"]), "eni-2 begins anew");
    }
}
