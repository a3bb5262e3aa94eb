//! Where the cluster's Service addresses are: as the settings say, else as its ServiceCIDR objects do.
//!
//! Invariants: a family that the settings name is as they say; for the others what an earlier daemon knew stays in force until
//! the objects were read. The programs know one range a family: of several the widest, and what is left out is said.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::sync::watch;
use veni_core::{chain::chain, config::PolicySettings};
use veni_datapath::bpf::Filter;
use veni_ebpf_common::Settings;

use super::configure;
use crate::{
    enforcer::{Handle, Input, ServiceRanges},
    host::keeper::own_addresses,
};

/// The ranges of each object, by its name.
pub(super) type Cidrs = BTreeMap<String, Vec<String>>;

/// The settings with what the programs know of the ranges.
pub(crate) fn as_known(own: &PolicySettings, known: &Settings) -> PolicySettings {
    let v4 = Ipv4Net::with_netmask(known.service_v4.into(), known.service_mask_v4.into());
    let mask = Ipv6Addr::from(known.service_mask_v6);
    let v6 = Ipv6Net::with_netmask(known.service_v6.into(), mask);
    // A mask of zeros matches nothing.
    let v4 = v4.ok().filter(|net| net.netmask() != Ipv4Addr::UNSPECIFIED);
    let v6 = v6.ok().filter(|net| net.prefix_len() > 0);
    with(own, v4, v6)
}

fn with(own: &PolicySettings, v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> PolicySettings {
    PolicySettings {
        service_v4: own.service_v4.or(v4),
        service_v6: own.service_v6.or(v6),
        ..own.clone()
    }
}

/// The settings with what the objects say, and the ranges that find no place in the programs.
fn as_told(own: &PolicySettings, cidrs: &Cidrs) -> (PolicySettings, Vec<IpNet>) {
    let nets = cidrs.values().flatten().filter_map(|net| net.parse::<IpNet>().ok());
    let mut nets = IpNet::aggregate(&nets.collect());
    nets.sort_by_key(IpNet::prefix_len);
    let v4 = nets.iter().find_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None });
    let v6 = nets.iter().find_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None });
    let all = with(own, v4, v6);
    nets.retain(|net| match net {
        IpNet::V4(net) => all.service_v4.is_none_or(|range| !range.contains(net)),
        IpNet::V6(net) => all.service_v6.is_none_or(|range| !range.contains(net)),
    });
    (all, nets)
}

/// Keeps the programs at what the objects say, once they were read.
pub(super) async fn follow(
    mut cidrs: watch::Receiver<Option<Cidrs>>,
    own: PolicySettings,
    filter: Arc<Filter>,
    handle: Handle,
) {
    loop {
        let told = cidrs.borrow_and_update().clone();
        if let Some(told) = told {
            let (policy, left_out) = as_told(&own, &told);
            put(&policy, &left_out, &filter, &handle);
        }
        if cidrs.changed().await.is_err() {
            return;
        }
    }
}

fn put(policy: &PolicySettings, left_out: &[IpNet], filter: &Filter, handle: &Handle) {
    if !left_out.is_empty() {
        tracing::warn!(
            ?left_out,
            "an address of these Service ranges that no Service has is judged as any other: the programs know one range a family"
        );
    }
    warn_of_none(policy);
    match filter.configure(|settings| configure(settings, policy)) {
        Ok(_) => {
            handle.tell(Input::Ranges(ServiceRanges::of(policy)));
            // An address of a Service that a proxy keeps on the node is the node's no more, or again.
            match own_addresses(policy, filter) {
                Ok(own) => handle.tell(Input::NodeAddresses(own)),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the node's addresses not read");
                }
            }
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "the programs do not know the Service ranges");
        }
    }
}

/// Says that no range is known.
pub(super) fn warn_of_none(policy: &PolicySettings) {
    if policy.service_v4.is_none() && policy.service_v6.is_none() {
        let next = "set VENI_SERVICE_CIDRS to the cluster's Service range";
        tracing::warn!(
            next,
            "a Service address that no Service has (yet) is judged as any other: an isolated pod may reach what kube-proxy makes of it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(all: &[(&str, &[&str])]) -> Cidrs {
        let owned = |nets: &[&str]| nets.iter().map(|net| (*net).to_owned()).collect();
        all.iter().map(|(name, nets)| ((*name).to_owned(), owned(nets))).collect()
    }

    #[test]
    fn ranges_are_the_objects_where_the_settings_name_none() {
        let check =
            |own: Option<&str>, told: &[(&str, &[&str])], v4: &str, v6: &str, out: &[&str]| {
                let service_v4 = own.map(|net| net.parse().unwrap());
                let own = PolicySettings { service_v4, ..PolicySettings::default() };
                let (all, left_out) = as_told(&own, &cidrs(told));
                let text = |net: Option<String>| net.unwrap_or_default();
                assert_eq!(text(all.service_v4.map(|net| net.to_string())), v4, "{told:?}");
                assert_eq!(text(all.service_v6.map(|net| net.to_string())), v6, "{told:?}");
                let left_out: Vec<_> = left_out.iter().map(ToString::to_string).collect();
                assert_eq!(left_out, out, "{told:?}");
            };
        let dual: &[&str] = &["10.100.0.0/16", "fd00:20::/108"];
        check(None, &[("kubernetes", dual)], "10.100.0.0/16", "fd00:20::/108", &[]);
        check(None, &[], "", "", &[]);
        check(None, &[("odd", &["ten"])], "", "", &[]);
        check(
            Some("172.20.0.0/16"),
            &[("kubernetes", dual)],
            "172.20.0.0/16",
            "fd00:20::/108",
            &["10.100.0.0/16"],
        );
        let adjacent: &[&str] = &["10.101.0.0/16"];
        check(None, &[("a", &["10.100.0.0/16"]), ("b", adjacent)], "10.100.0.0/15", "", &[]);
        let apart: &[&str] = &["10.200.0.0/24"];
        check(
            None,
            &[("a", apart), ("b", &["10.100.0.0/16"])],
            "10.100.0.0/16",
            "",
            &["10.200.0.0/24"],
        );
    }

    #[test]
    fn what_an_earlier_daemon_knew_holds_until_the_objects_are_read() {
        let own = PolicySettings {
            service_v6: Some("fd00:20::/108".parse().unwrap()),
            ..PolicySettings::default()
        };
        let mut settings = Settings::default();
        assert_eq!(as_known(&own, &settings), own, "it knew none");
        let earlier = PolicySettings {
            service_v4: Some("10.100.0.0/16".parse().unwrap()),
            service_v6: Some("fd00:10::/108".parse().unwrap()),
            ..own.clone()
        };
        configure(&mut settings, &earlier);
        let known = as_known(&own, &settings);
        assert_eq!((known.service_v4, known.service_v6), (earlier.service_v4, own.service_v6));
    }
}
