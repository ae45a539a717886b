"""Bundles that are truncated, altered or foreign: each is refused with the reason, and nothing is
changed.
"""

from __future__ import annotations

import mmap
import os

import pytest
from refusing import bundle_of, goes_on, refused, rewrite, used_line

from nvme_async.dma import Pool
from nvme_async.errors import RestoreRefused
from nvme_async.keepalive import Bundle, manifest, restore
from nvme_async.keepalive import state as saved


def poke(fd: int, data: bytes, offset: int) -> None:
    """Writes into a pool through a mapping, because a pool of huge pages doesn't support
    write().
    """
    with mmap.mmap(fd, os.fstat(fd).st_size) as pool:
        pool[offset : offset + len(data)] = data


async def test_a_missing_pool_is_named() -> None:
    async with used_line() as drivers:
        with await bundle_of(drivers) as bundle:
            without = {name: fd for name, fd in bundle.descriptors.items() if name != "pool"}
            for policy in ("refuse", "fresh"):
                poolless = Bundle.of(bundle.uri, bundle.manifest, without)
                with poolless, pytest.raises(RestoreRefused, match="private pool is missing"):
                    await restore(poolless, policy=policy)
            await goes_on(drivers, bundle)


async def test_another_controllers_pool_is_refused() -> None:
    async with used_line() as drivers, used_line() as others:
        ours, theirs = await bundle_of(drivers), await bundle_of(others)
        with Bundle.of(ours.uri, ours.manifest, {**ours.descriptors, "pool": theirs.descriptors["pool"]}) as mixed:
            await refused(drivers, mixed, "belongs to")
        await goes_on(others, theirs)
        await goes_on(drivers, ours)


async def test_a_file_that_is_no_pool_is_refused(tmp_path) -> None:
    async with used_line() as drivers:
        with await bundle_of(drivers) as bundle, open(tmp_path / "file", "w+b") as file:
            file.truncate(1 << 20)
            with Bundle.of(bundle.uri, bundle.manifest, {**bundle.descriptors, "pool": file.fileno()}) as foreign:
                await refused(drivers, foreign, "pool")
            await goes_on(drivers, bundle)


async def test_an_altered_state_is_refused() -> None:
    """One bit of each half of the manifest: neither is valid any more."""
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        fd = bundle.descriptors["pool"]
        with Pool.attach(fd) as pool:
            (slot,) = [slot for slot in pool.slots() if slot.owner == manifest.OWNER]
            pool.detach()
        halves = [slot.offset, slot.offset + slot.nbytes // 2]
        before = [os.pread(fd, 200, at) for at in halves]
        for at, text in zip(halves, before, strict=True):
            poke(fd, bytes([text[150] ^ 0x10]), at + 150)
        await refused(drivers, bundle, "altered")
        for at, text in zip(halves, before, strict=True):
            poke(fd, text, at)
        await goes_on(drivers, bundle)


async def test_a_truncated_state_is_refused() -> None:
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        rewrite(bundle, lambda plain: plain.pop("queues"))
        await refused(drivers, bundle, "is invalid.*queues")
        bundle.close()


async def test_a_state_of_a_later_release_is_refused() -> None:
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        rewrite(bundle, lambda plain: plain.update(format=99, readable_by=99))
        await refused(drivers, bundle, "readable by 99 and later")
        rewrite(bundle, lambda plain: plain.update(format=99, readable_by=saved.FORMAT))
        await goes_on(drivers, bundle)


async def test_queue_memory_that_was_altered_is_refused() -> None:
    async with used_line() as drivers:
        queue = drivers.driver.queues.io_queues()[0].hot
        at = queue.memory.offset
        bundle = await bundle_of(drivers)
        fd = bundle.descriptors["pool"]
        before = os.pread(fd, 64, at)
        poke(fd, b"\xa5" * 64, at)
        await refused(drivers, bundle, "queue 1|queue pair")
        poke(fd, before, at)
        await goes_on(drivers, bundle)


async def test_a_vector_without_its_eventfd_is_refused() -> None:
    async with used_line() as drivers:
        with await bundle_of(drivers) as bundle:
            less = {name: fd for name, fd in bundle.descriptors.items() if name != "irq.1"}
            with Bundle.of(bundle.uri, bundle.manifest, less) as poorer:
                await refused(drivers, poorer, r"eventfds of vectors \[1\]")
            await goes_on(drivers, bundle)


async def test_a_missing_peer_is_refused_or_opened_again_with_policy_fresh() -> None:
    """The controller's process ended while it had no driver."""
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        drivers.emulator.drop_client()
        with pytest.raises(RestoreRefused):
            await restore(bundle)
        with bundle:
            drivers.driver = await restore(bundle, policy="fresh")
        assert drivers.driver.state == "ready"
