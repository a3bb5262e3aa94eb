//! The nftables table over what is there: left alone when it is right, made right when it is not.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends at the first surprise, and says what it skipped"
)]
#![cfg(feature = "host")]

use serde_json::{Value, json};
use veni_datapath::nft::NftTable;

#[path = "support/node.rs"]
mod node;
#[path = "support/vpc.rs"]
mod vpc;

/// The table with the handles of its rules and chains, which are others once something was written.
fn handles() -> String {
    node::run("nft", &["-a", "list", "table", "ip", "veni"])
}

/// The table without them.
fn text() -> String {
    node::run("nft", &["list", "table", "ip", "veni"])
}

#[test]
fn a_table_that_is_right_is_left_alone_and_any_other_is_not_taken_for_it() {
    node::in_node(|_| {
        let config = vpc::nft_config();
        let mut table = NftTable::new(&config);
        table.apply().unwrap();
        let (kept, before) = (table.kept(), handles());
        let resumed = NftTable::resume(&config, &kept).unwrap().expect("the table is right");
        assert!(resumed.intact().unwrap());
        assert_eq!(resumed.kept(), kept, "the next daemon is kept something else");
        assert_eq!(handles(), before, "a table that is right was written");

        let mut others = vec![config.clone(); 3];
        others[0].vpc_cidrs.push("100.64.0.0/16".parse().unwrap());
        others[1].snat.exclude_cidrs.push("192.168.0.0/16".parse().unwrap());
        others[2].primary_ifname = "ens5".into();
        for other in &others {
            assert!(NftTable::resume(other, &kept).unwrap().is_none(), "{other:?}");
        }
        let listed = |listed: Value| json!({"ruleset": kept["ruleset"], "listed": listed});
        let nothing = [
            Value::Null,
            json!({}),
            json!([]),
            json!("journal"),
            json!({"ruleset": kept["ruleset"]}),
            json!({"listed": kept["listed"]}),
            listed(Value::Null),
            listed(json!({"nftables": []})),
            json!({"ruleset": {"nftables": []}, "listed": kept["listed"]}),
        ];
        for kept in nothing {
            assert!(NftTable::resume(&config, &kept).unwrap().is_none(), "{kept}");
        }
        assert_eq!(handles(), before, "looking wrote something");
    });
}

/// nft's commands that make the table another.
const BY_HAND: [&str; 17] = [
    "delete table ip veni",
    "flush table ip veni",
    "flush chain ip veni leaves_vpc",
    "insert rule ip veni connmark accept",
    "add rule ip veni leaves_vpc ip daddr 1.0.0.0/8 return",
    "add chain ip veni theirs; add rule ip veni node_port jump theirs",
    "add chain ip veni a; add chain ip veni b; add rule ip veni a jump b; add rule ip veni b accept",
    "add chain ip veni hooked { type filter hook forward priority 0; policy drop; }",
    "add set ip veni untranslated { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }; \
     add rule ip veni connmark ip daddr @untranslated accept",
    "add chain ip veni m; add map ip veni verdicts { type ipv4_addr : verdict; elements = { 10.0.0.1 : jump m }; }; \
     add rule ip veni connmark ip daddr vmap @verdicts",
    "add counter ip veni c; add quota ip veni q { over 1 mbytes; }; add rule ip veni connmark counter name c",
    "add counter ip veni c; add map ip veni counted { type ipv4_addr : counter; elements = { 10.0.0.1 : \"c\" }; }",
    "add chain ip veni connmark { policy drop; }",
    "flush chain ip veni connmark; delete chain ip veni connmark",
    "flush table ip veni; delete chain ip veni leaves_vpc",
    "delete table ip veni; add table ip veni; add chain ip veni connmark { type filter hook forward priority 5; }",
    "delete table ip veni; add table ip veni; add chain ip veni egress_snat",
];

#[test]
fn whatever_was_done_to_the_table_it_is_noticed_and_made_right() {
    node::in_node(|_| {
        let config = vpc::nft_config();
        let mut table = NftTable::new(&config);
        table.apply().unwrap();
        let (kept, right) = (table.kept(), text());
        for commands in BY_HAND {
            node::run("nft", &[commands]);
            assert!(!table.intact().unwrap(), "{commands}");
            assert!(NftTable::resume(&config, &kept).unwrap().is_none(), "{commands}");
            NftTable::new(&config).apply().unwrap();
            assert_eq!(text(), right, "{commands}");
            assert!(NftTable::resume(&config, &kept).unwrap().is_some(), "{commands}");
        }
    });
}

#[test]
fn a_change_leaves_the_chains_where_they_are() {
    node::in_node(|_| {
        // A base chain that is made anew has another place among the hooks for a moment.
        let chains = || {
            let listed = handles();
            let chains = listed.lines().filter(|line| line.trim_start().starts_with("chain "));
            chains.map(str::to_owned).collect::<Vec<_>>()
        };
        NftTable::new(&vpc::nft_config()).apply().unwrap();
        let before = chains();
        let mut config = vpc::nft_config();
        for cidrs in [vec![], vec!["0.0.0.0/0"], vec!["10.0.0.0/16", "100.64.0.7/32"]] {
            config.vpc_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
            NftTable::new(&config).apply().unwrap();
            assert_eq!(chains(), before, "{cidrs:?}");
        }
        config.snat.external = true;
        NftTable::new(&config).apply().unwrap();
        assert_eq!(chains(), before);
    });
}
