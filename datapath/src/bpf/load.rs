//! From the object to loaded programs and their pinned maps.
//!
//! Not by `aya::EbpfLoader`: its constructor parses the kernel's whole BTF (25 ms and 20 MB here), which relocations
//! against kernel types would need; our programs have none.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya_obj::Object;
use veni_ebpf_common::{
    Flow, FlowKeyV4, FlowKeyV6, LAYOUT_VERSION, PodState, PodValue, Settings,
    flow::{AffinityKey, AffinityValue},
    table::{
        BackendKey, BackendValue, Decision, MemberKey, PortKey, Profile, ServiceKeyV4,
        ServiceKeyV6, ServiceValue, VerdictKey,
    },
};

use super::{
    bpffs,
    map::{Map, Plain, Prefix},
    syscall::{self, Shape},
};
use crate::error::{Error, Result};

/// The object, as `build.rs` made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/veni-bpf.o"));
/// The program for what leaves a pod.
pub const EGRESS_PROGRAM: &str = "pod_egress";
/// The program for what enters a pod.
pub const INGRESS_PROGRAM: &str = "pod_ingress";

/// What both jump to when a packet is not of a plain flow, in the order of their slots.
const FOLLOW_PROGRAMS: [&str; 2] = ["follow_v4", "follow_v6"];
/// The map of those.
const FOLLOWERS: &str = "FOLLOWERS";

/// A loaded program.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) fd: OwnedFd,
    pub(super) id: u32,
}

/// The maps, under the names that they are pinned by.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) pods: Map<u32, PodValue>,
    pub(super) settings: Map<u32, Settings>,
    pub(super) pod_states: Map<u32, PodState>,
    pub(super) drops: Map<u32, u64>,
    pub(super) counters: Map<u32, u64>,
    pub(super) flows_v4: Map<FlowKeyV4, Flow>,
    pub(super) flows_v6: Map<FlowKeyV6, Flow>,
    pub(super) half_open_v4: Map<FlowKeyV4, Flow>,
    pub(super) half_open_v6: Map<FlowKeyV6, Flow>,
    pub(super) overflow_v4: Map<FlowKeyV4, Flow>,
    pub(super) overflow_v6: Map<FlowKeyV6, Flow>,
    pub(super) node_v4: Map<[u8; 4], u32>,
    pub(super) node_v6: Map<[u8; 16], u32>,
    pub(super) class_v4: Map<[u8; 4], u32>,
    pub(super) class_v6: Map<[u8; 16], u32>,
    pub(super) cidr_v4: Map<Prefix<[u8; 4]>, u32>,
    pub(super) cidr_v6: Map<Prefix<[u8; 16]>, u32>,
    pub(super) verdicts: Map<VerdictKey, u32>,
    pub(super) profiles: Map<u32, Profile>,
    pub(super) ports: Map<Prefix<PortKey>, Decision>,
    pub(super) service_v4: Map<ServiceKeyV4, ServiceValue>,
    pub(super) service_v6: Map<ServiceKeyV6, ServiceValue>,
    pub(super) backends: Map<BackendKey, BackendValue>,
    pub(super) members: Map<MemberKey, u32>,
    pub(super) affinity: Map<AffinityKey, AffinityValue>,
    /// Events: a ring, which has neither keys nor values.
    pub(super) events: OwnedFd,
    /// Only the programs use this.
    pub(super) fragments: OwnedFd,
    /// What the programs keep while they work on a packet: their own, never pinned.
    scratch: [OwnedFd; 3],
}

#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) egress: Program,
    pub(super) ingress: Program,
    /// The programs that both jump to.
    pub(super) followers: Followers,
    pub(super) maps: Maps,
    /// All maps were there.
    pub(super) adopted: bool,
}

/// The map that the hooks' programs jump by. The kernel empties such a map when nobody outside the kernel holds it any
/// more, so it is pinned while they are attached: one a load, since each load has programs of its own.
#[derive(Debug)]
pub(super) struct Followers {
    fd: OwnedFd,
    programs: Vec<Program>,
    pin: PathBuf,
}

