//! The planner over hand-made ledgers. `ipamd` runs it against the simulator with random faults.

use super::*;
use crate::{
    ipam::{Allocation, EniFacts, Record},
    wire::{Attachment, PodRef},
};

struct World {
    ledger: Ledger,
    activity: Activity,
    settings: Settings,
    waiting: u32,
    now: BootTime,
}

fn slot(device_index: u8) -> EniSlot {
    EniSlot::new(0, device_index).unwrap()
}

impl World {
    fn new(targets: Targets) -> Self {
        let settings = Settings {
            targets,
            cooldown: Duration::from_secs(30),
            max_pods: None,
            provisioning: true,
            provisioned_by: String::new(),
            networking: Networking::of_primary(EniPlace {
                subnet: "subnet-1".parse().unwrap(),
                security_groups: Vec::new(),
            }),
            token_seed: "t".into(),
        };
        let mut world = Self {
            ledger: Ledger::default(),
            activity: Activity::default(),
            settings,
            waiting: 0,
            now: BootTime(0),
        };
        world.adopt(0, 0);
        world
    }

    fn adopt(&mut self, n: u8, addresses: u8) {
        let eni = EniFacts {
            id: format!("eni-{n}").parse().unwrap(),
            mac: crate::net::Mac::local(n.into()),
            subnet: "subnet-1".parse().unwrap(),
            subnet_prefix: None,
            primary_address: Ipv4Addr::new(10, 0, n, 4),
        };
        let at = self.now;
        self.apply(Record::EniAdopted {
            slot: slot(n),
            primary: n == 0,
            eni,
            addresses: (0..addresses).map(|i| Ipv4Addr::new(10, 0, n, 10 + i)).collect(),
            attachment: Some(format!("eni-attach-{n}").parse().unwrap()),
            protected: true,
            at,
        });
        if n > 0 {
            self.apply(Record::EniReady { slot: slot(n), at });
        }
    }

    fn apply(&mut self, record: Record) {
        self.ledger.apply(&record).unwrap();
    }

    fn attachment(n: u32) -> Attachment {
        Attachment {
            network: "veni".parse().unwrap(),
            container_id: format!("c{n}").parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        }
    }

    fn allocate(&mut self, n: u32) {
        let (slot, address) = self.ledger.pick().unwrap();
        self.apply(Record::Assigned(Allocation {
            attachment: Self::attachment(n),
            pod: PodRef::default(),
            netns: "/x".into(),
            address,
            slot,
            host_ifname: format!("eni{n}").parse().unwrap(),
            host_ifindex: self.ledger.next_ifindex(),
            at: self.now,
        }));
    }

    fn release(&mut self, n: u32) {
        self.apply(Record::Released { attachment: Self::attachment(n), at: self.now });
    }

    fn plan(&self) -> Plan {
        plan(&Snapshot {
            ledger: &self.ledger,
            activity: &self.activity,
            limits: PoolLimits { max_enis: 4, per_eni: 14, device_indexes: 4 },
            settings: &self.settings,
            waiting: self.waiting,
            now: self.now,
        })
    }

    fn steps(&self) -> Vec<String> {
        self.plan().steps.iter().map(ToString::to_string).collect()
    }
}

fn by_addresses() -> Targets {
    Targets { warm_ip: 5, minimum_ip: 10, ..Targets::default() }
}

#[test]
fn a_fresh_node_fills_its_pool_in_one_call() {
    assert_eq!(World::new(Targets::default()).steps(), ["assign 14 addresses to eni-0"]);
    assert_eq!(World::new(by_addresses()).steps(), ["assign 10 addresses to eni-0"]);
}

#[test]
fn a_burst_asks_at_once_for_what_all_waiters_need() {
    let mut world = World::new(by_addresses());
    world.apply(Record::Gained {
        slot: slot(0),
        addresses: (0..10).map(|i| Ipv4Addr::new(10, 0, 0, 10 + i)).collect(),
        at: BootTime(0),
    });
    (0..10).for_each(|n| world.allocate(n));
    world.waiting = 20;
    assert_eq!(
        world.steps(),
        [
            "create an ENI with 14 addresses for device 1",
            "create an ENI with 11 addresses for device 2"
        ]
    );
}

