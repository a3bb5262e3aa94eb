//! Puts network policy together: objects from a folder or an API server, groups from the cloud, flows from the programs,
//! and the enforcer in their middle.

use std::{os::fd::AsFd as _, path::Path, sync::Arc};

use anyhow::{Context, Result};
use ipnet::IpNet;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use veni_core::{
    config::{Config, Enforcing, PolicySettings},
    ipam::Allocation,
    wire::inspect::policy::GroupStanding,
};
use veni_datapath::bpf::{Events, Filter};
use veni_ebpf_common::{SettingFlags, Settings, write::Write as Entry};
use veni_policy::{
    change::{PodKey, PodSets},
    service::{FrontEnd, OwnNode},
};
use veni_provider::{Cloud, InstanceIdentity};
use veni_security_groups::{
    GroupHealth, GroupStatus, Resolver, SecurityGroups as _, Settings as GroupSettings,
};

use crate::{
    enforcer::{FilterPlane, Found, Handle, Input, Memory, ServiceRanges, Sources, keyed, pod_of},
    host::keeper::own_addresses,
    report::denied,
};

#[cfg(feature = "kube")]
mod cluster;
mod kept;
mod objects;
mod published;
mod ranges;

pub use objects::Beside;
use objects::{Ask, Batch, Source};
pub(crate) use ranges::as_known;

/// In the state directory: the security groups in force. As [`LABELS`], it goes with the journal.
const GROUPS: &str = "journal.groups";

/// In the state directory: the labels that pods had. Goes with the journal, whose name it shares.
const LABELS: &str = "journal.pods";

/// Events that are taken from the ring at once.
const EVENTS: usize = 256;

/// Policy, and what came with its objects.
#[derive(Debug)]
pub struct Started {
    /// The enforcer.
    pub handle: Handle,
    /// What the source has of this node's own network.
    pub beside: Option<Beside>,
}

/// Starts policy, where there is a source of objects. `pods` are those that are wired, with their interfaces. The first
/// objects have been taken in, or waited for in vain as long as an ADD would, when this returns.
///
/// # Errors
/// When the source cannot be followed, or the programs' maps not be read.
pub async fn start<C: Cloud>(
    config: &Config,
    cloud: Arc<C>,
    filter: &Arc<Filter>,
    identity: &InstanceIdentity,
    pods: &[(PodKey, u32)],
) -> Result<Option<Started>> {
    let named = Source::is_named(config)?;
    let isolates = filter.isolates().context("reading the pods' entries")?;
    if !named && may_be_off(config.policy.enforcing, isolates) {
        let policy = &config.policy;
        filter.configure(|settings| configure(settings, policy)).context("writing the settings")?;
        return off(filter).map(|()| None);
    }
    let node = node_name(config, identity);
    let mut source = if named { Source::follow(config, &node)? } else { Source::nowhere() };
    let ranges = service_ranges(config, filter, &source)?;
    let handle = enforcer(config, cloud, filter, identity, pods, (node, source.ask(), ranges))?;
    if let Some(cidrs) = source.service_cidrs() {
        let own = config.policy.clone();
        tokio::spawn(ranges::follow(cidrs, own, filter.clone(), handle.clone()));
    }
    let beside = source.beside();
    if let Some(teller) = beside.as_ref().map(|beside| beside.teller.clone())
        && config.denied_events
    {
        let (denials, told) = mpsc::channel(denied::WAITING);
        handle.tell(Input::Denials(denials));
        tokio::spawn(denied::tell(told, teller));
    }
    let until = Instant::now() + config.policy.wait;
    loop {
        match timeout_at(until, source.next()).await {
            Ok(Some(batch)) => {
                let complete = batch.complete;
                take(&handle, batch);
                // A folder that cannot be read by then will not be before somebody mends it.
                if complete || source.tells_at_once() {
                    break;
                }
            }
            Ok(None) => break,
            Err(_) => {
                tracing::warn!(%source, "objects not read yet: pods are judged by what was there");
                break;
            }
        }
    }
    tokio::spawn(objects(source, handle.clone()));
    Ok(Some(Started { handle, beside }))
}

