"""Helpers of the driver's tests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from open_descriptors import open_descriptors

from nvme_async.device import Device, open_device
from nvme_async.driver.namespace import Namespace
from nvme_async.driver.options import Options
from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.emulator import EmulatedController, Faults
from nvme_async.errors import (
    ControllerError,
)
from nvme_async.keepalive.controller import Controller
from nvme_async.spec.opcodes import AdminOpcode

T = TypeVar("T")

# Short, but not so short that a busy machine makes commands late by itself.
FAST: dict[str, Any] = {"command_timeout": 5.0, "admin_timeout": 5.0, "abort_timeout": 2.0, "pool_bytes": 8 << 20}
# For tests in which a timeout is expected.
HASTY: dict[str, Any] = {
    "command_timeout": 0.2,
    "admin_timeout": 0.4,
    "abort_timeout": 0.2,
    "drain_timeout": 0.3,
    "shutdown_timeout": 0.5,
}


def faults(controller: Controller) -> Faults:
    result: Faults = controller.device.emulator.faults  # type: ignore[attr-defined]
    return result


def pattern(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(f"{nbytes}/{seed}").randbytes(nbytes)


def leftovers(*, doorbells: bool = True) -> set[str]:
    """The resources that a driver must have released: pools, VFIO descriptors, emulator threads.

    doorbells: also the mapping of the doorbells, which exists as long as the device handle.
    """
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if "memfd:" in target or "vfio" in target:
            found.add(f"fd {fd}: {target}")
    with open("/proc/self/maps") as maps:
        found |= {line.strip() for line in maps if "memfd:" in line or "vfio" in line}
    if not doorbells:
        found = {entry for entry in found if "doorbells" not in entry}
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/self/task/{task}/comm") as comm:
            if "nvme" in (name := comm.read().strip()):
                found.add(f"thread {task}: {name}")
    return found


def descriptors() -> dict[str, int]:
    """How many descriptors of each kind this process has."""
    return dict(Counter(target.split(":[", maxsplit=1)[0] for target in open_descriptors()))


async def listening(controller: Controller) -> None:
    """Waits until the controller has the driver's event request. When open() returns, the request
    may still be on its way, so a rule for event requests would act on the first one.
    """
    await eventually(lambda: faults(controller).counters()["admin"].get(AdminOpcode.ASYNC_EVENT_REQUEST))


def may_lock_much() -> bool:
    """Rings count as locked memory: with `ulimit -l 64` there is room for two or three."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    status = Path("/proc/self/status").read_text()
    capabilities = int(re.search(r"^CapEff:\s+(\w+)", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return limit == resource.RLIM_INFINITY or limit >= 8 << 20 or bool(capabilities >> 14 & 1)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken effect on the process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def exercise(ns: Namespace, seed: int, rounds: int = 40) -> int:
    """Writes and reads a part of the namespace that belongs to `seed`; returns its thread."""
    size = ns.block_size
    first = 1000 * seed
    for i in range(rounds):
        lbas = [first + (i * 7 + k) % 500 for k in range(5)]
        await asyncio.gather(*(ns.write(lba, pattern(size, lba)) for lba in lbas))
        got = await asyncio.gather(*(ns.read(lba) for lba in lbas))
        assert got == [pattern(size, lba) for lba in lbas]
    return threading.get_ident()


async def eventually(true: Callable[[], Any], seconds: float = 30.0) -> None:
    """Waits until true() holds; AssertionError after `seconds`, which only a hang should take."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, f"not within {seconds} s"
        await asyncio.sleep(0.002)


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Returns the result; AssertionError if it takes much longer, because something hangs. On a
    busy machine everything takes several times as long.
    """
    try:
        async with asyncio.timeout(max(30.0, 4 * seconds)) as limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise AssertionError("still waiting: something hangs") from None
        raise


class LoopThread:
    """An event loop in its own thread, until the block is left."""

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> None:
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._factory = factory
        self._thread = threading.Thread(target=self._run, name="another loop")

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._started.set_result(asyncio.get_running_loop())
        await self._stop.wait()

    def __enter__(self) -> LoopThread:
        self._thread.start()
        self.loop = self._started.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Runs the coroutine there; the result is awaitable here."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))


class Meddler:
    """A device that passes calls on, counts them, and fails or returns wrong values on request."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.calls: list[str] = []
        self.fail_at = -1
        self.error: BaseException = ControllerError("meddled")
        self.before: Callable[[str], None] = lambda name: None
        self.registers: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        target = getattr(self._device, name)
        if name not in (
            "read32",
            "read64",
            "write32",
            "write64",
            "map_dma",
            "unmap_dma",
            "set_interrupts",
            "reset",
            "doorbells",
        ):
            return target

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            self.before(name)
            if len(self.calls) - 1 == self.fail_at:
                raise self.error
            if name in ("read32", "read64") and arguments[0] in self.registers:
                return self.registers[arguments[0]]
            return target(*arguments, **options)

        return call


async def open_meddled(uri: str, prepare: Callable[[Meddler], None], **options: Any) -> Controller:
    """Opens as nvme_async.open() does, with a Meddler in between. `prepare` gets it before the
    bring-up.
    """
    device = Meddler(await asyncio.to_thread(open_device, uri))
    prepare(device)
    controller = Controller(PcieTransport(device), Options.of({**FAST, **options}))  # type: ignore[arg-type]
    await controller.bring_up()
    return controller


class Stepped:
    """An awaitable around a coroutine that calls `at(step)` each time it suspends."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], at: Callable[[int], None]) -> None:
        self._coroutine = coroutine
        self._at = at
        self.steps = 0

    def __await__(self) -> Iterator[Any]:
        value, error = None, None
        while True:
            try:
                yielded = self._coroutine.throw(error) if error is not None else self._coroutine.send(value)
            except StopIteration as stop:
                return stop.value
            self._at(self.steps)
            self.steps += 1
            try:
                value, error = (yield yielded), None
            except BaseException as thrown:
                value, error = None, thrown


MODES = ("adaptive", "interrupt", "poll")


def given_back(before: dict[str, int], what: str = "") -> None:
    """As many descriptors of each kind as before. What a cancelled open() left to a thread may end
    a little later. Blocks; with a loop, it belongs in another thread.
    """
    limit = time.monotonic() + 30
    while (now := descriptors()) != before and time.monotonic() < limit:
        gc.collect()
        time.sleep(0.005)
    assert now == before, what


async def released(emulator: EmulatedController) -> None:
    """No connection, and no memory except the emulator's own and other tests'."""
    others: set[str] = emulator.others  # type: ignore[attr-defined]

    def clean() -> bool:
        return {entry for entry in leftovers(doorbells=False) if "thread" not in entry} <= others

    await eventually(lambda: not emulator.stats()["connected"])
    if not clean():
        gc.collect()
    await eventually(clean)
