"""What docs/ and README.md say of files is true: the files exist, and hold the functions named with
them.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
SOURCE = re.compile(r"`([\w./-]+\.(?:py|pyx|pxd|pxi|pyi|c|h|sh|bt))`")
FOLDERS = ("", "nvme_async/", "ext/", "docs/", "tests/")
HELD = (".ci", "benchmarks", "docs", "examples", "ext", "nvme_async", "tests")
# Files that the reader makes.
READERS = {"app.py", "server.py"}


@cache
def files() -> frozenset[str]:
    below = (path for folder in HELD for path in (ROOT / folder).rglob("*"))
    return frozenset(str(path.relative_to(ROOT)) for path in [*below, *ROOT.glob("*.py")] if path.is_file())


def place(name: str) -> str | None:
    """The file that is meant: from the root, in one of FOLDERS, or the only one of that name."""
    for folder in FOLDERS:
        if folder + name in files():
            return folder + name
    found = [path for path in files() if path.endswith("/" + name)]
    return found[0] if found else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    names = set(SOURCE.findall(page.read_text())) - READERS
    assert {name for name in names if place(name) is None} == set()


def test_the_tour_and_the_questions_lead_to_what_they_name() -> None:
    """docs/design.md: in the rows of "One read in ten steps" and "Where is …?", each name in
    backquotes after a file is in that file, or in one of the others of its row.
    """
    text = (ROOT / "docs" / "design.md").read_text()
    rows = [line for line in text[: text.index("## Layers")].split("\n") if line.startswith("|")]
    wrong = []
    named = 0
    for row in rows:
        answer = row.rsplit(" | ", 1)[1]
        paths = [place(name) for name in SOURCE.findall(answer)]
        assert None not in paths, row
        held = "".join((ROOT / str(path)).read_text() for path in paths)
        names = [name for name in re.findall(r"`(\w+)`", answer) if "." not in name]
        named += len(names)
        wrong += [(row, name) for name in names if not re.search(rf"\b{name}\b", held)]
    assert wrong == []
    assert named > 10


def test_a_file_that_is_not_there_is_found() -> None:
    assert place("driver/schemes.py") == "nvme_async/driver/schemes.py"
    assert place("queue.h") == "ext/hotpath/queue.h"
    assert place("driver/pcie/loop_queue.py") is None
