"""Bring-up and shutdown: what the controller sees, and that nothing is left behind wherever they
end.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import Any

import pytest
from driving import (
    FAST,
    HASTY,
    MODES,
    Meddler,
    Stepped,
    descriptors,
    eventually,
    faults,
    given_back,
    leftovers,
    open_meddled,
    released,
    within,
)

import nvme_async
from nvme_async.device import open_device
from nvme_async.emulator import FOREVER, EmulatedController
from nvme_async.emulator.device import EmulatedDevice
from nvme_async.errors import (
    CommandError,
    ConfigurationError,
    ControllerGone,
    ControllerTimeout,
    DeviceError,
    QueueShutdown,
)


@pytest.mark.both_loops
@pytest.mark.parametrize("mode", MODES)
async def test_open_and_close(address: str, mode: str) -> None:
    gc.collect()  # other tests'
    before = leftovers(doorbells=False)
    async with nvme_async.open(address, **FAST, mode=mode) as controller:
        assert controller.state == "ready"
        assert controller.uri == address
        assert controller.namespaces
        for nsid, ns in controller.namespaces.items():
            assert ns.nsid == nsid
            assert ns.nbytes == ns.blocks * ns.block_size
        state = controller.inspect()
        assert state["state"] == "ready"
        assert len(state["io_queues"]) == 1
        assert state["io_queues"][0]["mode"] == mode
    assert controller.state == "closed"
    await eventually(lambda: leftovers(doorbells=False) <= before)
    await controller.close()
    ns = next(iter(controller.namespaces.values()))
    with pytest.raises(QueueShutdown, match="closed"):
        await ns.read(0)
    with pytest.raises(QueueShutdown, match="closed"):
        controller.alloc(4096)
    with pytest.raises(QueueShutdown, match="closed"):
        await controller.reset()
    assert controller.inspect()["state"] == "closed"


async def test_an_awaited_controller_is_closed_by_hand(faulty: str) -> None:
    before = leftovers(doorbells=False)
    controller = await nvme_async.open(faulty, **FAST)
    await controller.namespaces[1].write(0, bytes(512))
    await controller.close()
    await eventually(lambda: leftovers(doorbells=False) <= before)


async def test_the_controller_is_shut_down_and_then_disabled(emulator: EmulatedController) -> None:
    counters = emulator.faults.counters
    async with nvme_async.open("emulated:kept", **FAST) as controller:
        assert counters()["enables"] == 1
        assert counters()["shutdowns"] == 0
        await controller.namespaces[1].read(0)
    after = counters()
    assert (after["enables"], after["shutdowns"], after["disables"]) == (1, 1, 1)
    assert after["queues_created"] == after["queues_deleted"] == 2
    assert after["errors"] == 0
    assert after["invalid_doorbells"] == 0
    await eventually(lambda: not emulator.stats()["connected"])


async def test_an_enabled_controller_is_reset_first(emulator: EmulatedController) -> None:
    first = await nvme_async.open("emulated:kept", **{**FAST, **HASTY})
    await first.namespaces[1].write(0, b"\x55" * 512)
    device = first.device
    # Like a killed process: no CC.SHN, the queues still exist.
    await asyncio.to_thread(device.detach)
    await eventually(lambda: not emulator.stats()["connected"])
    await first.close()
    async with nvme_async.open("emulated:kept", **FAST) as second:
        assert await second.namespaces[1].read(0) == b"\x55" * 512


async def test_everything_is_released(emulator: EmulatedController) -> None:
    async with nvme_async.open("emulated:kept", **FAST):
        pass
    await released(emulator)
    gc.collect()
    before = descriptors()
    tasks = asyncio.all_tasks()
    for _ in range(3):
        async with nvme_async.open("emulated:kept", **FAST) as controller:
            controller.alloc(65536)
            await controller.namespaces[1].write(0, bytes(8192))
        assert asyncio.all_tasks() == tasks
        del controller
        await released(emulator)
        await asyncio.to_thread(given_back, before)


async def test_a_body_that_raises_still_closes(faulty: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with nvme_async.open(faulty, **FAST) as controller:
            _ = 1 / 0
    assert controller.state == "closed"


# -- where a bring-up can end ----------------------------------------------------------------------


async def test_cancelling_any_await_of_the_bring_up_releases_everything(emulator: EmulatedController) -> None:
    async with nvme_async.open("emulated:kept", **FAST):
        pass
    await released(emulator)
    before = descriptors()
    for n in itertools.count():

        async def opening(n: int = n) -> Any:
            task = asyncio.current_task()
            assert task is not None
            return await Stepped(
                nvme_async.open("emulated:kept", **FAST)._open(), lambda step: step == n and task.cancel()
            )

        task = asyncio.create_task(opening())
        try:
            controller = await within(10, task)
        except asyncio.CancelledError:
            # The opening thread's current operation may end a little later.
            await released(emulator)
        else:
            await controller.close()
            break
    assert n >= 15
    await asyncio.to_thread(given_back, before)
    async with nvme_async.open("emulated:kept", **FAST) as controller:
        await controller.namespaces[1].read(0)


def test_a_loop_that_ends_during_bring_up_releases_everything(emulator: EmulatedController) -> None:
    """asyncio.run() cancels all tasks, including the driver's own."""
    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
    before = descriptors()
    for n in itertools.count():
        finished = False

        async def main(n: int = n) -> None:
            nonlocal finished

            async def open_() -> None:
                nonlocal finished
                controller = await Stepped(
                    nvme_async.open("emulated:kept", **FAST)._open(), lambda step: step == n and there.set()
                )
                finished = True
                await controller.close()

            there = asyncio.Event()
            task = asyncio.create_task(open_())
            waiter = asyncio.create_task(there.wait())
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)

        asyncio.run(main())
        asyncio.run(released(emulator))
        given_back(before, f"at step {n}")
        if finished:
            break
    assert n >= 15


