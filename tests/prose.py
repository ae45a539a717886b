"""The check of `make lint` that prose is plain English in lines of at most 100 columns.

Prose is: comments and docstrings of Python and Cython, comments of C, paragraphs and lists of
Markdown. Tables, code blocks, and lines that hold nothing but a URL are not. A comment behind code
counts as code: `ruff format` limits it. The product's messages, which are its string literals of
several words, are checked for words only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

COLUMNS = 100

# What is checked, as path prefixes.
CHECKED = ("README.md", "docs/", "tests/", "benchmarks/", "examples/", ".ci/", "setup.py", "nvme_async/", "ext/")
# Files that quote what this check rejects.
QUOTING = ("tests/prose.py", "tests/unit/test_prose.py")

BANNED = re.compile(
    r"\b(whoever|nobody|somebody|what becomes of|pass(es)? of the loop|hurr(y|ies|ied)|deaf|heirs?|to be had"
    r"|go(es)? on with|and the like|tells?|told|(?<!\")life(?![\":])|look(s|ed|ing)?(?! (up|like|alike)\b))\b",
    re.IGNORECASE,
)
CODE_IN_PROSE = re.compile(r"``[^`]*``|`[^`]*`")
CODE_IN_MESSAGES = re.compile(r"``[^`]*``|`[^`]*`|\{[^{}]*\}")

PYTHON = re.compile(
    r"(?P<docstring>[rRbBuUfF]{0,2}(?P<quotes>\"\"\"|''')(?:\\.|(?!(?P=quotes))[\s\S])*(?P=quotes))"
    r"|[rRbBuUfF]{0,2}(?:\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')"
    r"|(?P<comment>\#[^\n]*)"
)
# What users read besides: strings of several words in these directories.
MESSAGES = ("nvme_async/", "ext/")
CLIPPED = re.compile(
    r"\b(makes? no sense|none the less|as it were|there (is|are) none|is to be|are to be)\b", re.IGNORECASE
)

C = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|(?P<comment>/\*[\s\S]*?\*/|//[^\n]*)")

Line = tuple[int, str, bool]  # line number, text, whether the whole line is prose


def prose(path: Path) -> Iterator[Line]:
    """The lines of a file that are prose, in whole or at their end."""
    text = path.read_text()
    return markdown(text) if path.suffix == ".md" else comments(text, C if path.suffix in (".c", ".h") else PYTHON)


def markdown(text: str) -> Iterator[Line]:
    fenced = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, line, not line.lstrip().startswith("|") and not is_url(line)


def comments(text: str, language: re.Pattern[str]) -> Iterator[Line]:
    for match in language.finditer(text):
        found = match.groupdict()
        if not (found.get("comment") or found.get("docstring")):
            continue
        start = text.rfind("\n", 0, match.start()) + 1
        alone = not text[start : match.start()].strip()
        if found.get("docstring") and (not alone or text[: match.start()].rstrip().endswith(tuple("(,=[{+"))):
            continue  # a string of several lines that the program uses
        first = text.count("\n", 0, match.start()) + 1
        for number, line in enumerate(match.group().split("\n"), first):
            whole = text[start : match.start()] + line if number == first else line
            yield number, whole if alone else line, alone and not is_url(line)


def messages(text: str, language: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """The string literals of several words, with their line numbers."""
    for match in language.finditer(text):
        found = match.groupdict()
        if found.get("comment") or found.get("docstring"):
            continue
        if match.group().count(" ") > 1:
            yield text.count("\n", 0, match.start()) + 1, match.group()


def is_url(line: str) -> bool:
    return re.fullmatch(r"\W*(\[[^\]]*\]:\s*)?<?https?://\S+", line) is not None


def violations(path: Path) -> list[str]:
    """What is wrong with the prose of a file, as `line: text`."""
    found = []
    for number, line, limited in prose(path):
        if limited and len(line) > COLUMNS:
            found.append(f"{number}: {len(line)} columns, at most {COLUMNS}")
        found.extend(f"{number}: {word.group()!r}" for word in BANNED.finditer(CODE_IN_PROSE.sub("", line)))
    return found


def clumsy_messages(path: Path) -> list[str]:
    """What is wrong with the messages of a source file, as `line: text`."""
    language = C if path.suffix in (".c", ".h") else PYTHON
    return [
        f"{number}: {word.group()!r} in a message"
        for number, line in messages(path.read_text(), language)
        for pattern in (BANNED, CLIPPED)
        for word in pattern.finditer(CODE_IN_MESSAGES.sub("", line))
    ]


def main(prefixes: tuple[str, ...] = CHECKED) -> int:
    """Checks the files that git knows, below the prefixes; returns how many violations there
    are.
    """
    root = Path(__file__).resolve().parents[1]
    listed = subprocess.run(["git", "ls-files"], cwd=root, check=True, capture_output=True, text=True).stdout
    suffixes = (".py", ".pyi", ".pyx", ".pxi", ".pxd", ".c", ".h", ".md")
    wrong = 0
    for name in listed.splitlines():
        if not name.startswith(prefixes) or not name.endswith(suffixes) or name in QUOTING:
            continue
        found = violations(root / name)
        if name.startswith(MESSAGES) and not name.endswith(".md"):
            found += clumsy_messages(root / name)
        for violation in found:
            print(f"{name}:{violation}")
            wrong += 1
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(tuple(sys.argv[1:]) or CHECKED) else 0)
