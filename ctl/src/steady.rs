//! `venictl pool steady`: what the AWS VPC CNI's formulas settle in.

use veni_core::{
    config::PoolSettings,
    id::InstanceType,
    limits::{self, InstanceLimits},
    steady::{Steady, steady},
};

use crate::{
    Report, Usage,
    cli::{Format, Question},
    text,
};

pub(crate) fn report(question: &Question, format: Format) -> anyhow::Result<Report> {
    let instance_type: InstanceType = question
        .instance_type
        .parse()
        .map_err(|error| Usage(vec![format!("--instance-type: {error}")]))?;
    let limits = limits::require(&instance_type).map_err(|error| Usage(vec![error.to_string()]))?;
    let (mut settings, warnings) = PoolSettings::from_vars(pairs(&question.env)?.into_iter())
        .map_err(|errors| Usage(errors.iter().map(ToString::to_string).collect()))?;
    settings.pod_eni &= limits::takes_trunk(&instance_type, &limits);
    let outcome = steady(&limits, &settings, question.pods, question.max_pods);
    let mut report = Report::of(format, &outcome.steady, || {
        human(&instance_type, &limits, &settings, question.pods, &outcome.steady)
    })?;
    let warnings = warnings.iter().map(|warning| format!("warning: {warning}"));
    report.asides =
        warnings.chain(outcome.notes.iter().map(|note| format!("note: {note}"))).collect();
    Ok(report)
}

/// `NAME=VALUE` each; the last of a name counts.
fn pairs(env: &[String]) -> Result<Vec<(String, String)>, Usage> {
    let wrong =
        |text: &String| format!("--env {text:?}: expected NAME=VALUE, e.g. WARM_IP_TARGET=5");
    let split = |text: &String| {
        text.split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
    };
    let bad: Vec<_> = env.iter().filter(|text| split(text).is_none()).map(wrong).collect();
    if bad.is_empty() { Ok(env.iter().filter_map(split).collect()) } else { Err(Usage(bad)) }
}

fn human(
    instance_type: &InstanceType,
    limits: &InstanceLimits,
    settings: &PoolSettings,
    pods: u32,
    steady: &Steady,
) -> String {
    let Steady { enis, addresses, prefixes, pending } = steady;
    let limit = limits.enis_for_pods();
    let most = settings.max_eni.map_or(limit, |most| most.min(limit));
    let mut out = format!(
        "{} on {instance_type} (up to {} with {} each)\n\n",
        text::counted(pods, "pod"),
        text::counted(most.saturating_sub(settings.pod_eni.into()), "ENI"),
        text::counted(limits.pod_addresses_per_eni(), "pod address"),
    );
    out += &format!("ENIs       {enis}\n");
    out += &format!(
        "Addresses  {}: {} with pods, {} warm\n",
        addresses.total, addresses.assigned, addresses.warm
    );
    if *prefixes > 0 {
        out += &format!("Prefixes   {prefixes}\n");
    }
    if *pending > 0 {
        let do_not = if *pending == 1 { "does not" } else { "do not" };
        out += &format!("Pending    {} {do_not} fit\n", text::counted(*pending, "pod"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(instance_type: &str, pods: u32, env: &[&str]) -> Question {
        Question {
            instance_type: instance_type.to_owned(),
            pods,
            env: env.iter().map(|e| (*e).to_owned()).collect(),
            max_pods: None,
        }
    }

    #[test]
    fn a_state_for_people() {
        let asked =
            question("m5.large", 40, &["ENABLE_PREFIX_DELEGATION=true", "MINIMUM_IP_TARGET=20"]);
        let report = report(&asked, Format::Human).unwrap();
        insta::assert_snapshot!(report.text + "---\n" + &report.asides.join("\n"));
    }

    #[test]
    fn the_header_knows_max_eni() {
        for (env, most) in [
            (&["MAX_ENI=2"][..], "(up to 2 ENIs with 9"),
            (&["MAX_ENI=1"], "(up to 1 ENI with 9"),
            (&["MAX_ENI=9"], "(up to 3 ENIs with 9"),
            (&["ENABLE_POD_ENI=true"], "(up to 2 ENIs with 9"),
        ] {
            let text = report(&question("m5.large", 1, env), Format::Human).unwrap().text;
            assert!(text.starts_with("1 pod on m5.large") && text.contains(most), "{text}");
        }
    }

    #[test]
    fn a_burstable_type_keeps_no_slot_for_a_trunk() {
        let enis = |instance_type| {
            let text =
                report(&question(instance_type, 100, &["ENABLE_POD_ENI=true"]), Format::Json)
                    .unwrap()
                    .text;
            serde_json::from_str::<serde_json::Value>(&text).unwrap()["enis"].clone()
        };
        assert_eq!((enis("m5.large"), enis("t3.large")), (2.into(), 3.into()));
    }
}
