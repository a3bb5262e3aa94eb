#!/usr/bin/env bash
# The eBPF tests on other kernels than this machine's: every program through the verifier, then packets through it.
#
#   hack/test-kernels.sh            the kernels in KERNELS: Debian's 6.1, the floor
#
# Each kernel is a package of Debian's, unpacked below .tools/kernels and never installed. It boots in QEMU without KVM
# (software emulation runs anywhere) with an initramfs of the test programs, linked statically, and of the few commands
# that they run; no disk, no network. What the serial line says decides: a program that did not report has failed, and
# so has a kernel that warned.
#
#   KERNELS="linux-image-cloud-amd64 …"   packages, or meta packages that name one
#   KERNEL_TESTS="bpf_attach …"           test programs of veni-datapath (patterns of cargo's --test)
#   KERNEL_TIMEOUT_SECS=900               for one kernel, from its start to its end
set -euo pipefail
cd "$(dirname "$0")/.."

read -ra KERNELS <<<"${KERNELS:-linux-image-cloud-amd64}"
read -ra TESTS <<<"${KERNEL_TESTS:-bpf_*}"
TIMEOUT_SECS=${KERNEL_TIMEOUT_SECS:-900}
TARGET=x86_64-unknown-linux-musl
CACHE=$PWD/.tools/kernels
WORK=$PWD/target/test-kernels
# What the tests use: this machine's commands, and modules that Debian's kernel has not built in.
COMMANDS=(ip tc nft)
# Left out under emulation: what measures or depends on time, and fifty loads at some seconds each.
LEFT_OUT=(a_packet_costs replacing_the_filter_under_traffic what_is_allowed_passes_while)
MODULES=(veth dummy sch_ingress cls_bpf act_bpf nf_tables nf_conntrack nf_nat nft_chain_nat nft_masq sctp)
APT=(apt-get -o DPkg::Lock::Timeout=300)
export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes

say() { printf '\033[1mkernels:\033[0m %s\n' "$*"; }
die() { printf 'kernels: %s\n' "$*" >&2; exit 1; }

# needs COMMAND PACKAGE  installs the package where the command is missing.
needs() {
    ! command -v "$1" >/dev/null || return 0
    command -v apt-get >/dev/null || die "$1 is missing. This script knows Debian's apt only; install it by hand"
    [ "$(id -u)" = 0 ] || die "$1 is missing. Run as root, or: sudo apt-get install --no-install-recommends $2"
    say "installing $2"
    "${APT[@]}" update -qq
    "${APT[@]}" install -y -qq --no-install-recommends "$2" >/dev/null
}

# unpack PACKAGE  prints the folder that the package's files are in; downloads what is not there.
unpack() {
    local dir=$CACHE/$1
    if [ ! -e "$dir/complete" ]; then
        rm -rf "$dir" && mkdir -p "$dir"
        (cd "$dir" && "${APT[@]}" download -qq -o APT::Sandbox::User=root "$1" >&2) || die "apt cannot download $1"
        dpkg -x "$dir"/*.deb "$dir"
        rm "$dir"/*.deb && touch "$dir/complete"
    fi
    echo "$dir"
}

# The package that a meta package stands for today; else the name itself.
resolve() {
    local image
    image=$(apt-cache depends "$1" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    echo "${image:-$1}"
}

# Builds the test programs; prints "name path" of each.
build_tests() {
    local args=() test
    for test in "${TESTS[@]}"; do args+=(--test "$test"); done
    cargo test --quiet --locked --target $TARGET -p veni-datapath --features bpf "${args[@]}" --no-run \
        --message-format=json |
        sed -n 's/.*"kind":\["test"\].*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2/p'
}

# copy_command COMMAND ROOT  copies a program of this machine, with the libraries that it is linked to.
copy_command() {
    local path
    path=$(command -v "$1") || die "$1 is missing (hack/setup.sh test installs it)"
    install -D "$(readlink -f "$path")" "$2/bin/$1"
    ldd "$path" | grep -o '/[^ ]*' | while read -r library; do install -D "$library" "$2$library"; done
}

# copy_modules IMAGE VERSION ROOT  copies the modules in the order in which they can be inserted.
copy_modules() {
    local module file
    [ -e "$1/lib/modules/$2/modules.dep.bin" ] || depmod -b "$1" "$2"
    for module in "${MODULES[@]}"; do
        modprobe -S "$2" -d "$1" --show-depends "$module" 2>/dev/null | sed -n 's/^insmod //p'
    done | awk '!seen[$1]++ {print $1}' | while read -r file; do
        install -D -m 644 "$file" "$3/modules/${file##*/}"
        echo "/modules/${file##*/}"
    done >"$3/modules.order"
}

write_init() {
    cat >"$1/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin HOME=/ TMPDIR=/tmp RUST_BACKTRACE=0
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs tmp /tmp
busybox mount -t tmpfs run /run
busybox mount -t bpf bpf /sys/fs/bpf
busybox --install -s /bin
while read -r module; do insmod "$module" || echo "cannot insert $module"; done </modules.order
ip link set lo up
. /environment
echo "veni-kernel: $(uname -r)"
while read -r test _; do
    echo "veni-start: $test"
    "/tests/$test" --show-output $LEFT_OUT 2>&1 </dev/null
    echo "veni-exit: $test $?"
done </tests.order
echo "veni-end: $(cut -d' ' -f1 /proc/uptime)"
poweroff -f
INIT
    chmod +x "$1/init"
}