#[test]
fn what_is_in_flight_is_not_asked_for_twice() {
    let mut world = World::new(by_addresses());
    let step = world.plan().steps.remove(0);
    world.activity.in_flight.insert(slot(0), step);
    assert!(world.plan().steps.is_empty());
    world.waiting = 30;
    assert_eq!(
        world.steps(),
        [
            "create an ENI with 14 addresses for device 1",
            "create an ENI with 11 addresses for device 2"
        ]
    );
}

/// An ENI is three calls, seconds, and later two calls to be rid of it.
#[test]
fn no_eni_is_made_while_the_one_with_room_is_busy() {
    let mut world = World::new(Targets { warm_ip: 2, ..by_addresses() });
    let step = world.plan().steps.remove(0);
    assert_eq!(step.to_string(), "assign 10 addresses to eni-0");
    world.activity.in_flight.insert(slot(0), step);
    world.waiting = 12;
    let plan = world.plan();
    assert!(plan.steps.is_empty(), "{:?}", plan.steps);
    let reason = "4 addresses are missing: 4 fit on ENIs that are busy or come";
    assert_eq!(plan.reasons, [reason]);
}

#[test]
fn idle_enis_go_whole_once_the_cooldown_has_passed() {
    let mut world = World::new(by_addresses());
    world.adopt(1, 14);
    world.adopt(2, 11);
    world.apply(Record::Gained {
        slot: slot(0),
        addresses: (0..10).map(|i| Ipv4Addr::new(10, 0, 0, 10 + i)).collect(),
        at: BootTime(0),
    });
    (0..30).for_each(|n| world.allocate(n));
    world.now = BootTime(100_000);
    (0..30).for_each(|n| world.release(n));
    assert!(world.plan().steps.is_empty(), "everything cools");
    world.now = BootTime(130_000);
    let thaw = world.ledger.thaw(world.now, world.settings.cooldown).unwrap();
    world.apply(thaw);
    assert_eq!(world.steps(), ["detach the ENI at device 1", "detach the ENI at device 2"]);
}

#[test]
fn an_eni_too_young_to_be_freed_keeps_its_addresses_together() {
    let mut world = World::new(by_addresses());
    world.now = BootTime(1_000);
    world.adopt(1, 14);
    world.apply(Record::Gained {
        slot: slot(0),
        addresses: (0..10).map(|i| Ipv4Addr::new(10, 0, 0, 10 + i)).collect(),
        at: BootTime(0),
    });
    world.now = BootTime(2_000);
    let plan = world.plan();
    assert!(plan.steps.is_empty(), "{:?}", plan.steps);
    assert_eq!(plan.wake_at, Some(BootTime(61_000)));
    assert_eq!(plan.waiting_for, ["eni-1 is idle and too young to be freed"]);
}

#[test]
fn single_addresses_above_the_targets_go_back() {
    let mut world = World::new(by_addresses());
    world.apply(Record::Gained {
        slot: slot(0),
        addresses: (0..14).map(|i| Ipv4Addr::new(10, 0, 0, 10 + i)).collect(),
        at: BootTime(0),
    });
    assert_eq!(world.steps(), ["give back 4 addresses of eni-0"]);
}

#[test]
fn warm_eni_mode_keeps_one_spare_eni_and_frees_the_rest() {
    let mut world = World::new(Targets::default());
    for n in 1..4 {
        world.adopt(n, 14);
    }
    world.apply(Record::Gained {
        slot: slot(0),
        addresses: (0..14).map(|i| Ipv4Addr::new(10, 0, 0, 10 + i)).collect(),
        at: BootTime(0),
    });
    world.now = BootTime(100_000);
    assert_eq!(
        world.steps(),
        ["detach the ENI at device 3", "detach the ENI at device 2", "detach the ENI at device 1"]
    );
}

