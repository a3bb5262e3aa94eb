//! The simulator behaves as EC2 does where it shows to a caller: time, tokens, faults, late answers.

#![expect(clippy::unwrap_used, reason = "a test says what it needs by failing")]

#[path = "common/clock.rs"]
mod clock;
#[path = "common/region.rs"]
mod region;

use std::{
    sync::{Arc, Mutex, atomic},
    time::Duration,
};

use veni_core::id::{AttachmentId, EniId, SubnetId};
use veni_provider::{
    AttachInterface, Cloud, CloudResult, CreateInterface, ErrorClass, Interface, InterfaceFilter,
    InterfaceStatus, MetadataInterface,
    call::{Answer, Call, Failure},
    sim::{
        AddressChoice, BucketSize, Consistency, Distortion, DistortionKind, Event, EventKind,
        Fault, Latency, Outcome, Sim, SimCloud, SimConfig, Throttling, WorldError,
    },
};

use crate::{
    clock::{Clock, cloud},
    region::{instance, region, request, run},
};

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn subnet() -> SubnetId {
    "subnet-a".parse().unwrap()
}

fn call(sim: &mut Sim, millis: u64, call: Call) -> CloudResult<Answer> {
    sim.call(at(millis), &instance(), call)
}

fn create(sim: &mut Sim, millis: u64, token: &str, secondary: u32) -> Interface {
    match call(sim, millis, Call::CreateInterface(request(&subnet(), token, secondary))).unwrap() {
        Answer::Interface(interface) => *interface,
        other => panic!("{other:?}"),
    }
}

fn attach(sim: &mut Sim, millis: u64, eni: &EniId, device_index: u8) -> AttachmentId {
    let request =
        AttachInterface { eni: eni.clone(), instance: instance(), device_index, network_card: 0 };
    match call(sim, millis, Call::AttachInterface(request)).unwrap() {
        Answer::Attachment(id) => id,
        other => panic!("{other:?}"),
    }
}

fn describe(sim: &mut Sim, millis: u64, eni: &EniId) -> CloudResult<Interface> {
    match call(sim, millis, Call::DescribeInterfaces(InterfaceFilter::Ids(vec![eni.clone()])))? {
        Answer::Interfaces(mut interfaces) => Ok(interfaces.remove(0)),
        other => panic!("{other:?}"),
    }
}

fn metadata(sim: &mut Sim, millis: u64) -> Vec<MetadataInterface> {
    match call(sim, millis, Call::MetadataInterfaces).unwrap() {
        Answer::MetadataInterfaces(interfaces) => interfaces,
        other => panic!("{other:?}"),
    }
}

fn kinds(events: &[Event]) -> Vec<(u64, &'static str)> {
    let name = |kind: &EventKind| match kind {
        EventKind::Created { .. } => "created",
        EventKind::Attached { .. } => "attached",
        EventKind::Detaching { .. } => "detaching",
        EventKind::Detached { .. } => "detached",
        EventKind::Assigned { .. } => "assigned",
        EventKind::Unassigned { .. } => "unassigned",
        EventKind::Deleted { .. } => "deleted",
    };
    events.iter().map(|event| (event.at_millis, name(&event.kind))).collect()
}

#[test]
fn attachments_take_their_time_and_happen_at_their_own_moment() {
    let latency = Latency { attach_millis: 2_000, detach_millis: 3_000, ..Latency::none() };
    let mut sim = region(SimConfig { latency, ..SimConfig::instant() });
    let interface = create(&mut sim, 0, "a", 1);
    let attachment = attach(&mut sim, 100, &interface.id, 1);
    assert_eq!(sim.next_event_at(), Some(at(2_100)));
    assert_eq!(
        describe(&mut sim, 2_099, &interface.id).unwrap().status,
        InterfaceStatus::Attaching
    );
    assert_eq!(metadata(&mut sim, 2_099).len(), 1, "the device is not there yet");
    let early = call(&mut sim, 2_099, Call::DetachInterface(attachment.clone())).unwrap_err();
    assert_eq!(early.code, "IncorrectState");
    assert_eq!(describe(&mut sim, 2_100, &interface.id).unwrap().status, InterfaceStatus::InUse);
    assert_eq!(metadata(&mut sim, 2_100).len(), 2);
    for _ in 0..2 {
        call(&mut sim, 5_000, Call::DetachInterface(attachment.clone())).unwrap();
    }
    assert_eq!(
        describe(&mut sim, 5_000, &interface.id).unwrap().status,
        InterfaceStatus::Detaching
    );
    let early = call(&mut sim, 7_999, Call::DeleteInterface(interface.id.clone())).unwrap_err();
    assert_eq!((early.class, early.code.as_str()), (ErrorClass::Invalid, "InvalidParameterValue"));
    call(&mut sim, 60_000, Call::DeleteInterface(interface.id.clone())).unwrap();
    let expected = [
        (0, "created"),
        (2_100, "attached"),
        (5_000, "detaching"),
        (8_000, "detached"),
        (60_000, "deleted"),
    ];
    assert_eq!(kinds(&sim.drain_events()), expected);
    assert_eq!(sim.next_event_at(), None);
}

