"""All places for doorbells: at any stride (CAP.DSTRD), in a mapped window, reached by register
writes, or a mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack

import pytest
from driving import FAST, LoopThread, descriptors, exercise, faults, within

from nvme_async.device import Doorbells
from nvme_async.driver.options import Options
from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.emulator.device import EmulatedDevice
from nvme_async.errors import ControllerError
from nvme_async.keepalive.controller import Controller
from nvme_async.native._mmio import Mmio

CAP, FIRST = 0x00, 0x1000
DSTRD = 32  # bit of CAP; 4 bits


class Strided(EmulatedDevice):
    """Reports DSTRD = `stride` and has its doorbells that far apart (NVMe over PCIe Transport 1.0,
    3.1.2), without memory behind them.
    """

    stride = 0

    def _patched(self, cap: int) -> int:
        assert cap >> DSTRD & 15 == 0
        return cap | self.stride << DSTRD

    def read64(self, offset: int) -> int:
        value = super().read64(offset)
        return self._patched(value) if offset == CAP else value

    def read32(self, offset: int) -> int:
        value = super().read32(offset)
        return value | self.stride if offset == CAP + 4 else value

    def read_many(self, registers: Sequence[tuple[int, int]]) -> list[int]:
        values = super().read_many(registers)
        return [
            self._patched(value) if register == (CAP, 8) else value
            for register, value in zip(registers, values, strict=True)
        ]

    def write32(self, offset: int, value: int) -> None:
        if offset >= FIRST:
            index, rest = divmod(offset - FIRST, 4 << self.stride)
            assert rest == 0, f"a doorbell write at {offset:#x}"
            offset = FIRST + 4 * index
        super().write32(offset, value)

    @property
    def bar0_nbytes(self) -> int:
        return 1 << 24

    def _check_register(self, offset: int, width: int) -> None:
        if offset < FIRST:
            super()._check_register(offset, width)

    def doorbells(self) -> Doorbells:
        return Doorbells(None, FIRST)


class Narrow(EmulatedDevice):
    """Its window has only the doorbells of queue pairs 0 and 1."""

    _narrow: Doorbells | None = None

    def doorbells(self) -> Doorbells:
        if self._narrow is None:
            assert self._layout.doorbells is not None
            self._narrow = Doorbells(Mmio(self._doorbell_fd, self._layout.doorbells[0], 16), 0)
        return self._narrow


class Short(Strided):
    """BAR0 of two pages."""

    @property
    def bar0_nbytes(self) -> int:
        return 0x2000


async def drive(device: EmulatedDevice, loops: int) -> None:
    """Queue pairs of several loops at once."""
    controller = Controller(PcieTransport(device), Options(**FAST))
    await controller.bring_up()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(controller.close)
        threads = stack.enter_context(ExitStack())
        await within(20, exercise(controller.namespaces[1], 0))
        for seed in range(1, loops):
            thread = threads.enter_context(LoopThread())
            await within(20, thread.submit(exercise(controller.namespaces[1], seed)))
        counters = faults(controller).counters()
        assert counters["invalid_doorbells"] == counters["fatals"] == 0
        await controller.reset()
        await within(20, exercise(controller.namespaces[1], 0))
        queues = controller.inspect()["io_queues"]
        assert len(queues) == loops


@pytest.mark.parametrize("stride", [0, 1, 4, 10, 15])
async def test_any_doorbell_stride_works(stride: int) -> None:
    device = Strided.start("size=16MiB,block=4096,dbbuf=no")
    device.stride = stride
    await drive(device, 1 if stride > 9 else 2)


async def test_doorbells_beyond_the_mapped_window_are_register_writes() -> None:
    await drive(Narrow.start("size=16MiB,block=4096,dbbuf=no"), 4)


async def test_as_many_queue_pairs_as_bar0_has_doorbells_for() -> None:
    """Pairs 2 KiB apart: the admin queue's, and one more."""
    device = Short.start("size=16MiB,block=4096,dbbuf=no")
    device.stride = 8
    controller = Controller(PcieTransport(device), Options(**FAST))
    await controller.bring_up()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(controller.close)
        await within(20, exercise(controller.namespaces[1], 0))
        assert controller.inspect()["io_queue_limit"] == 1


@pytest.mark.parametrize("stride", [9, 15])
async def test_doorbells_beyond_bar0_are_refused(stride: int) -> None:
    before = descriptors()
    device = Short.start("size=16MiB,block=4096,dbbuf=no")
    device.stride = stride
    apart = 4 << stride
    with pytest.raises(ControllerError, match=rf"BAR0 of 0x2000 bytes has no doorbells .* {apart} bytes apart \(CAP"):
        await Controller(PcieTransport(device), Options(**FAST)).bring_up()
    assert descriptors() == before
