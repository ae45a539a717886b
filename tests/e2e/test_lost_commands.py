"""The short version of tests/torture/lost_commands.py: any admin command is lost, fails once, or
fails for ever.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "torture"))
from lost_commands import torture


@pytest.mark.timeout(300)
async def test_every_wait_ends_and_everything_that_can_work_does() -> None:
    said: list[str] = []
    await torture(150, seed=2026, parallel=24, report=said.append)
    assert "'rounds': 150" in said[-1]
