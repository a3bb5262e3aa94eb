//! The plugin's executable in fresh network namespaces, against an ipamd that answers by rote.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![expect(clippy::print_stdout, reason = "what was skipped is said")]

use std::{fs, os::unix::net::UnixListener};

use serde_json::{Value, json};
use veni_core::wire::{DelReason, RequestBody, Wiring};

#[path = "support/node.rs"]
mod node;

use node::{finish, on_a_node, start, vanished_netns, wiring};

#[test]
fn add_wires_the_pod_and_del_leaves_nothing() {
    on_a_node(|mut node| {
        let before = node.state();
        let result = node.add();
        node.assert_wired();
        assert_eq!(result["cniVersion"], "1.0.0");
        assert_eq!(result["ips"][0]["address"], "10.0.0.77/32");
        assert_eq!(result["interfaces"][1]["sandbox"], node.netns());
        let outcome = node.call_with("DEL", &node.config_with(&json!({"prevResult": result})));
        assert_eq!((outcome.code, outcome.stdout), (Some(0), Value::Null));
        assert_eq!(node.state(), before);
        assert!(!node.ipamd.with(|state| state.allocated));
        assert_eq!(node.ipamd.operations(), ["add", "del"]);
    });
}

#[test]
fn ipamd_hears_whose_pod_it_is() {
    on_a_node(|node| {
        node.add();
        let RequestBody::Add(add) = node.ipamd.with(|state| state.asked.remove(0)) else {
            panic!()
        };
        assert_eq!((add.pod.namespace.as_str(), add.pod.name.as_str()), ("shop", "web-0"));
        assert_eq!(add.attachment.container_id.as_str(), "c0ffee");
        assert_eq!(add.netns.to_str(), Some(node.netns().as_str()));
    });
}

#[test]
fn add_twice_gives_the_same_result() {
    on_a_node(|mut node| {
        let first = node.add();
        let between = node.state();
        assert_eq!(node.add(), first);
        assert_eq!(node.state(), between);
        node.assert_wired();
    });
}

#[test]
fn two_adds_at_once_both_succeed() {
    on_a_node(|mut node| {
        let config = node.config().to_string();
        let calls: Vec<_> =
            (0..2).map(|_| start(&node.environment("ADD"), config.as_bytes())).collect();
        for call in calls {
            let outcome = finish(call);
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
        }
        node.assert_wired();
    });
}

#[test]
fn the_mtu_of_the_configuration_wins() {
    on_a_node(|mut node| {
        let outcome = node.call_with("ADD", &node.config_with(&json!({"mtu": 1400})));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        node.assert_wired_as(&Wiring { mtu: 1400, ..wiring() });
    });
}

/// Each ends in an error of this code that says this, and leaves nothing.
#[test]
fn a_failed_add_says_why_and_leaves_nothing() {
    type Prepare = fn(&mut node::Node);
    let cases: [(Prepare, u32, &str, &[&str]); 6] = [
        (
            |node| node.ipamd.with(|state| state.wiring = None),
            11,
            "veni: subnet-1 has no free addresses; add a subnet",
            &["add"],
        ),
        (
            |node| {
                node.ipamd.with(|state| {
                    state.wiring = Some(Wiring { node_address: [192, 0, 2, 1].into(), ..wiring() })
                })
            },
            100,
            "veni: wiring the pod",
            &["add", "del"],
        ),
        (
            |node| node.ipamd.with(|state| state.hangs_up = true),
            11,
            "veni: ipamd closed the connection without an answer",
            &["add", "del"],
        ),
        (
            |node| node.ipamd.with(|state| state.version = 9),
            102,
            "veni: plugin and ipamd are of different releases",
            &["add", "del"],
        ),
        (
            |node| fs::remove_file(node.socket()).unwrap(),
            11,
            "veni: ipamd is not running: its socket",
            &[],
        ),
        (
            |node| {
                fs::remove_file(node.socket()).unwrap();
                drop(UnixListener::bind(node.socket()).unwrap());
            },
            11,
            "veni: ipamd does not listen on its socket",
            &[],
        ),
    ];
    for (prepare, code, message, asked) in cases {
        on_a_node(move |mut node| {
            prepare(&mut node);
            let before = node.state();
            let outcome = node.call("ADD");
            assert_eq!(outcome.code, Some(1), "{message}");
            assert_eq!(outcome.stdout["cniVersion"], "1.0.0");
            assert_eq!(outcome.stdout["code"], code, "{outcome:?}");
            let said = outcome.stdout["msg"].as_str().unwrap();
            assert!(said.starts_with(message), "{said}");
            assert_eq!(node.state(), before, "{message}");
            assert!(!node.ipamd.with(|state| state.allocated), "{message}");
            assert_eq!(node.ipamd.operations(), asked, "{message}");
        });
    }
}

