//! What a benchmark says.

use std::time::Duration;

use serde_json::{Value, json};
use veni_lab::{binaries::Binary, stats::Percentiles};

use super::{super::print, runs::Samples};

/// All numbers of a run.
pub(super) struct Report {
    pub(super) sequential: Samples,
    pub(super) burst: Samples,
    /// Pods in a burst.
    pub(super) burst_size: u32,
    pub(super) requests: Vec<Duration>,
    pub(super) plugin: Binary,
    /// The most memory that an ADD of the plugin had.
    pub(super) plugin_peak_kib: u64,
    pub(super) floor: Binary,
}

/// One phase's percentiles.
struct Phase {
    add: Percentiles,
    del: Percentiles,
    floor: Percentiles,
    nop: Percentiles,
}

// === impl Report ===

impl Report {
    /// For people.
    pub(super) fn print(&self) {
        let phases = [("one at a time", phase(&self.sequential)), ("burst", phase(&self.burst))];
        let mut table =
            print::table(["", "", "n", "p50", "p99", "max", "p50 / floor", "p99 / floor"]);
        for (name, phase) in &phases {
            for (what, numbers) in phase.rows() {
                table.add_row([
                    (*name).to_owned(),
                    what.to_owned(),
                    numbers.count().to_string(),
                    print::millis(numbers.at(50)),
                    print::millis(numbers.at(99)),
                    print::millis(numbers.max()),
                    format!("{:.2}", ratio(numbers, &phase.floor, 50)),
                    format!("{:.2}", ratio(numbers, &phase.floor, 99)),
                ]);
            }
        }
        print::line(table);
        let [(_, one), _] = &phases;
        let requests: Percentiles = self.requests.iter().copied().collect();
        let (add, exec, request) = (one.add.at(50), one.nop.at(50), requests.at(50));
        print::line(format!(
            "an ADD by step (p50, one at a time): fork and exec {} (a static no-op), request {} (measured on its own), \
             the rest {} (wiring, JSON, the program's own size; by difference)",
            print::millis(exec),
            print::millis(request),
            print::millis(add.saturating_sub(exec + request)),
        ));
        print::line(format!(
            "an allocate request on its own: p50 {}, p99 {}",
            print::millis(request),
            print::millis(requests.at(99))
        ));
        print::line(format!(
            "the floor is {:.2} × a fork and exec of a static no-op (p50)",
            ratio(&one.floor, &one.nop, 50)
        ));
        for (name, binary) in [("plugin", &self.plugin), ("floor", &self.floor)] {
            let linkage = if binary.is_static {
                "static"
            } else {
                "NOT static: its loader is part of every number"
            };
            print::line(format!(
                "{name}: {} ({} KiB, {linkage})",
                binary.path.display(),
                binary.bytes / 1024
            ));
        }
        print::line(format!(
            "plugin: {} KiB of memory at the most in an ADD (wait4's ru_maxrss)",
            self.plugin_peak_kib
        ));
        print::line("the pool was warm: no ADD waited for EC2");
    }

    /// For programs; times in microseconds.
    pub(super) fn json(&self) -> Value {
        let requests: Percentiles = self.requests.iter().copied().collect();
        let sequential = phase(&self.sequential);
        json!({
            "sequential": sequential.json(sequential.add.count()),
            "burst": phase(&self.burst).json(self.burst_size as usize),
            "request_us": micros(&requests),
            "floor_to_nop_p50": ratio(&sequential.floor, &sequential.nop, 50),
            "plugin": {
                "bytes": self.plugin.bytes, "static": self.plugin.is_static, "peak_kib": self.plugin_peak_kib,
            },
            "floor": {"bytes": self.floor.bytes, "static": self.floor.is_static},
            "pool": "warm",
        })
    }
}

// === impl Phase ===

impl Phase {
    fn rows(&self) -> [(&'static str, &Percentiles); 4] {
        [("ADD", &self.add), ("DEL", &self.del), ("floor", &self.floor), ("no-op", &self.nop)]
    }

    fn json(&self, n: usize) -> Value {
        json!({
            "n": n,
            "add_us": micros(&self.add),
            "del_us": micros(&self.del),
            "floor_us": micros(&self.floor),
            "nop_us": micros(&self.nop),
            "ratio_p50": ratio(&self.add, &self.floor, 50),
            "ratio_p99": ratio(&self.add, &self.floor, 99),
        })
    }
}

fn phase(samples: &Samples) -> Phase {
    let of = |durations: &[Duration]| durations.iter().copied().collect();
    Phase {
        add: of(&samples.add),
        del: of(&samples.del),
        floor: of(&samples.floor),
        nop: of(&samples.nop),
    }
}

fn micros(numbers: &Percentiles) -> Value {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    json!({"p50": micros(numbers.at(50)), "p99": micros(numbers.at(99)), "max": micros(numbers.max())})
}

/// To three digits after the point.
fn ratio(numbers: &Percentiles, base: &Percentiles, percent: usize) -> f64 {
    let base = base.at(percent).as_secs_f64();
    if base == 0.0 { 0.0 } else { (numbers.at(percent).as_secs_f64() / base * 1e3).round() / 1e3 }
}
