"""Scenarios in which the running controller can't be taken over: the reason is reported and the
controller left as it was; or, with policy="fresh", it is reset before any memory of the predecessor
is freed, and brought up afresh.
"""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from driver_line import FLUSH, READ, WRITE, Line, all_handed_over, block, eventually, line, results
from refusing import bundle_of, goes_on, refused, rewrite, used_line

import nvme_async
from nvme_async.device import resume_device
from nvme_async.emulator import EmulatedController
from nvme_async.errors import ControllerTimeout, HandedOver, OutOfDmaMemory, RestoreRefused
from nvme_async.keepalive import Bundle, restore
from nvme_async.native import _hotpath
from nvme_async.spec.registers import Register

CC = int(Register.CC)


# -- another drive, other limits, another state ----------------------------------------------------


@pytest.mark.parametrize("what", ["vendor", "device", "subsystem_vendor", "subsystem", "class_code", "revision"])
async def test_a_drive_with_other_pci_ids_in_the_slot_is_refused(what: str) -> None:
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        rewrite(bundle, lambda plain: plain["device"].update({what: plain["device"][what] ^ 1}))
        await refused(drivers, bundle, "the device is another one")
        rewrite(bundle, lambda plain: plain["device"].update({what: plain["device"][what] ^ 1}))
        await goes_on(drivers, bundle)


async def test_ids_are_read_from_the_device_not_from_the_saved_state() -> None:
    """Changed consistently everywhere in the saved state: only the device itself shows the
    difference.
    """
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)

        def another(plain: dict) -> None:
            plain["device"]["vendor"] ^= 1
            plain["device_state"]["ids"]["vendor"] ^= 1

        rewrite(bundle, another)
        await refused(drivers, bundle, "the device is another one")
        rewrite(bundle, another)
        await goes_on(drivers, bundle)


@pytest.mark.parametrize("what", ["serial", "model"])
async def test_another_drive_of_the_same_make_in_the_slot_is_refused(what: str) -> None:
    """Two drives that differ only in serial or model: the pool of one with the descriptors of the
    other.
    """
    one = "size=16MiB,dbbuf=off,serial=K1,model=M1"
    another = one.replace({"serial": "K1", "model": "M1"}[what], "other")
    async with line(one) as drivers, line(another) as others:
        await drivers.namespace.write(0, block(7))
        ours, theirs = await bundle_of(drivers), await bundle_of(others)
        with Bundle.of(ours.uri, ours.manifest, {**ours.descriptors, **device_of(theirs)}) as mixed:
            others.since()
            await refused(drivers, mixed, r"descriptor device\.\w+ of the bundle is not the one that was saved")
            # As it was before descriptors had identities, and as it is if the same descriptor leads
            # to another drive.
            rewrite(ours, lambda plain: plain["descriptors"].clear())
            await refused(drivers, mixed, "the device is another one")
            assert others.since()["disables"] == 0
        with theirs:
            others.driver = await restore(theirs)
        await goes_on(drivers, ours)


@pytest.mark.parametrize("name", ["device.doorbell", "irq.1"])
async def test_a_descriptor_of_another_controller_in_a_bundle_is_refused(name: str) -> None:
    """All else is correct: its doorbells would be rung, or its interrupts consumed."""
    options = "size=16MiB,dbbuf=off"
    async with line(options) as drivers, line(options) as others:
        await drivers.namespace.write(0, block(7))
        ours, theirs = await bundle_of(drivers), await bundle_of(others)
        with Bundle.of(ours.uri, ours.manifest, {**ours.descriptors, name: theirs.descriptors[name]}) as mixed:
            await refused(drivers, mixed, f"descriptor {name} of the bundle is not the one that was saved")
        with theirs:
            others.driver = await restore(theirs)
        await goes_on(drivers, ours)


def device_of(bundle: Bundle) -> dict[str, int]:
    return {name: fd for name, fd in bundle.descriptors.items() if name.startswith("device.")}


async def test_identify_data_that_contradicts_the_identity_is_refused() -> None:
    """Identify data changed meanwhile: the saved identity and the saved page describe two
    drives.
    """
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        was: list[str] = []

        def change(plain: dict) -> None:
            was.append(plain["device"]["serial"])
            plain["device"]["serial"] = "another"

        rewrite(bundle, change)
        await refused(drivers, bundle, "serial.*'another'")
        rewrite(bundle, lambda plain: plain["device"].update(serial=was[0]))
        await goes_on(drivers, bundle)


async def test_changed_limits_are_refused() -> None:
    """CAP.MQES has changed."""
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        drivers.faults.mqes(15)
        await refused(drivers, bundle, "CAP reads .*other limits")
        drivers.faults.mqes(-1)
        await goes_on(drivers, bundle)


@pytest.mark.parametrize("name", ["cap", "vs", "cc", "aqa", "asq", "acq"])
async def test_a_change_of_any_checked_register_is_refused(name: str) -> None:
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        bit = 1 << 20 if name != "cap" else 1 << 5
        rewrite(bundle, lambda plain: plain["registers"].update({name: plain["registers"][name] ^ bit}))
        await refused(drivers, bundle, f"{name.upper()} reads")
        rewrite(bundle, lambda plain: plain["registers"].update({name: plain["registers"][name] ^ bit}))
        await goes_on(drivers, bundle)


