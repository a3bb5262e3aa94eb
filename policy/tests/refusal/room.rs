//! What was refused is remembered, and taken when there is room.

use std::ops::Range;

use veni_policy::change::{Step, Write};

use super::*;

/// A policy for one pod that lets in who is so labelled, on ports that take more prefixes than [`crowded`] leaves free.
fn wide(name: &str, number: u16, app: &str, offset: u16) -> Value {
    let ports: Vec<Value> = (0..40)
        .map(|range| json!({"port": 1 + offset + range * 1024, "endPort": 1022 + range * 1024}))
        .collect();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": name},
        "spec": {"podSelector": {"matchLabels": {"number": number.to_string()}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}], "ports": ports}]}})
}

/// A pod so labelled.
fn client(name: &str, app: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "labels": {"app": app}}, "status": {"podIP": address}})
}

/// Whether a refusal names the pod.
fn names(refused: &[Refusal], pod: &str) -> bool {
    refused.iter().flat_map(|refusal| &refusal.pods).any(|named| named.name == pod)
}

#[test]
fn a_class_that_found_no_room_stays_named_and_gets_its_verdict_when_there_is_room() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    let server = PODS + 1;
    index.apply(parsed(&pod(server)));
    // Nobody is so labelled yet: its ports take nothing.
    index.apply(parsed(&wide("wide", server, "a", 0)));
    crowded(&mut index, &mut tables);
    let own = set(&tables, "x", server, Direction::Ingress);
    let server_name = format!("p{server}");
    index.apply(parsed(&client("client", "a", "10.9.0.1")));
    let refused = change(&mut index, &mut tables);
    assert!(names(&refused, &server_name), "{refused:?}");
    let client_in = |tables: &Applied| {
        let pod = PodKey::new("x", &*server_name);
        let decision = tables.decide(&pod, Direction::Ingress, [10, 9, 0, 1].into(), 6, 100);
        decision.is_some_and(Decision::allowed)
    };
    assert!(!client_in(&tables), "there is no room for what lets it in");
    // A change of something else; then one that gives another address the same class.
    index.apply(parsed(&client("other", "b", "10.9.0.2")));
    let refused = change(&mut index, &mut tables);
    assert!(names(&refused, &server_name), "it is said for as long as it is so: {refused:?}");
    for number in
        (0..PODS).filter(|number| set(&tables, "x", *number, Direction::Ingress) > 1).take(20)
    {
        index.delete(&Key::new(Kind::NetworkPolicy, "x", format!("p{number}")));
    }
    for number in (0..PODS).filter(|number| set(&tables, "x", *number, Direction::Ingress) == 1) {
        index.delete(&Key::new(Kind::NetworkPolicy, "x", format!("p{number}")));
    }
    change(&mut index, &mut tables);
    assert_eq!(change(&mut index, &mut tables), [], "there is room now");
    assert_eq!(set(&tables, "x", server, Direction::Ingress), own, "the set is patched in place");
    assert!(client_in(&tables), "the class that was closed is open");
}

#[test]
fn what_was_refused_is_said_and_not_made_anew_while_nothing_is_freed() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    crowded(&mut index, &mut tables);
    index.apply(parsed(&pod(PODS + 1)));
    index.apply(parsed(&client("client", "a", "10.9.0.1")));
    index.apply(parsed(&wide("wide", PODS + 1, "a", 0)));
    let name = format!("p{}", PODS + 1);
    assert!(names(&change(&mut index, &mut tables), &name));
    for _ in 0..2 {
        change(&mut index, &mut tables);
    }
    let before = index.change();
    for round in 0..3 {
        index.apply(parsed(&client("other", "b", &format!("10.9.1.{round}"))));
        let change = index.change();
        change.steps.iter().for_each(|step| tables.apply(step));
        assert_eq!(change.refused, before.refused);
        assert!(names(&change.refused, &name));
        // To compile the refused set tells its clients from others for as long as it lasts, in the tables too.
        let known = format!("{:?}", change.steps);
        assert!(!known.contains("10.9.0.1"), "a refused set is compiled again: {known}");
    }
    assert_eq!(before.steps, [], "nothing happened");
    index.apply(parsed(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "wide"},
        "spec": {"podSelector": {"matchLabels": {"number": (PODS + 1).to_string()}}, "ingress": [{}]}})));
    assert!(!names(&change(&mut index, &mut tables), &name), "its content is another");
    assert!(set(&tables, "x", PODS + 1, Direction::Ingress) > 1);
}

/// Lets in blocks of 64 addresses, an eighth of them on each of eight ports: no answer is that of most.
fn eighths(namespace: &str, number: u16, blocks: u32, port: u16) -> Object {
    of(namespace, eighths_of(number, 0..blocks, port))
}

fn eighths_of(number: u16, blocks: Range<u32>, port: u16) -> Value {
    let rule = |part: u16| {
        let own = blocks.clone().filter(|block| block % 8 == u32::from(part));
        let cidr =
            |block: u32| json!({"ipBlock": {"cidr": format!("{}/26", Ipv4Addr::from(block << 6))}});
        json!({"from": own.map(cidr).collect::<Vec<_>>(), "ports": [{"port": port + part}]})
    };
    let mut policy = blocks_policy(number);
    policy["spec"]["ingress"] = (0..8).map(rule).collect();
    policy
}

