//! Plain LocalStack, which is what users have in CI: the provider works there, and each way in which it is not EC2 is
//! asserted one by one. A test here that fails after an upgrade of LocalStack is good news: upstream has mended it;
//! move the case to "like EC2".

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU32, Ordering},
};

use veni_core::id::SubnetId;
use veni_localstack_tests::{Account, LocalStack, Node, Tier};
use veni_provider::{
    AttachInterface, Cloud, CreateInterface, ErrorClass, Interface, InterfaceFilter,
    InterfaceStatus, SubnetFilter,
};
use veni_provider_aws::AwsCloud;

/// A VPC with an m5.large (3 ENIs of 10 addresses).
struct Place {
    account: Account,
    subnet: SubnetId,
    node: Node,
}

impl Place {
    async fn new(cidr: &str) -> Self {
        let account = Account::new(LocalStack::shared(Tier::Plain)).await.unwrap();
        let subnet = account.subnet(cidr).await.unwrap();
        let node = account.run_instance("m5.large", &subnet, &[]).await.unwrap();
        Self { account, subnet, node }
    }

    fn cloud(&self) -> &AwsCloud {
        &self.node.cloud
    }

    fn request(&self, secondary_addresses: u32) -> CreateInterface {
        static TOKENS: AtomicU32 = AtomicU32::new(0);
        CreateInterface {
            subnet_id: self.subnet.clone(),
            security_groups: Vec::new(),
            secondary_addresses,
            prefixes: 0,
            description: "aws-K8S-i-1".into(),
            tags: [("owner".to_owned(), "veni".to_owned())].into(),
            client_token: format!("token-{}", TOKENS.fetch_add(1, Ordering::Relaxed)),
        }
    }

    async fn create(&self, secondary_addresses: u32) -> Interface {
        self.cloud().create_interface(self.request(secondary_addresses)).await.unwrap()
    }

    async fn attach(&self, eni: &Interface, device_index: u8, network_card: u8) -> bool {
        let request = AttachInterface {
            eni: eni.id.clone(),
            instance: self.node.instance.clone(),
            device_index,
            network_card,
        };
        self.cloud().attach_interface(request).await.is_ok()
    }

    async fn look(&self, eni: &Interface) -> Interface {
        let filter = InterfaceFilter::Ids(vec![eni.id.clone()]);
        self.cloud().describe_interfaces(filter).await.unwrap().remove(0)
    }

    async fn primary(&self) -> Interface {
        let filter = InterfaceFilter::AttachedTo(self.node.instance.clone());
        self.cloud().describe_interfaces(filter).await.unwrap().remove(0)
    }
}

// --- what ipamd needs of it works ---------------------------------------------------------------------------------

#[tokio::test]
async fn an_interface_lives_from_creation_to_deletion() {
    let place = Place::new("10.0.0.0/20").await;
    let eni = place.create(3).await;
    assert_eq!(eni.status, InterfaceStatus::Available);
    assert_eq!(eni.secondary_addresses.len(), 3);
    assert_eq!(eni.tags.get("owner").map(String::as_str), Some("veni"));
    assert!(place.attach(&eni, 1, 0).await);
    let attached = place.look(&eni).await;
    assert_eq!(attached.status, InterfaceStatus::InUse);
    let attachment = attached.attachment.unwrap();
    assert_eq!((attachment.device_index, attachment.network_card), (1, 0));
    let seen = place.node.cloud.metadata_interfaces().await.unwrap();
    assert!(seen.iter().any(|i| i.id == eni.id && i.mac == eni.mac), "{seen:?}");
    place.cloud().detach_interface(&attachment.id).await.unwrap();
    let free = InterfaceFilter::AvailableWithTag { key: "owner".into(), value: "veni".into() };
    let found = place.cloud().describe_interfaces(free).await.unwrap();
    assert!(found.iter().any(|i| i.id == eni.id));
    place.cloud().delete_interface(&eni.id).await.unwrap();
    let gone = place.cloud().describe_interfaces(InterfaceFilter::Ids(vec![eni.id])).await;
    assert_eq!(gone.unwrap_err().class, ErrorClass::NotFound);
}

