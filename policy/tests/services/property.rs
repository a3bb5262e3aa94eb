//! Random objects, changes, batches and restarts: after each, the maps are what the naive evaluator says, and between
//! the steps no program sees anything but the old list or the new one (`maps`).
//!
//! `VENI_SERVICE_HISTORIES` says how many histories of up to 40 changes are tried (300).

use std::{collections::BTreeMap, env};

use proptest::prelude::*;
use veni_policy::{
    object::{Key, Object},
    service::{Found, FrontEnd, OwnNode, ServiceTables},
};

use crate::{
    generate::{Dice, manifest},
    maps::Maps,
    naive,
    support::{object, own},
};

struct World {
    objects: BTreeMap<Key, Object>,
    own: OwnNode,
    tables: ServiceTables,
    maps: Maps,
}

impl World {
    fn new() -> Self {
        let own = own();
        let tables = ServiceTables::new(own.clone(), &Found::default());
        Self { objects: BTreeMap::new(), own, tables, maps: Maps::default() }
    }

    fn change(&mut self, dice: &mut Dice) {
        match dice.roll(20) {
            0 => self.restart(),
            1 => self.cut_off(dice),
            2 => self.renumber(dice),
            3..5 => self.batch(dice),
            5..9 => {
                let Some(key) = self.any_key(dice) else { return };
                self.objects.remove(&key);
                self.maps.carry_out(&self.tables.delete(&key));
            }
            _ => {
                let new = object(&manifest(dice));
                self.maps.carry_out(&self.tables.apply(&new));
                self.objects.insert(new.key(), new);
            }
        }
        self.check();
    }

    fn batch(&mut self, dice: &mut Dice) {
        let applied: Vec<Object> = (0..dice.roll(6)).map(|_| object(&manifest(dice))).collect();
        let deleted: Vec<Key> = (0..dice.roll(3)).filter_map(|_| self.any_key(dice)).collect();
        for new in &applied {
            self.objects.insert(new.key(), new.clone());
        }
        for key in &deleted {
            self.objects.remove(key);
        }
        self.maps.carry_out(&self.tables.update(&applied, &deleted));
    }

    /// A new daemon, which finds the maps and the same objects: nothing to write, and affinity's numbers are kept.
    fn restart(&mut self) {
        self.tables = ServiceTables::new(self.own.clone(), &self.maps.found());
        assert_eq!(self.tables.reset(self.objects.values()), []);
    }

    /// The daemon ends in the middle of a batch, and things go on while it is away.
    fn cut_off(&mut self, dice: &mut Dice) {
        let new = object(&manifest(dice));
        let steps = self.tables.apply(&new);
        self.objects.insert(new.key(), new);
        self.maps.carry_out(&steps[..dice.roll(steps.len() + 1)]);
        for _ in 0..dice.roll(4) {
            let gone = self.any_key(dice);
            gone.map(|key| self.objects.remove(&key));
            let new = object(&manifest(dice));
            self.objects.insert(new.key(), new);
        }
        self.tables = ServiceTables::new(self.own.clone(), &self.maps.found());
        self.maps.carry_out(&self.tables.reset(self.objects.values()));
    }

    fn renumber(&mut self, dice: &mut Dice) {
        self.own.addresses = own().addresses.into_iter().filter(|_| !dice.rarely(3)).collect();
        self.maps.carry_out(&self.tables.set_addresses(self.own.addresses.clone()));
    }

    fn any_key(&self, dice: &mut Dice) -> Option<Key> {
        let index = dice.roll(self.objects.len().max(1));
        self.objects.keys().nth(index).cloned()
    }

    fn check(&self) {
        let objects: Vec<Object> = self.objects.values().cloned().collect();
        let seen = self.maps.seen();
        self.check_numbers(seen.iter().map(|(at, seen)| (*at, seen.service)));
        let seen: naive::Expected =
            seen.into_iter().map(|(at, seen)| (at, (seen.affinity_secs, seen.back_ends))).collect();
        assert_eq!(seen, naive::expected(&objects, &self.own), "{objects:#?}");
        assert_eq!(self.maps.strays(), 0);
        let told: Vec<_> =
            self.tables.front_ends().map(|(at, to)| (at, to.back_ends.to_vec())).collect();
        let seen: Vec<_> = seen.into_iter().map(|(at, (_, to))| (at, to)).collect();
        assert_eq!(told, seen, "what is told is what is there");
    }

    /// Session affinity must not mix two Service ports, nor lose one between its front ends.
    fn check_numbers(&self, numbers: impl Iterator<Item = (FrontEnd, u32)>) {
        let (mut by_port, mut by_number) = (BTreeMap::new(), BTreeMap::new());
        for (at, number) in numbers {
            let port = self.tables.translate(at).expect("it is in the maps").port.clone();
            assert_eq!(*by_port.entry(port.clone()).or_insert(number), number, "{port:?}");
            assert_eq!(by_number.entry(number).or_insert(port.clone()), &port, "{number}");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's own settings; the crate has none")]
fn histories() -> u32 {
    env::var("VENI_SERVICE_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: histories(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_in_what_the_objects_say(seed: u64, changes in 1..40_usize) {
        let mut dice = Dice::new(seed);
        let mut world = World::new();
        for _ in 0..changes {
            world.change(&mut dice);
        }
    }
}
