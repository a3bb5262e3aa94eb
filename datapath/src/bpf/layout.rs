//! From one layout of the maps to the next, without losing a flow.
//!
//! The old programs run on the old maps until [`Filter::ensure_attached`](super::Filter::ensure_attached) puts the new
//! ones in their place. Flows are copied before and, those that came in between, after it. Meanwhile, and for a while when
//! the old layout tracked no flows, TCP from the middle of a flow is taken in from either end
//! ([`SettingFlags::LEARN`]). Only then are the old pins removed.

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{OnceLock, PoisonError},
    time::{Duration, Instant},
};

use veni_ebpf_common::{Flow, FlowKeyV4, FlowKeyV6, LAYOUT_VERSION, SettingFlags};

use super::{
    Filter,
    map::{Map, Plain},
    syscall,
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

/// Pins of flows, in layouts that have them in today's shape (2 and later, until one changes it).
struct OldFlows {
    v4: Map<FlowKeyV4, Flow>,
    v6: Map<FlowKeyV6, Flow>,
    half_v4: Map<FlowKeyV4, Flow>,
    half_v6: Map<FlowKeyV6, Flow>,
}

impl Filter {
    pub(super) fn begin_takeover(&self) -> Result<()> {
        let fresh = self.settings()?.half_open_cap == 0;
        let old = if self.adopted { Vec::new() } else { others(&self.bpf_dir) };
        let learn = !old.is_empty();
        if fresh || learn {
            self.configure(|settings| {
                if fresh {
                    *settings = super::Settings::default();
                }
                if learn {
                    settings.flags |= SettingFlags::LEARN;
                }
            })?;
        }
        if learn {
            tracing::info!(layouts = ?old, "an older layout is at work: its flows are carried over");
            *self.takeover() = Takeover::Begun(old);
        }
        Ok(())
    }

    /// Copies the old layout's flows, before and after the programs change. What is there already stays.
    pub(super) fn carry_over(&self) -> Result<()> {
        if let Takeover::Begun(old) = &*self.takeover() {
            self.copy_flows(old)?;
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
            let Some(flows) = old_flows(dir)? else { continue };
            tracked = true;
            copy(&flows.v4, &self.maps.flows_v4)?;
            copy(&flows.v6, &self.maps.flows_v6)?;
            copy(&flows.half_v4, &self.maps.half_open_v4)?;
            copy(&flows.half_v6, &self.maps.half_open_v6)?;
        }
        Ok(tracked)
    }

    fn takeover(&self) -> std::sync::MutexGuard<'_, Takeover> {
        self.takeover.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn copy<K: Plain>(from: &Map<K, Flow>, to: &Map<K, Flow>) -> Result<()> {
    for (key, flow) in from.entries()? {
        to.add(&key, &flow)?;
    }
    Ok(())
}

fn old_flows(dir: &Path) -> Result<Option<OldFlows>> {
    if !dir.join("FLOWS_V4").exists() {
        return Ok(None);
    }
    Ok(Some(OldFlows {
        v4: open(dir, "FLOWS_V4")?,
        v6: open(dir, "FLOWS_V6")?,
        half_v4: open(dir, "HALF_OPEN_V4")?,
        half_v6: open(dir, "HALF_OPEN_V6")?,
    }))
}

fn open<K: Plain>(dir: &Path, name: &'static str) -> Result<Map<K, Flow>> {
    let failed = |source| Error::bpf(format!("map {name} of {}", dir.display()), source);
    let fd = syscall::get_pinned(&dir.join(name)).map_err(failed)?;
    let shape = syscall::shape(fd.as_fd()).map_err(failed)?;
    Map::new(name, fd, shape)
}

/// Directories of other layouts.
fn others(bpf_dir: &Path) -> Vec<PathBuf> {
    let ours = format!("v{LAYOUT_VERSION}");
    let Ok(entries) = fs::read_dir(bpf_dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name != ours.as_str() && is_layout(&name.to_string_lossy())
        })
        .map(|entry| entry.path())
        .collect()
}

fn is_layout(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
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
