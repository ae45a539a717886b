"""What our command line prints about a controller, compared with what nvme-cli printed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from lab import words_of

from nvme_async.cli.main import cli
from nvme_async.manager import Manager


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
    if line.startswith(("smart-log", "endurance-log")):
        counted = ("units", "commands", "cmds", "hours", "cycles", "time")
        value = {name: one for name, one in value.items() if not any(word in name for word in counted)}
    return value


def differences(ours: Any, theirs: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(path, ours, theirs) of every value that differs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = [*ours, *(name for name in theirs if name not in ours)]
        pairs = [(name, ours.get(name), theirs.get(name)) for name in names]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [(str(number), *pair) for number, pair in enumerate(zip(ours, theirs, strict=True))]
    else:
        return [] if ours == theirs else [(where, ours, theirs)]
    return [found for name, *pair in pairs for found in differences(*pair, f"{where}/{name}")]


def compare(baseline: dict[str, Any], uri: str, socket: Path) -> list[str]:
    """Every command line of a controller's baseline, through a manager that drives it. Returns
    those that were compared: the others nvme-cli 2.13 could not show.
    """
    node = baseline["node"]

    async def load() -> Manager:
        manager = Manager(control=socket)
        await manager.load(uri)
        return manager

    manager = asyncio.run(load())
    compared, wrong = [], []
    try:
        for line, theirs in baseline["printed"].items():
            if theirs is None:
                continue
            words = ["--attach", str(socket), *words_of(line, uri), "-o", "json"]
            done = CliRunner().invoke(cli, words)
            if done.exit_code:
                wrong.append(f"{line}: {done.output} {done.exception!r}")
                continue
            pair = steady(line, json.loads(done.stdout), node), steady(line, theirs, node)
            wrong += [f"{line}: {where}: {ours!r}, nvme-cli {other!r}" for where, ours, other in differences(*pair)]
            compared.append(line)
    finally:
        asyncio.run(manager.close())
    assert not wrong, "\n".join(wrong)
    return compared
