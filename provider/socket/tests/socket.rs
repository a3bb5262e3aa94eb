//! The socket carries what the simulator says, and survives what clients do.

#![expect(clippy::unwrap_used, reason = "a test says what it needs by failing")]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use veni_provider::{
    AttachInterface, Cloud, CreateInterface, ErrorClass, Interface, InterfaceFilter,
    InterfaceStatus,
    sim::{Admin, Event, EventKind, Fault, InstanceSpec, Latency, Sim, SimConfig, SubnetSpec},
};
use veni_provider_socket::{AdminClient, AdminError, Client, RealTime, SimHandler, drive, serve};

struct Lab {
    _directory: TempDir,
    path: PathBuf,
    client: Client,
    admin: AdminClient,
    events: mpsc::UnboundedReceiver<Event>,
}

fn sim(latency: Latency) -> Sim {
    let mut sim = Sim::new(SimConfig { latency, ..SimConfig::instant() });
    let vpc_id: veni_core::id::VpcId = "vpc-1".parse().unwrap();
    sim.add_vpc(vpc_id.clone(), vec!["10.0.0.0/16".parse().unwrap()]).unwrap();
    sim.add_subnet(SubnetSpec {
        id: "subnet-1".parse().unwrap(),
        vpc_id,
        availability_zone: "eu-central-1a".into(),
        cidr: "10.0.0.0/24".parse().unwrap(),
        tags: std::collections::BTreeMap::default(),
    })
    .unwrap();
    let spec = InstanceSpec {
        id: "i-1".parse().unwrap(),
        instance_type: "m5.large".parse().unwrap(),
        subnet_id: "subnet-1".parse().unwrap(),
        security_groups: Vec::new(),
    };
    sim.run_instance(Duration::ZERO, spec).unwrap();
    sim.drain_events();
    sim
}

fn lab(latency: Latency) -> Lab {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("sim.sock");
    let (sim, timer) = (Arc::new(Mutex::new(sim(latency))), Arc::new(RealTime::start()));
    let handler = Arc::new(SimHandler::new(Arc::clone(&sim), Arc::clone(&timer)));
    tokio::spawn(serve(UnixListener::bind(&path).unwrap(), handler));
    let (sender, events) = mpsc::unbounded_channel();
    tokio::spawn(drive(sim, timer, sender));
    let client = Client::new(&path, "i-1".parse().unwrap());
    let admin = AdminClient::new(&path);
    Lab { _directory: directory, path, client, admin, events }
}

fn request(token: &str) -> CreateInterface {
    CreateInterface {
        subnet_id: "subnet-1".parse().unwrap(),
        security_groups: Vec::new(),
        secondary_addresses: 3,
        prefixes: 0,
        description: "aws-K8S-i-1".into(),
        tags: std::collections::BTreeMap::default(),
        client_token: token.into(),
    }
}

async fn attach(client: &Client, interface: &Interface) {
    let request = AttachInterface {
        eni: interface.id.clone(),
        instance: "i-1".parse().unwrap(),
        device_index: 1,
        network_card: 0,
    };
    client.attach_interface(request).await.unwrap();
}

#[tokio::test]
async fn an_attachment_through_the_socket_arrives_as_an_event() {
    let mut lab = lab(Latency { attach_millis: 20, ..Latency::none() });
    let interface = lab.client.create_interface(request("a")).await.unwrap();
    attach(&lab.client, &interface).await;
    let attached = loop {
        let event = lab.events.recv().await.unwrap();
        if let EventKind::Attached { interface, .. } = event.kind {
            break interface;
        }
    };
    assert_eq!(attached.id, interface.id);
    assert_eq!(attached.secondary_addresses.len(), 3);
    let seen =
        lab.client.describe_interfaces(InterfaceFilter::Ids(vec![interface.id])).await.unwrap();
    assert_eq!(seen[0].status, InterfaceStatus::InUse);
    assert_eq!(lab.client.metadata_interfaces().await.unwrap().len(), 2);
    assert_eq!(lab.client.identity().await.unwrap().instance_type.as_str(), "m5.large");
}

#[tokio::test]
async fn calls_run_side_by_side() {
    let lab = lab(Latency::fixed(200, 0));
    let (a, b) = (request("a"), request("b"));
    let both =
        async { tokio::join!(lab.client.create_interface(a), lab.client.create_interface(b)) };
    let (a, b) = tokio::time::timeout(Duration::from_millis(390), both).await.unwrap();
    assert_ne!(a.unwrap().id, b.unwrap().id);
}

#[tokio::test]
async fn errors_keep_class_code_and_action() {
    let lab = lab(Latency::none());
    let unknown = "eni-0".parse().unwrap();
    let error = lab.client.assign_addresses(&unknown, 1).await.unwrap_err();
    assert_eq!(error.action, "AssignPrivateIpAddresses");
    assert_eq!(
        (error.class, error.code.as_str()),
        (ErrorClass::NotFound, "InvalidNetworkInterfaceID.NotFound")
    );
}

#[tokio::test]
async fn faults_and_counts_travel() {
    let lab = lab(Latency::none());
    lab.admin.inject(Fault::lost_answer("CreateNetworkInterface").times(1)).await.unwrap();
    let error = lab.client.create_interface(request("a")).await.unwrap_err();
    assert!(error.effect_unknown());
    let replayed = lab.client.create_interface(request("a")).await.unwrap();
    let state = lab.admin.state().await.unwrap();
    assert_eq!(state.interfaces.len(), 2, "the primary and the one whose first answer was lost");
    assert!(state.interfaces.iter().any(|interface| interface.id == replayed.id));
    assert_eq!(lab.admin.calls().await.unwrap().of("CreateNetworkInterface").calls, 2);
    assert_eq!(lab.admin.call_log().await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_the_simulator_refuses_is_said_in_words() {
    let lab = lab(Latency::none());
    let refusal = lab.admin.ask(Admin::Withdraw(7)).await.unwrap_err();
    assert!(matches!(&refusal, AdminError::Refused(why) if why.contains("fault 7")), "{refusal}");
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_undo_its_call() {
    let mut lab = lab(Latency::fixed(50, 0));
    let call = lab.client.create_interface(request("a"));
    assert!(tokio::time::timeout(Duration::from_millis(10), call).await.is_err(), "it takes 50 ms");
    let event = lab.events.recv().await.unwrap();
    assert!(matches!(event.kind, EventKind::Created { .. }), "{event:?}");
}

#[tokio::test]
async fn garbage_is_refused_and_the_connection_lives_on() {
    let lab = lab(Latency::none());
    let mut stream = UnixStream::connect(&lab.path).await.unwrap();
    stream.write_all(b"{\"call\":1}\n\"admin\"\n{\"admin\":\"calls\",\"unknown\":1}\n{\"admin\":\"calls\"}\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    let answers: Vec<_> = answers.lines().collect();
    assert_eq!(answers.len(), 4);
    assert!(answers[0].starts_with("{\"refused\":"), "{}", answers[0]);
    assert_eq!(answers[3], "{\"admin\":{\"calls\":{\"by_instance\":{}}}}");
}

#[tokio::test]
async fn a_missing_server_is_a_transient_error_that_names_the_socket() {
    let client = Client::new("/nonexistent/sim.sock", "i-1".parse().unwrap());
    let error = client.identity().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient);
    assert!(error.message.contains("/nonexistent/sim.sock"), "{error}");
}
