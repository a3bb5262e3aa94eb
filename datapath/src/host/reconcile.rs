//! Compares the kernel's state with the desired one, and repairs it.

use std::collections::{BTreeSet, HashMap};

use veni_core::chain::chain;

use super::{
    Conflict, Desired, PROTOCOL, Repair, RepairKind, Report,
    desired::PRIORITY_ENI,
    link, qdisc,
    route::{self, KernelRoute, Route},
    rule::{self, KernelRule, Rule, TABLE_MAIN},
};
use crate::{
    error::{Error, Result},
    netlink::{Request, Socket},
};

/// `RTPROT_STATIC`: made by an administrator.
const RTPROT_STATIC: u8 = 4;
/// `ENODEV` (include/uapi/asm-generic/errno-base.h).
const ENODEV: i32 = 19;

/// Makes the current network namespace look as `desired`. Costs five dumps when there is nothing to do.
///
/// # Errors
/// When the kernel's state cannot be listed. A single object that cannot be repaired is in [`Report::failed`].
pub fn reconcile(desired: &Desired) -> Result<Report> {
    let socket = Socket::open().map_err(Error::netlink("opening a netlink socket"))?;
    let mut pass = Pass { socket, report: Report::default() };
    let links = link::dump(&mut pass.socket)?;
    let present: HashMap<u32, &link::Link> =
        links.iter().map(|link| (link.ifindex, link)).collect();
    // Links first: routes need them up. Addresses before rules: their local route has to be there.
    pass.links(desired, &present);
    pass.addresses(desired, &present)?;
    pass.sysctls(desired);
    pass.routes(desired, &present)?;
    pass.rules(desired)?;
    pass.qdiscs(desired, &present)?;
    Ok(pass.report)
}

struct Pass {
    socket: Socket,
    report: Report,
}

impl Pass {
    /// Carries out one repair and writes down how it ended.
    fn repair(&mut self, kind: RepairKind, what: String, requests: &[Request]) {
        match self.socket.transact(requests) {
            Ok(()) => self.report.repaired.push(Repair { kind, what }),
            // The link went between the listing and the repair: its own end repairs everything.
            Err(error) if error.errno() == Some(ENODEV) => {}
            Err(error) => match kind {
                RepairKind::PodRoute | RepairKind::Qdisc => {
                    self.report.failed_pods.push(format!("{what}: {error}"));
                }
                _ => self.report.failed.push(format!("{what}: {error}")),
            },
        }
    }

    fn links(&mut self, desired: &Desired, present: &HashMap<u32, &link::Link>) {
        for eni in &desired.secondary {
            let Some(link) = present.get(&eni.ifindex) else {
                continue;
            };
            if link.mtu != eni.mtu {
                let what = format!("MTU {} on {} (was {})", eni.mtu, eni.ifname, link.mtu);
                self.repair(RepairKind::Link, what, &[link::set_mtu(eni.ifindex, eni.mtu)]);
            }
            if !link.up {
                let what = format!("link {} up", eni.ifname);
                self.repair(RepairKind::Link, what, &[link::set_up(eni.ifindex)]);
            }
        }
        // The kernel drops a link's routes when it goes down: theirs follow below.
        for pod in &desired.pod_links {
            if present.get(&pod.ifindex).is_some_and(|link| !link.up) {
                let what = format!("link {} up", pod.ifname);
                self.repair(RepairKind::Link, what, &[link::set_up(pod.ifindex)]);
            }
        }
    }

    fn addresses(&mut self, desired: &Desired, present: &HashMap<u32, &link::Link>) -> Result<()> {
        let addresses = link::dump_addresses(&mut self.socket)?;
        for eni in desired.secondary.iter().filter(|eni| present.contains_key(&eni.ifindex)) {
            let own = |a: &&link::LinkAddress| a.ifindex == eni.ifindex;
            if !addresses.iter().filter(own).any(|a| a.address == eni.address) {
                let what =
                    format!("address {}/{} on {}", eni.address, eni.subnet.len(), eni.ifname);
                let request = link::add_address(eni.ifindex, eni.address, eni.subnet);
                self.repair(RepairKind::Address, what, &[request]);
            }
            for other in addresses.iter().filter(own).filter(|a| a.address != eni.address) {
                if !desired.pod_routes.contains_key(&other.address) {
                    let conflict =
                        Conflict::Address { ifname: eni.ifname.clone(), address: other.address };
                    self.report.conflicts.push(conflict);
                }
            }
        }
        // A pod's address on a link of the node: the node would answer in the pod's place (ec2-net-utils does this).
        for address in addresses.iter().filter(|a| desired.pod_routes.contains_key(&a.address)) {
            let ifname = present.get(&address.ifindex).map_or("?", |link| &link.ifname);
            let what = format!("address {} of a pod, from {ifname}", address.address);
            self.repair(RepairKind::Foreign, what, &[link::remove_address(address)]);
        }
        Ok(())
    }

