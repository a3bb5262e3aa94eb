//! Addresses: each once, all or nothing, within the limits.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{Case, Stage, ensure, is_reserved, refuses, refuses_as_invalid, secondary};
use crate::{Cloud, ErrorClass, Interface, sim::Timer};

fn all(interface: &Interface) -> Vec<Ipv4Addr> {
    let mut addresses = vec![interface.primary_address];
    addresses.extend(&interface.secondary_addresses);
    addresses
}

fn set(addresses: &[Ipv4Addr]) -> BTreeSet<Ipv4Addr> {
    addresses.iter().copied().collect()
}

fn exhausted(class: &ErrorClass) -> bool {
    matches!(class, ErrorClass::SubnetExhausted { .. })
}

fn at_limit(class: &ErrorClass) -> bool {
    matches!(class, ErrorClass::AddressLimit { .. })
}

pub(super) async fn no_address_is_given_twice<C: Cloud, T: Timer>(stage: &Stage<'_, C, T>) -> Case {
    let cidr = stage.subnet(&stage.world.subnet).await?.cidr;
    let mut given = Vec::new();
    for label in ["a", "b", "c", "d"] {
        let interface = stage.roomy(label, 5).await?;
        given.extend(all(&interface));
        given.extend(stage.cloud.assign_addresses(&interface.id, 4).await?);
    }
    ensure!(given.len() == 40, "{} addresses were given, not 40: {given:?}", given.len());
    ensure!(set(&given).len() == 40, "an address was given twice: {given:?}");
    ensure!(given.iter().all(|a| cidr.contains(*a)), "an address is outside {cidr}: {given:?}");
    Ok(())
}

pub(super) async fn reserved_addresses_are_never_given<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let subnet = stage.subnet(&stage.world.small_subnet).await?;
    let free = subnet.available_addresses;
    ensure!((2..=59).contains(&free), "the world's small subnet has {free} free addresses");
    let interface = stage.small("a", 0).await?;
    let mut given = all(&interface);
    given.extend(stage.cloud.assign_addresses(&interface.id, free.saturating_sub(1)).await?);
    let reserved: Vec<_> = given.iter().filter(|a| is_reserved(subnet.cidr, **a)).collect();
    ensure!(reserved.is_empty(), "reserved addresses were given: {reserved:?}");
    ensure!(set(&given).len() == free as usize, "not all free addresses were given: {given:?}");
    stage.shows_free(&subnet.id, 0).await
}

pub(super) async fn a_full_subnet_refuses_and_keeps_what_is<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let subnet = stage.subnet(&stage.world.small_subnet).await?;
    let interface = stage.small("a", subnet.available_addresses.saturating_sub(1)).await?;
    refuses(stage.cloud.assign_addresses(&interface.id, 1), "subnet exhausted", exhausted).await?;
    refuses(stage.small("b", 0), "subnet exhausted", exhausted).await?;
    let seen = stage.look(&interface.id).await?;
    ensure!(set(&all(&seen)) == set(&all(&interface)), "the ENI's addresses changed: {seen:?}");
    stage.shows_free(&subnet.id, 0).await
}

pub(super) async fn assigning_answers_with_the_new_addresses_only<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 2).await?;
    let first = stage.cloud.assign_addresses(&interface.id, 3).await?;
    let second = stage.cloud.assign_addresses(&interface.id, 1).await?;
    ensure!((first.len(), second.len()) == (3, 1), "asked for 3 and 1: {first:?}, {second:?}");
    let mut expected = all(&interface);
    expected.extend(first.iter().chain(&second));
    ensure!(
        set(&expected).len() == 7,
        "an answer lists addresses that were there before: {expected:?}"
    );
    let whole = |i: &Interface| set(&all(i)) == set(&expected);
    stage.shows(&interface.id, "with all seven addresses", whole).await?;
    Ok(())
}