def test_a_loop_that_ends_during_shutdown_releases_everything(emulator: EmulatedController) -> None:
    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
    before = descriptors()
    for n in itertools.count():
        finished = False

        async def main(n: int = n) -> None:
            nonlocal finished
            controller = await nvme_async.open("emulated:kept", **FAST)
            await controller.namespaces[1].read(0)
            there = asyncio.Event()
            calls = itertools.count()
            original = controller.device.write32

            def write32(offset: int, value: int) -> None:
                original(offset, value)
                if next(calls) == n:
                    loop.call_soon_threadsafe(there.set)

            loop = asyncio.get_running_loop()
            controller.device.write32 = write32  # type: ignore[method-assign]
            task = asyncio.create_task(controller.close())
            waiter = asyncio.create_task(there.wait())
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
            finished = task.done()

        asyncio.run(main())
        asyncio.run(released(emulator))
        given_back(before, f"at write {n}")
        if finished:
            break
    assert n >= 2


@pytest.mark.parametrize(
    "error",
    [ControllerGone("meddled"), DeviceError("meddled"), OSError(5, "meddled"), MemoryError("meddled")],
    ids=repr,
)
async def test_a_failure_of_any_device_call_releases_everything(emulator: EmulatedController, error: Exception) -> None:
    for n in itertools.count():

        def prepare(meddler: Meddler, n: int = n) -> None:
            meddler.fail_at, meddler.error = n, error

        try:
            controller = await within(10, open_meddled("emulated:kept", prepare))
        except type(error):
            await released(emulator)
        else:
            controller.device.fail_at = -1  # type: ignore[attr-defined]
            await controller.close()
            break
    assert n >= 13


async def test_bring_up_survives_one_error_status_of_any_admin_command(emulator: EmulatedController) -> None:
    """It fails once: the bring-up retries, or continues without the feature."""
    fatal = []
    for n in itertools.count():
        rule = emulator.faults.add(queue="admin", skip=n, count=1, fail=0x06)
        try:
            controller = await within(10, nvme_async.open("emulated:kept", **FAST)._open())
            assert await controller.namespaces[1].read(0) is not None
            hits = rule.hits
            await controller.close()
            if hits <= n:
                break
        except CommandError as error:
            fatal.append((rule.last_command[0], error.status, error.admin))
        finally:
            rule.remove()
        await released(emulator)
    assert fatal == []


