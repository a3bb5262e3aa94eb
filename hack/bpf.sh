#!/bin/sh
# A compiler for the BPF target, into .tools and nowhere else (docs/adr/0002).
#
# Debian ships rustc with a prebuilt core for bpfel-unknown-none (rustc-web, libstd-rust-web-dev-bpf). The packages
# are unpacked, not installed; bpf-linker is built against their LLVM. Versions are derived from apt, so a security
# update of rustc-web moves all of it together. Nothing is done when it is all there.
#
# Needs no root where gcc and five small shared libraries are installed; says which are missing otherwise.
set -eu

cd "$(dirname "$0")/.."
TOOLS=${TOOLS:-$PWD/.tools}
SYS=$TOOLS/bpf-sysroot
LINKER_VERSION=0.13.0
LIBRARIES='gcc libc6-dev libedit2 libz3-4 libxml2 libffi8 libzstd1'

say() { printf 'bpf toolchain: %s\n' "$*" >&2; }

ready() {
    "$TOOLS/bin/rustc-bpf" --print target-libdir --target bpfel-unknown-none >/dev/null 2>&1 &&
        "$TOOLS/bin/bpf-linker" --version >/dev/null 2>&1
}

if ready; then
    say "ready: $("$TOOLS/bin/rustc-bpf" -V), $("$TOOLS/bin/bpf-linker" --version)"
    exit 0
fi
command -v apt-get >/dev/null || {
    say 'this is no Debian: use `rustup toolchain install nightly --component rust-src` and `cargo install bpf-linker`,'
    say 'or set BPF_OBJECT to a ready object'
    exit 1
}
mkdir -p "$TOOLS/bin" "$TOOLS/llvm/lib"

missing=
for package in $LIBRARIES; do
    dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        say "missing system packages:$missing"
        say "run: sudo apt-get install -y --no-install-recommends$missing"
        exit 1
    fi
    say "installing$missing"
    apt-get -o DPkg::Lock::Timeout=300 update -qq
    # shellcheck disable=SC2086 # a list of package names
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $missing >/dev/null
fi

version() { apt-cache policy rustc-web | sed -n 's/^ *Candidate: \([0-9]*\.[0-9]*\)\..*/\1/p'; }
V=$(version)
if [ -z "$V" ] && [ "$(id -u)" = 0 ]; then
    apt-get -o DPkg::Lock::Timeout=300 update -qq
    V=$(version)
fi
[ -n "$V" ] || { say 'apt knows no rustc-web (bookworm-security has it): run apt-get update as root'; exit 1; }
L=$(apt-cache depends "libstd-rust-web-$V" | grep -o 'libllvm[0-9]*' | head -1)
LLVM=${L#libllvm}

# Unpacked next to the final place and renamed, so that an interrupted run leaves nothing half-done.
if ! [ -x "$SYS/usr/bin/rustc" ]; then
    say "fetching and unpacking rustc-web $V and LLVM $LLVM (112 MB, 520 MB on disk)"
    new=$SYS.new
    rm -rf "$new"
    mkdir -p "$new/deb"
    (cd "$new/deb" && apt-get -o APT::Sandbox::User=root download -q rustc-web "libstd-rust-web-$V" libstd-rust-web-dev libstd-rust-web-dev-bpf "$L" >/dev/null)
    for deb in "$new"/deb/*.deb; do dpkg -x "$deb" "$new"; done
    rm -rf "$new/deb" "$SYS"
    mv "$new" "$SYS"
fi

LIB=$(dirname "$(find "$SYS/usr/lib" -name "libLLVM.so.$LLVM.*" | head -1)")
printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$LIB" "$SYS/usr/bin/rustc" >"$TOOLS/bin/rustc-bpf"
chmod +x "$TOOLS/bin/rustc-bpf"
for file in "$LIB"/libLLVM.so.*; do
    ln -sfn "$file" "$TOOLS/llvm/lib/"
    ln -sfn "$file" "$TOOLS/llvm/lib/libLLVM.so"
done

if ! "$TOOLS/bin/bpf-linker" --version >/dev/null 2>&1; then
    say "building bpf-linker $LINKER_VERSION (about a minute)"
    # Without these two, its own profile makes a 42 MB binary in three minutes.
    LLVM_PREFIX=$TOOLS/llvm CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
        cargo install -q bpf-linker --version "$LINKER_VERSION" --locked --no-default-features \
        --features "llvm-$LLVM" --root "$TOOLS"
fi
ready || { say "the toolchain in $TOOLS does not work; remove it and run this again"; exit 1; }
say "ready: $("$TOOLS/bin/rustc-bpf" -V), $("$TOOLS/bin/bpf-linker" --version)"
