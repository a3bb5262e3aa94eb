//! The policy's and the Services' tables: entries written and removed in the order that they are given.

use veni_ebpf_common::{
    Remove, Write,
    table::{BackendKey, BackendValue, MemberKey, Profile, capacity},
};

use super::{
    load::Maps,
    map::{Map, Plain, Prefix},
};
use crate::error::Result;

/// The tables that judge, of a loaded filter.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    maps: &'a Maps,
}

/// Writes to one map that are not yet carried out.
enum Pending {
    ClassV4(Vec<([u8; 4], u32)>),
    ClassV6(Vec<([u8; 16], u32)>),
    CidrV4(Vec<(Prefix<[u8; 4]>, u32)>),
    CidrV6(Vec<(Prefix<[u8; 16]>, u32)>),
    Verdicts(Vec<(veni_ebpf_common::table::VerdictKey, u32)>),
    Profiles(Vec<(u32, Profile)>),
    Ports(Vec<(Prefix<veni_ebpf_common::table::PortKey>, veni_ebpf_common::table::Decision)>),
    ServiceV4(Vec<(veni_ebpf_common::table::ServiceKeyV4, veni_ebpf_common::table::ServiceValue)>),
    ServiceV6(Vec<(veni_ebpf_common::table::ServiceKeyV6, veni_ebpf_common::table::ServiceValue)>),
    Backends(Vec<(BackendKey, BackendValue)>),
}

fn prefix<K>(length: u8, data: K) -> Prefix<K> {
    Prefix { length: u32::from(length), data }
}

impl Pending {
    fn of(write: Write) -> Self {
        match write {
            Write::ClassV4 { address, class } => Self::ClassV4(vec![(address, class)]),
            Write::ClassV6 { address, class } => Self::ClassV6(vec![(address, class)]),
            Write::CidrV4 { prefix: data, length, class } => {
                Self::CidrV4(vec![(prefix(length, data), class)])
            }
            Write::CidrV6 { prefix: data, length, class } => {
                Self::CidrV6(vec![(prefix(length, data), class)])
            }
            Write::Verdict { key, profile } => Self::Verdicts(vec![(key, profile)]),
            Write::Profile { number, profile } => Self::Profiles(vec![(number, profile)]),
            Write::Port { key, length, decision } => {
                Self::Ports(vec![(prefix(length, key), decision)])
            }
            Write::ServiceV4 { key, value } => Self::ServiceV4(vec![(key, value)]),
            Write::ServiceV6 { key, value } => Self::ServiceV6(vec![(key, value)]),
            Write::Backend { key, value } => Self::Backends(vec![(key, value)]),
        }
    }

    /// Takes a write to the same map in; gives one to another back.
    fn take(&mut self, write: Write) -> Option<Write> {
        match (self, write) {
            (Self::ClassV4(all), Write::ClassV4 { address, class }) => all.push((address, class)),
            (Self::ClassV6(all), Write::ClassV6 { address, class }) => all.push((address, class)),
            (Self::CidrV4(all), Write::CidrV4 { prefix: data, length, class }) => {
                all.push((prefix(length, data), class));
            }
            (Self::CidrV6(all), Write::CidrV6 { prefix: data, length, class }) => {
                all.push((prefix(length, data), class));
            }
            (Self::Verdicts(all), Write::Verdict { key, profile }) => all.push((key, profile)),
            (Self::Profiles(all), Write::Profile { number, profile }) => {
                all.push((number, profile));
            }
            (Self::Ports(all), Write::Port { key, length, decision }) => {
                all.push((prefix(length, key), decision));
            }
            (Self::ServiceV4(all), Write::ServiceV4 { key, value }) => all.push((key, value)),
            (Self::ServiceV6(all), Write::ServiceV6 { key, value }) => all.push((key, value)),
            (Self::Backends(all), Write::Backend { key, value }) => all.push((key, value)),
            (_, write) => return Some(write),
        }
        None
    }
}

impl<'a> Tables<'a> {
    pub(super) fn new(maps: &'a Maps) -> Self {
        Self { maps }
    }

    /// Writes the entries in this order; neighbours of one map in one call.
    ///
    /// # Errors
    /// [`TableFull`](crate::Error::TableFull) with the map and its limit; what came before it is written, what comes
    /// after it is not.
    pub fn apply(&self, writes: &[Write]) -> Result<()> {
        let mut pending: Option<Pending> = None;
        for write in writes {
            let rest = match &mut pending {
                None => Some(*write),
                Some(pending) => pending.take(*write),
            };
            if let Some(write) = rest
                && let Some(done) = pending.replace(Pending::of(write))
            {
                self.write(&done)?;
            }
        }
        pending.map_or(Ok(()), |pending| self.write(&pending))
    }

