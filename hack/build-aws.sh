#!/usr/bin/env bash
# Builds the daemon and the controller with the AWS provider into target/veni/ (veni-ipamd-aws, veni-controller-aws), for the
# cluster whose cloud is LocalStack (`make e2e-localstack`). Not optimised: so the AWS SDK (8 GiB of memory and minutes) is
# the one that the tier localstack has compiled.
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=target/veni
BUILT=${CARGO_TARGET_DIR:-target}/debug

# The packages of the tier localstack (hack/tiers.sh) are named for their features: the daemon has `aws` and `kube` by them.
cargo build --locked -p veni-provider-aws -p veni-localstack-tests -p veni-ipamd -p veni-controller \
    --features veni-controller/aws --bin veni-ipamd --bin veni-controller
mkdir -p "$OUT"
for program in veni-ipamd veni-controller; do
    # What only a debugger reads is most of it, and every node imports it.
    strip -o "$OUT/$program-aws.new" "$BUILT/$program"
    mv "$OUT/$program-aws.new" "$OUT/$program-aws"
done
