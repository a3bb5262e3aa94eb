//! The BPF file system that pins live in.

#![expect(unsafe_code, reason = "statfs and mount without a further dependency")]

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Makes `dir` on a BPF file system, mounting one where there is none: at `dir` itself, or, where no directory can
/// be made (`/sys/fs`), at its nearest ancestor.
pub(super) fn ensure_dir(dir: &Path) -> Result<()> {
    let making = |path: &Path| Error::io(format!("making {}", path.display()));
    let existing = nearest(dir);
    if !is_bpffs(&existing) {
        let mount_point = match fs::create_dir_all(dir) {
            Ok(()) => dir.to_owned(),
            Err(_) => existing,
        };
        mount(&mount_point).map_err(|source| Error::NoBpfFs { path: dir.to_owned(), source })?;
        tracing::info!(path = %mount_point.display(), "mounted a BPF file system");
    }
    fs::create_dir_all(dir).map_err(making(dir))
}

fn nearest(dir: &Path) -> PathBuf {
    dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn is_bpffs(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is a C string and the pointer is to a `statfs`, which the kernel fills on success.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: filled just above.
    let stat = unsafe { stat.assume_init() };
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_sign_loss,
        reason = "the field's type differs between libcs"
    )]
    let magic = stat.f_type as u64;
    magic & 0xffff_ffff == BPF_FS_MAGIC
}

fn mount(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all pointers are C strings that outlive the call; the data pointer may be null.
    let result = unsafe {
        libc::mount(c"bpf".as_ptr(), path.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
