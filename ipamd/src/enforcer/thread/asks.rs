//! Asking for the pods that ADDs wait for and that nobody has told of yet.
//!
//! Each ADD asks once; who asks the API server does so for as long as the ADD waits. Before all objects were read nothing is
//! asked: a pod alone says nothing without the policies that select it.

use std::{collections::BTreeMap, fmt, time::Instant};

use veni_policy::change::PodKey;

use crate::enforcer::{Enforcer, Plane};

/// Asks for a pod of this name, with this UID where it is known, until then.
pub(super) type Ask = Box<dyn Fn(&PodKey, Option<&str>, Instant) + Send>;

/// Which ADDs have asked.
pub(super) struct Asks {
    ask: Ask,
    /// By interface, with the end of its wait: the same interface is never two waits of one end.
    asked: BTreeMap<u32, Instant>,
}

impl Asks {
    pub(super) const fn new(ask: Ask) -> Self {
        Self { ask, asked: BTreeMap::new() }
    }

    /// Asks for those that nobody has asked for.
    pub(super) fn turn<P: Plane>(&mut self, enforcer: &Enforcer<P>) {
        if enforcer.waiting.is_empty() {
            self.asked.clear();
            return;
        }
        let waits = |ifindex: &u32| {
            enforcer.waiting.iter().any(|waiting| waiting.wired.ifindex == *ifindex)
        };
        self.asked.retain(|ifindex, _| waits(ifindex));
        for waiting in enforcer.waiting.iter().filter(|_| enforcer.complete) {
            let (wired, until) = (&waiting.wired, waiting.deadline);
            if enforcer.is_unheard(&wired.pod, wired.uid.as_deref())
                && self.asked.insert(wired.ifindex, until) != Some(until)
            {
                (self.ask)(&wired.pod, wired.uid.as_deref(), until);
            }
        }
    }
}

impl<P: Plane> Enforcer<P> {
    /// Whether this very pod's object was not told yet, as bound to this node: a pod that is told of before it was bound is
    /// still to be told as it is now.
    fn is_unheard(&self, pod: &PodKey, uid: Option<&str>) -> bool {
        let Some(known) = self.pods.get(pod) else { return true };
        known.node.as_deref() != Some(&self.node)
            || matches!((known.uid.as_deref(), uid), (Some(known), Some(asked)) if known != asked)
    }
}

impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asks").field("asked", &self.asked).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::IpAddr,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use serde_json::json;
    use veni_core::config::Enforcing;
    use veni_datapath::bpf::PodIdentity;
    use veni_policy::{
        change::{PodSets, Remove, Write},
        object::parse,
        service::OwnNode,
    };

    use super::*;
    use crate::enforcer::{Found, Memory, Wired};

    /// Tables that take everything.
    struct Willing;

    impl Plane for Willing {
        fn write(&self, _: &[Write]) -> Result<(), String> {
            Ok(())
        }
        fn remove(&self, _: &[Remove]) -> Result<(), String> {
            Ok(())
        }
        fn judge(&self, _: u32, _: PodSets) -> Result<bool, String> {
            Ok(true)
        }
        fn own_addresses(&self, _: &BTreeSet<IpAddr>) -> Result<(), String> {
            Ok(())
        }
        fn raise_epoch(&self) -> Result<(), String> {
            Ok(())
        }
        fn grace(&self) {}
        fn identity(&self, _: u32) -> Option<PodIdentity> {
            None
        }
        fn drops(&self) -> BTreeMap<String, u64> {
            BTreeMap::new()
        }
        fn counters(&self) -> BTreeMap<String, u64> {
            BTreeMap::new()
        }
    }

    struct Bench {
        enforcer: Enforcer<Willing>,
        asks: Asks,
        asked: Arc<Mutex<Vec<String>>>,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let asked = Arc::<Mutex<Vec<String>>>::default();
            let told = asked.clone();
            let ask: Ask = Box::new(move |pod: &PodKey, uid: Option<&str>, _| {
                told.lock().unwrap().push(format!("{pod} {}", uid.unwrap_or("?")));
            });
            let own = OwnNode { name: "n".to_owned(), zone: None, addresses: BTreeSet::new() };
            let (memory, found) = (Memory::default(), Found::default());
            let enforcer = Enforcer::new(Willing, own, Enforcing::Standard, memory, &found);
            Self { enforcer, asks: Asks::new(ask), asked, now: Instant::now() }
        }

        fn attach(&mut self, name: &str, uid: &str, ifindex: u32) {
            let wired = Wired {
                pod: PodKey::new("x", name),
                uid: Some(uid.to_owned()),
                addresses: vec!["10.0.0.7".parse().unwrap()],
                ifindex,
            };
            let deadline = self.now + Duration::from_secs(2);
            self.enforcer.attach(wired, deadline, Box::new(|_| {}), self.now);
        }

        fn objects(&mut self, pods: &[(&str, &str)], complete: bool) {
            let pods = pods.iter().map(|(name, uid)| {
                let object = json!({
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"namespace": "x", "name": name, "uid": uid}, "spec": {"nodeName": "n"},
                });
                parse(&object).unwrap().unwrap()
            });
            self.enforcer.objects(pods.collect(), &[], Vec::new(), complete, self.now);
        }

        fn asked(&mut self) -> Vec<String> {
            self.asks.turn(&self.enforcer);
            std::mem::take(&mut self.asked.lock().unwrap())
        }
    }

    #[test]
    fn an_add_asks_once_for_a_pod_that_nobody_has_told_of() {
        let mut bench = Bench::new();
        bench.attach("early", "u0", 1);
        assert!(bench.asked().is_empty(), "the objects were not read yet");
        bench.objects(&[("known", "u1"), ("renewed", "u2")], true);
        assert_eq!(bench.asked(), ["x/early u0"]);
        bench.attach("known", "u1", 2);
        bench.attach("new", "u3", 3);
        bench.attach("renewed", "u4", 4);
        assert_eq!(bench.asked(), ["x/new u3", "x/renewed u4"]);
        assert!(bench.asked().is_empty(), "each asks once");
        bench.objects(&[("new", "u3"), ("renewed", "u4"), ("early", "u0")], true);
        assert!(bench.asked().is_empty());
        assert!(bench.enforcer.waiting.is_empty());
        // Made anew under its name and on the same interface.
        bench.now += Duration::from_secs(1);
        bench.attach("new", "u5", 3);
        assert_eq!(bench.asked(), ["x/new u5"]);
    }

    #[test]
    fn an_add_asks_for_a_pod_that_was_told_of_before_it_was_bound() {
        let mut bench = Bench::new();
        let unbound = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "x", "name": "a", "uid": "u1"}, "spec": {},
        });
        let objects = vec![parse(&unbound).unwrap().unwrap()];
        bench.enforcer.objects(objects, &[], Vec::new(), true, bench.now);
        bench.attach("a", "u1", 1);
        assert_eq!(bench.asked(), ["x/a u1"]);
        assert!(bench.asked().is_empty(), "once");
        bench.objects(&[("a", "u1")], true);
        assert!(bench.enforcer.waiting.is_empty());
    }
}
