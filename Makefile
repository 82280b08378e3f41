# Everything that a contributor runs. `make` alone lists it.
#
# It needs Debian 12, Ubuntu 24.04 or later, root, git and make, and a way to the package registries (apt and pip).
# All that it makes is below build/, except for the Debian packages that it installs.

PYTHON ?= /usr/bin/python3
# How many tests run at once. Each may have three guests of 512 MiB and a core, and waits for them half of its time; one
# file of tests has eight.
PARALLEL ?= 3

venv := $(CURDIR)/build/venv
python := $(venv)/bin/python
collection := build/collections/ansible_collections/kvm/fleet
on_guests := $(python) -m pytest tests/integration

# Tools look for Ansible in PATH, and Ansible for collections in its own path. Ansible's home is the place where
# ansible-lint and molecule would install a copy of this collection, which they leave if a link to it is there.
export PATH := $(venv)/bin:$(PATH)
export ANSIBLE_HOME := $(CURDIR)/build
export ANSIBLE_COLLECTIONS_PATH := $(ANSIBLE_HOME)/collections
export HYPOTHESIS_STORAGE_DIRECTORY := $(CURDIR)/build/cache/hypothesis

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# `test` takes its steps in order
.NOTPARALLEL:

##@ Tests

.PHONY: test
test: lint unit sanity integration molecule ## all of the following, in this order, until one fails
	@echo 'All tests passed.'

.PHONY: lint
lint: deps ## linters and types: ruff, mypy, vermin, shellcheck, ansible-lint
	ruff check
	ruff format --check
	mypy
	vermin --quiet --no-tips --violations --target=3.9- playbooks plugins
	shellcheck .ci/run tools/install-packages tools/sanity
	ansible-lint

.PHONY: unit
unit: deps ## unit tests, without libvirt
	$(python) -m pytest --numprocesses=$(PARALLEL) tests/unit

.PHONY: coverage
coverage: deps ## which lines of the collection the unit tests leave out
	$(python) -m pytest --numprocesses=$(PARALLEL) --cov=plugins tests/unit

.PHONY: sanity
sanity: deps ## ansible-test sanity
	tools/sanity

.PHONY: integration
integration: deps ## integration tests, on guests of the lab
	$(on_guests) --numprocesses=$(PARALLEL) --dist=loadfile -m 'not alone and not thorough'
	$(on_guests) -m alone

.PHONY: thorough
thorough: deps ## further variants of these, for what they are about and before a release
	$(on_guests) --numprocesses=$(PARALLEL) --dist=loadfile -m thorough

.PHONY: molecule
molecule: deps ## molecule scenarios, on guests of the lab
	molecule test --all

##@ Lab

.PHONY: demo
demo: deps ## three guests: drift made, found, upgraded away; the lab stays up
	$(python) -m lab up --guests 3
	$(python) -m lab drift
	ansible-playbook -i lab/hypervisors.yml kvm.fleet.status
	ansible-playbook -i lab/hypervisors.yml kvm.fleet.upgrade
	ansible-playbook -i lab/hypervisors.yml kvm.fleet.status
	@echo 'The lab is still up. `make lab-down` takes it down.'

.PHONY: lab-down
lab-down: deps ## take the lab of `make demo` down
	$(python) -m lab down

##@ The rest

.PHONY: deps
deps: $(venv)/complete $(collection) ## install what the other targets need

.PHONY: packages
packages:
	@tools/install-packages

# The packages are looked at each time, which is quick; the environment is made anew when its requirements change.
$(venv)/complete: requirements-test.txt | packages
	$(PYTHON) -m venv --clear $(venv)
	$(python) -m pip install --quiet --requirement $<
	touch $@

# The work tree under the name by which Python and Ansible import it
$(collection):
	mkdir -p $(@D)
	ln -sn ../../../.. $@

.PHONY: artifact
artifact: deps ## the collection's artifact for ansible-galaxy, in build/
	ansible-galaxy collection build --force --output-path build

.PHONY: clean
clean: ## remove build/
	rm -rf build .ansible

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^##@/ { print "\n" substr($$0, 5) } /^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
