//! Interfaces, and whose they are.

use super::*;

#[test]
fn an_interface_whose_pods_name_another_pod_has_is_closed_and_no_set_is_given_up_under_it() {
    let mut bench = Bench::new();
    bench.objects(&[pod("u1"), deny_all()]);
    bench.attach(7, Some("u1")).try_recv().unwrap();
    // Deleted by force and made anew: the old container still runs.
    bench.objects(&[pod("u2")]);
    bench.attach(8, Some("u2")).try_recv().unwrap();
    assert_eq!(bench.sets(7), Some(PodSets::CLOSED));
    let before = bench.sets(8).expect("an entry");
    assert!(before.ingress != CLOSED_SET, "{before:?}");
    // What is checked is in the plane: no entry names a set that is removed.
    bench.objects(&[allow_all()]);
    assert_ne!(bench.sets(8), Some(before));
    assert_eq!(bench.sets(7), Some(PodSets::CLOSED));
    bench.detach(7);
    bench.objects(&[deny_all()]);
    assert_ne!(bench.sets(8), Some(PodSets::CLOSED));
}

#[test]
fn two_interfaces_of_one_pod_get_its_sets_both() {
    let mut bench = Bench::new();
    bench.objects(&[pod("u1"), deny_all()]);
    bench.attach(7, Some("u1")).try_recv().unwrap();
    bench.attach(8, Some("u1")).try_recv().unwrap();
    bench.objects(&[allow_all()]);
    let sets = bench.sets(8).expect("an entry");
    assert!(sets.ingress != CLOSED_SET && bench.sets(7) == Some(sets), "{sets:?}");
}

#[test]
fn an_entry_keeps_its_sets_until_objects_and_names_are_known_and_is_closed_if_it_has_none() {
    let plane = FakePlane::default();
    let own = OwnNode { name: "n1".to_owned(), zone: None, addresses: BTreeSet::new() };
    let (found, sets) = found(keyed(&[5, 7], &[]), &plane);
    let (mode, memory) = (Enforcing::Standard, Memory::default());
    let enforcer = Enforcer::new(plane.clone(), own, mode, memory, &found);
    let mut bench = Bench { enforcer, plane, now: Instant::now() };
    assert_eq!((bench.sets(5), bench.sets(7)), (Some(sets), Some(sets)));
    bench.objects(&[pod("u1"), deny_all()]);
    assert_eq!((bench.sets(5), bench.sets(7)), (Some(sets), Some(sets)));
    // One of them gets its name: from the runtime's cache, where the journal was lost.
    let wired = Wired { pod: PodKey::new("x", "a"), uid: None, addresses: Vec::new(), ifindex: 7 };
    bench.enforcer.adopt(vec![wired], bench.now);
    assert_eq!(bench.sets(5), Some(PodSets::CLOSED));
    assert!(bench.sets(7).is_some_and(|now| now != sets && now != PodSets::CLOSED));
}

#[test]
fn of_several_interfaces_with_one_name_the_latest_is_the_pods() {
    let pod = || PodKey::new("x", "a");
    let check = |interfaces: &[u32], pods: &[(PodKey, u32)], expected: &[(u32, PodKey)]| {
        assert_eq!(keyed(interfaces, pods), expected.iter().cloned().collect());
    };
    check(&[7], &[(pod(), 7)], &[(7, pod())]);
    check(&[7, 8], &[(pod(), 8), (pod(), 7)], &[(7, stranger(7)), (8, pod())]);
    check(&[7], &[(pod(), 7), (pod(), 8)], &[(7, pod())]);
    check(&[7], &[], &[(7, stranger(7))]);
    check(&[7], &[(PodKey::new("", ""), 7)], &[]);
}

#[test]
fn own_addresses_that_find_no_room_are_tried_again_less_and_less_often() {
    let mut bench = Bench::new();
    bench.plane.0.lock().unwrap().full = true;
    bench.enforcer.node_addresses([IpAddr::from([10, 0, 0, 9])].into(), bench.now);
    let mut waits = Vec::new();
    let mut at = bench.now;
    for _ in 0..12 {
        let again = bench.enforcer.wake_at().expect("it is tried again");
        waits.push(again.duration_since(at).as_secs());
        bench.enforcer.expire(again);
        at = again;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    let others = [IpAddr::from([10, 0, 0, 8])].into();
    bench.enforcer.node_addresses(others, at);
    let again = bench.enforcer.wake_at().expect("it is tried again");
    assert_eq!(again.duration_since(at).as_secs(), 1, "others may fit");
}