async def test_a_live_restore_of_a_disabled_controller_is_refused() -> None:
    async with used_line() as drivers:
        bundle = await bundle_of(drivers, "death")
        device = resume_device(bundle.uri, {name: os.dup(fd) for name, fd in bundle.part("device.").items()})
        device.write32(CC, device.read32(CC) & ~1)
        device.detach()
        await refused(drivers, bundle, "is disabled")
        with bundle:
            drivers.driver = await restore(bundle, policy="fresh")
        assert await drivers.namespace.read(0) == block(7)


async def test_a_controller_that_has_failed_is_refused() -> None:
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        drivers.faults.fatal()
        await refused(drivers, bundle, "CFS")
        with bundle:
            drivers.driver = await restore(bundle, policy="fresh")
        assert await drivers.namespace.read(0) == block(7)


async def test_a_device_that_reads_all_ones_is_refused() -> None:
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        drivers.faults.remove_device()
        await refused(drivers, bundle, "all-ones|gone")
        drivers.faults.remove_device(False)
        bundle.close()


async def test_a_predecessor_that_was_resetting_is_refused() -> None:
    async with used_line() as drivers:
        drivers.faults.enable_delay(ready=float("inf"))
        (resetting,) = drivers.start(drivers.driver.reset("on purpose"))
        await eventually(lambda: not drivers.faults.csts & 1)
        bundle = await bundle_of(drivers, "death")
        drivers.faults.enable_delay()
        await results([resetting])
        await refused_by_phase(drivers, bundle)


async def refused_by_phase(drivers: Line, bundle: Bundle) -> None:
    with pytest.raises(RestoreRefused, match="its controller was resetting"):
        await restore(bundle)
    with bundle:
        drivers.driver = await restore(bundle, policy="fresh")
    assert await drivers.namespace.read(0) == block(7)


# -- keepalive off, policy "fresh" -----------------------------------------------------------------


async def test_keepalive_off_in_the_new_process_resets_before_anything_is_freed() -> None:
    """There is exactly one CC.EN reset; in-flight commands are reported as lost; no memory is
    written after the reset.
    """
    async with used_line() as drivers:
        drivers.delay(opcode=READ)
        drivers.start(*(drivers.namespace.read(0) for _ in range(3)))
        await drivers.outstanding(3)
        drivers.since()
        bundle = await bundle_of(drivers)
        with bundle:
            drivers.driver = await restore(bundle, keepalive=False)
        counted = drivers.since()
        assert counted["disables"] == 1
        assert counted["enables"] == 1
        assert drivers.faults.outstanding() == []
        assert not drivers.driver.keepalive
        assert [(one.name, one.lba) for one in drivers.driver.adopted.lost] == [("Read", 0)] * 3
        drivers.release()
        assert await drivers.namespace.read(0) == block(7)
        assert all_handed_over(await results(drivers.tasks))


async def test_keepalive_switched_off_at_run_time_shuts_down_and_the_successor_brings_up() -> None:
    """The predecessor has keepalive off: the device sees a clean shutdown and a fresh bring-up."""
    with EmulatedController("size=16MiB") as emulator:
        path = f"/tmp/nvme-async-off-{os.getpid()}.sock"
        emulator.listen(path)
        first = await nvme_async.open(f"vfio-user:{path}", keepalive=False, command_timeout=7.0)
        await first.namespaces[1].write(0, block(7))
        before = emulator.faults.counters()
        ours, theirs = socket.socketpair()
        async with first.handover(ours) as offer:
            second = await nvme_async.take_over(theirs)
            await offer
        try:
            counted = emulator.faults.counters()
            assert counted["shutdowns"] - before["shutdowns"] == 1
            assert counted["enables"] - before["enables"] == 1
            assert first.state == "closed"
            assert second.options.command_timeout == 7.0
            assert not second.keepalive
            assert await second.namespaces[1].read(0) == block(7)
        finally:
            await second.close()


async def test_policy_fresh_resets_first_and_reports_what_was_lost() -> None:
    async with used_line() as drivers:
        drivers.delay()
        drivers.start(drivers.namespace.write(1, block(1)), drivers.namespace.flush())
        await drivers.outstanding(2)
        bundle = await bundle_of(drivers, "death")
        drivers.faults.mqes(15)
        drivers.since()
        with bundle:
            drivers.driver = await restore(bundle, policy="fresh")
        assert drivers.since()["disables"] == 1
        assert drivers.driver.keepalive
        assert sorted(one.opcode for one in drivers.driver.adopted.lost) == [FLUSH, WRITE]
        assert all("the controller was reset" in str(one.error) for one in drivers.driver.adopted.lost)
        assert drivers.driver.inspect()["keepalive"]["adopted"]["lost"] == 2
        drivers.release()
        assert await drivers.namespace.read(0) == block(7)
        # The next one can take over again.
        await drivers.succeed("save")
        assert drivers.since()["disables"] == 0