#[test]
fn events_tell_every_address_that_comes_and_goes() {
    let mut sim = region(SimConfig::instant());
    let interface = create(&mut sim, 0, "a", 0);
    attach(&mut sim, 0, &interface.id, 1);
    sim.drain_events();
    let Answer::Addresses(new) =
        call(&mut sim, 1, Call::AssignAddresses { eni: interface.id.clone(), count: 2 }).unwrap()
    else {
        panic!("no addresses")
    };
    let gone = vec![new[1]];
    call(
        &mut sim,
        2,
        Call::UnassignAddresses { eni: interface.id.clone(), addresses: gone.clone() },
    )
    .unwrap();
    let events = sim.drain_events();
    let eni = interface.id;
    let on = Some(instance());
    assert_eq!(
        events[0].kind,
        EventKind::Assigned {
            eni: eni.clone(),
            instance: on.clone(),
            addresses: new,
            prefixes: vec![]
        }
    );
    assert_eq!(events[1].kind, EventKind::Unassigned { eni, instance: on, addresses: gone });
}

#[test]
fn the_same_seed_gives_the_same_region() {
    let story = |seed| {
        let mut sim = region(SimConfig::default().with_seed(seed));
        let interface = create(&mut sim, 0, "a", 5);
        attach(&mut sim, 0, &interface.id, 1);
        (interface, sim.next_event_at())
    };
    assert_eq!(story(7), story(7));
    assert_ne!(story(7), story(8));
}

#[test]
fn each_action_has_a_bucket_of_its_own() {
    let throttling = Throttling {
        describe: BucketSize { capacity: 100, refill_per_sec: 20 },
        mutating: BucketSize { capacity: 2, refill_per_sec: 1 },
    };
    let mut sim = region(SimConfig { throttling: Some(throttling), ..SimConfig::instant() });
    let eni = create(&mut sim, 0, "a", 0).id;
    create(&mut sim, 0, "b", 0);
    let refused =
        call(&mut sim, 999, Call::CreateInterface(request(&subnet(), "c", 0))).unwrap_err();
    assert_eq!(refused.code, "RequestLimitExceeded");
    assert_eq!(refused.class, ErrorClass::Throttled { retry_after_millis: None });
    call(&mut sim, 999, Call::AssignAddresses { eni, count: 1 }).unwrap();
    create(&mut sim, 1_000, "c", 0);
    let counts = sim.calls().of("CreateNetworkInterface");
    assert_eq!((counts.calls, counts.errors, counts.throttled), (4, 1, 1));
    sim.set_throttling(None);
    (0..50).for_each(|n| drop(create(&mut sim, 1_000, &format!("d{n}"), 0)));
}

#[test]
fn faults_strike_the_calls_that_they_name() {
    let create = |token: &str| Call::CreateInterface(request(&subnet(), token, 0));
    let codes = |fault: Fault| {
        let mut sim = region(SimConfig::instant());
        sim.inject(fault);
        let outcome = |n| {
            call(&mut sim, 0, create(&format!("t{n}")))
                .map_or_else(|error| error.code, |_| "ok".into())
        };
        let codes: Vec<String> = (0..4).map(outcome).collect();
        (codes.join(" "), sim.interfaces().count() - 1)
    };
    let action = "CreateNetworkInterface";
    let quota = Failure::new(ErrorClass::Quota, "NetworkInterfaceLimitExceeded", "no more");
    let check = |fault, expected: &str, made| assert_eq!(codes(fault), (expected.to_owned(), made));
    check(Fault::error_before(action, quota).nth(2), "ok NetworkInterfaceLimitExceeded ok ok", 3);
    check(Fault::lost_answer(action).times(2), "Unavailable Unavailable ok ok", 4);
    check(Fault::throttle(action, Some(5)).nth(4), "ok ok ok RequestLimitExceeded", 3);
    check(Fault::deny("AttachNetworkInterface"), "ok ok ok ok", 4);
    check(Fault::unavailable(action).by("i-2".parse().unwrap()), "ok ok ok ok", 4);
    check(
        Fault { action: None, ..Fault::deny(action) }.times(1),
        "UnauthorizedOperation ok ok ok",
        3,
    );
    check(Fault::deny(action).percent(0), "ok ok ok ok", 4);
}

