"""The Grafana dashboard asks for metrics that there are, with the labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nvme_async

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "assets" / "grafana-nvme-async.json"


def expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


async def test_every_metric_of_the_dashboard_is_there() -> None:
    async with nvme_async.Manager(workers=1, latency=True) as manager:
        ns = await manager.namespace("emulated:size=4MiB,block=512", 1)
        await ns.read(0)
        for command in (0x7F, 0x7E):  # unknown opcodes: errors by status are there after the first
            try:
                await ns.submit(nvme_async.Command(opcode=command, nsid=1))
            except nvme_async.CommandError:
                pass
        text = manager.metrics().decode()
    there = {
        name: set(re.findall(r"(\w+)=", labels)) for name, labels in re.findall(r"^(\w+)\{(.*?)\} ", text, re.MULTILINE)
    }
    found = expressions()
    assert len(found) > 12
    for expression in found:
        for name in re.findall(r"nvme_async_\w+", expression):
            assert name in there, name
        labels = {label for group in re.findall(r"by \((.*?)\)", expression) for label in group.split(", ")}
        (name, *_) = re.findall(r"nvme_async_\w+", expression)
        assert labels <= there[name], expression
