//! Links that are nobody's, or are not there.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_link_that_is_nobodys_keeps_its_index() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    let index = node.add(0).await.host_ifindex;
    node.host.state().links.extend([index + 1, index + 2]);
    assert_eq!(node.add(1).await.host_ifindex, index + 3);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_leads_to_a_link_of_no_pod_is_neither_handed_out_nor_given_back() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    let before = node.settle().await;
    let taken: Vec<_> = before.addresses.iter().take(6).map(|a| a.address).collect();
    node.host.stray(&taken);
    let set_aside = node.settle().await;
    assert_eq!(set_aside.pool.available, 10, "others are there instead: {:?}", set_aside.pool);
    let told = set_aside.problems.iter().filter(|p| p.kind == "address_quarantined");
    assert_eq!(told.count(), taken.len(), "{:?}", set_aside.problems);
    let bodies = add_all(&node, 0..40).await;
    assert_all_wired(&bodies);
    for body in &bodies {
        let ReplyBody::Wiring(wiring) = body else { unreachable!("checked above") };
        assert!(!taken.contains(&wiring.address), "{} was handed out", wiring.address);
    }
    del_all(&node, 0..40).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let shrunk = node.settle().await;
    let held: Vec<_> = shrunk.addresses.iter().map(|a| a.address).collect();
    assert!(taken.iter().all(|address| held.contains(address)), "given back: {held:?}");
    node.host.stray(&[]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let last = node.settle().await;
    assert_eq!((last.pool.total, last.pool.available), (10, 10), "as if nothing had been");
    assert!(last.problems.is_empty(), "{:?}", last.problems);
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_restarted_daemon_hands_out_nothing_before_it_has_looked_what_leads_where() {
    let mut node = Node::start(NodeSpec::instant(by_addresses())).await;
    let before = node.settle().await;
    node.kill().await;
    // Somebody's, while no daemon ran; and the thread that looks tells nothing.
    let taken: Vec<_> = before.addresses.iter().skip(1).map(|a| a.address).collect();
    node.host.stray(&taken);
    node.host.state().unreadable = true;
    node.boot().await;
    let refused = node.begin_add(0).await;
    let Some(ReplyBody::Error(error)) = refused else { panic!("{refused:?}") };
    assert!(error.message.contains("the filter is not in force"), "{error:?}");
    node.host.state().unreadable = false;
    // All but one address are taken: whatever the first ADDs get, it is none of those.
    let bodies = add_all(&node, 1..12).await;
    assert_all_wired(&bodies);
    for body in &bodies {
        let ReplyBody::Wiring(wiring) = body else { unreachable!("checked above") };
        assert!(!taken.contains(&wiring.address), "{} was handed out", wiring.address);
    }
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_restarted_daemon_hands_out_nothing_of_an_eni_whose_link_went_meanwhile() {
    let mut node =
        Node::start(NodeSpec::instant(Config { max_eni: Some(2), ..Config::default() })).await;
    assert_all_wired(&add_all(&node, 0..1).await);
    let before = node.settle().await;
    let (primary, second) = (&before.enis[0], &before.enis[1]);
    let lost: Vec<_> =
        before.addresses.iter().filter(|a| Some(&a.eni) == second.id.as_ref()).collect();
    assert_eq!((before.enis.len(), lost.len()), (2, 14));
    node.kill().await;
    node.host.plug([primary.mac.unwrap()].into());
    node.host.state().silent = true;
    node.boot().await;
    for body in add_all(&node, 1..20).await {
        let ReplyBody::Wiring(wiring) = body else { continue };
        let on_lost = lost.iter().any(|a| a.address == wiring.address);
        assert!(!on_lost, "{} is on the ENI without a link", wiring.address);
    }
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn addresses_of_an_eni_without_its_link_are_not_counted_as_available() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    for action in ["CreateNetworkInterface", "AssignPrivateIpAddresses"] {
        node.sim().inject(Fault::deny(action).times(u32::MAX));
    }
    node.host.plug(std::collections::HashSet::new());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let view = node.view().await;
    assert_eq!((view.pool.available, view.daemon.ready), (0, false));
    assert!(view.plan.wanted > 0, "what nobody can get is not warm: {:?}", view.plan);
    let status = node.requests().unwrap().ask(Command::Status).await;
    let Some(ReplyBody::Error(error)) = status else { panic!("{status:?}") };
    assert!(error.message.contains("the link of eni-"), "{}", error.message);
    assert!(error.message.contains("is not configured"), "{}", error.message);
}

#[tokio::test(start_paused = true)]
async fn an_eni_whose_link_never_comes_starves_nobody_while_another_can_be_made() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    node.host.state().withheld.insert(2);
    let mut wired = std::collections::BTreeSet::new();
    for _ in 0..6 {
        let missing: Vec<_> = (0..30).filter(|pod| !wired.contains(pod)).collect();
        let adds: Vec<_> =
            missing.iter().map(|pod| (*pod, tokio::spawn(node.begin_add(*pod)))).collect();
        for (pod, add) in adds {
            if let Some(ReplyBody::Wiring(_)) = add.await.unwrap() {
                wired.insert(pod);
            }
        }
        // The kubelet's back-off.
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(wired.len(), 30, "{:?}", node.view().await.enis);
    let told = |view: &veni_core::wire::inspect::View| {
        view.problems.iter().find(|p| p.kind == "no_link").map(|p| p.message.clone())
    };
    let view = node.view().await;
    let problem = told(&view).expect("it is told");
    assert!(problem.contains("device 2") && problem.contains("dmesg"), "{problem}");
    // It goes, and what comes in its place has the same trouble: fewer and fewer attempts.
    let calls = |node: &Node| node.sim().calls().of("CreateNetworkInterface").calls;
    tokio::time::sleep(Duration::from_secs(1800)).await;
    let before = calls(&node);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(calls(&node) - before <= 6, "{} ENIs made in an hour", calls(&node) - before);
    node.host.state().withheld.clear();
    tokio::time::sleep(Duration::from_secs(1800)).await;
    let view = node.settle().await;
    assert_eq!(told(&view), None, "{:?}", view.problems);
    assert_nothing_leaked(&node).await;
    node.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn an_eni_that_the_node_cannot_configure_is_kept_and_the_cause_is_told() {
    let node = Node::start(NodeSpec::instant(by_addresses())).await;
    node.settle().await;
    let cause = "table ip veni: the kernel takes no table";
    node.host.state().broken = Some(cause.to_owned());
    let mut wired = std::collections::BTreeSet::new();
    // The kubelet tries again for ten minutes.
    for _ in 0..20 {
        let missing: Vec<_> = (0..20).filter(|pod| !wired.contains(pod)).collect();
        let adds: Vec<_> =
            missing.iter().map(|pod| (*pod, tokio::spawn(node.begin_add(*pod)))).collect();
        for (pod, add) in adds {
            match add.await.unwrap() {
                Some(ReplyBody::Wiring(_)) => drop(wired.insert(pod)),
                Some(ReplyBody::Error(error)) => {
                    assert!(error.message.contains(cause), "{}", error.message);
                    assert!(!error.message.contains("dmesg"), "{}", error.message);
                }
                other => panic!("{other:?}"),
            }
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(wired.len(), 14, "those that the primary ENI has room for");
    let calls = |action| node.sim().calls().of(action).calls;
    assert_eq!(calls("DetachNetworkInterface"), 0, "it is attached as it must be");
    assert_eq!(calls("CreateNetworkInterface"), 1, "another one would fare no better");
    let problems = node.view().await.problems;
    let told = problems.iter().find(|p| p.kind == "link_not_configured").expect("it is told");
    assert!(told.message.contains("(device 1)") && told.message.contains(cause), "{told:?}");
    assert!(problems.iter().all(|p| p.kind != "no_link"), "{problems:?}");
    node.host.mend();
    assert_all_wired(&add_all(&node, 0..20).await);
    assert_eq!(node.settle().await.problems, []);
    node.assert_sound();
}