#[test]
fn a_fault_taken_back_strikes_no_more() {
    let mut sim = region(SimConfig::instant());
    let id = sim.inject(Fault::deny("CreateNetworkInterface"));
    let denied = call(&mut sim, 0, Call::CreateInterface(request(&subnet(), "a", 0))).unwrap_err();
    assert_eq!(denied.class, ErrorClass::Denied { action: "CreateNetworkInterface".into() });
    assert!(sim.withdraw(id));
    assert!(!sim.withdraw(id));
    create(&mut sim, 0, "a", 0);
    let outcomes: Vec<_> = sim.call_log().map(|record| record.outcome.clone()).collect();
    assert_eq!(outcomes, [Outcome::Failed("UnauthorizedOperation".into()), Outcome::Done]);
}

#[test]
fn a_stale_describe_shows_the_past() {
    let consistency = Consistency { describe_delay_millis: 1_000, ..Consistency::default() };
    let mut sim = region(SimConfig { consistency, ..SimConfig::instant() });
    let interface = create(&mut sim, 5_000, "a", 0);
    let unseen = describe(&mut sim, 5_999, &interface.id).unwrap_err();
    assert_eq!(unseen.class, ErrorClass::NotFound);
    call(&mut sim, 6_000, Call::AssignAddresses { eni: interface.id.clone(), count: 2 }).unwrap();
    assert_eq!(describe(&mut sim, 6_500, &interface.id).unwrap().secondary_addresses.len(), 0);
    assert_eq!(describe(&mut sim, 7_000, &interface.id).unwrap().secondary_addresses.len(), 2);
    call(&mut sim, 7_000, Call::DeleteInterface(interface.id.clone())).unwrap();
    assert!(describe(&mut sim, 7_999, &interface.id).is_ok(), "the deleted one is still shown");
    assert!(describe(&mut sim, 8_000, &interface.id).is_err());
    assert_eq!(sim.interfaces().count(), 1, "the truth has no delay");
}

#[test]
fn a_very_young_interface_can_be_unknown_to_calls() {
    let consistency = Consistency { new_interface_hidden_millis: 300, ..Consistency::default() };
    let mut sim = region(SimConfig { consistency, ..SimConfig::instant() });
    let eni = create(&mut sim, 1_000, "a", 0).id;
    let tags = Call::CreateTags { eni, tags: [("k".to_owned(), "v".to_owned())].into() };
    assert_eq!(call(&mut sim, 1_299, tags.clone()).unwrap_err().class, ErrorClass::NotFound);
    call(&mut sim, 1_300, tags).unwrap();
}

#[test]
fn metadata_lags_but_always_knows_the_primary() {
    let consistency = Consistency { metadata_delay_millis: 2_000, ..Consistency::default() };
    let mut sim = region(SimConfig { consistency, ..SimConfig::instant() });
    let interface = create(&mut sim, 10_000, "a", 3);
    attach(&mut sim, 10_000, &interface.id, 1);
    call(&mut sim, 11_000, Call::AssignAddresses { eni: interface.id.clone(), count: 1 }).unwrap();
    assert_eq!(metadata(&mut sim, 11_999).len(), 1);
    assert_eq!(metadata(&mut sim, 12_000)[1].addresses.len(), 4);
    assert_eq!(metadata(&mut sim, 13_000)[1].addresses.len(), 5);
}

