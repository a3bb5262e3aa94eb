//! A cluster that remembers what it is told.

use std::sync::{Mutex, PoisonError};

use veni_core::wire::PodRef;

use crate::report::{Followed, Happening, Network, Tell};

/// It.
#[derive(Debug, Default)]
pub struct Told(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    happenings: Vec<Happening>,
    networks: Vec<Network>,
    following: Vec<Option<Followed>>,
    annotations: Vec<(String, String)>,
    untainted: Vec<Option<String>>,
}

impl Told {
    fn state<T>(&self, read: impl FnOnce(&mut State) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Events: the pod's name, or none for the node's, reason and note.
    #[must_use]
    pub fn happenings(&self) -> Vec<(String, &'static str, String)> {
        let show = |told: &Happening| {
            let pod = told.pod.as_ref().map(|pod| pod.name.clone());
            (pod.unwrap_or_default(), told.reason, told.note.clone())
        };
        self.state(|state| state.happenings.iter().map(show).collect())
    }

    /// Whether pods could be wired, and the reasons, as they came.
    #[must_use]
    pub fn networks(&self) -> Vec<(bool, &'static str)> {
        let show = |told: &Network| (told.available, told.reason);
        self.state(|state| state.networks.iter().map(show).collect())
    }

    /// What was followed last, if anything was told.
    #[must_use]
    pub fn following(&self) -> Option<Option<Followed>> {
        self.state(|state| state.following.last().cloned())
    }

    /// Pods' names and addresses.
    #[must_use]
    pub fn annotations(&self) -> Vec<(String, String)> {
        self.state(|state| state.annotations.clone())
    }

    /// The taints that may go, each time that a daemon was able.
    #[must_use]
    pub fn untainted(&self) -> Vec<Option<String>> {
        self.state(|state| state.untainted.clone())
    }
}

impl Tell for Told {
    fn happened(&self, happening: Happening) {
        self.state(|state| state.happenings.push(happening));
    }

    fn annotate(&self, pod: &PodRef, addresses: String) {
        self.state(|state| state.annotations.push((pod.name.clone(), addresses)));
    }

    fn network(&self, network: Network) {
        self.state(|state| state.networks.push(network));
    }

    fn able(&self, startup_taint: Option<&str>) {
        self.state(|state| state.untainted.push(startup_taint.map(str::to_owned)));
    }

    fn following(&self, following: Option<Followed>) {
        self.state(|state| state.following.push(following));
    }

    fn metrics(&self) -> String {
        String::new()
    }
}
