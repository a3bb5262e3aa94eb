//! A small region for the tests.

use std::{collections::BTreeMap, time::Duration};

use veni_core::id::{InstanceId, SubnetId};
use veni_provider::{
    CreateInterface,
    sim::{InstanceSpec, Sim, SimConfig, SubnetSpec},
};

pub(crate) fn instance() -> InstanceId {
    "i-1".parse().unwrap()
}

/// `subnet-a` (/22) and `subnet-small` (/28), an m5.large `i-1` in the first, security groups `sg-1`, `sg-2`.
pub(crate) fn region(config: SimConfig) -> Sim {
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

pub(crate) fn run(sim: &mut Sim, id: &str, kind: &str) {
    let spec = InstanceSpec {
        id: id.parse().unwrap(),
        instance_type: kind.parse().unwrap(),
        subnet_id: "subnet-a".parse().unwrap(),
        security_groups: vec!["sg-1".parse().unwrap()],
    };
    sim.run_instance(Duration::ZERO, spec).unwrap();
}

#[allow(dead_code, reason = "not every test makes ENIs")]
pub(crate) fn request(subnet: &SubnetId, token: &str, secondary: u32) -> CreateInterface {
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
