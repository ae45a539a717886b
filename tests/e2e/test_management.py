"""Management: long operations are awaited, report progress, and don't corrupt I/O."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from driving import FAST, eventually, exercise, faults, pattern, within

import nvme_async
from nvme_async import management
from nvme_async.emulator import FOREVER
from nvme_async.errors import (
    CommandError,
    CommandTimeout,
    ConfigurationError,
    InvalidNamespace,
    ManagementError,
    NamespaceChanged,
)
from nvme_async.management import Activation
from nvme_async.spec import commands
from nvme_async.spec.logs import SanitizeState, SelfTestResultCode
from nvme_async.spec.opcodes import FirmwareCommitAction, LogPage, SanitizeAction, SelfTest
from nvme_async.spec.persistent import PersistentEventType

QUICK = {"interval": 0.01}
ADDRESS = (
    "emulated:size=16MiB,capacity=64MiB,self_test=0.1,sanitize=0.1,format_time=0.1,firmware_slots=3,lba_status=on,"
    "telemetry=on,persistent_events=on,security=on,formats=512/4096/512+8"
)


@pytest.fixture
async def controller() -> AsyncIterator[nvme_async.Controller]:
    async with nvme_async.open(ADDRESS, **FAST) as opened:
        yield opened


async def test_format_with_progress(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    await ns.write(0, pattern(4096))
    seen: list[float] = []
    await management.format_namespace(controller, 1, block_size=512, progress=seen.append, **QUICK)
    assert (ns.block_size, ns.blocks) == (512, (16 << 20) // 512)
    assert await ns.read(0) == bytes(512)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    with pytest.raises(ConfigurationError, match=r"4096\+0"):
        await management.format_namespace(controller, 1, block_size=1024)
    rule = faults(controller).add(queue="admin", opcode=0x80, delay=FOREVER, count=1)
    while not rule.hits:  # on a busy machine the time may be over before the command was sent
        with pytest.raises(CommandTimeout, match="continues in"):
            await management.format_namespace(controller, 1, 1, timeout=0.02, **QUICK)
    faults(controller).release()
    await eventually(lambda: ns.block_size == 4096)  # it continued, and the driver has noticed


async def test_io_during_a_format_is_held_or_fails(controller: nvme_async.Controller) -> None:
    """Writers of the old format never write the new one."""
    ns = controller.namespaces[1]
    outcomes: set[str] = set()

    async def writer(first: int) -> None:
        while not done.is_set():
            size = ns.block_size
            try:
                await ns.write(first, pattern(size, first))
                assert await ns.read(first) in (pattern(size, first), bytes(size))
                outcomes.add("written")
            except NamespaceChanged:
                outcomes.add("changed")
            except ValueError:
                outcomes.add("size")  # the format changed between the check and the write
            await asyncio.sleep(0)

    done = asyncio.Event()
    writers = [asyncio.ensure_future(writer(lba)) for lba in range(8)]
    for lbaf in (0, 1, 0):
        await within(10, management.format_namespace(controller, 1, lbaf, **QUICK))
    done.set()
    await within(10, asyncio.gather(*writers))
    assert "written" in outcomes
    assert ns.block_size == 512


async def test_sanitize_of_every_kind(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    for action in (SanitizeAction.BLOCK_ERASE, SanitizeAction.CRYPTO_ERASE, SanitizeAction.OVERWRITE):
        await ns.write(0, pattern(4096))
        seen: list[float] = []
        status = await management.sanitize(
            controller, action, pattern=0x5A5A5A5A, keep_allocated=True, progress=seen.append, **QUICK
        )
        assert status.state == SanitizeState.COMPLETED
        assert seen[-1] == 1.0
        expected = b"\x5a" * 4096 if action == SanitizeAction.OVERWRITE else bytes(4096)
        assert await ns.read(0) == expected
    await exercise(ns, 1, rounds=3)


async def test_a_failed_sanitize_is_reported(controller: nvme_async.Controller) -> None:
    faults(controller).sanitize_fails()
    with pytest.raises(ManagementError, match="failed"):
        await management.sanitize(controller, unrestricted=True, **QUICK)
    with pytest.raises(CommandError):
        await controller.namespaces[1].read(0)
    await management.sanitize(controller, SanitizeAction.EXIT_FAILURE_MODE)
    await controller.namespaces[1].read(0)


async def test_a_self_test(controller: nvme_async.Controller) -> None:
    for _ in range(2):
        result = await management.self_test(controller, SelfTest.SHORT, **QUICK)
        assert (result.result, result.code) == (SelfTestResultCode.PASSED, SelfTest.SHORT)


async def test_a_self_test_that_is_cancelled_or_takes_too_long_is_aborted() -> None:
    async with nvme_async.open("emulated:size=16MiB,self_test=600", **FAST) as controller:
        seen: list[float] = []
        running = asyncio.ensure_future(
            management.self_test(controller, SelfTest.EXTENDED, progress=seen.append, **QUICK)
        )
        await eventually(lambda: seen)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(CommandTimeout):  # no other self-test is running
            await management.self_test(controller, SelfTest.EXTENDED, timeout=0.02, **QUICK)
        log = await management.read_typed_log(controller, type(await _self_tests(controller)), LogPage.DEVICE_SELF_TEST)
        assert [one.result for one in log.valid_results] == [SelfTestResultCode.ABORTED_BY_COMMAND] * 2


async def _self_tests(controller: nvme_async.Controller) -> object:
    from nvme_async.spec.logs import SelfTestLog

    return SelfTestLog.decode(await management.read_log(controller, LogPage.DEVICE_SELF_TEST, SelfTestLog.SIZE))


async def test_namespaces_are_created_and_deleted(controller: nvme_async.Controller) -> None:
    nsid = await management.create_namespace(controller, nbytes=8 << 20, block_size=4096)
    ns = controller.namespaces[nsid]
    await exercise(ns, 0, rounds=2)
    await management.detach_namespace(controller, nsid)
    assert nsid not in controller.namespaces
    with pytest.raises(InvalidNamespace):
        await ns.read(0)
    await management.attach_namespace(controller, nsid)
    assert await controller.namespaces[nsid].read(0) == pattern(4096, 0)
    await management.delete_namespace(controller, nsid)
    assert list(controller.namespaces) == [1]
    with pytest.raises(CommandError):
        await management.create_namespace(controller, nbytes=1 << 30, block_size=4096)
    with pytest.raises(ConfigurationError, match="either blocks or nbytes"):
        await management.create_namespace(controller)
    with pytest.raises(ConfigurationError, match="multiple"):
        await management.create_namespace(controller, nbytes=1000, block_size=512)
    # A namespace that can't be attached is deleted again.
    rule = faults(controller).add(opcode=0x15, queue="admin", count=1, fail=0x119)
    with pytest.raises(CommandError):
        await management.create_namespace(controller, blocks=100)
    rule.remove()
    listed = await controller.admin(commands.identify(0x10))
    assert listed.data is not None
    assert listed.data[:8] == b"\1\0\0\0\0\0\0\0"


async def test_firmware_download_and_commit(controller: nvme_async.Controller) -> None:
    image = b"FW2     " + pattern(300_000 - 8)
    seen: list[float] = []
    assert await management.update_firmware(controller, image, 2, progress=seen.append) is Activation.NONE
    assert seen[-1] == 1.0
    assert controller.identify.fr.strip() == "FW2"
    await management.download_firmware(controller, b"FW3     " + bytes(4096))
    assert await management.commit_firmware(controller, 3) is Activation.CONTROLLER_RESET
    await controller.reset()
    assert controller.identify.fr.strip() == "FW3"
    assert (
        await management.commit_firmware(controller, 1, FirmwareCommitAction.REPLACE_AND_ACTIVATE_NOW)
        is Activation.NONE
    )
    faults(controller).add(opcode=0x10, queue="admin", count=1, fail=0x110)
    await management.download_firmware(controller, image)
    assert await management.commit_firmware(controller, 2) is Activation.SUBSYSTEM_RESET
    with pytest.raises(ConfigurationError, match="multiple of 4"):
        await management.download_firmware(controller, b"abc")
    with pytest.raises(ConfigurationError, match="FWUG"):
        await management.download_firmware(controller, image, chunk=512)


async def test_logs_longer_than_one_command(controller: nvme_async.Controller) -> None:
    first = await management.telemetry_log(controller)
    assert len(first) == 512 * 11
    assert (await management.telemetry_log(controller))[512:] != first[512:]
    await management.format_namespace(controller, 1, **QUICK)
    log = await management.persistent_event_log(controller)
    kinds = [event.type for event in log.events]
    assert kinds[:3] == [
        PersistentEventType.SMART_SNAPSHOT,
        PersistentEventType.FORMAT_COMPLETION,
        PersistentEventType.FORMAT_START,
    ]
    assert set(kinds) <= log.header.supported
    assert (await management.persistent_event_log(controller)).header.gen_number == log.header.gen_number + 1


async def test_lba_status_reports_unreadable_blocks(controller: nvme_async.Controller) -> None:
    ns = controller.namespaces[1]
    for lba in range(0, 3000, 4):
        await ns.write_uncorrectable(lba, 2)
    found = await management.lba_status(controller, 1)
    assert [(one.dslba, one.nlb) for one in found] == [(lba, 1) for lba in range(0, 3000, 4)]
    assert len(await management.lba_status(controller, 1, 100, 8)) == 2


async def test_security(controller: nvme_async.Controller) -> None:
    assert await management.security_protocols(controller) == (0, 1)
    found = await management.discover_security(controller)
    assert [feature.name for feature in found.features] == ["TPer", "Locking", "Geometry", "Opal SSC V2"]
    assert (found.locking_enabled, found.locked) == (False, False)
    await management.send_security(controller, 1, 0x07FE, bytes(512))