async def test_only_required_admin_commands_fail_the_bring_up(emulator: EmulatedController) -> None:
    """Identify Controller and an I/O queue pair are required; the other missing features stay
    visible.
    """
    cases: dict[str, dict[str, int]] = {
        "Identify Controller": {"opcode": 0x06, "cdw10": 1},
        "Create I/O Completion Queue": {"opcode": 0x05},
        "Create I/O Submission Queue": {"opcode": 0x01},
        "list of active namespaces": {"opcode": 0x06, "cdw10": 2},
        "namespace 1": {"opcode": 0x06, "cdw10": 0},
        "Number of Queues": {"opcode": 0x09, "cdw10": 7},
        "Asynchronous Event Configuration": {"opcode": 0x0A, "cdw10": 0x0B},
    }
    fatal = set()
    for name, command in cases.items():
        rule = emulator.faults.add(queue="admin", fail=0x06, **command)
        try:
            async with nvme_async.open("emulated:kept", **FAST) as controller:
                assert name in controller.inspect()["degraded"]
                assert set(controller.namespaces) == (set() if name == "namespace 1" else {1})
                for namespace in controller.namespaces.values():
                    assert await namespace.read(0) is not None
                await controller.reset()
                assert name in controller.inspect()["degraded"]
                rule.remove()
                await controller.reset()
                assert controller.inspect()["degraded"] == {}
                assert await controller.namespaces[1].read(0) is not None
        except CommandError:
            rule.remove()
            fatal.add(name)
        await released(emulator)
    assert fatal == {"Identify Controller", "Create I/O Completion Queue", "Create I/O Submission Queue"}


QUICK = {**FAST, **HASTY, "admin_timeout": 0.1}


@pytest.mark.parametrize("fault", ["drop", "discard", "fatal"])
async def test_bring_up_survives_one_lost_completion_of_any_admin_command(
    emulator: EmulatedController, fault: str
) -> None:
    """It is lost once: the bring-up restarts, or continues without the feature."""
    for n in range(12):
        emulator.faults.clear()
        rule = emulator.faults.add(queue="admin", skip=n, count=1, **{fault: True})  # type: ignore[arg-type]
        async with nvme_async.open("emulated:kept", **QUICK) as controller:
            namespace = controller.namespaces[1]
            await within(5, namespace.write(0, bytes(512)))
        assert rule.hits > n
        await released(emulator)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ({"opcode": 0x06, "cdw10": 1}, "no completion of Identify for 0.1 s"),
        ({"opcode": 0x05}, "no completion of Create I/O Completion Queue for 0.1 s"),
        ({"opcode": 0x01}, "no completion of Create I/O Submission Queue for 0.1 s"),
    ],
)
async def test_a_required_command_that_is_always_lost_fails_the_bring_up(
    emulator: EmulatedController, command: dict[str, int], message: str
) -> None:
    rule = emulator.faults.add(queue="admin", drop=True, **command)
    with pytest.raises(ControllerTimeout, match=message):
        await within(10, nvme_async.open("emulated:kept", **QUICK)._open())
    assert 1 <= rule.hits <= 3  # on a busy machine another command may have been too late for 0.1 s
    rule.remove()
    await released(emulator)


async def test_open_timeout_limits_the_whole_open(emulator: EmulatedController) -> None:
    emulator.faults.add(queue="admin", opcode=0x06, cdw10=1, drop=True)
    with pytest.raises(ControllerTimeout, match=r"longer than 0.3 s \(open_timeout\); it was at: Identify Controller"):
        await within(5, nvme_async.open("emulated:kept", **FAST, open_timeout=0.3)._open())
    emulator.faults.clear()
    await released(emulator)


