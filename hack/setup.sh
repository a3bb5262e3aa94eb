#!/usr/bin/env bash
# Installs what a make target needs and this machine lacks; instant and silent when everything is there.
#
#   hack/setup.sh demo     what builds and runs the lab
#   hack/setup.sh test     that, and what the test tiers drive: containerd, runc, LocalStack's Python
#   hack/setup.sh lint     the Rust toolchain and the BPF compiler
#
# Only small Debian packages go into the system. containerd and runc are unpacked below .tools/ instead of installed:
# the Debian packages would remove a Docker that is already here, and would start a service.
set -euo pipefail
cd "$(dirname "$0")/.."

WANT=${1:?usage: hack/setup.sh demo|test|lint}
TOOLS=$PWD/.tools
CONTAINERD_PACKAGES=(containerd runc containernetworking-plugins busybox-static)
APT=(apt-get -o DPkg::Lock::Timeout=300)
export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes

say() { printf '\033[1msetup:\033[0m %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

apt_update_once() {
    [ -z "${APT_UPDATED:-}" ] || return 0
    "${APT[@]}" update -qq
    APT_UPDATED=1
}

# apt_packages package:file…  installs the packages whose file (a command, or an absolute path) is missing.
apt_packages() {
    local missing=() pair
    for pair in "$@"; do
        case ${pair#*:} in
            /*) [ -e "${pair#*:}" ] || missing+=("${pair%%:*}") ;;
            *) command -v "${pair#*:}" >/dev/null || missing+=("${pair%%:*}") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "missing: ${missing[*]}. This script knows Debian's apt only; install them by hand"
    [ "$(id -u)" = 0 ] || die "missing: ${missing[*]}. Run as root, or: sudo apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    apt_update_once
    "${APT[@]}" install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

rust_toolchain() {
    command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
    command -v rustup >/dev/null || die "Rust is missing: install it from https://rustup.rs, then run this again"
    local channel
    channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    if ! rustup run "$channel" rustc -V >/dev/null 2>&1; then
        say "installing Rust $channel (pinned in rust-toolchain.toml)"
        rustup toolchain install "$channel" --profile minimal --component rustfmt,clippy --no-self-update
    fi
    if ! rustup run "$channel" cargo clippy -V >/dev/null 2>&1 || ! rustup run "$channel" cargo fmt --version >/dev/null 2>&1; then
        say "installing rustfmt and clippy for Rust $channel"
        rustup component add --toolchain "$channel" rustfmt clippy
    fi
}

# The plugin is linked statically: with musl where rustup can add the target, else with glibc. The choice is written to
# .tools/plugin-target, which the Makefile reads.
plugin_target() {
    local target=x86_64-unknown-linux-musl sysroot
    sysroot=$(rustc --print sysroot)
    mkdir -p "$TOOLS"
    if [ ! -d "$sysroot/lib/rustlib/$target/lib" ]; then
        say "adding the Rust target $target (for the plugin)"
        if ! rustup target add "$target"; then
            say "rustup cannot add $target: the plugin is linked statically with glibc instead (starts somewhat slower)"
            target=x86_64-unknown-linux-gnu
        fi
    fi
    [ "$(cat "$TOOLS/plugin-target" 2>/dev/null)" = $target ] || echo $target > "$TOOLS/plugin-target"
}

bpf_toolchain() {
    hack/bpf.sh
}

# containerd, runc, the reference plugins (portmap, loopback) and a static busybox, as Debian ships them.
containerd_tools() {
    local dir=$TOOLS/containerd package
    [ ! -e "$dir/complete" ] || return 0
    say "unpacking Debian's ${CONTAINERD_PACKAGES[*]} into .tools/containerd (36 MB, nothing is installed or started)"
    apt_update_once
    rm -rf "$dir" && mkdir -p "$dir/deb"
    (cd "$dir/deb" && "${APT[@]}" download -qq -o APT::Sandbox::User=root "${CONTAINERD_PACKAGES[@]}")
    for package in "$dir"/deb/*.deb; do dpkg -x "$package" "$dir"; done
    rm -rf "$dir/deb" "$dir/usr/share"
    touch "$dir/complete"
}

localstack() {
    hack/localstack.sh
}

case $WANT in
    lint) apt_packages gcc:gcc libc6-dev:/usr/include/stdio.h ca-certificates:/etc/ssl/certs/ca-certificates.crt ;;
    demo | test)
        apt_packages gcc:gcc libc6-dev:/usr/include/stdio.h ca-certificates:/etc/ssl/certs/ca-certificates.crt \
            nftables:nft iproute2:ip iputils-ping:ping conntrack:conntrack kmod:modprobe procps:sysctl
        ;;
    *) die "unknown: $WANT (demo, test or lint)" ;;
esac
rust_toolchain
bpf_toolchain
[ "$WANT" = lint ] || plugin_target
if [ "$WANT" = test ]; then
    apt_packages python3:python3 python3-venv:/usr/share/doc/python3-venv iptables:iptables jq:jq
    containerd_tools
    localstack
fi