fn blocks_policy(number: u16) -> Value {
    blocks(&format!("p{number}"), number, 0)
}

/// What is closed for want of room is closed before anything else, and programs that began before that have ended.
fn assert_closed_first(steps: &[Step]) {
    let closes = |step: &&Step| matches!(step, Step::Endpoint { .. });
    let writes = |step: &&Step| matches!(step, Step::Write(write) if !matches!(write, Write::Profile { .. } | Write::Port { .. }));
    let mut steps = steps.iter().skip_while(|step| !closes(step) && !writes(step)).peekable();
    assert!(steps.peek().is_some_and(closes), "somebody is closed first");
    let then = steps.find(|step| !closes(step));
    assert_eq!(then, Some(&Step::Grace), "before anything is written");
}

#[test]
fn verdicts_of_new_classes_never_overfill_their_map() {
    const VERDICTS: usize = 524_288;
    const NAMESPACES: [&str; 6] = ["", "x", "x", "w", "w", "y"];
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    for number in 1..=5 {
        let namespace = NAMESPACES[usize::from(number)];
        index.apply(of(namespace, pod(number)));
        index.apply(eighths(namespace, number, 110_000, 8 * number));
    }
    assert_eq!(change(&mut index, &mut tables), []);
    let used = tables.verdicts.len();
    assert!(used < VERDICTS && used > VERDICTS - 50_000, "{used}");
    // Blocks within those: a class each, and an entry of it in nearly every set.
    let cidr =
        |block: u32| json!({"ipBlock": {"cidr": format!("{}/28", Ipv4Addr::from(block << 6))}});
    let mut inner = blocks_policy(6);
    inner["spec"]["ingress"][0]["from"] = (0..12_000).map(cidr).collect();
    index.apply(of("z", pod(6)));
    index.apply(of("z", inner));
    let step = index.change();
    for step in &step.steps {
        tables.apply(step);
        assert!(tables.verdicts.len() <= VERDICTS, "more than the map takes");
    }
    let refused = step.refused;
    assert!(!refused.is_empty() && refused.iter().all(|refusal| refusal.map == "VERDICTS"));
    let in_force =
        refused.iter().flat_map(|refusal| &refusal.pods).filter(|pod| pod.namespace != "z");
    assert!(in_force.count() > 0, "a set that was in force");
    assert_closed_first(&step.steps);
    let pods: Vec<&PodKey> = refused.iter().flat_map(|refusal| &refusal.pods).collect();
    for pod in &pods {
        let ingress = tables.endpoints[*pod].of(Direction::Ingress);
        assert_eq!(ingress, PodSets::CLOSED.of(Direction::Ingress), "{pod}");
    }
    assert!(set(&tables, "y", 5, Direction::Ingress) > 1, "who has least is refused last");
    assert_eq!(tables.endpoints[&PodKey::new("z", "p6")].of(Direction::Egress), 0);
    for _ in 0..3 {
        let again = index.change();
        for step in &again.steps {
            tables.apply(step);
            assert!(tables.verdicts.len() <= VERDICTS, "more than the map takes");
        }
    }
    index.delete(&Key::new(Kind::NetworkPolicy, "z", "p6"));
    for _ in 0..3 {
        change(&mut index, &mut tables);
    }
    assert_eq!(change(&mut index, &mut tables), [], "there is room now");
    for number in 1..=5 {
        let namespace = NAMESPACES[usize::from(number)];
        assert!(set(&tables, namespace, number, Direction::Ingress) > 1, "{number}");
    }
}

#[test]
fn a_set_that_wanted_room_for_what_has_gone_since_is_made_when_it_fits_without() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    let (own, inner, sets) = (50_000..99_000_u32, 28_000_u32, 10_u16);
    for number in 1..sets {
        index.apply(of(&format!("n{}", number / 2), pod(number)));
        index.apply(eighths(&format!("n{}", number / 2), number, 50_000, 8 * number));
    }
    index.apply(of("x", pod(sets)));
    index.apply(of("x", eighths_of(sets, own.clone(), 8 * sets)));
    assert_eq!(change(&mut index, &mut tables), []);
    // Blocks within those: an entry of each in the set that tells those apart, which are more than there is room for.
    let cidr =
        |block: u32| json!({"ipBlock": {"cidr": format!("{}/28", Ipv4Addr::from(block << 6))}});
    let mut within = blocks_policy(sets + 1);
    within["spec"]["ingress"][0]["from"] = own.take(inner as usize).map(cidr).collect();
    index.apply(of("z", pod(sets + 1)));
    index.apply(of("z", within));
    assert!(names(&change(&mut index, &mut tables), &format!("p{sets}")), "its new classes");
    let mut rounds = 0;
    while index.may_fit() {
        change(&mut index, &mut tables);
        rounds += 1;
        assert!(rounds < 8, "it is tried again and again");
    }
    assert!(names(&change(&mut index, &mut tables), &format!("p{sets}")));
    assert_eq!(set(&tables, "x", sets, Direction::Ingress), 1);
    assert!(set(&tables, "z", sets + 1, Direction::Ingress) > 1);
    for _ in 0..3 {
        assert!(!index.may_fit());
        assert_eq!(index.change().steps, [], "nothing is tried");
    }
    index.delete(&Key::new(Kind::NetworkPolicy, "z", format!("p{}", sets + 1)));
    let mut refused = change(&mut index, &mut tables);
    while index.may_fit() {
        refused = change(&mut index, &mut tables);
    }
    assert_eq!(refused, [], "there is room now");
    assert!(set(&tables, "x", sets, Direction::Ingress) > 1);
}

