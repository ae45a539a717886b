"""A successor that is refused: neither controller nor pool has changed."""

from __future__ import annotations

import contextlib
import json
import os
import zlib

import pytest
from driver_line import Line, block, die, line

from nvme_async.dma import Pool
from nvme_async.errors import RestoreRefused
from nvme_async.keepalive import Bundle, manifest, restore
from nvme_async.keepalive.manifest import Manifest


async def bundle_of(drivers: Line, way: str = "save") -> Bundle:
    """The current driver releases it."""
    before = drivers.driver
    drivers.past.append(before)
    return await before.save() if way == "save" else die(before)


async def refused(drivers: Line, bundle: Bundle, reason: str) -> None:
    """restore() reports the reason, and neither the controller nor the pool has changed."""
    drivers.since()
    before = pool_bytes(bundle)
    with pytest.raises(RestoreRefused, match=reason) as raised:
        await restore(bundle)
    assert bundle.uri in str(raised.value)
    counted = drivers.since()
    assert counted["admin"] == counted["io"] == {}
    assert counted["enables"] == counted["disables"] == counted["resets"] == counted["shutdowns"] == 0
    assert pool_bytes(bundle) == before


def pool_bytes(bundle: Bundle) -> int:
    fd = bundle.descriptors["pool"]
    return zlib.crc32(os.pread(fd, os.fstat(fd).st_size, 0))


async def goes_on(drivers: Line, bundle: Bundle) -> None:
    """A correct bundle still works after a wrong one was refused."""
    with bundle:
        drivers.driver = await restore(bundle)
    assert await drivers.namespace.read(0) == block(7)
    assert drivers.since()["disables"] == 0


@contextlib.asynccontextmanager
async def used_line(emulated: str = "size=16MiB", **options: object):
    # Without shadow doorbells, because with them the controller writes to the pool whenever it goes
    # to sleep.
    async with line(f"{emulated},dbbuf=off", **options) as drivers:
        await drivers.namespace.write(0, block(7))
        yield drivers


def rewrite(bundle: Bundle, change) -> None:
    """Alters the saved state in the pool with valid checksums, as another program might have
    written it.
    """
    with Pool.attach(bundle.descriptors["pool"]) as pool:
        offset, sequence, body = manifest.find(pool)
        plain = json.loads(body)
        change(plain)
        buffer = pool.claim(offset)
        Manifest(pool, buffer, sequence).write(json.dumps(plain).encode())
        pool.detach()
