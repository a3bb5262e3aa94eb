//! From the object to a loaded program and its pinned maps.

use std::{fs, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, MapInfo, PerCpuArray},
    programs::SchedClassifier,
};
use veni_core::marks::EniMarkMask;
use veni_ebpf_common::LAYOUT_VERSION;

use super::{Value, bpf, bpffs};
use crate::error::{Error, Result};

/// The object, as `build.rs` made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/veni-bpf.o"));
/// The program for what leaves a pod.
pub const PROGRAM: &str = "pod_egress";
/// The maps that are pinned, with the sizes of key and value.
const PINNED: [(&str, u32, u32); 2] = [("PODS", 4, 16), ("DROPS", 4, 8)];

pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) pods: HashMap<MapData, u32, Value>,
    pub(super) drops: PerCpuArray<MapData, u64>,
    pub(super) program_id: u32,
    pub(super) adopted: bool,
}

pub(super) fn load(bpf_dir: &Path, mask: EniMarkMask) -> Result<Loaded> {
    let dir = bpf_dir.join(format!("v{LAYOUT_VERSION}"));
    bpffs::ensure_dir(&dir)?;
    let adopted = adoptable(&dir)?;
    let bits = mask.bits();
    let mut loader = EbpfLoader::new();
    loader.override_global("ENI_MARK_MASK", &bits, true);
    for (name, ..) in PINNED {
        loader.map_pin_path(name, dir.join(name));
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|source| bpf("reading the object".to_owned(), source))?;
    let program_id = load_program(&mut ebpf)?;
    let mut take = |name: &'static str| ebpf.take_map(name).ok_or_else(|| missing(name));
    let pods =
        HashMap::try_from(take("PODS")?).map_err(|source| bpf("map PODS".to_owned(), source))?;
    let drops = PerCpuArray::try_from(take("DROPS")?)
        .map_err(|source| bpf("map DROPS".to_owned(), source))?;
    Ok(Loaded {
        ebpf,
        pods,
        drops,
        program_id,
        adopted,
    })
}

fn load_program(ebpf: &mut Ebpf) -> Result<u32> {
    let verifier = |source| bpf(format!("program {PROGRAM}"), source);
    let program = ebpf.program_mut(PROGRAM).ok_or_else(|| missing(PROGRAM))?;
    let program: &mut SchedClassifier = program.try_into().map_err(verifier)?;
    program.load().map_err(verifier)?;
    Ok(program.info().map_err(verifier)?.id())
}

/// Whether all pins are there and shaped as ours. A pin of the right name and the wrong shape (a development build's)
/// is removed: whoever uses the map keeps it, we make our own.
fn adoptable(dir: &Path) -> Result<bool> {
    let mut all = true;
    for (name, key, value) in PINNED {
        let path = dir.join(name);
        if !path.exists() {
            all = false;
            continue;
        }
        let fits = MapInfo::from_pin(&path)
            .is_ok_and(|info| info.key_size() == key && info.value_size() == value);
        if !fits {
            tracing::warn!(path = %path.display(), "a pinned map of another shape: making a new one");
            fs::remove_file(&path)
                .map_err(Error::io(format!("removing the pin {}", path.display())))?;
            all = false;
        }
    }
    Ok(all)
}

pub(super) fn missing(name: &str) -> Error {
    bpf(
        format!("{name} is not in the object"),
        std::io::Error::from(std::io::ErrorKind::NotFound),
    )
}
