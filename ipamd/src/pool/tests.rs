//! What answers, late or wrong, make of the ledger: one pool, driven by hand.

use std::{collections::BTreeMap, net::Ipv4Addr};

use veni_core::{
    config::Targets,
    id::EniId,
    ipam::{
        Phase,
        placement::{EniPlace, Networking},
    },
};
use veni_provider::{
    CloudError, ErrorClass, InterfaceAttachment, InterfaceStatus, TAG_CREATED_AT, TAG_INSTANCE_ID,
};

use super::*;
use crate::testing::{INSTANCE, MemoryStore};

const fn secs(secs: u64) -> BootTime {
    BootTime(secs * 1000)
}

fn slot(device_index: u8) -> EniSlot {
    EniSlot::new(0, device_index).unwrap()
}

fn address(eni: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, eni, n)
}

fn id(eni: u8) -> EniId {
    format!("eni-0{eni}").parse().unwrap()
}

/// ENI `eni` with addresses 10.0.`eni`.1 to `addresses`, attached as device `device_index`.
fn interface(eni: u8, addresses: u8, device_index: Option<u8>) -> Interface {
    let attachment = device_index.map(|device_index| InterfaceAttachment {
        id: format!("eni-attach-0{eni}").parse().unwrap(),
        instance_id: INSTANCE.parse().unwrap(),
        device_index,
        network_card: 0,
        delete_on_termination: true,
    });
    let attached = attachment.is_some();
    Interface {
        id: id(eni),
        mac: Mac::local(u64::from(eni)),
        subnet_id: "subnet-1".parse().unwrap(),
        vpc_id: "vpc-1".parse().unwrap(),
        primary_address: address(eni, 0),
        secondary_addresses: (1..=addresses).map(|n| address(eni, n)).collect(),
        prefixes: Vec::new(),
        security_groups: Vec::new(),
        status: if attached { InterfaceStatus::InUse } else { InterfaceStatus::Available },
        attachment,
        interface_type: "interface".into(),
        description: String::new(),
        tags: BTreeMap::from([(TAG_INSTANCE_ID.into(), INSTANCE.into())]),
    }
}

/// An m5.xlarge's pool that has the primary and, as further devices, `enis` of 2 addresses, all in use at 0 s.
fn pool(enis: u8) -> Pool<MemoryStore> {
    let limits = PoolLimits { max_enis: 4, per_eni: 14, device_indexes: 4 };
    let settings = Settings {
        targets: Targets { warm_ip: 5, minimum_ip: 10, ..Targets::default() },
        cooldown: Duration::from_secs(30),
        max_pods: None,
        provisioning: true,
        provisioned_by: PROVISIONING.to_owned(),
        networking: Networking::of_primary(EniPlace {
            subnet: "subnet-1".parse().unwrap(),
            security_groups: Vec::new(),
        }),
        token_seed: "seed-1".into(),
    };
    let place = Place {
        instance_id: INSTANCE.parse().unwrap(),
        subnet_prefix: "10.0.0.0/16".parse().unwrap(),
    };
    let (ledger, store) = (Ledger::default(), MemoryStore::default());
    let mut pool = Pool::new(ledger, store, limits, settings, place, "eni".into(), secs(0));
    let mut shown = vec![interface(0, 10, Some(0))];
    shown.extend((1..=enis).map(|eni| interface(eni, 2, Some(eni))));
    pool.survey(&shown, Adoption { manage_untagged: false }, secs(0));
    let slots: Vec<_> = (0..=enis).map(slot).collect();
    pool.links_ready(&slots, secs(0));
    pool
}

fn observe(pool: &mut Pool<MemoryStore>, at: u8, seen: Option<Interface>, now: BootTime) {
    let eni = pool.ledger.eni(slot(at)).unwrap().facts.as_ref().unwrap().id.clone();
    pool.settle(&Step::Observe { slot: slot(at), eni }, Outcome::Observed(seen), now);
}

