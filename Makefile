# Everything people and CI type. `make help` lists it.
.DEFAULT_GOAL := help
# rustup's own place, for shells that have not read its environment yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO ?= cargo
# Absolute, because some are built in workspaces of their own.
OWN_TARGET = $(abspath $(or $(CARGO_TARGET_DIR),target))

.PHONY: help demo test check test-fast test-patient test-services services bench-drain bench-e2e bench-ingest bench-wal bench-decode fuzz loom miri deny fmt

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

demo: ## Run the main job on this machine's own metrics, without anything to set up. ARGS="--for 20s" ends by itself.
	@scripts/setup build
	@$(CARGO) build --release --locked --quiet --bin monasca-persister
	@$(CARGO) run --release --locked --quiet --bin monasca-persister -- demo $(ARGS)

# What takes the time that the tests of services leave: they wait for most of theirs.
PATIENT ?= test-patient

test: ## Run every test, with a real Kafka and a real Cassandra that are started and stopped by the tests.
	@scripts/setup test
	@$(MAKE) --no-print-directory test-fast
	@nice -n 19 $(MAKE) --no-print-directory -j1 $(PATIENT) & patient=$$!; \
		trap 'kill $$patient; exit 130' INT TERM; \
		$(MAKE) --no-print-directory -j1 test-services; services=$$?; \
		wait $$patient && exit $$services

test-fast: ## Tests that need no service: units, log, documents, errors of a broker.
	$(CARGO) test --locked --workspace --lib --bins
	$(CARGO) test --locked --workspace --doc
	$(CARGO) test --locked -p wal --test damage --test disk --test golden --test recovery --test salvage \
		--test unharmed
	$(CARGO) test --locked -p wal --test real_disk -- --nocapture --test-threads=1
	$(CARGO) test --locked --test documents --test tools --test definitions --test kafka_errors -- --nocapture

test-patient: ## Simulators and models: only processors, no clock.
	$(CARGO) test --locked --test simulation -- --nocapture
	$(CARGO) test --locked -p wal --test model --test exhaustive -- --nocapture

test-services: ## Tests against a real Kafka and a real Cassandra.
	$(CARGO) test --locked -p harness --tests -- --test-threads=1
	$(CARGO) test --locked -p storage --tests -- --test-threads=1
	$(CARGO) test --locked --test kafka_security --test kafka_oauth --test dead_letters --test operator \
		--test cassandra_security --test cassandra_errors -- --nocapture
	$(CARGO) test --locked --test end_to_end -- --test-threads=1 --nocapture

check: ## Format, lints, documentation, and that benches and fuzz targets build.
	@scripts/setup build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet
	cd fuzz && $(CARGO) check --locked --quiet
	@# Formatted only: it compiles five other engines, which checks nothing of this project.
	cd wal/benches/engines && $(CARGO) fmt --check
	@if command -v cargo-deny >/dev/null 2>&1; then cargo deny --offline check licenses bans sources; \
	else echo "cargo-deny is not installed: licences, bans and sources are not checked here"; fi

fuzz: ## Fuzz the log: FUZZ_SECONDS (60) per target, two at a time.
	@scripts/setup build
	@cd fuzz && ./run.sh wal_frame 1 >/dev/null && \
		printf '%s\n' wal_frame wal_segment wal_cursor wal_directory | \
		xargs -P 2 -I TARGET ./run.sh TARGET $(or $(FUZZ_SECONDS),60)

loom: ## Hand-overs between the log's threads, in every order a model checker finds within its bounds.
	RUSTFLAGS="--cfg loom" $(CARGO) test --locked --release -p wal --test hand_over --target-dir $(OWN_TARGET)/loom \
		-- --nocapture --test-threads=2

miri: ## The log's unit tests in Rust's interpreter, for minutes; needs a nightly toolchain with miri.
	MIRIFLAGS=-Zmiri-disable-isolation $(CARGO) +nightly miri test --locked -p wal --lib \
		--target-dir $(OWN_TARGET)/miri -- --skip acks_in_any_order --skip a_long_hold_back

services: ## Start Kafka and Cassandra for people; Ctrl-C stops both.
	@scripts/setup test
	@$(CARGO) run --locked --quiet -p harness --bin services

bench-e2e: ## Kafka to log to Cassandra, beside bare clients, in one run.
	@scripts/setup test
	$(CARGO) bench --locked --bench e2e

bench-drain: ## Log to Cassandra, draining and live, beside the bare driver: rate, CPU and memory.
	@scripts/setup test
	$(CARGO) bench --locked --bench drain

bench-ingest: ## Kafka to log, beside librdkafka that only consumes: rate, CPU and memory.
	@scripts/setup test
	$(CARGO) bench --locked --bench ingest

bench-wal: ## The log beside raft-engine, okaywal, RocksDB, fjall, sled and a bare file, in one run.
	@scripts/setup build
	cd wal/benches/engines && $(CARGO) build --release --locked --target-dir $(OWN_TARGET)
	CARGO_TARGET_DIR=$(OWN_TARGET) $(OWN_TARGET)/release/bench-wal

bench-decode: ## Messages decoded per second.
	$(CARGO) bench --locked --bench decode

deny: ## Licences, bans, sources and advisories of all dependencies.
	cargo deny check

fmt: ## Format everything.
	$(CARGO) fmt --all
