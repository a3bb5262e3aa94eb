#!/usr/bin/env bash
# Builds a Kubernetes for tests from its Go modules, once:
#
#   hack/kubernetes.sh            etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl,
#                                 helm, agnhost and coredns, and the definition of ClusterNetworkPolicy; about 5 minutes on
#                                 two cores, 1.1 GB of downloads
#   hack/kubernetes.sh upstream   that, Kubernetes' own end-to-end tests (e2e.test), and network-policy-api's
#
# e2e/tools, e2e/dns, e2e/policy-api and e2e/upstream pin every module. The programs are in .tools/kubernetes/cluster-KEY,
# dns-KEY, policy-api-KEY, upstream-KEY and policy-conformance-KEY, which .tools/kubernetes/bin and the others' names lead
# to. A key is a digest of the modules, of what is built and how, and of Go's version: after a change of any of them they
# are built again, and the old ones go.
set -euo pipefail
cd "$(dirname "$0")/.."

HOME_DIR=$PWD/.tools/kubernetes
NAMES=(etcd kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet pki)
# The build cache is kept for the next version unless it is larger than this.
CACHE_MAX_KIB=$((3 * 1024 * 1024))
DISK_MIN_KIB=$((8 * 1024 * 1024))

say() { printf '\033[1mkubernetes:\033[0m %s\n' "$*" >&2; }
die() { printf 'kubernetes: %s\n' "$*" >&2; exit 1; }

case ${1:-} in
    '') UPSTREAM=false ;;
    upstream) UPSTREAM=true ;;
    *) die "unknown argument '$1'; allowed: upstream" ;;
esac
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
command -v go >/dev/null || die "Go is missing: install it (https://go.dev/dl, the version that e2e/tools/go.mod names or newer), then run this again"
# Nothing of a developer's own Go settings gets into a key or a program.
export CGO_ENABLED=0 GOWORK=off GOTOOLCHAIN=local GOFLAGS="-p=${VENI_GO_JOBS:-$(nproc)}"

version() { sed -n "s#^\t$1 \(v[^ ]*\).*#\1#p" e2e/tools/go.mod | head -1; }
KUBERNETES=$(version k8s.io/kubernetes)
HELM=$(version helm.sh/helm/v3)
# What `kubectl version` and a node's status say.
STAMP=k8s.io/component-base/version
LDFLAGS="-s -w -X $STAMP.gitVersion=$KUBERNETES -X $STAMP.gitMajor=1 -X $STAMP.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES") -X $STAMP.gitTreeState=clean -X $STAMP.gitCommit=$(printf '0%.0s' {1..40}) -X $STAMP.buildDate=2026-01-01T00:00:00Z"
BUILD=(-trimpath -buildvcs=false)

# step DIRECTORY NAME FILE LDFLAGS go-arguments…  builds one program into what is being made.
step() {
    local begin=$SECONDS dir=$1 name=$2 file=$3 flags=$4
    shift 4
    (cd "$dir" && nice go "${1}" "${BUILD[@]}" -ldflags "$flags" -o "$NEW/$file" "${@:2}") || die "building $name failed"
    say "$name: $(du -h "$NEW/$file" | cut -f1) after $((SECONDS - begin)) s"
}

build_cluster() {
    say "Kubernetes $KUBERNETES, etcd $(version go.etcd.io/etcd/server/v3), helm $HELM: about 5 minutes on two cores"
    step e2e/tools agnhost agnhost "$LDFLAGS" build k8s.io/kubernetes/test/images/agnhost
    step e2e/tools "${NAMES[*]}" kube "$LDFLAGS" build .
    step e2e/tools helm helm "-s -w -X helm.sh/helm/v3/internal/version.version=$HELM" build helm.sh/helm/v3/cmd/helm
    for name in "${NAMES[@]}"; do ln -s kube "$NEW/$name"; done
}

