//! `venictl status`: how this node is, to be read in five seconds.

use serde::Serialize;
use veni_core::wire::inspect::{
    Daemon, Eni, Node, PlanView, Pool, Problem, View, policy::Standing,
};

use crate::{Report, cli::Format, standing::Policy, text};

/// Drops that say nothing about the node: a pod has no IPv6 address yet, but its kernel solicits routers from a
/// link-local one all the same (RFC 4861 6.3.7). Left to `-o json`.
const EVERY_POD: &str = "ipv6";

/// In one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Pods get addresses, nothing is wrong.
    Ready,
    /// Pods get addresses, but something is wrong.
    Degraded,
    /// Pods wait for addresses.
    NotReady,
}

/// What `-o json` prints (docs/venictl.md).
#[derive(Debug, Serialize)]
struct Document<'a> {
    state: State,
    daemon: &'a Daemon,
    node: &'a Node,
    pool: &'a Pool,
    enis: &'a [Eni],
    plan: &'a PlanView,
    problems: &'a [Problem],
    drops: &'a std::collections::BTreeMap<String, u64>,
    repairs: &'a std::collections::BTreeMap<String, u64>,
    /// Absent where no policy is enforced, or it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a Standing>,
}

pub(crate) fn report(view: &View, policy: &Policy, format: Format) -> anyhow::Result<Report> {
    let document = Document {
        state: State::of(view),
        daemon: &view.daemon,
        node: &view.node,
        pool: &view.pool,
        enis: &view.enis,
        plan: &view.plan,
        problems: &view.problems,
        drops: &view.drops,
        repairs: &view.repairs,
        policy: policy.standing(),
    };
    Report::of(format, &document, || human(view, policy))
}

fn human(view: &View, policy: &Policy) -> String {
    let View { daemon, node, pool, enis, plan, .. } = view;
    let waits = plan
        .running
        .iter()
        .map(|step| format!("now: {step}"))
        .chain(plan.waiting_for.iter().cloned());
    let problems = view.problems.iter().map(|problem| {
        format!(
            "{}: {} (since {})",
            problem.kind,
            problem.message,
            text::duration(problem.age_secs)
        )
    });
    let mut out = format!(
        "{}\n{} {} {}   ipamd {} ({}), up {}\n\n",
        State::of(view).sentence(view),
        node.instance_id,
        node.instance_type,
        node.address,
        daemon.version,
        daemon.provider,
        text::duration(daemon.uptime_secs),
    );
    out += &format!("Pool: {} addresses on {} of {} ENIs\n", pool.total, enis.len(), node.max_enis);
    out += &text::bar(pool, node);
    out += "\n";
    out += &text::enis(enis);
    out += "\n";
    out += &policy.lines();
    out += "\n";
    out += &text::section("Waits for", &waits.collect::<Vec<_>>(), "nothing");
    out += &text::section("Wrong", &problems.collect::<Vec<_>>(), "nothing");
    for (heading, counts) in
        [("Dropped packets", &view.drops), ("Repaired since the start", &view.repairs)]
    {
        let counts: Vec<_> = counts
            .iter()
            .filter(|(what, n)| **n > 0 && what.as_str() != EVERY_POD)
            .map(|(what, n)| format!("{what} {n}"))
            .collect();
        if !counts.is_empty() {
            out += &format!("{heading}: {}\n", counts.join(", "));
        }
    }
    out
}

// === impl State ===

impl State {
    fn of(view: &View) -> Self {
        match (view.daemon.ready, view.problems.is_empty()) {
            (false, _) => Self::NotReady,
            (true, false) => Self::Degraded,
            (true, true) => Self::Ready,
        }
    }

    fn sentence(self, view: &View) -> String {
        let waiting = match view.pool.waiting {
            0 => String::new(),
            1 => "; 1 pod waits for an address".to_owned(),
            n => format!("; {n} pods wait for an address"),
        };
        let word = match self {
            Self::Ready => "READY".to_owned(),
            Self::Degraded if view.problems.len() == 1 => "READY, but 1 thing is wrong".to_owned(),
            Self::Degraded => format!("READY, but {} things are wrong", view.problems.len()),
            Self::NotReady => "NOT READY: no address can be given out".to_owned(),
        };
        word + &waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{busy, calm};

    #[test]
    fn a_busy_node_for_people() {
        insta::assert_snapshot!(report(&busy(), &Policy::Off, Format::Human).unwrap().text);
    }

    #[test]
    fn a_calm_node_for_people() {
        insta::assert_snapshot!(report(&calm(), &Policy::Off, Format::Human).unwrap().text);
    }

    #[test]
    fn what_every_pods_kernel_sends_is_no_news_but_in_the_document() {
        let mut view = calm();
        view.drops = [("ipv6".to_owned(), 7)].into();
        assert!(!report(&view, &Policy::Off, Format::Human).unwrap().text.contains("Dropped"));
        assert!(
            report(&view, &Policy::Off, Format::Json)
                .unwrap()
                .text
                .contains(r#""drops":{"ipv6":7}"#)
        );
        view.drops.insert("source_address".to_owned(), 2);
        let text = report(&view, &Policy::Off, Format::Human).unwrap().text;
        assert!(text.contains("Dropped packets: source_address 2\n"), "{text}");
    }

    #[test]
    fn a_node_without_addresses_for_people() {
        let mut view = calm();
        view.daemon.ready = false;
        view.enis.truncate(1);
        view.pool = Pool { waiting: 2, ..Pool::default() };
        insta::assert_snapshot!(report(&view, &Policy::Off, Format::Human).unwrap().text);
    }

    #[test]
    fn a_busy_node_for_programs() {
        let document: serde_json::Value =
            serde_json::from_str(&report(&busy(), &Policy::Off, Format::Json).unwrap().text)
                .unwrap();
        insta::assert_json_snapshot!(document);
    }
}
