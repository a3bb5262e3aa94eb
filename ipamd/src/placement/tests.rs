//! From objects to news, with the simulator's subnets.

use serde_json::json;
use veni_provider::{
    InstanceIdentity,
    sim::{Fault, SubnetSpec},
};

use super::*;
use crate::testing::{Node, NodeSpec};

const NODE: &str = "node-1";

fn keys() -> Keys {
    Keys::default()
}

fn node_object(labels: &Value, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "labels": labels, "annotations": annotations},
    })
}

fn eni_config(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig",
        "metadata": {"name": name}, "spec": spec,
    })
}

#[test]
fn the_nodes_eniconfig_is_chosen_and_what_is_missing_or_wrong_is_named() {
    let objects = [
        eni_config("a", &json!({"subnet": "subnet-0a"})),
        eni_config("broken", &json!({"subnet": "vpc-1"})),
        json!({"kind": "Node", "metadata": {"name": "other", "labels": {"k8s.amazonaws.com/eniConfig": "a"}}}),
    ];
    let key = "k8s.amazonaws.com/eniConfig";
    for (labels, annotations, expect) in [
        (json!({key: "a"}), json!({}), Ok("a")),
        (json!({key: "broken"}), json!({key: "a"}), Ok("a")),
        (
            json!({key: "gone"}),
            json!({}),
            Err(
                "ENIConfig gone, which the label k8s.amazonaws.com/eniConfig of node node-1 names, does not exist: create it",
            ),
        ),
        (
            json!({}),
            json!({}),
            Err("ENIConfig default, which is taken because node node-1 has neither the annotation"),
        ),
        (json!({}), json!({key: "broken"}), Err("cannot be used: spec.subnet: ")),
        (json!({key: ""}), json!({}), Err("an ENIConfig without a name, which the label")),
    ] {
        let mut all = objects.to_vec();
        all.push(node_object(&labels, &annotations));
        let chosen = Objects::of_values(&all, NODE).choose(NODE, &keys());
        match (chosen, expect) {
            (Ok(config), Ok(name)) => assert_eq!(config.name, name),
            (Err(what), Err(part)) => assert!(what.contains(part), "{what}"),
            (chosen, _) => panic!("{labels} {annotations}: {chosen:?}"),
        }
    }
}

/// Three subnets in the node's zone, the first with least room, and one in another zone.
async fn region() -> (Node, Zone) {
    let node = Node::start(NodeSpec::instant(Config::default())).await;
    for (id, cidr, zone, tag) in [
        ("subnet-a", "10.0.1.0/28", "eu-central-1a", "yes"),
        ("subnet-b", "10.0.2.0/24", "eu-central-1a", "yes"),
        ("subnet-c", "10.0.3.0/24", "eu-central-1a", "no"),
        ("subnet-far", "10.0.4.0/24", "eu-central-1b", "yes"),
    ] {
        let spec = SubnetSpec {
            id: id.parse().unwrap(),
            vpc_id: "vpc-1".parse().unwrap(),
            availability_zone: zone.into(),
            cidr: cidr.parse().unwrap(),
            tags: BTreeMap::from([("pods".to_owned(), tag.to_owned())]),
        };
        node.sim().add_subnet(spec).unwrap();
    }
    let zone = Zone { vpc_id: "vpc-1".parse().unwrap(), name: "eu-central-1a".into() };
    (node, zone)
}

async fn resolved(node: &Node, zone: &Zone, spec: &Value) -> (News, Option<Duration>) {
    let config = EniConfig::parse(&eni_config("x", spec)).unwrap();
    let Resolved { news, again, .. } = zone.resolve(&node.cloud(), &config).await;
    (news, again)
}

