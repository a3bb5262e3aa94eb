use super::*;
use crate::{ipam::check, ipam::plan::PoolLimits, wire::PodRef};

const LIMITS: PoolLimits = PoolLimits { max_enis: 4, per_eni: 14, device_indexes: 4 };
const COOLDOWN: Duration = Duration::from_secs(30);

fn slot(device_index: u8) -> EniSlot {
    EniSlot::new(0, device_index).unwrap()
}

fn facts(n: u8) -> EniFacts {
    EniFacts {
        id: format!("eni-{n}").parse().unwrap(),
        mac: crate::net::Mac::local(n.into()),
        subnet: "subnet-1".parse().unwrap(),
        subnet_prefix: None,
        primary_address: Ipv4Addr::new(10, 0, n, 4),
    }
}

fn addresses(n: u8, count: u8) -> Vec<Ipv4Addr> {
    (0..count).map(|i| Ipv4Addr::new(10, 0, n, 10 + i)).collect()
}

fn primary(count: u8) -> Record {
    Record::EniAdopted {
        slot: slot(0),
        primary: true,
        eni: facts(0),
        addresses: addresses(0, count),
        attachment: Some("eni-attach-0".parse().unwrap()),
        protected: true,
        at: BootTime(0),
    }
}

fn attachment(n: u32) -> Attachment {
    Attachment {
        network: "veni".parse().unwrap(),
        container_id: format!("c{n}").parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
    }
}

fn allocate(ledger: &mut Ledger, n: u32, at: u64) -> Ipv4Addr {
    let (slot, address) = ledger.pick().expect("an address is free");
    let allocation = Allocation {
        attachment: attachment(n),
        pod: PodRef::default(),
        netns: "/run/netns/x".into(),
        address,
        slot,
        host_ifname: format!("eni{n}").parse().unwrap(),
        host_ifindex: ledger.next_ifindex(),
        at: BootTime(at),
    };
    ledger.apply(&Record::Assigned(allocation)).unwrap();
    address
}

fn release(ledger: &mut Ledger, n: u32, at: u64) {
    ledger.apply(&Record::Released { attachment: attachment(n), at: BootTime(at) }).unwrap();
}

fn thaw(ledger: &mut Ledger, at: u64) -> bool {
    let record = ledger.thaw(BootTime(at), COOLDOWN);
    record.is_some_and(|record| ledger.apply(&record).is_ok())
}

fn assert_sound(ledger: &Ledger) {
    assert_eq!(check::check(ledger, LIMITS), []);
}

#[test]
fn a_released_address_cools_before_it_is_handed_out_again() {
    let mut ledger = Ledger::default();
    ledger.apply(&primary(1)).unwrap();
    let first = allocate(&mut ledger, 1, 100);
    release(&mut ledger, 1, 1000);
    assert_eq!(ledger.pick(), None);
    assert!(!thaw(&mut ledger, 30_999));
    assert!(thaw(&mut ledger, 31_000));
    assert_eq!(ledger.pick(), Some((slot(0), first)));
    assert_sound(&ledger);
}

#[test]
fn the_least_recently_used_address_of_the_first_eni_goes_first() {
    let mut ledger = Ledger::default();
    ledger.apply(&primary(2)).unwrap();
    let first = allocate(&mut ledger, 1, 0);
    release(&mut ledger, 1, 10);
    assert!(thaw(&mut ledger, 40_000));
    assert_ne!(allocate(&mut ledger, 2, 50_000), first);
    assert_eq!(allocate(&mut ledger, 3, 50_000), first);
}

