#!/usr/bin/env bash
# Lays the image's files out below a directory: our programs, the `nft` that the daemon runs, the libraries that these
# load, and the authorities that signed AWS' certificates. Nothing else: no shell, no package manager.
#
#   hack/image-root.sh ROOT BIN_DIR    BIN_DIR has veni-ipamd, veni-cni, venictl, and veni-controller where it was built
#
# The Dockerfile runs it in its build stage; `make image-root` here, where it then starts each program in the directory.
set -euo pipefail

ROOT=${1:?usage: hack/image-root.sh ROOT BIN_DIR}
BIN=${2:?usage: hack/image-root.sh ROOT BIN_DIR}

die() { printf 'image: %s\n' "$*" >&2; exit 1; }

# With its libraries, where it looks for them.
program() {
    local from=$1 to=$2 library
    install -D -m 755 "$from" "$ROOT/$to"
    # A static one has none, which is no failure.
    for library in $(ldd "$from" 2>/dev/null | grep -o '/[^ ]*' || true); do
        [ -e "$ROOT$library" ] || install -D -m 755 "$library" "$ROOT$library"
    done
}

[ ! -e "$ROOT" ] || die "$ROOT is there already"
NFT=$(PATH=$PATH:/usr/sbin command -v nft) || die "nft is missing: apt-get install nftables"
install -d -m 755 "$ROOT"/{dev,etc,proc,run,sys,usr/bin,usr/sbin,var}
install -d -m 1777 "$ROOT/tmp"
for name in veni-ipamd veni-cni venictl; do
    [ -e "$BIN/$name" ] || die "$BIN/$name is missing"
    program "$BIN/$name" "usr/bin/$name"
done
[ ! -e "$BIN/veni-controller" ] || program "$BIN/veni-controller" usr/bin/veni-controller
program "$NFT" usr/sbin/nft
# The runtime starts it on the node, whose libraries are not these.
! ldd "$ROOT/usr/bin/veni-cni" 2>/dev/null | grep -q '=>' || die "veni-cni is not linked statically"
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0:root:/:/none\nnobody:x:65534:65534:nobody:/:/none\n' > "$ROOT/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' > "$ROOT/etc/group"
printf 'hosts: files dns\n' > "$ROOT/etc/nsswitch.conf"
