"""Identify as our driver decodes it, against nvme-cli's output for the same controller under the
kernel's driver.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import PRINTED
from values import compare

import nvme_async

ROLES = ("plain", "second", "mdts-1", "mdts-none", "many", "one-queue", "one-vector", "cmb", "metadata")


@pytest.mark.parametrize("role", ROLES)
async def test_every_field_equals_nvme_clis(role: str, address: Callable[[str], str], baseline: dict[str, Any]) -> None:
    expected = baseline[role]
    async with nvme_async.open(f"pci:{address(role)}") as controller:
        assert controller.identify.to_json() == expected["controller"]
        assert {str(nsid) for nsid in controller.namespaces} == set(expected["namespaces"])
        for nsid, namespace in controller.namespaces.items():
            assert namespace.identify.to_json() == expected["namespaces"][str(nsid)]


@pytest.mark.parametrize("role", PRINTED)
def test_values_equal_nvme_clis(
    role: str, address: Callable[[str], str], baseline: dict[str, Any], tmp_path: Path
) -> None:
    """Every page that QEMU's controller has, through a manager that drives it. What nvme-cli 2.13
    could not show is not compared.
    """
    compared = compare(baseline[role], f"pci:{address(role)}", tmp_path / "control")
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
