//! `venictl pool show` and `venictl pool explain`.

use std::collections::BTreeMap;

use serde::Serialize;
use veni_core::wire::inspect::{Address, Eni, Overrides, PlanView, Pool, View};

use crate::{
    Report,
    cli::Format,
    problem::{self, Trouble},
    text,
};

/// What `pool show -o json` prints (docs/venictl.md).
#[derive(Debug, Serialize)]
struct Shown<'a> {
    pool: &'a Pool,
    enis: &'a [Eni],
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<&'a [Address]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overrides: Option<&'a Overrides>,
}

/// What `pool explain -o json` prints (docs/venictl.md).
#[derive(Debug, Serialize)]
struct Explained<'a> {
    pool: &'a Pool,
    plan: &'a PlanView,
    problems: &'a [Trouble],
    settings: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overrides: Option<&'a Overrides>,
}

pub(crate) fn show(view: &View, addresses: bool, format: Format) -> anyhow::Result<Report> {
    let shown = Shown {
        pool: &view.pool,
        enis: &view.enis,
        addresses: addresses.then_some(&view.addresses),
        overrides: view.overrides.as_ref(),
    };
    Report::of(format, &shown, || {
        let mut out = text::bar(&view.pool, &view.node) + "\n" + &text::enis(&view.enis);
        out += &view.overrides.as_ref().map(of_object).unwrap_or_default();
        if addresses {
            out += "\n";
            out += &owners(&view.addresses);
        }
        out
    })
}

/// Whose settings are in force where they are not the daemon's variables.
fn of_object(overrides: &Overrides) -> String {
    let Overrides { object, generation, variables } = overrides;
    format!("Settings of {object}, generation {generation}: {}\n", variables.join(", "))
}

/// Every address with its state and owner.
fn owners(addresses: &[Address]) -> String {
    let dash = || "-".to_owned();
    let rows = addresses.iter().map(|address| {
        let state = match address.cooling_millis {
            Some(millis) => format!("{} ({} s left)", address.state, millis.div_ceil(1000)),
            None => address.state.clone(),
        };
        let pod = address.pod.as_ref().filter(|pod| !pod.name.is_empty());
        let container =
            address.attachment.as_ref().map(|attachment| attachment.container_id.as_str());
        vec![
            address.address.to_string(),
            address.eni.to_string(),
            state,
            pod.map_or_else(dash, |pod| format!("{}/{}", pod.namespace, pod.name)),
            container.map_or_else(dash, |id| id.chars().take(13).collect()),
            address.host_ifname.as_ref().map_or_else(dash, ToString::to_string),
        ]
    });
    text::table(&["ADDRESS", "ENI", "STATE", "POD", "CONTAINER", "LINK"], 0..0, rows.collect())
}

pub(crate) fn explain(view: &View, format: Format) -> anyhow::Result<Report> {
    let View { pool, plan, settings, .. } = view;
    let overrides = view.overrides.as_ref();
    let problems = &problem::of_node(view);
    Report::of(format, &Explained { pool, plan, problems, settings, overrides }, || {
        let lines: Vec<_> = problems.iter().map(Trouble::lines).collect();
        let wants = match plan.wanted {
            0 => "nothing: the pool is as large as it should be\n".to_owned(),
            n => text::counted(n, "more address") + "\n",
        };
        let mut out = format!("Wants {wants}");
        out += &text::section("Because", &because(plan, problems), "no reason was given");
        out += &text::section("Does now", &plan.running, "nothing");
        out += &text::section("Waits for", &plan.waiting_for, "nothing");
        out += &text::section("Wrong", &lines, "nothing");
        out += &text::section("Settings", &targets(settings), "unknown (an older ipamd)");
        out += &overrides.map(of_object).unwrap_or_default();
        out
    })
}

/// Why that is wanted, or where steps that would bring it are held back, by what.
fn because(plan: &PlanView, problems: &[Trouble]) -> Vec<String> {
    if !plan.reasons.is_empty() || plan.wanted == 0 {
        return plan.reasons.clone();
    }
    if !plan.waiting_for.is_empty() {
        return plan.waiting_for.clone();
    }
    problems.iter().map(|problem| format!("{}: {}", problem.kind, problem.message)).collect()
}

/// The settings that decide the pool's size.
fn targets(settings: &BTreeMap<String, String>) -> Vec<String> {
    let names = [
        "WARM_ENI_TARGET",
        "WARM_IP_TARGET",
        "MINIMUM_IP_TARGET",
        "MAX_ENI",
        "VENI_MAX_PODS",
        "IP_COOLDOWN_PERIOD",
    ];
    let set = names
        .iter()
        .filter_map(|name| Some((name, settings.get(*name).filter(|value| !value.is_empty())?)));
    set.map(|(name, value)| format!("{name}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{busy, calm};

    fn json(report: &Report) -> serde_json::Value {
        serde_json::from_str(&report.text).unwrap()
    }

    #[test]
    fn the_pool_with_owners_for_people() {
        insta::assert_snapshot!(show(&busy(), true, Format::Human).unwrap().text);
    }

    #[test]
    fn addresses_are_in_the_document_only_when_asked_for() {
        assert!(json(&show(&busy(), false, Format::Json).unwrap()).get("addresses").is_none());
        insta::assert_json_snapshot!(json(&show(&busy(), true, Format::Json).unwrap()));
    }

    #[test]
    fn what_the_planner_wants_for_people() {
        insta::assert_snapshot!(explain(&busy(), Format::Human).unwrap().text);
    }

    #[test]
    fn a_pool_whose_steps_are_held_back_says_by_what() {
        let mut view = busy();
        view.plan.reasons.clear();
        let text = |view: &View| explain(view, Format::Human).unwrap().text;
        let held = text(&view);
        assert!(held.contains("Because\n  CreateNetworkInterface is throttled"), "{held}");
        view.plan.waiting_for.clear();
        let wrong = text(&view);
        assert!(wrong.contains("Because\n  throttled: EC2 throttles"), "{wrong}");
    }

    #[test]
    fn whose_settings_are_in_force_is_said_where_they_are_an_objects() {
        let mut view = calm();
        let text = |view: &View| {
            [show(view, false, Format::Human), explain(view, Format::Human)]
                .map(|it| it.unwrap().text)
        };
        assert!(text(&view).iter().all(|text| !text.contains("Settings of")));
        view.overrides = Some(Overrides {
            object: "NodeNetworkConfig large".to_owned(),
            generation: 4,
            variables: vec!["MAX_ENI".to_owned(), "WARM_IP_TARGET".to_owned()],
        });
        let said = "Settings of NodeNetworkConfig large, generation 4: MAX_ENI, WARM_IP_TARGET\n";
        assert!(text(&view).iter().all(|text| text.ends_with(said)), "{:?}", text(&view));
        let document = json(&show(&view, false, Format::Json).unwrap());
        assert_eq!(document["overrides"]["generation"], 4, "{document}");
    }

    #[test]
    fn a_pool_at_rest_wants_nothing() {
        let text = explain(&calm(), Format::Human).unwrap().text;
        assert!(text.starts_with("Wants nothing"), "{text}");
    }

    #[test]
    fn what_the_planner_wants_for_programs() {
        insta::assert_json_snapshot!(json(&explain(&busy(), Format::Json).unwrap()));
    }
}