/// Where the maps of this layout are pinned.
pub(super) fn pins(bpf_dir: &Path) -> PathBuf {
    bpf_dir.join(format!("v{LAYOUT_VERSION}"))
}

/// Where a load keeps its followers, by its program for what leaves a pod.
pub(super) fn followers_pin(dir: &Path, egress: u32) -> PathBuf {
    dir.join(format!("{FOLLOWERS}_{egress}"))
}

pub(super) fn load(bpf_dir: &Path) -> Result<Loaded> {
    let dir = pins(bpf_dir);
    bpffs::ensure_dir(&dir)?;
    let mut object =
        Object::parse(OBJECT).map_err(|e| Error::bpf("reading the object".to_owned(), e))?;
    let mut made = Making { object: &object, dir: &dir, adopted: true, ahead: HashMap::new() };
    made.make_ahead()?;
    let maps = maps(&mut made)?;
    let followers = made.own(FOLLOWERS)?;
    let adopted = made.adopted;
    relocate(&mut object, &maps, &followers)?;
    let [egress, ingress, v4, v6] = load_programs(&object)?;
    let pin = followers_pin(&dir, egress.id);
    let followers = Followers { fd: followers, programs: vec![v4, v6], pin };
    followers.fill()?;
    Ok(Loaded { egress, ingress, followers, maps, adopted })
}

/// The verifier's work is most of a daemon's start: on two processors at once.
fn load_programs(object: &Object) -> Result<[Program; 4]> {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            Ok((load_program(object, EGRESS_PROGRAM)?, load_program(object, FOLLOW_PROGRAMS[0])?))
        });
        let ours = load_program(object, INGRESS_PROGRAM)
            .and_then(|ingress| Ok((ingress, load_program(object, FOLLOW_PROGRAMS[1])?)));
        let (egress, v4) = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (ingress, v6) = ours?;
        Ok([egress, ingress, v4, v6])
    })
}

impl Followers {
    fn fill(&self) -> Result<()> {
        for (slot, program) in (0u32..).zip(&self.programs) {
            let fd = program.fd.as_raw_fd().cast_unsigned();
            syscall::update(self.fd.as_fd(), &slot.to_ne_bytes(), &fd.to_ne_bytes(), false)
                .map_err(|source| Error::bpf(format!("map {FOLLOWERS}"), source))?;
        }
        Ok(())
    }

    /// The kernel's numbers of the programs.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.programs.iter().map(|program| program.id)
    }

    /// Keeps the programs beyond this process. Before the hooks' programs are attached.
    pub(super) fn keep(&self) -> Result<()> {
        if self.pin.exists() {
            return Ok(());
        }
        syscall::pin(self.fd.as_fd(), &self.pin)
            .map_err(|source| Error::bpf(format!("pinning {}", self.pin.display()), source))
    }

    /// Lets go of those of earlier loads. Some time after ours were attached: a packet may still be on its way through
    /// an earlier load's program.
    pub(super) fn release_others(&self) -> Result<()> {
        let Some(dir) = self.pin.parent() else { return Ok(()) };
        let entries = fs::read_dir(dir).map_err(Error::io(format!("reading {}", dir.display())))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(FOLLOWERS) && path != self.pin {
                fs::remove_file(&path)
                    .map_err(Error::io(format!("removing the pin {}", path.display())))?;
            }
        }
        Ok(())
    }
}

/// Maps that are being opened or made.
struct Making<'a> {
    object: &'a Object,
    dir: &'a Path,
    adopted: bool,
    /// Made, but not yet pinned.
    ahead: HashMap<&'static str, OwnedFd>,
}

/// Maps whose memory is taken at once, in two halves of about the same size: a new node makes them on two processors.
const BIG: [[&str; 4]; 2] = [
    ["FLOWS_V4", "CLASS_V4", "BACKENDS", "HALF_OPEN_V6"],
    ["FLOWS_V6", "VERDICTS", "CLASS_V6", "HALF_OPEN_V4"],
];