pub(super) async fn an_assignment_is_all_or_nothing<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let subnet = stage.subnet(&stage.world.small_subnet).await?;
    let interface = stage.small("a", subnet.available_addresses.saturating_sub(3)).await?;
    refuses(stage.cloud.assign_addresses(&interface.id, 3), "subnet exhausted", exhausted).await?;
    stage.shows_free(&subnet.id, 2).await?;
    let rest = stage.cloud.assign_addresses(&interface.id, 2).await?;
    ensure!(rest.len() == 2, "the last two addresses were not given: {rest:?}");
    Ok(())
}

pub(super) async fn the_per_interface_limit_holds<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let kind = stage.cloud.identity().await?.instance_type;
    let limit = stage.cloud.describe_instance_type(&kind).await?.addresses_per_eni;
    ensure!(limit >= 3, "the world's instance takes {limit} addresses an ENI only");
    let interface = stage.roomy("a", 0).await?;
    stage.attach(&interface.id, 1).await?;
    let too_many = stage.cloud.assign_addresses(&interface.id, limit);
    refuses(too_many, "address limit", at_limit).await?;
    let filled = stage.cloud.assign_addresses(&interface.id, limit - 1).await?;
    ensure!(filled.len() + 1 == limit as usize, "{} addresses were given", filled.len());
    refuses(stage.cloud.assign_addresses(&interface.id, 1), "address limit", at_limit).await?;
    stage.cloud.unassign_addresses(&interface.id, &filled[..filled.len().min(1)]).await?;
    let again = stage.cloud.assign_addresses(&interface.id, 1).await?;
    ensure!(again.len() == 1, "one address less does not make room for one: {again:?}");
    Ok(())
}

pub(super) async fn unassigned_addresses_are_free_again<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let subnet = stage.subnet(&stage.world.small_subnet).await?;
    let free = subnet.available_addresses;
    let interface = stage.small("a", free.saturating_sub(1)).await?;
    let back = secondary(&interface, 2)?;
    stage.cloud.unassign_addresses(&interface.id, back).await?;
    let without = |i: &Interface| !back.iter().any(|a| i.secondary_addresses.contains(a));
    stage.shows(&interface.id, "without them", without).await?;
    stage.shows_free(&subnet.id, 2).await?;
    let other = stage.small("b", 1).await?;
    ensure!(
        set(&all(&other)) == set(back),
        "the free addresses were {back:?}, another ENI got {other:?}"
    );
    Ok(())
}

pub(super) async fn an_unassignment_is_all_or_nothing<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 2).await?;
    let other = stage.roomy("b", 1).await?;
    let mixed = [secondary(&interface, 1)?[0], secondary(&other, 1)?[0]];
    refuses_as_invalid(stage.cloud.unassign_addresses(&interface.id, &mixed)).await?;
    for (eni, addresses) in [(&interface.id, all(&interface)), (&other.id, all(&other))] {
        let seen = stage.look(eni).await?;
        ensure!(set(&all(&seen)) == set(&addresses), "{eni} lost addresses: {seen:?}");
    }
    Ok(())
}

pub(super) async fn the_primary_address_cannot_be_unassigned<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 1).await?;
    let primary = [interface.primary_address];
    refuses_as_invalid(stage.cloud.unassign_addresses(&interface.id, &primary)).await?;
    let seen = stage.look(&interface.id).await?;
    ensure!(seen.primary_address == interface.primary_address, "it changed: {seen:?}");
    Ok(())
}

pub(super) async fn an_address_of_another_interface_cannot_be_unassigned<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 1).await?;
    let other = stage.roomy("b", 1).await?;
    let foreign = secondary(&other, 1)?;
    refuses_as_invalid(stage.cloud.unassign_addresses(&interface.id, foreign)).await?;
    // One that was there and is not any more is no better.
    let own = secondary(&interface, 1)?;
    stage.cloud.unassign_addresses(&interface.id, own).await?;
    refuses_as_invalid(stage.cloud.unassign_addresses(&interface.id, own)).await
}
