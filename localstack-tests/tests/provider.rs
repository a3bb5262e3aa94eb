//! What the conformance suite cannot ask of a provider: classes of injected refusals, metadata's whims, pages, the
//! SDK's variables, memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "what was measured is told")]

use std::{collections::BTreeSet, process::Command, time::Duration};

use veni_core::id::SubnetId;
use veni_localstack_tests::{Account, Fault, LocalStack, Node, Tier, When};
use veni_provider::{
    AttachInterface, Cloud, CreateInterface, ErrorClass, Interface, InterfaceFilter,
    InterfaceStatus,
};

struct Place {
    account: Account,
    subnet: SubnetId,
    node: Node,
}

impl Place {
    async fn new() -> Self {
        let account = Account::new(LocalStack::shared(Tier::Semantics)).await.unwrap();
        let subnet = account.subnet("10.0.0.0/20").await.unwrap();
        let node = account.run_instance("m5.xlarge", &subnet, &[]).await.unwrap();
        Self { account, subnet, node }
    }

    fn request(&self, token: &str) -> CreateInterface {
        CreateInterface {
            subnet_id: self.subnet.clone(),
            security_groups: Vec::new(),
            secondary_addresses: 2,
            prefixes: 0,
            description: "aws-K8S-i-1".into(),
            tags: [("owner".to_owned(), self.account.agent.clone())].into(),
            client_token: format!("{}-{token}", self.account.agent),
        }
    }

    async fn attached(&self) -> Interface {
        let eni = self.node.cloud.create_interface(self.request("attached")).await.unwrap();
        let request = AttachInterface {
            eni: eni.id.clone(),
            instance: self.node.instance.clone(),
            device_index: 1,
            network_card: 0,
        };
        self.node.cloud.attach_interface(request).await.unwrap();
        let all = self.account.attached_to(&self.node.instance).await.unwrap();
        all.into_iter().find(|i| i.id == eni.id).unwrap()
    }
}

#[tokio::test]
async fn refusals_on_the_wire_have_their_class() {
    let place = Place::new().await;
    let subnet = Some(place.subnet.clone());
    for (code, status, expect) in [
        ("RequestLimitExceeded", 503, ErrorClass::Throttled { retry_after_millis: None }),
        ("InsufficientFreeAddressesInSubnet", 400, ErrorClass::SubnetExhausted { subnet }),
        ("NetworkInterfaceLimitExceeded", 400, ErrorClass::Quota),
        (
            "UnauthorizedOperation",
            403,
            ErrorClass::Denied { action: "CreateNetworkInterface".into() },
        ),
        ("InternalError", 500, ErrorClass::Transient),
        ("Unavailable", 503, ErrorClass::Transient),
    ] {
        let agent = &place.account.agent;
        let fault = Fault::next("CreateNetworkInterface", agent, When::Before, code, status);
        place.account.set_faults(vec![fault]).unwrap();
        let error = place.node.cloud.create_interface(place.request("refused")).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (expect, code));
    }
    let calls = place.account.calls().unwrap();
    assert_eq!(calls.len(), 6, "the SDK repeats no EC2 call by itself: {calls:?}");
}

#[tokio::test]
async fn an_answer_that_is_lost_has_had_its_effect_and_a_token_finds_it() {
    let place = Place::new().await;
    let agent = &place.account.agent;
    let lost = Fault::next("CreateNetworkInterface", agent, When::After, "InternalError", 500);
    place.account.set_faults(vec![lost]).unwrap();
    let error = place.node.cloud.create_interface(place.request("lost")).await.unwrap_err();
    assert!(error.effect_unknown(), "{error}");
    let found = place.node.cloud.create_interface(place.request("lost")).await.unwrap();
    let by_tag = InterfaceFilter::AvailableWithTag { key: "owner".into(), value: agent.clone() };
    let all = place.node.cloud.describe_interfaces(by_tag).await.unwrap();
    assert_eq!(all.iter().map(|i| &i.id).collect::<Vec<_>>(), [&found.id]);
}

#[tokio::test]
async fn metadata_that_forgets_or_shortens_is_told_as_it_is() {
    let place = Place::new().await;
    let eni = place.attached().await;
    let (cloud, metadata) = (&place.node.cloud, &place.node.metadata);
    let whole = cloud.metadata_interfaces().await.unwrap();
    assert_eq!(whole.len(), 2);
    metadata.list_only(&eni.id, 1);
    let short = cloud.metadata_interfaces().await.unwrap();
    let shown = short.iter().find(|i| i.id == eni.id).unwrap();
    assert_eq!(shown.addresses, [eni.primary_address]);
    metadata.forget(&eni.id);
    let forgetful = cloud.metadata_interfaces().await.unwrap();
    assert!(forgetful.iter().all(|i| i.id != eni.id) && forgetful.len() == 1);
    metadata.fail();
    let error = cloud.metadata_interfaces().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient, "{error}");
    metadata.recover();
    assert_eq!(cloud.metadata_interfaces().await.unwrap(), whole);
}

