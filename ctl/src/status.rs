//! `venictl status`: how this node is, to be read in five seconds.

use serde::Serialize;
use veni_core::wire::inspect::{Daemon, Eni, Node, PlanView, Pool, View, policy::Standing};

use crate::{
    Report,
    cli::Format,
    problem::{self, Trouble},
    standing::Policy,
    text,
};

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
    problems: Vec<Trouble>,
    /// The node holds no more pods, and none waits: no problem. Absent where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    full: Option<Trouble>,
    drops: &'a std::collections::BTreeMap<String, u64>,
    repairs: &'a std::collections::BTreeMap<String, u64>,
    /// Absent where no policy is enforced, or it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a Standing>,
}

pub(crate) fn report(view: &View, policy: &Policy, format: Format) -> anyhow::Result<Report> {
    let problems: Vec<Trouble> =
        problem::of_node(view).into_iter().chain(policy.problems()).collect();
    let document = Document {
        state: State::of(view, problems.len()),
        daemon: &view.daemon,
        node: &view.node,
        pool: &view.pool,
        enis: &view.enis,
        plan: &view.plan,
        problems,
        full: problem::just_full(view),
        drops: &view.drops,
        repairs: &view.repairs,
        policy: policy.standing(),
    };
    Report::of(format, &document, || human(view, policy))
}

fn human(view: &View, policy: &Policy) -> String {
    let View { daemon, node, pool, enis, plan, .. } = view;
    let of_policy = policy.problems().len();
    let of_node = problem::of_node(view);
    let wrong = of_node.len() + of_policy;
    let waits = plan
        .running
        .iter()
        .map(|step| format!("now: {step}"))
        .chain(plan.waiting_for.iter().cloned());
    let problems: Vec<_> = of_node.iter().map(Trouble::lines).collect();
    let mut out = format!(
        "{}\n{} {} {}   ipamd {} ({}), up {}\n\n",
        State::of(view, wrong).sentence(view, wrong),
        node.instance_id,
        node.instance_type,
        node.address,
        daemon.version,
        daemon.provider,
        text::duration(daemon.uptime_secs),
    );
    let addresses = text::counted(pool.total, "address");
    let most = text::counted(node.max_enis, "ENI");
    out += &format!("Pool: {addresses} on {} of {most}\n", enis.len());
    out += &text::bar(pool, node);
    out += "\n";
    out += &text::enis(enis);
    out += "\n";
    out += &policy.lines();
    out += "\n";
    out += &text::section("Waits for", &waits.collect::<Vec<_>>(), "nothing");
    if let Some(full) = problem::just_full(view) {
        out += &text::section("Full", &[full.lines()], "");
    }
    let otherwise = if of_policy == 0 { "nothing" } else { "see Policy" };
    out += &text::section("Wrong", &problems, otherwise);
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
    const fn of(view: &View, wrong: usize) -> Self {
        match (view.daemon.ready, wrong) {
            (false, _) => Self::NotReady,
            (true, 0) => Self::Ready,
            (true, _) => Self::Degraded,
        }
    }

    fn sentence(self, view: &View, wrong: usize) -> String {
        let waiting = match view.pool.waiting {
            0 => String::new(),
            1 => "; 1 pod waits for an address".to_owned(),
            n => format!("; {n} pods wait for an address"),
        };
        let word = match self {
            Self::Ready if problem::just_full(view).is_some() => "READY, and full".to_owned(),
            Self::Ready => "READY".to_owned(),
            Self::Degraded if wrong == 1 => "READY, but 1 thing is wrong".to_owned(),
            Self::Degraded => format!("READY, but {wrong} things are wrong"),
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
    fn a_full_node_without_waiting_pods_says_so_and_that_nothing_is_wrong() {
        let mut view = calm();
        view.pool.assigned = text::room(&view.node);
        (view.pool.available, view.pool.cooling) = (0, 0);
        let text = report(&view, &Policy::Off, Format::Human).unwrap().text;
        assert!(text.starts_with("READY, and full\n"), "{text}");
        assert!(text.contains("\nFull\n  limit_reached: the node is full: "), "{text}");
        assert!(text.contains("\nWrong\n  nothing\n"), "{text}");
        let text = report(&view, &Policy::Off, Format::Json).unwrap().text;
        assert!(
            text.contains(r#""state":"ready""#) && text.contains(r#""full":{"kind":"#),
            "{text}"
        );
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
    fn a_node_whose_policy_is_not_in_force_is_not_simply_ready() {
        let standing = r#"{"mode":"standard","complete":false,"diagnostics":2}"#;
        let policy = Policy::Enforced(serde_json::from_str(standing).unwrap());
        let text = report(&calm(), &policy, Format::Human).unwrap().text;
        assert!(text.starts_with("READY, but 2 things are wrong"), "{text}");
        let json = report(&calm(), &policy, Format::Json).unwrap().text;
        let document: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(document["state"], "degraded");
        assert_eq!(document["problems"][0]["kind"], "policy");
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
