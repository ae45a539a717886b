"""The Host Memory Buffer: given to a controller that asks, never reused while the controller may
use it.

The emulated controller checks at each I/O command that a page holds what it wrote there last.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
from driver_line import SET_FEATURES, WAYS, Line, Way, block, line
from driving import FAST, faults, pattern

import nvme_async
from nvme_async.driver.pcie.host_memory import OWNER
from nvme_async.emulator import EmulatedController
from nvme_async.spec import commands
from nvme_async.spec.features import HostMemoryBufferAttributes
from nvme_async.spec.opcodes import Feature

MIB = 1 << 20
BUFFER = 0x0D
URI = "emulated:size=16MiB,host_memory=2MiB,host_memory_min=1MiB"
ways = pytest.mark.parametrize("way", WAYS)


def pages(controller: nvme_async.Controller) -> int:
    """Of the buffer that the controller has now."""
    return int(faults(controller).counters()["host_memory_pages"])


def sound(controller: nvme_async.Controller) -> None:
    """The controller checks all pages, and writes them: none was reused."""
    faults(controller).use_host_memory()
    faults(controller).use_host_memory()
    assert faults(controller).counters()["host_memory_damaged"] == 0


def said(controller: nvme_async.Controller) -> Any:
    return controller.inspect()["host_memory"]


async def use(controller: nvme_async.Controller, seed: int = 0) -> None:
    """Fills bounce pages and buffers, and checks data and host memory."""
    ns = controller.namespaces[1]
    for lba in range(64):
        await ns.write(lba, pattern(4096, lba + seed))
    for lba in range(64):
        assert await ns.read(lba) == pattern(4096, lba + seed)
    buffers = [controller.alloc(65536) for _ in range(8)]
    for buffer in buffers:
        buffer[:] = b"\xaa" * 65536
    sound(controller)
    for buffer in buffers:
        assert bytes(buffer) == b"\xaa" * 65536
        buffer.free()


@pytest.mark.parametrize(
    ("limit", "nbytes"), [(None, 1 * MIB), (4 * MIB, 2 * MIB), (MIB + 5000, MIB + 4096), (0, 0), (MIB - 1, 0)]
)
async def test_its_size_is_the_minimum_or_what_the_option_allows(limit: int | None, nbytes: int, caplog: Any) -> None:
    async with nvme_async.open(URI, host_memory=limit, **FAST) as controller:
        assert pages(controller) * 4096 == nbytes
        answer = await controller.admin(commands.get_features(Feature.HOST_MEMORY_BUFFER))
        assert answer.dw0 == bool(nbytes)
        assert HostMemoryBufferAttributes.decode(answer.data or b"").hsize * 4096 == nbytes
        assert said(controller) == ({"nbytes": nbytes, "pieces": 1, "given": True} if nbytes else None)
        await use(controller)
        degraded = controller.inspect()["degraded"].get("Host Memory Buffer")
        assert (degraded is not None) == (limit == MIB - 1)
        if degraded:
            assert f"needs {MIB} bytes of host memory, more than host_memory={MIB - 1}" in degraded
            assert caplog.text.count("Host Memory Buffer") == 1


async def test_it_comes_back_before_it_is_freed(tmp_path: Path) -> None:
    with EmulatedController(URI.partition(":")[2]) as emulator:
        emulator.listen(tmp_path / "drive")
        async with nvme_async.open(f"vfio-user:{tmp_path}/drive", **FAST) as controller:
            assert emulator.faults.counters()["host_memory_pages"] == 256
            for lba in range(64):
                await controller.namespaces[1].write(lba, pattern(4096, lba))
            back = emulator.faults.add(queue="admin", opcode=SET_FEATURES, cdw10=BUFFER)
        assert (back.hits, back.last_command[44]) == (1, 0)
        assert emulator.faults.counters()["host_memory_damaged"] == 0


async def test_a_controller_that_keeps_it_is_closed_nevertheless(tmp_path: Path) -> None:
    with EmulatedController(URI.partition(":")[2]) as emulator:
        emulator.listen(tmp_path / "drive")
        async with nvme_async.open(f"vfio-user:{tmp_path}/drive", **FAST) as controller:
            memory = controller.memory
            emulator.faults.add(queue="admin", opcode=SET_FEATURES, cdw10=BUFFER, fail=6)
        assert memory is not None
        assert memory.pools == []
        assert emulator.faults.counters()["host_memory_damaged"] == 0


async def test_a_reset_returns_the_same_memory() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        await use(controller)
        again = faults(controller).add(queue="admin", opcode=SET_FEATURES, cdw10=BUFFER)
        await controller.reset()
        assert again.hits == 1
        assert again.last_command[44] == 3  # EHM, MR
        assert pages(controller) == 256
        await use(controller, 7)


async def test_a_controller_that_does_not_know_it_again_gets_it_as_new() -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        await use(controller)
        faults(controller).add(queue="admin", opcode=SET_FEATURES, cdw10=BUFFER, match={44: b"\x03"}, fail=2, dnr=True)
        await controller.reset()
        assert pages(controller) == 256
        assert "Host Memory Buffer" not in controller.inspect()["degraded"]
        await use(controller)


async def test_a_refusal_is_logged_and_the_pages_are_freed(caplog: Any) -> None:
    async with nvme_async.open(URI, **FAST) as controller:
        refusal = faults(controller).add(queue="admin", opcode=SET_FEATURES, cdw10=BUFFER, fail=6, dnr=True)
        await controller.reset()
        assert refusal.hits == 2  # as returned, as new
        assert said(controller) is None
        assert OWNER not in [slot.owner for pool in controller.memory.pools for slot in pool.slots()]
        assert "works without memory of the host" in controller.inspect()["degraded"]["Host Memory Buffer"]
        assert caplog.text.count("works without memory of the host") == 1
        await use(controller)
        refusal.remove()
        await controller.reset()
        assert pages(controller) == 256
        assert "Host Memory Buffer" not in controller.inspect()["degraded"]


async def test_after_a_lost_answer_the_pages_stay_until_the_next_reset() -> None:
    """The controller has executed the command, and uses the pages; the driver doesn't know it."""
    async with nvme_async.open(URI, **(FAST | {"admin_timeout": 0.5})) as controller:
        lost = faults(controller).add(queue="admin", opcode=SET_FEATURES, cdw10=BUFFER, count=1, drop=True)
        await controller.reset()
        assert lost.hits >= 1
        assert pages(controller) == 256
        assert said(controller)["nbytes"] == MIB
        await use(controller)
        lost.remove()
        await controller.reset()
        assert said(controller)["given"]
        await use(controller, 3)