async def test_a_removal_at_any_admin_command_fails_the_bring_up(emulator: EmulatedController) -> None:
    for n in range(11):
        rule = emulator.faults.add(queue="admin", skip=n, count=1, remove=True)
        with pytest.raises(ControllerGone):
            await within(20, nvme_async.open("emulated:kept", **QUICK)._open())
        rule.remove()
        emulator.faults.remove_device(False)
        await released(emulator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "asleep"}, r"mode is 'asleep', not one of adaptive, interrupt, poll"),
        ({"queue_entries": 1}, r"queue_entries is 1, must be 2 to 4096"),
        ({"max_transfer": 5000}, r"max_transfer is 5000, not a positive multiple of 4096"),
        ({"command_timeout": -1}, r"command_timeout is -1, must be 0 to 86400"),
        ({"command_timeout": 4294967295}, r"command_timeout is 4294967295, must be 0 to 86400; 0 means no limit"),
        ({"admin_timeout": 4294967295}, r"admin_timeout is 4294967295, must be 0 to 86400; 0 means no limit"),
        ({"colour": "blue"}, r"unknown option 'colour'; the options are abort_timeout, "),
    ],
)
async def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await nvme_async.open("emulated:size=16MiB", **options)


@pytest.mark.parametrize("uri", ["", "emulated", "nvme:0", "vfio-user:", "emulated:size=no"])
async def test_invalid_addresses_are_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError):
        await nvme_async.open(uri)


async def test_a_socket_without_a_listener_is_an_error() -> None:
    with pytest.raises(ControllerGone, match=r"/nowhere/there\.sock"):
        await nvme_async.open("vfio-user:/nowhere/there.sock")


async def test_a_closed_controller_ends_waiters_of_every_kind(faulty: str) -> None:
    controller = await nvme_async.open(faulty, **FAST, drain_timeout=0.05, queue_entries=8)
    ns = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=0x02, delay=FOREVER)
    out = [asyncio.create_task(ns.read(i)) for i in range(4)]
    many = asyncio.create_task(ns.read_many(range(100)))
    waiting = [asyncio.create_task(ns.read(i)) for i in range(4, 30)]
    await asyncio.sleep(0.02)
    await within(10, controller.close())
    for task in [*out, many, *waiting]:
        with pytest.raises(QueueShutdown, match="closed"):
            await task


async def test_closing_waits_for_commands_in_flight(faulty: str) -> None:
    controller = await nvme_async.open(faulty, **FAST)
    ns = controller.namespaces[1]
    await ns.write(7, b"\x07" * 512)
    faults(controller).add(queue="io", opcode=0x02, delay=0.1)
    task = asyncio.create_task(ns.read(7))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await within(10, controller.close())
    assert await task == b"\x07" * 512


def test_open_device_is_what_open_uses() -> None:
    device = open_device("emulated:size=16MiB")
    assert isinstance(device, EmulatedDevice)
    device.close()


async def test_doorbells_of_a_deleted_queue_pair_are_not_rung(address: str) -> None:
    """A late interrupt or a late command would ring; a doorbell of a queue that doesn't exist is an
    error of the host.
    """
    async with nvme_async.open(address, **FAST | {"drain_timeout": 0.1}) as controller:
        queue, namespace = controller.queues.io_queues()[0], controller.namespaces[1]
        await namespace.read(0)
        await controller.queues.delete_all()
        deleted = queue.hot.inspect()
        assert deleted["cq"]["acknowledged"] == deleted["cq"]["reaped"] == 1
        late = asyncio.ensure_future(namespace.read(0))
        await eventually(lambda: queue.hot.n_outstanding == 1)
        queue.hot.more()
        queue.hot.flush()
        after = queue.hot.inspect()
        assert (after["sq"]["doorbells"], after["cq"]["doorbells"]) == (
            deleted["sq"]["doorbells"],
            deleted["cq"]["doorbells"],
        )
    with pytest.raises(QueueShutdown):
        await late