/// The enforcer, its groups and its events, without objects. Apart from [`start`], whose future it would make large.
fn enforcer<C: Cloud>(
    config: &Config,
    cloud: Arc<C>,
    filter: &Arc<Filter>,
    identity: &InstanceIdentity,
    pods: &[(PodKey, u32)],
    (name, ask, ranges): (String, Ask, ServiceRanges),
) -> Result<Handle> {
    let settings = GroupSettings { seed: seed(identity), ..GroupSettings::default() };
    let groups_file = Path::new(&config.state_dir).join(GROUPS);
    let (resolver, driver) = Resolver::resume(cloud, settings, kept::read(&groups_file));
    let driver = match published::follow(config) {
        Some(published) => driver.led_by(published),
        None => driver,
    };
    tokio::spawn(kept::follow(groups_file, resolver.kept()));
    let (wanted, asked) = (resolver.clone(), resolver.clone());
    let handle = Handle::start(Sources {
        plane: FilterPlane(filter.clone()),
        own: OwnNode {
            name,
            zone: Some(identity.availability_zone.to_string()),
            // As they are in the programs' map: what is another now is told before any object.
            addresses: filter.node_addresses().context("reading the node's addresses")?,
        },
        enforcing: config.policy.enforcing,
        ranges,
        memory: Memory::open(Path::new(&config.state_dir).join(LABELS)),
        found: found(filter, pods)?,
        groups: Arc::new(move || asked.status().into_iter().map(group).collect()),
        foreign: {
            let plane = FilterPlane(filter.clone());
            Arc::new(move || plane.foreign())
        },
        flow_tables: {
            let plane = FilterPlane(filter.clone());
            Arc::new(move || plane.flow_tables())
        },
        want: Box::new(move |groups| wanted.want(groups)),
        ask,
    })
    .context("starting the policy thread")?;
    let own = own_addresses(&config.policy, filter).context("listing the node's addresses")?;
    handle.tell(Input::NodeAddresses(own));
    tokio::spawn(driver.run());
    tokio::spawn(groups(resolver, handle.clone()));
    let events = filter.events().context("opening the flow events")?;
    let told = handle.clone();
    std::thread::Builder::new()
        .name("flows".to_owned())
        .spawn(move || flows(events, &told))
        .context("starting the flow events' thread")?;
    Ok(handle)
}

/// A wired pod with its interface.
#[must_use]
pub fn pod(allocation: &Allocation) -> (PodKey, u32) {
    (pod_of(allocation), allocation.host_ifindex)
}

/// Whether a daemon that nobody tells where policy comes from may end it. Not what an earlier one has put in force, which
/// a setting that got lost must not open, unless that is asked for; and never on a node that closes what it does not know.
const fn may_be_off(enforcing: Enforcing, isolates: bool) -> bool {
    match enforcing {
        Enforcing::None => true,
        Enforcing::Standard => !isolates,
        Enforcing::Strict => false,
    }
}

/// Tells the programs the settings; where the Services are as far as that is known by now.
fn service_ranges(config: &Config, filter: &Filter, source: &Source) -> Result<ServiceRanges> {
    let policy = if source.is_folder() {
        ranges::warn_of_none(&config.policy);
        config.policy.clone()
    } else {
        as_known(&config.policy, &filter.settings().context("reading the settings")?)
    };
    filter.configure(|settings| configure(settings, &policy)).context("writing the settings")?;
    Ok(ServiceRanges::of(&policy))
}

