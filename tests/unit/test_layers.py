"""The layer check of `make lint` finds each kind of violation."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
layers = importlib.import_module("layers")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "nvme_async", tmp_path / "nvme_async", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def test_the_package_keeps_to_its_layers() -> None:
    assert layers.problems(ROOT) == []


@pytest.mark.parametrize(
    ("module", "statement", "target"),
    [
        ("driver/options.py", "from nvme_async.keepalive import bundle", "nvme_async.keepalive.bundle"),
        ("spec/status.py", "import nvme_async.driver.options", "nvme_async.driver.options"),
        ("dma/manager.py", "def late():\n    from nvme_async.device import Device", "nvme_async.device"),
        (
            "device/base.py",
            "import typing\nif typing.TYPE_CHECKING:\n    from nvme_async.driver.namespace import Namespace",
            "nvme_async.driver.namespace",
        ),
        ("driver/pcie/registers.py", "from ...manager import mailbox", "nvme_async.manager.mailbox"),
        ("keepalive/bundle.py", "import nvme_async", "nvme_async"),
    ],
)
def test_a_planted_upward_import_is_found(copy: Path, module: str, statement: str, target: str) -> None:
    path = copy / "nvme_async" / module
    path.write_text(path.read_text() + "\n" + statement + "\n")
    name = "nvme_async." + module.removesuffix(".py").replace("/", ".")
    assert f"{name} imports {target}, which is of a higher layer" in layers.problems(copy)


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("driver/tcp/queues.py", "nvme_async.driver.pcie.queue_set"),
        ("driver/pcie/queue_maker.py", "nvme_async.driver.tcp.queues"),
        ("driver/controller.py", "nvme_async.driver.pcie.memory"),
        ("driver/queues/queue_set.py", "nvme_async.driver.tcp.address"),
    ],
)
def test_a_transport_is_imported_by_its_own_modules_only(copy: Path, module: str, target: str) -> None:
    path = copy / "nvme_async" / module
    path.write_text(path.read_text() + f"\n\ndef late():\n    import {target}\n")
    name = "nvme_async." + module.removesuffix(".py").replace("/", ".")
    assert f"{name} imports {target}, which is part of a transport" in layers.problems(copy)


def test_a_circle_is_found(copy: Path) -> None:
    path = copy / "nvme_async" / "driver" / "options.py"
    path.write_text(path.read_text() + "\n\ndef late():\n    from nvme_async.driver.controller import Controller\n")
    (problem,) = layers.problems(copy)
    assert problem.startswith("import circle: nvme_async.driver.")


def test_a_module_without_a_layer_is_found(copy: Path) -> None:
    (copy / "nvme_async" / "odd.py").write_text("from nvme_async.errors import NvmeError\n")
    (copy / "nvme_async" / "fio" / "units.py").write_text("from nvme_async.odd import NvmeError\n")
    assert "nvme_async.odd belongs to no layer of tests/layers.py" in layers.problems(copy)


def test_the_keeper_imports_nothing_of_the_package(copy: Path) -> None:
    path = copy / "nvme_async" / "keepalive" / "keeper" / "server.py"
    path.write_text(path.read_text() + "\nfrom nvme_async import runtime\n")
    (problem,) = layers.problems(copy)
    assert problem.endswith("the keeper runs without the rest of the package")


def test_the_graph_in_the_docs_is_that_of_the_imports(copy: Path) -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    assert layers.drawn(page) == layers.graph(ROOT)
    path = copy / "nvme_async" / "spec" / "status.py"
    path.write_text(path.read_text() + "\nfrom nvme_async import runtime\n")
    assert "spec --> runtime" in layers.graph(copy)
    assert "spec --> runtime" not in layers.graph(ROOT)
