//! Pods whose objects are there, but are told later.

use super::*;

/// A daemon over the tables of an earlier one, with `x/a` and `x/b` on interfaces 5 and 7.
fn resumed() -> (Bench, PodSets) {
    let plane = FakePlane::default();
    let pods = [(5, PodKey::new("x", "a")), (7, PodKey::new("x", "b"))];
    let (found, sets) = found(pods.clone().into(), &plane);
    let own = OwnNode { name: "n1".to_owned(), zone: None, addresses: BTreeSet::new() };
    let enforcer =
        Enforcer::new(plane.clone(), own, Enforcing::Standard, Memory::default(), &found);
    let mut bench = Bench { enforcer, plane, now: Instant::now() };
    let wired = pods.map(|(ifindex, pod)| Wired {
        pod,
        uid: None,
        addresses: vec![IpAddr::from([10, 0, 0, u8::try_from(ifindex).unwrap()])],
        ifindex,
    });
    bench.enforcer.adopt(wired.into(), bench.now);
    (bench, sets)
}

fn held(pod: &str) -> BTreeMap<PodKey, String> {
    [(PodKey::new("x", pod), "waits for something: no answer yet".to_owned())].into()
}

#[test]
fn a_running_pod_that_is_told_later_is_not_closed() {
    for comes in [true, false] {
        let (mut bench, sets) = resumed();
        bench.enforcer.hold(held("a"));
        bench.objects(&[]);
        assert_eq!(bench.sets(5), Some(sets), "its object comes later");
        assert_eq!(bench.sets(7), Some(PodSets::CLOSED), "it has none");
        bench.enforcer.hold(held("a"));
        bench.objects(&[]);
        assert_eq!(bench.sets(5), Some(sets));
        bench.enforcer.hold(BTreeMap::new());
        if comes {
            bench.objects(&[pod("u1")]);
            assert_eq!(bench.sets(5), Some(PodSets::new(OPEN_SET, OPEN_SET)));
        } else {
            bench.objects(&[]);
            assert_eq!(bench.sets(5), Some(PodSets::CLOSED), "it went meanwhile");
        }
    }
}

#[test]
fn a_new_pod_that_is_told_later_is_closed_and_says_what_it_waits_for() {
    let mut bench = Bench::new();
    bench.objects(&[]);
    bench.enforcer.hold(held("a"));
    let answered = bench.attach(7, Some("u1"));
    bench.pass(Duration::from_secs(2));
    assert_eq!(answered.try_recv(), Ok(Judged::Otherwise(JudgedBy::Closed)));
    let reason = |bench: &Bench| bench.enforcer.unlabelled.pods(bench.now).remove(0).reason;
    assert_eq!(reason(&bench), held("a")[&PodKey::new("x", "a")]);
    let failed = "waits for something: it says no".to_owned();
    bench.enforcer.hold([(PodKey::new("x", "a"), failed.clone())].into());
    assert_eq!(reason(&bench), failed);
    bench.enforcer.hold(BTreeMap::new());
    bench.objects(&[pod("u1")]);
    assert!(bench.enforcer.unlabelled.pods(bench.now).is_empty());
}
