"""Resets after which a controller has changed, or does not come back at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import attrs
import pytest
from driving import FAST, HASTY, LoopThread, eventually, faults, pattern, within

import nvme_async
from nvme_async.driver.controller import Controller
from nvme_async.errors import ControllerError, ControllerTimeout, NvmeError

hasty = pytest.mark.options(**HASTY)
QUICK: dict[str, Any] = {**FAST, **HASTY, "admin_timeout": 0.4}


@hasty
@pytest.mark.parametrize("fault", ["drop", "discard"])
async def test_a_reset_survives_the_loss_of_any_admin_command(failing: Controller, fault: str) -> None:
    """Each is lost once: the reset ends, and so do I/O and close()."""
    ns = failing.namespaces[1]
    await ns.write(0, pattern(512))
    for n in range(13):
        rule = faults(failing).add(queue="admin", skip=n, count=1, **{fault: True})  # type: ignore[arg-type]
        read = asyncio.ensure_future(ns.read(0))
        await within(5, failing.reset())
        assert failing.state == "ready"
        assert await within(5, read) == pattern(512)
        rule.remove()
    await within(5, failing.close())


@hasty
async def test_namespaces_stay_when_identify_is_always_lost_after_a_reset(failing: Controller) -> None:
    """The namespaces stay as they were, and what could not be read stays visible."""
    ns = failing.namespaces[1]
    await ns.write(0, pattern(512))
    rule = faults(failing).add(queue="admin", opcode=0x06, nsid=1, drop=True)
    await within(10, failing.reset())
    assert failing.state == "ready"
    assert await within(5, ns.read(0)) == pattern(512)
    assert "namespace 1" in failing.inspect()["degraded"]
    rule.remove()
    await eventually(lambda: not failing.inspect()["degraded"], 10)


@hasty
async def test_a_reset_without_identify_controller_fails(failing: Controller) -> None:
    ns = failing.namespaces[1]
    faults(failing).add(queue="admin", opcode=0x06, cdw10=1, drop=True)
    read = asyncio.ensure_future(ns.read(0))
    with pytest.raises(ControllerTimeout, match="no completion of Identify"):
        await within(10, failing.reset())
    assert failing.state == "failed"
    await asyncio.gather(read, return_exceptions=True)
    with pytest.raises(NvmeError):
        await within(1, ns.read(0))
    await within(5, failing.close())


@hasty
async def test_a_rescan_with_lost_commands_resets_at_most_once(failing: Controller) -> None:
    """Lost once: the reset repeats the scan. Lost always: one reset, then the driver continues
    without the list.
    """
    rule = faults(failing).add(queue="admin", opcode=0x06, cdw10=2, count=1, drop=True)
    await asyncio.gather(within(5, failing.rescan()), return_exceptions=True)
    await eventually(lambda: failing.resets == 1 and failing.state == "ready")
    await within(5, failing.rescan())
    rule.remove()
    faults(failing).add(queue="admin", opcode=0x06, cdw10=2, drop=True)
    for _ in range(3):
        await asyncio.gather(within(5, failing.rescan()), return_exceptions=True)
        await eventually(lambda: failing.state == "ready", 10)
        assert await within(5, failing.namespaces[1].read(0)) == bytes(512)
    await within(5, failing.rescan())
    assert failing.resets == 2
    assert "list of active namespaces" in failing.inspect()["degraded"]


async def test_a_lost_queue_creation_succeeds_after_a_reset(faulty: str) -> None:
    """Its loop has one after the resulting reset."""
    async with nvme_async.open(faulty, **QUICK) as controller:
        ns = controller.namespaces[1]
        faults(controller).add(queue="admin", opcode=0x05, count=1, drop=True)

        async def read() -> bytes:
            return await ns.read(0)

        with LoopThread() as other:
            assert await within(10, other.submit(read())) == bytes(512)
        assert controller.resets == 1
        assert len(controller.inspect()["io_queues"]) == 2


@pytest.mark.parametrize("lose", ["number", "creation"])
async def test_fewer_queue_pairs_after_a_reset_are_shared(faulty: str, lose: str) -> None:
    async with nvme_async.open(faulty, **FAST) as controller:
        ns = controller.namespaces[1]

        async def io(lba: int) -> None:
            await ns.write(lba, pattern(512, lba))
            assert await ns.read(lba) == pattern(512, lba)

        with LoopThread() as one, LoopThread() as two:
            await asyncio.gather(io(0), one.submit(io(1)), two.submit(io(2)))
            assert len(controller.inspect()["io_queues"]) == 3
            if lose == "number":
                rule = faults(controller).add(queue="admin", opcode=0x09, cdw10=7, cqe={0: bytes(4)})
            else:
                rule = faults(controller).add(queue="admin", opcode=0x05, match={40: b"\x02\x00"}, fail=0x101, dnr=True)
            await within(10, controller.reset())
            state = controller.inspect()
            assert len(state["io_queues"]) == (1 if lose == "number" else 2)
            assert "I/O queue pairs" in state["degraded"]
            await within(10, asyncio.gather(io(3), one.submit(io(4)), two.submit(io(5))))
            rule.remove()
            await within(10, controller.reset())
            await within(10, asyncio.gather(io(6), one.submit(io(7)), two.submit(io(8))))
            assert controller.inspect()["degraded"] == {}


async def test_commands_of_a_lost_queue_pair_end_with_the_reason(faulty: str) -> None:
    async with nvme_async.open(faulty, **FAST) as controller:
        ns = controller.namespaces[1]

        async def read(lba: int) -> bytes:
            return await ns.read(lba)

        with LoopThread() as other:
            await other.submit(read(0))
            held = faults(controller).add(queue="io", opcode=2, cdw10=9, delay=float("inf"))
            waiting = other.submit(read(9))
            await asyncio.to_thread(held.wait)
            held.remove()
            faults(controller).add(queue="admin", opcode=0x09, cdw10=7, cqe={0: bytes(4)})
            await within(10, controller.reset())
            with pytest.raises(ControllerError, match="1 I/O queue pairs remain after the reset"):
                await within(5, waiting)
            assert await within(5, other.submit(read(9))) == bytes(512)


def changed(identify: Any, **fields: bytes) -> bytes:
    """The start of Identify Controller with changed bytes: FR at 64, MDTS at 77."""
    page = bytearray(identify.encode()[:128])
    for name, data in fields.items():
        at = {"fr": 64, "mdts": 77}[name]
        page[at : at + len(data)] = data
    return bytes(page)


async def test_new_limits_apply_after_a_reset(failing: Controller) -> None:
    """A smaller MDTS splits requests further; a larger one than at first is not used."""
    ns, text = failing.namespaces[1], pattern(256 << 10)
    before = ns.max_blocks
    for mdts, blocks in ((1, 16), (0xA, before), (2, 32)):
        rule = faults(failing).add(
            queue="admin", opcode=0x06, cdw10=1, payload=changed(failing.identify, fr=b"NEWER   ", mdts=bytes([mdts]))
        )
        await within(5, failing.reset())
        assert failing.identify.fr.strip() == "NEWER"
        assert failing.inspect()["firmware"].strip() == "NEWER"
        assert ns.max_blocks == blocks
        seen = faults(failing).add(queue="io", opcode=1)
        await within(5, ns.write(0, text))
        assert seen.hits == -(-512 // blocks)
        assert await within(5, ns.read(0, 512)) == text
        seen.remove()
        rule.remove()


@pytest.mark.parametrize(("given", "rtd3e", "seconds"), [(None, 0, 5), (None, 2**32 - 1, 60), (0.3, 2**32 - 1, 0.3)])
async def test_the_shutdown_limit(faulty: str, given: float | None, rtd3e: int, seconds: float) -> None:
    async with nvme_async.open(faulty, **FAST, shutdown_timeout=given) as controller:
        controller.identify = attrs.evolve(controller.identify, rtd3e=rtd3e)
        assert controller._shutdown_seconds() == seconds


async def test_a_bogus_endless_namespace_list_does_not_block_open(tmp_path: Path) -> None:
    """Endless full pages of new ids: ids above NN are ignored, and open() ends."""
    uri = "emulated:size=16MiB,block=512"
    async with nvme_async.open(uri, **FAST) as controller:
        page = b"".join((1 + n).to_bytes(4, "little") for n in range(16))
        rule = faults(controller).add(queue="admin", opcode=0x06, cdw10=2, payload=page)
        await within(5, controller.rescan())
        assert list(controller.namespaces) == [1]
        assert rule.hits == 1
