"""Our command line's values against those of nvme-cli, over the drives of the newer QEMU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from values import compare

# What must be among what was compared.
PAGES = {
    "placement": {
        "list-ns --all",
        "list-ctrl -n 1",
        "id-ns -n 3 --force",
        "list-ctrl -n 3",
        "endurance-log -g 1",
        "fdp configs -e 1",
        "fdp usage -e 1",
        "fdp stats -e 1",
        "fdp events -e 1",
        "fdp status -n 1",
        "get-feature -f 29 --cdw11=1",
        "get-feature -f 30 -n 1 --cdw11=0",
    },
    "virtualized": {"primary-ctrl-caps", "list-secondary", "list-ctrl"},
    "protected": {"nvm-id-ns -n 1"},
    "zoned": {"effects-log -c 2", "zns id-ctrl", "zns id-ns -n 1", "zns report-zones -n 1"},
}


@pytest.mark.parametrize("role", PAGES)
def test_values_equal_nvme_clis(
    role: str, address: Callable[[str], str], baseline: dict[str, Any], tmp_path: Path
) -> None:
    compared = compare(baseline[role], f"pci:{address(role)}", tmp_path / "control")
    print(f"{role}: {', '.join(compared)}")
    assert {"id-ctrl", "id-iocs", "smart-log -H", "fw-log", "get-feature -f 1", *PAGES[role]} <= set(compared)
