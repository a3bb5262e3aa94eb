//! What EC2 refuses, loses or answers late.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_missing_permission_is_named_and_recovered_from() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let fault = node.sim().inject(Fault::deny("CreateNetworkInterface"));
    let bodies = add_all(&node, 0..20).await;
    let refused = bodies.iter().find_map(|b| match b {
        ReplyBody::Error(error) => Some(error.message.clone()),
        _ => None,
    });
    let message = refused.expect("some pods get no address");
    assert!(message.contains("lacks ec2:CreateNetworkInterface"), "{message}");
    node.sim().withdraw(fault);
    tokio::time::sleep(Duration::from_secs(150)).await;
    assert_all_wired(&add_all(&node, 100..110).await);
    node.assert_sound();
}

/// One failure of each action, before and after its effect, and as a lost answer, while the pool grows and shrinks.
#[tokio::test(start_paused = true)]
async fn an_error_before_or_after_the_effect_of_any_call_leaves_nothing_behind() {
    for action in ACTIONS {
        for fault in [
            Fault::unavailable(action),
            Fault::lost_answer(action),
            Fault::throttle(action, Some(300)),
        ] {
            let node = Node::start(NodeSpec::instant(by_addresses())).await;
            node.settle().await;
            node.sim().inject(fault.clone().times(1));
            assert_all_wired(&add_all(&node, 0..30).await);
            node.settle().await;
            tokio::time::sleep(Duration::from_secs(90)).await;
            // Those on one ENI only, so that single addresses go back as well as whole ENIs.
            del_all(&node, 0..25).await;
            tokio::time::sleep(Duration::from_secs(400)).await;
            let view = node.settle().await;
            node.assert_sound();
            let sim = node.sim();
            let held: usize = sim.interfaces().map(|i| i.secondary_addresses.len()).sum();
            assert_eq!(
                (view.enis.len(), view.addresses.len()),
                (sim.interfaces().count(), held),
                "{fault:?}"
            );
            assert_eq!((view.pool.assigned, view.pool.available), (5, 5), "{fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_that_lasts_an_hour_costs_few_calls() {
    for fault in [
        Fault::unavailable("CreateNetworkInterface"),
        Fault::throttle("AssignPrivateIpAddresses", None),
        Fault::lost_answer("AssignPrivateIpAddresses"),
        Fault::deny("AttachNetworkInterface"),
    ] {
        let node = Node::start(NodeSpec::instant(by_addresses())).await;
        node.sim().inject(fault.clone().times(u32::MAX));
        let before = node.sim().calls().ec2();
        for round in 0..12 {
            drop(add_all(&node, round * 20..round * 20 + 20).await);
            del_all(&node, round * 20..round * 20 + 20).await;
            tokio::time::sleep(Duration::from_secs(280)).await;
        }
        let calls = node.sim().calls().ec2() - before;
        println!("{fault:?} for an hour under 240 ADDs: {calls} calls");
        assert!(calls <= 250, "{fault:?}: {calls} calls in an hour");
        node.assert_sound();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_does_not_bring_back_what_was_given_back() {
    let config =
        Config { targets: Targets { warm_ip: 1, ..Targets::default() }, ..Config::default() };
    let stale = |percent| Consistency {
        describe_delay_millis: 10_000,
        describe_stale_percent: percent,
        ..Consistency::default()
    };
    let mut spec = NodeSpec::instant(config);
    spec.sim.consistency = stale(0);
    let mut node = Node::start(spec).await;
    assert_all_wired(&add_all(&node, 0..10).await);
    node.settle().await;
    del_all(&node, 0..9).await;
    while node.view().await.addresses.len() > 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // From now on EC2 answers as it was ten seconds ago, to the restarted daemon's survey too.
    node.sim().set_consistency(stale(100));
    node.kill().await;
    node.boot().await;
    // At once: an excess would go back before anybody could get it.
    assert_all_wired(&add_all(&node, 100..108).await);
    node.assert_sound();
}

/// The effect of a Create whose answer was lost, and then a refusal: the tags have changed, or the role has.
#[tokio::test(start_paused = true)]
async fn a_creation_that_is_refused_when_repeated_leaves_no_eni_behind() {
    let lost = || Fault::lost_answer("CreateNetworkInterface").times(1);
    for (what, then) in [
        ("other tags", None),
        ("other tags, unseen for a while", None),
        ("denied", Some(Fault::deny("CreateNetworkInterface").times(1))),
        ("denied, and the look too", Some(Fault::deny("DescribeNetworkInterfaces").times(2))),
    ] {
        let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
        node.settle().await;
        if what.contains("unseen") {
            let hidden =
                Consistency { new_interface_hidden_millis: 8_000, ..Consistency::default() };
            node.sim().set_consistency(hidden);
        }
        node.sim().inject(lost());
        let adds: Vec<_> = (0..14).map(|n| tokio::spawn(node.begin_add(n))).collect();
        while node.sim().interfaces().count() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        node.kill().await;
        for add in adds {
            add.await.unwrap();
        }
        node.reconfigure(|config| config.additional_eni_tags = vec![("team".into(), "b".into())]);
        if let Some(fault) = then {
            node.sim().inject(fault);
        }
        node.boot().await;
        node.settle().await;
        tokio::time::sleep(Duration::from_secs(300)).await;
        node.settle().await;
        let refused = node.sim().calls().of("CreateNetworkInterface").errors;
        assert!(refused > 0, "{what}: the repetition was refused");
        assert_nothing_leaked(&node).await;
        node.assert_sound();
    }
}

#[tokio::test(start_paused = true)]
async fn a_survey_that_fails_is_repeated_with_backoff_and_within_the_budget() {
    for (fault, most) in [
        (Fault::unavailable("DescribeNetworkInterfaces"), 80),
        (Fault::deny("DescribeNetworkInterfaces"), 36),
        (Fault::throttle("DescribeNetworkInterfaces", Some(300_000)), 15),
    ] {
        let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
        node.settle().await;
        node.kill().await;
        node.sim().inject(fault.clone().times(u32::MAX));
        node.boot().await;
        let before = node.sim().calls().of("DescribeNetworkInterfaces").calls;
        tokio::time::sleep(Duration::from_secs(1)).await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        let calls = node.sim().calls().of("DescribeNetworkInterfaces").calls - before;
        println!("{fault:?} for an hour: {calls} surveys");
        assert!((2..=most).contains(&calls), "{fault:?}: {calls} surveys in an hour");
        node.sim().clear_faults();
        tokio::time::sleep(Duration::from_secs(400)).await;
        assert_eq!(node.view().await.problems, [], "{fault:?}");
    }
}

/// Calls in ten minutes and the problems after them, while EC2 refuses one action for one reason. The pool wants to
/// grow by an ENI and by addresses, then to give an ENI and addresses back.
async fn refused_for_ten_minutes(fault: Fault) -> (Node, u64, Vec<String>) {
    let config = by_addresses();
    let node = Node::start(NodeSpec::instant(config)).await;
    assert_all_wired(&add_all(&node, 0..20).await);
    node.settle().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    node.sim().inject(fault.times(u32::MAX));
    let before = node.sim().calls().ec2();
    drop(add_all(&node, 100..112).await);
    del_all(&node, 0..20).await;
    del_all(&node, 100..112).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let calls = node.sim().calls().ec2() - before;
    let problems = node.view().await.problems.into_iter().map(|p| p.message).collect();
    node.assert_sound();
    (node, calls, problems)
}

#[tokio::test(start_paused = true)]
async fn a_persistent_refusal_of_any_call_costs_few_calls_and_is_recovered_from() {
    let limit = || ErrorClass::AddressLimit { eni: None };
    for action in ACTIONS {
        let classes = [
            ErrorClass::Invalid,
            ErrorClass::NotFound,
            ErrorClass::Quota,
            ErrorClass::AttachmentLimit,
            ErrorClass::Transient,
            limit(),
        ];
        for class in classes {
            let what = format!("{action} {class:?}");
            // Who is told that an ENI does not exist has no reason to look for it.
            let denied = class == ErrorClass::NotFound
                && ["DeleteNetworkInterface", "DescribeNetworkInterfaces"].contains(action);
            let (node, calls, problems) = refused_for_ten_minutes(refusal(action, class)).await;
            println!("{what}: {calls} calls; {problems:?}");
            assert!(calls <= 90, "{what}: {calls} calls in ten minutes");
            node.sim().clear_faults();
            tokio::time::sleep(Duration::from_secs(1_200)).await;
            let view = node.settle().await;
            assert_eq!((view.pool.assigned, view.pool.available), (0, 10), "{what}");
            assert_eq!(view.problems, [], "{what}");
            if !denied {
                assert_nothing_leaked(&node).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_detachment_that_is_refused_is_reported() {
    let fault = refusal("DetachNetworkInterface", ErrorClass::NotFound);
    let (_, calls, problems) = refused_for_ten_minutes(fault).await;
    assert!(calls <= 60, "{calls} calls");
    assert!(problems.iter().any(|p| p.contains("DetachNetworkInterface")), "{problems:?}");
}

#[tokio::test(start_paused = true)]
async fn an_eni_that_is_refused_at_its_creation_is_not_counted_as_coming() {
    for class in [ErrorClass::AddressLimit { eni: None }, ErrorClass::AttachmentLimit] {
        let node = Node::start(NodeSpec::instant(by_addresses())).await;
        node.settle().await;
        let fault = refusal("CreateNetworkInterface", class.clone()).times(u32::MAX);
        node.sim().inject(fault);
        let before = node.sim().calls().ec2();
        drop(add_all(&node, 0..30).await);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let view = node.view().await;
        let calls = node.sim().calls().ec2() - before;
        assert_eq!(view.pool.pending, 0, "{class:?}");
        assert!(view.plan.wanted > 0, "{class:?}");
        assert!(view.problems.iter().any(|p| p.kind == "limit_reached"), "{:?}", view.problems);
        assert!(calls <= 40, "{class:?}: {calls} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn enis_that_ec2_does_not_attach_are_made_ever_more_seldom() {
    for class in [ErrorClass::AttachmentLimit, ErrorClass::Invalid, ErrorClass::NotFound] {
        let node = Node::start(NodeSpec::instant(by_addresses())).await;
        node.settle().await;
        let fault = refusal("AttachNetworkInterface", class.clone()).times(u32::MAX);
        node.sim().inject(fault);
        let before = node.sim().calls().ec2();
        drop(add_all(&node, 0..20).await);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let calls = node.sim().calls().ec2() - before;
        let made = node.sim().calls().of("CreateNetworkInterface").calls;
        println!("{class:?}: {calls} calls, {made} ENIs");
        assert!(calls <= 60 && made <= 6, "{class:?}: {calls} calls, {made} ENIs");
        assert!(node.view().await.problems.iter().any(|p| p.kind == "limit_reached"));
        node.sim().clear_faults();
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        assert_all_wired(&add_all(&node, 0..20).await);
    }
}

/// ENIs that would outlive the instance.
fn unprotected(node: &Node) -> usize {
    let sim = node.sim();
    let attached = sim.interfaces().filter_map(|interface| interface.attachment.as_ref());
    attached.filter(|attachment| !attachment.delete_on_termination).count()
}

/// EC2 may not know a fresh attachment everywhere: that says nothing of the next ENI's.
#[tokio::test(start_paused = true)]
async fn each_of_five_enis_is_protected_within_2_s_although_the_first_call_fails_for_each() {
    let action = "ModifyNetworkInterfaceAttribute";
    let large = NodeSpec {
        instance_type: "m5.4xlarge",
        ..NodeSpec::instant(Config {
            targets: Targets { warm_ip: 1, ..Targets::default() },
            ..Config::default()
        })
    };
    // All at once, and one after the other; an ENI takes 29.
    for (rounds, enis) in [(1, 5), (5, 1)] {
        let node = Node::start(large.clone()).await;
        assert_all_wired(&add_all(&node, 0..25).await);
        let (mut pod, mut errors) = (25, 0);
        for _ in 0..rounds {
            node.sim().inject(refusal(action, ErrorClass::NotFound).times(enis));
            errors += u64::from(enis);
            let before = node.sim().interfaces().count();
            let pods = pod..pod + 29 * enis;
            pod = pods.end;
            let adds: Vec<_> = pods.map(|n| tokio::spawn(node.begin_add(n))).collect();
            while node.sim().interfaces().filter(|i| i.attachment.is_some()).count() == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(node.sim().calls().of(action).errors, errors, "each first call failed");
            assert_eq!(unprotected(&node), 0);
            for add in adds {
                assert!(matches!(add.await.unwrap(), Some(ReplyBody::Wiring(_))));
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        assert_eq!(node.sim().interfaces().count(), 6);
        node.assert_sound();
    }
}
