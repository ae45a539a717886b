"""examples/web under load, while a worker is killed and the drive's owner is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nvme_async.emulator import EmulatedController

aiohttp = pytest.importorskip("aiohttp")

EXAMPLE = Path(__file__).parents[2] / "examples" / "web" / "service.py"
CLIENTS = 8
LBAS = 16
"""Of each client."""


@asynccontextmanager
async def service(device: str, workers: int) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process and its URL."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), "--device", device, "--port", "0", "--workers", str(workers),
        stdout=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            line = await said(process)
        assert line.startswith("serving on "), line
        yield process, line.split()[-1]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await process.wait()
    assert process.returncode == 0


async def said(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


class Client:
    """Puts values into blocks of its own and gets them back, over one connection."""

    def __init__(self, number: int, url: str) -> None:
        self._number, self._url = number, url
        self.issued: dict[int, bytes] = {}
        self.acknowledged: dict[int, bytes] = {}
        self.requests = 0
        self.worker = 0  # that has the connection; 0: not known yet
        self.failed: list[int] = []

    async def run(self, ended: asyncio.Event) -> None:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(self._url, connector=connector, raise_for_status=True) as session:
            while not ended.is_set():
                try:
                    await self._once(session)
                except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                    self.failed.append(self.worker)
                    self.worker = 0

    async def _once(self, session: aiohttp.ClientSession) -> None:
        lba = LBAS * self._number + self.requests % LBAS
        value = f"{self._number} {self.requests} ".encode() * 50
        self.requests += 1
        self.issued[lba] = value
        async with session.put(f"/blocks/{lba}", data=value) as answer:
            self.worker = int(answer.headers["X-Worker"])
        self.acknowledged[lba] = value
        async with session.get(f"/blocks/{lba}") as answer:
            assert await answer.read() == value


async def test_a_killed_worker_costs_its_own_requests_and_an_upgrade_of_the_owner_none(tmp_path: Path) -> None:
    with EmulatedController("size=16MiB,block=4096") as target:
        target.listen(tmp_path / "drive.sock")
        async with service(f"vfio-user:{tmp_path}/drive.sock", 3) as (process, url):
            before = target.faults.counters()
            ended = asyncio.Event()
            clients = [Client(number, url) for number in range(CLIENTS)]
            tasks = [asyncio.create_task(client.run(ended)) for client in clients]

            async def progress() -> None:
                wanted = [client.requests + 20 for client in clients]
                async with asyncio.timeout(60):
                    while any(client.requests < least for client, least in zip(clients, wanted, strict=True)):
                        await asyncio.sleep(0.01)

            await progress()
            process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(60):
                assert (await said(process)).startswith("owner is process ")
            await progress()
            assert [client.failed for client in clients] == [[]] * CLIENTS
            after = target.faults.counters()
            assert (after["enables"], after["resets"]) == (before["enables"], before["resets"])

            victim = clients[0].worker
            os.kill(victim, signal.SIGKILL)
            await progress()
            ended.set()
            await asyncio.gather(*tasks)
            failed = {worker for client in clients for worker in client.failed}
            assert failed <= {victim, 0}
            assert victim not in {client.worker for client in clients}  # as others serve its clients now
            async with aiohttp.ClientSession(url, raise_for_status=True) as session:
                for client in clients:
                    for lba, value in client.acknowledged.items():
                        async with session.get(f"/blocks/{lba}") as answer:
                            # A write that the killed worker did not acknowledge is there or not.
                            assert await answer.read() in (value, client.issued[lba])
