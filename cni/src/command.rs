//! The commands.

use std::{net::IpAddr, path::Path, time::Duration};

use veni_core::{
    chain::chain,
    id::IfName,
    wire::{
        ADD_PATIENCE, AddRequest, Attachment, CheckRequest, DelReason, DelRequest, GcRequest,
        ReleasedAttachment, ReplyBody, RequestBody, Wiring,
    },
};
use veni_datapath::{
    fault,
    netlink::Socket,
    netns::{self, NetNs},
    pod,
};

use crate::{
    config::Config,
    error::Error,
    invocation::Target,
    ipamd::{self, Conversation, ask},
    result::AddResult,
    spec::{Code, SpecVersion},
};

/// What of an ADD's time is ours: ipamd's own answer, which says why there is no address, must come before we give up.
const ADD_MARGIN: Duration = Duration::from_secs(5);
/// How long an ADD waits for an ipamd that is being replaced: a rolling update ends the pod before it starts the next one.
const ABSENCE: Duration = Duration::from_secs(15);
/// How long the other commands wait for ipamd, which answers them from memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// Wires a pod.
///
/// # Errors
/// Nothing is left behind; when giving the address back failed too, [`Error::Release`] says so.
pub fn add(config: &Config, target: &Target) -> Result<AddResult, Error> {
    let path = target.netns.as_deref().unwrap_or(Path::new(""));
    let netns = NetNs::open(path).map_err(netns_error)?;
    let mut conversation = Conversation::open_again(&config.socket, ADD_PATIENCE, ABSENCE)?;
    let attachment = attachment(config, target);
    conversation.ask(RequestBody::Add(AddRequest {
        attachment: attachment.clone(),
        pod: target.pod.clone(),
        netns: path.to_owned(),
        wait_millis: u64::try_from((ADD_PATIENCE - ADD_MARGIN).as_millis()).ok(),
    }))?;
    fault::point("add:asked");
    match allocate_and_wire(config, target, &netns, &mut conversation) {
        Ok(wiring) => {
            fault::point("add:wired");
            let sandbox = path.to_string_lossy();
            Ok(AddResult::of(config.previous.clone(), &wiring, &target.ifname, &sandbox))
        }
        // Refused: nothing was allocated.
        Err(error @ Error::Ipamd(ipamd::Error::Denied(_) | ipamd::Error::Version { .. })) => {
            Err(error)
        }
        Err(cause) => {
            // ipamd keeps a DEL waiting while the ADD's connection is open.
            drop(conversation);
            let del = DelRequest { attachment, reason: DelReason::AddFailed };
            match ask(&config.socket, PATIENCE, RequestBody::Del(del)) {
                Ok(_) => Err(cause),
                Err(release) => Err(Error::Release { cause: Box::new(cause), release }),
            }
        }
    }
}

/// The sockets are opened while ipamd is at work.
fn allocate_and_wire(
    config: &Config,
    target: &Target,
    netns: &NetNs,
    conversation: &mut Conversation,
) -> Result<Wiring, Error> {
    let mut host = Socket::open().map_err(Error::Netlink)?;
    // For good: nothing after this depends on the thread's namespace, and going back costs two system calls.
    netns.enter_for_good().map_err(Error::NetNs)?;
    let mut inside = Socket::open().map_err(Error::Netlink)?;
    let ReplyBody::Wiring(mut wiring) = conversation.answer()? else {
        return Err(ipamd::Error::Unexpected.into());
    };
    fault::point("add:allocated");
    conversation.still_held()?;
    wiring.mtu = config.mtu.unwrap_or(wiring.mtu);
    pod::wire(&mut host, &mut inside, netns, &wiring, &target.ifname).map_err(Error::Wiring)?;
    if let Err(lost) = conversation.still_held() {
        remove(&mut host, &wiring.host_ifname).map_err(|problem| Error::Unwiring(vec![problem]))?;
        return Err(lost.into());
    }
    Ok(*wiring)
}

/// Removes a pod's wiring, then gives its address back.
///
/// The link goes first: an address must not be anyone else's while a pod can still use it. When ipamd cannot be asked
/// afterwards, DEL succeeds all the same: ipamd drops an allocation whose link is gone from the kernel and whose
/// result is gone from libcni's cache, and both are once this DEL has succeeded.
///
/// # Errors
/// [`Error::Unwiring`] when a link could not be removed; ipamd then keeps the address.
pub fn del(config: &Config, target: &Target) -> Result<String, Error> {
    let mut host = Socket::open().map_err(Error::Netlink)?;
    let known = match host_end_of(config, target, &mut host)? {
        Some(name) => Some(name),
        None => host_end_by_ipamd(config, target),
    };
    let mut removed = false;
    if let Some(name) = known {
        removed = remove(&mut host, &name).map_err(|problem| Error::Unwiring(vec![problem]))?;
    }
    fault::point("del:unwired");
    let del = DelRequest { attachment: attachment(config, target), reason: DelReason::PodDeleted };
    let answer = ask(&config.socket, PATIENCE, RequestBody::Del(del));
    if let Ok(ReplyBody::Released(released)) = answer
        && !removed
    {
        remove_all(&mut host, &released.released)?;
    }
    Ok(String::new())
}

