//! bpf(2), as far as it is needed here, with typed arguments.

#![expect(unsafe_code, reason = "bpf(2)")]

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_attr__bindgen_ty_3, bpf_cmd, bpf_insn, bpf_map_info,
    bpf_prog_info, bpf_prog_type,
};

/// How much of the verifier's log is asked for when it refuses.
const LOG_BYTES: usize = 4 * 1024 * 1024;
/// How much of its end is told.
const TOLD_BYTES: usize = 2048;
/// Attempts at what the kernel says to try again (the verifier, interrupted by a signal).
const ATTEMPTS: usize = 5;

/// A map's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) kind: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain integers: all zeroes is a value of each.
    unsafe { std::mem::zeroed() }
}

fn call(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are live and of the stated size; each caller vouches for what they point to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attributes),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: just opened, and owned by nobody else; the kernel made it close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

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
    let mut attributes = zeroed();
    // SAFETY: the variant of BPF_PROG_LOAD, all zeroes.
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
        program.log_size = length(log);
    }
    let mut last = io::Error::from(io::ErrorKind::Interrupted);
    for _ in 0..ATTEMPTS {
        match call(bpf_cmd::BPF_PROG_LOAD, &mut attributes) {
            Ok(fd) => return owned(fd),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Makes a map.
pub(super) fn create_map(name: &str, shape: Shape) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: the variant of BPF_MAP_CREATE, all zeroes.
    let map = unsafe { &mut attributes.__bindgen_anon_1 };
    map.map_type = shape.kind;
    map.key_size = shape.key_size;
    map.value_size = shape.value_size;
    map.max_entries = shape.max_entries;
    map.map_flags = shape.flags;
    for (to, from) in map.map_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    owned(call(bpf_cmd::BPF_MAP_CREATE, &mut attributes)?)
}

/// Opens what is pinned.
pub(super) fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = zeroed();
    // The path outlives the call.
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    owned(call(bpf_cmd::BPF_OBJ_GET, &mut attributes)?)
}

/// Pins.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = zeroed();
    // SAFETY: the variant of BPF_OBJ_PIN, all zeroes; the path outlives the call.
    let object = unsafe { &mut attributes.__bindgen_anon_4 };
    object.pathname = path.as_ptr() as u64;
    object.bpf_fd = number(fd);
    call(bpf_cmd::BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// The shape of a map.
pub(super) fn shape(fd: BorrowedFd<'_>) -> io::Result<Shape> {
    // SAFETY: plain integers.
    let mut info: bpf_map_info = unsafe { std::mem::zeroed() };
    let mut attributes = zeroed();
    // SAFETY: the variant of BPF_OBJ_GET_INFO_BY_FD, all zeroes; `info` outlives the call.
    let asked = unsafe { &mut attributes.info };
    asked.bpf_fd = number(fd);
    asked.info_len = u32::try_from(size_of::<bpf_map_info>()).map_err(io::Error::other)?;
    asked.info = &raw mut info as u64;
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(Shape {
        kind: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
    })
}

fn element(fd: BorrowedFd<'_>, key: Option<&[u8]>, value: u64, flags: u64) -> bpf_attr {
    let mut attributes = zeroed();
    // SAFETY: the variant of the element commands, all zeroes.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = number(fd);
    element.key = key.map_or(0, |key| key.as_ptr() as u64);
    element.__bindgen_anon_1.value = value;
    element.flags = flags;
    attributes
}

/// Reads an element into `value`, which has the map's value size; `false` when there is none.
pub(super) fn lookup(fd: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attributes = element(fd, Some(key), value.as_mut_ptr() as u64, 0);
    absent(call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes))
}

/// Adds or replaces an element; with `new`, only adds (`false` when there is one).
pub(super) fn update(fd: BorrowedFd<'_>, key: &[u8], value: &[u8], new: bool) -> io::Result<bool> {
    let mut attributes = element(fd, Some(key), value.as_ptr() as u64, u64::from(new));
    match call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes) {
        Err(error) if new && error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
        Ok(_) => Ok(true),
    }
}

/// Removes an element; `false` when there is none.
pub(super) fn delete(fd: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attributes = element(fd, Some(key), 0, 0);
    absent(call(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attributes))
}

