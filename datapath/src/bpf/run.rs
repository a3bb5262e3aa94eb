//! The programs on single frames (`BPF_PROG_TEST_RUN`): for tests, benchmarks and `venictl`.

use std::os::fd::BorrowedFd;

use super::syscall;
use crate::error::{Error, Result};

/// Offsets in `struct __sk_buff` (include/uapi/linux/bpf.h) of the fields that the kernel takes in.
const MARK: usize = 8;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const BYTES: usize = 192;

/// What `TC_ACT_UNSPEC`, `TC_ACT_SHOT` and `TC_ACT_REDIRECT` mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The packet goes on.
    Pass,
    /// It is dropped.
    Drop,
    /// It goes back to where it came from.
    TurnRound,
    /// Something else: a defect.
    Other(u32),
}

/// What comes with a frame.
#[derive(Debug, Clone, Copy, Default)]
pub struct Skb {
    /// The interface that the program sits on. It must exist in the current network namespace (1, `lo`, does).
    pub ifindex: u32,
    /// The interface that the packet came in by; 0 when it was made here.
    pub ingress_ifindex: u32,
    /// Its mark.
    pub mark: u32,
}

/// What a program did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Where the packet goes.
    pub action: Action,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// The mark afterwards.
    pub mark: u32,
    /// Nanoseconds a run, on average.
    pub nanos: u32,
}

pub(super) fn run(program: BorrowedFd<'_>, frame: &[u8], skb: Skb, repeat: u32) -> Result<Outcome> {
    let mut context = [0; BYTES];
    for (at, value) in
        [(MARK, skb.mark), (INGRESS_IFINDEX, skb.ingress_ifindex), (IFINDEX, skb.ifindex)]
    {
        context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let ran = syscall::test_run(program, &syscall::Run { frame, context: &context, repeat })
        .map_err(|source| Error::bpf(format!("running on {} bytes", frame.len()), source))?;
    let mark = ran.context.get(MARK..MARK + 4).and_then(|bytes| bytes.try_into().ok());
    Ok(Outcome {
        action: match ran.verdict {
            u32::MAX => Action::Pass,
            2 => Action::Drop,
            7 => Action::TurnRound,
            other => Action::Other(other),
        },
        frame: ran.frame,
        mark: mark.map_or(0, u32::from_ne_bytes),
        nanos: ran.nanos,
    })
}
