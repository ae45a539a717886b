"""Management of a controller under load: everything that changes a drive is done while loads on
several loops, and in worker processes, read and write (see verified_load.py).

`Walk` has one method for each operation. Each announces to all loads what may fail and what is
erased, does it, and ends the announcement as soon as the driver says that it is over.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from driving import LoopThread, eventually, within
from verified_load import Load

import nvme_async
from nvme_async import management
from nvme_async.errors import ControllerTimeout
from nvme_async.management import Activation
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature, FirmwareCommitAction, SanitizeAction, SelfTest

ADDRESS = (
    "emulated:size=8MiB,namespaces=2,capacity=64MiB,self_test=0.02,sanitize=0.01,format_time=0.01,firmware_slots=3,"
    "write_cache=on"
)
T = TypeVar("T")
PROGRAM = Path(__file__).with_name("verified_load.py")
QUICK: Any = {"interval": 0.005}
CHANGED = ("NamespaceChanged", "ValueError", "ConfigurationError")
"""A request of the old block size; a buffer that was made for it."""
SANITIZING = ("0/1d",)


class Inside:
    """A load of this process, on its own loop or on this one."""

    def __init__(self, load: Load, thread: LoopThread | None) -> None:
        self._load, self._thread = load, thread
        self._running: asyncio.Future[None] = self._on(load.run())

    def _on(self, coroutine: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(coroutine) if self._thread is None else self._thread.submit(coroutine)

    async def begin(self, errors: Iterable[str], erases: Iterable[int]) -> None:
        async def announce() -> None:
            self._load.begin(errors, erases)

        await self._on(announce())

    async def end(self) -> None:
        async def announce() -> None:
            self._load.end()

        await self._on(announce())

    async def count(self) -> dict[str, Any]:
        return self._load.report()

    async def stop(self) -> dict[str, Any]:
        self._load.stop()
        await within(60, self._running)
        return self._load.report()


class Outside:
    """A load in a worker process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asking = asyncio.Lock()

    @classmethod
    async def start(cls, path: Path, seed: int) -> Self:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROGRAM), str(path), str(seed),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        worker = cls(process)
        assert await worker._line() == "ready"
        return worker

    async def _line(self) -> str:
        assert self._process.stdout is not None
        line = await within(60, self._process.stdout.readline())
        assert line, f"the worker has ended with {await self._process.wait()}"
        return line.decode().strip()

    async def _ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        async with self._asking:
            self._process.stdin.write(f"{line}\n".encode())
            return json.loads(await self._line())

    async def begin(self, errors: Iterable[str], erases: Iterable[int]) -> None:
        await self._ask(f"begin {json.dumps([list(errors), list(erases)])}")

    async def end(self) -> None:
        await self._ask("end")

    async def count(self) -> dict[str, Any]:
        return dict(await self._ask("count"))

    async def stop(self) -> dict[str, Any]:
        report = await self._ask("stop")
        assert await within(60, self._process.wait()) == 0
        return dict(report)

    async def cut(self) -> None:
        await self._ask("cut")

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


