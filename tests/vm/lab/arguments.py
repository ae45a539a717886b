"""What the programs that run tests in a guest take on their command lines."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser_of(description: str | None, *, timeout: float, results: Path) -> argparse.ArgumentParser:
    """description: the program's docstring, of which the first line is shown. The others are
    defaults.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--command", help="run this shell command in the guest instead of the tests")
    parser.add_argument(
        "--timeout", type=float, default=timeout, metavar="SECONDS", help="for the guest (default: %(default)s)"
    )
    parser.add_argument("--accelerator", choices=("tcg", "kvm"), default="tcg", help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, default=results, help="(default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="show the guest's console while it runs")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest in the guest, after --")
    return parser
