//! ENIs themselves: creation, tokens, tags, groups, prefixes, deletion.

use std::collections::{BTreeMap, BTreeSet};

use super::{Case, Stage, ensure, refuses_as_invalid, refuses_as_not_found};
use crate::{
    Cloud, CreateInterface, ErrorClass, Interface, InterfaceFilter, InterfaceStatus, sim::Timer,
};

pub(super) async fn a_new_interface_is_as_asked_for<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let request = stage.request("a", 4);
    let made = stage.make(request.clone()).await?;
    let seen =
        stage.becomes(&made.id, "available", |i| i.status == InterfaceStatus::Available).await?;
    for interface in [&made, &seen] {
        ensure!(interface.subnet_id == request.subnet_id, "it is in {}", interface.subnet_id);
        ensure!(
            interface.security_groups == request.security_groups,
            "groups: {:?}",
            interface.security_groups
        );
        ensure!(
            interface.secondary_addresses.len() == 4,
            "addresses: {:?}",
            interface.secondary_addresses
        );
        ensure!(
            interface.description == request.description,
            "description: {:?}",
            interface.description
        );
        ensure!(interface.tags == request.tags, "tags: {:?}", interface.tags);
        ensure!(interface.attachment.is_none(), "attachment: {:?}", interface.attachment);
    }
    ensure!(seen.mac == made.mac, "its MAC changed from {} to {}", made.mac, seen.mac);
    Ok(())
}

pub(super) async fn the_same_token_answers_with_the_same_interface<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let request = stage.request("a", 2);
    let first = stage.make(request.clone()).await?;
    let free = stage.subnet(&stage.world.subnet).await?.available_addresses;
    let second = stage.make(request).await?;
    ensure!(first.id == second.id, "two ENIs for one token: {} and {}", first.id, second.id);
    stage.shows_free(&stage.world.subnet, free).await
}

pub(super) async fn a_token_with_other_parameters_is_refused<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let request = stage.request("a", 2);
    stage.make(request.clone()).await?;
    refuses_as_invalid(stage.make(CreateInterface { secondary_addresses: 3, ..request })).await
}

pub(super) async fn tags_are_added_and_overwritten<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 0).await?;
    let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let added = BTreeMap::from([tag("veni-conformance", "overwritten"), tag("veni-more", "new")]);
    stage.cloud.create_tags(&interface.id, &added).await?;
    let mut expected = interface.tags.clone();
    expected.extend(added);
    stage.shows(&interface.id, "tagged", |i| i.tags == expected).await?;
    Ok(())
}

pub(super) async fn security_groups_are_replaced<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 0).await?;
    let [first, second] = &stage.world.security_groups;
    let sorted = |i: &Interface| i.security_groups.iter().cloned().collect::<BTreeSet<_>>();
    for groups in [vec![second.clone()], vec![first.clone(), second.clone()]] {
        stage.cloud.set_security_groups(&interface.id, &groups).await?;
        let expected: BTreeSet<_> = groups.into_iter().collect();
        stage.shows(&interface.id, "in its new groups only", |i| sorted(i) == expected).await?;
    }
    refuses_as_invalid(stage.cloud.set_security_groups(&interface.id, &[])).await
}

pub(super) async fn an_unknown_security_group_is_refused<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let unknown =
        vec!["sg-00000000000000000".parse().map_err(|_| super::Stop::Skip("no id to ask for"))?];
    let interface = stage.roomy("a", 0).await?;
    refuses_as_not_found(stage.cloud.set_security_groups(&interface.id, &unknown)).await?;
    let request = CreateInterface { security_groups: unknown, ..stage.request("b", 0) };
    refuses_as_not_found(stage.make(request)).await
}

pub(super) async fn prefixes_at_creation_are_whole_blocks<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let subnet = stage.subnet(&stage.world.subnet).await?;
    let request = CreateInterface { prefixes: 2, ..stage.request("a", 0) };
    let interface = stage.make(request).await?;
    let prefixes = &interface.prefixes;
    ensure!(prefixes.len() == 2, "asked for 2 prefixes: {prefixes:?}");
    ensure!(prefixes.iter().all(|p| p.len() == 28), "not all are /28: {prefixes:?}");
    ensure!(prefixes[0] != prefixes[1], "the same prefix twice: {prefixes:?}");
    ensure!(
        prefixes.iter().all(|p| subnet.cidr.contains(p.network())),
        "outside {}: {prefixes:?}",
        subnet.cidr
    );
    let own = interface.primary_address;
    ensure!(
        !prefixes.iter().any(|p| p.contains(own)),
        "the primary address {own} is in {prefixes:?}"
    );
    stage.shows(&interface.id, "with its prefixes", |i| i.prefixes.len() == 2).await?;
    stage.shows_free(&subnet.id, subnet.available_addresses.saturating_sub(33)).await
}

pub(super) async fn prefixes_and_addresses_at_once_are_refused<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let request = CreateInterface { prefixes: 1, ..stage.request("a", 1) };
    refuses_as_invalid(stage.make(request)).await
}

pub(super) async fn a_deleted_interface_is_gone<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let free = stage.subnet(&stage.world.subnet).await?.available_addresses;
    let interface = stage.roomy("a", 3).await?;
    stage.shows_free(&stage.world.subnet, free.saturating_sub(4)).await?;
    stage.cloud.delete_interface(&interface.id).await?;
    refuses_as_not_found(stage.cloud.delete_interface(&interface.id)).await?;
    stage.shows_free(&stage.world.subnet, free).await?;
    let end = stage.timer.now() + stage.world.patience;
    loop {
        let filter = InterfaceFilter::Ids(vec![interface.id.clone()]);
        match stage.cloud.describe_interfaces(filter).await {
            Err(error) if error.class == ErrorClass::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(seen) => {
                let waits = !stage.world.describe_is_consistent && stage.timer.now() < end;
                ensure!(waits, "it is still described: {seen:?}");
                stage.timer.sleep(stage.world.pause).await;
            }
        }
    }
}
