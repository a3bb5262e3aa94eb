//! A model of the maps, which carries out steps one by one and watches what a program could see between them.

use std::collections::BTreeMap;

use veni_ebpf_common::table::{BackendKey, BackendValue, ServiceValue};
use veni_policy::{
    change::{Remove, Step, Write},
    service::{BackEnd, Found, FrontEnd},
};

/// What a front end leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) affinity_secs: u32,
    pub(crate) service: u32,
    pub(crate) of_proxy: bool,
    pub(crate) back_ends: Vec<BackEnd>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Maps {
    services: BTreeMap<FrontEnd, ServiceValue>,
    back_ends: BTreeMap<BackendKey, BackendValue>,
    /// What programs that are still running have read of `SERVICE_…`, and the list that it stood for.
    readers: Vec<(ServiceValue, Vec<BackendValue>)>,
}

impl Maps {
    /// Carries out the steps. Each front end has to go from the old state to the new one at once, and every program
    /// that looks up its list late has to find the one that it was sent to.
    pub(crate) fn carry_out(&mut self, steps: &[Step]) {
        let before = self.seen();
        let mut between: Vec<BTreeMap<FrontEnd, Seen>> = Vec::new();
        for step in steps {
            self.read();
            self.step(step);
            self.check_readers(step);
            between.push(self.seen());
        }
        let after = self.seen();
        for at in before.keys().chain(after.keys()) {
            let (old, new) = (before.get(at), after.get(at));
            let turned = between.iter().position(|state| state.get(at) != old);
            for (index, state) in between.iter().enumerate() {
                let expect = if turned.is_some_and(|turned| index >= turned) { new } else { old };
                assert_eq!(state.get(at), expect, "{at:?} after step {index} of {steps:#?}");
            }
        }
    }

    /// What every front end leads to now. Panics when a list is not complete.
    pub(crate) fn seen(&self) -> BTreeMap<FrontEnd, Seen> {
        self.services
            .iter()
            .map(|(at, value)| {
                let list = self.list(value).unwrap_or_else(|| panic!("{at:?}: holes in {value:?}"));
                let back_ends = list.iter().map(|value| decode(value, at.address.is_ipv4()));
                let seen = Seen {
                    affinity_secs: value.affinity_secs,
                    service: value.service,
                    of_proxy: value.count == ServiceValue::OF_PROXY,
                    back_ends: back_ends.collect(),
                };
                (*at, seen)
            })
            .collect()
    }

    /// As a new daemon reads it.
    pub(crate) fn found(&self) -> Found {
        Found {
            front_ends: self.services.iter().map(|(at, value)| (*at, *value)).collect(),
            back_ends: self.back_ends.iter().map(|(key, value)| (*key, *value)).collect(),
        }
    }

    /// Entries of back ends that no front end leads to.
    pub(crate) fn strays(&self) -> usize {
        let used = |key: &&BackendKey| {
            let mut values = self.services.values();
            values.any(|value| value.backends == key.backends && key.slot < value.count)
        };
        self.back_ends.keys().filter(|key| !used(key)).count()
    }

    fn list(&self, value: &ServiceValue) -> Option<Vec<BackendValue>> {
        let key = |slot| BackendKey { backends: value.backends, slot };
        let count = if value.count == ServiceValue::OF_PROXY { 0 } else { value.count };
        (0..count).map(|slot| self.back_ends.get(&key(slot)).copied()).collect()
    }

    fn read(&mut self) {
        let read = self.services.values().map(|value| (*value, self.list(value).unwrap()));
        let read: Vec<_> = read.filter(|read| !self.readers.contains(read)).collect();
        self.readers.extend(read);
    }

    fn check_readers(&self, step: &Step) {
        for (value, list) in &self.readers {
            assert_eq!(
                self.list(value).as_ref(),
                Some(list),
                "a reader of {value:?} after {step:?}"
            );
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(Write::ServiceV4 { key, value }) => {
                self.services.insert(FrontEnd::of_v4(key).unwrap(), *value);
            }
            Step::Write(Write::ServiceV6 { key, value }) => {
                self.services.insert(FrontEnd::of_v6(key).unwrap(), *value);
            }
            Step::Write(Write::Backend { key, value }) => {
                self.back_ends.insert(*key, *value);
            }
            Step::Delete(Remove::ServiceV4(key)) => {
                assert!(self.services.remove(&FrontEnd::of_v4(key).unwrap()).is_some(), "{key:?}");
            }
            Step::Delete(Remove::ServiceV6(key)) => {
                assert!(self.services.remove(&FrontEnd::of_v6(key).unwrap()).is_some(), "{key:?}");
            }
            Step::Delete(Remove::Backend(key)) => {
                assert!(self.back_ends.remove(key).is_some(), "{key:?}");
            }
            Step::Grace => self.readers.clear(),
            Step::NodeAddresses(_) | Step::Epoch => {}
            other => panic!("no step of Services: {other:?}"),
        }
    }
}

fn decode(value: &BackendValue, v4: bool) -> BackEnd {
    let address = if v4 {
        assert_eq!(value.address[4..], [0; 12]);
        <[u8; 4]>::try_from(&value.address[..4]).unwrap().into()
    } else {
        value.address.into()
    };
    BackEnd { address, port: u16::from_be_bytes(value.port) }
}
