use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn keys(manifests: &Manifests) -> Vec<String> {
    manifests.objects.iter().map(|object| object.key().to_string()).collect()
}

/// What is in a file `m.yaml`, and what is wrong with it, without the folder's name.
fn read_text(text: &str) -> (Vec<String>, Vec<String>) {
    let dir = folder(&[("m.yaml", text)]);
    let manifests = read(&dir.path().join("m.yaml")).unwrap();
    let prefix = format!("{}/", dir.path().display());
    let wrong = manifests.diagnostics.iter();
    (keys(&manifests), wrong.map(|d| d.to_string().replace(&prefix, "")).collect())
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\n";

#[test]
fn documents_and_lists_are_objects() {
    for (text, expect) in [
        (POD, &["Pod x/a"][..]),
        ("", &[]),
        ("---\n---\n", &[]),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n", &[]),
        (
            "{kind: Namespace, apiVersion: v1, metadata: {name: x}}\n---\n# no\n---\n{kind: Namespace, apiVersion: v1, metadata: {name: y}}",
            &["Namespace x", "Namespace y"],
        ),
        (
            "kind: List\napiVersion: v1\nitems:\n- {kind: Pod, apiVersion: v1, metadata: {name: b}}\n- {kind: Namespace, apiVersion: v1, metadata: {name: x}}\n",
            &["Pod default/b", "Namespace x"],
        ),
        ("kind: PodList\napiVersion: v1\nitems:\n- metadata: {name: b}\n", &["Pod default/b"]),
        ("kind: PodList\napiVersion: v1\nitems: null\n", &[]),
        (
            r#"{"kind":"List","apiVersion":"v1","items":[{"kind":"List","apiVersion":"v1","items":[]}]}"#,
            &[],
        ),
    ] {
        let (objects, wrong) = read_text(text);
        assert_eq!(
            (objects, wrong),
            (expect.iter().map(ToString::to_string).collect(), vec![]),
            "{text}"
        );
    }
}

#[test]
fn what_is_wrong_names_file_line_object_and_field() {
    let bad_port = format!("{POD}spec:\n  containers:\n  - ports:\n    - containerPort: eighty\n");
    let (objects, wrong) = read_text(&bad_port);
    assert_eq!(objects, ["Pod x/a"], "without its port");
    let starts = "m.yaml:7: Pod x/a: spec.containers[0].ports[0].containerPort: ";
    assert!(wrong[0].starts_with(starts), "{wrong:?}");
    for (text, starts) in [
        ("- a\n- b\n", "m.yaml:1: is no Kubernetes object"),
        ("hello", "m.yaml:1: is no Kubernetes object"),
        ("a: 1\n---\nmetadata: {name: x}", "m.yaml:1: is no Kubernetes object"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: x",
            "m.yaml:4: Pod x/: metadata.name: ",
        ),
        (
            "kind: PodList\napiVersion: v1\nitems:\n- metadata: {name: 5}\n",
            "m.yaml:4: Pod default/: metadata.name",
        ),
    ] {
        let (objects, wrong) = read_text(text);
        assert_eq!(objects, Vec::<String>::new(), "{text}");
        assert!(wrong[0].starts_with(starts), "{text}: {wrong:?}");
    }
}

#[test]
fn an_object_with_a_flaw_harms_no_other() {
    let text = format!(
        "kind: Node\napiVersion: v1\nmetadata: {{name: n, labels: 7}}\n---\n{}",
        POD.replace("name: a", "name: b")
    );
    let (objects, wrong) = read_text(&text);
    assert_eq!((objects, wrong.len()), (vec!["Pod x/b".to_owned()], 1), "{wrong:?}");
}

#[test]
fn a_folder_is_its_manifests_by_name() {
    let pod = |name: &str| POD.replace("name: a", &format!("name: {name}"));
    let dir = folder(&[
        ("b.yml", &pod("b")),
        ("a.yaml", &pod("a")),
        ("c.json", r#"{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"n"}}"#),
        ("README.md", "# not: [yaml"),
        (".hidden.yaml", "["),
        ("below/d.yaml", "["),
    ]);
    std::os::unix::fs::symlink(dir.path().join("nowhere"), dir.path().join("dangling.yaml"))
        .unwrap();
    let manifests = read(dir.path()).unwrap();
    assert_eq!(keys(&manifests), ["Pod x/a", "Pod x/b", "Namespace n"]);
    let [dangling] = &manifests.diagnostics[..] else { panic!("{:?}", manifests.diagnostics) };
    let said = dangling.to_string();
    assert!(
        said.ends_with("dangling.yaml: is a symbolic link to what is not there; passed over"),
        "{said}"
    );
}

#[test]
fn a_policy_that_is_not_ours_is_no_policy_and_is_said() {
    for (version, kind, words) in [
        (
            "cilium.io/v2",
            "CiliumNetworkPolicy",
            "the kind CiliumNetworkPolicy of apiVersion \"cilium.io/v2\"",
        ),
        (
            "cilium.io/v2",
            "CiliumClusterwideNetworkPolicy",
            "the kind CiliumClusterwideNetworkPolicy",
        ),
        (
            "policy.networking.k8s.io/v1alpha1",
            "AdminNetworkPolicy",
            "\"policy.networking.k8s.io/v1alpha1\"",
        ),
        (
            "policy.networking.k8s.io/v1alpha1",
            "BaselineAdminNetworkPolicy",
            "BaselineAdminNetworkPolicy",
        ),
        ("projectcalico.org/v3", "GlobalNetworkPolicy", "\"projectcalico.org/v3\""),
        (
            "crd.projectcalico.org/v1",
            "NetworkPolicy",
            "\"crd.projectcalico.org/v1\" is not \"networking.k8s.io/v1\"",
        ),
        ("extensions/v1beta1", "NetworkPolicy", "\"extensions/v1beta1\""),
    ] {
        let text =
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, namespace: x}}\n");
        let (objects, wrong) = read_text(&text);
        assert_eq!((objects.len(), wrong.len()), (0, 1), "{wrong:?}");
        assert!(wrong[0].contains(&format!(": {kind} x/p: ")), "{wrong:?}");
        assert!(wrong[0].contains(words) && wrong[0].contains("does not enforce"), "{wrong:?}");
    }
}

