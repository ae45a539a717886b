"""A controller pauses, is reset by another party, or loses its interrupts: the driver notices,
and reacts no more than needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
from driving import FAST, HASTY, eventually, faults, listening, pattern, within

import nvme_async
from nvme_async.device.vfio_user import VfioUserDevice
from nvme_async.driver.controller import Controller
from nvme_async.driver.pcie.transport import pcie
from nvme_async.emulator import FOREVER
from nvme_async.spec.registers import Register

hasty = pytest.mark.options(**HASTY)
PAUSED = 1 << 5
# The notice (type 2) that firmware activation starts (information 1), cleared by log page 3.
ACTIVATION_STARTS = (2 | 1 << 8 | 3 << 16).to_bytes(4, "little")


@contextmanager
def reading(controller: Controller, register: int, change: Any) -> Iterator[None]:
    """A register reads as `change(value)` within the block."""
    device: Any = pcie(controller.transport).device
    before = device.read32

    def read32(offset: int) -> int:
        value: int = before(offset)
        return int(change(value)) if offset == register else value

    device.read32 = read32
    try:
        yield
    finally:
        del device.read32


@contextmanager
def paused(controller: Controller) -> Iterator[None]:
    """CSTS.PP, and no command is executed."""
    rule = faults(controller).add(delay=FOREVER)
    with reading(controller, Register.CSTS, lambda value: value | PAUSED):
        yield
    rule.remove()
    faults(controller).release()


@pytest.mark.options(**{**HASTY, "admin_timeout": 5.0})
async def test_the_driver_waits_out_a_pause_longer_than_the_timeout(failing: Controller) -> None:
    ns = failing.namespaces[1]
    await ns.write(1, pattern(512))
    with paused(failing):
        read = asyncio.ensure_future(ns.read(1))
        await eventually(lambda: failing.inspect()["held"] == ["paused"])
        later = asyncio.ensure_future(ns.read(1))
        await asyncio.sleep(0.6)
        assert not read.done()
        assert failing.inspect()["io_queues"][0]["waiting"] == 1, "what is new waits"
    assert await within(5, read) == pattern(512)
    assert await within(5, later) == pattern(512)
    state = failing.inspect()
    assert (state["resets"], state["aborts"], state["held"]) == (0, 0, [])


@hasty
async def test_the_drivers_admin_commands_wait_out_a_pause(failing: Controller) -> None:
    """MTFA limits the pause, here to 60 s."""
    failing.identify = attrs.evolve(failing.identify, mtfa=600)
    with paused(failing):
        scan = asyncio.ensure_future(failing.rescan())
        await asyncio.sleep(0.8)
        assert not scan.done()
    await within(5, scan)
    assert failing.resets == 0


@pytest.mark.options(**{**HASTY, "admin_timeout": 0.3})
async def test_a_pause_is_limited_by_mtfa(failing: Controller) -> None:
    """MTFA, or without it the limit of an admin command; after that it is a timeout like any
    other.
    """
    ns = failing.namespaces[1]
    faults(failing).add(queue="io", opcode=2, count=1, drop=True)
    with reading(failing, Register.CSTS, lambda value: value | PAUSED):
        assert await within(10, ns.read(0)) == bytes(512)
        assert failing.resets == 1
        faults(failing).add(queue="io", opcode=2, count=1, drop=True)
        assert await within(10, ns.read(0)) == bytes(512)
        assert failing.resets == 2
    await eventually(lambda: failing.state == "ready")
    assert failing.inspect()["held"] == []


async def test_the_firmware_activation_event_holds_io(failing: Controller) -> None:
    """I/O is held before any command is late; afterwards the log page that clears the event is
    read, and Identify Controller.
    """
    await listening(failing)  # the rule is for the second request
    aer = faults(failing).add(queue="admin", opcode=0x0C, count=1, cqe={0: ACTIVATION_STARTS})
    log = faults(failing).add(queue="admin", opcode=0x02, match={40: b"\x03"})
    identify = faults(failing).add(queue="admin", opcode=0x06, cdw10=1)
    faults(failing).add_namespace(2, "1MiB", block=512)  # ends the first request
    await eventually(lambda: failing.inspect()["events"] == 1)
    await eventually(lambda: aer.hits == 1)
    with reading(failing, Register.CSTS, lambda value: value | PAUSED):
        faults(failing).resize_namespace(2, "2MiB")
        await eventually(lambda: failing.inspect()["held"] == ["paused"])
        assert (log.hits, identify.hits) == (0, 0)
    await eventually(lambda: failing.inspect()["held"] == [])
    await eventually(lambda: (log.hits, identify.hits) == (1, 1))
    assert failing.resets == 0


@pytest.mark.parametrize(
    ("register", "change", "reason"),
    [
        (Register.CSTS, lambda value: value & ~1, "CSTS.RDY became 0 although"),
        (Register.CC, lambda value: value & ~1, r"CC reads 0x46.{3}, 0x46.{3} was written"),
    ],
    ids=["RDY", "CC"],
)
async def test_a_reset_by_another_party_is_noticed_soon(
    faulty: str, caplog: pytest.LogCaptureFixture, register: int, change: Any, reason: str
) -> None:
    """Noticed before the command times out; then the command is resent."""
    async with nvme_async.open(faulty, command_timeout=8.0) as controller:
        ns = controller.namespaces[1]
        faults(controller).add(queue="io", opcode=2, count=1, drop=True)
        with reading(controller, register, change):
            read = asyncio.ensure_future(ns.read(0))
            await eventually(lambda: controller.resets == 1)
        assert await within(5, read) == bytes(512)
        assert controller.inspect()["timeouts"] == 0
        assert any(reason.split(" ")[0] in record.message for record in caplog.records)


async def test_all_ones_registers_are_noticed_soon(faulty: str) -> None:
    async with nvme_async.open(faulty, command_timeout=8.0, drain_timeout=0.1) as controller:
        faults(controller).add(queue="io", opcode=2, count=1, drop=True)
        with reading(controller, Register.CSTS, lambda value: 0xFFFFFFFF):
            with pytest.raises(nvme_async.ControllerGone):
                await within(8, controller.namespaces[1].read(0))
            assert controller.state == "failed"
        assert controller.inspect()["timeouts"] == 0


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("mode", ["adaptive", "interrupt"])
async def test_missing_interrupts_are_logged_once_and_polled_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str, vectors: int
) -> None:
    """Logged once per vector; then completions are polled for."""
    monkeypatch.setattr(VfioUserDevice, "set_interrupts", lambda self, fds: len(fds))
    uri = f"emulated:size=16MiB,block=512,vectors={vectors}"
    async with nvme_async.open(uri, **FAST, mode=mode, spin_us=0) as controller:
        ns = controller.namespaces[1]
        rule = faults(controller).add(queue="io", opcode=2, delay=0.002)
        reads = 0
        # On a busy machine some are over before there is a sleep.
        while controller.inspect()["io_queues"][0]["mode"] != "poll" and reads < 500:
            assert await within(5, ns.read(reads)) == bytes(512)
            reads += 1
        rule.remove()
        state = controller.inspect()
        (queue,) = state["io_queues"]
        assert (queue["mode"], queue["interrupts"]) == ("poll", 0)
        assert queue["missed_interrupts"] + state["admin_queue"]["missed_interrupts"] >= 8
        named = [name for name in state["degraded"] if name.startswith("interrupts of vector")]
        assert f"interrupts of vector {0 if vectors == 1 else 1}" in named
        for lba in range(200):
            await within(5, ns.read(lba))
        said = [record for record in caplog.records if "interrupts of vector" in record.message]
        assert len(said) == len(named)
        assert controller.inspect()["io_queues"][0]["missed_interrupts"] == queue["missed_interrupts"]


@pytest.mark.parametrize("mode", ["adaptive", "interrupt"])
async def test_a_shared_vector_that_falls_silent_later(mode: str) -> None:
    """The admin queue takes its interrupts, and has no commands that would miss any."""
    async with nvme_async.open("emulated:size=16MiB,block=512,vectors=1", **FAST, mode=mode, spin_us=0) as controller:
        ns = controller.namespaces[1]
        faults(controller).add(queue="io", opcode=2, delay=0.002, lose_interrupt=True)
        reads = 0
        while controller.inspect()["io_queues"][0]["mode"] != "poll" and reads < 500:
            await within(5, ns.read(reads))
            reads += 1
        assert "interrupts of vector 0" in controller.inspect()["degraded"], reads
