# What a developer does here, one target each. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help run test fuzz bench chaos guards check fmt lint doc deny rules up down install

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## build and run everything on this machine, with a demonstration
	.ci/install run
	cargo build --locked --release
	$${CARGO_TARGET_DIR:-target}/release/heartbeat standalone --demo

test: ## all tests on MariaDB, and the integration tests again on MySQL
	.ci/test

fuzz: ## try both APIs against their own descriptions
	HEARTBEAT_SCHEMATHESIS="$$(.ci/schemathesis | tail -n1)" \
		cargo test --locked --test it openapi::fuzz -- --exact --ignored --nocapture

# Only what the command line says: the environment's SECONDS is bash's own clock.
chaos: override SECONDS := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60)
chaos: override SEED := $(if $(filter command line,$(origin SEED)),$(SEED))
chaos: ## everything fails, and nothing is lost: make chaos SECONDS=60 SEED=1
	CHAOS_SECONDS=$(SECONDS) CHAOS_SEED=$(SEED) \
		cargo test --locked --test it chaos::chaos -- --exact --ignored --nocapture

guards: ## show that each guard has a test that fails without it, and keep the report
	HEARTBEAT_TEST_MYSQLD="$$(.ci/mysql | tail -n1)/mysqld" \
		tests/guards.py --output docs/evidence/guards.txt

# On MySQL, which is what most people run; ENGINE=mariadb measures on MariaDB.
bench: override ENGINE := $(or $(ENGINE),mysql)
bench: ## measure the speed against the limit of the database: make bench ENGINE=mariadb
	.ci/install bench
	cargo bench --locked --bench pipeline -- --engine $(ENGINE) \
		$(if $(filter mysql,$(ENGINE)),--mysqld "$$(.ci/mysql | tail -n1)/mysqld")

check: fmt lint doc deny rules ## formatting, lints, documentation, dependencies and alerting rules

fmt: ## check the formatting (cargo fmt repairs it)
	cargo fmt --check

lint: ## clippy, where each warning is an error
	cargo clippy --locked --all-targets -- -D warnings

doc: ## build the documentation, where each warning is an error
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

deny: ## check licences, sources and advisories of the dependencies
	.ci/deny

rules: ## check the rules for Prometheus, and when they fire
	.ci/rules

up: ## build and start everything in containers
	docker compose up --detach --build

down: ## stop and remove the containers
	docker compose down

install: ## install what run and test need (Debian and Ubuntu)
	.ci/install test
