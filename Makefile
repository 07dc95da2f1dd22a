# make run            trace this machine: the files that processes open (ARGS='--timeout 5' ends by itself)
# make test           the whole suite, guests with one kernel among it (ARGS='tests/unit -q' for a part)
# make test-matrix    the tests for guests, on every kernel series; writes docs/program-types.md
# make test-nobtf     gadgets on a kernel without BTF, which is built first: some minutes, once
# make test-arm64     gadgets on an arm64 machine, emulated: an image built here, and all that come with igrun
# make test-oci       registries and their clients, all that there are: gets cosign, crane and oras into ~/.cache/igrun
# make test-containers  builds with the real docker, podman (with root and without) and ziglang: some minutes
# make records        compile the record engine to igrun/engine/records.wasm, which is committed
# make lint           ruff, mypy --strict, clang-format
# make bench          what events cost beside consumers in C, starts, memory: some minutes (ARGS='--quick')
# make bench-registry push and pull beside skopeo
# make clean          remove what was built

ARGS =
PIP_FLAGS = --quiet --disable-pip-version-check
MATRIX_FLAGS = -m 'kernel or guest' --guest-all --guest-kernels=5.10,6.1,6.12,newest
NOBTF_TESTS = tests/kernel/test_kernel_btf.py tests/kernel/test_gadgets_without_btf.py
ARM64_TESTS = tests/vm/test_arm64.py gadgets
ARM64_TOOLS = pytest pytest-timeout hypothesis
# Of trixie, as tests/vm/kernels.py has it.
ARM64_WHEELS = --only-binary=:all: --implementation cp --python-version 3.13 --platform manylinux2014_aarch64 \
               $(patsubst %,--platform manylinux_2_%_aarch64,17 28 31 34 39)

VENV := .venv
PYTHON := $(VENV)/bin/python
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
SOURCES := $(shell find igrun gadgets bpf btfs sdk/include \( -name __pycache__ -o -path igrun/_data \) -prune \
                   -o -type f -print 2>/dev/null) pyproject.toml hatch_build.py Dockerfile.builder README.md LICENSE \
                   LICENSE-bpf
