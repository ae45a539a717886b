"""The length check of `make lint`."""

from __future__ import annotations

from pathlib import Path

import lengths
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_no_file_is_too_long() -> None:
    assert lengths.problems(ROOT) == []


@pytest.mark.parametrize("name", ["nvme_async/driver/odd.py", "ext/hotpath/odd.pxi", "tests/unit/odd.c"])
def test_a_file_of_501_lines_is_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text("x = 1\n" * 500)
    assert lengths.problems(tmp_path) == []
    path.write_text("x = 1\n" * 501)
    assert lengths.problems(tmp_path) == [f"{name} has 501 lines, at most 500: split it by idea"]
