//! Looking: identity, metadata, limits, subnets, filters, unknown ids.

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::{Case, Stage, Stop, ensure, refuses, refuses_as_not_found};
use crate::{
    AttachInterface, Cloud, CreateInterface, ErrorClass, Interface, InterfaceFilter, SubnetFilter,
    sim::Timer,
};

/// An id that no cloud has.
fn unknown<I: FromStr<Err: fmt::Display>>(text: &str) -> Result<I, Stop> {
    text.parse().map_err(|error| Stop::Fail(format!("{error}")))
}

pub(super) async fn the_identity_is_the_instances<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let identity = stage.cloud.identity().await?;
    ensure!(identity.instance_id == stage.world.instance, "it says {}", identity.instance_id);
    ensure!(
        identity.availability_zone.starts_with(&identity.region),
        "the zone is not the region's: {identity:?}"
    );
    let filter = InterfaceFilter::AttachedTo(identity.instance_id.clone());
    let attached = stage.cloud.describe_interfaces(filter).await?;
    let primary = attached.iter().find(|i| i.mac == identity.primary_mac);
    let address = primary.map(|interface| interface.primary_address);
    ensure!(address == Some(identity.local_ipv4), "EC2 says {address:?}, metadata {identity:?}");
    Ok(())
}

pub(super) async fn metadata_shows_what_is_attached<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    if !stage.world.has_metadata {
        return Err(Stop::Skip("instance metadata"));
    }
    let interface = stage.roomy("a", 2).await?;
    stage.attach(&interface.id, 1).await?;
    let end = stage.timer.now() + stage.world.patience;
    let shown = loop {
        let all = stage.cloud.metadata_interfaces().await?;
        match all.into_iter().find(|shown| shown.id == interface.id && shown.addresses.len() == 3) {
            Some(shown) => break shown,
            None => {
                ensure!(stage.timer.now() < end, "metadata does not show {} whole", interface.id)
            }
        }
        stage.timer.sleep(stage.world.pause).await;
    };
    ensure!(shown.mac == interface.mac, "its MAC is {}, not {}", interface.mac, shown.mac);
    ensure!(
        (shown.network_card, shown.device_index) == (0, 1),
        "it is on card 0, index 1: {shown:?}"
    );
    ensure!(
        shown.addresses[0] == interface.primary_address,
        "the primary address is not the first: {shown:?}"
    );
    let secondary: BTreeSet<_> = shown.addresses[1..].iter().collect();
    ensure!(
        secondary == interface.secondary_addresses.iter().collect(),
        "other addresses: {shown:?}"
    );
    let subnet = stage.subnet(&interface.subnet_id).await?;
    ensure!(
        (&shown.subnet_id, shown.subnet_cidr) == (&subnet.id, subnet.cidr),
        "another subnet: {shown:?}"
    );
    ensure!(!shown.vpc_cidrs.is_empty(), "the VPC has no CIDR");
    ensure!(shown.security_groups == interface.security_groups, "other groups: {shown:?}");
    Ok(())
}

pub(super) async fn an_instance_type_has_its_limits<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let kind = unknown("m5.xlarge")?;
    let limits = stage.cloud.describe_instance_type(&kind).await?;
    let held = (limits.max_enis, limits.addresses_per_eni, limits.network_cards.len());
    ensure!(held == (4, 15, 1), "m5.xlarge has 4 ENIs of 15 addresses on one card: {limits:?}");
    Ok(())
}

pub(super) async fn an_unknown_instance_type_is_refused<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let kind = unknown("veni9.conformance")?;
    let is = |class: &ErrorClass| matches!(class, ErrorClass::UnknownInstanceType(k) if *k == kind);
    refuses(stage.cloud.describe_instance_type(&kind), "unknown instance type", is).await
}

pub(super) async fn subnets_are_found_by_id_and_by_zone<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let ids = [stage.world.subnet.clone(), stage.world.small_subnet.clone()];
    let found = stage.cloud.describe_subnets(SubnetFilter::Ids(ids.to_vec())).await?;
    let found_ids: BTreeSet<_> = found.iter().map(|subnet| subnet.id.clone()).collect();
    ensure!(found_ids == ids.clone().into(), "asked for {ids:?}, got {found:?}");
    let subnet = stage.subnet(&stage.world.subnet).await?;
    let (vpc_id, availability_zone) = (subnet.vpc_id, subnet.availability_zone);
    let filter = SubnetFilter::InZone {
        vpc_id: vpc_id.clone(),
        availability_zone: availability_zone.clone(),
    };
    let all = stage.cloud.describe_subnets(filter).await?;
    ensure!(
        ids.iter().all(|id| all.iter().any(|s| s.id == *id)),
        "not all of {ids:?} in the zone: {all:?}"
    );
    let stray = all.iter().find(|s| s.vpc_id != vpc_id || s.availability_zone != availability_zone);
    ensure!(stray.is_none(), "a subnet of elsewhere: {stray:?}");
    Ok(())
}

