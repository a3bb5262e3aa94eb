//! Whatever is called, in whatever order, with whatever faults: no address twice, no limit exceeded, nothing lost.

#![expect(clippy::unwrap_used, reason = "a test says what it needs by failing")]

#[path = "common/region.rs"]
mod region;

use std::time::Duration;

use proptest::prelude::*;
use veni_core::id::{AttachmentId, EniId, SubnetId};
use veni_provider::{
    AttachInterface, CreateInterface, Interface,
    call::{ACTIONS, Call},
    sim::{Consistency, Fault, Latency, Sim, SimConfig},
};

use crate::region::{instance, region, request};

#[derive(Debug, Clone)]
enum Step {
    Create { small: bool, secondary: u32, prefixes: u32, token: u8 },
    Attach { which: usize, device_index: u8 },
    Detach { which: usize },
    Delete { which: usize },
    Assign { which: usize, count: u32 },
    Unassign { which: usize, from: usize, foreign: bool },
    KeepNoLonger { which: usize },
    Fault { action: usize, kind: u8 },
    Occupy { count: u32 },
    Wait { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..8_usize;
    prop_oneof![
        4 => (any::<bool>(), 0..12_u32, 0..3_u32, any::<u8>()).prop_map(|(small, secondary, prefixes, token)| {
            Step::Create { small, secondary, prefixes: if secondary < 6 { 0 } else { prefixes }, token }
        }),
        3 => (which.clone(), 0..5_u8).prop_map(|(which, device_index)| Step::Attach { which, device_index }),
        2 => which.clone().prop_map(|which| Step::Detach { which }),
        2 => which.clone().prop_map(|which| Step::Delete { which }),
        4 => (which.clone(), 0..12_u32).prop_map(|(which, count)| Step::Assign { which, count }),
        3 => (which.clone(), 0..12_usize, any::<bool>())
            .prop_map(|(which, from, foreign)| Step::Unassign { which, from, foreign }),
        1 => which.prop_map(|which| Step::KeepNoLonger { which }),
        1 => (0..ACTIONS.len(), 0..4_u8).prop_map(|(action, kind)| Step::Fault { action, kind }),
        1 => (0..40_u32).prop_map(|count| Step::Occupy { count }),
        3 => (0..4_000_u64).prop_map(|millis| Step::Wait { millis }),
    ]
}

struct Story {
    sim: Sim,
    now: Duration,
    occupied: u32,
}

impl Story {
    fn new(seed: u64) -> Self {
        let latency = Latency {
            attach_millis: 1_000,
            detach_millis: 1_500,
            jitter_percent: 30,
            ..Latency::none()
        };
        let consistency = Consistency {
            describe_delay_millis: 700,
            describe_stale_percent: 50,
            ..Consistency::default()
        };
        let sim =
            region(SimConfig { latency, consistency, ..SimConfig::instant().with_seed(seed) });
        Self { sim, now: Duration::ZERO, occupied: 0 }
    }

    fn pick(&self, which: usize) -> Option<Interface> {
        let count = self.sim.interfaces().count();
        self.sim.interfaces().nth(which % count.max(1)).cloned()
    }

    fn call_for(&self, step: &Step) -> Option<Call> {
        let id = |which: &usize| self.pick(*which).map(|interface| interface.id);
        let attachment = |which: &usize| self.pick(*which)?.attachment.map(|a| a.id);
        Some(match step {
            Step::Create { small, secondary, prefixes, token } => {
                let subnet: SubnetId =
                    if *small { "subnet-small" } else { "subnet-a" }.parse().unwrap();
                let request = request(&subnet, &format!("t{token}"), *secondary);
                Call::CreateInterface(CreateInterface { prefixes: *prefixes, ..request })
            }
            Step::Attach { which, device_index } => Call::AttachInterface(AttachInterface {
                eni: id(which)?,
                instance: instance(),
                device_index: *device_index,
                network_card: 0,
            }),
            Step::Detach { which } => Call::DetachInterface(attachment(which)?),
            Step::Delete { which } => Call::DeleteInterface(id(which)?),
            Step::Assign { which, count } => {
                Call::AssignAddresses { eni: id(which)?, count: *count }
            }
            Step::Unassign { which, from, foreign } => {
                let interface = self.pick(*which)?;
                let mut addresses: Vec<_> =
                    interface.secondary_addresses.iter().skip(*from).copied().collect();
                addresses.extend(foreign.then_some(interface.primary_address));
                Call::UnassignAddresses { eni: interface.id, addresses }
            }
            Step::KeepNoLonger { which } => {
                Call::SetDeleteOnTermination { eni: id(which)?, attachment: attachment(which)? }
            }
            Step::Fault { .. } | Step::Occupy { .. } | Step::Wait { .. } => return None,
        })
    }