/// The settings that the programs know, out of the daemon's.
fn configure(settings: &mut Settings, policy: &PolicySettings) {
    use veni_core::config::{Established, FlowEvents, MetadataAccess};
    let mut set = |flag: u32, on: bool| {
        settings.flags = if on { settings.flags | flag } else { settings.flags & !flag };
    };
    set(SettingFlags::KEEP_ESTABLISHED, policy.established == Established::Keep);
    set(SettingFlags::METADATA_CLOSED, policy.metadata == MetadataAccess::Closed);
    set(SettingFlags::EVENTS_ALLOWED, policy.flow_events == FlowEvents::All);
    set(SettingFlags::EVENTS_DENIED, policy.flow_events != FlowEvents::None);
    let node_ports = policy.node_ports;
    (settings.node_port_first, settings.node_port_last) = (node_ports.first(), node_ports.last());
    // A mask of zeros matches nothing.
    let (net, mask) = policy
        .service_v4
        .map_or_else(Default::default, |net| (net.network().octets(), net.netmask().octets()));
    (settings.service_v4, settings.service_mask_v4) = (net, mask);
    let (net, mask) = policy
        .service_v6
        .map_or_else(Default::default, |net| (net.network().octets(), net.netmask().octets()));
    (settings.service_v6, settings.service_mask_v6) = (net, mask);
}

/// What an earlier daemon had from a source that is not followed any more decides nothing.
fn off(filter: &Filter) -> Result<()> {
    let (pods, entries) = filter.judge_nobody().context("ending policy on this node")?;
    if (pods, entries) != (0, 0) {
        let next =
            "set VENI_MANIFEST_DIR, or attach the node to its cluster again, if this was not meant";
        tracing::warn!(
            pods,
            entries,
            next,
            "policy is off: no pod is isolated any more, Services are kube-proxy's"
        );
    }
    Ok(())
}

/// The node's name in the cluster: what pods' objects name. Without it none of them would be ours.
pub(crate) fn node_name(config: &Config, identity: &InstanceIdentity) -> String {
    if let Some(name) = &config.node_name {
        return name.clone();
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = called(&name).unwrap_or_else(|| identity.instance_id.to_string());
    let next = "set MY_NODE_NAME from spec.nodeName";
    tracing::warn!(name, next, "the node's name in the cluster is not told: taken to be this");
    name
}

/// kubelet's name for a node unless it is told another: the host's, in lower case (pkg/util/node `GetHostname`).
fn called(hostname: &str) -> Option<String> {
    let name = hostname.trim().to_lowercase();
    (!name.is_empty() && name != "(none)").then_some(name)
}

/// The tables as an earlier daemon left them, and what judges each interface; `pods` are those that the ledger knows.
fn found(filter: &Filter, pods: &[(PodKey, u32)]) -> Result<Found> {
    let mut found = Found::default();
    let policy = &mut found.policy;
    for entry in filter.tables().entries().context("reading the programs' tables")? {
        match entry {
            Entry::ClassV4 { address, class } => policy.addresses.push((address.into(), class)),
            Entry::ClassV6 { address, class } => policy.addresses.push((address.into(), class)),
            Entry::CidrV4 { prefix, length, class } => {
                policy.prefixes.push((IpNet::new(prefix.into(), length)?, class));
            }
            Entry::CidrV6 { prefix, length, class } => {
                policy.prefixes.push((IpNet::new(prefix.into(), length)?, class));
            }
            Entry::Verdict { key, profile } => policy.verdicts.push((key, profile)),
            Entry::Profile { number, profile } => drop(policy.profiles.insert(number, profile)),
            Entry::Port { key, length, decision } => {
                policy.ports.push((length.into(), key, decision));
            }
            Entry::ServiceV4 { key, value } => {
                found.services.front_ends.extend(FrontEnd::of_v4(&key).map(|end| (end, value)));
            }
            Entry::ServiceV6 { key, value } => {
                found.services.front_ends.extend(FrontEnd::of_v6(&key).map(|end| (end, value)));
            }
            Entry::Backend { key, value } => found.services.back_ends.push((key, value)),
        }
    }
    let entries = filter.entries().context("reading the pods' entries")?;
    found.interfaces = keyed(&entries.keys().copied().collect::<Vec<_>>(), pods);
    for (ifindex, entry) in entries {
        let sets = PodSets::new(entry.policy.ingress_set, entry.policy.egress_set);
        if let Some(pod) = found.interfaces.get(&ifindex) {
            found.policy.endpoints.insert(pod.clone(), sets);
        }
    }
    Ok(found)
}

async fn objects(mut source: Source, handle: Handle) {
    while let Some(batch) = source.next().await {
        take(&handle, batch);
    }
    tracing::error!(%source, "objects are not followed any more: restart ipamd");
}

fn take(handle: &Handle, batch: Batch) {
    let Batch { apply, delete, diagnostics, complete, held } = batch;
    handle.tell(Input::Objects { apply, delete, diagnostics, complete, held });
}

async fn groups(resolver: Resolver, handle: Handle) {
    let mut snapshots = resolver.subscribe();
    while snapshots.changed().await.is_ok() {
        let snapshot = snapshots.borrow_and_update().clone();
        handle.tell(Input::Groups((*snapshot).clone()));
    }
}

/// A thread: the ring is read where it lies, asleep in between.
fn flows(mut events: Events, handle: &Handle) {
    loop {
        let mut ring = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ring, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "flow events are not read: venictl observe shows nothing");
                return;
            }
        }
        let mut batch = Vec::new();
        while batch.len() < EVENTS
            && let Some(event) = events.next()
        {
            batch.push(event);
        }
        if !batch.is_empty() {
            handle.tell(Input::Events(batch));
        }
    }
}

