"""The check of `make lint` that each function in the headers of the hot path has a comment.

The comment stands directly before the function and says what it returns and who may call it; what a
header's first comment says holds for all of its functions.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# A function's body begins with a brace in the first column, its declaration after a blank line, a
# comment, or the end of the function before.
BODY = re.compile(r"\)\n\{$", re.MULTILINE)
NAME = re.compile(r"\b(?!__attribute__\b)(\w+)\((?!\()")


def undocumented(text: str) -> list[tuple[int, str]]:
    """The functions without a comment: line number and name."""
    found = []
    for body in BODY.finditer(text):
        start = max(text.rfind(end, 0, body.start()) + len(end) for end in ("\n\n", "*/\n", "}\n", "*/ "))
        name = NAME.search(text, start, body.end())
        if name and not text[:start].endswith("*/\n"):
            found.append((text.count("\n", 0, start) + 1, name[1]))
    return found


def main(root: Path) -> int:
    """Prints the functions without a comment; returns how many there are."""
    wrong = 0
    for header in sorted((root / "ext" / "hotpath").glob("*.h")):
        for line, name in undocumented(header.read_text()):
            print(f"{header.relative_to(root)}:{line}: {name}() has no comment")
            wrong += 1
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(Path(__file__).resolve().parents[1]) else 0)
