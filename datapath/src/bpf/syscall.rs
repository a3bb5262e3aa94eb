//! bpf(2), as far as aya does not offer it without its loader.

#![expect(unsafe_code, reason = "bpf(2)")]

use std::{
    ffi::CStr,
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type};

/// How much of the verifier's log is asked for when it refuses.
const LOG_BYTES: usize = 256 * 1024;
/// How much of its end is told.
const TOLD_BYTES: usize = 2048;

/// Loads a TC program (`BPF_PROG_TYPE_SCHED_CLS`). The error carries the end of the verifier's log.
pub(super) fn load_classifier(
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
) -> io::Result<OwnedFd> {
    match load(name, instructions, license, &mut []) {
        Ok(fd) => Ok(fd),
        // EPERM and the like come from before the verifier.
        Err(error)
            if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES | libc::E2BIG)) =>
        {
            Err(error)
        }
        Err(_) => {
            let mut log = vec![0; LOG_BYTES];
            load(name, instructions, license, &mut log).map_err(|error| {
                let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                let told = String::from_utf8_lossy(&log[end.saturating_sub(TOLD_BYTES)..end]);
                io::Error::new(error.kind(), format!("{error}; the verifier says: …{told}"))
            })
        }
    }
}

fn load(
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    // SAFETY: a union of plain integers: all zeroes is a value of each.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: as above; this is the variant of BPF_PROG_LOAD.
    let program = unsafe { &mut attributes.__bindgen_anon_3 };
    program.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    program.insns = instructions.as_ptr() as u64;
    program.insn_cnt = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    program.license = license.as_ptr() as u64;
    for (to, from) in program.prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    if !log.is_empty() {
        program.log_level = 1;
        program.log_buf = log.as_mut_ptr() as u64;
        program.log_size = u32::try_from(log.len()).map_err(io::Error::other)?;
    }
    // SAFETY: the attributes point to live memory of the stated lengths; the kernel copies what it keeps.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_PROG_LOAD as libc::c_long,
            &raw mut attributes,
            size_of::<bpf_attr>(),
        )
    };
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is open and owned by nobody else; the kernel made it close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
