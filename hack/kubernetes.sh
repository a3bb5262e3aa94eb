#!/usr/bin/env bash
# Builds a Kubernetes for tests from its Go modules (e2e/tools/go.mod and go.sum pin all of them), once:
#
#   hack/kubernetes.sh         etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl,
#                              helm and agnhost; about 5 minutes on two cores, 1.1 GB of downloads
#   hack/kubernetes.sh --path  prints the directory that has them, and builds nothing
#
# The programs are in .tools/kubernetes/<key>, which .tools/kubernetes/bin leads to. The key is a digest of the modules,
# of what is built and how, and of Go's version: after a change of any of them they are built again, and the old ones go.
set -euo pipefail
cd "$(dirname "$0")/.."

SOURCES=e2e/tools
HOME_DIR=$PWD/.tools/kubernetes
NAMES=(etcd kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet pki)
# The build cache is kept for the next version unless it is larger than this.
CACHE_MAX_KIB=$((3 * 1024 * 1024))
DISK_MIN_KIB=$((8 * 1024 * 1024))

say() { printf '\033[1mkubernetes:\033[0m %s\n' "$*" >&2; }
die() { printf 'kubernetes: %s\n' "$*" >&2; exit 1; }

command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
command -v go >/dev/null || die "Go is missing: install it (https://go.dev/dl, the version that $SOURCES/go.mod names or newer), then run this again"
# Nothing of a developer's own Go settings gets into the key or the programs.
export CGO_ENABLED=0 GOWORK=off GOTOOLCHAIN=local GOFLAGS="-p=${VENI_GO_JOBS:-$(nproc)}"

version() { sed -n "s#^\t$1 \(v[^ ]*\).*#\1#p" $SOURCES/go.mod | head -1; }
KUBERNETES=$(version k8s.io/kubernetes)
HELM=$(version helm.sh/helm/v3)
# What `kubectl version` and a node's status say.
STAMP=k8s.io/component-base/version
LDFLAGS="-s -w -X $STAMP.gitVersion=$KUBERNETES -X $STAMP.gitMajor=1 -X $STAMP.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES") -X $STAMP.gitTreeState=clean -X $STAMP.gitCommit=$(printf '0%.0s' {1..40}) -X $STAMP.buildDate=2026-01-01T00:00:00Z"
BUILD=(go build -trimpath -buildvcs=false)

key() {
    {
        cat $SOURCES/go.mod $SOURCES/go.sum $SOURCES/*.go
        echo "${BUILD[*]} $LDFLAGS ${NAMES[*]}"
        go version
    } | sha256sum | cut -c1-16
}

OUT=$HOME_DIR/$(key)
if [ "${1:-}" = --path ]; then echo "$OUT"; exit 0; fi
[ $# = 0 ] || die "unknown argument '$1'; allowed: --path"
mkdir -p "$HOME_DIR"

lead_to_it() { [ "$(readlink "$HOME_DIR/bin")" = "${OUT##*/}" ] || ln -sfn "${OUT##*/}" "$HOME_DIR/bin"; }
if [ -e "$OUT/complete" ]; then lead_to_it; exit 0; fi

# Two at once would build everything twice.
exec 9>"$HOME_DIR/lock"
flock -n 9 || { say "another one is building: waiting for it"; flock 9; }
if [ -e "$OUT/complete" ]; then lead_to_it; exit 0; fi

[ "$(df --output=avail -k "$HOME_DIR" | tail -1)" -gt $DISK_MIN_KIB ] || die "less than $((DISK_MIN_KIB / 1024 / 1024)) GB are free in $HOME_DIR, which building needs"

export GOCACHE=$HOME_DIR/cache
NEW=$HOME_DIR/new
rm -rf "$NEW" && mkdir -p "$NEW"
start=$SECONDS
# step NAME PACKAGE FILE LDFLAGS
step() {
    local begin=$SECONDS
    (cd $SOURCES && nice "${BUILD[@]}" -ldflags "$4" -o "$NEW/$3" "$2") || die "building $1 failed"
    say "$1: $(du -h "$NEW/$3" | cut -f1) after $((SECONDS - begin)) s"
}

say "fetching modules (Kubernetes $KUBERNETES, etcd $(version go.etcd.io/etcd/server/v3), helm $HELM)"
(cd $SOURCES && go mod download 2>&1) || die "the modules cannot be fetched (GOPROXY=$(go env GOPROXY))"
say "modules are there after $((SECONDS - start)) s; building (about 5 minutes on two cores)"
step agnhost k8s.io/kubernetes/test/images/agnhost agnhost "$LDFLAGS"
step "${NAMES[*]}" . kube "$LDFLAGS"
step helm helm.sh/helm/v3/cmd/helm helm "-s -w -X helm.sh/helm/v3/internal/version.version=$HELM"
for name in "${NAMES[@]}"; do ln -s kube "$NEW/$name"; done
touch "$NEW/complete"

rm -rf "$OUT" && mv "$NEW" "$OUT"
lead_to_it
find "$HOME_DIR" -mindepth 1 -maxdepth 1 -type d ! -name cache ! -name "${OUT##*/}" -exec rm -rf {} +
if [ "$(du -sk "$GOCACHE" | cut -f1)" -gt $CACHE_MAX_KIB ]; then
    say "removing the build cache ($(du -sh "$GOCACHE" | cut -f1))"
    rm -rf "$GOCACHE"
fi
say "done after $((SECONDS - start)) s: $OUT ($(du -sh "$OUT" | cut -f1))"