fn failed(class: ErrorClass) -> Outcome {
    Outcome::Failed(CloudError::new("Test", class, "Test", "the test says so"))
}

fn phase(pool: &Pool<MemoryStore>, at: u8) -> Option<Phase> {
    pool.ledger.eni(slot(at)).map(|eni| eni.phase.clone())
}

/// A pod that the kernel shows with an address.
fn kernel_pod(address: Ipv4Addr) -> Allocation {
    Allocation {
        attachment: Attachment {
            network: "veni".parse().unwrap(),
            container_id: format!("pod-{address}").parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        },
        pod: veni_core::wire::PodRef::default(),
        netns: std::path::PathBuf::new(),
        address,
        slot: slot(0),
        host_ifname: "eni7".parse().unwrap(),
        host_ifindex: 0x10_0007,
        at: secs(0),
    }
}

#[test]
fn a_detached_eni_that_is_shown_attached_is_detached_again_and_not_forgotten() {
    let mut pool = pool(1);
    pool.note(vec![
        Record::EniDraining { slot: slot(1), at: secs(100) },
        Record::EniDetaching { slot: slot(1), at: secs(100) },
        Record::EniDetached { slot: slot(1), at: secs(101) },
    ]);
    // The answer may be older than the detachment.
    observe(&mut pool, 1, Some(interface(1, 2, Some(1))), secs(110));
    assert_eq!(phase(&pool, 1), Some(Phase::Draining));
    let (_, steps) = pool.next_steps(secs(112));
    assert!(steps.iter().any(|s| matches!(s, Step::DetachEni { .. })), "{steps:?}");
    pool.settle(&steps[0], failed(ErrorClass::NotFound), secs(113));
    observe(&mut pool, 1, Some(interface(1, 2, None)), secs(115));
    assert_eq!(phase(&pool, 1), Some(Phase::Detached));
    let (_, steps) = pool.next_steps(secs(125));
    assert!(steps.iter().any(|s| matches!(s, Step::DeleteEni { .. })), "{steps:?}");
}

#[test]
fn an_orphan_that_is_attached_after_all_is_taken_in_where_it_is() {
    for at in [1, 3] {
        let mut pool = pool(0);
        pool.settle_orphans(Ok(vec![interface(9, 2, None)]), secs(1));
        assert_eq!(phase(&pool, 3), Some(Phase::Detached), "the highest place");
        // A pod of the kernel's that no answer has shown is on it.
        assert!(!pool.adopt_pod(kernel_pod(address(9, 2)), secs(1), |_| true));
        observe(&mut pool, 3, Some(interface(9, 2, Some(at))), secs(5));
        assert_eq!(phase(&pool, at), Some(Phase::Attaching), "device {at}");
        assert_eq!(pool.ledger.enis().count(), 2, "device {at}");
        assert_eq!(pool.ledger.counts().assigned, 1, "device {at}");
        assert!(pool.took_over() && !pool.took_over(), "device {at}");
        assert_eq!(veni_core::ipam::check::check(&pool.ledger, pool.limits), []);
    }
}

#[test]
fn orphans_are_looked_for_until_ec2_tells_and_kept_until_there_is_a_place() {
    let mut pool = pool(3);
    let error = || CloudError::new("Test", ErrorClass::Transient, "Test", "the test says so");
    let mut waits = Vec::new();
    let mut now = secs(1);
    for _ in 0..3 {
        assert_eq!(pool.begin_orphans(now), Ok(()));
        pool.settle_orphans(Err(error()), now);
        assert!(pool.orphans_wanted);
        let until = pool.begin_orphans(now).unwrap_err().expect("it is known until when");
        waits.push(until.0 - now.0);
        now = until;
    }
    assert!(waits[0] < waits[1] && waits[1] < waits[2], "{waits:?}");
    pool.settle_orphans(Ok(vec![interface(9, 2, None)]), now);
    assert!(!pool.orphans_wanted);
    assert_eq!(pool.ledger.enis().count(), 4, "every place is taken");
    pool.note(vec![
        Record::EniDraining { slot: slot(2), at: now },
        Record::EniDetached { slot: slot(2), at: now },
    ]);
    pool.settle(&Step::DeleteEni { slot: slot(2), eni: id(2) }, Outcome::Done, now);
    let (_, steps) = pool.next_steps(now);
    let delete = Step::DeleteEni { slot: slot(2), eni: id(9) };
    assert!(steps.contains(&delete), "{steps:?}");
}

