//! What found no room, and what follows when there is.

use super::*;

/// A pod of this node with a name and a label of its own.
fn numbered(number: u16) -> Value {
    let mut pod = pod("u1");
    pod["metadata"]["name"] = json!(format!("p{number}"));
    pod["metadata"]["labels"] = json!({"number": number.to_string()});
    pod["status"] = json!({"podIP": format!("10.0.1.{number}")});
    pod
}

/// Every other port of two protocols, for that pod: a quarter of what the table of ports takes, and no two alike.
fn wide(number: u16) -> Value {
    let ports = |protocol: &'static str| {
        let every_other = (number..u16::MAX).step_by(2);
        every_other.map(move |port| json!({"protocol": protocol, "port": port}))
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": format!("p{number}")},
        "spec": {"podSelector": {"matchLabels": {"number": number.to_string()}},
            "ingress": [{"ports": ports("TCP").chain(ports("UDP")).collect::<Vec<_>>()}]},
    })
}

/// Nothing else happens on a quiet node.
#[test]
fn what_found_no_room_is_in_force_as_soon_as_there_is_without_another_word() {
    let mut bench = Bench::new();
    let all = (1..=4).flat_map(|number| [numbered(number), wide(number)]);
    bench.objects(&all.collect::<Vec<_>>());
    for number in 1..=4_u16 {
        let pod = PodKey::new("x", format!("p{number}"));
        bench.attach_as(pod, number.into(), Some("u1")).try_recv().unwrap();
    }
    let closed = |bench: &Bench| -> Vec<u32> {
        let sets = |ifindex: &u32| bench.sets(*ifindex).expect("an entry");
        (1..=4).filter(|ifindex| sets(ifindex).ingress == CLOSED_SET).collect()
    };
    let without = closed(&bench);
    assert_eq!(without.len(), 1, "{without:?}");
    assert_eq!(bench.enforcer.standing(bench.now).refused.len(), 1);
    let with = (1..=4).find(|number| !without.contains(number)).expect("some found room");
    let gone = [Key::new(Kind::NetworkPolicy, "x", format!("p{with}"))];
    bench.enforcer.objects(Vec::new(), &gone, Vec::new(), true, bench.now);
    assert_eq!(closed(&bench), [0_u32; 0]);
    assert_eq!(bench.enforcer.standing(bench.now).refused, [""; 0]);
}

#[test]
fn what_pods_are_told_is_before_what_nobody_waits_for() {
    let endpoint = || Step::Endpoint { pod: PodKey::new("x", "a"), sets: PodSets::CLOSED };
    let delete = || Step::Delete(Remove::ClassV4([10, 0, 0, 1].into()));
    let check = |steps: &[Step], from: usize| assert_eq!(tidying(steps), from, "{steps:?}");
    check(&[], 0);
    check(&[endpoint(), Step::Epoch], 2);
    check(&[endpoint(), Step::Epoch, Step::Grace, delete()], 2);
    check(&[Step::Grace, delete()], 0);
    // What is closed for want of room: others wait until programs have ended, and for what comes then.
    check(&[endpoint(), Step::Grace, endpoint(), Step::Epoch, Step::Grace, delete()], 4);
    check(&[delete(), Step::Epoch, Step::Grace, delete(), Step::Grace, delete()], 2);
}