#[test]
fn a_record_that_does_not_fit_changes_nothing() {
    let mut ledger = Ledger::default();
    ledger.apply(&primary(3)).unwrap();
    allocate(&mut ledger, 1, 0);
    let before = ledger.clone();
    let taken = ledger.allocation(&attachment(1)).unwrap().clone();
    let misfits = [
        primary(1),
        Record::Assigned(taken.clone()),
        Record::Assigned(Allocation { attachment: attachment(2), ..taken.clone() }),
        Record::Released { attachment: attachment(9), at: BootTime(0) },
        Record::Unassigning { slot: slot(0), addresses: vec![taken.address], at: BootTime(0) },
        Record::EniDraining { slot: slot(0), at: BootTime(0) },
        Record::EniGone { slot: slot(0), at: BootTime(0) },
        Record::EniReady { slot: slot(1), at: BootTime(0) },
        Record::Gained { slot: slot(0), addresses: vec![taken.address], at: BootTime(0) },
    ];
    for misfit in misfits {
        assert!(ledger.apply(&misfit).is_err(), "{misfit:?} was applied");
        assert_eq!(ledger, before, "{misfit:?}");
    }
}

#[test]
fn an_address_on_its_way_back_is_not_handed_out_and_its_ghost_is_not_believed() {
    let mut ledger = Ledger::default();
    ledger.apply(&primary(1)).unwrap();
    let address = addresses(0, 1);
    ledger
        .apply(&Record::Unassigning { slot: slot(0), addresses: address.clone(), at: BootTime(5) })
        .unwrap();
    assert_eq!(ledger.pick(), None);
    ledger
        .apply(&Record::Unassigned { slot: slot(0), addresses: address.clone(), at: BootTime(9) })
        .unwrap();
    assert!(ledger.entombed(slot(0), address[0], BootTime(60_000)));
    assert!(!ledger.entombed(slot(0), address[0], BootTime(130_000)));
    assert!(!ledger.entombed(slot(1), address[0], BootTime(60_000)), "another ENI never had it");
    ledger
        .apply(&Record::Gained { slot: slot(0), addresses: address.clone(), at: BootTime(99) })
        .unwrap();
    assert!(!ledger.entombed(slot(0), address[0], BootTime(100)), "EC2 gave it again");
}

#[test]
fn an_eni_lives_through_its_phases() {
    let mut ledger = Ledger::default();
    ledger.apply(&primary(0)).unwrap();
    let (s, at) = (slot(1), BootTime(1));
    let life = [
        Record::EniPlanned { slot: s, token: "t".into(), addresses: 2, place: None, at },
        Record::EniCreated { slot: s, eni: facts(1), addresses: addresses(1, 2), at },
        Record::EniAttaching { slot: s, attachment: "eni-attach-1".parse().unwrap(), at },
        Record::EniReady { slot: s, at },
        Record::EniProtected { slot: s },
    ];
    for record in &life {
        assert_eq!(ledger.available(), 0);
        ledger.apply(record).unwrap();
        if *record == life[3] {
            break;
        }
    }
    assert_eq!(ledger.available(), 2);
    for record in [
        Record::EniDraining { slot: s, at },
        Record::EniDetaching { slot: s, at },
        Record::EniDetached { slot: s, at },
        Record::EniGone { slot: s, at },
    ] {
        ledger.apply(&record).unwrap();
        assert_eq!(ledger.available(), 0);
    }
    assert!(ledger.eni(s).is_none());
    assert_sound(&ledger);
}

fn place() -> EniPlace {
    EniPlace { subnet: "subnet-2".parse().unwrap(), security_groups: vec!["sg-2".parse().unwrap()] }
}

#[test]
fn a_plan_of_an_older_ipamd_has_no_place_and_a_newer_one_keeps_it() {
    let older = r#"{"record":"eni_planned","slot":2,"token":"t","addresses":2,"at":1}"#;
    let read: Record = serde_json::from_str(older).unwrap();
    assert!(matches!(&read, Record::EniPlanned { place: None, .. }), "{read:?}");
    assert_eq!(serde_json::to_string(&read).unwrap(), older);
    let (slot, token, at) = (slot(1), "t".to_owned(), BootTime(1));
    let newer = Record::EniPlanned { slot, token, addresses: 2, place: Some(place()), at };
    let text = serde_json::to_string(&newer).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), newer);
}