#[test]
fn orphans_are_not_looked_for_while_an_eni_is_being_made() {
    let mut pool = pool(0);
    let token = "seed-1-2-0".to_owned();
    pool.note(vec![Record::EniPlanned {
        slot: slot(1),
        token,
        addresses: 2,
        place: None,
        at: secs(1),
    }]);
    assert_eq!(pool.begin_orphans(secs(1)), Err(None));
    // What an answer that was under way shows may be that one.
    pool.settle_orphans(Ok(vec![interface(9, 2, None)]), secs(1));
    assert!(pool.orphans_wanted);
    assert_eq!(pool.ledger.enis().count(), 2);
}

#[test]
fn an_eni_that_is_being_made_is_not_taken_for_the_one_that_was_there_before() {
    let mut pool = pool(0);
    let token = "seed-1-2-60000".to_owned();
    let made_at = crate::executor::created_at(&token);
    pool.note(vec![Record::EniPlanned {
        slot: slot(1),
        token,
        addresses: 2,
        place: None,
        at: secs(60),
    }]);
    let adoption = Adoption { manage_untagged: false };
    let tagged = |eni, at: &str| {
        let mut shown = interface(eni, 2, Some(1));
        shown.tags.insert(TAG_CREATED_AT.into(), at.into());
        shown
    };
    for now in [61, 100] {
        let before = tagged(8, "2026-01-01T00:00:00Z");
        pool.survey(&[interface(0, 10, Some(0)), before], adoption, secs(now));
        assert!(matches!(phase(&pool, 1), Some(Phase::Creating { .. })), "at {now} s");
    }
    pool.survey(&[interface(0, 10, Some(0)), tagged(9, &made_at)], adoption, secs(101));
    assert_eq!(phase(&pool, 1), Some(Phase::Attaching), "its records were lost");
}

#[test]
fn an_eni_in_use_is_gone_only_after_two_answers_apart() {
    let mut pool = pool(1);
    observe(&mut pool, 1, None, secs(100));
    assert_eq!(phase(&pool, 1), Some(Phase::InUse), "one answer may be stale");
    observe(&mut pool, 1, None, secs(102));
    assert_eq!(phase(&pool, 1), Some(Phase::InUse), "too soon after the first");
    observe(&mut pool, 1, Some(interface(1, 2, Some(1))), secs(104));
    observe(&mut pool, 1, None, secs(200));
    assert_eq!(phase(&pool, 1), Some(Phase::InUse), "it was seen since");
    observe(&mut pool, 1, None, secs(230));
    assert_eq!(phase(&pool, 1), None);
}

#[test]
fn an_eni_that_may_carry_a_pod_is_not_dropped() {
    let mut pool = pool(1);
    assert!(!pool.adopt_pod(kernel_pod(address(1, 3)), secs(0), |_| true));
    for at in [100, 131, 200] {
        observe(&mut pool, 1, None, secs(at));
    }
    observe(
        &mut pool,
        1,
        Some(Interface {
            attachment: None,
            status: InterfaceStatus::Available,
            ..interface(1, 2, None)
        }),
        secs(201),
    );
    assert_eq!(phase(&pool, 1), Some(Phase::InUse));
    assert!(pool.next_steps(secs(300)).1.iter().all(|s| matches!(s, Step::Observe { .. })));
    pool.forget_unclaimed(|_| false);
    assert_eq!(pool.activity.unclaimed, 0);
}

