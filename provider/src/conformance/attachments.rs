//! Attachments: device indexes, limits, states.

use super::{Case, Stage, ensure, refuses, refuses_as_invalid, refuses_as_not_found};
use crate::{AttachInterface, Cloud, ErrorClass, InterfaceFilter, InterfaceStatus, sim::Timer};

fn attachment_limit(class: &ErrorClass) -> bool {
    *class == ErrorClass::AttachmentLimit
}

pub(super) async fn an_attached_interface_is_in_use<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 0).await?;
    ensure!(interface.status != InterfaceStatus::InUse, "a new ENI is in use: {interface:?}");
    let id = stage.attach(&interface.id, 1).await?;
    let seen = stage.look(&interface.id).await?;
    let Some(attachment) = seen.attachment else {
        ensure!(false, "an ENI in use has no attachment");
        return Ok(());
    };
    ensure!(attachment.id == id, "attached as {id}, shown as {}", attachment.id);
    let place = (attachment.network_card, attachment.device_index);
    ensure!(place == (0, 1), "asked for card 0, device index 1: {attachment:?}");
    ensure!(attachment.instance_id == stage.world.instance, "it is on {}", attachment.instance_id);
    ensure!(!attachment.delete_on_termination, "it goes with its instance although nobody said so");
    Ok(())
}

pub(super) async fn a_taken_device_index_is_refused<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 0).await?;
    let other = stage.roomy("b", 0).await?;
    stage.attach(&interface.id, 1).await?;
    for taken in [0, 1] {
        let call = stage.cloud.attach_interface(stage.attachment(&other.id, taken));
        refuses(call, "attachment limit (device index taken)", attachment_limit).await?;
    }
    let seen = stage.look(&other.id).await?;
    ensure!(seen.status == InterfaceStatus::Available, "a refused attachment left it as {seen:?}");
    Ok(())
}

pub(super) async fn the_instances_limit_holds<C: Cloud, T: Timer>(stage: &Stage<'_, C, T>) -> Case {
    let kind = stage.cloud.identity().await?.instance_type;
    let limits = stage.cloud.describe_instance_type(&kind).await?;
    let card = limits.network_cards.iter().find(|card| card.index == 0);
    let room = card.map_or(limits.max_enis, |card| card.max_enis.min(limits.max_enis));
    let room = u8::try_from(room).unwrap_or(u8::MAX);
    for index in 1..room {
        let interface = stage.roomy(&format!("n{index}"), 0).await?;
        stage.attach(&interface.id, index).await?;
    }
    let more = stage.roomy("more", 0).await?;
    let call = stage.cloud.attach_interface(stage.attachment(&more.id, room));
    refuses(call, "attachment limit", attachment_limit).await
}

pub(super) async fn an_interface_is_attached_once<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 0).await?;
    stage.attach(&interface.id, 1).await?;
    refuses_as_invalid(stage.cloud.attach_interface(stage.attachment(&interface.id, 2))).await
}

pub(super) async fn an_unknown_network_card_is_refused<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 0).await?;
    let request = AttachInterface { network_card: 77, ..stage.attachment(&interface.id, 1) };
    refuses_as_invalid(stage.cloud.attach_interface(request)).await
}

pub(super) async fn an_interface_in_use_cannot_be_deleted<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 0).await?;
    stage.attach(&interface.id, 1).await?;
    refuses_as_invalid(stage.cloud.delete_interface(&interface.id)).await?;
    let seen = stage.look(&interface.id).await?;
    ensure!(seen.status == InterfaceStatus::InUse, "a refused deletion left it as {seen:?}");
    Ok(())
}

pub(super) async fn a_detached_interface_keeps_its_addresses<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 3).await?;
    let attachment = stage.attach(&interface.id, 1).await?;
    let free = stage.take_off(&interface.id).await?;
    ensure!(free.attachment.is_none(), "an available ENI is attached: {free:?}");
    ensure!(free.secondary_addresses.len() == 3, "it lost addresses: {free:?}");
    refuses_as_not_found(stage.cloud.detach_interface(&attachment)).await?;
    stage.attach(&interface.id, 2).await?;
    stage.take_off(&interface.id).await?;
    Ok(stage.cloud.delete_interface(&interface.id).await?)
}

pub(super) async fn the_primary_interface_stays<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let filter = InterfaceFilter::AttachedTo(stage.world.instance.clone());
    let attached = stage.cloud.describe_interfaces(filter).await?;
    let mut attachments =
        attached.into_iter().filter_map(|interface| Some((interface.id, interface.attachment?)));
    let primary = attachments.find(|(_, attachment)| attachment.device_index == 0);
    let Some((eni, attachment)) = primary else {
        ensure!(false, "the instance has no primary ENI");
        return Ok(());
    };
    refuses_as_invalid(stage.cloud.detach_interface(&attachment.id)).await?;
    refuses_as_invalid(stage.cloud.delete_interface(&eni)).await
}

pub(super) async fn deletion_on_termination_is_shown<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let interface = stage.roomy("a", 0).await?;
    let attachment = stage.attach(&interface.id, 1).await?;
    let unknown = "eni-attach-0".parse().map_err(|_| super::Stop::Skip("no id to ask for"))?;
    let wrong = stage.cloud.set_delete_on_termination(&interface.id, &unknown);
    let fits_not = |class: &ErrorClass| matches!(class, ErrorClass::NotFound | ErrorClass::Invalid);
    refuses(wrong, "not found or invalid", fits_not).await?;
    stage.cloud.set_delete_on_termination(&interface.id, &attachment).await?;
    let goes =
        |i: &crate::Interface| i.attachment.as_ref().is_some_and(|a| a.delete_on_termination);
    stage.shows(&interface.id, "going with its instance", goes).await?;
    Ok(())
}