#[test]
fn metadata_forgets_and_answers_short_while_it_is_distorted() {
    let mut sim = region(SimConfig::instant());
    let interface = create(&mut sim, 0, "a", 3);
    attach(&mut sim, 0, &interface.id, 1);
    let distortion = |kind, for_millis| Distortion {
        instance: instance(),
        eni: Some(interface.id.clone()),
        kind,
        for_millis,
    };
    sim.distort(at(0), distortion(DistortionKind::Omit, 60_000));
    assert_eq!(metadata(&mut sim, 59_999).len(), 1);
    assert_eq!(metadata(&mut sim, 60_000).len(), 2);
    sim.distort(at(60_000), distortion(DistortionKind::Short { addresses: 2 }, 1_000));
    assert_eq!(metadata(&mut sim, 60_500)[1].addresses.len(), 2);
    assert_eq!(metadata(&mut sim, 60_500)[0].addresses.len(), 1, "the primary ENI is not meant");
    assert_eq!(metadata(&mut sim, 61_000)[1].addresses.len(), 4);
}

#[test]
fn termination_takes_what_goes_with_the_instance() {
    let mut sim = region(SimConfig::instant());
    let goes = create(&mut sim, 0, "a", 2);
    let stays = create(&mut sim, 0, "b", 2);
    let attachment = attach(&mut sim, 0, &goes.id, 1);
    attach(&mut sim, 0, &stays.id, 2);
    call(&mut sim, 0, Call::SetDeleteOnTermination { eni: goes.id.clone(), attachment }).unwrap();
    sim.terminate_instance(at(1), &instance()).unwrap();
    let left: Vec<_> = sim.interfaces().collect();
    assert_eq!(left.len(), 1);
    assert_eq!(
        (&left[0].id, left[0].status, &left[0].attachment),
        (&stays.id, InterfaceStatus::Available, &None)
    );
    assert_eq!(sim.free_addresses(&subnet()), Some(1_024 - 5 - 3));
    assert_eq!(call(&mut sim, 2, Call::Identity).unwrap_err().class, ErrorClass::NotFound);
}

#[test]
fn scattered_addresses_use_up_the_prefixes_first() {
    let small: SubnetId = "subnet-a".parse().unwrap();
    let left = |choice| {
        let mut sim = region(SimConfig { address_choice: choice, ..SimConfig::instant() });
        sim.occupy(&small, 128).unwrap();
        sim.free_prefixes(&small).unwrap()
    };
    assert!(left(AddressChoice::Lowest) >= 54, "128 addresses in a row leave the rest whole");
    assert!(left(AddressChoice::Scattered) < 30, "an eighth of the addresses spoils most blocks");
    let mut sim = region(SimConfig::instant());
    sim.occupy(&small, 900).unwrap();
    let prefixed = CreateInterface { prefixes: 1, ..request(&small, "a", 0) };
    let free = sim.free_addresses(&small);
    let refused = call(&mut sim, 0, Call::CreateInterface(prefixed)).unwrap_err();
    assert_eq!(refused.code, "InsufficientCidrBlocks");
    assert_eq!(
        sim.free_addresses(&small),
        free,
        "nothing was taken for the ENI that did not come to be"
    );
}

#[test]
fn the_account_has_a_quota() {
    let mut sim = region(SimConfig { max_enis: 2, ..SimConfig::instant() });
    create(&mut sim, 0, "a", 0);
    let refused = call(&mut sim, 0, Call::CreateInterface(request(&subnet(), "b", 0))).unwrap_err();
    assert_eq!(refused.class, ErrorClass::Quota);
}

#[test]
fn several_cards_take_their_own_interfaces() {
    let mut sim = region(SimConfig::instant());
    let mut limits = sim.limits_of(&"m5.large".parse().unwrap()).unwrap();
    limits.max_enis = 4;
    limits.network_cards =
        [0, 1].map(|index| veni_core::limits::NetworkCard { index, max_enis: 2 }).into();
    sim.register_type("two.cards".parse().unwrap(), limits);
    run(&mut sim, "i-2", "two.cards");
    let place = |sim: &mut Sim, token: &str, card, index| {
        let eni = create(sim, 0, token, 0).id;
        let instance = "i-2".parse().unwrap();
        let request = AttachInterface { eni, instance, device_index: index, network_card: card };
        call(sim, 0, Call::AttachInterface(request)).map(|_| ()).map_err(|error| error.code)
    };
    assert_eq!(place(&mut sim, "a", 0, 1), Ok(()));
    assert_eq!(place(&mut sim, "b", 0, 2), Err("AttachmentLimitExceeded".into()));
    assert_eq!(place(&mut sim, "c", 1, 1), Ok(()), "the same index on another card");
    assert_eq!(place(&mut sim, "d", 1, 1), Err("InvalidParameterValue".into()));
    assert_eq!(place(&mut sim, "e", 2, 1), Err("InvalidParameterValue".into()));
}

