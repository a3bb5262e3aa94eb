//! LocalStack with EC2's address semantics, in the fabric's router: every node reaches it as it reaches EC2, and instance
//! metadata beside it.
//!
//! Invariants: what the fabric has, what metadata says and what [`LocalStack::interfaces`] tells is one state: the one that
//! the extension tells as it changes (`veni_localstack::feed`). Nothing is asked for again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use veni_core::{
    id::{EniId, InstanceId, InstanceType, SecurityGroupId, SubnetId, VpcId},
    net::Ipv4Prefix,
};
use veni_localstack::{
    control::{Control, Delays},
    feed::News,
    metadata::{Attached, Instance},
    program::{Launch, Tier, is_healthy},
};
use veni_provider::{Interface, InterfaceStatus};

use super::{
    Booted,
    ec2::{Ec2, REGION},
    hand::Hand,
    metadata, subnet_cidr, zone_of,
};
use crate::{
    error::{Context as _, Error, Result, make_dir},
    kubernetes::Process,
    ns::{Namespace, Worker},
    vpc::{POD_SUBNET, SUBNETS, VPC_CIDR},
};

/// Where EC2 is: on the internet, from a node's point of view.
const ENDPOINT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 53), 4566);
/// LocalStack looks at no image.
const IMAGE: &str = "ami-12c6146b";
/// A cold start takes about 4 s; the rest is for a machine that is busy.
const START: Duration = Duration::from_secs(120);
/// How long an instance that was run may take to be told.
const TOLD: Duration = Duration::from_secs(30);
/// As the simulator has them, whose defaults are EC2's usual ones.
const DELAYS: Delays = Delays { attach_ms: 1500, detach_ms: 1000, create_visible_ms: 0 };

/// LocalStack, as the lab's account. It ends when dropped.
#[derive(Debug)]
pub struct LocalStack {
    ec2: Ec2,
    vpc: VpcId,
    /// Of the nodes, which take turns.
    subnets: Vec<SubnetId>,
    world: Arc<World>,
    // In the order in which they end.
    _metadata: metadata::Server,
    process: Option<Process>,
    following: Option<JoinHandle<()>>,
    _worker: Worker,
}

/// What is known of the account.
#[derive(Debug)]
struct World {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    interfaces: BTreeMap<EniId, Interface>,
    /// By the primary address.
    instances: BTreeMap<Ipv4Addr, Instance>,
    cidrs: BTreeMap<SubnetId, Ipv4Prefix>,
    hand: Hand,
}

// === impl LocalStack ===

impl LocalStack {
    /// Starts it in `router`, for the lab that keeps its files in `dir`; `hand` follows.
    pub(super) fn open(dir: &Path, router: &Namespace, hand: Hand) -> Result<Self> {
        router.ip(&format!(
            "addr add {}/32 dev lo\naddr add {}/32 dev lo\n",
            ENDPOINT.ip(),
            metadata::ADDRESS
        ))?;
        let dir = dir.join("localstack");
        make_dir(&dir)?;
        let worker = Worker::start(router)?;
        let (process, feed) = start(&dir, router, &worker)?;
        let state = State {
            interfaces: BTreeMap::new(),
            instances: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            hand,
        };
        let world = Arc::new(World { state: Mutex::new(state), changed: Condvar::new() });
        let following = thread::spawn({
            let world = Arc::clone(&world);
            move || world.follow(feed)
        });
        let values: metadata::Values = Arc::new({
            let world = Arc::clone(&world);
            move |caller, path| world.locked().metadata(caller, path)
        });
        let mut this = Self {
            ec2: Ec2 { from: router.clone(), at: ENDPOINT },
            vpc: "vpc-0".parse().map_err(|error| Error::invalid(format!("{error}")))?,
            subnets: Vec::new(),
            world,
            _metadata: metadata::Server::start(router, values)?,
            process: Some(process),
            following: Some(following),
            _worker: worker,
        };
        this.lay_out()?;
        Ok(this)
    }

    /// The lab's VPC and subnets.
    fn lay_out(&mut self) -> Result<()> {
        self.vpc = self.ec2.ask("CreateVpc", &[("CidrBlock", VPC_CIDR)])?.id("vpcId")?;
        for number in 0..SUBNETS.len() {
            let subnet = self.create_subnet(subnet_cidr(number), zone_of(number))?;
            self.subnets.push(subnet);
        }
        self.create_subnet(POD_SUBNET.1, zone_of(0)).map(drop)
    }

