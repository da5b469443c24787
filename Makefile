# aetherscale: `make demo` shows it, `make test` tests it, `make help` lists the rest.
SHELL := /bin/sh
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 5
# How many processes share the tests that need no lab.
WORKERS ?= 2
SEED ?= 1
LAB := PYTHONPATH=lab $(BIN)/python -m aetherscale_lab
SOURCES := protocol agent cli lab testing ansible molecule bench

# Whatever the shell that calls make has: Ansible wants UTF-8, and the lab's tools lie in sbin.
export LC_ALL := C.UTF-8
export PATH := $(PATH):/usr/sbin:/sbin

BASE_PACKAGES := python3-venv
LAB_PACKAGES := mmdebstrap dpkg-dev debian-archive-keyring systemd-container iproute2 nftables openssh-client \
	qemu-utils e2fsprogs util-linux

.PHONY: help demo down test lint types unit model protocol-tests matrix reliability asyncapi completions record molecule chaos wheelhouse lock audit fuzz fuzz-briefly bench bench-names benchmarks clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/deploy ## a lab of three hosts, site.yml onto it, and VMs that really boot (as root; under 6 minutes)
	@tools/install-packages $(LAB_PACKAGES)
	@PYTHONPATH=lab $(BIN)/python -m aetherscale_lab.demo up

down: ## remove the demo's lab, and leave nothing of it
	@PYTHONPATH=lab $(PYTHON) -m aetherscale_lab.demo down

test: lint types unit fuzz-briefly model protocol-tests molecule ## all tests: linters, types, units, a real broker, the lab (as root)
	@echo "make test: all passed"

lint: $(VENV)/dev ## ruff, yamllint, ansible-lint, shellcheck
	@tools/install-packages shellcheck
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/yamllint --strict .
	cd ansible && PATH="$(CURDIR)/$(BIN):$$PATH" ../$(BIN)/ansible-lint --offline --strict
	shellcheck tools/install-packages tools/audit .ci/run agent/systemd/vm-run
	PYTHONPATH=testing:lab $(BIN)/python -m aetherscale_testing.faults report --check
	PYTHONPATH=testing:lab:bench $(BIN)/python -m aetherscale_bench --report --check