# pack IMAGE VERSION OUT  makes the initramfs.
pack() {
    local root=$WORK/root name path
    rm -rf "$root" && mkdir -p "$root"/{bin,proc,sys,dev,tmp,run,tests,modules}
    install "$(unpack busybox-static)/bin/busybox" "$root/bin/busybox"
    for name in "${COMMANDS[@]}"; do copy_command "$name" "$root"; done
    copy_modules "$1" "$2" "$root"
    while read -r name path; do strip -o "$root/tests/$name" "$path"; done <"$WORK/tests"
    cp "$WORK/tests" "$root/tests.order"
    # Settings of the tests reach them; emulation is some twenty times slower, so there are fewer random packets.
    {
        echo "export VENI_RANDOM_PACKETS=${VENI_RANDOM_PACKETS:-2000}"
        echo "LEFT_OUT='${LEFT_OUT[*]/#/--skip }'"
    } >"$root/environment"
    write_init "$root"
    (cd "$root" && find . -print0 | "$WORK/busybox" cpio -o0 -H newc 2>/dev/null | gzip -1) >"$3"
}

boot() {
    timeout "$TIMEOUT_SECS" qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 2048 -nodefaults -no-user-config \
        -display none -serial stdio -no-reboot -kernel "$1" -initrd "$2" \
        -append "console=ttyS0 loglevel=5 panic=-1 oops=panic net.ifnames=0" </dev/null
}

# judge LOG KERNEL  adds a row a test program to the table, and what the tests said of the verifier; fails unless each
# of them passed.
judge() {
    local name status result passed skipped verdict bad=0
    while read -r name _; do
        status=$(sed -n "s/^veni-exit: $name //p" "$1")
        result=$(sed -n "/^veni-start: $name\$/,/^veni-exit: $name /p" "$1")
        passed=$(sed -n 's/^test result:.* \([0-9]*\) passed.*/\1/p' <<<"$result")
        skipped=$(grep -c '^SKIPPED: ' <<<"$result" || true)
        verdict=ok
        if [ -z "$status" ]; then verdict='did not end'
        elif [ "$status" != 0 ]; then verdict=FAILED
        elif [ "${passed:-0}" = 0 ]; then verdict='DID NOT RUN'
        fi
        [ "$verdict" = ok ] || bad=1
        TABLE+=("$(printf '%-28s %-16s %7s %8s  %s' "$2" "$name" "${passed:-0}" "$skipped" "$verdict")")
    done <"$WORK/tests"
    mapfile -t -O ${#VERIFIED[@]} VERIFIED < <(sed -n "s/^verifier: /$2: /p" "$1")
    if grep -aqE '(WARNING|BUG): ' "$1"; then
        TABLE+=("$(printf '%-28s %-16s %7s %8s  %s' "$2" "the kernel itself" "" "" 'WARNED (see its log)')")
        bad=1
    fi
    return $bad
}

needs qemu-system-x86_64 qemu-system-x86
needs depmod kmod
needs strip binutils
rustup target list --installed 2>/dev/null | grep -qx $TARGET || rustup target add $TARGET
hack/bpf.sh
mkdir -p "$WORK"
ln -sfn "$(unpack busybox-static)/bin/busybox" "$WORK/busybox"
say "building the test programs for $TARGET"
build_tests | sort -r >"$WORK/tests" # what the verifier says comes first
[ -s "$WORK/tests" ] || die "no test program matches: ${TESTS[*]}"

failed=0 TABLE=() VERIFIED=()
for kernel in "${KERNELS[@]}"; do
    package=$(resolve "$kernel") start=$SECONDS
    image=$(unpack "$package")
    version=${package#linux-image-} version=${version%-unsigned}
    log=$WORK/$version.log
    pack "$image" "$version" "$WORK/initramfs.gz"
    say "booting $version (left out under emulation: ${LEFT_OUT[*]})"
    boot "$image/boot/vmlinuz-$version" "$WORK/initramfs.gz" | sed -u 's|\r||' | tee "$log" | grep --line-buffered -aE \
        '^(test |SKIPPED: |verifier|veni-|cannot insert|.*(panicked|Kernel panic|(BUG|WARNING): ))' || true
    grep -qa '^veni-end:' "$log" || { say "the kernel did not get to the end: the last lines of ${log#"$PWD"/}"; tail -n 30 "$log"; failed=1; }
    judge "$log" "$version" || failed=1
    say "$version took $((SECONDS - start)) s (log: ${log#"$PWD"/})"
done

printf '\n%-28s %-16s %7s %8s\n' kernel 'test program' passed skipped
printf '%s\n' "${TABLE[@]}"
printf '%s\n' "${VERIFIED[@]}"
exit $failed