    fn create_subnet(&self, cidr: &str, zone: &str) -> Result<SubnetId> {
        let parameters =
            [("VpcId", self.vpc.as_str()), ("CidrBlock", cidr), ("AvailabilityZone", zone)];
        let subnet: SubnetId = self.ec2.ask("CreateSubnet", &parameters)?.id("subnetId")?;
        let cidr = cidr.parse().map_err(|error| Error::invalid(format!("{error}")))?;
        self.world.locked().cidrs.insert(subnet.clone(), cidr);
        Ok(subnet)
    }

    /// What leads the AWS SDKs of a program on a node here. Region and credentials are the instance's, from metadata.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}", self.ec2.at);
        [("VENI_PROVIDER", "aws".to_owned()), ("AWS_ENDPOINT_URL_EC2", endpoint)]
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    }

    /// All ENIs of the account.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Interface> {
        self.world.locked().interfaces.values().cloned().collect()
    }

    /// The ENIs that `DescribeNetworkInterfaces` tells, under EC2's filters, each a name and a value.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub fn describe_interfaces(&self, filters: &[(&str, &str)]) -> Result<BTreeSet<EniId>> {
        let numbered = filters.iter().enumerate().flat_map(|(index, (name, value))| {
            let key = format!("Filter.{}", index + 1);
            [(format!("{key}.Name"), *name), (format!("{key}.Value.1"), *value)]
        });
        let parameters: Vec<_> = numbered.collect();
        let parameters: Vec<_> = parameters.iter().map(|(key, value)| (&**key, *value)).collect();
        let answer = self.ec2.ask("DescribeNetworkInterfaces", &parameters)?;
        let ids = answer.all("networkInterfaceId").map(|id| {
            id.parse().map_err(|error| Error::invalid(format!("an ENI of EC2's answer: {error}")))
        });
        ids.collect()
    }

    /// Makes a security group in the VPC, which lets everything out and nothing in.
    pub(super) fn create_group(&self, name: &str) -> Result<SecurityGroupId> {
        let parameters =
            [("GroupName", name), ("GroupDescription", name), ("VpcId", self.vpc.as_str())];
        self.ec2.ask("CreateSecurityGroup", &parameters)?.id("groupId")
    }

    /// Lets TCP to `port` in from `cidr`.
    pub(super) fn authorize(&self, group: &SecurityGroupId, port: u16, cidr: &str) -> Result<()> {
        self.change_rule("AuthorizeSecurityGroupIngress", group, port, cidr)
    }

    /// No longer.
    pub(super) fn revoke(&self, group: &SecurityGroupId, port: u16, cidr: &str) -> Result<()> {
        self.change_rule("RevokeSecurityGroupIngress", group, port, cidr)
    }

    fn change_rule(
        &self,
        action: &str,
        group: &SecurityGroupId,
        port: u16,
        cidr: &str,
    ) -> Result<()> {
        let port = port.to_string();
        let parameters = [
            ("GroupId", group.as_str()),
            ("IpPermissions.1.IpProtocol", "tcp"),
            ("IpPermissions.1.FromPort", &port),
            ("IpPermissions.1.ToPort", &port),
            ("IpPermissions.1.IpRanges.1.CidrIp", cidr),
        ];
        self.ec2.ask(action, &parameters).map(drop)
    }

    /// Deletes a security group.
    pub(super) fn delete_group(&self, group: &SecurityGroupId) -> Result<()> {
        self.ec2.ask("DeleteSecurityGroup", &[("GroupId", group.as_str())]).map(drop)
    }

    /// Runs an instance in the subnet of the node of this number; `place` is told which before its ENIs are followed.
    pub(super) fn run_instance(
        &self,
        number: usize,
        instance_type: &InstanceType,
        place: impl FnOnce(&InstanceId),
    ) -> Result<Booted> {
        let subnet = self.subnets[number % self.subnets.len()].clone();
        let answer = self.ec2.ask(
            "RunInstances",
            &[
                ("ImageId", IMAGE),
                ("MinCount", "1"),
                ("MaxCount", "1"),
                ("InstanceType", instance_type.as_str()),
                ("SubnetId", subnet.as_str()),
            ],
        )?;
        let instance: InstanceId = answer.id("instanceId")?;
        place(&instance);
        let primary = self.world.primary_of(&instance)?;
        let cidr = VPC_CIDR.parse().map_err(|error| Error::invalid(format!("{error}")))?;
        let known = Instance {
            id: instance.clone(),
            kind: instance_type.clone(),
            region: REGION.to_owned(),
            zone: zone_of(number).to_owned(),
            vpc_cidrs: vec![cidr],
        };
        self.world.locked().instances.insert(primary.primary_address, known);
        Ok(Booted { instance, subnet, primary })
    }
}

