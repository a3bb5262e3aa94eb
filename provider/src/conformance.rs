//! What every [`Cloud`] must do, as cases that run against any of them: the simulator, LocalStack, EC2 itself.
//!
//! Each case makes its own ENIs and takes them away again. A case looks at what EC2 promises, not at what a double
//! happens to do; where promises are late (`Describe…` after a change) it looks until [`World::patience`] is over.
//!
//! Deliberately absent: throttling, faults and lateness itself, which no provider can be asked to show.

mod addresses;
mod attachments;
mod groups;
mod interfaces;
mod looks;

use std::{
    fmt,
    future::Future,
    net::Ipv4Addr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use veni_core::{
    id::{AttachmentId, EniId, InstanceId, PrefixListId, SecurityGroupId, SubnetId},
    net::Ipv4Prefix,
};

use crate::{
    AttachInterface, Cloud, CloudError, CloudResult, CreateInterface, ErrorClass, Interface,
    InterfaceFilter, InterfaceStatus, Subnet, SubnetFilter, sim::Timer,
};

/// Where the cases run. They have it for themselves meanwhile.
#[derive(Debug, Clone)]
pub struct World {
    /// A subnet with at least 256 free addresses and 4 free /28 blocks, in the instance's zone.
    pub subnet: SubnetId,
    /// A subnet with at most 64 addresses, none of them used, in the instance's zone.
    pub small_subnet: SubnetId,
    /// Two security groups of the VPC.
    pub security_groups: [SecurityGroupId; 2],
    /// Security groups to read.
    pub groups: GroupWorld,
    /// The instance that the cloud speaks for. It has its primary ENI only.
    pub instance: InstanceId,
    /// Makes client tokens unique among runs against the same cloud; at most 32 ASCII characters.
    pub run: String,
    /// A change shows in the next `Describe…` at once.
    pub describe_is_consistent: bool,
    /// There is instance metadata.
    pub has_metadata: bool,
    /// How long a change, an attachment or a detachment may take to show.
    pub patience: Duration,
    /// How long to wait between two looks.
    pub pause: Duration,
}

/// Security groups to read. No ENI carries them.
#[derive(Debug, Clone)]
pub struct GroupWorld {
    /// A group with [`GroupWorld::rules`] and the first of [`GroupWorld::tags`].
    pub ruled: SecurityGroupId,
    /// A group that [`GroupWorld::ruled`] refers to, with the rules of a new one and the second of
    /// [`GroupWorld::tags`].
    pub referenced: SecurityGroupId,
    /// A managed prefix list with [`GroupWorld::prefix_list_versions`].
    pub prefix_list: PrefixListId,
}

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseResult {
    /// The case, one of [`CASES`].
    pub name: &'static str,
    /// Its outcome.
    pub outcome: CaseOutcome,
}

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaseOutcome {
    /// The provider does it right.
    Passed,
    /// The world lacks what the case needs.
    Skipped(&'static str),
    /// The provider does it wrong, in words.
    Failed(String),
}

/// Why a case ends early.
#[derive(Debug)]
enum Stop {
    Skip(&'static str),
    Fail(String),
}

type Case = Result<(), Stop>;

/// What a case works with.
struct Stage<'a, C, T> {
    cloud: &'a C,
    timer: &'a T,
    world: &'a World,
    name: &'static str,
    /// What the case made and somebody has to take away.
    made: Mutex<Vec<EniId>>,
}

/// Stops the case with words unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Stop::Fail(format!($($words)+)));
        }
    };
}
use ensure;

/// Lists the cases once, for [`CASES`] and for running them.
macro_rules! cases {
    ($($module:ident::$name:ident,)+) => {
        /// The names of all cases, in the order in which they run.
        pub const CASES: &[&str] = &[$(stringify!($name)),+];

        async fn play<C: Cloud, T: Timer>(stage: &Stage<'_, C, T>) -> Case {
            match stage.name {
                $(stringify!($name) => Box::pin($module::$name(stage)).await,)+
                _ => Err(Stop::Fail("there is no such case".into())),
            }
        }
    };
}

