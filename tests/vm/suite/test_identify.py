"""Identify as our driver decodes it, against nvme-cli's output for the same controller under the
kernel's driver.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lab import PRINTED, words_of

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.manager import Manager

ROLES = ("plain", "second", "mdts-1", "mdts-none", "many", "one-queue", "one-vector", "cmb", "metadata")


@pytest.mark.parametrize("role", ROLES)
async def test_every_field_equals_nvme_clis(role: str, address: Callable[[str], str], baseline: dict[str, Any]) -> None:
    expected = baseline[role]
    async with nvme_async.open(f"pci:{address(role)}") as controller:
        assert controller.identify.to_json() == expected["controller"]
        assert {str(nsid) for nsid in controller.namespaces} == set(expected["namespaces"])
        for nsid, namespace in controller.namespaces.items():
            assert namespace.identify.to_json() == expected["namespaces"][str(nsid)]


def unsigned(value: Any) -> Any:
    """nvme-cli prints some 32-bit values from 2**31 on as negative numbers."""
    if isinstance(value, dict):
        return {key: unsigned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unsigned(item) for item in value]
    return value & 0xFFFF_FFFF if isinstance(value, int) and value < 0 else value


def steady(line: str, value: Any, node: str) -> Any:
    """Without what differs between two calls, or names the kernel's node."""
    value = json.loads(json.dumps(unsigned(value)).replace(node, "nvme0"))
    if line.startswith("smart-log"):
        counted = ("units", "commands", "hours", "cycles", "time")
        value = {name: one for name, one in value.items() if not any(word in name for word in counted)}
    return value


@pytest.mark.parametrize("role", PRINTED)
def test_values_equal_nvme_clis(
    role: str, address: Callable[[str], str], baseline: dict[str, Any], tmp_path: Path
) -> None:
    """Every page that QEMU's controller has, through a manager that drives it. What nvme-cli 2.13
    could not show is not compared.
    """
    uri, node = f"pci:{address(role)}", baseline[role]["node"]
    socket = tmp_path / "control"

    async def load() -> Manager:
        manager = Manager(control=socket)
        await manager.load(uri)
        return manager

    manager = asyncio.run(load())
    compared = []
    try:
        for line, theirs in baseline[role]["printed"].items():
            if theirs is None:
                continue
            words = ["--attach", str(socket), *words_of(line, uri), "-o", "json"]
            ours = CliRunner().invoke(cli, words)
            assert ours.exit_code == 0, f"{line}: {ours.output} {ours.exception!r}"
            assert steady(line, json.loads(ours.stdout), node) == steady(line, theirs, node), line
            compared.append(line)
    finally:
        asyncio.run(manager.close())
    print(f"{role}: {', '.join(compared)}")
    assert {"id-iocs", "smart-log -H", "fw-log", "get-feature -f 1"} <= set(compared)


def test_the_command_line_prints_the_same(address: Callable[[str], str], baseline: dict[str, Any]) -> None:
    place = f"pci:{address('many')}"
    controller = subprocess.run(
        ["nvme-async", "id-ctrl", place, "-o", "json"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(controller.stdout) == baseline["many"]["controller"]
    namespace = subprocess.run(
        ["nvme-async", "id-ns", place, "-n", "2", "-o", "json"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(namespace.stdout) == baseline["many"]["namespaces"]["2"]
