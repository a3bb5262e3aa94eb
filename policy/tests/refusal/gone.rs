//! What came and went leaves nothing behind.

use super::*;

#[test]
fn namespaces_that_came_and_went_leave_nothing_behind() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    let (mut most, mut rules) = (0, 0);
    for round in 0..1_000_u32 {
        let objects: Vec<Value> = (0..100)
            .flat_map(|number| {
                let namespace = format!("ci-{round}-{number}");
                let object = |api: &str, kind: &str, spec: Value| {
                    json!({"apiVersion": api, "kind": kind, "spec": spec,
                        "metadata": {"namespace": namespace, "name": "o"},
                        "status": {"podIP": format!("10.0.0.{number}")}})
                };
                let groups = json!({"podSelector": {}, "securityGroups": {"groupIds": ["sg-1"]}});
                let group_policy = ("vpcresources.k8s.aws/v1beta1", "SecurityGroupPolicy", groups);
                let last = match number % 10 {
                    0 => ("networking.k8s.io/v1", "NetworkPolicy", json!({"podSelector": {}})),
                    _ => group_policy,
                };
                [
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
                    object("v1", "Pod", json!({})),
                    object(last.0, last.1, last.2),
                ]
            })
            .collect();
        let mut objects: Vec<Object> = objects.iter().map(parsed).collect();
        let mut keys: Vec<Key> = objects.iter().map(Object::key).collect();
        // A namespace is not always the last of its objects to go, nor the first to come.
        let turn = round as usize % objects.len();
        objects.rotate_left(turn);
        keys.rotate_right(turn);
        objects.into_iter().for_each(|object| index.apply(object));
        change(&mut index, &mut tables);
        most = most.max(index.sizes().namespaces);
        rules = rules.max(index.rules().len());
        keys.iter().for_each(|key| index.delete(key));
        change(&mut index, &mut tables);
    }
    let sizes = index.sizes();
    assert_eq!((sizes.pods, sizes.local_pods, sizes.identities, sizes.addresses), (0, 0, 0, 0));
    assert!(most <= 100 && sizes.namespaces <= 100, "{most} places for namespaces");
    assert!(rules < 4096, "{rules} rules");
    assert!(tables.endpoints.values().all(|sets| *sets == PodSets::CLOSED));
}

#[test]
fn rules_that_came_and_went_leave_neither_memory_nor_numbers_behind() {
    let mut index = Index::new(Scope::All);
    let mut tables = Applied::default();
    index.apply(parsed(&pod(1)));
    let (mut most, mut last) = (0, 0);
    for round in 0..100_000_u32 {
        let name = |round: u32| format!("policy-{round}");
        index.apply(parsed(&blocks(&name(round), 1, 1)));
        if round > 0 {
            index.delete(&Key::new(Kind::NetworkPolicy, "x", name(round - 1)));
        }
        change(&mut index, &mut tables);
        most = most.max(index.rules().len());
        let decision = |profile: &Profile| {
            profile
                .ranges
                .iter()
                .map(|range| range.decision)
                .chain([profile.otherwise])
                .map(Decision::rule)
                .max()
        };
        let set = tables.endpoints[&PodKey::new("x", "p1")].ingress;
        let profiles =
            tables.verdicts.iter().filter(|(key, _)| key.set == set).map(|(_, profile)| profile);
        for rule in profiles.filter_map(|profile| decision(&tables.profiles[profile])) {
            last = last.max(rule);
            let rule = index.rules().get(rule).expect("a number in the tables is a rule's");
            assert_eq!(rule.name, name(round));
        }
    }
    assert!(most < 4096 && last < 4096, "{most} rules, number {last}");
}
