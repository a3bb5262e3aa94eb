# syntax=docker/dockerfile:1
# veni's image: `docker buildx build --platform linux/amd64,linux/arm64 --tag REGISTRY/veni:0.1.0 --push .`
#
# Each platform is compiled on itself (another one is emulated by QEMU, which takes an hour: a native builder is better). The
# AWS SDK wants 8 GiB of memory. What the image has is in hack/image-root.sh: three or four programs, nft and its libraries.

FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libedit2 libxml2 libz3-4 nftables \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /veni
# The BPF compiler changes less often than the sources.
COPY rust-toolchain.toml hack/bpf.sh ./
RUN mkdir hack && mv bpf.sh hack/ && apt-get update && hack/bpf.sh && rm -rf /var/lib/apt/lists/*
COPY . .
# The plugin is linked statically: the runtime starts it on the node.
RUN target="$(uname -m)-unknown-linux-musl" \
    && rustup target add "$target" \
    && cargo build --locked --profile plugin --target "$target" --package veni-cni \
    && cargo build --locked --release --package veni-ipamd --package veni-controller --package veni-ctl --features aws,kube \
    && mkdir /programs \
    && cp "target/$target/plugin/veni-cni" target/release/veni-ipamd target/release/veni-controller target/release/venictl /programs/ \
    && strip /programs/* \
    && hack/image-root.sh /root-of-image /programs \
    && rm -rf target

FROM scratch
COPY --from=build /root-of-image/ /
ENV PATH=/usr/bin:/usr/sbin
ENTRYPOINT ["/usr/bin/veni-ipamd"]