pub(super) async fn free_addresses_are_counted_exactly<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let id = &stage.world.small_subnet;
    let subnet = stage.subnet(id).await?;
    let size = 1_u32 << (32 - u32::from(subnet.cidr.len()));
    let free = subnet.available_addresses;
    ensure!(free == size - 5, "an unused /{} has {free} free addresses", subnet.cidr.len());
    let interface = stage.small("a", 2).await?;
    stage.shows_free(id, free.saturating_sub(3)).await?;
    let more = stage.cloud.assign_addresses(&interface.id, 3).await?;
    stage.shows_free(id, free.saturating_sub(6)).await?;
    stage.cloud.unassign_addresses(&interface.id, &more).await?;
    stage.shows_free(id, free.saturating_sub(3)).await?;
    stage.cloud.delete_interface(&interface.id).await?;
    stage.shows_free(id, free).await
}

pub(super) async fn filters_find_what_they_name<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let attached = stage.roomy("a", 0).await?;
    let tagged = stage.roomy("b", 0).await?;
    stage.attach(&attached.id, 1).await?;
    let ids = |found: Vec<Interface>| found.into_iter().map(|i| i.id).collect::<BTreeSet<_>>();
    let on_instance = InterfaceFilter::AttachedTo(stage.world.instance.clone());
    let found = ids(stage.cloud.describe_interfaces(on_instance).await?);
    ensure!(found.len() == 2 && found.contains(&attached.id), "on the instance: {found:?}");
    let by_tag = |value: &str| InterfaceFilter::AvailableWithTag {
        key: "veni-conformance".into(),
        value: value.into(),
    };
    let found = ids(stage.cloud.describe_interfaces(by_tag(stage.name)).await?);
    ensure!(
        found == [tagged.id.clone()].into(),
        "available with the tag: {found:?}, not {}",
        tagged.id
    );
    let found = ids(stage.cloud.describe_interfaces(by_tag("no such value")).await?);
    ensure!(found.is_empty(), "with a tag's value that none has: {found:?}");
    let both = InterfaceFilter::Ids(vec![attached.id.clone(), tagged.id.clone()]);
    let found = ids(stage.cloud.describe_interfaces(both).await?);
    ensure!(found == [attached.id, tagged.id].into(), "by id: {found:?}");
    Ok(())
}

pub(super) async fn unknown_ids_are_not_found<C: Cloud, T: Timer>(stage: &Stage<'_, C, T>) -> Case {
    let cloud = stage.cloud;
    let eni = unknown("eni-00000000000000000")?;
    let interface = stage.roomy("a", 0).await?;
    refuses_as_not_found(cloud.describe_interfaces(InterfaceFilter::Ids(vec![
        interface.id.clone(),
        unknown("eni-00000000000000000")?,
    ])))
    .await?;
    refuses_as_not_found(cloud.assign_addresses(&eni, 1)).await?;
    refuses_as_not_found(cloud.unassign_addresses(&eni, &[interface.primary_address])).await?;
    refuses_as_not_found(cloud.delete_interface(&eni)).await?;
    refuses_as_not_found(cloud.create_tags(&eni, &interface.tags)).await?;
    refuses_as_not_found(cloud.set_security_groups(&eni, &interface.security_groups)).await?;
    refuses_as_not_found(cloud.attach_interface(stage.attachment(&eni, 1))).await?;
    let instance = unknown("i-00000000000000000")?;
    let nowhere = AttachInterface { instance, ..stage.attachment(&interface.id, 1) };
    refuses_as_not_found(cloud.attach_interface(nowhere)).await?;
    refuses_as_not_found(cloud.detach_interface(&unknown("eni-attach-00000000000000000")?)).await?;
    let subnet_id = unknown("subnet-00000000000000000")?;
    refuses_as_not_found(stage.make(CreateInterface { subnet_id, ..stage.request("b", 0) }))
        .await?;
    let subnet = unknown("subnet-00000000000000000")?;
    refuses_as_not_found(cloud.describe_subnets(SubnetFilter::Ids(vec![subnet]))).await
}
