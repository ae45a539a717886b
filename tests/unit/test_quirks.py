"""The table of quirks, its overrides, and the effect of each quirk."""

from __future__ import annotations

import asyncio
import re
import struct
import time
from typing import Any

import pytest
from ring_controller import PAGE, RingController

import nvme_async
from nvme_async.device.base import DeviceIds
from nvme_async.device.quirks import TABLE, Entry, Quirk, Quirks, quirks_of, with_command_line
from nvme_async.driver.pcie import registers
from nvme_async.errors import ConfigurationError, ControllerError
from nvme_async.keepalive.controller import Controller
from nvme_async.spec import commands


def ids(vendor: int, device: int, subsystem: int = 0) -> DeviceIds:
    return DeviceIds(vendor, device, 0x1028, subsystem, 0x010802, 0)


def names(found: Quirks) -> set[str]:
    return set(found.inspect())


def test_devices_of_the_table_get_their_quirks() -> None:
    assert names(quirks_of(ids(0x1217, 0x8760), environment={})) == {"prp-last-entry"}
    assert names(quirks_of(ids(0x106B, 0x2001), environment={})) == {"queue-depth-one", "single-vector"}
    assert names(quirks_of(ids(0x1414, 0xB111), environment={})) == {"keepalive-by-class"}
    assert names(quirks_of(ids(0x6E61, 0x0001), environment={})) == set()


def test_the_table_names_its_sources_and_no_device_twice() -> None:
    assert all(re.match(r"(Linux, |SPDK, |\w+/\w+[,:])", entry.source) for entry in TABLE)
    found = [(e.vendor, e.device, e.subsystem_vendor, e.subsystem, e.model, e.firmware) for e in TABLE]
    assert len(found) == len(set(found))


def test_entries_by_subsystem_model_and_firmware() -> None:
    table = [
        Entry(1, 2, "a", {Quirk.SINGLE_VECTOR}, "s", subsystem_vendor=0x1028, subsystem=7),
        Entry(1, 2, "b", {Quirk.IDENTIFY_CNS}, "s", model="Fast*", firmware="1.[0-3]"),
    ]
    assert names(quirks_of(ids(1, 2), table=table)) == set()
    assert names(quirks_of(ids(1, 2, 7), table=table)) == {"single-vector"}
    assert names(quirks_of(ids(1, 2), model="Fast 3", firmware="1.2", table=table)) == {"identify-cns"}
    assert names(quirks_of(ids(1, 2), model="Fast 3", firmware="1.4", table=table)) == set()


@pytest.mark.parametrize(
    ("override", "variable", "expected"),
    [
        ("none", "", set()),
        ("-single-vector", "", {"queue-depth-one"}),
        ("+identify-cns", "", {"queue-depth-one", "single-vector", "identify-cns"}),
        ("identify-cns, no-doorbell-buffer", "*=none", {"identify-cns", "no-doorbell-buffer"}),
        ("", "*=none", set()),
        ("", "1217:8760=none; 106b:2001=-queue-depth-one", {"single-vector"}),
        ("", "106b:2001:1028:0001=none", {"queue-depth-one", "single-vector"}),
        ("", "106B:2001:1028:0000=none", set()),
    ],
)
def test_overrides(override: str, variable: str, expected: set[str]) -> None:
    environment = {"NVME_ASYNC_QUIRKS": variable}
    assert names(quirks_of(ids(0x106B, 0x2001), override=override, environment=environment)) == expected


@pytest.mark.parametrize("text", ["single", "+none", "none,single-vector", "+single-vector,identify-cns"])
def test_invalid_overrides_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="quirks="):
        nvme_async.driver.options.Options(quirks=text)
    with pytest.raises(ConfigurationError, match="quirk"):
        quirks_of(ids(1, 2), environment={"NVME_ASYNC_QUIRKS": f"*={text}"})


@pytest.mark.parametrize("text", ["single-vector", "0=none", "1:2:3=none", "x:y=none"])
def test_an_invalid_variable_is_an_error(text: str) -> None:
    with pytest.raises(ConfigurationError, match="NVME_ASYNC_QUIRKS"):
        quirks_of(ids(1, 2), environment={"NVME_ASYNC_QUIRKS": text})


@pytest.mark.parametrize(
    ("line", "option", "expected"),
    [
        ("none", "", set()),
        ("-single-vector", "", {"queue-depth-one"}),
        ("identify-cns", "", {"identify-cns"}),
        ("identify-cns", "+identify-cns", {"queue-depth-one", "single-vector", "identify-cns"}),
        ("106b:2001=none", "", set()),
        ("1217:8760=none; *=-single-vector", "", {"queue-depth-one"}),
        ("1217:8760=none", "", {"large-sqe"}),  # the variable's, which the line says nothing about
        ("", "", {"large-sqe"}),
    ],
)
def test_the_command_line_is_between_the_option_and_the_variable(line: str, option: str, expected: set[str]) -> None:
    environment = {"NVME_ASYNC_QUIRKS": "106b:2001=large-sqe"}
    with with_command_line(line):
        found = quirks_of(ids(0x106B, 0x2001), override=option, environment=environment)
    assert names(found) == expected
    assert names(quirks_of(ids(0x106B, 0x2001), environment={})) == {"queue-depth-one", "single-vector"}


@pytest.mark.parametrize("text", ["single", "*=single", "1:2:3=none", "x=none", "*=none; none"])
def test_an_invalid_command_line_is_an_error(text: str) -> None:
    with pytest.raises(ConfigurationError, match="quirk"), with_command_line(text):
        pass