fn group(status: GroupStatus) -> GroupStanding {
    let state = match status.state {
        GroupHealth::Pending => "pending",
        GroupHealth::Fresh => "fresh",
        GroupHealth::Stale => "stale",
        GroupHealth::Unresolved => "unresolved",
    };
    GroupStanding {
        id: status.id.to_string(),
        state: state.to_owned(),
        reason: status.reason,
        age_secs: status.age_secs,
        last_error: status.last_error,
        rules: status.rules,
        notes: status.notes,
    }
}

/// Nodes do not ask EC2 in step.
fn seed(identity: &InstanceIdentity) -> u64 {
    identity.instance_id.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_told_its_name_is_called_as_kubelet_calls_it() {
        let check = |hostname: &str, expected: Option<&str>| {
            assert_eq!(called(hostname).as_deref(), expected, "{hostname:?}");
        };
        check("IP-10-0-0-1.ec2.internal\n", Some("ip-10-0-0-1.ec2.internal"));
        check("(none)\n", None);
        check("", None);
    }

    #[test]
    fn a_service_range_that_is_not_set_any_more_is_in_force_no_longer() {
        let service_v4 = Some("10.100.0.0/16".parse().unwrap());
        let policy = PolicySettings { service_v4, ..PolicySettings::default() };
        let mut settings = Settings::default();
        configure(&mut settings, &policy);
        assert_eq!(settings.service_mask_v4, [255, 255, 0, 0]);
        configure(&mut settings, &PolicySettings::default());
        assert_eq!((settings.service_v4, settings.service_mask_v4), ([0; 4], [0; 4]));
    }

    #[test]
    fn only_somebodys_word_ends_policy_that_is_in_force() {
        let check = |enforcing, isolates, expected| {
            assert_eq!(may_be_off(enforcing, isolates), expected, "{enforcing:?} {isolates}");
        };
        check(Enforcing::None, true, true);
        check(Enforcing::Standard, true, false);
        // A node that never had policy has nothing to lose.
        check(Enforcing::Standard, false, true);
        check(Enforcing::Strict, false, false);
    }

    #[tokio::test]
    async fn a_node_without_a_source_says_so_and_never_has_all_that_there_is() {
        let mut source = Source::nowhere();
        assert!(source.tells_at_once());
        let batch = source.next().await.unwrap();
        assert!(!batch.complete && batch.apply.is_empty() && batch.delete.is_empty());
        let message = &batch.diagnostics[0].message;
        for part in ["stays as it is", "VENI_MANIFEST_DIR", "NETWORK_POLICY_ENFORCING_MODE=none"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let next = tokio::time::timeout(std::time::Duration::from_millis(10), source.next());
        assert!(next.await.is_err(), "nothing more");
    }
}