#[test]
fn an_address_that_could_not_be_wired_is_given_back_with_the_reason() {
    on_a_node(|node| {
        node.ipamd
            .with(|state| state.wiring.as_mut().unwrap().node_address = [192, 0, 2, 1].into());
        let outcome = node.call("ADD");
        let details = outcome.stdout["details"].as_str().unwrap();
        assert!(details.contains("adding the route to the pod for eni0123456789a"), "{details}");
        let RequestBody::Del(del) = node.ipamd.with(|state| state.asked.remove(1)) else {
            panic!()
        };
        assert_eq!(del.reason, DelReason::AddFailed);
    });
}

#[test]
fn a_vanished_namespace_fails_add_before_ipamd_is_asked_and_lets_del_succeed() {
    on_a_node(|node| {
        for path in [vanished_netns(), "/run/netns/never-was".to_owned(), "/dev/null".to_owned()] {
            let call = |command| {
                let mut environment = node.environment(command);
                environment[3].1 = path.clone().into();
                finish(start(&environment, node.config().to_string().as_bytes()))
            };
            let add = call("ADD");
            assert_eq!((add.code, &add.stdout["code"]), (Some(1), &json!(3)), "{add:?}");
            assert!(!node.ipamd.operations().contains(&"add"));
            assert_eq!(call("DEL").code, Some(0), "{path}");
        }
    });
}

#[test]
fn del_of_an_unknown_pod_succeeds() {
    on_a_node(|mut node| {
        let before = node.state();
        assert_eq!(node.call("DEL").code, Some(0));
        assert_eq!(node.call("DEL").code, Some(0));
        assert_eq!(node.state(), before);
    });
}

/// The link must go whatever the runtime still knows: prevResult, the namespace, or nothing.
#[test]
fn del_finds_the_link_by_whatever_is_known() {
    for (with_result, with_netns) in [(true, true), (true, false), (false, true), (false, false)] {
        on_a_node(move |mut node| {
            let before = node.state();
            let result = node.add();
            let mut config = node.config();
            if with_result {
                config["prevResult"] = result;
            }
            let mut environment = node.environment("DEL");
            if !with_netns {
                environment[3].1 = "".into();
            }
            let outcome = finish(start(&environment, config.to_string().as_bytes()));
            assert_eq!(outcome.code, Some(0), "{with_result} {with_netns} {outcome:?}");
            assert_eq!(node.state(), before, "{with_result} {with_netns}");
            assert!(!node.ipamd.with(|state| state.allocated));
        });
    }
}

#[test]
fn del_removes_the_link_and_succeeds_without_ipamd() {
    for with_result in [true, false] {
        on_a_node(move |mut node| {
            let before = node.state();
            let mut config = node.config();
            let result = node.add();
            if with_result {
                config["prevResult"] = result;
            }
            fs::remove_file(node.socket()).unwrap();
            assert_eq!(node.call_with("DEL", &config).code, Some(0));
            assert_eq!(node.state(), before);
        });
    }
}

#[test]
fn del_leaves_links_of_others_alone() {
    on_a_node(|mut node| {
        let before = node.state();
        let foreign = json!({"interfaces": [
            {"name": "lo"},
            {"name": "eth0", "sandbox": "/run/netns/x"}
        ]});
        let config = node.config_with(&json!({"prevResult": foreign}));
        assert_eq!(node.call_with("DEL", &config).code, Some(0));
        assert_eq!(node.state(), before);
    });
}