types: $(VENV)/dev ## mypy --strict
	$(BIN)/mypy -p aetherscale_protocol -p aetherscale_agent -p aetherscale_cli -p aetherscale_lab -p aetherscale_testing -p aetherscale_bench
	$(BIN)/mypy agent/systemd/vm_net.py
	@# Folders of tests name their modules alike, so each is checked by itself: calls and types, not every signature.
	for folder in molecule/default/*/; do \
		$(BIN)/mypy --allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls --check-untyped-defs --no-warn-unused-ignores "$$folder" || exit 1; \
	done

unit: $(VENV)/dev ## unit tests: fast, no broker (the shells are for completions, qemu-img for disks)
	@tools/install-packages qemu-utils zsh fish
	$(BIN)/python -m pytest -n $(WORKERS) -m "not broker and not host and not model"

model: $(VENV)/dev ## the protocol's decisions, explored exhaustively, and each rule taken out in turn
	$(BIN)/python -m pytest -n $(WORKERS) -m model

protocol-tests: $(VENV)/dev ## tests of agent and CLI over a real RabbitMQ of their own
	@tools/install-packages rabbitmq-server
	$(BIN)/python -m pytest -n $(WORKERS) -m broker

matrix: $(VENV)/dev ## the whole fault matrix: every step × every fault, over a fake hypervisor (20 minutes)
	@tools/install-packages rabbitmq-server
	@PYTHONPATH=testing:lab $(BIN)/python -m aetherscale_testing.faults matrix --out docs/results/matrix.json

reliability: $(VENV)/dev ## docs/reliability.md, from what the tests wrote down in docs/results
	@PYTHONPATH=testing:lab $(BIN)/python -m aetherscale_testing.faults report

asyncapi: $(VENV)/dev ## docs/asyncapi.yaml, from the protocol's own tables and docs/asyncapi.in.yaml
	@PYTHONPATH=testing $(BIN)/python -m aetherscale_testing.asyncapi

completions: $(VENV)/dev ## what `aetherscale-cli completion` prints, from the command line's own parser
	@PYTHONPATH=testing $(BIN)/python -m aetherscale_testing.completions

record: export AETHERSCALE_RESULTS := $(CURDIR)/docs/results
record: ## write the results of the model and of the lab's fault tests down anew, and the page made from them (as root)
	@rm -f docs/results/*.jsonl
	@$(MAKE) model molecule WORKERS=0
	@$(MAKE) reliability

molecule: $(VENV)/dev wheelhouse ## site.yml on real systemd hosts, in namespaces of their own (as root)
	@tools/install-packages $(LAB_PACKAGES)
	@$(LAB) prepare
	@$(LAB) isolated -- $(CURDIR)/$(BIN)/python molecule/run

chaos: $(VENV)/dev wheelhouse ## clients and random faults on a lab: make chaos MINUTES=5 SEED=1 (as root; docs/reliability.md)
	@tools/install-packages $(LAB_PACKAGES)
	@$(LAB) prepare
	@PYTHONPATH=lab:testing $(BIN)/python -m aetherscale_lab isolated -- $(CURDIR)/$(BIN)/python \
		-m aetherscale_testing.faults.storm --minutes $(MINUTES) --seed $(SEED) $(CHAOS)

fuzz: $(VENV)/dev ## fuzz every reader of other people's bytes, MINUTES each ; finds are left in .cache/fuzz
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[fuzz]'
	@mkdir -p .cache/fuzz
	@for target in decoder envelope reply_to image manifest answer console arguments seed_disc; do echo "== $$target"; \
		(cd .cache/fuzz && PYTHONPATH=$(CURDIR)/testing nice $(CURDIR)/$(BIN)/python -m aetherscale_testing.fuzz $$target \
		-max_total_time=$(or $(FUZZ_SECONDS),$$(($(MINUTES) * 60))) -print_final_stats=1 $(if $(FUZZ_SECONDS),-seed=1)) || exit 1; done

fuzz-briefly: ## the same for five seconds each and with one seed, which is a part of `make test`
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=5

# What takes minutes comes after a look at ONLY: at --list there is nothing more to do.
bench: $(if $(filter --list,$(ONLY)),bench-names,bench-names wheelhouse) ## measure everything, or ONLY one benchmark, on labs of its own (as root; docs/benchmarks.md)
ifeq ($(filter --list,$(ONLY)),)
	@tools/install-packages $(LAB_PACKAGES) rabbitmq-server
	@$(LAB) prepare
	@PYTHONPATH=lab:testing:bench $(BIN)/python -m aetherscale_bench --prepare
	@PYTHONPATH=lab:testing:bench $(BIN)/python -m aetherscale_lab isolated -- $(CURDIR)/$(BIN)/python \
		-m aetherscale_bench $(ONLY)
endif

bench-names: $(VENV)/bench
	@PYTHONPATH=lab:testing:bench $(BIN)/python -m aetherscale_bench --check $(ONLY)

benchmarks: $(VENV)/bench ## docs/benchmarks.md and its plots, from bench/results
	@PYTHONPATH=lab:testing:bench $(BIN)/python -m aetherscale_bench --report

wheelhouse: $(VENV)/deploy ## the agent's wheels for every supported Python, once per version of the sources
	@$(BIN)/python ansible/wheelhouse.py build

lock: $(VENV)/deploy ## make agent/requirements.lock and build.lock anew from what pyproject.toml asks for
	@$(BIN)/python ansible/wheelhouse.py lock

audit: $(VENV)/dev ## are vulnerabilities known in what is locked or used? (asks PyPI, so not part of `make test`)
	@tools/audit $(PYTHON) $(BIN)

$(VENV)/deploy: pyproject.toml
	@tools/install-packages $(BASE_PACKAGES)
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[deploy]'
	@touch $@

$(VENV)/dev: pyproject.toml $(VENV)/deploy
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/bench: pyproject.toml $(VENV)/dev
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[bench]'
	@touch $@

clean: down ## also remove what was built in this folder
	rm -rf $(VENV) .cache build *.egg-info
