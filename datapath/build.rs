//! Builds the eBPF object for feature `bpf`, with whichever compiler here can (docs/adr/0002).
//!
//! In this order: `BPF_OBJECT` (a ready object: packagers, machines with no BPF toolchain); `.tools/bin/rustc-bpf`
//! (made by `hack/bpf.sh`); `/usr/bin/rustc` where the distribution ships `core` for the target; a rustup nightly
//! with rust-src. No network, std only.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A compiler that can build for the target.
struct Compiler {
    rustc: PathBuf,
    /// `core` has to be built from rust-src (nightly).
    build_std: bool,
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_BPF").is_none() {
        return;
    }
    for name in ["BPF_OBJECT", "BPF_LINKER", "BPF_TOOLCHAIN"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = out.join("veni-bpf.o");
    if let Some(ready) = env::var_os("BPF_OBJECT") {
        fs::copy(&ready, &object).unwrap_or_else(|e| panic!("BPF_OBJECT={}: {e}", ready.display()));
        println!("cargo:rerun-if-changed={}", ready.display());
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf();
    for path in ["ebpf/src", "ebpf/Cargo.toml", "ebpf/common/src", "ebpf/common/Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    let built = build(&root, &out.join("bpf"));
    fs::copy(&built, &object).unwrap_or_else(|e| panic!("{}: {e}", built.display()));
}

/// Runs cargo for the eBPF crate; returns the object.
fn build(root: &Path, target_dir: &Path) -> PathBuf {
    let big = env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|e| e == "big");
    let target = if big { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    let Some(compiler) = find(root, target) else {
        panic!(
            "no compiler for {target}: run hack/bpf.sh (Debian packages into .tools), or `rustup toolchain install \
             nightly --component rust-src`, or set BPF_OBJECT to a ready object"
        );
    };
    let local = root.join(".tools/bin/bpf-linker");
    let linker = env::var("BPF_LINKER").unwrap_or_else(|_| {
        if local.exists() { local.display().to_string() } else { "bpf-linker".to_owned() }
    });
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let flags = [
        // No BTF: nothing is relocated against the kernel's types, and the daemon reads the whole object at its start.
        "-Cdebuginfo=0".to_owned(),
        format!("-Clinker={linker}"),
        // 32-bit operations and jumps (Linux 5.12): half the instructions of shifts that stand for them.
        "-Ctarget-cpu=v3".to_owned(),
        // Otherwise clearing three bytes is a call to a loop, at run time and in the verifier.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
    ];
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "-p", "veni-ebpf", "--bin", "veni", "--release"])
        .args(["--target", target, "--target-dir"])
        .arg(target_dir)
        .env("RUSTC", &compiler.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_PROFILE_RELEASE_LTO", "false");
    for name in [
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        cargo.env_remove(name);
    }
    if compiler.build_std {
        cargo.arg("-Zbuild-std=core").env("RUSTC_BOOTSTRAP", "1");
    } else {
        // By crate name: aya-ebpf's `asm_experimental_arch`. With `1`, aya-build would ask for -Zbuild-std.
        cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf");
    }
    let status = cargo.status().unwrap_or_else(|e| panic!("cargo for the eBPF object: {e}"));
    assert!(
        status.success(),
        "building the eBPF object with {} failed: {status}",
        compiler.rustc.display()
    );
    target_dir.join(target).join("release/veni")
}

fn find(root: &Path, target: &str) -> Option<Compiler> {
    for rustc in [root.join(".tools/bin/rustc-bpf"), PathBuf::from("/usr/bin/rustc")] {
        let libdir =
            output(Command::new(&rustc).args(["--print", "target-libdir", "--target", target]));
        if libdir.is_some_and(|dir| has_core(Path::new(&dir))) {
            return Some(Compiler { rustc, build_std: false });
        }
    }
    let toolchain = env::var("BPF_TOOLCHAIN").unwrap_or_else(|_| "nightly".to_owned());
    let rustc = PathBuf::from(output(Command::new("rustup").args([
        "which",
        "--toolchain",
        &toolchain,
        "rustc",
    ]))?);
    let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    source.exists().then_some(Compiler { rustc, build_std: true })
}

fn has_core(libdir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(libdir) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
