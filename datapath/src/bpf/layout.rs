//! From one layout of the maps to the next, without losing a flow.
//!
//! The old programs run on the old maps until [`Filter::ensure_attached`](super::Filter::ensure_attached) puts the new
//! ones in their place. What the old maps say about pods (their incarnations, which flows name), policy, Services and
//! the node is copied once, so that the next daemon finds what it would find had nothing changed. Flows are copied
//! before and, those that came in between, after the programs change. Meanwhile, and for a while when the old layout
//! tracked no flows, TCP from the middle of a flow is taken in from either end ([`SettingFlags::LEARN`]). Only then are
//! the old pins removed: a daemon that ends before leaves it all to the next, which begins anew: what it finds of its own
//! layout is of another time when it is not what the filters at work use.
//!
//! A map whose keys or values changed is not copied; a layout that changes one converts it here.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{OnceLock, PoisonError},
    time::{Duration, Instant},
};

use veni_core::wire::FilterBlocks;
use veni_ebpf_common::{Flow, LAYOUT_VERSION, SettingFlags, Write};

use super::{
    Filter, attach,
    map::{Map, Plain},
};
use crate::error::{Error, Result};

/// How long flows of a layout that tracked none are learned.
const LEARN: Duration = Duration::from_secs(60);

/// Where a change of layout is.
#[derive(Debug, Default)]
pub(super) enum Takeover {
    /// There is none, or it is over.
    #[default]
    None,
    /// The old programs still run.
    Begun(Vec<PathBuf>),
    /// Ours run; flows that nobody tracked are learned until then.
    Learning(Instant),
}

/// Removes the maps of this layout where another's programs are at work: a take-over that did not come to its end, and
/// whatever happened since (a daemon of the other layout, for one) is not in them.
pub(super) fn discard_idle(bpf_dir: &Path, blocks: FilterBlocks) -> Result<()> {
    let ours = super::load::pins(bpf_dir);
    if !ours.exists() || others(bpf_dir).is_empty() {
        return Ok(());
    }
    let Some(program) = attach::at_work(blocks)? else { return Ok(()) };
    if super::load::followers_pin(&ours, program).exists() {
        return Ok(());
    }
    tracing::info!(maps = %ours.display(), "another layout is at work: ours is made anew from it");
    remove_pins(bpf_dir, |path| path == ours)
}

impl Filter {
    pub(super) fn begin_takeover(&self) -> Result<()> {
        // Written last of all: with settings, everything is there.
        let settings = self.settings()?;
        let fresh = settings.half_open_cap == 0;
        let old = others(&self.bpf_dir);
        let learn = !old.is_empty();
        let had = match old.last() {
            Some(newest) if fresh => self.inherit(newest)?,
            _ => None,
        };
        // A daemon that ended while flows were learned has left it on: who sent anything meanwhile is known.
        let left_on = !learn && settings.flags & SettingFlags::LEARN != 0;
        if fresh || learn || left_on {
            self.configure(|settings| {
                if fresh {
                    *settings = had.unwrap_or_default();
                }
                settings.flags &= !SettingFlags::LEARN;
                if learn {
                    settings.flags |= SettingFlags::LEARN;
                }
            })?;
        }
        if learn {
            tracing::info!(layouts = ?old, "another layout is at work: its state is carried over");
            *self.takeover() = Takeover::Begun(old);
        }
        Ok(())
    }

    /// Copies what the old layout knows, but for flows and what is counted. Its settings, for the caller to write last.
    fn inherit(&self, old: &Path) -> Result<Option<super::Settings>> {
        let maps = &self.maps;
        copy(old, &maps.node_v4)?;
        copy(old, &maps.node_v6)?;
        copy(old, &maps.class_v4)?;
        copy(old, &maps.class_v6)?;
        copy(old, &maps.cidr_v4)?;
        copy(old, &maps.cidr_v6)?;
        copy(old, &maps.profiles)?;
        copy(old, &maps.ports)?;
        copy(old, &maps.verdicts)?;
        copy(old, &maps.affinity)?;
        if let Some(from) = maps.backends.same_in(old)? {
            let backend = |(key, value)| Write::Backend { key, value };
            let writes: Vec<Write> = from.entries()?.into_iter().map(backend).collect();
            self.tables().apply(&writes)?;
        }
        copy(old, &maps.service_v4)?;
        copy(old, &maps.service_v6)?;
        maps.pods.set_all(&self.pods_of(old)?)?;
        let settings = maps.settings.same_in(old)?.map(|from| from.get(&0)).transpose()?.flatten();
        Ok(settings.filter(|settings| settings.half_open_cap != 0))
    }