build_dns() {
    say "a CoreDNS: half a minute on two cores"
    step e2e/dns coredns coredns "-s -w" build .
}

build_policy-api() {
    local module
    module=$(cd e2e/policy-api && go list -m -f '{{.Dir}}' sigs.k8s.io/network-policy-api)
    install -m 644 "$module/config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml" "$NEW/clusternetworkpolicies.yaml"
}

build_policy-conformance() {
    say "network-policy-api's conformance tests: a minute on two cores"
    step e2e/policy-api conformance.test conformance.test "-s -w" test -c sigs.k8s.io/network-policy-api/conformance
}

build_upstream() {
    say "the end-to-end tests of Kubernetes $KUBERNETES: 2 to 5 minutes on two cores"
    step e2e/upstream e2e.test e2e.test "$LDFLAGS" test -c k8s.io/kubernetes/test/e2e
    # What agnhost's image has beside it: `agnhost porter` serves TLS with these.
    install -m 644 "$(cd e2e/upstream && go list -f '{{.Dir}}' k8s.io/kubernetes/test/images/agnhost/porter)"/localhost.{crt,key} "$NEW"
}

# made WHAT LINK DIRECTORY  makes .tools/kubernetes/WHAT-KEY of a module with build_WHAT, unless it is there.
made() {
    local what=$1 link=$HOME_DIR/$2 sources=$3 key out
    key=$({
        cat "$sources"/go.mod "$sources"/go.sum "$sources"/*.go
        echo "${BUILD[*]} $LDFLAGS ${NAMES[*]}"
        declare -f step "build_$what"
        go version
    } | sha256sum | cut -c1-16)
    out=$HOME_DIR/$what-$key
    if [ ! -e "$out/complete" ]; then
        # Two at once would build everything twice.
        flock -n 9 || { say "another one is building: waiting for it"; flock 9; }
    fi
    if [ ! -e "$out/complete" ]; then
        [ "$(df --output=avail -k "$HOME_DIR" | tail -1)" -gt $DISK_MIN_KIB ] || die "building needs $((DISK_MIN_KIB / 1024 / 1024)) GB free in $HOME_DIR"
        export GOCACHE=$HOME_DIR/cache
        NEW=$HOME_DIR/new
        rm -rf "$NEW" && mkdir -p "$NEW"
        (cd "$sources" && go mod download 2>&1) || die "the modules cannot be fetched (GOPROXY=$(go env GOPROXY))"
        "build_$what"
        touch "$NEW/complete"
        rm -rf "$out" && mv "$NEW" "$out"
        find "$HOME_DIR" -mindepth 1 -maxdepth 1 -name "$what-*" ! -name "$what-$key" -exec rm -rf {} +
        say "done after $SECONDS s: $out ($(du -sh "$out" | cut -f1))"
    fi
    [ "$(readlink "$link")" = "${out##*/}" ] || ln -sfn "${out##*/}" "$link"
}

mkdir -p "$HOME_DIR"
exec 9>"$HOME_DIR/lock"
made cluster bin e2e/tools
made dns dns e2e/dns
made policy-api policy-api e2e/policy-api
if $UPSTREAM; then
    made policy-conformance policy-conformance e2e/policy-api
    made upstream upstream e2e/upstream
    # Its specs run these in pods; the image is made of this machine's files.
    for pair in curl:curl netcat-openbsd:nc.openbsd bind9-dnsutils:dig; do
        command -v "${pair#*:}" >/dev/null || apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${pair%%:*}" >/dev/null || die "missing: ${pair%%:*}; install it"
    done
fi
if [ -d "$HOME_DIR/cache" ] && [ "$(du -sk "$HOME_DIR/cache" | cut -f1)" -gt $CACHE_MAX_KIB ]; then
    say "removing the build cache ($(du -sh "$HOME_DIR/cache" | cut -f1))"
    rm -rf "$HOME_DIR/cache"
fi
