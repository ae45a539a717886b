"""A key-value store over HTTP whose driver can be upgraded while it serves.

    python examples/kvstore/serve.py --device vfio-user:/run/controller.sock --port 8080
    curl -X PUT --data-binary hello localhost:8080/keys/greeting
    curl localhost:8080/keys/greeting
    curl -X POST localhost:8080/upgrade

This process is the front end; another process (driver.py) has the drive and the store. An upgrade
starts a new driver process, and once that is ready makes the old one hand the running controller
over: there is no reset, nothing is lost, and requests that arrive meanwhile wait for some
milliseconds. SIGHUP does the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from aiohttp import web
from wire import Operation, Status, read_answer, request

PATIENCE = 30.0
"""Seconds that a request waits for a driver process."""


class Moved(Exception):
    """The driver process was replaced; send the request to the next one. All requests here may
    be repeated.
    """


class Driver:
    """One driver process and the connection to it."""

    def __init__(self, process: asyncio.subprocess.Process, path: str) -> None:
        self.process = process
        self.path = path
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[tuple[Status, bytes]]] = {}

    @classmethod
    async def start(cls, device: str, path: str, *more: str) -> Driver:
        command = [
            sys.executable,
            str(Path(__file__).with_name("driver.py")),
            "--device",
            device,
            "--socket",
            path,
            *more,
        ]
        return cls(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE), path)

    async def says(self, word: str) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self.process.stdout.readline()
        if line.decode().strip() != word:
            raise RuntimeError(f"the driver process ended instead of being {word}")

    async def connect(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(self.path)
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                number, status, value = await read_answer(reader)
                future = self._waiting.pop(number, None)
                if future is not None and not future.done():
                    future.set_result((status, value))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Moved())
        self._writer = None

    async def call(self, operation: Operation, key: bytes = b"", value: bytes = b"") -> tuple[Status, bytes]:
        if self._writer is None:
            raise Moved
        number = next(self._numbers) & 0xFFFF_FFFF
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(request(number, operation, key, value))
            status, value = await future
        finally:
            self._waiting.pop(number, None)
        if status is Status.MOVED:
            raise Moved
        return status, value

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def close(self) -> None:
        """Disconnects from the process, which then exits."""
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            await self._reading
        try:
            async with asyncio.timeout(PATIENCE):
                await self.process.wait()
        except TimeoutError:
            await self.kill()


class FrontEnd:
    """HTTP on one side, the current driver process on the other."""

    def __init__(self, device: str, folder: str) -> None:
        self._device = device
        self._folder = folder
        self._numbers = itertools.count()
        self._driver: Driver | None = None
        self._changed = asyncio.Event()
        self._changing = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self.upgrades = 0
        self.restarts = 0
        self.longest_pause = 0.0

    def _path(self, what: str) -> str:
        return os.path.join(self._folder, f"{what}-{next(self._numbers)}.sock")

    async def start(self) -> None:
        """Starts a driver process that opens the device, and a new one whenever it dies."""
        await self._fresh()
        self._watching = asyncio.create_task(self._watch())

    async def _fresh(self) -> None:
        driver = await Driver.start(self._device, self._path("driver"))
        try:
            await driver.says("ready")
            await driver.connect()
        except BaseException:
            await driver.kill()
            raise
        self._become(driver)

    def _become(self, driver: Driver) -> None:
        self._driver = driver
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watch(self) -> None:
        while True:
            driver = self._driver
            assert driver is not None
            await driver.process.wait()
            async with self._changing:
                if self._driver is driver:
                    await self._replace(f"the driver process ended with code {driver.process.returncode}")

    async def _replace(self, why: str) -> None:
        """Acknowledged data is on the drive, and other requests are repeated, so the death of a
        driver process loses nothing.
        """
        print(f"{why}; starting another", file=sys.stderr, flush=True)
        while True:
            with contextlib.suppress(RuntimeError, OSError, TimeoutError):
                await self._fresh()
                self.restarts += 1
                return
            await asyncio.sleep(0.2)

    async def upgrade(self) -> float:
        """A new driver process takes the running controller over. Returns for how many seconds
        there was no driver process.
        """
        async with self._changing:
            old = self._driver
            assert old is not None
            path = self._path("take-over")
            new = await Driver.start(self._device, self._path("driver"), "--take-over", path)
            handed_over = False
            try:
                await new.says("waiting")
                began = time.monotonic()
                status, why = await old.call(Operation.HAND_OVER, value=path.encode())
                if status is not Status.OK:
                    raise RuntimeError(f"the driver process keeps the drive: {why.decode()}")
                handed_over = True
                await new.says("ready")
                await new.connect()
            except BaseException as error:
                await new.kill()
                if handed_over:
                    await old.close()
                    await self._replace(f"the new driver process failed ({error!r})")
                raise
            pause = time.monotonic() - began
            self._become(new)
            self.upgrades += 1
            self.longest_pause = max(self.longest_pause, pause)
            await old.close()
            return pause

    async def call(self, operation: Operation, key: bytes = b"", value: bytes = b"") -> tuple[Status, bytes]:
        """Sends the request to the driver process, or to the next one if it is being
        replaced.
        """
        async with asyncio.timeout(PATIENCE):
            while True:
                driver, changed = self._driver, self._changed
                assert driver is not None
                with contextlib.suppress(Moved):
                    return await driver.call(operation, key, value)
                if self._driver is driver:
                    await changed.wait()

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._driver is not None:
            await self._driver.close()

    # -- HTTP --------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        application = web.Application(client_max_size=(1 << 20) + 1)
        application.add_routes(
            [
                web.get("/keys/{key}", self._get),
                web.put("/keys/{key}", self._put),
                web.delete("/keys/{key}", self._delete),
                web.get("/stats", self._stats),
                web.post("/upgrade", self._upgrade),
            ]
        )
        return application

    async def _ask(self, operation: Operation, request: web.Request, value: bytes = b"") -> bytes:
        try:
            status, answer = await self.call(operation, request.match_info["key"].encode(), value)
        except TimeoutError:
            raise web.HTTPServiceUnavailable(text="no driver process answers") from None
        if status is Status.MISSING:
            raise web.HTTPNotFound
        if status is Status.FULL:
            raise web.HTTPInsufficientStorage(text=answer.decode())
        if status is not Status.OK:
            raise web.HTTPInternalServerError(text=answer.decode())
        return answer

    async def _get(self, request: web.Request) -> web.Response:
        return web.Response(body=await self._ask(Operation.GET, request))

    async def _put(self, request: web.Request) -> web.Response:
        await self._ask(Operation.PUT, request, await request.read())
        return web.Response(status=204)

    async def _delete(self, request: web.Request) -> web.Response:
        await self._ask(Operation.DELETE, request)
        return web.Response(status=204)

    async def _stats(self, request: web.Request) -> web.Response:
        _, stats = await self.call(Operation.STATS)
        return web.Response(body=stats, content_type="application/json")

    async def _upgrade(self, _: web.Request) -> web.Response:
        try:
            seconds = await self.upgrade()
        except (RuntimeError, Moved) as error:
            raise web.HTTPServiceUnavailable(text=f"not upgraded: {error}") from None
        return web.json_response({"seconds": seconds, "upgrades": self.upgrades})


async def run(device: str, host: str, port: int) -> None:
    with tempfile.TemporaryDirectory(prefix="kvstore-") as folder:
        front_end = FrontEnd(device, folder)
        await front_end.start()
        runner = web.AppRunner(front_end.application())
        try:
            await runner.setup()
            site = web.TCPSite(runner, host, port)
            await site.start()
            loop = asyncio.get_running_loop()
            stop = asyncio.Event()
            upgrades: set[asyncio.Task[float]] = set()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            loop.add_signal_handler(signal.SIGHUP, lambda: upgrades.add(loop.create_task(front_end.upgrade())))
            print(f"serving on http://{host}:{runner.addresses[0][1]}", flush=True)
            await stop.wait()
        finally:
            await runner.cleanup()
            await front_end.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A key-value store over HTTP whose driver can be upgraded while it serves"
    )
    parser.add_argument(
        "--device", required=True, metavar="URI", help="pci:0000:01:00.0 or vfio-user:/run/controller.sock"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 = any that is free (default: %(default)s)")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.device, arguments.host, arguments.port))


if __name__ == "__main__":
    main()
