use super::*;

fn read(vars: &[(&str, &str)]) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
    Config::from_vars(vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

/// The configuration, and the variables that were warned about.
fn accepted(vars: &[(&str, &str)]) -> (Config, Vec<String>) {
    let (config, warnings) =
        read(vars).unwrap_or_else(|errors| panic!("{vars:?} was refused: {errors:?}"));
    (config, warnings.into_iter().map(|w| w.variable).collect())
}

#[test]
fn an_empty_environment_gives_the_documented_defaults() {
    assert_eq!(accepted(&[]), (Config::default(), vec![]));
    let empty: Vec<_> = VARIABLES
        .iter()
        .filter(|v| !v.name.starts_with("VENI_SIM"))
        .map(|v| (v.name, ""))
        .collect();
    assert_eq!(accepted(&empty), (Config::default(), vec![]), "an empty value is an unset one");
}

#[test]
fn an_unset_variable_is_told_from_an_empty_value() {
    let warnings =
        Config::warnings([("ENABLE_PREFIX_DELEGATION".to_owned(), "true".to_owned())].into_iter());
    let texts: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    let of = |start: &str| texts.iter().any(|text| text.starts_with(start));
    assert!(of("WARM_PREFIX_TARGET (unset): "), "{texts:?}");
    assert!(of("ENABLE_PREFIX_DELEGATION=\"true\": "), "{texts:?}");
}

#[test]
fn a_build_without_the_aws_provider_says_so_among_all_errors() {
    let vars = [("AWS_VPC_ENI_MTU", "1"), ("ENABLE_IPv6", "true")];
    let read = |provider: Option<&str>, aws| {
        let provider = provider.map(|value| ("VENI_PROVIDER", value));
        let vars = vars.into_iter().chain(provider);
        let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let errors = Config::for_build(vars, Build { aws }).unwrap_err();
        let mut names: Vec<_> = errors.into_iter().map(|error| error.variable).collect();
        names.sort();
        names
    };
    let others = ["AWS_VPC_ENI_MTU", "ENABLE_IPv6"];
    let all = [others[0], others[1], "VENI_PROVIDER"];
    for provider in [None, Some(""), Some("aws")] {
        assert_eq!(read(provider, false), all, "{provider:?}");
        assert_eq!(read(provider, true), others, "{provider:?}");
    }
}

#[test]
fn metrics_are_served_by_themselves_where_that_is_asked_for() {
    let bound = |vars: &[(&str, &str)]| accepted(vars).0.metrics_bind;
    assert_eq!(bound(&[]), None);
    let (config, warnings) = accepted(&[("VENI_METRICS_BIND_ADDRESS", "10.0.0.7:61678")]);
    assert_eq!(config.metrics_bind.as_deref(), Some("10.0.0.7:61678"));
    assert_eq!((warnings, config.http_bind.as_deref()), (vec![], Some("127.0.0.1:61679")));
    let off = [("VENI_METRICS_BIND_ADDRESS", "10.0.0.7:61678"), ("DISABLE_METRICS", "true")];
    assert_eq!(bound(&off), None);
    let (config, warnings) = accepted(&[("VENI_METRICS_BIND_ADDRESS", "61678")]);
    assert_eq!((config.metrics_bind, warnings.len()), (None, 1), "{warnings:?}");
}

#[test]
fn an_address_that_others_can_reach_is_served_with_a_warning() {
    for (address, warned) in [
        ("127.0.0.1:61679", false),
        ("127.9.9.9:1", false),
        ("localhost:61679", false),
        ("[::1]:61679", false),
        ("0.0.0.0:61679", true),
        ("[::]:61679", true),
        ("10.0.0.7:61679", true),
        ("node-1:61679", true),
    ] {
        let (config, warnings) = accepted(&[("INTROSPECTION_BIND_ADDRESS", address)]);
        assert_eq!(config.http_bind.as_deref(), Some(address));
        assert_eq!(!warnings.is_empty(), warned, "{address}: {warnings:?}");
    }
    let off = [("INTROSPECTION_BIND_ADDRESS", "0.0.0.0:61679"), ("DISABLE_INTROSPECTION", "true")];
    assert_eq!(accepted(&off).1, Vec::<String>::new());
}

#[test]
fn the_registry_states_the_defaults_that_are_in_force() {
    let stated: Vec<_> = VARIABLES
        .iter()
        .filter(|v| v.support == Support::Honoured && !v.default.is_empty() && v.name != "POD_MTU")
        .map(|v| (v.name, v.default))
        .collect();
    let (config, warnings) = accepted(&stated);
    assert_eq!(config, Config::default());
    assert!(warnings.is_empty(), "{warnings:?}");
    for (name, value) in config.settings() {
        let default = find(&name).expect("settings are registered").default;
        let unset = default.is_empty() || name == "POD_MTU";
        assert!(unset || value == default, "{name}: {value} is in force, {default} is documented");
    }
}

#[test]
fn counts_are_read_as_the_aws_vpc_cni_reads_them() {
    let targets = |config: &Config| {
        let t = config.targets;
        [t.warm_eni, t.warm_ip, t.minimum_ip, t.warm_prefix]
    };
    for (name, value, expect, max_eni, warned) in [
        ("WARM_ENI_TARGET", "3", [3, 0, 0, 0], None, false),
        ("WARM_ENI_TARGET", "+2", [2, 0, 0, 0], None, false),
        ("WARM_ENI_TARGET", "-1", [1, 0, 0, 0], None, true),
        ("WARM_ENI_TARGET", "many", [1, 0, 0, 0], None, true),
        ("WARM_ENI_TARGET", "1.5", [1, 0, 0, 0], None, true),
        ("WARM_ENI_TARGET", "0", [0, 0, 0, 0], None, true),
        ("WARM_IP_TARGET", "5", [1, 5, 0, 0], None, false),
        ("WARM_IP_TARGET", "0", [1, 0, 0, 0], None, true),
        ("WARM_IP_TARGET", "-5", [1, 0, 0, 0], None, true),
        ("WARM_IP_TARGET", "99999999999999", [1, u32::MAX, 0, 0], None, false),
        ("WARM_IP_TARGET", "99999999999999999999", [1, 0, 0, 0], None, true),
        ("MINIMUM_IP_TARGET", "10", [1, 0, 10, 0], None, false),
        ("WARM_PREFIX_TARGET", "2", [1, 0, 0, 2], None, false),
        ("MAX_ENI", "2", [1, 0, 0, 0], Some(2), false),
        ("MAX_ENI", "0", [1, 0, 0, 0], None, true),
        ("MAX_ENI", "-1", [1, 0, 0, 0], None, true),
    ] {
        let (config, warnings) = accepted(&[(name, value)]);
        assert_eq!((targets(&config), config.max_eni), (expect, max_eni), "{name}={value}");
        assert_eq!(warnings.iter().any(|w| w == name), warned, "{name}={value}: {warnings:?}");
    }
}

#[test]
fn booleans_are_gos() {
    for (value, expect, warned) in [
        ("true", true, false),
        ("T", true, false),
        ("1", true, false),
        ("TRUE", true, false),
        ("False", false, false),
        ("0", false, false),
        ("yes", false, true),
        ("tRUE", false, true),
    ] {
        let (config, warnings) = accepted(&[("AWS_VPC_K8S_CNI_EXTERNALSNAT", value)]);
        assert_eq!((config.snat.external, !warnings.is_empty()), (expect, warned), "{value}");
    }
}

#[test]
fn values_reach_their_field() {
    type Probe = fn(&Config) -> bool;
    let cases: [(&str, &str, Probe); 18] = [
        ("IP_COOLDOWN_PERIOD", "0", |c| c.cooldown.is_zero()),
        ("IP_COOLDOWN_PERIOD", "90", |c| c.cooldown.as_secs() == 90),
        ("VENI_MAX_PODS", "58", |c| c.max_pods == Some(58)),
        ("VENI_ADD_WAIT_SECS", "7", |c| c.add_wait.as_secs() == 7),
        ("DISABLE_NETWORK_RESOURCE_PROVISIONING", "true", |c| c.disable_provisioning),
        ("MANAGE_UNTAGGED_ENI", "false", |c| !c.manage_untagged_eni),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "none", |c| c.snat.randomize == RandomizeSnat::None),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "hashrandom", |c| {
            c.snat.randomize == RandomizeSnat::HashRandom
        }),
        ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "false", |c| !c.snat.node_port_support),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0x100", |c| c.snat.connmark == 0x100),
        ("AWS_VPC_K8S_CNI_CONNMARK", "64", |c| c.snat.connmark == 64),
        ("AWS_VPC_ENI_MTU", "1500", |c| (c.eni_mtu, c.pod_mtu) == (1500, 1500)),
        ("POD_MTU", "576", |c| (c.eni_mtu, c.pod_mtu) == (9001, 576)),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "veni", |c| c.veth_prefix == "veni"),
        ("VENI_ENI_MARK_MASK", "0x0ff00000", |c| c.eni_mark_mask.bits() == 0x0ff0_0000),
        ("DISABLE_INTROSPECTION", "true", |c| c.http_bind.is_none()),
        ("AWS_VPC_K8S_CNI_LOGLEVEL", "DEBUG", |c| c.log_level == "debug"),
        ("MY_NODE_NAME", "ip-10-0-0-1", |c| c.node_name.as_deref() == Some("ip-10-0-0-1")),
    ];
    for (name, value, probe) in cases {
        let (config, warnings) = accepted(&[(name, value)]);
        assert!(probe(&config) && warnings.is_empty(), "{name}={value}: {config:?} {warnings:?}");
    }
}

