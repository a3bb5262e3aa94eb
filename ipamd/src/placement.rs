//! Where the ENIs of a node with custom networking are made: from the cluster's objects to the pool.
//!
//! Whoever knows the own Node and the ENIConfigs ([`Objects`]) says which one is chosen; [`follow`] asks EC2 for the subnets
//! and tells the owner through a watch channel. Sources are the folder of manifests ([`from_manifests`])
//! and the cluster ([`from_cluster`]).
//!
//! Invariants: as long as nobody has spoken, what was known before stays in force, and so does what EC2 told of an object that has
//! not changed while it does not answer; an object that is not there or cannot be used is named, with what is wrong with it, and
//! never replaced by another one.

use std::{collections::BTreeMap, future::pending, path::Path, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::watch;
use veni_core::{
    config::Config,
    id::{InstanceId, SecurityGroupId, SubnetId, VpcId},
    ipam::placement::{PlacedSubnet, Placement},
};
use veni_eniconfig_crd::{
    EniConfig, GroupChoice, Labels, SubnetChoice,
    eni_config::{self, Chosen, ChosenBy, Keys},
};
use veni_provider::{Cloud, CloudResult, Subnet, SubnetFilter, security_group::has_tags};

use crate::{executor, policy, pool::jitter, whereabouts::Whereabouts};

/// When EC2 is asked again for what it did not tell, at first, ± 20 % so that nodes do not march in step; then twice as late each
/// time, up to [`RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// The longest such wait.
const RETRY: Duration = Duration::from_secs(60);
/// When it is asked whether other subnets have the tags, or one that was missing is there.
const REFRESH: Duration = Duration::from_secs(300);

/// The most security groups that an ENI can be made to take (VPC quotas: 5, raised to 16 on request).
const GROUPS_PER_ENI: usize = 16;

/// Where ENIs are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Nothing was heard yet.
    Unheard,
    /// No ENI can be made: what is waited for.
    Awaits(String),
    /// There.
    Found(Placement),
}

/// Tells the owner.
pub type Source = watch::Receiver<News>;

/// The node's ENIConfig: `None` as long as nothing was heard; an error says what is waited for.
pub type Choice = Option<Result<EniConfig, String>>;

/// What decides which ENIConfig is the node's.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// The own Node's labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
    /// The ENIConfigs by name; an error says what is wrong with one.
    pub eni_configs: BTreeMap<String, Result<EniConfig, String>>,
}

/// Where the node is.
#[derive(Debug, Clone)]
struct Zone {
    vpc_id: VpcId,
    name: String,
}

/// What a choice comes to.
#[derive(Debug)]
struct Resolved {
    news: News,
    /// What EC2 did not tell; then `news` is the best that can be made of the object alone.
    unanswered: Option<String>,
    /// When it is looked at again, where it does not change.
    again: Option<Duration>,
}

/// What is known of the choice in force.
#[derive(Debug)]
struct Follower {
    zone: Zone,
    instance: InstanceId,
    /// What EC2 told last, and of which object.
    found: Option<(EniConfig, Placement)>,
    /// How often in a row it has not answered.
    failures: u32,
}

/// The next news; never any where there is no source (any more).
pub async fn next(source: &mut Option<Source>) -> News {
    if let Some(receiver) = source {
        if receiver.changed().await.is_ok() {
            return receiver.borrow_and_update().clone();
        }
        *source = None;
    }
    pending().await
}

/// The source that the settings name, or the cluster; `None` without custom networking.
///
/// # Errors
/// When the folder of manifests cannot be watched.
pub fn start<C: Cloud>(
    config: &Config,
    cloud: Arc<C>,
    whereabouts: &Whereabouts,
    cluster: Option<watch::Receiver<Option<Objects>>>,
) -> std::io::Result<Option<Source>> {
    if !config.custom_networking {
        return Ok(None);
    }
    let keys = Keys {
        annotation: config.eni_config_annotation.clone(),
        label: config.eni_config_label.clone(),
    };
    let node = policy::node_name(config, &whereabouts.identity);
    let choices = match (&config.policy.manifest_dir, cluster) {
        (Some(folder), _) => from_manifests(Path::new(folder), node, keys)?,
        (None, Some(objects)) => from_cluster(objects, node, keys),
        (None, None) => return Ok(None),
    };
    Ok(Some(follow(cloud, whereabouts, choices)))
}

