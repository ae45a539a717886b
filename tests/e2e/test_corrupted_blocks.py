"""The short version of tests/torture/corrupted_blocks.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
import corrupted_blocks


async def test_corrupted_blocks_are_caught_at_their_lba() -> None:
    found = await corrupted_blocks.run(192, 1)
    assert found.total() == 192
