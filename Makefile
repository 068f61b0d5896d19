# The verbs of the project; CI and people use the same. `make` alone lists them.

CARGO ?= cargo
# Prints nothing when there is nothing to build or install.
CARGO_BUILD := $(CARGO) build --locked --quiet

# container-init is the first process of every container: static, its own profile, and with an
# explicit --target so that build scripts are not linked the way it is.
INIT_TARGET := x86_64-unknown-linux-gnu
INIT_BUILD := --package container-init --features pid1 --profile init --target $(INIT_TARGET)
INIT := $(CURDIR)/target/$(INIT_TARGET)/init/container-init

# What the harness starts (tests/src/cli.rs).
DEBUG := NODEAGENT_BIN=$(CURDIR)/target/debug/nodeagent NODEAGENT_CONTAINER_INIT=$(INIT)
RELEASE := NODEAGENT_BIN=$(CURDIR)/target/release/nodeagent NODEAGENT_CONTAINER_INIT=$(INIT)

# containerd 2.2 is built, not packaged: where it is, and what the harness is told to expect.
PEERS := $(or $(NODEAGENT_PEERS),/var/cache/nodeagent-peers)
CONTAINERD_2 := PATH=$(PEERS)/containerd-2.2.0/bin:$(PATH) NODEAGENT_TESTS_CONTAINERD=2.2.

SCRIPTS := .ci/run tests/peers/install tests/peers/build tests/peers/systemd-root tests/peers/vm-image tests/peers/debian-image

.PHONY: help
help:
	@echo 'make demo             the main job in front of your eyes, on real components'
	@echo 'make test             every test; installs and builds what the tests need'
	@echo 'make test-core        those that Debian packages are enough for'
	@echo 'make test-peers       those on what is built first: containerd 2.2, etcd 3.6; needs Go 1.26'
	@echo 'make test-containerd-2  every scenario on containerd 2.2'
	@echo 'make test-vm          those in a virtual machine: cgroup 2, crun, reboots, power cuts'
	@echo 'make check            formatting, lints, dependencies, scripts, documentation'
	@echo 'make soak             eleven minutes of 10 000 forks a second below container-init'
	@echo 'make bench [NAME]     measure: activation, agent, discovery, init, peers, pull; all without a name'
	@echo 'make bench-check      compare the newest figures with the targets'
	@echo 'make fuzz             fuzz what PID 1 and the image cache read (FUZZ_SECONDS=60 a target)'
	@echo 'make build            everything, for development'
	@echo 'make package-files    what a package brings beside the programs, in target/package'
	@echo 'make clean            remove what was built'

.PHONY: build container-init release harness
build: container-init
	@$(CARGO_BUILD)

container-init:
	@$(CARGO_BUILD) $(INIT_BUILD)

# What is shown and measured is the release build; who shows and measures need not be one.
release: harness
	@echo 'building the release (some minutes the first time)'
	@$(CARGO_BUILD) --release --package nodeagent

harness: container-init
	@$(CARGO_BUILD) --package nodeagent-tests --bins

# What a package brings: packaging/ as it is, and beside it what the program says about itself.
PACKAGE := $(CURDIR)/target/package
.PHONY: package-files
package-files:
	@$(CARGO_BUILD) --package nodeagent
	@rm -rf $(PACKAGE)
	@mkdir -p $(addprefix $(PACKAGE)/usr/share/,bash-completion/completions zsh/vendor-completions \
		fish/vendor_completions.d man/man1 nodeagent/schema)
	@cp -r packaging/. $(PACKAGE)/
	@cd $(PACKAGE)/usr/share && program=$(CURDIR)/target/debug/nodeagent && \
		$$program completions bash >bash-completion/completions/nodeagent && \
		$$program completions zsh >zsh/vendor-completions/_nodeagent && \
		$$program completions fish >fish/vendor_completions.d/nodeagent.fish && \
		$$program man man/man1 >/dev/null && \
		$$program config schema >nodeagent/schema/config.json && \
		$$program app schema >nodeagent/schema/app.json

.PHONY: demo
demo:
	@tests/peers/install demo
	@$(MAKE) --no-print-directory release
	@$(RELEASE) target/debug/demo

# The tiers, what each proves and how long it takes: docs/development/testing.md.
.PHONY: test test-core test-peers test-systemd
test: test-core test-peers test-systemd

test-core:
	@tests/peers/install test
	@$(MAKE) --no-print-directory build
	$(DEBUG) $(CARGO) test --locked --workspace

