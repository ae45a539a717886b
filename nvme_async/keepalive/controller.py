"""nvme_async.Controller: the driver's controller, and the ways to hand it to another process."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

from nvme_async.keepalive import execute, saving
from nvme_async.keepalive.bundle import Bundle
from nvme_async.keepalive.kept import KeptController
from nvme_async.keepalive.offer import Offer
from nvme_async.runtime import late
from nvme_async.runtime.tasks import finish


class SharedController(Protocol):
    """The result of share(): a nvme_async.sharing.Share, which has more methods."""

    path: str

    def __await__(self) -> Generator[Any, None, Self]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    async def close(self) -> None: ...


class Controller(KeptController):
    __doc__ = (
        KeptController.__mro__[1].__doc__ or ""
    ) + "    adopted, decision, on_bundle_changed: see KeptController.\n"

    async def save(self) -> Bundle:
        """Releases the running controller: its queues, and the commands in flight, stay as they
        are for the process that restores the bundle.

        Waiters end with HandedOver. Doesn't wait for the commands in flight. If it fails, the
        exception gives the reason and service continues. Raises as bundle() does; ControllerError
        if the controller has failed; ControllerTimeout if a loop that uses it is stuck.
        """
        return await self._at_home(lambda: finish(lambda: saving.save(self)))

    async def exec(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> NoReturn:
        """Becomes another program with the same process id, while the controller keeps running;
        the program opens the same URI. Doesn't return.

        argv: as for os.execvp(). env: its environment, by default this one's. See
            nvme_async.keepalive.execute for the exceptions, and for several controllers.
        """
        await self._at_home(lambda: execute.execute([self], argv, env))
        raise AssertionError("execve() has returned")

    def handover(self, where: str | os.PathLike[str] | socket.socket) -> Offer:
        """Offers the running controller to a successor that calls nvme_async.take_over(where):

            async with controller.handover("/run/drive.sock") as offer:
                await offer          # until a successor has taken over

        where: the path of a Unix socket to listen on, or a connected one. Service continues until
            the successor is ready, and resumes if it fails. Leaving the block before a successor
            has come withdraws the offer. A controller without keepalive is shut down cleanly once a
            successor comes, which then brings it up. A worker ("shared:") hands its queue pairs
            over; see docs/sharing.md.

        Calls that wait for I/O end with HandedOver when the block is left, or some 15 ms after the
        successor has taken over: its I/O comes first.
        """
        return Offer(self, where)

    def share(self, path: str | os.PathLike[str], **policy: int | float | str) -> SharedController:
        """Lets other processes use the controller, which this process still owns: they open
        "shared:PATH", get their own queue pairs, and do I/O without this process.

            await controller.share("/run/nvme.sock")

        Returns a nvme_async.sharing.Share, to be awaited (sharing ends with the controller) or
        entered (it ends with the block). policy: see nvme_async.sharing.Policy. ConfigurationError
        for options, a path in use, and controllers that cannot be shared.
        """
        share: SharedController = late.call("share", self, path, **policy)
        return share
