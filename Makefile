# Everything a person or CI does with this collection. `make help` lists it.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

INVENTORY ?= inventories/lab
CACHE     := $(HOME)/.cache/groundplane
VENV      := $(CACHE)/venv-$(shell sha256sum requirements.lock | cut -c1-12)
# Each step of `make upgrade`: the lab is made with the first version, and goes to the others in turn.
export GROUNDPLANE_UPGRADES ?= 1.34.2 1.34.4 1.35.4
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup lab lab-down site verify test lint docs unit integration faults bench upgrade sleep wake

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

setup: .venv/.ready ## The locked Python environment and the machine's packages

.venv/.ready: requirements.lock lab/setup
	lab/setup $(VENV)

lab: setup ## A whole site on this machine: hosts, networks, playbooks/site.yml, summary
	ansible-playbook playbooks/lab_up.yml
	lab/artifacts/build.py .lab/bundle
	ansible-playbook playbooks/site.yml

lab-down: setup ## Remove all that `make lab` created
	ansible-playbook playbooks/lab_down.yml

upgrade: setup ## A lab of an older Kubernetes, upgraded under load to the newer ones (an hour and more)
	ansible-playbook playbooks/lab_up.yml
	lab/artifacts/build.py .lab/bundle lab upgrade
	ansible-playbook playbooks/site.yml -e kubernetes_version=$(firstword $(GROUNDPLANE_UPGRADES))
	pytest -q -s tests/upgrade

sleep: setup ## The lab's Kubernetes nodes stand still; run the rest with GROUNDPLANE_HOSTS='all:!kubernetes'
	tests/sleep kubernetes

wake: setup ## The lab's Kubernetes nodes go on
	tests/sleep --wake kubernetes

site: setup ## Converge the site of INVENTORY (default: the lab)
	ansible-playbook -i $(INVENTORY) playbooks/site.yml

verify: setup ## Ask the live site whether it is what the contracts say
	ansible-playbook -i $(INVENTORY) playbooks/verify.yml

lint: setup ## ruff, mypy --strict, yamllint, ansible-lint (production), changelog
	tests/lint

docs: setup ## The pages of roles and plugins, written anew from the code
	docs/generate.py

unit: setup ## Pure tests, in parallel
	pytest -q -n auto tests/unit

integration: setup ## testinfra, reachability, mTLS and drift against the running lab
	pytest -q --durations=25 tests/integration

faults: setup ## Fault drills under load against the running lab, with counted writes
	pytest -q --durations=25 tests/faults

bench: setup ## Speed, as ratios measured side by side
	pytest -q -s tests/bench tests/integration/test_second_run.py

test: setup ## All of it, on a lab of its own run
	tests/run