# Servers that tests/peers/build builds: the tests that test-core ignores for it, and on containerd
# 2.2 what speaks with containerd or lives through its death.
test-peers:
	@tests/peers/install test
	@tests/peers/build etcd-3.6.6 etcdctl-3.6.6 containerd-2.2.0 kubelet-1.34.4 >/dev/null
	@$(MAKE) --no-print-directory build
	$(DEBUG) $(CARGO) test --locked --package nodeagent --test discovery -- --ignored
	$(DEBUG) $(CARGO) test --locked --package nodeagent-tests --test etcd --test etcd_faults --test etcd_crashes \
		-- --ignored
	$(DEBUG) $(CONTAINERD_2) $(CARGO) test --locked --package nodeagent --test runtime
	$(DEBUG) $(CONTAINERD_2) $(CARGO) test --locked --package nodeagent-tests \
		--test harness --test main_job --test containerd_faults --test app_faults \
		--test registry_faults --test hostile_container --test exec \
		--test images --test unpack --test image_verify --test image_faults --test image_kills \
		--test image_presence --test shared_store
	$(DEBUG) $(CONTAINERD_2) $(CARGO) test --locked --package nodeagent-tests --test kubelet -- --include-ignored
	$(DEBUG) $(CONTAINERD_2) $(CARGO) test --locked --package nodeagent-tests \
		--test crashes a_cold_activation

# Every scenario on containerd 2.2; `test-peers` has those that can differ.
.PHONY: test-containerd-2
test-containerd-2:
	@tests/peers/install test
	@tests/peers/build containerd-2.2.0 >/dev/null
	@$(MAKE) --no-print-directory build
	$(DEBUG) $(CONTAINERD_2) $(CARGO) test --locked --no-fail-fast --package nodeagent-tests

# Real systemd in systemd-nspawn, about 2 minutes; the first time debootstrap makes its Debian.
test-systemd:
	@tests/peers/install test systemd
	@$(MAKE) --no-print-directory build
	@tests/peers/systemd-root >/dev/null
	$(DEBUG) $(CARGO) test --locked --package nodeagent-tests --test systemd -- --ignored

# In `test` for seconds; a minute of it, and ten, want a machine that does nothing else.
.PHONY: soak
soak:
	@tests/peers/install test
	@$(MAKE) --no-print-directory build
	$(DEBUG) $(CARGO) test --locked --package nodeagent-tests --test init_soak -- --ignored --nocapture --test-threads 1

# cgroup 2, crun, systemd, reboots and power cuts: in a virtual machine, emulated, so not in `test`.
.PHONY: test-vm
test-vm:
	@tests/peers/install vm
	@tests/peers/vm-image >/dev/null
	@$(MAKE) --no-print-directory release
	$(RELEASE) $(CARGO) test --locked --package nodeagent-tests --test vm -- --ignored --test-threads 1

.PHONY: check
check:
	@tests/peers/install check
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --quiet
	shellcheck $(SCRIPTS)
	@if command -v cargo-deny >/dev/null; then \
		$(CARGO) deny --offline check bans licenses sources; \
	else \
		echo 'skipped: cargo deny is not installed (cargo install --locked cargo-deny, about 6 minutes)'; \
	fi

# Coverage-guided: any bytes as a plan and on the connection of PID 1; as a layer, a manifest and a
# reference of the image cache. Needs a nightly compiler, which rustup brings; `make test` has the
# same decoders under property tests. C is built without the address sanitizer: ISA-L's build links
# statically, which that refuses.
FUZZ := $(CURDIR)/target/fuzz
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := $(addprefix agent/container-init/fuzz:,plan protocol) \
	$(addprefix imagecache/fuzz:,archive inflate manifest reference)
.PHONY: fuzz
fuzz:
	@tests/peers/install check
	@rustup toolchain install nightly --profile minimal >/dev/null
	@[ -x $(FUZZ)/bin/cargo-fuzz ] || $(CARGO) +nightly install cargo-fuzz --locked --root $(FUZZ)
	@for each in $(FUZZ_TARGETS); do \
		target=$${each#*:}; \
		mkdir -p $(FUZZ)/corpus/$$target; \
		PATH=$(FUZZ)/bin:$$PATH CARGO_TARGET_DIR=$(FUZZ) CFLAGS=-fno-sanitize=address \
			$(CARGO) +nightly fuzz run --fuzz-dir $${each%:*} \
			$$target $(FUZZ)/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 \
			-artifact_prefix=$(FUZZ)/$$target- || exit 1; \
	done

# `make bench`, `make bench activation`, `make bench activation agent`.
BENCHMARKS := activation agent discovery init peers pull
NAME ?= $(filter $(BENCHMARKS),$(MAKECMDGOALS))

.PHONY: bench bench-check $(BENCHMARKS)
bench:
	@tests/peers/install bench
	@$(if $(filter discovery,$(or $(NAME),$(BENCHMARKS))),tests/peers/build etcd-3.6.6 >/dev/null)
	@$(MAKE) --no-print-directory $(if $(filter-out init,$(or $(NAME),$(BENCHMARKS))),release,harness)
	@for name in $(or $(NAME),$(BENCHMARKS)); do $(RELEASE) target/debug/bench-$$name || exit 1; done

# A name beside `bench` is a word to it, not a goal of its own.
$(BENCHMARKS):
	@$(if $(filter bench,$(MAKECMDGOALS)),:,$(MAKE) --no-print-directory bench NAME=$@)

bench-check:
	@$(CARGO_BUILD) --package nodeagent-tests --bins
	@target/debug/bench-check target/bench

.PHONY: clean
clean:
	$(CARGO) clean
