"""Bring-up with registers and vectors that controllers may have: slow, failed, gone, unsupported,
few.
"""

from __future__ import annotations

import asyncio

import pytest
from driving import (
    FAST,
    MODES,
    Meddler,
    open_meddled,
    released,
    within,
)

import nvme_async
from nvme_async.emulator import FOREVER, EmulatedController
from nvme_async.errors import (
    ControllerError,
    ControllerFatal,
    ControllerGone,
    ControllerTimeout,
)
from nvme_async.spec import commands

CAP, CC, CSTS = 0x0, 0x14, 0x1C


# -- register values ------------------------------------------------------------------------


def cap(timeout: int = 1, mqes: int = 1023, mpsmin: int = 0, css: int = 1) -> int:
    return mqes | timeout << 24 | css << 37 | mpsmin << 48 | 4 << 52


async def test_a_controller_that_never_becomes_ready_times_out(emulator: EmulatedController) -> None:
    emulator.faults.enable_delay(ready=FOREVER)
    with pytest.raises(ControllerTimeout, match=r"CSTS.RDY=1 after CC.EN=1 took longer than 0.5 s"):
        await within(10, open_meddled("emulated:kept", lambda device: device.registers.update({CAP: cap()})))


async def test_a_controller_that_never_stops_times_out(emulator: EmulatedController) -> None:
    async with nvme_async.open("emulated:kept", **FAST) as first:
        emulator.faults.enable_delay(disabled=FOREVER)
        first.registers.disable = lambda cap: asyncio.sleep(0)  # type: ignore[assignment]
        await first.close()
    # The end of the connection has disabled it regardless of its delay.
    with pytest.raises(ControllerTimeout, match="RDY"):
        await within(
            10,
            open_meddled("emulated:kept", lambda device: device.registers.update({CAP: cap(), CSTS: 1, CC: 0x460001})),
        )


async def test_a_slow_ready_within_the_limit_succeeds(emulator: EmulatedController) -> None:
    emulator.faults.enable_delay(ready=0.3, disabled=0.1)
    async with nvme_async.open("emulated:kept", **FAST) as controller:
        await controller.namespaces[1].read(0)


async def test_a_fatal_status_ends_the_wait_for_ready(emulator: EmulatedController) -> None:
    emulator.faults.enable_delay(ready=FOREVER)

    def prepare(device: Meddler) -> None:
        def before(name: str) -> None:
            if device.calls.count("write64") == 2 and device.calls[-1] == "read32":
                device.registers[CSTS] = 2

        device.before = before

    with pytest.raises(ControllerFatal, match=r"CSTS.CFS was set while waiting for CSTS.RDY=1"):
        await within(10, open_meddled("emulated:kept", prepare))


@pytest.mark.parametrize("register", ["CAP", "CSTS", "CC"])
async def test_all_ones_registers_at_open_mean_a_missing_device(emulator: EmulatedController, register: str) -> None:
    ones = {"CAP": {CAP: (1 << 64) - 1}, "CSTS": {CSTS: 0xFFFFFFFF}, "CC": {CC: 0xFFFFFFFF}}[register]
    with pytest.raises(ControllerGone, match="all ones"):
        await within(10, open_meddled("emulated:kept", lambda device: device.registers.update(ones)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (cap(mpsmin=2), r"smallest memory page is 16384 bytes \(CAP.MPSMIN\), the driver needs 4096"),
        (cap(mqes=0), r"CAP.MQES is 0, queues need at least two entries"),
        (cap(css=0x80), r"the NVM command set is not supported \(CAP.CSS 0x80\)"),
    ],
)
async def test_a_controller_that_cannot_be_driven_is_refused_with_the_reason(
    emulator: EmulatedController, value: int, message: str
) -> None:
    with pytest.raises(ControllerError, match=message):
        await open_meddled("emulated:kept", lambda device: device.registers.update({CAP: value}))
    assert emulator.faults.counters()["enables"] == 0


@pytest.mark.both_loops
@pytest.mark.parametrize("mqes", [1, 2, 3, 65535])
@pytest.mark.parametrize("mode", MODES)
async def test_the_shortest_and_longest_queues_work(emulator: EmulatedController, mqes: int, mode: str) -> None:
    emulator.faults.mqes(mqes)
    async with nvme_async.open("emulated:kept", **FAST, mode=mode, queue_entries=4096) as controller:
        queue = controller.inspect()["io_queues"][0]
        assert queue["entries"] == min(mqes + 1, 4096)
        ns = controller.namespaces[1]
        count = 300
        await within(20, asyncio.gather(*(ns.write(i, bytes([i % 251]) * 512) for i in range(count))))
        got = await within(20, asyncio.gather(*(ns.read(i) for i in range(count))))
        assert [one[0] for one in got] == [i % 251 for i in range(count)]
    assert emulator.faults.counters()["invalid_doorbells"] == 0


async def test_a_device_without_vectors_is_refused(emulator: EmulatedController) -> None:
    with pytest.raises(ControllerError, match="emulated:kept: the device has no MSI-X vectors; at least one is needed"):
        await within(10, open_meddled("emulated:kept", lambda device: setattr(device, "n_vectors", 0)))
    await released(emulator)


@pytest.mark.parametrize("vectors", [1, 2, 3])
async def test_few_vectors_are_shared(vectors: int) -> None:
    async with nvme_async.open(
        f"emulated:size=16MiB,block=512,vectors={vectors}", **FAST, mode="interrupt"
    ) as controller:
        ns = controller.namespaces[1]
        await within(10, asyncio.gather(*(ns.write(i, bytes(512)) for i in range(100))))
        assert (await controller.admin(commands.identify(1))).data is not None
        assert controller.inspect()["vectors"] == vectors