cases! {
    looks::the_identity_is_the_instances,
    looks::metadata_shows_what_is_attached,
    looks::an_instance_type_has_its_limits,
    looks::an_unknown_instance_type_is_refused,
    looks::subnets_are_found_by_id_and_by_zone,
    looks::free_addresses_are_counted_exactly,
    looks::filters_find_what_they_name,
    looks::unknown_ids_are_not_found,
    interfaces::a_new_interface_is_as_asked_for,
    interfaces::the_same_token_answers_with_the_same_interface,
    interfaces::a_token_with_other_parameters_is_refused,
    interfaces::tags_are_added_and_overwritten,
    interfaces::security_groups_are_replaced,
    interfaces::an_unknown_security_group_is_refused,
    interfaces::prefixes_at_creation_are_whole_blocks,
    interfaces::prefixes_and_addresses_at_once_are_refused,
    interfaces::a_deleted_interface_is_gone,
    addresses::no_address_is_given_twice,
    addresses::reserved_addresses_are_never_given,
    addresses::a_full_subnet_refuses_and_keeps_what_is,
    addresses::assigning_answers_with_the_new_addresses_only,
    addresses::an_assignment_is_all_or_nothing,
    addresses::the_per_interface_limit_holds,
    addresses::unassigned_addresses_are_free_again,
    addresses::an_unassignment_is_all_or_nothing,
    addresses::the_primary_address_cannot_be_unassigned,
    addresses::an_address_of_another_interface_cannot_be_unassigned,
    attachments::an_attached_interface_is_in_use,
    attachments::a_taken_device_index_is_refused,
    attachments::the_instances_limit_holds,
    attachments::an_interface_is_attached_once,
    attachments::an_unknown_network_card_is_refused,
    attachments::an_interface_in_use_cannot_be_deleted,
    attachments::a_detached_interface_keeps_its_addresses,
    attachments::the_primary_interface_stays,
    attachments::deletion_on_termination_is_shown,
    groups::rules_are_as_they_were_made,
    groups::rules_of_several_groups_come_at_once,
    groups::no_group_asked_for_is_no_rule,
    groups::only_groups_that_exist_are_listed,
    groups::groups_are_found_by_their_tags_in_their_vpc,
    groups::members_are_those_who_carry_the_group,
    groups::a_member_of_several_groups_is_told_once,
    groups::a_members_prefixes_are_told,
    groups::prefix_lists_tell_their_version,
    groups::prefix_list_entries_are_those_of_the_version,
    groups::an_unknown_prefix_list_is_not_found,
}

/// Runs all cases one after the other.
pub async fn run<C: Cloud, T: Timer>(cloud: &C, timer: &T, world: &World) -> Vec<CaseResult> {
    let mut results = Vec::new();
    for name in CASES {
        results.push(run_case(cloud, timer, world, name).await);
    }
    results
}

/// Runs one case, one of [`CASES`], and takes away what it made.
pub async fn run_case<C: Cloud, T: Timer>(
    cloud: &C,
    timer: &T,
    world: &World,
    name: &'static str,
) -> CaseResult {
    let stage = Stage { cloud, timer, world, name, made: Mutex::default() };
    let played = play(&stage).await;
    let cleared = stage.clear().await;
    let outcome = match played.and(cleared) {
        Ok(()) => CaseOutcome::Passed,
        Err(Stop::Skip(lacking)) => CaseOutcome::Skipped(lacking),
        Err(Stop::Fail(words)) => CaseOutcome::Failed(words),
    };
    CaseResult { name, outcome }
}

impl fmt::Display for CaseResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            CaseOutcome::Passed => write!(f, "ok      {}", self.name),
            CaseOutcome::Skipped(lacking) => write!(f, "SKIPPED {}: {lacking}", self.name),
            CaseOutcome::Failed(words) => write!(f, "FAILED  {}: {words}", self.name),
        }
    }
}