/// The choice by the cluster's objects. `None` of them: they were not read yet.
#[must_use]
pub fn from_cluster(
    mut objects: watch::Receiver<Option<Objects>>,
    node: String,
    keys: Keys,
) -> watch::Receiver<Choice> {
    let (choices, choice) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let chosen = objects.borrow_and_update().as_ref().map(|all| all.choose(&node, &keys));
            if let Some(chosen) = chosen {
                tell(&choices, chosen);
            }
            if objects.changed().await.is_err() {
                return;
            }
        }
    });
    choice
}

fn tell(choices: &watch::Sender<Choice>, chosen: Result<EniConfig, String>) {
    choices.send_if_modified(|known| {
        let next = Some(chosen);
        let changed = *known != next;
        *known = next;
        changed
    });
}

/// The choice by the manifests in a folder. A node without a manifest has neither labels nor annotations.
///
/// # Errors
/// When the folder cannot be watched.
pub fn from_manifests(
    folder: &Path,
    node: String,
    keys: Keys,
) -> std::io::Result<watch::Receiver<Choice>> {
    let mut batches = veni_manifests::watch(folder)?;
    let (choices, choice) = watch::channel(None);
    tokio::spawn(async move {
        while let Some(batch) = batches.recv().await {
            // Before the folder was read whole, what is not there may well be.
            if !batch.complete {
                continue;
            }
            tell(&choices, Objects::of_values(&batch.beside, &node).choose(&node, &keys));
        }
    });
    Ok(choice)
}