/// Taken, without a warning of what is done by now; the page says by whom.
#[test]
fn who_relies_on_the_sweep_of_dead_nodes_enis_reads_who_does_it() {
    for (name, value) in [("DISABLE_LEAKED_ENI_CLEANUP", "true"), ("CLUSTER_NAME", "prod")] {
        let (config, warnings) = read(&[(name, value)]).unwrap();
        assert!(config.disable_leaked_eni_cleanup || config.cluster_name.is_some(), "{name}");
        let told: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        assert!(told.is_empty(), "{name}: {told:?}");
        let variable = VARIABLES.iter().find(|variable| variable.name == name).unwrap();
        assert!(variable.meaning.contains("the controller sweeps"), "{}", variable.meaning);
    }
}

#[test]
fn what_can_be_worked_around_is_a_warning_and_the_default() {
    for (name, value) in [
        ("IP_COOLDOWN_PERIOD", "-1"),
        ("IP_COOLDOWN_PERIOD", "30s"),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "random"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0x1ffffffff"),
        ("AWS_VPC_K8S_CNI_LOGLEVEL", "loud"),
        ("ADDITIONAL_ENI_TAGS", "team=net"),
        ("ADDITIONAL_ENI_TAGS", r#"{"a":1}"#),
        ("INTROSPECTION_BIND_ADDRESS", "61679"),
        ("VENI_MAX_PODS", "0"),
        ("ENABLE_PREFIX_DELEGATION", "true"),
        ("ENABLE_V6_EGRESS", "true"),
        ("ENABLE_BANDWIDTH_PLUGIN", "true"),
        ("AWS_VPC_K8S_CNI_BACKING_STORE", "/x"),
        ("VENI_ADRESS", "1"),
        ("WARM_IP_TARGETS", "5"),
        ("ENABLE_IPV6", "true"),
    ] {
        let (config, warnings) = accepted(&[(name, value)]);
        assert_eq!(config, Config::default(), "{name}={value}");
        assert!(warnings.iter().any(|w| w == name), "{name}={value}: {warnings:?}");
    }
}

#[test]
fn what_cannot_be_worked_around_is_an_error_that_names_all() {
    for (name, value) in [
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "eth"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "lo"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "vlan"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "calico"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "a/b"),
        ("AWS_VPC_ENI_MTU", "575"),
        ("AWS_VPC_ENI_MTU", "9002"),
        ("POD_MTU", "jumbo"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "10.0.0.0"),
        ("AWS_EXTERNAL_SERVICE_CIDRS", "10.0.0.0/33"),
        ("ENABLE_IPv6", "true"),
        ("ENABLE_IPv4", "false"),
        ("NETWORK_POLICY_ENFORCING_MODE", "lax"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0x4000"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0x10000"),
        ("VENI_ENI_MARK_MASK", "0x7f"),
        ("VENI_ENI_MARK_MASK", "0x0000ff00"),
        ("VENI_TABLE_BASE", "254"),
        ("VENI_SOCKET", "ipamd.sock"),
        ("VENI_PROVIDER", "gcp"),
        ("VENI_PROVIDER", "sim:relative.sock"),
    ] {
        let errors = read(&[(name, value)]).expect_err(&format!("{name}={value}"));
        assert_eq!(errors.len(), 1, "{errors:?}");
        let told = errors[0].to_string();
        assert!(
            told.contains(name) && told.contains(value) && told.len() > name.len() + 30,
            "{told}"
        );
    }
}