impl From<CloudError> for Stop {
    fn from(error: CloudError) -> Self {
        Self::Fail(error.to_string())
    }
}

// === impl Stage ===

impl<C: Cloud, T: Timer> Stage<'_, C, T> {
    /// A request for an ENI in the roomy subnet with `secondary` addresses. `label` makes its token unique in the case.
    fn request(&self, label: &str, secondary: u32) -> CreateInterface {
        CreateInterface {
            subnet_id: self.world.subnet.clone(),
            security_groups: vec![self.world.security_groups[0].clone()],
            secondary_addresses: secondary,
            prefixes: 0,
            description: format!("veni conformance: {}", self.name),
            tags: [("veni-conformance".to_owned(), self.name.to_owned())].into(),
            client_token: self.token(label),
        }
    }

    /// At most 64 characters: run, the case's number, label.
    fn token(&self, label: &str) -> String {
        let number = CASES.iter().position(|name| *name == self.name).unwrap_or(CASES.len());
        format!("{}-{number}-{label}", self.world.run)
    }

    /// Makes an ENI that is taken away after the case.
    async fn make(&self, request: CreateInterface) -> CloudResult<Interface> {
        let interface = self.cloud.create_interface(request).await?;
        self.made().push(interface.id.clone());
        self.settle(&interface.id).await;
        Ok(interface)
    }

    /// Makes an ENI with `secondary` addresses in the roomy subnet.
    async fn roomy(&self, label: &str, secondary: u32) -> Result<Interface, Stop> {
        Ok(self.make(self.request(label, secondary)).await?)
    }

    /// Makes an ENI with `secondary` addresses in the small subnet.
    async fn small(&self, label: &str, secondary: u32) -> CloudResult<Interface> {
        let subnet_id = self.world.small_subnet.clone();
        self.make(CreateInterface { subnet_id, ..self.request(label, secondary) }).await
    }

    /// Attaches an ENI and waits until it is in use.
    async fn attach(&self, eni: &EniId, device_index: u8) -> Result<AttachmentId, Stop> {
        let attachment = self.cloud.attach_interface(self.attachment(eni, device_index)).await?;
        self.becomes(eni, "in use", |i| i.status == InterfaceStatus::InUse).await?;
        Ok(attachment)
    }

    fn attachment(&self, eni: &EniId, device_index: u8) -> AttachInterface {
        let (eni, instance) = (eni.clone(), self.world.instance.clone());
        AttachInterface { eni, instance, device_index, network_card: 0 }
    }

    /// Describes one ENI.
    async fn look(&self, eni: &EniId) -> CloudResult<Interface> {
        let found = self.cloud.describe_interfaces(InterfaceFilter::Ids(vec![eni.clone()])).await?;
        let missing = || {
            CloudError::new(
                "DescribeNetworkInterfaces",
                ErrorClass::NotFound,
                "",
                "an empty answer",
            )
        };
        found.into_iter().next().ok_or_else(missing)
    }

    /// Describes one subnet.
    async fn subnet(&self, id: &SubnetId) -> Result<Subnet, Stop> {
        let found = self.cloud.describe_subnets(SubnetFilter::Ids(vec![id.clone()])).await?;
        found.into_iter().next().ok_or_else(|| Stop::Fail(format!("{id} is not described")))
    }

    /// Waits until an ENI is as `is` wants it.
    async fn becomes(
        &self,
        eni: &EniId,
        what: &str,
        is: impl Fn(&Interface) -> bool,
    ) -> Result<Interface, Stop> {
        let end = self.timer.now() + self.world.patience;
        loop {
            let seen = self.look(eni).await;
            match seen {
                Ok(interface) if is(&interface) => return Ok(interface),
                _ if self.timer.now() < end => self.timer.sleep(self.world.pause).await,
                Ok(interface) => {
                    return Err(Stop::Fail(format!("{eni} is not {what} but {interface:?}")));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether an ENI shows a change that is done: at once where the provider says so, else after a while.
    async fn shows(
        &self,
        eni: &EniId,
        what: &str,
        is: impl Fn(&Interface) -> bool,
    ) -> Result<Interface, Stop> {
        if !self.world.describe_is_consistent {
            return self.becomes(eni, what, is).await;
        }
        let interface = self.look(eni).await?;
        ensure!(is(&interface), "{eni} is not {what} at once but {interface:?}");
        Ok(interface)
    }

    /// Whether a subnet shows so many free addresses.
    async fn shows_free(&self, id: &SubnetId, expected: u32) -> Case {
        let end = self.timer.now() + self.world.patience;
        loop {
            let free = self.subnet(id).await?.available_addresses;
            if free == expected {
                return Ok(());
            }
            let waits = !self.world.describe_is_consistent && self.timer.now() < end;
            ensure!(waits, "{id} has {free} free addresses, not {expected}");
            self.timer.sleep(self.world.pause).await;
        }
    }

    /// Waits until a new ENI can be seen, where that takes time.
    async fn settle(&self, eni: &EniId) {
        let end = self.timer.now() + self.world.patience;
        while !self.world.describe_is_consistent
            && self.look(eni).await.is_err()
            && self.timer.now() < end
        {
            self.timer.sleep(self.world.pause).await;
        }
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Vec<EniId>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes away what the case made.
    async fn clear(&self) -> Case {
        let made = std::mem::take(&mut *self.made());
        for eni in &made {
            let Ok(interface) = self.look(eni).await else {
                continue;
            };
            if interface.attachment.is_some() {
                self.take_off(eni).await?;
            }
            match self.cloud.delete_interface(eni).await {
                Err(error) if error.class != ErrorClass::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Detaches an ENI and waits until it is available.
    async fn take_off(&self, eni: &EniId) -> Result<Interface, Stop> {
        let attached = self
            .becomes(eni, "attached or free", |i| i.status != InterfaceStatus::Attaching)
            .await?;
        if let Some(attachment) =
            attached.attachment.filter(|_| attached.status == InterfaceStatus::InUse)
        {
            self.cloud.detach_interface(&attachment.id).await?;
        }
        self.becomes(eni, "available", |i| i.status == InterfaceStatus::Available).await
    }
}

/// Whether `call` fails with a class that `is` the one named `what`.
async fn refuses<R: fmt::Debug>(
    call: impl Future<Output = CloudResult<R>>,
    what: &str,
    is: impl Fn(&ErrorClass) -> bool,
) -> Case {
    match call.await {
        Err(error) if is(&error.class) => Ok(()),
        Err(error) => Err(Stop::Fail(format!("expected {what}, got: {error}"))),
        Ok(answer) => Err(Stop::Fail(format!("expected {what}, got an answer: {answer:?}"))),
    }
}

async fn refuses_as_invalid<R: fmt::Debug>(call: impl Future<Output = CloudResult<R>>) -> Case {
    refuses(call, "invalid", |class| *class == ErrorClass::Invalid).await
}

async fn refuses_as_not_found<R: fmt::Debug>(call: impl Future<Output = CloudResult<R>>) -> Case {
    refuses(call, "not found", |class| *class == ErrorClass::NotFound).await
}

/// Whether AWS keeps `address` for itself (VPC user guide, "Subnet CIDR blocks": the first four and the last), or it
/// is outside the subnet.
fn is_reserved(subnet: Ipv4Prefix, address: Ipv4Addr) -> bool {
    let offset = u64::from(u32::from(address)).checked_sub(u32::from(subnet.network()).into());
    let size = 1_u64 << (32 - u32::from(subnet.len()));
    !offset.is_some_and(|offset| (4..size - 1).contains(&offset))
}

/// The first `count` secondary addresses of an ENI that was made with so many.
fn secondary(interface: &Interface, count: usize) -> Result<&[Ipv4Addr], Stop> {
    let fewer =
        || Stop::Fail(format!("an ENI lacks the {count} addresses asked for: {interface:?}"));
    interface.secondary_addresses.get(..count).ok_or_else(fewer)
}
