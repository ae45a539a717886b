"""The transport seam, on a transport that is just a dictionary
(tests/transports/dict_transport.py).
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import nvme_async
from nvme_async.driver import schemes
from nvme_async.driver.schemes import parse_uri
from nvme_async.errors import (
    CommandTimeout,
    CompareFailure,
    ConfigurationError,
    ControllerGone,
    InvalidOpcode,
    LbaOutOfRange,
    QueueShutdown,
)
from nvme_async.fio.main import main as fio
from nvme_async.manager import Manager
from nvme_async.spec import commands

sys.path.insert(0, str(Path(__file__).parents[1] / "transports"))
importlib.import_module("dict_transport")

BLOCK = 4096


@pytest.fixture(autouse=True)
def _scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "_modules", dict(schemes._modules))
    schemes.register_transport("dict", "dict_transport")


@pytest.fixture
async def controller() -> AsyncIterator[nvme_async.Controller]:
    async with nvme_async.open("dict:1000", drain_timeout=0.5) as opened:
        yield opened


def fill(lba: int) -> bytes:
    return lba.to_bytes(4, "little") * (BLOCK // 4)


async def test_the_transport_opens_reads_and_writes(controller: nvme_async.Controller) -> None:
    namespace = controller.namespaces[1]
    assert (namespace.blocks, namespace.block_size, namespace.max_blocks) == (1000, BLOCK, 8)
    await namespace.write(5, fill(5) + fill(6))
    await namespace.flush()
    assert await namespace.read(5, 2) == fill(5) + fill(6)
    buffer = bytearray(BLOCK)
    assert await namespace.readinto(6, buffer) == BLOCK
    assert buffer == fill(6)
    await namespace.compare(5, fill(5))
    with pytest.raises(CompareFailure):
        await namespace.compare(5, fill(6))
    assert controller.state == "ready"
    assert controller.inspect()["transport"] == "dict"


async def test_requests_over_the_limit_of_a_command_are_split(controller: nvme_async.Controller) -> None:
    namespace = controller.namespaces[1]
    data = b"".join(fill(lba) for lba in range(100, 121))
    await namespace.write(100, data)
    assert await namespace.read(100, 21) == data
    buffer = bytearray(len(data))
    await namespace.readinto(100, buffer)
    assert buffer == data


async def test_many_requests_at_once(controller: nvme_async.Controller) -> None:
    namespace = controller.namespaces[1]
    lbas = array("Q", range(0, 200, 2))
    await namespace.write_many(lbas, b"".join(map(fill, lbas)))
    result = await namespace.read_many(lbas, depth=7)
    assert bytes(result.data) == b"".join(map(fill, lbas))
    assert result.failed == 0
    partly = await namespace.read_many([0, 999, 1000], check=False)
    assert list(partly.statuses) == [0, 0, 0x80]
    assert isinstance(partly.error(2), LbaOutOfRange)


async def test_errors_are_the_same_as_on_every_transport(controller: nvme_async.Controller) -> None:
    namespace = controller.namespaces[1]
    with pytest.raises(LbaOutOfRange, match="the namespace has 1000 blocks"):
        await namespace.read(999, 2)
    with pytest.raises(LbaOutOfRange):
        await namespace.submit(commands.read(1, 999, 2), bytearray(2 * BLOCK))
    with pytest.raises(InvalidOpcode):
        await namespace.write_zeroes(0, 1)
    for buffer in (b"", b"x" * 100):
        with pytest.raises(ValueError, match="multiple of the block size"):
            await namespace.write(0, buffer)
    with pytest.raises(ValueError, match="blocks is 0"):
        await namespace.read(0, 0)
    with pytest.raises(ConfigurationError, match="dict has no direct memory access"):
        controller.alloc(4096)
    with pytest.raises(ConfigurationError, match="dict has no PCI function"):
        controller.device  # noqa: B018
    with pytest.raises(ConfigurationError):
        await controller.save()
    assert await namespace.read(0) == bytes(BLOCK)


async def test_an_invalid_number_of_blocks_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="'many' is not a number of blocks"):
        await nvme_async.open("dict:many")
    with pytest.raises(ConfigurationError, match=r"must begin with one of .*dict:"):
        await nvme_async.open("dictionary:1")
    assert "dict" in schemes.schemes()
    assert parse_uri("dict:007") == ("dict", "7")


async def test_settled_waits_for_a_cancelled_write(controller: nvme_async.Controller) -> None:
    transport: Any = controller.transport
    namespace = controller.namespaces[1]
    transport.delay = 0.4
    write = asyncio.ensure_future(namespace.write(7, fill(7)))
    await asyncio.sleep(0.01)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    assert 7 not in transport.blocks
    await namespace.settled(7, 1)
    assert transport.blocks[7] == fill(7)


async def test_a_command_without_completion_ends_in_time() -> None:
    async with nvme_async.open("dict:10", command_timeout=0.3, drain_timeout=0.1) as controller:
        controller.transport.delay = 1.0  # type: ignore[attr-defined]
        with pytest.raises(CommandTimeout):
            await controller.namespaces[1].read(0)
        controller.transport.delay = 0.0  # type: ignore[attr-defined]
        assert await controller.namespaces[1].read(1) == bytes(BLOCK)


async def test_io_waits_for_a_reset_and_continues(controller: nvme_async.Controller) -> None:
    transport: Any = controller.transport
    namespace = controller.namespaces[1]
    await namespace.write(1, fill(1))
    reads = [asyncio.ensure_future(namespace.read(1)) for _ in range(10)]
    await controller.reset("a test")
    assert await asyncio.gather(*reads) == [fill(1)] * 10
    assert (controller.resets, transport.resets) == (1, 2)
    assert controller.namespaces[1] is namespace


async def test_a_transport_that_disappears_fails_the_controller(controller: nvme_async.Controller) -> None:
    transport: Any = controller.transport
    transport.delay = 5.0
    read = asyncio.ensure_future(controller.namespaces[1].read(0))
    await asyncio.sleep(0.05)
    transport.disappear()
    with pytest.raises(ControllerGone):
        await read
    with pytest.raises(ControllerGone):
        await controller.namespaces[1].read(0)
    assert controller.state == "failed"


async def test_after_close_calls_are_refused() -> None:
    async with nvme_async.open("dict:10") as controller:
        namespace = controller.namespaces[1]
    with pytest.raises(QueueShutdown):
        await namespace.read(0)
    assert controller.state == "closed"


async def test_other_loops_have_their_own_queues(controller: nvme_async.Controller) -> None:
    namespace = controller.namespaces[1]
    await namespace.write(3, fill(3))
    results: list[bytes] = []

    def elsewhere() -> None:
        async def read() -> None:
            results.extend(await asyncio.gather(*(namespace.read(3) for _ in range(20))))

        asyncio.run(read())

    threads = [threading.Thread(target=elsewhere) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        await asyncio.sleep(0.01)
    assert results == [fill(3)] * 60


async def test_the_manager_services_it(tmp_path: Path) -> None:
    async with Manager(drain_timeout=0.5) as manager:
        namespace = await manager.namespace("dict:1000", 1)
        await namespace.write(9, fill(9))
        await manager.service("dict:1000")
        assert await namespace.read(9) == fill(9)
        await manager.reset("dict:1000")
        assert await namespace.read(9) == fill(9)
        assert manager.inspect()["devices"]["dict:1000"]["state"] == "ready"


def test_the_benchmark_runs_on_it(capfd: pytest.CaptureFixture[str]) -> None:
    job = ["--filename=dict:1000", "--name=j", "--rw=randrw", "--bs=4k", "--iodepth=8", "--verify=crc32c"]
    assert fio([*job, "--size=2m", "--do_verify=1"]) == 0
    assert "err= 0" in capfd.readouterr().out