#[test]
fn all_errors_are_told_together() {
    let errors = read(&[
        ("AWS_VPC_ENI_MTU", "0"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "eth"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "a,10.0.0.0/8,b"),
        ("VENI_PROVIDER", "sim:/run/sim.sock"),
    ])
    .unwrap_err();
    let variables: Vec<_> = errors.iter().map(|e| e.variable.as_str()).collect();
    for name in ["AWS_VPC_ENI_MTU", "AWS_VPC_K8S_CNI_VETHPREFIX", "VENI_SIM_INSTANCE"] {
        assert!(variables.contains(&name), "{variables:?}");
    }
    assert_eq!(variables.iter().filter(|v| v.ends_with("SNAT_CIDRS")).count(), 2, "{errors:?}");
}

#[test]
fn cidr_lists_are_trimmed_cut_and_ipv4() {
    let (config, warnings) = accepted(&[(
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
        " 10.1.2.3/16, 192.0.2.0/24,,2001:db8::/32 ",
    )]);
    let expect: Vec<Ipv4Prefix> =
        vec!["10.1.0.0/16".parse().unwrap(), "192.0.2.0/24".parse().unwrap()];
    assert_eq!(config.snat.exclude_cidrs, expect);
    assert_eq!(warnings.len(), 2, "host bits, IPv6: {warnings:?}");
}