    fn write(&self, pending: &Pending) -> Result<()> {
        fn set<K: Plain, V: Plain>(map: &Map<K, V>, entries: &[(K, V)]) -> Result<()> {
            match entries {
                [(key, value)] => map.set(key, value),
                entries => map.set_all(entries),
            }
        }
        let maps = self.maps;
        match pending {
            Pending::ClassV4(entries) => set(&maps.class_v4, entries),
            Pending::ClassV6(entries) => set(&maps.class_v6, entries),
            Pending::CidrV4(entries) => set(&maps.cidr_v4, entries),
            Pending::CidrV6(entries) => set(&maps.cidr_v6, entries),
            Pending::Verdicts(entries) => set(&maps.verdicts, entries),
            Pending::Profiles(entries) => set(&maps.profiles, entries),
            Pending::Ports(entries) => set(&maps.ports, entries),
            Pending::ServiceV4(entries) => set(&maps.service_v4, entries),
            Pending::ServiceV6(entries) => set(&maps.service_v6, entries),
            Pending::Backends(entries) => {
                self.enlist(entries)?;
                set(&maps.backends, entries)
            }
        }
    }

    /// Removes the entries in this order. How many were there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, removes: &[Remove]) -> Result<usize> {
        let mut removed = 0;
        for remove in removes {
            removed += usize::from(self.remove_one(*remove)?);
        }
        Ok(removed)
    }

    fn remove_one(&self, remove: Remove) -> Result<bool> {
        let maps = self.maps;
        match remove {
            Remove::ClassV4(address) => maps.class_v4.remove(&address),
            Remove::ClassV6(address) => maps.class_v6.remove(&address),
            Remove::CidrV4(data, length) => maps.cidr_v4.remove(&prefix(length, data)),
            Remove::CidrV6(data, length) => maps.cidr_v6.remove(&prefix(length, data)),
            Remove::Verdict(key) => maps.verdicts.remove(&key),
            Remove::Port(key, length) => maps.ports.remove(&prefix(length, key)),
            Remove::ServiceV4(key) => maps.service_v4.remove(&key),
            Remove::ServiceV6(key) => maps.service_v6.remove(&key),
            Remove::Backend(key) => {
                if let Some(value) = maps.backends.get(&key)? {
                    maps.members.remove(&MemberKey::of(key.backends, &value))?;
                }
                maps.backends.remove(&key)
            }
        }
    }

    /// Keeps the index of back ends by address: before the list itself, which is not in use yet.
    fn enlist(&self, entries: &[(BackendKey, BackendValue)]) -> Result<()> {
        let maps = self.maps;
        for (key, value) in entries {
            // What an unfinished batch left under this number.
            if let Some(had) = maps.backends.get(key)?
                && had != *value
            {
                maps.members.remove(&MemberKey::of(key.backends, &had))?;
            }
        }
        let members: Vec<_> = entries
            .iter()
            .map(|(key, value)| (MemberKey::of(key.backends, value), key.slot))
            .collect();
        maps.members.set_all(&members)
    }

    /// All entries, as the writes that would make them: what an earlier daemon left. Profiles that no verdict names
    /// are left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn entries(&self) -> Result<Vec<Write>> {
        let maps = self.maps;
        let mut all = Vec::new();
        all.extend(list(&maps.class_v4, |address, class| Write::ClassV4 { address, class })?);
        all.extend(list(&maps.class_v6, |address, class| Write::ClassV6 { address, class })?);
        all.extend(list(&maps.cidr_v4, |key, class| Write::CidrV4 {
            prefix: key.data,
            length: bits(key.length),
            class,
        })?);
        all.extend(list(&maps.cidr_v6, |key, class| Write::CidrV6 {
            prefix: key.data,
            length: bits(key.length),
            class,
        })?);
        let verdicts = maps.verdicts.entries()?;
        let mut named: Vec<u32> = verdicts.iter().map(|(_, profile)| *profile).collect();
        named.sort_unstable();
        named.dedup();
        for number in named.into_iter().filter(|number| *number < capacity::PROFILES) {
            if let Some(profile) = maps.profiles.get(&number)? {
                all.push(Write::Profile { number, profile });
            }
        }
        all.extend(verdicts.into_iter().map(|(key, profile)| Write::Verdict { key, profile }));
        all.extend(list(&maps.ports, |key, decision| Write::Port {
            key: key.data,
            length: bits(key.length),
            decision,
        })?);
        all.extend(list(&maps.service_v4, |key, value| Write::ServiceV4 { key, value })?);
        all.extend(list(&maps.service_v6, |key, value| Write::ServiceV6 { key, value })?);
        all.extend(list(&maps.backends, |key, value| Write::Backend { key, value })?);
        Ok(all)
    }
}

fn list<K: Plain, V: Plain>(map: &Map<K, V>, write: impl Fn(K, V) -> Write) -> Result<Vec<Write>> {
    Ok(map.entries()?.into_iter().map(|(key, value)| write(key, value)).collect())
}

fn bits(length: u32) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}
