//! Policy's metrics: how it stands at the moment in which they are asked for.

use std::{collections::BTreeMap, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use veni_core::wire::inspect::policy::{FlowTable, JudgedBy, Standing};

type Labels = Vec<(&'static str, String)>;
type Level = Gauge<u64, AtomicU64>;

/// The text exposition, without its end mark: it goes before that of the daemon's other metrics.
#[must_use]
pub fn exposition(standing: &Standing) -> String {
    let mut registry = Registry::default();
    levels(&mut registry, standing);
    counts(&mut registry, standing);
    by_name(&mut registry, standing);
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a string cannot fail");
    text.truncate(text.trim_end_matches("# EOF\n").len());
    text
}

fn levels(registry: &mut Registry, standing: &Standing) {
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    for (name, help, value) in [
        ("complete", "Whether all objects were read once", u64::from(standing.complete)),
        ("generation", "Changes taken in", standing.generation),
        ("applied_generation", "The last of them that is in force", standing.applied),
        ("pending_steps", "Writes that could not be carried out yet", number(standing.pending)),
        (
            "refused",
            "Rule sets and addresses that do not fit the tables",
            number(standing.refused.len()),
        ),
        ("diagnostics", "What is wrong with objects", number(standing.diagnostics)),
        ("pods", "Pods of this node that are judged", number(standing.pods)),
        ("sets", "Rule sets", number(standing.sets)),
        ("classes", "Classes of addresses", number(standing.classes)),
        ("verdicts", "Entries of rule sets", number(standing.verdicts)),
        ("rules", "Rules with a number", number(standing.rules)),
    ] {
        let level = Level::default();
        level.set(value);
        registry.register(format!("veni_policy_{name}"), help, level);
    }
    if let Some(millis) = standing.changed_millis {
        let level = Level::default();
        level.set(millis / 1000);
        let name = "veni_policy_changed_timestamp_seconds";
        registry.register(name, "When the tables were changed last", level);
    }
}

fn counts(registry: &mut Registry, standing: &Standing) {
    for (name, help, value) in [
        (
            "write_failures",
            "Writes to the tables that failed; each is tried again",
            standing.write_failures,
        ),
        ("epochs", "How often established flows were to be judged again", standing.epochs),
        (
            "flow_events_missed",
            "Flow events that readers were too slow for",
            standing.events_missed,
        ),
    ] {
        let count = Counter::<u64, AtomicU64>::default();
        count.inc_by(value);
        registry.register(format!("veni_policy_{name}"), help, count);
    }
}

fn by_name(registry: &mut Registry, standing: &Standing) {
    let mut unlabelled = BTreeMap::new();
    for by in [JudgedBy::Predecessor, JudgedBy::Remembered, JudgedBy::Closed] {
        let pods = standing.unlabelled.iter().filter(|pod| pod.judged_by == by);
        unlabelled.insert(by.as_str().to_owned(), u64::try_from(pods.count()).unwrap_or(u64::MAX));
    }
    let help = "Pods whose labels are not known, by what judges them instead";
    registry.register("veni_policy_unlabelled_pods", help, family("judged_by", &unlabelled));
    let (bypassing, harmless): (Vec<_>, Vec<_>) =
        standing.foreign.iter().partition(|foreign| foreign.bypasses);
    let foreign = [("true", bypassing.len()), ("false", harmless.len())];
    let foreign = foreign.map(|(name, n)| (name.to_owned(), u64::try_from(n).unwrap_or(u64::MAX)));
    let help = "Others' programs where pods' packets are judged, and pods' links without ours";
    registry.register("veni_foreign_programs", help, family("bypasses", &foreign.into()));
    let mut groups: BTreeMap<String, u64> =
        ["pending", "fresh", "stale", "unresolved"].map(|state| (state.to_owned(), 0)).into();
    for group in &standing.security_groups {
        *groups.entry(group.state.clone()).or_default() += 1;
    }
    let help = "Security groups of this node's pods, by state";
    registry.register("veni_policy_security_groups", help, family("state", &groups));
    let adds = standing.unlabelled_adds.iter().map(|(by, count)| (by.as_str().to_owned(), *count));
    let help = "ADDs that labels did not come in time for, by what judged the pod instead";
    let adds: BTreeMap<String, u64> = adds.collect();
    registry.register("veni_policy_unlabelled_adds", help, counters("judged_by", &adds));
    for (name, help, value) in [
        (
            "veni_flow_table_entries",
            "Established flows that are tracked (two entries for one by a Service), within the last minute",
            (|table| table.flows) as fn(&FlowTable) -> u64,
        ),
        ("veni_flow_table_limit", "How many there can be: beyond, the idlest are forgotten", |t| {
            t.room
        }),
    ] {
        let tables = standing.flow_tables.iter();
        let tables = tables.map(|table| (table.family.clone(), value(table))).collect();
        registry.register(name, help, family("family", &tables));
    }
    let help = "Packets dropped by the programs, by reason";
    registry.register("veni_dropped_packets", help, counters("reason", &standing.drops));
    let help = "What the programs count beside drops: flows by outcome, events lost";
    registry.register("veni_datapath_events", help, counters("event", &standing.counters));
}

fn family(label: &'static str, values: &BTreeMap<String, u64>) -> Family<Labels, Level> {
    let family = Family::<Labels, Level>::default();
    for (name, value) in values {
        family.get_or_create(&vec![(label, name.clone())]).set(*value);
    }
    family
}

fn counters(
    label: &'static str,
    values: &BTreeMap<String, u64>,
) -> Family<Labels, Counter<u64, AtomicU64>> {
    let family = Family::<Labels, Counter<u64, AtomicU64>>::default();
    for (name, value) in values {
        family.get_or_create(&vec![(label, name.clone())]).inc_by(*value);
    }
    family
}
