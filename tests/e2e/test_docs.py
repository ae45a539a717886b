"""The Python blocks of the documentation run, each in a setting of its own (docs_stages.py)."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from docs_stages import NOT_RUN, STAGES, Stage, chosen, common, replaced

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
ENDLESS_SECONDS = 0.3
"""How long a block that serves may fail; only a block that is slower goes unnoticed."""


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
async def test_a_block_runs(path: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if chosen(path, source, NOT_RUN):
        if path.name != "design.md":
            compiled(path, source)
        return
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    key = chosen(path, source, STAGES)
    stage = STAGES[key] if key else Stage()
    if "asyncio.run(" in source:
        code = compiled(path, replaced(source, stage, tmp_path, {}))
        await asyncio.to_thread(exec, code, {"__name__": "__main__"})
        return
    async with stage.enter(tmp_path) as names:
        code = compiled(path, replaced(source, stage, tmp_path, names))
        names |= common() | dict(stage.names)
        result = eval(code, names)
        if stage.endless:
            serving = asyncio.ensure_future(result)
            done, _ = await asyncio.wait({serving}, timeout=ENDLESS_SECONDS)
            assert not done, serving.result()
            serving.cancel()
            await asyncio.wait({serving})
        elif inspect.iscoroutine(result):
            await result


def test_each_entry_is_for_a_block() -> None:
    found = [(path, source) for path in PAGES for _, source in blocks(path)]
    assert len(found) > 30
    for table in (STAGES, NOT_RUN):
        used = {chosen(path, source, table) for path, source in found}
        assert used - {None} == set(table)
