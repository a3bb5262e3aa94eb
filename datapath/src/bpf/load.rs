//! From the object to a loaded program and its pinned maps.
//!
//! Not by `aya::EbpfLoader`: its constructor parses the kernel's whole BTF (25 ms and 20 MB here), which relocations
//! against kernel types would need; our programs have none.

use std::{
    collections::HashSet,
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::maps::{HashMap, Map, MapData, MapInfo, PerCpuArray};
use aya_obj::Object;
use veni_ebpf_common::LAYOUT_VERSION;

use super::{Value, bpf, bpffs, syscall};
use crate::error::{Error, Result};

/// The object, as `build.rs` made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/veni-bpf.o"));
/// The program for what leaves a pod.
pub const PROGRAM: &str = "pod_egress";
const PODS: &str = "PODS";
const DROPS: &str = "DROPS";

pub(super) struct Loaded {
    pub(super) program: OwnedFd,
    pub(super) program_id: u32,
    pub(super) pods: HashMap<MapData, u32, Value>,
    pub(super) drops: PerCpuArray<MapData, u64>,
    /// Both maps were there.
    pub(super) adopted: bool,
}

/// Where the maps of this layout are pinned.
pub(super) fn pins(bpf_dir: &Path) -> PathBuf {
    bpf_dir.join(format!("v{LAYOUT_VERSION}"))
}

pub(super) fn load(bpf_dir: &Path) -> Result<Loaded> {
    let dir = pins(bpf_dir);
    bpffs::ensure_dir(&dir)?;
    let mut object = Object::parse(OBJECT).map_err(|e| bpf("reading the object".to_owned(), e))?;
    let pods = map(&object, PODS, &dir)?;
    let drops = map(&object, DROPS, &dir)?;
    relocate(&mut object, &[(PODS, &pods.data), (DROPS, &drops.data)])?;
    let program = load_program(&object)?;
    let program_id = id(&program)?;
    let adopted = pods.adopted && drops.adopted;
    let pods = HashMap::try_from(Map::HashMap(pods.data)).map_err(|e| bpf(name(PODS), e))?;
    let drops =
        PerCpuArray::try_from(Map::PerCpuArray(drops.data)).map_err(|e| bpf(name(DROPS), e))?;
    Ok(Loaded { program, program_id, pods, drops, adopted })
}

struct Pinned {
    data: MapData,
    adopted: bool,
}

/// The map pinned under its name, or a new one, pinned. A pin of the right name and the wrong shape (a development
/// build's) is replaced: whoever uses that map keeps it.
fn map(object: &Object, map: &str, dir: &Path) -> Result<Pinned> {
    let definition = object.maps.get(map).ok_or_else(|| missing(map))?;
    let path = dir.join(map);
    if path.exists() {
        let info = MapInfo::from_pin(&path).map_err(|e| bpf(name(map), e))?;
        let shape = (info.key_size(), info.value_size(), info.max_entries());
        if shape == (definition.key_size(), definition.value_size(), definition.max_entries()) {
            let data = MapData::from_pin(&path).map_err(|e| bpf(name(map), e))?;
            return Ok(Pinned { data, adopted: true });
        }
        tracing::warn!(path = %path.display(), "a pinned map of another shape: making a new one");
        fs::remove_file(&path)
            .map_err(Error::io(format!("removing the pin {}", path.display())))?;
    }
    let data = MapData::create(definition.clone(), map, None).map_err(|e| bpf(name(map), e))?;
    data.pin(&path).map_err(|e| bpf(format!("pinning {}", path.display()), e))?;
    Ok(Pinned { data, adopted: false })
}

fn relocate(object: &mut Object, maps: &[(&str, &MapData)]) -> Result<()> {
    let failed = |error| bpf("relocating the object".to_owned(), error);
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let definitions: Vec<_> = maps
        .iter()
        .filter_map(|(name, data)| {
            let definition = object.maps.get(*name)?.clone();
            Some((*name, data.fd().as_fd().as_raw_fd(), definition))
        })
        .collect();
    let maps = definitions.iter().map(|(name, fd, definition)| (*name, *fd, definition));
    object.relocate_maps(maps, &sections).map_err(failed)?;
    object.relocate_calls(&sections).map_err(failed)
}

fn load_program(object: &Object) -> Result<OwnedFd> {
    let program = object.programs.get(PROGRAM).ok_or_else(|| missing(PROGRAM))?;
    let function = object.functions.get(&program.function_key()).ok_or_else(|| missing(PROGRAM))?;
    syscall::load_classifier(PROGRAM, &function.instructions, &program.license)
        .map_err(|error| bpf(format!("program {PROGRAM}"), error))
}

/// The kernel's number of the program: proc(5), `fdinfo` of a BPF program.
fn id(program: &OwnedFd) -> Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let text = fs::read_to_string(&path).map_err(Error::io(format!("reading {path}")))?;
    let id = text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    id.ok_or_else(|| missing("prog_id in fdinfo"))
}

fn name(map: &str) -> String {
    format!("map {map}")
}

fn missing(what: &str) -> Error {
    bpf(format!("{what} is missing"), std::io::Error::from(std::io::ErrorKind::NotFound))
}
