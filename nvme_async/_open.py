"""nvme_async.open(): from a device address to a ready controller."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Generator, Iterable
from types import TracebackType
from typing import Any, Unpack

from nvme_async.device import register_scheme
from nvme_async.driver.options import DriverOptions, Options, TakeOverOptions
from nvme_async.driver.schemes import register_transport
from nvme_async.keepalive import standby, takeover
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.opening import KeepaliveOptions, open_with_keepalive
from nvme_async.runtime import late
from nvme_async.runtime.spans import span

# The device layer knows the emulator only by name.
register_scheme("emulated", "nvme_async.emulator.device")
# The same holds for layers that not every program needs.
register_transport("shared", "nvme_async.sharing.passable")
late.register("share", "nvme_async.sharing.owner:share")
register_transport("tcp", "nvme_async.driver.tcp.opening")
register_transport("kernel", "nvme_async.driver.kernel.transport")
register_transport("file", "nvme_async.driver.kernel.file")
register_transport("emulated-tcp", "nvme_async.emulator.tcp_transport")
late.register("resume sharing", "nvme_async.sharing.succession:resume")
late.register("end sharing", "nvme_async.sharing.succession:end")
late.register("pass lease", "nvme_async.sharing.passing:passing")
late.register("inherit lease", "nvme_async.sharing.inheriting:inherit")


class Opening:
    """The result of open() and take_over(): use it with `async with`, or await it and call
    close() later.
    """

    def __init__(self, what: str, where: str, opening: Callable[[], Coroutine[Any, Any, Controller]]) -> None:
        self._what, self._where = what, where
        self._open = opening
        self._controller: Controller | None = None

    def __await__(self) -> Generator[Any, None, Controller]:
        return self._opened().__await__()

    async def _opened(self) -> Controller:
        with span(f"nvme_async.{self._what}", uri=self._where):
            return await self._open()

    async def __aenter__(self) -> Controller:
        self._controller = await self._opened()
        return self._controller

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._controller is not None
        await self._controller.close()


def open(
    uri: str,
    *,
    keepalive: str | bool | None = None,
    pool_pages: int | str | None = None,
    vfio: bool | None = None,
    disable_keepalive: bool | None = None,
    pool_numa: str | None = None,
    always_flr: bool | None = None,
    keeper: str | None = None,
    keeper_wait: float = 0.0,
    **options: Unpack[DriverOptions],
) -> Opening:
    """Takes a controller over and brings it up: `async with nvme_async.open("emulated:size=1GiB")
    as controller: …`.

    uri: "pci:0000:01:00.0" (bound to vfio-pci), "vfio-user:/run/controller.sock",
        "kernel:/dev/ng0n1" or "file:/path" (docs/kernel.md), "emulated:size=1GiB,block=4096", or
        "shared:/run/nvme.sock": a controller that another process shares (Controller.share).
    options: see nvme_async.Options.
    keepalive: whether another process may succeed this one while the controller keeps running:
        True, False, or a value as for OPENHCL_NVME_KEEP_ALIVE.
    pool_pages: size of the private pool for that, in pages of 4 KiB; "off"; or "release" or
        "debug": computed (nvme_async.keepalive.sizing). vfio: False refuses pci: devices.
    disable_keepalive: True: no keepalive, regardless of other settings. pool_numa: "split": the
        pool is spread over the NUMA nodes. always_flr: True: a function level reset whenever the
        device is opened afresh. For these None means: as set by the command line or the
        environment, or inferred (nvme_async.keepalive.config).
    keeper: what holds the controller while no driver runs: the socket of an `nvme-async keeper`,
        "systemd", or "none"; None: systemd's store if this service has one. A running controller
        that a predecessor left there, or across an exec, is taken over; its in-flight commands are
        in `controller.adopted`.
    keeper_wait: seconds to wait for a predecessor that is still alive.

    The controller belongs to the running loop; other loops of the process may use its namespaces.
    Leaving the block shuts it down. Raises ConfigurationError for an invalid URI or option,
    ControllerError (ControllerGone, ControllerTimeout, ControllerFatal, DeviceError) when the
    device can't be brought up, KeeperError when the keeper is missing or another process has the
    controller (`code == "owned"`), InvalidSavedState when the predecessor's private pool is
    missing; then nothing is left behind.
    """
    Options.of(options)
    keepalive_options = KeepaliveOptions(
        keepalive=keepalive,
        pool_pages=pool_pages,
        vfio=vfio,
        disable_keepalive=disable_keepalive,
        pool_numa=pool_numa,
        always_flr=always_flr,
        keeper=keeper,
        keeper_wait=keeper_wait,
    )
    return Opening("open", uri, lambda: open_with_keepalive(uri, {**options}, keepalive_options))


def take_over(
    where: str | os.PathLike[str] | socket.socket,
    *,
    keeper: str | None = None,
    loops: Iterable[asyncio.AbstractEventLoop] = (),
    **options: Unpack[TakeOverOptions],
) -> Opening:
    """Takes a running controller over from the process that offers it at `where`
    (Controller.handover).

    where: the path of the Unix socket on which it is offered, or a connected socket.
    options: see nvme_async.Options; those not given are the
    predecessor's. keepalive=False: the predecessor shuts the controller down, and it is brought up
    again; likewise if the predecessor has no
    keepalive.
    keeper: as for open(): where the controller is deposited from now on, once the predecessor has
        passed its deposit on.
    loops: running event loops of other threads that will do I/O: each gets one of the predecessor's
        queue pairs at once, if possible that of a thread of the same name. Others get one at their
        first I/O.

    The predecessor serves until this process is ready. Its commands that are still in flight are in
    `controller.adopted`; new I/O waits for them. Raises RestoreRefused when the running controller
    can't be taken over: then the predecessor continues; ControllerGone when no process offers one;
    ControllerTimeout; ConfigurationError for options.
    """
    return Opening("take_over", str(where), lambda: takeover.take_over(where, {**options}, keeper, tuple(loops)))


def stand_by(
    keeper: str,
    *,
    uri: str | None = None,
    wait: float = 86400.0,
    keepalive: str | bool | None = None,
    loops: Iterable[asyncio.AbstractEventLoop] = (),
    **options: Unpack[DriverOptions],
) -> Opening:
    """Waits, warm, for the death of the process whose controller the keeper holds, and takes the
    controller over as it runs: what open(…, keeper_wait=…) does, with all that can be done before
    the death done before it.

    keeper: the socket of an `nvme-async keeper`. uri: which controller; None: the only one that it
        holds, or will be given. wait: seconds, up to a day, for the predecessor's death. keepalive,
        options: as for open(). loops: as for take_over().

    A predecessor that closes its controller leaves none: it is brought up afresh then. Makes
    the whole restore once, with an emulated controller, at the beginning (some 10 ms). Raises as
    open() does, ControllerTimeout when the keeper is given no controller, ConfigurationError when
    it holds several and no uri was given.
    """
    Options.of(options)
    keepalive_options = KeepaliveOptions(keepalive=keepalive, keeper=keeper, keeper_wait=wait)
    return Opening(
        "stand_by", keeper, lambda: standby.stand_by(keeper, uri, {**options}, keepalive_options, tuple(loops))
    )