async def test_pieces_have_the_size_that_the_controller_wants() -> None:
    uri = "emulated:size=16MiB,host_memory=1MiB,host_memory_entry=128KiB,host_memory_entries=8"
    async with nvme_async.open(uri, pool_bytes=2 * MIB, keepalive=False) as controller:
        assert pages(controller) == 256
        entries = faults(controller).add(queue="admin", opcode=SET_FEATURES, cdw10=BUFFER)
        await controller.reset()
        assert 1 <= int.from_bytes(entries.last_command[60:64], "little") <= 8
        await use(controller)


async def test_golden_bytes_of_the_descriptor_list() -> None:
    """A successor of another version reads them."""
    async with nvme_async.open("emulated:size=16MiB,host_memory=1MiB", keepalive=True, keeper="none") as controller:
        (pool,) = controller.memory.pools
        found = {slot.tag: slot for slot in pool.slots() if slot.owner == "host memory"}
        assert {tag: slot.nbytes for tag, slot in found.items()} == {0: 4096, 1: MIB}
        page = os.pread(pool.fd, 4096, found[0].offset)
        assert page[:16] == struct.pack("<QII", pool.iova + found[1].offset, 256, 0)
        assert page[16:4080] == bytes(4064)
        assert page[4080:] == b"NVMEHMB1" + bytes.fromhex("0100000000010000")


async def test_a_pool_that_is_too_small_is_no_failure() -> None:
    uri = "emulated:size=16MiB,host_memory=16MiB"
    async with nvme_async.open(uri, keepalive=True, keeper="none", pool_bytes=16 * MIB) as controller:
        assert pages(controller) == 0
        assert "pool_bytes" in controller.inspect()["degraded"]["Host Memory Buffer"]
        await use(controller)


def slots(drivers: Line) -> list[tuple[str, int]]:
    assert drivers.driver.memory is not None
    return [(slot.state, slot.nbytes) for slot in drivers.driver.memory.pools[0].slots() if slot.owner == OWNER]


@ways
async def test_a_successor_has_it_and_returns_it(way: Way) -> None:
    async with line("size=16MiB,host_memory=1MiB") as drivers:
        await use(drivers.driver)
        for turn in range(2):
            drivers.since()
            await drivers.succeed(way)
            assert pages(drivers.driver) == 256
            assert drivers.since()["admin"].get(SET_FEATURES) is None
            assert said(drivers.driver) == {"nbytes": MIB, "pieces": 1, "given": True}
            assert await drivers.driver.validate_restore() == []
            assert slots(drivers) == [("allocated", MIB), ("allocated", 4096)]
            await use(drivers.driver, turn)
            await drivers.namespace.write(9, block(9))
        again = drivers.faults.add(queue="admin", opcode=SET_FEATURES, cdw10=BUFFER)
        await drivers.driver.reset()
        assert again.last_command[44] == 3
        await use(drivers.driver)
        taken = drivers.faults.add(queue="admin", opcode=SET_FEATURES, cdw10=BUFFER, match={44: b"\x00"})
        again.remove()
        await drivers.driver.transport.host_memory.take_back()  # type: ignore[attr-defined]
        assert (taken.hits, pages(drivers.driver)) == (1, 0)
        assert drivers.faults.counters()["host_memory_damaged"] == 0