#[test]
fn a_kind_that_its_group_does_not_have_is_said() {
    for (version, kind, knows) in [
        ("networking.k8s.io/v1", "NetworkPolcy", Some("NetworkPolicy")),
        ("vpcresources.k8s.aws/v1beta1", "SecurityGroupPolicies", Some("SecurityGroupPolicy")),
        ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolcy", Some("ClusterNetworkPolicy")),
        ("discovery.k8s.io/v1", "EndpointSlices", Some("EndpointSlice")),
        ("v1", "NameSpace", Some("Namespace, Node, Pod, Service")),
        ("networking.k8s.io/v1", "Ingress", None),
        ("networking.k8s.io/v1beta1", "IngressClass", None),
        ("vpcresources.k8s.aws/v1alpha1", "CNINode", None),
        ("v1", "ConfigMap", None),
        ("serving.knative.dev/v1", "Service", None),
        ("apps/v1", "Deploymnt", None),
    ] {
        let text =
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, namespace: x}}\n");
        let (objects, wrong) = read_text(&text);
        assert_eq!((objects.len(), wrong.len()), (0, usize::from(knows.is_some())), "{wrong:?}");
        if let Some(knows) = knows {
            let expect = format!(
                "m.yaml:1: {kind} x/p: apiVersion \"{version}\" has no kind {kind}: left out (veni reads {knows} of it)"
            );
            assert_eq!(wrong, [expect]);
        }
    }
}

#[test]
fn every_example_of_the_documentation_is_in_force() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let manifests = read(&examples).unwrap();
    assert_eq!(manifests.diagnostics, []);
    let expect = [
        "ClusterNetworkPolicy no-guests-in-the-shop",
        "NetworkPolicy shop/db-from-web",
        "SecurityGroupPolicy shop/api-in-sg-api",
    ];
    assert_eq!(keys(&manifests), expect);
}

#[test]
fn a_folder_without_a_manifest_says_so() {
    let manifests = read(folder(&[("README.md", "a")]).path()).unwrap();
    assert!(manifests.objects.is_empty());
    assert!(manifests.diagnostics[0].to_string().contains("holds no manifest"));
}

#[test]
fn of_two_definitions_the_first_is_in_force() {
    let labelled = POD.replace("name: a,", "name: a, labels: {v: two},");
    let dir = folder(&[("2.yaml", &labelled), ("1.yaml", &format!("---\n{POD}---\n{labelled}"))]);
    let manifests = read(dir.path()).unwrap();
    let [Object::Pod(pod)] = &manifests.objects[..] else { panic!("{manifests:?}") };
    assert!(pod.labels.is_empty());
    let places: Vec<_> = manifests
        .diagnostics
        .iter()
        .map(|d| (d.file.rsplit('/').next().unwrap(), d.document, d.object.as_str()))
        .collect();
    assert_eq!(places, [("1.yaml", 2, "Pod x/a"), ("2.yaml", 1, "Pod x/a")]);
    for diagnostic in &manifests.diagnostics {
        let first = diagnostic.shadowed_by.as_deref().unwrap();
        assert!(first.ends_with("/1.yaml"), "{first}");
        assert!(diagnostic.message.contains(first), "{diagnostic}");
    }
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let dir = folder(&[("bad.yaml", "a: [\n"), ("latin.yaml", "")]);
    fs::write(dir.path().join("latin.yaml"), b"a: \xe4").unwrap();
    for (name, words) in [
        ("bad.yaml", "bad.yaml:"),
        ("latin.yaml", "not UTF-8"),
        ("missing.yaml", "cannot read"),
        ("", "bad.yaml:"),
    ] {
        let error = read(&dir.path().join(name)).unwrap_err().to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
}

#[test]
fn a_huge_file_is_refused_before_it_is_held() {
    let dir = folder(&[]);
    let path = dir.path().join("sparse.yaml");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(read(&path), Err(ReadError::TooLarge { .. })));
}