@pytest.mark.parametrize("keepalive", [True, False])
async def test_a_fresh_bring_up_has_the_predecessors_options(*, keepalive: bool) -> None:
    """As a live restore has, unless they are given."""
    options = {"command_timeout": 7.0, "io_queues": 3, "queue_entries": 16, "pool_bytes": 16 << 20, "fused": True}
    controller = await nvme_async.open("emulated:size=1MiB", keepalive=True, **options)  # type: ignore[arg-type]
    bundle = await controller.save()
    rewrite(bundle, lambda plain: plain["registers"].update(vs=1))
    with bundle:
        successor = await restore(bundle, policy="fresh", keepalive=keepalive, queue_entries=32)
    async with successor:
        kept = successor.options
        assert (kept.command_timeout, kept.io_queues, kept.pool_bytes) == (7.0, 3, 16 << 20)
        assert kept.queue_entries == 32
        assert (kept.keepalive, successor.fused) == (keepalive, keepalive)


async def test_options_of_a_damaged_state_are_not_inherited(caplog: pytest.LogCaptureFixture) -> None:
    async with used_line() as drivers:
        bundle = await bundle_of(drivers)
        rewrite(bundle, lambda plain: plain["options"].update(command_timeout=-1, io_queues=3))
        with bundle:
            drivers.driver = await restore(bundle, keepalive=False)
        assert drivers.driver.options.io_queues == nvme_async.Options().io_queues
        assert "the predecessor's options can't be used" in caplog.text


# -- contained -------------------------------------------------------------------------------------


async def test_a_failed_restore_does_not_affect_other_devices() -> None:
    async with used_line() as good, used_line() as bad, used_line() as fine:
        bundles = [await bundle_of(drivers) for drivers in (good, bad, fine)]
        bad.faults.mqes(15)
        outcomes = await asyncio.gather(*(restore(bundle) for bundle in bundles), return_exceptions=True)
        assert isinstance(outcomes[1], RestoreRefused)
        good.driver, fine.driver = outcomes[0], outcomes[2]
        for drivers in (good, fine):
            assert await drivers.namespace.read(0) == block(7)
            assert drivers.since()["disables"] == 0
        bad.driver = await restore(bundles[1], policy="fresh")
        assert await bad.namespace.read(0) == block(7)
        assert bad.since()["disables"] == 1
        for bundle in bundles:
            bundle.close()


async def test_some_devices_restored_and_others_fresh() -> None:
    """Keepalive is on and only some devices have saved state: those are restored, the others
    brought up, and no memory is lost.
    """
    async with used_line() as kept, used_line(keepalive=False) as other:
        before = kept.driver.memory.pools[0].used_bytes
        await kept.succeed("save")
        again = await nvme_async.open(other.driver.uri, keepalive=True, pool_bytes=16 << 20)
        try:
            assert kept.since()["disables"] == 0
            assert await kept.driver.validate_restore() == []
            assert kept.driver.memory.pools[0].used_bytes == before
            assert again.adopted.lost == ()
        finally:
            await again.close()


@pytest.mark.parametrize("where", ["freeze", "record", "park"])
async def test_a_failed_save_resumes_service(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with used_line() as drivers:
        drivers.delay(opcode=READ)
        reads = drivers.start(*(drivers.namespace.read(0) for _ in range(3)))
        await drivers.outstanding(3)
        driver = drivers.driver
        if where == "record":

            def full(*_: object, **__: object) -> None:
                raise OutOfDmaMemory("no room for the saved state")

            monkeypatch.setattr(driver.recorder, "record", full)
            expected: type[Exception] = OutOfDmaMemory
        elif where == "park":
            monkeypatch.setattr(driver.device, "park", lambda parked, wait=True: raise_if(parked))
            expected = ControllerTimeout
        else:

            def fails(hot: object) -> None:
                raise OSError("no")

            monkeypatch.setattr(_hotpath, "freeze", fails)
            expected = OSError
        with pytest.raises(expected):
            await driver.save()
        monkeypatch.undo()
        assert driver.state == "ready"
        drivers.release()
        assert await results(reads) == [block(7)] * 3
        await drivers.namespace.write(1, block(1))
        await drivers.succeed("save")
        assert await drivers.namespace.read(1) == block(1)
        assert drivers.since()["disables"] == 0


def raise_if(parked: bool) -> bool:
    if parked:
        raise ControllerTimeout("the device doesn't answer")
    return True


async def test_two_saves_at_once_are_one() -> None:
    async with used_line() as drivers:
        driver = drivers.driver
        outcomes = await asyncio.gather(driver.save(), driver.save(), return_exceptions=True)
        bundles = [outcome for outcome in outcomes if isinstance(outcome, Bundle)]
        assert len(bundles) == 1
        assert sum(isinstance(outcome, nvme_async.QueueShutdown | HandedOver) for outcome in outcomes) == 1
        drivers.past.append(driver)
        await goes_on(drivers, bundles[0])