fn found(news: &News) -> Vec<(&str, bool)> {
    match news {
        News::Found(placement) => {
            placement.subnets.iter().map(|s| (s.id.as_str(), s.prefix.is_some())).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn subnets_are_taken_by_id_in_their_order_or_by_tag_by_their_room_and_only_in_the_nodes_zone()
{
    let (node, zone) = region().await;
    for (spec, expect, again) in [
        (
            json!({"subnet": "subnet-a", "subnets": ["subnet-c"]}),
            vec!["subnet-a", "subnet-c"],
            None,
        ),
        (json!({"subnets": ["subnet-far", "subnet-b"]}), vec!["subnet-b"], Some(REFRESH)),
        (json!({"subnetTags": {"pods": "yes"}}), vec!["subnet-b", "subnet-a"], Some(REFRESH)),
        (
            json!({"subnetTags": {"pods": "*"}}),
            vec!["subnet-b", "subnet-c", "subnet-a"],
            Some(REFRESH),
        ),
    ] {
        let (news, then) = resolved(&node, &zone, &spec).await;
        let expect: Vec<_> = expect.into_iter().map(|id| (id, true)).collect();
        assert_eq!((found(&news), then), (expect, again), "{spec}");
    }
    for (spec, part) in [
        (
            json!({"subnet": "subnet-far"}),
            "names no subnet in the zone eu-central-1a of the node's VPC vpc-1",
        ),
        (json!({"subnetTags": {"pods": "no", "x": "*"}}), "names no subnet in the zone"),
        (
            json!({"subnet": "subnet-a", "securityGroupTags": {"a": "b"}}),
            "no security group of the VPC vpc-1 has all of spec.securityGroupTags",
        ),
    ] {
        match resolved(&node, &zone, &spec).await.0 {
            News::Awaits(what) => {
                assert!(what.contains(part) && what.contains("ENIConfig x"), "{what}")
            }
            other => panic!("{spec}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn security_groups_are_taken_by_tag_in_the_nodes_vpc_and_never_none_of_them() {
    let (node, zone) = region().await;
    let vpc_id = || "vpc-1".parse().unwrap();
    for id in ["sg-9", "sg-8", "sg-7"] {
        node.sim().add_security_group(id.parse().unwrap(), vpc_id()).unwrap();
        let tag = ("pods".to_owned(), if id == "sg-7" { "no" } else { "yes" }.to_owned());
        node.sim().tag_security_group(&id.parse().unwrap(), [tag].into()).unwrap();
    }
    let spec = json!({"subnet": "subnet-a", "securityGroupTags": {"pods": "yes"}});
    let (news, again) = resolved(&node, &zone, &spec).await;
    let groups = |news: &News| match news {
        News::Found(placement) => {
            placement.security_groups.iter().map(ToString::to_string).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((groups(&news), again), (vec!["sg-8".into(), "sg-9".into()], Some(REFRESH)));
    let awaits = |news: News, part: &str| match news {
        News::Awaits(what) => {
            assert!(what.contains(part) && what.contains("ENIConfig x"), "{what}")
        }
        other => panic!("{part}: {other:?}"),
    };
    for number in 20..40 {
        let id: SecurityGroupId = format!("sg-{number}").parse().unwrap();
        node.sim().add_security_group(id.clone(), vpc_id()).unwrap();
        let tag = ("pods".to_owned(), "yes".to_owned());
        node.sim().tag_security_group(&id, [tag].into()).unwrap();
    }
    let (news, again) = resolved(&node, &zone, &spec).await;
    awaits(news, "22 security groups of the VPC vpc-1 have spec.securityGroupTags");
    assert_eq!(again, Some(REFRESH));
    node.sim().inject(Fault::deny("DescribeSecurityGroups").times(u32::MAX));
    let (news, again) = resolved(&node, &zone, &spec).await;
    awaits(news, "lacks ec2:DescribeSecurityGroups");
    assert_eq!(again, Some(RETRY));
}

#[tokio::test(start_paused = true)]
async fn without_ec2s_word_ids_are_taken_as_they_are_and_tags_are_waited_for() {
    let (node, zone) = region().await;
    node.sim().inject(Fault::deny("DescribeSubnets").times(u32::MAX));
    let (news, again) =
        resolved(&node, &zone, &json!({"subnets": ["subnet-a", "subnet-far"]})).await;
    assert_eq!(found(&news), [("subnet-a", false), ("subnet-far", false)]);
    assert_eq!(again, Some(RETRY));
    let (news, again) = resolved(&node, &zone, &json!({"subnetTags": {"pods": "yes"}})).await;
    assert!(matches!(&news, News::Awaits(what) if what.contains("DescribeSubnets")), "{news:?}");
    assert_eq!(again, Some(RETRY));
}

#[tokio::test]
async fn a_folder_of_manifests_is_followed_from_the_eniconfig_to_the_placement() {
    let (node, zone) = region().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        // As the README says: written beside it, and renamed.
        let beside = folder.path().join("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, folder.path().join("x.yaml")).unwrap();
    };
    let choices = from_manifests(folder.path(), NODE.into(), keys()).unwrap();
    let cloud = Arc::new(node.cloud());
    let whereabouts = crate::start::whereabouts(&*cloud).await;
    let InstanceIdentity { availability_zone, .. } = &whereabouts.identity;
    assert_eq!(*availability_zone, zone.name);
    let mut source = Some(follow(cloud, &whereabouts, choices));
    let missing = next(&mut source).await;
    assert!(
        matches!(&missing, News::Awaits(what) if what.contains("ENIConfig default")),
        "{missing:?}"
    );
    write(
        "apiVersion: crd.k8s.amazonaws.com/v1alpha1\nkind: ENIConfig\nmetadata: {name: default}\nspec: {subnet: subnet-b}\n",
    );
    assert_eq!(found(&next(&mut source).await), [("subnet-b", true)]);
    write(
        "apiVersion: crd.k8s.amazonaws.com/v1alpha1\nkind: ENIConfig\nmetadata: {name: default}\nspec: {subnet: subnet-c}\n",
    );
    assert_eq!(found(&next(&mut source).await), [("subnet-c", true)]);
    std::fs::remove_file(folder.path().join("x.yaml")).unwrap();
    assert!(matches!(next(&mut source).await, News::Awaits(_)));
}

#[tokio::test(start_paused = true)]
async fn what_ec2_told_of_an_object_that_has_not_changed_stays_while_it_does_not_answer() {
    for (spec, action) in [
        (
            json!({"subnet": "subnet-a", "securityGroupTags": {"pods": "yes"}}),
            "DescribeSecurityGroups",
        ),
        (json!({"subnetTags": {"pods": "yes"}}), "DescribeSubnets"),
        // One of them is elsewhere: it must not come back because EC2 does not say so now.
        (json!({"subnets": ["subnet-far", "subnet-b"]}), "DescribeSubnets"),
    ] {
        let (node, _) = region().await;
        node.sim().add_security_group("sg-9".parse().unwrap(), "vpc-1".parse().unwrap()).unwrap();
        let tag = BTreeMap::from([("pods".to_owned(), "yes".to_owned())]);
        node.sim().tag_security_group(&"sg-9".parse().unwrap(), tag).unwrap();
        let cloud = Arc::new(node.cloud());
        let whereabouts = crate::start::whereabouts(&*cloud).await;
        let config = EniConfig::parse(&eni_config("x", &spec)).unwrap();
        let (choose, choices) = watch::channel(Some(Ok(config)));
        let mut source = follow(cloud, &whereabouts, choices);
        source.changed().await.unwrap();
        let before = source.borrow_and_update().clone();
        assert!(matches!(before, News::Found(_)), "{before:?}");
        let fault = node.sim().inject(Fault::throttle(action, None).times(u32::MAX));
        let calls = |node: &Node| node.sim().calls().of(action).errors;
        tokio::time::sleep(REFRESH * 3).await;
        let asked = calls(&node);
        assert!((8..30).contains(&asked), "with a backoff: {asked}");
        assert!(!source.has_changed().unwrap(), "{spec}: {:?}", *source.borrow());
        // Another object, of which EC2 has told nothing.
        let other = json!({"subnetTags": {"pods": "no"}, "securityGroupTags": {"pods": "yes"}});
        choose.send_replace(Some(
            EniConfig::parse(&eni_config("x", &other)).map_err(|_| String::new()),
        ));
        source.changed().await.unwrap();
        let news = source.borrow_and_update().clone();
        assert!(matches!(&news, News::Awaits(what) if what.contains(action)), "{spec}: {news:?}");
        node.sim().withdraw(fault);
        source.changed().await.unwrap();
        assert_eq!(found(&source.borrow_and_update()), [("subnet-c", true)], "{spec}");
    }
}
