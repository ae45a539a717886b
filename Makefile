# Everything from a fresh clone. What that needs is named by the first lines of README.md, and checked before the build.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
NATIVE  = $(shell find ext -name '*.pyx' -o -name '*.h' -o -name '*.c' -o -name '*.pxi') $(wildcard nvme_async/native/*.pxd)

C_FILES = $(wildcard ext/*.h ext/*/*.h ext/*/*.c tests/native/*/*.h tests/native/*/*.c tests/fuzz/*.h tests/fuzz/*.c benchmarks/native/*.c)
CYTHON_FILES = $(wildcard tests/native/*/*.pyx ext/*/*.pyx ext/*/*.pxi ext/*/*.pxd nvme_async/native/*.pxd)

.PHONY: all bench test lint format fuzz sanitize test-vm test-disk test-interop test-qemu-server vm-compare vm-keepalive torture clean help
all: $(VENV)/.built

help:
	@echo "make bench     build, then run benchmarks/jobs/quick.fio on an emulated controller (about 20 s)"
	@echo "make test      build, then run the tests"
	@echo "make lint      ruff, clang-format, cython-lint, mypy --strict, stubtest, import layers, prose, lengths of files"
	@echo "make format    lays out code as make lint wants it"
	@echo "make man       man pages and shell completion in share;  make wheel  a wheel with them in dist/"
	@echo "make wheels    wheels for each Python of this machine, stripped, repaired by auditwheel and tried"
	@echo "make docs      the documentation site in build/site;  make docs-serve  at http://127.0.0.1:8000"
	@echo "make fuzz      coverage-guided fuzzing of all targets, two minutes for all; SECONDS=3600"
	@echo "make sanitize  the tests with ext/ under AddressSanitizer and UBSan"
	@echo "make tsan      tests of what has threads, with ext/ under ThreadSanitizer; not in CI"
	@echo "make test-vm   the tests over VFIO, in a virtual machine (installs Debian packages)"
	@echo "make test-disk  block devices (ublk) and kills of their servers, in a virtual machine with Debian 13's kernel; not in CI"
	@echo "make test-interop  the drivers of the Linux kernel and of UEFI on emulated controllers, in virtual machines"
	@echo "make test-qemu-server  conformance on QEMU's controllers behind QEMU's vfio-user server (NVME_ASYNC_QEMU_SERVER=its binary)"
	@echo "make vm-compare  this driver beside fio and caio in that machine"
	@echo "make vm-keepalive  what a hand-over costs over VFIO, in that machine"
	@echo "make torture   kill -9 at random instants and lines, 200 rounds of each kind, and flipped bits (about four minutes); ROUNDS=2000 by hand"

# A venv that is half made would be taken for one.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "The build cannot start: $(PYTHON) is missing; apt install make gcc python3-dev python3-venv (Debian, Ubuntu), dnf install make gcc python3-devel (Fedora)." >&2; exit 2; }
	@$(PYTHON) .ci/prerequisites.py
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# setuptools is pinned to what can build editable; Cython is a build dependency, kept in the venv so that a rebuild is fast.
$(VENV)/.deps: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel "Cython>=3.1"
	touch $@

$(VENV)/.built: $(VENV)/.deps setup.py pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test]"
	touch $@

bench: $(VENV)/.built
	$(BIN)/python benchmarks/fio.py benchmarks/jobs/quick.fio

# TESTS='-k pool' passes arguments on. Tests mostly wait, so there are more workers than processors.
# Those marked `alone` measure times or processors, and run afterwards, one at a time.
TESTS   ?=
WORKERS ?= 3
test: $(VENV)/.built
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m "not alone" $(TESTS)
	$(BIN)/python -m pytest -m alone $(TESTS)

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/python tests/layers.py
	$(BIN)/python tests/prose.py
	$(BIN)/python tests/lengths.py
	$(BIN)/python tests/header_comments.py
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	PATH="$(abspath $(BIN)):$$PATH" cython-lint $(CYTHON_FILES)
	$(BIN)/mypy
	$(BIN)/stubtest --concise --allowlist tests/stubtest.txt --ignore-unused-allowlist $(patsubst %.pyi,nvme_async.native.%,$(notdir $(wildcard nvme_async/native/_*.pyi)))

# How code is laid out is the formatters' business.
format: $(VENV)/.built
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

# SECONDS is for all targets; a long run is SECONDS=86400. Where atheris can't be installed, the targets
# in Python are left out.
SECONDS ?= 120
fuzz: $(VENV)/.built
	-$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/python -m pip install --quiet "atheris>=3.0"
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS)

# Objects and environment of its own: build/sanitize and $(VENV)-sanitize. SANITIZE='-k pool' passes arguments on.
$(VENV)-sanitize/.deps $(VENV)-tsan/.deps: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel "Cython>=3.1"
	touch $@

sanitize: $(VENV)-sanitize/.deps
	$(VENV)-sanitize/bin/python tests/sanitize/run.py $(VENV)-sanitize $(SANITIZE)

# Data races in ext/, by ThreadSanitizer, in what has threads in C or passes objects between threads. TSAN='tests/unit -k kick' runs others.
TSAN ?= tests/e2e/test_threads.py tests/e2e/test_driver_loops.py tests/e2e/test_emulator_clients.py tests/e2e/test_export_nbd.py \
	tests/e2e/test_kernel_file.py tests/e2e/test_kernel_trouble.py tests/e2e/test_tcp.py tests/unit/test_emulator_wake.py tests/unit/test_kick.py \
	tests/unit/test_kernel_link.py tests/unit/test_pool.py
.PHONY: tsan
tsan: $(VENV)-tsan/.deps
	$(VENV)-tsan/bin/python tests/sanitize/run.py $(VENV)-tsan --threads $(TSAN)

# No native build on the host, and nothing but Python's own library: the lab installs what it needs, and builds a wheel with the guest's
# compiler. VM='-- -k identify' passes arguments on.
test-vm:
	$(PYTHON) tests/vm/run.py $(VM)

# A file system on /dev/ublkbN whose server is killed. DISK='--kills 200 --handovers 100', '--backports' or '-- -k kills' passes arguments on.
test-disk:
	$(PYTHON) tests/vm/disk.py $(DISK)

# INTEROP='-- -k fio' passes arguments on; INTEROP=--require makes it an error when the QEMU it needs can't be had.
test-interop: $(VENV)/.built
	$(BIN)/python tests/vm/interop.py $(INTEROP)

test-qemu-server: $(VENV)/.built
	@test -n "$(NVME_ASYNC_QEMU_SERVER)" || { echo "NVME_ASYNC_QEMU_SERVER must name a QEMU with a vfio-user server; see docs/vfio.md" >&2; exit 2; }
	$(BIN)/python -m pytest tests/conformance

# COMPARE='--rounds 5' passes arguments on.
vm-compare:
	$(PYTHON) tests/vm/run.py --command 'python /payload/benchmarks/vm_compare.py --markdown /results/vm-compare.md $(COMPARE)'

# benchmarks/keepalive.py there: what a hand-over costs over VFIO. KEEPALIVE='--rounds 20' passes arguments on.
vm-keepalive:
	$(PYTHON) tests/vm/run.py --command '/payload/guest/with-drive.sh bench python /payload/benchmarks/keepalive.py $(KEEPALIVE)'

# kill -9 at random instants and on random lines; the emulated controller and a keeper stay. TORTURE='--keepalive both' passes arguments to kill9.py.
ROUNDS  ?= 200
TORTURE ?=
torture: $(VENV)/.built
	$(BIN)/python tests/torture/kill9.py --rounds $(ROUNDS) $(TORTURE)
	$(BIN)/python tests/torture/kill9.py --rounds $(ROUNDS) --visitors $(TORTURE)
	$(BIN)/python tests/torture/kill_lines.py --rounds $(ROUNDS)
	$(BIN)/python tests/torture/lost_commands.py --rounds $(ROUNDS)
	$(BIN)/python tests/torture/bitflips.py --flips 2000
	$(BIN)/python tests/torture/corrupted_blocks.py --blocks 20000
	$(BIN)/python tests/torture/tcp_faults.py --faults 1000
	$(BIN)/python tests/torture/killed_workers.py --rounds $(ROUNDS)
	$(BIN)/python tests/torture/hostile_workers.py --messages $$((100 * $(ROUNDS)))

# Release 0.1 in build/releases, for the tests of upgrade and downgrade, which are skipped without it.
.PHONY: releases
releases: $(VENV)/.built
	$(BIN)/python tests/e2e/releases.py

# Man pages and shell completion, which setup.py puts into a wheel.
.PHONY: man wheel
man: $(VENV)/.built
	rm -rf share
	$(BIN)/python -m nvme_async.cli.manpages share

# In dist/, for this Python.
wheel: man
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# In dist/, for each Python of this machine: PYTHONS='python3.11 python3.12' names others. Each is repaired by auditwheel, its debug
# symbols put into dist/debug, and tried in an environment of its own, without a compiler.
.PHONY: wheels
PYTHONS ?= $(foreach version,11 12 13 14,$(shell command -v python3.$(version)))
wheels: man
	$(PYTHON) .ci/wheels.py $(PYTHONS)

clean:
	rm -rf build share $(VENV) $(VENV)-sanitize *.egg-info nvme_async/native/*.so

# The documentation site, in build/site; a warning is an error.
.PHONY: docs docs-serve
# Not the extra itself, which would build the package once more.
DOCS_NEED = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")
$(VENV)/.docs: pyproject.toml | $(VENV)/.built
	$(BIN)/python -c '$(DOCS_NEED)' > $@.txt
	$(BIN)/python -m pip install --quiet --requirement $@.txt
	touch $@
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --clean

docs-serve: $(VENV)/.docs
	$(BIN)/mkdocs serve

# The generated C for a free-threaded interpreter: syntax and types, with headers of CPython 3.13 or later.
.PHONY: free-threading
free-threading: $(VENV)/.built
	$(BIN)/python .ci/free_threading.py

.PHONY: cost
cost: $(VENV)/.built
	$(BIN)/python benchmarks/cost.py
