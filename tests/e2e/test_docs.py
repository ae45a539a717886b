"""The Python blocks of the documentation: all compile, and those that can run alone do, on the
emulated controller.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import nvme_async

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
# Pages whose blocks run as they stand. The blocks of the others are pieces of larger programs, for
# drives and processes that a test hasn't: they are compiled.
WHOLE = {"README", "CONTRIBUTING", "index", "start", "is-it-for-me", "guides"}
# Lists of calls with the types of their results.
SIGNATURES = {"design"}


def blocks(path: Path) -> list[tuple[int, str]]:
    text = path.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start()) + 2, match[1]) for match in found]


BLOCKS = [
    pytest.param(path, source, id=f"{path.relative_to(ROOT)}:{line}") for path in PAGES for line, source in blocks(path)
]


def compiled(path: Path, source: str) -> Any:
    return compile(source, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize(("path", "source"), BLOCKS)
async def test_a_block_runs(path: Path, source: str) -> None:
    if not {path.stem, path.parent.name} & WHOLE:
        if path.stem not in SIGNATURES:
            compiled(path, source)
        return
    code = compiled(path, source)
    if "asyncio.run(" in source:
        await asyncio.to_thread(exec, code, {"__name__": "__main__"})
        return
    async with nvme_async.open("emulated:size=16MiB,block=512") as controller:
        names = {"nvme_async": nvme_async, "asyncio": asyncio, "controller": controller, "ns": controller.namespaces[1]}
        result = eval(code, names)
        if inspect.iscoroutine(result):
            await result


def test_there_are_blocks() -> None:
    assert len(BLOCKS) > 20
