//! Results in the form of every version of the specification.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use veni_cni::{result::AddResult, spec::SpecVersion};
use veni_core::wire::Wiring;

#[path = "../../datapath/tests/support/wiring.rs"]
mod sample;

fn wiring() -> Wiring {
    Wiring { address: Ipv4Addr::new(10, 0, 3, 77), blocks: None, ..sample::wiring() }
}

fn result(before: Option<AddResult>, version: SpecVersion) -> Value {
    let ifname = "eth0".parse().unwrap();
    let result = AddResult::of(before, &wiring(), &ifname, "/run/netns/pod");
    serde_json::from_str(&result.to_json(version)).unwrap()
}

/// What a plugin before us might have made: of 1.1.0, dual-stack.
fn before() -> AddResult {
    serde_json::from_value(json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "tap0", "mtu": 1500, "sandbox": "/run/netns/pod", "pciID": "0000:01:00.1", "x": 1}
        ],
        "ips": [{"address": "2001:db8::5/64", "gateway": "2001:db8::1", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24", "priority": 5}],
        "dns": {"nameservers": ["10.0.0.2"], "search": ["example.org"]}
    }))
    .unwrap()
}

#[test]
fn a_result_in_every_version() {
    for version in SpecVersion::ALL {
        let name = format!("alone-{version}");
        insta::assert_json_snapshot!(name, result(None, version));
    }
}

#[test]
fn a_result_after_another_plugins_in_every_version() {
    for version in SpecVersion::ALL {
        let name = format!("chained-{version}");
        insta::assert_json_snapshot!(name, result(Some(before()), version));
    }
}

#[test]
fn our_host_end_is_found_again_in_every_version() {
    let ifname = "eth0".parse().unwrap();
    for version in SpecVersion::ALL {
        for before in [None, Some(before())] {
            let again: AddResult = serde_json::from_value(result(before, version)).unwrap();
            assert_eq!(again.host_end(&ifname), Some(wiring().host_ifname), "{version}");
            assert!(again.has_address(Ipv4Addr::new(10, 0, 3, 77).into()));
        }
    }
}

#[test]
fn a_result_of_others_has_no_host_end_of_ours() {
    assert_eq!(before().host_end(&"eth0".parse().unwrap()), None);
}
