//! What veni makes in the account, as EC2 tells it to anybody who asks: its ENIs are known as its own while they are there,
//! and are gone once no pod needs them.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use veni_core::id::EniId;
use veni_lab::{Node, account::LocalStack};
use veni_provider::{TAG_CLUSTER, TAG_CREATED_AT, TAG_INSTANCE_ID};

use crate::{
    checks::scale,
    cluster::{Stage, until},
    print::{Table, step},
};

const APP: &str = "many-enis";
/// More than both nodes' primary ENIs hold beside what they keep warm.
const PODS: u32 = 40;
/// Addresses' cooldown, an ENI's minimum age of a minute, 30 s between two that go; and a machine that is busy.
const SHRUNK: Duration = Duration::from_secs(240);

/// The daemon's settings with which it needs no second ENI without pods.
pub(crate) fn settings() -> [(String, String); 2] {
    [("WARM_IP_TARGET", "2"), ("MINIMUM_IP_TARGET", "4")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
}

pub(crate) fn check(stage: &mut Stage, table: &mut Table) -> anyhow::Result<()> {
    step("ENIs in the account");
    stage.cluster.apply(&[scale::deployment(APP, PODS)])?;
    stage.rolled_out(APP)?;
    table.record("ENIs are told as veni's, and are plugged in", known(stage));
    stage.delete(APP, &[])?;
    table.record("ENIs that nobody needs are gone", gone(stage));
    Ok(())
}

fn localstack(stage: &Stage) -> anyhow::Result<&LocalStack> {
    stage.lab.account.localstack().context("the lab is not in LocalStack")
}

/// The ENIs that `DescribeNetworkInterfaces` tells as those that veni has made for a node.
fn made_for(stage: &Stage, node: &Node) -> anyhow::Result<BTreeSet<EniId>> {
    let tag = format!("tag:{TAG_INSTANCE_ID}");
    Ok(localstack(stage)?.describe_interfaces(&[(&tag, node.instance.as_str())])?)
}

fn known(stage: &Stage) -> anyhow::Result<String> {
    let mut count = 0;
    for node in stage.lab.nodes() {
        let tagged = made_for(stage, node)?;
        ensure!(!tagged.is_empty(), "{} has no ENI beside its primary one", node.name);
        let (description, cluster) =
            (format!("aws-K8S-{}", node.instance), format!("tag:{TAG_CLUSTER}"));
        let complete = localstack(stage)?.describe_interfaces(&[
            ("description", &description),
            ("tag-key", TAG_CREATED_AT),
            (&cluster, "lab"),
            ("attachment.instance-id", node.instance.as_str()),
        ])?;
        ensure!(complete == tagged, "{}: {tagged:?}, of which complete {complete:?}", node.name);
        for interface in stage.lab.account.interfaces_of(&node.instance).iter().skip(1) {
            ensure!(tagged.contains(&interface.id), "{} is not told as veni's", interface.id);
            let attachment = interface.attachment.as_ref().context("an attachment")?;
            ensure!(attachment.delete_on_termination, "{} outlives its instance", interface.id);
            let link = format!("eth{}", attachment.device_index);
            let shown = node.exec("ip", &["link", "show", "dev", &link])?;
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            ensure!(shown.contains(&interface.mac.to_string()), "{link} of {}: {shown}", node.name);
            count += 1;
        }
    }
    Ok(format!("{count} of {count} for {PODS} pods: tags, description, deleted with the instance"))
}

fn gone(stage: &Stage) -> anyhow::Result<String> {
    for node in stage.lab.nodes() {
        until(SHRUNK, || {
            let left = made_for(stage, node)?;
            ensure!(left.is_empty(), "{} has {left:?}", node.name);
            Ok(())
        })?;
        let links = node.exec("ip", &["-brief", "link", "show", "type", "veth"])?;
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        let left = links.lines().find(|line| line.starts_with("eth") && !line.starts_with("eth0"));
        ensure!(left.is_none(), "{}: {left:?}", node.name);
    }
    let available = localstack(stage)?.describe_interfaces(&[("status", "available")])?;
    ensure!(available.is_empty(), "left behind: {available:?}");
    Ok("each node has its primary one".to_owned())
}
