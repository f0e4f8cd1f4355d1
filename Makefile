# The two commands of the README are `make demo` and `make test`; both bring the real servers they need and stop them.
SHELL := /bin/bash

.PHONY: demo test test-deps test-esdb bench soak fmt lint docs

demo: ## the whole product on real input; DEMO_EXIT=1 ends with a summary instead of staying up
	@tests/realparts/demo.sh

test: ## everything, against real servers; nothing passes by not running
	@tests/realparts/test.sh

test-deps: ## what `test` installs, without running it
	@tests/realparts/test.sh --deps

bench: ## measurements beside their baselines
	@benches/run.sh

soak: ## the long storms; SEED=n repeats one
	@tests/realparts/test.sh --soak

test-esdb: ## the log's contract against the EventStoreDB server in BEAMPIPE_TEST_EVENTSTORE_URL; part of no other target
	@cargo nextest run -p beampipe-log --features eventstore-server --test eventstore_server

fmt:
	cargo fmt --all

lint:
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
