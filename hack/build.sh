#!/usr/bin/env bash
# Builds the release binaries into target/veni/: the daemon with the Kubernetes client and without the AWS SDK (`--features
# aws` is for the shipped image), the plugin and the floor statically for the target that hack/setup.sh chose.
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=target/veni
TARGET=$(cat .tools/plugin-target 2>/dev/null) || {
    echo 'build: what this needs is not installed yet: run `make install-tools` first' >&2
    exit 1
}
# Only read by rustc for this target, so with musl (static by itself) it changes nothing.
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"

[ -e "$OUT/veni-lab" ] || echo "build: compiling in release mode; the first time takes some minutes"
cargo build --locked --profile plugin --target "$TARGET" -p veni-cni -p veni-floor
unset CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS
# Not `--features veni-ipamd/kube`: that is the feature of its dev-dependency on itself, and nothing to a build.
cargo build --locked --release -p veni-ipamd -p veni-controller -p veni-ctl -p veni-lab --features kube
mkdir -p "$OUT"
ln -f "target/$TARGET"/plugin/{veni-cni,veni-floor,veni-nop,veni-peak} target/release/{veni-ipamd,veni-controller,venictl,veni-lab} "$OUT/"
