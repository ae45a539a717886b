"""tests/header_comments.py: each function of the hot path's headers has a comment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import header_comments

BODY = "\n{\n    return 0;\n}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/* Returns 0. */\nstatic inline int f(int x)" + BODY, []),
        ("/*\n * Returns 0.\n */\nstatic inline int f(int x,\n                    int y)" + BODY, []),
        ("#include <x.h>\n\nstatic inline int f(int x)" + BODY, [(3, "f")]),
        ("/* Of a struct. */\nstruct s {\n    int x;\n};\n\nstatic struct s *g(void)" + BODY, [(6, "g")]),
        ("/* f */\nstatic int f(void)" + BODY + "\nstatic __attribute__((noinline)) int g(void)" + BODY, [(7, "g")]),
    ],
)
def test_functions_without_a_comment_are_found(text: str, expected: list[tuple[int, str]]) -> None:
    assert header_comments.undocumented(text) == expected


def test_the_headers_of_the_hot_path_have_comments() -> None:
    assert header_comments.main(Path(__file__).resolve().parents[2]) == 0