#[test]
fn check_passes_a_whole_pod_and_names_what_is_broken() {
    on_a_node(|mut node| {
        let result = node.add();
        let config = node.config_with(&json!({"prevResult": result}));
        let outcome = node.call_with("CHECK", &config);
        assert_eq!((outcome.code, outcome.stdout), (Some(0), Value::Null));

        veni_datapath::pod::unwire(&mut node.host, &wiring().host_ifname).unwrap();
        let outcome = node.call_with("CHECK", &config);
        assert_eq!(outcome.stdout["code"], 101);
        let said = outcome.stdout["msg"].as_str().unwrap();
        assert!(said.contains("link eth0: expected a veth, found none"), "{said}");

        node.ipamd.with(|state| state.allocated = false);
        assert_eq!(node.call_with("CHECK", &config).stdout["code"], 101);
    });
}

#[test]
fn gc_removes_the_links_of_what_was_released() {
    on_a_node(|mut node| {
        let before = node.state();
        node.add();
        let config =
            node.config_with(&json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}));
        let outcome = finish(start(
            &[("CNI_COMMAND", "GC".into()), ("CNI_PATH", "/opt/cni/bin".into())],
            config.to_string().as_bytes(),
        ));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert_eq!(node.state(), before);
    });
}

/// libcni writes "no attachment is left" as `null`.
#[test]
fn gc_after_the_last_pod_succeeds() {
    on_a_node(|mut node| {
        let before = node.state();
        node.add();
        let config =
            node.config_with(&json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": null}));
        let gc = |config: &Value| {
            finish(start(&[("CNI_COMMAND", "GC".into())], config.to_string().as_bytes()))
        };
        let outcome = gc(&config);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert_eq!(node.state(), before);
        let missing = gc(&node.config_with(&json!({"cniVersion": "1.1.0"})));
        assert_eq!((missing.code, &missing.stdout["code"]), (Some(1), &json!(7)));
    });
}

/// As libcni makes it of a list: the first plugin's part, with the list's name and version.
fn first_of(list: &str, socket: &std::path::Path) -> Value {
    let list: Value = serde_json::from_str(list).unwrap();
    let mut ours = list["plugins"][0].clone();
    ours["cniVersion"] = list["cniVersion"].clone();
    ours["name"] = list["name"].clone();
    assert!(ours["socket"].is_string());
    ours["socket"] = json!(socket);
    ours
}

#[test]
fn each_conflist_that_is_shipped_works_and_the_one_of_1_1_has_gc_and_status() {
    let lists = [
        ("1.0.0", include_str!("../install/10-veni.conflist"), json!(1)),
        ("1.1.0", include_str!("../install/10-veni-1.1.conflist"), Value::Null),
    ];
    for (version, list, refused) in lists {
        on_a_node(move |mut node| {
            let before = node.state();
            let mut config = first_of(list, &node.socket());
            let alone = |command: &str, config: &Value| {
                let environment = [("CNI_COMMAND", command.into())];
                finish(start(&environment, config.to_string().as_bytes()))
            };
            let report = alone("VERSION", &config);
            assert_eq!(report.stdout["cniVersion"], version);
            let supported = report.stdout["supportedVersions"].as_array().unwrap().clone();
            assert!(supported.contains(&json!(version)), "{supported:?}");
            let added = node.call_with("ADD", &config);
            assert_eq!((added.code, &added.stdout["cniVersion"]), (Some(0), &json!(version)));
            node.assert_wired();
            assert_eq!(alone("STATUS", &config).stdout["code"], refused);
            config["cni.dev/valid-attachments"] = json!([]);
            assert_eq!(alone("GC", &config).stdout["code"], refused);
            if refused.is_null() {
                assert_eq!(node.state(), before, "GC has taken the pod's link");
            }
            let deleted = node.call_with("DEL", &config);
            assert_eq!(deleted.code, Some(0), "{deleted:?}");
            assert_eq!(node.state(), before);
        });
    }
}

#[test]
fn status_tells_whether_an_add_would_be_served() {
    on_a_node(|node| {
        let config = node.config_with(&json!({"cniVersion": "1.1.0"})).to_string();
        let status = || finish(start(&[("CNI_COMMAND", "STATUS".into())], config.as_bytes()));
        assert_eq!(status().code, Some(0));
        node.ipamd.with(|state| state.wiring = None);
        let empty = status();
        assert_eq!((empty.code, &empty.stdout["code"]), (Some(1), &json!(50)));
        assert_eq!(empty.stdout["details"], "the pool is empty");
        fs::remove_file(node.socket()).unwrap();
        assert_eq!(status().stdout["code"], 50);
    });
}

#[test]
fn version_needs_no_configuration() {
    for (stdin, version) in [("", "1.1.0"), (r#"{"cniVersion":"0.4.0"}"#, "0.4.0")] {
        let outcome = finish(start(&[("CNI_COMMAND", "VERSION".into())], stdin.as_bytes()));
        assert_eq!(outcome.code, Some(0));
        let expect = json!({
            "cniVersion": version,
            "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
        });
        assert_eq!(outcome.stdout, expect);
    }
}

/// Nothing of this reaches ipamd or the kernel.
#[test]
fn bad_input_is_refused_with_the_specifications_code() {
    on_a_node(|mut node| {
        let before = node.state();
        let socket = node.socket();
        let cases: [(&str, Value, u32); 9] = [
            ("ADD", json!([]), 6),
            ("ADD", json!({"cniVersion": "0.2.0", "name": "veni"}), 1),
            ("ADD", json!({"cniVersion": "1.0.0"}), 7),
            ("ADD", json!({"cniVersion": "1.0.0", "name": "veni", "mtu": 1}), 7),
            ("ADD", json!({"cniVersion": "1.0.0", "name": "veni", "socket": "x"}), 7),
            ("EAT", json!({"cniVersion": "1.0.0", "name": "veni"}), 4),
            ("CHECK", json!({"cniVersion": "1.0.0", "name": "veni", "socket": socket}), 7),
            ("CHECK", json!({"cniVersion": "0.3.1", "name": "veni", "socket": socket}), 1),
            ("STATUS", json!({"cniVersion": "1.0.0", "name": "veni", "socket": socket}), 1),
        ];
        for (command, config, code) in cases {
            let outcome = node.call_with(command, &config);
            assert_eq!(
                (outcome.code, &outcome.stdout["code"]),
                (Some(1), &json!(code)),
                "{config}"
            );
        }
        let long = format!(r#"{{"cniVersion":"1.0.0","name":"{}"}}"#, "x".repeat(1 << 20));
        let outcome = finish(start(&node.environment("ADD"), long.as_bytes()));
        assert_eq!(outcome.stdout["code"], 6);
        let outcome = finish(start(&[], b"{}"));
        assert_eq!(outcome.stdout["code"], 4);
        assert_eq!(
            outcome.stdout["msg"],
            "veni: missing environment variables: CNI_COMMAND, CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS"
        );
        assert_eq!(node.ipamd.operations(), Vec::<&str>::new());
        assert_eq!(node.state(), before);
    });
}

/// A read with a timeout is interrupted by being stopped and continued, as a debugger or a freezer does (signal(7)).
#[test]
fn a_plugin_that_is_stopped_and_continued_goes_on_waiting() {
    on_a_node(|mut node| {
        node.ipamd.with(|state| state.thinks = std::time::Duration::from_millis(600));
        let config = node.config().to_string();
        let call = start(&node.environment("ADD"), config.as_bytes());
        for signal in ["-STOP", "-CONT"] {
            std::thread::sleep(std::time::Duration::from_millis(150));
            let kill = ["kill", signal, &call.id().to_string()].join(" ");
            assert!(
                std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success()
            );
        }
        let outcome = finish(call);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        node.assert_wired();
    });
}
