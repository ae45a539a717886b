"""examples/kvstore/ over power losses: what a put() has returned from is there, whatever the
drive's write cache lost, and whatever blocks of the writes under way reached the medium. Each seed
is one outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driving import FAST, faults

import nvme_async
from nvme_async.errors import NvmeError

EXAMPLE = Path(__file__).parents[2] / "examples" / "kvstore"
URI = "emulated:size=512KiB,block=512,write_cache=on"
WRITE = 0x01


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's modules, which import each other as a script's do."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import store

    yield store
    for name in ("store", "log", "wire"):
        sys.modules.pop(name, None)


async def lose_power(controller: nvme_async.Controller, seed: int) -> None:
    """Off and on again, and a new bring-up."""
    emulated = faults(controller)
    await asyncio.to_thread(emulated.power_loss, seed)
    await asyncio.to_thread(emulated.clear)
    await asyncio.to_thread(emulated.remove_device, False)
    await controller.reset("the power was lost")


class Forgetful:
    """A namespace whose writes are not forced to the medium."""

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._namespace, name)

    async def write(self, lba: int, data: bytes, *, fua: bool = False) -> None:
        await self._namespace.write(lba, data)


async def crash(example: Any, seed: int, wrapped: Any) -> list[str]:
    """Puts until the power fails in the middle of a write; what of the store is wrong
    afterwards.
    """
    numbers = random.Random(seed)
    keys = [b"key %d" % at for at in range(12)]
    sure: dict[bytes, bytes | None] = dict.fromkeys(keys)
    under_way: dict[bytes, bytes] = {}
    async with nvme_async.open(URI, **FAST) as controller:
        namespace = wrapped(controller.namespaces[1])
        store = await example.Store.open(namespace)
        # Far enough, for some seeds, that the log was compacted, and the superblock written.
        rule = faults(controller).add(queue="io", opcode=WRITE, skip=numbers.randrange(1, 90), delay=3600)

        async def put(key: bytes) -> None:
            while True:
                value = numbers.randbytes(numbers.choice((1, 600, 3000, 9000)))
                under_way[key] = value
                await store.put(key, value)
                sure[key] = under_way.pop(key)

        putting = [asyncio.create_task(put(key)) for key in keys]
        while not await asyncio.to_thread(faults(controller).outstanding):
            await asyncio.sleep(0.001)
        rule.remove()
        for task in putting:
            task.cancel()
        await asyncio.gather(*putting, return_exceptions=True)
        with contextlib.suppress(NvmeError):
            await lose_power(controller, seed)
        try:
            found = await example.Store.open(controller.namespaces[1])
            values = {key: await found.get(key) for key in keys}
        except (NvmeError, ValueError) as error:
            return [f"it does not open: {error}"]
        wrong = [f"{key!r}" for key in keys if values[key] not in (sure[key], under_way.get(key, sure[key]))]
        # It goes on, too.
        await found.put(b"after", b"power")
        assert await (await example.Store.open(controller.namespaces[1])).get(b"after") == b"power"
        return wrong


@pytest.mark.parametrize("seed", range(8))
async def test_the_store_keeps_what_it_confirmed(example: Any, seed: int) -> None:
    assert await crash(example, seed, lambda namespace: namespace) == []


async def test_a_store_that_forces_nothing_to_the_medium_is_found_out(example: Any) -> None:
    assert any([await crash(example, seed, Forgetful) for seed in range(4)])
