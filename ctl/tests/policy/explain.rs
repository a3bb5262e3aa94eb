//! `policy explain`.

use super::*;

#[test]
fn explain_tells_what_applies_and_what_it_is_compiled_to() {
    let policies = "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: admin}\n\
        spec: {tier: Admin, priority: 7, subject: {namespaces: {}}, \
        ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: c}}}}]}]}\n\
        ---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: y}\n\
        spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0/16]}}], \
        ports: [{port: 80, endPort: 90}]}]}\n";
    let manifests = two_pods() + &pod("x/c", "10.0.0.3", NO_PORT) + DENY_TO_B + policies;
    let dir = folder(&[("m.yaml", &manifests)]);
    let output = venictl(dir.path(), &["explain", "y/b", "-f", "m.yaml"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "\
y/b  10.0.0.2
  labels: pod=b
  labels of its namespace: kubernetes.io/metadata.name=y

Egress: what it may connect to (not isolated)
  no policy selects it

  PEER           PORTS  VERDICT  DECIDED BY
  everyone else  all    allow    allowed by default

Ingress: who may connect to it (isolated by a NetworkPolicy)
  ClusterNetworkPolicy admin (Admin, priority 7): 1 rule
  NetworkPolicy y/deny: 0 rules
  NetworkPolicy y/web: 1 rule

  PEER                                     PORTS      VERDICT  DECIDED BY
  10.0.0.0/8 (except 10.9.0.0/16) x/a y/b  TCP 80-90  allow    NetworkPolicy y/web rule 0
                                           all        deny     NetworkPolicy y/deny, no rule of which allows it
  x/c                                      all        deny     ClusterNetworkPolicy admin (Admin) rule 0
  everyone else                            all        deny     NetworkPolicy y/deny, no rule of which allows it
"
    );
    for (pod, words) in [("x/late", "no address yet"), ("x/host", "on its node's network")] {
        let more = self::pod("x/late", "''", NO_PORT)
            + &self::pod("x/host", "10.0.0.9", "{hostNetwork: true}");
        let dir = folder(&[("m.yaml", &more)]);
        let output = venictl(dir.path(), &["explain", pod, "-f", "m.yaml"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(words), "{text}");
    }
}

#[test]
fn explain_names_the_groups_rule_that_opens_a_pod() {
    let with_groups = "---\napiVersion: vpcresources.k8s.aws/v1beta1\nkind: SecurityGroupPolicy\nmetadata: {name: g, namespace: y}\n\
        spec: {podSelector: {}, securityGroups: {groupIds: [sg-0123456789abcdef0]}}\n";
    let rule = |id: &str, port: u16, cidr: &str| {
        json!({"SecurityGroupRuleId": id, "GroupId": "sg-0123456789abcdef0", "IsEgress": false,
            "IpProtocol": "tcp", "FromPort": port, "ToPort": port, "CidrIpv4": cidr})
    };
    let rules = json!({"SecurityGroupRules": [
        rule("sgr-1", 8080, "10.0.0.0/16"), rule("sgr-2", 8081, "10.0.0.0/16"), rule("sgr-3", 9, "192.0.2.0/24"),
    ]});
    let many: String = (10..16)
        .map(|n| pod(&format!("x/a-pod-with-a-long-name-{n}"), &format!("10.0.0.{n}"), NO_PORT))
        .collect();
    let manifests = two_pods() + &many + with_groups;
    let dir = folder(&[("m.yaml", &manifests), ("sg.json", &rules.to_string())]);
    let args = ["explain", "y/b", "-f", "m.yaml", "--security-groups", "sg.json"];
    let output = venictl(dir.path(), &args);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("who may connect to it (restricted by security groups)"), "{text}");
    for (port, id) in [("TCP 8080", "sgr-1"), ("TCP 8081", "sgr-2"), ("TCP 9", "sgr-3")] {
        let of_port = text.lines().find(|line| line.contains(&format!("{port} ")));
        let of_port = of_port.unwrap_or_else(|| panic!("{port} is missing: {text}"));
        assert!(of_port.contains("allow") && of_port.contains(id), "{of_port}\n{text}");
    }
    assert!(!text.contains("allowed by default"), "{text}");
    let ports_at = text.lines().filter_map(|line| line.find(" PORTS "));
    assert!(ports_at.into_iter().all(|at| at < 66), "{text}");
}