#[tokio::test]
async fn an_assignment_tells_the_new_addresses_only() {
    let place = Place::new("10.0.0.0/16").await;
    let eni = place.create(3).await;
    let before: BTreeSet<_> = eni.secondary_addresses.iter().copied().collect();
    let new = place.cloud().assign_addresses(&eni.id, 4).await.unwrap();
    let after: BTreeSet<_> = place.look(&eni).await.secondary_addresses.into_iter().collect();
    assert_eq!(new.iter().copied().collect::<BTreeSet<_>>(), &after - &before);
    assert!(!new.contains(&eni.primary_address));
}

#[tokio::test]
async fn limits_subnets_and_unknown_ids_are_like_ec2() {
    let place = Place::new("10.0.0.0/24").await;
    let limits = place.cloud().describe_instance_type(&"m5.large".parse().unwrap()).await.unwrap();
    assert_eq!((limits.max_enis, limits.addresses_per_eni), (3, 10));
    let identity = place.cloud().identity().await.unwrap();
    assert_eq!(identity.instance_id, place.node.instance);
    let zone = SubnetFilter::InZone {
        vpc_id: place.account.vpc_id.clone(),
        availability_zone: identity.availability_zone,
    };
    let subnets = place.cloud().describe_subnets(zone).await.unwrap();
    assert_eq!(subnets.iter().map(|s| &s.id).collect::<Vec<_>>(), [&place.subnet]);
    let unknown = place.cloud().delete_interface(&"eni-00000000000000000".parse().unwrap()).await;
    assert_eq!(unknown.unwrap_err().class, ErrorClass::NotFound);
}

// --- known deviations ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn deviation_a_mac_is_misprinted_which_the_provider_mends() {
    let place = Place::new("10.0.0.0/24").await;
    let eni = place.create(0).await;
    let raw = place.account.ec2().describe_network_interfaces();
    let raw = raw.network_interface_ids(eni.id.as_str()).send().await.unwrap();
    let printed = raw.network_interfaces()[0].mac_address().unwrap();
    assert!(printed.ends_with("02x"), "{printed}: moto prints MACs right now");
    assert!(eni.mac.to_string().starts_with("02:00:00:"));
}

#[tokio::test]
async fn deviation_a_subnet_gives_more_addresses_than_it_has() {
    let place = Place::new("10.0.0.0/28").await;
    let first = place.create(20).await;
    let second = place.create(20).await;
    let held = first.secondary_addresses.iter().chain(&second.secondary_addresses);
    let distinct: BTreeSet<_> = held.collect();
    assert!(distinct.len() < 40, "a /28 has 11 addresses to give: some were given twice");
    let ids = SubnetFilter::Ids(vec![place.subnet.clone()]);
    let described = place.cloud().describe_subnets(ids).await.unwrap().remove(0);
    assert_eq!(described.available_addresses, 0, "LocalStack's count is below zero, ours is not");
}

#[tokio::test]
async fn deviation_an_assignment_is_answered_with_all_addresses() {
    let place = Place::new("10.0.0.0/20").await;
    let eni = place.create(3).await;
    let raw = place.account.ec2().assign_private_ip_addresses();
    let raw = raw.network_interface_id(eni.id.as_str()).secondary_private_ip_address_count(2);
    let answer = raw.send().await.unwrap();
    assert_eq!(
        answer.assigned_private_ip_addresses().len(),
        1 + 3 + 2,
        "EC2 lists the two new ones"
    );
}

#[tokio::test]
async fn deviation_the_limit_of_addresses_is_not_enforced() {
    let place = Place::new("10.0.0.0/20").await;
    let eni = place.create(0).await;
    assert!(place.attach(&eni, 1, 0).await);
    let beyond = place.cloud().assign_addresses(&eni.id, 20).await;
    assert!(beyond.is_ok(), "an m5.large has 10 addresses an ENI: {beyond:?}");
}

#[tokio::test]
async fn deviation_what_is_not_there_and_the_primary_can_be_unassigned() {
    let place = Place::new("10.0.0.0/20").await;
    let eni = place.create(1).await;
    let foreign = "10.0.15.250".parse().unwrap();
    for address in [foreign, eni.primary_address] {
        let accepted = place.cloud().unassign_addresses(&eni.id, &[address]).await;
        assert!(accepted.is_ok(), "{address}: {accepted:?}");
    }
}