    fn sysctls(&mut self, desired: &Desired) {
        for (sysctl, value) in &desired.sysctls {
            let outcome = match sysctl.read(&desired.sysctl_dir) {
                Ok(now) if now == *value => continue,
                Ok(now) => sysctl.write(&desired.sysctl_dir, value).map(|()| now),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(was) => self.report.repaired.push(Repair {
                    kind: RepairKind::Sysctl,
                    what: format!("{sysctl} = {value} (was {was})"),
                }),
                Err(error) => self.report.failed.push(chain(&error)),
            }
        }
    }

    fn routes(&mut self, desired: &Desired, present: &HashMap<u32, &link::Link>) -> Result<()> {
        let kernel = route::dump(&mut self.socket)?;
        let ours = |route: &&KernelRoute| route.protocol == PROTOCOL;
        let have: BTreeSet<&Route> =
            kernel.iter().filter(ours).filter_map(|r| r.route.as_ref()).collect();
        for route in kernel.iter().filter(ours) {
            let stale = route.route.as_ref().is_some_and(|r| {
                desired.eni_tables.contains(&r.table) && !desired.eni_routes.contains(r)
            });
            if stale {
                let what = route.route.as_ref().map(ToString::to_string).unwrap_or_default();
                self.repair(RepairKind::Route, format!("stale {what}"), &[route::remove(route)]);
            }
        }
        // The gateway's own route sorts after the default route, which does not need it (onlink).
        for route in desired
            .eni_routes
            .iter()
            .filter(|r| !have.contains(r) && present.contains_key(&r.ifindex))
        {
            self.repair(RepairKind::Route, route.to_string(), &[route::replace(route)]);
        }
        let missing = desired
            .pod_routes
            .values()
            .filter(|r| !have.contains(r) && present.contains_key(&r.ifindex));
        for route in missing {
            self.repair(RepairKind::PodRoute, route.to_string(), &[route::replace(route)]);
        }
        self.stray_routes(desired, &kernel);
        Ok(())
    }

    /// Routes of the main table out of a secondary ENI: the node's own traffic would take them with the wrong source.
    fn stray_routes(&mut self, desired: &Desired, kernel: &[KernelRoute]) {
        for route in kernel.iter().filter(|route| route.protocol != PROTOCOL) {
            let Some(stray) = route.route.as_ref().filter(|r| {
                r.table == TABLE_MAIN
                    && desired.secondary.iter().any(|eni| eni.ifindex == r.ifindex)
            }) else {
                continue;
            };
            let is_default = stray.destination.len() == 0;
            if route.protocol == RTPROT_STATIC && !is_default {
                self.report.conflicts.push(Conflict::Route { route: stray.to_string() });
            } else {
                let what = format!("{stray} (protocol {})", route.protocol);
                self.repair(RepairKind::Foreign, what, &[route::remove(route)]);
            }
        }
    }

    fn rules(&mut self, desired: &Desired) -> Result<()> {
        let kernel = rule::dump(&mut self.socket)?;
        let mut have: BTreeSet<&Rule> = BTreeSet::new();
        for found in &kernel {
            if found.protocol != PROTOCOL {
                self.foreign_rule(desired, found);
                continue;
            }
            match &found.rule {
                // The kernel allows the same rule twice; one is enough.
                Some(rule) if desired.rules.contains(rule) && have.insert(rule) => {}
                _ => {
                    let what = format!("stale {}", found.describe());
                    self.repair(RepairKind::Rule, what, &[rule::remove(found)]);
                }
            }
        }
        for missing in desired.rules.iter().filter(|rule| !have.contains(rule)) {
            self.repair(RepairKind::Rule, missing.to_string(), &[rule::add(missing)]);
        }
        Ok(())
    }

    fn foreign_rule(&mut self, desired: &Desired, found: &KernelRule) {
        // 0 is the kernel's own `lookup local`.
        let before = found.priority > 0 && found.priority <= PRIORITY_ENI;
        let harmless = found.rule.as_ref().is_some_and(|rule| match &rule.selector {
            rule::Selector::From(address) => !desired.pod_routes.contains_key(address),
            rule::Selector::To(prefix) => {
                !desired.pod_routes.keys().any(|pod| prefix.contains(*pod))
            }
            rule::Selector::All | rule::Selector::Mark { .. } => false,
        });
        if before && !harmless {
            self.report.conflicts.push(Conflict::Rule { rule: found.describe() });
        }
    }

    fn qdiscs(&mut self, desired: &Desired, present: &HashMap<u32, &link::Link>) -> Result<()> {
        let Some(blocks) = desired.blocks else {
            return Ok(());
        };
        let kernel = qdisc::dump(&mut self.socket)?;
        let kernel: HashMap<u32, &qdisc::IngressQdisc> =
            kernel.iter().map(|q| (q.ifindex, q)).collect();
        for pod in desired.pod_links.iter().filter(|pod| present.contains_key(&pod.ifindex)) {
            let found = kernel.get(&pod.ifindex);
            if found.is_some_and(|q| q.kind == "clsact" && q.blocks == blocks) {
                continue;
            }
            let mut requests: Vec<Request> =
                found.map(|_| qdisc::remove(pod.ifindex)).into_iter().collect();
            requests.push(qdisc::add(pod.ifindex, blocks));
            self.repair(
                RepairKind::Qdisc,
                format!("clsact with the filter on {}", pod.ifname),
                &requests,
            );
        }
        Ok(())
    }
}