C_SOURCES := $(wildcard gadgets/*/*.bpf.c bpf/*.bpf.c bpf/*.h sdk/include/gadget/*.h \
                        tests/bench/gadgets/*/*.bpf.c tests/bench/c/* igrun/engine/*.[ch])

.PHONY: run test test-matrix test-nobtf test-arm64 test-oci test-containers records lint bench bench-registry clean
.DELETE_ON_ERROR:

run: $(VENV)/installed
	$(AS_ROOT) $(VENV)/bin/ig run trace_open --host $(ARGS)

# What is tested is the wheel: neither the tests nor what they start look for igrun in this folder.
test: $(VENV)/installed $(VENV)/dev-requirements $(VENV)/test-packages
	$(AS_ROOT) env PYTHONSAFEPATH=1 $(VENV)/bin/pytest $(ARGS)

test-matrix: $(VENV)/installed $(VENV)/dev-requirements $(VENV)/test-packages
	$(AS_ROOT) env PYTHONSAFEPATH=1 $(VENV)/bin/pytest $(MATRIX_FLAGS) --types-into=tests/types $(ARGS)
	$(PYTHON) -m tests.typetable

# The kernel comes first, so that what cannot be had is told at once. It is kept in ~/.cache/igrun.
test-nobtf: $(VENV)/installed $(VENV)/dev-requirements $(VENV)/test-packages
	@.ci/packages nobtf
	$(AS_ROOT) $(PYTHON) -m tests.vm.kernels nobtf
	$(AS_ROOT) env PYTHONSAFEPATH=1 $(VENV)/bin/pytest --guest-kernels=nobtf $(NOBTF_TESTS) $(ARGS)

# igrun there is this wheel too, beside the arm64 wheels of what it imports. The kernel and the root file system, Debian's
# packages, are kept in ~/.cache/igrun.
test-arm64: $(VENV)/installed $(VENV)/dev-requirements $(VENV)/test-packages $(VENV)/arm64/installed
	@.ci/packages arm64
	$(AS_ROOT) $(PYTHON) -m tests.vm.kernels arm64
	$(AS_ROOT) env PYTHONSAFEPATH=1 IGRUN_GUEST_PACKAGES=$(CURDIR)/$(VENV)/arm64 \
	    $(VENV)/bin/pytest --guest-kernels=arm64 --guest-all -k arm64 $(ARM64_TESTS) $(ARGS)

# The tools come first: what cannot be had is told at once, and again as the tests that are skipped for it.
test-oci: $(VENV)/installed $(VENV)/dev-requirements $(VENV)/test-packages
	-$(AS_ROOT) $(PYTHON) -m tests.registry.tools
	$(AS_ROOT) env PYTHONSAFEPATH=1 $(VENV)/bin/pytest --oci tests/registry $(ARGS)

# ziglang is no neighbour of igrun there, or every other test would find that compiler.
test-containers: $(VENV)/installed $(VENV)/dev-requirements $(VENV)/test-packages
	@.ci/packages containers
	@[ -d $(VENV)/zig/ziglang ] || $(PYTHON) -m pip install $(PIP_FLAGS) --target $(VENV)/zig ziglang
	$(AS_ROOT) env PYTHONSAFEPATH=1 IGRUN_TEST_ZIGLANG=$(CURDIR)/$(VENV)/zig \
	    $(VENV)/bin/pytest --containers -m containers tests/containers $(ARGS)

records:
	.ci/records

lint: $(VENV)/dev-requirements
	@.ci/packages lint
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy --strict -p igrun
	@for name in clang-format clang-format-14 clang-format-16 clang-format-19; do \
	    if command -v $$name >/dev/null; then break; fi; \
	done; \
	echo "$$name --dry-run -Werror ..."; $$name --dry-run -Werror $(C_SOURCES)

bench: $(VENV)/installed $(VENV)/dev-requirements
	$(AS_ROOT) $(PYTHON) tests/bench/bench.py $(ARGS)

bench-registry: $(VENV)/installed $(VENV)/test-packages
	$(AS_ROOT) env PYTHONSAFEPATH=1 $(PYTHON) tests/bench/registry.py $(ARGS)

clean:
	rm -rf $(VENV) igrun/_data dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------------------------ what is installed

$(PYTHON):
	@.ci/packages build
	@.ci/venv $(VENV)

# What the project is built with and imports; then what it is tested with.
$(VENV)/requirements: pyproject.toml | $(PYTHON)
	@$(call listed,build-system requires) >$@.txt
	@$(call listed,project dependencies) >>$@.txt
	$(PYTHON) -m pip install $(PIP_FLAGS) -r $@.txt
	@touch $@

$(VENV)/dev-requirements: pyproject.toml $(VENV)/requirements
	@$(call listed,project optional-dependencies dev) >$@.txt
	$(PYTHON) -m pip install $(PIP_FLAGS) -r $@.txt
	@touch $@

listed = $(PYTHON) -c "import functools, sys, tomllib; \
    print(*functools.reduce(dict.get, sys.argv[1:], tomllib.load(open('pyproject.toml', 'rb'))), sep='\n')" $(1)

# Without build isolation: the build requirements are in the environment already, and fetching them again takes longer
# than the build.
$(VENV)/installed: $(SOURCES) $(VENV)/requirements
	@.ci/packages build
	@rm -rf $(VENV)/wheel
	$(PYTHON) -m pip wheel $(PIP_FLAGS) --no-deps --no-build-isolation --wheel-dir $(VENV)/wheel .
	$(PYTHON) -m pip install $(PIP_FLAGS) --no-deps --force-reinstall $(VENV)/wheel/igrun-*.whl
	@touch $@

$(VENV)/arm64/installed: $(VENV)/installed
	@rm -rf $(@D)
	$(PYTHON) -m pip install $(PIP_FLAGS) $(ARM64_WHEELS) --target $(@D) $(VENV)/wheel/igrun-*.whl $(ARM64_TOOLS) || \
	    { echo "NOT RUN: the wheels for arm64 cannot be had" >&2; exit 1; }
	@touch $@

$(VENV)/test-packages: tests/packages.txt tests/vm/packages.txt | $(PYTHON)
	@.ci/packages test
	@touch $@
