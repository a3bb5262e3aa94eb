//! Kubernetes' own end-to-end tests (`e2e.test`) and network-policy-api's conformance tests, unmodified.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use veni_lab::kubernetes::{Programs, image};

use crate::{
    cluster::Stage,
    print::{Table, note, seconds, step},
};

/// What the specs call the images, which no registry is asked for.
const AGNHOST: &[&str] = &[
    "registry.k8s.io/e2e-test-images/agnhost:2.59",
    "registry.k8s.io/e2e-test-images/jessie-dnsutils:1.7",
    "registry.k8s.io/e2e-test-images/agnhost:2.45",
];
const PAUSE: &[&str] = &["registry.k8s.io/pause:3.10.1"];

/// One spec's end.
struct Spec {
    name: String,
    state: String,
    took: Duration,
    failure: String,
}

/// What `make e2e` runs of the specs: of each kind of policy one, and DNS, Services and host ports.
pub(crate) const SAMPLE: &str = "NetworkPolicy between server and client should (\
    support a 'default-deny-ingress' policy|\
    enforce policy to allow traffic only from a different namespace, based on NamespaceSelector|\
    allow egress access on one named port|\
    enforce except clause while egress access to server in CIDR block|\
    stop enforcing policies after they are deleted)|\
    Services should serve a basic endpoint from pods|\
    should provide DNS for services|\
    HostPort validates that there is no conflict";
/// And of network-policy-api's tests.
pub(crate) const POLICY_SAMPLE: &str =
    "CNPAdminTierIngressTCP|CNPAdminTierPriorityField|CNPBaselineTierEgressUDP";
/// What needs SCTP in the kernel, in e2e.test and in network-policy-api's tests.
const SCTP: &str = "SCTP";
// A level of names a slash; go's -test.skip takes alternatives of such paths.
const POLICY_SCTP: &str = "//for_SCTP_protocol|//across_different_protocols|//egress-cidr-peer";
const NO_SCTP: &str =
    "this kernel has no SCTP (CONFIG_IP_SCTP), which client and server of the test need";

/// Runs the specs whose names match `focus` and not `skip`, both regular expressions.
pub(crate) fn run(
    stage: &Stage,
    focus: &str,
    skip: Option<&str>,
    table: &mut Table,
) -> anyhow::Result<()> {
    step(format!("Kubernetes' own specs: {focus}"));
    name_images(stage)?;
    let without_sctp = (!has_sctp()).then(|| table.not_run(SCTP, NO_SCTP));
    let skip = [skip, without_sctp.map(|()| SCTP)].into_iter().flatten().collect::<Vec<_>>();
    let skip = (!skip.is_empty()).then(|| skip.join("|"));
    let programs = Programs::find()?;
    let report = stage.lab.dir.join("upstream.json");
    let log = log(stage, "upstream");
    let mut command = Command::new(programs.e2e_test()?);
    command
        .arg(format!("--kubeconfig={}", stage.cluster.control.kubeconfig("admin").display()))
        .arg(format!("--kubectl-path={}", programs.kubernetes("kubectl").display()))
        .args(["--provider=local", "--num-nodes=2", "--dump-logs-on-failure=false"])
        .args(["--ginkgo.no-color", "--ginkgo.v", &format!("--ginkgo.focus={focus}")])
        .args(skip.map(|skip| format!("--ginkgo.skip={skip}")))
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .stdout(fs::File::create(&log)?)
        .stderr(fs::File::options().append(true).open(&log)?);
    note(format!("its log: {}", log.display()));
    let host = stage.cluster.control.host();
    let status = host.run(|| {
        let io = |source| veni_lab::Error::Io { what: "cannot run e2e.test".to_owned(), source };
        command.status().map_err(io)
    })?;
    let specs = read(&report).with_context(|| format!("e2e.test ended with {status}"))?;
    let ran: Vec<_> = specs.iter().filter(|spec| spec.state != "skipped").collect();
    ensure!(!ran.is_empty(), "no spec matches {focus}");
    for spec in ran {
        let outcome = match spec.state.as_str() {
            "passed" => Ok(format!("passed after {}", seconds(spec.took))),
            state => Err(anyhow::anyhow!("{state}: {}", spec.failure)),
        };
        table.record(&spec.name, outcome);
    }
    Ok(())
}

