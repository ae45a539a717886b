"""Hand-over between two processes that are both alive: the successor is warm before the predecessor
stops.

On a Unix stream socket; every message is a length (4 bytes, little endian) and a JSON object.

    successor → {"hello": 1, "pid": …, "keepalive": true} predecessor → {"offer": "live", "uri": …,
    "direct": …} and a bundle (bundle.py), or {"offer": "fresh", …} after a clean shutdown successor
    → {"ready": true}                      it has mapped the pool and read the saved state
    predecessor → {"go": {"frozen": seconds}}        queues are still and rung, the saved state is
    final; or {"withdrawn": reason} successor → {"taken": true}                      or {"refused":
    reason, "touched": …}

Until "go" the predecessor serves. From "go" to "taken" it touches nothing; "refused" without
"touched", and it serves again. If the successor ends in between, or refuses after it had begun,
nobody knows what it did: then the predecessor resets the controller and goes on (commands that can
be sent again are).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self

from nvme_async.driver.controller import Controller
from nvme_async.driver.opening import open_controller
from nvme_async.driver.options import Options
from nvme_async.errors import (
    ConfigurationError,
    ControllerError,
    ControllerGone,
    ControllerTimeout,
    NvmeError,
    RestoreRefused,
)
from nvme_async.keepalive import handing
from nvme_async.keepalive.bundle import receive_bundle, send_bundle
from nvme_async.keepalive.deposit import Depositor
from nvme_async.keepalive.holder import find_holder
from nvme_async.keepalive.restoration import Restoration
from nvme_async.runtime.sockets import ListeningSocket
from nvme_async.runtime.tasks import finish, in_thread

log = logging.getLogger("nvme_async")

VERSION = 1
READY_SECONDS = 30.0
"""For each step in which nothing stands still."""
TAKEN_SECONDS = 10.0
"""From "go" to "taken"."""

_LENGTH = struct.Struct("<I")
_MOST = 1 << 20


class Wire:
    """Messages on one socket. On the loop that made it; owner of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, **message: Any) -> None:
        data = json.dumps(message).encode()
        async with asyncio.timeout(READY_SECONDS):
            await self._loop.sock_sendall(self.socket, _LENGTH.pack(len(data)) + data)

    def send_now(self, **message: Any) -> None:
        """send() without a wait: for a message that fits the socket's buffer, which is empty
        between question and answer.
        """
        data = json.dumps(message).encode()
        self.socket.send(_LENGTH.pack(len(data)) + data, socket.MSG_NOSIGNAL)

    async def receive(self, seconds: float) -> dict[str, Any]:
        """The next message. ConnectionError when the other side has gone, ControllerTimeout."""
        try:
            async with asyncio.timeout(seconds):
                (length,) = _LENGTH.unpack(await self._exactly(_LENGTH.size))
                if length > _MOST:
                    raise ConnectionError(
                        f"a message of {length} bytes: the other side of the hand-over speaks something else"
                    )
                message = json.loads(await self._exactly(length))
        except TimeoutError:
            raise ControllerTimeout(f"the other side of the hand-over said nothing for {seconds:g} s") from None
        except ValueError as error:
            raise ConnectionError(f"the other side of the hand-over speaks something else: {error}") from None
        if not isinstance(message, dict):
            raise ConnectionError("the other side of the hand-over speaks something else")
        return message

    async def _exactly(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            part = await self._loop.sock_recv(self.socket, nbytes - len(data))
            if not part:
                raise ConnectionResetError("the other side of the hand-over has gone")
            data += part
        return data

    def close(self) -> None:
        self.socket.close()


class Offer:
    """What controller.handover() returns: an async context manager, awaitable within: until a
        successor has taken over.

    Attributes:
        taken: a successor has the controller.
        failures: attempts that came to nothing, as exceptions.
    """

    def __init__(self, controller: Controller, where: str | os.PathLike[str] | socket.socket) -> None:
        self._controller = controller
        self._where = where
        self._task: asyncio.Task[None] | None = None
        self._listening: ListeningSocket | None = None
        self._committing = asyncio.Lock()  # held while a successor may have it
        self.failures: list[BaseException] = []
        self.taken = False

    async def __aenter__(self) -> Self:
        if isinstance(self._where, socket.socket):
            self._task = asyncio.create_task(self._one(Wire(self._where), again=False))
        else:
            self._listen(self._where)
            self._task = asyncio.create_task(self._serve(self._where))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        async with self._committing:
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        """Until a successor has taken over. On a connected socket: raises what kept it from that."""
        if self._task is None:
            raise ConfigurationError("an offer is to be entered first: async with controller.handover(…) as offer")
        await asyncio.shield(self._task)

    async def _serve(self, path: str | os.PathLike[str]) -> None:
        try:
            while not self.taken:
                sock, _ = await asyncio.get_running_loop().sock_accept((self._listening or self._listen(path)).socket)
                await self._one(Wire(sock), again=True)
        finally:
            self._stop_listening()

    def _listen(self, path: str | os.PathLike[str]) -> ListeningSocket:
        self._listening = ListeningSocket(path)
        self._listening.socket.setblocking(False)
        return self._listening

    def _stop_listening(self) -> None:
        """Before the controller is another's: who then offers it at the same path, and is not to
        find it taken or have it removed.
        """
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.unlink()

    async def _one(self, wire: Wire, *, again: bool) -> None:
        """One successor. again: others may try if it fails, as long as there is something to hand
        over.
        """
        try:
            _check_peer(wire.socket)
            hello = await wire.receive(READY_SECONDS)
            if hello.get("hello") != VERSION:
                await wire.send(withdrawn=f"this side speaks version {VERSION}")
                raise ConfigurationError(f"a successor that speaks version {hello.get('hello')} of the hand-over")
            if self._controller.keepalive and hello.get("keepalive") is True:
                pid = hello.get("pid")
                await self._live(wire, pid if isinstance(pid, int) and pid > 0 else None)
            else:
                await self._fresh(wire)
        except (NvmeError, OSError) as error:
            self.failures.append(error)
            log.warning("%s: a hand-over came to nothing: %s", self._controller.uri, error)
            if not again or self._controller.state != "ready":
                raise
        finally:
            wire.close()

    async def _fresh(self, wire: Wire) -> None:
        """Without keepalive: shut down cleanly, and let the successor bring it up."""
        controller = self._controller
        async with self._committing:
            self._stop_listening()
            await controller.close()
            self.taken = True
            await wire.send(offer="fresh", uri=controller.uri)

    async def _live(self, wire: Wire, heir: int | None) -> None:
        controller = self._controller
        await wire.send(offer="live", uri=controller.uri, direct=controller.device.direct)
        with controller.bundle() as bundle:
            await in_thread(lambda: send_bundle(wire.socket, bundle, timeout=READY_SECONDS))
        answer = await wire.receive(READY_SECONDS)
        if not answer.get("ready"):
            raise RestoreRefused(f"the successor refused: {answer.get('refused', 'no reason given')}")
        async with self._committing:
            self._stop_listening()
            await finish(lambda: self._commit(wire, heir))

    async def _commit(self, wire: Wire, heir: int | None) -> None:
        """From "ready" to the end. Goes on where it was if it is called again: see finish()."""
        controller = self._controller
        async with controller._lock:
            if controller.state != "handed over":
                if controller.state != "saving":
                    await self._go(wire)
                answer = await self._answer(wire)
                self.taken = bool(answer.get("taken"))
            if self.taken:
                await handing.let_go(controller)
                if controller.depositor is not None:
                    await (controller.depositor.end() if heir is None else controller.depositor.pass_on(heir))
                return
            await handing.thaw(controller)
        reason = f"the successor refused: {answer.get('refused', 'no reason given')}"
        if answer.get("touched", True):
            await controller.reset(reason)
        raise RestoreRefused(reason)

    async def _go(self, wire: Wire) -> None:
        controller = self._controller
        if controller.depositor is not None:
            # From here on there is a second process that may drive it; a third must not find it
            # with the keeper.
            await controller.depositor.suspend()
        try:
            await handing.freeze(controller)
        except BaseException as error:
            with contextlib.suppress(OSError):
                wire.send_now(withdrawn=str(error) or repr(error))
            raise
        try:
            wire.send_now(go={"frozen": time.monotonic()})
        except OSError as error:
            await handing.thaw(controller)
            raise ControllerGone(f"the successor has gone: {error}") from error

    async def _answer(self, wire: Wire) -> dict[str, Any]:
        try:
            return await wire.receive(TAKEN_SECONDS)
        except ControllerTimeout as error:
            # It lives and has the controller; two drivers would be worse than a slow one.
            log.warning("%s: %s; it has the controller", self._controller.uri, error)
            return {"taken": True}
        except OSError:
            return {"refused": "it ended while taking over", "touched": True}


def _check_peer(sock: socket.socket) -> None:
    """Descriptors of a controller go to the same user only, or to root."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (os.geteuid(), 0):
        raise ConfigurationError(f"a successor of user {uid} asked for a controller of user {os.geteuid()}")


async def take_over(
    where: str | os.PathLike[str] | socket.socket, options: dict[str, Any], keeper: str | None = None
) -> Controller:
    """See nvme_async.take_over(). May be cancelled: until commit() nothing has happened, and from
    there on nothing is waited for.
    """
    Options.of(options)  # a mistake is to be found before anything stops
    holder = find_holder(keeper)
    try:
        controller = await _take_over(where, options)
    except BaseException:
        if holder is not None:
            holder.close()
        raise
    if holder is not None and controller.keepalive:
        controller.depositor = Depositor(controller, holder)
        controller.depositor.succeed(READY_SECONDS)
    elif holder is not None:
        holder.close()
    return controller


async def _take_over(where: str | os.PathLike[str] | socket.socket, options: dict[str, Any]) -> Controller:
    wire = Wire(where if isinstance(where, socket.socket) else await _connect(os.fspath(where)))
    try:
        await wire.send(hello=VERSION, pid=os.getpid(), keepalive=options.get("keepalive", True) is True)
        offer = await wire.receive(60.0)
        if offer.get("offer") == "live":
            return await _take_live(wire, offer, options)
        if offer.get("offer") == "fresh":
            return await open_controller(str(offer.get("uri")), Options.of(options))
        raise RestoreRefused(f"the predecessor withdrew: {offer.get('withdrawn', 'no reason given')}")
    except ConnectionError as error:
        if isinstance(error, NvmeError):
            raise
        raise ControllerGone(f"the hand-over came to nothing: {error}") from error
    finally:
        wire.close()


async def _take_live(wire: Wire, offer: dict[str, Any], options: dict[str, Any]) -> Controller:
    bundle = await in_thread(receive_bundle, wire.socket, READY_SECONDS)
    restoration = Restoration(bundle, options)
    try:
        restoration.prepare()
        if offer.get("direct"):
            await restoration.connect()
        await wire.send(ready=True)
        answer = await wire.receive(READY_SECONDS)
        if "go" not in answer:
            raise ControllerError(f"the predecessor withdrew: {answer.get('withdrawn', 'no reason given')}")
        controller = await restoration.commit()
    except BaseException as error:
        # First off the device, then the word to the predecessor: from that moment on it is the one
        # who uses it.
        restoration.abort()
        with contextlib.suppress(OSError):
            wire.send_now(refused=str(error) or repr(error), touched=restoration.touched)
        raise restoration.refusal(error) from error
    wire.send_now(taken=True)
    controller.adopted.pause = max(0.0, time.monotonic() - float(answer["go"].get("frozen", 0.0)))
    return controller


async def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(READY_SECONDS):
            await asyncio.get_running_loop().sock_connect(sock, path)
    except (OSError, TimeoutError) as error:
        sock.close()
        raise ControllerGone(
            f"nobody offers a controller at {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    return sock