/// Compares a pod with what ADD made.
///
/// # Errors
/// [`Error::NotWired`] lists every difference.
pub fn check(config: &Config, target: &Target) -> Result<String, Error> {
    config.require("CHECK", SpecVersion::V0_4_0)?;
    let Some(previous) = &config.previous else {
        return Err(Error::Refused {
            code: Code::InvalidConfig,
            message: "prevResult: missing, and CHECK needs it".to_owned(),
        });
    };
    let request = CheckRequest { attachment: attachment(config, target) };
    let ReplyBody::Wiring(mut wiring) = ask(&config.socket, PATIENCE, RequestBody::Check(request))?
    else {
        return Err(ipamd::Error::Unexpected.into());
    };
    wiring.mtu = config.mtu.unwrap_or(wiring.mtu);
    let netns =
        NetNs::open(target.netns.as_deref().unwrap_or(Path::new(""))).map_err(netns_error)?;
    let mut host = Socket::open().map_err(Error::Netlink)?;
    let mut inside = netns.socket().map_err(Error::NetNs)?;
    let found =
        pod::verify(&mut host, &mut inside, &wiring, &target.ifname).map_err(Error::Wiring)?;
    let mut differences: Vec<String> = found.iter().map(ToString::to_string).collect();
    if !previous.has_address(IpAddr::V4(wiring.address)) {
        differences.push(format!("prevResult does not have the pod's address {}", wiring.address));
    }
    if differences.is_empty() { Ok(String::new()) } else { Err(Error::NotWired(differences)) }
}

/// Releases what the runtime no longer knows, and removes its links.
///
/// # Errors
/// [`Error::Unwiring`] lists every link that could not be removed.
pub fn gc(config: &Config) -> Result<String, Error> {
    config.require("GC", SpecVersion::V1_1_0)?;
    let Some(valid) = config.valid.clone() else {
        return Err(Error::Refused {
            code: Code::InvalidConfig,
            message: "cni.dev/valid-attachments: missing, and GC needs it".to_owned(),
        });
    };
    let request = GcRequest { network: config.network.clone(), valid };
    let ReplyBody::Released(released) = ask(&config.socket, PATIENCE, RequestBody::Gc(request))?
    else {
        return Err(ipamd::Error::Unexpected.into());
    };
    let mut host = Socket::open().map_err(Error::Netlink)?;
    remove_all(&mut host, &released.released)?;
    Ok(String::new())
}

/// Whether there is a defect for which ADDs end in an error (docs/cni.md): not whether one would have to wait.
///
/// # Errors
/// [`Error::NotAvailable`] says why not.
pub fn status(config: &Config) -> Result<String, Error> {
    config.require("STATUS", SpecVersion::V1_1_0)?;
    match ask(&config.socket, PATIENCE, RequestBody::Status).map_err(Error::NotAvailable)? {
        ReplyBody::Ready => Ok(String::new()),
        _ => Err(Error::NotAvailable(ipamd::Error::Unexpected)),
    }
}

fn attachment(config: &Config, target: &Target) -> Attachment {
    Attachment {
        network: config.network.clone(),
        container_id: target.container_id.clone(),
        ifname: target.ifname.clone(),
    }
}

/// What the runtime and the kernel know of the host end, without asking ipamd.
fn host_end_of(
    config: &Config,
    target: &Target,
    host: &mut Socket,
) -> Result<Option<IfName>, Error> {
    if let Some(name) = config.previous.as_ref().and_then(|p| p.host_end(&target.ifname)) {
        return Ok(Some(name));
    }
    let Some(path) = &target.netns else { return Ok(None) };
    let netns = match NetNs::open(path) {
        Ok(netns) => netns,
        // The pod's end is gone with its namespace, and with it the host's.
        Err(netns::Error::Vanished { .. } | netns::Error::NotANetNs { .. }) => return Ok(None),
        Err(error) => return Err(Error::NetNs(error)),
    };
    let mut inside = netns.socket().map_err(Error::NetNs)?;
    pod::host_end(host, &mut inside, &target.ifname).map_err(Error::Wiring)
}

/// A runtime that gives DEL neither prevResult (before 0.4.0) nor a namespace leaves ipamd to know the name.
fn host_end_by_ipamd(config: &Config, target: &Target) -> Option<IfName> {
    let request = CheckRequest { attachment: attachment(config, target) };
    match ask(&config.socket, PATIENCE, RequestBody::Check(request)) {
        Ok(ReplyBody::Wiring(wiring)) => Some(wiring.host_ifname),
        _ => None,
    }
}

fn remove(host: &mut Socket, name: &IfName) -> Result<bool, String> {
    match pod::unwire(host, name) {
        // prevResult may name a link of another plugin: not ours to remove.
        Err(pod::Error::NotAVeth { .. }) => Ok(false),
        other => other.map_err(|error| chain(&error)),
    }
}

fn remove_all(host: &mut Socket, released: &[ReleasedAttachment]) -> Result<(), Error> {
    let problems: Vec<_> =
        released.iter().filter_map(|r| remove(host, &r.host_ifname).err()).collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::Unwiring(problems)) }
}

fn netns_error(error: netns::Error) -> Error {
    match error {
        netns::Error::Vanished { path } | netns::Error::NotANetNs { path } => {
            Error::PodGone { path }
        }
        other => Error::NetNs(other),
    }
}