/// Asks EC2 for the subnets of each choice.
pub fn follow<C: Cloud>(
    cloud: Arc<C>,
    whereabouts: &Whereabouts,
    mut choices: watch::Receiver<Choice>,
) -> Source {
    let zone = Zone {
        vpc_id: whereabouts.primary.vpc_id.clone(),
        name: whereabouts.identity.availability_zone.clone(),
    };
    let instance = whereabouts.identity.instance_id.clone();
    let mut follower = Follower { zone, instance, found: None, failures: 0 };
    let (sender, source) = watch::channel(News::Unheard);
    tokio::spawn(async move {
        loop {
            let choice = choices.borrow_and_update().clone();
            let (news, again) = match choice {
                None => (News::Unheard, None),
                Some(Err(what)) => (News::Awaits(what), None),
                Some(Ok(config)) => follower.look(&*cloud, config).await,
            };
            sender.send_if_modified(|told| {
                let changed = *told != news;
                *told = news;
                changed
            });
            let later = async {
                match again {
                    Some(after) => tokio::time::sleep(after).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                changed = choices.changed() => if changed.is_err() { return },
                () = later => {}
                () = sender.closed() => return,
            }
        }
    });
    source
}

// === impl Objects ===

impl Objects {
    /// Out of Nodes and ENIConfigs as the API server has them; `node` is the own one's name. Others are passed over.
    #[must_use]
    pub fn of_values(values: &[Value], node: &str) -> Self {
        let mut objects = Self::default();
        for value in values {
            let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            match value.get("kind").and_then(Value::as_str) {
                Some("Node") if name == node => {
                    objects.labels = texts(value.pointer("/metadata/labels"));
                    objects.annotations = texts(value.pointer("/metadata/annotations"));
                }
                Some("ENIConfig") => {
                    let read = EniConfig::parse(value).map_err(|problems| {
                        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
                    });
                    objects.eni_configs.insert(name.to_owned(), read);
                }
                _ => {}
            }
        }
        objects
    }

    /// The node's ENIConfig.
    ///
    /// # Errors
    /// What is waited for.
    pub fn choose(&self, node: &str, keys: &Keys) -> Result<EniConfig, String> {
        let Chosen { name, by } = eni_config::chosen(&self.labels, &self.annotations, keys);
        let by = match by {
            ChosenBy::ExternalLabel => {
                format!("which the label {} of node {node} names", eni_config::EXTERNAL_LABEL)
            }
            ChosenBy::Annotation(key) => format!("which the annotation {key} of node {node} names"),
            ChosenBy::Label(key) => format!("which the label {key} of node {node} names"),
            ChosenBy::Default => format!(
                "which is taken because node {node} has neither the annotation {} nor the label {}",
                keys.annotation, keys.label
            ),
        };
        match self.eni_configs.get(&name) {
            Some(Ok(config)) => Ok(config.clone()),
            Some(Err(problem)) => Err(format!("ENIConfig {name}, {by}, cannot be used: {problem}")),
            None if name.is_empty() => {
                Err(format!("an ENIConfig without a name, {by}: give the name of one that exists"))
            }
            None => Err(format!("ENIConfig {name}, {by}, does not exist: create it")),
        }
    }
}

/// Labels or annotations; what is no text is left out.
fn texts(map: Option<&Value>) -> Labels {
    let fields = map.and_then(Value::as_object).into_iter().flatten();
    fields.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

// === impl Follower ===

impl Follower {
    /// Asks EC2 what `config` means here. What it told of the very same object stays while it does not answer.
    async fn look<C: Cloud>(&mut self, cloud: &C, config: EniConfig) -> (News, Option<Duration>) {
        let Resolved { news, unanswered, again } = self.zone.resolve(cloud, &config).await;
        let Some(what) = unanswered else {
            self.failures = 0;
            self.found = match &news {
                News::Found(placement) => Some((config, placement.clone())),
                _ => None,
            };
            return (news, again);
        };
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(6)).min(RETRY);
        let again = wait.mul_f64(0.8 + 0.4 * jitter(&self.instance, self.failures.into()));
        self.failures = self.failures.saturating_add(1);
        match self.found.as_ref().filter(|(of, _)| *of == config) {
            Some((_, placement)) => {
                tracing::warn!(what, "what EC2 told before stays in force");
                (News::Found(placement.clone()), Some(again))
            }
            None => (news, Some(again)),
        }
    }
}

// === impl Resolved ===

impl Resolved {
    /// EC2 has nothing that fits.
    fn awaits(what: String) -> Self {
        Self { news: News::Awaits(what), unanswered: None, again: Some(REFRESH) }
    }

    /// EC2 did not tell.
    fn unanswered(what: String) -> Self {
        let news = News::Awaits(what.clone());
        Self { news, unanswered: Some(what), again: Some(RETRY) }
    }
}

// === impl Zone ===

impl Zone {
    /// The placement that `config` means here.
    async fn resolve<C: Cloud>(&self, cloud: &C, config: &EniConfig) -> Resolved {
        let source = format!("ENIConfig {}", config.name);
        for note in &config.notes {
            tracing::warn!(%note, source, "ENIConfig");
        }
        let security_groups = match &config.security_groups {
            GroupChoice::OfPrimary => Vec::new(),
            GroupChoice::Ids(ids) => ids.clone(),
            GroupChoice::Tags(tags) => match self.groups(cloud, &source, tags).await {
                Ok(groups) => groups,
                Err(resolved) => return resolved,
            },
        };
        let filter = SubnetFilter::InZone {
            vpc_id: self.vpc_id.clone(),
            availability_zone: self.name.clone(),
        };
        let call = cloud.describe_subnets(filter);
        let here = executor::bounded("DescribeSubnets", call).await;
        let silence = here.as_ref().err().map(|error| format!("subnets not listed: {error}"));
        let (subnets, again) = match &config.subnets {
            SubnetChoice::Ids(ids) => self.by_ids(&source, ids, here),
            SubnetChoice::Tags(tags) => match here {
                Ok(here) => (tagged(here, tags), Some(REFRESH)),
                Err(error) => {
                    return Resolved::unanswered(format!(
                        "{source} names subnets by tags, and EC2 does not list them: {error}"
                    ));
                }
            },
        };
        if subnets.is_empty() {
            let what = format!(
                "{source} names no subnet in the zone {} of the node's VPC {}: add one, or another ENIConfig for this node",
                self.name, self.vpc_id
            );
            return Resolved::awaits(what);
        }
        // Other groups may get the tags.
        let tagged = matches!(config.security_groups, GroupChoice::Tags(_)).then_some(REFRESH);
        Resolved {
            news: News::Found(Placement { source, subnets, security_groups }),
            unanswered: silence,
            again: again.or(tagged),
        }
    }

    /// The groups of the VPC with all of these tags; else what is waited for.
    async fn groups<C: Cloud>(
        &self,
        cloud: &C,
        source: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<Vec<SecurityGroupId>, Resolved> {
        let call = cloud.find_security_groups(&self.vpc_id, tags);
        let found = executor::bounded("DescribeSecurityGroups", call).await.map_err(|error| {
            Resolved::unanswered(format!(
                "{source} names security groups by tags, and EC2 does not list them: {error}"
            ))
        })?;
        let mut groups: Vec<_> = found.into_iter().map(|group| group.id).collect();
        groups.sort();
        let vpc_id = &self.vpc_id;
        match groups.len() {
            // None would be those of the primary ENI: not what was meant.
            0 => Err(Resolved::awaits(format!(
                "{source}: no security group of the VPC {vpc_id} has all of spec.securityGroupTags: tag one, or name groups in spec.securityGroups"
            ))),
            1..=GROUPS_PER_ENI => Ok(groups),
            found => Err(Resolved::awaits(format!(
                "{source}: {found} security groups of the VPC {vpc_id} have spec.securityGroupTags, and an ENI takes {GROUPS_PER_ENI} at most: narrow the tags"
            ))),
        }
    }

    /// Those that are here, with their CIDRs. When EC2 does not tell, all: an ENI elsewhere cannot be attached.
    fn by_ids(
        &self,
        source: &str,
        ids: &[SubnetId],
        here: CloudResult<Vec<Subnet>>,
    ) -> (Vec<PlacedSubnet>, Option<Duration>) {
        let here = match here {
            Ok(here) => here,
            Err(error) => {
                tracing::warn!(%error, source, "subnets not listed: taken as they are named");
                let unseen = |id: &SubnetId| PlacedSubnet { id: id.clone(), prefix: None };
                return (ids.iter().map(unseen).collect(), Some(RETRY));
            }
        };
        let mut placed = Vec::new();
        for id in ids {
            match here.iter().find(|subnet| subnet.id == *id) {
                Some(subnet) => {
                    placed.push(PlacedSubnet { id: id.clone(), prefix: Some(subnet.cidr) });
                }
                None => {
                    tracing::warn!(subnet = %id, source, zone = self.name, "no such subnet in the node's VPC and zone: left out");
                }
            }
        }
        let again = (placed.len() < ids.len()).then_some(REFRESH);
        (placed, again)
    }
}

/// Those with all of these tags, the roomiest first.
fn tagged(mut here: Vec<Subnet>, tags: &BTreeMap<String, String>) -> Vec<PlacedSubnet> {
    here.retain(|subnet| has_tags(&subnet.tags, tags));
    here.sort_by_key(|subnet| (std::cmp::Reverse(subnet.available_addresses), subnet.id.clone()));
    let placed = |subnet: Subnet| PlacedSubnet { id: subnet.id, prefix: Some(subnet.cidr) };
    here.into_iter().map(placed).collect()
}

#[cfg(test)]
mod tests;