fn maps(made: &mut Making<'_>) -> Result<Maps> {
    Ok(Maps {
        pods: made.map("PODS")?,
        settings: made.map("SETTINGS")?,
        pod_states: made.map("POD_STATES")?,
        drops: made.map("DROPS")?,
        counters: made.map("COUNTERS")?,
        flows_v4: made.map("FLOWS_V4")?,
        flows_v6: made.map("FLOWS_V6")?,
        half_open_v4: made.map("HALF_OPEN_V4")?,
        half_open_v6: made.map("HALF_OPEN_V6")?,
        overflow_v4: made.map("OVERFLOW_V4")?,
        overflow_v6: made.map("OVERFLOW_V6")?,
        node_v4: made.map("NODE_V4")?,
        node_v6: made.map("NODE_V6")?,
        class_v4: made.map("CLASS_V4")?,
        class_v6: made.map("CLASS_V6")?,
        cidr_v4: made.map("CIDR_V4")?,
        cidr_v6: made.map("CIDR_V6")?,
        verdicts: made.map("VERDICTS")?,
        profiles: made.map("PROFILES")?,
        ports: made.map("PORTS")?,
        service_v4: made.map("SERVICE_V4")?,
        service_v6: made.map("SERVICE_V6")?,
        backends: made.map("BACKENDS")?,
        members: made.map("MEMBERS")?,
        affinity: made.map("AFFINITY")?,
        events: made.open("EVENTS")?.0,
        fragments: made.open("FRAGMENTS")?.0,
        scratch: [made.own("SCRATCH_V4")?, made.own("SCRATCH_V6")?, made.own("SCRATCH_POD")?],
    })
}

