//! Drawing for people: tables, the pool's bar, durations.

use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use veni_core::wire::inspect::{Eni, Node, Pool};

/// Cells of the pool's bar.
const BAR: u32 = 40;

/// `1 pod`, `2 pods`, `0 addresses`: the number with its noun.
pub(crate) fn counted<N: fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let plural = match noun {
        noun if count == N::from(1) => noun.to_owned(),
        noun if noun.ends_with('s') => format!("{noun}es"),
        noun => format!("{noun}s"),
    };
    format!("{count} {plural}")
}

/// Lines of at most so many characters, broken at spaces.
pub(crate) fn wrapped(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

/// A table with a header and no lines, like kubectl's. Columns from `numbers` on are right-aligned.
pub(crate) fn table(
    header: &[&str],
    numbers: std::ops::Range<usize>,
    rows: Vec<Vec<String>>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied())
        .add_rows(rows);
    for index in numbers {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

/// The ENIs, one a line.
pub(crate) fn enis(enis: &[Eni]) -> String {
    let dash = || "-".to_owned();
    let rows = enis.iter().map(|eni| {
        vec![
            eni.id.as_ref().map_or_else(dash, ToString::to_string),
            if eni.primary { "primary".to_owned() } else { format!("device {}", eni.device_index) },
            eni.phase.clone(),
            eni.ifname.as_ref().map_or_else(dash, ToString::to_string),
            eni.primary_address.map_or_else(dash, |address| address.to_string()),
            eni.pool.total.to_string(),
            eni.pool.assigned.to_string(),
            eni.pool.cooling.to_string(),
            eni.pool.available.to_string(),
        ]
    });
    table(
        &["ENI", "PLACE", "STATE", "LINK", "ITS ADDRESS", "POOL", "PODS", "COOLING", "FREE"],
        5..9,
        rows.collect(),
    )
}

/// Addresses that the node's ENIs can hold beside their own.
pub(crate) fn room(node: &Node) -> u32 {
    node.max_enis.saturating_mul(node.addresses_per_eni.saturating_sub(1))
}

/// The pool as a bar, with its legend: what is there, what could be.
pub(crate) fn bar(pool: &Pool, node: &Node) -> String {
    let room = room(node).max(pool.total);
    // Whatever is in none of the states yet (an older ipamd) is drawn as free.
    let free = pool.total.saturating_sub(pool.assigned + pool.cooling + pool.releasing);
    let parts = [
        ('█', pool.assigned),
        ('▒', pool.cooling + pool.releasing),
        ('░', free),
        ('+', pool.pending.min(room - pool.total)),
    ];
    let mut drawn = String::new();
    let (mut before, mut cells) = (0u32, 0u32);
    // Rounded to the nearest cell, but nothing that exists is invisible: what comes after keeps a cell each.
    let mut after: u32 = parts.iter().map(|(_, count)| u32::from(*count > 0)).sum();
    after += u32::from(parts.iter().map(|(_, count)| count).sum::<u32>() < room);
    for (symbol, count) in parts.into_iter().filter(|(_, count)| *count > 0) {
        before += count;
        after -= 1;
        let end = ((before * BAR + room / 2) / room).max(cells + 1).min(BAR - after);
        drawn.extend((cells..end).map(|_| symbol));
        cells = end;
    }
    drawn.extend((cells..BAR).map(|_| '·'));
    format!("[{drawn}]\n{}\n", legend(pool, free, room))
}

fn legend(pool: &Pool, free: u32, room: u32) -> String {
    let mut parts = vec![format!("█ {} with pods", pool.assigned)];
    if pool.cooling > 0 {
        parts.push(format!("▒ {} cooling", pool.cooling));
    }
    if pool.releasing > 0 {
        parts.push(format!("▒ {} on their way back", pool.releasing));
    }
    parts.push(format!("░ {free} free"));
    if pool.pending > 0 {
        parts.push(format!("+ {} asked for", pool.pending));
    }
    parts.push(format!("· room for {} more", room - pool.total));
    parts.join("   ")
}

/// Indented lines under a heading, or `otherwise` when there are none.
pub(crate) fn section(heading: &str, lines: &[String], otherwise: &str) -> String {
    let body = if lines.is_empty() {
        format!("  {otherwise}\n")
    } else {
        lines.iter().map(|line| format!("  {line}\n")).collect()
    };
    format!("{heading}\n{body}")
}

/// `2 d 3 h`, `2 h 5 min`, `95 s`: the two largest units.
pub(crate) fn duration(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        7200..172_800 => format!("{} h {} min", secs / 3600, secs % 3600 / 60),
        _ => format!("{} d {} h", secs / 86_400, secs % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        for (count, noun, expect) in [
            (0, "pod", "0 pods"),
            (1, "pod", "1 pod"),
            (2, "pod", "2 pods"),
            (1, "address", "1 address"),
            (2, "free address", "2 free addresses"),
            (3, "ENI", "3 ENIs"),
        ] {
            assert_eq!(counted(count, noun), expect);
        }
    }

    #[test]
    fn long_lists_are_broken_at_spaces() {
        for (text, expect) in [
            ("", ""),
            ("aa bb", "aa bb"),
            ("aa bb cc", "aa bb\ncc"),
            ("aaaaaaaaa b", "aaaaaaaaa\nb"),
        ] {
            assert_eq!(wrapped(text, 6), expect);
        }
    }

    #[test]
    fn durations_have_two_units() {
        for (secs, expect) in
            [(0, "0 s"), (119, "119 s"), (180, "3 min"), (7530, "2 h 5 min"), (180_000, "2 d 2 h")]
        {
            assert_eq!(duration(secs), expect);
        }
    }

    #[test]
    fn the_bar_is_always_as_wide_and_hides_nothing() {
        let node = crate::fixtures::busy().node;
        let pool = |total, assigned, cooling, pending| Pool {
            total,
            assigned,
            cooling,
            pending,
            available: total - assigned - cooling,
            ..Pool::default()
        };
        for (pool, symbols) in [
            (pool(0, 0, 0, 0), "·"),
            (pool(14, 1, 0, 0), "█░·"),
            (pool(56, 56, 0, 0), "█"),
            (pool(56, 54, 1, 0), "█▒░"),
            (pool(20, 16, 2, 8), "█▒░+·"),
            (pool(100, 1, 1, 0), "█▒░"),
        ] {
            let drawn = bar(&pool, &node);
            let inside: Vec<char> = drawn
                .lines()
                .next()
                .unwrap()
                .trim_matches(|c| c == '[' || c == ']')
                .chars()
                .collect();
            assert_eq!(inside.len(), 40, "{drawn}");
            let mut seen = inside.clone();
            seen.dedup();
            assert_eq!(seen.into_iter().collect::<String>(), symbols, "{drawn}");
        }
    }
}
