#!/bin/sh
# Installs the pinned LocalStack that localstack-tests runs against, once, into .tools/localstack (about 350 MB):
#     hack/localstack.sh              LocalStack and, beside it, the extension with EC2's address semantics
#     hack/localstack.sh --plain      LocalStack alone
# The extension (localstack-tests/semantics) is loaded only when VENI_EC2_SEMANTICS=1, so that one installation serves
# both tiers. Running it again is cheap: it compares a stamp and leaves.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.tools/localstack
requirements=$root/localstack-tests/requirements.txt
semantics=$root/localstack-tests/semantics
python=${PYTHON:-python3}

say() { printf 'localstack: %s\n' "$*"; }
fail() { printf 'localstack: %s\n' "$*" >&2; exit 1; }

plain=false
case ${1:-} in
    '') ;;
    --plain) plain=true ;;
    *) fail "unknown argument '$1'; allowed: --plain" ;;
esac

# Two at once (two test runs) would install over each other.
mkdir -p "$root/.tools"
exec 9>"$root/.tools/localstack.lock"
flock 9

need_python() {
    command -v "$python" >/dev/null 2>&1 && "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 && return
    say "$python has no venv module: installing python3 and python3-venv with apt"
    [ "$(id -u)" = 0 ] || fail "not root: run 'apt-get install python3 python3-venv' and start again"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv ca-certificates >/dev/null \
        || fail "apt could not install python3-venv; set PYTHON to a Python 3.11 to 3.13 that has venv"
    # A python3 without venv that shadows Debian's (pyenv, say) would still be the first one found.
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || python=/usr/bin/python3
}

stamp_of() { cat "$@" | sha256sum | cut -d' ' -f1; }

wanted=$(stamp_of "$requirements")
if [ "$(cat "$venv/.requirements" 2>/dev/null || true)" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    say "LocalStack $("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("localstack-core"))') is installed"
else
    need_python
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    say "making $venv with Python $version"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    say "installing $(wc -l <"$requirements") pinned packages (about 350 MB, one to two minutes)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$requirements" \
        || fail "pip failed (Python $version; 3.11 to 3.13 are known to work, choose one with PYTHON=…)"
    echo "$wanted" >"$venv/.requirements"
fi

$plain && exit 0

# setuptools is among the pins, so building it downloads nothing.
wanted=$(find "$semantics/veni_ec2_semantics" "$semantics/pyproject.toml" -name '*.py' -o -name pyproject.toml | LC_ALL=C sort | xargs cat | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/.semantics" 2>/dev/null || true)" != "$wanted" ]; then
    say "installing the EC2 semantics extension"
    # From a copy: setuptools leaves its build directory beside the sources.
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    cp -R "$semantics/pyproject.toml" "$semantics/veni_ec2_semantics" "$copy"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall \
        "$copy" || fail "pip could not install $semantics"
    echo "$wanted" >"$venv/.semantics"
fi
say "ready: $venv/bin/python -m localstack.runtime.main"
