#!/usr/bin/env bash
# Runs the test tiers and ends with a table of how many tests each ran.
#
#   hack/test.sh                 all tiers (hack/tiers.sh)
#   hack/test.sh unit kernel     some
#
# A tier passes when every command of it succeeds and at least one test ran: a tier of which nothing ran has failed.
# Output goes to target/test-logs/<tier>.log; what failed is shown. Tests print "SKIPPED: <feature>" for a kernel
# feature that is not there; those lines are counted and shown. Root on Linux has what the tests need: there a skipped
# test fails its tier.
set -uo pipefail
cd "$(dirname "$0")/.."

LOGS=${VENI_TEST_LOGS:-$PWD/target/test-logs}
export CARGO_TERM_COLOR=never RUST_BACKTRACE=${RUST_BACKTRACE:-0}
mkdir -p "$LOGS"

# check NAME COMMAND…  runs a command that is one test in itself.
check() {
    local name=$1
    shift
    if "$@"; then
        echo "test $name ... ok"
        echo "test result: ok. 1 passed; 0 failed"
    else
        echo "test $name ... FAILED"
        echo "test result: FAILED. 0 passed; 1 failed"
        return 1
    fi
}

sum() { grep -a '^test result:' "$1" | sed -n "s/.* \([0-9]*\) $2.*/\1/p" | awk '{n += $1} END {print n + 0}'; }

# Says every 30 s what a long tier is doing, so that a person (or a CI that watches for silence) sees it live.
heartbeat() {
    local never
    exec {never}<> <(:) # a read that times out, because a `sleep` would outlive this loop
    while read -rt 30 -u "$never"; [ $? -gt 128 ]; do
        printf '  … %s, %s s: %.100s\n' "$1" $((SECONDS - $3)) "$(tail -n 1 "$2" 2>/dev/null | tr -d '\r')"
    done
}

# shellcheck source=hack/tiers.sh
source "${VENI_TIERS:-hack/tiers.sh}"
ALL=("${TIERS[@]}")
[ $# -eq 0 ] || TIERS=("$@")

passed_total=0 failed_total=0 skipped_total=0 table=() broken=()

may_skip() { [ "$(uname -s)" != Linux ] || [ "$(id -u)" -ne 0 ]; }

run_tier() {
    local tier=$1 log=$LOGS/$1.log start=$SECONDS status passed failed skipped verdict beat
    : > "$log"
    heartbeat "$tier" "$log" "$start" &
    beat=$!
    # Goes on after a failed command, to show all failures, but remembers it.
    (set -E; bad=0; trap 'bad=1' ERR; "tier_$tier"; exit $bad) > "$log" 2>&1
    status=$?
    kill $beat 2>/dev/null; wait $beat 2>/dev/null
    passed=$(sum "$log" passed) failed=$(sum "$log" failed) skipped=$(grep -ac '^SKIPPED: ' "$log")
    verdict=ok
    if [ "$failed" -gt 0 ]; then verdict=FAILED
    elif [ $status -ne 0 ]; then verdict=FAILED failed=1
    elif [ "$passed" -eq 0 ]; then verdict="DID NOT RUN" failed=1
    elif [ "$skipped" -gt 0 ] && ! may_skip; then verdict="SKIPPED AS ROOT" failed=1
    fi
    printf '%-11s %5d passed %3d failed  %4d s  %s\n' "$tier" "$passed" "$failed" $((SECONDS - start)) "$verdict"
    grep -a '^SKIPPED: ' "$log" | sort | uniq -c | sed 's/^/    /'
    grep -a '^NOTE: ' "$log" | sort -u | sed 's/^/    /'
    if [ "$verdict" != ok ]; then
        broken+=("$tier")
        # What failed and how it panicked, then the end, which shows what is neither.
        grep -aE -A 4 '^(test .* FAILED$|error|Diff in|thread .* panicked)' "$log" | head -n 60 | sed 's/^/    /'
        printf '    … the end of %s:\n' "${log#"$PWD"/}"
        tail -n 20 "$log" | sed 's/^/    | /'
    fi
    passed_total=$((passed_total + passed)) failed_total=$((failed_total + failed)) skipped_total=$((skipped_total + skipped))
    table+=("$(printf '%-11s %7d %7d %8d %6d s  %s' "$tier" "$passed" "$failed" "$skipped" $((SECONDS - start)) "$verdict")")
}

# Before the first of them runs for minutes.
for tier in "${TIERS[@]}"; do
    declare -F "tier_$tier" >/dev/null || { echo "no tier '$tier'; there are: ${ALL[*]}" >&2; exit 2; }
done
for tier in "${TIERS[@]}"; do run_tier "$tier"; done

printf '\n%-11s %7s %7s %8s %8s\n' tier passed failed skipped time
printf '%s\n' "${table[@]}"
printf '\n%d passed, %d failed, %d skipped (among the passed)\n' $passed_total $failed_total $skipped_total
[ ${#broken[@]} -eq 0 ] || { echo "failed: ${broken[*]} (logs in ${LOGS#"$PWD"/})"; exit 1; }
