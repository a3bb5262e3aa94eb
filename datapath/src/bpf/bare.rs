//! Bare programs: an empty one, and the same look-ups with nothing around them. What the real ones are measured beside.
//!
//! Written as instructions, because they are few, and no compiler may make them better or worse.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use aya_obj::generated::{bpf_insn, bpf_map_type};

use super::{
    run::{self, Outcome, Skb},
    syscall::{self, Shape},
};
use crate::error::{Error, Result};

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// `BPF_FUNC_map_lookup_elem`, `BPF_FUNC_map_update_elem`, `BPF_FUNC_get_prandom_u32`.
const LOOKUP: i32 = 1;
const UPDATE: i32 = 2;
const PRANDOM: i32 = 7;
/// Where the key and the value are on the stack.
const KEY_AT: i16 = -64;
const VALUE_AT: i16 = -128;
/// Half-open flows that the programs hold: what a new flow is written into.
const FLOWS: u32 = 32_768;
/// Bytes of a flow.
const VALUE_SIZE: u32 = 40;

/// A bare program with its maps.
#[derive(Debug)]
pub struct Bare {
    program: OwnedFd,
    _maps: Vec<OwnedFd>,
}

/// A family's sizes: the flow's key, the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 16 and 4 bytes.
    V4,
    /// 28 and 16 bytes.
    V6,
}

impl Bare {
    /// Returns at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn empty() -> Result<Self> {
        Self::load(Vec::new(), Vec::new())
    }

    /// Looks up a flow in an LRU hash and two addresses among `addresses` in prefix maps; all are found.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lookups(family: Family, addresses: u32) -> Result<Self> {
        let (instructions, maps) = Self::looking_up(family, addresses)?;
        Self::load(instructions, maps)
    }

    /// As [`Bare::lookups`], and writes a flow with a random key into the LRU hash.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lookups_and_insert(family: Family, addresses: u32) -> Result<Self> {
        let (mut instructions, maps) = Self::looking_up(family, addresses)?;
        instructions.push(call(PRANDOM));
        // *(u32 *)(r10 + KEY_AT) = r0
        instructions.push(instruction(0x63, 10, 0, KEY_AT, 0));
        instructions.extend((0..10).map(|word| store(VALUE_AT + word * 4, 0)));
        instructions.extend(map_argument(&maps[0]));
        instructions.extend(stack_argument(2, KEY_AT));
        instructions.extend(stack_argument(3, VALUE_AT));
        // r4 = 0
        instructions.push(instruction(0xb7, 4, 0, 0, 0));
        instructions.push(call(UPDATE));
        Self::load(instructions, maps)
    }

    /// Runs it on a frame, `repeat` times.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run(&self, frame: &[u8], skb: Skb, repeat: u32) -> Result<Outcome> {
        run::run(self.program.as_fd(), frame, skb, repeat)
    }

    /// Its descriptor, for who wants to attach it somewhere.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    fn looking_up(family: Family, addresses: u32) -> Result<(Vec<bpf_insn>, Vec<OwnedFd>)> {
        let (key, address) = match family {
            Family::V4 => (16, 4),
            Family::V6 => (28, 16),
        };
        let flows = map(bpf_map_type::BPF_MAP_TYPE_LRU_HASH, key, VALUE_SIZE, FLOWS, 0)?;
        write(&flows, &vec![0; key as usize], &[0; VALUE_SIZE as usize])?;
        let mut instructions: Vec<_> = words(KEY_AT, key, |_| 0).collect();
        instructions.extend(lookup(&flows));
        let mut maps = vec![flows];
        for _ in 0..2 {
            let kind = bpf_map_type::BPF_MAP_TYPE_LPM_TRIE;
            let prefixes = map(kind, 4 + address, 4, addresses.max(1), NO_PREALLOC)?;
            for number in 0..addresses {
                let prefix = prefix(address, number);
                write(&prefixes, &prefix, &[0; 4])?;
            }
            let bytes = prefix(address, addresses / 2);
            let word = |at: usize| {
                i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            };
            instructions.extend(words(KEY_AT, 4 + address, word));
            instructions.extend(lookup(&prefixes));
            maps.push(prefixes);
        }
        Ok((instructions, maps))
    }

    fn load(mut instructions: Vec<bpf_insn>, maps: Vec<OwnedFd>) -> Result<Self> {
        // return TC_ACT_UNSPEC
        instructions.push(instruction(0xb7, 0, 0, 0, -1));
        instructions.push(instruction(0x95, 0, 0, 0, 0));
        let program = syscall::load_classifier("bare", &instructions, c"GPL")
            .map_err(|source| Error::bpf("a bare program".to_owned(), source))?;
        Ok(Self { program, _maps: maps })
    }
}

/// An address of full length, 10.x.y.z or what is left of it in IPv6.
fn prefix(address: u32, number: u32) -> Vec<u8> {
    let mut bytes = (address * 8).to_ne_bytes().to_vec();
    bytes.extend((0x0a00_0000 | number).to_be_bytes());
    bytes.resize(4 + address as usize, 0);
    bytes
}

fn map(
    kind: bpf_map_type,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
) -> Result<OwnedFd> {
    let shape = Shape { kind: kind as u32, key_size, value_size, max_entries, flags };
    syscall::create_map("bare", shape).map_err(|source| Error::bpf("a bare map".to_owned(), source))
}

fn write(map: &OwnedFd, key: &[u8], value: &[u8]) -> Result<()> {
    syscall::update(map.as_fd(), key, value, false)
        .map(drop)
        .map_err(|source| Error::bpf("filling a bare map".to_owned(), source))
}

fn instruction(code: u8, to: u8, from: u8, off: i16, imm: i32) -> bpf_insn {
    bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(to, from),
        off,
        imm,
    }
}

fn call(function: i32) -> bpf_insn {
    instruction(0x85, 0, 0, 0, function)
}

/// `*(u32 *)(r10 + at) = value`
fn store(at: i16, value: i32) -> bpf_insn {
    instruction(0x62, 10, 0, at, value)
}

fn words(at: i16, bytes: u32, value: impl Fn(usize) -> i32) -> impl Iterator<Item = bpf_insn> {
    (0..bytes / 4)
        .zip(0i16..)
        .map(move |(word, position)| store(at + position * 4, value(word as usize * 4)))
}

/// `r1 = map`
fn map_argument(map: &OwnedFd) -> [bpf_insn; 2] {
    [instruction(0x18, 1, 1, 0, map.as_raw_fd()), instruction(0, 0, 0, 0, 0)]
}

/// `rN = r10 + at`
fn stack_argument(register: u8, at: i16) -> [bpf_insn; 2] {
    [instruction(0xbf, register, 10, 0, 0), instruction(0x07, register, 0, 0, at.into())]
}

fn lookup(map: &OwnedFd) -> Vec<bpf_insn> {
    [&map_argument(map)[..], &stack_argument(2, KEY_AT), &[call(LOOKUP)]].concat()
}