def test_what_the_owner_of_a_shared_device_found() -> None:
    environment = {"NVME_ASYNC_QUIRKS": "*=none"}
    own = quirks_of(ids(0x106B, 0x2001), environment={})
    for found in (own, quirks_of(ids(1, 2), environment={})):
        of_worker = quirks_of(ids(0x106B, 0x2001), owner=found.names(), environment=environment)
        assert names(of_worker) == names(found)
    assert set(quirks_of(ids(1, 2), owner="large-sqe").inspect().values()) == {"the process that shares it"}
    assert names(quirks_of(ids(1, 2), override="none", owner="large-sqe")) == set()


@pytest.fixture
async def ring(request: pytest.FixtureRequest) -> Any:
    return RingController(asyncio.get_running_loop(), entries=64, max_transfer=128 << 10, **request.param)


async def _last_entries(ring: Any) -> set[int]:
    """The entries of a page at which the lists of 33-page transfers end."""
    memory = ring.pool.alloc(256 << 10, owner="user")
    with memoryview(memory) as view:
        requests = [
            ring.qp.request(commands.read(1, 0, 256).pack(), view[512 : 512 + (128 << 10)], to_host=True)
            for _ in range(63)
        ]
        tasks = [asyncio.create_task(request) for request in requests]
        for _ in range(12):
            await asyncio.sleep(0)
        ends = set()
        for sqe in ring.fetch():
            _, prp2 = struct.unpack_from("<QQ", sqe, 24)
            assert len(ring.walk(sqe, 128 << 10)) == 33
            ends.add(prp2 % PAGE // 8 + 31)
            ring.post(ring.cid(sqe))
        ring.qp.reap()
        await asyncio.gather(*tasks)
    return ends


@pytest.mark.parametrize("ring", [{}], indirect=True)
async def test_lists_usually_end_anywhere(ring: Any) -> None:
    assert PAGE // 8 - 1 in await _last_entries(ring)


@pytest.mark.parametrize("ring", [{"spare_entries": 1}], indirect=True)
async def test_with_the_quirk_no_list_ends_at_the_last_entry_of_its_page(ring: Any) -> None:
    assert PAGE // 8 - 1 not in await _last_entries(ring)


async def opened(quirks: str, **options: Any) -> Controller:
    return await nvme_async.open("emulated:size=16MiB,namespaces=3", quirks=quirks, **options)


async def test_active_quirks_are_shown() -> None:
    async with await opened("+identify-cns") as controller:
        assert controller.inspect()["quirks"] == {"identify-cns": "the option quirks="}


async def test_queue_depth_one() -> None:
    async with await opened("queue-depth-one") as controller:
        namespace = controller.namespaces[1]
        block = bytes(range(16)) * (namespace.block_size // 16)
        await asyncio.gather(*(namespace.write(lba, block) for lba in range(20)))
        assert await asyncio.gather(*(namespace.read(lba) for lba in range(20))) == [block] * 20
        state = controller.inspect()
        assert state["io_queue_limit"] == 1
        assert [(queue["entries"], queue["depth"]) for queue in state["io_queues"]] == [(2, 1)]


async def test_single_vector() -> None:
    async with await opened("single-vector") as controller:
        assert await controller.namespaces[1].read(0)
        state = controller.inspect()
        assert (state["vectors"], state["io_queues"][0]["vector"], state["io_queue_limit"]) == (1, 0, 1)


async def test_no_doorbell_buffer() -> None:
    async with await opened("no-doorbell-buffer") as controller:
        assert not controller.inspect()["io_queues"][0]["shadow_doorbells"]
        assert controller.device.emulator.faults.counters()["admin"].get(0x7C, 0) == 0  # type: ignore[attr-defined]


async def test_identify_cns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    identify = commands.identify
    monkeypatch.setattr(commands, "identify", lambda cns, *rest: asked.append(cns) or identify(cns, *rest))
    async with await opened("identify-cns") as controller:
        assert sorted(controller.namespaces) == [1, 2, 3]
    assert set(asked) == {0, 1}


async def test_bogus_ids() -> None:
    async with await opened("bogus-ids") as controller:
        assert not any(namespace.identity.known for namespace in controller.namespaces.values())
    async with await opened("") as controller:
        assert all(namespace.identity.known for namespace in controller.namespaces.values())


async def test_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registers, "DELAY_BEFORE_INIT", 0.1)
    monkeypatch.setattr(registers, "DELAY_BEFORE_READY", 0.1)
    async with await opened("delay-before-ready") as controller:
        begin = time.monotonic()
        await controller.reset()
        assert time.monotonic() - begin >= 0.1
        assert await controller.namespaces[1].read(0)
    begin = time.monotonic()
    async with await opened("delay-before-init"):
        assert time.monotonic() - begin >= 0.1


async def test_large_entries_are_refused() -> None:
    with pytest.raises(ControllerError, match="entries of 128 bytes"):
        await opened("large-sqe")


async def test_prp_last_entry_end_to_end() -> None:
    async with await opened("prp-last-entry", max_transfer=4 << 20) as controller:
        namespace = controller.namespaces[1]
        assert controller.queues.maker.longest_transfer == 511 * PAGE
        with controller.alloc(1 << 20) as buffer:
            view = memoryview(buffer)[64 : 64 + (128 << 10)]
            data = bytes(range(256)) * 512
            view[:] = data
            await namespace.write(0, view)
            assert await namespace.read(0, 32) == data
            view.release()