#[test]
fn a_doubt_is_settled_before_anything_else_happens_to_the_eni() {
    let mut world = World::new(by_addresses());
    world.activity.doubts.insert(slot(0));
    assert_eq!(world.steps()[0], "ask EC2 how it stands with eni-0");
    assert!(!world.steps().iter().any(|s| s.starts_with("assign")), "{:?}", world.steps());
}

#[test]
fn a_full_subnet_blocks_growth_until_it_is_tried_again() {
    let mut world = World::new(by_addresses());
    for blocked in [Blocked::Assign, Blocked::NewEni] {
        let block = Block {
            until: BootTime(5_000),
            attempts: 1,
            kind: "subnet_full",
            reason: "subnet-1 is full".into(),
            since: BootTime(0),
        };
        world.activity.blocks.insert(blocked, block);
    }
    let plan = world.plan();
    assert!(plan.steps.is_empty());
    assert_eq!((plan.wanted, plan.wake_at), (10, Some(BootTime(5_000))));
    world.now = BootTime(5_000);
    assert_eq!(world.steps(), ["assign 10 addresses to eni-0"]);
}

#[test]
fn foreign_enis_take_their_place() {
    let mut world = World::new(by_addresses());
    world.activity.foreign.extend([slot(1), slot(2)]);
    world.waiting = 50;
    assert_eq!(
        world.steps(),
        ["create an ENI with 14 addresses for device 3", "assign 14 addresses to eni-0"]
            .map(String::from)
            .iter()
            .rev()
            .cloned()
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_detached_eni_is_deleted_once_ec2_has_had_time() {
    let mut world = World::new(by_addresses());
    world.adopt(1, 0);
    let at = BootTime(100_000);
    for record in
        [Record::EniDraining { slot: slot(1), at }, Record::EniDetached { slot: slot(1), at }]
    {
        world.apply(record);
    }
    world.settings.provisioning = false;
    world.now = BootTime(104_999);
    assert!(world.steps().is_empty());
    assert_eq!(world.plan().wake_at, Some(BootTime(105_000)));
    world.now = BootTime(105_000);
    assert_eq!(world.steps(), ["delete eni-1"]);
}

#[test]
fn nothing_is_taken_from_the_primary_while_an_idle_eni_is_in_doubt() {
    let mut world = World::new(by_addresses());
    world.adopt(1, 14);
    world.apply(Record::Gained {
        slot: slot(0),
        addresses: (0..10).map(|i| Ipv4Addr::new(10, 0, 0, 10 + i)).collect(),
        at: BootTime(0),
    });
    world.now = BootTime(100_000);
    world.activity.doubts.insert(slot(1));
    assert_eq!(world.steps(), ["ask EC2 how it stands with eni-1"]);
    world.activity.doubts.clear();
    assert_eq!(world.steps(), ["detach the ENI at device 1"]);
}

/// What errors, or pods that went in an unlucky order, leave: a few addresses on an ENI that nothing else needs.
#[test]
fn a_few_addresses_do_not_keep_an_idle_eni() {
    for (targets, on_primary, on_idle, expect) in [
        (by_addresses(), 9, 1, "assign 1 address to eni-0"),
        (by_addresses(), 6, 14, "assign 4 addresses to eni-0"),
        (Targets::default(), 13, 14, "assign 1 address to eni-0"),
        (Targets::default(), 14, 13, "detach the ENI at device 1"),
    ] {
        let mut world = World::new(targets);
        world.adopt(1, on_idle);
        let addresses = (0..on_primary).map(|i| Ipv4Addr::new(10, 0, 0, 10 + i)).collect();
        world.apply(Record::Gained { slot: slot(0), addresses, at: BootTime(0) });
        world.now = BootTime(59_000);
        assert!(world.steps().is_empty(), "too young: {:?}", world.steps());
        assert_eq!(world.plan().wake_at, Some(BootTime(60_000)));
        world.now = BootTime(60_000);
        assert_eq!(world.steps(), [expect]);
    }
}

#[test]
fn an_idle_eni_stays_where_no_other_has_room_for_its_addresses() {
    let mut world = World::new(by_addresses());
    world.apply(Record::Gained {
        slot: slot(0),
        addresses: (0..14).map(|i| Ipv4Addr::new(10, 0, 0, 10 + i)).collect(),
        at: BootTime(0),
    });
    (0..14).for_each(|n| world.allocate(n));
    world.adopt(1, 5);
    world.now = BootTime(100_000);
    assert!(world.steps().is_empty(), "{:?}", world.steps());
}

#[test]
fn what_is_missing_is_told_in_the_right_number() {
    for (primary_has, expect) in [
        (13, vec!["1 address is missing: 1 fits on eni-0"]),
        (12, vec!["2 addresses are missing: 2 fit on eni-0"]),
        (14, vec!["1 address is missing: a new ENI brings 1"]),
    ] {
        let total = primary_has + if primary_has == 12 { 2 } else { 1 };
        let mut world = World::new(Targets { minimum_ip: total, warm_ip: 1, ..Targets::default() });
        let addresses = (0..primary_has).map(|i| Ipv4Addr::from(0x0a00_000a + i)).collect();
        world.apply(Record::Gained { slot: slot(0), addresses, at: BootTime(0) });
        assert_eq!(world.plan().reasons, expect, "{primary_has}");
    }
}

#[test]
fn what_blocks_several_things_is_waited_for_once() {
    let mut world = World::new(by_addresses());
    for (what, until) in [(Blocked::Assign, 9_000), (Blocked::NewEni, 5_000)] {
        let block = Block {
            until: BootTime(until),
            attempts: 1,
            kind: SUBNET_FULL,
            reason: "subnet-1 is full".to_owned(),
            since: BootTime(0),
        };
        world.activity.blocks.insert(what, block);
    }
    let plan = world.plan();
    assert_eq!(plan.waiting_for, ["subnet-1 is full"]);
    assert_eq!(plan.wake_at, Some(BootTime(5_000)), "the earlier one");
}

/// The world's second ENI, attached at `now` and without a link, with 11 addresses.
fn attach_second(world: &mut World) {
    world.apply(Record::EniAdopted {
        slot: slot(1),
        primary: false,
        eni: EniFacts {
            id: "eni-1".parse().unwrap(),
            mac: crate::net::Mac::local(1),
            subnet: "subnet-1".parse().unwrap(),
            subnet_prefix: None,
            primary_address: Ipv4Addr::new(10, 0, 1, 4),
        },
        addresses: (0..11).map(|i| Ipv4Addr::new(10, 0, 1, 10 + i)).collect(),
        attachment: Some("eni-attach-1".parse().unwrap()),
        protected: true,
        at: world.now,
    });
}

fn fill_primary(world: &mut World, pods: u32) {
    let addresses = (0..14).map(|i| Ipv4Addr::new(10, 0, 0, 10 + i)).collect();
    world.apply(Record::Gained { slot: slot(0), addresses, at: world.now });
    (0..pods).for_each(|n| world.allocate(n));
}

#[test]
fn an_eni_without_a_link_is_not_counted_on_for_ever_and_goes() {
    let mut world = World::new(by_addresses());
    fill_primary(&mut world, 14);
    attach_second(&mut world);
    world.waiting = 6;
    assert!(world.steps().is_empty(), "it brings what is missing: {:?}", world.steps());
    let observe = "ask EC2 how it stands with eni-1";
    world.now = BootTime(59_999);
    assert_eq!(world.steps(), [observe]);
    let wait = |until: u64| Block {
        until: BootTime(until),
        attempts: 3,
        kind: "attaching",
        reason: "no link yet".into(),
        since: BootTime(0),
    };
    world.activity.blocks.insert(Blocked::Slot(slot(1)), wait(300_000));
    assert_eq!(world.plan().wake_at, Some(BootTime(60_000)));
    world.now = BootTime(60_000);
    let create = "create an ENI with 11 addresses for device 2";
    assert_eq!(world.steps(), [create]);
    // A daemon that has just begun has not seen its links yet.
    world.activity.began = BootTime(50_000);
    assert!(world.steps().is_empty(), "{:?}", world.steps());
    world.activity.began = BootTime(0);
    world.waiting = 0;
    world.now = BootTime(180_000);
    let detach = "detach the ENI at device 1";
    assert_eq!(world.steps()[0], detach);
    for keep in [
        |world: &mut World| world.settings.provisioning = false,
        |world: &mut World| world.activity.unclaimed = 1,
        |world: &mut World| world.activity.doubts.extend([slot(1)]),
        |world: &mut World| {
            let allocation = Allocation {
                attachment: World::attachment(99),
                pod: PodRef::default(),
                netns: "/x".into(),
                address: Ipv4Addr::new(10, 0, 1, 10),
                slot: slot(1),
                host_ifname: "eni99".parse().unwrap(),
                host_ifindex: world.ledger.next_ifindex(),
                at: world.now,
            };
            world.apply(Record::Assigned(allocation));
        },
    ] {
        let mut world = World {
            ledger: world.ledger.clone(),
            activity: world.activity.clone(),
            settings: world.settings.clone(),
            ..world
        };
        keep(&mut world);
        assert!(!world.steps().contains(&detach.to_owned()), "{:?}", world.steps());
    }
}

#[test]
fn an_eni_is_protected_as_soon_as_it_has_an_attachment() {
    let mut world = World::new(by_addresses());
    let at = BootTime(0);
    let (token, place) = ("t".to_owned(), None);
    world.apply(Record::EniPlanned { slot: slot(1), token, addresses: 2, place, at });
    let eni = world.ledger.eni(slot(0)).unwrap().facts.clone().unwrap();
    let eni = EniFacts { id: "eni-1".parse().unwrap(), ..eni };
    let addresses = vec![Ipv4Addr::new(10, 0, 1, 1), Ipv4Addr::new(10, 0, 1, 2)];
    world.apply(Record::EniCreated { slot: slot(1), eni, addresses, at });
    assert_eq!(world.steps()[0], "attach eni-1 as device 1");
    let attachment: AttachmentId = "eni-attach-1".parse().unwrap();
    world.apply(Record::EniAttaching { slot: slot(1), attachment: attachment.clone(), at });
    assert_eq!(world.steps()[0], "let eni-1 go when the instance goes");
    world.apply(Record::EniProtected { slot: slot(1) });
    assert!(!world.steps().iter().any(|s| s.starts_with("let")), "once: {:?}", world.steps());
    world.apply(Record::EniReady { slot: slot(1), at });
    assert!(!world.steps().iter().any(|s| s.starts_with("let")), "once: {:?}", world.steps());
    for (again, protected) in [(attachment, true), ("eni-attach-2".parse().unwrap(), false)] {
        for record in [
            Record::EniDraining { slot: slot(1), at },
            Record::EniDetached { slot: slot(1), at },
            Record::EniAttaching { slot: slot(1), attachment: again, at },
        ] {
            world.apply(record);
        }
        assert_eq!(world.ledger.eni(slot(1)).unwrap().protected, protected);
    }
}

#[test]
fn an_eni_that_is_to_go_stays_while_a_pod_has_an_address_of_it() {
    let mut world = World::new(by_addresses());
    world.adopt(1, 2);
    world.apply(Record::EniDraining { slot: slot(1), at: BootTime(0) });
    let detach = || "detach the ENI at device 1".to_owned();
    assert!(world.steps().contains(&detach()), "{:?}", world.steps());
    world.apply(Record::Assigned(Allocation {
        attachment: World::attachment(0),
        pod: PodRef::default(),
        netns: "/x".into(),
        address: Ipv4Addr::new(10, 0, 1, 10),
        slot: slot(1),
        host_ifname: "eni0".parse().unwrap(),
        host_ifindex: world.ledger.next_ifindex(),
        at: world.now,
    }));
    assert!(!world.steps().contains(&detach()), "{:?}", world.steps());
    world.release(0);
    assert!(world.steps().contains(&detach()), "{:?}", world.steps());
}

#[test]
fn enis_get_the_primarys_security_groups_where_ec2_shows_others() {
    let mut world = World::new(by_addresses());
    world.adopt(1, 10);
    let set = "set the security groups of eni-1".to_owned();
    let groups = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect::<Vec<_>>();
    world.settings.networking.primary.security_groups = groups(&["sg-b", "sg-a"]);
    assert!(!world.steps().contains(&set), "it is not known which they are");
    let show = |world: &mut World, eni: &str, ids: &[&str]| {
        let shown = groups(ids).into_iter().collect();
        world.activity.groups.insert(eni.parse().unwrap(), shown);
    };
    let shown = |world: &mut World, ids: &[&str]| show(world, "eni-1", ids);
    shown(&mut world, &["sg-a"]);
    assert!(!world.steps().contains(&set), "EC2 has not shown the primary's");
    show(&mut world, "eni-0", &["sg-a", "sg-b"]);
    shown(&mut world, &["sg-a", "sg-b"]);
    assert!(!world.steps().contains(&set), "the same in another order");
    shown(&mut world, &["sg-a"]);
    assert!(world.steps().contains(&set), "{:?}", world.steps());
    show(&mut world, "eni-0", &["sg-c"]);
    shown(&mut world, &["sg-c"]);
    assert!(!world.steps().contains(&set), "all have new ones, metadata has not heard of it");
    shown(&mut world, &["sg-a"]);
    assert!(!world.steps().contains(&set), "metadata and EC2 do not agree");
    world.settings.networking.primary.security_groups = groups(&["sg-c"]);
    assert!(world.steps().contains(&set), "{:?}", world.steps());
    show(&mut world, "eni-0", &[]);
    world.settings.networking.primary.security_groups.clear();
    assert!(!world.steps().contains(&set), "metadata that shows none is not believed");
    show(&mut world, "eni-0", &["sg-b"]);
    world.settings.networking.primary.security_groups = groups(&["sg-b"]);
    world.settings.networking.custom = Some(crate::ipam::placement::Custom::default());
    assert!(!world.steps().contains(&set), "an ENIConfig's ENIs keep theirs");
}

#[test]
fn an_eni_whose_link_is_there_and_not_usable_stays_and_no_other_is_made() {
    let steps = |present: &[u8]| {
        let mut world = World::new(by_addresses());
        world.waiting = 30;
        world.apply(Record::Gained {
            slot: slot(0),
            addresses: (0..14).map(|i| Ipv4Addr::new(10, 0, 0, 10 + i)).collect(),
            at: BootTime(0),
        });
        (0..14).for_each(|n| world.allocate(n));
        world.adopt(1, 14);
        for record in [
            Record::EniDraining { slot: slot(1), at: BootTime(0) },
            Record::EniDetached { slot: slot(1), at: BootTime(0) },
            Record::EniAttaching {
                slot: slot(1),
                attachment: "eni-attach-1".parse().unwrap(),
                at: BootTime(0),
            },
        ] {
            world.apply(record);
        }
        world.activity.links_known = true;
        world.activity.links = [slot(0)].into();
        world.activity.present = present.iter().map(|n| slot(*n)).collect();
        world.now = BootTime(0).after(LINK_GIVE_UP);
        world.steps()
    };
    let (absent, there) = (steps(&[0]), steps(&[0, 1]));
    assert!(absent.contains(&"detach the ENI at device 1".to_owned()), "{absent:?}");
    assert!(absent.iter().any(|step| step.starts_with("create an ENI")), "{absent:?}");
    assert_eq!(there, ["ask EC2 how it stands with eni-1"]);
}
