# The two commands: `make run` and `make test`.

.PHONY: run cluster test test-clients test-faults prerequisites fmt dist

# A gateway on its embedded bus. It prints the address of the demo page; Ctrl-C stops it.
run:
	FANFARE_DRAIN_DELAY=$${FANFARE_DRAIN_DELAY:-0s} FANFARE_DRAIN_PERIOD=$${FANFARE_DRAIN_PERIOD:-1s} cargo run

# Redis, three replicas, nginx with TLS and Prometheus as processes of this machine. It prints what
# to try; Ctrl-C stops all of it.
cluster:
	cargo build
	deploy/cluster

# Everything that is checked, with what the checks need installed first.
test:
	tests/check

# Every program of docs/clients.md with its real library. It needs Go, Maven, a JDK and Node.js, and says so.
test-clients:
	cargo build --locked --bin fanfare
	tests/clients/prepare
	target/clients/python/venv/bin/python -m unittest discover --start-directory tests/clients

# The whole fault matrix, and rollouts under ten thousand clients and across versions: what takes
# minutes, or needs root. One after another; the table is what docs/reliability.md shows.
test-faults: export FAULT_TABLE = $(CURDIR)/target/fault-matrix.md
test-faults: prerequisites
	rm -f $(FAULT_TABLE)
	cargo test --locked --features long-tests --test model
	cargo test --locked --no-fail-fast --features long-tests --test it -- --test-threads 1 faults:: rollout:: upgrade::; \
	result=$$?; echo '| fault | bound | result | duration |'; echo '|---|---|---|---|'; cat $(FAULT_TABLE); exit $$result

# A release build and all that belongs to it, packed: target/dist/fanfare-VERSION-TARGET.tar.gz.
dist:
	deploy/dist

prerequisites:
	tests/prerequisites.sh

fmt:
	cargo fmt --all