#[tokio::test]
async fn deviation_prefixes_are_ignored() {
    let place = Place::new("10.0.0.0/20").await;
    let request = CreateInterface { prefixes: 2, ..place.request(0) };
    assert_eq!(place.cloud().create_interface(request).await.unwrap().prefixes, []);
}

#[tokio::test]
async fn deviation_attachments_know_no_limit_no_index_and_no_card() {
    let place = Place::new("10.0.0.0/20").await;
    for device_index in [1, 1, 2, 3, 4] {
        let eni = place.create(0).await;
        assert!(place.attach(&eni, device_index, 0).await, "index {device_index} of an m5.large");
        assert!(place.attach(&eni, device_index, 0).await, "attached twice");
    }
    let eni = place.create(0).await;
    assert!(place.attach(&eni, 5, 7).await, "an m5.large has card 0 only");
    let attachment = place.look(&eni).await.attachment.unwrap();
    assert_eq!(attachment.network_card, 0);
}

#[tokio::test]
async fn deviation_an_interface_in_use_can_be_deleted() {
    let place = Place::new("10.0.0.0/20").await;
    let eni = place.create(0).await;
    assert!(place.attach(&eni, 1, 0).await);
    assert!(place.cloud().delete_interface(&eni.id).await.is_ok());
}

#[tokio::test]
async fn deviation_detaching_is_instant_and_takes_the_primary_too() {
    let place = Place::new("10.0.0.0/20").await;
    let eni = place.create(0).await;
    assert!(place.attach(&eni, 1, 0).await);
    let primary = place.primary().await;
    let attachment = place.look(&primary).await.attachment.unwrap();
    assert_eq!(attachment.device_index, 0);
    place.cloud().detach_interface(&attachment.id).await.unwrap();
    assert_eq!(place.look(&primary).await.status, InterfaceStatus::Available);
}

#[tokio::test]
async fn deviation_a_client_token_is_ignored() {
    let place = Place::new("10.0.0.0/20").await;
    let request = place.request(1);
    let first = place.cloud().create_interface(request.clone()).await.unwrap();
    let second = place.cloud().create_interface(request).await.unwrap();
    assert_ne!(first.id, second.id);
}

#[tokio::test]
async fn deviation_there_is_one_page_whatever_was_asked_for() {
    let place = Place::new("10.0.0.0/20").await;
    for _ in 0..6 {
        place.create(0).await;
    }
    let answer = place.account.ec2().describe_network_interfaces().max_results(5).send().await;
    let answer = answer.unwrap();
    assert!(answer.network_interfaces().len() > 5);
    assert_eq!(answer.next_token(), None);
}

#[tokio::test]
async fn deviation_deletion_on_termination_is_not_kept() {
    let place = Place::new("10.0.0.0/20").await;
    let eni = place.create(0).await;
    assert!(place.attach(&eni, 1, 0).await);
    let attachment = place.look(&eni).await.attachment.unwrap();
    place.cloud().set_delete_on_termination(&eni.id, &attachment.id).await.unwrap();
    assert!(!place.look(&eni).await.attachment.unwrap().delete_on_termination);
}

#[tokio::test]
async fn deviation_an_attached_interface_shows_the_instances_groups_too() {
    let place = Place::new("10.0.0.0/20").await;
    let groups = [
        place.account.security_group("one").await.unwrap(),
        place.account.security_group("two").await.unwrap(),
    ];
    let node = place.account.run_instance("m5.large", &place.subnet, &groups[..1]).await.unwrap();
    let primary = InterfaceFilter::AttachedTo(node.instance.clone());
    let primary = node.cloud.describe_interfaces(primary).await.unwrap().remove(0);
    node.cloud.set_security_groups(&primary.id, &groups[1..]).await.unwrap();
    let seen = place.look(&primary).await.security_groups;
    let both: BTreeSet<_> = groups.iter().collect();
    assert_eq!(seen.iter().collect::<BTreeSet<_>>(), both, "EC2 replaces the groups");
}

#[tokio::test]
async fn deviation_an_unknown_interface_can_be_tagged() {
    let place = Place::new("10.0.0.0/28").await;
    let tags = [("owner".to_owned(), "veni".to_owned())].into();
    let unknown = "eni-00000000000000000".parse().unwrap();
    assert!(place.cloud().create_tags(&unknown, &tags).await.is_ok());
}
