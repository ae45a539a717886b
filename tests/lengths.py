"""The check of `make lint` that no source file has more than 500 lines: a file holds one idea."""

from __future__ import annotations

import sys
from pathlib import Path

LINES = 500
FOLDERS = ("nvme_async", "ext", "tests", "benchmarks", "examples")
ENDINGS = (".py", ".pyi", ".pyx", ".pxd", ".pxi", ".c", ".h", ".sh")


def problems(root: Path) -> list[str]:
    """Files below `root` that are too long, a line each."""
    found = []
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in ENDINGS and path.is_file():
                lines = len(path.read_text().splitlines())
                if lines > LINES:
                    found.append(f"{path.relative_to(root)} has {lines} lines, at most {LINES}: split it by idea")
    return found


def main() -> int:
    found = problems(Path(__file__).resolve().parents[1])
    print("\n".join(found) if found else f"no file has more than {LINES} lines")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