#[tokio::test]
async fn metadata_that_lags_shows_what_was() {
    let place = Place::new().await;
    assert_eq!(place.node.cloud.metadata_interfaces().await.unwrap().len(), 1);
    place.node.metadata.lag();
    place.attached().await;
    assert_eq!(place.node.cloud.metadata_interfaces().await.unwrap().len(), 1);
    place.node.metadata.recover();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while place.node.cloud.metadata_interfaces().await.unwrap().len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "metadata never caught up");
    }
}

#[tokio::test]
async fn an_instance_with_many_cards_shows_them() {
    let account = Account::new(LocalStack::shared(Tier::Semantics)).await.unwrap();
    let subnet = account.subnet("10.0.0.0/20").await.unwrap();
    let node = account.run_instance("p4d.24xlarge", &subnet, &[]).await.unwrap();
    let place = Place { account, subnet, node };
    let eni = place.node.cloud.create_interface(place.request("card")).await.unwrap();
    let request = AttachInterface {
        eni: eni.id.clone(),
        instance: place.node.instance.clone(),
        device_index: 1,
        network_card: 3,
    };
    place.node.cloud.attach_interface(request).await.unwrap();
    let shown = place.node.cloud.metadata_interfaces().await.unwrap();
    let shown = shown.iter().find(|i| i.id == eni.id).unwrap();
    assert_eq!((shown.network_card, shown.device_index), (3, 1));
    let described = place.account.attached_to(&place.node.instance).await.unwrap();
    let described = described.into_iter().find(|i| i.id == eni.id).unwrap();
    assert_eq!(described.status, InterfaceStatus::InUse);
    assert_eq!(described.attachment.unwrap().network_card, 3);
}

/// What a daemon may have with this provider (docs/SPECIFICATION.md). Here the build is not optimised.
const RESIDENT_KIB: u64 = 25 * 1024;

/// The environment of a program that is to reach the doubles by the SDK's own variables.
fn reaching(program: &str, node: &Node) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("AWS_ENDPOINT_URL_EC2", LocalStack::shared(Tier::Semantics).endpoint())
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", node.metadata.endpoint())
        // No AWS_REGION: metadata names it.
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test");
    command
}

/// Runs it aside: the runtime that serves metadata must go on meanwhile.
async fn output(mut command: Command) -> serde_json::Value {
    let ran = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[expect(clippy::print_stdout, reason = "the number is worth seeing")]
fn assert_small(told: &serde_json::Value, what: &str) {
    let resident = told["resident_kib"].as_u64().unwrap();
    println!("{what}: {resident} KiB resident");
    assert!(resident <= RESIDENT_KIB, "{what}: {resident} KiB");
}

/// The daemon runs against any double by the SDK's own variables.
#[tokio::test]
async fn the_sdks_variables_lead_to_a_double() {
    let place = Place::new().await;
    let eni = place.attached().await;
    let told = output(reaching(env!("CARGO_BIN_EXE_veni-aws-probe"), &place.node)).await;
    assert_eq!(told["identity"]["region"], "eu-central-1");
    assert_eq!(told["identity"]["instance_id"], place.node.instance.as_str());
    for list in ["attached", "metadata"] {
        let listed = told[list].as_array().unwrap();
        let ids: BTreeSet<_> = listed.iter().map(|i| i["id"].as_str()).collect();
        assert!(ids.contains(&Some(eni.id.as_str())), "{list}: {ids:?}");
    }
    assert_small(&told, "the provider alone");
}

#[tokio::test]
async fn the_pool_with_700_pods_stays_small() {
    let account = Account::new(LocalStack::shared(Tier::Semantics)).await.unwrap();
    let subnet = account.subnet("10.0.0.0/20").await.unwrap();
    let node = account.run_instance("m5.24xlarge", &subnet, &[]).await.unwrap();
    let mut probe = reaching(env!("CARGO_BIN_EXE_veni-ipamd-probe"), &node);
    probe.arg("700").env("VENI_ADD_WAIT_SECS", "60");
    let told = output(probe).await;
    assert_eq!(told["pods"], 700);
    assert_small(&told, "ipamd's pool with 700 pods");
}