#[test]
fn what_others_free_is_no_reason_to_make_a_set_anew_that_wants_more_than_there_was() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    crowded(&mut index, &mut tables);
    index.apply(parsed(&pod(PODS + 1)));
    index.apply(parsed(&client("client", "a", "10.9.0.1")));
    index.apply(parsed(&wide("wide", PODS + 1, "a", 0)));
    let name = format!("p{}", PODS + 1);
    for _ in 0..3 {
        change(&mut index, &mut tables);
    }
    let mut rounds = 0;
    while index.may_fit() {
        change(&mut index, &mut tables);
        rounds += 1;
        assert!(rounds < 8, "it is tried again and again");
    }
    let mut quiet = |index: &mut Index, what: &str| {
        for _ in 0..2 {
            let change = index.change();
            change.steps.iter().for_each(|step| tables.apply(step));
            assert!(names(&change.refused, &name), "{what}");
            // To make it tells its clients from others for as long as it lasts, in the tables too.
            let known = format!("{:?}", change.steps);
            assert!(!known.contains("10.9.0.1"), "{what}: it is made again");
        }
    };
    quiet(&mut index, "at rest");
    for round in 0..3 {
        // Ranges of their own, and they go again.
        let mut other = policy(2_000);
        other["spec"]["ingress"][0]["ports"][0]["protocol"] = json!("UDP");
        index.apply(of("y", pod(2_000)));
        index.apply(of("y", other));
        quiet(&mut index, &format!("another takes room, {round}"));
        index.delete(&Key::new(Kind::NetworkPolicy, "y", "p2000"));
        quiet(&mut index, &format!("and leaves it, {round}"));
        // One that is like the refused one: nothing of its content is another.
        let mut like = pod(PODS + 1);
        like["metadata"]["name"] = json!(format!("like-{round}"));
        like["status"]["podIP"] = json!(format!("10.9.2.{round}"));
        index.apply(parsed(&like));
        quiet(&mut index, &format!("one that is alike, {round}"));
        let like = PodKey::new("x", format!("like-{round}"));
        assert_eq!(index.pod_sets(&like).map(|sets| sets.ingress), Some(1), "{round}");
    }
}

#[test]
fn who_leaves_a_set_that_changes_and_has_no_room_for_a_copy_never_sees_the_change() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    for number in 1..=4_u16 {
        let namespace = format!("n{}", number / 2);
        index.apply(of(&namespace, pod(number)));
        index.apply(eighths(&namespace, number, 110_000, 8 * number));
    }
    let by_app = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}});
    let mut shared = eighths_of(5, 0..110_000, 40);
    shared["spec"]["podSelector"] = by_app("shared")["podSelector"].clone();
    let friends = json!({"from": [by_app("friend")], "ports": [{"port": 9999}]});
    shared["spec"]["ingress"].as_array_mut().expect("rules").push(friends);
    index.apply(parsed(&shared));
    let mut closed = blocks_policy(6);
    closed["spec"] = json!({"podSelector": {"matchLabels": {"app": "closed"}}, "ingress": []});
    index.apply(parsed(&closed));
    index.apply(parsed(&client("leaves", "shared", "10.9.0.1")));
    index.apply(parsed(&client("stays", "shared", "10.9.0.2")));
    index.apply(parsed(&client("peer", "stranger", "10.9.0.3")));
    assert_eq!(change(&mut index, &mut tables), []);
    let lets_in = |tables: &Applied, pod: &str| {
        let pod = PodKey::new("x", pod);
        let decision = tables.decide(&pod, Direction::Ingress, [10, 9, 0, 3].into(), 6, 9999);
        decision.is_some_and(Decision::allowed)
    };
    index.apply(parsed(&client("leaves", "closed", "10.9.0.1")));
    index.apply(parsed(&client("peer", "friend", "10.9.0.3")));
    let steps = index.change().steps;
    for step in &steps {
        tables.apply(step);
        assert!(
            !lets_in(&tables, "leaves"),
            "neither its former set says so nor its new one: {step:?}"
        );
    }
    assert!(lets_in(&tables, "stays"));
    let used = tables.verdicts.len();
    assert!(used + 90_000 > 524_288, "a copy would have fit: {used}");
    assert_closed_first(&steps);
}