#[test]
fn a_region_that_cannot_be_is_refused() {
    let mut sim = region(SimConfig::instant());
    let spec = |id: &str, cidr: &str| veni_provider::sim::SubnetSpec {
        id: id.parse().unwrap(),
        vpc_id: "vpc-1".parse().unwrap(),
        availability_zone: "eu-central-1a".into(),
        cidr: cidr.parse().unwrap(),
        tags: std::collections::BTreeMap::default(),
    };
    for (id, cidr) in
        [("subnet-b", "10.0.2.0/24"), ("subnet-b", "10.1.0.0/24"), ("subnet-b", "10.0.9.0/29")]
    {
        let refused = sim.add_subnet(spec(id, cidr)).unwrap_err();
        assert!(matches!(refused, WorldError::Cidr { .. }), "{cidr}: {refused}");
    }
    assert!(matches!(sim.add_subnet(spec("subnet-a", "10.0.9.0/24")), Err(WorldError::Exists(_))));
}

#[tokio::test(start_paused = true)]
async fn a_call_takes_effect_halfway_and_answers_at_its_end() {
    let clock = Clock::start();
    let sim = Arc::new(Mutex::new(region(SimConfig {
        latency: Latency::fixed(100, 0),
        ..SimConfig::instant()
    })));
    let cloud = SimCloud::new(Arc::clone(&sim), clock, instance());
    let count = || sim.lock().unwrap().interfaces().count();
    let create = || cloud.create_interface(request(&subnet(), "a", 0));
    assert!(tokio::time::timeout(at(40), create()).await.is_err());
    assert_eq!(count(), 1, "dropped before it arrived");
    assert!(tokio::time::timeout(at(60), create()).await.is_err());
    assert_eq!(count(), 2, "dropped after it took effect");
    let start = tokio::time::Instant::now();
    create().await.unwrap();
    assert_eq!((count(), start.elapsed()), (2, at(100)), "the token finds the first one");
}

#[tokio::test(start_paused = true)]
async fn a_delay_comes_after_the_effect() {
    let clock = Clock::start();
    let mut sim = region(SimConfig::instant());
    sim.inject(Fault::delay("CreateNetworkInterface", 5_000).times(1));
    let cloud = cloud(sim, clock);
    let create = || cloud.create_interface(request(&subnet(), "a", 0));
    assert!(tokio::time::timeout(at(4_999), create()).await.is_err());
    create().await.unwrap();
    let filter = InterfaceFilter::AvailableWithTag { key: "k".into(), value: "v".into() };
    assert_eq!(cloud.describe_interfaces(filter).await.unwrap().len(), 0);
}

#[test]
fn whoever_drives_time_is_told_of_changes() {
    let mut sim = region(SimConfig::instant());
    let told = Arc::new(atomic::AtomicU32::new(0));
    let count = Arc::clone(&told);
    sim.on_change(move || {
        count.fetch_add(1, atomic::Ordering::Relaxed);
    });
    create(&mut sim, 0, "a", 0);
    run(&mut sim, "i-2", "m5.large");
    assert_eq!(told.load(atomic::Ordering::Relaxed), 2);
}

#[test]
fn faults_and_settings_are_plain_json() {
    let fault: Fault = serde_json::from_str(
        r#"{"action":"CreateNetworkInterface","count":1,"effect":{"delay":{"millis":5}}}"#,
    )
    .unwrap();
    assert_eq!(fault, Fault::delay("CreateNetworkInterface", 5).times(1));
    let config: SimConfig =
        serde_json::from_str(r#"{"seed":3,"latency":{"attach_millis":1}}"#).unwrap();
    assert_eq!((config.seed, config.latency.attach_millis), (3, 1));
    let unknown = serde_json::from_str::<SimConfig>(r#"{"sead":3}"#).unwrap_err();
    assert!(unknown.to_string().contains("sead"), "{unknown}");
}
