# The test tiers, in the order in which they run: for hack/test.sh, which sources this file. Each is a function that
# prints what cargo test prints ("test result: ok. 3 passed; …"). All start in the workspace's directory.
# shellcheck shell=bash disable=SC2034

TIERS=(lint house unit docs kernel faults property lab containerd localstack)

# Everything but the two crates that need the AWS SDK: they are linted in the tier that compiles it anyway.
NO_SDK=(--workspace --exclude veni-provider-aws --exclude veni-localstack-tests)

# One selection of packages and features for all tiers without the SDK, so that each dependency is compiled once; the
# tiers differ in the test targets that they name. hack/house-rules checks that each target is in a tier. The floor has no
# tests, and programs without the library that tests need.
HERE=("${NO_SDK[@]}" --exclude veni-ebpf --exclude veni-floor --features veni-ipamd/fault-points,veni-ipamd/kube,veni-ctl/kube,veni-cni/fault-points)

# `--show-output`, because the reason for a skip is in the output of a test that passed.
tests() { cargo test --locked --no-fail-fast "${HERE[@]}" "$@" -- --show-output; }

tier_lint() {
    check "formatted" cargo fmt --all --check
    check "clippy" cargo clippy --locked "${NO_SDK[@]}" --features veni-ipamd/kube,veni-ctl/kube --all-targets -- -D warnings
    for script in hack/*.sh .ci/run; do check "syntax of $script" bash -n "$script"; done
    if command -v cargo-deny >/dev/null; then check "cargo deny" cargo deny check
    else echo "NOTE: cargo-deny is not installed: licences and bans are checked by the tier house, advisories by nobody"; fi
}

tier_house() { tests --test house --test runner --test chart; }

tier_unit() {
    tests --lib --bins --test api_server --test binary --test conformance --test crds --test custom_networking --test pool --test results --test sim --test sim_properties \
        --test socket --test security_groups --test resolver --test live --test policy --test role \
        --test elector --test sweep --test publish
    tests --doc
}

# Links to private items are fine: those who read this documentation read the source beside it.
tier_docs() {
    RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" check "rustdoc" cargo doc --locked --no-deps "${NO_SDK[@]}" --exclude veni-ebpf
}

tier_kernel() {
    tests --test bpf_attach --test bpf_flows --test bpf_overwrite --test bpf_packets --test bpf_policy --test bpf_random --test bpf_restart --test bpf_services --test bpf_traffic --test bpf_translation --test bpf_verifier --test conntrack --test host_repair --test nft_table --test plugin --test pod_wiring \
        --test routing
}

tier_faults() { tests --test crash --test faults; }

tier_property() { tests --test random --test judged --test services --test resume --test refusal --test pending; }

# The lab finds the daemon and the plugin here: the release builds that `make demo` uses.
export VENI_BIN_DIR=$PWD/target/veni
tier_lab() {
    hack/build.sh || return 1
    tests --test demo --test fabric --test pod_subnet --test restart --test verdicts
    check "demo" target/veni/veni-lab demo
}

tier_containerd() {
    hack/build.sh || return 1
    tests --test pods
}

# One selection of packages, so that the AWS SDK is compiled once. `cargo clippy` would compile it once more, to check
# it: its driver wrapped around the build's own compiler lints our crates over the SDK that is there.
SDK=(-p veni-provider-aws -p veni-localstack-tests)
tier_localstack() {
    hack/localstack.sh || return 1
    cargo test --locked --no-fail-fast "${SDK[@]}" -- --show-output
    RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS="-Dwarnings__CLIPPY_HACKERY__" \
        check "clippy of the crates above the SDK" cargo build --locked "${SDK[@]}" --all-targets
}