/// In flight from `now` on: what `next_steps` does for a step.
fn start(pool: &mut Pool<MemoryStore>, step: &Step, now: BootTime) {
    pool.activity.in_flight.insert(step.slot(), step.clone());
    pool.began.insert(step.slot(), now);
}

#[test]
fn a_throttle_is_lifted_only_by_a_call_that_was_started_after_it() {
    let mut pool = pool(2);
    let [first, second, third] =
        [0, 1, 2].map(|at| Step::Assign { slot: slot(at), eni: id(at), count: 1 });
    for step in [&first, &second, &third] {
        start(&mut pool, step, secs(100));
    }
    let throttled = || failed(ErrorClass::Throttled { retry_after_millis: Some(5_000) });
    pool.settle(&first, throttled(), secs(101));
    let block = |pool: &Pool<MemoryStore>| pool.activity.blocks.get(&Blocked::Cloud).cloned();
    let set = block(&pool).unwrap();
    pool.settle(&second, Outcome::Assigned(vec![address(1, 9)]), secs(102));
    pool.survey(&[interface(0, 10, Some(0))], Adoption { manage_untagged: false }, secs(102));
    assert_eq!(block(&pool), Some(set.clone()), "they were under way");
    pool.settle(&third, throttled(), secs(103));
    let longer = block(&pool).unwrap();
    assert_eq!(longer.attempts, 0, "it was under way");
    assert!(longer.until >= set.until && longer.until >= secs(108), "{longer:?}");
    start(&mut pool, &first, longer.until);
    pool.settle(&first, throttled(), longer.until);
    let again = block(&pool).unwrap();
    assert_eq!(again.attempts, 1);
    start(&mut pool, &first, again.until);
    pool.settle(&first, Outcome::Assigned(vec![address(0, 99)]), again.until);
    assert_eq!(block(&pool), None);
}

#[test]
fn what_fits_a_call_grows_again_and_is_forgotten() {
    let mut pool = pool(0);
    let assign = |count| Step::Assign { slot: slot(0), eni: id(0), count };
    let full = || failed(ErrorClass::SubnetExhausted { subnet: None });
    let fit = |pool: &mut Pool<MemoryStore>, count, outcome: Outcome| {
        pool.settle(&assign(count), outcome, secs(100));
        pool.activity.fit
    };
    let some = || Outcome::Assigned(Vec::new());
    assert_eq!(fit(&mut pool, 14, full()), Some(7));
    assert_eq!(fit(&mut pool, 7, full()), Some(3));
    assert_eq!(fit(&mut pool, 14, full()), Some(3), "it was under way");
    assert_eq!(fit(&mut pool, 1, some()), Some(3), "it says nothing of 3");
    assert_eq!(fit(&mut pool, 3, some()), Some(6));
    assert_eq!(fit(&mut pool, 6, some()), Some(12));
    assert_eq!(fit(&mut pool, 12, some()), None, "an ENI holds no more");
    assert_eq!(fit(&mut pool, 14, full()), Some(7));
    let _ = pool.next_steps(secs(129));
    assert_eq!(pool.activity.fit, Some(7));
    let _ = pool.next_steps(secs(130));
    assert_eq!(pool.activity.fit, None);
}

#[test]
fn an_index_of_a_living_link_is_passed_over() {
    let mut pool = pool(0);
    let first = pool.ledger.next_ifindex();
    pool.see_indexes([3, first + 4]);
    assert_eq!(pool.ledger.next_ifindex(), first + 5);
    pool.see_indexes([first]);
    pool.pass_over(|index| index < first + 8);
    assert_eq!(pool.ledger.next_ifindex(), first + 8);
    pool.pass_over(|_| false);
    assert_eq!(pool.ledger.next_ifindex(), first + 8);
}
