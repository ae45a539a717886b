"""The short version of tests/torture/bitflips.py. The rounds run in separate processes, because
drivers that are killed in place leave their memory mapped.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
import bitflips

from nvme_async.keepalive.restoration import Restoration
from nvme_async.keepalive.successor import Successor


def flip(flips: int, seed: int, checksums: bool) -> Counter[str] | str:
    """The outcomes, or the name of the exception."""
    if not checksums:
        Restoration._has_checksums = False  # type: ignore[assignment, method-assign]
        Successor._has_checksums = False  # type: ignore[assignment, method-assign]
    try:
        return asyncio.run(bitflips.flip(flips, seed))
    except (bitflips.Wrong, TimeoutError) as error:
        return type(error).__name__


def in_a_process(flips: int, seed: int, *, checksums: bool = True) -> Counter[str] | str:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(flip, flips, seed, checksums).result(100)


@pytest.mark.parametrize("seed", [1, 2])
def test_flipped_bits_in_a_live_pool_are_refused_or_harmless(seed: int) -> None:
    outcomes = in_a_process(120, seed)
    assert isinstance(outcomes, dict), outcomes
    assert outcomes["refused"] > 60
    assert outcomes["harmless"] > 5


async def fresh_start(*header_bytes: int) -> int:
    """How many saved states the pool had, all damaged like these bytes of its header. Raises if
    the controller can't be brought up afresh then.
    """
    scene = await bitflips.Scene().make()
    try:
        places = [at + nbytes - 1 for at, nbytes in scene.places["manifest"]]
        assert not await bitflips.attempt(scene, [8 * at for at in [*header_bytes, *places]], fresh=True)
        return len(places)
    finally:
        scene.close()


def start_afresh(*header_bytes: int) -> int:
    return asyncio.run(fresh_start(*header_bytes))


POOL_ID = 72
"""Offset in the pool's header."""


@pytest.mark.parametrize("header_bytes", [(), (POOL_ID,)])
def test_a_controller_whose_mappings_are_unknown_is_brought_up_afresh(header_bytes: tuple[int, ...]) -> None:
    """Memory that the predecessor had registered would otherwise stay mapped, where the next
    driver's begins.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(start_afresh, *header_bytes).result(100)


def test_without_checksums_flipped_bits_go_unnoticed_by_the_restore() -> None:
    assert in_a_process(600, 1, checksums=False) in ("Wrong", "TimeoutError")