    /// Copies the old layout's flows, before and after the programs change. What is there already stays.
    pub(super) fn carry_over(&self) -> Result<()> {
        if let Takeover::Begun(old) = &*self.takeover() {
            self.copy_flows(old)?;
            // Which pods have flows over their share; once ours run, they know better.
            if let Some(newest) = old.last() {
                copy(newest, &self.maps.pod_states)?;
            }
        }
        Ok(())
    }

    /// Our programs run.
    pub(super) fn end_takeover(&self) -> Result<()> {
        let mut takeover = self.takeover();
        let next = match &*takeover {
            Takeover::None => return Ok(()),
            Takeover::Begun(old) => {
                let tracked = self.copy_flows(old)?;
                let ours = super::load::pins(&self.bpf_dir);
                remove_pins(&self.bpf_dir, |path| path != ours)?;
                if tracked { Takeover::None } else { Takeover::Learning(Instant::now() + LEARN) }
            }
            Takeover::Learning(until) if Instant::now() < *until => return Ok(()),
            Takeover::Learning(_) => Takeover::None,
        };
        if matches!(next, Takeover::None) {
            self.configure(|settings| settings.flags &= !SettingFlags::LEARN)?;
        }
        *takeover = next;
        Ok(())
    }

    /// Whether there were flows to copy.
    fn copy_flows(&self, old: &[PathBuf]) -> Result<bool> {
        let mut tracked = false;
        for dir in old {
            tracked |= add(dir, &self.maps.flows_v4)?;
            add(dir, &self.maps.flows_v6)?;
            add(dir, &self.maps.half_open_v4)?;
            add(dir, &self.maps.half_open_v6)?;
            add(dir, &self.maps.overflow_v4)?;
            add(dir, &self.maps.overflow_v6)?;
        }
        Ok(tracked)
    }

    fn takeover(&self) -> std::sync::MutexGuard<'_, Takeover> {
        self.takeover.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies a map, if the old layout has it in this shape.
fn copy<K: Plain, V: Plain>(old: &Path, to: &Map<K, V>) -> Result<()> {
    let Some(from) = to.same_in(old)? else { return Ok(()) };
    to.set_all(&from.entries()?)
}

/// Copies the flows that are not there yet; whether the old layout has any such map.
fn add<K: Plain>(old: &Path, to: &Map<K, Flow>) -> Result<bool> {
    let Some(from) = to.same_in(old)? else { return Ok(false) };
    for (key, flow) in from.entries()? {
        to.add(&key, &flow)?;
    }
    Ok(true)
}

/// Directories of other layouts, the newest last.
fn others(bpf_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(bpf_dir) else { return Vec::new() };
    let mut layouts: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((layout(&entry.file_name().to_string_lossy())?, entry.path())))
        .filter(|(version, _)| *version != LAYOUT_VERSION)
        .collect();
    layouts.sort_unstable();
    layouts.into_iter().map(|(_, path)| path).collect()
}

fn layout(name: &str) -> Option<u32> {
    name.strip_prefix('v')?.parse().ok()
}

/// Removes the pins of some layouts.
pub(super) fn remove_pins(bpf_dir: &Path, wanted: impl Fn(&Path) -> bool) -> Result<()> {
    let mut layouts = others(bpf_dir);
    layouts.push(super::load::pins(bpf_dir));
    for layout in layouts.iter().filter(|layout| wanted(layout)) {
        match fs::remove_dir_all(layout) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("removing the pinned maps")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// How many values a per-CPU map gives for a key: the CPUs that could ever be there.
pub(super) fn possible_cpus() -> Result<usize> {
    const PATH: &str = "/sys/devices/system/cpu/possible";
    let text = fs::read_to_string(PATH).map_err(Error::io(format!("reading {PATH}")))?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1)
        .ok_or_else(|| Error::io(format!("reading {PATH}"))(std::io::ErrorKind::InvalidData.into()))
}

/// Whether `bpf_l4_csum_replace` knows `BPF_F_IPV6` (Linux 6.16; it refuses unknown flags).
pub(super) fn kernel_has_ipv6_checksums() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 16))
    })
}
