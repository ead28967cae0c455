# Everything a person or a CI needs. What is missing on the machine is installed first, and caches
# stay outside the checkout: see scripts/env.sh.

# Which repository's history `run` and `demo` load; DATA keeps the nodes' data there between runs.
REPO ?= .
DATA ?=
NODES ?= 3
PORT ?= 2600

run demo: export REPO := $(REPO)
run demo: export DATA := $(DATA)
run demo: export NODES := $(NODES)
run demo: export PORT := $(PORT)

READY := set -eu; . scripts/env.sh; need_all
# All of it, tests on Kubernetes included. One selection for all steps: another one has other features, and
# builds half of the dependencies again.
ALL := --workspace --all-targets --features ringfold-tests-kubernetes/cluster
SAY = printf '\nringfold: %s\n' >&2

.DEFAULT_GOAL := help
.PHONY: help build run demo test test-kubernetes test-long test-more fmt lint bench bench-kubernetes clean-cache
# The recipes share one cargo cache.
.NOTPARALLEL:

help: ## this list
	@echo 'Ringfold: an event store. Targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo 'Variables of run and demo: REPO=path (now $(REPO)), DATA=dir (kept between runs), NODES=3, PORT=2600'

build: ## all release binaries, in $CARGO_TARGET_DIR/release
	@$(READY); cargo build --locked --release --workspace --bins
	@. scripts/env.sh; echo "binaries are in $$CARGO_TARGET_DIR/release"

run: ## start three nodes, load and check REPO's git history, keep serving until Ctrl-C
	@sh scripts/run.sh serve

demo: ## the same, but end with the check's exit code
	@sh scripts/run.sh check

test: ## formatting, clippy with warnings denied, and every test; as root on Linux also those on Kubernetes
	@$(READY); \
	kubernetes=; \
	if [ "$$(uname -s)" = Linux ] && [ "$$(id -u)" = 0 ]; then kubernetes=yes; fi; \
	$(SAY) '1/5 formatting'; cargo fmt --all -- --check || die 'not formatted: run `make fmt`'; \
	$(SAY) '2/5 clippy'; cargo clippy --locked $(ALL) -- -D warnings; \
	$(SAY) '3/5 tests, and the binaries that they start'; cargo build --locked $(ALL); \
	if [ -n "$$kubernetes" ]; then \
	  say 'the parts of a Kubernetes are built meanwhile where they are missing'; \
	  nice -n 19 tests/kubernetes/cluster build >"$$RINGFOLD_CACHE/components.log" 2>&1 & \
	fi; \
	failed=; \
	$(SAY) '4/5 tests'; cargo test --locked --workspace --no-fail-fast || failed="$$failed tests"; \
	if [ -n "$$kubernetes" ]; then \
	  $(SAY) '5/5 tests on Kubernetes'; wait; tests/kubernetes/run || failed="$$failed tests-on-Kubernetes"; \
	else \
	  $(SAY) '5/5 LEFT OUT: tests on Kubernetes, which need root on Linux: sudo make test-kubernetes'; \
	fi; \
	[ -z "$$failed" ] || die "failed:$$failed (see above)"

test-kubernetes: ## tests on a real Kubernetes of three nodes that it brings up; TEST=part of a name
	@tests/kubernetes/run $(TEST)

test-long: ## random faults for RINGFOLD_LONG_MINUTES (60), whose row it writes into docs/reliability.md; a Kubernetes at rest
	@$(READY); cargo build --locked --release -p ringfold-node --bins; \
	RINGFOLD_LONG_MINUTES=$${RINGFOLD_LONG_MINUTES:-60} cargo test --locked --release -p ringfold-tests --test long -- --nocapture --test-threads 1; \
	if [ "$$(uname -s)" = Linux ] && [ "$$(id -u)" = 0 ]; then \
	  $(SAY) 'ten minutes at rest on Kubernetes'; RINGFOLD_IDLE_MINUTES=10 tests/kubernetes/run at_rest_nothing_is_written_but_the_lease; \
	else \
	  $(SAY) 'LEFT OUT: ten minutes at rest on Kubernetes, which need root on Linux'; \
	fi

test-more: ## every test, with many more seeds and longer loads (docs/reliability.md)
	@$(READY); cargo build --locked --release --workspace --bins; \
	RINGFOLD_TEST_FACTOR=$${RINGFOLD_TEST_FACTOR:-20} cargo test --locked --release --workspace --no-fail-fast

fmt: ## format the code
	@$(READY); cargo fmt --all

lint: ## formatting and clippy, changing nothing
	@$(READY); cargo fmt --all -- --check; cargo clippy --locked $(ALL) -- -D warnings

bench: ## the figures of docs/performance.md, as ratios against peers in the same run
	@$(READY); cargo build --locked --release -p ringfold-node -p ringfold-cli -p ringfold-bench --bins; \
	"$$CARGO_TARGET_DIR/release/ringfold-bench" all --dir "$$RINGFOLD_CACHE"

bench-kubernetes: ## times of apply and scale, and what clients see meanwhile; as root on Linux
	@tests/kubernetes/run --figures

clean-cache: ## remove everything that builds have cached, RocksDB included
	@. scripts/env.sh; say "emptying $$RINGFOLD_CACHE"; \
	[ ! -e "$$RINGFOLD_CACHE/kubernetes/cluster" ] || tests/kubernetes/cluster down; \
	cd "$$RINGFOLD_CACHE" && rm -rf target kubernetes images rocksdb rocksdb-build rocksdb.lock rustup-init.sh apt.log components.log