fn absent(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn batch(fd: BorrowedFd<'_>, batch: bpf_attr__bindgen_ty_3) -> bpf_attr {
    let mut attributes = zeroed();
    attributes.batch = bpf_attr__bindgen_ty_3 { map_fd: number(fd), ..batch };
    attributes
}

const NO_BATCH: bpf_attr__bindgen_ty_3 = bpf_attr__bindgen_ty_3 {
    in_batch: 0,
    out_batch: 0,
    keys: 0,
    values: 0,
    count: 0,
    map_fd: 0,
    elem_flags: 0,
    flags: 0,
};

/// Adds or replaces `count` elements, given one after the other. How many were written, and why not all.
pub(super) fn update_batch(
    fd: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> (u32, io::Result<()>) {
    let mut attributes = batch(
        fd,
        bpf_attr__bindgen_ty_3 {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count,
            ..NO_BATCH
        },
    );
    let result = call(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attributes).map(drop);
    // SAFETY: the variant that was filled; the kernel wrote how many it did.
    let done = unsafe { attributes.batch.count };
    (if result.is_ok() { count } else { done.min(count) }, result)
}

/// Reads elements, up to `count`, on from `cursor` (empty at the start; the kernel's own afterwards). `None` at the end.
pub(super) fn lookup_batch(
    fd: BorrowedFd<'_>,
    cursor: &mut Option<Vec<u8>>,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<(u32, bool)> {
    // A hash's cursor is a bucket's number, the others' a key.
    let mut next = vec![0; keys.len().max(8)];
    let from = cursor.as_ref().map_or(0, |cursor| cursor.as_ptr() as u64);
    let mut attributes = batch(
        fd,
        bpf_attr__bindgen_ty_3 {
            in_batch: from,
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count,
            ..NO_BATCH
        },
    );
    let result = call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes);
    // SAFETY: the variant that was filled.
    let read = unsafe { attributes.batch.count };
    *cursor = Some(next);
    match result {
        Ok(_) => Ok((read, true)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((read, false)),
        Err(error) => Err(error),
    }
}

/// Programs at a link's TCX hooks that are asked for at once: the kernel's limit (`BPF_MPROG_MAX`).
const TCX_MOST: u32 = 64;

/// The ids of the TCX programs of a link, in the order in which they run. EINVAL without TCX (before Linux 6.6).
pub(super) fn tcx_programs(ifindex: u32, ingress: bool) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; TCX_MOST as usize];
    let mut attributes = zeroed();
    // SAFETY: the variant of BPF_PROG_QUERY, all zeroes; `ids` outlives the call.
    let query = unsafe { &mut attributes.query };
    query.__bindgen_anon_1.target_ifindex = ifindex;
    let hook =
        if ingress { bpf_attach_type::BPF_TCX_INGRESS } else { bpf_attach_type::BPF_TCX_EGRESS };
    query.attach_type = hook as u32;
    query.prog_ids = ids.as_mut_ptr() as u64;
    query.__bindgen_anon_2.prog_cnt = TCX_MOST;
    call(bpf_cmd::BPF_PROG_QUERY, &mut attributes)?;
    // SAFETY: the variant that was filled.
    ids.truncate(unsafe { attributes.query.__bindgen_anon_2.prog_cnt } as usize);
    Ok(ids)
}

/// The name of a program by its id.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    let program = owned(call(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attributes)?)?;
    // SAFETY: plain integers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = zeroed();
    // SAFETY: the variant of BPF_OBJ_GET_INFO_BY_FD, all zeroes; `info` outlives the call.
    let asked = unsafe { &mut attributes.info };
    asked.bpf_fd = number(program.as_fd());
    asked.info_len = u32::try_from(size_of::<bpf_prog_info>()).map_err(io::Error::other)?;
    asked.info = &raw mut info as u64;
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let name = info.name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
    Ok(String::from_utf8_lossy(&name.collect::<Vec<u8>>()).into_owned())
}

/// What `BPF_PROG_TEST_RUN` is given.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) frame: &'a [u8],
    pub(super) context: &'a [u8],
    pub(super) repeat: u32,
}

/// What it gave back.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) verdict: u32,
    pub(super) frame: Vec<u8>,
    pub(super) context: Vec<u8>,
    pub(super) nanos: u32,
}

/// Runs a program on a frame.
pub(super) fn test_run(program: BorrowedFd<'_>, run: &Run<'_>) -> io::Result<Ran> {
    let mut frame = vec![0; run.frame.len() + 256];
    let mut context = vec![0; run.context.len()];
    let mut attributes = zeroed();
    // SAFETY: the variant of BPF_PROG_TEST_RUN, all zeroes; all buffers outlive the call.
    let test = unsafe { &mut attributes.test };
    test.prog_fd = number(program);
    test.data_in = run.frame.as_ptr() as u64;
    test.data_size_in = length(run.frame);
    test.data_out = frame.as_mut_ptr() as u64;
    test.data_size_out = length(&frame);
    test.ctx_in = run.context.as_ptr() as u64;
    test.ctx_size_in = length(run.context);
    test.ctx_out = context.as_mut_ptr() as u64;
    test.ctx_size_out = length(&context);
    test.repeat = run.repeat;
    call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes)?;
    // SAFETY: the variant that was filled.
    let test = unsafe { attributes.test };
    frame.truncate(test.data_size_out as usize);
    Ok(Ran { verdict: test.retval, frame, context, nanos: test.duration })
}
