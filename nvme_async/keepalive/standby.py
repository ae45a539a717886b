"""A successor that waits, warm, for the death of the process whose controller a keeper holds.

Warm: everything that a restore imports, builds once (converters, thread pools, tables) or first
touches was used before, by a restore of an emulated controller of a few pages. What is left to do
after the predecessor's death is the restore itself.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from typing import Any

from nvme_async.driver.opening import open_controller
from nvme_async.driver.options import Options
from nvme_async.errors import ConfigurationError, ControllerTimeout
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.keeper.client import KeeperClient
from nvme_async.keepalive.opening import KeepaliveOptions, open_with_keepalive
from nvme_async.keepalive.restoration import restore
from nvme_async.runtime.tasks import in_thread

_REHEARSAL = "emulated:size=64KiB,queues=2"
_REHEARSALS = 2


async def rehearse() -> None:
    """Restores a controller of this process's own, so that nothing is done for the first time
    later.
    """
    controller = await open_controller(_REHEARSAL, Options(keepalive=True, pool_bytes=2 << 20, io_queues=1), Controller)
    try:
        for _ in range(_REHEARSALS):
            with await controller.save() as bundle:
                controller = await restore(bundle)
            await controller.namespaces[1].read(0)
    finally:
        await controller.close()
    gc.collect()


async def stand_by(
    keeper: str,
    uri: str | None,
    options: dict[str, Any],
    keepalive_options: KeepaliveOptions,
    loops: Sequence[asyncio.AbstractEventLoop] = (),
) -> Controller:
    """See nvme_async.stand_by()."""
    Options.of(options)
    await rehearse()
    if uri is None:
        uri = await _the_one(keeper, keepalive_options.keeper_wait)
    return await open_with_keepalive(uri, options, keepalive_options, loops=loops, at_once=True)


async def _the_one(keeper: str, wait: float) -> str:
    """The only controller that the keeper holds, once it holds one."""

    def ask() -> list[str]:
        with KeeperClient(keeper) as client:
            return sorted(deposit.name for deposit in client.deposits())

    until = time.monotonic() + wait
    while True:
        held = await in_thread(ask)
        if len(held) > 1:
            raise ConfigurationError(
                f"the keeper at {keeper} holds {len(held)} controllers, {', '.join(held)}; choose one with uri="
            )
        if held:
            return held[0]
        if time.monotonic() >= until:
            raise ControllerTimeout(f"the keeper at {keeper} received no controller within {wait:g} s")
        await asyncio.sleep(0.1)
