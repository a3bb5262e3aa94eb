//! The labels that pods of this node had, on disk: for a pod whose object does not come in time.
//!
//! Only what rules know of a pod is kept, as its manifest: names of rule sets would mean nothing after a reboot, when the
//! addresses that their tables name are other pods' (ADR 0014). Written at most once a second, and not at each ADD: what
//! is lost in between leaves a pod closed that could have been open. Beside the journal, so that it leaves with it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;
use veni_core::chain::chain;
use veni_policy::{
    change::PodKey,
    object::{Object, Pod, parse},
};

/// Pods that are remembered: all that a node can have (735), and some that are gone.
const MOST: usize = 1024;
/// Changes within this time are written together.
const GATHER: Duration = Duration::from_secs(1);
/// After a failure it is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub struct Memory {
    /// `None`: nothing outlives the daemon.
    file: Option<PathBuf>,
    /// Each with when it was last seen, by `clock`.
    pods: BTreeMap<PodKey, (u64, Pod)>,
    clock: u64,
    write_at: Option<Instant>,
    /// When the outcome of the last writing is looked at.
    check_at: Option<Instant>,
    /// What is being written: a disk may take its time, and pods do not wait for it.
    writing: Option<JoinHandle<bool>>,
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
        let mut memory = Self::default();
        memory.file = Some(file);
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
    pub fn wake_at(&self) -> Option<Instant> {
        [self.write_at, self.check_at].into_iter().flatten().min()
    }

    /// Writes what changed, if it is time to.
    pub fn write(&mut self, now: Instant) {
        self.check(now);
        if self.write_at.is_none_or(|at| at > now) {
            return;
        }
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            self.write_at = Some(now + GATHER);
            return;
        }
        self.write_at = None;
        let Some(file) = self.file.clone() else { return };
        let mut pods: Vec<_> = self.pods.values().collect();
        pods.sort_by_key(|(seen, _)| *seen);
        let manifests: Vec<_> = pods.into_iter().map(|(_, pod)| pod.manifest()).collect();
        let written = thread::Builder::new().name("labels".to_owned()).spawn(move || {
            let written = replace(&file, &Value::Array(manifests));
            if let Err(error) = &written {
                let file = file.display();
                tracing::warn!(error = chain(error), %file, "labels of pods not written: it is tried again");
            }
            written.is_ok()
        });
        self.writing = written.ok();
        self.check_at = Some(now + RETRY);
    }

    /// Has what could not be written tried again.
    fn check(&mut self, now: Instant) {
        if self.check_at.is_none_or(|at| at > now) {
            return;
        }
        self.check_at = None;
        let written = self.writing.take().is_some_and(|writing| writing.join().unwrap_or(false));
        if !written {
            self.write_at.get_or_insert(now);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take() {
            // Its failure was told.
            drop(writing.join());
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
    let mut written = File::create(&next)?;
    written.write_all(document.to_string().as_bytes())?;
    // A machine that loses power does not leave an empty file under the name.
    written.sync_all()?;
    fs::rename(&next, file)
}
