"""Every task of the package has a name that says whose it is: asyncio's call graphs show it."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import nvme_async

PACKAGE = Path(nvme_async.__file__).parent


def test_each_created_task_is_named() -> None:
    unnamed = []
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli") or path.is_relative_to(PACKAGE / "fio"):
            continue  # programs: applications don't see their tasks
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr == "create_task" and all(keyword.arg != "name" for keyword in node.keywords):
                unnamed.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert unnamed == []


async def test_the_tasks_of_an_open_controller_name_it() -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        names = {task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}}
        assert f"{controller.uri} events" in names
        assert all(name.startswith(controller.uri) for name in names)