impl Making<'_> {
    fn shape(&self, name: &str) -> Result<Shape> {
        let definition = self.object.maps.get(name).ok_or_else(|| missing(name))?;
        Ok(Shape {
            kind: definition.map_type(),
            key_size: definition.key_size(),
            value_size: definition.value_size(),
            max_entries: definition.max_entries(),
            flags: definition.map_flags(),
        })
    }

    fn make_ahead(&mut self) -> Result<()> {
        let half = |names: [&'static str; 4]| {
            let missing = names.into_iter().filter(|name| !self.dir.join(name).exists());
            missing.map(|name| Ok((name, self.own(name)?))).collect::<Result<Vec<_>>>()
        };
        let (one, other) = std::thread::scope(|scope| {
            let other = scope.spawn(|| half(BIG[1]));
            let one = half(BIG[0]);
            (one, other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        self.ahead.extend(one?.into_iter().chain(other?));
        Ok(())
    }

    /// A map of this load's own.
    fn own(&self, name: &str) -> Result<OwnedFd> {
        syscall::create_map(name, self.shape(name)?)
            .map_err(|source| Error::bpf(format!("map {name}"), source))
    }

    fn map<K: Plain, V: Plain>(&mut self, name: &'static str) -> Result<Map<K, V>> {
        let (fd, shape) = self.open(name)?;
        Map::new(name, fd, shape)
    }

    /// The map pinned under its name, or a new one, pinned. A pin of the right name and the wrong shape (a
    /// development build's) is replaced: whoever uses that map keeps it.
    fn open(&mut self, name: &'static str) -> Result<(OwnedFd, Shape)> {
        let failed = |source| Error::bpf(format!("map {name}"), source);
        let shape = self.shape(name)?;
        let path = self.dir.join(name);
        if path.exists() {
            let fd = syscall::get_pinned(&path).map_err(failed)?;
            if syscall::shape(fd.as_fd()).map_err(failed)? == shape {
                return Ok((fd, shape));
            }
            tracing::warn!(path = %path.display(), "a pinned map of another shape: making a new one");
            fs::remove_file(&path)
                .map_err(Error::io(format!("removing the pin {}", path.display())))?;
        }
        self.adopted = false;
        let fd = match self.ahead.remove(name) {
            Some(fd) => fd,
            None => syscall::create_map(name, shape).map_err(failed)?,
        };
        syscall::pin(fd.as_fd(), &path)
            .map_err(|source| Error::bpf(format!("pinning {}", path.display()), source))?;
        Ok((fd, shape))
    }
}

impl Maps {
    /// All, by the names that the object uses.
    fn by_name(&self) -> [(&'static str, i32); 30] {
        let raw = |fd: std::os::fd::BorrowedFd<'_>| fd.as_raw_fd();
        [
            ("PODS", raw(self.pods.fd())),
            ("SETTINGS", raw(self.settings.fd())),
            ("POD_STATES", raw(self.pod_states.fd())),
            ("DROPS", raw(self.drops.fd())),
            ("COUNTERS", raw(self.counters.fd())),
            ("FLOWS_V4", raw(self.flows_v4.fd())),
            ("FLOWS_V6", raw(self.flows_v6.fd())),
            ("HALF_OPEN_V4", raw(self.half_open_v4.fd())),
            ("HALF_OPEN_V6", raw(self.half_open_v6.fd())),
            ("OVERFLOW_V4", raw(self.overflow_v4.fd())),
            ("OVERFLOW_V6", raw(self.overflow_v6.fd())),
            ("NODE_V4", raw(self.node_v4.fd())),
            ("NODE_V6", raw(self.node_v6.fd())),
            ("CLASS_V4", raw(self.class_v4.fd())),
            ("CLASS_V6", raw(self.class_v6.fd())),
            ("CIDR_V4", raw(self.cidr_v4.fd())),
            ("CIDR_V6", raw(self.cidr_v6.fd())),
            ("VERDICTS", raw(self.verdicts.fd())),
            ("PROFILES", raw(self.profiles.fd())),
            ("PORTS", raw(self.ports.fd())),
            ("SERVICE_V4", raw(self.service_v4.fd())),
            ("SERVICE_V6", raw(self.service_v6.fd())),
            ("BACKENDS", raw(self.backends.fd())),
            ("MEMBERS", raw(self.members.fd())),
            ("AFFINITY", raw(self.affinity.fd())),
            ("EVENTS", self.events.as_raw_fd()),
            ("FRAGMENTS", self.fragments.as_raw_fd()),
            ("SCRATCH_V4", self.scratch[0].as_raw_fd()),
            ("SCRATCH_V6", self.scratch[1].as_raw_fd()),
            ("SCRATCH_POD", self.scratch[2].as_raw_fd()),
        ]
    }
}

fn relocate(object: &mut Object, maps: &Maps, followers: &OwnedFd) -> Result<()> {
    let failed = |error| Error::bpf("relocating the object".to_owned(), error);
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let mut definitions = Vec::new();
    let followers = (FOLLOWERS, followers.as_raw_fd());
    for (name, fd) in maps.by_name().into_iter().chain([followers]) {
        definitions.push((name, fd, object.maps.get(name).ok_or_else(|| missing(name))?.clone()));
    }
    let maps = definitions.iter().map(|(name, fd, definition)| (*name, *fd, definition));
    object.relocate_maps(maps, &sections).map_err(failed)?;
    object.relocate_calls(&sections).map_err(failed)
}

fn load_program(object: &Object, name: &'static str) -> Result<Program> {
    let program = object.programs.get(name).ok_or_else(|| missing(name))?;
    let function = object.functions.get(&program.function_key()).ok_or_else(|| missing(name))?;
    let fd = syscall::load_classifier(name, &function.instructions, &program.license)
        .map_err(|error| Error::bpf(format!("program {name}"), error))?;
    let id = id(&fd)?;
    Ok(Program { name, fd, id })
}

/// The kernel's number of the program: proc(5), `fdinfo` of a BPF program.
fn id(program: &OwnedFd) -> Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let text = fs::read_to_string(&path).map_err(Error::io(format!("reading {path}")))?;
    let id = text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    id.ok_or_else(|| missing("prog_id in fdinfo"))
}

fn missing(what: &str) -> Error {
    Error::bpf(format!("{what} is missing"), std::io::Error::from(std::io::ErrorKind::NotFound))
}