impl Drop for LocalStack {
    fn drop(&mut self) {
        // With it the feed ends.
        self.process = None;
        self.following.take().map(JoinHandle::join);
    }
}

/// The process, and what it tells.
fn start(dir: &Path, router: &Namespace, worker: &Worker) -> Result<(Process, UnixStream)> {
    let socket = dir.join("feed.sock");
    let what = || format!("cannot listen at {}", socket.display());
    let listener = UnixListener::bind(&socket).context(what)?;
    let control = Control::in_directory(dir);
    control.set_delays(DELAYS).context(|| format!("cannot write into {}", dir.display()))?;
    let launch = Launch {
        tier: Tier::Semantics,
        listen: ENDPOINT,
        directory: dir,
        control: &control,
        feed: Some(&socket),
    };
    let command = launch.command().context(|| "cannot start LocalStack".to_owned())?;
    let mut process = Process::start(worker, dir, "localstack", &command)?;
    process.wait_until(START, || {
        let healthy = router.run(|| Ok(is_healthy(ENDPOINT.into())))?;
        healthy.then_some(()).ok_or_else(|| Error::invalid("its EC2 does not answer"))
    })?;
    // It has connected before it served anybody.
    listener.set_nonblocking(true).context(what)?;
    let (feed, _) = listener.accept().context(|| {
        "LocalStack's extension does not tell of ENIs: run hack/localstack.sh".to_owned()
    })?;
    feed.set_nonblocking(false).context(what)?;
    Ok((process, feed))
}

// === impl World ===

impl World {
    fn locked(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two lines of the feed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what `feed` tells, until it ends.
    fn follow(&self, feed: UnixStream) {
        for line in BufReader::new(feed).lines().map_while(std::io::Result::ok) {
            match News::parse(&line) {
                Ok(news) => self.locked().take(news),
                Err(error) => complain(&format!("{error}: {line}")),
            }
            self.changed.notify_all();
        }
    }

    /// The primary ENI of an instance, once it is told. The hand looks at it again: now it knows the node.
    fn primary_of(&self, instance: &InstanceId) -> Result<Interface> {
        let is_it = |interface: &Interface| {
            interface.status == InterfaceStatus::InUse
                && interface.attachment.as_ref().is_some_and(|attachment| {
                    attachment.instance_id == *instance && attachment.device_index == 0
                })
        };
        let missing = |state: &mut State| !state.interfaces.values().any(is_it);
        let waited = self.changed.wait_timeout_while(self.locked(), TOLD, missing);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let primary = state.interfaces.values().find(|interface| is_it(interface)).cloned();
        let primary = primary.ok_or_else(|| {
            Error::invalid(format!("LocalStack tells no primary ENI of {instance} within {TOLD:?}"))
        })?;
        state.hand.see(&primary);
        Ok(primary)
    }
}

// === impl State ===

impl State {
    fn take(&mut self, news: News) {
        match news {
            News::Interface(interface) => {
                self.hand.see(&interface);
                self.interfaces.insert(interface.id.clone(), *interface);
            }
            News::Gone(eni) => {
                self.hand.gone(&eni);
                self.interfaces.remove(&eni);
            }
        }
    }

    /// What the instance with the primary address `caller` reads at `path`.
    fn metadata(&self, caller: Ipv4Addr, path: &str) -> Option<String> {
        let instance = self.instances.get(&caller)?;
        let attached = |interface: &&Interface| {
            interface.status == InterfaceStatus::InUse
                && interface.attachment.as_ref().is_some_and(|a| a.instance_id == instance.id)
        };
        let interfaces = self.interfaces.values().filter(attached).cloned().collect();
        instance.value(path, &Attached { interfaces, cidrs: self.cidrs.clone() })
    }
}

#[expect(clippy::print_stderr, reason = "the lab's own trouble, with nobody else to tell")]
fn complain(message: &str) {
    eprintln!("veni-lab: LocalStack's extension tells what is not understood: {message}");
}
