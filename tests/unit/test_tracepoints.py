"""The static tracepoints of the hot path, as a tracer finds them in the extension module."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import pytest

from nvme_async.native import _hotpath

# name: number of arguments
PROBES = {
    "post": 2,
    "ring_sq": 2,
    "ring_cq": 2,
    "complete": 2,
    "reap": 2,
    "reset": 2,
    "hand_over": 2,
    "take_over": 3,
}

pytestmark = [
    pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no tracepoints on this architecture"),
]


def notes() -> dict[str, set[str]]:
    """{name: argument descriptions} of the module's stapsdt notes."""
    command = ["readelf", "-nW", _hotpath.__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, set[str]] = {}
    pattern = r"Provider: nvme_async\s+Name: (\w+)\s+Location: 0x0*[1-9a-f]\w*, Base: (\w+).*\s+Arguments: (.*)"
    for name, _, arguments in re.findall(pattern, text):
        found.setdefault(name, set()).add(arguments.strip())
    return found


def test_every_tracepoint_exists_with_its_arguments() -> None:
    found = notes()
    assert set(found) == set(PROBES)
    for name, descriptions in found.items():
        for description in descriptions:
            words = description.split()
            assert len(words) == PROBES[name], f"{name}: {description}"
            assert all(re.fullmatch(r"[1248]@.+", word) for word in words), f"{name}: {description}"


def test_the_documentation_names_them() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text()
    for name in PROBES:
        assert f"`{name}`" in text
