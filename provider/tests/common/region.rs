//! A small region and virtual time for the tests.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use veni_core::id::{InstanceId, SubnetId};
use veni_provider::{
    CreateInterface,
    sim::{InstanceSpec, Sim, SimCloud, SimConfig, SubnetSpec, Timer},
};

/// tokio's clock, which the tests pause.
#[derive(Debug)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Arc<Self> {
        Arc::new(Self(Instant::now()))
    }
}

impl Timer for Clock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

pub fn instance() -> InstanceId {
    "i-1".parse().unwrap()
}

/// `subnet-a` (/22) and `subnet-small` (/28), an m5.large `i-1` in the first, security groups `sg-1`, `sg-2`.
pub fn region(config: SimConfig) -> Sim {
    let mut sim = Sim::new(config);
    let vpc_id: veni_core::id::VpcId = "vpc-1".parse().unwrap();
    sim.add_vpc(vpc_id.clone(), vec!["10.0.0.0/16".parse().unwrap()]).unwrap();
    sim.add_security_group("sg-2".parse().unwrap(), vpc_id.clone()).unwrap();
    for (id, cidr) in [("subnet-a", "10.0.0.0/22"), ("subnet-small", "10.0.4.0/28")] {
        sim.add_subnet(SubnetSpec {
            id: id.parse().unwrap(),
            vpc_id: vpc_id.clone(),
            availability_zone: "eu-central-1a".into(),
            cidr: cidr.parse().unwrap(),
            tags: BTreeMap::new(),
        })
        .unwrap();
    }
    run(&mut sim, "i-1", "m5.large");
    sim.drain_events();
    sim
}

pub fn run(sim: &mut Sim, id: &str, kind: &str) {
    let spec = InstanceSpec {
        id: id.parse().unwrap(),
        instance_type: kind.parse().unwrap(),
        subnet_id: "subnet-a".parse().unwrap(),
        security_groups: vec!["sg-1".parse().unwrap()],
    };
    sim.run_instance(Duration::ZERO, spec).unwrap();
}

pub fn cloud(sim: Sim, clock: Arc<Clock>) -> SimCloud<Clock> {
    SimCloud::new(Arc::new(Mutex::new(sim)), clock, instance())
}

pub fn request(subnet: &SubnetId, token: &str, secondary: u32) -> CreateInterface {
    CreateInterface {
        subnet_id: subnet.clone(),
        security_groups: Vec::new(),
        secondary_addresses: secondary,
        prefixes: 0,
        description: "aws-K8S-i-1".into(),
        tags: BTreeMap::new(),
        client_token: token.into(),
    }
}