#[test]
fn tags_that_are_not_ours_to_set_are_left_out() {
    let (config, warnings) = accepted(&[(
        "ADDITIONAL_ENI_TAGS",
        r#"{"team":"net","node.k8s.amazonaws.com/instance_id":"i-1","aws:x":"1","cost":"42"}"#,
    )]);
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    assert_eq!(config.additional_eni_tags, [pair("cost", "42"), pair("team", "net")]);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

#[test]
fn traps_are_told() {
    let trap = |vars: &[(&str, &str)], variable: &str, word: &str| {
        let (_, warnings) = read(vars).unwrap();
        let told = warnings.iter().any(|w| w.variable == variable && w.message.contains(word));
        assert!(told, "{vars:?}: {warnings:?}");
    };
    trap(&[("VENI_ADD_WAIT_SECS", "90")], "VENI_ADD_WAIT_SECS", "55 is used");
    // The daemon grows the pool for ADDs that wait; the AWS VPC CNI, of which `pool steady` tells, does not.
    let floor = [("MINIMUM_IP_TARGET".to_owned(), "10".to_owned())];
    assert_eq!(Config::warnings(floor.clone().into_iter()), []);
    let (_, peers) = PoolSettings::from_vars(floor.into_iter()).unwrap();
    assert!(peers.iter().any(|w| w.message.contains("never grows")), "{peers:?}");
    trap(&[("WARM_IP_TARGET", "5"), ("WARM_ENI_TARGET", "2")], "WARM_ENI_TARGET", "ignored");
    trap(&[("WARM_IP_TARGET", "0")], "WARM_IP_TARGET", "same as unset");
    trap(&[("WARM_ENI_TARGET", "0")], "WARM_ENI_TARGET", "last address");
    trap(&[("ENABLE_PREFIX_DELEGATION", "true")], "WARM_PREFIX_TARGET", "in turns");
    trap(&[("AWS_VPC_ENI_MTU", "1500"), ("POD_MTU", "9001")], "POD_MTU", "larger");
    let (_, quiet) = accepted(&[("MINIMUM_IP_TARGET", "10"), ("WARM_IP_TARGET", "5")]);
    assert!(quiet.is_empty(), "{quiet:?}");
}

#[test]
fn a_simulator_needs_an_instance() {
    let (config, _) = accepted(&[
        ("VENI_PROVIDER", "sim:/run/sim.sock"),
        ("VENI_SIM_INSTANCE", "i-0123456789abcdef0"),
    ]);
    let instance = "i-0123456789abcdef0".parse().unwrap();
    assert_eq!(config.provider, Provider::Sim { socket: "/run/sim.sock".to_owned(), instance });
}

#[test]
fn the_rest_of_the_environment_and_the_aws_chart_pass_in_silence() {
    let (config, warnings) = accepted(&[
        ("PATH", "/usr/bin"),
        ("KUBERNETES_SERVICE_HOST", "10.100.0.1"),
        ("AWS_REGION", "eu-central-1"),
        ("CLUSTER_ENDPOINT", "https://x"),
        // values of the chart aws-vpc-cni 1.23.1
        ("ADDITIONAL_ENI_TAGS", "{}"),
        ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "true"),
        ("AWS_VPC_ENI_MTU", "9001"),
        ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "false"),
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "false"),
        ("AWS_VPC_K8S_CNI_LOG_FILE", "/host/var/log/aws-routed-eni/ipamd.log"),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "prng"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "eni"),
        ("DISABLE_METRICS", "false"),
        ("ENABLE_IPv4", "true"),
        ("ENABLE_IPv6", "false"),
        ("ENABLE_POD_ENI", "false"),
        ("ENABLE_PREFIX_DELEGATION", "false"),
        ("NETWORK_POLICY_ENFORCING_MODE", "standard"),
        ("WARM_ENI_TARGET", "1"),
        ("WARM_PREFIX_TARGET", "1"),
    ]);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.targets.warm_prefix, 1);
}