class Walk:
    """Operations on a controller that has several loads."""

    def __init__(self, controller: nvme_async.Controller, loads: list[Inside | Outside]) -> None:
        self.controller = controller
        self._loads = loads
        self._revision = 0
        self.refused = 0  # commands, because a worker had no connection

    @asynccontextmanager
    async def _announced(self, errors: Iterable[str] = (), erases: Iterable[int] = ()) -> AsyncIterator[None]:
        errors, erases = tuple(errors), tuple(erases)
        for load in self._loads:
            await load.begin(errors, erases)
        yield
        for load in self._loads:
            await self._until(load, lambda report: report["namespaces"] == self._namespaces(), "has the old namespaces")
            await load.end()

    def _namespaces(self) -> dict[str, int]:
        return {str(nsid): namespace.block_size for nsid, namespace in self.controller.namespaces.items()}

    @staticmethod
    async def _until(load: Inside | Outside, true: Callable[[dict[str, Any]], bool], otherwise: str) -> None:
        """Waits until a load reports that; AssertionError after a minute, or if it was wrong."""
        for _ in range(30_000):
            report = await load.count()
            assert not report["wrong"], report
            if true(report):
                return
            await asyncio.sleep(0.002)
        raise AssertionError(f"a load {otherwise}: {report}")

    async def progress(self) -> None:
        """Every load goes on: each has verified blocks since now, and nothing was wrong."""
        before = [(await load.count())["verified"] for load in self._loads]
        for load, was in zip(self._loads, before, strict=True):
            await self._until(load, lambda report, was=was: report["verified"] > was, "stands still")

    async def _do(self, operation: Callable[..., Awaitable[T]], *arguments: Any, **options: Any) -> T:
        """A function of nvme_async.management. Again if its command was not sent, because a worker
        had no connection.
        """
        while True:
            try:
                return await within(30, operation(self.controller, *arguments, **options))
            except ControllerTimeout as error:
                if "was not sent" not in str(error):
                    raise
                self.refused += 1

    async def stop(self) -> list[dict[str, Any]]:
        return [await load.stop() for load in self._loads]

    async def verified(self) -> int:
        """Blocks that were written and read back so far."""
        return sum([(await load.count())["verified"] for load in self._loads])

    async def cut(self) -> None:
        """The workers lose their connection to the owner."""
        for load in self._loads:
            if isinstance(load, Outside):
                await load.cut()

    # -- operations --------------------------------------------------------------------------------

    async def format_to_the_same(self) -> None:
        async with self._announced(erases=[1]):
            await self._do(management.format_namespace, 1, **QUICK)

    async def format_to_another(self) -> None:
        size = 512 if self.controller.namespaces[1].block_size == 4096 else 4096
        async with self._announced(CHANGED, [1]):
            await self._do(management.format_namespace, 1, block_size=size, **QUICK)
        assert self.controller.namespaces[1].block_size == size

    async def sanitize(self) -> None:
        for action in (SanitizeAction.BLOCK_ERASE, SanitizeAction.CRYPTO_ERASE, SanitizeAction.OVERWRITE):
            async with self._announced(SANITIZING, list(self.controller.namespaces)):
                await self._do(management.sanitize, action, **QUICK)
            await self.progress()

    async def firmware_at_once(self) -> None:
        async with self._announced():
            self._revision += 1
            image = f"NOW{self._revision:<5}".encode() + bytes(200_000)
            assert await self._do(management.update_firmware, image, 2) is Activation.NONE
        assert self.controller.identify.fr.strip() == f"NOW{self._revision}"

    async def firmware_at_a_reset(self) -> None:
        async with self._announced():
            self._revision += 1
            image = f"RST{self._revision:<5}".encode() + bytes(8192)
            await self._do(management.download_firmware, image)
            activation = await self._do(management.commit_firmware, 3, FirmwareCommitAction.REPLACE_AND_ACTIVATE)
            assert activation is Activation.CONTROLLER_RESET
            await within(30, self.controller.reset("new firmware"))
        assert self.controller.identify.fr.strip() == f"RST{self._revision}"

    async def namespaces_come_and_go(self) -> None:
        controller = self.controller
        async with self._announced():
            nsid = await self._do(management.create_namespace, nbytes=4 << 20, block_size=4096)
        await self.progress()
        for _ in range(2):
            async with self._announced(["InvalidNamespace"]):
                await self._do(management.detach_namespace, nsid)
                assert nsid not in controller.namespaces
                await self.progress()
                await self._do(management.attach_namespace, nsid)
            await self.progress()
        async with self._announced(["InvalidNamespace"]):
            await self._do(management.delete_namespace, nsid)
        assert nsid not in controller.namespaces

    async def self_test(self) -> None:
        async with self._announced():
            await self._do(management.self_test, SelfTest.SHORT, **QUICK)
            running = asyncio.ensure_future(management.self_test(self.controller, SelfTest.EXTENDED, **QUICK))
            await self.progress()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def write_cache(self) -> None:
        async with self._announced():
            for enabled in (0, 1, 0):
                await self._do(
                    nvme_async.Controller.admin, commands.set_features(Feature.VOLATILE_WRITE_CACHE, enabled)
                )
                await self.progress()


OPERATIONS = (
    "format_to_the_same",
    "format_to_another",
    "sanitize",
    "firmware_at_once",
    "firmware_at_a_reset",
    "namespaces_come_and_go",
    "self_test",
    "write_cache",
)


@asynccontextmanager
async def walking(
    controller: nvme_async.Controller, path: Path | None = None, *, loops: int = 2, workers: int = 1
) -> AsyncIterator[Walk]:
    """Loads on this loop, on `loops` others, and in `workers` processes that use the controller
    through the socket at `path`. At the end everything they have seen is checked.
    """
    threads = [LoopThread() for _ in range(loops)]
    outside: list[Outside] = []
    for thread in threads:
        thread.__enter__()
    try:
        outside += [await Outside.start(path, 1 + loops + number) for number in range(workers) if path is not None]
        loads = [Load(controller, seed) for seed in range(1 + loops)]
        inside = [Inside(load, thread) for load, thread in zip(loads, (None, *threads), strict=True)]
        walk = Walk(controller, [*inside, *outside])
        try:
            await walk.progress()
            yield walk
            await walk.progress()
        finally:
            for load in loads:
                load.stop()
        for report in await walk.stop():
            assert not report["wrong"], report
    finally:
        for worker in outside:
            worker.kill()
        for thread in threads:
            thread.__exit__()


async def settled(controller: nvme_async.Controller) -> None:
    """The controller wasn't lost, and nothing is held or in flight any more."""
    await eventually(lambda: not controller.effects.running)
    assert controller.state == "ready"
