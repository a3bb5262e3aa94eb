//! Security groups of pods.

use super::*;

/// The annotation's groups, whatever they are called in a SecurityGroupPolicy.
#[test]
fn groups_that_an_annotation_names_are_asked_for_and_judge_the_pod() {
    let mut bench = Bench::new();
    let mut value = pod("u1");
    value["metadata"]["annotations"] = json!({"vpc.amazonaws.com/security-groups": "sg-1,sg-2"});
    bench.objects(&[value]);
    let answered = bench.attach(7, Some("u1"));
    answered.try_recv().unwrap_err();
    let ids = ["sg-1", "sg-2"].map(|id| id.parse::<SecurityGroupId>().unwrap());
    assert_eq!(bench.enforcer.wanted_groups(), ids.clone().into());
    let outside = IpAddr::from([192, 0, 2, 1]);
    let said = |bench: &Bench, port| {
        bench.enforcer.index.judge(outside, IpAddr::from([10, 0, 0, 1]), 6, port).allowed
    };
    assert!(!said(&bench, 443), "not looked up yet");
    let group = |id: &SecurityGroupId, state, port| {
        let rule = GroupRule {
            id: format!("sgr-{port}"),
            protocol: GroupProtocol::Number(6),
            first: port,
            last: port,
            peer: GroupPeer::Cidr("192.0.2.0/24".parse().unwrap()),
        };
        (
            id.clone(),
            ResolvedGroup { id: id.clone(), state, ingress: vec![rule], egress: Vec::new() },
        )
    };
    let resolve = |bench: &mut Bench, second: GroupState| {
        let groups = [group(&ids[0], GroupState::Resolved, 443), group(&ids[1], second, 80)];
        let now = bench.now;
        bench
            .enforcer
            .groups(SecurityGroups { groups: groups.into(), ..SecurityGroups::default() }, now);
    };
    let reason = "sg-2 does not exist".to_owned();
    resolve(&mut bench, GroupState::Unresolved { reason: reason.clone() });
    assert_eq!(answered.try_recv(), Ok(Judged::ByLabels), "both are answered for");
    assert!(!said(&bench, 443), "one of them does not exist: closed");
    let Ok(Answer::Explanation(found)) =
        bench.enforcer.query(&Query::Explain(PodKey::new("x", "a")))
    else {
        panic!("it is explained")
    };
    assert_eq!(found.security_groups[1].unresolved, Some(reason));
    resolve(&mut bench, GroupState::Resolved);
    assert_eq!([443, 80, 22].map(|port| said(&bench, port)), [true, true, false]);
}

#[test]
fn groups_are_looked_for_after_a_change_and_not_after_each_flow() {
    let mut bench = Bench::new();
    bench.objects(&[pod("u1")]);
    assert!(bench.enforcer.wanted_anew().is_some());
    bench.enforcer.tell(&[event(7, 1)]);
    assert_eq!(bench.enforcer.wanted_anew(), None);
}

fn with_group(uid: &str, groups: &str) -> Value {
    let mut pod = pod(uid);
    pod["metadata"]["annotations"] = json!({"vpc.amazonaws.com/security-groups": groups});
    pod
}

/// These groups, which let everything out.
fn resolved(ids: &[&str]) -> SecurityGroups {
    let mut groups = SecurityGroups::default();
    for id in ids {
        let id: SecurityGroupId = id.parse().unwrap();
        let peer = GroupPeer::Cidr("0.0.0.0/0".parse().unwrap());
        let protocol = GroupProtocol::Any;
        let rule = GroupRule { id: "sgr-1".to_owned(), protocol, first: 0, last: 65_535, peer };
        let (state, egress) = (GroupState::Resolved, vec![rule]);
        let group = ResolvedGroup { id: id.clone(), state, ingress: Vec::new(), egress };
        groups.groups.insert(id, group);
    }
    groups
}

#[test]
fn a_pods_add_waits_for_its_security_groups_too() {
    let mut bench = Bench::new();
    bench.objects(&[with_group("u1", "sg-1")]);
    let answered = bench.attach(7, Some("u1"));
    answered.try_recv().unwrap_err();
    assert!(bench.sets(7).is_none_or(|sets| sets == PodSets::CLOSED));
    bench.enforcer.groups(resolved(&["sg-1"]), bench.now);
    assert_eq!(answered.try_recv(), Ok(Judged::ByLabels));
    assert!(bench.sets(7).is_some_and(|sets| sets.egress != CLOSED_SET));
    // Another pod of it waits for nobody.
    assert_eq!(bench.attach(8, Some("u1")).try_recv(), Ok(Judged::ByLabels));
}

#[test]
fn a_pod_whose_groups_do_not_come_in_time_stays_closed_until_they_do() {
    let mut bench = Bench::new();
    bench.objects(&[with_group("u1", "sg-1")]);
    let answered = bench.attach(7, Some("u1"));
    bench.pass(Duration::from_secs(2));
    assert_eq!(answered.try_recv(), Ok(Judged::Otherwise(JudgedBy::Closed)));
    let standing = bench.enforcer.standing(bench.now);
    assert!(standing.unlabelled[0].reason.contains("sg-1 is not known yet"), "{standing:?}");
    bench.enforcer.groups(resolved(&["sg-1"]), bench.now);
    assert!(bench.sets(7).is_some_and(|sets| sets.egress != CLOSED_SET));
    assert_eq!(bench.enforcer.standing(bench.now).unlabelled, []);
}

#[test]
fn a_restart_flips_no_pod_before_its_groups_are_known() {
    let plane = FakePlane::default();
    let own = || OwnNode { name: "n1".to_owned(), zone: None, addresses: BTreeSet::new() };
    let (found, sets) = found([(7, PodKey::new("x", "a"))].into(), &plane);
    let enforcer =
        Enforcer::new(plane.clone(), own(), Enforcing::Standard, Memory::default(), &found);
    let mut bench = Bench { enforcer, plane, now: Instant::now() };
    let wired = Wired {
        pod: PodKey::new("x", "a"),
        uid: Some("u1".to_owned()),
        addresses: vec![IpAddr::from([10, 0, 0, 1])],
        ifindex: 7,
    };
    bench.enforcer.adopt(vec![wired], bench.now);
    bench.objects(&[with_group("u1", "sg-1")]);
    assert_eq!(bench.sets(7), Some(sets));
    assert_eq!(bench.enforcer.wanted_groups().len(), 1);
    bench.enforcer.groups(resolved(&["sg-1"]), bench.now);
    assert!(bench.sets(7).is_some_and(|now| now != sets && now.egress != CLOSED_SET));
}
