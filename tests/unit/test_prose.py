"""tests/prose.py: the check of `make lint` for plain English in short lines."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import prose

LONG = "word " * 20 + "end"


def check(tmp_path: Path, name: str, text: str) -> list[str]:
    path = tmp_path / name
    path.write_text(text)
    return prose.violations(path)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", "x = 1  # whoever reads this\n", ["1: 'whoever'"]),
        ("a.py", '"""Doc.\n\nThe heir takes over.\n"""\n', ["3: 'heir'"]),
        ("a.pyx", "cdef int f():\n    # looks for completions\n    return 0\n", ["2: 'looks'"]),
        ("a.h", "int f(void); /* nobody\n * tells */\n", ["1: 'nobody'", "2: 'tells'"]),
        ("a.md", "A pass of the loop.\n", ["1: 'pass of the loop'"]),
        ("a.md", "| a table | for somebody |\n", ["1: 'somebody'"]),
        ("a.py", f"# {LONG}\n", ["1: 105 columns, at most 100"]),
        ("a.py", f'def f():\n    """First.\n\n    {LONG}\n    """\n', ["4: 107 columns, at most 100"]),
        ("a.c", f"/*\n * {LONG}\n */\n", ["2: 106 columns, at most 100"]),
        ("a.md", f"{LONG}\n", ["1: 103 columns, at most 100"]),
    ],
)
def test_a_violation_is_reported_with_its_line(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    assert check(tmp_path, name, text) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "nobody = 'whoever looks'\n"),  # code and strings are no prose
        ("a.py", "# `look()` calls ``tell``; look up the table\n"),
        ("a.py", f"x = 1  # {LONG}\n"),  # the line length of code is ruff's
        ("a.py", f'text = """\n{LONG}\n"""\n'),
        ("a.c", 'const char *s = "// whoever";\n'),
        ("a.md", f"| {LONG} |\n\n```\n{LONG}\n```\n\n    {LONG}\n\n[1]: https://example.com/{'a' * 100}\n"),
    ],
)
def test_code_tables_and_urls_are_exempt(tmp_path: Path, name: str, text: str) -> None:
    assert check(tmp_path, name, text) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", 'raise ValueError("nobody offers it")\n', ["1: 'nobody' in a message"]),
        ("a.py", 'x = 1\ny = f"{x} is to be text"\n', ["2: 'is to be' in a message"]),
        ("a.c", 'fail("tells of %d pages");\n', ["1: 'tells' in a message"]),
        ("a.py", 'key = "nobody"\n', []),  # one word is no message
        ("a.py", '"""Docstrings of somebody are prose."""\n', []),
        ("a.c", "/* nobody at all reads */ int x;\n", []),
    ],
)
def test_messages_are_checked_for_words(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert prose.clumsy_messages(path) == expected


@pytest.mark.skipif(
    shutil.which("git") is None or not (Path(__file__).resolve().parents[2] / ".git").exists(),
    reason="what is checked are the files that git knows",
)
def test_the_checked_directories_are_clean() -> None:
    assert prose.main() == 0
