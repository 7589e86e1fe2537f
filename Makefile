.DEFAULT_GOAL := help
.PHONY: help run test matrix attribution endurance bombs bench lint fmt

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

run: ## build and start the gateway; without RABBITMQ_HOST or RABBITMQ_URL on its embedded broker
	TOPOLOGY_FILE="$${TOPOLOGY_FILE-examples/topology.toml}" cargo run --locked -- serve

test: ## run every test, against servers of its own (installs them when missing)
	scripts/test

matrix: ## run the tests on newer servers too: RabbitMQ 4.0 and 4.3, MySQL 9.7 (Debian's, in folders of their own)
	scripts/matrix

attribution: ## publish a million messages and check that each got its own outcome
	scripts/test attribution

endurance: ## ask 20,000 of each thing, then an hour of mixed traffic, and check that nothing wears out
	scripts/test endurance

bombs: ## throw at the gateway what one client may do to the others, and show what that costs
	scripts/test bombs

bench: ## measure throughput and latency, against a RabbitMQ of its own
	scripts/bench

lint: ## formatting, clippy, the API's style, dependencies, scripts
	scripts/lint

fmt: ## format the Rust code
	cargo fmt --all
