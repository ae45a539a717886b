"""What nvme-async selftest does to a drive, step by step; each within a time limit.

A step that fails leads to a line in the report, not to the end, unless the controller is gone. The
data of the drive are only read, but for the blocks that write_to names: those are put back.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import attrs

import nvme_async
from nvme_async.cli.fabrics import open_device
from nvme_async.device.pci import Function
from nvme_async.errors import ConfigurationError, NvmeError
from nvme_async.keepalive import restore
from nvme_async.runtime.tasks import together

State = Literal["ok", "failed", "skipped"]
# (reads at once, bytes of each); the driver splits what is more than one command can carry.
READS = ((1, 4096), (8, 4096), (64, 4096), (4, 128 << 10), (2, 1 << 20))
READ_SECONDS = 0.5
READ_COUNT = 2000
MAX_WRITE = 64 << 20


@attrs.frozen
class Check:
    name: str
    state: State
    detail: str
    seconds: float


@attrs.define
class Selftest:
    """One run over one drive. checks: the results so far. progress: called before each step with
    its number, and its name.
    """

    uri: str
    limit: float
    write_to: tuple[int, int] | None = None
    function: Function | None = None
    progress: Callable[[int, str], None] = lambda number, name: None
    checks: list[Check] = attrs.field(factory=list)
    controller: nvme_async.Controller | None = None
    about: dict[str, str] = attrs.field(factory=dict)

    @property
    def steps(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        return [
            ("bring-up", self._bring_up),
            ("identify", self._identify),
            *((f"read, {depth} x {nbytes // 1024} KiB", self._reading(depth, nbytes)) for depth, nbytes in READS),
            ("write and read back", self._write),
            ("reset", self._reset),
            ("hand-over to itself", self._handover),
            ("interrupts", self._interrupts),
            ("shutdown", self._shut_down),
        ]

    @property
    def failed(self) -> bool:
        return any(check.state == "failed" for check in self.checks)

    async def run(self) -> None:
        try:
            for number, (name, step) in enumerate(self.steps):
                self.progress(number, name)
                began = time.monotonic()
                state: State
                try:
                    if self.controller is None and number:
                        raise Skipped("no controller is open")
                    async with asyncio.timeout(self.limit):
                        state, detail = "ok", await step()
                except Skipped as reason:
                    state, detail = "skipped", str(reason)
                except TimeoutError as error:
                    state, detail = "failed", str(error) or f"not done within {self.limit:g} s"
                except (NvmeError, OSError, Wrong) as error:
                    state, detail = "failed", f"{type(error).__name__}: {error}"
                self.checks.append(Check(name, state, detail, time.monotonic() - began))
        finally:
            if self.controller is not None:
                await self.controller.close()

    # -- the steps ---------------------------------------------------------------------------------

    def _opened(self) -> nvme_async.Controller:
        assert self.controller is not None
        return self.controller

    def _namespace(self) -> nvme_async.Namespace:
        namespaces = self._opened().namespaces
        if not namespaces:
            raise Skipped("there is no active namespace")
        return namespaces[min(namespaces)]

    async def _bring_up(self) -> str:
        keepalive = self.uri.partition(":")[0] in ("pci", "vfio-user", "emulated")
        self.controller = controller = await open_device(self.uri, keepalive=keepalive, keeper="none")
        state = controller.inspect()
        self.about |= {
            "controller": f"{state['model']} firmware {state['firmware']}, NVMe {state['version']}",
            "quirks": str(state["quirks"]),
            "namespaces": ", ".join(
                f"{ns.nsid}: {ns.blocks} x {ns.block_size} B" for ns in controller.namespaces.values()
            )
            or "none",
        }
        degraded = state["degraded"]
        return f"without {degraded}" if degraded else "every step, also the optional ones"

    async def _identify(self) -> str:
        """Against what PCI's configuration space and the kernel's driver said."""
        identify, function = self._opened().identify, self.function
        assert identify is not None
        if function is None:
            raise Skipped("no comparison: not a PCI function of this machine")
        pairs = [("vendor", f"{identify.vid:04x}", f"{function.vendor:04x}")]
        pairs.append(("subsystem vendor", f"{identify.ssvid:04x}", f"{function.subsystem_vendor:04x}"))
        for name, found, remembered in (
            ("model", identify.mn, function.model),
            ("serial", identify.sn, function.serial),
            ("firmware", identify.fr, function.firmware),
        ):
            if remembered is not None:
                pairs.append((name, found.strip(), remembered.strip()))
        for name, found, expected in pairs:
            if found != expected:
                raise Wrong(f"{name} is {found!r}, sysfs has {expected!r}")
        return f"{', '.join(name for name, _, _ in pairs)} as in sysfs"

    def _reading(self, depth: int, nbytes: int) -> Callable[[], Awaitable[str]]:
        async def read() -> str:
            ns = self._namespace()
            blocks = max(1, min(nbytes // ns.block_size, ns.blocks))
            places = random.Random(nbytes + depth)
            count, until = 0, time.monotonic() + READ_SECONDS

            async def reader() -> None:
                nonlocal count
                while count < READ_COUNT and time.monotonic() < until:
                    count += 1
                    await ns.read(places.randrange(ns.blocks - blocks + 1), blocks)

            began = time.monotonic()
            await together(reader() for _ in range(depth))
            seconds = time.monotonic() - began
            return f"{count} reads of {blocks * ns.block_size} B, mean {seconds * depth / count * 1e6:.0f} us"

        return read

    async def _write(self) -> str:
        if self.write_to is None:
            raise Skipped("only reads; --write-to FIRST-LAST names blocks that may be written")
        ns, (first, last) = self._namespace(), self.write_to
        count = last - first + 1
        if last >= ns.blocks or count * ns.block_size > MAX_WRITE:
            raise ConfigurationError(
                f"--write-to {first}-{last}: the namespace has {ns.blocks} blocks, and at most "
                f"{MAX_WRITE >> 20} MiB are written"
            )
        before = await ns.read(first, count)
        pattern = random.Random(os.getpid()).randbytes(len(before))
        try:
            await ns.write(first, pattern)
            await ns.flush()
            found = await ns.read(first, count)
        finally:
            await ns.settled(first, count)
            await ns.write(first, before, fua=True)
        if found != pattern:
            at = next(i for i, (a, b) in enumerate(zip(found, pattern, strict=True)) if a != b)
            raise Wrong(f"block {first + at // ns.block_size} does not read back as written")
        if await ns.read(first, count) != before:
            raise Wrong("the former contents could not be restored")
        return f"{count} blocks from {first} on; their contents were restored"

    async def _same_data(self, act: Callable[[], Awaitable[None]]) -> str:
        """`act`, and the first blocks read as before it."""
        ns = self._namespace()
        count = min(8, ns.blocks)
        before = await ns.read(0, count)
        began = time.monotonic()
        await act()
        after = await self._namespace().read(0, count)
        seconds = time.monotonic() - began
        if after != before:
            raise Wrong("the first blocks differ from what they were before")
        return f"{seconds * 1e3:.1f} ms to the next read"

    async def _reset(self) -> str:
        return await self._same_data(lambda: self._opened().reset("selftest"))

    async def _handed_over(self, mode: Literal["adaptive", "interrupt"]) -> None:
        controller = self._opened()
        if not controller.keepalive:
            raise Skipped("this transport can't hand over its controller")
        bundle = await controller.save()
        await controller.close()
        try:
            self.controller = None
            self.controller = await restore(bundle, mode=mode)
        finally:
            bundle.close()

    async def _handover(self) -> str:
        return await self._same_data(lambda: self._handed_over("adaptive")) + ", without a reset"

    async def _interrupts(self) -> str:
        await self._handed_over("interrupt")
        ns = self._namespace()
        before = self._counted()
        for lba in range(50):
            await ns.read(lba % ns.blocks)
        interrupts, missed = (now - then for now, then in zip(self._counted(), before, strict=True))
        if missed or not interrupts:
            raise Wrong(f"{interrupts} interrupts arrived, {missed} were missed")
        return f"{interrupts} arrived for 50 reads, none was missed"

    def _counted(self) -> tuple[int, int]:
        """Interrupts that came, and that were missed."""
        queues = self._opened().inspect()["io_queues"]
        return sum(queue["interrupts"] for queue in queues), sum(queue["missed_interrupts"] for queue in queues)

    async def _shut_down(self) -> str:
        controller, self.controller = self._opened(), None
        await controller.close()
        return "orderly"


class Skipped(Exception):
    """The step makes no sense here."""


class Wrong(Exception):
    """The drive did what it should not."""
