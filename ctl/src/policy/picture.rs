//! The matrix for people: a picture a port, pods × pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use veni_core::wire::inspect::policy::{Family, Flow, Flows};

use super::difference::is_elsewhere;
use crate::text;

/// Columns side by side; more are drawn below each other.
const COLUMNS: usize = 30;

/// What a pair of pods may, by family (`None`: the only one).
type Cell = BTreeMap<Option<Family>, bool>;

/// Pictures of all ports, or a sentence when there is nothing to draw.
pub(super) fn matrix(flows: &Flows) -> String {
    if flows.flows.is_empty() {
        return "There is no pod with an address and a container port.\n".to_owned();
    }
    let mut ports: BTreeMap<(&str, u16), Vec<&Flow>> = BTreeMap::new();
    for flow in &flows.flows {
        ports.entry((&flow.protocol, flow.port)).or_default().push(flow);
    }
    let mut out = String::new();
    let mut symbols = BTreeSet::new();
    for ((protocol, port), flows) in &ports {
        out += &format!("{protocol} {port}\n");
        out += &picture(flows, &mut symbols);
        out.push('\n');
    }
    let allowed = flows.flows.iter().filter(|flow| flow.allowed).count();
    let total = flows.flows.len();
    out += &legend(&symbols);
    let are = if total == 1 { "is" } else { "are" };
    let total = text::counted(total, "connection");
    out += &format!("{allowed} of {total} {are} allowed. Rows connect to columns.\n");
    let by = |flow: &&Flow| {
        let sides = [&flow.decided_by.egress, &flow.decided_by.ingress];
        flow.allowed && sides.into_iter().any(is_elsewhere)
    };
    let half = flows.flows.iter().filter(by).count();
    if half > 0 {
        out += &format!(
            "Of those, {half} with an end that another node judges, which has to allow it, too: ask there.\n"
        );
    }
    out
}

fn picture(flows: &[&Flow], symbols: &mut BTreeSet<char>) -> String {
    let mut cells: BTreeMap<(&str, &str), Cell> = BTreeMap::new();
    for flow in flows {
        let cell = cells.entry((&flow.from, &flow.to)).or_default();
        cell.insert(flow.family, flow.allowed);
    }
    let sources: BTreeSet<&str> = cells.keys().map(|(from, _)| *from).collect();
    let destinations: Vec<&str> =
        cells.keys().map(|(_, to)| *to).collect::<BTreeSet<_>>().into_iter().collect();
    let mut out = String::new();
    for (block, columns) in destinations.chunks(COLUMNS).enumerate() {
        let first = block * COLUMNS + 1;
        let width = (first + columns.len()).to_string().len() + 1;
        let names = sources.iter().map(|name| name.chars().count()).max().unwrap_or_default();
        write!(out, "  {:names$}", "").expect("a string takes everything");
        for number in first..first + columns.len() {
            write!(out, "{number:>width$}").expect("a string takes everything");
        }
        out.push('\n');
        for from in &sources {
            write!(out, "  {from:names$}").expect("a string takes everything");
            for to in columns {
                let symbol = cells.get(&(*from, *to)).map_or(' ', symbol);
                symbols.insert(symbol);
                write!(out, "{symbol:>width$}").expect("a string takes everything");
            }
            out.push('\n');
        }
        for (number, to) in (first..).zip(columns) {
            writeln!(out, "  {number} = {to}").expect("a string takes everything");
        }
    }
    out
}

fn symbol(cell: &Cell) -> char {
    let allowed = |family| cell.get(&Some(family)).copied();
    match (allowed(Family::V4), allowed(Family::V6)) {
        (Some(true), Some(false)) => '4',
        (Some(false), Some(true)) => '6',
        _ if cell.values().all(|allowed| *allowed) => '✓',
        _ => '✗',
    }
}

fn legend(symbols: &BTreeSet<char>) -> String {
    let meanings = [
        ('✓', "✓ allowed"),
        ('✗', "✗ denied"),
        ('4', "4 over IPv4 only"),
        ('6', "6 over IPv6 only"),
        (' ', "blank: no address family in common"),
    ];
    let used = meanings.iter().filter(|(symbol, _)| symbols.contains(symbol));
    let used: Vec<&str> = used.map(|(_, meaning)| *meaning).collect();
    used.join("   ") + "\n"
}