fn name_images(stage: &Stage) -> anyhow::Result<()> {
    for node in &stage.cluster.nodes {
        node.tag(image::AGNHOST, AGNHOST)?;
        node.tag(image::PAUSE, PAUSE)?;
    }
    Ok(())
}

fn log(stage: &Stage, of: &str) -> PathBuf {
    std::env::temp_dir().join(format!("veni-e2e-{}.{of}.log", stage.lab.name))
}

fn has_sctp() -> bool {
    let protocols = fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    protocols.lines().any(|line| line.starts_with("SCTP"))
}

/// network-policy-api's profile for ClusterNetworkPolicy with all of its features; of its tests those that match `only`.
pub(crate) fn policy_api(stage: &Stage, only: &str, table: &mut Table) -> anyhow::Result<()> {
    step("network-policy-api's conformance profile for ClusterNetworkPolicy");
    name_images(stage)?;
    let program = Programs::find()?.policy_conformance()?;
    let log = log(stage, "policy-api");
    note(format!("its log: {}", log.display()));
    let mut command = Command::new(program);
    command.env("KUBECONFIG", stage.cluster.control.kubeconfig("admin"));
    command.args([
        "-test.v",
        "-test.timeout=40m",
        &format!("-test.run=^TestConformanceProfiles$/({only})"),
    ]);
    if !has_sctp() {
        table.not_run(POLICY_SCTP, NO_SCTP);
        command.arg(format!("-test.skip={POLICY_SCTP}"));
    }
    command
        .args(["--conformance-profiles=ClusterNetworkPolicy", "--all-features"])
        .args([
            "--organization=veni-net",
            "--project=veni",
            "--url=https://github.com/veni-net/veni",
        ])
        .args(["--version=main", "--contact=veni-net", "--additional-info=make e2e-upstream"])
        .stdout(fs::File::create(&log)?)
        .stderr(fs::File::options().append(true).open(&log)?);
    let host = stage.cluster.control.host();
    let status = host.run(|| {
        let io =
            |source| veni_lab::Error::Io { what: "cannot run conformance.test".to_owned(), source };
        command.status().map_err(io)
    })?;
    let text = fs::read_to_string(&log)?;
    let mut count = 0;
    // "        --- PASS: TestConformanceProfiles/TEST/SUBTEST (1.00s)"
    for line in text.lines().filter_map(|line| line.trim_start().strip_prefix("--- ")) {
        let Some((verdict, name)) = line.split_once(": ") else { continue };
        if name.matches('/').count() != 2 {
            continue;
        }
        count += 1;
        let outcome = match verdict {
            "PASS" => Ok("passed".to_owned()),
            verdict => Err(anyhow::anyhow!("{verdict}: see {}", log.display())),
        };
        table.record(name.trim_start_matches("TestConformanceProfiles/"), outcome);
    }
    ensure!(count > 0, "conformance.test ended with {status} and ran nothing");
    ensure!(status.success() || !table.all_held(), "conformance.test ended with {status}");
    Ok(())
}

/// ginkgo's report (`types.Report`): a suite's specs, those that were not chosen too.
fn read(report: &std::path::Path) -> anyhow::Result<Vec<Spec>> {
    let text = fs::read(report).context("it wrote no report")?;
    let report: Value = serde_json::from_slice(&text)?;
    let Some(specs) = report[0]["SpecReports"].as_array() else { bail!("an empty report") };
    let of_specs = specs.iter().filter(|spec| spec["LeafNodeType"] == "It");
    Ok(of_specs
        .map(|spec| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let parts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
            let mut name: Vec<_> = parts.map(text).collect();
            name.push(text(&spec["LeafNodeText"]));
            Spec {
                name: name.join(" "),
                state: text(&spec["State"]),
                took: Duration::from_nanos(spec["RunTime"].as_u64().unwrap_or_default()),
                failure: text(&spec["Failure"]["Message"]).replace('\n', " "),
            }
        })
        .collect())
}
