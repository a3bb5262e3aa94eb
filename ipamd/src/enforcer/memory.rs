//! The labels that pods of this node had, on disk: for a pod whose object does not come in time.
//!
//! Only what rules know of a pod is kept, as its manifest: names of rule sets would mean nothing after a reboot, when the
//! addresses that their tables name are other pods' (ADR 0014). Written at most once a second, and not at each ADD: what
//! is lost in between leaves a pod closed that could have been open. Beside the journal, so that it leaves with it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use veni_core::chain::chain;
use veni_policy::{
    change::PodKey,
    object::{Object, Pod, parse},
};

/// Pods that are remembered: all that a node can have, and as many that are gone.
const MOST: usize = 1024;
/// Changes within this time are written together.
const GATHER: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Memory {
    /// `None`: nothing outlives the daemon.
    file: Option<PathBuf>,
    /// Each with when it was last seen, by `clock`.
    pods: BTreeMap<PodKey, (u64, Pod)>,
    clock: u64,
    write_at: Option<Instant>,
}

impl Memory {
    /// What is in the file. One that cannot be read is an empty one, and said.
    #[must_use]
    pub fn open(file: PathBuf) -> Self {
        let pods = read(&file).unwrap_or_else(|error| {
            let file = file.display();
            tracing::warn!(%error, %file, "labels of earlier pods not read: none is remembered");
            Vec::new()
        });
        let mut memory = Self { file: Some(file), ..Self::default() };
        pods.iter().for_each(|pod| memory.keep(pod));
        memory
    }

    /// The pod that had this name.
    #[must_use]
    pub fn get(&self, pod: &PodKey) -> Option<&Pod> {
        self.pods.get(pod).map(|(_, pod)| pod)
    }

    /// Remembers what rules know of the pod.
    pub fn learn(&mut self, pod: &Pod, now: Instant) {
        let known = self.get(&PodKey::new(&pod.namespace, &pod.name));
        let news = known.is_none_or(|known| {
            known.labels != pod.labels
                || known.uid != pod.uid
                || known.ports != pod.ports
                || known.security_groups != pod.security_groups
        });
        self.keep(pod);
        if news && self.file.is_some() {
            self.write_at.get_or_insert(now + GATHER);
        }
    }

    fn keep(&mut self, pod: &Pod) {
        self.clock += 1;
        let kept = Pod { addresses: Vec::new(), diagnostics: Vec::new(), ..pod.clone() };
        self.pods.insert(PodKey::new(&pod.namespace, &pod.name), (self.clock, kept));
        if self.pods.len() > MOST {
            let oldest = self.pods.iter().min_by_key(|(_, (seen, _))| *seen);
            let oldest = oldest.map(|(pod, _)| pod.clone()).expect("there are many");
            self.pods.remove(&oldest);
        }
    }

    /// When [`Memory::write`] has something to do.
    #[must_use]
    pub const fn wake_at(&self) -> Option<Instant> {
        self.write_at
    }

    /// Writes what changed, if it is time to.
    pub fn write(&mut self, now: Instant) {
        if self.write_at.is_none_or(|at| at > now) {
            return;
        }
        self.write_at = None;
        let Some(file) = &self.file else { return };
        let mut pods: Vec<_> = self.pods.values().collect();
        pods.sort_by_key(|(seen, _)| *seen);
        let manifests = pods.into_iter().map(|(_, pod)| pod.manifest()).collect();
        if let Err(error) = replace(file, &Value::Array(manifests)) {
            let file = file.display();
            tracing::warn!(error = chain(&error), %file, "labels of pods not written");
        }
    }
}

fn read(file: &Path) -> Result<Vec<Pod>, String> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let manifests: Vec<Value> = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let pods = manifests.iter().filter_map(|manifest| match parse(manifest) {
        Ok(Some(Object::Pod(pod))) => Some(pod),
        _ => None,
    });
    Ok(pods.collect())
}

/// A reader finds the old file or the new one, whole.
fn replace(file: &Path, document: &Value) -> io::Result<()> {
    let next = file.with_extension("pods.next");
    fs::write(&next, document.to_string())?;
    fs::rename(&next, file)
}