#[test]
fn a_command_line_is_read_strictly() {
    let read = |vars: &[(&str, &str)]| {
        PoolSettings::from_vars(vars.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())))
    };
    let (settings, _) =
        read(&[("ENABLE_PREFIX_DELEGATION", "true"), ("ENABLE_POD_ENI", "1")]).unwrap();
    assert!(settings.targets.prefix_delegation && settings.pod_eni);
    assert_eq!(read(&[("WARM_ENI_TARGET", "-3")]).unwrap().0.targets.warm_eni, 1);
    for (name, value) in [
        ("WARM_IP_TARGET", "abc"),
        ("ENABLE_PREFIX_DELEGATION", "maybe"),
        ("WARM_IP", "5"),
        ("FOO", "1"),
    ] {
        let errors = read(&[(name, value)]).expect_err(name);
        assert_eq!(errors[0].variable, name);
    }
}

#[test]
fn policy_settings_are_words_and_ranges() {
    let read = |pairs: &[(&str, &str)]| {
        let vars = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::from_vars(vars).map(|(config, _)| config.policy)
    };
    let policy = read(&[
        ("VENI_MANIFEST_DIR", "/etc/veni/manifests"),
        ("VENI_INSTANCE_METADATA", "closed"),
        ("VENI_ESTABLISHED_FLOWS", "keep"),
        ("VENI_SERVICE_CIDRS", "10.100.0.1/16, fd12::/108"),
        ("VENI_NODE_PORT_RANGE", "20000-20100"),
        ("NETWORK_POLICY_ENFORCING_MODE", "strict"),
    ])
    .unwrap();
    assert_eq!((policy.node_ports.first(), policy.node_ports.last()), (20_000, 20_100));
    let default = read(&[]).unwrap().node_ports;
    assert_eq!((default.first(), default.last()), (30_000, 32_767));
    assert_eq!(policy.node_ports.to_string(), "20000-20100");
    assert_eq!(policy.enforcing, Enforcing::Strict);
    for (mode, expect) in [("none", Enforcing::None), ("standard", Enforcing::Standard)] {
        assert_eq!(read(&[("NETWORK_POLICY_ENFORCING_MODE", mode)]).unwrap().enforcing, expect);
    }
    assert_eq!(policy.manifest_dir.as_deref(), Some("/etc/veni/manifests"));
    assert_eq!(policy.metadata, MetadataAccess::Closed);
    assert_eq!(policy.established, Established::Keep);
    assert_eq!(policy.service_v4, Some("10.100.0.0/16".parse().unwrap()));
    assert_eq!(policy.service_v6, Some("fd12::/108".parse().unwrap()));
    for (name, value) in [
        ("VENI_INSTANCE_METADATA", "yes"),
        ("VENI_ESTABLISHED_FLOWS", "drop"),
        ("VENI_FLOW_EVENTS", "some"),
        ("VENI_SERVICE_CIDRS", "10.1.0.0/16,10.2.0.0/16"),
        ("VENI_NODE_PORT_RANGE", "30000"),
        ("VENI_NODE_PORT_RANGE", "0-32767"),
        ("VENI_NODE_PORT_RANGE", "32767-30000"),
        ("VENI_NODE_PORT_RANGE", "30000-65536"),
        ("VENI_MANIFEST_DIR", "manifests"),
        ("VENI_POLICY_WAIT_MILLIS", "60001"),
    ] {
        let errors = read(&[(name, value)]).unwrap_err();
        assert!(errors.iter().any(|e| e.to_string().contains(name)), "{name}={value}: {errors:?}");
    }
}

