"""The programs of examples/ that need no service around them."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

import nvme_async

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    path = EXAMPLES / name
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def controller() -> AsyncIterator[nvme_async.Controller]:
    async with nvme_async.open("emulated:size=4MiB,block=512") as opened:
        yield opened


# -- the append-only log ---------------------------------------------------------------------------


async def found(log: Any) -> list[bytes]:
    return [data async for _, data in log.records()]


async def test_a_log_is_found_again(controller: nvme_async.Controller) -> None:
    append_log, ns, draw = example("append_log/append_log.py"), controller.namespaces[1], random.Random(4)
    written: list[bytes] = []
    for _ in range(3):
        log = await append_log.AppendLog.open(ns)
        assert await found(log) == written
        fresh = [draw.randbytes(draw.randrange(2000)) for _ in range(40)]
        numbers = await asyncio.gather(*(log.append(data) for data in fresh))
        assert numbers == list(range(len(written), len(written) + 40))
        written += fresh
    assert await found(await append_log.AppendLog.open(ns, log_id=2)) == []


@pytest.mark.parametrize("keep", [0, 20, 512, 1000])
async def test_a_torn_record_is_no_record_and_hurts_no_other(controller: nvme_async.Controller, keep: int) -> None:
    """A crash in the middle of a write: only its first bytes are on the media."""
    append_log, ns = example("append_log/append_log.py"), controller.namespaces[1]
    log = await append_log.AppendLog.open(ns)
    await log.append(b"first")
    end = log._end
    before = await ns.pread(2048, end)
    await log.append(bytes(range(256)) * 5)
    torn = (await ns.pread(keep, end)) + before[keep:]
    await ns.pwrite(torn, end)
    again = await append_log.AppendLog.open(ns)
    assert await found(again) == [b"first"]
    assert await again.append(b"second") == 1
    assert await found(await append_log.AppendLog.open(ns)) == [b"first", b"second"]


async def test_a_full_log_says_so(controller: nvme_async.Controller) -> None:
    append_log, ns = example("append_log/append_log.py"), controller.namespaces[1]
    log = await append_log.AppendLog.open(ns)
    await log.append(bytes(ns.nbytes - 2048))
    with pytest.raises(append_log.LogFull):
        await log.append(bytes(4096))
    assert await log.append(b"small") == 1


# -- the sample loader -----------------------------------------------------------------------------


async def test_each_sample_comes_once_an_epoch(controller: nvme_async.Controller) -> None:
    loader_module, ns = example("samples/loader.py"), controller.namespaces[1]
    count = ns.nbytes // 4096
    data = np.repeat(np.arange(count, dtype=np.uint32), 1024)
    await ns.write(0, data.view(np.uint8))
    loader = loader_module.Loader(controller, ns, sample_bytes=4096, batch=32)
    orders = []
    for seed in (1, 2):
        seen = [int(sample.view(np.uint32)[0]) async for batch in loader.epoch(seed) for sample in batch]
        assert sorted(seen) == list(range(count))
        orders.append(seen)
    assert orders[0] != orders[1]
    tasks = asyncio.all_tasks()
    epoch = loader.epoch(3)
    await anext(epoch)
    await epoch.aclose()  # left early: nothing goes on
    assert asyncio.all_tasks() == tasks
    loader.close()


async def test_torch_shares_the_memory(controller: nvme_async.Controller) -> None:
    torch = pytest.importorskip("torch")
    buffer = controller.alloc(4096)
    tensor = torch.from_dlpack(buffer)
    await controller.namespaces[1].write(0, b"\x05" * 4096)
    await controller.namespaces[1].readinto(0, buffer)
    assert int(tensor.sum()) == 5 * 4096


# -- the HTTP service ------------------------------------------------------------------------------


@pytest.fixture
async def client(controller: nvme_async.Controller) -> AsyncIterator[Any]:
    serve = example("http_range/serve.py")
    async with TestClient(TestServer(serve.application(controller.namespaces[1]))) as client:
        yield client


async def test_ranges_over_http(controller: nvme_async.Controller, client: Any) -> None:
    ns, data = controller.namespaces[1], random.Random(6).randbytes(10_000)
    await ns.pwrite(data, 0)
    for header, begin, end in (("0-99", 0, 100), ("5000-", 5000, None), ("-7", -7, None), ("9000-9000", 9000, 9001)):
        async with client.get("/", headers={"Range": f"bytes={header}"}) as response:
            body, size = await response.read(), ns.nbytes
            first, last = (begin % size, (size if end is None else end) - 1)
            assert response.status == 206
            assert response.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
            assert body == await ns.pread(last - first + 1, first)
    async with client.get("/", headers={"Range": f"bytes={ns.nbytes}-"}) as response:
        assert (response.status, response.headers["Content-Range"]) == (416, f"bytes */{ns.nbytes}")
    async with client.head("/") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(ns.nbytes))


async def test_a_client_that_does_not_read_stops_the_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = example("http_range/serve.py")
    read = 0
    async with nvme_async.open("emulated:size=256MiB,medium=null") as controller:
        ns = controller.namespaces[1]
        pread = ns.pread

        async def counted(nbytes: int, offset: int) -> bytes:
            nonlocal read
            read += nbytes
            return await pread(nbytes, offset)

        monkeypatch.setattr(ns, "pread", counted)
        async with TestServer(serve.application(ns)) as server:
            _, writer = await asyncio.open_connection(server.host, server.port, limit=4096)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            before = -1
            while not read or before != read:  # until nothing moves any more: the sockets are full
                before = read
                await asyncio.sleep(0.05)
            assert read < ns.nbytes / 4
            writer.transport.abort()
