# The front door. Every target installs what it lacks (hack/setup.sh), once, and says so.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: help demo test e2e e2e-localstack e2e-upstream test-kernels lint bench build image-root install-tools clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build ## a VPC in a box: two nodes, 60 pods, every path checked, nothing left behind (root)
	@target/veni/veni-lab demo

bench: build ## ADD and DEL beside the floor in interleaved runs, the daemon by itself, pods' traffic, the programs (root)
	@target/veni/veni-lab bench add
	@target/veni/veni-lab bench daemon
	@target/veni/veni-lab bench traffic
	@cargo bench --locked -p veni-datapath --features bpf --bench programs

test: ## every test that needs no cluster, LocalStack and containerd included; ends with a table (root)
	@hack/setup.sh test
	@hack/test.sh

e2e: ## a real Kubernetes on two nodes, checked from end to end; ends with a table (root, Go; 20 minutes, and 9 more the first time)
	@hack/setup.sh test
	@hack/kubernetes.sh upstream
	@hack/build.sh
	@cargo build --locked --release -p veni-e2e
	@VENI_BIN_DIR=target/veni target/release/veni-e2e $(E2E_ARGS)
	@[ -n '$(E2E_ARGS)' ] || $(MAKE) --no-print-directory e2e-localstack LOCALSTACK_ARGS='--only connect,scale,restart,enis'

e2e-localstack: ## the same cluster with the AWS provider, and LocalStack for a cloud (as e2e; 8 GiB of memory for the AWS SDK)
	@hack/setup.sh test
	@hack/kubernetes.sh
	@hack/build.sh
	@hack/build-aws.sh
	@cargo build --locked --release -p veni-e2e
	@VENI_BIN_DIR=target/veni target/release/veni-e2e --cloud localstack --pods 30 $(LOCALSTACK_ARGS)

UPSTREAM ?= sig-network.*Conformance|NetworkPolic
POLICY_API ?= .*
e2e-upstream: ## upstream's specs on the same cluster: sig-network conformance, NetworkPolicy, ClusterNetworkPolicy (as e2e, an hour)
	@hack/setup.sh test
	@hack/kubernetes.sh upstream
	@hack/build.sh
	@cargo build --locked --release -p veni-e2e
	@VENI_BIN_DIR=target/veni target/release/veni-e2e --upstream '$(UPSTREAM)' --policy-api '$(POLICY_API)' $(E2E_ARGS)

test-kernels: ## the eBPF programs and their tests on Debian's 6.1 kernel, in QEMU without KVM (root, two minutes)
	@hack/setup.sh lint
	@hack/test-kernels.sh

lint: ## format, clippy, the house's rules, and cargo-deny where it is installed
	@hack/setup.sh lint
	@hack/test.sh lint

build: ## the release binaries into target/veni (without the AWS SDK)
	@hack/setup.sh demo
	@hack/build.sh

image-root: build ## the files of the image (Dockerfile) below target/image-root, each program started there; without the AWS SDK (root)
	@rm -rf target/image-root
	@hack/image-root.sh target/image-root target/veni
	@for program in /usr/bin/veni-ipamd /usr/bin/venictl /usr/sbin/nft; do chroot target/image-root $$program --version || exit 1; done
	@du -sh target/image-root

install-tools: ## everything that the other targets would install
	@hack/setup.sh test

clean: ## remove what was built; downloaded tools stay in .tools
	@cargo clean