    /// Takes a step. Whether its call answered, and with what error code.
    fn take(&mut self, step: &Step) -> Result<(), String> {
        if let Some(call) = self.call_for(step) {
            return self
                .sim
                .call(self.now, &instance(), call)
                .map(|_| ())
                .map_err(|error| error.code);
        }
        match step {
            Step::Wait { millis } => {
                self.now += Duration::from_millis(*millis);
                self.sim.advance(self.now);
            }
            Step::Occupy { count } => {
                let taken = self.sim.occupy(&"subnet-a".parse().unwrap(), *count);
                self.occupied +=
                    taken.map_or(0, |addresses| u32::try_from(addresses.len()).unwrap());
            }
            Step::Fault { action, kind } => {
                let action = ACTIONS[*action];
                let fault = match kind {
                    0 => Fault::unavailable(action),
                    1 => Fault::lost_answer(action),
                    2 => Fault::throttle(action, Some(100)),
                    _ => Fault::deny(action),
                };
                self.sim.inject(fault.nth(2));
            }
            _ => {}
        }
        Ok(())
    }

    /// Addresses on ENIs, free, occupied and reserved are all of the subnet.
    fn unaccounted(&self, subnet: &str, occupied: u32, size: u32) -> i64 {
        let subnet: SubnetId = subnet.parse().unwrap();
        let own = self.sim.interfaces().filter(|interface| interface.subnet_id == subnet);
        let used: usize =
            own.map(|i| 1 + i.secondary_addresses.len() + 16 * i.prefixes.len()).sum();
        let free = self.sim.free_addresses(&subnet).unwrap();
        i64::from(size) - i64::from(free) - i64::from(occupied) - 5 - i64::try_from(used).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_after_every_step(seed: u64, steps in proptest::collection::vec(step(), 1..80)) {
        let mut story = Story::new(seed);
        for step in &steps {
            let before = story.sim.state();
            let outcome = story.take(step);
            prop_assert_eq!(story.sim.audit(), Vec::<String>::new(), "after {:?}", step);
            prop_assert_eq!(story.unaccounted("subnet-a", story.occupied, 1_024), 0, "after {:?}", step);
            prop_assert_eq!(story.unaccounted("subnet-small", 0, 16), 0, "after {:?}", step);
            // A refusal changes nothing; only a lost answer may have taken effect.
            if let Err(code) = outcome && code != "Unavailable" {
                prop_assert_eq!(before.interfaces, story.sim.state().interfaces, "{} changed something", code);
            }
        }
    }

    #[test]
    fn a_story_told_twice_ends_the_same(seed: u64, steps in proptest::collection::vec(step(), 1..60)) {
        let tell = || {
            let mut story = Story::new(seed);
            let outcomes: Vec<_> = steps.iter().map(|step| story.take(step)).collect();
            (outcomes, story.sim.state(), story.sim.calls().clone())
        };
        prop_assert_eq!(tell(), tell());
    }

    #[test]
    fn every_step_ends_in_a_region_that_can_be_emptied(seed: u64, steps in proptest::collection::vec(step(), 1..60)) {
        let mut story = Story::new(seed);
        steps.iter().for_each(|step| drop(story.take(step)));
        story.sim.clear_faults();
        story.now += Duration::from_secs(60);
        let primary = story.sim.state().instances[0].primary.clone();
        let call = |sim: &mut Sim, now, call| sim.call(now, &instance(), call).unwrap();
        story.sim.advance(story.now);
        let others: Vec<_> = story.sim.interfaces().filter(|i| i.id != primary).cloned().collect();
        for attachment in others.iter().filter_map(|i| i.attachment.as_ref()) {
            let id: AttachmentId = attachment.id.clone();
            call(&mut story.sim, story.now, Call::DetachInterface(id));
        }
        story.now += Duration::from_secs(60);
        for interface in others {
            let eni: EniId = interface.id;
            call(&mut story.sim, story.now, Call::DeleteInterface(eni));
        }
        prop_assert_eq!(story.sim.interfaces().count(), 1);
        prop_assert_eq!(story.unaccounted("subnet-a", story.occupied, 1_024), 0);
        prop_assert_eq!(story.sim.free_addresses(&"subnet-small".parse().unwrap()), Some(11));
    }
}
