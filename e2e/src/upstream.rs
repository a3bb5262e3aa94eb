//! Kubernetes' own end-to-end tests (`e2e.test`), unmodified.

use std::{fs, process::Command, time::Duration};

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
];
const PAUSE: &[&str] = &["registry.k8s.io/pause:3.10.1"];

/// One spec's end.
struct Spec {
    name: String,
    state: String,
    took: Duration,
    failure: String,
}

/// Runs the specs whose names match `focus` and not `skip`, both regular expressions.
pub(crate) fn run(
    stage: &Stage,
    focus: &str,
    skip: Option<&str>,
    table: &mut Table,
) -> anyhow::Result<()> {
    step(format!("Kubernetes' own specs: {focus}"));
    for node in &stage.cluster.nodes {
        node.tag(image::AGNHOST, AGNHOST)?;
        node.tag(image::PAUSE, PAUSE)?;
    }
    let programs = Programs::find()?;
    let report = stage.lab.dir.join("upstream.json");
    let log = std::env::temp_dir().join(format!("veni-e2e-{}.upstream.log", stage.lab.name));
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