#[test]
fn custom_networking_takes_its_keys_and_says_when_it_can_get_nowhere() {
    const CUSTOM: (&str, &str) = ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true");
    const FOLDER: (&str, &str) = ("VENI_MANIFEST_DIR", "/m");
    let keys = |config: &Config| {
        let Config { eni_config_annotation, eni_config_label, .. } = config;
        (eni_config_annotation.clone(), eni_config_label.clone())
    };
    let (config, warnings) = accepted(&[CUSTOM, FOLDER]);
    assert!(config.custom_networking && warnings.is_empty(), "{warnings:?}");
    assert_eq!(keys(&config), (ENI_CONFIG_KEY.to_owned(), ENI_CONFIG_KEY.to_owned()));
    let named = [("ENI_CONFIG_ANNOTATION_DEF", "a"), ("ENI_CONFIG_LABEL_DEF", "b")];
    let (config, _) = accepted(&[CUSTOM, FOLDER, named[0], named[1]]);
    assert_eq!(keys(&config), ("a".to_owned(), "b".to_owned()));
    for vars in [&[CUSTOM][..], &[CUSTOM, FOLDER, ("MAX_ENI", "1")]] {
        assert_eq!(accepted(vars).1, [CUSTOM.0], "{vars:?}");
    }
    assert!(!accepted(&[("ENI_CONFIG_LABEL_DEF", "b")]).0.custom_networking);
}
