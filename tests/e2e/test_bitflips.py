"""The short version of tests/torture/bitflips.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
import bitflips

from nvme_async.keepalive.restoration import Restoration


@pytest.mark.parametrize("seed", [1, 2])
async def test_flipped_bits_in_a_live_pool_are_refused_or_harmless(seed: int) -> None:
    outcomes = await bitflips.flip(120, seed)
    assert outcomes["refused"] > 60
    assert outcomes["harmless"] > 5


async def test_without_the_checksums_it_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Restoration, "_has_checksums", False)
    with pytest.raises((bitflips.Wrong, TimeoutError)):
        await bitflips.flip(600, 1)
