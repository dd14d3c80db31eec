# The two commands: `make run` and `make test`.

.PHONY: run test check prerequisites fmt

# A gateway on its embedded bus. It prints the address of the demo page; Ctrl-C stops it.
run:
	FANFARE_DRAIN_DELAY=$${FANFARE_DRAIN_DELAY:-0s} FANFARE_DRAIN_PERIOD=$${FANFARE_DRAIN_PERIOD:-1s} cargo run

# Everything that is checked, with what the checks need installed first.
test: prerequisites check

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --document-private-items --locked --quiet
	cargo test --workspace --locked
	cargo run --quiet --locked -p load-tests --bin fanfare-load -- compare --peers fanfare --shrink 50 --runs 1 --duration 1s

prerequisites:
	tests/prerequisites.sh

fmt:
	cargo fmt --all
