"""examples/kvstore under load while its driver process is replaced, three times."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nvme_async.emulator import EmulatedController

aiohttp = pytest.importorskip("aiohttp")

EXAMPLE = Path(__file__).parents[2] / "examples" / "kvstore" / "serve.py"


@asynccontextmanager
async def service(device: str) -> AsyncIterator[str]:
    """The service's URL."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), "--device", device, "--port", "0", stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("serving on "), line
        yield line.split()[-1]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await process.wait()
    assert process.returncode == 0


async def test_a_driver_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with EmulatedController("size=64MiB") as target:
        target.listen(tmp_path / "drive.sock")
        async with service(f"vfio-user:{tmp_path}/drive.sock") as url, aiohttp.ClientSession(url) as session:

            async def pid() -> int:
                async with session.get("/stats") as answer:
                    return int((await answer.json())["pid"])

            acknowledged: dict[str, bytes] = {}
            changed = asyncio.Event()
            pids = [await pid()]

            async def client(number: int) -> None:
                count = 0
                while not changed.is_set() or count < 10:
                    value = f"{number} {count} ".encode() * 100
                    async with session.put(f"/keys/{number}", data=value) as answer:
                        assert answer.status == 204, await answer.text()
                    acknowledged[str(number)] = value
                    count += 1

            clients = [asyncio.ensure_future(client(number)) for number in range(8)]
            try:
                for _ in range(2):
                    before = dict(acknowledged)
                    async with asyncio.timeout(60):
                        while not all(
                            acknowledged.get(str(number)) not in (None, before.get(str(number))) for number in range(8)
                        ):
                            await asyncio.sleep(0.005)
                    os.kill(pids[-1], signal.SIGKILL)
                    pids.append(await pid())
                    assert len(set(pids)) == len(pids)
            finally:
                changed.set()
            await asyncio.gather(*clients)
            for key, value in acknowledged.items():
                async with session.get(f"/keys/{key}") as answer:
                    assert await answer.read() == value
            async with session.post("/upgrade") as answer:
                assert (await answer.json())["upgrades"] == 1


async def test_three_upgrades_under_load_lose_nothing(tmp_path: Path) -> None:
    with EmulatedController("size=64MiB") as target:
        target.listen(tmp_path / "drive.sock")
        async with service(f"vfio-user:{tmp_path}/drive.sock") as url, aiohttp.ClientSession(url) as session:
            acknowledged: dict[str, bytes] = {}
            stop = False
            target.faults.add(
                queue="io", opcode=1, delay=0.02
            )  # so that writes are in flight whenever the controller is handed over

            async def client(number: int) -> int:
                count = 0
                while not stop:
                    key, value = f"{number}-{count % 40}", f"{number} {count} ".encode() * (1 + count % 300)
                    async with session.put(f"/keys/{key}", data=value) as answer:
                        assert answer.status == 204, await answer.text()
                    acknowledged[key] = value
                    async with session.get(f"/keys/{key}") as answer:
                        assert await answer.read() == value
                    count += 1
                return count

            clients = [asyncio.ensure_future(client(number)) for number in range(8)]
            pids = set()
            for upgrade in range(1, 4):
                await asyncio.sleep(0.2)
                async with session.get("/stats") as answer:
                    pids.add((await answer.json())["pid"])
                async with session.post("/upgrade") as answer:
                    assert answer.status == 200, await answer.text()
                    result = await answer.json()
                assert result["upgrades"] == upgrade
                assert result["seconds"] < 60.0
            await asyncio.sleep(0.2)
            stop = True
            counts = await asyncio.gather(*clients)
            assert min(counts) > 0
            async with session.get("/stats") as answer:
                stats = json.loads(await answer.read())
            assert len(pids | {stats["pid"]}) == 4
            assert stats["keys"] == len(acknowledged)
            for key, value in acknowledged.items():
                async with session.get(f"/keys/{key}") as answer:
                    assert await answer.read() == value
            async with session.delete("/keys/0-0") as answer:
                assert answer.status == 204
            async with session.get("/keys/0-0") as answer:
                assert answer.status == 404
            # One bring-up in total, although four processes drove the controller one after another.
            assert target.faults.counters()["enables"] == 1