#[test]
fn a_snapshot_replays_to_the_same_ledger() {
    let mut ledger = Ledger::default();
    ledger.apply(&primary(5)).unwrap();
    let at = BootTime(7);
    for (n, records) in [
        (1, vec!["create", "attach", "ready"]),
        (2, vec!["create"]),
        (3, vec!["create", "attach", "drain", "detach"]),
        (4, vec!["create", "attach", "ready", "drain", "detach", "detached"]),
        (5, vec![]),
        (6, vec!["create", "give up"]),
    ] {
        let s = slot(n);
        let (token, place) = (format!("t{n}"), Some(place()));
        ledger.apply(&Record::EniPlanned { slot: s, token, addresses: 2, place, at }).unwrap();
        for what in records {
            let record = match what {
                "create" => {
                    Record::EniCreated { slot: s, eni: facts(n), addresses: addresses(n, 2), at }
                }
                "attach" => Record::EniAttaching {
                    slot: s,
                    attachment: format!("eni-attach-{n}").parse().unwrap(),
                    at,
                },
                "ready" => Record::EniReady { slot: s, at },
                "drain" => Record::EniDraining { slot: s, at },
                "detach" => Record::EniDetaching { slot: s, at },
                _ => Record::EniDetached { slot: s, at },
            };
            ledger.apply(&record).unwrap();
        }
    }
    allocate(&mut ledger, 1, 10);
    allocate(&mut ledger, 2, 11);
    allocate(&mut ledger, 3, 12);
    release(&mut ledger, 2, 13);
    let free = ledger.eni(slot(0)).unwrap().free().next().unwrap();
    ledger.apply(&Record::Unassigning { slot: slot(0), addresses: vec![free], at }).unwrap();
    let returned = ledger.eni(slot(1)).unwrap().free().next().unwrap();
    let addresses = vec![returned];
    let intent = Record::Unassigning { slot: slot(1), addresses: addresses.clone(), at };
    ledger.apply(&intent).unwrap();
    ledger.apply(&Record::Unassigned { slot: slot(1), addresses, at }).unwrap();

    ledger.apply(&Record::Unconfirmed).unwrap();

    let mut replayed = Ledger::default();
    for record in ledger.to_records() {
        replayed.apply(&record).unwrap_or_else(|e| panic!("{record:?}: {e}"));
    }
    assert!(replayed.unconfirmed());
    ledger.apply(&Record::Confirmed).unwrap();
    assert!(!ledger.unconfirmed() && !ledger.to_records().contains(&Record::Unconfirmed));
    assert_eq!(replayed.next_ifindex(), ledger.next_ifindex());
    let states = |l: &Ledger| {
        let mut all: Vec<_> = l.addresses().map(|(a, s, st)| (a, s, format!("{st:?}"))).collect();
        all.sort();
        all
    };
    assert_eq!(states(&replayed), states(&ledger));
    let phases = |l: &Ledger| {
        l.enis().map(|e| (e.slot, e.phase.clone(), e.attachment.clone())).collect::<Vec<_>>()
    };
    assert_eq!(phases(&replayed), phases(&ledger));
    assert_eq!(replayed.allocation(&attachment(3)), ledger.allocation(&attachment(3)));
    assert!(replayed.entombed(slot(1), returned, at) && !replayed.entombed(slot(0), returned, at));
}

#[test]
fn one_cooling_address_is_freed_and_the_others_cool_on() {
    let mut ledger = Ledger::default();
    ledger.apply(&primary(5)).unwrap();
    for n in 1..4 {
        allocate(&mut ledger, n, 10);
        release(&mut ledger, n, 10 + u64::from(n));
    }
    let address = ledger
        .addresses()
        .find(|(_, _, s)| **s == AddressState::Cooling { since: BootTime(12) })
        .map(|(address, ..)| address);
    let record = Record::ThawedAlone { address: address.unwrap() };
    ledger.apply(&record).unwrap();
    assert_eq!((ledger.counts().free, ledger.counts().cooling), (3, 2));
    assert!(ledger.apply(&record).is_err(), "it does not cool any more");
    let json = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    assert!(json.contains("thawed_alone"), "a kind that an older ipamd does not take for another");
    let former = r#"{"record":"thawed","released_until":12}"#;
    let all = Record::Thawed { released_until: BootTime(12) };
    assert_eq!(serde_json::from_str::<Record>(former).unwrap(), all);
    assert_sound(&ledger);
}
